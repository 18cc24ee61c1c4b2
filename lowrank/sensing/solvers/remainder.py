"""Basis pursuit of data with two scales: a sparse signal, and the rounding of its measurements.

Where y was stored in float32, or written with a few digits, the solution of `A x = y` has a few
large entries and as many tiny ones as there are rows left, and no basis of them all is solved for
accurately enough to tell the tiny ones' signs. So the large entries, on J with signs s, are set
free: with `P` the projection onto what A_J does not reach and `v = A_J (A_J^T A_J)^-1 w_J s`, what
remains of the path is that of

    1/2 ||P A d - P y||^2 + lam sum_j (w_j |d_j| - (a_j^T v) d_j)

in the other columns, whose data are of one scale again. Its dual point is to be added to v.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import qr, solve_triangular

from lowrank.sensing.solvers.active_set import (
    Segment,
    Settled,
    basis_pursuit_target,
    refine,
    settle,
)
from lowrank.sensing.solvers.column_pool import Array, ColumnPool, Index
from lowrank.sensing.solvers.dense_l1 import Answer, Goal, answer_of, measure
from lowrank.sensing.solvers.homotopy import follow_path

# A residual of the least squares below this, relative to y, may be what rounding left of it.
EXPLAINED = 1e-3


# Factor between the smallest large entry and the largest tiny one that tells them apart.
APART = 30.0


# Scales that are peeled off one after the other.
SCALES = 4


# Blocks of the path that are tried.
MAX_STEPS = 1000


# Columns that are projected at a time.
BAND = 2048


class Large(NamedTuple):
    """The large entries: columns `J`, what a unit of each costs, and `A_J = Q R`."""

    columns: Index
    slopes: Array
    Q: Array
    R: Array

    def dual(self) -> Array:
        """`v` in the span of the columns, where none of them is worth changing."""
        return np.asarray(self.Q @ solve_triangular(self.R, self.slopes, trans="T"))

    def fit(self, y: Array) -> Array:
        """Least squares of y on these columns."""
        return np.asarray(solve_triangular(self.R, self.Q.T @ y))

    def off(self, y: Array) -> Array:
        """What of y, (m,) or (m, k), is outside their span."""
        return np.asarray(y - self.Q @ (self.Q.T @ y))


class _Others(ColumnPool):
    """The other columns, projected; a guess of them is shown with the large entries."""

    def __init__(self, pool: ColumnPool, large: Large, lam: float) -> None:
        self.pool, self.large, self.top = pool, large, lam
        self.fit = large.fit(pool.y)
        self.columns = np.delete(np.arange(pool.weights.size), large.columns)
        A = pool.A.take(self.columns, axis=1)
        for j in range(0, self.columns.size, BAND):
            A[:, j : j + BAND] = large.off(A[:, j : j + BAND])
        y = large.off(pool.y - pool.A[:, large.columns] @ self.fit)
        bias = pool.multiply_adjoint(large.dual())[self.columns]
        more: dict[str, Any] = {"nonneg": pool.nonneg, "bias": bias, "within": (pool, self.columns)}
        super().__init__(A, y, pool.weights[self.columns], **more)

    @property
    def lam_max(self) -> float:
        """Where its path begins."""
        return self.top

    def tell(self, support: Index, coefficients: Array) -> None:
        """Take note of a guess, beside the large entries as least squares has them."""
        everything = np.concatenate([self.large.columns, self.columns[support]])
        self.pool.tell(everything, np.concatenate([self.fit, coefficients]))

    def start(self, line: Segment) -> Settled | None:
        """The point of the pool's path, here."""
        place = np.full(self.pool.weights.size, -1)
        place[self.columns] = np.arange(self.columns.size)
        support = place[line.support]
        stay = support >= 0
        return settle(self, support[stay], line.signs[stay], self.top, basis_pursuit_target, 12)


def by_scales(pool: ColumnPool, goal: Goal, start: Settled | None) -> Answer | None:
    """A link of `ExactL1` for basis pursuit: the path, from where y is explained by its scales."""
    end = _end_of_path(pool, start, SCALES)
    if end is None:
        return None
    if isinstance(end, Settled):
        return answer_of(pool, goal, end, "block homotopy")
    x, u = end
    c, residual = pool.multiply_adjoint(u), pool.y - pool.A @ x
    gap, infeasibility = measure(pool, goal, x, u, residual, c)
    return Answer(x, u, gap, infeasibility, "homotopy by scales")


def _end_of_path(
    pool: ColumnPool, start: Settled | None, scales: int
) -> Settled | tuple[Array, Array] | None:
    """The end, or `x` and `u` where it was reached by setting large entries free."""
    stop: Callable[[Settled], bool] = lambda here: scales > 0 and _apart(pool, here).size > 0  # noqa: E731
    found = follow_path(pool, basis_pursuit_target, start, max_steps=MAX_STEPS, stop=stop)
    if found is None or found.solves(basis_pursuit_target):
        return found
    point = _beside_large(pool, found, scales - 1)
    if point is not None:
        return point
    return follow_path(pool, basis_pursuit_target, found, max_steps=MAX_STEPS)


def _beside_large(pool: ColumnPool, here: Settled, scales: int) -> tuple[Array, Array] | None:
    """`x` and `u` from a point of the path on, with its large entries free."""
    line, large = here.line, _large(pool, here)
    others = _Others(pool, large, here.lam)
    try:
        start = others.start(line)
        end = None if start is None else _end_of_path(others, start, scales)
    finally:
        pool.products += others.products
    if end is None:
        return None
    x, d = np.zeros(pool.weights.size), np.zeros(others.weights.size)
    if isinstance(end, Settled):
        line = refine(others, end.line)
        d[line.support], u = line.x_ls, line.v
    else:
        d, u = end
    x[others.columns] = d
    x[large.columns] = large.fit(pool.y - pool.A @ x)
    same = (np.sign(x[large.columns]) == np.sign(large.slopes + pool.bias[large.columns])).all()
    return (x, large.dual() + large.off(u)) if same else None


def _apart(pool: ColumnPool, here: Settled) -> Index:
    """Places of the entries far larger than all others, and than what fitting r can do to them."""
    line = here.line
    left = float(np.linalg.norm(line.r + here.lam * line.v))
    if line.exact or left > EXPLAINED * pool.y_norm:
        return np.empty(0, np.intp)
    size = np.abs(line.coefficients(here.lam))
    floor = left / np.sqrt(float(np.einsum("ij,ij->", pool.A, pool.A)) / pool.A.shape[1])
    order = np.argsort(-size)
    ratio = size[order] / np.maximum(np.append(size[order[1:]], floor), floor)
    last = int(ratio.argmax())
    return order[: last + 1] if ratio[last] >= APART and last + 1 < len(pool.A) else order[:0]


def _large(pool: ColumnPool, here: Settled) -> Large:
    """The entries apart, with their signs at this point."""
    chosen = _apart(pool, here)
    columns = here.line.support[chosen]
    Q, R = qr(pool.A[:, columns], mode="economic")
    return Large(
        columns, pool.weights[columns] * here.line.signs[chosen] - pool.bias[columns], Q, R
    )
