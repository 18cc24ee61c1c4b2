"""Problems that are not convex, or no optimisation at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import _InBasis
from lowrank.sensing.problems.checks import checked_number


@dataclass(frozen=True, eq=False, repr=False)
class OneBit(_InBasis):
    """1-bit measurements: `max <y, A Psi c>  subject to  ||c||_2 <= 1, ||c||_1 <= radius`.

    The length of the signal is lost in `y = sign(A x)`; the answer has length 1.

    Args:
        A: measurement operator (m, n), real.
        y: signs (m,) or (m, batch), each -1 or 1; some may be flipped.
        radius: bound on the L1 norm, >= 1; sqrt(k) for a k-sparse signal of length 1.
        basis: `Psi` (n, p); None is the identity.

    Raises:
        InputError: wrong shapes, NaN or Inf, y not of signs, complex A, radius below 1.

    Example:
        >>> OneBit(np.eye(3), [1, -1, 1], 1.5).radius
        1.5

    Source: Plan, Vershynin 2013, equation (1.4).
    """

    radius: float

    def _check(self) -> None:
        super()._check()
        self._set("radius", checked_number("radius", self.radius))
        if self.is_complex or not np.isin(self.y, (-1, 1)).all():
            if zeros := int(np.count_nonzero(np.asarray(self.y) == 0)):
                text = f"{zeros} values are 0, and not all values are -1 or 1"
                advice = "leave those rows out, or give 0 a side: np.where(measurements < 0, -1, 1)"
                raise InputError("y", text, advice)
            raise InputError("y", "not all values are -1 or 1", "pass np.sign(measurements), real")
        if self.radius < 1:
            raise InputError("radius", f"{self.radius} is below 1", "pass sqrt(k) for sparsity k")

    @cached_property
    def loss(self) -> terms.Loss:
        """`-<y, M c>`."""
        return terms.Correlation(np.asarray(self.y).reshape(len(np.asarray(self.y)), -1))

    @property
    def penalty(self) -> terms.Penalty:
        """`||c||_2 <= 1` and `||c||_1 <= radius`."""
        return terms.UnitL1Ball(self.radius)

    @cached_property
    def target(self) -> Array:
        """0."""
        return np.zeros_like(np.asarray(self.y))

    @property
    def only_dual(self) -> Array | None:
        """y."""
        return np.asarray(self.y)

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """None: the answer has length 1."""
        return iter(())


@dataclass(frozen=True, eq=False, repr=False)
class KSparse(_InBasis):
    """k-sparse least squares: `min ||A Psi c - y||_2  subject to  ||c||_0 <= k`. Not convex.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        k: largest number of non-zeros of each column, 1 .. min(m, p).
        basis: `Psi` (n, p); None is the identity.

    Raises:
        InputError: wrong shapes, NaN or Inf, k outside 1 .. min(m, p).

    Example:
        >>> KSparse(np.eye(3), np.ones(3), 2).k
        2

    Source: Mallat, Zhang 1993; Tropp, Gilbert 2007.
    """

    k: int

    convex: ClassVar[bool] = False

    asked_by: ClassVar[str] = "sparsity="

    def _check(self) -> None:
        super()._check()
        limit = min(self.operator.shape)
        number = np.ndim(self.k) == 0 and np.asarray(self.k).dtype.kind != "b"
        whole = number and int(self.k) == self.k
        if not whole or not 1 <= self.k <= limit:
            problem = f"{self.k} is outside 1..{limit} for A of shape {self.operator.shape}"
            raise InputError("sparsity", problem, "lower it or measure more")
        self._set("k", int(self.k))


@dataclass(frozen=True, eq=False, repr=False)
class BestSubset(KSparse):
    """Best subset: `min 1/2 ||A Psi c - y||_2^2 + ridge/2 ||c||_2^2  subject to  ||c||_0 <= k`.

    Not convex, and yet proven: a branch and bound gives a lower bound of the minimum. The gap is
    relative to `1/2 ||y||^2`, and so says how much more of y another subset may explain.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        k: largest number of non-zeros, 1 .. min(m, p).
        basis: `Psi` (n, p); None is the identity.
        ridge: penalty of the squares, >= 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, k outside 1 .. min(m, p), a negative ridge.

    Example:
        >>> BestSubset(np.eye(3), np.ones(3), 2).k
        2

    Source: Bertsimas, King, Mazumder 2016, equation (1.1).
    """

    ridge: float = field(default=0.0, kw_only=True)

    floor_share: ClassVar[float] = 1.0
    asked_by: ClassVar[str] = "sparsity= and exact=True"

    def _check(self) -> None:
        super()._check()
        self._set("ridge", checked_number("ridge", self.ridge, zero=True))

    def value(self, c: Array) -> float:
        """The objective; infinite with more than k non-zeros."""
        if np.count_nonzero(c) > self.k:
            return float(np.inf)
        r = self.operator.forward(c) - np.asarray(self.y)
        return float(np.vdot(r, r).real + self.ridge * np.vdot(c, c).real) / 2

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """None: the solver proves 0, too."""
        return iter(())


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorMean(_InBasis):
    """Bayes estimate `E[c | y]` for `y = A Psi c + e` under a sparse prior. Not convex.

    The coefficients are independent, each zero with an unknown probability and else Gaussian of
    unknown variance; e is white and Gaussian.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        noise_std: standard deviation of each measurement's noise, >= 0; None learns it.
        basis: `Psi` (n, p); None is the identity.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative noise.

    Example:
        >>> PosteriorMean(np.eye(3), np.ones(3), 0.1).noise_std
        0.1

    Source: Vila, Schniter 2013, section II; Tipping 2001 for sparse Bayesian learning.
    """

    noise_std: float | None = None

    convex: ClassVar[bool] = False

    def _check(self) -> None:
        super()._check()
        if self.noise_std is not None:
            self._set("noise_std", checked_number("noise_std", self.noise_std, zero=True))
