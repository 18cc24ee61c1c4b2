"""Mehrotra's predictor-corrector interior point method for weighted basis pursuit, real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, dtrsv, ssyrk, strsv
from scipy.linalg.lapack import dpotrf, spotrf

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BasisPursuit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.active_set import descend
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
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.simplex import pivot_to_optimum

# Weights this much smaller than the largest are left out of a float64 factor altogether.
SMALL_WEIGHT = 1e-12


# Precision of the factor and columns in it, relative to m; the others count as a multiple of the
# identity. Each is tried when CG is slow with the one before.
LADDER: tuple[tuple[type, float], ...] = (
    (np.float32, 0.25),
    (np.float32, 1.0),
    (np.float64, 1.25),
    (np.float64, np.inf),
)


# Light columns that can stand in for the identity, relative to m.
SPREAD = 2.0


# Steps of CG after which the next factor is a better one.
SLOW = 20


# Growth of a residual that shows a singular system.
GROWTH = 10.0


# Relative accuracies: of the predictor, and down to which products in float32 serve.
PREDICTOR, ROUGH = 1e-2, 1e-6


# A full basis is crossed over to at this gap per row: the pivots left then cost an iteration.
CROSSING = 0.1


# A gap beyond this shows that the dual grows without bound: A x = y has no solution.
UNBOUNDED = 1e8


# Iterations without a smaller gap after which rounding has won.
PATIENCE = 4


# The least-norm solution leaves no more than this of y, unless there is no solution.
LEAST_NORM = 1e-3


class InteriorPoint(NamedTuple):
    """Primal `x`, dual `u`, which entries look non-zero, and what was reached at what cost.

    `ratio` is primal over dual slack, which is large where an entry is basic.
    """

    x: Array
    u: Array
    active: NDArray[np.bool_]
    ratio: Array
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
    """Solves with `M = A D A^T` by CG, preconditioned with a factor of its heavy columns.

    Few columns carry most of the weight, and the light ones together look like a multiple of the
    identity. Where CG is slow all the same, more columns and then float64 come into the factor.
    """

    def __init__(self, A: Array) -> None:
        self.A, self.products = A, 0
        small = A.size <= SMALL
        self._columns: NDArray[Any] = _transposed(A, np.float64 if small else np.float32)
        self._norms2 = np.einsum("ij,ij->i", self._columns, self._columns).astype(np.float64)
        self._level = len(LADDER) - 1 if small else 0
        self._factor = np.empty((0, 0))
        self._D, self._scale = np.empty(0), 1.0

    def factorize(self, D: Array) -> None:
        """Factor what is heavy of `M` for new weights."""
        self._scale = float(D.max())
        self._D = D / self._scale
        m = len(self.A)
        energy = self._D * self._norms2
        dtype, share = LADDER[self._level]
        heavy = np.flatnonzero(self._D > SMALL_WEIGHT)
        if heavy.size > share * m:
            size = int(share * m)
            heavy = np.argpartition(-energy, size)[:size]
        light = energy.copy()
        light[heavy] = 0.0
        rest = float(light.sum())
        # spread over fewer than this, the light columns do not look like the identity
        info = int(self._level == 0 and rest**2 < SPREAD * m * float(light @ light))
        if not info:
            self._factor, info = self._cholesky(heavy, rest / m, dtype)
        if info and self._level < len(LADDER) - 1:
            self._level += 1
            self.factorize(D)

    def _cholesky(self, heavy: Index, rest: float, dtype: type) -> tuple[NDArray[Any], int]:
        single = dtype is np.float32
        square, factorize, floor = (ssyrk, spotrf, 1e-6) if single else (dsyrk, dpotrf, 1e-15)
        columns = self._columns[heavy] if single else self.A.T[heavy]
        columns = columns * np.sqrt(self._D[heavy]).astype(dtype)[:, None]
        M = square(1.0, columns.T, lower=True)
        diagonal = M.ravel(order="K")[:: len(M) + 1]
        diagonal += dtype(rest + floor * float(diagonal.max()))
        factor, info = factorize(M, lower=True, clean=False, overwrite_a=True)
        return factor, int(info)

    def _precondition(self, r: NDArray[Any]) -> NDArray[Any]:
        trsv = dtrsv if self._factor.dtype == np.float64 else strsv
        r32 = r.astype(self._factor.dtype, copy=False)
        z = trsv(self._factor, trsv(self._factor, r32, lower=1), lower=1, trans=1)
        return np.asarray(z.astype(r.dtype, copy=False))

    def _multiply(self, d: NDArray[Any], D: NDArray[Any]) -> NDArray[Any]:
        self.products += 2
        if d.dtype == np.float64:
            return np.asarray(self.A @ (D * (d @ self.A)))
        return (D * (self._columns @ d)) @ self._columns

    def solve(self, rhs: Array, tol: float, start: Array | None = None) -> Array:
        """Preconditioned conjugate gradients; many steps ask for a better factor."""
        single = tol >= ROUGH and self._columns.dtype == np.float32
        dtype = np.dtype(np.float32 if single else np.float64)
        D, r = self._D.astype(dtype), rhs.astype(dtype)
        goal, x = tol * float(np.linalg.norm(rhs)), np.zeros_like(r)
        if start is not None:
            x = (start * self._scale).astype(dtype)
            r = r - self._multiply(x, D)
        z = self._precondition(r)
        d, rz = z, float(r @ z)
        for _ in range(SLOW):
            if not (rz > 0 and float(np.linalg.norm(r)) > goal):
                break
            Md = self._multiply(d, D)
            curvature = float(d @ Md)
            a = dtype.type(rz / curvature) if curvature > 0 else dtype.type(np.nan)
            moved = r - a * Md
            if not float(np.linalg.norm(moved)) < GROWTH * float(np.linalg.norm(rhs)):
                break  # M is singular
            x, r = x + a * d, moved
            z = self._precondition(r)
            rz, before = float(r @ z), rz
            d = z + dtype.type(rz / before) * d
        else:
            self._level = min(self._level + 1, len(LADDER) - 1)
        return x.astype(np.float64) / self._scale


def _transposed(A: Array, dtype: type) -> NDArray[Any]:
    """A copy of `A^T`, made in bands of rows that the cache holds."""
    out: NDArray[Any] = np.empty(A.shape[::-1], dtype)
    for row in range(0, len(A), 32):
        out[:, row : row + 32] = A[row : row + 32].T
    return out


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
    now, consistent = _start(normal, y, weights, side)
    least, idle = np.inf, 0
    for it in range(1, max_iter + 1):
        x = (side * now.v).sum(axis=0)
        residual = y - A @ x
        point = _point(now, x, residual, y, weights, normal.products, it)
        if max(point.gap, point.infeasibility) < tol or visit(point):
            break
        idle = 0 if point.gap < least else idle + 1
        least = min(least, point.gap)
        if (
            idle > PATIENCE
            or not consistent
            or not point.gap < UNBOUNDED
            or now.z.min() <= 0
            or now.v.min() <= 0
        ):
            break
        ratio = now.v / now.z
        normal.factorize(ratio.sum(axis=0))
        accuracy = min(1e-2, 3e-2 * point.gap)

        def newton(target: Array | float, du: Array) -> _Iterate:
            """The step towards `v z = target` that goes with `du`."""
            dc = side * (du @ A)
            return _Iterate(target / now.z - now.v + ratio * dc, -dc, du)  # noqa: B023

        du = normal.solve(y, PREDICTOR)
        affine = newton(0.0, du)
        after = now.moved(affine, *now.reach(affine))
        mu, mu_after = float(np.mean(now.v * now.z)), float(np.mean(after.v * after.z))
        target = mu * (mu_after / mu) ** 3 - affine.v * affine.z
        rhs = y - A @ (side * target / now.z).sum(axis=0)
        step = newton(target, normal.solve(rhs, accuracy, du))
        primal, dual = now.reach(step)
        now = now.moved(step, min(1.0, 0.995 * primal), min(1.0, 0.995 * dual))
    return point


def _start(normal: NormalEquations, y: Array, weights: Array, side: Array) -> tuple[_Iterate, bool]:
    """The least-norm solution, pushed into the interior, and `u = 0`; whether it fits y."""
    normal.factorize(np.ones_like(weights))
    x = normal.solve(y, 1e-6) @ normal.A
    consistent = bool(np.linalg.norm(y - normal.A @ x) < LEAST_NORM * np.linalg.norm(y))
    v = np.maximum(side * x, 0) + 0.5 * float(np.abs(x).mean()) + 1e-300
    z = np.repeat(weights[None], len(side), axis=0)
    return _Iterate(v, z, np.zeros_like(y)), consistent


def _point(
    now: _Iterate, x: Array, residual: Array, y: Array, weights: Array, products: int, it: int
) -> InteriorPoint:
    value = float(weights @ np.abs(x))
    gap = abs(value - float(y @ now.u)) / max(value, 1e-300)
    infeasibility = float(np.linalg.norm(residual) / np.linalg.norm(y))
    scale = float(np.abs(x).max()) or 1.0  # active: primal part outweighs dual slack
    active: NDArray[np.bool_] = np.any(now.v / scale > now.z / weights, axis=0)
    ratio = (now.v / now.z).sum(axis=0)
    return InteriorPoint(x, now.u, active, ratio, gap, infeasibility, it, products)


def by_interior_point(pool: ColumnPool, goal: Goal, tol: float) -> Answer:
    """Interior point for basis pursuit, with attempts to cross over to an exact vertex."""
    vertex: list[Answer] = []
    tried, seen, spent = [1e-2], [np.zeros(0, bool)], [0]

    def cross_over(point: InteriorPoint) -> bool:
        pool.products += point.products - spent[0]
        spent[0] = point.products
        pool.tell(np.arange(point.x.size), point.x)
        full = _looks_full(pool, point)
        if (full or pool.crowded) and point.gap > CROSSING / len(pool.A):
            return False
        new = point.gap < 1e-7 and not np.array_equal(point.active, seen[-1])
        if not point.active.any() or not (new or point.gap < tried[-1]):
            return False
        tried.append(0.1 * point.gap)
        seen.append(point.active)
        found = (full and _by_pivots(pool, goal, point)) or _by_exchange(pool, goal, point)
        vertex.extend([found] if found else [])
        return bool(vertex) and vertex[-1].error < 0.1 * tol

    point = interior_point(pool.A, pool.y, pool.weights, nonneg=pool.nonneg, visit=cross_over)
    pool.products += point.products - spent[0]
    if vertex:
        return min(vertex, key=lambda a: a.error)
    residual, c = pool.y - pool.A @ point.x, pool.multiply_adjoint(point.u)
    gap, infeasibility = measure(pool, goal, point.x, point.u, residual, c)
    link = "interior point"
    return Answer(point.x, point.u, gap, infeasibility, link)


def _looks_full(pool: ColumnPool, point: InteriorPoint) -> bool:
    """Whether the solution seems to have about as many non-zeros as there are rows."""
    m, n = pool.A.shape
    return not pool.nonneg and m < n and np.count_nonzero(point.active) > 0.6 * m


def _by_pivots(pool: ColumnPool, goal: Goal, point: InteriorPoint) -> Answer | None:
    """The heaviest columns as a basis, made optimal by the simplex method."""
    m = len(pool.A)
    found = pivot_to_optimum(pool, np.argpartition(-point.ratio, m)[:m], 20 + m // 10)
    if found is None:
        return None
    x = np.zeros(pool.weights.size)
    x[found.columns] = found.x
    residual = pool.y - pool.A @ x
    gap, infeasibility = measure(pool, goal, x, found.u, residual, found.c)
    link = "interior point and simplex"
    return Answer(x, found.u, gap, infeasibility, link)


def _by_exchange(pool: ColumnPool, goal: Goal, point: InteriorPoint) -> Answer | None:
    """The active entries as a support, made exact by the active set."""
    support = np.flatnonzero(point.active)
    lam = point.gap * float(np.abs(pool.correlation).max())
    found = descend(pool, support, np.sign(point.x[support]), lam, goal.target())
    if found is None or not found.solves(goal.target()):
        return None
    return answer_of(pool, goal, found, "interior point")


@dataclass(frozen=True)
class MehrotraInteriorPoint:
    """Interior point for basis pursuit with a real matrix: `min ||w x||_1` subject to `A x = y`.

    Args:
        tol: relative gap and infeasibility that counts as optimal.
        max_iter: limit of the guesses of each signal: steps, and those of crossing over to a
            vertex; None is none.

    Example:
        >>> A = np.array([[1.0, 0.9, 0.0], [0.0, 0.9, 1.0]])
        >>> MehrotraInteriorPoint().solve(BasisPursuit(A, [1.0, 1.0])).coefficients.round(6)
        array([0.      , 1.111111, 0.      ])

    Source: Mehrotra, 1992; the normal equations in float32 inside CG, and crossing over by the
    active set, are ours.
    """

    tol: float = 1e-8
    max_iter: int | None = None

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit,)

    def refuses(self, problem: Problem) -> str | None:
        """A real matrix is needed, and no bounds other than `c >= 0`."""
        return refuses_dense(problem)

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; `x0` is not used, as a start on the boundary would only slow it down."""
        assert isinstance(problem, BasisPursuit)
        link: Link = lambda pool, goal, x0: by_interior_point(pool, goal, self.tol)  # noqa: E731
        return solve_columns(problem, link, self.tol, max_iter=self.max_iter, callback=callback)
