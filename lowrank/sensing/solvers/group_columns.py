"""Groups of columns that take part in a fit: block steps, and Newton's method on those not zero.

Minimises `1/2 ||A_W X - Y||_F^2 + lam (sum_g w_g ||X_g||_F + sum_i s_i |X_i|)` over the groups W,
within signs. Where no group and no entry that has a slope is zero the objective is smooth; its
Hessian is that of least squares and, for each group, `lam w / ||X_g||` times the projection across
X_g. What a step would take through 0 stops there.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs, dtrtrs

from lowrank.sensing.norms import Blocks, largest_multiples

Array = NDArray[np.float64]


Index = NDArray[np.intp]


SWEEPS = 3
"""Rounds of single groups before a Newton step, while the gradient is far off: they are cheap."""


FAR = 0.1
"""How far that is, relative to the weights."""


RIDGE = 1e-14
"""Of the largest pivot, added to a matrix that has no Cholesky factor; then ten times as much."""


ARMIJO = 1e-3
"""Share of the fall that the slope promises which a step must make good."""


NIL = 1e-12
"""What is left of a length or an entry, relatively, when it counts as 0."""


SHARES = (1.0, 0.5, 0.2, 0.05)
"""Of a Newton step, tried in turn."""


ROUNDING = 1e-9
"""How far off a gradient may be that falls no further, as by then it is rounding."""


class Slope(NamedTuple):
    """Where the objective is smooth, and its gradient there.

    Attributes:
        rows: the free rows of X.
        down: minus the gradient on them, (rows, L).
        signs: of what is not zero, and of what is where it is to go, (rows, L).
        off: its size, relative to the weights, at the worst group.
    """

    rows: Index
    down: Array
    signs: Array
    off: float


def pulls(blocks: Blocks, c: Array) -> Array:
    """The lam of each group below which 0 is not its best, for correlations c (p, L): (groups,)."""
    c = np.clip(c, blocks.lower[:, None], blocks.upper[:, None]) if blocks.one_sided else c
    if blocks.slopes.any():
        multiples = largest_multiples(np.abs(c), blocks.labels, blocks.weights, blocks.slopes)
        return np.asarray(1 / multiples[:, 0])
    squares = np.einsum("ij,ij->i", c, c)
    return np.sqrt(np.bincount(blocks.labels, squares, blocks.weights.size)) / blocks.weights


def cholesky(H: Array) -> Array:
    """The lower factor of a matrix, which is overwritten, with a ridge where it has none."""
    size = float(np.einsum("ii->i", H).max(initial=0.0)) or 1.0
    L, info = dpotrf(H, lower=True, clean=False)
    ridge = RIDGE
    while info:
        ridge *= 10
        H = H + ridge * size * np.eye(len(H))
        L, info = dpotrf(H, lower=True, clean=False)
    return np.asarray(L)


@dataclass
class Active:
    """The groups W, one after the other, and the point.

    Attributes:
        residual: `Y - A_W X`, (m, L).
        taking: rows of the whole C that take part, (w,).
        X: their coefficients, (w, L).
        columns: `A_W^T`, (w, m).
        numbers: which groups, in the order they came.
        starts: where each begins in X; one more at the end.
    """

    blocks: Blocks
    residual: Array

    def __post_init__(self) -> None:
        self.residual = self.residual.copy()
        m, batch = self.residual.shape
        self.taking: Index = np.empty(0, np.intp)
        self.X, self._store, self._size = np.empty((0, batch)), np.empty((0, m)), 0
        self.numbers: Index = np.empty(0, np.intp)
        self.starts: Index = np.zeros(1, np.intp)
        self._bends = np.empty(0)
        self.of = self.taking  # group of each row of X, in the order of W
        self.n_steps = 0

    @property
    def columns(self) -> Array:
        """`A_W^T`, (w, m)."""
        return self._store[: self._size]

    def admit(self, numbers: Index, rows: list[Index], columns: Array) -> None:
        """Let further groups take part: their numbers, rows of C, and columns (sum of rows, m)."""
        size = self._size + len(columns)
        if size > len(self._store):
            grown = np.empty((max(2 * self._size, size), self._store.shape[1]))
            grown[: self._size] = self.columns
            self._store = grown
        self._store[self._size : size] = columns
        ends = self._size + np.cumsum([len(r) for r in rows])
        self._size = size
        self.starts = np.concatenate([self.starts, ends]).astype(np.intp)
        self.taking = np.concatenate([self.taking, *rows])
        self.numbers = np.concatenate([self.numbers, numbers])
        self.X = np.concatenate([self.X, np.zeros((len(columns), self.X.shape[1]))])
        self.of = np.repeat(np.arange(self.numbers.size), np.diff(self.starts))
        inside = self.blocks
        self.weights, self.slopes = inside.weights[self.numbers], inside.slopes[self.taking]
        self.lower = inside.lower[self.taking][:, None]
        self.upper = inside.upper[self.taking][:, None]
        held = np.isfinite(self.lower) | np.isfinite(self.upper)
        self.signed = (self.slopes > 0) | held[:, 0]
        news = range(self._bends.size, self.numbers.size)
        self._bends = np.concatenate([self._bends, [self._bend(g) for g in news]])

    def _bend(self, g: int) -> float:
        """`||A_g||^2`, or a little more."""
        a = self.columns[self.starts[g] : self.starts[g + 1]]
        gram = a @ a.T if len(a) <= a.shape[1] else a.T @ a
        return float(np.linalg.eigvalsh(gram)[-1]) * (1 + 1e-12)

    def lengths(self, X: Array) -> Array:
        """`||X_g||_F` of the groups of W."""
        return np.sqrt(np.bincount(self.of, np.einsum("ij,ij->i", X, X), self.numbers.size))

    def minimise(self, lam: float, slack: float, most: int) -> bool:
        """Descend until the gradient is off by no more than slack; whether it came to rest."""
        last, failed = np.inf, False
        for _ in range(most):
            c = self.columns @ self.residual
            entering = self._entering(c, lam * (1 + slack))
            if entering.size:
                self._sweep(entering, lam)
                c = self.columns @ self.residual
            slope = self._swept(self._slope(c, lam, slack), lam, slack)
            if slope.off <= slack:
                if not entering.size:
                    return True
                continue
            self.n_steps += 1
            if slope.off >= last and slope.off <= ROUNDING:
                return True
            moved = self._newton(slope, lam)
            last = slope.off if moved else np.inf
            if not moved:
                self._sweep(np.arange(self.numbers.size), lam)
                if failed and slope.off <= ROUNDING:
                    return True
            failed = not moved
        return False

    def _swept(self, slope: Slope, lam: float, slack: float) -> Slope:
        """After rounds of the groups that are not zero, if the gradient is far off."""
        for _ in range(SWEEPS):
            if slope.off <= max(FAR, slack):
                break
            self._sweep(np.flatnonzero(self.lengths(self.X)), lam)
            slope = self._slope(self.columns @ self.residual, lam, slack)
        return slope

    def _entering(self, c: Array, lam: float) -> Index:
        """Groups of W that are zero and should not be, the strongest first."""
        zero = self.lengths(self.X) == 0
        if not zero.any():
            return np.empty(0, np.intp)
        inside = Blocks(self.of, self.weights, self.slopes, self.lower[:, 0], self.upper[:, 0])
        pull = np.where(zero, pulls(inside, c), 0.0)
        found = np.flatnonzero(pull > lam)
        return found[np.argsort(-pull[found])]

    def _sweep(self, groups: Index, lam: float) -> None:
        """A proximal gradient step on each of these groups in turn."""
        for g in groups:
            rows = slice(self.starts[g], self.starts[g + 1])
            a, x, bend = self.columns[rows], self.X[rows], self._bends[g]
            if bend == 0:
                continue
            z = a @ self.residual
            z /= bend
            z += x
            if self.signed[rows].any():
                z = np.clip(z, self.lower[rows], self.upper[rows])
                s = (lam / bend * self.slopes[rows])[:, None]
                z = z - np.clip(z, -s, s)
            size, t = math.sqrt(np.vdot(z, z)), lam * self.weights[g] / bend
            z *= max(size - t, 0.0) / size if size > 0 else 0.0
            if size > t or x.any():
                self.residual -= a.T @ (z - x)
                self.X[rows] = z

    def _slope(self, c: Array, lam: float, slack: float) -> Slope:
        length = self.lengths(self.X)
        alive = (length > 0)[self.of]
        share = np.divide(lam * self.weights, length, out=np.zeros_like(length), where=length > 0)
        signs = np.sign(self.X)
        if self.signed.any():  # then there is one column
            idle = (self.X == 0) & self.signed[:, None]
            reach = lam * self.slopes[:, None] * (1 + slack)
            signs += idle & (c > reach) & (self.upper > 0)
            signs -= idle & (c < -reach) & (self.lower < 0)
            alive = alive & ~(self.signed & (signs[:, 0] == 0))
        rows = np.flatnonzero(alive)
        down = c[rows] - share[self.of[rows], None] * self.X[rows]
        down -= lam * self.slopes[rows, None] * signs[rows]
        of = self.of[rows]
        sizes = np.sqrt(np.bincount(of, np.einsum("ij,ij->i", down, down), length.size))
        scale = self.weights + np.bincount(self.of, self.slopes) / np.diff(self.starts)
        off = float((sizes / (lam * scale)).max(initial=0.0))
        return Slope(rows, down, signs[rows], off)

    def _newton(self, slope: Slope, lam: float) -> bool:
        """A step, or the share of one that makes the objective fall; whether there was any."""
        rows, down = slope.rows, slope.down
        d = self._direction(rows, down, lam)
        if not np.isfinite(d).all():
            return False
        x, a = self.X[rows], self.columns[rows]
        first = self._first_crossing(slope, x, d)
        for share in sorted({*SHARES, min(first, 1.0)}, reverse=True):
            goal = self._stopped(slope, x, x + share * d)
            change = goal - x
            promised = float((down * change).sum())
            if promised <= 0:
                continue
            fitted = a.T @ change
            rise = self._bowed(rows, x, goal, lam) + float((fitted**2).sum()) / 2
            if rise <= (1 - ARMIJO) * promised:
                self.X[rows] = goal
                self.residual = self.residual - fitted
                return True
        return False

    def _stopped(self, slope: Slope, x: Array, goal: Array) -> Array:
        """The goal, with 0 for what would pass through it: groups by their direction, and signs."""
        rows, of = slope.rows, self.of[slope.rows]
        along = np.bincount(of, np.einsum("ij,ij->i", x, goal), self.numbers.size)
        square = np.bincount(of, np.einsum("ij,ij->i", x, x), self.numbers.size)
        through = (along <= NIL * square) & (square > 0)
        goal = np.where(through[of][:, None], 0.0, goal)
        if self.signed.any():
            signed = self.signed[rows][:, None]
            goal = np.where(signed & (slope.signs * goal <= NIL * np.abs(x)), 0.0, goal)
            goal = np.clip(goal, self.lower[rows], self.upper[rows])
        return goal

    def _first_crossing(self, slope: Slope, x: Array, d: Array) -> float:
        """The share of a step at which something passes through 0: where H is singular, the
        objective falls straight until then.
        """
        of, n = self.of[slope.rows], self.numbers.size
        along = np.bincount(of, np.einsum("ij,ij->i", x, d), n)
        square = np.bincount(of, np.einsum("ij,ij->i", x, x), n)
        back = along < 0
        share = float((square[back] / -along[back]).min(initial=np.inf))
        back = self.signed[slope.rows][:, None] & (x * d < 0)
        return min(share, float((x[back] / -d[back]).min(initial=np.inf)))

    def _bowed(self, rows: Index, x: Array, goal: Array, lam: float) -> float:
        """By how much the lengths at the goal are above their tangents at x, to full precision."""
        of, n = self.of[rows], self.numbers.size
        change = goal - x
        along = np.bincount(of, np.einsum("ij,ij->i", x, change), n)
        square = np.bincount(of, np.einsum("ij,ij->i", change, change), n)
        a, b = self.lengths(self.X), np.sqrt(np.bincount(of, np.einsum("ij,ij->i", goal, goal), n))
        some = a > 0
        a, b, along, square = a[some], b[some], along[some], square[some]
        rise = square / (a + b) - along * (2 * along + square) / (a * (a + b) ** 2)
        return lam * float(self.weights[some] @ rise)

    def spread(self, lam: float) -> float:
        """By how much `||residual||^2` grows with `lam^2` at the minimum: `q^T H^-1 q`.

        The slope q of the penalty is `A^T residual / lam` there.
        """
        slope = self._slope(self.columns @ self.residual, lam, 0.0)
        if not slope.rows.size:
            return 0.0
        q = self.columns[slope.rows] @ self.residual / lam
        return float((q * self._direction(slope.rows, q, lam)).sum())

    def _direction(self, rows: Index, down: Array, lam: float) -> Array:
        """Newton's, `H^-1 down`."""
        length = self.lengths(self.X)
        groups = np.unique(self.of[rows])
        k = lam * self.weights[groups] / length[groups]
        at = np.searchsorted(groups, self.of[rows])
        u = self.X[rows] / length[groups][at][:, None]
        a = self.columns[rows]
        if down.shape[1] > 1:
            return _of_several(a, k, at, u, down)
        if len(rows) <= a.shape[1] or not (k > 0).all():
            return _by_columns(a, k, at, u[:, 0], down)
        return _by_rows(a, k, at, u[:, 0], down)


