"""MCP and SCAD by weighted LASSOs, each solved exactly on a working set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.nonconvex import MCP, SCAD
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.working_set import Fit, WorkingSet, matrix_of
from lowrank.status import Status

FLAT = 1e-3
"""Share of the slope at 0 that a coefficient keeps where the penalty is flat, until the last."""

EXACT = 1e-6
"""How far the gradient of a weighted LASSO may be off, relative to its slopes."""

LASSOS = 10
"""Weighted LASSOs, after which coordinate descent takes over: columns repeat each other, mostly."""

SWEEPS = 50
"""Sweeps over the coordinates that count as one iteration."""

STEPS = 20
"""Newton steps for the equations of a stationary point with a given support."""


@dataclass(frozen=True)
class LocalLinear:
    """A stationary point of MCP or SCAD: `c <- argmin 1/2 ||A c - y||^2 + sum_j p_j'(|c_j|) |c_j|`.

    The tangent of a concave penalty is above it, so each weighted LASSO lowers the objective; it
    starts from the LASSO, or from `x0`. After each, Newton steps solve the equations of a
    stationary point with the support found, which ends the run where they hold everywhere. What
    comes out is no optimum that anything proves: another start may give a lower objective. How far
    it is from stationary is measured outside. Where ten LASSOs do not settle it, exact
    minimisations over one coefficient at a time go on.

    Args:
        tol: stationarity at which to stop, relative to the slopes at 0.
        max_iter: limit of the weighted LASSOs, and of rounds of fifty sweeps beyond ten of them.

    Example:
        >>> from lowrank.sensing import MCP, solve
        >>> found = solve(MCP(np.eye(2), [3.0, 0.5], lam=1.0, gamma=2.0))
        >>> found.x.round(6).tolist(), found.status.name
        ([3.0, 0.0], 'STATIONARY')

    Source: Zou, Li 2008, algorithm 1; working sets as in `WorkingSet`; the sweeps: Breheny, Huang
        2011, section 2.
    """

    tol: float = 1e-8
    max_iter: int = 500

    solves: ClassVar[tuple[type[Problem], ...]] = (MCP, SCAD)

    def refuses(self, problem: Problem) -> str | None:
        """Needs a matrix."""
        return WorkingSet().refuses(problem)

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Solve weighted LASSOs until the point is stationary."""
        assert isinstance(problem, MCP | SCAD)
        A, y = matrix_of(problem), np.asarray(problem.y, dtype=float)
        c = np.zeros(problem.n_unknowns) if x0 is None else np.array(x0, dtype=float)
        open_ends = np.full(c.size, np.inf)
        products, k, status = 0, 0, Status.MAX_ITER
        off: list[float] = []
        for k in range(1, self.max_iter + 1):
            if k > LASSOS:
                c = _settled(problem, _swept(problem, c))
                products += 4
            else:
                share = np.maximum(problem.slope(c) / problem.slopes, FLAT)
                fit = Fit(A, y, share * problem.slopes / problem.lam, -open_ends, open_ends)
                fit.begin(c)
                for _ in fit.descend(problem.lam, EXACT):
                    pass
                c = _settled(problem, fit.coefficients())
                products += fit.n_products + 2
            off.append(problem.stationarity(c))
            if off[-1] <= self.tol / 2:
                status = Status.STATIONARY
                break
            if callback is not None and callback(k, c.copy()):
                break
        return SolverResult(
            c, status=status, n_iter=k, n_products=products, history={"stationarity": off},
            note=f"{min(k, LASSOS)} weighted LASSOs, {max(0, k - LASSOS) * SWEEPS} sweeps",
        )  # fmt: skip


def _swept(problem: MCP | SCAD, c: Array) -> Array:
    """After sweeps of exact minimisations over one coefficient at a time, where they may move."""
    z = problem.operator.adjoint(np.asarray(problem.y) - problem.operator.forward(c))
    moving = (problem.curvatures > 0) & ((c != 0) | (np.abs(z) > problem.slopes))
    J = np.flatnonzero(moving)
    columns = problem.operator.columns(J)
    G, c = columns.T @ columns, c.copy()
    left = z[J]
    for _ in range(SWEEPS):
        most = 0.0
        for i, j in enumerate(J):
            new = problem.threshold(float(left[i] + G[i, i] * c[j]), int(j))
            if (change := new - c[j]) != 0:
                left -= change * G[i]
                c[j] = new
                most = max(most, abs(change) * float(np.sqrt(G[i, i])))
        if most <= 1e-15 * float(np.abs(left).max(initial=0.0)):
            break
    return c


def _settled(problem: MCP | SCAD, c: Array) -> Array:
    """The stationary point of this support and these signs near c, where it is better; else c."""
    J = np.flatnonzero(c)
    if not J.size:
        return c
    columns = problem.operator.columns(J)
    G, b, signs, new = columns.T @ columns, columns.T @ np.asarray(problem.y), np.sign(c), c.copy()
    for _ in range(STEPS):
        off = G @ new[J] - b + (problem.slope(new) * signs)[J]
        # columns that repeat each other leave it singular: any of their splits will do
        step = np.linalg.lstsq(G + np.diag(problem.bend(new)[J]), off, rcond=1e-12)[0]
        new[J] -= step
        if (np.sign(new) != signs).any():
            return c
        if np.abs(step).max() <= 1e-15 * np.abs(new).max():
            break
    lower = problem.objective(new) <= problem.objective(c)
    return new if lower and problem.stationarity(new) < problem.stationarity(c) else c
