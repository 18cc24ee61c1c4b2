"""Douglas-Rachford / ADMM for every convex problem `f(M c - b) + g(D c)`, TV among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.fft import fftn, ifftn
from scipy.linalg import cho_factor, eigh, get_lapack_funcs
from scipy.sparse.linalg import LinearOperator, cg

from lowrank.sensing.certificates import relative_gap, scaled_dual
from lowrank.sensing.feasibility import Doubt
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.groups import (
    GroupBPDN,
    GroupLasso,
    JointBPDN,
    JointSparse,
    SparseGroupLasso,
)
from lowrank.sensing.problems.l1 import (
    BPDN,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    L1Fit,
    Lasso,
    SqrtLasso,
)
from lowrank.sensing.problems.losses import HuberLasso, QuantileLasso
from lowrank.sensing.problems.overlap import OverlappingGroupLasso
from lowrank.sensing.problems.slope import SLOPE
from lowrank.sensing.problems.structured import Analysis, AnalysisLasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.scaling import equilibrated, scaled_start, unscaled
from lowrank.sensing.solvers.standstill import Standstill
from lowrank.status import Status

MAX_FACTOR = 4096
"""Largest side of a Gram matrix that is factored; beyond it, conjugate gradients."""
SINGULAR = 1e-12
"""Pivots and eigenvalues below this, relative to the largest, are zero."""


@dataclass(frozen=True)
class ADMM:
    """Douglas-Rachford (ADMM) with restarted Halpern steps, for `min f(M c - b) + g(D c)`.

    With `K = (s M, D)` and `z` in the split space, each iteration takes the proximal point `p` of
    the terms at z, projects `2 p - z` onto the range of K, and averages the reflected point with
    the epoch's first one. Restarts make the rate linear for linear programs, where plain ADMM
    crawls. The projection is exact: by one Cholesky factorisation, in closed form where
    `M M^H = g I`, else by warm-started conjugate gradients, preconditioned by FFT for TV.

    Args:
        tol: relative duality gap and relative violation to stop at.
        max_iter: limit of the iterations.
        restart: share of an epoch's first step at which the next epoch begins, in (0, 1).
        check_every: iterations between checks of the gap.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(L1Fit(np.eye(2), [3.0, 0.5], lam=0.5), ADMM()).x.round(6).tolist()
        [3.0, 0.5]

    Source: Boyd et al. 2011, section 5.2 (graph form); Lieder 2021 for the Halpern steps; Lu, Yang
        2024, algorithm 1, for restarts and for balancing the penalty rho at each.
    """

    tol: float = 1e-8
    max_iter: int = 20_000
    restart: float = 0.3
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
        GroupBPDN,
        GroupLasso,
        JointBPDN,
        JointSparse,
        SparseGroupLasso,
        SLOPE,
        OverlappingGroupLasso,
        Analysis,
        AnalysisLasso,
        HuberLasso,
        QuantileLasso,
    )

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Iterate until gap and residuals are within tol."""
        problem, S = equilibrated(problem)
        split, rho = _Split(problem), _first_penalty(problem)
        doubt, stands = Doubt(problem, self.tol), Standstill.by(problem.operator)
        c = scaled_start(problem, x0, S)
        z = Kc = split.forward(c)
        epoch: _Epoch | None = None
        gaps: list[float] = []
        status, k = Status.MAX_ITER, 0
        for k in range(1, self.max_iter + 1):
            p = split.prox(z, rho)
            c, Kc = split.project(2 * p - z, c, Kc)
            dual, step = z - p, Kc - p
            if k % self.check_every == 0:
                gaps.append(split.gap(p, c, rho * dual))
                if gaps[-1] <= self.tol / 2 or not np.isfinite(gaps[-1]):
                    status = Status.OPTIMAL if np.isfinite(gaps[-1]) else Status.DIVERGED
                    break
                if doubt(k, split.answer(p, c)):
                    status = Status.INFEASIBLE
                    break
                if stands(k, gaps[-1]):
                    status = Status.STALLED
                    break
            if callback is not None and callback(k, unscaled(problem, split.answer(p, c), S)):
                break
            size = float(np.linalg.norm(step))
            if epoch is None:
                epoch = _Epoch(k, z, p, dual, size)
            elif size <= self.restart * epoch.size or k - epoch.k >= 0.4 * k:
                factor = epoch.balance(p, dual)
                rho, z, epoch = rho * factor, p + dual / factor, None
                continue
            share = 1 / (k - epoch.k + 2)
            z = share * epoch.z + (1 - share) * (z + 2 * step)
        v, q = split.dual(rho * dual)
        return SolverResult(
            unscaled(problem, split.answer(p, c), S),
            dual=v.reshape(np.shape(problem.target)),
            analysis_dual=None if split.D is None else q[:, 0],
            status=status,
            n_iter=k,
            history={"gap": gaps},
        )


