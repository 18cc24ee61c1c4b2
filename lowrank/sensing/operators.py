"""Measurement operators `A`: dense or matrix-free, real or complex, with what is known of them.

Every operator is a `scipy.sparse.linalg.LinearOperator`, so `A @ x`, `A.H @ y` and SciPy's
iterative methods work on it. Signals of more than one dimension are flattened in C order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.fft import (
    dct,
    fft,
    fftfreq,
    fftn,
    idct,
    ifft,
    ifftn,
    irfft,
    next_fast_len,
    rfft,
)
from scipy.linalg import hadamard
from scipy.sparse import coo_array

from lowrank.errors import InputError
from lowrank.sensing.operator import (
    Array,
    Map,
    MatrixLike,
    Operator,
    adjoint_error,
    as_double,
    as_operator,
    from_functions,
    from_matrix,
    is_torch,
    to_numpy,
    to_tensor,
)

__all__ = [
    "Array",
    "Map",
    "MatrixLike",
    "Operator",
    "adjoint_error",
    "as_double",
    "as_operator",
    "circular_convolution",
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


def gaussian(
    m: int, n: int, *, seed: int | np.random.Generator, dtype: DTypeLike = np.float64
) -> Operator:
    """A dense matrix of independent N(0, 1/m) entries (circular for complex dtypes).

    Args:
        m: measurements.
        n: unknowns.
        seed: integer or generator.
        dtype: real or complex.

    Example:
        >>> gaussian(20, 50, seed=0).shape
        (20, 50)
    """
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((m, n)) / np.sqrt(m)
    if np.issubdtype(dtype, np.complexfloating):
        matrix = (matrix + 1j * rng.standard_normal((m, n)) / np.sqrt(m)) / np.sqrt(2)
    return from_matrix(matrix)


def rademacher(m: int, n: int, *, seed: int | np.random.Generator) -> Operator:
    """A dense matrix of independent signs `+-1/sqrt(m)`; columns of length 1.

    Example:
        >>> bool(np.allclose(rademacher(20, 50, seed=0).column_norms(), 1))
        True
    """
    signs = np.random.default_rng(seed).integers(0, 2, (m, n)) * 2.0 - 1
    return from_matrix(signs / np.sqrt(m))


def sparse_binary(
    m: int, n: int, *, seed: int | np.random.Generator, ones: int | None = None
) -> Operator:
    """A sparse matrix with d entries `1/sqrt(d)` in each column, at random rows.

    Args:
        m: measurements.
        n: unknowns.
        seed: integer or generator.
        ones: d, 1 .. m; None is about the logarithm of n.

    Raises:
        InputError: d outside 1 .. m.

    Example:
        >>> sparse_binary(20, 50, seed=0, ones=4).to_dense().sum(axis=0)[:2]
        array([2., 2.])

    Source: Berinde, Gilbert, Indyk, Karloff, Strauss 2008 (adjacency of a left-regular graph).
    """
    d = min(m, max(2, round(np.log(n)))) if ones is None else ones
    if not 1 <= d <= m:
        raise InputError("ones", f"{d} is outside 1..{m}", "place at most m ones in a column")
    rng = np.random.default_rng(seed)
    rows = np.argpartition(rng.random((m, n)), d - 1, axis=0)[:d]  # d distinct rows per column
    values = np.full(d * n, 1 / np.sqrt(d))
    return from_matrix(coo_array((values, (rows.T.ravel(), np.repeat(np.arange(n), d))), (m, n)))


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
    kept = _rows(n, rows, m, seed)
    return _partial(
        n,
        kept,
        float,
        lambda x: np.asarray(dct(x, axis=0, norm="ortho")),
        lambda y: np.asarray(idct(y, axis=0, norm="ortho")),
        "partial DCT",
        lambda: _dct_column_norms(n, kept),
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
    if n < 1 or n & (n - 1):
        raise InputError("n", f"{n} is not a power of 2", "pad the signal, or take partial_dct")
    kept = _rows(n, rows, m, seed)
    flat = lambda: np.full(n, np.sqrt(kept.size / n))  # noqa: E731
    return _partial(n, kept, float, _hadamard, _hadamard, "partial Hadamard", flat)


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
    shape: int | Sequence[int],
    *,
    mask: ArrayLike | None = None,
    m: int | None = None,
    seed: int | np.random.Generator | None = None,
) -> Operator:
    """Samples of the unitary Fourier transform of a signal or picture, matrix-free; `A A^H = I`.

    Frequencies are in the order of `numpy.fft` (zero first); masks for pictures are made by
    `variable_density_mask` and `radial_mask`.

    Args:
        shape: length, or (rows, columns, ...), of the signal.
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
    size = (int(shape),) if isinstance(shape, int | np.integer) else tuple(map(int, shape))
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
        gram_spectrum=measured,
    )


