"""Total variation denoising against CVXPY, and by its certificate."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank.sensing import AnalysisLasso, Status, bases, operators, solve, total_variation
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.solvers.denoise import Denoise
from lowrank.sensing.solvers.denoise_interior import denoised, sparse_differences

ACCURACY = 1e-6  # of CVXPY's Clarabel, relative to the objective
SHAPES = ((12,), (5, 7), (1, 9), (6, 1), (3, 4, 2))


def identity(n: int) -> Operator:
    return operators.sampling(n, np.arange(n))


def picture(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    steps = sum(np.add.outer(np.arange(shape[0]) > shape[0] / 2, np.zeros(shape[1:]))[None])
    noise = rng.standard_normal(shape) if seed % 3 else rng.integers(-1, 2, shape)  # ties
    return (3 * steps + 0.5 * noise).ravel()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lam", [0.01, 0.3, 3.0])
def test_agrees_with_cvxpy(shape: tuple[int, ...], lam: float, isotropic: bool) -> None:
    for seed in range(3):
        y = picture(shape, seed)
        problem = total_variation(identity(y.size), y, shape, lam=lam, isotropic=isotropic)
        found = solve(problem)
        assert found.solver in ("denoise()", "none")
        assert found.status is Status.OPTIMAL
        dense = total_variation(np.eye(y.size), y, shape, lam=lam, isotropic=isotropic)
        reference = solve(dense, "cvxpy")
        assert found.objective == pytest.approx(reference.objective, rel=ACCURACY)


@pytest.mark.parametrize("isotropic", [True, False])
@pytest.mark.parametrize("lam", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("shape", [(400,), (32, 32), (20, 40)])
def test_interior_point_takes_over_and_proves(
    shape: tuple[int, ...], lam: float, isotropic: bool
) -> None:
    y = picture(shape, 1)
    problem = total_variation(identity(y.size), y, shape, lam=lam, isotropic=isotropic)
    found = solve(problem, Denoise(hand_over=0))
    assert found.status is Status.OPTIMAL
    assert found.n_iter < 60
    both = solve(problem)
    assert both.objective == pytest.approx(found.objective, rel=2e-8)


def test_each_step_of_the_interior_point_is_feasible() -> None:
    y = picture((9, 9), 1)
    Ds = sparse_differences(bases.finite_differences((9, 9)))
    assert Ds is not None
    last = np.inf
    for k, p in enumerate(denoised(y, Ds, 0.4, coupled=True)):
        assert np.linalg.norm(p.reshape(2, -1), axis=0).max() < 0.4
        x = y - sum(D.T @ part for D, part in zip(Ds, p.reshape(2, -1), strict=True))
        if k % 5 == 4:
            value = float(x @ x)  # the dual objective, but for its sign
            assert value < last * (1 + 1e-9)
            last = value
        if k == 20:
            break


def test_differences_are_those_of_the_operator() -> None:
    for shape in ((5,), (3, 4)):
        D = bases.finite_differences(shape)
        Ds = sparse_differences(D)
        assert Ds is not None
        dense = np.concatenate([part.toarray() for part in Ds])
        np.testing.assert_array_equal(dense, D.to_dense())
    assert sparse_differences(bases.finite_differences((2, 3, 4))) is None
    assert sparse_differences(bases.dct(9)) is None


@pytest.mark.parametrize("kind", ["complex", "scaled", "dct", "tall", "other D"])
def test_takes_whatever_has_orthogonal_columns(kind: str) -> None:
    rng = np.random.default_rng(0)
    n = 24
    A: Operator = identity(n)
    D: object = np.diff(np.eye(n), axis=0)
    if kind == "scaled":
        A = 3.0 * A
    elif kind == "dct":
        A = bases.dct(n)
    elif kind == "tall":
        A = operators.partial_dct(40, rows=np.arange(n)).H  # (40, 24)
    elif kind == "other D":
        D = rng.standard_normal((30, n))
    y = rng.standard_normal(A.shape[0]) + (1j * rng.standard_normal(n) if kind == "complex" else 0)
    if kind == "scaled":
        D = bases.finite_differences(n)
    found = solve(AnalysisLasso(A, y, D, 0.3))
    assert found.solver == "denoise()"
    assert found.status is Status.OPTIMAL
    dense = D.to_dense() if isinstance(D, Operator) else D
    reference = solve(AnalysisLasso(A.to_dense(), y, dense, 0.3), "cvxpy")
    assert found.objective == pytest.approx(reference.objective, rel=ACCURACY)


def test_other_operators_are_refused_and_limits_kept() -> None:
    y = picture((8, 8), 1)
    assert Denoise().refuses(total_variation(np.eye(64), y, (8, 8), lam=0.3)) is not None
    problem = total_variation(identity(64), y, (8, 8), lam=3.0)
    for hand_over in (0, 2, 50):
        stopped = solve(problem, Denoise(hand_over=hand_over), max_iter=3)
        assert stopped.status is Status.MAX_ITER
        assert stopped.n_iter == 3
    seen: list[int] = []

    def stop(k: int, c: np.ndarray) -> bool:
        seen.append(k)
        return k == 7

    assert not solve(problem, Denoise(hand_over=5), callback=stop).status.ok
    assert seen == list(range(1, 8))
