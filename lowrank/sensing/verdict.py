"""Judge an answer: optimal, stalled, infeasible, or zero by right."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import lsq_linear
from scipy.sparse.linalg import LinearOperator, lsqr

from lowrank.sensing.certificates import Certificate, certify
from lowrank.sensing.operators.arrays import Array, to_tensor
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit
from lowrank.sensing.problems.other import OneBit
from lowrank.sensing.problems.structured import Analysis, AnalysisLasso
from lowrank.sensing.result import Recovery, SolverResult, Status


def _why_zero(problem: Problem, result: SolverResult) -> str:
    """Why a method without certificate came back with nothing, if that is plain to see."""
    if problem.convex or np.any(result.coefficients) or not np.any(problem.y):
        return ""
    if np.any(problem.operator.adjoint(np.asarray(problem.y))):
        return ""
    return "no column of A correlates with y, so nothing fits better than 0"


def _zero_if_optimal(
    problem: Problem, tol: float
) -> tuple[SolverResult, Certificate | None] | None:
    """The zero answer if it is the optimum: y = 0, epsilon >= ||y||, or lam >= lam_max."""
    zero = np.zeros(problem.unknown_shape, dtype=problem.dtype)
    if not problem.convex:
        return None if np.any(problem.y) else (SolverResult(zero, n_products=0), None)
    if isinstance(problem, OneBit):
        return None  # its answer has length 1
    b = problem.target
    if problem.loss.violation(-b.reshape(b.shape[0], -1)).max() > 0:
        return None
    certificate = certify(problem, zero, b)
    optimal = certificate.holds(min(tol, 1e-12))
    return (SolverResult(zero, n_products=1), certificate) if optimal else None


def _constant_if_optimal(
    problem: Problem, tol: float
) -> tuple[SolverResult, Certificate | None] | None:
    """The constant closest to the data, if its variation is 0 and nothing is better.

    Its objective is 0, so a gap relative to the objective would never close on the way to it.
    """
    if not isinstance(problem, Analysis | AnalysisLasso):
        return None
    one = np.ones(problem.unknown_shape, dtype=problem.dtype)
    if np.any(problem.D.forward(one)):
        return None
    seen, b = problem.operator.forward(one), np.asarray(problem.y)
    size = np.vdot(seen, seen).real
    if not size > 0:
        return None
    constant = np.vdot(seen, b) / size * one
    certificate = certify(problem, constant)
    optimal = certificate.holds(min(tol, 1e-12))
    return (SolverResult(constant, n_products=1), certificate) if optimal else None


def _finish(
    problem: Problem,
    result: SolverResult,
    certificate: Certificate | None,
    name: str,
    why: str,
    seconds: float,
    tol: float,
    debias: bool,
) -> Recovery:
    c = np.asarray(result.coefficients)
    status, detail = _judge(problem, result, certificate, tol)
    size = certificate.residual_norm if certificate else _residual_norm(problem, c)
    support = support_of(c)
    fitted = debiased(problem, support) if debias else None
    return Recovery(
        x=_back(problem, problem.signal(c)),
        coefficients=_back(problem, c),
        support=support,
        status=status,
        objective=certificate.objective if certificate else size,
        residual_norm=size,
        gap=certificate.gap if certificate else None,
        infeasibility=certificate.infeasibility if certificate else None,
        dual=_back(problem, certificate.dual) if certificate else None,
        dual_objective=certificate.dual_objective if certificate else None,
        debiased=None if fitted is None else _back(problem, problem.signal(fitted)),
        n_iter=result.n_iter,
        n_products=result.n_products or 0,
        seconds=seconds,
        history=result.history,
        solver=name,
        why=why,
        message=f"{detail}{status.value}",
    )


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
    if not np.isfinite(certificate.gap):
        return Status.DIVERGED, figures
    if certificate.infeasibility > tol and (distance := _distance_if_infeasible(problem, tol)):
        share = distance / float(np.linalg.norm(problem.y))
        text = f"the closest A x is {distance:.6g} away from y ({share:.2g} of ||y||): "
        return Status.INFEASIBLE, text
    measured = isinstance(problem, BasisPursuit | BPDN | Analysis)
    if result.status in (Status.INFEASIBLE, Status.UNBOUNDED) and not measured:
        return result.status, "by the solver's word alone: "
    lost = result.status in (Status.OPTIMAL, Status.CONVERGED, Status.INFEASIBLE)
    return (Status.STALLED if lost else result.status), figures


def _distance_if_infeasible(problem: Problem, tol: float) -> float:
    """Distance from y to what `A c` can be within the bounds, if it rules out every c; else 0."""
    allowed = getattr(problem, "epsilon", 0.0 if isinstance(problem, BasisPursuit) else None)
    if allowed is None:
        return 0.0
    y = np.asarray(problem.y)
    worst = 0.0
    for column in y.reshape(y.shape[0], -1).T:
        distance = _distance(problem, column)
        if distance - allowed > tol * np.linalg.norm(column):
            worst = max(worst, distance)
    return worst


def _distance(problem: Problem, y: Array) -> float:
    """`min ||A c - y||` within the bounds, or 0 where that could not be settled."""
    A = problem.operator
    lower, upper = (getattr(problem, name, None) for name in ("lower", "upper"))
    bounded = bool(getattr(problem, "bounded", False))
    small = A.is_dense and A.shape[0] * A.shape[1] <= 2**24
    if bounded and not small:
        return 0.0
    if bounded:
        method = "bvls" if A.shape[1] <= 1000 else "trf"
        c = lsq_linear(A.to_dense(), y, (lower, upper), tol=1e-14, method=method).x
    elif small:
        c = np.linalg.lstsq(A.to_dense(), y, rcond=None)[0]
    else:
        dtype = np.result_type(A.dtype, y)
        system = LinearOperator(A.shape, matvec=A.forward, rmatvec=A.adjoint, dtype=dtype)
        c = lsqr(system, y, atol=1e-14, btol=1e-14, iter_lim=2000)[0]
    r = y - A.forward(c)
    size, L = float(np.linalg.norm(r)), A.norm() ** 2 or 1.0
    uphill = A.adjoint(r) / L
    moved = np.clip(c + uphill, lower, upper) - c if bounded else uphill
    settled = np.linalg.norm(moved) * np.sqrt(L) <= 1e-6 * size  # else a slow fit looks like a gap
    return size if settled else 0.0


def support_of(coefficients: Array) -> Array:
    """Indices of entries (rows, for a batch) above 1e-8 of the largest."""
    size = np.abs(coefficients)
    size = size if size.ndim == 1 else size.max(axis=1)
    return np.flatnonzero(size > 1e-8 * size.max(initial=0.0))


def debiased(problem: Problem, support: Array) -> Array:
    """Least squares on the support, of the coefficients' shape; 0 elsewhere."""
    A, y = problem.operator, np.asarray(problem.y)
    fitted = np.zeros(problem.unknown_shape, dtype=problem.dtype)
    if support.size:
        columns = A.columns(support)
        fitted[support] = np.linalg.lstsq(columns, y, rcond=None)[0]
    return fitted


def _back(problem: Problem, array: Array) -> Any:
    """The array as the kind of thing that came in."""
    like = problem.tensor_like
    return array if like is None else to_tensor(array, like)