def variable_density_mask(
    shape: tuple[int, ...], m: int, *, seed: int | np.random.Generator, power: float = 3.0
) -> Array:
    """m frequencies drawn without repetition, with density falling as `(1 - |f|)^power`.

    Args:
        shape: of the picture.
        m: number of samples, 1 .. n.
        seed: integer or generator.
        power: how fast the density falls from the centre, >= 0 (0 is uniform).

    Returns:
        Booleans of the shape, in the order of `numpy.fft`.

    Raises:
        InputError: m out of range.

    Example:
        >>> int(variable_density_mask((32, 32), 200, seed=0).sum())
        200

    Source: Lustig, Donoho, Pauly 2007, section "Cartesian sampling".
    """
    n = prod(shape)
    if not 1 <= m <= n:
        raise InputError("m", f"{m} is outside 1..{n}", "sample at most every frequency")
    grids = np.meshgrid(*(2 * fftfreq(s) for s in shape), indexing="ij")
    radius = np.sqrt(sum(g**2 for g in grids)) / np.sqrt(len(shape))
    keys = np.random.default_rng(seed).exponential(size=n)  # the m earliest arrivals
    density = np.maximum((1 - radius.ravel()) ** power, 1e-12)
    mask = np.zeros(n, dtype=bool)
    mask[np.argpartition(keys / density, m - 1)[:m]] = True
    return mask.reshape(shape)