@dataclass(frozen=True, eq=False)
class _Epoch:
    """Where the averaging began: iteration, point, its proximal point, dual and step length."""

    k: int
    z: Array
    p: Array
    dual: Array
    size: float

    def balance(self, p: Array, dual: Array) -> float:
        """Factor for rho that makes the next epoch's primal and dual way equally long."""
        moved, turned = np.linalg.norm(p - self.p), np.linalg.norm(dual - self.dual)
        ratio = np.sqrt(turned / moved) if min(moved, turned) > 0 else 1.0
        return float(np.clip(ratio, 0.5, 2.0))


class _Split:
    """The problem in the split space of stacked `u = s M c` and `w = D c`, (m + q, batch)."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.M = problem, problem.design
        self.D = problem.analysis
        self.b = _columns(problem.target)
        self.s = 1 / max(self.M.norm(), 1e-300)  # so that both constraints weigh the same
        self.m = self.M.shape[0]
        self.solve_gram = None if self.D is not None else _gram_solver(self.M, self.s)
        self.solve_normal = (
            _normal_solver(self.M, self.s, self.D) if self.solve_gram is None else None
        )

    def forward(self, c: Array) -> Array:
        """`K c`."""
        w = c if self.D is None else self.D.forward(c)
        return np.concatenate([self.s * self.M.forward(c), w])

    def project(self, z: Array, guess: Array, K_guess: Array) -> tuple[Array, Array]:
        """`argmin_c ||K c - z||` and `K c`, near a guess.

        For `K = (s M, I)` and `z = (a, b)`: `s M c = t` with `(I + s^2 M M^H) t = s^2 M M^H a +
        s M b`, so that one product with M and one with M^H do.
        """
        a, b = z[: self.m], z[self.m :]
        if self.solve_gram is not None:
            t = self.solve_gram(a, self.s * self.M.forward(b))
            c = b + self.s * self.M.adjoint(a - t)
            return c, np.concatenate([t, c])
        assert self.solve_normal is not None
        c = guess + self.solve_normal(self.adjoint(z - K_guess), 1e-13 * float(np.linalg.norm(z)))
        return c, self.forward(c)

    def adjoint(self, z: Array) -> Array:
        """`K^H z`."""
        w = z[self.m :]
        w = w if self.D is None else self.D.adjoint(w)
        return self.s * self.M.adjoint(z[: self.m]) + w

    def prox(self, z: Array, rho: float) -> Array:
        """The proximal point of both terms."""
        s, f, g = self.s, self.problem.loss, self.problem.penalty
        u = s * (self.b + f.prox(z[: self.m] / s - self.b, 1 / (rho * s**2)))
        return np.concatenate([u, g.prox(z[self.m :], 1 / rho)])

    def answer(self, p: Array, c: Array) -> Array:
        """The coefficients: exactly sparse, except that an analysis term has no say on c."""
        return p[self.m :] if self.D is None else c

    def dual(self, multipliers: Array) -> tuple[Array, Array]:
        """The pair `v`, `q` that satisfies `M^H v = D^H q` in the limit."""
        return -self.s * multipliers[: self.m], multipliers[self.m :]

    def gap(self, p: Array, c: Array, multipliers: Array) -> float:
        """Relative duality gap or violation, the worse."""
        problem, (v, q) = self.problem, self.dual(multipliers)
        point = p[self.m :] if self.D is None else c
        r = problem.design.forward(point) - self.b
        g = problem.penalty.value(point if self.D is None else self.D.forward(c))
        values = problem.loss.value(r)
        primal = (values.sum() if problem.coupled else values) + g
        back = self.M.adjoint(v)
        scale, dual = scaled_dual(problem, v, back if self.D is None else q)
        if self.D is not None:
            rest = np.linalg.norm(back - self.D.adjoint(q)) * np.linalg.norm(c)
            dual = dual - scale * rest
        size = problem.loss.size(self.b)
        violation = problem.loss.violation(r)
        price = violation * problem.loss.price(scale * v)
        gap = relative_gap(primal + price, dual, problem.gap_floor)
        return float(max(gap.max(), (violation / np.where(size > 0, size, 1)).max()))


def _columns(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _first_penalty(problem: Problem) -> float:
    """A penalty at which a typical coefficient and a typical threshold are of one size.

    A constraint has no threshold: the curvature of `1/2 ||M c - b||^2` is its measure.
    """
    z = float(np.abs(problem.design.adjoint(problem.target)).max())
    curvature = max(problem.design.norm() ** 2, 1e-300)
    size = z / curvature
    rows = problem.n_unknowns if problem.analysis is None else problem.analysis.shape[0]
    weight = float(problem.penalty.value(np.ones((rows, 1))).max()) / rows
    return max(weight, 1e-12 * z) / size if weight > 0 and size > 0 else curvature


def _gram_solver(M: Operator, s: float) -> Callable[[Array, Array], Array] | None:
    """`a, Mb -> (I + G)^-1 (G a + Mb)` with `G = s^2 M M^H`, where G is at hand."""
    if M.facts.orthogonal_rows and M.knows_row_norms:
        g = (s * M.row_norms()[:, None]) ** 2
        return lambda a, Mb: (g * a + Mb) / (1 + g)
    if not M.is_dense or not M.shape[0] < M.shape[1] or M.shape[0] > MAX_FACTOR:
        return None
    A = s * M.to_dense()
    G = A @ A.conj().T
    substituted = _substitution(*cho_factor(np.eye(len(G)) + G))
    return lambda a, Mb: substituted(G @ a + Mb)


def _substitution(L: Array, lower: bool) -> Callable[[Array], Array]:
    """`r -> (L L^H)^-1 r`, (n, batch), by LAPACK: `cho_solve` checks for longer than it solves."""
    (potrs,) = get_lapack_funcs(("potrs",), (L,))

    def solve(r: Array) -> Array:
        if np.iscomplexobj(r) and not np.iscomplexobj(L):  # a complex signal, a real matrix
            return solve(r.real) + 1j * solve(r.imag)
        return np.asarray(potrs(L, r, lower=lower)[0])

    return solve


def _normal_solver(M: Operator, s: float, D: Operator | None) -> Callable[[Array, float], Array]:
    """`r, floor -> (s^2 M^H M + D^H D)^-1 r`, to a residual of no less than the floor."""
    p = M.shape[1]
    if M.is_dense and p <= (MAX_FACTOR if D is None else MAX_FACTOR // 4):
        A = s * M.to_dense()
        rest = np.eye(p) if D is None else D.adjoint(D.to_dense())
        return _inverse(A.conj().T @ A + rest)

    def normal(x: Array) -> Array:
        return s**2 * M.adjoint(M.forward(x)) + (x if D is None else D.adjoint(D.forward(x)))

    system = LinearOperator((p, p), matvec=normal, dtype=np.result_type(M.dtype, float))
    near = _circulant_inverse(M, s, D)

    def solve(r: Array, floor: float) -> Array:
        # a hundredth of the way keeps ADMM convergent
        columns = [cg(system, b, rtol=0.01, atol=floor, maxiter=100, M=near)[0] for b in r.T]
        return np.stack(columns, axis=1)

    return solve


def _inverse(N: Array) -> Callable[[Array, float], Array]:
    """`r -> N^-1 r`, on its range where what D and M both do not see makes N singular."""
    try:
        L, lower = cho_factor(N)
    except np.linalg.LinAlgError:
        L, lower = np.zeros_like(N), False
    pivots = np.abs(L.diagonal()) ** 2
    if pivots.min() > SINGULAR * pivots.max():
        substituted = _substitution(L, lower)
        return lambda r, _: substituted(r)
    values, V = eigh(N)
    kept = values > SINGULAR * values[-1]
    values, V = values[kept], V[:, kept]
    return lambda r, _: V @ ((V.conj().T @ r) / values[:, None])


def _circulant_inverse(M: Operator, s: float, D: Operator | None) -> LinearOperator | None:
    """The inverse of a circulant matrix near `s^2 M^H M + D^H D`, where both know theirs."""
    of_M, of_D = M.gram_spectrum, None if D is None else D.gram_spectrum
    if of_M is None or (D is not None and (of_D is None or of_D.shape != of_M.shape)):
        return None
    spectrum = s**2 * of_M + (1.0 if of_D is None else of_D)
    gains = 1 / np.maximum(spectrum, 1e-8 * spectrum.max())  # no measurement may fix the mean
    dtype = np.result_type(M.dtype, float)

    def apply(r: Array) -> Array:
        filtered = ifftn(gains * fftn(r.reshape(gains.shape))).ravel()
        return np.asarray(filtered if M.is_complex else filtered.real)

    return LinearOperator((gains.size, gains.size), matvec=apply, dtype=dtype)
