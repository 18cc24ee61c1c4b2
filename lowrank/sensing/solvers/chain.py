"""The certified chain: message passing, active set, path, interior point, and proof of each answer.

`min ||w x||_1` subject to `A x = y` or `||A x - y|| <= epsilon`, and the LASSO, for a real matrix.
Each link may fail; none is believed without a duality gap computed from its own float64 products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.problems import BPDN, BasisPursuit, Lasso, Problem
from lowrank.sensing.result import SolverResult, Status
from lowrank.sensing.solvers.active_set import (
    Segment,
    Settled,
    Target,
    basis_pursuit_target,
    bpdn_target,
    descend,
    lasso_target,
    make_segment,
    refine,
    settle,
)
from lowrank.sensing.solvers.amp import AmpState, amp_start
from lowrank.sensing.solvers.column_pool import Array, ColumnPool
from lowrank.sensing.solvers.homotopy import follow_path
from lowrank.sensing.solvers.interior_point import InteriorPoint, interior_point
from lowrank.sensing.solvers.protocol import Callback

# Column norms that differ by more than this factor are scaled to 1; it costs a copy of A.
UNEVEN = 4.0
# A dual gap and infeasibility below this need no iterative refinement.
SHARP = 1e-13


class Goal(NamedTuple):
    """Which problem: basis pursuit, or `||A x - y|| <= epsilon`, or the LASSO with `lam`."""

    epsilon: float = 0.0
    lam: float = 0.0

    def target(self) -> Target:
        """Where the path is to stop."""
        if self.lam:
            return lasso_target(self.lam)
        return bpdn_target(self.epsilon) if self.epsilon else basis_pursuit_target


class Answer(NamedTuple):
    """A point with its dual, its relative gap and infeasibility, and the link that found it."""

    x: Array
    u: Array
    gap: float
    infeasibility: float
    link: str
    n_iter: int
    products: int

    @property
    def error(self) -> float:
        """The worse of gap and infeasibility; NaN counts as infinite."""
        worst = max(self.gap, self.infeasibility)
        return worst if math.isfinite(worst) else math.inf


def measure(
    pool: ColumnPool, goal: Goal, x: Array, u: Array, residual: Array, c: Array
) -> tuple[float, float]:
    """Relative duality gap and infeasibility of `x`, with `c = A^T u` and `y - A x` given.

    `u` is scaled to the best feasible point on its ray, so any `u` gives a true lower bound.
    """
    value = float(pool.weights @ np.abs(x))
    cap = 1.0 / max(1.0 + float(pool.violation(c).max()), 1e-300)
    slope, norm = float(pool.y @ u), float(np.linalg.norm(u))
    size = float(np.linalg.norm(residual))
    if goal.lam:
        scale = min(goal.lam * cap, slope / max(norm**2, 1e-300))
        primal = size**2 / 2 + goal.lam * value
        dual = scale * slope - (scale * norm) ** 2 / 2
        return abs(primal - dual) / max(primal, 1e-300), 0.0
    dual = cap * (slope - goal.epsilon * norm)
    infeasibility = max(size - goal.epsilon, 0.0) / pool.y_norm
    return abs(value - dual) / max(value, abs(dual), 1e-300), infeasibility


def answer_of(pool: ColumnPool, goal: Goal, found: Settled, link: str, n_iter: int) -> Answer:
    """The point of the path with its certificate, refined only where rounding shows."""
    line, lam, c = found
    answer = _answer(pool, goal, line, lam, c, link, n_iter)
    if answer.error > SHARP:
        line = refine(pool, line)
        if not goal.lam:  # the last digits of `lam` where the residual meets epsilon
            lam = goal.target()(line) if goal.epsilon else 0.0
        c = pool.multiply_adjoint(line.dual(lam))
        refined = _answer(pool, goal, line, lam, c, link, n_iter)
        answer = min(answer, refined, key=lambda a: a.error)
    return answer


def _answer(
    pool: ColumnPool, goal: Goal, line: Segment, lam: float, c: Array, link: str, n_iter: int
) -> Answer:
    x = np.zeros(pool.weights.size)
    x[line.support] = line.coefficients(lam)
    if pool.nonneg:
        np.maximum(x, 0, out=x)
    u, residual = line.dual(lam), line.r + lam * line.v
    gap, infeasibility = measure(pool, goal, x, u, residual, c)
    return Answer(x, u, gap, infeasibility, link, n_iter, pool.products)


def amp_guess(pool: ColumnPool, goal: Goal) -> tuple[AmpState, float]:
    """Message passing in float32 on columns scaled to norm 1; also returns that scale."""
    scale = float(np.linalg.norm(pool.A) / math.sqrt(pool.A.shape[1]))
    single = pool.A.astype(np.float32)
    if abs(scale - 1) > 1e-3:
        single /= np.float32(scale)
    noise = goal.epsilon or goal.lam / scale * math.sqrt(len(pool.y))
    reach = max(0.03, 1.5 * noise / pool.y_norm)
    weights = pool.weights / pool.weights.mean()
    uniform = float(np.ptp(weights)) < 1e-6
    state = amp_start(
        single, pool.y, 1.0 if uniform else weights.astype(np.float32), reach=reach,
        nonneg=pool.nonneg,
    )  # fmt: skip
    pool.products += 2 * state.n_iter
    return state, scale


def by_message_passing(pool: ColumnPool, goal: Goal) -> tuple[Answer | None, Settled | None]:
    """AMP guesses support and signs, the active set makes them exact; or a start for the path."""
    state, scale = amp_guess(pool, goal)
    if not state.falling:
        return None, None
    lam = scale * state.sigma / float(pool.weights.mean())
    size = state.pseudo if pool.nonneg else np.abs(state.pseudo)
    support = np.flatnonzero(size > 3 * state.sigma)
    signs = np.sign(state.pseudo[support]).astype(np.float64)
    found = descend(pool, support, signs, lam, goal.target())
    if found is not None:
        return answer_of(pool, goal, found, "message passing and active set", state.n_iter), None
    return None, settle(pool, support, signs, lam, goal.target(), 10)


def by_path(pool: ColumnPool, goal: Goal, start: Settled | None) -> Answer | None:
    """Block homotopy."""
    found = follow_path(pool, goal.target(), start)
    return None if found is None else answer_of(pool, goal, found, "block homotopy", 0)


def by_interior_point(pool: ColumnPool, goal: Goal, tol: float) -> Answer:
    """Interior point for basis pursuit, with attempts to cross over to an exact vertex."""
    vertex: list[Answer] = []
    tried = [1e-2]

    def cross_over(point: InteriorPoint) -> bool:
        if point.gap > tried[-1] or not point.active.any():
            return False
        tried.append(0.1 * point.gap)
        support = np.flatnonzero(point.active)
        lam = point.gap * float(np.abs(pool.correlation).max())
        found = descend(pool, support, np.sign(point.x[support]), lam, goal.target())
        if found is not None:
            vertex.append(answer_of(pool, goal, found, "interior point", point.n_iter))
        return bool(vertex) and vertex[-1].error < 0.1 * tol

    point = interior_point(pool.A, pool.y, pool.weights, nonneg=pool.nonneg, visit=cross_over)
    pool.products += point.products
    if vertex:
        return vertex[-1]
    residual, c = pool.y - pool.A @ point.x, pool.multiply_adjoint(point.u)
    gap, infeasibility = measure(pool, goal, point.x, point.u, residual, c)
    link = "interior point"
    return Answer(point.x, point.u, gap, infeasibility, link, point.n_iter, pool.products)


def by_linear_program(pool: ColumnPool, goal: Goal) -> Answer | None:
    """The last resort for basis pursuit: HiGHS on the split `x = p - n`."""
    from scipy.optimize import linprog

    n = pool.weights.size
    split = pool.A if pool.nonneg else np.hstack([pool.A, -pool.A])
    cost = pool.weights if pool.nonneg else np.tile(pool.weights, 2)
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    lp = linprog(cost, A_eq=split, b_eq=pool.y, method="highs", options=options)
    if lp.x is None:
        return None
    x = lp.x if pool.nonneg else lp.x[:n] - lp.x[n:]
    u = np.asarray(lp.eqlin.marginals)
    c = pool.multiply_adjoint(u)
    vertex = np.flatnonzero(x)
    found = descend(pool, vertex, np.sign(x[vertex]), 1e-12, goal.target())
    if found is not None:
        return answer_of(pool, goal, found, "linear program", int(lp.nit))
    gap, infeasibility = measure(pool, goal, x, u, pool.y - pool.A @ x, c)
    return Answer(x, u, gap, infeasibility, "linear program", int(lp.nit), pool.products)


def solve_l1(
    A: Array, y: Array, weights: Array, goal: Goal, *, nonneg: bool = False, tol: float = 1e-8
) -> Answer:
    """Run the chain until one link's answer has a gap and infeasibility below `tol`.

    Args:
        A: real matrix, shape (m, n).
        y: measurements, shape (m,), not zero.
        weights: positive weights, shape (n,).
        goal: which problem.
        nonneg: ask for `x >= 0` too.
        tol: relative gap and infeasibility to prove.

    Returns:
        The first certified answer, or the best one there is.
    """
    norms = np.sqrt(np.einsum("ij,ij->j", A, A))
    norms[norms == 0] = 1.0
    uneven = norms.max() > UNEVEN * norms.min()
    if uneven:
        A, weights = A / norms, weights / norms
    best = _run_links(ColumnPool(A, y, weights, nonneg=nonneg), goal, tol)
    return best._replace(x=best.x / norms) if uneven else best


def _run_links(pool: ColumnPool, goal: Goal, tol: float) -> Answer:
    m, n = pool.A.shape
    start: Settled | None = None
    answers: list[Answer] = []
    if m < n and float(pool.weights.max()) < 10 * float(pool.weights.min()):
        answer, start = by_message_passing(pool, goal)
        if answer is not None:
            answers.append(answer)
    later = [lambda: by_path(pool, goal, start)]
    if not goal.epsilon and not goal.lam:
        later += [lambda: by_interior_point(pool, goal, tol), lambda: by_linear_program(pool, goal)]
    for link in later:
        if answers and answers[-1].error < tol:
            break
        answer = link()
        if answer is not None:
            answers.append(answer)
    if not answers:
        zero = np.zeros(n)
        answers.append(Answer(zero, pool.y, 1.0, 1.0, "no link", 0, pool.products))
    best = min(answers, key=lambda a: a.error)
    return best._replace(products=pool.products)
