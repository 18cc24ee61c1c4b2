"""The solvers, one file each, by name.

docs/add-a-solver.md adds one: a file in this folder, a line in `SOLVERS` (and its place in `AUTO`,
if it may be chosen unasked), a row in `tests/sensing_cases.py`, a line in the changelog.
"""

from __future__ import annotations

from lowrank.sensing.solvers.admm import ADMM
from lowrank.sensing.solvers.amp import AMP
from lowrank.sensing.solvers.bg_amp import BernoulliGaussianAMP
from lowrank.sensing.solvers.branch_and_bound import BranchAndBound
from lowrank.sensing.solvers.by_penalty import ByPenalty
from lowrank.sensing.solvers.cone import ConeL1
from lowrank.sensing.solvers.cosamp import CoSaMP
from lowrank.sensing.solvers.cross_bouquet import CrossBouquet
from lowrank.sensing.solvers.cvx import CVXPY
from lowrank.sensing.solvers.denoise import Denoise
from lowrank.sensing.solvers.exact_l1 import ExactL1
from lowrank.sensing.solvers.exact_l1_matrix_free import ExactL1MatrixFree
from lowrank.sensing.solvers.fista import FISTA
from lowrank.sensing.solvers.frisch_newton import FrischNewton
from lowrank.sensing.solvers.group_newton import GroupNewton
from lowrank.sensing.solvers.homotopy import Homotopy
from lowrank.sensing.solvers.iht import IHT
from lowrank.sensing.solvers.interior_point import MehrotraInteriorPoint
from lowrank.sensing.solvers.local_linear import LocalLinear
from lowrank.sensing.solvers.message_passing import MessagePassing
from lowrank.sensing.solvers.omp import OMP
from lowrank.sensing.solvers.one_bit import OneBitThreshold
from lowrank.sensing.solvers.outliers import Outliers
from lowrank.sensing.solvers.protocol import Callback, Solver
from lowrank.sensing.solvers.prox_newton import ProxNewton
from lowrank.sensing.solvers.sbl import SBL
from lowrank.sensing.solvers.spg import SPG
from lowrank.sensing.solvers.subspace_pursuit import SubspacePursuit
from lowrank.sensing.solvers.vamp import VAMP
from lowrank.sensing.solvers.working_set import WorkingSet

__all__ = ["AUTO", "SOLVERS", "Callback", "Solver"]


SOLVERS: dict[str, type[Solver]] = {
    "admm": ADMM,
    "amp": AMP,
    "bg_amp": BernoulliGaussianAMP,
    "branch_and_bound": BranchAndBound,
    "by_penalty": ByPenalty,
    "cone": ConeL1,
    "cosamp": CoSaMP,
    "cross_bouquet": CrossBouquet,
    "cvxpy": CVXPY,
    "denoise": Denoise,
    "exact_l1": ExactL1,
    "exact_l1_matrix_free": ExactL1MatrixFree,
    "fista": FISTA,
    "frisch_newton": FrischNewton,
    "group_newton": GroupNewton,
    "homotopy": Homotopy,
    "iht": IHT,
    "interior_point": MehrotraInteriorPoint,
    "local_linear": LocalLinear,
    "message_passing": MessagePassing,
    "omp": OMP,
    "one_bit": OneBitThreshold,
    "outliers": Outliers,
    "prox_newton": ProxNewton,
    "sbl": SBL,
    "spg": SPG,
    "subspace_pursuit": SubspacePursuit,
    "vamp": VAMP,
    "working_set": WorkingSet,
}
"""Every solver by the name that `recover(..., solver=name)` takes."""


AUTO: tuple[str, ...] = (
    "working_set",
    "group_newton",
    "prox_newton",
    "outliers",
    "local_linear",
    "by_penalty",
    "exact_l1",
    "frisch_newton",
    "cross_bouquet",
    "one_bit",
    "omp",
    "branch_and_bound",
    "vamp",
    "bg_amp",
    "message_passing",
    "exact_l1_matrix_free",
    "cone",
    "fista",
    "denoise",
    "admm",
    "spg",
    "cvxpy",
)
"""The order in which "auto" tries those that take the problem, until one answer is certified."""
