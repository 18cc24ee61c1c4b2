"""The solvers, one file each, by name.

Adding a solver:

1. One file in this folder with a frozen dataclass that holds hyperparameters only (`tol` and
   `max_iter` among them, where it iterates), the class attribute `solves` with the problem types
   it takes, `refuses(problem)` and `solve(problem, ...)`.
2. It works on `problem.operator` (`A Psi`, an `Operator`: `.forward`, `.adjoint`, `.dense`,
   `.columns(J)`, `.norm()`, `.row_orthonormal`), `problem.y` and the problem's own fields, and
   never on `problem.A` or `problem.basis`.
3. It returns a `SolverResult`: the coefficients, a dual candidate if it has one, and what it
   believes of the status. It computes no certificate: `lowrank.sensing.solve` does, from outside,
   and an OPTIMAL that the certificate does not bear out becomes STALLED.
4. One line in `SOLVERS`, one row in `tests/sensing_cases.py`, one line in the changelog.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeAlias

from lowrank.sensing.problems import Problem
from lowrank.sensing.result import Array, SolverResult

Callback: TypeAlias = Callable[[int, Array], Any]
"""Called as `callback(iteration, coefficients)` each iteration; a true return value stops."""


class Solver(Protocol):
    """An immutable algorithm: hyperparameters, the problems it takes, and `solve`."""

    solves: ClassVar[tuple[type[Problem], ...]]

    def refuses(self, problem: Problem) -> str | None:
        """Why this instance of a listed problem cannot be taken, or None if it can.

        Reasons are phrases such as "needs a matrix, and A is matrix-free".
        """

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; `x0` are coefficients to start from, and may be ignored."""


SOLVERS: dict[str, type[Solver]] = {}
"""Every solver by the name that `recover(..., solver=name)` takes."""
