"""How a run ended: one vocabulary for recovery, robust PCA and completion."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """How a run ended; the value is the advice that goes with it.

    Example:
        >>> print(Status.MAX_ITER.value)
        stopped by max_iter before the tolerance: raise max_iter, loosen tol, or take another solver
    """

    OPTIMAL = "the gap and the constraints are within tol: the answer is certified"
    CONVERGED = (
        "the method reached its own fixed point; the problem is not convex, so nothing is certified"
    )
    STATIONARY = (
        "no small change lowers the objective to first order, within tol; the problem is not "
        "convex, so that another start, x0, may end lower"
    )
    MAX_ITER = (
        "stopped by max_iter before the tolerance: raise max_iter, loosen tol, "
        "or take another solver"
    )
    TIME_LIMIT = (
        "stopped by time_limit before the tolerance; the gap says how far the answer may be from "
        "the optimum: raise time_limit, or loosen tol"
    )
    STALLED = (
        "no further progress above the tolerance: loosen tol, scale the columns of A, "
        'or take solver="cvxpy"'
    )
    INFEASIBLE = (
        "nothing satisfies the constraints: raise the noise level, or the rank where that is "
        "fixed, or check what was measured"
    )
    UNBOUNDED = "the objective has no lower bound: add a penalty or bounds"
    DIVERGED = (
        "the iteration grew without bound, so the answer is no answer: take a convex solver, "
        "or one made for this kind of matrix"
    )

    @property
    def ok(self) -> bool:
        """Whether the answer may be used as the answer."""
        return self in (Status.OPTIMAL, Status.CONVERGED, Status.STATIONARY)
