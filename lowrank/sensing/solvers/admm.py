"""ADMM for every convex problem of the form `f(M c - b) + g(D c)`, analysis and TV among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import LinearOperator, cg

from lowrank.sensing.certificates import relative_gap, scaled_dual
from lowrank.sensing.operators import Array, Operator
from lowrank.sensing.problems import (
    BPDN,
    Analysis,
    AnalysisLasso,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    GroupLasso,
    JointSparse,
    L1Fit,
    Lasso,
    Problem,
    SqrtLasso,
)
from lowrank.sensing.result import SolverResult, Status
from lowrank.sensing.solvers.protocol import Callback

MAX_FACTOR = 4096
"""Largest side of a Gram matrix that is factored; beyond it, conjugate gradients."""


class _Residuals(NamedTuple):
    """Relative primal and dual residuals of the splitting."""

    primal: float
    dual: float


@dataclass(frozen=True)
class Admm:
    """Alternating directions on `min f(u - b) + g(w)  subject to  u = M c, w = D c`.

    The least-squares step in c is exact: by one Cholesky factorisation, in closed form where
    `M M^H = I`, else by warm-started conjugate gradients.

    Args:
        tol: relative duality gap (and relative residuals) to stop at.
        max_iter: limit of the iterations.
        relaxation: over-relaxation, in (0, 2).
        check_every: iterations between checks of the gap and of the balance of the residuals.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(L1Fit(np.eye(2), [3.0, 0.5], lam=0.5), Admm()).x.round(6).tolist()
        [3.0, 0.5]

    Source: Boyd et al. 2011, sections 3.1.1, 3.4.1 and 3.4.3.
    """

    tol: float = 1e-8
    max_iter: int = 20_000
    relaxation: float = 1.7
    check_every: int = 20

    solves: ClassVar[tuple[type[Problem], ...]] = (
        BasisPursuit,
        BPDN,
        Lasso,
        ConstrainedLasso,
        DantzigSelector,
        ElasticNet,
        SqrtLasso,
        L1Fit,
        GroupLasso,
        JointSparse,
        Analysis,
        AnalysisLasso,
    )

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Iterate until gap and residuals are within tol."""
        M, b = problem.design, _columns(problem.target)
        D: Operator | None = getattr(problem, "D", None)
        f, g = problem.loss, problem.penalty
        s = 1 / max(M.norm(), 1e-300)  # so that both constraints weigh the same
        least_squares = _least_squares(M, s, D)
        c = np.zeros((M.shape[1], b.shape[1]), problem.dtype) if x0 is None else _columns(x0)
        Mc, Dc = s * M.forward(c), _apply(D, c)
        u, w = Mc, Dc
        alpha, beta = np.zeros_like(u, dtype=problem.dtype), np.zeros_like(w)
        rho = _first_penalty(problem)
        gaps: list[float] = []
        status, k = Status.MAX_ITER, 0
        for k in range(1, self.max_iter + 1):
            c = least_squares(s * M.adjoint(u - alpha) + _adjoint(D, w - beta), c)
            Mc, Dc = s * M.forward(c), _apply(D, c)
            u_old, w_old = u, w
            relaxed = self.relaxation * Mc + (1 - self.relaxation) * u
            u = s * (b + f.prox((relaxed + alpha) / s - b, 1 / (rho * s**2)))
            alpha = alpha + relaxed - u
            relaxed = self.relaxation * Dc + (1 - self.relaxation) * w
            w = g.prox(relaxed + beta, 1 / rho)
            beta = beta + relaxed - w
            if callback is not None and callback(k, c.reshape(problem.unknown_shape)):
                break
            if k % self.check_every:
                continue
            moves = s * M.adjoint(u - u_old) + _adjoint(D, w - w_old)
            found = _Residuals(
                _size(Mc - u, Dc - w) / _size(u, w), _size(moves) / _size(_adjoint(D, beta))
            )
            gaps.append(_gap(problem, c, w, -rho * s * alpha, found))
            if gaps[-1] <= self.tol / 2 or not np.isfinite(gaps[-1]):
                status = Status.OPTIMAL if np.isfinite(gaps[-1]) else Status.DIVERGED
                break
            factor = _rebalance(found, k, self.check_every)
            rho, alpha, beta = rho * factor, alpha / factor, beta / factor
        sparse = w if D is None else c
        return SolverResult(
            sparse.reshape(problem.unknown_shape),
            dual=(-rho * s * alpha).reshape(np.shape(problem.target)),
            analysis_dual=None if D is None else (rho * beta)[:, 0],
            status=status,
            n_iter=k,
            history={"gap": gaps},
        )