def radial_mask(shape: tuple[int, int], lines: int) -> Array:
    """Frequencies on equally spaced lines through zero, as in radial MRI.

    Args:
        shape: (rows, columns) of the picture.
        lines: number of lines over half a turn.

    Returns:
        Booleans of the shape, in the order of `numpy.fft`.

    Example:
        >>> mask = radial_mask((256, 256), 22)
        >>> bool(mask[0, 0]), round(float(mask.mean()), 2)
        (True, 0.08)

    Source: Candes, Romberg, Tao 2006, figure 1.
    """
    angles = np.arange(lines) * np.pi / lines
    direction = np.stack([np.sin(angles), np.cos(angles)])
    direction /= np.abs(direction).max(axis=0)  # one sample per row or column crossed
    reach = np.arange(-max(shape), max(shape) + 1)
    rows, columns = np.rint(direction[:, :, None] * reach).astype(int)
    inside = (np.abs(rows) <= (shape[0] - 1) // 2) & (np.abs(columns) <= (shape[1] - 1) // 2)
    mask = np.zeros(shape, dtype=bool)
    mask[rows[inside], columns[inside]] = True  # negative frequencies index from the end
    return mask


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
    rng = np.random.default_rng(seed)
    spectrum = np.exp(2j * np.pi * rng.random(n // 2 + 1))
    spectrum[0] = np.sign(spectrum[0].real)
    if n % 2 == 0:
        spectrum[-1] = np.sign(spectrum[-1].real)
    kept = _rows(n, rows, m, rng)

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
    )


def sampling(n: int, rows: ArrayLike) -> Operator:
    """The samples at some places, `x -> x[rows]`, matrix-free; `A A^T = I`.

    Args:
        n: length of the signal; pictures are flattened in C order.
        rows: indices of the samples, or booleans (n,).

    Raises:
        InputError: indices repeated or out of range.

    Example:
        >>> sampling(4, [0, 3]) @ np.array([1.0, 2.0, 3.0, 4.0])
        array([1., 4.])
    """
    kept = _rows(n, rows, None, None)
    column_norms = lambda: np.bincount(kept, minlength=n).astype(float)  # noqa: E731
    return _partial(n, kept, float, lambda x: x, lambda x: x, "sampling", column_norms)


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
    size = (int(shape),) if isinstance(shape, int | np.integer) else tuple(map(int, shape))
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
        norm=float(np.abs(response).max()),
        column_norms=lambda: np.full(n, np.linalg.norm(taps)),
        gram_spectrum=np.abs(response) ** 2,
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
    length = m + n - 1
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

    def column_norms() -> Array:
        energy = np.concatenate([[0.0], np.cumsum(np.abs(t) ** 2)])
        first = n - 1 - np.arange(n)
        return np.sqrt(energy[first + m] - energy[first])

    return Operator(
        (m, n),
        t.dtype,
        lambda x: apply(x, spectrum, n - 1, m),
        lambda y: apply(y, spectrum.conj(), 1 - n, n),
        name="Toeplitz",
        column_norms=column_norms,
    )


def for_real_signals(A: MatrixLike) -> Operator:
    """A complex operator as a real one for real signals: `x -> (Re A x, Im A x)`, (2 m, n).

    Measurements go with it: `y -> np.concatenate([y.real, y.imag])`.

    Example:
        >>> A = for_real_signals(partial_fourier(8, m=3, seed=0))
        >>> A.shape, A.is_complex
        ((6, 8), False)
    """
    A = as_operator(A)
    m, n = A.shape
    dense = None
    if A.is_dense:
        dense = lambda: np.concatenate([A.to_dense().real, A.to_dense().imag])  # noqa: E731

    def forward(x: Array) -> Array:
        if np.iscomplexobj(x):
            return forward(x.real) + 1j * forward(x.imag)
        z = A.forward(x)
        return np.concatenate([z.real, z.imag])

    def adjoint(y: Array) -> Array:
        if np.iscomplexobj(y):
            return adjoint(y.real) + 1j * adjoint(y.imag)
        return np.asarray(A.adjoint(y[:m] + 1j * y[m:]).real)

    return Operator(
        (2 * m, n),
        float,
        forward,
        adjoint,
        name=A.name,
        dense=dense,
        trusted=A.trusted,
        gram_spectrum=None if A.gram_spectrum is None else _even(A.gram_spectrum),
    )


def _even(spectrum: Array) -> Array:
    """The mean over each frequency and its negative, what a real signal sees."""
    return np.asarray((spectrum + np.roll(np.flip(spectrum), 1, range(spectrum.ndim))) / 2)


def _partial(
    n: int,
    rows: Array,
    dtype: DTypeLike,
    transform: Map,
    inverse: Map,
    name: str,
    column_norms: Callable[[], Array],
    gram_spectrum: Array | None = None,
) -> Operator:
    """Rows of a unitary transform."""

    def adjoint(y: Array) -> Array:
        full = np.zeros((n, *y.shape[1:]), dtype=np.result_type(y, float))
        full[rows] = y
        return inverse(full)

    return Operator(
        (rows.size, n),
        dtype,
        lambda x: transform(x)[rows],
        adjoint,
        name=name,
        column_norms=column_norms,
        row_orthonormal=True,
        gram_spectrum=gram_spectrum,
    )


def _rows(
    n: int, rows: ArrayLike | None, m: int | None, seed: int | np.random.Generator | None
) -> Array:
    if rows is None:
        if m is None or seed is None or not 1 <= m <= n:
            text = f"m={m}, seed={seed} for {n} rows"
            raise InputError("rows", text, "give the rows, or 1 <= m <= n and a seed")
        return np.sort(np.random.default_rng(seed).choice(n, m, replace=False))
    kept = np.asarray(rows)
    kept = np.flatnonzero(kept) if kept.dtype == bool else kept.astype(int)
    distinct = np.unique(kept).size == kept.size
    if kept.ndim != 1 or kept.size == 0 or not distinct or kept.min() < 0 or kept.max() >= n:
        raise InputError("rows", f"{kept.size} indices", f"give distinct indices in 0..{n - 1}")
    return kept
