"""1-bit recovery in closed form: soft thresholding of the back-projected signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import OneBit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.terms import one_bit_maximiser
from lowrank.status import Status


@dataclass(frozen=True)
class OneBitThreshold:
    """The exact maximiser of `<A^T y, c>` over `||c||_2 <= 1, ||c||_1 <= radius`.

    It is `soft(A^T y, t)` brought to length 1, with t such that the L1 norm is within the radius:
    one step, so that there is nothing to limit by `max_iter`.

    Example:
        >>> problem = OneBit([[1.0, 0.0], [1.0, 0.5]], [1, 1], radius=1.0)
        >>> OneBitThreshold().solve(problem).coefficients.round(6).tolist()
        [1.0, 0.0]

    Source: Zhang, Yi, Jin 2014, theorem 1, for the program of Plan, Vershynin 2013.
    """

    solves: ClassVar[tuple[type[Problem], ...]] = (OneBit,)

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """One product with A^T and one root per column; the callback sees the answer."""
        assert isinstance(problem, OneBit)
        z = problem.operator.adjoint(np.asarray(problem.y))
        columns = [
            one_bit_maximiser(column, problem.radius) for column in z.reshape(z.shape[0], -1).T
        ]
        c = np.stack(columns, axis=1).reshape(problem.unknown_shape)
        stopped = callback is not None and callback(1, c)
        status = Status.MAX_ITER if stopped else Status.OPTIMAL
        return SolverResult(c, dual=np.asarray(problem.y), status=status, n_iter=1)
