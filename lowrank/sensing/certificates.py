"""Proof of optimality for every convex problem: primal value, feasible dual point, gap.

For `min_c f(M c - b) + g(c)` any `v` gives the lower bound

    D(v) = Re <v, b> - f*(v) - g*(M^H v),

so `P(c) - D(v)` bounds how far c is from optimal. A candidate `v` from a solver is scaled to the
best feasible point on its ray, hence nothing a solver claims has to be believed. For an analysis
term `g(D c)` a second variable `p` must satisfy `M^H v = D^H p`; a candidate that does not is moved
to the nearest pair that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
from scipy.optimize import brentq, minimize_scalar
from scipy.sparse.linalg import LinearOperator, cg

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import ConstrainedLasso
from lowrank.sensing.problems.other import OneBit
from lowrank.sensing.problems.structured import Analysis, AnalysisLasso
from lowrank.sensing.terms import HalfSquare, Norm1, Norm2, Term, soft

TIE = 1e-12
"""Entries this close, relatively, count as equal in 1-bit recovery."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is proven about a point, whoever computed it.

    Attributes:
        objective: primal value, summed over a batch.
        dual_objective: proven lower bound of the minimum, summed over a batch.
        gap: `|P + price - D| / max(|P|, |D|)`, the worst over a batch; the price is what the
            violation of a data constraint would cost at the dual point, `||v|| (||r|| - epsilon)`,
            so that no infeasible point looks optimal. The constrained LASSO, whose minimum may be
            0, is measured against `1/2 ||b||^2`.
        infeasibility: violation of the constraints relative to the measurements, the worst over a
            batch.
        dual: the feasible dual point, of the shape of the loss's argument.
        residual_norm: `||A x - y||_2`.
    """

    objective: float
    dual_objective: float
    gap: float
    infeasibility: float
    dual: Array
    residual_norm: float

    def holds(self, tol: float) -> bool:
        """Whether the point is optimal and feasible to `tol`."""
        return bool(self.gap <= tol and self.infeasibility <= tol)


def certify(
    problem: Problem,
    coefficients: Array,
    dual: Array | None = None,
    analysis_dual: Array | None = None,
) -> Certificate:
    """Primal value, best dual value found and relative gap at a point of a convex problem.

    Args:
        problem: a convex problem.
        coefficients: `c`, (p,) or (p, batch).
        dual: candidate `v` of the shape of `problem.target`, any scale; None takes what the
            residual suggests.
        analysis_dual: candidate `p` (q,) for the analysis problems.

    Returns:
        The certificate. The gap is valid for any candidate; a poor one makes it large.

    Raises:
        InputError: the problem is not convex, or shapes differ.

    Example:
        >>> from lowrank.sensing import Lasso
        >>> certify(Lasso(np.eye(2), [3.0, 0.5], lam=1.0), np.array([2.0, 0.0])).gap
        0.0

    Source: Fenchel-Rockafellar duality; scaling of the residual: Bonnefoy et al. 2015, section II.
    """
    if not problem.convex:
        problem_text = f"{type(problem).__name__} is not convex, so no dual proves its answer"
        raise InputError("certificate", problem_text, "compare with a convex formulation")
    c = np.asarray(coefficients)
    if c.shape != problem.unknown_shape:
        text = f"shape {c.shape}, and the problem has {problem.unknown_shape}"
        raise InputError("coefficients", text, "pass the coefficients in the basis")
    if isinstance(problem, OneBit):
        return _certify_one_bit(problem, c)
    r = _columns(problem.design.forward(c) - problem.target)
    if isinstance(problem, Analysis | AnalysisLasso):
        return _certify_analysis(problem, c, r, dual, analysis_dual)
    candidates = [] if dual is None else [_columns(np.asarray(dual))]
    candidates += _suggested_duals(problem, c, r) if _residual_is_dual(problem, dual) else []
    values, best = _best_dual(problem, candidates)
    primal = _summed(problem, problem.loss.value(r)) + problem.penalty.value(_columns(c))
    violation = _violation(problem, r, problem.penalty.violation(_columns(c)))
    residual = r if problem.design is problem.operator else _plain_residual(problem, c)
    price = problem.loss.violation(r) * problem.loss.price(best)
    return _certificate(problem, primal, values, violation, best, residual, price)


def relative_gap(primal: Array, dual: Array, floor: Any = 0.0) -> Array:
    """`|P - D| / max(|P|, |D|, floor)`, 0 where both are 0."""
    scale = np.maximum(np.maximum(np.abs(primal), np.abs(dual)), floor)
    return np.asarray(np.abs(primal - dual) / np.where(scale > 0, scale, 1))


def _certificate(
    problem: Problem,
    primal: Array,
    dual: Array,
    violation: Array,
    v: Array,
    residual: Array,
    price: Array | float = 0.0,
) -> Certificate:
    shares = {ConstrainedLasso: 1.0, AnalysisLasso: 1e-8}
    share = shares.get(type(problem), 0.0)
    floor = share * np.linalg.norm(_columns(problem.target), axis=0) ** 2 / 2 if share else 0.0
    gap = relative_gap(primal + price, dual, floor)
    finite = np.isfinite(gap) & np.isfinite(violation)
    return Certificate(
        objective=float(primal.sum()),
        dual_objective=float(dual.sum()),
        gap=float(gap.max()) if finite.all() else np.inf,
        infeasibility=float(violation.max()) if finite.all() else np.inf,
        dual=v.reshape(np.shape(problem.target)),
        residual_norm=float(np.linalg.norm(residual)),
    )


def _columns(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _summed(problem: Problem, values: Array) -> Array:
    """Losses of one coupled problem add up; independent columns stay apart."""
    return values.sum(keepdims=True) if problem.coupled else values


def _plain_residual(problem: Problem, c: Array) -> Array:
    return _columns(problem.operator.forward(c) - problem.y)


def _violation(problem: Problem, r: Array, of_penalty: Array) -> Array:
    size = np.abs(_columns(problem.target)).max(axis=0)
    if not isinstance(problem.loss, HalfSquare | Norm1 | Norm2) and problem.design is (
        problem.operator
    ):
        size = np.linalg.norm(_columns(problem.target), axis=0)
    of_loss = problem.loss.violation(r) / np.where(size > 0, size, 1)
    return np.maximum(_summed(problem, of_loss), of_penalty)


def _residual_is_dual(problem: Problem, dual: Array | None) -> bool:
    return dual is None or isinstance(problem.loss, HalfSquare | Norm2)


def _suggested_duals(problem: Problem, c: Array, r: Array) -> list[Array]:
    """`-r`, a subgradient of every loss here up to scale; with no residual to speak of, the
    least-norm `v` whose correlations are the signs on the support.
    """
    size = np.linalg.norm(problem.target)
    if isinstance(problem.loss, HalfSquare | Norm2) or np.linalg.norm(r) > 1e-6 * size:
        return [-r if not isinstance(problem.loss, Norm1) else -r / np.maximum(np.abs(r), 1e-300)]
    return [_sign_dual(problem, _columns(c))]


def _sign_dual(problem: Problem, c: Array) -> Array:
    m = problem.design.shape[0]
    v = np.zeros((m, c.shape[1]), dtype=np.result_type(c, problem.design.dtype))
    weights = np.asarray(getattr(problem, "weights", 1.0)) * np.ones(c.shape[0])
    for j, column in enumerate(c.T):
        J = np.flatnonzero(np.abs(column) > 1e-9 * np.abs(column).max(initial=0))
        signs = weights[J] * column[J] / np.abs(column[J])
        M_J = problem.design.columns(J[:m])
        v[:, j] = np.linalg.lstsq(M_J.conj().T, signs[:m], rcond=None)[0]
    return v


def _best_dual(problem: Problem, candidates: list[Array]) -> tuple[Array, Array]:
    """The best dual value of every column over the candidates, and the points behind it."""
    b = _columns(problem.target)
    dtype = np.result_type(b, *candidates)
    best = np.zeros(b.shape, dtype=dtype)
    values = np.zeros(1 if problem.coupled else b.shape[1])  # v = 0 is feasible, of value 0
    values -= problem.penalty.conjugate(np.zeros((problem.n_unknowns, b.shape[1])))
    for v in candidates:
        if not np.isfinite(v).all():
            continue
        scale, value = scaled_dual(problem, v, _columns(problem.design.adjoint(v)))
        better = value > values
        best = np.where(better, scale * v, best)
        values = np.where(better, value, values)
    return values, best


def scaled_dual(problem: Problem, v: Array, z: Array) -> tuple[Array, Array]:
    """The best feasible multiple of `v`, with `z = M^H v` (or `p` for an analysis term).

    Args:
        problem: a convex problem other than `OneBit`.
        v: candidates (size, batch).
        z: what the penalty's conjugate sees, (p, batch).

    Returns:
        scales `a >= 0` and dual values `D(a v)`, each (batch,), or (1,) for a coupled problem.
    """
    f, g = problem.loss, problem.penalty
    correlation = _summed(problem, (v.conj() * _columns(problem.target)).real.sum(axis=0))
    cap = np.minimum(g.cap(z), f.cap(v).min(keepdims=True) if problem.coupled else f.cap(v))
    quadratic = (
        _summed(problem, 2 * f.conjugate(v)) if isinstance(f, HalfSquare) else np.zeros_like(cap)
    )
    slope = correlation - (0 if isinstance(f, HalfSquare) else _summed(problem, f.conjugate(v)))
    if _is_linear(g):
        slope = slope - g.conjugate(z)
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.where(quadratic > 0, slope / quadratic, np.inf)
        a = np.where(slope > 0, np.minimum(a, cap), 0)
        a = np.where(np.isfinite(a), a, 1)  # a dual ray: the problem is infeasible or b is 0
        return a, a * slope - a**2 * quadratic / 2
    columns = range(v.shape[1])
    found = [
        _best_scale(slope[j], quadratic[j], cap[j], partial(_conjugate_at, g, z, j))
        for j in columns
    ]
    scales, values = np.array(found).T
    return scales, values


def _is_linear(g: Term) -> bool:
    """Whether `g*(a z)` is linear in a, so that the best scale has a closed form."""
    return not (getattr(g, "bounded", False) or getattr(g, "ridge", 0.0) > 0) or _is_cone(g)


def _is_cone(g: Term) -> bool:
    """Whether the bounds are only 0 and infinite, where `g*` is 0 within the cap."""
    if getattr(g, "ridge", 0.0) > 0:
        return False
    bounds = (np.asarray(getattr(g, "lower", 0.0)), np.asarray(getattr(g, "upper", 0.0)))
    return all(bool(((bound == 0) | np.isinf(bound)).all()) for bound in bounds)


def _conjugate_at(g: Term, z: Array, j: int, a: float) -> float:
    return float(g.conjugate(a * z[:, j : j + 1])[0])


def _best_scale(slope: float, quadratic: float, cap: float, conjugate: Any) -> tuple[float, float]:
    """Maximise the concave `a slope - a^2 quadratic / 2 - g*(a z)` over 0 <= a <= cap."""

    def value(a: float) -> float:
        return a * slope - a * a * quadratic / 2 - float(conjugate(a))

    high = 1.0
    while high < cap and high < 2.0**40 and value(2 * high) > value(high):
        high *= 2
    high = min(2 * high, cap)
    found = minimize_scalar(lambda a: -value(a), bounds=(0, high), method="bounded")
    tries = [0.0, min(1.0, high), high, float(found.x)]
    best = max(tries, key=value)
    return best, value(best)


def _certify_analysis(
    problem: Analysis | AnalysisLasso, c: Array, r: Array, dual: Array | None, p: Array | None
) -> Certificate:
    D = cast(Operator, problem.D)
    Dx = D.forward(c)
    values = problem.loss.value(r) + problem.penalty.value(_columns(Dx))
    v = -r[:, 0] if dual is None else np.asarray(dual)
    p_start = np.zeros(D.shape[0], dtype=v.dtype) if p is None else np.asarray(p)
    v, p, rest = _joined(problem.design, D, v, p_start)
    scale, value = scaled_dual(problem, _columns(v), _columns(p))
    value = value - scale * np.linalg.norm(rest) * np.linalg.norm(c)  # what CG left undone
    keep = value > 0  # v = 0 is feasible, of value 0
    value, scale = np.where(keep, value, 0.0), np.where(keep, scale, 0.0)
    violation, dual = _violation(problem, r, np.zeros(1)), scale * _columns(v)
    price = problem.loss.violation(r) * problem.loss.price(dual)
    return _certificate(problem, values, value, violation, dual, r, price)


def _joined(M: Operator, D: Operator, v: Array, p: Array) -> tuple[Array, Array, Array]:
    """The nearest pair with `M^H v = D^H p`, and what remains of the difference.

    With `d = D^H p - M^H v` and `(M^H M + D^H D) t = d`, the pair is `v + M t` and `p - D t`.
    """

    def normal(t: Array) -> Array:
        return M.adjoint(M.forward(t)) + D.adjoint(D.forward(t))

    d = D.adjoint(p) - M.adjoint(v)
    n = M.shape[1]
    system = LinearOperator((n, n), matvec=normal, dtype=np.result_type(M.dtype, D.dtype, d))
    size = np.linalg.norm(M.adjoint(v)) + np.linalg.norm(D.adjoint(p))
    t, _ = cg(system, d, rtol=0, atol=1e-13 * size, maxiter=2000)
    v, p = v + M.forward(t), p - D.forward(t)
    return v, p, D.adjoint(p) - M.adjoint(v)


def one_bit_threshold(z: Array, radius: float) -> float:
    """The `t >= 0` with `||soft(z, t)||_1 = radius ||soft(z, t)||_2`, 0 if z is within.

    Soft thresholding at t gives the direction that maximises `<z, c>` over `||c||_2 <= 1`,
    `||c||_1 <= radius`. Where `radius^2` entries or more tie for the largest, t is the largest.
    """

    def excess(t: float) -> float:
        s = soft(z, t)
        return float(np.abs(s).sum() - radius * np.linalg.norm(s))

    if excess(0.0) <= 0:
        return 0.0
    size = np.abs(z)
    top = float(size.max())
    tied = size >= top * (1 - TIE)
    if np.sqrt(tied.sum()) >= radius:
        return top
    return float(brentq(excess, 0.0, size[~tied].max(), xtol=1e-15 * top, rtol=1e-15))


def _certify_one_bit(problem: OneBit, c: Array) -> Certificate:
    z = _columns(problem.operator.adjoint(np.asarray(problem.y)))
    c = _columns(c)
    primal = -(z * c).sum(axis=0)
    t = np.array([one_bit_threshold(column, problem.radius) for column in z.T])
    dual = -(np.linalg.norm(soft(z, t), axis=0) + problem.radius * t)
    excess = np.maximum(np.linalg.norm(c, axis=0) - 1, np.abs(c).sum(axis=0) / problem.radius - 1)
    residual = _plain_residual(problem, c.reshape(problem.unknown_shape))
    violation = np.maximum(excess, 0)
    return _certificate(problem, primal, dual, violation, np.asarray(problem.y), residual)
