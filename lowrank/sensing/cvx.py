"""Every convex problem in CVXPY: the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lowrank.sensing.operators import Array
from lowrank.sensing.problems import Problem
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback


@dataclass(frozen=True)
class Cvxpy:
    """CVXPY."""

    solves: ClassVar[tuple[type[Problem], ...]] = ()

    def refuses(self, problem: Problem) -> str | None:
        """None."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Solve."""
        raise NotImplementedError
