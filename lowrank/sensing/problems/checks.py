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


def _checked_sides(lower: ArrayLike, upper: ArrayLike, size: int, kind: str) -> tuple[Array, Array]:
    """Bounds that are 0 or infinite, (size,) each."""
    sides = _checked_bounds(lower, upper, size)
    if any((np.isfinite(side) & (side != 0)).any() for side in sides):
        text = f"a bound is neither 0 nor infinite, and {kind} takes signs alone"
        raise InputError("lower, upper", text, "pass lower=0 for c >= 0, or bound a Lasso")
    return sides


def _checked_labels(groups: ArrayLike, size: int) -> tuple[Array, Array]:
    """The group of each coefficient, 0, 1, ..., and the sizes, of labels or of sets of indices."""
    try:
        labels = np.asarray(groups)
    except ValueError:  # of different lengths
        labels = np.empty((0, 0))
    if labels.ndim == 1 and labels.dtype.kind not in "O":
        return _numbered(labels, size)
    parts = index_sets(groups, size)
    found = np.full(size, -1)
    for number, part in enumerate(parts):
        if (twice := part[found[part] >= 0]).size:
            text = f"coefficient {twice[0]} is in group {found[twice[0]]} and in group {number}"
            advice = "take OverlappingGroupLasso or latent_group_lasso for groups that overlap"
            raise InputError("groups", text, advice)
        found[part] = number
    return found, np.array([part.size for part in parts])


def _numbered(labels: Array, size: int) -> tuple[Array, Array]:
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        text = f"coefficient {int(np.flatnonzero(np.isnan(labels))[0])} has the label NaN"
        raise InputError("groups", text, "give one integer label per coefficient")
    if labels.shape != (size,) or labels.dtype.kind not in "iu":
        problem = f"{labels.dtype} of shape {labels.shape} for {size} coefficients"
        raise InputError("groups", problem, "give one integer label per coefficient")
    _, index, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return index, sizes


def index_sets(groups: ArrayLike, size: int) -> list[Array]:
    """Sets of indices that cover all coefficients, and may overlap.

    Raises:
        InputError: indices that are no integers, outside of the coefficients or twice in a group,
            an empty group, or a coefficient in none.
    """
    advice = f"pass a sequence of sets of indices in 0..{size - 1}, as [[0, 1], [1, 2]]"
    if not isinstance(groups, list | tuple | np.ndarray):
        raise InputError("groups", f"{type(groups).__name__} is no sequence of groups", advice)
    parts: list[Array] = []
    for number, group in enumerate(groups):
        part = np.asarray(sorted(group) if isinstance(group, set | frozenset | range) else group)
        if part.size == 0:
            raise InputError("groups", f"group {number} is empty", "leave it out")
        if part.ndim != 1 or part.dtype.kind not in "iu":
            text = f"group {number} is {part.dtype} of shape {part.shape}, and no list of indices"
            raise InputError("groups", text, advice)
        if part.min() < 0 or part.max() >= size:
            text = f"group {number} has the index {part[(part < 0) | (part >= size)][0]}"
            raise InputError("groups", text, f"indices are 0..{size - 1}")
        if np.unique(part).size < part.size:
            raise InputError("groups", f"group {number} has an index twice", "leave it in once")
        parts.append(part)
    missed = np.setdiff1d(np.arange(size), np.concatenate([np.empty(0, int), *parts]))
    if missed.size:
        text = f"coefficient {missed[0]} is in no group ({missed.size} are not)"
        raise InputError("groups", text, "give it one of its own, [[...], [j]]")
    return parts
