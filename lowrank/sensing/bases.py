"""Sparsifying transforms `Psi` with `x = Psi c`, and analysis operators `D`.

Every basis is an `Operator`: `Psi @ c` is synthesis, `Psi.H @ x` the adjoint, which is the analysis
transform (and the inverse) exactly where `Psi.orthonormal`. Pictures are flattened in C order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np
from scipy.fft import dctn, fftn, idctn, ifftn

from lowrank.errors import InputError
from lowrank.sensing.operators.algebra import hstack
from lowrank.sensing.operators.arrays import Array, MatrixLike, as_shape
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import Operator, as_operator, from_matrix


def identity(*shape: int | Sequence[int]) -> Operator:
    """The identity on (n,): the signal itself is sparse.

    Args:
        shape: length of the signal, or rows and columns of the picture; or a tuple of them.

    Example:
        >>> identity(2) @ np.array([1.0, 2.0])
        array([1., 2.])
    """
    size = as_shape(*shape)
    n = prod(size)
    return Operator(
        (n, n),
        float,
        lambda c: c,
        lambda x: x,
        name="identity",
        facts=Facts(diagonal=np.ones(n)),
        recipe=partial(identity, *size),
    )


def dct(*shape: int | Sequence[int]) -> Operator:
    """The orthonormal cosine basis: `x` is the inverse DCT-II of `c`, in every dimension.

    Args:
        shape: length of the signal, or rows and columns of the picture; or a tuple of them.

    Example:
        >>> Psi = dct(8, 8)
        >>> Psi.shape, Psi.orthonormal
        ((64, 64), True)
        >>> bool(np.allclose(Psi @ (Psi.H @ np.ones(64)), 1))
        True

    Source: Ahmed, Natarajan, Rao 1974.
    """
    size, axes = _sides(shape)
    synthesis = on_shape(size, lambda c: np.asarray(idctn(c, axes=axes, norm="ortho")))
    analysis = on_shape(size, lambda x: np.asarray(dctn(x, axes=axes, norm="ortho")))
    return _orthonormal(float, synthesis, analysis, "DCT basis", partial(dct, *size))


def fourier(*shape: int | Sequence[int]) -> Operator:
    """The unitary Fourier basis: `x = F^H c`, in every dimension; complex.

    Args:
        shape: length of the signal, or rows and columns of the picture; or a tuple of them.

    Example:
        >>> (fourier(4) @ np.array([2.0, 0, 0, 0])).real
        array([1., 1., 1., 1.])
    """
    size, axes = _sides(shape)
    synthesis = on_shape(size, lambda c: np.asarray(ifftn(c, axes=axes, norm="ortho")))
    analysis = on_shape(size, lambda x: np.asarray(fftn(x, axes=axes, norm="ortho")))
    return _orthonormal(complex, synthesis, analysis, "Fourier basis", partial(fourier, *size))


def wavelet(
    *shape: int | Sequence[int],
    name: str = "db4",
    level: int | None = None,
    mode: str = "periodization",
) -> Operator:
    """Wavelet synthesis by PyWavelets, in one, two or more dimensions.

    Orthonormal for orthogonal wavelets in mode "periodization" where `2^level` divides every side;
    `.orthonormal` says so. Otherwise the coefficients are a few more than the samples, and the
    adjoint is exact but not the inverse.

    Args:
        shape: length of the signal, or rows and columns of the picture; or a tuple of them.
        name: any of PyWavelets' discrete wavelets, such as "haar", "db4", "sym8", "bior4.4".
        level: decompositions; None is the largest that PyWavelets advises (and that keeps an
            orthonormal transform orthonormal).
        mode: PyWavelets' signal extension.

    Raises:
        InputError: an unknown wavelet, or a level beyond what the shape allows.

    Example:
        >>> Psi = wavelet(64, name="db4", level=3)
        >>> Psi.shape, Psi.orthonormal
        ((64, 64), True)

    Source: Mallat 1989; Lee et al. 2019 (PyWavelets).
    """
    from lowrank.sensing.wavelets import wavelet_basis

    return wavelet_basis(as_shape(*shape), name, level, mode)


BASES: dict[str, Callable[..., Operator]] = {"dct": dct, "fourier": fourier}
"""Bases by name; every discrete wavelet of PyWavelets is one too."""


_NAMES = (
    "give dct, fourier, or a wavelet such as haar, db4, sym8 or bior4.4;"
    " dct:32x32 is of pictures with 32 rows and 32 columns"
)


def by_name(name: str, n: int) -> Operator:
    """A basis of signals (n,) by its name: "dct", "fourier", "db4", or "dct:ROWSxCOLUMNS".

    Raises:
        InputError: no basis is called so, or its sides do not multiply to n.

    Example:
        >>> by_name("haar:8x8", 64)
        <Operator (64, 64) haar wavelets, level 3: matrix-free, A A^H = I>
    """
    make, sides = parsed_name(name)
    shape = sides or (n,)
    if prod(shape) != n:
        text = f"{name} makes signals of {prod(shape)} samples, and A has {n} columns"
        raise InputError("basis", text, "give sides whose product that is")
    return make(*shape)


def parsed_name(name: str) -> tuple[Callable[..., Operator], tuple[int, ...]]:
    """What makes the basis of a name, and the sides that the name gives; () for none.

    Raises:
        InputError: no basis is called so.

    Example:
        >>> parsed_name("dct:32x16")[1]
        (32, 16)
    """
    import pywt

    kind, colon, given = name.partition(":")
    sides = given.split("x") if colon else []
    if kind not in BASES and kind not in pywt.wavelist(kind="discrete"):
        raise InputError("basis", f"{name!r} is no basis", _NAMES)
    if not all(side.isdecimal() and int(side) for side in sides):
        raise InputError("basis", f"{name!r} has no shape {given!r}", _NAMES)
    make = BASES[kind] if kind in BASES else partial(wavelet, name=kind)
    return make, tuple(map(int, sides))


def scale_weights(Psi: Operator, growth: float = 0.5) -> Array:
    """Weights of the L1 norm for a wavelet basis: lighter where coefficients are larger.

    A jump's coefficients grow as the square root of the atom's volume V, in units of the finest
    atom's; the weight `V^(-growth)` expects that, where equal weights press all scales alike.

    Args:
        Psi: a basis made by `wavelet`.
        growth: >= 0; 1/2 is for jumps and 1/f noise, 1 for continuous signals such as Brownian
            motion, 0 for equal weights.

    Returns:
        (p,), positive, 1 at the finest scale. The approximation has the coarsest scale's.

    Raises:
        InputError: Psi has no scales, or growth is negative.

    Example:
        >>> scale_weights(wavelet(8, name="haar", level=2), growth=1).tolist()
        [0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]

    Source: Mallat 2009, section 6.1.3 (decay across scales); Donoho, Johnstone 1998, section 1
        (sequence norms of Besov spaces).
    """
    if Psi.scales is None:
        raise InputError("scale_weights", f"{Psi.name} has no scales", "pass bases.wavelet(...)")
    if not growth >= 0 or not np.isfinite(growth):
        raise InputError("growth", f"{growth} is not zero or positive", "pass 0.5, or 0 to 1")
    return np.asarray(2.0 ** (-growth * Psi.scales))


def dictionary(matrix: MatrixLike) -> Operator:
    """A dictionary of atoms as columns (n, p): `x = matrix c`; `.orthonormal` if it is, measured.

    Example:
        >>> dictionary([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]).shape
        (2, 3)
        >>> dictionary(np.eye(3)[::-1]).orthonormal
        True
    """
    atoms = as_operator(matrix)
    if atoms.is_dense and atoms.shape[0] == atoms.shape[1]:
        D = atoms.to_dense()
        near = bool(np.abs(D.conj().T @ D - np.eye(D.shape[1])).max() < 1e-12 * D.shape[0])
        return from_matrix(D, row_orthonormal=near)
    return atoms


def concatenation(*bases: MatrixLike) -> Operator:
    """Several bases side by side, `x = Psi_1 c_1 + Psi_2 c_2 + ...`; c stacks the parts.

    Raises:
        InputError: none given, or of different lengths.

    Example:
        >>> concatenation(identity(4), dct(4)).shape
        (4, 8)

    Source: Donoho, Huo 2001.
    """
    parts = [as_operator(b) for b in bases]
    lengths = {part.shape[0] for part in parts}
    if len(lengths) != 1:
        text = f"lengths of the bases are {sorted(lengths)}"
        raise InputError("concatenation", text, "give bases of one signal length")
    return hstack(parts)


def finite_differences(*shape: int | Sequence[int]) -> Operator:
    """Forward differences along every axis, `(D x)_i = x_{i+1} - x_i`, 0 at the last sample.

    The d components are stacked, (d n,): `(D @ x).reshape(d, *shape)` is the gradient.

    Args:
        shape: length of the signal, or rows, columns, ... of the picture; or a tuple of them.

    Example:
        >>> finite_differences(4) @ np.array([1.0, 2.0, 4.0, 7.0])
        array([1., 2., 3., 0.])

    Source: Chambolle 2004, section 2.
    """
    size, axes = _sides(shape)
    n, d = prod(size), len(size)

    def gradient(x: Array) -> Array:
        picture = x.reshape(*size, *x.shape[1:])
        out = np.zeros((d, *picture.shape), dtype=picture.dtype)
        for axis in axes:
            inner = _slices(axis, slice(None, -1))
            np.subtract(
                picture[_slices(axis, slice(1, None))], picture[inner], out=out[axis][inner]
            )
        return out.reshape(d * n, *x.shape[1:])

    def minus_divergence(p: Array) -> Array:
        field = p.reshape(d, *size, *p.shape[1:])
        out = np.zeros(field.shape[1:], dtype=p.dtype)
        for axis in axes:
            inner = _slices(axis, slice(None, -1))
            out[inner] -= field[axis][inner]
            out[_slices(axis, slice(1, None))] += field[axis][inner]
        return out.reshape(n, *p.shape[1:])

    norm = np.sqrt(sum(4 * np.cos(np.pi / (2 * s)) ** 2 for s in size))
    return Operator(
        (d * n, n),
        float,
        gradient,
        minus_divergence,
        name="finite differences",
        facts=Facts(norm=float(norm), gram_spectrum=_circular_laplacian(size)),
        recipe=partial(finite_differences, *size),
    )


def _circular_laplacian(size: tuple[int, ...]) -> Array:
    """Eigenvalues of `D^T D` where the differences wrap around: near it but for the border."""
    along = (2 - 2 * np.cos(2 * np.pi * np.arange(s) / s) for s in size)
    return np.asarray(sum(np.meshgrid(*along, indexing="ij")))


def _slices(axis: int, part: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (part,)


def _sides(shape: tuple[int | Sequence[int], ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = as_shape(*shape)
    return size, tuple(range(len(size)))


def on_shape(
    size: tuple[int, ...], transform: Callable[[Array], Array]
) -> Callable[[Array], Array]:
    """A transform of pictures `size + (batch)` as one of flattened columns."""

    def apply(x: Array) -> Array:
        return transform(x.reshape(*size, *x.shape[1:])).reshape(x.shape)

    return apply


def _orthonormal(
    dtype: Any,
    synthesis: Callable[[Array], Array],
    analysis: Callable[[Array], Array],
    name: str,
    recipe: partial[Operator],
) -> Operator:
    n = prod(recipe.args)
    facts = Facts(row_gram=1.0)
    return Operator((n, n), dtype, synthesis, analysis, name=name, facts=facts, recipe=recipe)
