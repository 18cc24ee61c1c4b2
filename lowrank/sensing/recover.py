"""The front door: choose the formulation and a solver, solve, certify from outside."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import lsq_linear
from scipy.sparse.linalg import LinearOperator, lsqr

from lowrank.errors import InputError
from lowrank.sensing.certificates import Certificate, certify
from lowrank.sensing.operators import Array, MatrixLike, to_numpy, to_tensor
from lowrank.sensing.problems import (
    BPDN,
    BasisPursuit,
    KSparse,
    Lasso,
    Problem,
    checked_number,
)
from lowrank.sensing.result import Recovery, SolverResult, Status
from lowrank.sensing.solvers import AUTO, SOLVERS, Callback, Solver
from lowrank.sensing.solvers.protocol import (
    checked_solver,
    default_settings,
    settings_of,
    with_settings,
)

TOL = 1e-8
"""Default accuracy: relative duality gap and relative violation of the constraints."""


def recover(
    A: MatrixLike,
    y: ArrayLike,
    *,
    noise: float | Literal["auto"] | None = None,
    lam: float | None = None,
    lam_fraction: float | None = None,
    sparsity: int | None = None,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    weights: ArrayLike | None = None,
    solver: str | Solver = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    x0: ArrayLike | None = None,
    debias: bool = False,
    callback: Callback | None = None,
) -> Recovery:
    """Recover a sparse signal from measurements `y = A x + e`.

    Nothing given is basis pursuit, `min ||c||_1` subject to `A Psi c = y`; `noise` is BPDN,
    `||A Psi c - y||_2 <= noise`; `lam` or `lam_fraction` is LASSO,
    `1/2 ||A Psi c - y||^2 + lam ||c||_1`; `sparsity` is k-sparse least squares, by a greedy method
    and without certificate.

    Args:
        A: (m, n) array, sparse matrix, LinearOperator, `Operator` or torch tensor.
        y: (m,), or (m, batch) for several signals.
        noise: bound on `||A x - y||_2`, >= 0; "auto" is `noise.estimate_noise(...).epsilon`, for
            a single signal.
        lam: penalty, > 0.
        lam_fraction: the same as a share of `noise.lam_max`, from where on the answer is zero;
            in (0, 1], and without units.
        sparsity: number of non-zeros, 1 .. min(m, n).
        basis: `Psi` with `x = Psi c`, such as `bases.dct(n)`; None is the identity.
        nonneg: the coefficients are known to be non-negative.
        weights: positive weights of the L1 norm.
        solver: a name in `SOLVERS`, a solver object, or "auto".
        tol: relative gap to reach; None is 1e-8.
        max_iter: limit of the solver's iterations; None is the solver's own.
        x0: coefficients to start from, where the solver can use them.
        debias: also give least squares on the support, in `Recovery.debiased`.
        callback: `callback(iteration, coefficients)`; a true return value stops the run.

    Returns:
        `Recovery`: x and coefficients, status with advice, objective, certified gap, cost.

    Raises:
        InputError: wrong shapes, NaN or Inf, contradictory options, an unknown or unsuited solver.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((20, 40)), np.zeros(40)
        >>> x[[3, 17]] = 1, -2
        >>> result = recover(A, A @ x)
        >>> result.status.name, result.support.tolist(), bool(np.abs(result.x - x).max() < 1e-6)
        ('OPTIMAL', [3, 17], True)

    Source: Chen, Donoho, Saunders 1998; van den Berg, Friedlander 2008; Tibshirani 1996.
    """
    _check_one_of(noise=noise, lam=lam, lam_fraction=lam_fraction, sparsity=sparsity)
    l1: dict[str, Any] = {"basis": basis, "weights": weights, "lower": 0.0 if nonneg else -np.inf}
    problem: Problem
    said = ""
    if isinstance(noise, str):
        noise, said = _estimated(noise, A, y, basis, nonneg)
    if lam_fraction is not None:
        lam, said = _fraction(lam_fraction, Lasso(A, y, 1.0, **l1).lam_max)
    if sparsity is not None:
        if nonneg or weights is not None:
            raise InputError("sparsity", "joins neither nonneg nor weights", "give noise or lam")
        problem = KSparse(A, y, sparsity, basis=basis)
    elif lam is not None:
        problem = Lasso(A, y, lam, **l1)
    elif noise is not None and checked_number("noise", noise, zero=True) > 0:
        problem = BPDN(A, y, noise, **l1)
    else:
        problem = BasisPursuit(A, y, **l1)
    options: dict[str, Any] = {"x0": x0, "debias": debias, "callback": callback}
    found = solve(problem, solver, tol=tol, max_iter=max_iter, **options)
    return replace(found, why=f"{said}{found.why}") if said else found


def _check_one_of(**given: object) -> None:
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        text = f"{' and '.join(named)} exclude each other, and were given together"
        raise InputError("recover", text, "give one of them")


def _fraction(fraction: float, top: float) -> tuple[float, str]:
    """lam as a share of lam_max, and that it is."""
    lam = share_of(fraction, top)
    return lam, f"lam = {lam:.6g}, {100 * fraction:g} % of lam_max = {top:.6g}; "


def share_of(fraction: float, top: float) -> float:
    """`fraction` of lam_max; where nothing correlates with y, every lam answers zero: 1.

    Raises:
        InputError: it is outside (0, 1].
    """
    fraction = checked_number("lam_fraction", fraction, zero=True)
    if not 0 < fraction <= 1:
        text = f"{fraction} is outside (0, 1]"
        raise InputError("lam_fraction", text, "0.01 to 0.5 is usual; at 1 the answer is zero")
    return fraction * top or 1.0


def _estimated(
    noise: str, A: MatrixLike, y: ArrayLike, basis: MatrixLike | None, nonneg: bool
) -> tuple[float, str]:
    """The estimated bound on the noise, 0 where the noise is below what is solved to."""
    from lowrank.sensing.noise import estimate_noise  # it solves, and so imports this module

    if noise != "auto":
        raise InputError("noise", f"{noise!r} is no number", 'give a number >= 0, or "auto"')
    found = estimate_noise(A, y, basis=basis, nonneg=nonneg)
    if found.epsilon <= TOL * np.linalg.norm(to_numpy(y)):
        return 0.0, "noise estimated: none; "
    return found.epsilon, f"noise estimated: std {found.std:.3g}, epsilon {found.epsilon:.6g}; "


def solve(
    problem: Problem,
    solver: str | Solver = "auto",
    *,
    tol: float | None = None,
    max_iter: int | None = None,
    x0: ArrayLike | None = None,
    debias: bool = False,
    callback: Callback | None = None,
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

    Returns:
        `Recovery`.

    Raises:
        InputError: an unknown solver, or one that does not take this problem; a tol or max_iter
            that is not positive.

    Example:
        >>> result = solve(Lasso(np.eye(2), [3.0, 0.5], lam=1.0))
        >>> result.x.round(6).tolist(), result.status.name
        ([2.0, 0.0], 'OPTIMAL')
    """
    _check_limits(tol, max_iter)
    _warn(problem, TOL if tol is None else tol)
    start = _checked_start(problem, x0)
    calls: list[bool] = []
    watched = None if callback is None else _watched(callback, calls)
    if (trivial := _zero_if_optimal(problem, tol or TOL)) is not None:
        result, certificate, what = trivial
        why = f"{what} is the optimum"
        return _finish(problem, result, certificate, "none", why, tol or TOL, debias)
    tried: list[str] = []
    best: Recovery | None = None
    later, cost = 0, np.zeros(3)  # where those tried after the best begin, and what all cost
    for name, candidate, why in _candidates(problem, solver):
        ready, unheard = _with(candidate, tol=tol, max_iter=max_iter)
        seen = len(calls)
        result, seconds = _run(ready, problem, start, watched)
        if callback is not None and len(calls) == seen and result.n_iter:
            unheard.append("callback")
        cost += result.n_iter, result.n_products or 0, seconds
        silent = f"{name} has no {' and no '.join(unheard)}" if unheard else ""
        said = [*tried, why, result.note, silent, _why_zero(problem, result)]
        why, stopped = "; ".join(filter(None, said)), bool(calls and calls[-1])
        accuracy = float(settings_of(ready).get("tol", tol or TOL))
        args = (describe(name, ready), why, accuracy, debias, stopped)
        found = _finish(problem, result, _certified(problem, result), *args)
        if best is None or _is_better(found, best):
            best, later = found, len(tried) + 1
        settled = found.status in (Status.INFEASIBLE, Status.UNBOUNDED)
        if found.status.ok or settled or stopped:
            best, tried = found, []
            break
        tried.append(f"{name} ended {found.status.name} with gap {found.gap}")
    assert best is not None  # `_candidates` raises rather than being empty
    totals: dict[str, Any] = dict(zip(("n_iter", "n_products"), map(int, cost), strict=False))
    why = "; ".join([best.why, *tried[later:]])
    return replace(best, why=why, seconds=float(cost[2]), **totals)


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


