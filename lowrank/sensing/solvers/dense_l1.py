"""What the exact solvers for a real matrix share: the goal, the scaled data, the proven answer.

They minimise `||w x||_1` subject to `A x = y` or to `||A x - y|| <= epsilon`, or the LASSO.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.active_set import (
    Segment,
    Settled,
    Target,
    basis_pursuit_target,
    bpdn_target,
    lasso_target,
    refine,
)
from lowrank.sensing.solvers.column_pool import Array, ColumnPool, Index, Stopped, rough_copy
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

# Column norms that differ by more than this factor are scaled to 1; it costs a copy of A.
UNEVEN = 4.0


# A dual gap and infeasibility below this need no iterative refinement.
SHARP = 1e-13


# Entries of a matrix, in all, that these solvers take.
MAX_ENTRIES = 2**27


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
    outside = max(size - goal.epsilon, 0.0)
    value += outside * cap * norm  # what moving x into the constraint may cost
    return abs(value - dual) / max(value, abs(dual), 1e-300), outside / pool.y_norm


def answer_of(pool: ColumnPool, goal: Goal, found: Settled, link: str) -> Answer:
    """The point of the path with its certificate, refined only where rounding shows."""
    line, lam, c = found
    answer = _answer(pool, goal, line, lam, c, link)
    if answer.error > SHARP:
        line = refine(pool, line)
        if not goal.lam:  # the last digits of `lam` where the residual meets epsilon
            lam = goal.target()(line) if goal.epsilon else 0.0
        c = pool.multiply_adjoint(line.dual(lam))
        refined = _answer(pool, goal, line, lam, c, link)
        answer = min(answer, refined, key=lambda a: a.error)
    return answer


def _answer(pool: ColumnPool, goal: Goal, line: Segment, lam: float, c: Array, link: str) -> Answer:
    x = np.zeros(pool.weights.size)
    x[line.support] = line.coefficients(lam)
    if pool.nonneg:
        np.maximum(x, 0, out=x)
    u, residual = line.dual(lam), line.r + lam * line.v
    gap, infeasibility = measure(pool, goal, x, u, residual, c)
    return Answer(x, u, gap, infeasibility, link)


Link = Callable[[ColumnPool, Goal, Array | None], Answer | None]
"""A way to solve: data, goal and perhaps a start in, an answer with its measured gap out."""


def refuses_dense(problem: Problem) -> str | None:
    """Why an exact dense real solver cannot take the problem, or None."""
    if not problem.operator.is_dense:
        return "needs a matrix, and A is matrix-free"
    if problem.is_complex:
        return "needs real data, and this is complex"
    if problem.bounded and not problem.nonneg:
        return "knows no bounds other than c >= 0"
    m, n = problem.operator.shape
    return f"holds matrices up to {MAX_ENTRIES} entries" if m * n > MAX_ENTRIES else None


def solve_columns(
    problem: BasisPursuit | BPDN | Lasso, link: Link, tol: float, *, max_iter: int | None = None,
    x0: Array | None = None, callback: Callback | None = None,
) -> SolverResult:  # fmt: skip
    """Solve each column of `y`, on columns of `A` scaled to norm 1 where they are uneven.

    An iteration is a guess of the answer: an exchange of the active set, a pivot, a step of the
    interior point, or one of the linear program's. `max_iter` limits those of each column; the
    callback sees each but the last kind, of the shape of all the coefficients.
    """
    A, weights = np.asarray(problem.operator.dense), np.array(problem.weights, dtype=np.float64)
    single, norms = rough_copy(A), np.ones(1)
    if _uneven(single):
        norms = problem.operator.column_norms()
        norms = np.where(norms > 0, norms, 1.0)
        A, weights = A / norms, weights / norms
        single = rough_copy(A)
    bound = problem.residual_bound
    goal = Goal(lam=problem.factor) if bound is None else Goal(epsilon=bound)
    y, shape = np.asarray(problem.y), problem.unknown_shape
    columns = y.reshape(len(y), -1).T
    more: dict[str, Any] = {"nonneg": problem.nonneg, "single": single}
    pools = [ColumnPool(A, column, weights, **more) for column in columns]
    starts = [None] * len(pools) if x0 is None else list(x0.reshape(len(x0), -1).T * norms)
    X = np.zeros((weights.size, len(pools)))
    shown = _Shown(callback, X.reshape(shape), norms)
    answers: list[Answer] = []
    for j, (pool, start) in enumerate(zip(pools, starts, strict=True)):
        pool.max_iter = math.inf if max_iter is None else max_iter
        pool.watch = shown.column(j)
        answers.append(_column(pool, goal, link, start, stopped=shown.stopped))
        X[:, j] = answers[-1].x / norms
    worst = max(answers, key=lambda a: a.error)
    status = Status.OPTIMAL if worst.error <= tol else Status.STALLED
    if worst.link == STOPPED:
        status = Status.MAX_ITER
    note = worst.link if math.isinf(worst.gap) else f"{worst.link}, gap {worst.gap:.0e}"
    return SolverResult(
        coefficients=X.reshape(shape),
        dual=np.stack([a.u for a in answers], axis=-1).reshape(y.shape),
        status=status,
        n_iter=max(pool.n_iter for pool in pools),
        n_products=sum(pool.products for pool in pools),
        note="stopped by the callback" if shown.stopped else note,
    )


STOPPED = "stopped short"
"""Link of an answer that a limit or the callback cut off."""


def _column(
    pool: ColumnPool, goal: Goal, link: Link, start: Array | None, *, stopped: bool
) -> Answer:
    """The answer of one column: proven, cut off at the last guess, or nothing."""
    if (zero := _trivial(pool, goal)) is not None:
        return zero
    try:
        if not stopped:
            return link(pool, goal, start) or _nothing(pool)
    except Stopped:
        pass
    x = np.zeros(pool.weights.size)
    support, x[support] = pool.guess[0], pool.guess[1]
    return Answer(x, pool.y - pool.A @ x, math.inf, math.inf, STOPPED)


class _Shown:
    """Lets pools write their guesses into `X`, shows it, and stops where that is asked for."""

    def __init__(self, callback: Callback | None, X: Array, norms: Array) -> None:
        self.callback, self.X, self.norms = callback, X, norms
        self.stopped, self.calls = False, itertools.count(1)

    def column(self, j: int) -> Callable[[Index, Array], None]:
        """What a column's pool is to tell of its guesses."""
        wide = self.X.reshape(len(self.X), -1)

        def watch(support: Index, coefficients: Array) -> None:
            if self.callback is None:
                return
            wide[:, j] = 0.0
            wide[support, j] = coefficients
            wide[:, j] /= self.norms
            if self.callback(next(self.calls), self.X.copy()):
                self.stopped = True
                raise Stopped

        return watch


def _uneven(single: NDArray[Any]) -> bool:
    """Whether norms of columns differ by more than `UNEVEN`, or leave the range of float32."""
    norms = np.sqrt(np.einsum("ij,ij->j", single, single))
    low, high = float(norms.min()), float(norms.max())
    return not (low > 1e-15 and high < min(UNEVEN * low, 1e15))


def _trivial(pool: ColumnPool, goal: Goal) -> Answer | None:
    """Zero, where that is the optimum."""
    if pool.y_norm > goal.epsilon and not (goal.lam and pool.lam_max <= goal.lam):
        return None
    return Answer(np.zeros(pool.weights.size), pool.y, 0.0, 0.0, "zero")


def _nothing(pool: ColumnPool) -> Answer:
    return Answer(np.zeros(pool.weights.size), pool.y, 1.0, 1.0, "nothing")
