"""What is proven of a matrix, and what follows for matrices made of it: all rules in one place.

A fact is proven or it is None, which means "not known" and never "no": solvers are chosen by facts
and certificates rest on them, so no rule may guess. Each line below is a line of algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


Norms: TypeAlias = Callable[[], Array]


ROUNDING = 1e-14
"""Relative difference of figures that are the same but for the last digits."""


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of a matrix `A` (m, n) without a product with it.

    Args:
        norm: spectral norm `||A||_2`.
        row_gram: g > 0 with `A A^H = g I`: rows are orthogonal and of length sqrt(g).
        column_gram: g > 0 with `A^H A = g I`: columns are orthogonal and of length sqrt(g).
        orthogonal_rows: `A A^H` is diagonal: rows are orthogonal, of whatever lengths.
        orthogonal_columns: `A^H A` is diagonal.
        row_norms: function that gives the lengths of the rows, (m,).
        column_norms: function that gives the lengths of the columns `||a_j||_2`, (n,).
        gram_spectrum: eigenvalues, of the signal's shape and in the order of `numpy.fft`, of a
            circulant matrix near `A^H A`, which preconditions systems with it.
        cogram_spectrum: the same for `A A^H`.
        diagonal: of a diagonal matrix, (n,).
        scales: how large the wavelet atom behind each column is, (n,): log2 of its volume over
            that of the finest.
        norm_by: function that measures the norm by that of another matrix.

    Example:
        >>> orthonormal = Facts(row_gram=1.0).completed((2, 3))
        >>> orthonormal.norm, multiple(2.0, orthonormal).row_gram
        (1.0, 4.0)
    """

    norm: float | None = None
    row_gram: float | None = None
    column_gram: float | None = None
    orthogonal_rows: bool = False
    orthogonal_columns: bool = False
    row_norms: Norms | None = None
    column_norms: Norms | None = None
    gram_spectrum: Array | None = None
    cogram_spectrum: Array | None = None
    diagonal: Array | None = None
    scales: Array | None = None
    norm_by: Callable[[], float] | None = None

    def completed(self, shape: tuple[int, int]) -> Facts:
        """With what follows from these facts alone, for a matrix of this shape."""
        facts = self if self.diagonal is None else _of_diagonal(self, self.diagonal)
        row, column, norm = facts.row_gram, facts.column_gram, facts.norm
        if shape[0] == shape[1]:  # a one-sided inverse of a square matrix is its inverse
            row = column = column if row is None else row
        gram = column if row is None else row
        if norm is None and gram is not None:
            norm = float(np.sqrt(gram))
        row_norms = facts.row_norms or _constant(shape[0], row)
        column_norms = facts.column_norms or _constant(shape[1], column)
        orthogonal_rows = facts.orthogonal_rows or row is not None
        orthogonal_columns = facts.orthogonal_columns or column is not None
        by = _longest(row_norms) if orthogonal_rows else None
        by = _first(by, _longest(column_norms) if orthogonal_columns else None)
        return replace(
            facts,
            norm=norm,
            row_gram=row,
            column_gram=column,
            orthogonal_rows=orthogonal_rows,
            orthogonal_columns=orthogonal_columns,
            row_norms=row_norms,
            column_norms=column_norms,
            norm_by=None if norm is not None else _first(by, facts.norm_by),
        )


def _of_diagonal(facts: Facts, d: Array) -> Facts:
    size = np.abs(d)
    largest = float(size.max())
    alike = largest - float(size.min()) <= ROUNDING * largest
    gram = _squared(largest) if alike else None
    return replace(
        facts,
        norm=largest,
        row_gram=gram,
        column_gram=gram,
        orthogonal_rows=True,
        orthogonal_columns=True,
        row_norms=lambda: size,
        column_norms=lambda: size,
    )


def _constant(size: int, gram: float | None) -> Norms | None:
    return None if gram is None else lambda: np.full(size, np.sqrt(gram))


def product(A: Facts, B: Facts) -> Facts:
    """Of `A B`.

    `A^H A = a I` gives `||A x|| = sqrt(a) ||x||` for every x, such as a column of B; `B B^H = b I`
    the same for rows. A diagonal factor scales columns or rows one by one, and what was orthogonal
    stays so.
    """
    a, b = A.column_gram, B.row_gram
    column_norms, row_norms = _times(_root(a), B.column_norms), _times(_root(b), A.row_norms)
    if column_norms is None and B.diagonal is not None:
        column_norms = _times(np.abs(B.diagonal), A.column_norms)
    if row_norms is None and A.diagonal is not None:
        row_norms = _times(np.abs(A.diagonal), B.row_norms)
    return Facts(
        norm=_first(_scaled(_root(b), A.norm), _scaled(_root(a), B.norm)),
        norm_by=_first(_times(_root(b), A.norm_by), _times(_root(a), B.norm_by)),
        row_gram=_gram(A.row_gram, B.row_gram),
        column_gram=_gram(A.column_gram, B.column_gram),
        orthogonal_rows=_either(b, A.orthogonal_rows, A.diagonal, B.orthogonal_rows),
        orthogonal_columns=_either(a, B.orthogonal_columns, B.diagonal, A.orthogonal_columns),
        row_norms=row_norms,
        column_norms=column_norms,
        gram_spectrum=_first(
            _scaled(a, B.gram_spectrum), _scaled(_level(B.diagonal), A.gram_spectrum)
        ),
        cogram_spectrum=_first(
            _scaled(b, A.cogram_spectrum), _scaled(_level(A.diagonal), B.cogram_spectrum)
        ),
        diagonal=_scaled(A.diagonal, B.diagonal),
        scales=A.scales if B.scales is None and B.diagonal is not None else B.scales,
    )


