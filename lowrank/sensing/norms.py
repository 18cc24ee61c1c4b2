"""Norms of groups and of sorted coefficients, and what holds them to one side of 0.

By the same interface as `terms`: arrays are (size, batch), and values are (batch,).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.terms import Groups, Parameter, Penalty, soft

ROUNDS = 100
"""Most Newton steps towards the multiple that a group's dual norm allows; ten are usual."""


class Blocks(NamedTuple):
    """A penalty of groups, `sum_g w_g ||C_g||_F + sum_i s_i |C_i|`, where lam is 1.

    Attributes:
        labels: group of each row of C, 0, 1, ..., (p,).
        weights: `w`, (groups,).
        slopes: `s`, (p,).
        lower: 0 or -inf, (p,).
        upper: 0 or inf, (p,).
    """

    labels: Array
    weights: Array
    slopes: Array
    lower: Array
    upper: Array

    @property
    def one_sided(self) -> bool:
        """Whether any coefficient may not have either sign."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())


def largest_multiples(size: Array, labels: Array, weights: Array, slopes: Array) -> Array:
    """The `a` of each group with `||(a size_g - s_g)_+||_2 = w_g`, (groups, batch).

    The left side is convex in a: from above, Newton's steps come down to the root and never pass.

    Args:
        size: >= 0, (p, batch).
        labels: group of each row, (p,).
        weights: `w >= 0`, (groups,).
        slopes: `s >= 0`, (p,).
    """
    a = np.full((weights.size, size.shape[1]), np.inf)
    w, s = weights[:, None], slopes[:, None]
    ends = np.full(size.shape, np.inf)
    np.divide(s + w[labels], size, out=ends, where=size > 0)
    np.minimum.at(a, labels, ends)
    bounded = np.isfinite(a)
    a[~bounded] = 0.0
    for _ in range(ROUNDS):
        over = np.maximum(a[labels] * size - s, 0)
        length = np.sqrt(_added(over**2, labels, w.size))
        climb = _added(over * size, labels, w.size)
        excess = length * (length - w)
        step = np.divide(excess, climb, out=np.zeros_like(a), where=(climb > 0) & (excess > 0))
        a -= step
        if (step <= 1e-16 * a).all():
            break
    return np.where(bounded, a, np.inf)


def _added(values: Array, labels: Array, groups: int) -> Array:
    """Sums over the rows of each group, (groups, batch)."""
    return np.stack([np.bincount(labels, column, groups) for column in values.T], axis=1)


@dataclass(frozen=True, eq=False)
class SparseGroups:
    """`sum_g w_g ||c_g||_2 + sum_i s_i |c_i|`; w is (groups, 1) and s (p, 1), labels (p,)."""

    labels: Array
    weights: Array
    slopes: Array

    is_ray_linear: ClassVar[bool] = True

    @cached_property
    def _groups(self) -> Groups:
        return Groups(self.labels, self.weights)

    @property
    def is_linear_program(self) -> bool:
        """Where each group is one entry."""
        return self._groups.is_linear_program

    @property
    def pattern(self) -> str:
        """The labels."""
        return self._groups.pattern

    def value(self, c: Array) -> Array:
        """Both sums."""
        return np.asarray(self._groups.value(c) + (self.slopes * np.abs(c)).sum(axis=0))

    def violation(self, c: Array) -> Array:
        """0."""
        return np.zeros(c.shape[1])

    def conjugate(self, v: Array) -> Array:
        """0 for `||(|v_g| - s_g)_+||_2 <= w_g`."""
        return np.zeros(v.shape[1])

    def cap(self, v: Array) -> Array:
        """The largest multiple within, over the groups."""
        weights, slopes = self.weights[:, 0], self.slopes[:, 0]
        return np.asarray(largest_multiples(np.abs(v), self.labels, weights, slopes).min(axis=0))

    def prox(self, c: Array, t: Any) -> Array:
        """A soft threshold, then each group shortened."""
        return self._groups.prox(soft(c, t * self.slopes), t)

    def subgradient(self, r: Array) -> Array:
        """Of the lengths, and signs times slopes."""
        signs = r / np.maximum(np.abs(r), 1e-300)
        return np.asarray(self._groups.subgradient(r) + self.slopes * signs)

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Both sums."""
        within, lengths = self._groups.state(cp, u, parameter)
        return within, lengths + parameter("slopes", (u.shape[0],)) @ cp.abs(u)

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument and the objective."""
        slopes = self.slopes[:, 0] * argument / objective
        return self._groups.values(argument, objective) | {"slopes": slopes}


@dataclass(frozen=True, eq=False)
class Sorted:
    """`sum_i w_i |c|_(i)` with moduli and weights in descending order; w is (p, 1)."""

    weights: Array

    is_ray_linear: ClassVar[bool] = True
    is_linear_program: ClassVar[bool] = True

    @property
    def pattern(self) -> str:
        """Where the weights fall."""
        return f"{list(self._falls)}"

    @cached_property
    def _falls(self) -> tuple[int, ...]:
        after = np.append(self.weights[1:, 0], 0.0)
        return tuple((np.flatnonzero(self.weights[:, 0] > after) + 1).tolist())

    def value(self, c: Array) -> Array:
        """The largest modulus times the largest weight, and so on."""
        return np.asarray((self.weights * _descending(np.abs(c))).sum(axis=0))

    def violation(self, c: Array) -> Array:
        """0."""
        return np.zeros(c.shape[1])

    def conjugate(self, v: Array) -> Array:
        """0 where the k largest moduli sum to no more than the first k weights, for every k."""
        return np.zeros(v.shape[1])

    def cap(self, v: Array) -> Array:
        """The largest multiple of which that holds."""
        sums = np.cumsum(_descending(np.abs(v)), axis=0)
        most = np.broadcast_to(np.cumsum(self.weights, axis=0), sums.shape)
        ends = np.divide(most, sums, out=np.full(sums.shape, np.inf), where=sums > 0)
        return np.asarray(ends.min(axis=0))

    def prox(self, c: Array, t: Any) -> Array:
        """Moduli less their weights; what is then out of order is averaged, and stops at 0."""
        size = np.abs(c)
        order = np.argsort(-size, axis=0, kind="stable")
        less = np.take_along_axis(size, order, axis=0) - t * self.weights
        for column in less.T:
            column[:] = isotonic_regression(column, increasing=False).x
        shrunk = np.empty_like(size)
        np.put_along_axis(shrunk, order, np.maximum(less, 0), axis=0)
        return np.asarray(c * (shrunk / np.where(size > 0, size, 1)))

    def subgradient(self, r: Array) -> Array:
        """Signs times the weights by rank."""
        size = np.abs(r)
        ranked = np.empty_like(size)
        order = np.argsort(-size, axis=0, kind="stable")
        np.put_along_axis(ranked, order, np.broadcast_to(self.weights, size.shape), axis=0)
        return np.asarray(ranked * (r / np.maximum(size, 1e-300)))

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """Sums of the k largest moduli, as often as the weights fall behind the k-th."""
        falls, size = parameter("falls", (len(self._falls),)), cp.abs(u)
        return [], sum(falls[i] * cp.sum_largest(size, k) for i, k in enumerate(self._falls))

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """In units of the argument and the objective."""
        after = np.append(self.weights[1:, 0], 0.0)
        k = np.array(self._falls) - 1
        return {"falls": (self.weights[k, 0] - after[k]) * argument / objective}


def _descending(size: Array) -> Array:
    return -np.sort(-size, axis=0)


@dataclass(frozen=True, eq=False)
class OneSided:
    """A norm that grows with every modulus, for `lower <= c <= upper`; bounds are 0 or infinite.

    What points out of the cone is 0 at the best point, so that value, conjugate and proximal map
    are the norm's at what is left within; `lower` and `upper` are (p, 1).
    """

    norm: Penalty
    lower: Array
    upper: Array

    is_ray_linear: ClassVar[bool] = True

    @property
    def is_linear_program(self) -> bool:
        """Where the norm is."""
        return self.norm.is_linear_program

    @property
    def pattern(self) -> str:
        """The norm's, and which coefficients are held."""
        low, high = self._held
        return f"{self.norm.pattern}, {low}, {high}"

    @property
    def _held(self) -> tuple[list[int], list[int]]:
        low, high = (np.flatnonzero(b[:, 0] == 0).tolist() for b in (self.lower, self.upper))
        return low, high

    def _within(self, c: Array) -> Array:
        return np.clip(c, self.lower, self.upper)

    def value(self, c: Array) -> Array:
        """The norm, whether or not c is within."""
        return self.norm.value(c)

    def violation(self, c: Array) -> Array:
        """Distance to the cone, relative to the largest coefficient."""
        outside = np.abs(c - self._within(c)).max(axis=0)
        share = np.asarray(outside / np.maximum(np.abs(c).max(axis=0), np.finfo(float).tiny))
        alone = self.norm.conjugate(c).shape == share.shape
        return share if alone else share.max(keepdims=True)

    def conjugate(self, v: Array) -> Array:
        """0 where the norm's is, at what points into the cone."""
        return self.norm.conjugate(self._within(v))

    def cap(self, v: Array) -> Array:
        """The norm's, for what points into the cone."""
        return self.norm.cap(self._within(v))

    def prox(self, c: Array, t: Any) -> Array:
        """The norm's, of what is within."""
        return self.norm.prox(self._within(c), t)

    def subgradient(self, r: Array) -> Array:
        """The norm's."""
        return self.norm.subgradient(r)

    def state(self, cp: Any, u: Any, parameter: Parameter) -> tuple[list[Any], Any]:
        """The norm, and the signs."""
        within, value = self.norm.state(cp, u, parameter)
        return [*within, *self._signs(u)], value

    def _signs(self, u: Any) -> Iterator[Any]:
        low, high = self._held
        if low:
            yield u[low] >= 0
        if high:
            yield u[high] <= 0

    def values(self, argument: float, objective: float) -> dict[str, Any]:
        """The norm's."""
        return self.norm.values(argument, objective)
