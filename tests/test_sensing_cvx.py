"""CVXPY as a solver: compiled once, any backend, refusals that help."""

import gc
import tracemalloc
import weakref

import numpy as np
import pytest

from lowrank.errors import InputError
from lowrank.sensing import BPDN, BasisPursuit, Lasso, Status, operators, solve, sparse_signal
from lowrank.sensing.solvers import cvx
from lowrank.sensing.solvers.cvx import CVXPY


@pytest.fixture(name="instance")
def random_instance():
    A = operators.gaussian(20, 50, seed=0).to_dense()
    return A, A @ sparse_signal(50, 4, seed=1)


@pytest.fixture
def few_objects():
    """Only objects that the test makes are collected: the others of a long run are many."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_statements_follow_the_parameter_rules(instance):
    from sensing_cases import PROBLEMS

    for name in [n for n in PROBLEMS if n.startswith(("random", "complex"))]:
        structure = cvx._Structure.of(PROBLEMS[name]())
        assert cvx._Compiled(structure).statement.is_dcp(dpp=True), name


def test_new_measurements_reuse_the_statement(instance):
    A, y = instance
    solve(Lasso(A, y, 0.1), "cvxpy")
    statement = cvx._SHELF.held.statement
    result = solve(Lasso(A.copy(), -2 * y, 0.3, weights=np.arange(1, 51)), "cvxpy")
    assert cvx._SHELF.held.statement is statement
    assert result.status is Status.OPTIMAL


def test_one_statement_is_held_and_none_that_is_large(instance, monkeypatch, few_objects):
    A, y = instance
    held = []
    for scale in (1.0, 2.0, 3.0, 4.0):
        solve(Lasso(scale * A, y, 0.1), "cvxpy")
        held.append(weakref.ref(cvx._SHELF.held.statement))
        gc.collect()
        assert [ref() is not None for ref in held] == [False] * (len(held) - 1) + [True]
    monkeypatch.setattr(cvx, "MAX_HELD", A.size * cvx.BYTES_PER_ELEMENT - 1)
    solve(Lasso(5 * A, y, 0.1), "cvxpy")
    gc.collect()
    assert cvx._SHELF.held is None
    assert held[-1]() is None


def test_what_is_held_does_not_grow_with_the_solves(few_objects):
    rng = np.random.default_rng(0)
    matrices = [rng.standard_normal((40, 100)) for _ in range(5)]
    solve(Lasso(matrices[0], np.ones(40), 0.1), "cvxpy")  # what CVXPY imports once
    gc.collect()
    tracemalloc.start()
    for A in matrices[1:]:
        solve(Lasso(A, np.ones(40), 0.1), "cvxpy")
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held <= A.size * cvx.BYTES_PER_ELEMENT


def test_a_statement_in_use_is_no_one_elses(instance):
    A, y = instance
    structure = cvx._Structure.of(Lasso(A, y, 0.1))
    mine, theirs = cvx._SHELF.take(structure), cvx._SHELF.take(structure)
    assert mine is not theirs
    cvx._SHELF.put(mine)
    assert cvx._SHELF.take(structure) is mine


def test_an_equation_and_a_ball_are_two_statements(instance):
    A, y = instance
    exact = solve(BPDN(A, y, 0.0), "cvxpy")
    noisy = solve(BPDN(A, y, 0.5), "cvxpy")
    assert exact.status is noisy.status is Status.OPTIMAL
    assert noisy.residual_norm == pytest.approx(0.5, rel=1e-5)
    assert exact.residual_norm < 1e-6


def test_changed_matrix_is_a_new_statement(instance):
    A, y = instance
    first = solve(Lasso(A, y, 0.1), "cvxpy")
    A[0] *= 2
    second = solve(Lasso(A, y, 0.1), "cvxpy")
    assert second.status is Status.OPTIMAL
    assert abs(first.objective - second.objective) > 1e-4


@pytest.mark.parametrize("backend", ["clarabel", "scs", "scipy", "CLARABEL"])
def test_backends_by_name(instance, backend):
    A, y = instance
    result = solve(BasisPursuit(A, y), f"cvxpy:{backend}")
    assert result.status is Status.OPTIMAL
    assert backend.upper() in result.why


def test_infeasible_is_said():
    A = np.array([[1.0, 0.0], [1.0, 0.0]])
    result = solve(BasisPursuit(A, [1.0, 2.0]), "cvxpy")
    assert result.status is Status.INFEASIBLE
    assert "away from y" in result.message


def test_columns_of_a_batch_are_solved_apart(instance):
    A, y = instance
    Y = np.stack([y, -y, 3 * y], axis=1)
    result = solve(BPDN(A, Y, 0.05), "cvxpy")
    assert result.status is Status.OPTIMAL
    alone = solve(BPDN(A, 3 * y, 0.05), "cvxpy")
    np.testing.assert_allclose(result.x[:, 2], alone.x, atol=1e-6)


def test_matrix_free_is_refused_with_size_memory_and_takers():
    A = operators.partial_dct(2**12, m=2**11, seed=0)
    with pytest.raises(InputError) as caught:
        solve(BasisPursuit(A, np.ones(2**11)), "cvxpy")
    message = str(caught.value)
    for part in ("2048 x 4096", "GiB", "for BasisPursuit take", "admm"):
        assert part in message


def test_too_large_is_refused():
    A = operators.from_matrix(np.broadcast_to(np.eye(1), (3000, 3000)))
    assert "at most" in CVXPY().refuses(BasisPursuit(A, np.ones(3000)))


def test_max_iter_is_passed_on(instance):
    A, y = instance
    result = solve(Lasso(A, y, 0.1), "cvxpy:clarabel", max_iter=2)
    assert result.status is not Status.OPTIMAL


@pytest.mark.parametrize("solver", ["cvxpy", "cvxpy:clarabel", "cvxpy:scs"])
def test_a_limit_of_iterations_is_told_from_a_stall(instance, solver):
    A, y = instance
    result = solve(Lasso(A, y, 0.01), solver, max_iter=1)
    assert result.status is Status.MAX_ITER
    assert "user_limit" in result.why


def test_the_answer_at_the_limit_is_the_first_backends(instance):
    A, y = instance
    result = solve(Lasso(A, y, 0.01), "cvxpy", max_iter=3)
    assert "CLARABEL" in result.why


def test_a_backend_that_takes_no_limit_is_named(instance):
    A, y = instance
    assert "SCIPY is given no limit" in solve(BasisPursuit(A, y), "cvxpy", max_iter=1).why
    assert "no limit" not in solve(BasisPursuit(A, y), "cvxpy").why
