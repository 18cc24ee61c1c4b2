"""Choice of noise level and lam: against closed forms, oracles and other solvers."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LassoCV, LassoLarsIC

from lowrank.errors import InputError
from lowrank.sensing import (
    BPDN,
    Lasso,
    bases,
    estimate_noise,
    lam_by_cross_validation,
    lam_by_discrepancy,
    lam_by_information,
    lam_by_sure,
    lam_grid,
    lam_max,
    noise_bound,
    operators,
    solve,
    sparse_signal,
)

SPREAD = 0.3
"""Relative error of a noise level from about 80 degrees of freedom, four standard deviations."""
ROOT = 1e-3
"""Relative accuracy of the discrepancy root."""


def instance(m=100, n=200, k=6, std=0.1, seed=0, kind="sign"):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n))
    if kind == "complex":
        A = (A + 1j * rng.standard_normal((m, n))) / math.sqrt(2)
    x = sparse_signal(n, k, seed=rng, kind=kind)
    e = rng.standard_normal(m)
    if kind == "complex":
        e = (e + 1j * rng.standard_normal(m)) / math.sqrt(2)
    return A, x, A @ x + std * e


@pytest.mark.parametrize(
    ("std", "kind"),
    [(1e-3, "sign"), (0.1, "gaussian"), (1.0, "sign"), (0.1, "complex")],
)
def test_noise_level(std, kind):
    A, _, y = instance(std=std, kind=kind)
    found = estimate_noise(A, y)
    assert found.std == pytest.approx(std, rel=SPREAD)
    scaled = estimate_noise(A * np.geomspace(0.01, 100, 200), 1e3 * y)
    assert scaled.std == pytest.approx(1e3 * found.std, rel=SPREAD)


def test_noise_level_on_average_is_unbiased():
    ratios = [estimate_noise(*instance(seed=s)[::2]).std / 0.1 for s in range(12)]
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def _covered(m, n, k, seed):
    A, _, y = instance(m, n, k, std=0.0, seed=seed, kind="gaussian")
    noise = np.random.default_rng(1000 + seed).standard_normal(m)
    noise *= 0.05 * np.linalg.norm(y) / math.sqrt(m)
    return estimate_noise(A, y + noise).epsilon / np.linalg.norm(noise)


@pytest.mark.parametrize(("m", "n", "k"), [(80, 160, 5), (20, 200, 2)])
def test_estimated_bound_covers_the_noise(m, n, k):
    ratios = np.array([_covered(m, n, k, seed) for seed in range(20)])
    assert (ratios >= 1).mean() >= 0.85  # 95 %, less two standard deviations of 20 draws
    assert np.median(ratios) < 1.5


def test_few_measurements_are_not_all_taken_for_noise():
    found = [estimate_noise(*instance(20, 200, 3, 0.1, seed)[::2]) for seed in range(12)]
    assert sum(estimate.n_columns == 0 for estimate in found) <= 1
    assert np.median([estimate.std for estimate in found]) == pytest.approx(0.1, rel=SPREAD)


def test_noise_level_of_degenerate_measurements():
    A, x, _ = instance()
    assert estimate_noise(A, np.zeros(100)).std == 0
    assert estimate_noise(A, A @ x).std < 1e-8
    rng = np.random.default_rng(1)
    assert estimate_noise(A, rng.standard_normal(100)).std == pytest.approx(1, rel=SPREAD)
    D = operators.partial_dct(256, rows=np.sort(rng.permutation(256)[:120]))
    basis = bases.dct(256)
    c = sparse_signal(256, 5, seed=rng)
    G = rng.standard_normal((120, 256))
    y = G @ basis.forward(c) + 0.05 * rng.standard_normal(120)
    assert estimate_noise(G, y, basis=basis).std == pytest.approx(0.05, rel=SPREAD)
    z = D @ c + 0.01 * rng.standard_normal(120)
    assert estimate_noise(D, z).std == pytest.approx(0.01, rel=SPREAD)


def test_noise_bound_covers():
    rng = np.random.default_rng(0)
    norms = np.linalg.norm(rng.standard_normal((4000, 50)), axis=1)
    assert (norms < noise_bound(1.0, 50)).mean() == pytest.approx(0.95, abs=0.015)
    e = (rng.standard_normal((4000, 50)) + 1j * rng.standard_normal((4000, 50))) / math.sqrt(2)
    inside = np.linalg.norm(e, axis=1) < noise_bound(1.0, 50, is_complex=True)
    assert inside.mean() == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("nonneg", [False, True])
def test_lam_max_is_where_the_answer_becomes_zero(nonneg):
    A, _, y = instance(20, 30, 3)
    top = lam_max(A, y, nonneg=nonneg)
    lower = 0.0 if nonneg else -np.inf
    assert not solve(Lasso(A, y, 1.001 * top, lower=lower)).x.any()
    assert solve(Lasso(A, y, 0.999 * top, lower=lower)).x.any()
    grid = lam_grid(A, y, n_lams=5, smallest=0.01, nonneg=nonneg)
    assert grid[0] < top
    assert grid[-1] == pytest.approx(0.01 * top)


@pytest.mark.parametrize("kind", ["sign", "complex"])
def test_discrepancy_is_bpdn(kind):
    A, _, y = instance(30, 40, 3, kind=kind)
    epsilon = 0.1 * math.sqrt(30)
    found = lam_by_discrepancy(A, y, epsilon)
    assert found.recovery.residual_norm == pytest.approx(epsilon, rel=ROOT)
    bpdn = solve(BPDN(A, y, found.recovery.residual_norm))
    assert np.abs(found.recovery.x - bpdn.x).max() < 1e-3
    assert found.lams.size == found.scores.size < 15


def test_discrepancy_in_closed_form_and_out_of_reach():
    y = np.array([3.0, 2.0, 0.1])
    found = lam_by_discrepancy(np.eye(3), y, 0.5, tol=1e-9)
    assert 2 * found.lam**2 + 0.01 == pytest.approx(0.25)  # soft thresholding of both entries
    with pytest.raises(InputError, match="nearest"):
        lam_by_discrepancy(np.array([[1.0], [0.0]]), [1.0, 1.0], 0.5)


def test_cross_validation_like_scikit_learn():
    A, x, y = instance(80, 40, 5, std=0.5)
    found = lam_by_cross_validation(A, y, seed=3)
    theirs = LassoCV(fit_intercept=False, cv=5).fit(A, y)
    ours = np.linalg.norm(found.recovery.x - x)
    assert ours < 1.2 * np.linalg.norm(theirs.coef_ - x)
    again = lam_by_cross_validation(A, y, seed=3)
    assert again.lam == found.lam
    sparser = lam_by_cross_validation(A, y, seed=3, one_standard_error=True)
    assert sparser.lam >= found.lam
    free = operators.from_functions(A.shape, lambda v: A @ v, lambda r: A.T @ r)
    lams = found.lams[5:20:5]
    assert lam_by_cross_validation(free, y, lams=lams).lam == pytest.approx(
        lam_by_cross_validation(A, y, lams=lams).lam
    )


def test_sure_is_the_risk_on_average():
    # With A = I LASSO is soft thresholding, and the risk can be simulated.
    rng = np.random.default_rng(0)
    x = np.r_[np.full(5, 3.0), np.zeros(45)]
    lams = np.array([2.0, 1.0, 0.5])
    scores, risks = [], []
    for _ in range(60):
        y = x + 0.5 * rng.standard_normal(50)
        scores.append(lam_by_sure(np.eye(50), y, 0.5, lams=lams).scores)
        soft = np.sign(y) * np.maximum(np.abs(y) - lams[:, None], 0)
        risks.append(((soft - x) ** 2).sum(axis=1))
    error = np.std(np.array(scores) - risks, axis=0) / math.sqrt(60)
    assert np.all(np.abs(np.mean(scores, axis=0) - np.mean(risks, axis=0)) < 4 * error)


def test_sure_is_near_the_best_lam():
    A, x, y = instance()
    found = lam_by_sure(A, y, 0.1)
    losses = [np.linalg.norm(A @ (solve(Lasso(A, y, lam)).x - x)) for lam in found.lams]
    assert np.linalg.norm(A @ (found.recovery.x - x)) < 1.3 * min(losses)


@pytest.mark.parametrize("criterion", ["aic", "bic"])
def test_information_like_scikit_learn(criterion):
    A, _, y = instance(80, 40, 5, std=0.5)
    # scikit-learn: (RSS / noise variance) + price, with a given variance, over the LARS kinks
    theirs = LassoLarsIC(criterion, fit_intercept=False, noise_variance=0.25).fit(A, y)
    lams = np.sort(theirs.alphas_[theirs.alphas_ > 1e-6] * 80)[::-1]
    ours = lam_by_information(A, y, criterion=criterion, std=0.5, lams=lams)
    assert ours.lam == pytest.approx(theirs.alpha_ * 80, rel=1e-6)


def test_extended_criterion_finds_the_support():
    for seed in range(5):
        A, x, y = instance(seed=seed)
        strict = lam_by_information(A, y)
        assert strict.recovery.support.tolist() == np.flatnonzero(x).tolist()
        assert lam_by_information(A, y, criterion="aic").lam <= strict.lam


@pytest.mark.parametrize("solver", ["fista", "exact_l1"])
def test_any_solver_will_do(solver):
    A, x, y = instance(60, 80, 4)
    found = lam_by_information(A, y, lams=lam_grid(A, y, n_lams=8), solver=solver)
    assert set(np.flatnonzero(x)) <= set(found.recovery.support)
    assert solver in found.recovery.solver
    assert estimate_noise(A, y, solver=solver).std == pytest.approx(0.1, rel=SPREAD)


A0, _, Y0 = instance(6, 8, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lam_max(A0, np.ones((6, 2))), "one signal"),
        (lambda: lam_grid(A0, Y0, n_lams=1), "n_lams=1"),
        (lambda: lam_grid(A0, np.zeros(6)), "correlates"),
        (lambda: noise_bound(-1.0, 5), "std=-1"),
        (lambda: lam_by_discrepancy(A0, Y0, 0.0), "epsilon=0"),
        (lambda: lam_by_discrepancy(A0, Y0, 1e9), "between 0"),
        (lambda: lam_by_cross_validation(A0, Y0, folds=1), "2..6"),
        (lambda: lam_by_sure(A0, Y0, 0.0), "above 0"),
        (lambda: lam_by_sure(1j * A0, Y0, 0.1), "complex"),
        (lambda: lam_by_information(A0, Y0, criterion="dic"), "'dic'"),
        (lambda: lam_by_information(A0, Y0, std=-1.0), "above 0"),
        (lambda: lam_by_information(A0, Y0, lams=[1.0, -1.0]), "positive"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
