"""Tensor and matrix decompositions: a tensor goes in, frozen factors come out."""

from __future__ import annotations

from lowrank.decompositions.bricks import Bricks, assemble
from lowrank.decompositions.completion import Completion, complete
from lowrank.decompositions.cp import cp, sensitivity
from lowrank.decompositions.factors import CPFactors, Factors, SVDFactors, TTFactors, TuckerFactors
from lowrank.decompositions.interop import from_tensorly, to_tensorly
from lowrank.decompositions.low_rank_sparse import (
    LowRankSparse,
    go_dec,
    greedy_bilateral,
    low_rank_plus_sparse,
    robust_pca,
)
from lowrank.decompositions.parts import LowRankParts
from lowrank.decompositions.rank import energy_rank, error_rank, evbmf, evbmf_rank
from lowrank.decompositions.svd import singular_values, truncated_svd
from lowrank.decompositions.tensor_train import tensor_train, tt_error_bound, tt_spectra
from lowrank.decompositions.tucker import hosvd_core, tucker, tucker_error_surface

__all__ = [
    "Bricks",
    "CPFactors",
    "Completion",
    "Factors",
    "LowRankParts",
    "LowRankSparse",
    "SVDFactors",
    "TTFactors",
    "TuckerFactors",
    "assemble",
    "complete",
    "cp",
    "energy_rank",
    "error_rank",
    "evbmf",
    "evbmf_rank",
    "from_tensorly",
    "go_dec",
    "greedy_bilateral",
    "hosvd_core",
    "low_rank_plus_sparse",
    "robust_pca",
    "sensitivity",
    "singular_values",
    "tensor_train",
    "to_tensorly",
    "truncated_svd",
    "tt_error_bound",
    "tt_spectra",
    "tucker",
    "tucker_error_surface",
]
