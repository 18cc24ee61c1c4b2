"""The robust LASSO as a LASSO whose further unknowns are the outliers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from scipy.sparse import csc_array, eye_array, hstack

from lowrank.sensing.operators.algebra import centred_sparse
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import Lasso
from lowrank.sensing.problems.losses import HuberLasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.working_set import WorkingSet, matrix_of

MAX_DENSE = 2**24
"""Entries of the matrix with its identity up to which it is held dense."""


@dataclass(frozen=True)
class Outliers:
    """`min sum h(A c - y) + lam ||w c||_1` by `min 1/2 ||A c + o - y||^2 + delta ||o||_1 + ...`.

    Huber's loss is what is left when the outliers o are minimised over, so the working sets of the
    LASSO for the matrix `(A, I)` solve it exactly.

    Args:
        tol: relative duality gap at which to stop.
        max_iter: limit of the stages.

    Example:
        >>> from lowrank.sensing import HuberLasso, solve
        >>> solve(HuberLasso(np.eye(2), [3.0, 0.5], 0.25, delta=0.5), Outliers()).x.tolist()
        [2.75, 0.25]

    Source: She, Owen 2011, section 2.
    """

    tol: float = 1e-8
    max_iter: int = 1000

    solves: ClassVar[tuple[type[Problem], ...]] = (HuberLasso,)

    def refuses(self, problem: Problem) -> str | None:
        """Needs a matrix."""
        return WorkingSet().refuses(problem)

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise over coefficients and outliers."""
        assert isinstance(problem, HuberLasso)
        m, p = problem.operator.shape
        ones, price = np.ones(m), np.full(m, problem.delta / problem.lam)
        matrix, y = _beside_identity(matrix_of(problem)), np.asarray(problem.y)
        if problem.intercept:  # the best one takes the means away
            means, y = np.asarray(matrix.mean(axis=0)).ravel(), y - y.mean()
            dense = isinstance(matrix, np.ndarray)
            matrix = matrix - means if dense else centred_sparse(matrix, ones, means)
        wide = Lasso(
            matrix, y, problem.lam,
            weights=np.concatenate([np.asarray(problem.weights), price]),
            lower=np.concatenate([np.asarray(problem.lower), -np.inf * ones]),
            upper=np.concatenate([np.asarray(problem.upper), np.inf * ones]),
        )  # fmt: skip
        start = None if x0 is None else np.concatenate([x0, _outliers(problem, x0)])
        show: Callback | None = None
        if callback is not None:
            show = lambda k, c: callback(k, c[:p])  # noqa: E731
        found = WorkingSet(self.tol, self.max_iter).solve(wide, x0=start, callback=show)
        outliers = np.count_nonzero(found.coefficients[p:])
        note = f"{found.note}; {outliers} of {m} measurements are off by more than delta"
        return replace(found, coefficients=found.coefficients[:p], note=note)


def _outliers(problem: HuberLasso, c: Array) -> Array:
    """The best ones beside c."""
    r = np.asarray(problem.y) - problem.operator.forward(c) - (problem.level(c) or 0.0)
    return np.asarray(r - np.clip(r, -problem.delta, problem.delta))


def _beside_identity(A: Any) -> Any:
    m, p = A.shape
    if isinstance(A, np.ndarray) and m * (m + p) <= MAX_DENSE:
        return np.concatenate([A, np.eye(m)], axis=1)
    return csc_array(hstack([csc_array(A), eye_array(m, format="csc")]))
