"""`ExactL1` for a matrix-free operator that is small enough to be formed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator, from_matrix
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.exact_l1 import ExactL1
from lowrank.sensing.solvers.protocol import Callback

MAX_ENTRIES = 2**22
"""Size up to which forming the matrix costs no more than what an iterative method would take."""
ADJOINT = 1e-5
"""Error of the adjoint up to which the rows that it gives are those of the operator."""


@dataclass(frozen=True)
class ExactL1MatrixFree:
    """Basis pursuit, BPDN and the LASSO: form the operator's matrix, then `ExactL1`.

    That takes a product for each column, or with the adjoint for each row where these are fewer.
    First-order methods take thousands of products where the solution is hardly sparse, and end
    short of it.

    Args:
        tol: relative gap and infeasibility to prove; about 1e-14 is usual.
        max_iter: as `ExactL1` has it.

    Example:
        >>> from lowrank.sensing import operators, solve
        >>> A = operators.partial_dct(64, m=32, seed=0)
        >>> problem = BasisPursuit(A, A.columns([3, 40]) @ [1.0, -2.0])
        >>> solve(problem, ExactL1MatrixFree()).support.tolist()
        [3, 40]

    Source: see `ExactL1`.
    """

    tol: float = 1e-8
    max_iter: int | None = None

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit, BPDN, Lasso)

    def refuses(self, problem: Problem) -> str | None:
        """Takes what is matrix-free and small, and otherwise fit for `ExactL1`."""
        A = problem.operator
        if A.is_dense:
            return "is for operators without a matrix"
        if A.shape[0] * A.shape[1] > MAX_ENTRIES:
            return f"forms matrices up to {MAX_ENTRIES} entries"
        if problem.is_complex:
            return "needs real data, and this is complex"
        if problem.bounded and not problem.nonneg:
            return "knows no bounds other than c >= 0"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; support and signs of `x0` are the first guess."""
        changed: dict[str, Any] = {"A": from_matrix(formed(problem.operator)), "basis": None}
        twin = replace(problem, **changed)
        found = ExactL1(self.tol, self.max_iter).solve(twin, x0=x0, callback=callback)
        count = min(problem.operator.shape) + (found.n_products or 0)
        return replace(found, n_products=count, note=f"matrix formed; {found.note}")


def formed(A: Operator) -> Array:
    """The matrix, by its rows where they are fewer and the adjoint is right."""
    m, n = A.shape
    if m < n and (A.trusted or A.dot_test <= ADJOINT):
        return np.ascontiguousarray(A.adjoint(np.eye(m)).conj().T)
    return A.to_dense()
