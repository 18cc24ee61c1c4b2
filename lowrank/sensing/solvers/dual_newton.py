"""Proximal points of a penalised fit by Newton's method on the dual: many sparse columns, few rows.

Where thousands of nearly dependent columns are not zero, Newton steps on faces end at the first
change of sign. The proximal subproblem `+ 1/(2 sigma) ||x - x_before||^2` has a smooth dual in
`u`, which is the residual `y - A_W x` at its end: there whole sets of signs change in one step.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowrank.sensing.solvers.designs import Array, Design, SparseDesign, conjugate_gradients
from lowrank.sensing.solvers.faces import Face

FIRST, GROWTH, FASTER, MOST = 10.0, 2.0, 4.0, 20
"""The sigmas, for unit columns: the first, the factor of the next, that while more entries are free
than there are rows, and how many there are."""


INNER = 40
"""Most Newton steps for one sigma."""


SETTLED, SPARSE = 0.02, 0.05
"""Share of the entries that become zero, or cease to be, below which faces are left alone: of dense
columns, and of sparse ones, whose faces mend more cheaply."""


SHORTEST = 1e-4
"""Least share of a Newton step."""


INEXACT = 0.3
"""How far the dual's gradient may be off at the end, relative to the step in x."""


def approach(design: Design, face: Face, y: Array, most: int) -> int:
    """Move the point near the minimum, until hardly an entry becomes zero any more.

    Args:
        design: the columns.
        face: where to start; changed in place.
        y: what `A_W x` is fitted to, (m,).
        most: Newton steps after which no further sigma is tried.

    Returns:
        The Newton steps.

    Source: Li, Sun, Toh 2018, a semismooth Newton augmented Lagrangian method for the LASSO,
        with bounds and a ridge in the proximal map; the growth of sigma and its end are ours.
    """
    settled = SPARSE if isinstance(design, SparseDesign) else SETTLED
    u, steps, sigma = y - design.combine(face.x), 0, FIRST
    for _ in range(MOST):
        before = face.x != 0
        u, more = _proximal(_Dual(design, face, y, sigma), u)
        steps += more
        changed = np.count_nonzero((face.x != 0) != before)
        free = (face.x != 0) & (face.x > face.lower) & (face.x < face.upper)
        few = np.count_nonzero(free) <= design.n_rows  # else they depend on each other
        if (few and changed <= settled * np.count_nonzero(before)) or steps >= most:
            break
        sigma *= GROWTH if few else FASTER
    face.c = design.correlate(y - design.combine(face.x)) - face.ridge * face.x
    return steps


@dataclass
class _Dual:
    """`phi(u) = 1/2 ||u||^2 - <y, u> + max_x <A^T u, x> - g(x) - 1/(2 sigma) ||x - anchor||^2`."""

    design: Design
    face: Face
    y: Array
    sigma: float

    def point(self, c: Array) -> Array:
        """The x of the maximum, for `c = A^T u`."""
        face = self.face
        z = face.x + self.sigma * c
        x = np.sign(z) * np.maximum(np.abs(z) - self.sigma * face.slopes, 0)
        return np.clip(x / (1 + self.sigma * face.ridge), face.lower, face.upper)

    def value(self, u: Array, c: Array) -> float:
        """`phi(u)`, for `c = A^T u`."""
        face, x = self.face, self.point(c)
        off = x - face.x
        g = face.slopes @ np.abs(x) + face.ridge @ x**2 / 2 + off @ off / (2 * self.sigma)
        return float(u @ u / 2 - self.y @ u + c @ x - g)

    def step(self, x: Array, g: Array, accuracy: float) -> Array:
        """Of Newton's method in u, where `x` is the point and g the gradient: minus
        `(I + A_J S A_J^T)^-1 g`.
        """
        face = self.face
        J = np.flatnonzero((x != 0) & (x > face.lower) & (x < face.upper))
        scale = self.sigma / (1 + self.sigma * face.ridge[J])
        if not isinstance(self.design, SparseDesign):  # by the Gram matrix of J, which is smaller
            q = np.zeros_like(x)
            q[J] = self.design.newton(J, self.design.correlate(g)[J], 1 / scale, accuracy)
            return self.design.combine(q) - g
        forward, adjoint = self.design.products(J)
        return -conjugate_gradients(lambda p: p + forward(scale * adjoint(p)), g, accuracy)


def _proximal(dual: _Dual, u: Array) -> tuple[Array, int]:
    """One proximal step of the face's point; the dual point, and the Newton steps."""
    design, face, size = dual.design, dual.face, float(np.linalg.norm(dual.y))
    c, start, steps = design.correlate(u), np.inf, 0
    for steps in range(INNER):
        x = dual.point(c)
        g = u - dual.y + design.combine(x)
        off = float(np.linalg.norm(g))
        start = min(start, off) if steps else off
        moved = float(np.linalg.norm(x - face.x)) / dual.sigma**0.5
        goal = max(1e-12 * size, INEXACT * min(INEXACT * moved, start))
        if off <= goal:
            break
        d = dual.step(x, g, min(1e-2, max(off / size * 10, goal / off / 3)))
        Ad = design.correlate(d)
        t = _length(dual, u, c, d, Ad, float(g @ d))
        u, c = u + t * d, c + t * Ad
    face.x = dual.point(c)
    return u, steps


def _length(dual: _Dual, u: Array, c: Array, d: Array, Ad: Array, slope: float) -> float:
    """How far to go along d: Armijo's rule, at least `SHORTEST`."""
    now, t = dual.value(u, c), 1.0
    while t > SHORTEST:
        if dual.value(u + t * d, c + t * Ad) <= now + 1e-4 * t * slope + 1e-15 * abs(now):
            break
        t /= 2
    return t