def gram(A: Facts, n: int) -> Facts:
    """Of `A^H A`, (n, n), whose norm is that of A squared."""
    if A.column_gram is not None:
        return Facts(diagonal=np.full(n, A.column_gram), scales=A.scales)
    by, lengths = A.norm_by, A.column_norms if A.orthogonal_columns else None
    known = product(adjoint(A), A)
    squares = None if lengths is None else lambda: lengths() ** 2
    return replace(
        known,
        norm=None if A.norm is None else A.norm**2,
        norm_by=None if by is None else lambda: by() ** 2,
        orthogonal_rows=known.orthogonal_rows or A.orthogonal_columns,
        orthogonal_columns=known.orthogonal_columns or A.orthogonal_columns,
        row_norms=_first(known.row_norms, squares),
        column_norms=_first(known.column_norms, squares),
    )


def multiple(a: complex, A: Facts) -> Facts:
    """Of `a A`."""
    size, square = abs(a), _squared(abs(a))
    return Facts(
        norm=_scaled(size, A.norm),
        norm_by=_times(size, A.norm_by),
        row_gram=_gram(square, A.row_gram),
        column_gram=_gram(square, A.column_gram),
        orthogonal_rows=A.orthogonal_rows,
        orthogonal_columns=A.orthogonal_columns,
        row_norms=_times(size, A.row_norms),
        column_norms=_times(size, A.column_norms),
        gram_spectrum=_scaled(square, A.gram_spectrum),
        cogram_spectrum=_scaled(square, A.cogram_spectrum),
        diagonal=_scaled(a, A.diagonal),
        scales=A.scales,
    )


def total(A: Facts, B: Facts) -> Facts:
    """Of `A + B`: lengths and norms of a sum follow from those of its parts only as bounds."""
    if A.diagonal is None or B.diagonal is None:
        return Facts()
    return Facts(diagonal=A.diagonal + B.diagonal)


def adjoint(A: Facts) -> Facts:
    """Of `A^H`: rows and columns change places."""
    return Facts(
        norm=A.norm,
        norm_by=A.norm_by,
        row_gram=A.column_gram,
        column_gram=A.row_gram,
        orthogonal_rows=A.orthogonal_columns,
        orthogonal_columns=A.orthogonal_rows,
        row_norms=A.column_norms,
        column_norms=A.row_norms,
        gram_spectrum=A.cogram_spectrum,
        cogram_spectrum=A.gram_spectrum,
        diagonal=None if A.diagonal is None else A.diagonal.conj(),
    )


def conjugate(A: Facts) -> Facts:
    """Of the complex conjugate of A: a circulant matrix's eigenvalues change frequency's sign."""
    return replace(
        A,
        gram_spectrum=None if A.gram_spectrum is None else mirrored(A.gram_spectrum),
        cogram_spectrum=None if A.cogram_spectrum is None else mirrored(A.cogram_spectrum),
        diagonal=None if A.diagonal is None else A.diagonal.conj(),
    )


def rows(A: Facts, kept: Array, m: int) -> Facts:
    """Of the rows `kept` of the m rows of A, in this order."""
    row_norms = _picked(A.row_norms, kept)
    if np.unique(kept).size < kept.size:
        return Facts(row_norms=row_norms, scales=A.scales)
    if kept.size < m:
        known = Facts(row_gram=A.row_gram, orthogonal_rows=A.orthogonal_rows)
        return replace(known, row_norms=row_norms, scales=A.scales)
    return replace(A, row_norms=row_norms, cogram_spectrum=None, diagonal=None)  # a permutation


def columns(A: Facts, kept: Array, n: int) -> Facts:
    """Of the columns `kept` of the n columns of A, in this order."""
    scales = None if A.scales is None else A.scales[kept]
    return replace(adjoint(rows(adjoint(A), kept, n)), scales=scales)


