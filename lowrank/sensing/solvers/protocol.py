"""What a solver is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeAlias

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.result import SolverResult

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
