"""Primal-dual active set on a growing pool of columns: the engine of the certified chain.

Everything here is about the weighted LASSO path

    x(lam) = argmin 1/2 ||A x - y||^2 + lam sum_j w_j |x_j|,

whose limit at `lam -> 0+` is basis pursuit. On a support `J` with signs `s` the path is a line,

    x_J(lam) = x_LS - lam q,    G = A_J^T A_J,   x_LS = G^-1 A_J^T y,   q = G^-1 (w_J s),

and the dual point is `u(lam) = (y - A x) / lam = v + r / lam` with `r = y - A_J x_LS` and
`v = A_J q`. The pair `(J, s)` is right at `lam` if no sign flips and no `|a_j^T u|` exceeds `w_j`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs, dpstrf

Array = NDArray[np.float64]
Index = NDArray[np.intp]

# A pivot below this (columns have about unit norm) means that the column depends on the others.
DEPENDENT = 1e-11
# Relative slack of `|a_j^T u| <= w_j` when a column joins: above rounding, below any real one.
TIE = 1e-10
# A least-squares residual below this times ||y|| counts as an exact fit.
EXACT = 1e-10


class Segment(NamedTuple):
    """A line of the path: support, signs, and the pieces of `x(lam)` and `u(lam)`."""

    support: Index
    signs: Array
    x_ls: Array
    q: Array
    r: Array
    v: Array
    exact: bool
    """True if `y` lies in the span of the support, so that the path may be followed to 0+."""

    def coefficients(self, lam: float) -> Array:
        """Return `x_J(lam)`; at the end of the path (`exact`) that is `x_LS`."""
        return self.x_ls if self.exact and lam == 0 else self.x_ls - lam * self.q

    def dual(self, lam: float) -> Array:
        """Return `u(lam)`, the scaled residual."""
        return self.v if self.exact else self.v + self.r / lam


class ColumnPool:
    """The columns that were ever active, with their Gram matrix, so that no product is repeated.

    Args:
        A: matrix, shape (m, n), columns of comparable norm.
        y: measurements, shape (m,).
        weights: positive penalty weights, shape (n,).
        nonneg: only `x >= 0` is allowed, so only `a_j^T u <= w_j` is asked.
    """

    def __init__(self, A: Array, y: Array, weights: Array, *, nonneg: bool = False) -> None:
        self.A, self.y, self.weights, self.nonneg = A, y, weights, nonneg
        self.correlation = y @ A
        self.y_norm = float(np.linalg.norm(y))
        self.products = 1
        self._place = np.full(A.shape[1], -1)
        self._size = 0
        self._columns = np.empty((0, A.shape[0]))
        self._gram = np.empty((0, 0))

    def multiply_adjoint(self, u: Array) -> Array:
        """Return `A^T u` and count it."""
        self.products += 1
        return u @ self.A

    def violation(self, c: Array) -> Array:
        """Return how far each `a_j^T u` lies outside its bound, relative to the weight."""
        return (c if self.nonneg else np.abs(c)) / self.weights - 1.0

    def lam_max(self) -> float:
        """Return the smallest `lam` at which `x = 0` is optimal."""
        return float(1.0 + self.violation(self.correlation).max())

    def admit(self, support: Index) -> Index:
        """Gather columns that are new, extend the Gram matrix; return places in the pool."""
        new = support[self._place[support] < 0]
        if new.size:
            old, size = self._size, self._size + new.size
            if size > len(self._columns):
                self._grow(size)
            self._columns[old:size] = self.A[:, new].T
            block = self._columns[:size] @ self._columns[old:size].T
            self._gram[:size, old:size] = block
            self._gram[old:size, :old] = block[:old].T
            self._place[new] = np.arange(old, size)
            self._size = size
        return self._place[support]

    def _grow(self, size: int) -> None:
        room = max(size + 32, 3 * size // 2)
        columns, gram = np.empty((room, self.A.shape[0])), np.empty((room, room))
        columns[: self._size] = self._columns[: self._size]
        gram[: self._size, : self._size] = self._gram[: self._size, : self._size]
        self._columns, self._gram = columns, gram

    def combine(self, places: Index, coefficients: Array) -> Array:
        """Return `A_J x_J`; zeros in the rest of the pool cost less than a gathered copy."""
        spread = np.zeros(self._size)
        spread[places] = coefficients
        return spread @ self._columns[: self._size]

    def factor(self, support: Index) -> tuple[Index, Array]:
        """Cholesky factor of the Gram matrix, of as many columns as are independent."""
        places = self.admit(support)
        gram = self._gram[places[:, None], places]
        L, info = dpotrf(gram, lower=True, clean=False)
        if info == 0 and L.diagonal().min(initial=1.0) ** 2 > DEPENDENT:
            return np.arange(support.size), L
        _, pivots, rank, _ = dpstrf(gram, lower=True, tol=DEPENDENT)
        keep = np.sort(pivots[:rank] - 1)
        L, info = dpotrf(gram[np.ix_(keep, keep)], lower=True, clean=False)
        return (keep, L) if info == 0 else (keep[:0], L[:0, :0])

    def segment(self, support: Index, signs: Array) -> Segment:
        """Solve for the line of the path on a support; dependent columns leave it."""
        keep, L = self.factor(support)
        support, signs = support[keep], signs[keep]
        places = self._place[support]
        rhs = np.empty((support.size, 2), order="F")
        rhs[:, 0], rhs[:, 1] = self.correlation[support], self.weights[support] * signs
        if support.size:
            rhs = dpotrs(L, rhs, lower=True)[0]
        x_ls, q = rhs[:, 0], rhs[:, 1]
        r, v = self.y - self.combine(places, x_ls), self.combine(places, q)
        exact = bool(r @ r < (EXACT * self.y_norm) ** 2)
        return Segment(support, signs, x_ls, q, r, v, exact)

    def refine(self, line: Segment) -> Segment:
        """One step of iterative refinement for both right-hand sides, at the end only."""
        if not line.support.size:
            return line
        _, L = self.factor(line.support)
        places, columns = self._place[line.support], self._columns
        rhs = np.empty((line.support.size, 2), order="F")
        rhs[:, 0] = (columns[: self._size] @ line.r)[places]
        rhs[:, 1] = self.weights[line.support] * line.signs
        rhs[:, 1] -= (columns[: self._size] @ line.v)[places]
        step = dpotrs(L, rhs, lower=True)[0]
        x_ls, q = line.x_ls + step[:, 0], line.q + step[:, 1]
        r, v = self.y - self.combine(places, x_ls), self.combine(places, q)
        return line._replace(x_ls=x_ls, q=q, r=r, v=v)


Target = Callable[[Segment], float]
"""Where on its line the problem asks to stop: `lam`, or 0 for the limit or for "not here"."""


def basis_pursuit_target(line: Segment) -> float:
    """Stop at `lam -> 0+`."""
    return 0.0


def lasso_target(lam: float) -> Target:
    """Stop at a given `lam`."""
    return lambda line: lam


def bpdn_target(epsilon: float) -> Target:
    """Stop where `||r||^2 + lam^2 ||v||^2 = epsilon^2`, which is exact as `r` and `v` are normal."""

    def target(line: Segment) -> float:
        spare = epsilon**2 - float(line.r @ line.r)
        return float(np.sqrt(max(spare, 0.0) / max(float(line.v @ line.v), 1e-300)))

    return target


def limit_signs(line: Segment) -> tuple[Array, NDArray[np.bool_]]:
    """Signs and membership in the limit `lam -> 0+`, where `-q` decides on what the fit leaves 0."""
    nonzero = np.abs(line.x_ls) > 1e-12 * np.abs(line.x_ls).max(initial=0.0)
    signs = np.where(nonzero, np.sign(line.x_ls), line.signs)
    return signs, nonzero | (line.signs * line.q < 0)


class Exchange(NamedTuple):
    """The next guess, how many entries changed, and `A^T u` from which that was read."""

    support: Index
    signs: Array
    changed: int
    c: Array


def exchange(pool: ColumnPool, line: Segment, lam: float) -> Exchange:
    """Drop what changed sign and add what violates the dual bound."""
    if lam == 0:
        signs, stay = limit_signs(line)
        if pool.nonneg:
            signs, stay = line.signs, stay & (signs > 0)
    else:
        signs, stay = line.signs, line.signs * (line.x_ls - lam * line.q) > 0
    c = pool.multiply_adjoint(line.dual(lam))
    violation = pool.violation(c)
    violation[line.support] = 0.0
    join = np.flatnonzero(violation > TIE)
    changed = int(join.size + np.count_nonzero(~stay) + np.count_nonzero(signs != line.signs))
    support = np.concatenate([line.support[stay], join])
    return Exchange(support, np.concatenate([signs[stay], np.sign(c[join])]), changed, c)


class Settled(NamedTuple):
    """A point of the path that satisfies the optimality conditions, with `c = A^T u`."""

    line: Segment
    lam: float
    c: Array


def settle(
    pool: ColumnPool, support: Index, signs: Array, lam: float, target: Target, max_iter: int
) -> Settled | None:
    """Exchange at a fixed `lam`, no lower than the target, until the pair is right; else None."""
    for _ in range(max_iter):
        if support.size > 1.5 * min(pool.A.shape) + 8:
            return None
        line = pool.segment(support, signs)
        here = max(lam, target(line))
        if here == 0 and not line.exact:
            return None
        support, signs, changed, c = exchange(pool, line, here)
        if not changed:
            return Settled(line, here, c)
    return None


def descend(
    pool: ColumnPool, support: Index, signs: Array, lam: float, target: Target, max_iter: int = 12
) -> Settled | None:
    """Exchange while `lam` falls with the residual, from a good guess to the target; else None.

    Args:
        pool: the columns and data.
        support: guess of the support.
        signs: guess of the signs on it.
        lam: where the guess is thought to be about right.
        target: where to stop.
        max_iter: number of exchanges, each one product with the matrix.

    Returns:
        The solution of the problem, or None.
    """
    for step in range(max_iter):
        if support.size > 1.2 * min(pool.A.shape) + 8:
            return None
        line = pool.segment(support, signs)
        if step:
            lam = min(lam, 0.3 * float(np.linalg.norm(line.r)))
        goal = target(line)
        here = goal if line.exact else max(lam, goal)
        if here == 0 and not line.exact:
            return None
        support, signs, changed, c = exchange(pool, line, here)
        if not changed and here <= goal:
            return Settled(line, here, c)
    return None
