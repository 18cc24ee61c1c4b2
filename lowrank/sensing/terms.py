"""The terms that convex problems are made of: losses `f(r)` and penalties `g(c)`.

Every convex problem here is `min f(M c - b) + g(D c)`, so value, conjugate and proximal map of
each term are all that the certificate and the first-order solvers need. Vectors are columns:
arrays are (size, batch), and values are (batch,). Losses are even, `f(-r) = f(r)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy.sparse import csr_array

from lowrank.sensing.operators.arrays import Array


class Term(Protocol):
    """A convex function of each column, by its value, conjugate and proximal map."""

    def value(self, r: Array) -> Array:
        """`f(r)`, (batch,); a constraint's value is 0 everywhere, see `violation`."""

    def violation(self, r: Array) -> Array:
        """How far each column is outside the domain, relative to the domain's own size if any."""

    def conjugate(self, v: Array) -> Array:
        """`f*(v) = sup_r <v, r> - f(r)` for v within `cap`, (batch,)."""

    def cap(self, v: Array) -> Array:
        """The largest `a` for which `f*(a v)` is finite, (batch,)."""

    def prox(self, r: Array, t: float) -> Array:
        """`argmin_u t f(u) + 1/2 ||u - r||^2`."""


class Loss(Term, Protocol):
    """A term of the residual."""

    def price(self, v: Array) -> Array:
        """What a unit of violation would cost in the objective, at the dual point v, (batch,)."""


def soft(c: Array, t: Any) -> Array:
    """Soft threshold `c / |c| max(|c| - t, 0)`, real or complex."""
    if not np.iscomplexobj(c):
        return np.asarray(c - np.clip(c, -t, t))
    size = np.abs(c)
    return np.asarray(c * (np.maximum(size - t, 0) / np.where(size > 0, size, 1)))


def _norms(r: Array) -> Array:
    return np.asarray(np.linalg.norm(r, axis=0))


def _zeros(r: Array) -> Array:
    return np.zeros(r.shape[1])


def _unbounded(r: Array) -> Array:
    return np.full(r.shape[1], np.inf)


