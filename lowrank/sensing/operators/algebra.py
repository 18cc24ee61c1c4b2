"""Operators made of others, and what is known of them."""

from __future__ import annotations

from functools import partial

import numpy as np

from lowrank.sensing import facts as rules
from lowrank.sensing.operators import diagonal
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.operator import Operator, as_operator


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
        name=f"real parts of {A.name}",
        facts=rules.real_parts(A.facts),
        dense=dense,
        trusted=A.trusted,
        recipe=partial(for_real_signals, A),
    )


def scaled_columns(A: Operator, factors: Array) -> Operator:
    """`A diag(factors)`."""
    return A @ diagonal(factors)
