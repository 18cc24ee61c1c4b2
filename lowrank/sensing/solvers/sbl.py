"""Sparse Bayesian learning: each coefficient has its own variance, and most go to zero."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from scipy.linalg import solve_triangular

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import PosteriorMean
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.support import each_column
from lowrank.status import Status

NOISE_FLOOR = 1e-10
"""Least noise variance, over the mean square of y: keeps the covariance invertible."""


START_NOISE = 0.1
"""First noise variance where it is learned, over the mean square of y: high, so that the first
model is a sparse one."""


SETTLED = 1e-3
"""Relative change below which a learned noise variance has settled."""


@dataclass(frozen=True)
class SBL:
    """Sparse Bayesian learning: maximise `log p(y | gamma) - price ||gamma||_0`.

    `p(y | gamma) = N(0, sigma^2 I + A diag(gamma) A^H)`; the price is what a column can gain by
    fitting pure noise.

    The coefficients are the posterior mean under the best variances gamma, most of which are
    exactly zero. A step changes the one variance that raises the likelihood most: a column comes
    in, leaves, or is weighed anew. Insensitive to correlated columns; made for few non-zeros, for
    a step costs `O(n k^2)`. Not convex: the answer is a stationary point.

    Attributes:
        tol: stop when no step raises the log-likelihood by more than this.
        max_iter: most steps.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> SBL().solve(PosteriorMean(A, [0.0, 2.0], 0.01)).coefficients.round(3)
        array([0., 2., 0.])

    Source: Tipping, Faul 2003, section 4, equations (20) to (24); the noise level, where it is not
    given, by Tipping 2001, equation (18), whenever the variances have settled. Deviation: the
    price, without which a third of the empty columns enters, and with them a learned noise level
    runs down to zero.
    """

    tol: float = 1e-6
    max_iter: int = 5000

    solves: ClassVar[tuple[type[Problem], ...]] = (PosteriorMean,)

    def refuses(self, problem: Problem) -> str | None:
        """Needs the matrix."""
        return None if problem.operator.is_dense else "needs a matrix, and A is matrix-free"

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Signal by signal; `x0` is ignored."""
        assert isinstance(problem, PosteriorMean)
        return each_column(problem, partial(self._column, problem.noise_std), callback)

    def _column(
        self, noise_std: float | None, A: Operator, y: Array, callback: Callback | None
    ) -> tuple[Array, Status, list[float]]:
        power = float(np.vdot(y, y).real) / y.size
        c, history = np.zeros(A.shape[1], dtype=y.dtype), list[float]()
        if power == 0:
            return c, Status.CONVERGED, history
        model = Model(A, y)
        gamma = np.zeros(A.shape[1])
        price = entry_price(A.shape[1], np.iscomplexobj(y))
        noise = power * START_NOISE if noise_std is None else noise_std**2
        for n_iter in range(1, self.max_iter + 1):
            noise = max(noise, NOISE_FLOOR * power)
            c, s, q, explained = model.evidence(gamma, noise)
            history.append(float(np.linalg.norm(y - A.forward(c))))
            best, gain = best_variances(gamma, s, q, price)
            j = int(gain.argmax())
            if callback is not None and callback(n_iter, c):
                return c, Status.MAX_ITER, history
            if gain[j] > self.tol:
                gamma[j] = best[j]
                continue
            learned = history[-1] ** 2 / max(y.size - explained, 1.0)
            if noise_std is not None or abs(learned - noise) <= SETTLED * noise:
                return c, Status.CONVERGED, history
            if learned <= NOISE_FLOOR * power >= noise:
                return c, Status.CONVERGED, history
            noise = learned
        return c, Status.MAX_ITER, history


class Model:
    """The matrix with those columns of its Gram matrix that have been needed."""

    def __init__(self, A: Operator, y: Array) -> None:
        self.A, self.b = A, A.adjoint(y)
        self.norms = A.column_norms() ** 2
        self.gram: dict[int, Array] = {}

    def columns(self, S: Array) -> Array:
        """`A^H A_S`, (n, |S|)."""
        for j in S:
            if j not in self.gram:
                self.gram[j] = self.A.adjoint(self.A.columns([j])[:, 0])
        return np.stack([self.gram[j] for j in S], axis=1)

    def evidence(self, gamma: Array, noise: float) -> tuple[Array, Array, Array, float]:
        """Posterior mean, the factors s and q of each column with itself left out, and how many
        parameters the data determine."""
        S = np.flatnonzero(gamma)
        mean = np.zeros(gamma.size, dtype=self.b.dtype)
        s, q, explained = self.norms / noise, self.b / noise, 0.0
        if S.size:
            B = self.columns(S)
            # H = I + G B_SS G / noise with G = sqrt(gamma): well scaled, whatever gamma is
            G = np.sqrt(gamma[S])
            H = G[:, None] * B[S] * G / noise
            H[np.diag_indices_from(H)] += 1
            L = np.linalg.cholesky((H + H.conj().T) / 2)
            half = solve_triangular(L, (B * G).conj().T, lower=True) / noise  # (|S|, n)
            right = solve_triangular(L, G * self.b[S], lower=True) / noise
            mean[S] = G * solve_triangular(L.conj().T, right, lower=False)
            s = s - np.einsum("ij,ij->j", half.conj(), half).real
            q = q - half.conj().T @ right
            # on the support 1 - gamma s would cancel: Sigma_jj / gamma_j is a diagonal of H^-1
            inverse = solve_triangular(L, np.eye(S.size), lower=True)
            left = np.einsum("ij,ij->j", inverse.conj(), inverse).real
            explained = float((1 - left).sum())
            s[S], q[S] = (1 - left) / (gamma[S] * left), mean[S] / (gamma[S] * left)
        return mean, s, q, explained


def entry_price(n: int, is_complex: bool) -> float:
    """What the best of n empty columns gains on average: its `|q|^2 / s` is about `2 log n`.

    Half of that in the complex case, where `|q|^2 / s` is exponential rather than chi-squared.
    """
    ratio = max((1 if is_complex else 2) * np.log(n), 1.0)
    return float(ratio - 1 - np.log(ratio))


def best_variances(gamma: Array, s: Array, q: Array, price: float) -> tuple[Array, Array]:
    """For each column the variance that is best by the priced likelihood, and what that gains."""
    power = (q * q.conj()).real
    usable = s > 0  # a zero column explains nothing
    best = np.zeros_like(power)
    best[usable] = np.maximum(power[usable] - s[usable], 0) / s[usable] ** 2

    def value(g: Array) -> Array:
        return np.asarray(power * g / (1 + g * s) - np.log1p(g * s) - price * (g > 0))

    best = np.where(value(best) > 0, best, 0.0)
    return best, np.where(usable, value(best) - value(gamma), 0.0)
