"""Judge an answer: optimal, stalled, infeasible, or zero by right."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lowrank.sensing.certificates import Certificate, certify
from lowrank.sensing.feasibility import closest, distance_if_infeasible
from lowrank.sensing.operators.arrays import Array, to_tensor
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.result import Recovery, SolverResult
from lowrank.status import Status

ROUNDING = 1e-14
"""Violation relative to the measurements that is none."""

FOUR_DIGITS = 1e-4
"""Distance of y from what A can make, relative to y, that measurements of four digits may have."""


class Spent(NamedTuple):
    """What the solvers that were tried cost so far."""

    n_iter: int = 0
    n_products: int = 0
    seconds: float = 0.0

    def plus(self, result: SolverResult, seconds: float) -> Spent:
        """With one more run."""
        return Spent(
            self.n_iter + result.n_iter,
            self.n_products + (result.n_products or 0),
            self.seconds + seconds,
        )


def _why_zero(problem: Problem, result: SolverResult) -> str:
    """Why a run came back with nothing, if that is plain to see."""
    c = np.asarray(result.coefficients)
    if (np.isfinite(c) & (c != 0)).any() or not np.any(problem.y):
        return ""
    if np.any(problem.operator.adjoint(np.asarray(problem.y))):
        return ""
    return "no column of A correlates with y, so nothing fits better than 0"


def _zero_if_optimal(
    problem: Problem, tol: float
) -> tuple[SolverResult, Certificate | None, str] | None:
    """An answer known beforehand, if it is the optimum: 0 for y = 0 or lam >= lam_max, mostly."""
    for c, what in problem.simple_answers():
        if not problem.convex:
            return None if np.any(problem.y) else (SolverResult(c, n_products=0), None, what)
        at_zero = not c.any()
        b = problem.target.reshape(len(problem.target), -1)
        outside = problem.loss.violation(b) if at_zero else np.zeros(1)
        if (outside > ROUNDING * problem.loss.size(b)).any():
            continue
        dual = problem.target if at_zero and not problem.loss.residual_is_dual else None
        if problem.residual_bound is not None:  # nothing is less than 0
            dual = np.zeros_like(problem.target)
        certificate = certify(problem, c, dual)
        if certificate.holds(min(tol, 1e-12)):
            return SolverResult(c, n_products=1), certificate, what
    return None


def _finish(
    problem: Problem,
    result: SolverResult,
    certificate: Certificate | None,
    name: str,
    why: str,
    tol: float,
    debias: bool,
    spent: Spent,
    stopped: bool = False,
) -> Recovery:
    c = np.asarray(result.coefficients)
    stationarity = problem.stationarity(c)
    status, detail = _judge(problem, result, certificate, tol)
    if status is Status.INFEASIBLE and problem.residual_bound is not None:
        c = closest(problem)  # what a solver left behind there means nothing
        certificate = certify(problem, c, None)
    if stationarity is not None:
        status, detail = _how_stationary(result.status, stationarity, tol)
    size = certificate.residual_norm if certificate else _residual_norm(problem, c)
    dual = certificate.dual if certificate else None
    support = support_of(c)
    fitted = debiased(problem, c) if debias else None
    impossible = status in (Status.INFEASIBLE, Status.UNBOUNDED)  # no answer is near an optimum
    advice = status.value
    if stopped and not status.ok:
        advice = "stopped by the callback before the tolerance: let it go on, or loosen tol"
    elif status is Status.STALLED and name.startswith("cvxpy"):
        advice = ALL_TRIED
    return Recovery(
        x=_back(problem, problem.signal(c)),
        coefficients=_back(problem, c),
        support=support,
        status=status,
        objective=certificate.objective if certificate else problem.objective(c),
        residual_norm=size,
        gap=None if certificate is None or impossible else certificate.gap,
        infeasibility=certificate.infeasibility if certificate else None,
        dual=_back(problem, dual) if dual is not None else None,
        dual_objective=certificate.dual_objective if certificate else None,
        debiased=None if fitted is None else _back(problem, problem.signal(fitted)),
        **spent._asdict(),
        history=result.history,
        solver=name,
        why=why,
        message=f"{detail}{advice}",
        stationarity=stationarity,
        intercept=problem.level(c),
    )


ALL_TRIED = "no further progress above the tolerance: loosen tol, or scale the columns of A"
"""The advice of a run that stalled, where CVXPY has had its turn."""


def _residual_norm(problem: Problem, c: Array) -> float:
    return float(np.linalg.norm(problem.operator.forward(c) - np.asarray(problem.y)))


def _judge(
    problem: Problem, result: SolverResult, certificate: Certificate | None, tol: float
) -> tuple[Status, str]:
    """The status that the certificate bears out, and the figures behind it."""
    if certificate is None:
        return result.status, ""
    figures = f"gap {certificate.gap:.1e}, infeasibility {certificate.infeasibility:.1e}: "
    if certificate.holds(tol):
        return Status.OPTIMAL, figures
    if certificate.infeasibility > tol and (distance := distance_if_infeasible(problem, tol)):
        share = distance / float(np.linalg.norm(problem.y))
        text = f"the closest A x is {distance:.6g} away from y ({share:.2g} of ||y||): "
        if share <= FOUR_DIGITS:
            text += f"rounding of y may do that, and noise={1.1 * distance:.2g} allows it; else "
        return Status.INFEASIBLE, text
    if not np.isfinite(certificate.gap):
        return Status.DIVERGED, figures
    measured = problem.residual_bound is not None
    if result.status in (Status.INFEASIBLE, Status.UNBOUNDED) and not measured:
        return result.status, "by the solver's word alone: "
    lost = result.status in (Status.OPTIMAL, Status.CONVERGED, Status.INFEASIBLE)
    return (Status.STALLED if lost else result.status), figures


def _how_stationary(claimed: Status, stationarity: float, tol: float) -> tuple[Status, str]:
    """Stationary where that is borne out, and the figure behind it; never optimal."""
    figure = f"stationary to {stationarity:.1e}: "
    if not np.isfinite(stationarity):
        return Status.DIVERGED, figure
    if stationarity <= tol:
        return Status.STATIONARY, figure
    return (Status.STALLED if claimed.ok else claimed), figure


def support_of(coefficients: Array) -> Array:
    """Indices of entries (rows, for a batch) above 1e-8 of the largest."""
    size = np.abs(coefficients)
    size = size if size.ndim == 1 else size.max(axis=1)
    return np.flatnonzero(size > 1e-8 * size.max(initial=0.0))


def debiased(problem: Problem, coefficients: Array) -> Array:
    """Least squares on the support, of the coefficients' shape; 0 elsewhere.

    Each signal has its own support, unless all share one penalty, and so one support.
    """
    A, y = problem.operator, np.asarray(problem.y)
    fitted = np.zeros(problem.unknown_shape, dtype=problem.dtype)
    if y.ndim == 1 or problem.coupled:
        parts = [(fitted, coefficients, y)]
    else:
        parts = list(zip(fitted.T, coefficients.T, y.T, strict=True))
    for target, c, measured in parts:
        support = support_of(c)
        if support.size:
            target[support] = np.linalg.lstsq(A.columns(support), measured, rcond=None)[0]
    return fitted


def _back(problem: Problem, array: Array) -> Any:
    """The array as the kind of thing that came in."""
    like = problem.tensor_like
    return array if like is None else to_tensor(array, like)
