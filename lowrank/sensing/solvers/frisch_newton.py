"""L1 and quantile fits: an interior point that solves with p x p matrices only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import L1Fit
from lowrank.sensing.problems.losses import QuantileLasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

MAX_FACTOR = 4096
"""Largest number of unknowns, of whose square a matrix is factored each iteration."""
BACK = 0.9995
"""Share of the way to the boundary that a step takes."""
CROSSING = 1e-3
"""Relative gap from where on the rows that are met are guessed."""


@dataclass(frozen=True)
class FrischNewton:
    """`min sum rho(y - A c) + lam ||w c||_1` for real A, with rho of a quantile or the modulus.

    With `X = (A; 2 lam W)` and `b = (y; 0)` that is a quantile fit of each row at its own tau,
    whose dual point lies in a box, `X^T v = 0, tau - 1 <= v <= tau`; Mehrotra's steps inside the
    box cost one p x p factor each, and the p rows that the answer meets exactly are guessed on the
    way, and solved for. The L1 fit is twice the fit of medians; with fewer rows than columns it has
    a better way, as basis pursuit.

    Args:
        tol: relative duality gap at which to stop.
        max_iter: limit of the steps, for each signal.

    Example:
        >>> problem = L1Fit([[1.0, 0.0], [1.0, 0.0], [1.0, 0.5]], [1.0, 1.0, 9.0], lam=1.0)
        >>> FrischNewton().solve(problem).coefficients.round(6).tolist()
        [1.0, 0.0]

    Source: Portnoy, Koenker 1997, section 4; the penalty as further rows, and the guess, are ours.
    """

    tol: float = 1e-8
    max_iter: int = 100

    solves: ClassVar[tuple[type[Problem], ...]] = (L1Fit, QuantileLasso)

    def refuses(self, problem: Problem) -> str | None:
        """Needs a real matrix, for the L1 fit with m >= p, and takes no bounds."""
        assert isinstance(problem, L1Fit | QuantileLasso)
        m, p = problem.operator.shape
        if problem.bounded:
            return "takes no bounds"
        if problem.is_complex or not problem.operator.is_dense:
            return "needs a real matrix"
        if m < p and isinstance(problem, L1Fit):
            return "is for at least as many measurements as unknowns"
        return f"factors at most {MAX_FACTOR} unknowns" if p > MAX_FACTOR else None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise, signal by signal; `x0` is not used."""
        assert isinstance(problem, L1Fit | QuantileLasso)
        A, y = problem.operator.to_dense(), np.asarray(problem.y)
        tau, unit = (problem.tau, 1.0) if isinstance(problem, QuantileLasso) else (0.5, 2.0)
        X = np.concatenate([A, np.diag(2 / unit * problem.lam * np.asarray(problem.weights))])
        if isinstance(problem, QuantileLasso) and problem.intercept:
            X = np.concatenate([X, (np.arange(len(X)) < len(y)).astype(float)[:, None]], axis=1)
        taus = np.concatenate([np.full(len(y), tau), np.full(A.shape[1], 0.5)])
        columns = y.reshape(len(y), -1).T
        found, duals = np.zeros((A.shape[1], len(columns))), np.zeros((len(y), len(columns)))
        done = [0]  # iterations of the signals before

        def shown(j: int) -> Callable[[int, Array], bool]:
            def show(k: int, c: Array) -> bool:
                found[:, j] = c[: len(found)]
                answer = found.reshape(problem.unknown_shape).copy()
                return bool(callback and callback(done[0] + k, answer))

            return show

        longest, products, status = 0, 0, Status.OPTIMAL
        for j, column in enumerate(columns):
            b = np.concatenate([column, np.zeros(A.shape[1])])
            end = least_quantiles(X, b, taus, len(y), self.tol, self.max_iter, shown(j))
            found[:, j], duals[:, j] = end.c[: len(found)], unit * end.v[: len(y)]
            longest, products = max(longest, end.n_iter), products + end.products
            done[0] += end.n_iter
            status = status if end.status is Status.OPTIMAL else end.status
            if end.stopped:
                break
        return SolverResult(
            found.reshape(problem.unknown_shape),
            dual=duals.reshape(y.shape),
            status=status,
            n_iter=longest,
            n_products=products,
        )


class _End(NamedTuple):
    """Coefficients, dual point, and how the run ended."""

    c: Array
    v: Array
    status: Status
    n_iter: int
    products: int
    stopped: bool = False


class _Box(NamedTuple):
    """`t` and `1 - t` in the box, their multipliers, and the coefficients: `v = t - 1 + tau`."""

    t: Array
    s: Array
    z: Array
    w: Array
    c: Array

    def moved(self, step: _Box, primal: float, dual: float) -> _Box:
        sizes = (primal, primal, dual, dual, dual)
        return _Box(*(a + h * d for a, h, d in zip(self, sizes, step, strict=True)))

    def reach(self, step: _Box) -> tuple[float, float]:
        """Largest steps, at most 1, short of the boundary."""
        primal = min(_reach(self.t, step.t), _reach(self.s, step.s))
        return primal, min(_reach(self.z, step.z), _reach(self.w, step.w))

    @property
    def complementarity(self) -> float:
        """`z^T t + w^T s`."""
        return float(self.z @ self.t + self.w @ self.s)


