"""Sparse recovery by the l1 norm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import _L1Problem
from lowrank.sensing.problems.checks import checked_number

ROUNDED = 2e-8
"""Share of the largest `||A c|| ||y||` below which a relative gap of 1e-8 is rounding."""


MOST = 100.0
"""How much that may add: beyond it even 0 would pass for the answer."""


MANY = 2**10
"""Rows of a square matrix up to which singular values are asked, and as much work for others."""


@dataclass(frozen=True, eq=False, repr=False)
class BasisPursuit(_L1Problem):
    """Basis pursuit: `min ||w c||_1  subject to  A Psi c = y,  lower <= c <= upper`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0; 0 makes it non-negative basis pursuit.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, bounds on complex data.

    Example:
        >>> BasisPursuit([[1.0, 2.0]], [2.0]).n_unknowns
        2

    Source: Chen, Donoho, Saunders 1998, equation (1.3).
    """

    asked_by: ClassVar[str] = "neither noise nor lam"

    @cached_property
    def loss(self) -> terms.Loss:
        """`M c = b`."""
        return terms.Ball(0.0)

    @property
    def residual_bound(self) -> float | None:
        """0."""
        return 0.0


@dataclass(frozen=True, eq=False, repr=False)
class BPDN(_L1Problem):
    """Basis pursuit denoising: `min ||w c||_1  subject to  ||A Psi c - y||_2 <= epsilon`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch); the bound holds for each column.
        epsilon: bound on the residual norm, >= 0 (0 is basis pursuit).
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative epsilon, bounds on complex data.

    Example:
        >>> BPDN([[1.0, 2.0]], [2.0], 0.1).epsilon
        0.1

    Source: van den Berg, Friedlander 2008, equation (BP_sigma).
    """

    epsilon: float

    asked_by: ClassVar[str] = "noise="

    def _check(self) -> None:
        super()._check()
        self._set("epsilon", checked_number("epsilon", self.epsilon, zero=True))

    @cached_property
    def loss(self) -> terms.Loss:
        """`||M c - b||_2 <= epsilon`."""
        return terms.Ball(self.epsilon)

    @property
    def residual_bound(self) -> float | None:
        """`epsilon`."""
        return self.epsilon


@dataclass(frozen=True, eq=False, repr=False)
class Lasso(_L1Problem):
    """Penalised LASSO: `min 1/2 ||A Psi c - y||_2^2 + lam ||w c||_1`.

    scikit-learn's `alpha` is `lam / m`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: penalty, > 0; from `max |A^H y|` on the answer is 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, bounds on complex data.

    Example:
        >>> Lasso([[1.0, 2.0]], [2.0], 0.1).lam
        0.1

    Source: Tibshirani 1996, in the form of Chen, Donoho, Saunders 1998, equation (5.1).
    """

    lam: float

    asked_by: ClassVar[str] = "lam= or lam_fraction="

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))

    @cached_property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @cached_property
    def penalty(self) -> terms.Penalty:
        """`lam ||w c||_1` within the bounds."""
        return self._l1(self.lam)

    @cached_property
    def lam_max(self) -> float:
        """Smallest lam at which the answer is 0 (for every signal), whatever `lam` is."""
        return self._correlation

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """Zero, from `lam_max` on."""
        if self.lam >= self.lam_max * (1 - 1e-9):
            yield from super().simple_answers()

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam


@dataclass(frozen=True, eq=False, repr=False)
class ConstrainedLasso(_L1Problem):
    """Constrained LASSO: `min 1/2 ||A Psi c - y||_2^2  subject to  ||w c||_1 <= tau`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch); the bound holds for each column.
        tau: bound on the L1 norm, >= 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, 0 or -inf (non-negative or free).
        upper: must stay inf.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative tau, bounds other than c >= 0.

    Example:
        >>> ConstrainedLasso([[1.0, 2.0]], [2.0], 0.5).tau
        0.5

    Source: Tibshirani 1996, equation (1).
    """

    tau: float

    floor_share: ClassVar[float] = 1.0

    def _check(self) -> None:
        super()._check()
        self._set("tau", checked_number("tau", self.tau, zero=True))
        if self.bounded and not self.nonneg:
            problem = "only c >= 0 can join the bound on the L1 norm"
            raise InputError("lower, upper", problem, "pass lower=0, or use Lasso for boxes")

    @cached_property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @property
    def gap_floor(self) -> Array:
        """`1/2 ||y||^2`; where tau is 1e7 times what y asks for, the share of the largest
        `||A c|| ||y||` below which rounding hides all differences, at most `MOST` times as much.
        """
        least = super().gap_floor
        return np.clip(ROUNDED * self._slope * self.reach * self._sizes, least, MOST * least)

    @cached_property
    def reach(self) -> float:
        """`tau`, or a smaller bound within which a minimum lies.

        One does in the space of the rows, where `||A c|| <= 2 ||y||`; so the smallest singular
        value that is not rounding tells.
        """
        (m, n), size = self.operator.shape, float(self._sizes.max(initial=0.0))
        near = not size or ROUNDED * self._slope * self.tau <= size / 2
        if near or not self.operator.is_dense or min(m, n) * m * n > MANY**3:
            return self.tau
        s = np.linalg.svd(np.asarray(self.operator.dense), compute_uv=False)
        s = s[s > 2 * max(m, n) * np.finfo(float).eps * s[0]]
        if not s.size or (self.nonneg and s.size < n):
            return self.tau
        weight = float(np.linalg.norm(np.broadcast_to(np.asarray(self.weights), n)))
        return min(self.tau, 4 * size * weight / float(s[-1]))

    @cached_property
    def _slope(self) -> float:
        A = self.operator
        norms = A.column_norms() if A.knows_column_norms else A.norm()
        return float((norms / np.asarray(self.weights)).max())

    @cached_property
    def _sizes(self) -> Array:
        return np.asarray(np.linalg.norm(self.target.reshape(len(self.target), -1), axis=0))

    @property
    def penalty(self) -> terms.Penalty:
        """`||w c||_1 <= tau`."""
        weights = np.asarray(self.weights)[:, None]
        return terms.L1Ball(self.tau, weights, self.nonneg, self.reach)


@dataclass(frozen=True, eq=False, repr=False)
class DantzigSelector(_L1Problem):
    """Dantzig selector: `min ||w c||_1  subject to  ||(A Psi)^H (A Psi c - y)||_inf <= lam`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: bound on the correlation of the residual with every column, >= 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative lam, bounds on complex data.

    Example:
        >>> DantzigSelector([[1.0, 2.0]], [2.0], 0.1).lam
        0.1

    Source: Candes, Tao 2007, equation (1.7).
    """

    lam: float

    scale_free: ClassVar[bool] = False

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam, zero=True))

    @cached_property
    def loss(self) -> terms.Loss:
        """`||M c - b||_inf <= lam`."""
        return terms.BallInf(self.lam)

    @cached_property
    def design(self) -> Operator:
        """The Gram operator `M = (A Psi)^H A Psi`, (p, p)."""
        return self.operator.H @ self.operator

    @cached_property
    def target(self) -> Array:
        """`b = (A Psi)^H y`."""
        return self.operator.adjoint(np.asarray(self.y))


@dataclass(frozen=True, eq=False, repr=False)
class ElasticNet(_L1Problem):
    """Elastic net: `min 1/2 ||A Psi c - y||_2^2 + lam ||w c||_1 + ridge/2 ||c||_2^2`.

    scikit-learn's `alpha` and `l1_ratio` are `lam = m alpha l1_ratio` and
    `ridge = m alpha (1 - l1_ratio)`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: L1 penalty, > 0.
        ridge: squared penalty, > 0 (0 is `Lasso`).
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, a penalty not positive, bounds on complex data.

    Example:
        >>> ElasticNet([[1.0, 2.0]], [2.0], 0.1, 0.01).ridge
        0.01

    Source: Zou, Hastie 2005, equation (3).
    """

    lam: float
    ridge: float

    scale_free: ClassVar[bool] = False

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))
        self._set("ridge", checked_number("ridge", self.ridge))

    @cached_property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @property
    def penalty(self) -> terms.Penalty:
        """`lam ||w c||_1 + ridge/2 ||c||^2` within the bounds."""
        return self._l1(self.lam, self.ridge)

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam

    @cached_property
    def lam_max(self) -> float:
        """Smallest lam at which the answer is 0 (for every signal), whatever lam and ridge are."""
        return self._correlation


@dataclass(frozen=True, eq=False, repr=False)
class SqrtLasso(_L1Problem):
    """Square-root LASSO: `min ||A Psi c - y||_2 + lam ||w c||_1`.

    The right lam does not depend on the noise level.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: penalty, > 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, bounds on complex data.

    Example:
        >>> SqrtLasso([[1.0, 2.0]], [2.0], 0.1).lam
        0.1

    Source: Belloni, Chernozhukov, Wang 2011, equation (3), with lam in place of lam / n.
    """

    lam: float

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))

    @cached_property
    def loss(self) -> terms.Loss:
        """`||M c - b||_2`."""
        return terms.Norm2()

    @property
    def penalty(self) -> terms.Penalty:
        """`lam ||w c||_1` within the bounds."""
        return self._l1(self.lam)

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam


@dataclass(frozen=True, eq=False, repr=False)
class L1Fit(_L1Problem):
    """L1 data fit, for outliers: `min ||A Psi c - y||_1 + lam ||w c||_1`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch), a few of them grossly wrong.
        lam: penalty, > 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, bounds on complex data.

    Example:
        >>> L1Fit([[1.0, 2.0]], [2.0], 0.1).lam
        0.1

    Source: Wright, Ma 2010, equation (3), in penalised form.
    """

    lam: float

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))

    @cached_property
    def loss(self) -> terms.Loss:
        """`||M c - b||_1`."""
        return terms.Norm1()

    @property
    def penalty(self) -> terms.Penalty:
        """`lam ||w c||_1` within the bounds."""
        return self._l1(self.lam)

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam
