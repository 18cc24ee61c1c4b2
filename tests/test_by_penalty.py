"""BPDN within bounds and of sparse matrices: the LASSO whose residual is epsilon."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

from lowrank import recover
from lowrank.sensing import BPDN, Status, solve
from lowrank.sensing.solvers.by_penalty import MAX_DENSE, ByPenalty
from lowrank.sensing.solvers.cvx import CVXPY


def problem(seed: int, shape: tuple[int, int] = (20, 50), **more: object) -> BPDN:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal(shape)
    x = np.zeros(shape[1])
    x[:5] = rng.standard_normal(5)
    y = A @ x + 0.05 * rng.standard_normal(shape[0])
    return BPDN(A, y, 0.3 * float(np.linalg.norm(y)), **more)  # type: ignore[arg-type]


BOUNDS = {
    "box": {"lower": -0.4, "upper": 0.6},
    "one side": {"upper": 0.3},
    "weighted": {"lower": -0.5, "upper": 0.5, "weights": np.linspace(0.3, 3, 50)},
    "some fixed": {"lower": np.where(np.arange(50) < 3, 0.0, -1.0), "upper": 1.0},
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_the_answer_is_cvxpy_s_and_is_proven(kind: str) -> None:
    given = problem(3, **BOUNDS[kind])
    found = solve(given)
    assert found.solver == "by_penalty()"
    assert found.status is Status.OPTIMAL
    assert found.gap is not None
    assert found.gap <= 1e-12
    reference = solve(given, "cvxpy")
    assert found.objective == pytest.approx(reference.objective, rel=1e-6)
    assert found.residual_norm == pytest.approx(given.epsilon, rel=1e-12)


def test_a_large_sparse_matrix_stays_sparse() -> None:
    rng = np.random.default_rng(0)
    A = scipy.sparse.random(400, 4000, 0.01, format="csc", random_state=rng)
    assert A.shape[0] * A.shape[1] > MAX_DENSE
    y = A[:, [5, 50, 500]] @ np.array([3.0, -2.0, 2.0]) + 1e-3 * rng.standard_normal(400)
    given = BPDN(A, y, 0.05)
    found = solve(given)
    assert found.solver == "by_penalty()"
    assert found.status is Status.OPTIMAL
    assert "_matrix" not in vars(given.operator)  # which would be dense
    assert set(found.support) >= {5, 50, 500}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, "is for bounds, and large sparse matrices"),
        ({"lower": 0.0}, "is for bounds, and large sparse matrices"),
        ({"upper": 1.0}, None),
    ],
)
def test_what_is_taken(more: dict, reason: str | None) -> None:
    assert ByPenalty().refuses(problem(0, **more)) == reason
    exact = BPDN(np.eye(3), np.ones(3), 0.0, upper=1.0)
    assert ByPenalty().refuses(exact) == "needs a positive epsilon"


def test_bounds_that_forbid_every_answer_are_told() -> None:
    given = problem(1, (60, 20), lower=-1e-3, upper=1e-3)
    found = solve(given)
    assert found.status is Status.INFEASIBLE
    assert found.why.startswith("by_penalty")
    assert "closest A x" in found.message


def test_batches_starts_and_stops() -> None:
    one = problem(5, upper=0.5)
    Y = np.stack([one.y, 0 * one.y, -one.y[::-1]], axis=1)
    many = BPDN(one.A, Y, one.epsilon, upper=0.5)
    found = solve(many)
    assert found.status is Status.OPTIMAL
    np.testing.assert_allclose(found.x[:, 0], solve(one).x, atol=1e-9)
    assert not found.x[:, 1].any()
    again = ByPenalty().solve(many, x0=np.asarray(found.x))
    np.testing.assert_allclose(again.coefficients, found.x, atol=1e-9)
    stopped = ByPenalty().solve(many, callback=lambda k, c: k == 2)
    assert (stopped.n_iter, stopped.status) == (2, Status.MAX_ITER)


def test_cvxpy_has_a_clock() -> None:
    given = problem(0)
    assert CVXPY(time_limit=1e-9).solve(given).status is Status.MAX_ITER
    assert recover(given.A, given.y, noise=given.epsilon, solver="cvxpy", time_limit=60).status.ok
