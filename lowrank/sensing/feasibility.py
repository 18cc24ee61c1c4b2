"""Whether anything satisfies the constraints: the distance from y to what can be measured."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import lsq_linear
from scipy.sparse.linalg import LinearOperator, lsqr

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem

SMALL = 2**24
"""Entries of a matrix up to which the closest point is found by factoring it."""


FIRST_DOUBT = 256
"""Iterations after which a run that misses its constraints is looked at, then at each double."""


class Doubt:
    """Asked as a callback is, tells a run that comes no closer to its constraints if none can.

    A first-order method cannot say so itself: its coefficients settle at the closest point, or
    drift, and it would go on to its last iteration. The closest point is looked for only where the
    violation has not halved in twice the iterations.
    """

    def __init__(self, problem: Problem, tol: float) -> None:
        self.problem, self.tol = problem, tol
        self.due, self.last = FIRST_DOUBT, np.inf
        self.proven = False

    def __call__(self, k: int, coefficients: Array) -> bool:
        """Whether it is proven that nothing satisfies the constraints."""
        allowed = self.problem.residual_bound
        if allowed is None or k < self.due:
            return False
        self.due = 2 * k
        y = np.asarray(self.problem.y)
        r = self.problem.operator.forward(coefficients.reshape(-1, *y.shape[1:])) - y
        whole = (lambda v: v.reshape(-1, 1)) if self.problem.coupled else (lambda v: v)
        outside = np.maximum(np.linalg.norm(whole(r), axis=0) - allowed, 0.0)
        violation = float((outside / np.maximum(np.linalg.norm(whole(y), axis=0), 1e-300)).max())
        stuck, self.last = violation > max(self.tol, 0.5 * self.last), violation
        self.proven = stuck and distance_if_infeasible(self.problem, self.tol) > 0
        return self.proven


def distance_if_infeasible(problem: Problem, tol: float) -> float:
    """Distance from y to what `A c` can be within the bounds, if it rules out every c; else 0."""
    if (allowed := problem.residual_bound) is None:
        return 0.0
    y = np.asarray(problem.y)
    columns = y.reshape(y.shape[0], -1)
    distances = np.array([_distance(problem, column) for column in columns.T])
    sizes = np.linalg.norm(columns, axis=0)
    if problem.coupled:  # one bound for all of them
        distances, sizes = (np.array([np.linalg.norm(v)]) for v in (distances, sizes))
    return float(distances[distances - allowed > tol * sizes].max(initial=0.0))


def closest(problem: Problem) -> Array:
    """The coefficients within the bounds whose `A c` is closest to y, of the unknowns' shape."""
    y = np.asarray(problem.y)
    find = _closest if problem.box is None else partial(_closest_in_box, box=problem.box)
    found = [find(problem, column) for column in y.reshape(len(y), -1).T]
    return np.stack(found, axis=1).reshape(problem.unknown_shape).astype(problem.dtype)


def _distance(problem: Problem, y: Array) -> float:
    """`min ||A c - y||` within the bounds, or 0 where that could not be settled."""
    A, box = problem.operator, problem.box
    c = _closest(problem, y) if box is None else _closest_in_box(problem, y, box)
    r = y - A.forward(c)
    size, L = float(np.linalg.norm(r)), A.norm() ** 2 or 1.0
    uphill = A.adjoint(r) / L
    moved = uphill if box is None else np.clip(c + uphill, *box) - c
    settled = np.linalg.norm(moved) * np.sqrt(L) <= 1e-6 * size  # else a slow fit looks like a gap
    return size if settled else 0.0


def _closest(problem: Problem, y: Array) -> Array:
    """Least squares, in units in which columns are of one length."""
    A = problem.operator
    if _is_small(problem):
        norms = np.where((own := A.column_norms()) > 0, own, 1.0)
        return np.asarray(np.linalg.lstsq(A.to_dense() / norms, y, rcond=None)[0] / norms)
    return np.asarray(lsqr(_system(problem, y), y, atol=1e-14, btol=1e-14, iter_lim=2000)[0])


def _closest_in_box(problem: Problem, y: Array, box: tuple[Array, Array]) -> Array:
    """Least squares within the bounds, in units in which y and A are of size 1, as SciPy's
    tolerance for the gradient is absolute.
    """
    A, size, length = problem.operator, _or_one(np.linalg.norm(y)), _or_one(problem.operator.norm())
    b, ends = y / size, (box[0] * (length / size), box[1] * (length / size))
    if not _is_small(problem):
        system = _system(problem, y) * (1 / length)
        found = lsq_linear(system, b, ends, tol=1e-14, lsq_solver="lsmr", max_iter=100)
    else:
        method = "bvls" if A.shape[1] <= 1000 else "trf"
        found = lsq_linear(A.to_dense() / length, b, ends, tol=1e-14, method=method)
    return np.clip(found.x * (size / length), *box)


def _or_one(size: Any) -> float:
    return float(size) or 1.0


def _is_small(problem: Problem) -> bool:
    A = problem.operator
    return A.is_dense and A.shape[0] * A.shape[1] <= SMALL


def _system(problem: Problem, y: Array) -> LinearOperator:
    A = problem.operator
    dtype = np.result_type(A.dtype, y)
    return LinearOperator(A.shape, matvec=A.forward, rmatvec=A.adjoint, dtype=dtype)
