"""How far a run can go: the precision of the products and of the data, the clock, and progress."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from lowrank.sensing.feasibility import closest
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.foreign import FORMED
from lowrank.sensing.operators.operator import ADJOINT, Operator, from_matrix
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.checks import checked_number
from lowrank.sensing.solvers import Callback, Solver
from lowrank.sensing.solvers.protocol import settings_of, with_settings

TOL = 1e-8
"""Default accuracy: relative duality gap and relative violation of the constraints."""
COARSE = 1e-5
"""Accuracy that operators in single precision are asked for, where the user names none."""
FORMED_ALWAYS = 2**18
"""Entries of a matrix up to which analysis problems, and those within bounds, have it formed."""
FORMED_COMPLEX = 2**20
"""Entries of a complex matrix up to which measurements of single precision are fitted exactly."""
ROUNDED = 1e-6
"""Accuracy that measurements in single precision are fitted to, where not to the last digit."""
FITTED = 1e-12
"""Distance of y from what A can make, relative to y, up to which it can be fitted exactly."""


class Deadline:
    """Asks solvers to stop when time is up.

    Args:
        seconds: from now on, positive; None is no limit.

    Raises:
        InputError: they are not positive.
    """

    def __init__(self, seconds: float | None) -> None:
        self.end = np.inf
        if seconds is not None:
            self.end = time.perf_counter() + checked_number("time_limit", seconds)

    @property
    def passed(self) -> bool:
        """Whether time is up."""
        return time.perf_counter() >= self.end

    @property
    def left(self) -> float | None:
        """Seconds until then, at least a millisecond; None without a limit."""
        return None if self.end == np.inf else max(self.end - time.perf_counter(), 1e-3)

    def watched(self, callback: Callback | None) -> Callback | None:
        """The callback, which stops at the deadline, too; itself where there is none."""
        if self.end == np.inf:
            return callback
        return lambda k, c: bool(callback and callback(k, c)) or self.passed

    def given(self, solver: Solver) -> Solver:
        """The solver, which is told of the time that is left where it has a limit of its own."""
        if self.left is None or "time_limit" not in settings_of(solver):
            return solver
        return with_settings(solver, {"time_limit": self.left})


def judged(problem: Problem, tol: float | None) -> tuple[Problem, float | None]:
    """The problem and its tolerance, with a warning where the operator's products are not right.

    Where that is small its matrix stands in for an operator with another's adjoint, or one in
    single precision; and for any that only first-order methods would take.
    """
    A = problem.operator
    size = A.shape[0] * A.shape[1]
    small = size <= FORMED
    if not A.trusted and (error := A.dot_test) > ADJOINT:
        text = f"{A.name}: the adjoint fails the dot test with relative error {error:.1e}"
        done = "solved with the matrix of its products instead" if small else "do not trust this"
        warnings.warn(f"{text}; {done}, and correct rmatvec", stacklevel=4)
        return (problem.with_operator(from_matrix(A.to_dense())) if small else problem), tol
    if not A.is_dense and size <= FORMED_ALWAYS and _wants_matrix(problem):
        return problem.with_operator(from_matrix(A.to_dense())), tol
    if A.is_dense or not is_single(A):
        return problem, _for_rounded_data(problem, tol)
    if (tol or TOL) >= 1e-6:
        return problem, tol
    if small:
        return problem.with_operator(from_matrix(A.to_dense())), tol
    text = f"{A.name} computes in {A.dtype}, which cannot reach the tolerance {tol or TOL:g}"
    done = f"solved to {COARSE:g} instead" if tol is None else f"pass tol={COARSE:g}"
    warnings.warn(f"{text}; {done}, or pass a float64 operator", stacklevel=4)
    return problem, tol or COARSE


def _wants_matrix(problem: Problem) -> bool:
    """Whether first-order methods are all that takes it without one, and are slow on it."""
    facts = problem.operator.facts
    solved = facts.column_gram is not None or facts.gram_spectrum is not None
    analysis = problem.analysis is not None and not solved
    return analysis or (problem.bounded and not problem.nonneg)


def _for_rounded_data(problem: Problem, tol: float | None) -> float | None:
    """The tolerance of an exact fit where y is of single precision: large operators, tall ones."""
    A, y = problem.operator, np.asarray(problem.y)
    exact = problem.residual_bound == 0 and tol is None
    cheap = A.shape[0] * A.shape[1] <= (FORMED_COMPLEX if problem.is_complex else FORMED)
    digits = cheap or (A.is_dense and not problem.is_complex)  # that can be fitted to the last
    if not exact or (digits and A.shape[0] <= A.shape[1]) or not rounded(y):
        return tol
    _warn_of_rounding(5)
    return ROUNDED


def _warn_of_rounding(level: int) -> None:
    text = f"y is rounded to single precision, and is fitted to {ROUNDED:g} of its size"
    warnings.warn(
        f"{text}; pass noise= for a looser fit, or tol= for a closer one", stacklevel=level
    )


def out_of_bounds_by_rounding(problem: Problem, tol: float | None) -> bool:
    """Whether rounding of y to single precision has taken it from what A can make within the
    bounds, as from the boundary of a cone; with a warning.
    """
    y = np.asarray(problem.y)
    exact = problem.residual_bound == 0 and tol is None
    if not (exact and problem.bounded and rounded(y)):
        return False
    r = problem.operator.forward(closest(problem)) - y
    share = float(np.linalg.norm(r)) / (float(np.linalg.norm(y)) or 1.0)
    if not FITTED < share <= ROUNDED:
        return False
    _warn_of_rounding(4)
    return True


HALF_OF_SINGLE = 12
"""Binary digits, half of those that single precision has."""


def rounded(y: Array) -> bool:
    """Whether values are of single precision, and use more than half of its digits: whole
    numbers, halves and the like are exact in it."""
    single: Any = np.complex64 if np.iscomplexobj(y) else np.float32
    with np.errstate(over="ignore"):
        if not (y.astype(single) == y).all():
            return False
    parts = np.frexp(np.stack([y.real, y.imag]) if np.iscomplexobj(y) else y)[0]
    few = np.ldexp(parts, HALF_OF_SINGLE)
    return bool((np.rint(y) != y).any() and (np.rint(few) != few).any())


def is_single(A: Operator) -> bool:
    """Whether an operator computes in single precision."""
    return A.dtype in (np.float32, np.complex64)


def is_rounding(problem: Problem, error: float) -> bool:
    """Whether an error is what products in single precision leave, which no solver betters."""
    A = problem.operator
    return not A.is_dense and is_single(A) and error <= COARSE


AT_ROUNDING = "products in {dtype} tell no more: loosen tol, or pass a float64 operator"
"""The advice where single precision is all there is."""
