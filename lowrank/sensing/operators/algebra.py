"""Operators made of others, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike
from scipy import sparse

import lowrank.sensing.operators.facts as rules
from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, Map, MatrixLike, as_double, to_numpy
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import (
    LONGEST_NAME,
    MAX_DENSE_ELEMENTS,
    Operator,
    as_operator,
    shifted_maps,
)


def for_real_signals(A: MatrixLike) -> Operator:
    """A complex operator as a real one for real signals: `x -> (Re A x, Im A x)`, (2 m, n).

    Measurements go with it: `y -> np.concatenate([y.real, y.imag])`.

    Example:
        >>> from lowrank.sensing.operators import partial_fourier
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
        name=f"real parts of {A.name}",
        facts=rules.real_parts(A.facts),
        dense=dense,
        trusted=A.trusted,
        recipe=partial(for_real_signals, A),
    )


def diagonal(values: ArrayLike) -> Operator:
    """The diagonal matrix of these values, `x -> values * x`, matrix-free.

    `diagonal(1 / std) @ A` weighs measurements by their accuracy; `A @ diagonal(1 / norms)` has
    columns of other lengths.

    Args:
        values: (n,), real or complex.

    Raises:
        InputError: values of another form, or with NaN or Inf.

    Example:
        >>> diagonal([1.0, 2.0]) @ np.array([3.0, 4.0])
        array([3., 8.])
    """
    d = as_double(to_numpy(values), "values")
    if d.ndim != 1 or d.size == 0:
        raise InputError("values", f"shape {d.shape} is no diagonal", "pass (n,)")

    def like(x: Array) -> Array:
        return d.reshape(-1, *(1,) * (x.ndim - 1))

    return Operator(
        (d.size, d.size),
        d.dtype,
        lambda x: like(x) * x,
        lambda y: like(y).conj() * y,
        name="diagonal",
        facts=Facts(diagonal=d),
        recipe=partial(diagonal, d),
    )


def hstack(parts: Sequence[MatrixLike]) -> Operator:
    """Operators side by side, `x -> A_1 x_1 + A_2 x_2 + ...`; x stacks the parts.

    Args:
        parts: matrices or operators of m rows each.

    Raises:
        InputError: none, or of different numbers of rows.

    Example:
        >>> hstack([np.eye(2), [[3.0], [4.0]]]) @ np.array([1.0, 2.0, 1.0])
        array([4., 6.])
    """
    made = _checked_parts("hstack", parts, axis=0)
    cuts = np.cumsum([part.shape[1] for part in made])
    return _of_parts(
        made,
        (made[0].shape[0], int(cuts[-1])),
        lambda x: _total(p.forward(z) for p, z in zip(made, np.split(x, cuts[:-1]), strict=True)),
        lambda y: np.concatenate([part.adjoint(y) for part in made]),
        "side by side",
        rules.side_by_side([part._told() for part in made]),
        lambda matrices: np.concatenate(matrices, axis=1),
        lambda matrices: sparse.hstack(matrices, format="csc"),
        partial(hstack, made),
    )


def vstack(parts: Sequence[MatrixLike]) -> Operator:
    """Operators one above the other, `x -> (A_1 x, A_2 x, ...)`.

    Args:
        parts: matrices or operators of n columns each.

    Raises:
        InputError: none, or of different numbers of columns.

    Example:
        >>> vstack([np.eye(2), [[3.0, 4.0]]]) @ np.array([1.0, 2.0])
        array([ 1.,  2., 11.])
    """
    made = _checked_parts("vstack", parts, axis=1)
    cuts = np.cumsum([part.shape[0] for part in made])
    return _of_parts(
        made,
        (int(cuts[-1]), made[0].shape[1]),
        lambda x: np.concatenate([part.forward(x) for part in made]),
        lambda y: _total(p.adjoint(z) for p, z in zip(made, np.split(y, cuts[:-1]), strict=True)),
        "stack",
        rules.stacked([part._told() for part in made]),
        np.concatenate,
        lambda matrices: sparse.vstack(matrices, format="csc"),
        partial(vstack, made),
    )


