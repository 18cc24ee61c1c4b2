"""What every solver does alike: limits, callbacks, counts, and what it says of them."""

import dataclasses
import sys
from functools import cache

import numpy as np
import pytest
from sensing_cases import RUNS

from lowrank.errors import InputError
from lowrank.sensing import (
    MCP,
    SOLVERS,
    BasisPursuit,
    HuberLasso,
    KSparse,
    Lasso,
    LogisticLasso,
    OneBit,
    PosteriorMean,
    SolverResult,
    Status,
    operators,
    recover,
    solve,
)
from lowrank.sensing.solve import _run
from lowrank.sensing.solvers.choose import _candidates

CHOICE, RUN = sys.modules[_candidates.__module__], sys.modules[_run.__module__]
OPEN = (Status.MAX_ITER, Status.OPTIMAL, Status.CONVERGED)


@cache
def problem_of(name):
    return RUNS[name]()


@cache
def whole_run(name):
    return solve(problem_of(name), name)


def batch_of(problem):
    """The same problem for two signals, where its solver takes several."""
    y = np.asarray(problem.y)
    if problem.analysis is not None or isinstance(problem, MCP | LogisticLasso | HuberLasso):
        pytest.skip("this kind takes one signal at a time")
    return dataclasses.replace(problem, y=np.stack([y, y[::-1]], axis=1))


def test_every_solver_has_a_row():
    assert sorted(RUNS) == sorted(SOLVERS)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("max_iter", [1, 2, 3])
@pytest.mark.parametrize("name", SOLVERS)
def test_max_iter_is_honoured(name, max_iter):
    result = solve(problem_of(name), name, max_iter=max_iter)
    assert result.n_iter <= max_iter
    assert result.status in OPEN, result
    if whole_run(name).n_iter > max_iter:
        assert result.status is Status.MAX_ITER
        assert result.n_iter == max_iter


@pytest.mark.parametrize("name", [n for n in SOLVERS if n not in ("one_bit", "amp")])
def test_rows_iterate(name):
    assert whole_run(name).n_iter >= 2  # else the sweep above shows nothing


@pytest.mark.parametrize("name", SOLVERS)
def test_a_limit_that_does_not_bind_changes_nothing(name):
    free = whole_run(name)
    if free.status is Status.MAX_ITER:
        pytest.skip("it ran into its own limit")
    bound = solve(problem_of(name), name, max_iter=free.n_iter + 1)
    np.testing.assert_allclose(bound.x, free.x, atol=1e-6 if name == "cvxpy" else 0)
    assert bound.n_iter == free.n_iter


@pytest.mark.one_in(3)
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_callback_sees_every_iteration_in_the_problem_s_shape(name, batch):
    problem = batch_of(problem_of(name)) if batch else problem_of(name)
    if SOLVERS[name]().refuses(problem):
        pytest.skip("takes one signal at a time")
    seen = []
    result = solve(problem, name, callback=lambda k, c: seen.append((k, c.shape)))
    assert {shape for _, shape in seen} == {problem.unknown_shape}
    numbers = [k for k, _ in seen]
    if name == "cvxpy":  # whose backends are done before they are heard of
        assert len(numbers) == (2 if batch else 1)
        assert numbers == sorted(set(numbers))
        return
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) <= result.n_iter * (2 if batch else 1)
    assert len(numbers) >= result.n_iter - 1  # the last is not shown where it ends the run


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_callback_stops_the_run(name, batch, stop):
    problem = batch_of(problem_of(name)) if batch else problem_of(name)
    if SOLVERS[name]().refuses(problem):
        pytest.skip("takes one signal at a time")
    seen = []
    result = solve(problem, name, callback=lambda k, c: seen.append(c) or len(seen) == stop)
    if len(seen) < stop:
        assert result.status in OPEN
        return
    assert len(seen) == stop
    np.testing.assert_allclose(result.coefficients, seen[-1], atol=1e-9)
    if not result.status.ok:
        assert result.status is Status.MAX_ITER
        assert "stopped by the callback" in result.message
        assert "raise max_iter" not in result.message


