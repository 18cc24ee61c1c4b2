"""Concave penalties for least squares, which leave large coefficients alone: MCP and SCAD."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import _InBasis
from lowrank.sensing.problems.checks import _checked_weights, checked_number

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False, repr=False)
class _Concave(_InBasis):
    """`min 1/2 ||A Psi c - y||_2^2 + sum_j p_j(|c_j|)` with p_j concave, for one real signal."""

    lam: float
    gamma: float
    weights: ArrayLike | None = field(default=None, kw_only=True)

    convex: ClassVar[bool] = False
    least: ClassVar[float]

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))
        self._set("gamma", checked_number("gamma", self.gamma))
        self._set("weights", _checked_weights(self.weights, self.n_unknowns))
        kind = type(self).__name__
        if not self.gamma > self.least:
            text = f"{self.gamma} is not above {self.least:g}, where {kind} stops being a penalty"
            raise InputError("gamma", text, "3 is usual for MCP, 3.7 for SCAD")
        if self.is_complex or np.ndim(self.y) != 1:
            text = f"shape {np.shape(self.y)} or complex, and {kind} is of one real signal"
            raise InputError("A, y", text, "pass a column of y, real")

    @cached_property
    def slopes(self) -> Array:
        """`lam w_j`, the penalty's slope at 0, (p,)."""
        return self.lam * np.asarray(self.weights)

    @cached_property
    def curvatures(self) -> Array:
        """`||a_j||^2`, (p,); the penalty's curve is measured by it."""
        return np.asarray(self.operator.column_norms() ** 2)

    @cached_property
    def lam_max(self) -> float:
        """Smallest lam at which 0 is stationary, whatever `lam` is."""
        z = np.abs(self.operator.adjoint(np.asarray(self.y)))
        return float((z / np.asarray(self.weights)).max(initial=0.0))

    @abstractmethod
    def slope(self, c: Array) -> Array:
        """`p_j'(|c_j|)`, (p,)."""

    @abstractmethod
    def bend(self, c: Array) -> Array:
        """`p_j''(|c_j|)` where that is not 0, at most 0, (p,)."""

    @abstractmethod
    def threshold(self, z: float, j: int) -> float:
        """The c that minimises `||a_j||^2 c^2 / 2 - z c + p_j(|c|)`; the column is not 0."""

    @abstractmethod
    def penalty_value(self, c: Array) -> float:
        """`sum_j p_j(|c_j|)`."""

    def objective(self, c: Array) -> float:
        """What is minimised."""
        r = self.operator.forward(c) - np.asarray(self.y)
        return float(r @ r) / 2 + self.penalty_value(c)

    def stationarity(self, c: Array) -> float:
        """How far, relative to the slopes at 0, the gradient is from the penalty's subgradients."""
        z = self.operator.adjoint(np.asarray(self.y) - self.operator.forward(c))
        at_zero = np.maximum(np.abs(z) - self.slopes, 0)
        off = np.where(c == 0, at_zero, np.abs(z - self.slope(c) * np.sign(c)))
        return float((off / self.slopes).max(initial=0.0))

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """None: even 0 is only stationary."""
        return iter(())