def _ratio(a: Any, b: Array) -> Array:
    """`a / b`, infinite where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(b), np.inf), where=b > 0)


def _shrink(r: Array, length: Array, t: Any) -> Array:
    """Shorten what has this length by t, to 0 at the least."""
    return np.asarray(r * np.maximum(1 - _ratio(t, length), 0))


@dataclass(frozen=True)
class Ball:
    """`r` with `||r||_2 <= epsilon`; 0 is equality."""

    epsilon: float

    def value(self, r: Array) -> Array:
        """0."""
        return _zeros(r)

    def violation(self, r: Array) -> Array:
        """`(||r|| - epsilon)_+`."""
        return np.maximum(_norms(r) - self.epsilon, 0)

    def price(self, v: Array) -> Array:
        """`||v||_2`."""
        return _norms(v)

    def conjugate(self, v: Array) -> Array:
        """`epsilon ||v||_2`."""
        return self.epsilon * _norms(v)

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return _unbounded(v)

    def prox(self, r: Array, t: float) -> Array:
        """Projection onto the ball."""
        return r * np.minimum(1, _ratio(self.epsilon, _norms(r)))


@dataclass(frozen=True)
class BallInf:
    """`r` with `||r||_inf <= lam`."""

    lam: float

    def value(self, r: Array) -> Array:
        """0."""
        return _zeros(r)

    def violation(self, r: Array) -> Array:
        """`(||r||_inf - lam)_+`."""
        return np.maximum(np.abs(r).max(axis=0) - self.lam, 0)

    def price(self, v: Array) -> Array:
        """`||v||_1`."""
        return np.asarray(np.abs(v).sum(axis=0))

    def conjugate(self, v: Array) -> Array:
        """`lam ||v||_1`."""
        return self.lam * np.abs(v).sum(axis=0)

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return _unbounded(v)

    def prox(self, r: Array, t: float) -> Array:
        """Projection onto the box."""
        return r - soft(r, self.lam)


@dataclass(frozen=True)
class HalfSquare:
    """`1/2 ||r||_2^2`."""

    def value(self, r: Array) -> Array:
        """`1/2 ||r||_2^2`."""
        return np.asarray(_norms(r) ** 2 / 2)

    def violation(self, r: Array) -> Array:
        """0."""
        return _zeros(r)

    def price(self, v: Array) -> Array:
        """Nothing can be violated."""
        return _zeros(v)

    def conjugate(self, v: Array) -> Array:
        """`1/2 ||v||_2^2`."""
        return np.asarray(_norms(v) ** 2 / 2)

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return _unbounded(v)

    def prox(self, r: Array, t: float) -> Array:
        """`r / (1 + t)`."""
        return r / (1 + t)


@dataclass(frozen=True)
class Norm2:
    """`||r||_2`."""

    def value(self, r: Array) -> Array:
        """`||r||_2`."""
        return _norms(r)

    def violation(self, r: Array) -> Array:
        """0."""
        return _zeros(r)

    def price(self, v: Array) -> Array:
        """Nothing can be violated."""
        return _zeros(v)

    def conjugate(self, v: Array) -> Array:
        """0 for `||v||_2 <= 1`."""
        return _zeros(v)

    def cap(self, v: Array) -> Array:
        """`1 / ||v||_2`."""
        return _ratio(1.0, _norms(v))

    def prox(self, r: Array, t: float) -> Array:
        """Each column shortened by t."""
        return _shrink(r, _norms(r), t)


@dataclass(frozen=True)
class Norm1:
    """`||r||_1`."""

    def value(self, r: Array) -> Array:
        """`||r||_1`."""
        return np.asarray(np.abs(r).sum(axis=0))

    def violation(self, r: Array) -> Array:
        """0."""
        return _zeros(r)

    def price(self, v: Array) -> Array:
        """Nothing can be violated."""
        return _zeros(v)

    def conjugate(self, v: Array) -> Array:
        """0 for `||v||_inf <= 1`."""
        return _zeros(v)

    def cap(self, v: Array) -> Array:
        """`1 / ||v||_inf`."""
        return _ratio(1.0, np.abs(v).max(axis=0))

    def prox(self, r: Array, t: float) -> Array:
        """Soft threshold."""
        return soft(r, t)


@dataclass(frozen=True)
class L1:
    """`sum_i w_i |c_i| + ridge/2 ||c||_2^2  for  lower <= c <= upper`; arrays are (p, 1)."""

    weights: Array
    lower: Array
    upper: Array
    ridge: float = 0.0

    @cached_property
    def bounded(self) -> bool:
        """Whether any bound is finite."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    def value(self, c: Array) -> Array:
        """The weighted L1 norm and the ridge, whether or not c is within the bounds."""
        size = (self.weights * np.abs(c)).sum(axis=0)
        return np.asarray(size + self.ridge / 2 * _norms(c) ** 2 if self.ridge else size)

    def violation(self, c: Array) -> Array:
        """Distance to the box relative to the largest coefficient."""
        if not self.bounded:
            return _zeros(c)
        outside = np.abs(c - np.clip(c, self.lower, self.upper)).max(axis=0)
        return outside / np.maximum(np.abs(c).max(axis=0), np.finfo(float).tiny)

    def conjugate(self, v: Array) -> Array:
        """`sum_i sup_c v_i c - w_i |c| - ridge/2 c^2` over the box."""
        if self.ridge == 0 and not self.bounded:
            return _zeros(v)
        over = soft(v, self.weights)
        if self.ridge > 0:
            best = over / self.ridge
        else:  # the slope beyond the weight drives c to the bound, which `cap` keeps finite
            best = np.where(over > 0, self.upper, np.where(over < 0, self.lower, 0))
            best = np.where(np.isfinite(best), best, 0)
        best = np.clip(best, self.lower, self.upper) if self.bounded else best
        gain = (over.conj() * best).real - self.ridge / 2 * np.abs(best) ** 2
        return np.asarray(gain.sum(axis=0))

    def cap(self, v: Array) -> Array:
        """`min_i w_i / |v_i|` over the coefficients that are unbounded on the side of v."""
        if self.ridge > 0:
            return _unbounded(v)
        if not self.bounded:
            return np.asarray(_ratio(1.0, (np.abs(v) / self.weights).max(axis=0)))
        open_side = np.where(v > 0, self.upper, -self.lower) == np.inf
        return np.asarray(_ratio(1.0, (np.abs(v) * open_side / self.weights).max(axis=0)))

    def prox(self, c: Array, t: Any) -> Array:
        """Soft threshold, shrunk by the ridge, clipped to the box."""
        shrunk = soft(c, t * self.weights)
        shrunk = shrunk / (1 + t * self.ridge) if self.ridge > 0 else shrunk
        return np.clip(shrunk, self.lower, self.upper) if self.bounded else shrunk


