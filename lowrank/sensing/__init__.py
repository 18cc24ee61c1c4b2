"""Measurements in, signal out, with a proof."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lowrank.sensing import bases, gallery, losses, operators
from lowrank.sensing.certificates import Certificate, certify
from lowrank.sensing.operators.operator import Operator, adjoint_error, as_operator
from lowrank.sensing.problems.base import Problem
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
from lowrank.sensing.recover import recover
from lowrank.sensing.result import Recovery, SolverResult
from lowrank.sensing.signals import sparse_signal
from lowrank.sensing.solve import reweighted, solve
from lowrank.sensing.solvers import AUTO, SOLVERS, Solver
from lowrank.status import Status

if TYPE_CHECKING:
    from lowrank.sensing import diagnostics, estimators, noise, phase_transition, plots
    from lowrank.sensing.diagnostics import (
        DualCertificate,
        RestrictedIsometry,
        babel,
        dual_certificate,
        irrepresentability,
        mutual_coherence,
        null_space_constant,
        restricted_isometry,
        spark,
    )
    from lowrank.sensing.noise import NoiseEstimate, estimate_noise, noise_bound
    from lowrank.sensing.path import LassoPath, lasso_path
    from lowrank.sensing.phase_transition import PhaseTransition, bayes_threshold, l1_threshold
    from lowrank.sensing.progress import progress_bar
    from lowrank.sensing.regularisation import (
        Selection,
        lam_by_cross_validation,
        lam_by_discrepancy,
        lam_by_information,
        lam_by_sure,
        lam_grid,
        lam_max,
    )


_HOME = {
    "DualCertificate": "diagnostics",
    "LassoPath": "path",
    "NoiseEstimate": "noise",
    "PhaseTransition": "phase_transition",
    "RestrictedIsometry": "diagnostics",
    "Selection": "regularisation",
    "babel": "diagnostics",
    "bayes_threshold": "phase_transition",
    "dual_certificate": "diagnostics",
    "estimate_noise": "noise",
    "irrepresentability": "diagnostics",
    "l1_threshold": "phase_transition",
    "lam_by_cross_validation": "regularisation",
    "lam_by_discrepancy": "regularisation",
    "lam_by_information": "regularisation",
    "lam_by_sure": "regularisation",
    "lam_grid": "regularisation",
    "lam_max": "regularisation",
    "lasso_path": "path",
    "mutual_coherence": "diagnostics",
    "noise_bound": "noise",
    "null_space_constant": "diagnostics",
    "progress_bar": "progress",
    "restricted_isometry": "diagnostics",
    "spark": "diagnostics",
}
"""Further public names -> the module each is imported from when it is asked for."""


__all__ = [
    *_HOME,
    "AUTO",
    "BPDN",
    "MCP",
    "SCAD",
    "SLOPE",
    "SOLVERS",
    "Analysis",
    "AnalysisLasso",
    "BasisPursuit",
    "BestSubset",
    "Certificate",
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
    "Operator",
    "OverlappingGroupLasso",
    "PoissonLasso",
    "PosteriorMean",
    "Problem",
    "QuantileLasso",
    "Recovery",
    "Solver",
    "SolverResult",
    "SparseGroupLasso",
    "SqrtLasso",
    "Status",
    "adjoint_error",
    "as_operator",
    "bases",
    "certify",
    "gallery",
    "latent_group_lasso",
    "operators",
    "problems",
    "recover",
    "reweighted",
    "solve",
    "sparse_signal",
    "total_variation",
]


_MODULES = ("diagnostics", "estimators", "noise", "phase_transition", "plots", "progress")


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
