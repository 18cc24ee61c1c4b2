"""Measurements in, signal out, with a proof."""

from lowrank.sensing import bases, gallery, operators, problems
from lowrank.sensing.certificates import Certificate, certify
from lowrank.sensing.operators import Operator, adjoint_error, as_operator
from lowrank.sensing.problems import (
    BPDN,
    Analysis,
    AnalysisLasso,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    GroupLasso,
    JointSparse,
    KSparse,
    L1Fit,
    Lasso,
    OneBit,
    PosteriorMean,
    Problem,
    SqrtLasso,
    total_variation,
)
from lowrank.sensing.recover import recover, reweighted, solve
from lowrank.sensing.result import Recovery, SolverResult, Status
from lowrank.sensing.signals import sparse_signal
from lowrank.sensing.solvers import AUTO, SOLVERS, Solver

__all__ = [
    "AUTO",
    "BPDN",
    "SOLVERS",
    "Analysis",
    "AnalysisLasso",
    "BasisPursuit",
    "Certificate",
    "ConstrainedLasso",
    "DantzigSelector",
    "ElasticNet",
    "GroupLasso",
    "JointSparse",
    "KSparse",
    "L1Fit",
    "Lasso",
    "OneBit",
    "Operator",
    "PosteriorMean",
    "Problem",
    "Recovery",
    "Solver",
    "SolverResult",
    "SqrtLasso",
    "Status",
    "adjoint_error",
    "as_operator",
    "bases",
    "certify",
    "gallery",
    "operators",
    "problems",
    "recover",
    "reweighted",
    "solve",
    "sparse_signal",
    "total_variation",
]
