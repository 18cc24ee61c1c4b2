"""Measurement operators `A`: dense or matrix-free, real or complex, with what is known of them.

Every operator is a `scipy.sparse.linalg.LinearOperator`, so `A @ x`, `A.H @ y` and SciPy's
iterative methods work on it. Signals of more than one dimension are flattened in C order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import irfft, rfft

from lowrank.errors import InputError
from lowrank.sensing.facts import Facts
from lowrank.sensing.operators.algebra import for_real_signals
from lowrank.sensing.operators.arrays import (
    Array,
    Map,
    MatrixLike,
    as_double,
    is_torch,
    to_numpy,
    to_tensor,
)
from lowrank.sensing.operators.convolution import circular_convolution, toeplitz
from lowrank.sensing.operators.masks import radial_mask, variable_density_mask
from lowrank.sensing.operators.operator import (
    Operator,
    adjoint_error,
    as_length,
    as_operator,
    as_shape,
    from_functions,
    from_matrix,
)
from lowrank.sensing.operators.random import gaussian, rademacher, sparse_binary
from lowrank.sensing.operators.subsampled import (
    _partial,
    _roots,
    partial_dct,
    partial_fourier,
    partial_hadamard,
    random_convolution,
    sampling,
)

__all__ = [
    "Array",
    "Facts",
    "Map",
    "MatrixLike",
    "Operator",
    "adjoint_error",
    "as_double",
    "as_length",
    "as_operator",
    "as_shape",
    "circular_convolution",
    "diagonal",
    "for_real_signals",
    "from_functions",
    "from_matrix",
    "gaussian",
    "is_torch",
    "partial_dct",
    "partial_fourier",
    "partial_hadamard",
    "rademacher",
    "radial_mask",
    "random_convolution",
    "sampling",
    "sparse_binary",
    "to_numpy",
    "to_tensor",
    "toeplitz",
    "variable_density_mask",
]


def _picture(shape: Any) -> tuple[int, int]:
    size = as_shape(shape)
    if len(size) != 2:
        raise InputError("shape", f"{size} is of no picture", "pass (rows, columns)")
    return size[0], size[1]


def _convolution_rows(n: int, spectrum: Array, kept: Array) -> Operator:
    """Samples of the convolution with a pulse whose spectrum has modulus 1."""

    def filtered(x: Array, response: Array) -> Array:
        gains = response.reshape(-1, *(1,) * (x.ndim - 1))
        if np.iscomplexobj(x):
            return filtered(x.real, response) + 1j * filtered(x.imag, response)
        return np.asarray(irfft(gains * rfft(x, axis=0), n, axis=0))

    def column_norms() -> Array:
        energy = irfft(spectrum, n) ** 2  # of the pulse, at each shift that is kept
        kept_at = np.bincount(kept, minlength=n).astype(float)
        return _roots(irfft(rfft(kept_at) * rfft(energy).conj(), n))

    return _partial(
        n,
        kept,
        float,
        lambda x: filtered(x, spectrum),
        lambda y: filtered(y, spectrum.conj()),
        "random convolution",
        column_norms,
        partial(_convolution_rows, n, spectrum, kept),
    )


def diagonal(values: ArrayLike) -> Operator:
    """The diagonal matrix of these values, `x -> values * x`, matrix-free.

    `diagonal(1 / std) @ A` weighs measurements by their accuracy; `A @ diagonal(1 / norms)` has
    columns of other lengths.

    Args:
        values: (n,), real or complex.

    Raises:
        InputError: values of another form, or with NaN or Inf.

    Example:
        >>> diagonal([1.0, 2.0]) @ np.array([3.0, 4.0])
        array([3., 8.])
    """
    d = as_double(to_numpy(values), "values")
    if d.ndim != 1 or d.size == 0:
        raise InputError("values", f"shape {d.shape} is no diagonal", "pass (n,)")

    def like(x: Array) -> Array:
        return d.reshape(-1, *(1,) * (x.ndim - 1))

    return Operator(
        (d.size, d.size),
        d.dtype,
        lambda x: like(x) * x,
        lambda y: like(y).conj() * y,
        name="diagonal",
        facts=Facts(diagonal=d),
        recipe=partial(diagonal, d),
    )


def _window_sums(values: Array, first: Array, size: int) -> Array:
    """`sum values[i : i + size]` for i in `first`, by additions alone, so that none cancel."""
    padded = np.zeros(-(-values.size // size) * size)
    padded[: values.size] = values
    blocks = padded.reshape(-1, size)
    to_the_end = np.cumsum(blocks[:, ::-1], axis=1)[:, ::-1].ravel()
    from_the_start = np.cumsum(blocks, axis=1).ravel()
    whole = to_the_end[first]
    return np.where(first % size, whole + from_the_start[first + size - 1], whole)
