"""Tensor and matrix decompositions: a tensor goes in, frozen factors come out."""
