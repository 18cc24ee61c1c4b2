"""Sparsity under an analysis operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.bases import finite_differences
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.operator import Operator, as_operator
from lowrank.sensing.problems.base import _AnalysisProblem
from lowrank.sensing.problems.checks import checked_number

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False, repr=False)
class Analysis(_AnalysisProblem):
    """Analysis-L1 and TV: `min ||D x||_1  subject to  ||A x - y||_2 <= epsilon`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        D: analysis operator (q, n), such as `bases.finite_differences(shape)`.
        epsilon: bound on the residual norm, >= 0.
        components: d > 1 sums the length of the d components `(D x).reshape(d, q/d)` at each
            point, `||D x||_{2,1}`: isotropic TV. 1 is the plain L1 norm: anisotropic.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative epsilon.

    Example:
        >>> Analysis(np.eye(3), np.ones(3), np.array([[-1.0, 1, 0], [0, -1, 1]])).components
        1

    Source: Rudin, Osher, Fatemi 1992; Elad, Milanfar, Rubinstein 2007, equation (2).
    """

    epsilon: float = 0.0
    components: int = 1

    floor_share: ClassVar[float] = 1e-5

    def _check(self) -> None:
        self._set("epsilon", checked_number("epsilon", self.epsilon, zero=True))
        self._set("D", _checked_analysis(self.A, self.D, self.components))
        _single_signal(self.y)

    @cached_property
    def loss(self) -> terms.Loss:
        """`||M c - b||_2 <= epsilon`."""
        return terms.Ball(self.epsilon)

    @cached_property
    def penalty(self) -> terms.Penalty:
        """The sum of lengths, as a function of `D x`."""
        return _lengths(self.D, self.components, 1.0)

    @property
    def residual_bound(self) -> float | None:
        """`epsilon`."""
        return self.epsilon

    @cached_property
    def gap_floor(self) -> Array:
        """A share of what `||D x||` would be of a signal without any structure."""
        size = float(np.linalg.norm(np.asarray(self.y))) / (self.operator.norm() or 1.0)
        return np.array([self.floor_share * size * cast(Operator, self.D).norm()])


@dataclass(frozen=True, eq=False, repr=False)
class AnalysisLasso(_AnalysisProblem):
    """Penalised analysis-L1 and TV: `min 1/2 ||A x - y||_2^2 + lam ||D x||_1`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        D: analysis operator (q, n), such as `bases.finite_differences(shape)`.
        lam: penalty, > 0.
        components: d > 1 sums the length of the d components `(D x).reshape(d, q/d)` at each
            point, `||D x||_{2,1}`: isotropic TV. 1 is the plain L1 norm: anisotropic.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive.

    Example:
        >>> AnalysisLasso(np.eye(3), np.ones(3), np.eye(3), 0.1).lam
        0.1

    Source: Rudin, Osher, Fatemi 1992; Elad, Milanfar, Rubinstein 2007, equation (3).
    """

    lam: float
    components: int = 1

    floor_share: ClassVar[float] = 1e-6

    def _check(self) -> None:
        self._set("lam", checked_number("lam", self.lam))
        self._set("D", _checked_analysis(self.A, self.D, self.components))
        _single_signal(self.y)

    @cached_property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @cached_property
    def penalty(self) -> terms.Penalty:
        """The sum of lengths, as a function of `D x`."""
        return _lengths(self.D, self.components, self.lam)

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam


def total_variation(
    A: MatrixLike,
    y: ArrayLike,
    shape: int | Sequence[int],
    *,
    epsilon: float = 0.0,
    lam: float | None = None,
    isotropic: bool = True,
) -> Analysis | AnalysisLasso:
    """Total variation of a signal or picture: `min TV(x)  subject to  ||A x - y||_2 <= epsilon`.

    With `lam`: `min 1/2 ||A x - y||_2^2 + lam TV(x)`. The differences do not wrap around.

    Args:
        A: measurement operator (m, n), n the product of the shape.
        y: measurements (m,).
        shape: length, or (rows, columns, ...), of the signal.
        epsilon: bound on the residual norm; unused with lam.
        lam: penalty, > 0; None is the constrained form.
        isotropic: length of the gradient at each point; else the sum of its components.

    Raises:
        InputError: wrong shapes, NaN or Inf, negative epsilon, lam not positive.

    Example:
        >>> total_variation(np.eye(6), np.ones(6), (2, 3)).components
        2

    Source: Rudin, Osher, Fatemi 1992; Candes, Romberg, Tao 2006 for the constrained form.
    """
    D = finite_differences(shape)
    components = D.shape[0] // D.shape[1] if isotropic else 1
    if lam is None:
        return Analysis(A, y, D, epsilon, components)
    return AnalysisLasso(A, y, D, lam, components)


def _checked_analysis(A: Operator, D: MatrixLike, components: int) -> Operator:
    analysis = as_operator(D)
    if analysis.shape[1] != A.shape[1]:
        problem = f"D has {analysis.shape[1]} columns and A has {A.shape[1]}"
        raise InputError("D", problem, "both act on the signal")
    whole = isinstance(components, int | np.integer) and not isinstance(components, bool)
    if not whole or components < 1 or analysis.shape[0] % components:
        problem = f"{components} does not divide the {analysis.shape[0]} rows of D"
        raise InputError("components", problem, "pass 1, or the dimension of the picture")
    return analysis


def _lengths(D: Operator, components: int, weight: float) -> terms.Groups:
    n_groups = D.shape[0] // components
    return terms.Groups(np.tile(np.arange(n_groups), components), np.full((n_groups, 1), weight))


def _single_signal(y: ArrayLike) -> None:
    if np.ndim(y) != 1:
        problem = f"y has shape {np.shape(y)}"
        raise InputError("y", problem, "analysis problems take one signal at a time, (m,)")
