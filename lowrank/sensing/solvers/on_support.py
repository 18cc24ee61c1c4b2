"""Least squares and dual points on a support, for operators, by conjugate gradients.

What a matrix does by a Cholesky factor of `A_J^H A_J`, an operator does by products. They are cheap
in single precision, and a residual in double precision makes up for that: `Twin` is the pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator

Index = NDArray[np.intp]

SINGLE, DOUBLE = 1e-5, 1e-11
"""Relative residual that conjugate gradients reach in either precision without idle steps."""
CROWDED = 0.7
"""Share of the rows from which on the columns of a support are too many to solve with."""
MARGIN = 0.04
"""How far below its bound a correlation off the support is brought, so that it may stray."""
ROUNDS = 30
"""Sets of correlations at their bounds that are tried for a dual point."""
COPIED = 2**16
"""Entries of a matrix from which on a copy in single precision pays."""
OUTLIER = 5.0
"""Correlations with the residual above this many times their usual size belong to the support."""


class Twin:
    """Products of an operator in single precision, where its functions keep that, else in double.

    Args:
        A: the operator; of a large matrix a copy is made.
        dtype: of the vectors in double precision.

    Attributes:
        products: those with the copy, which the operator does not see.
    """

    def __init__(self, A: Operator, dtype: np.dtype[Any]) -> None:
        self.A, self.shape, self.products = A, A.shape, 0
        self.dtype = _single(A, dtype)
        self.accuracy = DOUBLE if self.dtype == dtype else SINGLE
        self.copy = A.to_dense().astype(self.dtype) if _is_copied(A) else None

    def forward(self, x: Array) -> Array:
        """`A x`, in the twin's precision."""
        if self.copy is not None:
            self.products += 1
            return np.asarray(self.copy @ x.astype(self.dtype, copy=False))
        return self.A.forward(x.astype(self.dtype, copy=False)).astype(self.dtype, copy=False)

    def adjoint(self, y: Array) -> Array:
        """`A^H y`, in the twin's precision."""
        if self.copy is not None:
            self.products += 1
            return np.asarray((self.copy.T @ y.conj().astype(self.dtype, copy=False)).conj())
        return self.A.adjoint(y.astype(self.dtype, copy=False)).astype(self.dtype, copy=False)


def _single(A: Operator, double: np.dtype[Any]) -> np.dtype[Any]:
    """Single precision, where the operator is one of ours and both products stay in it."""
    single = np.dtype(np.complex64 if double.kind == "c" else np.float32)
    if A.is_dense:
        return single if _is_copied(A) else double
    if not A.trusted:
        return double
    back = A.adjoint(np.zeros(A.shape[0], single))
    return single if back.dtype == single and A.forward(back).dtype == single else double


def _is_copied(A: Operator) -> bool:
    return A.is_dense and A.shape[0] * A.shape[1] >= COPIED


class Solution(NamedTuple):
    """`q` with `A_J^H A_J q = b`, and its images `A_J q` and `A^H A_J q`."""

    q: Array
    image: Array
    back: Array


class Bend(NamedTuple):
    """Curvature of weighted moduli, `k (p - s Re(s^* p))`: across the signs, none along them.

    `diagonal` is what the Gram matrix has on its diagonal, about.
    """

    stiff: Array
    signs: Array
    diagonal: float

    def across(self, p: Array, along: Array | float, factor: Array) -> Array:
        """`along` times the part with the phase of the signs, and `factor` times the rest."""
        part = self.signs * (self.signs.conj() * p).real
        return np.asarray(along * part + factor * (p - part))

    def add(self, p: Array) -> Array:
        """The curvature's product."""
        return self.across(p, 0.0, self.stiff)

    def ease(self, r: Array) -> Array:
        """The inverse of the curvature with the diagonal."""
        return self.across(r, 1 / self.diagonal, 1 / (self.diagonal + self.stiff))


def solve_gram(
    A: Twin, J: Index, b: Array, tol: float, max_iter: int = 100, bend: Bend | None = None,
    *, images: bool = True,
) -> Solution:  # fmt: skip
    """Solve `A_J^H A_J q = b` by conjugate gradients.

    Args:
        A: the operator.
        J: the support.
        b: right-hand side, (|J|,).
        tol: `||b - A_J^H A_J q|| / ||b||` to stop at.
        max_iter: limit of the steps, two products each.
        bend: curvature that is added to `A_J^H A_J`, and preconditions.
        images: whether the images of `q` are asked for; else they are 0.
    """
    r = b.astype(A.dtype)
    number = r.real.dtype.type
    q, full = np.zeros_like(r), np.zeros(A.shape[1], A.dtype)
    image, back = np.zeros(A.shape[0], A.dtype), np.zeros(A.shape[1], A.dtype)
    p = r if bend is None else bend.ease(r).astype(A.dtype)
    rho, floor = float(np.vdot(r, p).real), _square(r) * tol**2
    for _ in range(max_iter):
        if not _square(r) > floor:
            break
        full[J] = p
        v = A.forward(full)
        w = A.adjoint(v)
        curvature, hp = _square(v), w[J]
        if bend is not None:
            bent = bend.add(p).astype(A.dtype)
            curvature, hp = curvature + float(np.vdot(p, bent).real), hp + bent
        step = number(rho / max(curvature, 1e-300))
        q += step * p
        if images:
            image += step * v
            back += step * w
        r = r - step * hp
        eased = r if bend is None else bend.ease(r).astype(A.dtype)
        before, rho = rho, float(np.vdot(r, eased).real)
        p = eased + number(rho / before) * p
    return Solution(q, image, back)


