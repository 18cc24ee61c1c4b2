"""The columns that take part in a fit, dense or sparse: products and Newton steps on them alone.

Both kinds keep their columns at unit length, so that one small number tells dependent columns
whatever their units are.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs
from scipy.sparse import hstack

Array = NDArray[np.float64]


Index = NDArray[np.intp]


RIDGE = 1e-12
"""Added to the diagonal of a Gram matrix of unit columns where it has no Cholesky factor."""


FEW = 200
"""Sparse columns up to this number go by their Gram matrix, more by conjugate gradients."""


SOLVED = 1e-4
"""Residual, relative to the right-hand side, at which conjugate gradients end: the right-hand side
of a further Newton step is smaller by as much."""


MAX_PRODUCTS = 400
"""Most steps of conjugate gradients; what is left then is the next Newton step's."""


class Design(Protocol):
    """A growing set of columns `A_W`, scaled to unit length, in the order they came."""

    norms: Array
    """Lengths of the columns, (w,); the scaled coefficients are these times the plain ones."""

    def admit(self, new: Index) -> None:
        """Let further columns take part."""

    def combine(self, x: Array) -> Array:
        """`A_W x`."""

    def correlate(self, r: Array) -> Array:
        """`A_W^T r`."""

    def curve(self, d: Array) -> Array:
        """`A_W^T A_W d`."""

    def newton(self, free: Index, g: Array, ridge: Array) -> Array:
        """`(A_F^T A_F + ridge)^-1 g` for the columns F, or near it where they are dependent."""

    entering: tuple[int, float]
    """How many zeros may move in one step: this many, or this share of what is not zero."""


class DenseDesign:
    """Columns of an array (m, n), with their Gram matrix."""

    entering = (40, 0.5)

    def __init__(self, A: Array) -> None:
        self.A, self.norms, self._size = A, np.empty(0), 0
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
        return self._gram[: self._size, : self._size] @ d

    def newton(self, free: Index, g: Array, ridge: Array) -> Array:
        """By Cholesky."""
        return cholesky_step(self._gram[free[:, None], free], g, ridge)


class SparseDesign:
    """Columns of a sparse matrix (m, n) in CSC form, less `u v^T` for a shift `(u, v)`."""

    entering = (100, 1.0)

    def __init__(self, A: Any, shift: tuple[Array, Array] | None = None) -> None:
        self.A, self.shift, self.norms = A, shift, np.empty(0)
        self._columns: Any = None
        self._rows: Any = None
        self._v = np.empty(0)

    def admit(self, new: Index) -> None:
        """Gather the columns."""
        columns = self.A[:, new]
        counts = np.diff(columns.indptr)
        squares = np.bincount(np.repeat(np.arange(new.size), counts), columns.data**2, new.size)
        if self.shift is not None:
            u, v = self.shift[0], self.shift[1][new]
            squares = squares - 2 * v * (columns.T @ u) + v**2 * (u @ u)
        norms = np.sqrt(np.where(squares > 0, squares, 1.0))
        columns.data /= np.repeat(norms, counts)
        if self.shift is not None:
            self._v = np.concatenate([self._v, v / norms])
        joined = [columns] if self._columns is None else [self._columns, columns]
        self._columns = hstack(joined, format="csc")
        self._rows = self._columns.T
        self.norms = np.concatenate([self.norms, norms])

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
        return self.correlate(self.combine(d))

    def newton(self, free: Index, g: Array, ridge: Array) -> Array:
        """By Cholesky for few columns, by conjugate gradients for many."""
        if free.size <= FEW:
            return cholesky_step(self._gram(free), g, ridge)
        full = np.zeros(self.norms.size)

        def curve(d: Array) -> Array:
            full[free] = d
            return self.curve(full)[free] + ridge * d

        return conjugate_gradients(curve, g)

    def _gram(self, free: Index) -> Array:
        columns = self._columns[:, free]
        gram = np.asarray((columns.T @ columns).toarray())
        if self.shift is not None:
            u, v = self.shift[0], self._v[free]
            along = columns.T @ u
            gram += (u @ u) * np.outer(v, v) - np.outer(along, v) - np.outer(v, along)
        return gram


def cholesky_step(gram: Array, g: Array, ridge: Array) -> Array:
    """`(gram + ridge)^-1 g`; a little more ridge where columns depend on each other."""
    diagonal = np.einsum("ii->i", gram)
    diagonal += ridge
    L, info = dpotrf(gram, lower=True, clean=False)
    more = RIDGE
    while info or np.einsum("ii->i", L).min() ** 2 < RIDGE / 10:
        diagonal += more
        more *= 10
        L, info = dpotrf(gram, lower=True, clean=False)
    return np.asarray(dpotrs(L, g, lower=True)[0])


def conjugate_gradients(curve: Any, g: Array) -> Array:
    """`curve^-1 g`, to rounding or as far as `MAX_PRODUCTS` go."""
    d, r = np.zeros_like(g), g.copy()
    p, size = r.copy(), float(r @ r)
    goal = SOLVED**2 * size
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
