"""Measurement operators `A`: dense or matrix-free, real or complex, with what is known of them.

Every operator is a `scipy.sparse.linalg.LinearOperator`, so `A @ x`, `A.H @ y` and SciPy's
iterative methods work on it. Signals of more than one dimension are flattened in C order.
"""

from __future__ import annotations

from lowrank.sensing.operators.algebra import block_diag, diagonal, for_real_signals, hstack, vstack
from lowrank.sensing.operators.arrays import (
    Array,
    Map,
    MatrixLike,
)
from lowrank.sensing.operators.convolution import circular_convolution, toeplitz
from lowrank.sensing.operators.differentiated import from_torch
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.masks import radial_mask, variable_density_mask
from lowrank.sensing.operators.operator import (
    Operator,
    adjoint_error,
    as_operator,
    from_functions,
    from_matrix,
)
from lowrank.sensing.operators.random import gaussian, rademacher, sparse_binary
from lowrank.sensing.operators.subsampled import (
    partial_dct,
    partial_fourier,
    partial_hadamard,
    random_convolution,
    sampling,
)

__all__ = [
    "Array",
    "Facts",
    "Map",
    "MatrixLike",
    "Operator",
    "adjoint_error",
    "as_operator",
    "block_diag",
    "circular_convolution",
    "diagonal",
    "for_real_signals",
    "from_functions",
    "from_matrix",
    "from_torch",
    "gaussian",
    "hstack",
    "partial_dct",
    "partial_fourier",
    "partial_hadamard",
    "rademacher",
    "radial_mask",
    "random_convolution",
    "sampling",
    "sparse_binary",
    "toeplitz",
    "variable_density_mask",
    "vstack",
]
