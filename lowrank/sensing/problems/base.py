"""The formulations: what is minimised, and never how.

`A` (m, n) measures the signal `x` (n,) as `y` (m,); with a basis, `x = Psi c` and the problem is
stated for the coefficients `c` (p,), measured by `A Psi`. Without one, `c = x`. Each problem is
immutable and checks itself when it is made. `L1` norms of complex vectors sum the moduli.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

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


@dataclass(frozen=True, eq=False, repr=False)
class Problem:
    """What every formulation has: a measurement operator and the measurements.

    What solvers, certificate and verdict need to know of a formulation they ask it; the answers
    here are those of a problem that has nothing special.

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
    scale_free: ClassVar[bool] = False
    """Whether the problem for `S c`, S diagonal, is of the same form (with its own weights)."""
    floor_share: ClassVar[float] = 0.0
    """Share of `1/2 ||b||^2` that the gap is measured against at least: the minimum may be 0."""
    least_squares: ClassVar[bool] = True
    """Whether y is of the unit of `A x`, so that least squares make sense."""
    asked_by: ClassVar[str] = ""
    """What to give `recover` for it; empty where only `solve` takes it."""
    bounded: ClassVar[Any] = False
    """Whether any coefficient has a finite bound."""
    nonneg: ClassVar[Any] = False
    """Whether the bounds are exactly `c >= 0`."""
    weighted: ClassVar[Any] = False
    """Whether the weights differ from 1."""
    tensor_like: ClassVar[Any] = None
    """A tensor of the dtype and device that answers go back to; None for NumPy."""

    def __post_init__(self) -> None:
        self._set("tensor_like", next(filter(is_torch, (self.y, self.A)), None))
        self._set("A", as_operator(self.A))
        self._set("y", _checked_measurements(self.A, self.y))
        self._check()

    def _check(self) -> None:
        """Hook: what the formulation itself demands."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)  # frozen for users; fields are normalised once

    def __repr__(self) -> str:
        shown = [f"A {self.A.shape[0]} x {self.A.shape[1]}", f"y {np.shape(self.y)}"]
        for f in fields(self)[2:]:
            value = getattr(self, f.name)
            if isinstance(value, float | int | str) or value is None:
                shown += [f"{f.name}={value!r}"] * (value is not None)
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        kept = {f.name for f in fields(self)} | {"tensor_like"}
        return {name: value for name, value in self.__dict__.items() if name in kept}

    @cached_property
    def operator(self) -> Operator:
        """`A Psi`, what a solver works on; (m, p)."""
        return cast(Operator, self.A)

    @property
    def synthesis(self) -> Operator | None:
        """`Psi`, or None where the unknowns are the signal itself."""
        return None

    @property
    def analysis(self) -> Operator | None:
        """`D` of `min f(M c - b) + g(D c)`, or None where it is the identity."""
        return None

    @property
    def factor(self) -> float:
        """`lam` of `f(M c - b) + lam ||w c||`, or 1."""
        return 1.0

    @property
    def residual_bound(self) -> float | None:
        """What `||A Psi c - y||_2` may be at most, or None where nothing is demanded."""
        return None

    @property
    def box(self) -> tuple[Array, Array] | None:
        """Bounds of the coefficients, (p,) each, or None without."""
        return None

    @property
    def only_dual(self) -> Array | None:
        """The one feasible dual point, where the loss is linear."""
        return None

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """Coefficients that may be the optimum and are known beforehand, with their name."""
        yield np.zeros(self.unknown_shape, dtype=self.dtype), "0"

    def reweighted(self, weights: Array) -> Problem:
        """The problem with these weights of its L1 norm.

        Raises:
            InputError: it has none.
        """
        text = f"{type(self).__name__} has no weighted L1 norm"
        raise InputError("reweighted", text, "pass BasisPursuit, BPDN, Lasso or a sibling")

    def rescaled(self, A: Operator, S: Array) -> Problem:
        """The problem for `S c`, of the operator `A Psi S^-1`; only where `scale_free`."""
        raise NotImplementedError(f"{type(self).__name__} is not the same in scaled coefficients")

    def counting(self, count: Callable[[int], None]) -> Problem:
        """The same problem, whose operator reports the number of vectors of every product."""
        return self.with_operator(self.operator.counting(count))

    def with_operator(self, A: Operator) -> Problem:
        """The same problem, with another operator of the same matrix `A Psi`."""
        twin = copy.copy(self)  # of the fields alone: nothing derived holds the operator before
        twin.__dict__["operator"] = A
        return twin

    @property
    def loss(self) -> terms.Loss:
        """`f` of `min f(M c - b) + g(D c)`; convex problems have one."""
        raise NotImplementedError(f"{type(self).__name__} is not of the form f(M c - b) + g(c)")

    @property
    def penalty(self) -> terms.Penalty:
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
    def gap_floor(self) -> Array:
        """What a gap is measured against at least, (batch,): not 0 where the minimum may be 0."""
        if not self.floor_share:
            return np.zeros(1)
        sizes = np.linalg.norm(self.target.reshape(len(self.target), -1), axis=0)
        return np.asarray(self.floor_share * sizes**2 / 2)

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

    def objective(self, coefficients: Array) -> float:
        """What is minimised, where no certificate says it: `||A Psi c - y||_2`."""
        r = self.operator.forward(coefficients) - np.asarray(self.y)
        return float(np.linalg.norm(r))

    def stationarity(self, coefficients: Array) -> float | None:
        """How far a point is from stationary, where that is what a solver seeks; None elsewhere."""
        return None

    def level(self, coefficients: Array) -> float | None:
        """The intercept that goes with the coefficients; None where there is none."""
        return None

    def admissible(self, v: Array) -> Array:
        """A dual candidate (size, batch), moved to where the loss's conjugate may be finite."""
        return v

    def signal(self, coefficients: Array) -> Array:
        """The signal `x = Psi c`."""
        return coefficients if self.synthesis is None else self.synthesis.forward(coefficients)


