"""Coefficients inside of cones, and Mehrotra's steps there: moduli, and bounds on both sides."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lowrank.sensing.operators.arrays import Array

BACK = 0.995
"""Share of the way to the boundary that a step takes."""


class Cones(Protocol):
    """Coefficients and dual slacks inside of cones, and the steps of Mehrotra's method.

    A step is `dc = h + D z` with `z = A^H du`: `affine` and `combined` give h, `D` what multiplies.
    """

    @property
    def c(self) -> Array:
        """The coefficients."""

    def times_D(self, z: Array) -> Array:
        """`D z`."""

    def root(self, back: Array) -> Array:
        """`D^(1/2) V^H` of real numbers, for `back = V^H`: real parts before imaginary ones."""

    def times_root(self, g: Array) -> Array:
        """`D^(1/2) g` of such numbers."""

    def affine(self) -> Array:
        """h of the step towards the boundary."""

    def combined(self, dc: Array, dz: Array) -> Array:
        """h of the step to the central path, with what the affine step `dc, dz` left out."""

    def move(self, dc: Array, dz: Array) -> float:
        """Take the step as far as the cones allow; the share of `du` that was taken."""

    def price(self) -> float:
        """What is to be taken off the dual objective `Re <y, u>`."""


class Moduli:
    """Complex coefficients: `|c_j| <= t_j`, and slacks `|z_j| <= w_j` of `z = A^H u`.

    Three-dimensional second-order cones, scaled as by Nesterov and Todd; `t` belongs to no
    equation, so that its slack is always the weight.
    """

    def __init__(self, c: Array, w: Array, bias: Array) -> None:
        size = np.abs(c)
        self.w, self.c, self.z = w, c, bias
        self.t = size + 0.5 * float(size.mean()) + 1e-300
        self._scale()

    def _scale(self) -> None:
        """The scaling point of each pair `(t, c)` and `(w, -z)`, and both scaled, `l`."""
        dx = np.sqrt(_det(self.t, self.c))
        ds = np.sqrt(_det(self.w, self.z))
        t, c, s, z = self.t / dx, self.c / dx, self.w / ds, -self.z / ds
        gamma = np.sqrt((1 + t * s + _dot(c, z)) / 2)
        self.p, self.q = (t + s) / (2 * gamma), (c - z) / (2 * gamma)
        self.eta = np.sqrt(dx / ds)
        self.l = self._scaled(self.w, -self.z)

    def _scaled(self, s: Array, v: Array) -> tuple[Array, Array]:
        """`W (s, v)`."""
        along = _dot(self.q, v)
        return (
            self.eta * (self.p * s + along),
            self.eta * (v + self.q * (s + along / (1 + self.p))),
        )

    def _unscaled(self, s: Array, v: Array) -> tuple[Array, Array]:
        """`W^-1 (s, v)`."""
        along = _dot(self.q, v)
        return (
            (self.p * s - along) / self.eta,
            (v + self.q * (along / (1 + self.p) - s)) / self.eta,
        )

    def times_D(self, z: Array) -> Array:
        return np.asarray(self.eta**2 * (z + 2 * self.q * _dot(self.q, z)))

    def root(self, back: Array) -> Array:
        columns = np.concatenate([back, 1j * back], axis=1)
        rooted = self._times_root(columns)
        return np.concatenate([rooted.real, rooted.imag])

    def times_root(self, g: Array) -> Array:
        half = g.size // 2
        return self._times_root(g[:half, None] + 1j * g[half:, None])[:, 0]

    def _times_root(self, z: Array) -> Array:
        """Along q it is larger than across."""
        q, eta = self.q[:, None], self.eta[:, None]
        more = 2 / (1 + np.sqrt(1 + 2 * np.abs(q) ** 2))  # (sqrt(1 + 2 |q|^2) - 1) / |q|^2
        return np.asarray(eta * (z + more * q * _dot(q, z)))

    def affine(self) -> Array:
        return -self.c

    def combined(self, dc: Array, dz: Array) -> Array:
        dt = -self.t + 2 * self.eta**2 * self.p * _dot(self.q, dz)  # its row of -x - W^2 ds
        mu = self._mu(self.t, self.c, self.z)
        primal, dual = self._reach(dt, dc, dz)
        after = self._mu(self.t + primal * dt, self.c + primal * dc, self.z + dual * dz)
        sigma = (after / mu) ** 3
        x, s = self._unscaled(dt, dc), self._scaled(np.zeros_like(self.w), -dz)
        right = _jordan(x, s)
        squares = _jordan(self.l, self.l)
        r0, r1 = sigma * mu - squares[0] - right[0], -squares[1] - right[1]
        self._h = self._scaled(*_divided(self.l, (r0, r1)))
        return self._h[1]

    def move(self, dc: Array, dz: Array) -> float:
        dt = self._h[0] + 2 * self.eta**2 * self.p * _dot(self.q, dz)
        primal, dual = self._reach(dt, dc, dz)
        primal, dual = min(1.0, BACK * primal), min(1.0, BACK * dual)
        self.t, self.c = self.t + primal * dt, self.c + primal * dc
        self.z = self.z + dual * dz
        self._scale()
        return dual

    def price(self) -> float:
        return 0.0

    def _mu(self, t: Array, c: Array, z: Array) -> float:
        return float((t @ self.w - _dot(c, z).sum()) / self.w.size)

    def _reach(self, dt: Array, dc: Array, dz: Array) -> tuple[float, float]:
        return _to_boundary(self.t, self.c, dt, dc), _to_boundary(self.w, self.z, 0 * self.w, dz)


def _dot(a: Array, b: Array) -> Array:
    return np.asarray((a.conj() * b).real)


def _det(t: Array, c: Array) -> Array:
    size = np.abs(c)
    return np.maximum((t - size) * (t + size), 1e-300)


def _jordan(x: tuple[Array, Array], s: tuple[Array, Array]) -> tuple[Array, Array]:
    return x[0] * s[0] + _dot(x[1], s[1]), x[0] * s[1] + s[0] * x[1]


def _divided(l: tuple[Array, Array], r: tuple[Array, Array]) -> tuple[Array, Array]:
    """`v` with `l o v = r`."""
    det = _det(*l)
    first = (l[0] * r[0] - _dot(l[1], r[1])) / det
    return first, (r[1] - first * l[1]) / l[0]


def _to_boundary(t: Array, c: Array, dt: Array, dc: Array) -> float:
    """The largest step, at most 1 / BACK, that keeps `|c| <= t`: a quadratic's first root."""
    a, b, d = dt**2 - np.abs(dc) ** 2, t * dt - _dot(c, dc), _det(t, c)
    square = b * b - a * d
    bottom = np.sqrt(np.maximum(square, 0.0)) - b
    ends = (square >= 0) & (bottom > 0)
    return float(min(1 / BACK, np.min(d[ends] / bottom[ends], initial=np.inf)))


