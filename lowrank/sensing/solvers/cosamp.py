"""Compressive sampling matching pursuit."""

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
class CoSaMP:
    """CoSaMP: join the 2k best columns to the support, fit, keep the k largest, repeat.

    Converged when the support repeats itself. If supports go round in a circle, the best of them
    is returned as STALLED.

    Attributes:
        tol: stop when the residual norm is at most `tol ||y||`.
        max_iter: most iterations.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> CoSaMP().solve(KSparse(A, [0.0, 2.0], 1)).coefficients.round(12)
        array([0., 2., 0.])

    Source: Needell, Tropp 2009, algorithm 1. Deviation: the k coefficients are fitted once more,
    so that the residual is that of least squares on the support.
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
        c = best = np.zeros(A.shape[1], dtype=y.dtype)
        r, goal = y, self.tol * float(np.linalg.norm(y))
        lowest = float(np.linalg.norm(y))
        S, seen, history = np.zeros(0, dtype=int), set[bytes](), [lowest]
        while len(history) <= self.max_iter and history[-1] > goal:
            wide = np.union1d(S, largest(A.adjoint(r), 2 * k))
            last, S = S, largest(fit(A, wide, y)[0], k)
            c, r = fit(A, S, y)
            history.append(float(np.linalg.norm(r)))
            if history[-1] < lowest:
                best, lowest = c, history[-1]
            if np.array_equal(S, last):
                return best, Status.CONVERGED, history[1:]
            if S.tobytes() in seen:
                return best, Status.STALLED, history[1:]
            seen.add(S.tobytes())
            if callback is not None and callback(len(history) - 1, c):
                break
        status = Status.CONVERGED if history[-1] <= goal else Status.MAX_ITER
        return best, status, history[1:]
