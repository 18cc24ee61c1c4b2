"""The formulations: what is minimised, and never how.

`A` (m, n) measures the signal `x` (n,) as `y` (m,); with a basis, `x = Psi c` and the problem is
stated for the coefficients `c` (p,), measured by `A Psi`. Without one, `c = x`. Each problem is
immutable and checks itself when it is made. `L1` norms of complex vectors sum the moduli.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.operators.arrays import Array, MatrixLike, is_torch
from lowrank.sensing.operators.operator import Operator, as_operator
from lowrank.sensing.problems.checks import (
    _checked_basis,
    _checked_bounds,
    _checked_measurements,
    _checked_weights,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Problem:
    """What every formulation has: a measurement operator and the measurements.

    Args:
        A: array (m, n), sparse matrix, LinearOperator, `Operator` or torch tensor.
        y: (m,), or (m, batch) for several signals measured by the same A.

    Raises:
        InputError: wrong shapes, NaN or Inf, or complex data where real is needed.
    """

    A: MatrixLike
    y: ArrayLike

    convex: ClassVar[bool] = True
    coupled: ClassVar[bool] = False
    """Whether the columns of a batch share one penalty, and so are one problem."""
    tensor_like: ClassVar[Any] = None
    """A tensor of the dtype and device that answers go back to; None for NumPy."""

    def __post_init__(self) -> None:
        self._set("tensor_like", next(filter(is_torch, (self.y, self.A)), None))
        self._set("A", as_operator(self.A))
        self._set("y", _checked_measurements(self.A, self.y))
        if hasattr(self, "basis") and self.basis is not None:
            self._set("basis", _checked_basis(self.basis))
        self._check()

    def _check(self) -> None:
        """Hook: what the formulation itself demands."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for users; fields are normalised once

    @cached_property
    def operator(self) -> Operator:
        """`A Psi`, what a solver works on; (m, p)."""
        basis = getattr(self, "basis", None)
        return self.A if basis is None else self.A.compose(basis)

    @property
    def loss(self) -> terms.Loss:
        """`f` of `min f(M c - b) + g(D c)`; convex problems have one."""
        raise NotImplementedError(f"{type(self).__name__} is not of the form f(M c - b) + g(c)")

    @property
    def penalty(self) -> terms.Term:
        """`g` of `min f(M c - b) + g(D c)`; convex problems have one."""
        raise NotImplementedError(f"{type(self).__name__} is not of the form f(M c - b) + g(c)")

    @property
    def design(self) -> Operator:
        """`M` of `min f(M c - b) + g(D c)`: `A Psi`, except for the Dantzig selector."""
        return self.operator

    @property
    def target(self) -> Array:
        """`b` of `min f(M c - b) + g(D c)`: y, except for the Dantzig selector."""
        return np.asarray(self.y)

    @property
    def n_unknowns(self) -> int:
        """Number p of coefficients."""
        return int(self.operator.shape[1])

    @property
    def is_complex(self) -> bool:
        """Whether the coefficients are complex: A, Psi or y is."""
        return self.operator.is_complex or bool(np.iscomplexobj(self.y))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the coefficients: float64 or complex128."""
        return np.dtype(np.complex128 if self.is_complex else np.float64)

    @property
    def unknown_shape(self) -> tuple[int, ...]:
        """Shape of the coefficients: (p,) or (p, batch)."""
        return (self.n_unknowns, *np.shape(self.y)[1:])

    def signal(self, coefficients: Array) -> Array:
        """The signal `x = Psi c`."""
        basis = getattr(self, "basis", None)
        return coefficients if basis is None else basis.forward(coefficients)


@dataclass(frozen=True, eq=False)
class _L1Problem(Problem):
    """Fields that the L1 formulations share.

    `weights` (p,) are positive and default to 1; `lower <= c <= upper` (scalars or (p,)) must
    contain 0 and need real data; `lower=0` is the non-negative version.
    """

    basis: MatrixLike | None = field(default=None, kw_only=True)
    weights: ArrayLike | None = field(default=None, kw_only=True)
    lower: ArrayLike = field(default=-np.inf, kw_only=True)
    upper: ArrayLike = field(default=np.inf, kw_only=True)

    def _check(self) -> None:
        self._set("weights", _checked_weights(self.weights, self.n_unknowns))
        lower, upper = _checked_bounds(self.lower, self.upper, self.n_unknowns)
        self._set("lower", lower)
        self._set("upper", upper)
        if self.bounded and self.is_complex:
            problem = "bounds were given for complex coefficients, which have no order"
            raise InputError("lower, upper", problem, "leave them out, or pass real data")

    def _l1(self, factor: float = 1.0, ridge: float = 0.0) -> terms.L1:
        weights = factor * np.asarray(self.weights)[:, None]
        return terms.L1(
            weights, np.asarray(self.lower)[:, None], np.asarray(self.upper)[:, None], ridge
        )

    @cached_property
    def penalty(self) -> terms.Term:
        """`||w c||_1` within the bounds."""
        return self._l1()

    @cached_property
    def bounded(self) -> bool:
        """Whether any coefficient has a finite bound."""
        return bool(np.isfinite(self.lower).any() or np.isfinite(self.upper).any())

    @cached_property
    def nonneg(self) -> bool:
        """Whether the bounds are exactly `c >= 0`."""
        return bool(np.all(self.lower == 0) and np.all(self.upper == np.inf))

    @property
    def weighted(self) -> bool:
        """Whether the weights differ from 1."""
        return bool(np.any(np.asarray(self.weights) != 1))
