"""Basis pursuit of complex data, or within bounds: an interior point on cones of either kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.linalg import cholesky, qr, solve_triangular, svd

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BasisPursuit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.cones import Bounded, Cones, Moduli
from lowrank.sensing.solvers.exact_l1_matrix_free import formed
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

MAX_ENTRIES = 2**22
"""Entries of a matrix up to which it is for this: a step costs its number of rows times as much."""
RANK = 1e-12
"""Singular values below this, relative to the largest, count as none."""
RIDGE = 1e-15
"""Relative, on the diagonal of the normal equations."""
LATE = 1e-4
"""Error from which on the normal equations are solved by an orthogonal factor."""
EXPLAINED = 1e-3
"""Error below which a gap in the sizes of the coefficients is not one of chance."""
APART = 30.0
"""Factor between the smallest large entry and the largest of the others."""
NEAR = 1e-2
"""Relative distance from a bound below which a large coefficient is taken to be at it."""
PRODUCTS = 9
"""Products with the rows, or their adjoint, of a step."""
TURNS = 5
"""Times that the phases of large entries are taken anew."""
PATIENCE = 6
"""Steps that may go by without a better point."""


class _Rows(NamedTuple):
    """Orthonormal rows `V` with `U diag(s) V = A`, which all work is done with."""

    U: Array
    s: Array
    V: Array


class _Point(NamedTuple):
    """Coefficients and dual point for the orthonormal rows, and the worse of gap and misfit."""

    c: Array
    u: Array
    error: float


class _Task(NamedTuple):
    """`min sum w_j |c_j| - Re (bias^H c)` with `V c = b` within bounds, V of orthonormal rows."""

    V: Array
    b: Array
    w: Array
    bias: Array
    bounds: tuple[Array, Array] | None

    @property
    def least(self) -> float:
        """The size of the coefficients that this is about, as far as its least norm tells."""
        return float(self.w @ np.abs(self.V.conj().T @ self.b))

    def cones(self) -> Cones:
        """The start: least norm, pushed into the cones."""
        c = self.V.conj().T @ self.b
        if self.bounds is None:
            return Moduli(c, self.w, self.bias)
        return Bounded(c, self.w, self.bias, *self.bounds)

    def error(self, cones: Cones, u: Array, left: float) -> float:
        """The worse of relative gap and misfit."""
        moduli, b = float(self.w @ np.abs(cones.c)), self.b
        value = moduli - float(np.vdot(self.bias, cones.c).real)
        dual = float(np.vdot(u, b).real) - cones.price()
        return max(abs(value - dual) / max(moduli, 1e-300), left / float(np.linalg.norm(b)))


def _follow(
    task: _Task, tol: float, steps: int, tell: Callable[[Array], bool], *, apart: bool = False
) -> tuple[_Point, int, bool]:
    """Along the central path: the best point, how many steps, and whether it was stopped.

    With `apart` it ends where the large entries are told apart from others far smaller.
    """
    V, back, cones = task.V, task.V.conj().T, task.cones()
    u = np.zeros_like(task.b)
    best, idle = _Point(cones.c, u, np.inf), 0
    for k in range(steps + 1):
        r = task.b - V @ cones.c
        error = task.error(cones, u, float(np.linalg.norm(r)))
        idle = 0 if error < best.error else idle + 1
        best = min(best, _Point(cones.c, u, error), key=lambda point: point.error)
        ended = error <= tol or idle > PATIENCE or k == steps or not np.isfinite(error)
        if ended or (apart and error < EXPLAINED and _large(cones.c, len(V)).size):
            return best, k, False
        solve = _solver(V, back, cones, error)
        h = cones.affine()
        du, moved = solve(r - V @ h)
        h = cones.combined(h + moved, back @ du)
        du, moved = solve(r - V @ h)
        u = u + cones.move(h + moved, back @ du) * du
        if tell(cones.c):
            return _Point(cones.c, u, error), k + 1, True
    raise AssertionError


def _large(c: Array, rows: int) -> Array:
    """Places of the entries that are far larger than all others, fewer than there are rows."""
    order = np.argsort(-np.abs(c))[: min(rows, c.size)]
    size = np.abs(c[order])
    ratio = size[:-1] / np.maximum(size[1:], 1e-300)
    last = int(ratio.argmax()) if ratio.size else 0
    return order[: last + 1] if ratio.size and ratio[last] >= APART else order[:0]


def _by_scales(
    task: _Task, tol: float, steps: int, tell: Callable[[Array], bool]
) -> tuple[_Point, int, bool]:
    """The whole path; where entries are of two scales, the large ones are set free on the way.

    Their cost is then linear, `w s` for a unit, and what their columns do not reach is a task of
    one scale: of the other columns, projected, with what the dual point is worth to them as bias.
    """
    point, k, stopped = _follow(task, tol, steps, tell, apart=True)
    J = _large(point.c, len(task.V))
    if stopped or point.error <= tol or not J.size:
        return point, k, stopped
    at, J = _at_bounds(task, point.c, J)
    phases, answer = _phases(point.c[J]), None
    for _ in range(TURNS):
        found = _beside(task, point.u, point.c[at], at, J, phases, tol, steps - k, tell)
        if found is None:
            break
        answer, more, stopped = found
        k, before, phases = k + more, phases, _phases(answer.c[J])
        turned = float(task.w[J] @ (np.abs(answer.c[J]) * np.abs(phases - before) ** 2)) / 2
        if stopped or turned <= tol * float(task.w @ np.abs(answer.c)):
            break
    if answer is not None:
        return answer, k, stopped
    return _follow(task, tol, steps, tell)


def _phases(c: Array) -> Array:
    return np.asarray(c / np.abs(c))


class _Free:
    """Large entries J set free, with these phases: what the other columns are then projected by."""

    def __init__(self, task: _Task, J: Array, phases: Array) -> None:
        Q, R = qr(task.V[:, J], mode="full", check_finite=False)
        self.J, self.Q, self.N, self.R = J, Q[:, : J.size], Q[:, J.size :], R[: J.size]
        self.slopes = task.w[J] * phases - task.bias[J]

    def dual(self, u: Array) -> Array:
        """u, changed in the span of the columns so that none of J is worth changing."""
        own = solve_triangular(self.R, self.slopes, trans="C")
        return np.asarray(self.N @ (self.N.conj().T @ u) + self.Q @ own)

    def fit(self, b: Array) -> Array:
        """Least squares of b on the columns."""
        return np.asarray(solve_triangular(self.R, self.Q.conj().T @ b))


def _beside(
    task: _Task, u: Array, bounded: Array, at: Array, J: Array, phases: Array,
    tol: float, steps: int, tell: Callable[[Array], bool],
) -> tuple[_Point, int, bool] | None:  # fmt: skip
    """The other entries with J free; None where their bounds, or the bias, forbid.

    What is at a bound, `bounded` at `at`, may go back from it, at the price of its slope.
    """
    free, others = _Free(task, J, phases), np.delete(np.arange(task.w.size), J)
    u = free.dual(u)
    bias, base, bounds = task.bias + task.V.conj().T @ u, np.zeros_like(task.bias), task.bounds
    if bounds is not None:
        lower, upper, up = bounds[0].copy(), bounds[1].copy(), bounded > 0
        base[at] = np.where(up, upper[at], lower[at])
        bias[at] -= 2 * task.w[at] * np.sign(bounded)
        lower[at], upper[at] = np.where(up, -np.inf, 0.0), np.where(up, 0.0, np.inf)
        bounds = lower[others], upper[others]
    if not _inside(bias[others], task.w[others], bounds):
        return None
    left = task.b - task.V @ base
    rows = _decomposed(free.N.conj().T @ task.V[:, others])
    b = (rows.U.conj().T @ (free.N.conj().T @ left)) / rows.s
    if not b.any():
        return None

    def whole(d: Array) -> Array:
        c = base.copy()
        c[others] += d
        c[J] = free.fit(left - task.V[:, others] @ d)
        return c

    inner = _Task(rows.V, b, task.w[others], bias[others], bounds)
    size = float(task.w @ np.abs(whole(np.zeros(others.size))))
    rough = max(tol, min(0.1, 0.1 * tol * size / inner.least))
    found, k, stopped = _by_scales(inner, rough, steps, lambda d: tell(whole(d)))
    u = u + free.N @ (rows.U @ (found.u / rows.s))
    return _Point(whole(found.c), u, found.error * inner.least / size), k, stopped


def _at_bounds(task: _Task, c: Array, J: Array) -> tuple[Array, Array]:
    """Those of J that are at a bound, as far as that can be told, and the rest."""
    if task.bounds is None:
        return J[:0], J
    near = NEAR * np.abs(c[J])
    at = (c[J] - task.bounds[0][J] < near) | (task.bounds[1][J] - c[J] < near)
    return J[at], J[~at]


def _inside(bias: Array, w: Array, bounds: tuple[Array, Array] | None) -> bool:
    """Whether the slacks begin inside of their cones, on the sides that are open."""
    if bounds is None:
        return bool((np.abs(bias) < w).all())
    return bool((((bias < w) | (bounds[1] <= 0)) & ((-bias < w) | (bounds[0] >= 0))).all())


def _solver(
    V: Array, back: Array, cones: Cones, error: float
) -> Callable[[Array], tuple[Array, Array]]:
    """What solves `V D V^H du = r`, and gives `D V^H du` with it.

    By a Cholesky factor, with one refinement; near the end, where the weights in D are far apart,
    by an orthogonal one, which loses half as many digits.
    """
    F = cones.root(back)
    orthogonal = error < LATE
    if orthogonal:
        Q, R = qr(F, mode="economic", check_finite=False, overwrite_a=True)
    else:
        M = F.T @ F
        diagonal = np.einsum("ii->i", M)
        diagonal += RIDGE * float(diagonal.max())
        R = cholesky(M, overwrite_a=True, check_finite=False)

    def solve(r: Array) -> tuple[Array, Array]:
        g = solve_triangular(R, _parts(r), trans="T", check_finite=False)
        du = _joined(solve_triangular(R, g, check_finite=False), r)
        return du, cones.times_root(Q @ g) if orthogonal else cones.times_D(back @ du)

    def refined(r: Array) -> tuple[Array, Array]:
        du, moved = solve(r)
        more, further = solve(r - V @ moved)
        return du + more, moved + further

    return refined


def _parts(r: Array) -> Array:
    return np.concatenate([r.real, r.imag]) if np.iscomplexobj(r) else r


def _joined(x: Array, like: Array) -> Array:
    return np.asarray(x[: like.size] + 1j * x[like.size :]) if np.iscomplexobj(like) else x


@dataclass(frozen=True)
class ConeL1:
    """Basis pursuit of complex data, or within bounds: `min ||w c||_1`, `A c = y`, certified.

    Mehrotra's predictor and corrector, for second-order cones `|c_j| <= t_j` in Nesterov and Todd's
    scaling, or for real coefficients between their bounds. It works with the orthonormal rows of a
    singular value decomposition, so that a rank below m and a bad condition do not matter, and an
    inconsistent system is told at once. Where entries are of two scales, as in data of single
    precision, whose solution has as many tiny entries as the rounding takes, large ones are set
    free on the way, and what is left is solved in its own scale.

    Args:
        tol: relative gap and infeasibility to reach.
        max_iter: limit of the steps of each signal.

    Example:
        >>> A = np.array([[1.0, 0.9j, 0.0], [0.0, 0.9j, 1.0]])
        >>> found = ConeL1().solve(BasisPursuit(A, [1.0, 1.0]))
        >>> abs(found.coefficients).round(6), bool(found.coefficients[1].imag < 0)
        (array([0.      , 1.111111, 0.      ]), True)

    Source: Mehrotra, 1992; Nesterov, Todd, 1998, section 3, for the scaling; as in Andersen, Dahl,
        Vandenberghe, 2003, section 5.
    """

    tol: float = 1e-8
    max_iter: int = 60

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit,)

    def refuses(self, problem: Problem) -> str | None:
        """Is for complex matrices, and bounds other than `c >= 0`."""
        if not problem.is_complex and (not problem.bounded or problem.nonneg):
            return "is for complex data, and bounds"
        m, n = problem.operator.shape
        return f"is for matrices up to {MAX_ENTRIES} entries" if m * n > MAX_ENTRIES else None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise, signal by signal; `x0` is not used."""
        assert isinstance(problem, BasisPursuit)
        y = np.asarray(problem.y, dtype=problem.dtype)
        columns, w = y.reshape(len(y), -1), np.asarray(problem.weights)
        A = problem.operator
        matrix = A.to_dense() if A.is_dense else formed(A)
        rows = _decomposed(matrix.astype(problem.dtype))
        found = np.zeros((problem.n_unknowns, columns.shape[1]), problem.dtype)
        duals, calls = np.zeros(columns.shape, problem.dtype), [0]
        status, longest, stopped = Status.OPTIMAL, 0, False
        for j, column in enumerate(columns.T):

            def tell(c: Array, j: int = j) -> bool:
                found[:, j] = c
                calls[0] += 1
                shape = problem.unknown_shape
                return bool(callback and callback(calls[0], found.reshape(shape).copy()))

            b = (rows.U.conj().T @ column) / rows.s
            if np.linalg.norm(column - rows.U @ (rows.s * b)) > self.tol * np.linalg.norm(column):
                found[:, j], status = rows.V.conj().T @ b, Status.INFEASIBLE
                break
            if not b.any():
                continue
            task = _Task(rows.V, b, w, np.zeros_like(found[:, j]), problem.box)
            point, k, stopped = _by_scales(task, 0.1 * self.tol, self.max_iter, tell)
            found[:, j], duals[:, j] = point.c, rows.U @ (point.u / rows.s)
            longest = max(longest, k)
            if stopped or point.error > self.tol:
                status = Status.MAX_ITER if stopped or k >= self.max_iter else Status.STALLED
            if stopped:
                break
        return SolverResult(
            found.reshape(problem.unknown_shape),
            dual=duals.reshape(y.shape),
            status=status,
            n_iter=longest,
            n_products=PRODUCTS * calls[0] + columns.shape[1] + (0 if A.is_dense else min(A.shape)),
            note="interior point on second-order cones" if problem.is_complex else "",
        )


def _decomposed(A: Array) -> _Rows:
    U, s, V = svd(A, full_matrices=False, check_finite=False)
    rank = max(1, int(np.count_nonzero(s > RANK * s[0])))
    return _Rows(U[:, :rank], s[:rank], V[:rank])
