"""`recover(..., estimate="mean")`: the posterior mean, its error estimate and its guard."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank import recover
from lowrank.errors import InputError
from lowrank.sensing import Status, bases, operators

N, M, K = 2048, 512, 50
OPERATORS = {
    "dct": lambda: operators.partial_dct(N, m=M, seed=1),
    "fourier": lambda: operators.partial_fourier(N, m=M, seed=1),
    "matrix": lambda: operators.gaussian(M, N, seed=1),
    "functions": lambda: _functions(7 * operators.partial_dct(N, m=M, seed=1)),
}


def _functions(A: operators.Operator) -> operators.Operator:
    return operators.from_functions(A.shape, A.forward, A.adjoint)


def _noisy(A: operators.Operator, x: np.ndarray, noise: float) -> tuple[np.ndarray, float]:
    clean = A @ x
    e = np.random.default_rng(3).standard_normal(clean.size).astype(clean.dtype)
    e *= noise * np.linalg.norm(clean) / np.linalg.norm(e)
    return clean + e, float(np.linalg.norm(e))


def _sparse(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    support, x = rng.permutation(N)[:K], np.zeros(N)
    x[support] = rng.standard_normal(K) if kind == "gaussian" else rng.choice([-1.0, 1.0], K)
    return x, support


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_mean_is_near_the_oracle_and_knows_its_error(name: str, kind: str) -> None:
    A, (x, support) = OPERATORS[name](), _sparse(kind)
    y, epsilon = _noisy(A, x, 0.01)
    found = recover(A, y, noise=epsilon, estimate="mean")
    best = np.zeros_like(x, dtype=A.dtype)
    best[support] = np.linalg.lstsq(A.columns(support), y, rcond=None)[0]
    error, oracle = (np.linalg.norm(v - x) / np.linalg.norm(x) for v in (found.x, best))
    assert found.status is Status.CONVERGED
    assert found.gap is None
    assert error < 1.2 * oracle
    assert found.estimated_error == pytest.approx(error, rel=0.6)
    assert "posterior mean" in found.why
    optimum = recover(A, y, noise=epsilon)
    assert error < 0.6 * np.linalg.norm(optimum.x - x) / np.linalg.norm(x)
    assert 'estimate="mean"' in optimum.why
    assert optimum.estimated_error is None


COMPRESSIBLE = {
    "power law": lambda rng: rng.permutation(np.arange(1, N + 1.0) ** -1),
    "slow power law": lambda rng: rng.permutation(np.arange(1, N + 1.0) ** -0.6),
    "heavy tails": lambda rng: rng.standard_t(1.5, N),
    "dense": lambda rng: rng.standard_normal(N),
    "smooth": lambda rng: np.sin(np.arange(N) / 300),
}


@pytest.mark.parametrize(("kind", "noise"), [(k, 0.02) for k in COMPRESSIBLE] + [("dense", 0.0)])
def test_a_prior_that_does_not_fit_gives_the_guard_s_answer(kind: str, noise: float) -> None:
    A, x = operators.gaussian(100, N // 4, seed=1), COMPRESSIBLE[kind](np.random.default_rng(4))
    x = x[: A.shape[1]]
    y, epsilon = _noisy(A, x, noise)
    given = {"noise": epsilon} if noise else {}
    found, optimum = recover(A, y, estimate="mean", **given), recover(A, y, **given)
    if found.status is Status.CONVERGED:
        assert np.linalg.norm(found.x - x) <= 1.1 * np.linalg.norm(optimum.x - x)
        return
    assert found.why.startswith("the sparse prior does not fit (")
    assert found.estimated_error is None
    np.testing.assert_array_equal(found.x, optimum.x)


def test_without_noise_the_mean_is_exact() -> None:
    A, (x, _) = OPERATORS["dct"](), _sparse("gaussian")
    found = recover(A, A @ x, estimate="mean")
    assert np.linalg.norm(found.x - x) < 1e-4 * np.linalg.norm(x)


def test_a_batch_in_a_basis() -> None:
    x = np.zeros(400)
    x[:60:5] = 1.0
    A, X = operators.gaussian(150, 400, seed=1), np.stack([x, x[::-1]], axis=1)
    psi = bases.dct(400)
    y = A @ (psi @ X)
    y += 0.01 * np.random.default_rng(0).standard_normal(y.shape)
    found = recover(A, y, noise=0.01 * np.sqrt(150), estimate="mean", basis=psi, debias=True)
    assert found.status is Status.CONVERGED
    np.testing.assert_allclose(found.coefficients, X, atol=0.05)
    np.testing.assert_allclose(found.x, psi @ found.coefficients)
    assert found.debiased.shape == found.x.shape


def test_zero_measurements() -> None:
    found = recover(np.eye(3, 5), np.zeros(3), noise=0.1, estimate="mean")
    assert not found.x.any()
    assert found.status is Status.OPTIMAL


def test_an_operator_whose_adjoint_does_not_fit_is_named() -> None:
    A = operators.partial_dct(256, m=64, seed=0)
    wrong = operators.from_functions(A.shape, A.forward, lambda y: A.adjoint(y)[::-1].copy())
    with pytest.warns(UserWarning, match="the adjoint fails the dot test"):
        found = recover(wrong, A @ np.eye(256)[3], noise=0.01, estimate="mean")
    assert found.status is not Status.CONVERGED


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"estimate": "median"}, "'median' is neither"),
        ({"estimate": "mean", "lam": 0.1}, "lam cannot join the posterior mean"),
        ({"estimate": "mean", "nonneg": True, "x0": np.zeros(5)}, "x0 and nonneg cannot join"),
        ({"estimate": "mean", "solver": "admm"}, "solver cannot join"),
    ],
)
def test_what_does_not_go_together(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        recover(np.eye(3, 5), np.ones(3), **options)