def _columns(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _apply(D: Operator | None, c: Array) -> Array:
    return c if D is None else D.forward(c)


def _adjoint(D: Operator | None, w: Array) -> Array:
    return w if D is None else D.adjoint(w)


def _first_penalty(problem: Problem) -> float:
    """A penalty for which a typical coefficient and a typical threshold are of one size."""
    z = np.abs(problem.design.adjoint(problem.target)).max()
    size = z / max(problem.design.norm() ** 2, 1e-300)
    probe = np.ones((problem.penalty.prox(_probe(problem), 0.0).shape[0], 1))
    weight = float(problem.penalty.value(probe).max() / probe.size)
    return max(weight, 1e-12 * z, 1e-300) / max(size, 1e-300) if weight > 0 else 1.0


def _probe(problem: Problem) -> Array:
    rows = problem.D.shape[0] if hasattr(problem, "D") else problem.n_unknowns
    return np.zeros((rows, 1))


def _least_squares(M: Operator, s: float, D: Operator | None) -> Callable[[Array, Array], Array]:
    """`rhs, guess -> (s^2 M^H M + D^H D)^-1 rhs`."""
    m, p = M.shape
    if D is None and M.row_orthonormal:
        return lambda rhs, _: rhs - s**2 / (1 + s**2) * M.adjoint(M.forward(rhs))
    if D is None and M.is_dense and m < p and m <= MAX_FACTOR:
        A = s * M.to_dense()
        factor = cho_factor(np.eye(m) + A @ A.conj().T)
        return lambda rhs, _: rhs - A.conj().T @ cho_solve(factor, A @ rhs)
    if M.is_dense and p <= MAX_FACTOR and (D is None or p <= 1024):
        A = s * M.to_dense()
        gram = np.eye(p) if D is None else D.adjoint(D.to_dense())
        full = cho_factor(A.conj().T @ A + gram)
        return lambda rhs, _: cho_solve(full, rhs)
    return _conjugate_gradients(M, s, D)


def _conjugate_gradients(
    M: Operator, s: float, D: Operator | None
) -> Callable[[Array, Array], Array]:
    def normal(x: Array) -> Array:
        return s**2 * M.adjoint(M.forward(x)) + (x if D is None else D.adjoint(D.forward(x)))

    p = M.shape[1]
    dtype = np.result_type(M.dtype, float)
    system = LinearOperator((p, p), matvec=normal, dtype=dtype)

    def solve(rhs: Array, guess: Array) -> Array:
        columns = []
        for b, x in zip(rhs.T, guess.T, strict=True):
            far = np.linalg.norm(b - normal(x))  # a hundredth of the way keeps ADMM convergent
            columns.append(cg(system, b, x0=x, rtol=1e-13, atol=0.01 * far, maxiter=100)[0])
        return np.stack(columns, axis=1)

    return solve


def _size(*parts: Array) -> float:
    return float(np.sqrt(sum(np.linalg.norm(x) ** 2 for x in parts))) + 1e-300


def _rebalance(found: _Residuals, k: int, every: int) -> float:
    """Factor for rho; adapted ever more rarely, so that the iteration converges."""
    checks = k // every
    if checks & (checks - 1):  # only at 1, 2, 4, 8, ... checks
        return 1.0
    ratio = np.sqrt(found.primal / max(found.dual, 1e-300))
    return float(np.clip(ratio, 0.1, 10)) if not 0.5 < ratio < 2 else 1.0


def _gap(problem: Problem, c: Array, w: Array, v: Array, found: _Residuals) -> float:
    if hasattr(problem, "D"):
        return max(found)
    r = problem.design.forward(w) - _columns(problem.target)
    values = problem.loss.value(r)
    primal = (values.sum() if problem.coupled else values) + problem.penalty.value(w)
    _, dual = scaled_dual(problem, v, problem.design.adjoint(v))
    scale = np.linalg.norm(_columns(problem.target), axis=0)
    floor = scale**2 / 2 if isinstance(problem, ConstrainedLasso) else 0.0
    violation = problem.loss.violation(r) / np.where(scale > 0, scale, 1)
    return float(max(relative_gap(primal, dual, floor).max(), violation.max()))
