"""Block homotopy: follow the LASSO path many breakpoints at a time.

Classical homotopy (LARS) pays one product with the matrix for each breakpoint. Here a line of the
path is left behind a whole block of its breakpoints, and the exchange of `active_set` repairs the
support at the new `lam`; if it does not, the block is shortened, in the end to one breakpoint.
"""

from __future__ import annotations

import numpy as np

from lowrank.sensing.solvers.active_set import (
    Array,
    ColumnPool,
    Settled,
    Target,
    settle,
)


def breakpoints(pool: ColumnPool, here: Settled) -> Array:
    """Values of `lam` below the present one at which this line stops being optimal, descending."""
    line, lam = here.line, here.lam
    b = pool.multiply_adjoint(line.v)
    a = lam * (here.c - b)
    w = pool.weights
    with np.errstate(divide="ignore", invalid="ignore"):
        join = a / (w - b)
        if not pool.nonneg:
            join = np.concatenate([join, -a / (w + b)])
        leave = line.x_ls / line.q
    join = np.delete(join, np.concatenate([line.support, line.support + w.size])[: 
        line.support.size * (1 if pool.nonneg else 2)])
    points = np.concatenate([join, leave])
    return -np.sort(-points[(points > 0) & (points < lam * (1 - 1e-12))])


def first_point(pool: ColumnPool, target: Target) -> Settled | None:
    """The path just below `lam_max`, where the most correlated columns enter."""
    violation = pool.violation(pool.correlation)
    ranked = np.sort(violation)
    top = 1 + ranked[-1]
    second = max(1 + ranked[max(-ranked.size, -6)], 0.5 * top)
    lam = 0.5 * (top + second)
    support = np.flatnonzero(1 + violation > lam)
    return settle(pool, support, np.sign(pool.correlation[support]), lam, target, 10)


def follow_path(
    pool: ColumnPool, target: Target, start: Settled | None = None, *, max_steps: int = 200
) -> Settled | None:
    """Follow the path from a point on it, or from `lam_max`, down to the target.

    Args:
        pool: the columns and data.
        target: where to stop.
        start: a point of the path.
        max_steps: number of blocks tried.

    Returns:
        The solution of the problem, or None if the path was lost.

    Source: Osborne, Presnell and Turlach, 2000, for the path; the blocks are ours.
    """
    here = start or first_point(pool, target)
    share, points = 0.3, None
    for _ in range(max_steps):
        if here is None or here.lam <= target(here.line):
            return here
        if points is None:
            points = breakpoints(pool, here)
        block = max(1, int(share * here.line.support.size))
        lam = 0.0
        if block < points.size:
            lam = 0.5 * (points[block - 1] + points[block])
        there = settle(pool, here.line.support, here.line.signs, lam, target, 10)
        if there is not None:
            here, points, share = there, None, min(0.4, 1.2 * share)
        elif block == 1:
            return None
        else:
            share *= 0.4
    return None
