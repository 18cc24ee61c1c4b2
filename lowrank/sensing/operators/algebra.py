"""Operators made of others, and what is known of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

import lowrank.sensing.operators.facts as rules
from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, MatrixLike, as_double, to_numpy
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import Operator, as_operator


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

    def by(v: Array, x: Array) -> Array:
        return v if x.ndim == 1 else v[:, None]

    return Operator(
        A.shape,
        A.dtype,
        lambda x: A.forward(x) - by(u, x) * (middle @ x),
        lambda y: A.adjoint(y) - by(middle, y) * (u @ y),
        name="centred sparse matrix",
        sparse=A.sparse,
        shift=(u, middle),
        recipe=partial(centred_sparse, A.sparse, u, middle),
    )
