"""Coefficients that are zero together: groups of them, and rows of several signals."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.norms import Blocks, OneSided, SparseGroups
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import _InBasis
from lowrank.sensing.problems.checks import (
    _checked_labels,
    _checked_sides,
    _checked_weights,
    checked_number,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False, repr=False)
class _Structured(_InBasis):
    """A problem whose penalty is a norm of groups or rows, of either sign or one.

    `lower` and `upper` are 0 or infinite: with other bounds these norms have no proximal map in
    closed form, and no certificate here.
    """

    weights: ArrayLike | None = field(default=None, kw_only=True)
    lower: ArrayLike = field(default=-np.inf, kw_only=True)
    upper: ArrayLike = field(default=np.inf, kw_only=True)

    def _check(self) -> None:
        super()._check()
        sides = _checked_sides(self.lower, self.upper, self.n_unknowns, type(self).__name__)
        for name, side in zip(("lower", "upper"), sides, strict=True):
            self._set(name, side)
        if self.bounded and self.is_complex:
            problem = "bounds were given for complex coefficients, which have no order"
            raise InputError("lower, upper", problem, "leave them out, or pass real data")

    def norm(self, factor: float = 1.0) -> terms.Penalty:
        """The norm of the penalty, times this factor."""
        raise NotImplementedError

    def _sided(self, norm: terms.Penalty) -> terms.Penalty:
        if not self.bounded:
            return norm
        return OneSided(norm, np.asarray(self.lower)[:, None], np.asarray(self.upper)[:, None])

    @cached_property
    def penalty(self) -> terms.Penalty:
        """The norm, times lam where there is one, on the side that is allowed."""
        return self.norm(self.factor)

    @cached_property
    def lam_max(self) -> float:
        """Smallest lam at which the answer is 0 (for every signal), whatever `lam` is."""
        z = self.operator.adjoint(np.asarray(self.y)).reshape(self.n_unknowns, -1)
        return float(1 / self.norm().cap(z).min())

    @property
    def blocks(self) -> Blocks:
        """The penalty for lam = 1, as groups of rows of the coefficients."""
        raise NotImplementedError

    @cached_property
    def bounded(self) -> bool:
        """Whether any coefficient may not have either sign."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    @property
    def nonneg(self) -> bool:
        """Whether the bounds are exactly `c >= 0`."""
        return bool(np.all(self.lower == 0) and np.all(self.upper == np.inf))

    @property
    def box(self) -> tuple[Array, Array] | None:
        """`lower` and `upper`."""
        return (np.asarray(self.lower), np.asarray(self.upper)) if self.bounded else None


class _Penalised(_Structured):
    """Least squares and `lam` times the norm; what inherits declares lam."""

    lam: float

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))

    @cached_property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam


@dataclass(frozen=True, eq=False, repr=False)
class _Grouped(_Structured):
    """With groups that do not overlap; the field `groups` is the subclass's."""

    def _check(self) -> None:
        super()._check()
        index, sizes = _checked_labels(vars(self)["groups"], self.n_unknowns)
        self._set("groups", index)
        weights = np.sqrt(sizes) if self.weights is None else self.weights
        self._set("weights", _checked_weights(weights, sizes.size))

    def norm(self, factor: float = 1.0) -> terms.Penalty:
        """`sum_g w_g ||c_g||_2` within the bounds."""
        weights = factor * np.asarray(self.weights)[:, None]
        return self._sided(terms.Groups(vars(self)["groups"], weights))

    @property
    def blocks(self) -> Blocks:
        """The groups."""
        ends = np.asarray(self.lower), np.asarray(self.upper)
        labels = np.asarray(vars(self)["groups"])
        return Blocks(labels, np.asarray(self.weights), np.zeros(self.n_unknowns), *ends)


