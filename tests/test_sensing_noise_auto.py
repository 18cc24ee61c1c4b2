"""Parameters a person does not know, in `recover`: estimated noise and lam as a share."""

import numpy as np
import pytest
import torch

from lowrank.errors import InputError
from lowrank.sensing import (
    Lasso,
    bases,
    estimate_noise,
    lam_max,
    operators,
    recover,
    solve,
    sparse_signal,
)

M, N = 80, 200
A = operators.gaussian(M, N, seed=0)
X = sparse_signal(N, 6, seed=1)
Y = A @ X
NOISY = Y + 0.02 * np.random.default_rng(2).standard_normal(M)


def test_estimated_noise_is_that_of_the_estimate():
    found, epsilon = recover(A, NOISY, noise="auto"), estimate_noise(A, NOISY).epsilon
    assert found.residual_norm == pytest.approx(epsilon)
    assert found.objective == pytest.approx(recover(A, NOISY, noise=epsilon).objective)
    assert f"epsilon {epsilon:.6g}" in found.why
    assert epsilon == pytest.approx(0.02 * np.sqrt(M), rel=0.4)


def test_the_answer_is_near_the_oracle():
    S = np.flatnonzero(X)
    oracle = np.linalg.lstsq(A.to_dense()[:, S], NOISY, rcond=None)[0]
    error = np.linalg.norm(recover(A, NOISY, noise="auto").x - X)
    assert error < 5 * np.linalg.norm(oracle - X[S])


def test_no_noise_is_basis_pursuit():
    found = recover(A, Y, noise="auto")
    assert "noise estimated: none" in found.why
    assert "BasisPursuit" in found.why
    np.testing.assert_allclose(found.x, X, atol=1e-8)
    assert recover(A, 0 * Y, noise="auto").support.size == 0


def test_in_a_basis_and_non_negative():
    Psi = bases.dct(N)
    y = A @ (Psi @ np.abs(X)) + 0.01 * np.random.default_rng(3).standard_normal(M)
    found = recover(A, y, noise="auto", basis=Psi, nonneg=True)
    assert found.coefficients.min() >= 0
    assert np.linalg.norm(found.coefficients - np.abs(X)) < 0.2 * np.linalg.norm(X)


def test_signs_that_are_known_join_the_estimate():
    y = NOISY - A @ np.full(N, 0.05)  # many small negatives, which c >= 0 must count as noise
    epsilon = estimate_noise(A, y, nonneg=True).epsilon
    assert epsilon != pytest.approx(estimate_noise(A, y).epsilon, rel=1e-3)
    assert f"epsilon {epsilon:.6g}" in recover(A, y, noise="auto", nonneg=True).why


def test_complex_measurements():
    F = operators.partial_fourier(128, m=64, seed=0)
    x = sparse_signal(128, 4, seed=1, kind="complex")
    rng = np.random.default_rng(2)
    y = F @ x + 0.01 * (rng.standard_normal(64) + 1j * rng.standard_normal(64))
    found = recover(F, y, noise="auto")
    assert found.status.ok
    assert np.linalg.norm(found.x - x) < 0.1 * np.linalg.norm(x)


def test_tensors_come_back_as_tensors():
    matrix, y = torch.tensor(A.to_dense()), torch.tensor(NOISY)
    assert isinstance(recover(matrix, y, noise="auto").x, torch.Tensor)
    assert isinstance(recover(matrix, y, lam_fraction=0.1).x, torch.Tensor)


@pytest.mark.parametrize("nonneg", [False, True])
def test_lam_as_a_share_of_the_largest(nonneg):
    found = recover(A, NOISY, lam_fraction=0.1, nonneg=nonneg)
    lam = 0.1 * lam_max(A, NOISY, nonneg=nonneg)
    assert found.objective == pytest.approx(recover(A, NOISY, lam=lam, nonneg=nonneg).objective)
    assert f"lam = {lam:.6g}, 10 % of lam_max" in found.why


@pytest.mark.parametrize(
    "options",
    [{}, {"lower": 0.0}, {"lower": -1.0, "upper": 0.0}, {"weights": np.linspace(0.1, 3, N)}],
    ids=["free", "nonneg", "nonpositive", "weighted"],
)
def test_at_lam_max_the_answer_becomes_zero(options):
    problem = Lasso(A, np.stack([NOISY, 3 * NOISY[::-1]], axis=1), 1.0, **options)
    top = problem.lam_max
    at, below = (solve(Lasso(A, problem.y, lam, **options)) for lam in (top, 0.999 * top))
    assert at.support.size == 0
    assert below.support.size > 0


def test_weights_count_in_the_share():
    found = recover(A, NOISY, lam_fraction=1.0, weights=np.full(N, 2.0))
    assert found.support.size == 0
    assert f"lam = {lam_max(A, NOISY) / 2:.6g}" in found.why


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": "loud"}, "'loud' is no number"),
        ({"noise": "auto", "lam": 0.1}, "noise and lam exclude each other"),
        ({"lam": 0.1, "lam_fraction": 0.1}, "lam and lam_fraction exclude each other"),
        ({"lam_fraction": 0.0}, r"outside \(0, 1\]"),
        ({"lam_fraction": 1.1}, r"outside \(0, 1\]"),
        ({"lam_fraction": float("nan")}, "nan is not zero or positive"),
    ],
)
def test_what_makes_no_sense(options, says):
    with pytest.raises(InputError, match=says):
        recover(A, NOISY, **options)


def test_several_signals_have_several_noises():
    with pytest.raises(InputError, match="one signal at a time"):
        recover(A, np.stack([NOISY, NOISY], axis=1), noise="auto")


def test_measurements_that_are_all_noise_are_told():
    rng = np.random.default_rng(0)
    G, noise = rng.standard_normal((40, 60)), rng.standard_normal(40)
    with pytest.warns(UserWarning, match="no column of A stands out"):
        found = recover(G, noise, noise="auto")
    assert found.support.size == 0
    assert not recover(G, np.zeros(40), noise="auto").x.any()  # without a warning
