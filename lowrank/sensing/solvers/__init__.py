"""The solvers, one file each, by name.

Adding a solver:

1. One file in this folder with a frozen dataclass that holds hyperparameters only (`tol` and
   `max_iter` among them, where it iterates), the class attribute `solves` with the problem types
   it takes, `refuses(problem)` and `solve(problem, ...)`; see `protocol.py`.
2. It works on `problem.operator` (`A Psi`, an `Operator`: `.forward`, `.adjoint`, `.dense`,
   `.columns(J)`, `.norm()`, `.row_orthonormal`), `problem.y` and the problem's own fields, and
   never on `problem.A` or `problem.basis`. `problem.loss` and `problem.penalty` give values,
   conjugates and proximal maps for columns (size, batch).
3. It returns a `SolverResult`: the coefficients, a dual candidate if it has one, and what it
   believes of the status. It computes no certificate: `lowrank.sensing.solve` does, from outside,
   and an OPTIMAL that the certificate does not bear out becomes STALLED. Products with the whole
   matrix are counted for it, unless it takes `.dense` and gives `n_products` itself.
4. One line in `SOLVERS` (and its place in `AUTO`, if it may be chosen unasked), one row in
   `tests/sensing_cases.py`, one line in the changelog.
"""

from __future__ import annotations

from lowrank.sensing.cvx import Cvxpy
from lowrank.sensing.solvers.admm import Admm
from lowrank.sensing.solvers.amp import Amp
from lowrank.sensing.solvers.bg_amp import BernoulliGaussianAmp
from lowrank.sensing.solvers.chain import Chain
from lowrank.sensing.solvers.cosamp import CoSaMP
from lowrank.sensing.solvers.cross_bouquet import CrossBouquet
from lowrank.sensing.solvers.fista import Fista
from lowrank.sensing.solvers.formed_matrix import FormedMatrix
from lowrank.sensing.solvers.homotopy import Homotopy
from lowrank.sensing.solvers.iht import Iht
from lowrank.sensing.solvers.interior_point import MehrotraInteriorPoint
from lowrank.sensing.solvers.omp import Omp
from lowrank.sensing.solvers.one_bit import OneBitThreshold
from lowrank.sensing.solvers.protocol import Callback, Solver
from lowrank.sensing.solvers.sbl import Sbl
from lowrank.sensing.solvers.spg import Spg
from lowrank.sensing.solvers.subspace_pursuit import SubspacePursuit
from lowrank.sensing.solvers.vamp import Vamp

__all__ = ["AUTO", "SOLVERS", "Callback", "Solver"]

SOLVERS: dict[str, type[Solver]] = {
    "admm": Admm,
    "amp": Amp,
    "bg_amp": BernoulliGaussianAmp,
    "chain": Chain,
    "cosamp": CoSaMP,
    "cross_bouquet": CrossBouquet,
    "cvxpy": Cvxpy,
    "fista": Fista,
    "formed_matrix": FormedMatrix,
    "homotopy": Homotopy,
    "iht": Iht,
    "interior_point": MehrotraInteriorPoint,
    "omp": Omp,
    "one_bit": OneBitThreshold,
    "sbl": Sbl,
    "spg": Spg,
    "subspace_pursuit": SubspacePursuit,
    "vamp": Vamp,
}
"""Every solver by the name that `recover(..., solver=name)` takes."""

AUTO: tuple[str, ...] = (
    "chain",
    "cross_bouquet",
    "one_bit",
    "omp",
    "vamp",
    "bg_amp",
    "formed_matrix",
    "fista",
    "admm",
    "spg",
    "cvxpy",
)
"""The order in which "auto" tries those that take the problem, until one answer is certified."""
