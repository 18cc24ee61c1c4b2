"""The `Operator`: a linear map, dense or matrix-free, with its adjoint, its algebra and its facts.

Every operator is a `scipy.sparse.linalg.LinearOperator`, so `A @ x`, `A.H @ y` and SciPy's
iterative methods work on it. Signals of more than one dimension are flattened in C order.

`A @ B`, `2 * A`, `A + B`, `A.H`, `A.T`, `A.conj()`, `A[rows]` and `A[:, columns]` are operators
too, and keep what `lowrank.sensing.operators.facts` proves of them.
"""

from __future__ import annotations

import copy
import numbers
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial, reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy.sparse import diags_array, issparse
from scipy.sparse.linalg import ArpackError, LinearOperator, svds

import lowrank.sensing.operators.facts as rules
from lowrank.errors import InputError
from lowrank.sensing.operators import chunked, foreign
from lowrank.sensing.operators.arrays import (
    Array,
    Map,
    MatrixLike,
    as_double,
    is_torch,
    to_numpy,
    to_tensor,
)
from lowrank.sensing.operators.carried import Carried
from lowrank.sensing.operators.facts import ROUNDING, Facts
from lowrank.sensing.operators.foreign import FORMED, Foreign, each_vector, is_map

MAX_DENSE_ELEMENTS = 2**27
"""Largest product matrix (1 GiB of float64) that a product with a dense operator may form.

`python benchmarks/formed_products.py`: up to here a LASSO takes about the same time either way, 0.4
to 1.2 of the matrix-free one, and from the matrix its gap is 1e-14, not 1e-7; it costs twice the
matrix in memory, 2 GiB at the bound, beyond which the exact solvers take none.
"""


BLOCK = 2**22
"""Entries of a matrix that a matrix-free operator is applied to at a time."""


MANY = 1024
"""Columns up to which a matrix is formed from its columns, at once."""


ADJOINT = 1e-5
"""Error of the adjoint up to which the rows that it gives are those of the operator."""


LINEAR = 1e-4
"""Relative difference up to which products and the matrix of their columns agree."""


FILLED = 0.1
"""Share of entries up to which a product of sparse matrices is taken as one."""


LONGEST_NAME = 60
"""Characters of a name that is made of the names of others."""


UNKNOWN = Facts()
"""Of a matrix of which nothing is said, and from which nothing follows."""


