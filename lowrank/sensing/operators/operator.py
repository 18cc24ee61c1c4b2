"""The `Operator`: a linear map, dense or matrix-free, with its adjoint and what is known of it.

Every operator is a `scipy.sparse.linalg.LinearOperator`, so `A @ x`, `A.H @ y` and SciPy's
iterative methods work on it. Signals of more than one dimension are flattened in C order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.sparse import issparse
from scipy.sparse.linalg import LinearOperator, svds

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import (
    Array,
    Map,
    MatrixLike,
    as_double,
    is_torch,
    to_numpy,
    to_tensor,
)

MAX_DENSE_ELEMENTS = 2**27
"""Largest product matrix (1 GiB of float64) that composing two dense operators may form."""


class Operator(LinearOperator):  # type: ignore[misc]
    """A linear map `A` from (n,) to (m,), with its adjoint and the facts solvers ask for.

    Args:
        shape: (m, n).
        dtype: of the matrix the operator stands for; complex if `A` maps real to complex.
        forward: `x -> A x` along axis 0, for x of shape (n,) and (n, batch).
        adjoint: `y -> A^H y` along axis 0, for y of shape (m,) and (m, batch).
        name: what messages call it.
        norm: spectral norm `||A||_2`, where it is known.
        column_norms: function that gives `||a_j||_2`, (n,), where it is cheap.
        row_orthonormal: whether `A A^H = I`, known and not measured.
        dense: the matrix itself, or a function that makes it when first asked; None if matrix-free.
        trusted: the adjoint is known to be the adjoint; else solving runs the dot test once.
        gram_spectrum: eigenvalues, of the signal's shape and in the order of `numpy.fft`, of a
            circulant matrix near `A^H A`, which preconditions systems with it; None if none is.
        scales: how large a wavelet basis's atoms are, (n,): log2 of their volume over that of the
            finest; else None.

    Attributes:
        row_orthonormal: whether `A A^H = I`.
        gram_spectrum: as given.
        scales: as given.
        name: what messages call it.
        trusted: whether the dot test can be left out.

    Example:
        >>> A = Operator((2, 3), float, lambda x: x[:2], lambda y: np.concatenate([y, 0 * y[:1]]))
        >>> A @ np.array([1.0, 2.0, 3.0])
        array([1., 2.])
        >>> A.norm()
        1.0
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: DTypeLike,
        forward: Map,
        adjoint: Map,
        *,
        name: str = "operator",
        norm: float | None = None,
        column_norms: Callable[[], Array] | None = None,
        row_orthonormal: bool = False,
        dense: Array | Callable[[], Array] | None = None,
        trusted: bool = True,
        gram_spectrum: Array | None = None,
        scales: Array | None = None,
    ) -> None:
        super().__init__(np.dtype(dtype), (int(shape[0]), int(shape[1])))
        self._forward, self._adjoint = forward, adjoint
        self.name, self.row_orthonormal, self.trusted = name, row_orthonormal, trusted
        self.gram_spectrum, self.scales = gram_spectrum, scales
        self._known_norm = 1.0 if row_orthonormal else norm
        self._known_column_norms, self._dense = column_norms, dense

    def _matvec(self, x: Array) -> Array:
        return self._forward(x.reshape(-1))  # SciPy may hand over (n, 1)

    def _rmatvec(self, y: Array) -> Array:
        return self._adjoint(y.reshape(-1))

    def _matmat(self, X: Array) -> Array:
        return self._forward(X)

    def _rmatmat(self, Y: Array) -> Array:
        return self._adjoint(Y)

    def __matmul__(self, other: Any) -> Any:
        if not is_torch(other):
            return super().__matmul__(other)
        return to_tensor(super().__matmul__(to_numpy(other)), other)

    def forward(self, x: Array) -> Array:
        """`A x` along axis 0 without any check, for inner loops; x is (n,) or (n, batch)."""
        return self._forward(x)

    def adjoint(self, y: Array) -> Array:
        """`A^H y` along axis 0 without any check, for inner loops; y is (m,) or (m, batch)."""
        return self._adjoint(y)

    @property
    def H(self) -> Operator:
        """The adjoint operator `A^H`, (n, m)."""
        dense = None if self._dense is None else lambda: self._matrix.conj().T
        return Operator(
            self.shape[::-1],
            self.dtype,
            self._adjoint,
            self._forward,
            name=f"{self.name}^H",
            norm=self._known_norm,
            dense=dense,
            trusted=self.trusted,
        )

    @property
    def is_complex(self) -> bool:
        """Whether the matrix is complex."""
        return bool(np.issubdtype(self.dtype, np.complexfloating))

    @property
    def orthonormal(self) -> bool:
        """Whether the operator is square with `A A^H = A^H A = I`."""
        return self.row_orthonormal and self.shape[0] == self.shape[1]

    @property
    def is_dense(self) -> bool:
        """Whether `dense` gives the matrix; asking this does not form it."""
        return self._dense is not None

    @property
    def dense(self) -> Array | None:
        """The matrix (m, n), or None for a matrix-free operator."""
        return self._matrix if self.is_dense else None

    @cached_property
    def _matrix(self) -> Array:
        return np.asarray(self._dense() if callable(self._dense) else self._dense)

    def norm(self) -> float:
        """The spectral norm `||A||_2`: known, or by Lanczos to about six digits, then kept."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        if self._known_norm is not None:
            return float(self._known_norm)
        if min(self.shape) <= 64:
            return float(np.linalg.norm(self.to_dense(), 2))
        start = np.random.default_rng(0).standard_normal(min(self.shape))
        return float(svds(self, k=1, v0=start, tol=1e-7, return_singular_vectors=False)[0])

    @property
    def knows_column_norms(self) -> bool:
        """Whether `column_norms` costs no products."""
        return self.is_dense or self._known_column_norms is not None

    @property
    def knows_norm(self) -> bool:
        """Whether `norm` costs no products."""
        return self._known_norm is not None

    def column_norms(self) -> Array:
        """`||a_j||_2`, (n,): known, or from the columns themselves (n products), then kept."""
        return self._column_norms

    @cached_property
    def _column_norms(self) -> Array:
        if self._known_column_norms is not None:
            return self._known_column_norms()
        if self.is_dense:
            return np.sqrt(np.einsum("ij,ij->j", self._matrix.conj(), self._matrix).real)
        n, block = self.shape[1], 256
        blocks = (range(start, min(start + block, n)) for start in range(0, n, block))
        return np.concatenate([np.linalg.norm(self.columns(b), axis=0) for b in blocks])

    def columns(self, J: ArrayLike | range) -> Array:
        """The columns `A[:, J]`, (m, len(J)): a slice of the matrix, or one product each."""
        indices = np.asarray(J, dtype=int)
        if self.is_dense:
            return np.asarray(self._matrix[:, indices])
        unit = np.zeros((self.shape[1], indices.size))
        unit[indices, np.arange(indices.size)] = 1
        return self._forward(unit)

    def to_dense(self) -> Array:
        """The matrix (m, n), formed column by column where the operator is matrix-free."""
        return self._matrix if self.is_dense else self._forward(np.eye(self.shape[1]))

    def compose(self, inner: Operator) -> Operator:
        """`A B` for an operator `B` that acts first; orthonormal `B` keeps what is known of `A`.

        Raises:
            InputError: the inner sizes differ.
        """
        if self.shape[1] != inner.shape[0]:
            problem = f"A has {self.shape[1]} columns and the basis makes {inner.shape[0]} samples"
            raise InputError("basis", problem, "use a basis of the signal's length")
        unitary = inner.orthonormal
        shape = (self.shape[0], inner.shape[1])
        dense = None
        if self.is_dense and shape[0] * shape[1] <= MAX_DENSE_ELEMENTS:
            dense = lambda: _product(self, inner)  # noqa: E731
        return Operator(
            shape,
            np.result_type(self.dtype, inner.dtype),
            lambda c: self._forward(inner._forward(c)),
            lambda y: inner._adjoint(self._adjoint(y)),
            name=f"{self.name} {inner.name}",
            norm=self._known_norm if unitary else None,
            row_orthonormal=self.row_orthonormal and inner.row_orthonormal,
            dense=dense,
            trusted=self.trusted and inner.trusted,
        )

    def counting(self, count: Callable[[int], None]) -> Operator:
        """The same operator, which reports the number of vectors of every product."""

        def counted(function: Map) -> Map:
            def apply(x: Array) -> Array:
                count(1 if x.ndim == 1 else x.shape[1])
                return function(x)

            return apply

        twin = copy.copy(self)
        twin._forward, twin._adjoint = counted(self._forward), counted(self._adjoint)
        return twin

    @cached_property
    def dot_test(self) -> float:
        """`adjoint_error` of this operator, measured once."""
        return adjoint_error(self)


def _product(outer: Operator, inner: Operator) -> Array:
    if inner.is_dense:
        return np.asarray(outer.to_dense() @ inner.to_dense())
    return np.ascontiguousarray(inner.adjoint(outer.to_dense().conj().T).conj().T)


def as_operator(A: MatrixLike) -> Operator:
    """`A` as an `Operator`: arrays and tensors become dense ones, LinearOperators are wrapped.

    Dense data is held in float64 or complex128, whatever precision it came in.

    Raises:
        InputError: not a matrix, empty, or with NaN or Inf.
    """
    if isinstance(A, Operator):
        return A
    if isinstance(A, LinearOperator):
        return _from_linear_operator(A)
    return from_matrix(A)


def from_matrix(A: MatrixLike, *, row_orthonormal: bool = False) -> Operator:
    """The operator `x -> A x` of a matrix: array (m, n), sparse matrix or torch tensor.

    Args:
        A: the matrix; held in float64 or complex128.
        row_orthonormal: say so if `A A^H = I`; it is not checked.

    Raises:
        InputError: not a matrix, empty, or with NaN or Inf.

    Example:
        >>> from_matrix([[3.0, 0.0], [0.0, 4.0]]).norm()
        4.0
    """
    if issparse(A):
        return _from_sparse(A)
    matrix = to_numpy(A)
    if matrix.ndim == 0:
        text = f"{type(A).__name__} is not a matrix"
        advice = "pass an array (m, n), or operators.from_functions(shape, forward, adjoint)"
        raise InputError("A", text, advice)
    if matrix.ndim != 2 or 0 in matrix.shape:
        problem = f"shape {matrix.shape} is not a matrix (m, n) with m, n >= 1"
        raise InputError("A", problem, "pass measurements as rows and unknowns as columns")
    matrix = as_double(matrix, "A")
    adjoint = matrix.conj().T if np.iscomplexobj(matrix) else matrix.T
    return Operator(
        matrix.shape,
        matrix.dtype,
        lambda x: np.asarray(matrix @ x),
        lambda y: np.asarray(adjoint @ y),
        name="matrix",
        row_orthonormal=row_orthonormal,
        dense=matrix,
    )


def _from_sparse(A: Any) -> Operator:
    matrix = A.tocsr().astype(np.result_type(A.dtype, np.float64))
    if not np.isfinite(matrix.data).all():
        raise InputError("A", "the sparse matrix holds NaN or Inf", "clean the data")
    adjoint = matrix.conj().T.tocsr()
    return Operator(
        matrix.shape,
        matrix.dtype,
        lambda x: np.asarray(matrix @ x),
        lambda y: np.asarray(adjoint @ y),
        name="sparse matrix",
        column_norms=lambda: np.sqrt(np.asarray(abs(matrix).power(2).sum(axis=0)).ravel()),
        dense=matrix.toarray if np.prod(matrix.shape) <= MAX_DENSE_ELEMENTS // 8 else None,
    )


def _from_linear_operator(A: LinearOperator) -> Operator:
    dtype = A.dtype if A.dtype is not None else (A @ np.zeros(A.shape[1])).dtype
    return Operator(
        A.shape,
        dtype,
        lambda x: np.asarray(A.matvec(x) if x.ndim == 1 else A.matmat(x)),
        lambda y: np.asarray(A.rmatvec(y) if y.ndim == 1 else A.rmatmat(y)),
        name=type(A).__name__,
        trusted=False,
    )


def from_functions(
    shape: tuple[int, int],
    forward: Map,
    adjoint: Map,
    *,
    dtype: DTypeLike = np.float64,
    norm: float | None = None,
    row_orthonormal: bool = False,
) -> Operator:
    """The operator of a pair of functions `x -> A x` and `y -> A^H y` on vectors.

    Args:
        shape: (m, n).
        forward: takes (n,), gives (m,); several signals are passed one at a time.
        adjoint: takes (m,), gives (n,); `adjoint_error` tells whether it is the adjoint.
        dtype: float or complex.
        norm: `||A||_2` if known; else it is estimated when first needed.
        row_orthonormal: say so if `A A^H = I`; it is not checked.

    Example:
        >>> A = from_functions((3, 3), np.cumsum, lambda y: np.cumsum(y[::-1])[::-1])
        >>> A @ np.ones(3)
        array([1., 2., 3.])
        >>> adjoint_error(A) < 1e-12
        True
    """
    return Operator(
        shape,
        dtype,
        _columnwise(forward, "forward", shape[0]),
        _columnwise(adjoint, "adjoint", shape[1]),
        name="functions",
        norm=norm,
        row_orthonormal=row_orthonormal,
        trusted=False,
    )


def _columnwise(function: Map, name: str, size: int) -> Map:
    def single(x: Array) -> Array:
        found = np.asarray(function(x))
        if found.shape != (size,):
            text = f"{name} makes shape {found.shape} of {x.shape}, and ({size},) is declared"
            raise InputError("functions", text, "correct the function, or the shape (m, n)")
        return found

    def apply(X: Array) -> Array:
        if X.ndim == 1:
            return single(X)
        return np.stack([single(column) for column in X.T], axis=1)

    return apply


def adjoint_error(A: MatrixLike, *, seed: int = 0) -> float:
    """The dot test `|<A x, y> - <x, A^H y>| / (||A x|| ||y|| + ||x|| ||A^H y||)` at random x, y.

    About 1e-16 where `A^H` is the adjoint in float64, 1e-8 in float32, and near 1 where it is not.
    """
    A = as_operator(A)
    rng = np.random.default_rng(seed)
    x, y = (rng.standard_normal(size) for size in A.shape[::-1])
    if A.is_complex:
        x, y = (v + 1j * rng.standard_normal(v.size) for v in (x, y))
    Ax, Ay = A @ x, A.H @ y
    scale = np.linalg.norm(Ax) * np.linalg.norm(y) + np.linalg.norm(x) * np.linalg.norm(Ay)
    return float(abs(np.vdot(y, Ax) - np.vdot(Ay, x)) / scale) if scale > 0 else 0.0
