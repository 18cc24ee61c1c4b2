"""Random measurement matrices."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import coo_array

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import as_length
from lowrank.sensing.operators.operator import Operator, from_matrix


def gaussian(
    m: int, n: int, *, seed: int | np.random.Generator, dtype: DTypeLike = np.float64
) -> Operator:
    """A dense matrix of independent N(0, 1/m) entries (circular for complex dtypes).

    Args:
        m: measurements.
        n: unknowns.
        seed: integer or generator.
        dtype: real or complex.

    Example:
        >>> gaussian(20, 50, seed=0).shape
        (20, 50)
    """
    rng, m, n = np.random.default_rng(seed), as_length(m, "m"), as_length(n)
    matrix = rng.standard_normal((m, n)) / np.sqrt(m)
    if np.issubdtype(dtype, np.complexfloating):
        matrix = (matrix + 1j * rng.standard_normal((m, n)) / np.sqrt(m)) / np.sqrt(2)
    return from_matrix(matrix)


def rademacher(m: int, n: int, *, seed: int | np.random.Generator) -> Operator:
    """A dense matrix of independent signs `+-1/sqrt(m)`; columns of length 1.

    Example:
        >>> bool(np.allclose(rademacher(20, 50, seed=0).column_norms(), 1))
        True
    """
    m, n = as_length(m, "m"), as_length(n)
    signs = np.random.default_rng(seed).integers(0, 2, (m, n)) * 2.0 - 1
    return from_matrix(signs / np.sqrt(m))


def sparse_binary(
    m: int, n: int, *, seed: int | np.random.Generator, ones: int | None = None
) -> Operator:
    """A sparse matrix with d entries `1/sqrt(d)` in each column, at random rows.

    Args:
        m: measurements.
        n: unknowns.
        seed: integer or generator.
        ones: d, 1 .. m; None is about the logarithm of n.

    Raises:
        InputError: d outside 1 .. m.

    Example:
        >>> sparse_binary(20, 50, seed=0, ones=4).to_dense().sum(axis=0)[:2]
        array([2., 2.])

    Source: Berinde, Gilbert, Indyk, Karloff, Strauss 2008 (adjacency of a left-regular graph).
    """
    m, n = as_length(m, "m"), as_length(n)
    d = min(m, max(2, round(np.log(n)))) if ones is None else ones
    if not 1 <= d <= m:
        raise InputError("ones", f"{d} is outside 1..{m}", "place at most m ones in a column")
    rng = np.random.default_rng(seed)
    rows = np.argpartition(rng.random((m, n)), d - 1, axis=0)[:d]  # d distinct rows per column
    values = np.full(d * n, 1 / np.sqrt(d))
    return from_matrix(coo_array((values, (rows.T.ravel(), np.repeat(np.arange(n), d))), (m, n)))
