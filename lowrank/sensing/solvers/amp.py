"""Approximate message passing with the minimax threshold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BasisPursuit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.terms import soft
from lowrank.status import Status


@lru_cache(maxsize=64)
def minimax_threshold(delta: float, *, nonneg: bool = False) -> float:
    """Threshold, in units of the noise, that recovers the least sparse signals at `delta = m/n`.

    It maximises `rho(a) = (1 - c M(a) / delta) / (1 + a^2 - c M(a))` with
    `M(a) = (1 + a^2) Phi(-a) - a phi(a)` and `c = 2`, or 1 for non-negative signals.

    Args:
        delta: sensing ratio m/n, in (0, 1].
        nonneg: signals are known to be non-negative.

    Returns:
        The threshold `a`.

    Example:
        >>> round(minimax_threshold(0.25), 2)
        1.29

    Source: Donoho, Maleki and Montanari, 2009, equation (7) of the supplement.
    """
    sides = 1 if nonneg else 2

    def rho(a: float) -> float:
        phi = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        M = sides * ((1 + a * a) * math.erfc(a / math.sqrt(2)) / 2 - a * phi)
        return (1 - M / delta) / (1 + a * a - M)

    low, high, golden = 0.0, 8.0, (math.sqrt(5) - 1) / 2
    for _ in range(48):  # golden section; rho has one peak where it is positive
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (left, high) if rho(left) < rho(right) else (low, right)
    return (low + high) / 2


class AMPState(NamedTuple):
    """Where message passing stopped: pseudo-data, residual, noise level, iterations.

    `falling` is False if the residual grew or stalled; `reached` is True if it fell far enough.
    """

    pseudo: Array
    z: Array
    sigma: float
    n_iter: int
    falling: bool
    reached: bool


def amp_start(
    A: Array, y: Array, weights: Array | float = 1.0, *, norm: float = 1.0, reach: float = 0.1,
    max_iter: int = 25, nonneg: bool = False, correlation: Array | None = None,
) -> AMPState:  # fmt: skip
    """Run AMP only until the residual shows that the support is about known.

    Args:
        A: matrix, shape (m, n); float32 halves the time.
        y: measurements, shape (m,).
        weights: penalty weights about 1, a number or shape (n,).
        norm: norm that the columns of A about have; pseudo-data are for columns of norm 1.
        reach: stop at `||z|| < reach ||y||`.
        max_iter: number of iterations, two products each.
        nonneg: threshold one-sidedly.
        correlation: `A^T y` where it is known, which saves the first product.

    Returns:
        The state; not `falling` for coherent matrices, not `reached` near the phase transition.
    """
    m, n = A.shape
    number = A.dtype.type
    threshold = weights * number(minimax_threshold(min(m / n, 0.95), nonneg=nonneg))
    scale = float(np.linalg.norm(y))
    z = y = y.astype(A.dtype, copy=False)
    x = pseudo = np.zeros(n, A.dtype)
    size, onto_unit, root = scale, number(1 / norm), math.sqrt(m)
    for it in range(1, max_iter + 1):
        if it == 1 and correlation is not None:
            pseudo = (correlation / norm).astype(A.dtype)
        else:
            pseudo = x + (z * onto_unit) @ A
        x = np.maximum(pseudo, 0) if nonneg else pseudo
        cut = threshold * number(size / root)
        kept = np.minimum(x, cut)
        x = x - (kept if nonneg else np.maximum(kept, -cut, out=kept))
        z = y - A @ (x * onto_unit) + z * number(np.count_nonzero(x) / m)
        size = math.sqrt(float(z @ z))
        if not size < (0.35 if it >= 10 else 1.5) * scale:
            return AMPState(pseudo, z, size / root, it, False, False)
        if size < reach * scale:
            break
    return AMPState(pseudo, z, size / root, it, True, size < reach * scale)


@dataclass(frozen=True)
class AMP:
    """AMP with the minimax threshold for basis pursuit with i.i.d. matrices; batches on BLAS.

        x <- soft(x + A^H z, a ||z|| / sqrt(m)),   z <- y - A x + z ||x||_0 / m

    It reaches the solution of basis pursuit without a proof of it: whether the gap closes is for
    the certificate to say. For coherent matrices it diverges, and says so.

    Args:
        tol: relative residual at which to stop.
        max_iter: number of iterations, two products each.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((250, 500)), np.zeros(500)
        >>> x[:20] = rng.standard_normal(20)
        >>> found = AMP().solve(BasisPursuit(A, A @ x))
        >>> bool(np.abs(found.coefficients - x).max() < 1e-6)
        True

    Source: Donoho, Maleki and Montanari, 2009, equations (1) and (2).
    """

    tol: float = 1e-8
    max_iter: int = 500

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit,)

    def refuses(self, problem: Problem) -> str | None:
        """Unweighted and unbounded problems with a matrix."""
        if not problem.operator.is_dense:
            return "needs a matrix, and A is matrix-free"
        return "knows neither weights nor bounds" if problem.weighted or problem.bounded else None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Iterate; `x0` is not used."""
        A = problem.operator
        m, n = A.shape
        norm = float(np.sqrt((A.column_norms() ** 2).mean()))
        threshold = minimax_threshold(min(m / n, 0.95)) / math.sqrt(m)
        shape = np.shape(problem.y)
        z = y = np.asarray(problem.y).reshape(m, -1)
        scale = np.maximum(np.linalg.norm(y, axis=0), 1e-300)
        x, size, status = np.zeros((n, y.shape[1]), problem.dtype), scale, Status.MAX_ITER
        for it in range(1, self.max_iter + 1):
            x = soft(x + A.adjoint(z) / norm, threshold * size)
            z = y - A.forward(x / norm) + z * (np.count_nonzero(x, axis=0) / m)
            size = np.linalg.norm(z, axis=0)
            if not np.all(size < 3 * scale):
                status = Status.DIVERGED
            elif np.all(size <= self.tol * scale):
                status = Status.CONVERGED
            if status is not Status.MAX_ITER:
                break
            if callback and callback(it, (x / norm).reshape(problem.unknown_shape)):
                break
        c, dual = (x / norm).reshape(problem.unknown_shape), z.reshape(shape)
        return SolverResult(c, dual=dual, status=status, n_iter=it)