def _reach(value: Array, change: Array) -> float:
    with np.errstate(divide="ignore"):
        return float(min(1.0, -BACK / min(np.min(change / value), -1e-300)))


def least_quantiles(
    X: Array,
    b: Array,
    taus: Array,
    m: int,
    tol: float,
    max_iter: int,
    show: Callable[[int, Array], bool],
) -> _End:
    """Minimise `sum_i rho_i(b_i - (X c)_i)`, `rho_i(r) = max(tau_i r, (tau_i - 1) r)`.

    Args:
        X: matrix of full column rank, (rows, p), in whose rows from m on, the penalty's, each
            column has one entry at the most.
        b: data, (rows,).
        taus: in (0, 1), (rows,).
        m: number of rows of data.
        tol: relative gap to reach.
        max_iter: limit of the steps.
        show: called with each step and its coefficients; true stops.

    Source: Portnoy, Koenker 1997; Mehrotra 1992 for the corrector.
    """
    now, products = _start(X, b, taus), 2
    best: tuple[float, Array, Array] = (np.inf, now.c, 0 * now.t)  # gap, c, v
    status, k, stopped = Status.MAX_ITER, 0, False
    for k in range(1, max_iter + 1):
        q = 1 / (now.z / now.t + now.w / now.s)
        try:
            factor = cho_factor((X.T * q) @ X)
        except np.linalg.LinAlgError:
            status = Status.STALLED
            break
        affine = _newton(X, b, taus, now, q, factor, 0.0, (0.0, 0.0))
        primal, dual = now.reach(affine)
        mu, after = now.complementarity, now.moved(affine, primal, dual).complementarity
        target = mu * (after / mu) ** 3 / (2 * b.size)
        cross = affine.t * affine.z, affine.s * affine.w
        step = _newton(X, b, taus, now, q, factor, target, cross)
        now = now.moved(step, *now.reach(step))
        products += 7
        for c, v in _answers(X, b, taus, now):
            gap = _gap(X, b, taus, m, c, v)
            best = min(best, (gap, c, v), key=lambda found: found[0])
        stopped = show(k, best[1])
        if best[0] <= tol / 10 or stopped or not np.isfinite(now.c).all():
            status = Status.OPTIMAL if best[0] <= tol else Status.STALLED
            break
    return _End(best[1], best[2], Status.MAX_ITER if stopped else status, k, products, stopped)


def _start(X: Array, b: Array, taus: Array) -> _Box:
    """The point of the box with `v = 0`, and least squares."""
    c = cho_solve(cho_factor(X.T @ X), X.T @ b)
    r = b - X @ c
    size = float(np.abs(r).mean()) or 1.0
    return _Box(1 - taus, taus, np.maximum(-r, 0) + 1e-3 * size, np.maximum(r, 0) + 1e-3 * size, c)


def _newton(
    X: Array,
    b: Array,
    taus: Array,
    now: _Box,
    q: Array,
    factor: tuple[Array, bool],
    target: float,
    cross: tuple[Array | float, Array | float],
) -> _Box:
    """The step to `z t = w s = target`, less the products of a step that was tried."""
    to_t, to_s = (target - cross[0]) / now.t, (target - cross[1]) / now.s
    h = b - X @ now.c - to_s + to_t
    c = cho_solve(factor, X.T @ (q * h + now.t - 1 + taus))
    t = q * (h - X @ c)
    z = to_t - now.z - now.z / now.t * t
    w = to_s - now.w + now.w / now.s * t
    return _Box(t, -t, z, w, c)


def _answers(X: Array, b: Array, taus: Array, now: _Box) -> Iterator[tuple[Array, Array]]:
    """Where the steps are, and near the end the vertex of the rows that look met."""
    yield now.c, now.t - 1 + taus
    p = X.shape[1]
    if now.complementarity > CROSSING * float(np.abs(b).sum()):
        return
    freedom = 1 / (now.z / now.t + now.w / now.s)
    rows = np.argpartition(-freedom, p - 1)[:p]
    try:
        c = np.linalg.solve(X[rows], b[rows])
        v = np.where(b > X @ c, taus, taus - 1)
        v[rows] = 0.0
        v[rows] = -np.linalg.solve(X[rows].T, X.T @ v)
    except np.linalg.LinAlgError:
        return
    if ((v <= taus + 1e-9) & (v >= taus - 1 - 1e-9)).all():
        yield c, v


def _gap(X: Array, b: Array, taus: Array, m: int, c: Array, v: Array) -> float:
    """Relative duality gap, of the best feasible multiple of v."""
    u, free, r = v[:m], X[m:].sum(axis=0) / 2, b - X @ c
    priced = free > 0
    over = float((u / np.where(u > 0, taus[:m], taus[:m] - 1)).max())
    cap = 1 / max(over, float((np.abs(u @ X[:m])[priced] / free[priced]).max()), 1.0)
    primal, dual = float(np.maximum(taus * r, (taus - 1) * r).sum()), cap * float(b[:m] @ u)
    gap = abs(primal - dual) / max(primal, 1e-300)
    return gap if np.isfinite(gap) else np.inf
