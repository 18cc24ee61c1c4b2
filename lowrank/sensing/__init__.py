"""Measurements in, signal out, with a proof."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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
    from lowrank.sensing.noise import (
        NoiseEstimate,
        Selection,
        estimate_noise,
        lam_by_cross_validation,
        lam_by_discrepancy,
        lam_by_information,
        lam_by_sure,
        lam_grid,
        lam_max,
        noise_bound,
    )
    from lowrank.sensing.phase_transition import PhaseTransition, bayes_threshold, l1_threshold
    from lowrank.sensing.progress import progress_bar

_HOME = {
    "DualCertificate": "diagnostics",
    "NoiseEstimate": "noise",
    "PhaseTransition": "phase_transition",
    "RestrictedIsometry": "diagnostics",
    "Selection": "noise",
    "babel": "diagnostics",
    "bayes_threshold": "phase_transition",
    "dual_certificate": "diagnostics",
    "estimate_noise": "noise",
    "irrepresentability": "diagnostics",
    "l1_threshold": "phase_transition",
    "lam_by_cross_validation": "noise",
    "lam_by_discrepancy": "noise",
    "lam_by_information": "noise",
    "lam_by_sure": "noise",
    "lam_grid": "noise",
    "lam_max": "noise",
    "mutual_coherence": "diagnostics",
    "noise_bound": "noise",
    "null_space_constant": "diagnostics",
    "progress_bar": "progress",
    "restricted_isometry": "diagnostics",
    "spark": "diagnostics",
}
"""Further public names -> the module each is imported from when it is asked for."""

_MODULES = ("diagnostics", "estimators", "noise", "phase_transition", "plots", "progress")

__all__ = [
    *_HOME,
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
