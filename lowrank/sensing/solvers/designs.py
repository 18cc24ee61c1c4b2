"""The columns that take part in a fit, dense or sparse: products and Newton steps on them alone.

Both kinds keep their columns at unit length, so that one small number tells dependent columns
whatever their units are.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.sparse import csc_array

Array = NDArray[np.float64]


Index = NDArray[np.intp]


RIDGE = 1e-12
"""Added to the diagonal of a Gram matrix of unit columns where it has no Cholesky factor."""


INDEPENDENT = 1e-6
"""Squared pivots of unit columns from which on these are independent, and least squares hold."""


FEW = 200
"""Sparse columns up to this number go by their Gram matrix, more by conjugate gradients."""


HELD, DENSE = 400, 4
"""Up to this number their Gram matrix is held, with at most so many entries for each of theirs."""


NARROW = 16
"""Sparse columns up to this number are multiplied with others as dense ones, at less cost."""


SHORT, MOST = 1e-2, 0.6
"""Accuracy down to which conjugate gradients take few products, for which all columns are used and
not some of them gathered, if these are at least that share."""


TALL = 4
"""Rows for each column from which on these hardly depend on each other: more may come at once."""


ROUNDING, QUICK_ROUNDING = 2 * np.finfo(np.float64).eps, 2 * np.finfo(np.float32).eps
"""Rounding of products with a Gram matrix of either precision, relative to what they are of; the
minimum that they lead to is refined by products with the columns where more is asked for."""


CLEARLY = 1e-4
"""The same from which on single precision is enough to be refined in few rounds."""


SINGLE = (1e-20, 1e20)
"""Squared lengths of columns that single precision holds with all its digits."""


MAX_PRODUCTS = 400
"""Most steps of conjugate gradients; what is left then is the next Newton step's."""


class Design(Protocol):
    """A growing set of columns `A_W`, scaled to unit length, in the order they came."""

    norms: Array
    """Lengths of the columns, (w,); the scaled coefficients are these times the plain ones."""

    n_rows: int
    """m: no more columns are independent."""

    rounding: float
    """Of products with the Gram matrix, relative to what they are of, if that is all that moves
    are judged by; infinite where each stage ends with products with the columns."""

    def admit(self, new: Index) -> None:
        """Let further columns take part."""

    def combine(self, x: Array) -> Array:
        """`A_W x`."""

    def correlate(self, r: Array) -> Array:
        """`A_W^T r`."""

    def curve(self, d: Array) -> Array:
        """`A_W^T A_W d`."""

    def newton(self, free: Index, g: Array, ridge: Array, accuracy: float) -> Array:
        """`(A_F^T A_F + ridge)^-1 g` for the columns F, or near it where they are dependent.

        An iteration may end at this residual, relative to g.
        """

    entering: tuple[int, float]
    """How many zeros may move in one step: this many, or this share of what is not zero."""

    settles: bool
    """Whether zeros move in every other step only, so that they see what is not zero settled."""


