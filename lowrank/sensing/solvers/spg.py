"""Spectral projected gradient along the Pareto curve of residual against L1 norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.feasibility import Doubt
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.scaling import equilibrated, unscaled
from lowrank.sensing.solvers.standstill import Standstill
from lowrank.sensing.terms import L1Ball
from lowrank.status import Status


class _Point(NamedTuple):
    """An iterate of the inner problem: `c`, `r = y - A c`, `g = -A^H r`, iterations used.

    `stopped` says that the callback asked to end the run.
    """

    c: Array
    r: Array
    g: Array
    n_iter: int
    stopped: bool = False


@dataclass(frozen=True)
class SPG:
    """BPDN and basis pursuit: the tau with `min_{||w c||_1 <= tau} ||A c - y|| = epsilon`.

    Each value phi(tau) of that minimum comes from projected gradient with Barzilai-Borwein steps,
    and its residual gives the line `Re <v, y> - tau max |A^H v| / w <= phi(tau)`, `v = r / ||r||`.
    The next tau is the line's root, which is below the solution's norm however inexact the value
    was, and is at once the dual bound.

    Args:
        tol: relative duality gap and residual error to stop at.
        max_iter: limit of the projected gradient steps, all together.
        memory: values that the nonmonotone line search looks back on.
        accuracy: share of `||r|| - epsilon` that each line must reach at its own tau, in (0, 1).

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(BPDN(np.eye(2), [3.0, 0.0], 1.0), SPG()).x.round(6).tolist()
        [2.0, 0.0]

    Source: van den Berg, Friedlander 2008, algorithm 1; the root search of Aravkin et al. 2019,
        section 2.2, in place of their Newton steps, which inexact values may carry too far.
    """

    tol: float = 1e-8
    max_iter: int = 20_000
    memory: int = 5
    accuracy: float = 0.9

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit, BPDN)

    def refuses(self, problem: Problem) -> str | None:
        """Takes one signal, free or non-negative."""
        if np.ndim(problem.y) != 1:
            return "takes one signal at a time"
        if problem.bounded and not problem.nonneg:
            return "takes no bounds but c >= 0"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Newton steps on tau until gap and residual are within tol."""
        problem, S = equilibrated(problem)
        A, y = problem.operator, np.asarray(problem.y)
        epsilon, size = problem.residual_bound or 0.0, float(np.linalg.norm(y))
        weights = np.asarray(problem.weights)[:, None]  # type: ignore[attr-defined]
        ball = L1Ball(0.0, weights, problem.nonneg)
        point = _Point(np.zeros(A.shape[1], problem.dtype), y, -A.adjoint(y), 0)
        dual, gaps = y, []
        doubt, stands = Doubt(problem, self.tol), Standstill.by(A)

        def seen(k: int, c: Array) -> bool:
            shown = callback is not None and callback(k, unscaled(problem, c[:, None], S))
            return bool(shown) or doubt(k, c)

        status = Status.MAX_ITER
        while point.n_iter < self.max_iter:
            rnorm, steepest = float(np.linalg.norm(point.r)), _dual_norm(ball, point.g)
            bound = (np.vdot(point.r, y).real - epsilon * rnorm) / steepest
            price = max(rnorm - epsilon, 0.0) * rnorm / steepest
            proven = max(bound, ball.tau)  # tau was the root of an earlier line
            gap = abs(ball.tau + price - proven) / proven
            gaps.append(float(max(gap, abs(rnorm - epsilon) / size)))  # c = 0 has no gap
            if bound > ball.tau:
                dual = point.r
            if point.stopped:
                status = Status.INFEASIBLE if doubt.proven else status
                break
            if gaps[-1] <= self.tol / 2:
                status = Status.OPTIMAL
                break
            if bound <= ball.tau * (1 + 1e-15) or stands(point.n_iter, gaps[-1]):
                status = Status.STALLED
                break
            ball = L1Ball(bound, weights, ball.nonneg)
            point = self._subproblem(A, y, ball, epsilon, point, seen)
        c = _fitted(A, point) if epsilon == 0 else point.c
        return SolverResult(
            unscaled(problem, c[:, None], S),
            dual=dual,
            status=status,
            n_iter=point.n_iter,
            history={"gap": gaps},
        )

    def _subproblem(
        self,
        A: Operator,
        y: Array,
        ball: L1Ball,
        epsilon: float,
        start: _Point,
        callback: Callback,
    ) -> _Point:
        """Projected gradient on `1/2 ||A c - y||^2` until its line is good enough."""
        c = _project(ball, start.c)
        r = y - A.forward(c)
        g, k = -A.adjoint(r), start.n_iter
        values = [np.vdot(r, r).real / 2]
        step = float(np.vdot(g, g).real / max(_square(A.forward(g)), 1e-300))
        enough, stands = self.tol / 10 * float(np.linalg.norm(y)), Standstill.by(A)
        while k < self.max_iter:
            rnorm = float(np.sqrt(2 * values[-1]))
            line = rnorm + _slope(ball, g, c, 0 * c) / max(rnorm, 1e-300)
            good = line - epsilon >= self.accuracy * abs(rnorm - epsilon)
            if good or abs(rnorm - epsilon) <= enough:
                break
            if stands(k - start.n_iter, (rnorm - line) / max(rnorm, 1e-300)):
                break
            k += 1
            target = _project(ball, c - step * g)
            d = target - c
            Ad = A.forward(d)
            slope, curvature = _slope(ball, g, c, target), _square(Ad)
            length = _line_search(slope, curvature, values[-1], max(values[-self.memory :]))
            if length == 0.0:
                break
            c, r = c + length * d, r - length * Ad
            if k % 50 == 0:
                r = y - A.forward(c)  # recurrence error would limit the last digits
            g = -A.adjoint(r)
            values.append(_square(r) / 2)
            step = float(np.vdot(d, d).real / curvature) if curvature > 0 else 10 * step
            if callback(k, c):
                return _Point(c, r, g, k, stopped=True)
        return _Point(c, r, g, k)


def _fitted(A: Operator, point: _Point) -> Array:
    """Basis pursuit's last digits: the least change on the support that makes the residual 0."""
    J = np.flatnonzero(point.c)
    if not A.is_dense or not 0 < J.size <= A.shape[0]:
        return point.c
    c = point.c.copy()
    c[J] += np.linalg.lstsq(A.columns(J), point.r, rcond=None)[0]
    return c


def _square(x: Array) -> float:
    return float(np.vdot(x, x).real)


def _slope(ball: L1Ball, g: Array, c: Array, target: Array) -> float:
    """`Re <g, target - c>`; `target = 0` stands for the ball's lowest point along g.

    Between points of norm tau, `mu (||target||_1 - ||c||_1) = 0` may be added, `mu = max |g| / w`;
    on the support it cancels g, which else leaves nothing but rounding of the small difference.
    """
    w, d = ball.weights[:, 0], target - c
    at_rest = not target.any()
    norms = [float((w * np.abs(x)).sum()) for x in (c, c if at_rest else target)]
    if max(abs(norm - ball.tau) for norm in norms) > 1e-9 * ball.tau:
        return float(np.vdot(g, d).real) if not at_rest else _far_slope(ball, g, c)
    size = np.abs(target) + np.abs(c)
    signs = (target + c) / np.where(size > 0, size, 1)
    return float(np.vdot(g + _dual_norm(ball, g) * w * signs, d).real)


def _far_slope(ball: L1Ball, g: Array, c: Array) -> float:
    return float(-ball.tau * _dual_norm(ball, g) - np.vdot(g, c).real)


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