class Operator(LinearOperator):  # type: ignore[misc]
    """A linear map `A` from (n,) to (m,), with its adjoint and the facts solvers ask for.

    Operators are compared by identity and never change. They pickle where their functions do.

    Args:
        shape: (m, n).
        dtype: of the matrix the operator stands for; complex if `A` maps real to complex.
        forward: `x -> A x` along axis 0, for x of shape (n,) and (n, batch).
        adjoint: `y -> A^H y` along axis 0, for y of shape (m,) and (m, batch).
        name: what messages call it.
        facts: what is known of the matrix, and not measured.
        dense: the matrix itself, or a function that makes it when first asked; None if matrix-free.
        sparse: the matrix in SciPy's CSC form, where it is sparse, or a function that makes it.
        shift: `(u, v)` where the matrix is `sparse - u v^T`, as for centred columns.
        trusted: the adjoint is known to be the adjoint; else solving runs the dot test once.
        recipe: function of no arguments that makes the operator again, for pickling; None calls
            this class with these arguments.

    Attributes:
        facts: as given, with what follows from them.
        name: what messages call it.
        trusted: whether the dot test can be left out.

    Raises:
        InputError: facts that no matrix of this shape has.

    Example:
        >>> A = Operator((2, 3), float, lambda x: x[:2], lambda y: np.concatenate([y, 0 * y[:1]]))
        >>> A @ np.array([1.0, 2.0, 3.0])
        array([1., 2.])
        >>> A.norm()
        1.0
        >>> rotation = from_matrix([[0.6, 0.8], [-0.8, 0.6]], row_orthonormal=True)
        >>> -2 * rotation.T
        <Operator (2, 2) -2 * matrix^T: dense, A A^H = 4 I>
    """

    __iter__ = None  # rows are picked by `A[...]`, and are no vectors

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: DTypeLike,
        forward: Map,
        adjoint: Map,
        *,
        name: str = "operator",
        facts: Facts | None = None,
        dense: Array | Callable[[], Array] | None = None,
        sparse: Any = None,
        shift: tuple[Array, Array] | None = None,
        trusted: bool = True,
        recipe: Callable[[], Operator] | None = None,
    ) -> None:
        super().__init__(np.dtype(dtype), (int(shape[0]), int(shape[1])))
        self._forward, self._adjoint = forward, adjoint
        self.name, self.trusted, self._dense, self._sparse = name, trusted, dense, sparse
        self.shift = shift
        self.facts = UNKNOWN if facts is None else _checked_facts(facts, self.shape)
        self._said, self._recipe = facts, recipe  # what follows from it may not pickle
        self._adjoint_of: Operator | None = None

    def __repr__(self) -> str:
        kind = ["complex"] if self.is_complex else []
        kind.append("dense" if self.is_dense else "matrix-free")
        rows, columns = self.facts.row_gram, self.facts.column_gram
        if rows is not None:
            kind.append(f"A A^H = {_multiple_of_identity(rows)}")
        elif columns is not None:
            kind.append(f"A^H A = {_multiple_of_identity(columns)}")
        elif self.facts.orthogonal_rows or self.facts.orthogonal_columns:
            kind.append(f"{'A A^H' if self.facts.orthogonal_rows else 'A^H A'} diagonal")
        return f"<Operator {self.shape} {self.name}: {', '.join(kind)}>"

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {k: v for k, v in self.__dict__.items() if k in ("name", "_norm")}
        return self._recipe or self._made_again(), (), kept

    def _made_again(self) -> Callable[[], Operator]:
        return partial(
            Operator,
            self.shape,
            self.dtype,
            self._forward,
            self._adjoint,
            name=self.name,
            facts=self._said,
            dense=self._dense,
            sparse=self._sparse,
            shift=self.shift,
            trusted=self.trusted,
        )

    def __copy__(self) -> Operator:
        twin = object.__new__(Operator)
        twin.__dict__.update(self.__dict__)
        return twin

    def _matvec(self, x: Array) -> Array:
        return self._forward(x.reshape(-1))  # SciPy may hand over (n, 1)

    def _rmatvec(self, y: Array) -> Array:
        return self._adjoint(y.reshape(-1))

    def _matmat(self, X: Array) -> Array:
        return self._forward(X)

    def _rmatmat(self, Y: Array) -> Array:
        return self._adjoint(Y)

    def __matmul__(self, other: Any) -> Any:
        inner = _as_factor(other)
        return self._applied(other) if inner is None else _product(self, inner)

    def __rmatmul__(self, other: Any) -> Any:
        outer = _as_factor(other)
        if outer is not None:
            return _product(outer, self)
        values = to_numpy(other)
        if values.ndim not in (1, 2) or values.shape[-1] != self.shape[0]:
            text = f"shape {values.shape}, and A has {self.shape[0]} rows"
            raise InputError("x @ A", text, f"pass numbers ({self.shape[0]},), or rows of them")
        found = self.T._applied(values.T).T
        return to_tensor(found, other) if is_torch(other) else found

    def __mul__(self, other: Any) -> Any:
        a = _number(other)
        return self @ other if a is None else _multiple(a, self)

    def __rmul__(self, other: Any) -> Any:
        a = _number(other)
        return self.__rmatmul__(other) if a is None else _multiple(a, self)

    def dot(self, x: Any) -> Any:
        """`A x`, or the product with an operator or a number."""
        return self * x

    def __truediv__(self, other: Any) -> Operator:
        a = _number(other)
        if not a:
            raise InputError("A / a", f"{other!r} is no number other than 0", "divide by one")
        return _multiple(1 / a, self)

    def __neg__(self) -> Operator:
        return _multiple(-1.0, self)

    def __add__(self, other: Any) -> Operator:
        if _number(other) == 0:
            return self  # where `sum` begins
        return _sum(self, _as_term(other))

    def __radd__(self, other: Any) -> Operator:
        return self + other

    def __sub__(self, other: Any) -> Operator:
        return self + -_as_term(other)

    def __rsub__(self, other: Any) -> Operator:
        return _as_term(other) + -self

    def __pow__(self, p: int) -> Operator:
        if self.shape[0] != self.shape[1] or not isinstance(p, int | np.integer) or p < 1:
            text = f"power {p!r} of an operator of shape {self.shape}"
            raise InputError("A ** p", text, "take a square one to a whole power from 1 on")
        return reduce(operator.matmul, [self] * int(p))

    def __getitem__(self, picked: Any) -> Operator:
        """The operator of some rows and columns, `A[rows]`, `A[:, columns]` or both.

        Each is a slice, indices or booleans; both together give the submatrix.
        """
        pair = picked if isinstance(picked, tuple) else (picked, slice(None))
        if len(pair) != 2:
            raise InputError("A[...]", f"{len(pair)} indices", "give rows, or rows and columns")
        rows, columns = (_indices(one, size) for one, size in zip(pair, self.shape, strict=True))
        found = self if rows is None else _rows_of(self, rows)
        return found if columns is None else _columns_of(found, columns)

    def forward(self, x: Array) -> Array:
        """`A x` along axis 0 without any check, for inner loops; x is (n,) or (n, batch)."""
        return self._forward(x)

    def adjoint(self, y: Array) -> Array:
        """`A^H y` along axis 0 without any check, for inner loops; y is (m,) or (m, batch)."""
        return self._adjoint(y)

    def _applied(self, x: Any) -> Any:
        """`A x` for an array or tensor, which is checked."""
        values = to_numpy(x)
        fits = values.ndim in (1, 2) and values.shape[0] == self.shape[1]
        if not fits or values.dtype.kind not in "biufc":
            text = f"{values.dtype} of shape {values.shape}, and A has {self.shape[1]} columns"
            advice = f"pass numbers ({self.shape[1]},), or ({self.shape[1]}, batch)"
            raise InputError("A @ x", text, advice)
        found = self._forward(np.asarray(values))
        return to_tensor(found, x) if is_torch(x) else found

    @property
    def recipe(self) -> Callable[[], Operator] | None:
        """What makes the operator again, where that is known."""
        return self._recipe

    @property
    def H(self) -> Operator:
        """The adjoint operator `A^H`, (n, m)."""
        if self._adjoint_of is not None:
            return self._adjoint_of
        found = Operator(
            self.shape[::-1],
            self.dtype,
            self._adjoint,
            self._forward,
            name=f"{_factor(self)}^H" if self.is_complex else f"{_factor(self)}^T",
            facts=rules.adjoint(self._told()),
            dense=(lambda: self._matrix.conj().T) if self.is_dense else None,
            sparse=(lambda: self.sparse.conj().T.tocsc()) if self.is_sparse else None,
            shift=None if self.shift is None else (self.shift[1].conj(), self.shift[0].conj()),
            trusted=self.trusted,
            recipe=partial(getattr, self, "H"),
        )
        found._adjoint_of = self
        return found

    @property
    def T(self) -> Operator:
        """The transpose, (n, m): without conjugation."""
        return self.H.conj()

    def transpose(self) -> Operator:
        """The transpose, (n, m)."""
        return self.T

    def conj(self) -> Operator:
        """The operator of the complex conjugate matrix; of a real one, itself."""
        return _conjugate(self) if self.is_complex else self

    @property
    def is_complex(self) -> bool:
        """Whether the matrix is complex."""
        return bool(np.issubdtype(self.dtype, np.complexfloating))

    @property
    def row_orthonormal(self) -> bool:
        """Whether `A A^H = I` is known."""
        return _is_one(self.facts.row_gram)

    @property
    def column_orthonormal(self) -> bool:
        """Whether `A^H A = I` is known."""
        return _is_one(self.facts.column_gram)

    @property
    def orthonormal(self) -> bool:
        """Whether the operator is square, and known to have `A A^H = A^H A = I`."""
        return self.row_orthonormal and self.shape[0] == self.shape[1]

    @property
    def gram_spectrum(self) -> Array | None:
        """Eigenvalues of a circulant matrix near `A^H A`, where one is known; see `Facts`."""
        return self.facts.gram_spectrum

    @property
    def scales(self) -> Array | None:
        """How large the wavelet atoms behind the columns are, where they are; see `Facts`."""
        return self.facts.scales

    @property
    def is_dense(self) -> bool:
        """Whether `dense` gives the matrix; asking this does not form it."""
        return self._dense is not None

    @property
    def dense(self) -> Array | None:
        """The matrix (m, n), or None for a matrix-free operator."""
        return self._matrix if self.is_dense else None

    @property
    def sparse(self) -> Any:
        """The matrix (m, n) in SciPy's CSC form where it is sparse, but for `shift`; else None."""
        return self._csc if self.is_sparse else None

    @property
    def is_sparse(self) -> bool:
        """Whether `sparse` gives the matrix; asking this does not form it."""
        return self._sparse is not None

    @cached_property
    def _csc(self) -> Any:
        return self._sparse() if callable(self._sparse) else self._sparse

    @cached_property
    def _matrix(self) -> Array:
        return np.asarray(self._dense() if callable(self._dense) else self._dense)

    def norm(self) -> float:
        """The spectral norm `||A||_2`: known, or by Lanczos to about six digits, then kept."""
        return self._norm

    @cached_property
    def _norm(self) -> float:
        if self.facts.norm is not None:
            return float(self.facts.norm)
        if self.facts.norm_by is not None:
            return float(self.facts.norm_by())
        if min(self.shape) <= 64:
            return float(np.linalg.norm(self.to_dense(), 2))
        start = np.random.default_rng(0).standard_normal(min(self.shape))
        try:
            return float(svds(self, k=1, v0=start, tol=1e-7, return_singular_vectors=False)[0])
        except ArpackError:  # of A^H A near a multiple of the identity, in single precision
            return self._norm_by_powers()

    def _norm_by_powers(self, steps: int = 100) -> float:
        """Largest singular value by the power method."""
        x, norm = np.random.default_rng(0).standard_normal(self.shape[1]), 0.0
        for _ in range(steps):
            z = self._adjoint(self._forward(x / np.linalg.norm(x)))
            before, norm = norm, float(np.sqrt(np.linalg.norm(z)))
            if norm - before <= 1e-7 * norm:
                break
            x = z
        return norm

    @property
    def knows_column_norms(self) -> bool:
        """Whether `column_norms` costs no products."""
        return self.is_dense or self.facts.column_norms is not None

    @property
    def knows_row_norms(self) -> bool:
        """Whether `row_norms` costs no products."""
        return self.is_dense or self.facts.row_norms is not None

    @property
    def knows_norm(self) -> bool:
        """Whether `norm` costs no products."""
        return self.facts.norm is not None

    def column_norms(self) -> Array:
        """`||a_j||_2`, (n,): known, or from the columns themselves (n products), then kept."""
        return self._column_norms

    @cached_property
    def _column_norms(self) -> Array:
        if self.facts.column_norms is not None:
            return self.facts.column_norms()
        if self.is_dense:
            return np.sqrt(np.einsum("ij,ij->j", self._matrix.conj(), self._matrix).real)
        n, block = self.shape[1], 256
        blocks = (range(start, min(start + block, n)) for start in range(0, n, block))
        return np.concatenate([np.linalg.norm(self.columns(b), axis=0) for b in blocks])

    def row_norms(self) -> Array:
        """Lengths of the rows, (m,): known, or from the rows themselves (m products)."""
        if self.facts.row_norms is not None:
            return self.facts.row_norms()
        return np.linalg.norm(self._matrix, axis=1) if self.is_dense else self.H.column_norms()

    def columns(self, J: ArrayLike | range) -> Array:
        """The columns `A[:, J]`, (m, len(J)): a slice of the matrix, or one product each."""
        indices = np.asarray(J, dtype=int)
        if self.is_sparse:
            some = np.asarray(self.sparse[:, indices].toarray())
            if self.shift is None:
                return some
            return some - np.outer(self.shift[0], self.shift[1][indices])
        if self.is_dense:
            return np.asarray(self._matrix[:, indices])
        unit = np.zeros((self.shape[1], indices.size))
        unit[indices, np.arange(indices.size)] = 1
        return self._forward(unit)

    def to_dense(self) -> Array:
        """The matrix (m, n): where the operator is matrix-free, formed from its columns, or from
        its rows by the adjoint, if they are fewer, the columns many and the adjoint is right.
        """
        if self.is_dense:
            return self._matrix
        m, n = self.shape
        if m < n and n > MANY and (self.trusted or self.dot_test <= ADJOINT):
            return np.ascontiguousarray(_in_blocks(self.H, np.eye(m)).conj().T)
        if n <= MANY:
            return self._forward(np.eye(n))
        blocks = (range(j, min(j + MANY, n)) for j in range(0, n, MANY))
        return np.concatenate([self.columns(block) for block in blocks], axis=1)

    def counting(self, count: Callable[[int], None]) -> Operator:
        """The same operator, which reports the number of vectors of every product."""

        def counted(function: Map) -> Map:
            def apply(x: Array) -> Array:
                count(1 if x.ndim == 1 else x.shape[1])
                return function(x)

            return apply

        twin = copy.copy(self)
        twin._forward, twin._adjoint = counted(self._forward), counted(self._adjoint)
        twin._adjoint_of = None  # which does not count
        return twin

    @cached_property
    def dot_test(self) -> float:
        """`adjoint_error` of this operator, measured once."""
        return adjoint_error(self)

    def _told(self) -> Facts:
        """The facts, and how to find what is not among them, for what is made of this operator."""
        known = self.facts
        return replace(
            known,
            norm_by=None if known.norm is not None else self.norm,
            row_norms=self.row_norms if self.knows_row_norms else None,
            column_norms=self.column_norms if self.knows_column_norms else None,
        )


