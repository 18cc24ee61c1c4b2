"""EM Bernoulli-Gaussian VAMP (also called OAMP) for orthogonal rows of one length."""

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

# The prior and the noise may not be fitted before the pseudo-data mean anything.
WARM_UP = 3


@dataclass(frozen=True)
class VAMP:
    """Posterior mean under a learned Bernoulli-Gaussian prior, for `A A^H = g I`.

    Alternates the entrywise posterior with the linear estimate from the measurements, each fed
    only what the other did not know already. Two transforms an iteration; the posterior has many
    stationary points, so nothing is certified.

    Args:
        tol: relative change of the estimate at which to stop.
        max_iter: number of iterations.
        damping: share of the new pseudo-data in each step; below 1 is slower and steadier.

    Example:
        >>> from lowrank.sensing.operators.subsampled import partial_dct
        >>> A = partial_dct(512, m=256, seed=0)
        >>> x = np.zeros(512)
        >>> x[[3, 99, 200]] = [1.0, -2.0, 0.5]
        >>> found = VAMP().solve(PosteriorMean(A, A @ x, noise_std=0.0))
        >>> bool(np.abs(found.coefficients - x).max() < 1e-8)
        True

    Source: Rangan, Schniter and Fletcher, 2019, algorithm 3, and Ma and Ping, 2017, in a form
        that divides by no precision, so that it stays finite without noise.
    """

    tol: float = 1e-10
    max_iter: int = 200
    damping: float = 1.0

    solves: ClassVar[tuple[type[Problem], ...]] = (PosteriorMean,)

    def refuses(self, problem: Problem) -> str | None:
        """Only operators known to have orthogonal rows of one length."""
        if problem.operator.facts.row_gram is not None:
            return None
        return "needs an operator with orthogonal rows of one length, and A is not known to"

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Estimate; `x0` is not used."""
        assert isinstance(problem, PosteriorMean)
        assert problem.operator.facts.row_gram is not None  # else refused
        y, length = np.asarray(problem.y), np.sqrt(problem.operator.facts.row_gram)
        A, columns = problem.operator / length, y.reshape(len(y), -1) / length  # now A A^H = I
        noise_std = None if problem.noise_std is None else problem.noise_std / length
        seen = callback and (lambda k, x: callback(k, x.reshape(problem.unknown_shape)))
        found = self._iterate(A, columns, noise_std, seen)
        x = found.x.reshape(problem.unknown_shape)
        return SolverResult(x, status=found.status, n_iter=found.n_iter)

    def _iterate(
        self, A: Operator | Twin, y: Array, noise_std: float | None, callback: Callback | None
    ) -> Messages:
        m, n = A.shape
        delta = m / n
        # of y and of x are the same, entry by entry
        energy = (np.abs(y) ** 2).mean(axis=0, dtype=float)
        noise = np.full(y.shape[1], 1e-2 * energy if noise_std is None else noise_std**2)
        prior = first_prior(delta, np.maximum(energy - noise, 1e-3 * energy))
        r, x, r2 = A.adjoint(y) / delta, np.zeros((n, y.shape[1]), np.result_type(A.dtype, y)), 0.0
        tau = np.maximum(energy * (1 - delta) / delta + noise / delta, 1e-300)
        for it in range(1, self.max_iter + 1):
            before, (x, slope, fitted) = x, posterior(r, tau, prior)
            slope = np.clip(slope, 1e-12, 1 - 1e-6)
            new = (x - slope * r) * (1 / (1 - slope))
            r2 = new if self.damping == 1 else (1 - self.damping) * r2 + self.damping * new
            z = y - A.forward(r2)
            size = (np.abs(z) ** 2).mean(axis=0, dtype=float)
            if not np.all(size < 4 * energy + 1e-300):
                return ended(before, Status.DIVERGED, it, r, tau, x, slope)
            if it > WARM_UP:
                prior = fitted
                if noise_std is None:  # what the extrinsic variance leaves unexplained
                    noise = np.maximum(size - slope * tau / (1 - slope), 1e-6 * size)
            v = np.maximum(size - noise, 1e-4 * size)
            change = np.linalg.norm(x - before) / max(float(np.linalg.norm(x)), 1e-300)
            if change < self.tol:
                status = _fits(y - A.forward(x), noise_std, energy)
                return ended(x, status, it, r, tau, x, slope)
            if callback and callback(it, x):
                return ended(x, Status.MAX_ITER, it, r, tau, x, slope)
            if it == self.max_iter:
                break
            r = r2 + A.adjoint(z) / delta
            tau = np.maximum(v * (1 - delta) / delta + noise / delta, 1e-300)
        return ended(x, Status.MAX_ITER, self.max_iter, r, tau, x, slope)


def _fits(residual: Array, noise_std: float | None, energy: Array) -> Status:
    """A fixed point that leaves more than the noise says that the prior is wrong."""
    if noise_std is None:
        return Status.CONVERGED
    left = (np.abs(residual) ** 2).mean(axis=0)
    return Status.CONVERGED if np.all(left < 2 * noise_std**2 + 1e-12 * energy) else Status.STALLED
