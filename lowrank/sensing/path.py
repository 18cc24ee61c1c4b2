"""The LASSO at many penalties, each from the one before, with the columns gathered once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import lsqr

from lowrank.errors import InputError
from lowrank.sensing.certificates import scaled_dual
from lowrank.sensing.limits import TOL
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.chunked import reduced_rows
from lowrank.sensing.problems.checks import checked_number, not_bool
from lowrank.sensing.problems.l1 import BasisPursuit, Lasso
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers.exact_l1 import ExactL1
from lowrank.sensing.solvers.working_set import WorkingSet, fit_of, matrix_of
from lowrank.status import Status

LOOSE = 0.03
"""Most that the gradient of a point of a path may be off, relative to the slopes."""


ROUNDING = 1e-14
"""What rounding may take from a gap that comes from correlations alone, relative to `||y||^2`."""


MANY = 10
"""Penalties from which on a path of a tall matrix takes all its columns."""


@dataclass(frozen=True, eq=False)
class LassoPath:
    """Solutions of the LASSO along a grid of penalties.

    Attributes:
        lams: penalties, (k,), descending.
        coefficients: one solution a column, (p, k).
        gaps: relative duality gap of each, (k,).
        statuses: how each ended; OPTIMAL with a gap within tol.
    """

    lams: Array
    coefficients: Array
    gaps: Array
    statuses: tuple[Status, ...]

    def __repr__(self) -> str:
        sizes = np.count_nonzero(self.coefficients, axis=0)
        proven = sum(status is Status.OPTIMAL for status in self.statuses)
        return (
            f"LassoPath({proven} of {self.lams.size} points optimal: lam {self.lams[0]:.4g} to "
            f"{self.lams[-1]:.4g}, {sizes.min()} to {sizes.max()} of {len(self.coefficients)} "
            f"non-zero, largest gap {self.gaps.max():.1e})"
        )


def lasso_path(
    A: MatrixLike,
    y: ArrayLike,
    lams: ArrayLike | None = None,
    *,
    n_lams: int = 100,
    smallest: float = 1e-3,
    basis: MatrixLike | None = None,
    weights: ArrayLike | None = None,
    lower: ArrayLike = -np.inf,
    upper: ArrayLike = np.inf,
    tol: float = TOL,
) -> LassoPath:
    """The LASSO `1/2 ||A Psi c - y||^2 + lam ||w c||_1` at every lam of a grid, each certified.

    `lam = 0` stands for the end of the path, the limit of small penalties: of all least-squares
    solutions the one with the smallest `||w c||_1`.

    Args:
        A: as in `recover`.
        y: measurements (m,).
        lams: penalties >= 0, (k,); None is a geometric grid from `lam_max` down.
        n_lams: length of that grid, >= 2.
        smallest: its end as a share of `lam_max`, in (0, 1).
        basis: `Psi` (n, p); None is the identity.
        weights: `w` (p,), positive; None is 1.
        lower: lower bound of c, at most 0; 0 for `c >= 0`.
        upper: upper bound of c, at least 0.
        tol: relative gap to reach.

    Returns:
        `LassoPath`, lams descending.

    Raises:
        InputError: wrong shapes, NaN or Inf, a negative lam, several signals, or lam = 0 with
            bounds other than `c >= 0`.

    Example:
        >>> path = lasso_path(np.eye(2), [3.0, 1.0], [2.0, 0.5, 0.0])
        >>> path.coefficients.round(9).tolist()
        [[1.0, 2.5, 3.0], [0.0, 0.5, 1.0]]

    Source: Friedman, Hastie, Tibshirani 2010, section 2.5, for the grid and the warm starts.
    """
    bounds: dict[str, Any] = {"weights": weights, "lower": lower, "upper": upper}
    A, y, _ = reduced_rows(A, y)
    problem = Lasso(A, y, 1.0, basis=basis, **bounds)
    if np.ndim(problem.y) != 1:
        text = f"y has shape {np.shape(problem.y)}"
        raise InputError("y", text, "a path is that of one signal, (m,)")
    grid = checked_grid(lams, problem.lam_max, n_lams, smallest)
    tol = checked_number("tol", tol)
    found = list(points(problem, grid[grid > 0], tol))
    if grid[-1] == 0:
        found += [_end(problem, tol)] * int(np.count_nonzero(grid == 0))
    statuses = tuple(Status.OPTIMAL if gap <= tol else Status.STALLED for _, gap in found)
    X = np.stack([c for c, _ in found], axis=1)
    return LassoPath(grid, X, np.array([gap for _, gap in found]), statuses)


def checked_grid(lams: ArrayLike | None, top: float, n_lams: int, smallest: float) -> Array:
    """Penalties in descending order; None is a geometric grid from `top` on.

    Raises:
        InputError: negative, NaN or none of them; a grid of fewer than 2 or outside (0, 1).
    """
    if lams is None:
        if not (isinstance(n_lams, int | np.integer) and n_lams >= 2) or not 0 < smallest < 1:
            text = f"n_lams={n_lams!r}, smallest={smallest!r}"
            raise InputError("lams", text, "pass n_lams >= 2 and smallest in (0, 1)")
        return np.asarray((top or 1.0) * np.geomspace(1.0, smallest, int(n_lams)))
    grid = np.atleast_1d(np.asarray(not_bool("lams", np.asarray(lams)), dtype=float))
    if grid.ndim != 1 or not grid.size or not (np.isfinite(grid) & (grid >= 0)).all():
        raise InputError("lams", "not all are finite and >= 0", "pass such numbers, (k,)")
    return np.sort(grid)[::-1]


def points(
    problem: Lasso, lams: Array, tol: float, *, share: float = 0.0
) -> Iterator[tuple[Array, float]]:
    """Solutions with their gaps at descending positive lams.

    Args:
        problem: the LASSO, whatever its lam.
        lams: penalties, (k,).
        tol: gap to reach, relative to the objective.
        share: of the objective of 0, that the gap is measured against at least.
    """
    floor = share * float(np.linalg.norm(np.asarray(problem.y))) ** 2 / 2
    first = 0
    if WorkingSet().refuses(problem) is None:
        for point in _Walk(problem, lams, tol, floor):
            yield point
            first += 1
    c = np.zeros(problem.unknown_shape, problem.dtype)
    exact = "exact_l1" if ExactL1().refuses(problem) is None else "auto"
    for lam in lams[first:]:
        found = solve(replace(problem, lam=float(lam)), exact, tol=tol, x0=c)
        c = np.asarray(found.coefficients)
        yield c, float("inf" if found.gap is None else found.gap)


class _Point(NamedTuple):
    """Where a fit stood: its lam, `x` of the columns that took part, and `A^T (y - A x)`."""

    lam: float
    x: Array
    c: Array
    gap: float = np.inf

    def towards(self, other: _Point, lam: float) -> _Point:
        """On the line to a later point, at a lam between the two; the gap is unknown."""
        t = (self.lam - lam) / (self.lam - other.lam)
        x = np.zeros(max(self.x.size, other.x.size))
        x[: self.x.size] = (1 - t) * self.x
        x[: other.x.size] += t * other.x
        return _Point(lam, x, (1 - t) * self.c + t * other.c)


class _Walk:
    """Down a grid in strides: between two solutions a line is taken where its gaps are small.

    The path is piecewise linear, and correlations are linear in the coefficients, so that the gap
    of a point of the line costs no product. Where one is too large, the middle of the stride is
    solved for, from the line's point.
    """

    def __init__(self, problem: Lasso, lams: Array, tol: float, floor: float) -> None:
        self.problem, self.lams, self.tol, self.floor = problem, lams, tol, floor
        y = np.asarray(problem.y, dtype=np.float64)
        self.fit = fit_of(problem, matrix_of(problem), y)
        self.exact = ExactL1().refuses(problem) is None
        self.energy = float(y @ y)
        self.size = self.energy / 2
        """Objective of the last solution."""
        if self.fit.tall and lams.size > MANY:
            self.fit.take_all()

    def __iter__(self) -> Iterator[tuple[Array, float]]:
        """Solutions with their gaps; ends early where the exact path had better take over."""
        at, stride = -1, 1.0
        last: _Point | None = None
        while at < self.lams.size - 1:
            to = min(at + max(1, int(stride)), self.lams.size - 1)
            here = self._solved(to, last)
            if here is None:
                return
            worst = 0.0
            for point in () if last is None else self._between(at, to, last, here):
                if point is None:
                    return
                worst = max(worst, point.gap)
                yield self._coefficients(point.x), point.gap
            yield self._coefficients(here.x), here.gap
            at, last = to, here
            stride = self._next_stride(stride, worst)

    def _next_stride(self, stride: float, worst: float) -> float:
        """The gap of a line grows with the square of its length."""
        if stride < 2:
            return 2.0 * stride
        return stride * min(max((0.3 * self.tol / max(worst, 1e-300)) ** 0.5, 0.25), 2.0)

    def _between(
        self, first: int, last: int, above: _Point, below: _Point
    ) -> Iterator[_Point | None]:
        """The points between two solutions; None where the exact path has to take over."""
        line = [above.towards(below, float(lam)) for lam in self.lams[first + 1 : last]]
        line = [self._judged(point) for point in line]
        if all(point.gap <= self.tol for point in line):
            yield from line
            return
        middle = (first + last) // 2
        here = self._solved(middle, line[middle - first - 1])
        if here is None:
            yield None
            return
        yield from self._between(first, middle, above, here)
        yield here
        yield from self._between(middle, last, here, below)

    def _solved(self, k: int, start: _Point | None) -> _Point | None:
        """The solution at a point of the grid; None where the exact path has to take over."""
        fit, lam = self.fit, float(self.lams[k])
        if start is not None and start.lam != fit.reached:
            fit.move(start.x, start.c)
        slack = max(self.tol / 5 * max(1.0, self.floor / self.size), 1e-14)
        while True:
            for _ in fit.descend(lam, min(slack, LOOSE)):
                if self.exact and not self.floor and fit.crowded:
                    return None
            here = self._judged(_Point(lam, fit.x.copy(), fit.c), exact=not self.floor)
            if here.gap <= self.tol or slack <= 1e-14:
                return here
            slack = max(min(slack, LOOSE) / 10, 1e-14)

    def _judged(self, point: _Point, exact: bool = False) -> _Point:
        """With its gap; the residual's products with itself and y come from the correlations, or
        where the fit stands there from itself, which is exact.
        """
        fit, taking = self.fit, self.fit.taking[: point.x.size]
        along = self.energy - float(fit.b[taking] @ point.x)
        square = max(along - float(point.c[taking] @ point.x), 0.0)
        unsure = ROUNDING * self.energy
        if exact:
            along, square = float(fit.residual @ fit.y), float(fit.residual @ fit.residual)
            unsure = 0.0
        primal = square / 2 + point.lam * float(fit.weights[taking] @ np.abs(point.x))
        dual = self._dual(point, along, square)
        self.size = primal
        gap = (abs(primal - dual) + unsure) / max(abs(primal), abs(dual), self.floor, 1e-300)
        return point._replace(gap=gap)

    def _dual(self, point: _Point, along: float, square: float) -> float:
        """Of the best multiple of the residual that is feasible; bounds other than `c >= 0` make
        every multiple so, at a price.
        """
        if self.problem.bounded and not self.problem.nonneg:
            problem = replace(self.problem, lam=point.lam)
            r = self.fit.y - self.problem.operator.forward(self._coefficients(point.x))
            return float(scaled_dual(problem, r[:, None], point.c[:, None])[1][0])
        size = point.c if self.problem.nonneg else np.abs(point.c)
        most = float((size / self.fit.weights).max())
        a = point.lam / most if most > 0 else np.inf
        a = min(a, max(along, 0.0) / square) if square > 0 else min(a, 1.0)
        return a * along - a * a * square / 2

    def _coefficients(self, x: Array) -> Array:
        full = np.zeros(self.problem.unknown_shape)
        full[self.fit.taking[: x.size]] = x
        return np.clip(full, self.fit.lower, self.fit.upper) if self.problem.bounded else full


def _end(problem: Lasso, tol: float) -> tuple[Array, float]:
    """The least-squares solution with the smallest norm, as a basis pursuit of what A can make."""
    if problem.bounded:
        text = "lam = 0 with bounds is bounded least squares, and no end of a path"
        raise InputError("lams", text, "end the grid above 0, such as at 1e-6 * lam_max")
    A, y = problem.operator, np.asarray(problem.y)
    if A.is_dense:
        fitted = np.asarray(A.dense) @ np.linalg.lstsq(np.asarray(A.dense), y, rcond=None)[0]
    else:
        c = lsqr(A, y, atol=1e-15, btol=1e-15, conlim=0, iter_lim=20 * min(A.shape))[0]
        fitted = A.forward(c)
    end = BasisPursuit(A, fitted, weights=problem.weights)
    found = solve(end, tol=max(tol, 1e-10))
    worst = max(found.gap or 0.0, found.infeasibility or 0.0)
    return np.asarray(found.coefficients), worst