@pytest.mark.parametrize("name", SOLVERS)
def test_products_are_counted(name):
    result = whole_run(name)
    assert result.n_products > 0 or name == "cvxpy"  # which holds the matrix, and multiplies none


def test_a_solver_without_a_limit_says_so():
    problem = problem_of("one_bit")
    assert "one_bit has no max_iter" in solve(problem, max_iter=3).why
    assert "one_bit has no tol and no max_iter" in solve(problem, tol=1e-6, max_iter=3).why
    assert "has no" not in solve(problem).why


class Counting:
    """A solver that is no dataclass: it answers zero, after as many products as it is told."""

    solves = (BasisPursuit,)
    max_iter = 7

    def __init__(self, products=3):
        self.products = products

    def refuses(self, problem):
        return None

    def solve(self, problem, *, x0=None, callback=None):
        for _ in range(self.products):
            problem.operator.adjoint(np.asarray(problem.y))
        n_iter = min(self.max_iter, 7)
        return SolverResult(np.zeros(problem.unknown_shape), status=Status.MAX_ITER, n_iter=n_iter)


def test_a_solver_that_is_no_dataclass_works():
    problem = BasisPursuit(np.eye(3), [1.0, 2.0, 3.0])
    solver = Counting(5)
    result = solve(problem, solver, max_iter=2, tol=1e-4)
    assert (result.n_iter, result.n_products) == (2, 5)
    assert result.solver == "Counting(max_iter=2, products=5)"
    assert "Counting has no tol" in result.why
    assert (solver.max_iter, Counting.max_iter) == (7, 7)  # a copy was told
    by_class = recover(np.eye(3), [1.0, 2.0, 3.0], solver=Counting)
    assert (by_class.n_iter, by_class.n_products) == (7, 3)


def test_a_callback_that_is_not_called_is_said():
    result = solve(BasisPursuit(np.eye(3), np.ones(3)), Counting(), callback=lambda k, c: False)
    assert "Counting has no callback" in result.why


@pytest.mark.parametrize("solver", [dict, 3, object()])
def test_what_is_no_solver_gets_a_sentence(solver):
    with pytest.raises(InputError, match="is neither a name nor a solver: it has no solves"):
        recover(np.eye(3), np.ones(3), solver=solver)


def test_the_cost_of_all_that_were_tried_is_counted(monkeypatch):
    monkeypatch.setitem(SOLVERS, "first", Counting)
    monkeypatch.setattr(CHOICE, "AUTO", ("first", "exact_l1"))
    A = np.random.default_rng(0).standard_normal((10, 20))
    problem = BasisPursuit(A, A[:, 3] - A[:, 5])
    alone = solve(problem, "exact_l1")
    both = solve(problem)
    assert both.status is Status.OPTIMAL
    assert both.solver == "exact_l1()"
    assert both.n_iter == alone.n_iter + 7
    assert both.n_products == alone.n_products + 3
    monkeypatch.setattr(CHOICE, "AUTO", ("first", "first"))
    worse = solve(problem)
    assert (worse.n_iter, worse.n_products) == (14, 6)


def test_seconds_are_those_of_all_that_were_tried(monkeypatch):
    times = iter(range(0, 100, 10))
    monkeypatch.setitem(SOLVERS, "first", Counting)
    monkeypatch.setattr(CHOICE, "AUTO", ("first", "exact_l1"))
    monkeypatch.setattr(RUN.time, "perf_counter", lambda: next(times))
    A = np.random.default_rng(0).standard_normal((10, 20))
    assert solve(BasisPursuit(A, A[:, 3])).seconds == 20


def test_a_solver_s_limit_is_each_signal_s():
    A = operators.gaussian(20, 40, seed=0).to_dense()
    Y = A @ np.eye(40)[:, :3]
    signs = OneBit(A, np.sign(Y), 2.0)
    for problem in (Lasso(A, Y, 0.01), KSparse(A, Y, 3), PosteriorMean(A, Y), signs):
        for name in (n for n, cls in SOLVERS.items() if type(problem) in cls.solves):
            if SOLVERS[name]().refuses(problem) is None:
                result = solve(problem, name, max_iter=4)
                assert result.n_iter <= 4, name
