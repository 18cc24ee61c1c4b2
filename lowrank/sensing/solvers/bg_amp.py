"""EM Bernoulli-Gaussian AMP for matrices with independent entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import PosteriorMean
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.bernoulli_gaussian import Messages, ended, first_prior, posterior
from lowrank.sensing.solvers.on_support import Twin
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status


@dataclass(frozen=True)
class BernoulliGaussianAMP:
    """Posterior mean under a learned Bernoulli-Gaussian prior, for i.i.d. matrices; batches.

        r = x + A^H z,   x = E[x | r],   z = y - A x + z <dx/dr> n/m,   tau = ||z||^2 / m

    Columns are taken as of norm 1 after scaling. The noise is part of `tau` and need not be known.
    The posterior has many stationary points, so nothing is certified.

    Args:
        tol: relative change of the estimate at which to stop.
        max_iter: number of iterations.
        damping: share of the new estimate in each step; below 1 is slower and steadier.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((250, 500)), np.zeros(500)
        >>> x[:20] = rng.standard_normal(20)
        >>> found = BernoulliGaussianAMP().solve(PosteriorMean(A, A @ x))
        >>> bool(np.abs(found.coefficients - x).max() < 1e-8)
        True

    Source: Vila and Schniter, 2013, table I, with the scalar variance of Donoho, Maleki and
        Montanari, 2009.
    """

    tol: float = 1e-10
    max_iter: int = 300
    damping: float = 1.0

    solves: ClassVar[tuple[type[Problem], ...]] = (PosteriorMean,)

    def refuses(self, problem: Problem) -> str | None:
        """Column norms are needed, which are cheap for a matrix only."""
        return None if problem.operator.is_dense else "needs a matrix, and A is matrix-free"

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Estimate; `x0` is not used."""
        assert isinstance(problem, PosteriorMean)
        norms = problem.operator.column_norms()
        norms = np.where(norms > 0, norms, 1.0)[:, None]
        y = np.asarray(problem.y)
        columns = y.reshape(len(y), -1)
        seen = callback and (lambda k, x: callback(k, x.reshape(problem.unknown_shape)))
        found = self._iterate(problem.operator, columns, norms, seen)
        x = (found.x / norms).reshape(problem.unknown_shape)
        return SolverResult(x, status=found.status, n_iter=found.n_iter)

    def _iterate(
        self, A: Operator | Twin, y: Array, norms: Array, callback: Callback | None
    ) -> Messages:
        m, n = A.shape
        energy = (np.abs(y) ** 2).mean(axis=0, dtype=float)
        prior = first_prior(m / n, energy * m / n)
        x, z, tau = np.zeros((n, y.shape[1]), np.result_type(A.dtype, y)), y, energy
        for it in range(1, self.max_iter + 1):
            r = x + A.adjoint(z) / norms
            level = np.maximum(tau, 1e-300)
            mean, slope, prior = posterior(r, level, prior)
            before, x = x, (1 - self.damping) * x + self.damping * mean
            z = y - A.forward(x / norms) + z * (self.damping * slope * n / m)
            tau = (np.abs(z) ** 2).mean(axis=0, dtype=float)
            if not np.all(tau < 4 * energy + 1e-300):
                return ended(before, Status.DIVERGED, it, r, level, mean, slope)
            change = np.linalg.norm(x - before) / max(float(np.linalg.norm(x)), 1e-300)
            if change < self.tol:
                return ended(x, Status.CONVERGED, it, r, level, mean, slope)
            if callback and callback(it, x / norms):
                return ended(x, Status.MAX_ITER, it, r, level, mean, slope)
        return ended(x, Status.MAX_ITER, self.max_iter, r, level, mean, slope)
