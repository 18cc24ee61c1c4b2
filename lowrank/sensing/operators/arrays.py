"""Arrays of NumPy and torch as the operators take them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import InputError

Array: TypeAlias = NDArray[Any]


Map: TypeAlias = Callable[[Array], Array]


MatrixLike: TypeAlias = Any
"""An array (m, n), sparse matrix, LinearOperator (SciPy's, PyLops', ours), torch tensor or linear
layer, or Dask array."""


SMALLEST, LARGEST = 1e-140, 1e150
"""The largest value of data lies between these: squares of it and of its last digits are floats."""


def to_numpy(value: Any) -> Array:
    """An array, list or torch tensor (any device) as a NumPy array.

    Raises:
        InputError: a list whose rows differ in length.
    """
    if is_torch(value):
        if value.is_meta:
            raise InputError("data", "a tensor on the meta device holds no values", "pass data")
        return _from_tensor(value.detach().cpu().resolve_conj().resolve_neg())
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        text = f"{np.ma.count_masked(value)} of {value.size} values are masked"
        raise InputError("data", text, "leave those rows out, or fill them")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError("data", "rows of different lengths", "pass an array") from error


def _from_tensor(tensor: Any) -> Array:
    import torch

    dense = tensor if tensor.layout == torch.strided else tensor.to_dense()
    if dense.dtype == torch.complex32:
        dense = dense.to(torch.complex64)
    elif dense.is_floating_point() and dense.dtype not in (torch.float16, torch.float64):
        dense = dense.float()  # of NumPy's own types there is no bfloat16
    return np.asarray(dense.numpy())


def is_torch(value: Any) -> bool:
    """Whether the value is a torch tensor; does not import torch."""
    torch = sys.modules.get("torch")  # no tensor was made without it
    return torch is not None and isinstance(value, torch.Tensor)


def to_tensor(array: Array, like: Any) -> Any:
    """The array as a torch tensor of the device and precision of `like`; complex stays complex.

    Where `like` holds integers the precision is double, and of halves the complex type is single.
    """
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if like.is_floating_point() or like.is_complex():
        real = like.dtype.to_real()
        single = real not in (torch.float32, torch.float64)
        wide = torch.complex64 if single else real.to_complex()
        tensor = tensor.to(wide if tensor.is_complex() else real)
    return tensor.to(like.device)


def as_shape(*shape: Any) -> tuple[int, ...]:
    """The sides of a signal or picture, given as numbers or as one sequence of them.

    Raises:
        InputError: none, or not all are whole and at least 1.

    Example:
        >>> as_shape(8, 6), as_shape((8, 6)), as_shape(8)
        ((8, 6), (8, 6), (8,))
    """
    given = shape[0] if len(shape) == 1 else shape
    try:
        sides = np.atleast_1d(to_numpy(given))
    except InputError:  # such as (8, (8, 8))
        sides = np.zeros((0, 0))
    advice = "give one or more positive whole lengths, such as 64, or 8, 8, or (8, 8)"
    if sides.size == 0 or (sides.dtype.kind in "iu" and sides.min() < 1):
        raise InputError("shape", f"{given!r} has no samples", advice)
    if sides.ndim != 1 or sides.dtype.kind not in "iu":
        raise InputError("shape", f"{given!r} is no shape", advice)
    return tuple(map(int, sides))


def as_length(n: Any, where: str = "n") -> int:
    """A positive whole number of samples.

    Raises:
        InputError: it is none.

    Example:
        >>> as_length(np.int64(8))
        8
    """
    whole = isinstance(n, int | np.integer) and not isinstance(n, bool)
    if not whole or n < 1:
        raise InputError(where, f"{n!r} is no positive whole number", "pass a length, such as 64")
    return int(n)


def as_double(array: Array, where: str) -> Array:
    """The array in float64 or complex128.

    Raises:
        InputError: not numeric, with NaN or Inf, or so large or small that squares leave the range.
    """
    if array.dtype.kind not in "biufc":
        raise InputError(where, f"dtype {array.dtype} is not numeric", "pass real or complex data")
    double = array.astype(np.result_type(array.dtype, np.float64), copy=False)
    flat = double.ravel(order="K")
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        squares = abs(np.dot(flat, flat))  # one pass, which settles all but extreme and bad data
    if not SMALLEST**2 <= squares <= LARGEST**2:
        _check_range(double, where)
    return double


def _check_range(double: Array, where: str) -> None:
    if not np.isfinite(double).all():
        bad = int((~np.isfinite(double)).sum())
        raise InputError(where, f"{bad} of {double.size} values are NaN or Inf", "clean the data")
    largest = float(np.abs(double).max(initial=0.0))
    if largest and not SMALLEST <= largest <= LARGEST:
        over = "over" if largest > 1 else "under"
        text = f"values up to {largest:.1e}, whose squares {over}flow"
        raise InputError(where, text, f"rescale {where}")
