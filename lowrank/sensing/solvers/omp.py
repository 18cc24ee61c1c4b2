"""Orthogonal matching pursuit: all signals of a batch at once, on BLAS."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import KSparse
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.support import Dictionary, dependence
from lowrank.status import Status

BLOCK_BYTES = 2**23
"""Memory for the orthonormal directions of one block of signals: they should stay in the cache."""


REORTHOGONALISE = 0.5
"""Share of a column that must remain for one Gram-Schmidt pass to do (Daniel et al. 1976)."""


@dataclass(frozen=True)
class OMP:
    """Orthogonal matching pursuit: k times, add the column that correlates most with the residual.

    The signals of a batch advance together, in blocks that fit the cache. In a step the
    correlations are one matrix product for all of them, and Gram-Schmidt gives the new direction
    `q` by which a residual loses `q q^H r`; the coefficients follow once, at the end. A matrix's
    correlations are taken in single precision, of residuals at unit length: columns whose
    correlations agree to 1e-6 are a tie.

    Attributes:
        tol: a signal is done when its residual norm is at most `tol ||y||`; its support may then
            have fewer than k elements.
        max_iter: most steps, each of which adds a column; None is k.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> OMP().solve(KSparse(A, [0.0, 2.0], 1)).coefficients
        array([0., 2., 0.])

    Source: Pati, Rezaiifar, Krishnaprasad 1993. Deviation from the Batch-OMP of Rubinstein,
    Zibulevsky, Elad 2008: their progressive update from the Gram matrix has fewer operations, but
    gathers rows signal by signal; a product from the residuals is faster, and loses no digits when
    they are small.
    """

    tol: float = 1e-12
    max_iter: int | None = None

    solves: ClassVar[tuple[type[Problem], ...]] = (KSparse,)

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Greedy steps; `x0` is ignored, and `callback` sees those of one block after another."""
        assert isinstance(problem, KSparse)
        A = Dictionary(problem.operator)
        Y = np.asarray(problem.y).reshape(problem.operator.shape[0], -1).T  # (batch, m)
        found = np.zeros((Y.shape[0], problem.n_unknowns), dtype=problem.dtype)
        m, limit = Y.shape[1], min(problem.k, self.max_iter or problem.k)
        block = max(1, BLOCK_BYTES // (problem.k * m * problem.dtype.itemsize))
        shown = _Shown(callback, found, A.norms, problem.unknown_shape)
        steps, short = 0, False
        for start in range(0, Y.shape[0], block):
            rows = slice(start, start + block)
            watch = None if callback is None else shown.block(rows)
            pursuit = pursue(A, Y[rows].astype(problem.dtype), limit, self.tol, watch)
            _write(found[rows], pursuit, A.norms)
            steps = max(steps, int(pursuit.size.max(initial=0)))
            short = short or (limit < problem.k and pursuit.active)
            if shown.stopped:
                break
        return SolverResult(
            found.T.reshape(problem.unknown_shape),
            status=Status.MAX_ITER if short or shown.stopped else Status.CONVERGED,
            n_iter=steps,
            n_products=A.n_products,
        )


class Pursuit(NamedTuple):
    """Supports (batch, k) of all signals, how much of each counts, the coefficients there.

    `active` says whether any signal would take another column.
    """

    support: Array
    size: Array
    coefficients: Array
    active: bool


def _write(found: Array, pursuit: Pursuit, norms: Array) -> None:
    """Put the coefficients in their places, in units of A."""
    rows = np.arange(len(found))[:, None]
    found[:] = 0
    np.add.at(found, (rows, pursuit.support), pursuit.coefficients / norms[pursuit.support])


class _Shown:
    """Shows the callback all signals after each step of a block, and keeps whether it stopped."""

    def __init__(
        self, callback: Callback | None, found: Array, norms: Array, shape: tuple[int, ...]
    ) -> None:
        self.callback, self.found, self.norms, self.shape = callback, found, norms, shape
        self.stopped, self.calls = False, itertools.count(1)

    def block(self, rows: slice) -> Callable[[Pursuit], bool]:
        """What the pursuit of these signals is to call."""

        def watch(pursuit: Pursuit) -> bool:
            _write(self.found[rows], pursuit, self.norms)
            assert self.callback is not None
            c = self.found.T.copy().reshape(self.shape)
            self.stopped = bool(self.callback(next(self.calls), c))
            return self.stopped

        return watch


def pursue(
    A: Dictionary, Y: Array, k: int, tol: float, watch: Callable[[Pursuit], bool] | None = None
) -> Pursuit:
    """At most k columns for each signal.

    The chosen unit columns of signal b are `Q[b, :t]^T R[b, :t, :t]`, with Q orthonormal; `inside`
    are the coefficients of y along Q.
    """
    batch, m = Y.shape
    residual = Y.copy()
    Q, R = np.empty((batch, k, m), Y.dtype), np.zeros((batch, k, k), Y.dtype)
    support, inside = np.zeros((batch, k), dtype=int), np.zeros((batch, k), Y.dtype)
    size = np.zeros(batch, dtype=int)
    length = np.linalg.norm(Y, axis=1)
    goal = tol * length
    active = length > goal
    rows = np.arange(batch)
    for t in range(k):
        if not active.any():
            break
        strength = A.strength(residual / np.where(active, length, 1)[:, None])  # (batch, n)
        strength[rows[:, None], support[:, :t]] = -1
        j = strength.argmax(axis=1)
        along, q, rest = orthogonalise(Q[:, :t], A.atoms(j))
        active &= (rest > dependence(Y.dtype)) & (strength[rows, j] > 0)
        q[~active] = 0
        share = np.einsum("bm,bm->b", q.conj(), residual)
        residual -= q * share[:, None]
        Q[:, t], support[:, t], inside[:, t] = q, j, share
        R[:, :t, t], R[:, t, t] = np.where(active[:, None], along, 0), np.where(active, rest, 1)
        size += active
        length = np.linalg.norm(residual, axis=1)
        active &= length > goal
        if watch is not None and watch(_pursuit(support, size, R, inside, active)):
            break
    return _pursuit(support, size, R, inside, active)


def _pursuit(support: Array, size: Array, R: Array, inside: Array, active: Array) -> Pursuit:
    x = back_substitute(R, inside, int(size.max(initial=0)))
    return Pursuit(support, size, x, bool(active.any()))


def orthogonalise(Q: Array, a: Array) -> tuple[Array, Array, Array]:
    """Columns a (batch, m) as `Q^T along + rest q`, with q of unit length and orthogonal to Q."""
    along, rest, q = np.zeros(Q.shape[:2], Q.dtype), np.ones(len(a)), a
    for _ in range(2):  # twice is enough: the second pass restores what cancellation lost
        w = np.matmul(Q.conj(), q[:, :, None])[:, :, 0]  # (batch, t)
        q = q - np.matmul(w[:, None, :], Q)[:, 0]
        part = np.linalg.norm(q, axis=1)
        along += w * rest[:, None]
        rest, q = rest * part, q / np.where(part > 0, part, 1)[:, None]
        if part.min() > REORTHOGONALISE:
            break
    return along, q, rest


def back_substitute(R: Array, b: Array, t: int) -> Array:
    """`R[:t, :t]^-1 b[:t]` for each signal, zero beyond."""
    x = np.zeros_like(b)
    for i in reversed(range(t)):
        x[:, i] = b[:, i] - np.einsum("bj,bj->b", R[:, i, i + 1 : t], x[:, i + 1 : t])
        x[:, i] /= R[:, i, i]
    return x
