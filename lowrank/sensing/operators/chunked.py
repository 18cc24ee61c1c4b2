"""Dask arrays: products block by block, and tall ones reduced to their triangle in one pass."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, as_double, to_numpy
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.foreign import Foreign

IN_MEMORY = 2**24
"""Entries up to which the array is taken as the matrix it is: 128 MiB."""


BLOCK_ROWS = 4
"""Rows of a block, over its columns, from which on its triangle is much smaller than itself."""


def is_chunked(A: Any) -> bool:
    """Whether the value is a Dask array; does not import Dask."""
    kind = type(A)
    return kind.__module__.startswith("dask.array") and kind.__name__ == "Array"


def checked(A: Any) -> Any:
    """A Dask array (m, n) of numbers.

    Raises:
        InputError: it has another form, or rows that Dask has not counted.
    """
    if A.ndim != 2 or 0 in A.shape:
        text = f"shape {A.shape} is not a matrix (m, n) with m, n >= 1"
        raise InputError("A", text, "pass measurements as rows and unknowns as columns")
    if np.isnan(A.shape).any():
        text = f"shape {A.shape}: Dask has not counted its rows"
        raise InputError("A", text, "call A.compute_chunk_sizes() first")
    if A.dtype.kind not in "biufc":
        raise InputError("A", f"dtype {A.dtype} is not numeric", "pass real or complex data")
    return A


def fits_in_memory(A: Any) -> bool:
    """Whether it is held as a matrix."""
    return A.shape[0] * A.shape[1] <= IN_MEMORY


def read_chunks(A: Any) -> Foreign:
    """Products of a Dask array, one pass over its blocks each; one more finds its columns' norms.

    Raises:
        InputError: it holds NaN or Inf.
    """
    adjoint = A.conj().T
    norms = np.sqrt(np.asarray((abs(A.astype(_double(A))) ** 2).sum(axis=0).compute()))
    bad = np.count_nonzero(~np.isfinite(norms))
    if bad:
        raise InputError(
            "A", f"{bad} of its {norms.size} columns hold NaN or Inf", "clean the data"
        )
    return Foreign(
        (int(A.shape[0]), int(A.shape[1])),
        _double(A),
        lambda x: np.asarray((A @ x).compute()),
        lambda y: np.asarray((adjoint @ y).compute()),
        "Dask array",
        Facts(column_norms=norms.copy),
    )


def _double(A: Any) -> np.dtype[Any]:
    return np.result_type(A.dtype, np.float64)


def reduced_rows(A: Any, y: Any) -> tuple[Any, Any, str]:
    """`(R, z)` of n + 1 rows with `||R x - z|| = ||A x - y||` for every x, and what was done.

    The triangle of the QR decomposition of `(A, y)`, whose blocks' own triangles are found first,
    in one pass. With several signals, y is (m, batch), and the rows are n + batch. What is no tall
    Dask array beyond `IN_MEMORY` comes back as it is.

    Raises:
        InputError: A holds NaN or Inf.
    """
    if not is_chunked(A) or fits_in_memory(checked(A)):
        return A, y, ""
    m, n = A.shape
    data = to_numpy(y)
    rows = BLOCK_ROWS * (n + (data.shape[1] if data.ndim == 2 else 1))
    if m <= rows or data.shape[:1] != (m,):
        return A, y, ""
    data = as_double(data, "y").reshape(m, -1)
    tall = A.rechunk({0: max(rows, *A.chunks[0]), 1: -1}).astype(_double(A))
    cuts = np.cumsum((0, *tall.chunks[0]))
    triangles = [
        _triangle(np.hstack([as_double(np.asarray(tall[a:b].compute()), "A"), data[a:b]]))
        for a, b in pairwise(cuts)
    ]
    R = _triangle(np.vstack(triangles))
    z = R[:, n:].reshape(len(R), *np.shape(y)[1:])
    return R[:, :n], z, f"{m} rows reduced to {len(R)} by QR; "


def _triangle(block: Array) -> Array:
    return np.asarray(np.linalg.qr(block, mode="r"))