def block_diag(parts: Sequence[MatrixLike]) -> Operator:
    """Operators as blocks on the diagonal, `x -> (A_1 x_1, A_2 x_2, ...)`; x stacks the parts.

    Args:
        parts: matrices or operators.

    Raises:
        InputError: none.

    Example:
        >>> block_diag([np.eye(2), [[3.0, 4.0]]]) @ np.ones(4)
        array([1., 1., 7.])
    """
    made = _checked_parts("block_diag", parts, axis=None)
    rows, columns = (np.cumsum([part.shape[axis] for part in made]) for axis in (0, 1))

    def each(name: str, x: Array, cuts: Array) -> Array:
        pieces = zip(made, np.split(x, cuts[:-1]), strict=True)
        return np.concatenate([getattr(part, name)(piece) for part, piece in pieces])

    return _of_parts(
        made,
        (int(rows[-1]), int(columns[-1])),
        lambda x: each("forward", x, columns),
        lambda y: each("adjoint", y, rows),
        "blocks",
        rules.along_diagonal([part._told() for part in made]),
        lambda matrices: scipy.linalg.block_diag(*matrices),
        lambda matrices: sparse.block_diag(matrices, format="csc"),
        partial(block_diag, made),
    )


def _checked_parts(name: str, parts: Sequence[MatrixLike], axis: int | None) -> list[Operator]:
    made = [as_operator(part) for part in parts]
    if not made:
        raise InputError(name, "no operators were given", "pass one or more in a list")
    sizes = sorted({part.shape[axis] for part in made}) if axis is not None else []
    if len(sizes) > 1:
        text = f"parts have {_listed(sizes)} {'rows' if axis == 0 else 'columns'}"
        raise InputError(name, text, "these must be as many")
    return made


def _listed(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes))


def _total(parts: Iterable[Array]) -> Array:
    return np.asarray(sum(parts))


def _of_parts(
    parts: list[Operator],
    shape: tuple[int, int],
    forward: Map,
    adjoint: Map,
    name: str,
    facts: Facts,
    joined: Callable[[list[Array]], Array],
    joined_sparse: Callable[[list[Any]], Any],
    recipe: Callable[[], Operator],
) -> Operator:
    """An operator that lays others beside each other; dense, or sparse, where all of them are."""
    if len(parts) == 1:
        return parts[0]
    is_dense = all(part.is_dense for part in parts) and shape[0] * shape[1] <= MAX_DENSE_ELEMENTS
    is_sparse = all(part.is_sparse and part.shift is None for part in parts)
    names = ", ".join(dict.fromkeys(part.name for part in parts))
    return Operator(
        shape,
        np.result_type(*(part.dtype for part in parts)),
        forward,
        adjoint,
        name=f"{name} of {names}"[:LONGEST_NAME],
        facts=facts,
        dense=(lambda: joined([part.to_dense() for part in parts])) if is_dense else None,
        sparse=(lambda: joined_sparse([part.sparse for part in parts])) if is_sparse else None,
        trusted=all(part.trusted for part in parts),
        recipe=recipe,
    )


def scaled_columns(A: Operator, factors: Array) -> Operator:
    """`A diag(factors)`."""
    return A @ diagonal(factors)


def centred_sparse(matrix: Any, u: Array, middle: Array) -> Operator:
    """`matrix - u middle^T` for a sparse matrix, which stays sparse: centred, or weighted, columns.

    Args:
        matrix: SciPy's sparse matrix (m, n), real.
        u: (m,).
        middle: (n,).

    Example:
        >>> from scipy.sparse import csc_array
        >>> matrix = csc_array([[1.0, 0.0], [3.0, 4.0]])
        >>> A = centred_sparse(matrix, np.ones(2), np.array([2.0, 2.0]))
        >>> A.to_dense().tolist()
        [[-1.0, -2.0], [1.0, 2.0]]
    """
    A = as_operator(matrix)
    return Operator(
        A.shape,
        A.dtype,
        *shifted_maps((A.forward, A.adjoint), (u, middle)),
        name="centred sparse matrix",
        sparse=A.sparse,
        shift=(u, middle),
        recipe=partial(centred_sparse, A.sparse, u, middle),
    )