def _candidates(problem: Problem, solver: str | Solver) -> Iterator[tuple[str, Solver, str]]:
    """Solvers to try, each with its name and why."""
    kind = type(problem)
    if not isinstance(solver, str):
        solver = checked_solver(solver)
        yield type(solver).__name__, _accepting(type(solver).__name__, solver, problem), "asked for"
        return
    if solver != "auto":
        yield solver, _accepting(solver, _named(solver), problem), "asked for by name"
        return
    reasons: list[str] = []
    any_fits = False
    for name in AUTO:
        if kind not in SOLVERS[name].solves:
            continue
        candidate = SOLVERS[name]()
        reason = candidate.refuses(problem)
        if reason is None:
            any_fits = True
            yield name, candidate, _why(problem, name, reasons)
        else:
            reasons.append(f"{name} {reason}")
    if not any_fits:
        text = f"no solver takes this {kind.__name__} ({'; '.join(reasons) or 'none lists it'})"
        raise InputError("solver", text, "change the formulation or pass A as a matrix")


def _named(name: str) -> Solver:
    """The solver of a name; "cvxpy:scs" names the backend too."""
    family, _, backend = name.partition(":")
    if family == "cvxpy" and backend:
        return with_settings(SOLVERS["cvxpy"](), {"backend": backend})
    if name not in SOLVERS:
        text = f"{name!r} is not one of {', '.join(sorted(SOLVERS))}"
        raise InputError("solver", text, 'name one of these, "cvxpy:BACKEND", or "auto"')
    return SOLVERS[name]()


