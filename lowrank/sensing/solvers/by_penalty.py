"""BPDN as the LASSO whose residual is epsilon, on working sets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.designs import Index
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.working_set import Fit, WorkingSet, fit_of, matrix_of
from lowrank.status import Status

MAX_DENSE = 2**20
"""Entries of a sparse matrix up to which it may as well be dense, where nothing is bounded."""
FIRST = 0.5
"""Share of lam_max that is tried first."""
SHORTEST = 0.3
"""No step goes below this share of lam, or above its inverse, before both sides are known."""
NOWHERE = 1e-12
"""Share of lam_max below which no lam is looked for: the residual stays above epsilon."""
CLOSE = 1e-3
"""How close the residual is to come to epsilon, in units of the tolerance."""


class _Side(NamedTuple):
    """A lam, and how far the residual's norm is above epsilon there."""

    lam: float
    excess: float


@dataclass(frozen=True)
class ByPenalty:
    """BPDN within bounds, or with a large sparse matrix: lam with `||A c(lam) - y|| = epsilon`.

    `c(lam)` is the LASSO's solution, found by working sets from the last one. As long as the same
    columns move, `||r||^2 = a + b lam^2`, so that the root is exact once the columns are right. The
    residual over lam is the dual point, whatever the bounds.

    Args:
        tol: relative gap and infeasibility to reach; about 1e-12 is usual.
        max_iter: limit of the penalties that are tried for each signal.

    Example:
        >>> from lowrank.sensing import solve
        >>> problem = BPDN(np.eye(2), [3.0, 1.0], 1.0, upper=2.5)
        >>> solve(problem, ByPenalty()).x.round(6).tolist()
        [2.292893, 0.292893]

    Source: van den Berg, Friedlander 2008, for the root; Osborne, Presnell, Turlach 2000, for the
        residual along the path; that bounds leave it as it is, is ours.
    """

    tol: float = 1e-8
    max_iter: int = 100

    solves: ClassVar[tuple[type[Problem], ...]] = (BPDN,)

    def refuses(self, problem: Problem) -> str | None:
        """Is for real matrices, within bounds or sparse."""
        if problem.residual_bound == 0:
            return "needs a positive epsilon"
        A = problem.operator
        large = A.is_sparse and A.shape[0] * A.shape[1] > MAX_DENSE
        if not large and (not problem.bounded or problem.nonneg):
            return "is for bounds, and large sparse matrices"
        return WorkingSet().refuses(problem)

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise, signal by signal; columns that `x0` needs come in first."""
        assert isinstance(problem, BPDN)
        y = np.asarray(problem.y, dtype=np.float64)
        columns, calls = y.reshape(len(y), -1).T, itertools.count(1)
        c, duals = np.zeros((problem.n_unknowns, len(columns))), np.zeros((len(y), len(columns)))
        status, longest, products = Status.OPTIMAL, 0, 0
        for j, column in enumerate(columns):
            fit = _fit(problem, column)
            top = float(fit.pull(fit.c).max())
            products += 1
            if np.linalg.norm(column) <= problem.epsilon:
                continue
            if x0 is not None:
                fit.begin(x0.reshape(c.shape)[:, j])
            close = CLOSE * self.tol * float(np.linalg.norm(column))
            search = _Search(fit, top, problem.epsilon, close)
            k, stopped = 0, False
            while not search.ended and k < self.max_iter and not stopped:
                k += 1
                lam = search.step()
                c[:, j], duals[:, j] = fit.coefficients(), fit.residual / lam
                answer = c.reshape(problem.unknown_shape)
                stopped = bool(callback and callback(next(calls), answer.copy()))
            longest, products = max(longest, k), products + fit.n_products
            if not search.found and status is Status.OPTIMAL:
                status = Status.STALLED if search.ended else Status.MAX_ITER
            if stopped:
                break
        return SolverResult(
            c.reshape(problem.unknown_shape),
            dual=duals.reshape(y.shape),
            status=status,
            n_iter=longest,
            n_products=products,
            note=f"the LASSO at {longest} penalties",
        )


def _fit(problem: BPDN, y: Array) -> Fit:
    more: dict[str, Any] = {"lower": problem.lower, "upper": problem.upper}
    lasso = Lasso(problem.operator, y, 1.0, weights=problem.weights, **more)
    return fit_of(lasso, matrix_of(problem), np.ascontiguousarray(y))


class _Search:
    """The root of `||r(lam)|| - epsilon`, which rises with lam."""

    def __init__(self, fit: Fit, top: float, epsilon: float, close: float) -> None:
        self.fit, self.top, self.epsilon, self.close = fit, top, epsilon, close
        self.lam, self.found, self.ended = FIRST * self.top, False, self.top == 0
        self.low = _Side(0.0, -np.inf)
        self.high = _Side(self.top, np.inf)

    def step(self) -> float:
        """Solve at lam, and say which; then choose the next."""
        lam = self.lam
        for _ in self.fit.descend(lam, 1e-14):
            pass
        excess = float(np.linalg.norm(self.fit.residual)) - self.epsilon
        if abs(excess) <= self.close and (excess <= 0 or excess < 1e-13 * self.epsilon):
            self.found = self.ended = True
            return lam
        if excess > 0:
            self.high = _Side(lam, excess)
        else:
            self.low = _Side(lam, excess)
        if self.high.lam <= self.low.lam * (1 + 1e-15) or self.high.lam < NOWHERE * self.top:
            self.found, self.ended = abs(excess) <= self.close, True
            return lam
        self.lam = self._next(lam)
        return lam

    def _next(self, lam: float) -> float:
        """Where the parabola of the present columns is epsilon, if that is between both sides."""
        r2 = float(self.fit.residual @ self.fit.residual)
        b = float(np.linalg.norm(self._slope()) ** 2)
        square = (self.epsilon**2 - r2) / b + lam**2 if b > 0 else -1.0
        guess = float(np.sqrt(square)) if square > 0 else 0.0
        guess = float(np.clip(guess, SHORTEST * lam, lam / SHORTEST))
        low, high = self.low.lam, self.high.lam
        if low < guess < high:
            return guess
        return float(np.sqrt(low * high)) if low > 0 else SHORTEST * lam

    @property
    def _free(self) -> Index:
        """Places of the coefficients that are neither 0 nor at a bound."""
        fit = self.fit
        lower, upper = fit.lower[fit.taking], fit.upper[fit.taking]
        return np.flatnonzero((fit.x != 0) & (fit.x > lower) & (fit.x < upper))

    def _slope(self) -> Array:
        """`dr / dlam`: `A_F (A_F^T A_F)^-1 w s`, for the columns F that are free to move."""
        fit, free = self.fit, self._free
        F, signs = fit.taking[free], np.sign(fit.x[free])
        A = fit.A[:, F]
        A = np.asarray(A if isinstance(A, np.ndarray) else A.toarray())
        return A @ np.linalg.lstsq(A.T @ A, fit.weights[F] * signs, rcond=None)[0]