def _checked_facts(facts: Facts, shape: tuple[int, int]) -> Facts:
    m, n = shape
    tall, wide = m > n and facts.row_gram is not None, m < n and facts.column_gram is not None
    if tall or wide:
        text = f"{'rows' if tall else 'columns'} of a matrix {shape} cannot be orthogonal"
        raise InputError("operator", text, "leave this fact out, or state it of the adjoint")
    return facts.completed(shape)


def _is_one(gram: float | None) -> bool:
    return gram is not None and abs(gram - 1) <= 10 * ROUNDING


def _multiple_of_identity(gram: float) -> str:
    return "I" if _is_one(gram) else f"{gram:.3g} I"


def _factor(A: Operator) -> str:
    """The name as a factor of a product, in brackets if it is a sum or a product."""
    name = f"({A.name})" if " + " in A.name or " * " in A.name or " @ " in A.name else A.name
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}...)"


def _as_factor(value: Any) -> Operator | None:
    """What joins a product as an operator; None for arrays and tensors, which are vectors."""
    if is_map(value):
        return as_operator(value)
    if _number(value) is not None:
        raise InputError("A @ x", f"{value!r} is a single number", "use * for multiples")
    return None


def _as_term(value: Any) -> Operator:
    if _number(value) is not None:
        text = f"the number {value!r} is no matrix"
        raise InputError("A + B", text, "add a multiple of bases.identity(n)")
    return as_operator(value)