def _why(problem: Problem, name: str, reasons: list[str]) -> str:
    m, p = problem.operator.shape
    kind = "dense" if problem.operator.is_dense else "matrix-free"
    size = f"{kind} {m} x {p}{', m > n' if m > p else ''}"
    passed = f" (passed over: {'; '.join(reasons)})" if reasons else ""
    return f"{name}: first choice for {type(problem).__name__}, {size}{passed}"


def _accepting(name: str, solver: Solver, problem: Problem) -> Solver:
    kind = type(problem)
    able = [other for other, cls in SOLVERS.items() if kind in cls.solves]
    listed = kind in solver.solves
    reason = solver.refuses(problem) if listed else "does not list it"
    if reason is None:
        return solver
    takers = [other for other in able if SOLVERS[other]().refuses(problem) is None]
    advice = f"take one of: {', '.join(takers) or 'none so far'}"
    if not listed:  # what to ask for so that this solver can answer
        asked = [f"{p.__name__} ({p.asked_by})" for p in solver.solves if p.asked_by]
        advice += f"; {name} takes {', '.join(asked or [p.__name__ for p in solver.solves])}"
    text = f"{name} cannot take this {kind.__name__}: it {reason}"
    raise InputError("solver", text, advice)


def _with(solver: Solver, **changes: Any) -> tuple[Solver, list[str]]:
    """The solver with these hyperparameters, and the names of those that it does not have."""
    known, asked = settings_of(solver), {k: v for k, v in changes.items() if v is not None}
    wanted = {name: value for name, value in asked.items() if name in known}
    return with_settings(solver, wanted), [name for name in asked if name not in known]


def describe(name: str, solver: Solver) -> str:
    """`name(hyperparameter=value, ...)`, those that differ from the default."""
    known, default = settings_of(solver), default_settings(solver)
    changed = [f"{k}={v!r}" for k, v in known.items() if k not in default or v != default[k]]
    return f"{name}({', '.join(changed)})"


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
        result = SolverResult(zero, status=Status.DIVERGED, note=f"broke down: {error}")
    seconds = time.perf_counter() - begin
    products = sum(counts) if result.n_products is None else result.n_products
    return replace(result, n_products=products), seconds


def _certified(problem: Problem, result: SolverResult) -> Certificate | None:
    if not problem.convex:
        return None
    with np.errstate(all="ignore"):  # a diverged run may hold anything
        return certify(problem, result.coefficients, result.dual, result.analysis_dual)


def _why_zero(problem: Problem, result: SolverResult) -> str:
    """Why a method without certificate came back with nothing, if that is plain to see."""
    if problem.convex or np.any(result.coefficients) or not np.any(problem.y):
        return ""
    if np.any(problem.operator.adjoint(np.asarray(problem.y))):
        return ""
    return "no column of A correlates with y, so nothing fits better than 0"


