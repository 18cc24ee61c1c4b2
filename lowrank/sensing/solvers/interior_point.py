"""Mehrotra's predictor-corrector interior point method for weighted basis pursuit, real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs, spotrf, spotrs

from lowrank.sensing.problems import BasisPursuit, Problem
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.active_set import descend
from lowrank.sensing.solvers.column_pool import Array, ColumnPool
from lowrank.sensing.solvers.dense_l1 import (
    Answer,
    Goal,
    answer_of,
    measure,
    refuses_dense,
    solve_columns,
)
from lowrank.sensing.solvers.protocol import Callback

# Weights this much smaller than the largest (squared, for float64) are left out of the factor; CG
# puts them back.
SMALL_WEIGHT = 1e-6
# A gap beyond this shows that the dual grows without bound: A x = y has no solution.
UNBOUNDED = 1e8
# Iterations without a smaller gap after which rounding has won.
PATIENCE = 4
# The least-norm solution leaves no more than this of y, unless there is no solution.
LEAST_NORM = 1e-3


class InteriorPoint(NamedTuple):
    """Primal `x`, dual `u`, which entries look non-zero, and what was reached at what cost."""

    x: Array
    u: Array
    active: NDArray[np.bool_]
    gap: float
    infeasibility: float
    n_iter: int
    products: int


class _Iterate(NamedTuple):
    """Rows of `v > 0` are the parts of `x = v[0] - v[1]`, of `z > 0` the slacks `w -+ A^T u`.

    A non-negative problem has one row only.
    """

    v: Array
    z: Array
    u: Array

    def moved(self, step: _Iterate, primal: float, dual: float) -> _Iterate:
        return _Iterate(self.v + primal * step.v, self.z + dual * step.z, self.u + dual * step.u)

    def reach(self, step: _Iterate) -> tuple[float, float]:
        """Largest primal and dual steps, at most 1, that keep all entries non-negative."""
        return _reach(self.v, step.v), _reach(self.z, step.z)


def _reach(value: Array, change: Array) -> float:
    with np.errstate(divide="ignore"):
        return float(min(1.0, -1.0 / min(np.min(change / value), -1e-300)))


class NormalEquations:
    """Solves with `M = A D A^T`: a Cholesky factor, in float32 while that will do, inside CG."""

    def __init__(self, A: Array) -> None:
        self.A, self.products = A, 0
        self.single = A.astype(np.float32) if A.size > 2**17 else None
        self._factor = np.empty((0, 0))
        self._D = np.empty(0)

    def factorize(self, D: Array) -> None:
        """Factor `M` for new weights, in float64 as soon as float32 fails."""
        self._D = D
        A: NDArray[Any] = self.A if self.single is None else self.single
        factorize, floor, small = dpotrf, 1e-15, SMALL_WEIGHT**2
        if self.single is not None:
            factorize, floor, small = spotrf, 1e-6, SMALL_WEIGHT
        root = np.sqrt(D / D.max())
        kept = np.flatnonzero(root**2 > small)
        few = kept.size < 0.8 * D.size
        B = (A[:, kept] * root[kept].astype(A.dtype)) if few else A * root.astype(A.dtype)
        M = B @ B.T
        M[np.diag_indices(len(M))] += floor * M.diagonal().max()
        M *= A.dtype.type(D.max())
        self._factor, info = factorize(M.T, lower=True, clean=False, overwrite_a=True)
        if info and self.single is not None:
            self.single = None
            self.factorize(D)

    def _precondition(self, r: Array) -> Array:
        solve = dpotrs if self._factor.dtype == np.float64 else spotrs
        return solve(self._factor, r.astype(self._factor.dtype), lower=True)[0].astype(np.float64)

    def solve(self, rhs: Array, tol: float) -> Array:
        """Preconditioned conjugate gradients; many steps end the use of float32."""
        x, r, goal = np.zeros_like(rhs), rhs, tol * float(np.linalg.norm(rhs))
        z = self._precondition(r)
        d, rz = z, float(r @ z)
        for step in range(1, 21 if self.single is not None else 7):
            Md = self.A @ (self._D * (d @ self.A))
            self.products += 2
            curvature = float(d @ Md)
            if not (curvature > 0 and rz > 0):
                break
            x, r = x + rz / curvature * d, r - rz / curvature * Md
            if float(np.linalg.norm(r)) <= goal:
                break
            z = self._precondition(r)
            rz, previous = float(r @ z), rz
            d = z + (rz / previous) * d
            if step > 7:
                self.single = None
        return x


def interior_point(
    A: Array, y: Array, weights: Array, *, nonneg: bool = False, tol: float = 1e-10,
    max_iter: int = 60, visit: Callable[[InteriorPoint], bool] = lambda point: False,
) -> InteriorPoint:  # fmt: skip
    """Minimise `sum w_j |x_j|` subject to `A x = y`, with the dual feasible throughout.

    Args:
        A: matrix of full row rank, shape (m, n), columns of comparable norm.
        y: measurements, shape (m,).
        weights: positive weights, shape (n,).
        nonneg: ask for `x >= 0` too.
        tol: relative gap and infeasibility at which to stop.
        max_iter: number of iterations, one Cholesky factor each.
        visit: called with each iterate; true stops.

    Returns:
        The last iterate.

    Source: Mehrotra, 1992, on the split `x = v_0 - v_1`.
    """
    normal = NormalEquations(A)
    side = np.array([[1.0]] if nonneg else [[1.0], [-1.0]])
    now = _start(normal, y, weights, side)
    least, idle = np.inf, 0
    for it in range(1, max_iter + 1):
        x = (side * now.v).sum(axis=0)
        residual = y - A @ x
        point = _point(now, x, residual, y, weights, normal.products, it)
        if max(point.gap, point.infeasibility) < tol or visit(point):
            break
        idle = 0 if point.gap < least else idle + 1
        least = min(least, point.gap)
        inconsistent = it == 1 and not point.infeasibility < LEAST_NORM
        if (
            idle > PATIENCE
            or inconsistent
            or not point.gap < UNBOUNDED
            or now.z.min() <= 0
            or now.v.min() <= 0
        ):
            break
        ratio = now.v / now.z
        normal.factorize(ratio.sum(axis=0))
        accuracy = min(1e-4, 1e-2 * point.gap)

        def newton(target: Array | float) -> _Iterate:
            """The step towards `v z = target` and `A x = y`."""
            dv = target / now.z - now.v  # noqa: B023
            du = normal.solve(residual - A @ (side * dv).sum(axis=0), accuracy)  # noqa: B023
            dc = side * (du @ A)
            return _Iterate(dv + ratio * dc, -dc, du)  # noqa: B023

        affine = newton(0.0)
        after = now.moved(affine, *now.reach(affine))
        mu, mu_after = float(np.mean(now.v * now.z)), float(np.mean(after.v * after.z))
        step = newton(mu * (mu_after / mu) ** 3 - affine.v * affine.z)
        primal, dual = now.reach(step)
        now = now.moved(step, min(1.0, 0.995 * primal), min(1.0, 0.995 * dual))
    return point


def _start(normal: NormalEquations, y: Array, weights: Array, side: Array) -> _Iterate:
    """The least-norm solution, pushed into the interior, and `u = 0`."""
    normal.factorize(np.ones_like(weights))
    x = normal.solve(y, 1e-6) @ normal.A
    v = np.maximum(side * x, 0) + 0.5 * float(np.abs(x).mean()) + 1e-300
    return _Iterate(v, np.repeat(weights[None], len(side), axis=0), np.zeros_like(y))


def _point(
    now: _Iterate, x: Array, residual: Array, y: Array, weights: Array, products: int, it: int
) -> InteriorPoint:
    value = float(weights @ np.abs(x))
    gap = abs(value - float(y @ now.u)) / max(value, 1e-300)
    infeasibility = float(np.linalg.norm(residual) / np.linalg.norm(y))
    scale = float(np.abs(x).max()) or 1.0  # active: primal part outweighs dual slack
    active: NDArray[np.bool_] = np.any(now.v / scale > now.z / weights, axis=0)
    return InteriorPoint(x, now.u, active, gap, infeasibility, it, products)


def by_interior_point(pool: ColumnPool, goal: Goal, tol: float) -> Answer:
    """Interior point for basis pursuit, with attempts to cross over to an exact vertex."""
    vertex: list[Answer] = []
    tried, seen = [1e-2], [np.zeros(0, bool)]

    def cross_over(point: InteriorPoint) -> bool:
        new = point.gap < 1e-7 and not np.array_equal(point.active, seen[-1])
        if not point.active.any() or not (new or point.gap < tried[-1]):
            return False
        tried.append(0.1 * point.gap)
        seen.append(point.active)
        support = np.flatnonzero(point.active)
        lam = point.gap * float(np.abs(pool.correlation).max())
        found = descend(pool, support, np.sign(point.x[support]), lam, goal.target())
        if found is not None and found.solves(goal.target()):
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


@dataclass(frozen=True)
class MehrotraInteriorPoint:
    """Interior point for basis pursuit with a real matrix: `min ||w x||_1` subject to `A x = y`.

    Args:
        tol: relative gap and infeasibility that counts as optimal.

    Example:
        >>> A = np.array([[1.0, 0.9, 0.0], [0.0, 0.9, 1.0]])
        >>> MehrotraInteriorPoint().solve(BasisPursuit(A, [1.0, 1.0])).coefficients.round(6)
        array([0.      , 1.111111, 0.      ])

    Source: Mehrotra, 1992; the normal equations in float32 inside CG, and crossing over by the
    active set, are ours.
    """

    tol: float = 1e-8

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit,)

    def refuses(self, problem: Problem) -> str | None:
        """A real matrix is needed, and no bounds other than `c >= 0`."""
        return refuses_dense(problem, self.solves)

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; `x0` and `callback` are not used."""
        assert isinstance(problem, BasisPursuit)
        return solve_columns(problem, lambda p, g: by_interior_point(p, g, self.tol), self.tol)
