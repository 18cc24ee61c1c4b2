"""Losses beside squares and norms: logistic, Poisson, Huber and quantile, by the same interface.

The argument is `r = M c - b`: what is fitted less the data, or with `b = 0` the linear predictor,
where the loss holds the labels or counts itself. Arrays are (size, batch), as in `terms`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, wrightomega, xlogy

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.terms import Loss, Parameter

STEPS = 40
"""Safeguarded Newton steps of a proximal point of the logistic loss."""


class _Unconstrained:
    """What losses have in common that are finite everywhere."""

    def violation(self, r: Array) -> Array:
        """0."""
        return np.zeros(r.shape[1])

    def price(self, v: Array) -> Array:
        """Nothing can be violated."""
        return np.zeros(v.shape[1])

    def size(self, b: Array) -> Array:
        """`||b||_2`."""
        return np.asarray(np.linalg.norm(b, axis=0))

    def curvature(self, v: Array) -> Array:
        """0."""
        return np.zeros(v.shape[1])


def _largest_multiple(ratios: Array) -> Array:
    """The least of these bounds of a multiple, (batch,); infinite where nothing bounds it."""
    return np.asarray(np.where(np.isnan(ratios), np.inf, ratios).min(axis=0))


def _bound(limit: Any, size: Array) -> Array:
    """`limit / size` where the size is positive, infinite elsewhere."""
    out = np.full(size.shape, np.inf)
    return np.divide(np.broadcast_to(limit, size.shape), size, out=out, where=size > 0)


@dataclass(frozen=True, eq=False)
class Logistic(_Unconstrained):
    """`sum_i log(1 + exp(-y_i r_i))` for labels y of -1 and 1, (m, 1)."""

    y: Array

    degree: ClassVar[int] = 0
    has_unit: ClassVar[bool] = False
    residual_is_dual: ClassVar[bool] = True
    is_linear_program: ClassVar[bool] = False
    is_ray_linear: ClassVar[bool] = False

    def value(self, r: Array) -> Array:
        """The sum of the deviances, halved."""
        return np.asarray(np.logaddexp(0, -self.y * r).sum(axis=0))

    def subgradient(self, r: Array) -> Array:
        """`-y / (1 + exp(y r))`, exactly."""
        return np.asarray(-self.y * expit(-self.y * r))

    def curvatures(self, r: Array) -> Array:
        """Second derivatives, entry by entry."""
        return np.asarray(expit(r) * expit(-r))

    def conjugate(self, v: Array) -> Array:
        """`sum s log s + (1 - s) log(1 - s)` with `s = -v y` in [0, 1]."""
        s = np.clip(-v * self.y, 0, 1)
        return np.asarray((xlogy(s, s) + xlogy(1 - s, 1 - s)).sum(axis=0))

    def cap(self, v: Array) -> Array:
        """`1 / max s`; 0 where some s is negative."""
        s = -v * self.y
        return np.where((s < 0).any(axis=0), 0.0, _largest_multiple(_bound(1.0, s)))

    def prox(self, r: Array, t: float) -> Array:
        """The root s of `s - y r = t / (1 + exp(s))`, times y; it is in `y r + (0, t)`."""
        q = self.y * r
        low, high = q, q + t
        s = q + t * expit(-q) / (1 + t * expit(q) * expit(-q))
        for _ in range(STEPS):
            error = s - q - t * expit(-s)
            low, high = np.where(error < 0, s, low), np.where(error > 0, s, high)
            new = s - error / (1 + t * expit(s) * expit(-s))
            s = np.where((new > low) & (new < high), new, (low + high) / 2)
        return np.asarray(self.y * s)

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """CVXPY's logistic."""
        signs = parameter("signs", (u.shape[0],), nonneg=False)
        return [], cp.sum(cp.logistic(-cp.multiply(signs, u)))

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """The labels, as they are."""
        return {"signs": self.y[:, 0]}