def _is_better(found: Recovery, best: Recovery) -> bool:
    def badness(r: Recovery) -> float:
        worst = max(r.gap or 0.0, r.infeasibility or 0.0)
        return worst if np.isfinite(worst) else np.inf

    return badness(found) < badness(best)


def _zero_if_optimal(
    problem: Problem, tol: float
) -> tuple[SolverResult, Certificate | None, str] | None:
    """An answer known beforehand, if it is the optimum: 0 for y = 0 or lam >= lam_max, mostly."""
    for c, what in problem.simple_answers():
        if not problem.convex:
            return None if np.any(problem.y) else (SolverResult(c, n_products=0), None, what)
        at_zero = not np.any(c)
        b = problem.target.reshape(len(problem.target), -1)
        if at_zero and problem.loss.violation(-b).max() > 0:
            continue
        certificate = certify(problem, c, problem.target if at_zero else None)
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
    stopped: bool = False,
) -> Recovery:
    c = np.asarray(result.coefficients)
    status, detail = _judge(problem, result, certificate, tol)
    size = certificate.residual_norm if certificate else _residual_norm(problem, c)
    support = support_of(c)
    fitted = debiased(problem, c) if debias else None
    impossible = status in (Status.INFEASIBLE, Status.UNBOUNDED)  # no answer is near an optimum
    advice = status.value
    if stopped and not status.ok:
        advice = "stopped by the callback before the tolerance: let it go on, or loosen tol"
    elif status is Status.STALLED and name.startswith("cvxpy"):
        advice = "no further progress above the tolerance: loosen tol, or scale the columns of A"
    return Recovery(
        x=_back(problem, problem.signal(c)),
        coefficients=_back(problem, c),
        support=support,
        status=status,
        objective=certificate.objective if certificate else size,
        residual_norm=size,
        gap=None if certificate is None or impossible else certificate.gap,
        infeasibility=certificate.infeasibility if certificate else None,
        dual=_back(problem, certificate.dual) if certificate else None,
        dual_objective=certificate.dual_objective if certificate else None,
        debiased=None if fitted is None else _back(problem, problem.signal(fitted)),
        n_iter=result.n_iter,
        n_products=result.n_products or 0,
        seconds=0.0,
        history=result.history,
        solver=name,
        why=why,
        message=f"{detail}{advice}",
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
    measured = problem.residual_bound is not None
    if result.status in (Status.INFEASIBLE, Status.UNBOUNDED) and not measured:
        return result.status, "by the solver's word alone: "
    lost = result.status in (Status.OPTIMAL, Status.CONVERGED, Status.INFEASIBLE)
    return (Status.STALLED if lost else result.status), figures


def _distance_if_infeasible(problem: Problem, tol: float) -> float:
    """Distance from y to what `A c` can be within the bounds, if it rules out every c; else 0."""
    if (allowed := problem.residual_bound) is None:
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
    A, box = problem.operator, problem.box
    small = A.is_dense and A.shape[0] * A.shape[1] <= 2**24
    if box is not None and not small:
        return 0.0
    if box is not None:
        method = "bvls" if A.shape[1] <= 1000 else "trf"
        c = lsq_linear(A.to_dense(), y, box, tol=1e-14, method=method).x
    elif small:
        c = np.linalg.lstsq(A.to_dense(), y, rcond=None)[0]
    else:
        dtype = np.result_type(A.dtype, y)
        system = LinearOperator(A.shape, matvec=A.forward, rmatvec=A.adjoint, dtype=dtype)
        c = lsqr(system, y, atol=1e-14, btol=1e-14, iter_lim=2000)[0]
    r = y - A.forward(c)
    size, L = float(np.linalg.norm(r)), A.norm() ** 2 or 1.0
    uphill = A.adjoint(r) / L
    moved = uphill if box is None else np.clip(c + uphill, *box) - c
    settled = np.linalg.norm(moved) * np.sqrt(L) <= 1e-6 * size  # else a slow fit looks like a gap
    return size if settled else 0.0


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


def _warn(problem: Problem, tol: float) -> None:
    A = problem.operator
    if A.is_dense:
        return
    if not A.trusted and (error := A.dot_test) > 1e-5:
        text = f"{A.name}: the adjoint fails the dot test with relative error {error:.1e}"
        warnings.warn(f"{text}; results cannot be trusted, correct rmatvec", stacklevel=3)
    if A.dtype in (np.float32, np.complex64) and tol < 1e-6:
        text = f"{A.name} computes in {A.dtype}, which cannot reach the tolerance {tol:g}"
        warnings.warn(f"{text}; pass tol=1e-5 or a float64 operator", stacklevel=3)
