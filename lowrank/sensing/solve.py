"""Run a solver on a problem, and have the answer certified."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from lowrank.errors import InputError
from lowrank.sensing.certificates import Certificate, bounded, certify
from lowrank.sensing.limits import (
    AT_ROUNDING,
    ROUNDED,
    TOL,
    Deadline,
    is_rounding,
    judged,
    out_of_bounds_by_rounding,
)
from lowrank.sensing.operators.arrays import Array, to_numpy
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.checks import checked_number
from lowrank.sensing.problems.other import BestSubset
from lowrank.sensing.result import Recovery, SolverResult
from lowrank.sensing.solvers import Callback, Solver
from lowrank.sensing.solvers.choose import _candidates, _with, describe
from lowrank.sensing.solvers.protocol import settings_of
from lowrank.sensing.verdict import ALL_TRIED, Spent, _finish, _why_zero, _zero_if_optimal
from lowrank.status import Status


def solve(
    problem: Problem,
    solver: str | Solver = "auto",
    *,
    tol: float | None = None,
    max_iter: int | None = None,
    x0: ArrayLike | None = None,
    debias: bool = False,
    callback: Callback | None = None,
    time_limit: float | None = None,
) -> Recovery:
    """Solve a problem and certify the answer from outside the solver.

    Args:
        problem: one of `lowrank.sensing.problems`.
        solver: a name in `SOLVERS`, a solver object, or "auto", which tries the solvers in the
            order of `AUTO` until one answer is certified.
        tol: relative gap to reach; None is the solver's own, 1e-8 by default.
        max_iter: limit of the solver's iterations; None is its own.
        x0: coefficients to start from, (p,) or (p, batch).
        debias: also give least squares on the support.
        callback: `callback(iteration, coefficients)`; a true return value stops the run.
        time_limit: seconds for all solvers that are tried, which are asked to stop between two
            iterations; None is no limit.

    Returns:
        `Recovery`.

    Raises:
        InputError: an unknown solver, or one that does not take this problem; a tol, max_iter or
            time_limit that is not positive.

    Example:
        >>> from lowrank.sensing import Lasso
        >>> result = solve(Lasso(np.eye(2), [3.0, 0.5], lam=1.0))
        >>> result.x.round(6).tolist(), result.status.name
        ([2.0, 0.0], 'OPTIMAL')
    """
    _check_limits(tol, max_iter)
    if callback is not None and not callable(callback):
        problem = f"{callback!r} is no function of an iteration and the coefficients"
        raise InputError("callback", problem, "pass one that returns True to stop, or None")
    if debias and not problem.least_squares:
        text = f"least squares do not fit the data of a {type(problem).__name__}"
        raise InputError("debias", text, "solve it again on the support with a small lam")
    clock = Deadline(time_limit)
    problem, tol = judged(problem, tol)
    start = _checked_start(problem, x0)
    candidates = _candidates(problem, solver)  # what cannot be taken is no way to a known answer
    calls: list[bool] = []
    watched = clock.watched(None if callback is None else _watched(callback, calls))
    if (trivial := _zero_if_optimal(problem, tol or TOL)) is not None:
        result, certificate, what = trivial
        why = f"{what} is the optimum"
        return _finish(
            problem, result, certificate, "none", why, tol or TOL, debias, Spent().plus(result, 0.0)
        )
    tried: list[str] = []
    best: Recovery | None = None
    later, spent = 0, Spent()  # where those tried after the best begin, and what all cost
    for name, candidate, why, share in candidates:
        if best is not None and clock.passed:
            break
        ready, unheard = _with(candidate, tol=tol, max_iter=max_iter)
        seen = len(calls)
        limited = _up_to(share if max_iter is None else None, watched)
        result, seconds = _run(clock.given(ready), problem, start, limited)
        if callback is not None and len(calls) == seen and result.n_iter:
            unheard.append("callback")
        spent = spent.plus(result, seconds)
        if x0 is None and result.warm:
            start = result.coefficients
        silent = f"{name} has no {' and no '.join(unheard)}" if unheard else ""
        said = [*tried, why, _why_zero(problem, result) or result.note, silent]
        why, stopped = "; ".join(filter(None, said)), bool(calls and calls[-1])
        accuracy = float(settings_of(ready).get("tol", tol or TOL))
        args = (describe(name, ready), why, accuracy, debias, spent, stopped)
        found = _finish(problem, result, _certified(problem, result), *args)
        if best is None or _is_better(found, best):
            best, later = found, len(tried) + 1
        if found.status.ok or stopped:
            return found
        if not tried and out_of_bounds_by_rounding(problem, tol):
            return solve(
                problem, solver, tol=ROUNDED, max_iter=max_iter, x0=x0, debias=debias,
                callback=callback, time_limit=clock.left,
            )  # fmt: skip
        if found.status in (Status.INFEASIBLE, Status.UNBOUNDED):
            return found
        if is_rounding(problem, _badness(found)):
            return _ended(found, Status.STALLED, AT_ROUNDING.format(dtype=problem.operator.dtype))
        gap = "no gap" if found.gap is None else f"gap {found.gap:.1e}"
        tried.append(f"{name} ended {found.status.name} with {gap}")
    assert best is not None  # `_candidates` raises rather than being empty
    if clock.passed:
        best = _ended(best, Status.TIME_LIMIT, Status.TIME_LIMIT.value)
    elif any(line.startswith("cvxpy") for line in tried):
        best = replace(best, message=best.message.replace(Status.STALLED.value, ALL_TRIED))
    return replace(best, why="; ".join([best.why, *tried[later:]]), **spent._asdict())


def _check_limits(tol: float | None, max_iter: int | None) -> None:
    if tol is not None:
        checked_number("tol", tol)
    whole = isinstance(max_iter, int | np.integer) and not isinstance(max_iter, bool)
    if max_iter is not None and not (whole and max_iter >= 1):
        raise InputError("max_iter", f"{max_iter!r} is no integer from 1 on", "pass one, or None")


def _checked_start(problem: Problem, x0: ArrayLike | None) -> Array | None:
    if x0 is None:
        return None
    start = to_numpy(x0)
    if np.iscomplexobj(start) and not problem.is_complex:
        raise InputError("x0", "complex, and the coefficients are real", "pass its real part")
    if start.shape != problem.unknown_shape or not np.isfinite(start).all():
        text = f"shape {start.shape}, or NaN, for coefficients {problem.unknown_shape}"
        raise InputError("x0", text, "pass finite coefficients in the basis")
    return start.astype(problem.dtype)


class _CallbackError(Exception):
    """What a callback raised, on its way out of the solver."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _watched(callback: Callback, calls: list[bool]) -> Callback:
    """The callback, whose answers are kept, so that no other solver takes over from a stop."""

    def call(k: int, coefficients: Array) -> bool:
        try:
            calls.append(bool(callback(k, coefficients)))
        except (ArithmeticError, np.linalg.LinAlgError) as error:
            raise _CallbackError(error) from error  # else it would pass for a solver's breakdown
        return calls[-1]

    return call


