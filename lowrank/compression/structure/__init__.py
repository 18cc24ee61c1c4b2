"""Plans, and the networks that they make."""

from lowrank.compression.structure.pretrained.writing import guard

guard()  # for models that are unpickled, which comes by here and by nothing else of ours
