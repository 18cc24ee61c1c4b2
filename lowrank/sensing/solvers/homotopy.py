"""Block homotopy: follow the LASSO path many breakpoints at a time.

Classical homotopy (LARS) pays one product with the matrix for each breakpoint. Here a line of the
path is left behind a whole block of its breakpoints, and the exchange of `active_set` repairs the
support at the new `lam`; if it does not, the block is shortened, in the end to one breakpoint.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lowrank.sensing.solvers.active_set import (
    Settled,
    Target,
    make_segment,
    settle,
)
from lowrank.sensing.solvers.column_pool import Array, ColumnPool, Index


class Breakpoints(NamedTuple):
    """Where a line of the path stops being optimal: `lam`, descending, and which column turns."""

    lam: Array
    column: Index
    sign: Array
    """Sign with which the column joins; 0 if it leaves."""


def breakpoints(pool: ColumnPool, here: Settled) -> Breakpoints:
    """List the breakpoints of the present line below the present `lam`."""
    line, w = here.line, pool.weights
    b = pool.multiply_adjoint(line.v)
    a = here.lam * (here.c - b)
    b[line.support] = np.nan  # these cannot join
    with np.errstate(divide="ignore", invalid="ignore"):
        lam = np.concatenate([a / (w - b), -a / (w + b), line.x_ls / line.q])
    n = w.size
    valid = (lam > 0) & (lam < here.lam * (1 - 1e-12))
    if pool.nonneg:
        valid[n : 2 * n] = False
    chosen = np.flatnonzero(valid)
    chosen = chosen[np.argsort(-lam[chosen])]
    column = np.concatenate([np.arange(n), np.arange(n), line.support])[chosen]
    return Breakpoints(lam[chosen], column, np.select([chosen < n, chosen < 2 * n], [1.0, -1.0]))


def single_step(pool: ColumnPool, here: Settled, points: Breakpoints) -> Settled | None:
    """Cross the next breakpoint only: the step of classical homotopy."""
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
        if block < points.lam.size:
            lam = 0.5 * (points.lam[block - 1] + points.lam[block])
        there = settle(pool, here.line.support, here.line.signs, lam, target, 10)
        if there is not None:
            here, points, share = there, None, min(0.4, 1.2 * share)
        elif block > 1:
            share *= 0.4
        elif points.lam.size:
            here, points = single_step(pool, here, points), None
        else:
            return None
    return None