@dataclass(frozen=True)
class L1Ball:
    """`c` with `||w c||_1 <= tau`, and `c >= 0` if asked; w is (p, 1)."""

    tau: float
    weights: Array
    nonneg: bool = False

    def value(self, c: Array) -> Array:
        """0."""
        return _zeros(c)

    def violation(self, c: Array) -> Array:
        """Excess of the norm, and of negative entries, relative to tau."""
        excess = np.maximum((self.weights * np.abs(c)).sum(axis=0) - self.tau, 0)
        if self.nonneg:
            excess = excess + (self.weights * np.maximum(-c, 0)).sum(axis=0)
        return np.asarray(excess / (self.tau if self.tau > 0 else 1))

    def conjugate(self, v: Array) -> Array:
        """`tau max_i |v_i| / w_i`."""
        size = np.maximum(v, 0) if self.nonneg else np.abs(v)
        return np.asarray(self.tau * (size / self.weights).max(axis=0))

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return _unbounded(v)

    def prox(self, c: Array, t: float) -> Array:
        """Projection onto the weighted L1 ball."""
        c = np.maximum(c, 0) if self.nonneg else c
        return soft(c, self.weights * _ball_threshold(np.abs(c), self.weights, self.tau))


def _ball_threshold(size: Array, weights: Array, tau: float) -> Array:
    """Threshold `t` per column with `sum_i w_i (|c_i| - t w_i)_+ = tau`, 0 inside the ball.

    Source: Duchi et al. 2008, figure 1, with weights.
    """
    ratio = size / weights
    order = np.argsort(-ratio, axis=0)
    w = np.broadcast_to(weights, size.shape)
    sums = np.cumsum(np.take_along_axis(w * size, order, axis=0), axis=0) - tau
    squares = np.cumsum(np.take_along_axis(w * w, order, axis=0), axis=0)
    active = np.take_along_axis(ratio, order, axis=0) * squares > sums
    last = np.maximum(active.sum(axis=0) - 1, 0)[None]
    t = np.take_along_axis(sums, last, axis=0) / np.take_along_axis(squares, last, axis=0)
    return np.maximum(t, 0)


@dataclass(frozen=True, eq=False)
class Groups:
    """`sum_g w_g ||c_g||_2` for groups given by the label of each entry, (p,); w is (groups, 1)."""

    labels: Array
    weights: Array

    @cached_property
    def _membership(self) -> Any:
        p = self.labels.size
        return csr_array((np.ones(p), (self.labels, np.arange(p))), (self.weights.size, p))

    def lengths(self, c: Array) -> Array:
        """`||c_g||_2`, (groups, batch)."""
        return np.sqrt(self._membership @ (c.real**2 + c.imag**2))

    def value(self, c: Array) -> Array:
        """`sum_g w_g ||c_g||_2`."""
        return np.asarray((self.weights * self.lengths(c)).sum(axis=0))

    def violation(self, c: Array) -> Array:
        """0."""
        return _zeros(c)

    def conjugate(self, v: Array) -> Array:
        """0 for `||v_g||_2 <= w_g`."""
        return _zeros(v)

    def cap(self, v: Array) -> Array:
        """`min_g w_g / ||v_g||_2`."""
        return np.asarray(_ratio(1.0, (self.lengths(v) / self.weights).max(axis=0)))

    def prox(self, c: Array, t: Any) -> Array:
        """Each group shortened by `t w_g`."""
        factor = np.maximum(1 - _ratio(t * self.weights, self.lengths(c)), 0)
        return np.asarray(c * factor[self.labels])


@dataclass(frozen=True)
class Rows:
    """`sum_i w_i ||C[i, :]||_2`, one value for all columns; w is (p, 1)."""

    weights: Array

    def value(self, c: Array) -> Array:
        """The sum over rows, (1,)."""
        return np.asarray((self.weights[:, 0] * np.linalg.norm(c, axis=1)).sum()[None])

    def violation(self, c: Array) -> Array:
        """0."""
        return np.zeros(1)

    def conjugate(self, v: Array) -> Array:
        """0 for `||v[i, :]||_2 <= w_i`."""
        return np.zeros(1)

    def cap(self, v: Array) -> Array:
        """`min_i w_i / ||v[i, :]||_2`, (1,)."""
        return _ratio(1.0, (np.linalg.norm(v, axis=1) / self.weights[:, 0]).max()[None])

    def prox(self, c: Array, t: Any) -> Array:
        """Each row shortened by `t w_i`."""
        return _shrink(c, np.linalg.norm(c, axis=1, keepdims=True), t * self.weights)