def _square(x: Array) -> float:
    return float(np.vdot(x, x).real)


def _signs(z: Array) -> Array:
    size = np.abs(z)
    return np.asarray(z / np.where(size > 0, size, 1))


class Fit(NamedTuple):
    """Coefficients, the support they are on, and `||y - A x|| / ||y||`."""

    x: Array
    support: Index
    left: float


def fit_support(
    A: Operator, twin: Twin, y: Array, x: Array, tol: float, tell: Callable[[Array], None]
) -> Fit:
    """Coefficients that give `y` exactly, from an estimate: least squares on a support that grows.

    A column joins where its correlation with the residual stands out from all others. What is as
    small as the residual in the end is 0.

    Args:
        A: the operator.
        twin: the same, as it is cheap.
        y: measurements, (m,).
        x: estimate, (n,), whose non-zeros are the support.
        tol: relative residual to reach.
        tell: is told of the coefficients after each solve.
    """
    m, n = A.shape
    size, x, joined = float(np.linalg.norm(y)), x.copy(), x != 0
    r = y - A.forward(x)
    left, before = float(np.linalg.norm(r)) / size, float("inf")
    while left > tol:
        b = twin.adjoint(r / np.linalg.norm(r))
        outside = np.abs(np.where(joined, 0, b))
        more = outside > OUTLIER * float(np.linalg.norm(outside)) / np.sqrt(n)
        joined |= more
        J = np.flatnonzero(joined)
        if J.size > CROWDED * m or (left > 0.3 * before and not more.any()):
            break
        goal = max(twin.accuracy, 0.5 * tol / left)
        x[J] += left * size * solve_gram(twin, J, b[J], goal, images=False).q
        tell(x)
        before, r = left, y - A.forward(x)
        left = float(np.linalg.norm(r)) / size
    usual = float(np.linalg.norm(x)) / float(np.sqrt(max(int(np.count_nonzero(x)), 1)))
    x = np.where(np.abs(x) > 5 * left * usual, x, 0)
    return Fit(x, np.flatnonzero(x), left)


class Sides(NamedTuple):
    """What a dual point is to satisfy: `A_J^H u = w_J s`, and `|a_j^H u| <= w_j` elsewhere.

    With `nonneg` only `a_j^H u <= w_j` is asked.
    """

    support: Index
    signs: Array
    weights: Array
    nonneg: bool

    def excess(self, z: Array) -> Array:
        """How large each correlation off the support is, relative to its bound; 0 on it."""
        size = (np.maximum(z, 0) if self.nonneg else np.abs(z)) / self.weights
        size[self.support] = 0
        return size


def find_dual(
    A: Operator, twin: Twin, sides: Sides, tol: float, tell: Callable[[], None]
) -> Array | None:
    """A dual point that proves coefficients with these signs on this support to be the optimum.

    The least-norm `u` with `A_J^H u = w_J s` goes beyond the bounds off the support, even where a
    dual point exists. So what goes beyond is held a little inside its bound, as a part of a larger
    system, whose solution is near at hand, until nothing does; and the room that was left lets the
    last digits on the support come from the small system alone.

    Args:
        A: the operator.
        twin: the same, as it is cheap.
        sides: support, signs and bounds.
        tol: how far beyond its bound a correlation may be, relative to it.
        tell: is called at each solve.

    Returns:
        The point (m,), or None where none was found.
    """
    J, w = sides.support, sides.weights.astype(np.zeros(0, twin.dtype).real.dtype)
    t = (w[J] * sides.signs).astype(twin.dtype)
    held, inside, start = J, 1 - MARGIN, t
    u, z = np.zeros(A.shape[0], twin.dtype), np.zeros(A.shape[1], twin.dtype)
    free = np.ones(A.shape[1], bool)
    free[J] = False
    for _ in range(ROUNDS):
        if held.size > CROWDED * A.shape[0]:
            return None
        tell()
        step = solve_gram(twin, held, start - z[held], 0.1)
        u, z = u + step.image, z + step.back
        excess = sides.excess(z)
        if not np.isfinite(excess).all():
            return None
        if excess.max(initial=0.0) < 1 - MARGIN / 2:
            double = u.astype(np.result_type(u, float))
            return _exact_on_support(A, twin, sides, double, tol, tell)
        more = np.flatnonzero((excess > inside) & free)
        free[more] = False
        held = np.concatenate([held, more])
        start = np.concatenate([start, inside * w[more] * _signs(z[more])])
    return None


def _exact_on_support(
    A: Operator, twin: Twin, sides: Sides, u: Array, tol: float, tell: Callable[[], None]
) -> Array | None:
    """The least change of `u` that gives the correlations on the support all their digits."""
    J, w, before = sides.support, sides.weights, np.inf
    for _ in range(6):
        z = A.adjoint(u)
        rest = w[J] * sides.signs - z[J]
        off = float((np.abs(rest) / w[J]).max())
        if sides.excess(z).max(initial=0.0) > 1 + tol or not off < before:
            return None
        if off <= tol:
            return u
        tell()
        scale, before = float(np.linalg.norm(rest)), 0.5 * off
        goal = 0.3 * tol / off
        u = u + scale * solve_gram(twin, J, rest / scale, max(twin.accuracy, goal)).image
        if goal >= twin.accuracy:  # the certificate will see
            return u
    return None
