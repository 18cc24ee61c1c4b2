"""The terms that convex problems are made of: losses `f(r)` and penalties `g(c)`.

Every convex problem here is `min f(M c - b) + g(D c)`, so value, conjugate and proximal map of
each term are all that the certificate and the first-order solvers need. Vectors are columns:
arrays are (size, batch), and values are (batch,). Losses here are even, `f(-r) = f(r)`; those that
are not, or are no norms, are in `losses`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from scipy.optimize import brentq
from scipy.sparse import csr_array

from lowrank.sensing.operators.arrays import Array

Parameter: TypeAlias = Callable[..., Any]
"""`parameter(name, shape)` makes a CVXPY parameter that is not negative, or with a sign given."""


class Term(Protocol):
    """A convex function of each column, by its value, conjugate and proximal map."""

    @property
    def is_ray_linear(self) -> bool:
        """Whether `f*(a v) = a f*(v)` for `0 <= a <= cap`, so that the best a has a closed form."""

    def subgradient(self, r: Array) -> Array:
        """A subgradient at r on its support, up to scale; 0 elsewhere."""

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Constraints and value at the CVXPY expression u; `parameter(name, shape)` makes one."""

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """Values of those parameters, in units of the argument and of the objective."""

    @property
    def is_linear_program(self) -> bool:
        """Whether it is piecewise linear where it is real."""

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


class Penalty(Term, Protocol):
    """A term of the coefficients, or of what the analysis operator makes of them."""

    @property
    def pattern(self) -> str:
        """What of its statement in CVXPY is no parameter."""


class Loss(Term, Protocol):
    """A term of the residual."""

    @property
    def degree(self) -> int:
        """`f(a r) = a^degree f(r)`; 0 for a constraint."""

    @property
    def has_unit(self) -> bool:
        """Whether the argument has one, so that problems scale with the measurements."""

    @property
    def residual_is_dual(self) -> bool:
        """Whether the residual at the optimum, up to scale, is always a dual optimum."""

    def size(self, b: Array) -> Array:
        """Size of measurements in the norm that violations are in, (batch,)."""

    def curvature(self, v: Array) -> Array:
        """`k` of `f*(a v) = a^2 k / 2`, (batch,); 0 where the conjugate is linear on rays."""

    def price(self, v: Array) -> Array:
        """What a unit of violation would cost in the objective, at the dual point v, (batch,)."""


def soft(c: Array, t: Any) -> Array:
    """Soft threshold `c / |c| max(|c| - t, 0)`, real or complex."""
    if not np.iscomplexobj(c):
        return np.asarray(c - np.minimum(np.maximum(c, -t), t))
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
    """`r` with `||r||_2 <= epsilon`; 0 is equality. `joint` is one bound for all columns."""

    epsilon: float
    joint: bool = False

    has_unit: ClassVar[bool] = True
    degree: ClassVar[int] = 0
    residual_is_dual: ClassVar[bool] = False
    is_ray_linear: ClassVar[bool] = True

    @property
    def is_linear_program(self) -> bool:
        """Whether it is an equation."""
        return self.epsilon == 0

    def _norms(self, r: Array) -> Array:
        return np.array([np.linalg.norm(r)]) if self.joint else _norms(r)

    def value(self, r: Array) -> Array:
        """0."""
        return np.zeros_like(self._norms(r))

    def violation(self, r: Array) -> Array:
        """`(||r|| - epsilon)_+`."""
        return np.maximum(self._norms(r) - self.epsilon, 0)

    def price(self, v: Array) -> Array:
        """`||v||_2`."""
        return self._norms(v)

    def conjugate(self, v: Array) -> Array:
        """`epsilon ||v||_2`."""
        return self.epsilon * self._norms(v)

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return np.full(self._norms(v).shape, np.inf)

    def prox(self, r: Array, t: float) -> Array:
        """Projection onto the ball."""
        return r * np.minimum(1, _ratio(self.epsilon, self._norms(r)))

    def size(self, b: Array) -> Array:
        """`||b||_2`."""
        return self._norms(b)

    def curvature(self, v: Array) -> Array:
        """0."""
        return np.zeros_like(self._norms(v))

    def subgradient(self, r: Array) -> Array:
        """r."""
        return r

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """`||u|| <= epsilon`."""
        return [cp.norm(u, "fro" if self.joint else 2) <= parameter("epsilon")], 0

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument."""
        return {"epsilon": self.epsilon / argument}


@dataclass(frozen=True)
class BallInf:
    """`r` with `||r||_inf <= lam`."""

    lam: float

    has_unit: ClassVar[bool] = True
    degree: ClassVar[int] = 0
    residual_is_dual: ClassVar[bool] = False
    is_linear_program: ClassVar[bool] = True
    is_ray_linear: ClassVar[bool] = True

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

    def size(self, b: Array) -> Array:
        """`||b||_inf`."""
        return np.asarray(np.abs(b).max(axis=0))

    def curvature(self, v: Array) -> Array:
        """0."""
        return _zeros(v)

    def subgradient(self, r: Array) -> Array:
        """r."""
        return r

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """`||u||_inf <= lam`."""
        return [cp.max(cp.abs(u)) <= parameter("bound")], 0

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument."""
        return {"bound": self.lam / argument}


