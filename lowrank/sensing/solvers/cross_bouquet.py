"""L1 data fit as basis pursuit in the matrix extended by the identity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import from_matrix
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BasisPursuit, L1Fit
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.exact_l1 import ExactL1
from lowrank.sensing.solvers.protocol import Callback


@dataclass(frozen=True)
class CrossBouquet:
    """`min ||A c - y||_1 + lam ||w c||_1` as `min lam ||w c||_1 + ||e||_1, A c + e = y`.

    The gross errors e join the unknowns, so that the fast `ExactL1` for basis pursuit applies; its
    dual point is the one of this problem.

    Args:
        tol: relative gap and infeasibility that counts as optimal.
        max_iter: as `ExactL1` has it.

    Example:
        >>> problem = L1Fit([[1.0, 0.0], [1.0, 0.0], [1.0, 0.5]], [1.0, 1.0, 9.0], lam=0.5)
        >>> CrossBouquet().solve(problem).coefficients.round(6).tolist()
        [1.0, 0.0]

    Source: Wright, Ma 2010, equation (3).
    """

    tol: float = 1e-8
    max_iter: int | None = None

    solves: ClassVar[tuple[type[Problem], ...]] = (L1Fit,)

    def refuses(self, problem: Problem) -> str | None:
        """Needs a real matrix, and takes no bounds."""
        assert isinstance(problem, L1Fit)
        if problem.bounded:
            return "takes no bounds"
        if problem.is_complex or not problem.operator.is_dense:
            return "needs a real matrix"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """One basis pursuit with `(A, I)`, from `x0` and its residual."""
        assert isinstance(problem, L1Fit)
        A = problem.operator.to_dense()
        m, p = A.shape
        extended = from_matrix(np.concatenate([A, np.eye(m)], axis=1))
        weights = np.concatenate([problem.lam * np.asarray(problem.weights), np.ones(m)])
        pursuit = BasisPursuit(extended, problem.y, weights=weights)
        start = None if x0 is None else np.concatenate([x0, problem.y - A @ x0])
        seen = callback and (lambda k, c: callback(k, c[:p]))
        found = ExactL1(self.tol, self.max_iter).solve(pursuit, x0=start, callback=seen)
        return replace(found, coefficients=found.coefficients[:p])
