"""Robust PCA against CVXPY, against planted truth, and by its own duality gap."""

import json
import pickle

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowrank
from lowrank.decompositions import LowRankParts, complete, go_dec, greedy_bilateral, robust_pca
from lowrank.errors import InputError
from lowrank.status import Status

TOL = 1e-7
"""Default gap of the solver."""
CVXPY = 2e-5
"""Relative accuracy that SCS and Clarabel leave on semidefinite problems of this size."""


def planted(m, n, rank, share, seed=0, amplitude=5.0):
    rng = np.random.default_rng(seed)
    L = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n))
    S = amplitude * rng.choice([-1.0, 1.0], (m, n)) * (rng.random((m, n)) < share)
    return L, S


def relative(X, Y):
    return float(np.linalg.norm(X - Y) / np.linalg.norm(Y))


def gap_by_hand(M, result, mask=None, nu=0.0, columns=False):
    """Primal and dual value from the returned parts alone."""
    mask = np.ones(M.shape, bool) if mask is None else mask
    M = np.where(mask, M, 0)
    Y = result.dual / max(1, np.linalg.norm(result.dual, 2))
    assert np.allclose(Y[~mask], 0)
    sizes = np.linalg.norm(Y, axis=0) if columns else np.abs(Y)
    assert sizes.max() <= result.lam * (1 + 1e-12)
    dual = np.sum(M * Y) - nu / 2 * np.sum(Y**2)
    R = np.where(mask, M - result.L, 0)
    size = np.linalg.norm(R, axis=0) if columns else np.abs(R)
    knee = result.lam * nu
    if nu == 0:
        fit = result.lam * size.sum()
    else:
        quadratic = size**2 / (2 * nu)
        fit = np.where(size <= knee, quadratic, result.lam * (size - knee / 2)).sum()
    primal = np.linalg.norm(result.L, "nuc") + fit
    return primal, (primal - dual) / primal


def test_recovers_the_planted_parts_to_the_tolerance():
    L, S = planted(120, 80, 4, 0.05)
    result = robust_pca(L + S)
    assert result.status is Status.OPTIMAL
    assert result.rank == 4
    assert result.gap <= TOL
    assert relative(result.L, L) < 10 * TOL
    assert relative(result.S, S) < 10 * TOL
    assert np.array_equal(result.S != 0, S != 0)
    assert result.lam == pytest.approx(1 / np.sqrt(120))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("missing", [False, True])
def test_agrees_with_cvxpy_and_proves_it(columns, noise, missing):
    rng = np.random.default_rng(1)
    L, S = planted(12, 9, 2, 0.1, seed=1)
    M = L + S + noise * rng.standard_normal(L.shape)
    mask = rng.random(M.shape) < 0.8 if missing else np.ones(M.shape, bool)
    given_M = np.where(mask, M, np.nan)
    kind = "columns" if columns else "entries"
    lam = 0.4 if columns else None
    how = {"mask": mask, "noise": noise, "outliers": kind}
    result = robust_pca(given_M, lam, max_iter=5000, tol=1e-6, **how)
    nu = noise * np.sqrt(mask.mean()) * (np.sqrt(12) + np.sqrt(9))
    primal, gap = gap_by_hand(M, result, mask, nu, columns)
    assert result.status is Status.OPTIMAL
    assert gap <= 2e-6
    assert result.objective == pytest.approx(primal, rel=1e-10)
    X, E = cp.Variable(M.shape), cp.Variable(M.shape)
    R = cp.multiply(mask, np.where(mask, M, 0) - X - E)
    sparse = cp.sum(cp.norm(E, axis=0)) if columns else cp.sum(cp.abs(E))
    objective = cp.normNuc(X) + result.lam * sparse
    if noise:
        problem = cp.Problem(cp.Minimize(objective + cp.sum_squares(R) / (2 * nu)))
    else:
        problem = cp.Problem(cp.Minimize(objective), [R == 0])
    problem.solve(solver="CLARABEL")
    assert result.objective == pytest.approx(problem.value, rel=CVXPY)


def test_the_optimum_is_found_where_a_growing_penalty_stops_short():
    # Outside of exact recovery: a penalty that only grows leaves a gap of several per cent here.
    L, S = planted(100, 60, 15, 0.2)
    result = robust_pca(L + S)
    assert result.status is Status.OPTIMAL
    assert gap_by_hand(L + S, result)[1] <= 2 * TOL


def test_the_penalty_comes_to_rest():
    # A penalty that balances the residuals for ever goes round in circles on this matrix.
    result = robust_pca(np.random.default_rng(222).standard_normal((11, 2)))
    assert result.status is Status.OPTIMAL


def test_missing_entries_are_filled():
    L, S = planted(150, 100, 3, 0.05)
    mask = np.random.default_rng(2).random(L.shape) < 0.7
    result = robust_pca(np.where(mask, L + S, np.inf), mask=mask)
    assert result.status is Status.OPTIMAL
    assert relative(result.L, L) < 100 * TOL
    assert not result.S[~mask].any()


