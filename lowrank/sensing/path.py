"""The LASSO at many penalties, each from the one before, with the columns gathered once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse.linalg import lsqr

from lowrank.errors import InputError
from lowrank.sensing.certificates import gap_floor, relative_gap, scaled_dual
from lowrank.sensing.limits import TOL
from lowrank.sensing.operators.arrays import Array, MatrixLike
from lowrank.sensing.operators.chunked import reduced_rows
from lowrank.sensing.problems.checks import checked_number, not_bool
from lowrank.sensing.problems.l1 import BasisPursuit, Lasso
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers.exact_l1 import ExactL1
from lowrank.sensing.solvers.working_set import Fit, WorkingSet, fit_of, matrix_of
from lowrank.status import Status


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


def points(problem: Lasso, lams: Array, tol: float) -> Iterator[tuple[Array, float]]:
    """Solutions with their gaps at descending positive lams."""
    c = np.zeros(problem.unknown_shape, problem.dtype)
    fit: Fit | None = None
    if WorkingSet().refuses(problem) is None:
        fit = fit_of(problem, matrix_of(problem), np.asarray(problem.y, dtype=np.float64))
    exact = "exact_l1" if ExactL1().refuses(problem) is None else "auto"
    for lam in lams:
        at = replace(problem, lam=float(lam))
        if fit is not None:
            for _ in fit.descend(float(lam), max(tol / 50, 1e-14)):
                if exact == "exact_l1" and fit.crowded:
                    fit = None
                    break
        if fit is not None:
            c = fit.coefficients()
            yield c, _gap(at, fit, c)
        else:
            found = solve(at, exact, tol=tol, x0=c)
            c = np.asarray(found.coefficients)
            yield c, float("inf" if found.gap is None else found.gap)


def _gap(problem: Lasso, fit: Fit, c: Array) -> float:
    """From the product with the matrix that the fit has made of its residual."""
    r = fit.residual[:, None]
    primal = problem.loss.value(r) + problem.penalty.value(c[:, None])
    _, dual = scaled_dual(problem, r, fit.c[:, None])
    return float(relative_gap(primal, dual, gap_floor(problem)).max())


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
