"""Equal column norms, for first-order solvers, whose rate depends on them."""

from __future__ import annotations

import numpy as np

from lowrank.sensing.operators.algebra import scaled_columns
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem

SPREAD = 3.0
"""Ratio of the largest to the smallest column norm that is left alone."""


def equilibrated(problem: Problem) -> tuple[Problem, Array | None]:
    """The problem for `S c`, with `S = diag(||a_j||)`, where that is of the same form.

    The columns become `a_j / ||a_j||`, the weights `w / S` and the bounds `S lower`, `S upper`;
    the dual variable is the same.

    Returns:
        The problem to solve and the diagonal of S, (p,); the problem itself and None where the
        columns are nearly equal, their norms are not cheap, or a term would change its form.

    Example:
        >>> from lowrank.sensing import Lasso
        >>> scaled, S = equilibrated(Lasso(np.diag([1.0, 100.0]), np.ones(2), 0.1))
        >>> scaled.weights.tolist(), S.tolist()
        ([1.0, 0.01], [1.0, 100.0])
    """
    A = problem.operator
    if not problem.scale_free or not A.knows_column_norms:
        return problem, None
    norms = A.column_norms()
    largest = float(norms.max())
    norms = np.where(norms > 1e-12 * largest, norms, largest or 1.0)
    if largest <= SPREAD * float(norms.min()):
        return problem, None
    return problem.rescaled(scaled_columns(A, 1 / norms), norms), norms


def scaled_start(problem: Problem, x0: Array | None, S: Array | None) -> Array:
    """The starting point as columns (p, batch), in the scaled variable; zeros without one."""
    if x0 is None:
        return np.zeros(problem.unknown_shape, problem.dtype).reshape(problem.n_unknowns, -1)
    columns = x0.reshape(x0.shape[0], -1)
    return columns if S is None else S[:, None] * columns


def unscaled(problem: Problem, c: Array, S: Array | None) -> Array:
    """The coefficients of the problem as it was stated, of its shape."""
    return (c if S is None else c / S[:, None]).reshape(problem.unknown_shape)