@dataclass(frozen=True)
class HalfSquare:
    """`1/2 ||r||_2^2`."""

    has_unit: ClassVar[bool] = True
    degree: ClassVar[int] = 2
    residual_is_dual: ClassVar[bool] = True
    is_linear_program: ClassVar[bool] = False
    is_ray_linear: ClassVar[bool] = True

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

    def size(self, b: Array) -> Array:
        """`||b||_2`."""
        return _norms(b)

    def curvature(self, v: Array) -> Array:
        """`||v||_2^2`."""
        return np.asarray(_norms(v) ** 2)

    def subgradient(self, r: Array) -> Array:
        """r."""
        return r

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Half of the squares."""
        return [], 0.5 * cp.sum_squares(u)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True)
class Norm2:
    """`||r||_2`."""

    has_unit: ClassVar[bool] = True
    degree: ClassVar[int] = 1
    residual_is_dual: ClassVar[bool] = True
    is_linear_program: ClassVar[bool] = False
    is_ray_linear: ClassVar[bool] = True

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

    def size(self, b: Array) -> Array:
        """`||b||_2`."""
        return _norms(b)

    def curvature(self, v: Array) -> Array:
        """0."""
        return _zeros(v)

    def subgradient(self, r: Array) -> Array:
        """r."""
        return r

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """`||u||_2`."""
        return [], cp.norm(u, 2)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True)
class Norm1:
    """`||r||_1`."""

    has_unit: ClassVar[bool] = True
    degree: ClassVar[int] = 1
    residual_is_dual: ClassVar[bool] = False
    is_linear_program: ClassVar[bool] = True
    is_ray_linear: ClassVar[bool] = True

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

    def size(self, b: Array) -> Array:
        """`||b||_2`."""
        return _norms(b)

    def curvature(self, v: Array) -> Array:
        """0."""
        return _zeros(v)

    def subgradient(self, r: Array) -> Array:
        """Signs."""
        return r / np.maximum(np.abs(r), 1e-300)

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """`||u||_1`."""
        return [], cp.sum(cp.abs(u))

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True)
class L1:
    """`sum_i w_i |c_i| + ridge/2 ||c||_2^2  for  lower <= c <= upper`; arrays are (p, 1)."""

    weights: Array
    lower: Array
    upper: Array
    ridge: float = 0.0

    @cached_property
    def is_ray_linear(self) -> bool:
        """Without ridge, and with bounds that are 0 or infinite."""
        if self.ridge or not self.bounded:
            return not self.ridge
        ends = [(bound == 0) | np.isinf(bound) for bound in (self.lower, self.upper)]
        return all(bool(end.all()) for end in ends)

    @cached_property
    def bounded(self) -> bool:
        """Whether any bound is finite."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    @property
    def is_linear_program(self) -> bool:
        """Without ridge."""
        return not self.ridge

    @property
    def pattern(self) -> str:
        """Which bounds are finite, and whether there is a ridge."""
        return f"{self._ends}, {bool(self.ridge)}"

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

    def kinks(self, v: Array) -> Array:
        """The `a` at which the conjugate of `a v` bends, v (p,), where there is no ridge."""
        return np.asarray(_ratio(self.weights[:, 0], np.abs(v)))

    def prox(self, c: Array, t: Any) -> Array:
        """Soft threshold, shrunk by the ridge, clipped to the box."""
        shrunk = soft(c, t * self.weights)
        shrunk = shrunk / (1 + t * self.ridge) if self.ridge > 0 else shrunk
        return np.clip(shrunk, self.lower, self.upper) if self.bounded else shrunk

    def subgradient(self, r: Array) -> Array:
        """Signs times weights."""
        return np.asarray(self.weights * (r / np.maximum(np.abs(r), 1e-300)))

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """The weighted sum, the ridge and the bounds that are finite."""
        p = u.shape[0]
        value = parameter("weights", (p,)) @ cp.abs(u)
        if self.ridge:
            value = value + parameter("ridge") / 2 * cp.sum_squares(u)
        low, high = self._ends
        within = [u[low] >= parameter("lower", (len(low),), nonpos=True)] if low else []
        return within + ([u[high] <= parameter("upper", (len(high),))] if high else []), value

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument and the objective."""
        low, high = self._ends
        return {
            "weights": self.weights[:, 0] * argument / objective,
            "ridge": self.ridge * argument**2 / objective,
            "lower": self.lower[low, 0] / argument,
            "upper": self.upper[high, 0] / argument,
        }

    @property
    def _ends(self) -> tuple[list[int], list[int]]:
        """Which coefficients have a finite lower, and a finite upper bound."""
        ends = (np.flatnonzero(np.isfinite(bound[:, 0])) for bound in (self.lower, self.upper))
        low, high = (end.tolist() for end in ends)
        return low, high


@dataclass(frozen=True)
class L1Ball:
    """`c` with `||w c||_1 <= tau`, and `c >= 0` if asked; w is (p, 1).

    `reach` is a smaller radius within which a minimum is known to lie, if one is.
    """

    tau: float
    weights: Array
    nonneg: bool = False
    reach: float = np.inf

    is_ray_linear: ClassVar[bool] = True

    @property
    def is_linear_program(self) -> bool:
        """It is."""
        return True

    @property
    def pattern(self) -> str:
        """Whether the coefficients are non-negative."""
        return f"{self.nonneg}"

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
        """`tau max_i |v_i| / w_i`, or with `reach` for `tau`."""
        size = np.maximum(v, 0) if self.nonneg else np.abs(v)
        return np.asarray(min(self.tau, self.reach) * (size / self.weights).max(axis=0))

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return _unbounded(v)

    def prox(self, c: Array, t: float) -> Array:
        """Projection onto the weighted L1 ball."""
        c = np.maximum(c, 0) if self.nonneg else c
        return soft(c, self.weights * _ball_threshold(np.abs(c), self.weights, self.tau))

    def subgradient(self, r: Array) -> Array:
        """Signs times weights."""
        return np.asarray(self.weights * (r / np.maximum(np.abs(r), 1e-300)))

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """`||w u||_1 <= tau`, and `u >= 0` if asked."""
        norm = parameter("weights", (u.shape[0],)) @ cp.abs(u)
        return [norm <= parameter("tau"), *([u >= 0] if self.nonneg else [])], 0

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument and the objective."""
        return {"weights": self.weights[:, 0], "tau": self.tau / argument}


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

    is_ray_linear: ClassVar[bool] = True

    @cached_property
    def _membership(self) -> Any:
        p = self.labels.size
        return csr_array((np.ones(p), (self.labels, np.arange(p))), (self.weights.size, p))

    def lengths(self, c: Array) -> Array:
        """`||c_g||_2`, (groups, batch)."""
        return np.sqrt(self._membership @ (c.real**2 + c.imag**2))

    @property
    def is_linear_program(self) -> bool:
        """Where each group is one entry."""
        return self.weights.size == self.labels.size

    @property
    def pattern(self) -> str:
        """The labels."""
        return f"{self.labels.tolist()}"

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

    def subgradient(self, r: Array) -> Array:
        """Each group at the length of its weight."""
        return r * _ratio(self.weights, self.lengths(r))[self.labels]

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """The sum of lengths; where groups are alike, of the columns of a matrix."""
        n, sizes = self.weights.size, np.bincount(self.labels)
        order = np.argsort(self.labels, kind="stable")
        if (sizes == 1).all():
            lengths = cp.abs(u[order])
        elif (sizes == sizes[0]).all():
            lengths = cp.norm(cp.reshape(u[order], (n, int(sizes[0])), order="C"), 2, axis=1)
        else:
            parts = np.split(order, np.cumsum(sizes)[:-1])
            lengths = cp.hstack([cp.norm(u[part], 2) for part in parts])
        return [], parameter("weights", (n,)) @ lengths

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument and the objective."""
        return {"weights": self.weights[:, 0] * argument / objective}


@dataclass(frozen=True)
class Rows:
    """`sum_i w_i ||C[i, :]||_2`, one value for all columns; w is (p, 1)."""

    weights: Array

    is_ray_linear: ClassVar[bool] = True

    @property
    def is_linear_program(self) -> bool:
        """It is not."""
        return False

    @property
    def pattern(self) -> str:
        """Nothing."""
        return ""

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

    def subgradient(self, r: Array) -> Array:
        """Each row at the length of its weight."""
        return r * _ratio(self.weights[:, 0], np.linalg.norm(r, axis=1))[:, None]

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """The sum over rows."""
        return [], parameter("weights", (u.shape[0],)) @ cp.norm(u, 2, axis=1)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument and the objective."""
        return {"weights": self.weights[:, 0] * argument / objective}


