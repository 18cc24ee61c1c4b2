"""From a nearly right basis to an optimal one: primal simplex for basis pursuit, with long steps.

Any `m` independent columns make a vertex of `min ||w x||_1` subject to `A x = y`: the signs of
`x_B = A_B^-1 y` say which halves of the split variables are basic. So a guess of the basis needs no
first phase, and each pivot only lowers the objective.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg.blas import dtrsv
from scipy.linalg.lapack import dgetrf

from lowrank.sensing.solvers.active_set import ROUGH_TIE
from lowrank.sensing.solvers.column_pool import Array, ColumnPool, Index

# A pivot of the factor below this, relative to the largest, means dependent columns.
DEPENDENT = 1e-9


class Vertex(NamedTuple):
    """An optimal basis: its columns, `x` on them, the dual point, and `c = A^T u`."""

    columns: Index
    x: Array
    u: Array
    c: Array


class Basis:
    """`A_B = L U` and the columns exchanged since, each a rank-one factor."""

    def __init__(self, matrix: Array) -> None:
        self._lu, swaps, info = dgetrf(matrix)
        size = np.abs(self._lu.diagonal())
        self.singular = bool(info) or size.min() < DEPENDENT * size.max()
        self._order = np.arange(len(swaps))
        for i, p in enumerate(swaps):
            self._order[[i, p]] = self._order[[p, i]]
        self._updates: list[tuple[int, float, Array]] = []

    def solve(self, v: Array) -> Array:
        """Return `A_B^-1 v`."""
        t = dtrsv(self._lu, dtrsv(self._lu, v[self._order], lower=1, diag=1))
        for p, pivot, d in self._updates:
            step = t[p] / pivot
            t -= step * d
            t[p] = step
        return t

    def solve_transposed(self, v: Array) -> Array:
        """Return `A_B^-T v`."""
        t = v.copy()
        for p, pivot, d in reversed(self._updates):
            t[p] -= (d @ t - t[p]) / pivot
        t = dtrsv(self._lu, dtrsv(self._lu, t, trans=1), lower=1, trans=1, diag=1)
        out = np.empty_like(t)
        out[self._order] = t
        return out

    def replace(self, p: int, d: Array) -> None:
        """Put in place of column `p` the column `a` with `d = A_B^-1 a`."""
        self._updates.append((p, float(d[p]), d))


def leaving(x: Array, weights: Array, d: Array, slope: float) -> tuple[int, float] | None:
    """Where `||w (x - t d)||_1 + slope t` is least over t >= 0: the entry that is 0 there, and t.

    The slope rises by `2 w_i |d_i|` where entry i changes sign.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        t = x / d
    ahead = np.flatnonzero((t > 0) | ((x == 0) & (d > 0)))  # zeros count as positive
    order = ahead[np.argsort(t[ahead])]
    rising = slope + np.cumsum(2 * weights[order] * np.abs(d[order]))
    place = int(np.searchsorted(rising, 0.0))
    return (int(order[place]), float(t[order[place]])) if place < order.size else None


def pivot_to_optimum(pool: ColumnPool, columns: Index, max_pivots: int) -> Vertex | None:
    """Primal simplex from a basis, without bounds on `x`.

    Args:
        pool: the data.
        columns: m columns, independent; any signs.
        max_pivots: number of columns exchanged, three solves and a product each.

    Returns:
        The optimal vertex, or None: dependent columns, or too many pivots.

    Source: Barrodale and Roberts, 1973, for passing many sign changes in one step.
    """
    columns, A, w = columns.copy(), pool.A, pool.weights
    basis = Basis(A[:, columns])
    if basis.singular:
        return None
    x = basis.solve(pool.y)
    for _ in range(max_pivots):
        pool.tell(columns.copy(), x.copy())
        u = basis.solve_transposed(w[columns] * np.where(x < 0, -1.0, 1.0))
        c = pool.multiply_roughly(u)
        violation = pool.violation(c)
        violation[columns] = 0.0
        j = int(violation.argmax())
        if violation[j] <= ROUGH_TIE:
            return _polished(pool, basis, columns, x)
        sign = 1.0 if c[j] > 0 else -1.0
        d = basis.solve(A[:, j])
        step = leaving(x, w[columns], sign * d, float(w[j] - abs(c[j])))
        if step is None:
            return None
        p, t = step
        x -= sign * t * d
        x[p], columns[p] = sign * t, j
        basis.replace(p, d)
    return None


def _polished(pool: ColumnPool, basis: Basis, columns: Index, x: Array) -> Vertex:
    """One step of refinement for `x` and `u`, and a look in float64 for what float32 missed."""
    B, signed = pool.A[:, columns], pool.weights[columns] * np.where(x < 0, -1.0, 1.0)
    x = x + basis.solve(pool.y - B @ x)
    u = basis.solve_transposed(signed)
    u = u + basis.solve_transposed(signed - u @ B)
    c = pool.multiply_adjoint(u)
    return Vertex(columns, x, u, c)
