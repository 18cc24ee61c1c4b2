"""1-bit recovery in closed form: soft thresholding of the back-projected signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.certificates import TIE, one_bit_threshold
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import OneBit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.terms import soft


@dataclass(frozen=True)
class OneBitThreshold:
    """The exact maximiser of `<A^T y, c>` over `||c||_2 <= 1, ||c||_1 <= radius`.

    It is `soft(A^T y, t)` brought to length 1, with t such that the L1 norm is within the radius.

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
        """One product with A^T and one root per column."""
        assert isinstance(problem, OneBit)
        z = problem.operator.adjoint(np.asarray(problem.y))
        columns = [_maximiser(column, problem.radius) for column in z.reshape(z.shape[0], -1).T]
        c = np.stack(columns, axis=1).reshape(problem.unknown_shape)
        return SolverResult(c, dual=np.asarray(problem.y))


def _maximiser(z: Array, radius: float) -> Array:
    t = one_bit_threshold(z, radius)
    s = soft(z, t)
    if not s.any():  # ties for the largest: spread over them, with L1 norm radius and L2 norm <= 1
        tied = np.abs(z) >= t * (1 - TIE)
        return np.asarray(np.where(tied, np.sign(z) * radius / tied.sum(), 0.0))
    return np.asarray(s / np.linalg.norm(s))
