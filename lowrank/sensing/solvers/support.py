"""What the greedy solvers share: unit columns, the largest entries, least squares on a support."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lowrank.sensing.operators.algebra import scaled_columns
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.scaling import SPREAD
from lowrank.status import Status

Step = Callable[[Operator, Array, Callback | None], tuple[Array, Status, list[float]]]
"""Solves one column y (m,): coefficients, status, residual norm of each iteration."""


def dependence(dtype: np.dtype[Any]) -> float:
    """Length below which what is left of a unit column counts as zero."""
    return math.sqrt(float(np.finfo(dtype).eps))


class Dictionary:
    """The columns of an operator, at unit length; rows of every array are signals.

    Attributes:
        norms: of the columns, (n,); 1 for a zero column, which correlates with nothing.
        n_products: products so far with a dense matrix; None where the operator counts them.
    """

    def __init__(self, operator: Operator) -> None:
        norms = operator.column_norms()
        self.operator, self.norms = operator, np.where(norms > 0, norms, 1.0)
        self.n_products: int | None = 0 if operator.is_dense else None
        self.rows: Array | None = None
        self.single: Array | None = None
        if operator.is_dense:
            unit = operator.to_dense() / self.norms
            self.rows = np.ascontiguousarray(unit.T)  # (n, m): atoms are gathered as rows
            self.single = unit.astype(np.complex64 if np.iscomplexobj(unit) else np.float32)

    def strength(self, R: Array) -> Array:
        """`|<a_j, r>|` for every column and every row r of R (batch, m); (batch, n), writable.

        In single precision for a matrix: the largest is looked for, and half the time is saved.
        """
        if self.single is None:
            return np.abs(self.operator.adjoint(np.ascontiguousarray(R.T)).T / self.norms)
        self.n_products = (self.n_products or 0) + R.shape[0]
        product = R.conj().astype(np.complex64 if np.iscomplexobj(R) else np.float32) @ self.single
        return np.abs(product, out=None if np.iscomplexobj(product) else product)

    def atoms(self, J: Array) -> Array:
        """Unit columns, (len(J), m)."""
        if self.rows is not None:
            return np.asarray(self.rows[J])
        unique, position = np.unique(J, return_inverse=True)
        return np.asarray((self.operator.columns(unique) / self.norms[unique]).T[position])


def largest(v: Array, k: int) -> Array:
    """Indices of the k entries of largest modulus, (k,), in ascending order."""
    if k >= v.size:
        return np.arange(v.size)
    return np.sort(np.argpartition(-np.abs(v), k - 1)[:k])


def fit(A: Operator, S: Array, y: Array) -> tuple[Array, Array]:
    """Least squares on the columns S: coefficients (n,) and residual (m,)."""
    columns = A.columns(S)
    inside = np.linalg.lstsq(columns, y, rcond=None)[0]
    c = np.zeros(A.shape[1], dtype=inside.dtype)
    c[S] = inside
    return c, y - columns @ inside


def unit_columns(A: Operator) -> tuple[Operator, Array | None]:
    """`A` with columns of norm 1, and their norms; A itself and None where they are alike.

    Correlations with columns of uneven length say more of the length than of the fit.
    """
    if not A.knows_column_norms:
        return A, None
    norms = A.column_norms()
    norms = np.where(norms > 0, norms, 1.0)
    if norms.max() <= SPREAD * norms.min():
        return A, None
    return scaled_columns(A, 1 / norms), norms


def each_column(problem: Problem, step: Step, callback: Callback | None) -> SolverResult:
    """Run a solver of single signals over the columns of y; the status is the worst of them.

    It sees columns of norm 1 where A's are uneven, so its largest entries are those that
    contribute most to y; coefficients come back in units of A.
    """
    y = np.asarray(problem.y)
    columns = y.reshape(y.shape[0], -1).T.astype(problem.dtype)
    A, norms = unit_columns(problem.operator)
    shown = _Shown(callback, np.zeros((problem.n_unknowns, len(columns)), problem.dtype), norms)
    found = []
    for j, column in enumerate(columns):
        found.append(step(A, column, shown.column(j, problem.unknown_shape)))
        if shown.stopped:  # what is left stays zero
            nothing = np.zeros(problem.n_unknowns, problem.dtype), Status.MAX_ITER, list[float]()
            found += [nothing] * (len(columns) - 1 - j)
            break
    if norms is not None:
        found = [(c / norms, status, history) for c, status, history in found]
    order = [Status.CONVERGED, Status.MAX_ITER, Status.STALLED, Status.DIVERGED]
    histories = [history for _, _, history in found]
    longest = max(histories, key=len)
    return SolverResult(
        np.stack([c for c, _, _ in found], axis=1).reshape(problem.unknown_shape),
        status=max((status for _, status, _ in found), key=order.index),
        n_iter=len(longest),
        history={"residual_norm": longest},
    )


class _Shown:
    """Collects what the columns of a batch have come to, and shows it as iterations of one run."""

    def __init__(self, callback: Callback | None, found: Array, norms: Array | None) -> None:
        self.callback, self.found, self.norms = callback, found, norms
        self.stopped, self.calls = False, itertools.count(1)

    def column(self, j: int, shape: tuple[int, ...]) -> Callback | None:
        """What the solver of a column is to call; None where nobody looks on."""
        if self.callback is None:
            return None
        callback = self.callback

        def watch(_: int, c: Array) -> bool:
            self.found[:, j] = c if self.norms is None else c / self.norms
            self.stopped = bool(callback(next(self.calls), self.found.copy().reshape(shape)))
            return self.stopped

        return watch
