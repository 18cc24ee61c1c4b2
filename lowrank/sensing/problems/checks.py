"""What a problem's own fields may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.bases import by_name
from lowrank.sensing.operators.arrays import Array, MatrixLike, as_double, to_numpy
from lowrank.sensing.operators.operator import Operator, as_operator

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def _checked_basis(basis: MatrixLike, n: int) -> Operator:
    if isinstance(basis, str):
        return by_name(basis, n)
    try:
        found = as_operator(basis)
    except InputError as error:
        raise InputError("basis", error.problem, "pass bases.dct(n), or a matrix") from error
    if found.shape[0] != n:
        problem = f"A has {n} columns and the basis makes {found.shape[0]} samples"
        raise InputError("basis", problem, "use a basis of the signal's length")
    return found


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


def not_bool(where: str, values: Array) -> Array:
    """The values, which are numbers.

    Raises:
        InputError: they are truth values, which would count as 0 and 1.
    """
    if values.dtype.kind == "b":
        raise InputError(where, "bool is not a number", "pass numbers")
    return values


def _checked_weights(weights: ArrayLike | None, size: int) -> Array:
    if weights is None:
        return np.ones(size)
    values = as_double(not_bool("weights", to_numpy(weights)), "weights")
    if np.iscomplexobj(values) or values.shape not in ((), (size,)) or (values <= 0).any():
        problem = f"shape {values.shape}, minimum {values.real.min():.3g}, for {size} weights"
        raise InputError("weights", problem, "pass positive real numbers, one for each")
    return np.broadcast_to(values, (size,)).copy()


def _checked_bounds(lower: ArrayLike, upper: ArrayLike, size: int) -> tuple[Array, Array]:
    low = np.asarray(not_bool("lower", to_numpy(lower)), dtype=float)
    high = np.asarray(not_bool("upper", to_numpy(upper)), dtype=float)
    for where, bound in (("lower", low), ("upper", high)):
        if bound.shape not in ((), (size,)) or np.isnan(bound).any():
            problem = f"shape {bound.shape} for {size} coefficients, or NaN"
            raise InputError(where, problem, f"pass a number or ({size},)")
    if (low > 0).any() or (high < 0).any():
        problem = "the box does not contain 0, so no sparse answer is allowed"
        raise InputError("lower, upper", problem, "shift the signal so that 0 is inside")
    return np.broadcast_to(low, (size,)), np.broadcast_to(high, (size,))
