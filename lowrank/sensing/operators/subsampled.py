"""Rows of a fast transform as measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.fft import dct, fftn, idct, ifftn, irfft, rfft
from scipy.linalg import hadamard

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, Map, as_length, as_shape, to_numpy
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import Operator


def partial_dct(
    n: int,
    *,
    rows: ArrayLike | None = None,
    m: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> Operator:
    """Rows of the orthonormal DCT-II of length n, matrix-free; `A A^T = I`.

    Args:
        n: length of the signal.
        rows: indices of the rows kept; or
        m: how many to draw, with
        seed: integer or generator.

    Raises:
        InputError: rows repeated or out of range, or neither rows nor m and seed.

    Example:
        >>> A = partial_dct(64, m=16, seed=0)
        >>> A.shape, A.row_orthonormal, bool(np.allclose(A @ (A.H @ np.ones(16)), 1))
        ((16, 64), True, True)

    Source: Candes, Romberg, Tao 2006 for row-subsampled orthonormal transforms.
    """
    kept = _rows(as_length(n), rows, m, seed)
    return _partial(
        n,
        kept,
        float,
        lambda x: np.asarray(dct(x, axis=0, norm="ortho")),
        lambda y: np.asarray(idct(y, axis=0, norm="ortho")),
        "partial DCT",
        lambda: _dct_column_norms(n, kept),
        partial(partial_dct, n, rows=kept),
    )


def _dct_column_norms(n: int, rows: Array) -> Array:
    """Column norms of DCT rows, by one inverse DCT: `2 cos^2 t = 1 + cos 2t` doubles frequencies.

    Frequency 2k beyond n folds back to 2n - 2k with the opposite sign.
    """
    weights = np.zeros(n)
    doubled = 2 * rows[rows > 0]
    np.add.at(weights, np.where(doubled < n, doubled, 2 * n - doubled) % n, np.sign(n - doubled))
    cosines = idct(weights * np.where(np.arange(n) > 0, np.sqrt(n / 2), 0.0), norm="ortho")
    return _roots((rows.size + cosines) / n)


def _roots(squares: Array) -> Array:
    """Square roots of sums that are at most 1; what is only rounding is 0."""
    return np.sqrt(np.where(squares > 1e-14, squares, 0.0))


def partial_hadamard(
    n: int,
    *,
    rows: ArrayLike | None = None,
    m: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> Operator:
    """Rows of the orthonormal Walsh-Hadamard matrix of size n = 2^j, matrix-free; `A A^T = I`.

    Args:
        n: length of the signal, a power of 2.
        rows: indices (natural order) of the rows kept; or
        m: how many to draw, with
        seed: integer or generator.

    Raises:
        InputError: n not a power of 2, rows repeated or out of range, or neither rows nor m and
            seed.

    Example:
        >>> A = partial_hadamard(64, m=16, seed=0)
        >>> bool(np.allclose(A.column_norms(), 0.5))
        True

    Source: fast transform as in Fino, Algazi 1976.
    """
    if as_length(n) & (n - 1):
        raise InputError("n", f"{n} is not a power of 2", "pad the signal, or take partial_dct")
    kept = _rows(n, rows, m, seed)
    flat = lambda: np.full(n, np.sqrt(kept.size / n))  # noqa: E731
    again = partial(partial_hadamard, n, rows=kept)
    return _partial(n, kept, float, _hadamard, _hadamard, "partial Hadamard", flat, again)


def _hadamard(x: Array) -> Array:
    """The orthonormal Walsh-Hadamard transform along axis 0, in blocks of 64 on BLAS."""
    shape, left = x.shape, x.shape[0]
    out, done = x, 1
    while left > 1:
        size = min(left, 64)
        blocks = out.reshape(left // size, size, -1)  # (outer, factor, already done x batch)
        out = np.matmul(hadamard(size) / np.sqrt(size), blocks)
        out = out.reshape(left // size, size * done, -1)
        left, done = left // size, done * size
        out = out.reshape(left, done, -1)
    return out.reshape(shape)


def partial_fourier(
    *shape: int | Sequence[int],
    mask: ArrayLike | None = None,
    m: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> Operator:
    """Samples of the unitary Fourier transform of a signal or picture, matrix-free; `A A^H = I`.

    Frequencies are in the order of `numpy.fft` (zero first); masks for pictures are made by
    `variable_density_mask` and `radial_mask`.

    Args:
        shape: length of the signal, or rows, columns, ... of the picture; or a tuple of them.
        mask: booleans of that shape, true where measured; or
        m: how many frequencies to draw, with
        seed: integer or generator.

    Raises:
        InputError: a mask of another shape or of nothing, or neither mask nor m and seed.

    Example:
        >>> A = partial_fourier((8, 8), m=20, seed=0)
        >>> A.shape, A.row_orthonormal, A.is_complex
        ((20, 64), True, True)

    Source: Candes, Romberg, Tao 2006; Lustig, Donoho, Pauly 2007.
    """
    size = as_shape(*shape)
    n, axes = prod(size), tuple(range(len(size)))
    if mask is None:
        kept = _rows(n, None, m, seed)
    else:
        chosen = np.asarray(mask, dtype=bool)
        if chosen.shape != size or not chosen.any():
            text = f"shape {chosen.shape} with {int(chosen.sum())} samples, for {size}"
            raise InputError("mask", text, "pass booleans of the signal's shape, some of them true")
        kept = np.flatnonzero(chosen)
    measured = np.bincount(kept, minlength=n).astype(float).reshape(size)

    def transform(x: Array) -> Array:
        return np.asarray(fftn(x.reshape(*size, *x.shape[1:]), axes=axes, norm="ortho"))

    def inverse(y: Array) -> Array:
        return np.asarray(ifftn(y.reshape(*size, *y.shape[1:]), axes=axes, norm="ortho"))

    return _partial(
        n,
        kept,
        complex,
        lambda x: transform(x).reshape(x.shape),
        lambda y: inverse(y).reshape(y.shape),
        "partial Fourier",
        lambda: np.full(n, np.sqrt(kept.size / n)),
        partial(partial_fourier, size, mask=measured > 0),
        gram_spectrum=measured,
    )


def random_convolution(
    n: int, *, seed: int | np.random.Generator, m: int | None = None, rows: ArrayLike | None = None
) -> Operator:
    """Convolution with a random-phase pulse, subsampled; matrix-free, `A A^T = I`.

    The pulse has a flat spectrum, so the full convolution is orthogonal, and the measurement is as
    incoherent with any basis as Gaussian rows nearly are.

    Args:
        n: length of the signal.
        seed: integer or generator.
        m: how many samples of the convolution to draw; or
        rows: which to keep.

    Raises:
        InputError: rows repeated or out of range, or neither m nor rows.

    Example:
        >>> A = random_convolution(64, m=16, seed=0)
        >>> bool(np.allclose(A @ (A.H @ np.ones(16)), 1))
        True

    Source: Romberg 2009, section 1.2.
    """
    rng, n = np.random.default_rng(seed), as_length(n)
    spectrum = np.exp(2j * np.pi * rng.random(n // 2 + 1))
    spectrum[0] = np.sign(spectrum[0].real)
    if n % 2 == 0:
        spectrum[-1] = np.sign(spectrum[-1].real)
    return _convolution_rows(n, spectrum, _rows(n, rows, m, rng))


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


def sampling(shape: int | Sequence[int], rows: ArrayLike) -> Operator:
    """The samples at some places, `x -> x[rows]`, matrix-free; `A A^T = I`.

    Args:
        shape: length n of the signal, or (rows, columns, ...) of the picture, flattened in C order.
        rows: indices of the samples in 0 .. n - 1, or booleans of the shape or (n,).

    Raises:
        InputError: indices repeated or out of range.

    Example:
        >>> sampling(4, [0, 3]) @ np.array([1.0, 2.0, 3.0, 4.0])
        array([1., 4.])
    """
    size, chosen = as_shape(shape), to_numpy(rows)
    if chosen.dtype == bool and chosen.shape == size:
        chosen = chosen.ravel()
    n = prod(size)
    kept = _rows(n, chosen, None, None)
    column_norms = lambda: np.bincount(kept, minlength=n).astype(float)  # noqa: E731
    again = partial(sampling, n, kept)
    return _partial(n, kept, float, lambda x: x, lambda x: x, "sampling", column_norms, again)


def _partial(
    n: int,
    rows: Array,
    dtype: DTypeLike,
    transform: Map,
    inverse: Map,
    name: str,
    column_norms: Callable[[], Array],
    recipe: Callable[[], Operator],
    gram_spectrum: Array | None = None,
) -> Operator:
    """Rows of a unitary transform."""

    def adjoint(y: Array) -> Array:
        full = np.zeros((n, *y.shape[1:]), dtype=np.result_type(y, np.float32))
        full[rows] = y
        return inverse(full)

    return Operator(
        (rows.size, n),
        dtype,
        lambda x: transform(x)[rows],
        adjoint,
        name=name,
        facts=Facts(row_gram=1.0, column_norms=column_norms, gram_spectrum=gram_spectrum),
        recipe=recipe,
    )


def _rows(
    n: int, rows: ArrayLike | None, m: int | None, seed: int | np.random.Generator | None
) -> Array:
    if rows is None:
        if m is None or seed is None or not 1 <= m <= n:
            text = f"m={m}, seed={seed} for {n} rows"
            raise InputError("rows", text, "give the rows, or 1 <= m <= n and a seed")
        return np.sort(np.random.default_rng(seed).choice(n, m, replace=False))
    kept = to_numpy(rows)
    if kept.dtype.kind not in "biu" and kept.size:
        advice = f"give distinct indices in 0..{n - 1}"
        raise InputError("rows", f"{kept.dtype} numbers are no indices", advice)
    kept = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(int)
    distinct = np.unique(kept).size == kept.size
    if kept.ndim != 1 or kept.size == 0 or not distinct or kept.min() < 0 or kept.max() >= n:
        raise InputError("rows", f"{kept.size} indices", f"give distinct indices in 0..{n - 1}")
    return kept
