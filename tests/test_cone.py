"""Basis pursuit of complex data and within bounds, in every precision, from both sides."""

import numpy as np
import pytest

from lowrank import recover
from lowrank.sensing import BasisPursuit, Status, solve
from lowrank.sensing.solvers.cone import ConeL1

PRECISION = {
    "exact": lambda v: v,
    "single": lambda v: v.astype(np.complex64 if np.iscomplexobj(v) else np.float32),
    "four digits": lambda v: np.round(v, 4),
    "two digits": lambda v: np.round(v, 2),
}


def instance(seed, is_complex, rows=24, columns=70, k=4):
    rng = np.random.default_rng(seed)
    A, x = rng.standard_normal((rows, columns)), np.zeros(columns, complex if is_complex else float)
    places = rng.permutation(columns)[:k]
    x[places] = rng.standard_normal(k)
    if is_complex:
        A = A + 1j * rng.standard_normal(A.shape)
        x[places] += 1j * rng.standard_normal(k)
    return A, x


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("kind", ["complex", "weighted", "box", "positive box", "hit box", "mixed"])
def test_data_of_any_precision_are_solved_and_proven(kind, precision):
    is_complex = kind in ("complex", "weighted")
    for seed in range(2):
        A, x = instance(seed, is_complex)
        options = {
            "weighted": {"weights": 0.5 + np.arange(70) % 3},
            "box": {"lower": -3.0, "upper": 3.0},
            "positive box": {"lower": 0.0, "upper": 3.0},
            "hit box": {"lower": -0.4, "upper": 0.4},
            "mixed": {"lower": np.where(np.arange(70) % 2, -0.4, -np.inf), "upper": 2.0},
        }.get(kind, {})
        if not is_complex:
            x = np.clip(x, options["lower"], options["upper"])
        rounded = PRECISION[precision]
        if precision == "single":
            A, x = rounded(A), rounded(x)
        found = solve(BasisPursuit(A, rounded(A @ x), **options), ConeL1())
        assert found.status is Status.OPTIMAL, (seed, found)
        assert found.n_iter <= 40
        if precision == "exact" and kind == "complex":
            np.testing.assert_allclose(found.x, x, atol=1e-6)


def test_it_is_what_single_precision_comes_to():
    A, x = instance(0, True)
    single = A.astype(np.complex64)
    assert recover(single, single @ x.astype(np.complex64)).solver == "cone()"
    A, x = instance(0, False)
    y = (A.astype(np.float32) @ x.astype(np.float32)).astype(np.float32)
    boxed = solve(BasisPursuit(A.astype(np.float32), y, lower=-3, upper=3))
    assert (boxed.solver, boxed.status) == ("cone()", Status.OPTIMAL)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (12, 12)])
def test_a_rank_below_the_rows_does_not_matter(shape):
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((shape[0], 5)), rng.standard_normal((5, shape[1]))
    A = left @ right + 0j
    found = solve(BasisPursuit(A, A @ np.ones(shape[1])), ConeL1())
    assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("options", [{}, {"lower": -1.0, "upper": 2.0}])
def test_an_inconsistent_system_is_told_before_the_first_iteration(options):
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((40, 10)), rng.standard_normal(40)
    A = A if options else A + 1j * rng.standard_normal(A.shape)
    found = solve(BasisPursuit(A, y, **options))
    assert (found.status, found.n_iter, found.gap) == (Status.INFEASIBLE, 0, None)
    closest = np.linalg.norm(A @ found.x - y)
    assert found.residual_norm == pytest.approx(closest)
    for step in rng.standard_normal((20, 10)) * 1e-3:  # and closer comes nothing
        moved = found.x + step
        moved = np.clip(moved, options["lower"], options["upper"]) if options else moved
        assert np.linalg.norm(A @ moved - y) >= closest - 1e-9


def test_bounds_that_forbid_are_told():
    A, x = instance(0, False)
    found = solve(BasisPursuit(A, 100 * (A @ x), lower=-0.5, upper=0.5))
    assert found.status is Status.INFEASIBLE
    assert np.abs(found.x).max() <= 0.5 + 1e-9


def test_batches_scales_and_stops():
    A, x = instance(0, True)
    Y = np.stack([A @ x, A @ (1j * x), 0 * (A @ x)], axis=1)
    found = solve(BasisPursuit(A, Y), ConeL1())
    np.testing.assert_allclose(found.x, np.stack([x, 1j * x, 0 * x], axis=1), atol=1e-6)
    scaled = solve(BasisPursuit(1e6 * A, 1e-5 * (A @ x)), ConeL1())
    np.testing.assert_allclose(scaled.x * 1e11, x, atol=1e-5)
    stopped = solve(BasisPursuit(A, Y[:, 0]), ConeL1(), callback=lambda k, c: k >= 3)
    assert "stopped by the callback" in stopped.message
    assert solve(BasisPursuit(A, Y[:, 0]), ConeL1(max_iter=2)).status is Status.MAX_ITER


def test_the_complex_chain_is_certified():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((128, 512)) + 1j * rng.standard_normal((128, 512))
    x = np.zeros(512, complex)
    x[rng.permutation(512)[:15]] = rng.standard_normal(15) + 1j
    found = recover(A, A @ x)
    assert found.status is Status.OPTIMAL
    assert found.solver == "message_passing()"
    np.testing.assert_allclose(found.x, x, atol=1e-6)