@dataclass(frozen=True, eq=False)
class Poisson(_Unconstrained):
    """`sum_i exp(r_i) - y_i r_i + y_i log y_i - y_i`, half the deviance of counts y (m, 1)."""

    y: Array

    degree: ClassVar[int] = 0
    has_unit: ClassVar[bool] = False
    residual_is_dual: ClassVar[bool] = True
    is_linear_program: ClassVar[bool] = False
    is_ray_linear: ClassVar[bool] = False

    def value(self, r: Array) -> Array:
        """Half the deviance: 0 where `exp(r) = y`."""
        some = self.y > 0
        off = r - np.log(np.where(some, self.y, 1.0))  # to full precision where little is lost
        lost = np.where(some, self.y * (np.expm1(off) - off), np.exp(r))
        return np.asarray(lost.sum(axis=0))

    def subgradient(self, r: Array) -> Array:
        """`exp(r) - y`, exactly."""
        return np.asarray(np.exp(r) - self.y)

    def curvatures(self, r: Array) -> Array:
        """Second derivatives, entry by entry."""
        return np.exp(r)

    def conjugate(self, v: Array) -> Array:
        """`sum w log w - w`, less the constant, with `w = v + y >= 0`."""
        y, some = np.where(self.y > 0, self.y, 1.0), self.y > 0
        w = np.maximum(v + self.y, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            grown = np.where(w > 0, w * np.log1p(np.maximum(v / y, -1.0)), 0.0)
        gain = np.where(some, grown - (w - self.y) + v * np.log(y), xlogy(w, w) - w)
        return np.asarray(gain.sum(axis=0))

    def cap(self, v: Array) -> Array:
        """`min y / -v` over negative v."""
        return _largest_multiple(_bound(self.y, -v))

    def prox(self, r: Array, t: float) -> Array:
        """`q - omega(q + log t)` with `q = r + t y` and Wright's omega."""
        q = r + t * self.y
        return np.asarray(q - wrightomega(q + np.log(t)))

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Exponentials, without the constant."""
        return [], cp.sum(cp.exp(u)) - parameter("counts", (u.shape[0],)) @ u

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """The counts, as they are."""
        return {"counts": self.y[:, 0]}


@dataclass(frozen=True)
class Huber(_Unconstrained):
    """`sum_i h(r_i)`: `r^2 / 2` up to a modulus of delta, `delta |r| - delta^2 / 2` beyond."""

    delta: float

    degree: ClassVar[int] = 2
    has_unit: ClassVar[bool] = True
    residual_is_dual: ClassVar[bool] = True
    is_linear_program: ClassVar[bool] = False
    is_ray_linear: ClassVar[bool] = True

    def value(self, r: Array) -> Array:
        """Squares within, moduli beyond."""
        near = np.minimum(np.abs(r), self.delta)
        return np.asarray((near * (np.abs(r) - near / 2)).sum(axis=0))

    def subgradient(self, r: Array) -> Array:
        """r, cut at delta, exactly."""
        return np.asarray(np.clip(r, -self.delta, self.delta))

    def conjugate(self, v: Array) -> Array:
        """`1/2 ||v||^2` for `||v||_inf <= delta`."""
        return np.asarray((v**2).sum(axis=0) / 2)

    def curvature(self, v: Array) -> Array:
        """`||v||^2`."""
        return np.asarray((v**2).sum(axis=0))

    def cap(self, v: Array) -> Array:
        """`delta / ||v||_inf`."""
        return _largest_multiple(_bound(self.delta, np.abs(v)))

    def prox(self, r: Array, t: float) -> Array:
        """Shrunk by `1 + t`, or by `t delta` at the most."""
        return np.asarray(r - np.clip(t / (1 + t) * r, -t * self.delta, t * self.delta))

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Squares of what is left of u less its outliers, which are paid for by modulus."""
        outliers = cp.Variable(u.shape)
        return [], 0.5 * cp.sum_squares(u - outliers) + parameter("delta") * cp.norm1(outliers)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument."""
        return {"delta": self.delta / argument}


@dataclass(frozen=True)
class Pinball(_Unconstrained):
    """`sum_i max(-tau r_i, (1 - tau) r_i)`: where data are above the fit they cost tau a unit."""

    tau: float

    degree: ClassVar[int] = 1
    has_unit: ClassVar[bool] = True
    residual_is_dual: ClassVar[bool] = False
    is_linear_program: ClassVar[bool] = True
    is_ray_linear: ClassVar[bool] = True

    def value(self, r: Array) -> Array:
        """Both sides, each at its price."""
        return np.asarray(np.maximum(-self.tau * r, (1 - self.tau) * r).sum(axis=0))

    def subgradient(self, r: Array) -> Array:
        """`1 - tau` above 0, `-tau` below."""
        return np.where(r > 0, 1 - self.tau, np.where(r < 0, -self.tau, 0.0))

    def conjugate(self, v: Array) -> Array:
        """0 for `-tau <= v <= 1 - tau`."""
        return np.zeros(v.shape[1])

    def cap(self, v: Array) -> Array:
        """The largest multiple within."""
        return _largest_multiple(_bound(np.where(v > 0, 1 - self.tau, self.tau), np.abs(v)))

    def prox(self, r: Array, t: float) -> Array:
        """A soft threshold with two sides."""
        return np.asarray(r - np.clip(r, -t * self.tau, t * (1 - self.tau)))

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Positive and negative parts."""
        up, down = parameter("up"), parameter("down")
        return [], up * cp.sum(cp.pos(u)) + down * cp.sum(cp.neg(u))

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """The prices."""
        return {"up": 1 - self.tau, "down": self.tau}


def balanced(v: Array) -> Array:
    """v with the side that outweighs the other shrunk, so that each column sums to 0.

    Every entry goes towards 0, where the conjugates of all losses here are finite.
    """
    up, down = np.maximum(v, 0).sum(axis=0), np.maximum(-v, 0).sum(axis=0)
    least = np.minimum(up, down)
    return np.where(v > 0, v * _share(least, up), v * _share(least, down))


def _share(part: Array, whole: Array) -> Array:
    return np.divide(part, whole, out=np.ones_like(whole), where=whole > 0)


@dataclass(frozen=True, eq=False)
class WithIntercept:
    """`min_b f(r + b)` for one of the losses here, column by column.

    Its conjugate is that of f where v sums to 0, and infinite elsewhere: `balanced` makes it so.
    """

    inner: Loss

    @property
    def degree(self) -> int:
        """That of f."""
        return self.inner.degree

    @property
    def has_unit(self) -> bool:
        """Whether f has one."""
        return self.inner.has_unit

    @property
    def residual_is_dual(self) -> bool:
        """Whether it is f's."""
        return self.inner.residual_is_dual

    @property
    def is_linear_program(self) -> bool:
        """Whether f is."""
        return self.inner.is_linear_program

    @property
    def is_ray_linear(self) -> bool:
        """Whether f is."""
        return self.inner.is_ray_linear

    def level(self, r: Array) -> Array:
        """The best b of each column, (batch,)."""
        return np.array([_root(self._pull, column[:, None]) for column in r.T])

    def _pull(self, r: Array) -> float:
        return float(self.inner.subgradient(r).sum())

    def value(self, r: Array) -> Array:
        """f at the best b."""
        return self.inner.value(r + self.level(r))

    def violation(self, r: Array) -> Array:
        """0."""
        return np.zeros(r.shape[1])

    def price(self, v: Array) -> Array:
        """Nothing can be violated."""
        return np.zeros(v.shape[1])

    def size(self, b: Array) -> Array:
        """That of f."""
        return self.inner.size(b)

    def curvature(self, v: Array) -> Array:
        """That of f."""
        return self.inner.curvature(v)

    def subgradient(self, r: Array) -> Array:
        """f's at the best b; where a kink leaves the choice, the one that sums to 0."""
        at = r + self.level(r)
        slope = self.inner.subgradient(at)
        kinks = np.abs(at) <= KINK * np.abs(r).max(initial=1e-300)
        return balanced(slope - kinks * (slope.sum(axis=0) / np.maximum(kinks.sum(axis=0), 1)))

    def conjugate(self, v: Array) -> Array:
        """f's, for v that sums to 0."""
        return self.inner.conjugate(v)

    def cap(self, v: Array) -> Array:
        """f's."""
        return self.inner.cap(v)

    def prox(self, r: Array, t: float) -> Array:
        """f's of `r + b`, less b, for the b at which nothing is gained by another."""

        def pull(z: Array) -> float:
            return float((z - self.inner.prox(z, t)).sum())

        b = np.array([_root(pull, column[:, None]) for column in r.T])
        return self.inner.prox(r + b, t) - b

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """f's, with a variable more."""
        return self.inner.state(cp, u + cp.Variable(), parameter)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """f's."""
        return self.inner.values(argument, objective)


KINK = 1e-12
"""Size, relative to the largest, of what counts as 0 at a kink."""


def _root(pull: Callable[[Array], float], r: Array) -> float:
    """The b at which a pull that grows with `r + b` changes its sign."""
    low, high, step = -float(r.max()), -float(r.min()), 1.0
    while pull(r + low) > 0:
        low, step = low - step, 2 * step
    step = 1.0
    while pull(r + high) < 0:
        high, step = high + step, 2 * step
    if low == high or pull(r + low) == 0:
        return low
    if pull(r + high) == 0:
        return high
    b = brentq(lambda b: pull(r + b), low, high, xtol=1e-300, rtol=4 * np.finfo(float).eps)
    return float(b)