def _up_to(share: int | None, callback: Callback | None) -> Callback | None:
    """The callback, which stops after that many iterations, too."""
    if share is None:
        return callback
    return lambda k, c: bool(callback and callback(k, c)) or k >= share


def reweighted(
    problem: Problem, solver: str | Solver = "auto", *, rounds: int = 4, floor: float | None = None
) -> Recovery:
    """Iteratively reweighted L1: `w_i <- 1 / (|c_i| + floor)`, for `min sum_i log(|c_i| + floor)`.

    Each round is a convex problem whose certificate holds for that round's weights; the whole is
    not convex.

    Args:
        problem: one of the L1 formulations; its weights are the first round's.
        solver: as in `solve`.
        rounds: number of weighted problems after the first, >= 1.
        floor: > 0, below the non-zeros' size; None is a tenth of the first round's largest.

    Returns:
        The last round's `Recovery`, of the problem with the last weights.

    Raises:
        InputError: the problem has no weights, or rounds or floor are not positive.

    Example:
        >>> from lowrank.sensing import BasisPursuit
        >>> A = np.array([[1.0, 0.9, 0.0], [0.0, 0.9, 1.0]])
        >>> reweighted(BasisPursuit(A, [1.0, 1.0])).support.tolist()
        [1]

    Source: Candes, Wakin, Boyd 2008, section 2.2.
    """
    whole = isinstance(rounds, int | np.integer) and not isinstance(rounds, bool)
    if not whole or rounds < 1:
        raise InputError("reweighted", f"rounds={rounds}", "rounds must be positive and whole")
    floor = None if floor is None else checked_number("floor", floor)
    problem.reweighted(np.ones(problem.n_unknowns))  # refuses what has no weights, at once
    found = solve(problem, solver)
    for _ in range(rounds):
        size = np.abs(to_numpy(found.coefficients))
        size = size if size.ndim == 1 else np.linalg.norm(size, axis=1)
        if floor is None:
            floor = 0.1 * float(size.max()) or 1.0
        weights = floor / (size + floor)  # in units of the floor, so that lam keeps its meaning
        problem = problem.reweighted(weights)
        found = solve(problem, solver)
    return found


_PYTHONS_WORDS = {
    "float division by zero": "a division by zero",
    "(34, 'Numerical result out of range')": "a number beyond the range of floats",
}
"""What Python's own errors mean; those of linear algebra speak for themselves."""


def _run(
    solver: Solver, problem: Problem, x0: Array | None, callback: Callback | None
) -> tuple[SolverResult, float]:
    """Run with the operator's products counted and the clock on."""
    counts: list[int] = []
    counted = problem.counting(counts.append)
    begin = time.perf_counter()
    try:
        with np.errstate(all="ignore"):  # what overflows or is 0 / 0, the certificate will tell
            result = solver.solve(counted, x0=x0, callback=callback)
    except _CallbackError as error:
        raise error.error from None
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        zero = np.zeros(problem.unknown_shape, problem.dtype)
        note = f"broke down: {_PYTHONS_WORDS.get(str(error), error)}"
        result = SolverResult(zero, status=Status.DIVERGED, note=note)
    seconds = time.perf_counter() - begin
    products = sum(counts) if result.n_products is None else result.n_products
    return replace(result, n_products=products), seconds


def _certified(problem: Problem, result: SolverResult) -> Certificate | None:
    if isinstance(problem, BestSubset):
        return bounded(problem, result.coefficients, result.bound or 0.0)
    if not problem.convex:
        return None
    with np.errstate(all="ignore"):  # a diverged run may hold anything
        return certify(problem, result.coefficients, result.dual, result.analysis_dual)


def _badness(found: Recovery) -> float:
    """The worse of gap and infeasibility."""
    worst = max(found.gap or 0.0, found.infeasibility or 0.0)
    return worst if np.isfinite(worst) else np.inf


def _is_better(found: Recovery, best: Recovery) -> bool:
    return _badness(found) < _badness(best)


def _ended(found: Recovery, status: Status, advice: str) -> Recovery:
    """The best answer there is, with the reason why no other is looked for."""
    if found.gap is not None:
        violated = (
            "" if found.infeasibility is None else f", infeasibility {found.infeasibility:.1e}"
        )
        advice = f"gap {found.gap:.1e}{violated}: {advice}"
    return replace(found, status=status, message=advice)
