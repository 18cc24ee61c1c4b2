"""Every solver against CVXPY on the objective, and by its certificate."""

from functools import cache

import numpy as np
import pytest
from scipy.linalg import cho_factor
from scipy.special import xlogy
from sensing_cases import MAY_STOP_SHORT, PROBLEMS, ZERO

from lowrank.sensing import (
    BPDN,
    SOLVERS,
    Analysis,
    AnalysisLasso,
    ConstrainedLasso,
    Lasso,
    OneBit,
    Status,
    operators,
    solve,
    sparse_signal,
)
from lowrank.sensing.solvers import admm

SAME = 1e-6
TOL = 1e-8


@cache
def problem_of(case):
    return PROBLEMS[case]()


@cache
def reference(case):
    return solve(problem_of(case), "cvxpy")


@cache
def automatic(case):
    return solve(problem_of(case))


def default_of(name, case):
    """What the solver answers by its own settings: where "auto" took it, auto's answer."""
    found = automatic(case)
    return found if found.solver == f"{name}()" else solve(problem_of(case), name)


PAIRS = [
    (name, case)
    for case in PROBLEMS
    for name, solver in SOLVERS.items()
    if name != "cvxpy"
    and type(problem_of(case)) in solver.solves
    and solver().refuses(problem_of(case)) is None
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("case", PROBLEMS)
def test_cvxpy_is_certified(case):
    result = reference(case)
    assert result.status is Status.OPTIMAL, result


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_agrees_with_cvxpy(name, case):
    short = any(word in case for word in MAY_STOP_SHORT.get(name, ()))
    result = solve(problem_of(case), name, max_iter=1000) if short else default_of(name, case)
    expected = reference(case)
    if short and result.status is not Status.OPTIMAL:
        assert result.status in (Status.MAX_ITER, Status.STALLED, Status.DIVERGED)
        return
    assert result.status is Status.OPTIMAL, result
    problem = problem_of(case)
    scale = abs(expected.objective)
    if isinstance(problem, ConstrainedLasso):
        scale = max(scale, np.linalg.norm(problem.y) ** 2 / 2)
    assert abs(result.objective - expected.objective) <= SAME * scale


@pytest.mark.parametrize("case", PROBLEMS)
def test_auto_is_certified_and_says_why(case):
    result = automatic(case)
    assert result.status is Status.OPTIMAL, result
    assert "first choice" in result.why
    recomputed_gap(problem_of(case), result)


def recomputed_gap(problem, result):
    """The gap from the definitions alone, with the dual point that the result holds."""
    if isinstance(problem, OneBit):
        return
    c, v = result.coefficients, result.dual
    A = problem.operator.to_dense()
    f, g = FORMULAS[type(problem).__name__](problem)
    primal = f(A, c) + g(c)
    assert primal == pytest.approx(result.objective, rel=1e-9, abs=1e-12)
    if isinstance(problem, Analysis | AnalysisLasso):
        assert result.dual_objective <= result.objective + 1e-7 * abs(result.objective)
        return
    assert result.dual_objective <= primal + 10 * TOL * max(abs(primal), 1)
    check_dual_feasible(problem, A, v)


def check_dual_feasible(problem, A, v):
    """For L1 problems: `|A^H v| <= w` on free coefficients, one-sided on non-negative ones."""
    kind = type(problem).__name__
    losses = ("LogisticLasso", "PoissonLasso", "HuberLasso", "QuantileLasso")
    if kind not in ("BasisPursuit", "BPDN", "Lasso", "SqrtLasso", "L1Fit", *losses) or (
        problem.bounded and not problem.nonneg
    ):
        return
    z = A.conj().T @ v
    z = np.maximum(z, 0) if problem.nonneg else np.abs(z)
    lam = getattr(problem, "lam", 1.0)
    weights = problem.weights if v.ndim == 1 else problem.weights[:, None]
    assert (z <= lam * weights * (1 + 1e-10)).all()


def _half(p):
    return lambda A, c: 0.5 * np.linalg.norm(A @ c - p.y) ** 2


def _l1(p, lam=1.0):
    return lambda c: lam * (np.abs(c).T @ p.weights).sum()


def _pinball(p, r):
    return np.where(r > 0, p.tau * r, (p.tau - 1) * r).sum()


def _huber(p, r):
    return np.where(r < p.delta, r**2 / 2, p.delta * r - p.delta**2 / 2).sum()


def _deviance(p, z):
    return (np.exp(z) - p.y * z + xlogy(p.y, p.y) - p.y).sum()


def _lengths(p, c):
    parts = (p.D.to_dense() @ c).reshape(p.components, -1)
    return np.linalg.norm(parts, axis=0).sum()


FORMULAS = {
    "BasisPursuit": lambda p: (lambda A, c: 0.0, _l1(p)),
    "BPDN": lambda p: (lambda A, c: 0.0, _l1(p)),
    "DantzigSelector": lambda p: (lambda A, c: 0.0, _l1(p)),
    "Lasso": lambda p: (_half(p), _l1(p, p.lam)),
    "ConstrainedLasso": lambda p: (_half(p), lambda c: 0.0),
    "ElasticNet": lambda p: (
        _half(p),
        lambda c: _l1(p, p.lam)(c) + p.ridge / 2 * np.linalg.norm(c) ** 2,
    ),
    "SqrtLasso": lambda p: (lambda A, c: np.linalg.norm(A @ c - p.y), _l1(p, p.lam)),
    "L1Fit": lambda p: (lambda A, c: np.abs(A @ c - p.y).sum(), _l1(p, p.lam)),
    "LogisticLasso": lambda p: (
        lambda A, c: np.log1p(np.exp(-p.y * (A @ c))).sum(),
        _l1(p, p.lam),
    ),
    "PoissonLasso": lambda p: (lambda A, c: _deviance(p, A @ c), _l1(p, p.lam)),
    "HuberLasso": lambda p: (lambda A, c: _huber(p, np.abs(A @ c - p.y)), _l1(p, p.lam)),
    "QuantileLasso": lambda p: (lambda A, c: _pinball(p, p.y - A @ c), _l1(p, p.lam)),
    "GroupLasso": lambda p: (
        _half(p),
        lambda c: (
            p.lam * sum(w * np.linalg.norm(c[p.groups == i]) for i, w in enumerate(p.weights))
        ),
    ),
    "JointSparse": lambda p: (
        _half(p),
        lambda c: p.lam * (p.weights * np.linalg.norm(c, axis=1)).sum(),
    ),
    "Analysis": lambda p: (lambda A, c: 0.0, lambda c: _lengths(p, c)),
    "AnalysisLasso": lambda p: (_half(p), lambda c: p.lam * _lengths(p, c)),
}


@pytest.mark.parametrize(("turn", "turned"), [(0, 0), (1j, 0), (0, 1j), (1j, 1j)])
@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_substitution_solves_with_either_factor(turn, turned, lower, batch):
    """Of matrices and of right-hand sides that are real or complex, each by itself."""
    rng = np.random.default_rng(0)
    A, r = (rng.standard_normal(shape) for shape in ((6, 9), (6, batch)))
    A, r = A + turn * A[::-1] if turn else A, r + turned * r[::-1] if turned else r
    N = np.eye(6) + A @ A.conj().T
    solved = admm._substitution(*cho_factor(N, lower=lower))
    np.testing.assert_allclose(solved(r), np.linalg.solve(N, r), rtol=1e-12)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)], ids=["wide", "tall"])
