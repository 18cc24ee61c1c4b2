"""Columns in play, their Gram matrix, and restricted solves by updating one Cholesky factor."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs, dpstrf

Array = NDArray[np.float64]


Index = NDArray[np.intp]


# A squared pivot below this, relative to the columns' squared norm, means a dependent column.
DEPENDENT = 1e-11


# Updating a factor of size p by k columns costs 2 p^2 k, making it anew p^3 / 3 at a lower speed.
UPDATE_SHARE = 12


# Below this size it is made anew in any case.
WORTH = 100


# A matrix of more entries than this has a float32 copy, for what will be checked in float64.
SMALL = 2**17


def rough_copy(A: Array) -> NDArray[Any]:
    """The matrix in float32, or A itself if it is small."""
    return A.astype(np.float32) if A.size > SMALL else A


class Stopped(Exception):
    """The limit of guesses is reached, or the callback asked to stop."""


class ColumnPool:
    """The columns that were ever active, with their Gram matrix, so that no product is repeated.

    Args:
        A: matrix, shape (m, n), columns of comparable norm.
        y: measurements, shape (m,).
        weights: positive penalty weights, shape (n,).
        nonneg: only `x >= 0` is allowed, so only `a_j^T u <= w_j` is asked.
        bias: `b` (n,) where `x_j` costs `w_j |x_j| - b_j x_j`; products with `A^T` include it.
        single: the matrix in float32, or A itself if it is small; None makes it.
        within: the pool that this one is for, and which columns of it are here.

    Attributes:
        products: products with the whole matrix so far.
        asked: size of the largest support there was a guess of.
        n_iter: guesses so far.
        max_iter: how many there may be.
        guess: the last one, support and coefficients on it.
        watch: told of each guess; may raise to end the run.
    """

    def __init__(
        self,
        A: Array,
        y: Array,
        weights: Array,
        *,
        nonneg: bool = False,
        bias: Array | None = None,
        single: NDArray[Any] | None = None,
        within: tuple[ColumnPool, Index] | None = None,
    ) -> None:
        self.A, self.y, self.weights, self.nonneg = A, y, weights, nonneg
        self.bias = np.zeros_like(weights) if bias is None else bias
        self.correlation = y @ A
        self.y_norm = float(np.linalg.norm(y))
        self.products = 1
        self.asked, self.n_iter, self.max_iter = 0, 0, math.inf
        self.guess: tuple[Index, Array] = np.empty(0, np.intp), np.empty(0)
        self.watch: Callable[[Index, Array], None] = lambda support, coefficients: None
        self._within = within
        self.single: NDArray[Any] = rough_copy(A) if single is None else single
        self._place = np.full(A.shape[1], -1)
        self._size = 0
        self._columns = np.empty((0, A.shape[0]))
        self._gram = np.empty((0, 0))
        self._base, self._factor = np.empty(0, np.intp), np.empty((0, 0))

    @cached_property
    def lam_max(self) -> float:
        """The smallest `lam` at which 0 solves the LASSO."""
        return 1.0 + float(self.violation(self.correlation).max())

    @property
    def crowded(self) -> bool:
        """Whether about as many columns were asked for as a basis has: hardly a sparse signal."""
        return self.asked >= 0.85 * min(self.A.shape)

    def tell(self, support: Index, coefficients: Array) -> None:
        """Take note of a guess, which is an iteration.

        Raises:
            Stopped: it would be one too many.
        """
        if self._within is not None:
            outer, columns = self._within
            outer.tell(columns[support], coefficients)
            return
        if self.n_iter >= self.max_iter:
            raise Stopped
        self.n_iter += 1
        self.guess = support, coefficients
        self.watch(support, coefficients)

    def spend(self, n_iter: int) -> None:
        """Count iterations that show no guess."""
        if self._within is not None:
            self._within[0].spend(n_iter)
        self.n_iter += n_iter

    @property
    def left(self) -> float:
        """Iterations that are left."""
        return self.max_iter - self.n_iter if self._within is None else self._within[0].left

    def multiply_adjoint(self, u: Array) -> Array:
        """Return `A^T u + b` and count it."""
        self.products += 1
        return u @ self.A + self.bias

    def multiply_roughly(self, u: Array) -> Array:
        """Return `A^T u + b` in the precision of `single`, at half the cost for a large matrix."""
        self.products += 1
        c = (u.astype(self.single.dtype, copy=False) @ self.single).astype(np.float64)
        return np.asarray(c + self.bias)

    def violation(self, c: Array) -> Array:
        """Return how far each `a_j^T u` lies outside its bound, relative to the weight."""
        return (c if self.nonneg else np.abs(c)) / self.weights - 1.0

    def combine(self, support: Index, coefficients: Array) -> Array:
        """Return `A_J x_J`; zeros in the rest of the pool cost less than a gathered copy."""
        spread = np.zeros(self._size)
        spread[self._place[support]] = coefficients
        return spread @ self._columns[: self._size]

    def correlate(self, support: Index, u: Array) -> Array:
        """Return `A_J^T u`."""
        return (self._columns[: self._size] @ u)[self._place[support]]

    def solve(self, support: Index, rhs: Array) -> tuple[Index, Array]:
        """Solve `A_J^T A_J X = rhs` for as many columns as are independent.

        Args:
            support: the columns J.
            rhs: right-hand sides, shape (|J|, k).

        Returns:
            Which of the columns were kept, as positions in `support`, and X on these.
        """
        places = self._admit(support)
        everything = np.arange(support.size)
        if not support.size:
            return everything, rhs
        X = self._solve_by_update(places, rhs)
        if X is not None:
            return everything, X
        keep = self._refactor(places)
        return keep, dpotrs(self._factor, rhs[keep], lower=True)[0]

    def _admit(self, support: Index) -> Index:
        """Gather columns that are new, extend the Gram matrix; return places in the pool."""
        new = support[self._place[support] < 0]
        if new.size:
            old, size = self._size, self._size + new.size
            if size > len(self._columns):
                self._grow(size)
            for row in range(0, len(self.A), 128):  # bands, as what is copied should stay cached
                band = slice(row, row + 128)
                self._columns[old:size, band] = self.A[band].take(new, axis=1).T
            block = self._columns[:size] @ self._columns[old:size].T
            self._gram[:size, old:size] = block
            self._gram[old:size, :old] = block[:old].T
            self._place[new] = np.arange(old, size)
            self._size = size
        return self._place[support]

    def _grow(self, size: int) -> None:
        room, old = max(size + 32, 3 * size // 2), self._size
        columns, gram = np.empty((room, self.A.shape[0])), np.empty((room, room))
        columns[:old], gram[:old, :old] = self._columns[:old], self._gram[:old, :old]
        self._columns, self._gram = columns, gram

    def _refactor(self, places: Index) -> Index:
        """Factor the Gram matrix anew, pivoted where columns depend on each other."""
        gram = self._gram[places[:, None], places]
        floor = DEPENDENT * float(gram.diagonal().max())
        L, info = dpotrf(gram, lower=True, clean=False)
        keep = np.arange(places.size)
        if info or L.diagonal().min() ** 2 < floor:
            _, pivots, rank, _ = dpstrf(gram, lower=True, tol=floor)
            keep = np.sort(pivots[:rank] - 1)
            L, _ = dpotrf(gram[np.ix_(keep, keep)], lower=True, clean=False)
        self._base, self._factor = places[keep], L
        return keep

    def _solve_by_update(self, places: Index, rhs: Array) -> Array | None:
        """Solve through the last factor, or None if too much changed or columns depend.

        Columns that joined border the system; columns that left are held at zero by multipliers
        `mu`. With `F` the old Gram matrix, `C = [G_joined, I_left]` and `Z = F^-1 C`,
        `[x_joined; mu]` solves the Schur complement, and `x_old = F^-1 b - Z [x_joined; mu]`.
        """
        if not self._base.size:
            return None
        position = np.full(self._size, -1)
        position[self._base] = np.arange(self._base.size)
        old = position[places]
        kept, joined = old >= 0, places[old < 0]
        change, size, count = joined.size, self._base.size, rhs.shape[1]
        if size < WORTH or UPDATE_SHARE * (2 * change + size - places.size) > size:
            return None
        left = np.delete(np.arange(size), old[kept])
        stack = np.zeros((size, count + change + left.size), order="F")
        stack[old[kept], :count] = rhs[kept]
        stack[:, count : count + change] = self._gram[self._base[:, None], joined]
        stack[left, count + change + np.arange(left.size)] = 1.0
        C = stack[:, count:].copy(order="F")
        stack = dpotrs(self._factor, stack, lower=True, overwrite_b=True)[0]
        x, Z = stack[:, :count], stack[:, count:]
        tail = -C.T @ x
        tail[:change] += rhs[~kept]
        schur = C.T @ Z
        tail = self._border(schur, self._gram[joined[:, None], joined], tail)
        if tail is None:
            return None
        x = x - Z @ tail
        solution = np.empty_like(rhs)
        solution[kept], solution[~kept] = x[old[kept]], tail[:change]
        return solution

    def _border(self, CZ: Array, gram: Array, rhs: Array) -> Array | None:
        """Solve `[[G - CZ_jj, -CZ_jl], [-CZ_lj, -CZ_ll]] t = rhs`; None if `j` depends."""
        e = len(gram)
        inverse_left, info = CZ[e:, e:], 0
        if inverse_left.size:
            M, info = dpotrf(inverse_left, lower=True)
            eliminated = dpotrs(M, np.hstack([CZ[e:, :e], rhs[e:]]), lower=True)[0]
        else:
            eliminated = np.hstack([CZ[e:, :e], rhs[e:]])
        if info:
            return None
        if not e:
            return -eliminated
        schur = gram - CZ[:e, :e] + CZ[:e, e:] @ eliminated[:, :e]
        L, info = dpotrf(schur, lower=True)
        if info or L.diagonal().min() ** 2 < DEPENDENT * gram[0, 0]:
            return None
        joined = dpotrs(L, rhs[:e] - CZ[:e, e:] @ eliminated[:, e:], lower=True)[0]
        return np.vstack([joined, -eliminated[:, e:] - eliminated[:, :e] @ joined])
