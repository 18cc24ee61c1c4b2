"""Block homotopy: follow the LASSO path many breakpoints at a time.

Classical homotopy (LARS) pays one product with the matrix for each breakpoint. Here a line of the
path is left behind a whole block of its breakpoints, and the exchange of `active_set` repairs the
support at the new `lam`; if it does not, the block is shortened, in the end to one breakpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.active_set import Segment, Settled, Target, make_segment, settle
from lowrank.sensing.solvers.column_pool import Array, ColumnPool, Index
from lowrank.sensing.solvers.dense_l1 import (
    Answer,
    Goal,
    Link,
    answer_of,
    measure,
    refuses_dense,
    solve_columns,
)
from lowrank.sensing.solvers.protocol import Callback

# Below this share of `lam_max` breakpoints are rounding noise.
PATH_END = 1e-14


# The first block is this multiple of the support, and none is larger.
FIRST_SHARE = 1.5


# Relative change of the weights that takes ties apart, well below any tolerance asked for.
NUDGE = 1e-9


# Different changes tried.
NUDGES = 4


class Breakpoints(NamedTuple):
    """Where a line of the path stops being optimal: `lam`, descending, and which column turns."""

    lam: Array
    column: Index
    sign: Array
    """Sign with which the column joins; 0 if it leaves."""


def breakpoints(pool: ColumnPool, here: Settled, *, rough: bool = False) -> Breakpoints:
    """List the breakpoints of the present line below the present `lam`."""
    line, w = here.line, pool.weights
    if line.exact:  # no residual, so the dual point stays and nothing joins
        b = here.c.copy()
    else:
        b = pool.multiply_roughly(line.v) if rough else pool.multiply_adjoint(line.v)
    a = here.lam * (here.c - b)
    b[line.support] = np.nan  # these cannot join
    with np.errstate(divide="ignore", invalid="ignore"):
        lam = np.concatenate([a / (w - b), -a / (w + b), line.x_ls / line.q])
    n = w.size
    valid = (lam > PATH_END * pool.lam_max) & (lam < here.lam * (1 - 1e-12))
    if pool.nonneg:
        valid[n : 2 * n] = False
    chosen = np.flatnonzero(valid)
    chosen = chosen[np.argsort(-lam[chosen])]
    leaves = chosen >= 2 * n
    column, sign = chosen % n, np.where(chosen < n, 1.0, -1.0)
    column[leaves], sign[leaves] = line.support[chosen[leaves] - 2 * n], 0.0
    return Breakpoints(lam[chosen], column, sign)


def single_step(pool: ColumnPool, here: Settled) -> Settled | None:
    """Cross the next breakpoint only: the step of classical homotopy."""
    points = breakpoints(pool, here)
    if not points.lam.size:
        return None
    lam, column, sign = points.lam[0], points.column[0], points.sign[0]
    line = here.line
    if sign:
        support, signs = np.append(line.support, column), np.append(line.signs, sign)
    else:
        stay = line.support != column
        support, signs = line.support[stay], line.signs[stay]
    new = make_segment(pool, support, signs)
    if new.support.size < support.size:
        return None
    return Settled(new, lam, pool.multiply_adjoint(new.dual(lam)))


def top_of_path(pool: ColumnPool) -> Settled:
    """`x = 0`, at a `lam` just above `lam_max`, so that the first columns are still to come."""
    empty, none = np.empty(0), np.empty(0, np.intp)
    lam = pool.lam_max * (1 + 1e-9)
    line = Segment(none, empty, empty, empty, pool.y, np.zeros_like(pool.y), exact=False)
    return Settled(line, lam, pool.correlation / lam)


def below_block(points: Breakpoints, block: int) -> float:
    """A `lam` after that many breakpoints, between distinct ones, or 0 past the last."""
    if block >= points.lam.size:
        return 0.0
    last = points.lam[block - 1]
    later = points.lam[points.lam < last * (1 - 1e-9)]
    return float(0.5 * (last + later[0])) if later.size else 0.5 * float(last)


def block_size(pool: ColumnPool, here: Settled, share: float) -> int:
    """Breakpoints to leave behind: a share of the support, less where it nears a basis."""
    size = here.line.support.size
    room = max(min(pool.A.shape) - size, size // 5) / 2
    return max(1, int(min(share * (size + 4), room)))


def follow_path(
    pool: ColumnPool,
    target: Target,
    start: Settled | None = None,
    *,
    max_steps: int = 200,
    stop: Callable[[Settled], bool] = lambda here: False,
) -> Settled | None:
    """Follow the path from a point on it, or from `lam_max`, down to the target.

    Args:
        pool: the columns and data.
        target: where to stop.
        start: a point of the path.
        max_steps: number of blocks tried.
        stop: asked at each point of the path; true stops there.

    Returns:
        The solution of the problem, or where it was stopped; None if the path was lost.

    Source: Osborne, Presnell and Turlach, 2000, for the path; the blocks are ours.
    """
    here: Settled | None = start or top_of_path(pool)
    share, points = FIRST_SHARE, None
    for _ in range(max_steps):
        if here is None or here.solves(target) or stop(here):
            return here
        if points is None:
            points = breakpoints(pool, here, rough=True)
        block = block_size(pool, here, share)
        lam, before = below_block(points, block), pool.products
        there = settle(pool, here.line.support, here.line.signs, lam, target, 12)
        if there is not None:
            easy = pool.products - before <= 6
            here, points, share = (
                there,
                None,
                min(FIRST_SHARE, 1.3 * share) if easy else 0.8 * share,
            )
        elif block > 1:
            share *= 0.4
        elif points.lam.size and points.lam[0] > target(here.line):
            here, points = single_step(pool, here), None
        else:
            return None
    return None


def by_path(pool: ColumnPool, goal: Goal, start: Settled | None = None) -> Answer | None:
    """A link of `ExactL1`: block homotopy from a point of the path or from `lam_max`."""
    found = follow_path(pool, goal.target(), start)
    return None if found is None else answer_of(pool, goal, found, "block homotopy")


def by_perturbed_path(pool: ColumnPool, goal: Goal) -> Answer | None:
    """The path for weights that differ by `NUDGE`, where ties led the path itself astray.

    Many columns of a sign matrix reach their bounds at once; with random weights one comes first.
    The gap is measured with the true weights.
    """
    all_of_them = np.arange(pool.weights.size)
    for seed in range(NUDGES):
        nudge = 1 + NUDGE * np.random.default_rng(seed).random(pool.weights.size)
        more: dict[str, Any] = {"nonneg": pool.nonneg, "single": pool.single}
        other = ColumnPool(pool.A, pool.y, pool.weights * nudge, within=(pool, all_of_them), **more)
        try:
            answer = by_path(other, goal)
        finally:
            pool.products += other.products
        if answer is not None:
            residual, c = pool.y - pool.A @ answer.x, pool.multiply_adjoint(answer.u)
            gap, infeasibility = measure(pool, goal, answer.x, answer.u, residual, c)
            return answer._replace(gap=gap, infeasibility=infeasibility, link="perturbed homotopy")
    return None


@dataclass(frozen=True)
class Homotopy:
    """Block homotopy for basis pursuit, BPDN and the LASSO: exact up to rounding, real matrix.

    Minimises `1/2 ||A x - y||^2 + lam ||w x||_1` for `lam` falling from `lam_max` to where the
    problem stops: at its `lam`, where `||A x - y|| = epsilon`, or at 0.

    Args:
        tol: relative gap and infeasibility that counts as optimal.
        max_iter: limit of the guesses of each signal, several to a block of the path; None is none.

    Example:
        >>> A = np.array([[1.0, 0.9, 0.0], [0.0, 0.9, 1.0]])
        >>> Homotopy().solve(BasisPursuit(A, [1.0, 1.0])).coefficients.round(6)
        array([0.      , 1.111111, 0.      ])

    Source: Osborne, Presnell and Turlach, 2000; many breakpoints at a time is ours.
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
        """Minimise; `x0` is not used, as the path begins at 0."""
        assert isinstance(problem, BasisPursuit | BPDN | Lasso)
        link: Link = lambda pool, goal, x0: by_path(pool, goal) or by_perturbed_path(pool, goal)  # noqa: E731
        return solve_columns(problem, link, self.tol, max_iter=self.max_iter, callback=callback)


