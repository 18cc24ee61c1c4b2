"""Exact L1: message passing, active set, path, interior point, and proof of each answer.

Each link may fail; none is believed without a duality gap from its own float64 products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.active_set import Settled, descend, settle
from lowrank.sensing.solvers.amp import AMPState, amp_start
from lowrank.sensing.solvers.column_pool import SMALL, Array, ColumnPool, Index
from lowrank.sensing.solvers.dense_l1 import (
    Answer,
    Goal,
    Link,
    answer_of,
    measure,
    refuses_dense,
    solve_columns,
)
from lowrank.sensing.solvers.homotopy import by_path, by_perturbed_path
from lowrank.sensing.solvers.interior_point import by_interior_point
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.remainder import by_scales

# Message passing is for columns that are penalised about alike.
ALIKE = 10.0


# The active set may go on from a point of the path at this share of its lam.
STRIDE = 0.4


# A share of equal columns from which on a copy of A without them is worth while.
REPEATED = 0.1


# A start whose lam is this many times the one asked for is a point of the path above it.
NEAR = 1.5


# Message passing stops at this share of ||y||; from there the active set is faster.
REACH = 0.1


def amp_guess(pool: ColumnPool, goal: Goal) -> tuple[AMPState, float]:
    """Message passing in float32; also returns the norm that the columns have on average."""
    rows = pool.single[::8] if pool.A.size > SMALL and pool.A[::8].any() else pool.A
    share = len(rows) / len(pool.A)
    norm = math.sqrt(float(np.einsum("ij,ij->", rows, rows)) / share / pool.A.shape[1])
    noise = goal.epsilon or goal.lam / norm * math.sqrt(len(pool.y))
    weights: Array | float = pool.weights.astype(pool.single.dtype) / pool.weights.mean()
    if float(np.ptp(weights)) < 1e-6:
        weights = 1.0
    reach = max(REACH, 1.5 * noise / pool.y_norm)
    more: dict[str, Any] = {"nonneg": pool.nonneg, "correlation": pool.correlation}
    state = amp_start(pool.single, pool.y, weights, norm=norm, reach=reach, **more)
    pool.products += 2 * state.n_iter - 1
    return state, norm


def by_message_passing(pool: ColumnPool, goal: Goal) -> tuple[Answer | None, Settled | None]:
    """AMP guesses support and signs, the active set makes them exact; or a start for the path."""
    state, scale = amp_guess(pool, goal)
    if not state.falling:
        return None, None
    lam = scale * state.sigma / float(pool.weights.mean())
    size = state.pseudo if pool.nonneg else np.abs(state.pseudo)
    support = np.flatnonzero(size > 3 * state.sigma)
    signs = np.sign(state.pseudo[support]).astype(np.float64)
    target = goal.target()
    limit = 0.8 if pool.A.size > SMALL else 1.2
    found = descend(pool, support, signs, lam, target, limit=limit) if state.reached else None
    if found is not None and not found.solves(target):  # near the transition: once more from here
        line, lower = found.line, STRIDE * found.lam
        jump = descend(pool, line.support, line.signs, lower, target, limit=limit, most=0.75)
        found = jump or found
    if found is not None and found.solves(target):
        return answer_of(pool, goal, found, "message passing and active set"), None
    if found is None and pool.crowded:
        return None, None
    return None, found or settle(pool, support, signs, lam, target, 10, limit)


def by_linear_program(pool: ColumnPool, goal: Goal) -> Answer | None:
    """The last resort for basis pursuit: HiGHS on the split `x = p - n`."""
    from scipy.optimize import linprog

    n = pool.weights.size
    split = pool.A if pool.nonneg else np.hstack([pool.A, -pool.A])
    cost = pool.weights if pool.nonneg else np.tile(pool.weights, 2)
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    if math.isfinite(pool.left):
        options["maxiter"] = int(pool.left)
    lp = linprog(cost, A_eq=split, b_eq=pool.y, method="highs", options=options)
    pool.spend(int(lp.nit))
    if lp.x is None:
        return None
    x = lp.x if pool.nonneg else lp.x[:n] - lp.x[n:]
    u = np.asarray(lp.eqlin.marginals)
    c = pool.multiply_adjoint(u)
    vertex = np.flatnonzero(x)
    found = descend(pool, vertex, np.sign(x[vertex]), 1e-12, goal.target())
    if found is not None and found.solves(goal.target()):
        return answer_of(pool, goal, found, "linear program")
    gap, infeasibility = measure(pool, goal, x, u, pool.y - pool.A @ x, c)
    return Answer(x, u, gap, infeasibility, "linear program")


def distinct(pool: ColumnPool) -> Index | None:
    """The lightest of each set of columns equal up to sign, or None where hardly any are.

    Equal columns have equal products with y and with a random vector. That rounding hides a pair,
    or joins one, harms nothing: the gap is measured with all columns.
    """
    c = pool.correlation
    ordered = np.sort(c if pool.nonneg else np.abs(c))
    if np.count_nonzero(np.diff(ordered)) + 1 > (1 - REPEATED) * c.size:
        return None
    side = np.where((c < 0) & (not pool.nonneg), -1.0, 1.0)  # a column's negative is as good
    probe = pool.multiply_adjoint(np.random.default_rng(0).standard_normal(len(pool.A)))
    key = side * c + 1j * side * probe
    order = np.argsort(pool.weights, kind="stable")
    chosen = np.sort(order[np.unique(key[order], return_index=True)[1]])
    return chosen if chosen.size <= (1 - REPEATED) * c.size else None


def by_distinct_columns(pool: ColumnPool, goal: Goal, tol: float) -> Answer | None:
    """`ExactL1` on one of each set of equal columns, which costs less and has no ties."""
    chosen = distinct(pool)
    if chosen is None:
        return None
    A, single = pool.A.take(chosen, axis=1), pool.single.take(chosen, axis=1)
    more: dict[str, Any] = {"nonneg": pool.nonneg, "single": single if A.size > SMALL else A}
    merged = ColumnPool(A, pool.y, pool.weights[chosen], within=(pool, chosen), **more)
    try:
        answer = first_proven(merged, goal, tol)
    finally:
        pool.products += merged.products
    if answer is None:
        return None
    x = np.zeros(pool.weights.size)
    x[chosen] = answer.x
    c = pool.multiply_adjoint(answer.u)
    gap, infeasibility = measure(pool, goal, x, answer.u, pool.y - pool.A @ x, c)
    return answer._replace(x=x, gap=gap, infeasibility=infeasibility)


def by_start(pool: ColumnPool, goal: Goal, x0: Array) -> tuple[Answer | None, Settled | None]:
    """The active set from support and signs of a point near the solution; or a start for the path
    where the point is one of a larger lam.
    """
    support = np.flatnonzero(x0 > 0 if pool.nonneg else x0)
    signs, target = np.sign(x0[support]), goal.target()
    lam = 0.0  # the line itself says where to stop, but for basis pursuit, which may be far off
    if not goal.epsilon:
        reached = 1.0 + float(pool.violation(pool.multiply_adjoint(pool.y - pool.A @ x0)).max())
        lam = 0.0 if goal.lam else reached
    if goal.lam and reached > NEAR * goal.lam:
        return None, settle(pool, support, signs, reached, target, 12)
    found = descend(pool, support, signs, lam, target)
    if found is None or not found.solves(target):
        return None, None
    return answer_of(pool, goal, found, "active set from x0"), None


def first_proven(
    pool: ColumnPool, goal: Goal, tol: float, x0: Array | None = None
) -> Answer | None:
    """Run the links until one's answer has a gap and an infeasibility below `tol`.

    Returns:
        The first proven answer, or the best one there is, or None.
    """
    start: Settled | None = None
    answers: list[Answer] = []
    if x0 is not None and x0.any():
        answer, start = by_start(pool, goal, x0)
        answers += [answer] if answer else []
    if not _proven(answers, tol) and (answer := by_distinct_columns(pool, goal, tol)) is not None:
        answers.append(answer)
    alike = float(pool.weights.max()) < ALIKE * float(pool.weights.min())
    if start is None and not _proven(answers, tol) and alike:
        answer, start = by_message_passing(pool, goal)
        answers += [answer] if answer else []
    path, again = lambda: by_path(pool, goal, start), lambda: by_perturbed_path(pool, goal)
    links: list[Callable[[], Answer | None]] = [path, again]
    if not goal.epsilon and not goal.lam:
        interior = lambda: by_interior_point(pool, goal, tol)  # noqa: E731
        path = lambda: by_scales(pool, goal, start)  # noqa: E731
        # the path of a signal that is hardly sparse is long, and its end costs the most
        first = [interior, path] if pool.crowded and pool.A.size > SMALL else [path, interior]
        links = [*first, again, lambda: by_linear_program(pool, goal)]
    for link in links:
        if _proven(answers, tol):
            break
        answer = link()
        answers += [answer] if answer else []
    return min(answers, key=lambda a: a.error, default=None)


def _proven(answers: list[Answer], tol: float) -> bool:
    return bool(answers) and answers[-1].error <= tol


@dataclass(frozen=True)
class ExactL1:
    """Basis pursuit, BPDN and the LASSO with a real matrix, by the first link that can prove it.

    Approximate message passing guesses support and signs, a primal-dual active set makes them
    exact; where that fails block homotopy follows the path, and for basis pursuit an interior
    point method and in the end a linear program stand behind it.

    Args:
        tol: relative gap and infeasibility to prove; about 1e-14 is usual.
        max_iter: limit of the guesses of each signal: exchanges of the active set, pivots, steps
            of the interior point; the message passing before them is not counted. None is none.

    Example:
        >>> A = np.array([[1.0, 0.9, 0.0], [0.0, 0.9, 1.0]])
        >>> ExactL1().solve(BasisPursuit(A, [1.0, 1.0])).coefficients.round(6)
        array([0.      , 1.111111, 0.      ])

    Source: the links' own files; the order and the proof are ours.
    """

    tol: float = 1e-8
    max_iter: int | None = None

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit, BPDN, Lasso)

    def refuses(self, problem: Problem) -> str | None:
        """A real matrix is needed, and no bounds other than `c >= 0`."""
        return refuses_dense(problem)

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; support and signs of `x0` are the first guess."""
        assert isinstance(problem, BasisPursuit | BPDN | Lasso)
        link: Link = lambda pool, goal, x0: first_proven(pool, goal, self.tol, x0)  # noqa: E731
        more: dict[str, Any] = {"max_iter": self.max_iter, "x0": x0, "callback": callback}
        return solve_columns(problem, link, self.tol, **more)