def _number(value: Any) -> float | complex | None:
    """A number of Python, NumPy or torch; None for what is none."""
    if isinstance(value, np.ndarray) or is_torch(value):
        if value.ndim:
            return None
        value = to_numpy(value)[()]
    if not isinstance(value, numbers.Number):
        return None
    a = complex(value) if isinstance(value, complex | np.complexfloating) else float(value)  # type: ignore[arg-type]
    if not np.isfinite(a):
        raise InputError("a * A", f"the factor is {value!r}", "multiply by a finite number")
    return a


def _indices(picked: Any, size: int) -> Array | None:
    """Indices in 0..size - 1, or None for all in order."""
    if isinstance(picked, slice):
        found = np.arange(size)[picked]
    else:
        found = to_numpy(picked)
        if found.dtype == bool and found.shape == (size,):
            found = np.flatnonzero(found)
    whole = found.ndim == 1 and found.size and found.dtype.kind in "iu"
    if not whole or found.min() < -size or found.max() >= size:
        text = f"{found.dtype} of shape {found.shape} picks nothing, or beyond 0..{size - 1}"
        raise InputError("A[...]", text, "pass a slice, indices such as [3], or booleans")
    found = np.where(found < 0, found + size, found)
    return None if found.size == size and np.all(found == np.arange(size)) else found


