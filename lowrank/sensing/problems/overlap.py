"""Groups that overlap, in the two meanings of the word."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.operator import Operator, as_operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.checks import (
    _checked_basis,
    _checked_weights,
    checked_number,
    index_sets,
)
from lowrank.sensing.problems.groups import GroupBPDN, GroupLasso

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _copies(parts: list[Array], size: int) -> tuple[csr_array, Array, Array]:
    """What copies each coefficient into all its groups, (q, size); their labels; the sizes."""
    sizes = np.array([part.size for part in parts])
    where, q = np.concatenate(parts), int(sizes.sum())
    D = csr_array((np.ones(q), (np.arange(q), where)), (q, size))
    return D, np.repeat(np.arange(sizes.size), sizes), sizes


@dataclass(frozen=True, eq=False, repr=False)
class OverlappingGroupLasso(Problem):
    """Sum of norms of overlapping groups: `min 1/2 ||A x - y||_2^2 + lam sum_g w_g ||x_g||_2`.

    What is zero is a union of groups, so that the support is the complement of one: groups that
    are intervals from either end leave an interval, say. For a support that is a union of groups
    take `latent_group_lasso`.

    Args:
        A: measurement operator (m, n); for a basis, `A @ Psi`.
        y: measurements (m,).
        lam: penalty, > 0.
        groups: indices of each group, a sequence of sequences; every coefficient is in one at
            least.
        weights: `w_g` (number of groups,), positive; None is sqrt(size of the group).

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, an empty group, an index out of
            range or twice in a group, a coefficient in no group.

    Example:
        >>> from lowrank.sensing import solve
        >>> problem = OverlappingGroupLasso(np.eye(3), [3.0, 0.1, 0.0], 0.1, [[0, 1], [1, 2]])
        >>> solve(problem).x.round(4).tolist()
        [2.8586, 0.0, 0.0]

    Source: Jenatton, Audibert, Bach 2011, equation (2).
    """

    lam: float
    groups: ArrayLike
    weights: ArrayLike | None = field(default=None, kw_only=True)

    def _check(self) -> None:
        self._set("lam", checked_number("lam", self.lam))
        if np.ndim(self.y) != 1:
            text = f"y has shape {np.shape(self.y)}"
            raise InputError("y", text, "overlapping groups take one signal at a time, (m,)")
        parts = index_sets(self.groups, self.n_unknowns)
        self._set("groups", parts)
        sizes = np.array([part.size for part in parts])
        weights = np.sqrt(sizes) if self.weights is None else self.weights
        self._set("weights", _checked_weights(weights, sizes.size))

    @cached_property
    def analysis(self) -> Operator | None:
        """What copies each coefficient into all its groups, (q, n)."""
        return as_operator(_copies(self._parts, self.n_unknowns)[0])

    @property
    def _parts(self) -> list[Array]:
        return list(self.groups)  # type: ignore[arg-type]

    @cached_property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @cached_property
    def penalty(self) -> terms.Penalty:
        """The sum of lengths, as a function of the copies."""
        labels = _copies(self._parts, self.n_unknowns)[1]
        return terms.Groups(labels, self.lam * np.asarray(self.weights)[:, None])

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam


def latent_group_lasso(
    A: MatrixLike,
    y: ArrayLike,
    groups: ArrayLike,
    *,
    lam: float | None = None,
    epsilon: float = 0.0,
    basis: MatrixLike | None = None,
    weights: ArrayLike | None = None,
    lower: ArrayLike = -np.inf,
    upper: ArrayLike = np.inf,
) -> GroupLasso | GroupBPDN:
    """Latent group LASSO, for supports that are unions of overlapping groups.

        min 1/2 ||A Psi sum_g v_g - y||_2^2 + lam sum_g w_g ||v_g||_2,   v_g zero outside of g

    That is the group LASSO with every coefficient copied into each of its groups. Without lam:
    `min sum_g w_g ||v_g||_2  subject to  ||A Psi sum_g v_g - y||_2 <= epsilon`. For a support that
    is what unions of groups leave, take `OverlappingGroupLasso`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        groups: indices of each group, a sequence of sequences; every coefficient is in one at
            least.
        lam: penalty, > 0; None is the constrained form.
        epsilon: bound on the residual norm, >= 0; 0 is exact. Unused with lam.
        basis: `Psi` (n, p); None is the identity.
        weights: `w_g` (number of groups,), positive; None is sqrt(size of the group).
        lower: 0 for parts that are >= 0, else -inf; a number, or one for each copy.
        upper: 0 for parts that are <= 0, else inf; likewise.

    Returns:
        The problem of the copies, (sum of sizes,): its answers have the signal in `x`, and the
        parts v_g, one after the other, in `coefficients`.

    Raises:
        InputError: as of `OverlappingGroupLasso`, `GroupLasso` and `GroupBPDN`.

    Example:
        >>> from lowrank.sensing import solve
        >>> problem = latent_group_lasso(np.eye(3), [3.0, 4.0, 0.0], [[0, 1], [1, 2]], lam=0.5**0.5)
        >>> solve(problem).x.round(6).tolist()
        [2.4, 3.2, 0.0]

    Source: Jacob, Obozinski, Vert 2009, equation (4) and section 4.
    """
    A = as_operator(A)
    Psi = None if basis is None else _checked_basis(basis, A.shape[1])
    parts = index_sets(groups, A.shape[1] if Psi is None else Psi.shape[1])
    D, labels, _ = _copies(parts, A.shape[1] if Psi is None else Psi.shape[1])
    summed = as_operator(D.T.tocsr())
    summed = summed if Psi is None else Psi @ summed
    if lam is None:
        return GroupBPDN(
            A, y, epsilon, labels, basis=summed, weights=weights, lower=lower, upper=upper
        )
    return GroupLasso(A, y, lam, labels, basis=summed, weights=weights, lower=lower, upper=upper)