@dataclass(frozen=True, eq=False, repr=False)
class GroupLasso(_Penalised, _Grouped):
    """Group LASSO: `min 1/2 ||A Psi c - y||_2^2 + lam sum_g w_g ||c_g||_2`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: penalty, > 0; from `lam_max` on the answer is 0.
        groups: label of each coefficient's group, integers (p,); or the indices of each group, a
            sequence of sequences. Every coefficient is in one; those in several are for
            `OverlappingGroupLasso` and `latent_group_lasso`.
        basis: `Psi` (n, p); None is the identity.
        weights: `w_g` (number of groups,) in the order of the sorted labels, or of the sequences,
            positive; None is sqrt(size of the group).
        lower: 0 for coefficients that are >= 0, else -inf; a number or (p,).
        upper: 0 for coefficients that are <= 0, else inf; a number or (p,).

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, a coefficient in no group or in two,
            an empty group, bounds other than 0 and infinity, bounds on complex data.

    Example:
        >>> GroupLasso(np.eye(4), np.ones(4), 0.1, [0, 0, 1, 1]).weights
        array([1.41421356, 1.41421356])

    Source: Yuan, Lin 2006, equation (2.1).
    """

    lam: float
    groups: ArrayLike

    asked_by: ClassVar[str] = "groups= and lam="


@dataclass(frozen=True, eq=False, repr=False)
class GroupBPDN(_Grouped):
    """Group-sparse BPDN: `min sum_g w_g ||c_g||_2  subject to  ||A Psi c - y||_2 <= epsilon`.

    With `epsilon = 0` the measurements are exact: `A Psi c = y`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch); the bound holds for each column.
        epsilon: bound on the residual norm, >= 0, in the unit of y.
        groups: label of each coefficient's group, integers (p,); or the indices of each group.
        basis: `Psi` (n, p); None is the identity.
        weights: `w_g` (number of groups,), positive; None is sqrt(size of the group).
        lower: 0 for coefficients that are >= 0, else -inf; a number or (p,).
        upper: 0 for coefficients that are <= 0, else inf; a number or (p,).

    Raises:
        InputError: as of `GroupLasso`, or negative epsilon.

    Example:
        >>> from lowrank.sensing import solve
        >>> problem = GroupBPDN(np.eye(4), [3.0, 4.0, 0.0, 0.0], 1.0, [0, 0, 1, 1])
        >>> solve(problem).x.round(6).tolist()
        [2.4, 3.2, 0.0, 0.0]

    Source: Eldar, Mishali 2009, equation (30) for the exact form; van den Berg, Friedlander 2011,
        section 6.2, for the denoising one.
    """

    epsilon: float
    groups: ArrayLike

    asked_by: ClassVar[str] = "groups="

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
class SparseGroupLasso(_Penalised, _Grouped):
    """Sparse-group LASSO: few groups, and few coefficients in them.

    `min 1/2 ||A Psi c - y||_2^2 + lam ((1 - l1_share) sum_g w_g ||c_g||_2 + l1_share ||c||_1)`

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: penalty, > 0; from `lam_max` on the answer is 0.
        groups: label of each coefficient's group, integers (p,); or the indices of each group.
        l1_share: share of the L1 norm, in [0, 1]: 0 is the group LASSO, 1 the LASSO.
        basis: `Psi` (n, p); None is the identity.
        weights: `w_g` (number of groups,), positive; None is sqrt(size of the group).
        lower: 0 for coefficients that are >= 0, else -inf; a number or (p,).
        upper: 0 for coefficients that are <= 0, else inf; a number or (p,).

    Raises:
        InputError: as of `GroupLasso`, or l1_share outside [0, 1].

    Example:
        >>> from lowrank.sensing import solve
        >>> problem = SparseGroupLasso(np.eye(4), [3.0, 0.5, 0.0, 0.0], 1.0, [0, 0, 1, 1], 0.5)
        >>> solve(problem).x.round(6).tolist()
        [1.792893, 0.0, 0.0, 0.0]

    Source: Simon, Friedman, Hastie, Tibshirani 2013, equation (3), without its 1 / m.
    """

    lam: float
    groups: ArrayLike
    l1_share: float = 0.5

    def _check(self) -> None:
        super()._check()
        self._set("l1_share", checked_number("l1_share", self.l1_share, zero=True))
        if self.l1_share > 1:
            text = f"{self.l1_share} is outside [0, 1]"
            raise InputError("l1_share", text, "0 is the group LASSO, 1 the LASSO")

    def norm(self, factor: float = 1.0) -> terms.Penalty:
        """`(1 - l1_share) sum_g w_g ||c_g||_2 + l1_share ||c||_1` within the bounds."""
        weights = factor * (1 - self.l1_share) * np.asarray(self.weights)[:, None]
        slopes = np.full((self.n_unknowns, 1), factor * self.l1_share)
        return self._sided(SparseGroups(np.asarray(self.groups), weights, slopes))

    @property
    def blocks(self) -> Blocks:
        """The groups, and the slope of the L1 norm."""
        plain, slopes = super().blocks, np.full(self.n_unknowns, self.l1_share)
        return plain._replace(weights=(1 - self.l1_share) * plain.weights, slopes=slopes)