def _product(outer: Operator, inner: Operator) -> Operator:
    """`A B` for an operator B that acts first."""
    if outer.shape[1] != inner.shape[0]:
        text = f"A has {outer.shape[1]} columns and B has {inner.shape[0]} rows"
        raise InputError("A @ B", text, "these must be as many")
    shape = (outer.shape[0], inner.shape[1])
    small = (outer.is_dense or inner.is_dense) and shape[0] * shape[1] <= MAX_DENSE_ELEMENTS
    paired = outer._adjoint_of is inner or inner._adjoint_of is outer
    told = inner._told()
    sparse, shift = _sparse_product(outer, inner)
    return Operator(
        shape,
        np.result_type(outer.dtype, inner.dtype),
        lambda c: outer._forward(inner._forward(c)),
        lambda y: inner._adjoint(outer._adjoint(y)),
        name=f"{_factor(outer)} @ {_factor(inner)}",
        facts=rules.gram(told, shape[1]) if paired else rules.product(outer._told(), told),
        dense=(lambda: _product_matrix(outer, inner)) if small else None,
        sparse=sparse,
        shift=shift,
        trusted=outer.trusted and inner.trusted,
        recipe=partial(operator.matmul, outer, inner),
    )


def _sparse_product(
    outer: Operator, inner: Operator
) -> tuple[Callable[[], Any] | None, tuple[Array, Array] | None]:
    """How to form the product as a sparse matrix, and its shift, where it stays sparse."""
    left, right = outer.facts.diagonal, inner.facts.diagonal
    if not outer.is_sparse and not (inner.is_sparse and left is not None):
        return None, None
    form = lambda: (_as_sparse(outer) @ _as_sparse(inner)).tocsc()  # noqa: E731
    if left is not None and inner.is_sparse:
        return form, None if inner.shift is None else (left * inner.shift[0], inner.shift[1])
    if right is not None:
        return form, None if outer.shift is None else (outer.shift[0], outer.shift[1] * right)
    if not inner.is_sparse or outer.shift is not None or inner.shift is not None:
        return None, None
    per_column = np.bincount(inner.sparse.indices, minlength=inner.shape[0])
    filled = float(np.diff(outer.sparse.indptr) @ per_column)  # at most so many entries
    return (form if filled <= FILLED * outer.shape[0] * inner.shape[1] else None), None


