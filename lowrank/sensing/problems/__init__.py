"""What is minimised, problem by problem, and never how."""

from __future__ import annotations

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.checks import checked_number
from lowrank.sensing.problems.groups import (
    GroupBPDN,
    GroupLasso,
    JointBPDN,
    JointSparse,
    SparseGroupLasso,
)
from lowrank.sensing.problems.l1 import (
    BPDN,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    L1Fit,
    Lasso,
    SqrtLasso,
)
from lowrank.sensing.problems.losses import (
    HuberLasso,
    LogisticLasso,
    PoissonLasso,
    QuantileLasso,
)
from lowrank.sensing.problems.nonconvex import MCP, SCAD
from lowrank.sensing.problems.other import BestSubset, KSparse, OneBit, PosteriorMean
from lowrank.sensing.problems.overlap import OverlappingGroupLasso, latent_group_lasso
from lowrank.sensing.problems.slope import SLOPE
from lowrank.sensing.problems.structured import Analysis, AnalysisLasso, total_variation

__all__ = [
    "BPDN",
    "MCP",
    "SCAD",
    "SLOPE",
    "Analysis",
    "AnalysisLasso",
    "BasisPursuit",
    "BestSubset",
    "ConstrainedLasso",
    "DantzigSelector",
    "ElasticNet",
    "GroupBPDN",
    "GroupLasso",
    "HuberLasso",
    "JointBPDN",
    "JointSparse",
    "KSparse",
    "L1Fit",
    "Lasso",
    "LogisticLasso",
    "OneBit",
    "OverlappingGroupLasso",
    "PoissonLasso",
    "PosteriorMean",
    "Problem",
    "QuantileLasso",
    "SparseGroupLasso",
    "SqrtLasso",
    "checked_number",
    "latent_group_lasso",
    "total_variation",
]
