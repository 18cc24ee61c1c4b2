"""Operators made of others, and what is known of them."""

from __future__ import annotations

import numpy as np

from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.operator import Operator, as_operator


def _rows(A: Operator, rows: Array) -> Operator:
    """The operator that keeps these measurements."""
    if A.dense is not None:
        return as_operator(A.dense[rows])

    def spread(r: Array) -> Array:
        full = np.zeros((A.shape[0], *r.shape[1:]), dtype=r.dtype)
        full[rows] = r
        return A.adjoint(full)

    shape = (rows.size, A.shape[1])
    return Operator(shape, A.dtype, lambda x: A.forward(x)[rows], spread, name=f"rows of {A.name}")


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


def scaled_columns(A: Operator, factors: Array) -> Operator:
    """`A diag(factors)`."""

    def like(x: Array) -> Array:
        return factors.reshape(-1, *(1,) * (x.ndim - 1))

    return Operator(
        A.shape,
        A.dtype,
        lambda x: A.forward(like(x) * x),
        lambda y: like(y) * A.adjoint(y),
        name=A.name,
        dense=(lambda: A.to_dense() * factors) if A.is_dense else None,
        column_norms=lambda: A.column_norms() * factors,
    )