def _by_columns(a: Array, k: Array, at: Index, u: Array, down: Array) -> Array:
    """From the Gram matrix of the columns."""
    H = a @ a.T
    np.einsum("ii->i", H)[:] += k[at]
    ends = np.append(np.flatnonzero(np.diff(at, prepend=-1)), at.size)
    for g, (i, j) in enumerate(itertools.pairwise(ends)):
        H[i:j, i:j] -= np.outer(k[g] * u[i:j], u[i:j])
    return np.asarray(dpotrs(cholesky(H), down, lower=True)[0])


def _by_rows(a: Array, k: Array, at: Index, u: Array, down: Array) -> Array:
    """The same from a matrix of the size of the rows, where there are more columns than those.

    With `K = diag(k)` and the directions U, `H = A^T A + K - U k U^T`; twice Woodbury's identity.
    """
    wide = a / np.sqrt(k)[at][:, None]
    M = wide.T @ wide
    np.einsum("ii->i", M)[:] += 1.0
    L = cholesky(M)
    wide /= np.sqrt(k)[at][:, None]

    def plain(v: Array) -> Array:
        v = v / k[at][:, None]
        return np.asarray(v - wide @ dpotrs(L, a.T @ v, lower=True)[0])

    starts = np.flatnonzero(np.diff(at, prepend=-1))
    B = (np.add.reduceat(u[:, None] * a, starts, axis=0) / k[:, None]).T
    half = dtrtrs(L, B, lower=True)[0]
    inner = cholesky(half.T @ half)
    first = plain(down)
    alpha = dpotrs(inner, np.bincount(at, u * first[:, 0], k.size)[:, None], lower=True)[0]
    return np.asarray(first + plain(u[:, None] * alpha[at]))


def _of_several(a: Array, k: Array, at: Index, u: Array, down: Array) -> Array:
    """The same for several right-hand sides, which share `A^T A + K` but not the directions."""
    H = a @ a.T
    np.einsum("ii->i", H)[:] += k[at]
    P = dpotri(cholesky(H), lower=True)[0]
    P = np.tril(P) + np.tril(P, -1).T
    first = P @ down
    shared = P * (u @ u.T)
    starts = np.flatnonzero(np.diff(at, prepend=-1))
    if starts.size < at.size:
        shared = np.add.reduceat(np.add.reduceat(shared, starts, axis=0), starts, axis=1)
    inner = cholesky(np.diag(1 / k) - shared)
    alpha = dpotrs(inner, np.bincount(at, (u * first).sum(axis=1), k.size)[:, None], lower=True)[0]
    return np.asarray(first + P @ (u * alpha[at]))
