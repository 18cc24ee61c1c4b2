"""Subspace pursuit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import KSparse
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.support import each_column, fit, largest
from lowrank.status import Status


@dataclass(frozen=True)
class SubspacePursuit:
    """Subspace pursuit: join the k best columns, fit, keep the k largest, while the residual falls.

    Attributes:
        tol: stop when the residual norm is at most `tol ||y||`.
        max_iter: most iterations, the first of which fits the columns that correlate most.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> SubspacePursuit().solve(KSparse(A, [0.0, 2.0], 1)).coefficients.round(12)
        array([0., 2., 0.])

    Source: Dai, Milenkovic 2009, algorithm 1.
    """

    tol: float = 1e-12
    max_iter: int = 200

    solves: ClassVar[tuple[type[Problem], ...]] = (KSparse,)

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Signal by signal; `x0` is ignored."""
        assert isinstance(problem, KSparse)
        return each_column(problem, partial(self._column, problem.k), callback)

    def _column(
        self, k: int, A: Operator, y: Array, callback: Callback | None
    ) -> tuple[Array, Status, list[float]]:
        goal = self.tol * float(np.linalg.norm(y))
        S = largest(A.adjoint(y), k)
        c, r = fit(A, S, y)
        history = [float(np.linalg.norm(r))]
        stopped = callback is not None and callback(1, c)
        while history[-1] > goal:
            if stopped or len(history) >= self.max_iter:
                return c, Status.MAX_ITER, history
            wide = np.union1d(S, largest(A.adjoint(r), k))
            S_next = largest(fit(A, wide, y)[0], k)
            c_next, r_next = fit(A, S_next, y)
            if np.linalg.norm(r_next) >= history[-1] * (1 - 1e-12):
                return c, Status.CONVERGED, history
            S, c, r = S_next, c_next, r_next
            history.append(float(np.linalg.norm(r)))
            stopped = callback is not None and callback(len(history), c)
        return c, Status.CONVERGED, history