@dataclass(frozen=True, eq=False, repr=False)
class _Joint(_Structured):
    """Of several signals with the same support."""

    coupled: ClassVar[bool] = True

    def _check(self) -> None:
        super()._check()
        self._set("weights", _checked_weights(self.weights, self.n_unknowns))
        if np.ndim(self.y) != 2:
            problem = f"shape {np.shape(self.y)} is not (m, L)"
            raise InputError(
                "y", problem, "stack the signals' measurements as columns, or use Lasso or BPDN"
            )

    def norm(self, factor: float = 1.0) -> terms.Penalty:
        """`sum_i w_i ||C[i, :]||_2` within the bounds."""
        return self._sided(terms.Rows(factor * np.asarray(self.weights)[:, None]))

    @property
    def blocks(self) -> Blocks:
        """The rows."""
        p, ends = self.n_unknowns, (np.asarray(self.lower), np.asarray(self.upper))
        return Blocks(np.arange(p), np.asarray(self.weights), np.zeros(p), *ends)


@dataclass(frozen=True, eq=False, repr=False)
class JointSparse(_Penalised, _Joint):
    """Joint-sparse MMV: `min 1/2 ||A Psi C - Y||_F^2 + lam sum_i w_i ||C[i, :]||_2`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m, L) of L signals with the same support.
        lam: penalty, > 0; from `lam_max` on the answer is 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: 0 for rows that are >= 0, else -inf; a number or (p,).
        upper: 0 for rows that are <= 0, else inf; a number or (p,).

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, y not (m, L), bounds other than 0
            and infinity, bounds on complex data.

    Example:
        >>> JointSparse(np.eye(3), np.ones((3, 2)), 0.1).unknown_shape
        (3, 2)

    Source: Malioutov, Cetin, Willsky 2005, equation (16).
    """

    lam: float

    asked_by: ClassVar[str] = "joint=True and lam="


@dataclass(frozen=True, eq=False, repr=False)
class JointBPDN(_Joint):
    """Joint-sparse BPDN: `min sum_i w_i ||C[i, :]||_2  subject to  ||A Psi C - Y||_F <= epsilon`.

    With `epsilon = 0` the measurements are exact: `A Psi C = Y`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m, L) of L signals with the same support.
        epsilon: bound on the Frobenius norm of the residual, of all signals together, >= 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: 0 for rows that are >= 0, else -inf; a number or (p,).
        upper: 0 for rows that are <= 0, else inf; a number or (p,).

    Raises:
        InputError: as of `JointSparse`, or negative epsilon.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(JointBPDN(np.eye(2), [[3.0, 4.0], [0.0, 0.0]], 1.0)).x.round(6).tolist()
        [[2.4, 3.2], [0.0, 0.0]]

    Source: van den Berg, Friedlander 2010, section 1, for the exact form, and 2011, section 6.1,
        for the denoising one, `spg_mmv` of spgl1.
    """

    epsilon: float = 0.0

    asked_by: ClassVar[str] = "joint=True"

    def _check(self) -> None:
        super()._check()
        self._set("epsilon", checked_number("epsilon", self.epsilon, zero=True))

    @cached_property
    def loss(self) -> terms.Loss:
        """`||M C - B||_F <= epsilon`."""
        return terms.Ball(self.epsilon, joint=True)

    @property
    def residual_bound(self) -> float | None:
        """`epsilon`."""
        return self.epsilon
