"""Spectral projected gradient along the Pareto curve of residual against L1 norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.operators import Array, Operator
from lowrank.sensing.problems import BPDN, BasisPursuit, Problem
from lowrank.sensing.result import SolverResult, Status
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.terms import L1Ball


class _Point(NamedTuple):
    """An iterate of the inner problem: `c`, `r = y - A c`, `g = -A^H r`, iterations used."""

    c: Array
    r: Array
    g: Array
    n_iter: int


@dataclass(frozen=True)
class Spg:
    """BPDN and basis pursuit by Newton's method for `||y - A c(tau)|| = epsilon`.

    Each `c(tau)` solves `min ||A c - y||` over `||w c||_1 <= tau` by projected gradient with
    Barzilai-Borwein steps, to an accuracy that follows the outer error, so that the dual point
    `r / max |A^H r| / w` certifies the end.

    Args:
        tol: relative duality gap and residual error to stop at.
        max_iter: limit of the projected gradient steps, all together.
        memory: values that the nonmonotone line search looks back on.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(BPDN(np.eye(2), [3.0, 0.0], 1.0), Spg()).x.round(6).tolist()
        [2.0, 0.0]

    Source: van den Berg, Friedlander 2008, algorithms 1 and 2; we solve each subproblem further
        than they do, and keep the best dual point met on the way.
    """

    tol: float = 1e-8
    max_iter: int = 20_000
    memory: int = 5

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit, BPDN)

    def refuses(self, problem: Problem) -> str | None:
        """Takes one signal, free or non-negative."""
        if np.ndim(problem.y) != 1:
            return "takes one signal at a time"
        if problem.bounded and not problem.nonneg:  # type: ignore[attr-defined]
            return "takes no bounds but c >= 0"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Newton steps on tau until gap and residual are within tol."""
        A, y = problem.operator, np.asarray(problem.y)
        epsilon, size = float(getattr(problem, "epsilon", 0.0)), float(np.linalg.norm(y))
        ball = L1Ball(0.0, np.asarray(problem.weights)[:, None], problem.nonneg)  # type: ignore[attr-defined]
        point = _Point(np.zeros(A.shape[1], problem.dtype), y, -A.adjoint(y), 0)
        tau, bound, dual = 0.0, 0.0, y
        best, gaps = np.inf, []
        status = Status.MAX_ITER
        while point.n_iter < self.max_iter:
            rnorm, steepest = float(np.linalg.norm(point.r)), _dual_norm(ball, point.g)
            value = (np.vdot(point.r, y).real - epsilon * rnorm) / steepest
            if value > bound:
                bound, dual = value, point.r
            error = abs(tau - bound) / max(tau, bound)
            miss = abs(rnorm - epsilon) / size
            gaps.append(error)
            if max(error, miss) <= self.tol / 2:
                status = Status.OPTIMAL
                break
            tau = max(tau + (rnorm - epsilon) * rnorm / steepest, 0.0)
            accuracy = max(1e-3 * min(miss, error), 1e-3 * self.tol)
            ball = L1Ball(tau, ball.weights, ball.nonneg)
            before = point.n_iter
            point = self._subproblem(A, y, ball, point, accuracy, callback)
            if point.n_iter == before and max(error, miss) >= best:
                status = Status.STALLED
                break
            best = min(best, max(error, miss))
        return SolverResult(
            point.c, dual=dual, status=status, n_iter=point.n_iter, history={"gap": gaps}
        )

    def _subproblem(
        self,
        A: Operator,
        y: Array,
        ball: L1Ball,
        start: _Point,
        accuracy: float,
        callback: Callback | None,
    ) -> _Point:
        """Projected gradient on `1/2 ||A c - y||^2` until its gap is `accuracy` of the value."""
        c = _project(ball, start.c)
        r = y - A.forward(c)
        g, k = -A.adjoint(r), start.n_iter
        values = [np.vdot(r, r).real / 2]
        step = 1.0 / max(float(np.abs(g).max()), 1e-300) * max(float(np.abs(c).max()), 1.0)
        while k < self.max_iter:
            gap = ball.tau * _dual_norm(ball, g) + np.vdot(g, c).real
            if gap <= accuracy * 2 * values[-1]:
                break
            k += 1
            d = _project(ball, c - step * g) - c
            Ad = A.forward(d)
            slope, curvature = np.vdot(g, d).real, np.vdot(Ad, Ad).real
            length = _line_search(slope, curvature, values[-1], max(values[-self.memory :]))
            if length == 0.0:
                break
            c, r = c + length * d, r - length * Ad
            if k % 50 == 0:
                r = y - A.forward(c)  # recurrence error would limit the last digits
            new_g = -A.adjoint(r)
            values.append(np.vdot(r, r).real / 2)
            change = np.vdot(length * d, new_g - g).real
            step = float(np.vdot(d, d).real * length**2 / change) if change > 0 else 1e5 * step
            g = new_g
            if callback is not None and callback(k, c):
                return _Point(c, r, g, self.max_iter)
        return _Point(c, y - A.forward(c), g, k)


def _project(ball: L1Ball, c: Array) -> Array:
    return ball.prox(c[:, None], 1.0)[:, 0]


def _dual_norm(ball: L1Ball, g: Array) -> float:
    """`max_i |g_i| / w_i`, one-sided for non-negative c."""
    size = np.maximum(-g, 0) if ball.nonneg else np.abs(g)
    return max(float((size / ball.weights[:, 0]).max()), 1e-300)


def _line_search(slope: float, curvature: float, value: float, reference: float) -> float:
    """A length in (0, 1] with `f(c + length d) <= reference + 1e-4 length slope`; f quadratic."""
    if slope >= 0:
        return 0.0
    length = 1.0
    while value + length * slope + length**2 * curvature / 2 > reference + 1e-4 * length * slope:
        length = max(min(length / 2, -slope / curvature), 0.1 * length)
    return length
