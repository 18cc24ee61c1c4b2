"""Losses beside least squares with an l1 penalty: classes, counts, outliers, quantiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import losses, terms
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import _L1Problem
from lowrank.sensing.problems.checks import checked_number


@dataclass(frozen=True, eq=False, repr=False)
class _LossProblem(_L1Problem):
    """`min f(A Psi c, y) + lam ||w c||_1` for one real signal."""

    lam: float
    intercept: bool = field(default=False, kw_only=True)

    floor_share: ClassVar[float] = 1e-8

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))
        if not isinstance(self.intercept, bool):
            text = f"{self.intercept!r} is neither True nor False"
            raise InputError("intercept", text, "pass one of them; the answer holds its value")
        kind = type(self).__name__
        if np.ndim(self.y) != 1:
            text = f"shape {np.shape(self.y)}, and {kind} takes one signal at a time"
            raise InputError("y", text, "pass a column of it")
        if self.is_complex:
            raise InputError("A, y", f"complex, and {kind} is of real data", "pass real data")

    @property
    def plain_loss(self) -> terms.Loss:
        """f, with the intercept given."""
        raise NotImplementedError

    @cached_property
    def loss(self) -> terms.Loss:
        """f, or what is left of it where the intercept is minimised over."""
        return losses.WithIntercept(self.plain_loss) if self.intercept else self.plain_loss

    @property
    def gap_floor(self) -> Array:
        """A share of the loss at 0 without intercept, and of a unit a row where it has no unit."""
        rows = 0 if self.plain_loss.has_unit else self.target.size
        return self.floor_share * (self.plain_loss.value(-self.target[:, None]) + rows)

    def level(self, coefficients: Array) -> float | None:
        """The intercept that goes with the coefficients."""
        if not self.intercept:
            return None
        r = self.operator.forward(coefficients) - self.target
        return float(losses.WithIntercept(self.plain_loss).level(r[:, None])[0])

    def admissible(self, v: Array) -> Array:
        """v, summing to 0 where there is an intercept."""
        return losses.balanced(v) if self.intercept else v

    @cached_property
    def penalty(self) -> terms.Penalty:
        """`lam ||w c||_1` within the bounds."""
        return self._l1(self.lam)

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam

    @cached_property
    def lam_max(self) -> float:
        """Smallest lam at which the answer is 0, whatever `lam` is."""
        return self._strongest(-self.loss.subgradient(-self.target[:, None])[:, 0])

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """Zero, from `lam_max` on."""
        if self.lam >= self.lam_max * (1 - 1e-9):
            yield from super().simple_answers()


@dataclass(frozen=True, eq=False, repr=False)
class LogisticLasso(_LossProblem):
    """Sparse logistic regression: `min sum_i log(1 + exp(-y_i (A Psi c)_i)) + lam ||w c||_1`.

    scikit-learn's `C` is `1 / lam`.

    Args:
        A: measurement operator (m, n), real.
        y: labels (m,), each -1 or 1.
        lam: penalty, > 0; from `lam_max` on the answer is 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.
        intercept: whether a constant, without penalty, is added to `A Psi c`; `Recovery.intercept`.

    Raises:
        InputError: wrong shapes, NaN or Inf, labels other than -1 and 1, lam not positive, complex
            data.

    Example:
        >>> LogisticLasso(np.eye(2), [1, -1], 0.1).lam_max
        0.5

    Source: Shevade, Keerthi 2003, equation (2).
    """

    least_squares: ClassVar[bool] = False

    def _check(self) -> None:
        super()._check()
        if not np.isin(self.y, (-1, 1)).all():
            text = "not all labels are -1 or 1"
            raise InputError("y", text, "pass 2 * y - 1 for labels 0 and 1")
        if self.intercept and np.ptp(np.asarray(self.y)) == 0:
            text = "all labels are alike, so that no intercept is large enough"
            raise InputError("y", text, "leave the intercept out, or bring some of the other class")

    @cached_property
    def plain_loss(self) -> terms.Loss:
        """`sum log(1 + exp(-y M c))`."""
        return losses.Logistic(np.asarray(self.y, dtype=float)[:, None])

    @cached_property
    def target(self) -> Array:
        """0: the loss holds the labels."""
        return np.zeros(np.shape(self.y))


@dataclass(frozen=True, eq=False, repr=False)
class PoissonLasso(_LossProblem):
    """Sparse regression of counts: half the Poisson deviance of `exp(A Psi c)` + `lam ||w c||_1`.

    `min sum_i exp(z_i) - y_i z_i + y_i log y_i - y_i + lam ||w c||_1` with `z = A Psi c`.

    Args:
        A: measurement operator (m, n), real.
        y: counts (m,), >= 0; they need not be whole.
        lam: penalty, > 0; from `lam_max` on the answer is 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.
        intercept: whether a constant, without penalty, is added to `A Psi c`; `Recovery.intercept`.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative counts, lam not positive, complex data.

    Example:
        >>> PoissonLasso(np.eye(2), [3, 0], 0.1).lam_max
        2.0

    Source: McCullagh, Nelder 1989, section 6.2, with the penalty of Tibshirani 1996.
    """

    least_squares: ClassVar[bool] = False

    def _check(self) -> None:
        super()._check()
        if (np.asarray(self.y) < 0).any():
            text = f"a count of {np.min(self.y):.3g} is negative"
            raise InputError("y", text, "pass counts from 0 on, or take HuberLasso")
        if self.intercept and not np.any(self.y):
            text = "all counts are 0, so that no intercept is low enough"
            raise InputError("y", text, "leave the intercept out")

    @cached_property
    def plain_loss(self) -> terms.Loss:
        """Half the deviance of `exp(M c)`."""
        return losses.Poisson(np.asarray(self.y, dtype=float)[:, None])

    @cached_property
    def target(self) -> Array:
        """0: the loss holds the counts."""
        return np.zeros(np.shape(self.y))


@dataclass(frozen=True, eq=False, repr=False)
class HuberLasso(_LossProblem):
    """Robust LASSO: `min sum_i h(r_i) + lam ||w c||_1` with `r = A Psi c - y`.

    `h(r) = r^2 / 2` for `|r| <= delta`, and `delta |r| - delta^2 / 2` beyond, so that a gross error
    pulls no harder than one of delta.

    Args:
        A: measurement operator (m, n), real.
        y: measurements (m,), some of them grossly wrong.
        lam: penalty, > 0; from `lam_max` on the answer is 0.
        delta: where moduli begin, > 0; about 1.35 standard deviations of the noise is usual.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.
        intercept: whether a constant, without penalty, is added to `A Psi c`; `Recovery.intercept`.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam or delta not positive, complex data.

    Example:
        >>> HuberLasso(np.eye(2), [9.0, 0.5], 0.1, delta=1.0).lam_max
        1.0

    Source: Huber 1964; Rosset, Zhu 2007, section 4, for the penalised form.
    """

    delta: float

    def _check(self) -> None:
        super()._check()
        self._set("delta", checked_number("delta", self.delta))

    @cached_property
    def plain_loss(self) -> terms.Loss:
        """`sum h(M c - b)`."""
        return losses.Huber(self.delta)


@dataclass(frozen=True, eq=False, repr=False)
class QuantileLasso(_LossProblem):
    """Sparse quantile regression: `min sum_i rho(y_i - (A Psi c)_i) + lam ||w c||_1`.

    `rho(r) = tau r` for `r >= 0` and `(tau - 1) r` below, so that about a share of tau of the data
    lies under the fit.

    Args:
        A: measurement operator (m, n), real.
        y: measurements (m,).
        lam: penalty, > 0.
        tau: quantile, in (0, 1); 0.5 is the median.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0.
        upper: upper bound of c, at least 0.
        intercept: whether a constant, without penalty, is added to `A Psi c`; `Recovery.intercept`.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, tau outside (0, 1), complex data.

    Example:
        >>> QuantileLasso(np.eye(2), [9.0, 0.5], 0.1, tau=0.9).tau
        0.9

    Source: Koenker, Bassett 1978; Belloni, Chernozhukov 2011, equation (2.5), for the penalty.
    """

    tau: float

    def _check(self) -> None:
        super()._check()
        self._set("tau", checked_number("tau", self.tau))
        if not self.tau < 1:
            raise InputError("tau", f"{self.tau} is outside (0, 1)", "0.5 is the median")

    @cached_property
    def plain_loss(self) -> terms.Loss:
        """`sum rho(b - M c)`."""
        return losses.Pinball(self.tau)