@dataclass(frozen=True, eq=False)
class Correlation:
    """`-<y, r>`, whose only dual point is y."""

    y: Array

    has_unit: ClassVar[bool] = False
    degree: ClassVar[int] = 1
    residual_is_dual: ClassVar[bool] = False
    is_linear_program: ClassVar[bool] = True
    is_ray_linear: ClassVar[bool] = True

    def value(self, r: Array) -> Array:
        """`-<y, r>`."""
        return np.asarray(-(self.y * r).sum(axis=0))

    def violation(self, r: Array) -> Array:
        """0."""
        return _zeros(r)

    def price(self, v: Array) -> Array:
        """Nothing can be violated."""
        return _zeros(v)

    def conjugate(self, v: Array) -> Array:
        """0 at y, the only point."""
        return _zeros(v)

    def cap(self, v: Array) -> Array:
        """Finite at y alone, which is not to be scaled."""
        return np.ones(v.shape[1])

    def prox(self, r: Array, t: float) -> Array:
        """`r + t y`."""
        return r + t * self.y

    def size(self, b: Array) -> Array:
        """`||b||_2`."""
        return _norms(b)

    def curvature(self, v: Array) -> Array:
        """0."""
        return _zeros(v)

    def subgradient(self, r: Array) -> Array:
        """-y."""
        return -self.y

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """`-<y, u>`."""
        return [], -(parameter("signs", (u.shape[0],), nonneg=False) @ u)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """The signs, as they are."""
        return {"signs": self.y[:, 0]}


@dataclass(frozen=True)
class UnitL1Ball:
    """`c` with `||c||_2 <= 1` and `||c||_1 <= radius`; real."""

    radius: float

    is_ray_linear: ClassVar[bool] = True

    @property
    def is_linear_program(self) -> bool:
        """It is not."""
        return False

    @property
    def pattern(self) -> str:
        """Nothing."""
        return ""

    def value(self, c: Array) -> Array:
        """0."""
        return _zeros(c)

    def violation(self, c: Array) -> Array:
        """Excess of the norms, relative to what they may be."""
        excess = np.maximum(_norms(c) - 1, np.abs(c).sum(axis=0) / self.radius - 1)
        return np.maximum(excess, 0)

    def conjugate(self, v: Array) -> Array:
        """`||soft(v, t)||_2 + radius t`, with the t that suits the radius."""
        t = np.array([one_bit_threshold(column, self.radius) for column in v.T])
        return np.asarray(_norms(soft(v, t)) + self.radius * t)

    def cap(self, v: Array) -> Array:
        """Finite everywhere."""
        return _unbounded(v)

    def prox(self, c: Array, t: float) -> Array:
        """Projection: onto the L1 ball, and where that is too long, the direction within both."""
        within = soft(c, _ball_threshold(np.abs(c), np.ones((len(c), 1)), self.radius))
        long = np.flatnonzero(_norms(within) > 1)
        for j in long:
            within[:, j] = one_bit_maximiser(c[:, j], self.radius)
        return within

    def subgradient(self, r: Array) -> Array:
        """0 inside."""
        return np.zeros_like(r)

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Both norms."""
        return [cp.norm(u, 2) <= 1, cp.norm(u, 1) <= parameter("tau")], 0

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """The radius."""
        return {"tau": self.radius}


TIE = 1e-12
"""Entries this close, relatively, count as equal in 1-bit recovery."""


def one_bit_threshold(z: Array, radius: float) -> float:
    """The `t >= 0` with `||soft(z, t)||_1 = radius ||soft(z, t)||_2`, 0 if z is within.

    Soft thresholding at t gives the direction that maximises `<z, c>` over `||c||_2 <= 1`,
    `||c||_1 <= radius`. Where `radius^2` entries or more tie for the largest, t is the largest.
    """

    def excess(t: float) -> float:
        s = soft(z, t)
        return float(np.abs(s).sum() - radius * np.linalg.norm(s))

    if excess(0.0) <= 0:
        return 0.0
    size = np.abs(z)
    top = float(size.max())
    tied = size >= top * (1 - TIE)
    if np.sqrt(tied.sum()) >= radius:
        return top
    return float(brentq(excess, 0.0, size[~tied].max(), xtol=1e-15 * top, rtol=1e-15))


def one_bit_maximiser(z: Array, radius: float) -> Array:
    """The c that maximises `<z, c>` over `||c||_2 <= 1`, `||c||_1 <= radius`; z is not 0."""
    t = one_bit_threshold(z, radius)
    s = soft(z, t)
    if not s.any():  # ties for the largest: spread over them, with L1 norm radius and L2 norm <= 1
        tied = np.abs(z) >= t * (1 - TIE)
        return np.asarray(np.where(tied, np.sign(z) * radius / tied.sum(), 0.0))
    return np.asarray(s / np.linalg.norm(s))