class Bounded:
    """Real coefficients `c = v_0 - v_1` with `0 <= v <= cap`, which may be infinite or 0.

    Slacks are `s = w -+ A^T u + f`, where `f >= 0` is the price of a cap.
    """

    def __init__(self, c: Array, w: Array, bias: Array, lower: Array, upper: Array) -> None:
        self.side = np.array([[1.0], [-1.0]])
        cap = np.stack([upper, -lower])
        self.on, self.capped = cap > 0, np.isfinite(cap) & (cap > 0)
        self.cap = np.where(self.capped, cap, np.inf)
        spread = 0.5 * float(np.abs(c).mean()) + 1e-300
        v = np.maximum(self.side * c, 0) + spread
        self.v = np.where(self.on, np.minimum(v, 0.9 * self.cap), 0.0)
        self.f = np.where(self.capped, w * spread / np.where(self.capped, self.cap - self.v, 1), 0)
        self.s = w - self.side * bias + self.f
        self._weigh()

    @property
    def c(self) -> Array:
        return np.asarray((self.side * self.v).sum(axis=0))

    def _weigh(self) -> None:
        self.room = np.where(self.capped, self.cap - self.v, 1.0)
        v = np.where(self.on, self.v, 1.0)
        self._D = np.where(self.on, 1 / (self.s / v + self.f / self.room), 0.0)
        self._v = v

    def times_D(self, z: Array) -> Array:
        return np.asarray(self._D.sum(axis=0) * z)

    def root(self, back: Array) -> Array:
        return np.asarray(np.sqrt(self._D.sum(axis=0))[:, None] * back)

    def times_root(self, g: Array) -> Array:
        return np.asarray(np.sqrt(self._D.sum(axis=0)) * g)

    def affine(self) -> Array:
        self._right = -self.s * self.v, -self.f * self.room
        return self._h()

    def _h(self) -> Array:
        r, g = self._right
        self._own = self._D * (r / self._v - np.where(self.capped, g / self.room, 0.0))
        return np.asarray((self.side * self._own).sum(axis=0))

    def _step(self, dz: Array) -> tuple[Array, Array, Array]:
        """`dv`, `df` and `ds` of the last right-hand side."""
        dv = self._own + self._D * self.side * dz
        df = np.where(self.capped, (self._right[1] + self.f * dv) / self.room, 0.0)
        return dv, df, df - self.side * dz

    def combined(self, dc: Array, dz: Array) -> Array:
        dv, df, ds = self._step(dz)
        primal, dual = self._reach(dv, df, ds)
        count = self.on.sum() + self.capped.sum()
        mu = self._mu(self.v, self.room, self.s, self.f) / count
        moved = (
            self.v + primal * dv,
            self.room - primal * dv,
            self.s + dual * ds,
            self.f + dual * df,
        )
        target = mu * (self._mu(*moved) / count / mu) ** 3
        self._right = (
            np.where(self.on, target - self.s * self.v - dv * ds, 0.0),
            np.where(self.capped, target - self.f * self.room + dv * df, 0.0),
        )
        return self._h()

    def _mu(self, v: Array, room: Array, s: Array, f: Array) -> float:
        return float((s * v)[self.on].sum() + (f * room)[self.capped].sum())

    def _reach(self, dv: Array, df: Array, ds: Array) -> tuple[float, float]:
        on, capped = self.on, self.capped
        primal = min(_ratio(self.v[on], dv[on]), _ratio(self.room[capped], -dv[capped]))
        return primal, min(_ratio(self.s[on], ds[on]), _ratio(self.f[capped], df[capped]))

    def move(self, dc: Array, dz: Array) -> float:
        dv, df, ds = self._step(dz)
        primal, dual = (min(1.0, BACK * reach) for reach in self._reach(dv, df, ds))
        self.v, self.f, self.s = self.v + primal * dv, self.f + dual * df, self.s + dual * ds
        self._weigh()
        return dual

    def price(self) -> float:
        """What the caps take off the dual objective."""
        return float((self.f * np.where(self.capped, self.cap, 0.0)).sum())


def _ratio(value: Array, change: Array) -> float:
    """The largest step, at most 1 / BACK, that keeps the values positive."""
    falls = change < 0
    return float(min(1 / BACK, np.min(value[falls] / -change[falls], initial=np.inf)))
