"""Newton's method on the faces of a penalised fit: which entries are zero, and of which sign.

Minimises `1/2 ||A_W x - y||^2 + ridge/2 ||x||^2 + sum_j t_j |x_j|` within bounds over the columns
of a `Design`. Between changes of sign the objective is a quadratic, so a step goes to its minimum
on the free entries; what would change sign is set to zero, or at its bound, as far as that makes
the objective fall.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowrank.sensing.solvers.designs import Array, Design, Index

MAX_STEPS = 1000
"""Most Newton steps of one minimisation; ten are usual."""


PATIENCE = 3
"""Steps that end at the first change of sign, before proximal steps are taken."""


SOLVED, ROUGHLY = 1e-10, 1e-1
"""Residual of a Newton step, relative to the gradient, where it need not be exact: the least of one
on the face of the step before, which ends where the slack is met, and of one that may change it."""


NEAR = 1e-3
"""How far the gradient may be off, relative to the slopes, for the face to be thought the last."""


DELTAS = np.repeat(10.0 ** -np.arange(1, 9), 2)
"""Their factors, for unit columns."""


PROXIMAL = 1e-6
"""How far the gradient of a proximal step may be off, relative to the slopes."""


@dataclass
class Face:
    """A point, and what it takes to move it; arrays are (w,), in units of unit columns.

    Attributes:
        x: coefficients, within the bounds.
        c: `A_W^T (y - A_W x) - ridge x`, what the penalty's slope must balance.
        slopes: `t`, the penalty's slopes.
        lower: bounds, at most 0.
        upper: bounds, at least 0.
        ridge: >= 0.
    """

    x: Array
    c: Array
    slopes: Array
    lower: Array
    upper: Array
    ridge: Array

    def signs(self, slack: float) -> Array:
        """Of the entries; of those that are zero and should not be, where they ought to go."""
        s, zero = np.sign(self.x), self.x == 0
        over = self.slopes * (1 + slack)
        s += zero & (self.c > over) & (self.upper > 0)
        s -= zero & (self.c < -over) & (self.lower < 0)
        return s

    def uphill(self, s: Array) -> tuple[Array, Index]:
        """Minus the gradient where the signs are `s`, and which entries are free to follow it."""
        g = self.c - self.slopes * s
        held = ((self.x >= self.upper) & (g > 0)) | ((self.x <= self.lower) & (g < 0))
        return g, ((s != 0) & ~held).nonzero()[0]

    def room(self, s: Array, free: Index) -> tuple[Array, Array]:
        """Between what the free entries may be without a change of sign."""
        up = s[free] > 0
        low, high = self.lower[free], self.upper[free]
        return np.where(up, np.maximum(low, 0), low), np.where(up, high, np.minimum(high, 0))


def minimise(
    design: Design,
    face: Face,
    slack: float,
    most: int = MAX_STEPS,
    approach: Callable[[Face], int] | None = None,
) -> int:
    """Move the point to the minimum over the columns of the design; return the steps it took.

    Where columns are nearly dependent, whole faces are nearly flat and Newton steps end at the
    first change of sign. Then proximal steps, `+ delta/2 ||x - x_before||^2` with delta falling,
    lead to the right face.

    Args:
        design: the columns.
        face: where to start; changed in place.
        slack: how far, relative to the slopes, the gradient may be off.
        most: limit of the steps.
        approach: a way to about the right face that returns its steps: tried before proximal
            steps, and at once where more entries are to be free than can be independent.
    """
    stuck = approach is not None and _dependent(design, face, slack)
    steps = 0
    if not stuck:
        steps, stuck = _newton(design, face, slack, most, PATIENCE)
    if stuck and approach is not None and steps < most:
        steps += approach(face)
        more, stuck = _newton(design, face, slack, most, PATIENCE)
        steps += more
    for delta in DELTAS:
        if not stuck or steps >= most:
            break
        anchor = face.x.copy()
        face.ridge = face.ridge + delta
        steps += _newton(design, face, PROXIMAL, most - steps, most)[0]
        face.ridge = face.ridge - delta
        face.c += delta * (face.x - anchor)
        more, stuck = _newton(design, face, slack, most - steps, PATIENCE)
        steps += more
    return steps + _newton(design, face, slack, most - steps, most)[0] if stuck else steps


def _dependent(design: Design, face: Face, slack: float) -> bool:
    """Whether more entries are to be free than there are rows."""
    if face.x.size <= design.n_rows:
        return False
    s = _strongest(face, face.signs(slack), *design.entering)
    return face.uphill(s)[1].size > design.n_rows


def _newton(design: Design, face: Face, slack: float, most: int, patience: int) -> tuple[int, bool]:
    """At most so many steps, and more cautious ones; how many it took, and if it was impatient."""
    last, whole = np.inf, False
    for step in range(most):
        settling = design.settles and step % 2 == 0
        if settling:
            s = np.sign(face.x)
            g, free, off = _uphill(face, s)
        if not settling or off <= slack:
            settling, s = False, _strongest(face, face.signs(slack), *design.entering)
            g, free, off = _uphill(face, s)
            if off <= slack or (off >= last and off < 1e-6):
                return step, False
        accuracy = min(max(SOLVED, slack / off / 3), ROUGHLY) if whole and off < NEAR else ROUGHLY
        whole, cautious = _move(design, face, s, g, free, accuracy)
        patience -= cautious
        if patience < 0:
            return step + 1, True
        if not settling:
            last = off if whole else np.inf
    return most, False


def _uphill(face: Face, s: Array) -> tuple[Array, Index, float]:
    """`Face.uphill`, and how far the gradient is off there, relative to the slopes."""
    g, free = face.uphill(s)
    return g, free, float((np.abs(g[free]) / face.slopes[free]).max(initial=0.0))


def _strongest(face: Face, s: Array, few: int, share: float) -> Array:
    """Of the zeros that are to move, those that pull most: their signs depend on each other."""
    new = ((face.x == 0) & (s != 0)).nonzero()[0]
    limit = max(few, int(share * np.count_nonzero(face.x)))
    if new.size > limit:
        pull = np.abs(face.c[new]) / face.slopes[new]
        s[new[np.argpartition(pull, new.size - limit)[: new.size - limit]]] = 0
    return s


def _move(
    design: Design, face: Face, s: Array, g: Array, free: Index, accuracy: float
) -> tuple[bool, bool]:
    """One step; whether it was a whole Newton step, after which only rounding is left, or one of
    those that end at the first change of sign.
    """
    d = design.newton(free, g[free], face.ridge[free], accuracy)
    low, high = face.room(s, free)
    goal = face.x[free] + d
    if ((goal >= low) & (goal <= high)).all():
        _shift(face, free, goal, _bend(design, face, free, goal))
        return True, False
    for t in (1.0, 0.5, 0.1):
        goal = np.minimum(np.maximum(face.x[free] + t * d, low), high)
        promised = float(g[free] @ (goal - face.x[free]))
        if promised > 0:
            bend = _bend(design, face, free, goal)
            if promised - float((goal - face.x[free]) @ bend[free]) / 2 > 1e-3 * promised:
                _shift(face, free, goal, bend)
                return False, False
    _careful(design, face, s, g, free, accuracy)
    return False, True


def _bend(design: Design, face: Face, free: Index, goal: Array) -> Array:
    """What a move of the free entries takes from `c`."""
    change = np.zeros(face.x.size)
    change[free] = goal - face.x[free]
    return design.curve(change) + face.ridge * change


def _shift(face: Face, free: Index, goal: Array, bend: Array) -> None:
    face.x[free] = goal
    face.c -= bend


def _careful(design: Design, face: Face, s: Array, g: Array, free: Index, accuracy: float) -> None:
    """Towards the minimum on the entries within their room, up to the first that leaves it.

    Where these are at their minimum, the one at an end of its room that pulls most comes in alone:
    it moves the right way then, and the objective falls.
    """
    low, high = face.room(s, free)
    within = (face.x[free] > low) & (face.x[free] < high)
    off = np.abs(g[free]) / face.slopes[free]
    if off[within].max(initial=0.0) <= 1e-9 and not within.all():
        within[np.argmax(np.where(within, 0, off))] = True
    inner, low, high = free[within], low[within], high[within]
    d = design.newton(inner, g[inner], face.ridge[inner], accuracy)
    start = face.x[inner]
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(d > 0, (high - start) / d, np.where(d < 0, (low - start) / d, np.inf))
    t = min(1.0, float(reach.min(initial=np.inf)))
    goal = np.where(reach <= t, np.where(d > 0, high, low), start + t * d)
    _shift(face, inner, goal, _bend(design, face, inner, goal))