@dataclass(frozen=True, eq=False, repr=False)
class MCP(_Concave):
    """Minimax concave penalty: `min 1/2 ||A Psi c - y||_2^2 + sum_j p_j(|c_j|)`. Not convex.

    `p_j'(t) = (lam w_j - t ||a_j||^2 / gamma)_+`: the slope of the LASSO at 0, and none from
    `gamma lam w_j / ||a_j||^2` on, so that large coefficients are not biased. The column's own
    curvature stands in it so that a gamma means the same whatever the columns' units; at unit
    columns it is Zhang's.

    Args:
        A: measurement operator (m, n), real.
        y: measurements (m,).
        lam: penalty, > 0; from `lam_max` on 0 is stationary.
        gamma: > 1; large is the LASSO, and near 1 a hard threshold.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, gamma not above 1, complex data.

    Example:
        >>> MCP(np.eye(2), [3.0, 0.5], 1.0).gamma
        3.0

    Source: Zhang 2010, equation (2.1).
    """

    gamma: float = 3.0

    least: ClassVar[float] = 1.0

    def slope(self, c: Array) -> Array:
        """`(lam w - |c| ||a||^2 / gamma)_+`."""
        return np.maximum(self.slopes - np.abs(c) * self.curvatures / self.gamma, 0)

    def bend(self, c: Array) -> Array:
        """`-||a||^2 / gamma`, and 0 where the slope is."""
        return np.where(self.slope(c) > 0, -self.curvatures / self.gamma, 0)

    def threshold(self, z: float, j: int) -> float:
        """A firm threshold."""
        t, L, size = float(self.slopes[j]), float(self.curvatures[j]), abs(z)
        if size > self.gamma * t:
            return z / L
        return math.copysign(max(size - t, 0.0) / (L * (1 - 1 / self.gamma)), z)

    def penalty_value(self, c: Array) -> float:
        """Its integral from 0."""
        t, bend = self.slopes, self.curvatures / self.gamma
        size = np.minimum(
            np.abs(c), np.divide(t, bend, out=np.full_like(t, np.inf), where=bend > 0)
        )
        return float((t * size - bend * size**2 / 2).sum())


@dataclass(frozen=True, eq=False, repr=False)
class SCAD(_Concave):
    """Smoothly clipped absolute deviation: `min 1/2 ||A Psi c - y||_2^2 + sum_j p_j(|c_j|)`.

    Not convex. `p_j'(t)` is `lam w_j` up to `t = lam w_j / ||a_j||^2`, falls in a straight line,
    and is 0 from `gamma lam w_j / ||a_j||^2` on. At unit columns it is the penalty of Fan and Li.

    Args:
        A: measurement operator (m, n), real.
        y: measurements (m,).
        lam: penalty, > 0; from `lam_max` on 0 is stationary.
        gamma: > 2.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, gamma not above 2, complex data.

    Example:
        >>> SCAD(np.eye(2), [3.0, 0.5], 1.0).gamma
        3.7

    Source: Fan, Li 2001, equation (2.7).
    """

    gamma: float = 3.7

    least: ClassVar[float] = 2.0

    def slope(self, c: Array) -> Array:
        """`min(lam w, (gamma lam w - |c| ||a||^2)_+ / (gamma - 1))`."""
        falling = np.maximum(self.gamma * self.slopes - np.abs(c) * self.curvatures, 0)
        return np.minimum(self.slopes, falling / (self.gamma - 1))

    def bend(self, c: Array) -> Array:
        """`-||a||^2 / (gamma - 1)` where the slope is between 0 and `lam w`."""
        slope = self.slope(c)
        falls = (slope > 0) & (slope < self.slopes)
        return np.where(falls, -self.curvatures / (self.gamma - 1), 0)

    def threshold(self, z: float, j: int) -> float:
        """A soft threshold, then a line, then nothing is taken off."""
        t, L, size = float(self.slopes[j]), float(self.curvatures[j]), abs(z)
        if size > self.gamma * t:
            return z / L
        if size > 2 * t:
            return (
                math.copysign(((self.gamma - 1) * size - self.gamma * t) / (self.gamma - 2), z) / L
            )
        return math.copysign(max(size - t, 0.0), z) / L

    def penalty_value(self, c: Array) -> float:
        """Its integral from 0."""
        t, L = self.slopes, self.curvatures
        one = np.divide(t, L, out=np.full_like(t, np.inf), where=L > 0)
        straight = np.minimum(np.abs(c), one)
        # beyond it, the slope falls by L / (gamma - 1) for each unit, for (gamma - 1) one at most
        bent = np.minimum(np.maximum(np.abs(c) - one, 0), (self.gamma - 1) * np.minimum(one, 1e300))
        return float((t * (straight + bent) - L / (self.gamma - 1) * bent**2 / 2).sum())