def test_outlier_columns_are_named():
    rng = np.random.default_rng(3)
    L, _ = planted(60, 80, 3, 0)
    S = np.zeros_like(L)
    bad = rng.choice(80, 6, replace=False)
    S[:, bad] = 3 * rng.standard_normal((60, 6))
    L[:, bad] = 0
    result = robust_pca(L + S, 0.6, outliers="columns")
    found = np.flatnonzero(result.S.any(axis=0))
    assert set(found) == set(bad)
    good = np.setdiff1d(np.arange(80), bad)
    assert relative(result.L[:, good], L[:, good]) < 100 * TOL


def test_dense_noise_is_left_out_of_both_parts():
    rng = np.random.default_rng(4)
    L, S = planted(150, 120, 3, 0.05, amplitude=10)
    sigma = 0.1
    M = L + S + sigma * rng.standard_normal(L.shape)
    stable, exact = robust_pca(M, noise=sigma), robust_pca(M, max_iter=3000)
    assert stable.rank == 3 < exact.rank
    assert (stable.S != 0).mean() < 0.15 < (exact.S != 0).mean()
    assert stable.status is Status.OPTIMAL


def test_complex_matrix():
    rng = np.random.default_rng(5)
    shape = (60, 40)
    U, V = (rng.standard_normal((k, 2)) + 1j * rng.standard_normal((k, 2)) for k in shape)
    L = U @ V.conj().T
    S = 6 * np.exp(2j * np.pi * rng.random(shape)) * (rng.random(shape) < 0.05)
    result = robust_pca(L + S)
    assert result.status is Status.OPTIMAL
    assert result.L.dtype == np.complex128
    assert relative(result.L, L) < 100 * TOL


