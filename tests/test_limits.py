"""Where a run ends: at the precision of products and data, at the clock, where nothing moves."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
from scipy.fft import dct, fft, idct, ifft

from lowrank import recover
from lowrank.errors import InputError
from lowrank.sensing import BPDN, Lasso, Status, operators, solve
from lowrank.sensing.limits import COARSE, ROUNDED, Deadline, judged, rounded
from lowrank.sensing.operators.foreign import FORMED
from lowrank.sensing.operators.operator import Operator, from_functions
from lowrank.sensing.solvers.admm import ADMM
from lowrank.sensing.solvers.spg import SPG
from lowrank.sensing.solvers.standstill import LOW, PROGRESS, Standstill

N, M = 2**13, 2**11
assert N * M > FORMED


def single(kind: type, n: int = N, m: int = M) -> Operator:
    """Rows of a transform that is computed in single precision."""
    rows = np.sort(np.random.default_rng(0).permutation(n)[:m])
    root = np.float32(np.sqrt(n))

    def forward(x: np.ndarray) -> np.ndarray:
        x = x.astype(kind)
        return dct(x, norm="ortho")[rows] if kind is np.float32 else fft(x)[rows] / root

    def adjoint(y: np.ndarray) -> np.ndarray:
        z = np.zeros(n, kind)
        z[rows] = y
        return idct(z, norm="ortho") if kind is np.float32 else ifft(z) * root

    return from_functions((m, n), forward, adjoint, dtype=np.dtype(kind))


def measured(A: Operator, share: float) -> tuple[np.ndarray, float]:
    """Measurements with noise of this share, and its norm."""
    rng = np.random.default_rng(1)
    m, n = A.shape
    x = np.zeros(n, A.dtype)
    x[rng.permutation(n)[: m // 10]] = rng.standard_normal(m // 10)
    y = A @ x
    e = rng.standard_normal(m)
    e *= share * np.linalg.norm(y) / max(np.linalg.norm(e), 1e-300)
    return (y + e).astype(A.dtype), float(np.linalg.norm(e))


@pytest.mark.parametrize("share", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("kind", [np.float32, np.complex64])
def test_noisy_data_of_an_operator_in_single_precision(kind: type, share: float) -> None:
    A = single(kind)
    y, epsilon = measured(A, share)
    with pytest.warns(UserWarning, match="cannot reach the tolerance"):
        found = recover(A, y, noise=epsilon)
    assert found.status is Status.OPTIMAL
    assert found.gap is not None
    assert found.gap <= COARSE
    assert found.solver.startswith("message_passing")
    with pytest.warns(UserWarning, match="cannot reach the tolerance"):
        found = recover(A, y, lam_fraction=share)
    assert found.status is Status.OPTIMAL


def test_the_residual_keeps_its_digits() -> None:
    """A difference of products in single precision would leave 1e-4 at this noise."""
    A = single(np.float32)
    y, epsilon = measured(A, 1e-2)
    found = solve(BPDN(A, y, epsilon), "message_passing", tol=2e-6)
    assert found.status is Status.OPTIMAL


def test_what_single_precision_cannot_prove_ends_with_the_gap_reached() -> None:
    A = single(np.float32)
    y, epsilon = measured(A, 1e-2)
    with pytest.warns(UserWarning, match="pass tol=1e-05"):
        found = recover(A, y, noise=epsilon, tol=1e-9)
    assert found.status is Status.STALLED
    assert found.gap is not None
    assert 1e-9 < found.gap <= COARSE
    assert "products in float32 tell no more" in found.message
    assert "admm" not in found.why


@pytest.mark.parametrize("share", [1e-6, 1e-4, 1e-2])
def test_any_noise_is_solved_by_message_passing(share: float) -> None:
    A = operators.partial_dct(N, m=M, seed=0)
    y, epsilon = measured(A, share)
    for found in (recover(A, y, noise=epsilon), recover(A, y, lam_fraction=share)):
        assert found.status is Status.OPTIMAL
        assert found.solver == "message_passing()"


def test_rounded_measurements_of_a_large_operator() -> None:
    A = operators.partial_dct(N, m=M, seed=0)
    y, _ = measured(A, 0.0)
    with pytest.warns(UserWarning, match="y is rounded to single precision"):
        found = recover(A, y.astype(np.float32))
    assert found.status is Status.OPTIMAL
    assert found.infeasibility is not None
    assert 1e-9 < found.infeasibility <= ROUNDED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recover(A, y).infeasibility < 1e-8


CONES = {
    "positive": lambda rng, m, n: np.abs(rng.standard_normal((m, n))),
    "signed": lambda rng, m, n: rng.standard_normal((m, n)),
    "binary": lambda rng, m, n: (rng.random((m, n)) < 0.3).astype(float),
}


@pytest.mark.parametrize("shape", [(20, 60), (40, 40), (30, 20)])
@pytest.mark.parametrize("kind", CONES)
def test_rounding_takes_measurements_out_of_a_cone(kind: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    A, x = CONES[kind](rng, *shape), np.zeros(shape[1])
    x[:4] = 0.1 + rng.random(4)
    y = A @ x
    for rough in (y.astype(np.float32), y.astype(np.float32).astype(float)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = recover(A, rough, nonneg=True)
        assert found.status is Status.OPTIMAL
        np.testing.assert_allclose(found.x, x, atol=1e-4)
        told = any("y is rounded to single precision" in str(one.message) for one in said)
        assert told == (found.infeasibility > 1e-12)
    for digits in (12, 10):
        assert recover(A, np.round(y, digits), nonneg=True).status is Status.OPTIMAL


def test_a_solver_that_is_named_is_told_of_rounding_too() -> None:
    rng = np.random.default_rng(0)
    A, x = np.abs(rng.standard_normal((20, 60))), np.zeros(60)
    x[:4] = 0.1 + rng.random(4)
    y = (A @ x).astype(np.float32)
    watch = lambda k, c: False  # noqa: E731
    with pytest.warns(UserWarning, match="y is rounded to single precision"):
        found = recover(A, y, nonneg=True, solver="admm", time_limit=60, callback=watch)
    assert found.status is Status.OPTIMAL
    strict = recover(A, y, nonneg=True, solver="admm", tol=1e-9)
    assert strict.status is Status.INFEASIBLE


def test_infeasible_by_rounding_is_said_with_the_noise_that_allows_it() -> None:
    rng = np.random.default_rng(0)
    A, x = np.abs(rng.standard_normal((20, 60))), np.zeros(60)
    x[:3] = 0.1 + rng.random(3)
    y = np.round(A @ x, 4)
    found = recover(A, y, nonneg=True)
    assert found.status is Status.INFEASIBLE
    match = re.search(r"rounding of y may do that, and noise=(\S+) ", found.message)
    assert match is not None
    assert recover(A, y, nonneg=True, noise=float(match[1])).status is Status.OPTIMAL
    far = recover(A, -y, nonneg=True)
    assert far.status is Status.INFEASIBLE
    assert "rounding" not in far.message


def test_what_counts_as_rounded() -> None:
    y = np.array([0.1, 0.25, 3.0])
    assert rounded(y.astype(np.float32).astype(float))
    assert rounded((y + 1j * y).astype(np.complex64).astype(complex))
    assert not rounded(y)
    assert not rounded(np.array([1.0, -2.0, 3.0]))  # whole numbers are exact
    assert not rounded(np.array([1e200, 0.5]))


def test_a_small_operator_is_solved_in_double_precision() -> None:
    A = operators.partial_dct(64, m=32, seed=0)
    y = (A @ np.eye(64)[3]).astype(np.float32)
    assert judged(Lasso(A, y, 0.1), None)[1] is None
    assert recover(A, y).gap <= 1e-8


@pytest.mark.parametrize(("solver", "n"), [(ADMM(), 256), (SPG(), 1024)])
def test_first_order_methods_stop_where_rounding_does(solver: ADMM | SPG, n: int) -> None:
    A = single(np.float32, n, n // 4)
    y, epsilon = measured(A, 1e-2)
    found = solver.solve(BPDN(A, y, epsilon))
    assert found.status is Status.STALLED
    assert found.n_iter < solver.max_iter


def test_standstill_has_two_sides() -> None:
    falls = Standstill(patience=10)
    assert not any(falls(k, LOW * (0.99 * PROGRESS) ** k) for k in range(1, 100))
    high = Standstill(patience=10)
    assert not any(high(k, 2 * LOW) for k in range(1, 100))
    stands = Standstill(patience=10)
    assert [stands(k, 1e-6) for k in range(1, 11)] == [False] * 9 + [True]


def test_the_time_limit_ends_every_solver() -> None:
    A = operators.partial_dct(N, m=M, seed=0)
    y, _ = measured(A, 0.0)
    for given in ({}, {"noise": 0.01}, {"lam": 0.01}, {"solver": "admm"}):
        found = recover(A, y, time_limit=1e-9, **given)  # type: ignore[arg-type]
        assert found.status is Status.TIME_LIMIT
        assert found.message.startswith("gap")
        assert "raise time_limit" in found.message
        assert found.n_iter <= 1
    best = recover(A, y, time_limit=1e6)
    assert best.status is Status.OPTIMAL


def test_the_time_limit_and_the_callback_both_stop() -> None:
    seen: list[int] = []
    problem = Lasso(np.eye(30, 60) + 0.1, np.arange(30.0), 0.1)
    found = solve(problem, ADMM(), callback=lambda k, c: seen.append(k), time_limit=1e-9)
    assert found.status is Status.TIME_LIMIT
    assert seen == [1]
    stopped = solve(problem, ADMM(), callback=lambda k, c: True, time_limit=1e6)
    assert "stopped by the callback" in stopped.message


@pytest.mark.parametrize("seconds", [0.0, -1.0, np.nan, "soon"])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="time_limit"):
        Deadline(seconds)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([0.5, -1.5, 2.0]), False),
        (np.array([1 + 2.0**-11, 0.5]), False),
        (np.array([1 + 2.0**-12, 0.5]), True),
        (np.array([1 + 2.0**-12 + 1e-12, 0.5]), False),
        (np.array([3.0, 2.0**20 + 1.0]), False),
        (np.array([0.5, 1j * (1 + 2.0**-12)]), True),
        (np.array([0.5, 1j * 1.5]), False),
    ],
)
def test_what_counts_as_rounded_uses_more_digits_than_half(values, expected):
    assert rounded(values) is expected
