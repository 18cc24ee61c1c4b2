"""Convolutions as operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import numpy as np
from numpy.typing import ArrayLike
from scipy.fft import fft, fftn, ifft, ifftn, next_fast_len

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, as_double, as_length, as_shape, to_numpy
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import Operator


def circular_convolution(shape: int | Sequence[int], kernel: ArrayLike) -> Operator:
    """Convolution of a signal or picture with a real kernel, wrapping around; by FFT.

    Args:
        shape: length, or (rows, columns, ...), of the signal.
        kernel: of as many dimensions and no larger; its middle (`size // 2`) falls on the sample.

    Raises:
        InputError: a kernel of another dimension, larger than the signal, complex, or with NaN.

    Example:
        >>> (circular_convolution(4, [0.5, 0.5]) @ np.array([1.0, 0, 0, 0])).round(6)
        array([0.5, 0. , 0. , 0.5])
    """
    size = as_shape(shape)
    taps = as_double(to_numpy(kernel), "kernel")
    small = taps.ndim == len(size) and all(t <= s for t, s in zip(taps.shape, size, strict=True))
    if not small or np.iscomplexobj(taps):
        text = f"{taps.dtype} of shape {taps.shape} for a signal of shape {size}"
        raise InputError("kernel", text, "pass a real one, no larger than the signal")
    axes = tuple(range(len(size)))
    padded = np.zeros(size)
    padded[tuple(slice(t) for t in taps.shape)] = taps
    response = fftn(np.roll(padded, [-(t // 2) for t in taps.shape], axes))

    def filtered(x: Array, gains: Array) -> Array:
        picture = x.reshape(*size, *x.shape[1:])
        spread = gains.reshape(*size, *(1,) * (x.ndim - 1))
        out = ifftn(spread * fftn(picture, axes=axes), axes=axes).reshape(x.shape)
        return np.asarray(out if np.iscomplexobj(x) else out.real)

    n = prod(size)
    return Operator(
        (n, n),
        float,
        lambda x: filtered(x, response),
        lambda y: filtered(y, response.conj()),
        name="circular convolution",
        facts=Facts(
            norm=float(np.abs(response).max()),
            row_norms=lambda: np.full(n, np.linalg.norm(taps)),
            column_norms=lambda: np.full(n, np.linalg.norm(taps)),
            gram_spectrum=np.abs(response) ** 2,
            cogram_spectrum=np.abs(response) ** 2,
        ),
        recipe=partial(circular_convolution, size, taps),
    )


def toeplitz(
    m: int, n: int, *, seed: int | np.random.Generator | None = None, taps: ArrayLike | None = None
) -> Operator:
    """A Toeplitz matrix `A[i, j] = t[i - j + n - 1]`, applied by FFT.

    Args:
        m: measurements.
        n: unknowns.
        seed: integer or generator for N(0, 1/m) taps; or
        taps: t, (m + n - 1,), real or complex.

    Raises:
        InputError: neither or both of seed and taps, or taps of another length.

    Example:
        >>> toeplitz(2, 3, taps=[1.0, 2.0, 3.0, 4.0]).to_dense().round(6)
        array([[3., 2., 1.],
               [4., 3., 2.]])

    Source: Haupt, Bajwa, Raz, Nowak 2010 for random Toeplitz measurements.
    """
    if (seed is None) == (taps is None):
        raise InputError("toeplitz", "neither or both of seed and taps given", "give one of them")
    length = as_length(m, "m") + as_length(n) - 1
    t = (
        np.random.default_rng(seed).standard_normal(length) / np.sqrt(m)
        if taps is None
        else as_double(to_numpy(taps), "taps")
    )
    if t.shape != (length,):
        raise InputError("taps", f"shape {t.shape}", f"pass m + n - 1 = {length} of them")
    padded = next_fast_len(length)
    spectrum, is_complex = fft(t, padded), np.iscomplexobj(t)

    def apply(x: Array, gains: Array, start: int, size: int) -> Array:
        column = gains.reshape(-1, *(1,) * (x.ndim - 1))
        out = ifft(column * fft(x, padded, axis=0), axis=0)
        out = out[(start + np.arange(size)) % padded]
        return np.asarray(out if is_complex or np.iscomplexobj(x) else out.real)

    def lengths(first: Array, size: int) -> Array:
        """Of the windows of t that begin at `first`."""
        return np.sqrt(_window_sums(np.abs(t) ** 2, first, size))

    return Operator(
        (m, n),
        t.dtype,
        lambda x: apply(x, spectrum, n - 1, m),
        lambda y: apply(y, spectrum.conj(), 1 - n, n),
        name="Toeplitz",
        facts=Facts(
            row_norms=lambda: lengths(np.arange(m), n),
            column_norms=lambda: lengths(n - 1 - np.arange(n), m),
        ),
        recipe=partial(toeplitz, m, n, taps=t),
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