def _product_matrix(outer: Operator, inner: Operator) -> Array:
    if inner.is_dense:
        return _in_blocks(outer, inner.to_dense())
    return np.ascontiguousarray(_in_blocks(inner.H, outer.to_dense().conj().T).conj().T)


def _in_blocks(A: Operator, X: Array) -> Array:
    """`A X`, some columns at a time, since a transform needs several copies of what it is given."""
    n, batch = X.shape
    width = max(1, BLOCK // n)
    if A.is_dense or batch <= width:
        return np.asarray(A.forward(X))
    found = np.empty((A.shape[0], batch), np.result_type(A.dtype, X.dtype, float))
    for j in range(0, batch, width):
        found[:, j : j + width] = A.forward(X[:, j : j + width])
    return found


def _multiple(a: float | complex, A: Operator) -> Operator:
    """`a A`."""
    if isinstance(a, float) and a == 1:
        return A
    return Operator(
        A.shape,
        np.result_type(A.dtype, np.complex64) if isinstance(a, complex) else A.dtype,
        lambda x: a * A._forward(x),
        lambda y: a.conjugate() * A._adjoint(y),
        name=f"{a:.4g} * {_factor(A)}",
        facts=rules.multiple(a, A._told()),
        dense=(lambda: a * A.to_dense()) if A.is_dense else None,
        sparse=(lambda: a * A.sparse) if A.is_sparse else None,
        shift=None if A.shift is None else (a * A.shift[0], A.shift[1]),
        trusted=A.trusted,
        recipe=partial(operator.mul, A, a),
    )


def _sum(A: Operator, B: Operator) -> Operator:
    """`A + B`."""
    if A.shape != B.shape:
        raise InputError("A + B", f"shapes {A.shape} and {B.shape}", "these must be alike")
    if A is B:
        return _multiple(2.0, A)
    known = [one.is_sparse or one.facts.diagonal is not None for one in (A, B)]
    sparse = (A.is_sparse or B.is_sparse) and all(known) and (A.shift is None or B.shift is None)
    return Operator(
        A.shape,
        np.result_type(A.dtype, B.dtype),
        lambda x: A._forward(x) + B._forward(x),
        lambda y: A._adjoint(y) + B._adjoint(y),
        name=f"{A.name} + {B.name}"[:LONGEST_NAME],
        facts=rules.total(A._told(), B._told()),
        dense=(lambda: A.to_dense() + B.to_dense()) if A.is_dense and B.is_dense else None,
        sparse=(lambda: _as_sparse(A) + _as_sparse(B)) if sparse else None,
        shift=(A.shift or B.shift) if sparse else None,
        trusted=A.trusted and B.trusted,
        recipe=partial(operator.add, A, B),
    )


def _as_sparse(A: Operator) -> Any:
    """The sparse matrix of an operator that is one, or is diagonal."""
    return A.sparse if A.is_sparse else diags_array(A.facts.diagonal).tocsc()


def _conjugate(A: Operator) -> Operator:
    """The complex conjugate of A."""
    return Operator(
        A.shape,
        A.dtype,
        lambda x: A._forward(x.conj()).conj(),
        lambda y: A._adjoint(y.conj()).conj(),
        name=f"conj({A.name})",
        facts=rules.conjugate(A._told()),
        dense=(lambda: A.to_dense().conj()) if A.is_dense else None,
        sparse=(lambda: A.sparse.conj()) if A.is_sparse else None,
        shift=None if A.shift is None else (A.shift[0].conj(), A.shift[1].conj()),
        trusted=A.trusted,
        recipe=partial(_conjugate, A),
    )


def _rows_of(A: Operator, kept: Array) -> Operator:
    """The rows `kept` of A."""
    facts, again = rules.rows(A._told(), kept, A.shape[0]), partial(_rows_of, A, kept)
    if A.is_sparse:
        shift = None if A.shift is None else (A.shift[0][kept], A.shift[1])
        return _of_sparse(A, A.sparse[kept], shift, facts, again)
    once = np.unique(kept).size == kept.size

    def spread(y: Array) -> Array:
        full = np.zeros((A.shape[0], *y.shape[1:]), dtype=y.dtype)
        if once:
            full[kept] = y
        else:
            np.add.at(full, kept, y)
        return A._adjoint(full)

    return _part(
        A,
        (kept.size, A.shape[1]),
        (lambda x: A._forward(x)[kept], spread),
        lambda: A.to_dense()[kept],
        facts,
        again,
    )


def _columns_of(A: Operator, kept: Array) -> Operator:
    """The columns `kept` of A."""
    facts, again = rules.columns(A._told(), kept, A.shape[1]), partial(_columns_of, A, kept)
    if A.is_sparse:
        shift = None if A.shift is None else (A.shift[0], A.shift[1][kept])
        return _of_sparse(A, A.sparse[:, kept], shift, facts, again)
    by_rows = _rows_of(A.H, kept)
    return _part(
        A,
        (A.shape[0], kept.size),
        (by_rows._adjoint, by_rows._forward),
        lambda: A.to_dense()[:, kept],
        facts,
        again,
    )


def _of_sparse(
    A: Operator,
    matrix: Any,
    shift: tuple[Array, Array] | None,
    facts: Facts,
    recipe: Callable[[], Operator],
) -> Operator:
    """Rows or columns of a sparse A, by their own matrix."""
    part = _from_sparse(matrix, facts)
    if shift is None:
        part._recipe = recipe
        return part
    return Operator(
        part.shape,
        part.dtype,
        *shifted_maps((part._forward, part._adjoint), shift),
        name=f"part of {_factor(A)}",
        facts=facts,
        sparse=part._sparse,
        shift=shift,
        trusted=A.trusted,
        recipe=recipe,
    )


def shifted_maps(maps: tuple[Map, Map], shift: tuple[Array, Array]) -> tuple[Map, Map]:
    """Products with `S - u v^T` and with its adjoint, from those of S and `shift = (u, v)`."""
    (forward, adjoint), (u, v) = maps, shift

    def by(w: Array, x: Array) -> Array:
        return w if x.ndim == 1 else w[:, None]

    return (
        lambda x: forward(x) - by(u, x) * (v @ x),
        lambda y: adjoint(y) - by(v.conj(), y) * (u.conj() @ y),
    )


def _part(
    A: Operator,
    shape: tuple[int, int],
    maps: tuple[Map, Map],
    dense: Callable[[], Array],
    facts: Facts,
    recipe: Callable[[], Operator],
) -> Operator:
    """Rows or columns of A: by its own matrix where A is one."""
    matrix: Array | Callable[[], Array] | None = dense if A.is_dense else None
    if isinstance(A._dense, np.ndarray) or "_matrix" in A.__dict__:
        matrix = dense()
        maps = _maps(matrix)
    return Operator(
        shape,
        A.dtype,
        *maps,
        name=f"part of {_factor(A)}",
        facts=facts,
        dense=matrix,
        trusted=A.trusted,
        recipe=recipe,
    )


def _maps(matrix: Array) -> tuple[Map, Map]:
    """Products with a matrix and with its adjoint."""
    adjoint = matrix.conj().T if np.iscomplexobj(matrix) else matrix.T
    return lambda x: np.asarray(matrix @ x), lambda y: np.asarray(adjoint @ y)


def as_operator(A: MatrixLike) -> Operator:
    """`A` as an `Operator`: arrays and tensors become dense ones, LinearOperators are wrapped.

    Dense data is held in float64 or complex128, whatever precision it came in. Operators of SciPy
    and PyLops that are made of others, or hold a matrix, are taken apart, so that what is known of
    the parts is known here. One without `rmatvec` is formed as a matrix where that is small. Dask
    arrays of more than 2^24 entries stay where they are: every product is a pass over them.

    Raises:
        InputError: not a matrix, empty, with NaN or Inf, large without an adjoint, not linear.

    Example:
        >>> from scipy.sparse.linalg import LinearOperator
        >>> as_operator(LinearOperator((2, 3), matvec=lambda x: x[:2], dtype=float))
        <Operator (2, 3) matrix: dense>
    """
    if isinstance(A, Operator):
        return A
    if chunked.is_chunked(A):
        held = chunked.fits_in_memory(chunked.checked(A))
        return from_matrix(A.compute()) if held else _wrapped(A, chunked.read_chunks(A))
    if is_map(A) and not issparse(A):
        return _from_foreign(A)
    weight = foreign.weight(A)
    return from_matrix(A if weight is None else weight)


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
        return _from_sparse(A, Facts(row_gram=1.0) if row_orthonormal else UNKNOWN, row_orthonormal)
    matrix = to_numpy(A)
    if matrix.ndim == 0:
        text = f"{type(A).__name__} is not a matrix"
        advice = "pass an array (m, n), or operators.from_functions(shape, forward, adjoint)"
        raise InputError("A", text, advice)
    if matrix.ndim != 2 or 0 in matrix.shape:
        problem = f"shape {matrix.shape} is not a matrix (m, n) with m, n >= 1"
        raise InputError("A", problem, "pass measurements as rows and unknowns as columns")
    matrix = as_double(matrix, "A")
    return Operator(
        matrix.shape,
        matrix.dtype,
        *_maps(matrix),
        name="matrix",
        facts=Facts(row_gram=1.0) if row_orthonormal else None,
        dense=matrix,
        recipe=partial(from_matrix, matrix, row_orthonormal=row_orthonormal),
    )


def _from_sparse(A: Any, facts: Facts = UNKNOWN, row_orthonormal: bool = False) -> Operator:
    matrix = A.tocsc().astype(np.result_type(A.dtype, np.float64), copy=False)
    if not np.isfinite(matrix.data).all():
        raise InputError("A", "the sparse matrix holds NaN or Inf", "clean the data")
    if not matrix.has_canonical_format:  # entries given twice add up, and their squares do not
        matrix = matrix.copy()
        matrix.sum_duplicates()

    def lengths(axis: int) -> Array:
        return np.sqrt(np.asarray(abs(matrix).power(2).sum(axis=axis)).ravel())

    adjoint = matrix.conj().T if np.iscomplexobj(matrix.data) else matrix.T
    return Operator(
        matrix.shape,
        matrix.dtype,
        lambda x: np.asarray(matrix @ x),
        lambda y: np.asarray(adjoint @ y),
        name="sparse matrix",
        facts=replace(
            facts,
            column_norms=facts.column_norms or (lambda: lengths(0)),
            row_norms=facts.row_norms or (lambda: lengths(1)),
        ),
        dense=matrix.toarray if np.prod(matrix.shape) <= MAX_DENSE_ELEMENTS // 8 else None,
        sparse=matrix,
        recipe=partial(from_matrix, matrix, row_orthonormal=row_orthonormal),
    )


def _from_foreign(A: Any) -> Operator:
    held = foreign.matrix(A)
    if held is not None:
        return from_matrix(held)
    made = foreign.parts(A)
    if made is not None:
        make, parts = made
        return make(*(as_operator(one) if is_map(one) else one for one in parts))
    found = foreign.read(A)
    stacked = foreign.stacked(A)
    if stacked is not None:
        follows, parts = stacked
        found = replace(found, facts=follows([as_operator(part)._told() for part in parts]))
    return _formed(found) if found.adjoint is None else _wrapped(A, found)


def _wrapped(A: Any, found: Foreign) -> Operator:
    """The operator of another library's products."""
    assert found.adjoint is not None
    return Operator(
        found.shape,
        found.dtype,
        found.forward,
        found.adjoint,
        name=found.name,
        facts=found.facts,
        trusted=chunked.is_chunked(A),
        recipe=partial(as_operator, A),
    )


def _formed(found: Foreign) -> Operator:
    """The matrix of an operator without an adjoint, from its columns."""
    m, n = found.shape
    if m * n > FORMED:
        text = f"{found.name} {found.shape} has no adjoint, and is too large to form its matrix"
        advice = "define rmatvec, y -> A^H y; operators.from_torch has it of a torch function"
        raise InputError("A", text, advice)
    blocks = (np.eye(n, min(MANY, n - j), -j) for j in range(0, n, MANY))
    matrix = np.concatenate([found.forward(unit) for unit in blocks], axis=1)
    x = np.random.default_rng(0).standard_normal(n)
    seen, expected = found.forward(x), matrix @ x
    if np.linalg.norm(seen - expected) > LINEAR * np.linalg.norm(expected):
        text = f"{found.name} is not linear: A x differs from the sum of A's columns by x"
        raise InputError("A", text, "take away what it adds; A (a x) is to be a (A x)")
    return from_matrix(matrix)


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
        each_vector(forward, (shape[1], shape[0]), "forward"),
        each_vector(adjoint, (shape[0], shape[1]), "adjoint"),
        name="functions",
        facts=Facts(norm=norm, row_gram=1.0 if row_orthonormal else None),
        trusted=False,
        recipe=partial(
            from_functions,
            shape,
            Carried(forward),
            Carried(adjoint),
            dtype=dtype,
            norm=norm,
            row_orthonormal=row_orthonormal,
        ),
    )


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