@pytest.mark.parametrize("solve", [robust_pca, lambda M: go_dec(M, 2, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_in_torch_out(solve, dtype):
    L, S = planted(40, 30, 2, 0.03)
    result = solve(torch.from_numpy(L + S).to(dtype))
    assert result.L.dtype == result.S.dtype == dtype
    same = solve((L + S).astype(str(dtype).split(".")[1]))
    assert isinstance(same.L, np.ndarray)
    assert same.L.dtype == str(dtype).split(".")[1]
    assert np.array_equal(same.L, result.L.numpy())


def test_input_is_left_as_it_was():
    L, S = planted(20, 15, 2, 0.05)
    M = L + S
    mask = np.ones(M.shape, bool)
    mask[0, 0] = False
    M[0, 0] = np.nan
    before = M.copy()
    robust_pca(M, mask=mask)
    assert np.array_equal(M, before, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31), st.floats(-4, 4))
def test_any_shape_and_scale_ends_certified(m, n, seed, exponent):
    M = 10.0**exponent * np.random.default_rng(seed).standard_normal((m, n))
    result = robust_pca(M, max_iter=5000)
    assert result.status is Status.OPTIMAL
    assert result.residual_norm <= TOL * np.linalg.norm(M)
    assert gap_by_hand(M, result)[1] <= 2 * TOL


@pytest.mark.parametrize("unit", [2.0**-700, 2.0**700])
def test_units_do_not_matter(unit):
    L, S = planted(30, 20, 2, 0.05)
    here, there = robust_pca(L + S), robust_pca((L + S) * unit)
    assert there.status is Status.OPTIMAL
    assert there.rank == here.rank == 2
    np.testing.assert_allclose(there.L / unit, here.L, atol=1e-6)
    np.testing.assert_allclose(there.S / unit, here.S, atol=1e-6)
    assert there.objective / unit == pytest.approx(here.objective)
    noisy = robust_pca((L + S) * unit, noise=0.1 * unit)
    np.testing.assert_allclose(noisy.L / unit, robust_pca(L + S, noise=0.1).L, atol=1e-5)
    for found in (
        go_dec((L + S) * unit, 2, int((S != 0).sum())),
        greedy_bilateral((L + S) * unit, int((S != 0).sum())),
    ):
        assert found.status is Status.CONVERGED
        np.testing.assert_allclose(found.L / unit, L, atol=1e-5)


@pytest.mark.parametrize("M", [np.zeros((4, 3)), np.ones((5, 1)), np.ones((1, 1)), np.eye(4)])
def test_degenerate_matrices(M):
    result = robust_pca(M)
    assert result.status is Status.OPTIMAL
    assert np.allclose(result.L + result.S, M, atol=TOL)
    integer = robust_pca(M.astype(int))
    assert integer.L.dtype == np.float64


def test_too_few_iterations_say_so():
    L, S = planted(60, 40, 3, 0.05)
    result = robust_pca(L + S, max_iter=3)
    assert result.status is Status.MAX_ITER
    assert list(result.history) == ["primal_residual", "dual_residual"]
    assert [len(values) for values in result.history.values()] == [result.n_iter] * 2 == [3] * 2
    assert result.gap > TOL


def test_go_dec_and_greedy_bilateral_recover_exactly():
    L, S = planted(120, 90, 4, 0.05)
    card = int((S != 0).sum())
    given_rank, found_rank = go_dec(L + S, 4, card), greedy_bilateral(L + S, card)
    for result in (given_rank, found_rank):
        assert result.status is Status.CONVERGED
        assert result.rank == 4
        assert result.gap is None
        assert relative(result.L, L) < 10 * TOL
        assert (result.S != 0).sum() <= card
    assert go_dec(L + S, 4, card).objective == given_rank.objective  # one seed, one answer


def test_greedy_bilateral_stops_at_the_largest_rank():
    L, S = planted(60, 40, 5, 0.02)
    result = greedy_bilateral(L + S, int((S != 0).sum()), max_rank=2)
    assert result.status is Status.MAX_ITER
    assert result.rank == 2


def test_go_dec_degenerate():
    assert not go_dec(np.zeros((4, 3)), 1, 2).L.any()
    M = np.random.default_rng(0).standard_normal((6, 4))
    assert np.allclose(go_dec(M, 4, 0).L, M)
    s = np.linalg.svd(M, compute_uv=False)
    best = go_dec(M, 2, 0, tol=1e-12)  # without a sparse part: Eckart-Young
    assert best.objective == pytest.approx(float((s[2:] ** 2).sum()), rel=1e-9)


MATRIX = np.ones((4, 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: robust_pca(np.full((3, 3), np.nan)), "9 observed values"),
        (lambda: robust_pca(np.ones(3)), "need a non-empty"),
        (lambda: robust_pca([[1.0]]), "a list"),
        (lambda: robust_pca(np.array([["a"]])), "need numbers"),
        (lambda: robust_pca(MATRIX, 0), "lam=0"),
        (lambda: robust_pca(MATRIX, -1.0), "lam=-1.0"),
        (lambda: robust_pca(MATRIX, noise=-0.1), "noise"),
        (lambda: robust_pca(MATRIX, tol=0), "tol"),
        (lambda: robust_pca(MATRIX, max_iter=0), "max_iter"),
        (lambda: robust_pca(MATRIX, outliers="rows"), "'columns'"),
        (lambda: robust_pca(MATRIX, mask=np.ones((3, 4), bool)), "mask is"),
        (lambda: robust_pca(MATRIX, mask=np.ones((4, 3))), "need bool"),
        (lambda: robust_pca(MATRIX, mask=np.zeros((4, 3), bool)), "no entry"),
        (lambda: go_dec(MATRIX, 4, 1), "rank=4"),
        (lambda: go_dec(MATRIX, 1, 13), "card=13"),
        (lambda: greedy_bilateral(MATRIX, 1, step=0), "step=0"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()


def _found(kind: str, **options: int) -> LowRankParts[np.ndarray]:
    if kind == "complete":
        return complete(MATRIX, np.eye(*MATRIX.shape) == 0, **options)
    if kind == "complete, rank":
        return complete(MATRIX, np.eye(*MATRIX.shape) == 0, rank=1, **options)
    if kind == "go_dec":
        return go_dec(MATRIX, 1, 2, **options)
    return robust_pca(MATRIX, **options)


def _left_by_hand(kind: str, found: LowRankParts[np.ndarray]) -> float:
    if kind.startswith("complete"):
        return float(np.linalg.norm((MATRIX - found.L)[np.eye(*MATRIX.shape) == 0]))
    return float(np.linalg.norm(MATRIX - found.L - found.S))


KINDS = ("robust_pca", "go_dec", "complete", "complete, rank")


@pytest.mark.parametrize("kind", KINDS)
def test_results_speak_one_vocabulary_with_recovery(kind: str) -> None:
    found, again = _found(kind), _found(kind)
    assert found.status is (Status.OPTIMAL if found.gap is not None else Status.CONVERGED)
    assert found.status.ok
    assert isinstance(found.status, lowrank.sensing.Status)
    assert found == found
    assert found != again
    assert len({found, again, found}) == 2
    assert len(repr(found)) < 200
    assert repr(found).startswith(f"{type(found).__name__}({found.status.name}: ")
    figures = json.loads(json.dumps(found.to_dict()))
    assert figures["status"] == found.status.name.lower()
    assert (figures["shape"], figures["rank"]) == (list(MATRIX.shape), found.rank)
    signal = lowrank.recover(MATRIX, MATRIX @ np.ones(MATRIX.shape[1]), noise=0.1)
    assert signal.to_dict()["shape"] == list(signal.x.shape)
    shared = {"status", "shape", "n_iter", "objective", "gap", "residual_norm"}
    assert shared <= set(figures) & set(signal.to_dict())
    assert found.residual_norm == pytest.approx(_left_by_hand(kind, found), rel=1e-6, abs=1e-9)
    assert set(map(len, found.history.values())) == {found.n_iter}
    kept = pickle.loads(pickle.dumps(found))
    assert kept.status is found.status
    assert np.array_equal(kept.L, found.L)


@pytest.mark.parametrize("kind", ["robust_pca", "complete"])
def test_what_is_unfinished_says_what_to_do(kind: str) -> None:
    found = _found(kind, max_iter=1)
    assert found.status is Status.MAX_ITER
    assert "raise max_iter" in repr(found)