def side_by_side(parts: Sequence[Facts]) -> Facts:
    """Of `[A_1, A_2, ...]`: `A A^H` is the sum of the parts' own."""
    if len(parts) == 1:
        return parts[0]
    return Facts(
        row_gram=_all([part.row_gram for part in parts], lambda grams: float(sum(grams))),
        orthogonal_rows=all(part.orthogonal_rows for part in parts),
        column_norms=_joined([part.column_norms for part in parts], np.concatenate),
        row_norms=_joined([part.row_norms for part in parts], _root_of_squares),
        cogram_spectrum=_all([part.cogram_spectrum for part in parts], _sum_alike),
        scales=_all([part.scales for part in parts], np.concatenate),
    )


def stacked(parts: Sequence[Facts]) -> Facts:
    """Of the parts one above the other: `A^H A` is the sum of the parts' own."""
    known = adjoint(side_by_side([adjoint(part) for part in parts]))
    return replace(known, scales=_all([part.scales for part in parts], _alike))


def along_diagonal(parts: Sequence[Facts]) -> Facts:
    """Of the matrix with the parts as blocks on its diagonal, and zeros elsewhere."""
    if len(parts) == 1:
        return parts[0]
    norms = [part.norm for part in parts]
    found = [part.norm_by if part.norm is None else _value(part.norm) for part in parts]
    return Facts(
        norm=_all(norms, max),
        norm_by=None if None not in norms else _joined(found, max),
        row_gram=_all([part.row_gram for part in parts], _one_level),
        column_gram=_all([part.column_gram for part in parts], _one_level),
        orthogonal_rows=all(part.orthogonal_rows for part in parts),
        orthogonal_columns=all(part.orthogonal_columns for part in parts),
        row_norms=_joined([part.row_norms for part in parts], np.concatenate),
        column_norms=_joined([part.column_norms for part in parts], np.concatenate),
        diagonal=_all([part.diagonal for part in parts], np.concatenate),
        scales=_all([part.scales for part in parts], np.concatenate),
    )


def real_parts(A: Facts) -> Facts:
    """Of the real and imaginary parts, one above the other: `Re(A^H A)` is their `A^T A`."""
    spectrum = A.gram_spectrum
    return Facts(
        column_gram=A.column_gram,
        orthogonal_columns=A.orthogonal_columns,
        column_norms=A.column_norms,
        gram_spectrum=None if spectrum is None else (spectrum + mirrored(spectrum)) / 2,
        scales=A.scales,
    )


def mirrored(spectrum: Array) -> Array:
    """The eigenvalue of each frequency's negative."""
    return np.roll(np.flip(spectrum), 1, range(spectrum.ndim))


def _either(gram: float | None, first: bool, diagonal: Array | None, second: bool) -> bool:
    """Whether one factor is a multiple of an isometry or diagonal, and the other is orthogonal."""
    return (gram is not None and first) or (diagonal is not None and second)


def _longest(norms: Norms | None) -> Callable[[], float] | None:
    return None if norms is None else lambda: float(norms().max())


def _root(gram: float | None) -> float | None:
    return None if gram is None else float(np.sqrt(gram))


def _squared(size: float) -> float | None:
    """The square, where it neither vanishes nor overflows."""
    return _positive(size * size)


def _positive(square: float) -> float | None:
    return square if 1e-290 < square < 1e290 else None


def _gram(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else _positive(a * b)


def _level(diagonal: Array | None) -> float | None:
    """`|c|^2` of a matrix `c I`."""
    if diagonal is None or np.any(diagonal != diagonal[0]):
        return None
    return _squared(float(abs(diagonal[0])))


def _scaled(factor: Any, value: Any) -> Any:
    return None if factor is None or value is None else factor * value


def _times(factor: Any, function: Callable[[], Any] | None) -> Callable[[], Any] | None:
    return None if factor is None or function is None else lambda: factor * function()


def _first(a: Any, b: Any) -> Any:
    return b if a is None else a


def _picked(norms: Norms | None, kept: Array) -> Norms | None:
    return None if norms is None else lambda: norms()[kept]


def _joined(parts: Sequence[Any], join: Callable[[list[Any]], Any]) -> Callable[[], Any] | None:
    """What the parts' functions find, joined when it is asked for; None if a part has none."""
    return _all(parts, lambda known: lambda: join([part() for part in known]))


def _all(values: Sequence[Any], join: Callable[[list[Any]], Any]) -> Any:
    """The values joined; None if one of them is not known."""
    known = [value for value in values if value is not None]
    return join(known) if len(known) == len(values) else None


def _value(number: float) -> Callable[[], float]:
    return lambda: number


def _root_of_squares(lengths: list[Array]) -> Array:
    return np.asarray(np.sqrt(sum(one**2 for one in lengths)))


def _sum_alike(spectra: list[Array]) -> Array | None:
    return sum(spectra[1:], spectra[0]) if len({one.shape for one in spectra}) == 1 else None


def _alike(values: list[Array]) -> Array | None:
    return values[0] if all(np.array_equal(values[0], one) for one in values[1:]) else None


def _one_level(grams: list[float]) -> float | None:
    return grams[0] if max(grams) - min(grams) <= ROUNDING * max(grams) else None