def lasso_path(A: Array, y: Array) -> Array:
    """The largest penalty at which each unknown is in the solution, along the LASSO's whole path.

    minimise   1/2 ||A x - y||^2 + lam ||x||_1   for lam falling from lam_max to 0

    Args:
        A: (m, n) real matrix.
        y: (m,) data.

    Returns:
        (n,) the penalty at which an unknown entered that is in the solution at the end; 0 for one
        that is never in it. The order is that in which He et al. 2017 keep channels.

    Example:
        >>> lasso_path(np.diag([3.0, 1.0]), np.array([1.0, 2.0])).round(3)
        array([3., 2.])

    Source: Osborne, Presnell and Turlach, 2000.
    """
    left, entered = np.arange(A.shape[1]), np.zeros(A.shape[1])
    while left.size:
        entered[:] = 0.0
        found, lost = _entered(ColumnPool(A[:, left], y, np.ones(left.size)))
        entered[left] = found
        if lost is None:
            break
        left = np.delete(left, lost)
    return entered


def _entered(pool: ColumnPool) -> tuple[Array, int | None]:
    """The penalties at which columns entered, and one at which the path was lost, if it was: it
    depends on those that are in, and is in no solution that needs it."""
    n = pool.weights.size
    entered = np.zeros(n)
    if not pool.lam_max:  # nothing of the data is in any column
        return entered, None
    here = top_of_path(pool)
    for _ in range(8 * n):
        step = single_step(pool, here)
        if step is None:
            points = breakpoints(pool, here)
            joins = points.sign[:1]
            return entered, int(points.column[0]) if joins.size and joins[0] else None
        here = step
        inside = np.zeros(n, bool)
        inside[here.line.support] = True
        entered = np.where(inside, np.where(entered > 0, entered, here.lam), 0.0)
    return entered, None
