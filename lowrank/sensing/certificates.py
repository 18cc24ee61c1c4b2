"""Proof of optimality for every convex problem: primal value, feasible dual point, gap.

For `min_c f(M c - b) + g(c)` any `v` gives the lower bound

    D(v) = Re <v, b> - f*(-v) - g*(M^H v),

so `P(c) - D(v)` bounds how far c is from optimal. A candidate `v` from a solver is scaled to the
best feasible point on its ray, hence nothing a solver claims has to be believed. For an analysis
term `g(D c)` a second variable `p` must satisfy `M^H v = D^H p`; a candidate that does not is moved
to the nearest pair that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.sparse.linalg import LinearOperator, lsqr

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import BestSubset
from lowrank.sensing.terms import L1, Term

JOINED = 1e-9
"""Size of `M^H v - D^H p`, relative to `||M|| ||v||`, up to which a pair counts as feasible."""


CLOSED = 1e-13
"""Relative gap at which no better dual point is looked for: rounding, and below any tolerance."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """What is proven about a point, whoever computed it.

    Attributes:
        objective: primal value, summed over a batch.
        dual_objective: proven lower bound of the minimum, summed over a batch.
        gap: `|P + price - D| / max(|P|, |D|)`, the worst over a batch; the price is what the
            violation of a data constraint would cost at the dual point, `||v|| (||r|| - epsilon)`,
            so that no infeasible point looks optimal. Where the minimum may be 0 it is measured
            against `Problem.gap_floor` at least: `1/2 ||b||^2` for the constrained LASSO, or 2e-8
            of `tau max_j ||a_j|| ||b||` where that is more; a millionth of `1/2 ||b||^2` for
            penalised analysis, 1e-5 of `||D|| ||b|| / ||A||` for constrained.
        infeasibility: violation of the constraints relative to the measurements, the worst over a
            batch.
        dual: the feasible dual point, of the shape of the loss's argument; None where branch and
            bound has proven the bound.
        residual_norm: `||A x - y||_2`.
    """

    objective: float
    dual_objective: float
    gap: float
    infeasibility: float
    dual: Array | None
    residual_norm: float

    def __repr__(self) -> str:
        figures = f"gap {self.gap:.1e}, infeasibility {self.infeasibility:.1e}"
        bounds = f"objective {self.objective:.6g}, at least {self.dual_objective:.6g}"
        return f"Certificate({figures}; {bounds})"

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
    fitted = problem.design.forward(c) if c.any() else 0  # no product where c = 0
    r = _columns(fitted - problem.target)
    if problem.analysis is not None:
        return _certify_analysis(problem, problem.analysis, c, r, dual, analysis_dual)
    primal = _summed(problem, problem.loss.value(r)) + problem.penalty.value(_columns(c))
    values, best = _best_dual(problem, _candidates(problem, c, r, dual), primal)
    violation = _violation(problem, r, problem.penalty.violation(_columns(c)))
    plain = problem.design is problem.operator and problem.target is problem.y
    residual = r if plain else _columns(problem.operator.forward(c) - problem.y)
    price = problem.loss.violation(r) * problem.loss.price(best)
    return _certificate(problem, primal, values, violation, best, residual, price)


def bounded(problem: BestSubset, coefficients: Array, bound: float) -> Certificate:
    """What is proven where a solver has bounded a minimum that is not convex.

    Args:
        problem: a best subset problem.
        coefficients: `c` (p,).
        bound: lower bound of the minimum.

    Returns:
        The certificate, with the objective computed here, and without dual point.
    """
    objective = problem.value(coefficients)
    floor = problem.gap_floor
    gap = relative_gap(np.array([objective]), np.array([bound]), floor)
    residual = problem.operator.forward(coefficients) - problem.target
    return Certificate(
        objective=objective,
        dual_objective=bound,
        gap=float(gap[0]) if np.isfinite(objective) else np.inf,
        infeasibility=0.0 if np.isfinite(objective) else np.inf,
        dual=None,
        residual_norm=float(np.linalg.norm(residual)),
    )


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
    floor = problem.gap_floor
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


def _violation(problem: Problem, r: Array, of_penalty: Array) -> Array:
    size = problem.loss.size(_columns(problem.target))
    of_loss = problem.loss.violation(r) / np.where(size > 0, size, 1)
    return np.maximum(_summed(problem, of_loss), of_penalty)


def _candidates(problem: Problem, c: Array, r: Array, dual: Array | None) -> list[Array]:
    """The dual candidate, and what the residual suggests where that may do."""
    given = [] if dual is None else [_columns(np.asarray(dual))]
    if given and not problem.loss.residual_is_dual:
        return given
    return [*given, _suggested_dual(problem, c, r)]


def _suggested_dual(problem: Problem, c: Array, r: Array) -> Array:
    """A subgradient of the loss, up to scale; with no residual to speak of, the least-norm `v`
    whose correlations are the signs on the support.
    """
    speaks = np.linalg.norm(r) > 1e-6 * np.linalg.norm(problem.target)
    if problem.loss.residual_is_dual or speaks:
        return -problem.loss.subgradient(r)
    return _sign_dual(problem, _columns(c))


def _sign_dual(problem: Problem, c: Array) -> Array:
    m = problem.design.shape[0]
    v = np.zeros((m, c.shape[1]), dtype=np.result_type(c, problem.design.dtype))
    signs = problem.penalty.subgradient(c)
    for j, column in enumerate(c.T):
        J = np.flatnonzero(np.abs(column) > 1e-9 * np.abs(column).max(initial=0))[:m]
        M_J = problem.design.columns(J)
        v[:, j] = np.linalg.lstsq(M_J.conj().T, signs[J, j], rcond=None)[0]
    return v


def _best_dual(problem: Problem, candidates: list[Array], primal: Array) -> tuple[Array, Array]:
    """The best dual value of every column over the candidates, and the points behind it.

    Each candidate costs a product, so none is tried once those before it close the gap.
    """
    if problem.only_dual is not None:
        v = _columns(problem.only_dual)
        return -problem.penalty.conjugate(_columns(problem.design.adjoint(v))), v
    b = _columns(problem.target)
    dtype = np.result_type(b, *candidates)
    best = np.zeros(b.shape, dtype=dtype)
    values = np.zeros(1 if problem.coupled else b.shape[1])  # v = 0 is feasible, of value 0
    values -= problem.penalty.conjugate(np.zeros((problem.n_unknowns, b.shape[1])))
    for tried, v in enumerate(candidates):
        if tried and (np.abs(primal - values) <= CLOSED * np.abs(primal)).all():
            break
        if not np.isfinite(v).all():
            continue
        v = problem.admissible(v)
        scale, value = scaled_dual(problem, v, _columns(problem.design.adjoint(v)))
        value = _sure(problem, value, scale * v)
        better = value > values
        best = np.where(better, scale * v, best)
        values = np.where(better, value, values)
    return values, best


def _sure(problem: Problem, value: Array, v: Array) -> Array:
    """Dual values, less what rounding of `<v, b>` may have added where v is huge."""
    sizes = np.linalg.norm(v, axis=0) * np.linalg.norm(_columns(problem.target), axis=0)
    unsure = np.finfo(float).eps * _summed(problem, sizes)
    return np.asarray(value - np.where(unsure > CLOSED * np.abs(value), unsure, 0))


def scaled_dual(problem: Problem, v: Array, z: Array) -> tuple[Array, Array]:
    """The best feasible multiple of `v`, with `z = M^H v` (or `p` for an analysis term).

    Args:
        problem: a convex problem other than `OneBit`.
        v: candidates (size, batch).
        z: what the penalty's conjugate sees, (p, batch).

    Returns:
        scales `a >= 0` and dual values `D(a v)`, each (batch,), or (1,) for a coupled problem.
    """
    f, g, b = problem.loss, problem.penalty, _columns(problem.target)
    correlation = _summed(problem, (v.conj() * b).real.sum(axis=0))
    cap = np.minimum(g.cap(z), f.cap(-v).min(keepdims=True) if problem.coupled else f.cap(-v))
    curvature, straight = f.curvature(-v), f.is_ray_linear
    linear = f.conjugate(-v) if straight else np.zeros(v.shape[1])
    slope = correlation - _summed(problem, np.where(curvature > 0, 0, linear))
    quadratic = _summed(problem, curvature)
    if g.is_ray_linear and straight:
        slope = slope - g.conjugate(z)
        with np.errstate(divide="ignore", invalid="ignore"):
            a = np.where(quadratic > 0, slope / quadratic, np.inf)
        a = np.where(slope > 0, np.minimum(a, cap), 0)
        a = np.where(np.isfinite(a), a, 1)  # a dual ray: the problem is infeasible or b is 0
        return a, a * slope - a**2 * quadratic / 2
    found = []
    for j in range(v.shape[1]):
        bent: list[tuple[Term, Array]] = [(g, z)] if straight else [(g, z), (f, -v)]
        kinks = np.sort(g.kinks(z[:, j])) if isinstance(g, L1) else z[:0, j]
        at = partial(_conjugates_at, bent, j)
        # where the value rests, rounding, of which `_sure` makes a price, tells the least multiple
        price = np.finfo(float).eps * float(np.linalg.norm(v[:, j]) * np.linalg.norm(b[:, j]))
        scale, least = _best_scale(slope[j] - price, quadratic[j], cap[j], at, kinks)
        found.append((scale, least + scale * price))
    scales, values = np.array(found).T
    return scales, values


def _conjugates_at(bent: list[tuple[Term, Array]], j: int, a: float) -> float:
    return sum(float(term.conjugate(a * z[:, j : j + 1])[0]) for term, z in bent)


def _best_scale(
    slope: float, quadratic: float, cap: float, conjugate: Any, kinks: Array
) -> tuple[float, float]:
    """Maximise the concave `a slope - a^2 quadratic / 2 - g*(a z)` over 0 <= a <= cap.

    A maximum is often where the conjugate bends, steeply where bounds are far off: no search by
    values alone comes close enough, so the kinks, in ascending order, are tried too.
    """

    def value(a: float) -> float:
        return a * slope - a * a * quadratic / 2 - float(conjugate(a))

    high = 1.0
    while high < cap and high < 2.0**40 and value(2 * high) > value(high):
        high *= 2
    high = min(2 * high, cap)
    found = minimize_scalar(lambda a: -value(a), bounds=(0, high), method="bounded")
    tries = [0.0, min(1.0, high), high, float(found.x)]
    first, last = 0, int(np.searchsorted(kinks, high)) - 1
    while first < last:  # the function is concave along the kinks
        middle = (first + last) // 2
        rises = value(kinks[middle]) < value(kinks[middle + 1])
        first, last = (middle + 1, last) if rises else (first, middle)
    tries += [float(kinks[first])] if last >= 0 else []
    best = max(tries, key=value)
    return best, value(best)


def _certify_analysis(
    problem: Problem, D: Operator, c: Array, r: Array, dual: Array | None, p: Array | None
) -> Certificate:
    values = problem.loss.value(r) + problem.penalty.value(_columns(D.forward(c)))
    v = -r[:, 0] if dual is None else np.asarray(dual)
    p = np.zeros(D.shape[0], dtype=v.dtype) if p is None else np.asarray(p)
    best, at = np.zeros(1), np.zeros_like(_columns(v))  # v = 0 is feasible, of value 0
    for pair in ((v, p), _joined(problem.design, D, v, p)):
        if np.linalg.norm(pair[0]) < JOINED * np.linalg.norm(v):
            continue  # what is left of v is rounding noise, which scaling would blow up
        value, point = _pair_value(problem, D, c, *pair)
        best, at = (value, point) if value > best else (best, at)
    price = problem.loss.violation(r) * problem.loss.price(at)
    return _certificate(problem, values, best, _violation(problem, r, np.zeros(1)), at, r, price)


def _pair_value(problem: Problem, D: Operator, c: Array, v: Array, p: Array) -> tuple[Array, Array]:
    """Dual value at the best multiple of a pair, and that `v`; nothing unless `M^H v = D^H p`."""
    M = problem.design
    rest = float(np.linalg.norm(M.adjoint(v) - D.adjoint(p)))
    if not rest <= JOINED * M.norm() * float(np.linalg.norm(v)):
        return np.zeros(1), np.zeros_like(_columns(v))
    scale, value = scaled_dual(problem, _columns(v), _columns(p))
    value = _sure(problem, value, scale * _columns(v))
    return value - scale * rest * np.linalg.norm(c), scale * _columns(v)


def _joined(M: Operator, D: Operator, v: Array, p: Array) -> tuple[Array, Array]:
    """The nearest pair with `M^H v = D^H p`: `(v + M t, p - D t)` where `t` minimises its size."""
    m = M.shape[0]
    K = LinearOperator(
        (m + D.shape[0], M.shape[1]),
        matvec=lambda t: np.concatenate([M.forward(t), D.forward(t)]),
        rmatvec=lambda z: M.adjoint(z[:m]) + D.adjoint(z[m:]),
        dtype=np.result_type(M.dtype, D.dtype, v, p),
    )
    t = lsqr(K, np.concatenate([-v, p]), atol=1e-15, btol=1e-15, conlim=0, iter_lim=2000)[0]
    return v + M.forward(t), p - D.forward(t)