@pytest.mark.parametrize("solver", ["admm", "fista", "cvxpy"])
def test_a_real_matrix_takes_complex_measurements(shape, solver):
    A = np.random.default_rng(0).standard_normal(shape)
    problem = Lasso(A, A @ sparse_signal(shape[1], 3, seed=1, kind="complex"), 0.1)
    found = solve(problem, solver)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(solve(problem).objective, rel=SAME)


@pytest.mark.parametrize("case", ZERO)
def test_zero_is_certified_at_once(case):
    result = solve(ZERO[case]())
    assert result.status is Status.OPTIMAL
    assert not np.any(result.x)
    assert (result.solver, result.n_iter) == ("none", 0)
    assert result.support.size == 0


@pytest.mark.parametrize("name", ["fista", "admm", "spg"])
def test_unconverged_says_so(name):
    problem = problem_of("random: bpdn" if name == "spg" else "random: lasso")
    result = solve(problem, name, max_iter=3)
    assert result.status is Status.MAX_ITER
    assert "raise max_iter" in result.message
    assert result.gap > TOL


@pytest.mark.parametrize("name", ["fista", "admm", "spg"])
def test_callback_stops(name):
    seen = []
    problem = problem_of("random: bpdn" if name == "spg" else "random: lasso")
    result = solve(problem, name, callback=lambda k, c: seen.append(c.shape) or k == 5)
    assert seen == [(60,)] * 5
    assert result.status is Status.MAX_ITER


def test_warm_start_at_the_answer_is_quick():
    problem = problem_of("random: lasso")
    cold = solve(problem, "fista")
    warm = solve(problem, "fista", x0=cold.coefficients)
    assert warm.n_iter < cold.n_iter


def test_spg_records_no_gap_below_its_infeasibility():
    A = operators.gaussian(30, 60, seed=0)
    y = A @ sparse_signal(60, 4, seed=1)
    gaps = solve(BPDN(A, y, 0.01), "spg").history["gap"]
    assert gaps[0] > 0.5  # at c = 0 the price of feasibility alone is exact
    assert gaps[-1] <= 1e-8