@dataclass(frozen=True, eq=False, repr=False)
class _InBasis(Problem):
    """A problem stated for the coefficients in a basis `Psi` (n, p); None is the identity."""

    basis: MatrixLike | None = field(default=None, kw_only=True)

    def _check(self) -> None:
        if self.basis is not None:
            self._set("basis", _checked_basis(self.basis, self.A.shape[1]))

    @cached_property
    def operator(self) -> Operator:
        """`A Psi`, what a solver works on; (m, p)."""
        return self.A if self.basis is None else self.A @ self.basis

    @property
    def synthesis(self) -> Operator | None:
        """`Psi`."""
        return cast("Operator | None", self.basis)


@dataclass(frozen=True, eq=False, repr=False)
class _L1Problem(_InBasis):
    """Fields that the L1 formulations share.

    `weights` (p,) are positive and default to 1; `lower <= c <= upper` (scalars or (p,)) must
    contain 0 and need real data; `lower=0` is the non-negative version.
    """

    weights: ArrayLike | None = field(default=None, kw_only=True)
    lower: ArrayLike = field(default=-np.inf, kw_only=True)
    upper: ArrayLike = field(default=np.inf, kw_only=True)

    scale_free: ClassVar[bool] = True

    def _check(self) -> None:
        super()._check()
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
    def penalty(self) -> terms.Penalty:
        """`||w c||_1` within the bounds."""
        return self._l1()

    @property
    def box(self) -> tuple[Array, Array] | None:
        """`lower` and `upper`."""
        return (np.asarray(self.lower), np.asarray(self.upper)) if self.bounded else None

    def rescaled(self, A: Operator, S: Array) -> Problem:
        """The problem for `S c`, of the operator `A Psi S^-1`."""
        changed: dict[str, Any] = {"A": A, "basis": None, "weights": np.asarray(self.weights) / S}
        changed |= {"lower": np.asarray(self.lower) * S, "upper": np.asarray(self.upper) * S}
        return replace(self, **changed)

    def reweighted(self, weights: Array) -> Problem:
        """The problem with these weights."""
        return replace(self, weights=weights)

    @cached_property
    def _correlation(self) -> float:
        """Largest `|a_j^H y| / w_j`, over the coefficients that are free to move that way."""
        return self._strongest(np.asarray(self.y), self.correlations if self._has_matrix else None)

    @cached_property
    def correlations(self) -> Array:
        """`(A Psi)^H y`, of the coefficients' shape."""
        return self.operator.adjoint(np.asarray(self.y))

    @property
    def _has_matrix(self) -> bool:
        """Whether a vector of coefficients is little beside A, and may be kept."""
        return self.operator.is_dense or self.operator.sparse is not None

    def counting(self, count: Callable[[int], None]) -> Problem:
        """The same problem, whose operator reports its products; those with y are kept."""
        twin = super().counting(count)
        twin.__dict__.update({k: v for k, v in self.__dict__.items() if k == "correlations"})
        return twin

    def _strongest(self, v: Array, z: Array | None = None) -> float:
        """Largest `|a_j^H v| / w_j`, over the coefficients that are free to move that way; `z` is
        `(A Psi)^H v` where that is known.
        """
        z = (self.operator.adjoint(v) if z is None else z).reshape(self.n_unknowns, -1)
        if not self.bounded:
            size = np.abs(z)
        else:  # where c cannot move up, a positive correlation is no reason to
            up, down = np.asarray(self.upper) > 0, np.asarray(self.lower) < 0
            size = np.maximum(np.where(up[:, None], z, 0), np.where(down[:, None], -z, 0))
        return float((size / np.asarray(self.weights)[:, None]).max(initial=0.0))

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


@dataclass(frozen=True, eq=False, repr=False)
class _AnalysisProblem(Problem):
    """A problem of which `D x` is sparse."""

    D: MatrixLike

    @property
    def analysis(self) -> Operator | None:
        """`D`."""
        return cast(Operator, self.D)

    def simple_answers(self) -> Iterator[tuple[Array, str]]:
        """Zero, and the constant closest to the data, if its variation is 0.

        Its objective is 0, so a gap relative to the objective would never close on the way to it.
        """
        yield from super().simple_answers()
        one = np.ones(self.unknown_shape, dtype=self.dtype)
        if np.any(cast(Operator, self.D).forward(one)):
            return
        seen = self.operator.forward(one)
        size = np.vdot(seen, seen).real
        if size > 0:
            yield np.vdot(seen, np.asarray(self.y)) / size * one, "a constant"
