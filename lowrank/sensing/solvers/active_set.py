"""Primal-dual active set on a growing pool of columns: the engine of `ExactL1`.

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

from lowrank.sensing.solvers.column_pool import Array, ColumnPool, Index

# Relative slack of `|a_j^T u| <= w_j` when a column joins: above rounding, below any real one.
TIE = 1e-10


# The same for products in float32; what passes is looked at again in float64.
ROUGH_TIE = 1e-5


# A least-squares residual below this times ||y|| counts as an exact fit.
EXACT = 1e-10


# Exchanges without progress after which a guess is given up.
PATIENCE = 2


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


def make_segment(pool: ColumnPool, support: Index, signs: Array) -> Segment:
    """Solve for the line of the path on a support; dependent columns leave it."""
    rhs = np.empty((support.size, 2), order="F")
    rhs[:, 0], rhs[:, 1] = pool.correlation[support], _slopes(pool, support, signs)
    keep, solution = pool.solve(support, rhs)
    support, signs = support[keep], signs[keep]
    return _with_residuals(pool, support, signs, solution)


def _slopes(pool: ColumnPool, support: Index, signs: Array) -> Array:
    """What a unit of each active coefficient costs."""
    return np.asarray(pool.weights[support] * signs - pool.bias[support])


def _with_residuals(pool: ColumnPool, support: Index, signs: Array, solution: Array) -> Segment:
    x_ls, q = solution[:, 0], solution[:, 1]
    r, v = pool.y - pool.combine(support, x_ls), pool.combine(support, q)
    exact = bool(r @ r < (EXACT * pool.y_norm) ** 2)
    if exact:  # what the fit does not use is 0, not rounding noise with a sign
        x_ls[np.abs(x_ls) <= 1e-12 * np.abs(x_ls).max(initial=0.0)] = 0.0
    return Segment(support, signs, x_ls, q, r, v, exact)


def refine(pool: ColumnPool, line: Segment) -> Segment:
    """One step of iterative refinement for `x_LS` and `q`."""
    rhs = np.empty((line.support.size, 2), order="F")
    rhs[:, 0] = pool.correlate(line.support, line.r)
    slopes = _slopes(pool, line.support, line.signs)
    rhs[:, 1] = slopes - pool.correlate(line.support, line.v)
    keep, step = pool.solve(line.support, rhs)
    if keep.size < line.support.size:
        return line
    solution = np.stack([line.x_ls + step[:, 0], line.q + step[:, 1]], axis=1)
    return _with_residuals(pool, line.support, line.signs, solution)


Target = Callable[[Segment], float]
"""Where on its line the problem asks to stop: `lam`, or 0 for the limit or for "not here"."""


def basis_pursuit_target(line: Segment) -> float:
    """Stop at `lam -> 0+`."""
    return 0.0


def lasso_target(lam: float) -> Target:
    """Stop at a given `lam`."""
    return lambda line: lam


def bpdn_target(epsilon: float) -> Target:
    """Stop where `||r||^2 + lam^2 ||v||^2 = epsilon^2` exactly, as `r` is normal to `v`."""

    def target(line: Segment) -> float:
        spare = epsilon**2 - float(line.r @ line.r)
        return float(np.sqrt(max(spare, 0.0) / max(float(line.v @ line.v), 1e-300)))

    return target


def limit_signs(line: Segment) -> tuple[Array, NDArray[np.bool_]]:
    """Signs and membership in the limit `lam -> 0+`, where `-q` decides on zeros."""
    nonzero = line.x_ls != 0
    signs = np.where(nonzero, np.sign(line.x_ls), line.signs)
    return signs, nonzero | (line.signs * line.q < 0)


class Exchange(NamedTuple):
    """The next guess, how many entries changed, and `A^T u` from which that was read."""

    support: Index
    signs: Array
    changed: int
    c: Array


def exchange(pool: ColumnPool, line: Segment, lam: float) -> Exchange:
    """Drop what changed sign and add what violates the dual bound.

    A product in float32 finds most changes; only "no change" needs float64.
    """
    x = line.coefficients(lam)
    pool.tell(line.support, x)
    if lam == 0:
        signs, stay = limit_signs(line)
        if pool.nonneg:
            signs, stay = line.signs, stay & (signs > 0)
    else:
        signs, stay = line.signs, line.signs * x > 0
    u = line.dual(lam)
    c = pool.multiply_roughly(u)
    join = joining(pool, line, c, ROUGH_TIE)
    flipped = np.count_nonzero(~stay) + np.count_nonzero(signs != line.signs)
    if not (join.size or flipped):
        c = pool.multiply_adjoint(u)
        join = joining(pool, line, c, TIE)
    support = np.concatenate([line.support[stay], join])
    signs = np.concatenate([signs[stay], np.sign(c[join])])
    return Exchange(support, signs, int(join.size + flipped), c)


def joining(pool: ColumnPool, line: Segment, c: Array, tie: float) -> Index:
    """Columns off the support whose `c_j` lies outside its bound."""
    violation = pool.violation(c)
    violation[line.support] = 0.0
    return np.flatnonzero(violation > tie)


class Settled(NamedTuple):
    """A point of the path that satisfies the optimality conditions, with `c = A^T u`."""

    line: Segment
    lam: float
    c: Array

    def solves(self, target: Target) -> bool:
        """Whether this is where the problem asks to stop."""
        return self.lam <= target(self.line)


def settle(
    pool: ColumnPool, support: Index, signs: Array, lam: float, target: Target, max_iter: int,
    limit: float = 1.5,
) -> Settled | None:  # fmt: skip
    """Exchange at a fixed `lam`, no lower than the target, until the pair is right; else None."""
    fewest, idle = pool.weights.size, 0
    for _ in range(max_iter):
        pool.asked = max(pool.asked, support.size)
        if support.size > limit * min(pool.A.shape) + 8:
            return None
        line = make_segment(pool, support, signs)
        here = max(lam, target(line))
        if here == 0 and not line.exact:
            return None
        support, signs, changed, c = exchange(pool, line, here)
        if not changed:
            return Settled(line, here, c)
        idle = 0 if changed < fewest else idle + 1
        if idle >= PATIENCE:
            return None
        fewest = min(fewest, changed)
    return None


def descend(
    pool: ColumnPool, support: Index, signs: Array, lam: float, target: Target,
    max_iter: int = 12, limit: float = 1.2, most: float = np.inf,
) -> Settled | None:  # fmt: skip
    """Exchange while `lam` falls with the residual, from a good guess towards the target.

    Args:
        pool: the columns and data.
        support: guess of the support.
        signs: guess of the signs on it.
        lam: where the guess is thought to be about right.
        target: where to stop.
        max_iter: number of exchanges, each one product with the matrix.
        limit: size of a support, relative to a basis, at which to give up.
        most: changes in one exchange, relative to the support, beyond which to give up.

    Returns:
        The solution if its `lam` is the target's, else a point of the path above it, or None.
    """
    for step in range(max_iter):
        pool.asked = max(pool.asked, support.size)
        if support.size > limit * min(pool.A.shape) + 8:
            return None
        line = make_segment(pool, support, signs)
        if step:
            lam = min(lam, 0.3 * float(np.linalg.norm(line.r)))
        goal = target(line)
        here = goal if line.exact else max(lam, goal)
        if here == 0 and not line.exact:
            return None
        support, signs, changed, c = exchange(pool, line, here)
        if not changed:
            return Settled(line, here, c)
        if changed > most * line.support.size:
            return None
    return None