class DenseDesign:
    """Columns of an array (m, n), with their Gram matrix."""

    settles, rounding = False, np.inf

    def __init__(self, A: Array) -> None:
        self.entering = (60, 1.0) if A.shape[0] > TALL * A.shape[1] else (20, 0.5)
        self.A, self.norms, self._size = A, np.empty(0), 0
        self.n_rows = A.shape[0]
        self._columns, self._gram = np.empty((0, A.shape[0])), np.empty((0, 0))

    def admit(self, new: Index) -> None:
        """Gather the columns, and extend the Gram matrix."""
        old, size = self._size, self._size + new.size
        if size > len(self._columns):
            self._grow(size)
        columns = self._columns[old:size]
        if self.A.flags.f_contiguous:
            columns[:] = self.A.T[new]
        else:
            for row in range(0, len(self.A), 128):  # bands, as what is copied should stay cached
                columns[:, row : row + 128] = self.A[row : row + 128].take(new, axis=1).T
        norms = np.sqrt(np.einsum("ij,ij->i", columns, columns))
        norms[norms == 0] = 1.0
        columns /= norms[:, None]
        block = self._columns[:size] @ columns.T
        self._gram[:size, old:size] = block
        self._gram[old:size, :old] = block[:old].T
        self.norms, self._size = np.concatenate([self.norms, norms]), size

    def _grow(self, size: int) -> None:
        room, old = max(size + 32, 3 * size // 2), self._size
        columns, gram = np.empty((room, self.A.shape[0])), np.empty((room, room))
        columns[:old], gram[:old, :old] = self._columns[:old], self._gram[:old, :old]
        self._columns, self._gram = columns, gram

    def combine(self, x: Array) -> Array:
        """`A_W x`."""
        return x @ self._columns[: self._size]

    def correlate(self, r: Array) -> Array:
        """`A_W^T r`."""
        return self._columns[: self._size] @ r

    def curve(self, d: Array) -> Array:
        """`A_W^T A_W d`."""
        if self._size > 2 * self._columns.shape[1]:
            return self.correlate(self.combine(d))
        return self._gram[: self._size, : self._size] @ d

    def newton(self, free: Index, g: Array, ridge: Array, accuracy: float) -> Array:
        """By Cholesky."""
        return cholesky_step(self._gram[free].T[free], g, ridge)


class WholeDesign:
    """All columns of a tall array (m, n), in a given order, with their Gram matrix.

    Args:
        A: the matrix.
        order: of its columns.
        quick: whether to form the Gram matrix in single precision, at half the cost: minima then
            have to be refined by products with A.

    Attributes:
        rounding: of products with the Gram matrix, relative to what they are of.
    """

    entering, settles = (150, 2.0), True

    def __init__(self, A: Array, order: Index, quick: bool = False) -> None:
        gram = _quick_gram(A) if quick else None
        self.rounding = ROUNDING if gram is None else QUICK_ROUNDING
        gram = np.asarray(A.T @ A) if gram is None else gram
        if (order[1:] < order[:-1]).any():
            gram = gram[order[:, None], order]
        self.A, self._order, self.norms = A, order, np.sqrt(np.einsum("ii->i", gram))
        self.n_rows = A.shape[0]
        self.norms[self.norms == 0] = 1.0
        gram /= self.norms
        gram /= self.norms[:, None]
        self._gram = gram

    def admit(self, new: Index) -> None:
        """They are all there."""
        assert not new.size

    def combine(self, x: Array) -> Array:
        """`A x`."""
        plain = np.empty(x.size)
        plain[self._order] = x / self.norms
        return np.asarray(self.A @ plain)

    def correlate(self, r: Array) -> Array:
        """`A^T r`."""
        return np.asarray(self.A.T @ r)[self._order] / self.norms

    def curve(self, d: Array) -> Array:
        """`A^T A d`."""
        return self._gram @ d

    def for_signs(self, g: Array, slopes: Array, ridge: Array) -> tuple[Array, Array] | None:
        """Signs of `x = (A^T A + ridge)^-1 g`, and x less what slopes of these signs take; None
        where columns depend on each other, nearly.
        """
        gram = self._gram.copy()
        np.einsum("ii->i", gram)[:] += ridge
        L, info = dpotrf(gram.T, lower=True, clean=False)
        if info or np.einsum("ii->i", L).min() ** 2 < INDEPENDENT:
            return None
        signs = np.sign(dpotrs(L, g, lower=True)[0])
        return signs, np.asarray(dpotrs(L, g - slopes * signs, lower=True)[0])

    def newton(self, free: Index, g: Array, ridge: Array, accuracy: float) -> Array:
        """By Cholesky."""
        return cholesky_step(self._gram[free].T[free], g, ridge)


def _quick_gram(A: Array) -> Array | None:
    """`A^T A` in single precision; None where it would leave the range of that, or the columns
    depend on each other nearly.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        columns = A.T.astype(np.float32)
        gram = np.asarray(columns @ columns.T, dtype=np.float64)
    squares = np.einsum("ii->i", gram)
    if not ((squares > SINGLE[0]) & (squares < SINGLE[1])).all():
        return None
    roots = np.sqrt(squares)
    L, info = dpotrf(gram / roots / roots[:, None], lower=True, clean=False)
    return None if info or np.einsum("ii->i", L).min() ** 2 < CLEARLY else gram


class SparseDesign:
    """Columns of a sparse matrix (m, n) in CSC form, less `u v^T` for a shift `(u, v)`."""

    entering, settles, rounding = (100, 1.0), False, np.inf

    def __init__(self, A: Any, shift: tuple[Array, Array] | None = None) -> None:
        self.A, self.shift, self.norms = A, shift, np.empty(0)
        self.n_rows = A.shape[0]
        self._data, self._row = np.empty(0), np.empty(0, A.indices.dtype)
        self._counts = np.empty(0, np.intp)
        self._v = np.empty(0)
        self._gram: Array | None = np.empty((0, 0))
        self._matrix: Any = None
        self._transposed: Any = None

    def admit(self, new: Index) -> None:
        """Gather the columns."""
        row, data, counts = self._entries(new)
        squares = _sums(data * data, counts)
        if self.shift is not None:
            u, v = self.shift[0], self.shift[1][new]
            squares += v**2 * (u @ u) - 2 * v * _sums(data * u[row], counts)
        norms = np.sqrt(np.where(squares > 0, squares, 1.0))
        data /= np.repeat(norms, counts)
        if self.shift is not None:
            self._v = np.concatenate([self._v, v / norms])
        self._data, self._row = np.concatenate([self._data, data]), np.concatenate([self._row, row])
        self._counts = np.concatenate([self._counts, counts])
        self.norms = np.concatenate([self.norms, norms])
        self._matrix = self._transposed = None
        if self._gram is not None:
            size = self.norms.size
            held = size <= HELD and size**2 <= DENSE * self._data.size
            self._gram = self._grown(new.size) if held else None

    def _entries(self, new: Index) -> tuple[Index, Array, Index]:
        """Rows and values of columns, and how many each has."""
        starts = self.A.indptr[new].astype(np.intp)
        counts = self.A.indptr[new + 1] - starts
        ends = np.cumsum(counts)
        at = np.arange(ends[-1]) + np.repeat(starts - ends + counts, counts)
        return self.A.indices[at], self.A.data[at], counts

    def _grown(self, count: int) -> Array:
        """The Gram matrix, with that of the last columns."""
        assert self._gram is not None
        size, old = self.norms.size, self.norms.size - count
        gram = np.empty((size, size))
        gram[:old, :old] = self._gram
        columns = self._columns
        last = columns[:, old:] if old else columns
        dense = count <= NARROW
        block = self._rows @ last.toarray() if dense else (self._rows @ last).toarray()
        if self.shift is not None:
            u, v = self.shift[0], self._v
            along = columns.T @ u
            block += (u @ u) * np.outer(v, v[old:])
            block -= np.outer(along, v[old:]) + np.outer(v, along[old:])
        gram[:, old:] = block
        gram[old:, :old] = block[:old].T
        return gram

    @property
    def _columns(self) -> Any:
        if self._matrix is None:
            shape = (self.A.shape[0], self.norms.size)
            start = np.zeros(self.norms.size + 1, self._row.dtype)
            start[1:] = np.cumsum(self._counts)
            self._matrix = csc_array((self._data, self._row, start), shape=shape)
        return self._matrix

    @property
    def _rows(self) -> Any:
        if self._transposed is None:
            self._transposed = self._columns.T
        return self._transposed

    def combine(self, x: Array) -> Array:
        """`A_W x`."""
        Ax = np.asarray(self._columns @ x)
        return Ax if self.shift is None else Ax - (self._v @ x) * self.shift[0]

    def correlate(self, r: Array) -> Array:
        """`A_W^T r`."""
        c = np.asarray(self._rows @ r)
        return c if self.shift is None else c - (self.shift[0] @ r) * self._v

    def curve(self, d: Array) -> Array:
        """`A_W^T A_W d`."""
        return self.correlate(self.combine(d)) if self._gram is None else self._gram @ d

    def newton(self, free: Index, g: Array, ridge: Array, accuracy: float) -> Array:
        """By Cholesky for few columns, by conjugate gradients for many."""
        if self._gram is not None:
            gram = self._gram[free].T[free]
            if free.size <= FEW:
                return cholesky_step(gram, g, ridge)
            return conjugate_gradients(lambda d: gram @ d + ridge * d, g, accuracy)
        whole = accuracy >= SHORT and free.size >= MOST * self.norms.size
        forward, adjoint = self._padded(free) if whole else self.products(free)
        if not ridge.any():
            return conjugate_gradients(lambda d: adjoint(forward(d)), g, accuracy)
        return conjugate_gradients(lambda d: adjoint(forward(d)) + ridge * d, g, accuracy)

    def products(self, J: Index) -> tuple[Any, Any]:
        """`A_J x` and `A_J^T r`, for many products with some of the columns."""
        columns = self._columns[:, J]
        rows = columns.T
        if self.shift is None:
            return columns.__matmul__, rows.__matmul__
        u, v = self.shift[0], self._v[J]
        return lambda x: columns @ x - (v @ x) * u, lambda r: rows @ r - (u @ r) * v

    def _padded(self, J: Index) -> tuple[Any, Any]:
        """The same by products with all columns."""
        full = np.zeros(self.norms.size)

        def forward(x: Array) -> Array:
            full[J] = x
            return self.combine(full)

        return forward, lambda r: self.correlate(r)[J]

    @property
    def many(self) -> bool:
        """Whether Newton steps go by conjugate gradients, and no Gram matrix is held."""
        return self._gram is None


def _sums(values: Array, counts: Index) -> Array:
    """Of the entries of each column."""
    sums, full = np.zeros(counts.size), counts > 0
    if values.size:
        sums[full] = np.add.reduceat(values, (np.cumsum(counts) - counts)[full])
    return sums


def cholesky_step(gram: Array, g: Array, ridge: Array) -> Array:
    """`(gram + ridge)^-1 g`; a little more ridge where columns depend on each other."""
    diagonal = np.einsum("ii->i", gram)
    diagonal += ridge
    L, info = dpotrf(gram.T, lower=True, clean=False)  # the order that LAPACK wants
    more = RIDGE
    while info or np.einsum("ii->i", L).min() ** 2 < RIDGE / 10:
        diagonal += more
        more *= 10
        L, info = dpotrf(gram.T, lower=True, clean=False)
    return np.asarray(dpotrs(L, g, lower=True)[0])


def conjugate_gradients(curve: Any, g: Array, accuracy: float) -> Array:
    """`curve^-1 g`, to this relative residual or as far as `MAX_PRODUCTS` go."""
    d, r = np.zeros_like(g), g.copy()
    p, size = r.copy(), float(r @ r)
    goal = accuracy**2 * size
    for _ in range(MAX_PRODUCTS):
        Hp = curve(p)
        bend = float(p @ Hp)
        if bend <= 0:
            break
        step = size / bend
        d += step * p
        r -= step * Hp
        last, size = size, float(r @ r)
        if size <= goal:
            break
        p *= size / last
        p += r
    return d
