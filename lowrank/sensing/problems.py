"""The formulations: what is minimised, and never how.

`A` (m, n) measures the signal `x` (n,) as `y` (m,); with a basis, `x = Psi c` and the problem is
stated for the coefficients `c` (p,), measured by `A Psi`. Without one, `c = x`. Each problem is
immutable and checks itself when it is made. `L1` norms of complex vectors sum the moduli.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing import terms
from lowrank.sensing.operators import (
    Array,
    MatrixLike,
    Operator,
    as_double,
    as_operator,
    is_torch,
    to_numpy,
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
        twin = copy.copy(self)  # of the fields alone: nothing derived holds the uncounted operator
        twin.__dict__["operator"] = self.operator.counting(count)
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
        return coefficients if self.synthesis is None else self.synthesis.forward(coefficients)


@dataclass(frozen=True, eq=False, repr=False)
class _InBasis(Problem):
    """A problem stated for the coefficients in a basis `Psi` (n, p); None is the identity."""

    basis: MatrixLike | None = field(default=None, kw_only=True)

    def _check(self) -> None:
        if self.basis is not None:
            self._set("basis", _checked_basis(self.basis))

    @cached_property
    def operator(self) -> Operator:
        """`A Psi`, what a solver works on; (m, p)."""
        return self.A if self.basis is None else self.A.compose(self.basis)

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
        z = self.operator.adjoint(np.asarray(self.y)).reshape(self.n_unknowns, -1)
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

    @property
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

    @property
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

    @property
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

    @property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @property
    def penalty(self) -> terms.Penalty:
        """`||w c||_1 <= tau`."""
        return terms.L1Ball(self.tau, np.asarray(self.weights)[:, None], self.nonneg)


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

    @property
    def loss(self) -> terms.Loss:
        """`||M c - b||_inf <= lam`."""
        return terms.BallInf(self.lam)

    @cached_property
    def design(self) -> Operator:
        """The Gram operator `M = (A Psi)^H A Psi`, (p, p)."""
        return self.operator.H.compose(self.operator)

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

    @property
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

    @property
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

    @property
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


@dataclass(frozen=True, eq=False, repr=False)
class GroupLasso(_InBasis):
    """Group LASSO: `min 1/2 ||A Psi c - y||_2^2 + lam sum_g w_g ||c_g||_2`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,) or (m, batch).
        lam: penalty, > 0.
        groups: label of each coefficient's group, integers (p,); every coefficient has one.
        basis: `Psi` (n, p); None is the identity.
        weights: `w_g` (number of groups,) in the order of the sorted labels, positive;
            None is sqrt(size of the group).

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive.

    Example:
        >>> GroupLasso(np.eye(4), np.ones(4), 0.1, [0, 0, 1, 1]).weights
        array([1.41421356, 1.41421356])

    Source: Yuan, Lin 2006, equation (2.1).
    """

    lam: float
    groups: ArrayLike
    weights: ArrayLike | None = field(default=None, kw_only=True)

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))
        labels = np.asarray(self.groups)
        if labels.shape != (self.n_unknowns,) or labels.dtype.kind not in "iu":
            problem = f"{labels.dtype} of shape {labels.shape} for {self.n_unknowns} coefficients"
            raise InputError("groups", problem, "give one integer label per coefficient")
        _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        self._set("groups", index)
        weights = np.sqrt(sizes) if self.weights is None else self.weights
        self._set("weights", _checked_weights(weights, sizes.size))

    @property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @cached_property
    def penalty(self) -> terms.Penalty:
        """`lam sum_g w_g ||c_g||_2`."""
        return terms.Groups(np.asarray(self.groups), self.lam * np.asarray(self.weights)[:, None])

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam

    @cached_property
    def lam_max(self) -> float:
        """Smallest lam at which the answer is 0 (for every signal), whatever `lam` is."""
        z = self.operator.adjoint(np.asarray(self.y)).reshape(self.n_unknowns, -1)
        unit = terms.Groups(np.asarray(self.groups), np.asarray(self.weights)[:, None])
        return float((unit.lengths(z) / unit.weights).max(initial=0.0))


@dataclass(frozen=True, eq=False, repr=False)
class JointSparse(_InBasis):
    """Joint-sparse MMV: `min 1/2 ||A Psi C - Y||_F^2 + lam sum_i w_i ||C[i, :]||_2`.

    Args:
        A: measurement operator (m, n).
        y: measurements (m, L) of L signals with the same support.
        lam: penalty, > 0.
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.

    Raises:
        InputError: wrong shapes, NaN or Inf, lam not positive, y not (m, L).

    Example:
        >>> JointSparse(np.eye(3), np.ones((3, 2)), 0.1).unknown_shape
        (3, 2)

    Source: Malioutov, Cetin, Willsky 2005, equation (16).
    """

    lam: float
    weights: ArrayLike | None = field(default=None, kw_only=True)

    coupled: ClassVar[bool] = True

    def _check(self) -> None:
        super()._check()
        self._set("lam", checked_number("lam", self.lam))
        self._set("weights", _checked_weights(self.weights, self.n_unknowns))
        if np.ndim(self.y) != 2:
            problem = f"shape {np.shape(self.y)} is not (m, L)"
            raise InputError(
                "y", problem, "stack the signals' measurements as columns, or use Lasso"
            )

    @property
    def loss(self) -> terms.Loss:
        """`1/2 ||M c - b||_2^2`."""
        return terms.HalfSquare()

    @property
    def penalty(self) -> terms.Penalty:
        """`lam sum_i w_i ||C[i, :]||_2`."""
        return terms.Rows(self.lam * np.asarray(self.weights)[:, None])

    @property
    def factor(self) -> float:
        """`lam`."""
        return self.lam


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

    def _check(self) -> None:
        self._set("epsilon", checked_number("epsilon", self.epsilon, zero=True))
        self._set("D", _checked_analysis(self.A, self.D, self.components))
        _single_signal(self.y)

    @property
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

    floor_share: ClassVar[float] = 1e-8

    def _check(self) -> None:
        self._set("lam", checked_number("lam", self.lam))
        self._set("D", _checked_analysis(self.A, self.D, self.components))
        _single_signal(self.y)

    @property
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
            raise InputError("y", "not all values are -1 or 1", "pass np.sign(measurements), real")
        if self.radius < 1:
            raise InputError("radius", f"{self.radius} is below 1", "pass sqrt(k) for sparsity k")

    @property
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
        whole = np.ndim(self.k) == 0 and not isinstance(self.k, bool) and int(self.k) == self.k
        if not whole or not 1 <= self.k <= limit:
            problem = f"{self.k} is outside 1..{limit} for A of shape {self.operator.shape}"
            raise InputError("sparsity", problem, "lower it or measure more")
        self._set("k", int(self.k))


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
    from lowrank.sensing.bases import finite_differences

    D = finite_differences(shape)
    components = D.shape[0] // D.shape[1] if isotropic else 1
    if lam is None:
        return Analysis(A, y, D, epsilon, components)
    return AnalysisLasso(A, y, D, lam, components)


def _checked_basis(basis: MatrixLike) -> Operator:
    try:
        return as_operator(basis)
    except InputError as error:
        raise InputError("basis", error.problem, "pass bases.dct(n), or a matrix") from error


def _checked_measurements(A: Operator, y: ArrayLike) -> Array:
    values = as_double(to_numpy(y), "y")
    m = A.shape[0]
    if values.ndim not in (1, 2) or values.shape[0] != m or values.size == 0:
        problem = f"y has shape {values.shape} and A has {m} rows"
        raise InputError("y", problem, f"pass ({m},), or ({m}, batch) for several signals")
    return values


def checked_number(where: str, value: Any, *, zero: bool = False) -> float:
    """The value as a finite float, positive or, if allowed, zero.

    Raises:
        InputError: it is not.
    """
    try:
        if np.asarray(value).dtype.kind == "b":  # which float() would take for 0 or 1
            raise TypeError
        number = float(value)
    except (TypeError, ValueError) as error:
        text = f"{type(value).__name__} is not a number"
        raise InputError(where, text, "pass one number") from error
    if not np.isfinite(number) or number < 0 or (number == 0 and not zero):
        allowed = "zero or positive" if zero else "positive"
        raise InputError(where, f"{value} is not {allowed} and finite", "pass such a number")
    return number


def _checked_weights(weights: ArrayLike | None, size: int) -> Array:
    if weights is None:
        return np.ones(size)
    values = as_double(_not_bool("weights", to_numpy(weights)), "weights")
    if np.iscomplexobj(values) or values.shape not in ((), (size,)) or (values <= 0).any():
        problem = f"shape {values.shape}, minimum {values.real.min():.3g}, for {size} weights"
        raise InputError("weights", problem, "pass positive real numbers, one for each")
    return np.broadcast_to(values, (size,)).copy()


def _not_bool(where: str, values: Array) -> Array:
    if values.dtype.kind == "b":
        raise InputError(where, "bool is not a number", "pass numbers")
    return values


def _checked_bounds(lower: ArrayLike, upper: ArrayLike, size: int) -> tuple[Array, Array]:
    low = np.asarray(_not_bool("lower", to_numpy(lower)), dtype=float)
    high = np.asarray(_not_bool("upper", to_numpy(upper)), dtype=float)
    for where, bound in (("lower", low), ("upper", high)):
        if bound.shape not in ((), (size,)) or np.isnan(bound).any():
            problem = f"shape {bound.shape} for {size} coefficients, or NaN"
            raise InputError(where, problem, f"pass a number or ({size},)")
    if (low > 0).any() or (high < 0).any():
        problem = "the box does not contain 0, so no sparse answer is allowed"
        raise InputError("lower, upper", problem, "shift the signal so that 0 is inside")
    return np.broadcast_to(low, (size,)), np.broadcast_to(high, (size,))


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
