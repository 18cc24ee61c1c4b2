"""Greedy solvers and sparse Bayesian learning: against exhaustive search, peers and oracles."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensing_cases import MAY_STOP_SHORT, NOT_CONVEX
from sklearn.linear_model import orthogonal_mp

from lowrank.errors import InputError
from lowrank.sensing import (
    MCP,
    SCAD,
    SOLVERS,
    BestSubset,
    KSparse,
    PosteriorMean,
    Status,
    operators,
    solve,
    sparse_signal,
)
from lowrank.sensing.solvers.cosamp import CoSaMP
from lowrank.sensing.solvers.iht import IHT
from lowrank.sensing.solvers.omp import OMP, orthogonalise
from lowrank.sensing.solvers.sbl import SBL
from lowrank.sensing.solvers.subspace_pursuit import SubspacePursuit

EXACT = 1e-9
"""Least squares on the right support: condition number times round-off, with room."""
STEPS = 1e-7
"""Gradient steps stopped at a relative change of 1e-10, at a contraction of up to 0.999."""
GREEDY = [OMP(), CoSaMP(), SubspacePursuit(), IHT("htp")]
GRADIENT = [IHT("niht"), IHT("iht")]


def instance(m, n, k, seed=0, kind="gaussian", batch=None):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n))
    if kind == "complex":
        A = A + 1j * rng.standard_normal((m, n))
    A /= np.linalg.norm(A, axis=0)
    x = [sparse_signal(n, k, seed=rng, kind=kind) for _ in range(batch or 1)]
    x = np.stack(x, axis=1) if batch else x[0]
    return A, x


def error(found, x):
    return float(np.linalg.norm(found - x) / np.linalg.norm(x))


@pytest.mark.parametrize("kind", ["gaussian", "sign", "complex"])
@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("solver", [*GREEDY, IHT("niht")], ids=repr)
def test_recovers_and_says_so(solver, kind, batch):
    A, x = instance(60, 120, 6, kind=kind, batch=batch)
    result = solve(KSparse(A, A @ x, 6), solver)
    assert result.status is Status.CONVERGED
    assert error(result.x, x) < (STEPS if solver in GRADIENT else EXACT)
    assert result.gap is None
    assert result.n_products > 0
    assert result.x.dtype == (complex if kind == "complex" else float)


@pytest.mark.parametrize("solver", GREEDY + GRADIENT, ids=repr)
def test_matrix_free_and_unscaled_columns(solver):
    A, x = instance(40, 64, 4)
    D = operators.partial_dct(64, rows=np.sort(np.random.default_rng(1).permutation(64)[:40]))
    result = solve(KSparse(D, D @ x, 4), solver)
    assert error(result.x, x) < STEPS
    scaled = A * np.geomspace(0.1, 10, 64)
    if isinstance(solver, OMP):  # the others are not invariant to the columns' scale
        assert error(solve(KSparse(scaled, scaled @ x, 4), solver).x, x) < EXACT


@pytest.mark.parametrize("name", ["omp", "cosamp", "subspace_pursuit", "iht", "sbl"])
def test_listed(name):
    assert name in SOLVERS


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 16), st.integers(1, 4), st.integers(0, 10**6))
def test_omp_is_scikit_learns(m, n, k, seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n))
    A /= np.linalg.norm(A, axis=0)
    Y = rng.standard_normal((m, 3))
    k = min(k, m - 1, n)
    ours = OMP().solve(KSparse(A, Y, k)).coefficients
    theirs = orthogonal_mp(A, Y, n_nonzero_coefs=k).reshape(n, 3)
    for a, b, y in zip(ours.T, theirs.T, Y.T, strict=True):
        same = np.array_equal(a != 0, b != 0)
        tie = abs(np.linalg.norm(y - A @ a) - np.linalg.norm(y - A @ b)) < 1e-6
        assert tie
        if same:
            assert a == pytest.approx(b, abs=1e-8)


def test_omp_blocks_do_not_change_the_answer(monkeypatch):
    A, X = instance(40, 80, 5, batch=9)
    problem = KSparse(A, A @ X + 0.01 * np.random.default_rng(1).standard_normal((40, 9)), 5)
    whole = OMP().solve(problem).coefficients
    monkeypatch.setattr("lowrank.sensing.solvers.omp.BLOCK_BYTES", 1)
    assert np.allclose(OMP().solve(problem).coefficients, whole, atol=EXACT)
    single = [OMP().solve(KSparse(A, y, 5)).coefficients for y in np.asarray(problem.y).T]
    assert np.allclose(np.stack(single, axis=1), whole, atol=EXACT)


def test_omp_residual_is_least_squares_on_ill_conditioned_columns():
    rng = np.random.default_rng(3)
    base = rng.standard_normal((30, 1))
    A = base + 1e-6 * rng.standard_normal((30, 20))  # columns all but parallel
    y = rng.standard_normal(30)
    c = OMP().solve(KSparse(A, y, 12)).coefficients
    S = np.flatnonzero(c)
    assert S.size == 12
    best = np.linalg.lstsq(A[:, S], y, rcond=None)[1][0]
    assert np.linalg.norm(y - A @ c) ** 2 == pytest.approx(best, rel=1e-6)


def test_orthogonalise_restores_what_cancellation_lost():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((30, 5)))[0].T[None]
    a = Q.sum(axis=1) + 1e-7 * rng.standard_normal((1, 30))
    along, q, rest = orthogonalise(Q, a)
    assert np.abs(Q[0] @ q[0]).max() < 1e-14  # one pass leaves 1e-16 / 1e-7
    assert np.allclose(along @ Q[0] + rest * q, a, atol=1e-15)


@pytest.mark.parametrize("solver", GREEDY, ids=repr)
def test_against_exhaustive_search(solver):
    hits = 0
    for seed in range(20):
        A, x = instance(10, 14, 2, seed=seed)
        y = A @ x + 0.01 * np.random.default_rng(seed).standard_normal(10)
        pairs = map(list, itertools.combinations(range(14), 2))
        best = min(np.linalg.lstsq(A[:, S], y, rcond=None)[1][0] for S in pairs) ** 0.5
        result = solve(KSparse(A, y, 2), solver)
        assert result.residual_norm >= best * (1 - EXACT)
        hits += result.residual_norm <= best * (1 + 1e-9)
    assert hits >= 14  # two columns out of 14 in ten dimensions are hard for a greedy choice


@pytest.mark.parametrize("solver", GREEDY + GRADIENT, ids=repr)
@pytest.mark.parametrize("case", ["zero", "duplicates", "k = m", "zero column", "too many"])
def test_degenerate(solver, case):
    A, x = instance(8, 12, 2)
    k = {"k = m": 8, "too many": 5}.get(case, 2)
    y = A @ x * (case != "zero")
    if case == "duplicates":
        A = np.hstack([A, A[:, :4]])
    if case == "zero column":
        A[:, np.flatnonzero(x == 0)[0]] = 0
    result = solve(KSparse(A, y, k), solver)
    assert np.isfinite(result.x).all()
    assert np.count_nonzero(result.x) <= k
    assert result.residual_norm <= np.linalg.norm(y) * (1 + EXACT)


def test_unsuitable_matrices_end_with_a_status():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((20, 60)) + 3  # strongly coherent
    y = A @ sparse_signal(60, 8, seed=1)
    for solver in (CoSaMP(max_iter=5), IHT("niht", max_iter=5), IHT("iht", max_iter=5)):
        result = solver.solve(KSparse(A, y, 8))
        assert result.status in (Status.MAX_ITER, Status.STALLED, Status.CONVERGED)
        assert result.n_iter <= 5
    with pytest.raises(InputError, match="variant"):
        IHT("fast")


def test_iht_always_descends():
    A, x = instance(30, 60, 5)
    y = A @ x + 0.1 * np.random.default_rng(0).standard_normal(30)
    for variant in ("iht", "niht"):
        history = IHT(variant).solve(KSparse(A, y, 5)).history["residual_norm"]
        assert all(b <= a * (1 + EXACT) for a, b in itertools.pairwise(history))


def test_callback_stops():
    A, x = instance(30, 60, 5)
    problem = KSparse(A, A @ x + 0.1, 5)
    calls = []
    result = IHT("iht").solve(problem, callback=lambda i, c: calls.append(i) or i == 3)
    assert calls == [1, 2, 3]
    assert result.status is Status.MAX_ITER


@pytest.mark.parametrize("kind", ["sign", "complex"])
@pytest.mark.parametrize("noise", [0.01, None])
def test_sbl_is_near_the_oracle(kind, noise):
    A, x = instance(60, 120, 8, kind=kind)
    rng = np.random.default_rng(5)
    e = 0.01 * rng.standard_normal(60)
    y = A @ x + e
    result = solve(PosteriorMean(A, y, noise), "sbl")
    S = np.flatnonzero(x)
    oracle = np.linalg.lstsq(A[:, S], y, rcond=None)[0]
    assert result.status is Status.CONVERGED
    big = np.abs(result.x) > 0.1
    assert np.array_equal(np.flatnonzero(big), S)
    assert np.linalg.norm(result.x - x) < 1.2 * np.linalg.norm(oracle - x[S])


def test_sbl_on_correlated_columns_without_noise_and_degenerate():
    rng = np.random.default_rng(2)
    A, x = instance(40, 80, 6, seed=2)
    A = A + 0.15 * rng.standard_normal((40, 1))
    assert error(solve(PosteriorMean(A, A @ x, 0.0), "sbl").x, x) < 1e-6  # the noise floor
    assert not solve(PosteriorMean(A, np.zeros(40), 0.1), "sbl").x.any()
    A[:, 0] = 0
    assert SBL().solve(PosteriorMean(A, A @ x, 0.01)).coefficients[0] == 0
    D = operators.partial_dct(64, rows=np.arange(40))
    free = PosteriorMean(operators.from_functions(D.shape, D.forward, D.adjoint), np.ones(40), 0.1)
    assert "matrix-free" in SBL().refuses(free)


PAIRS = [
    (name, case)
    for case, build in NOT_CONVEX.items()
    for name, solver in SOLVERS.items()
    if type(build()[0]) in solver.solves and solver().refuses(build()[0]) is None
]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_every_solver_of_a_problem_without_certificate_finds_the_signal(name, case):
    problem, c = NOT_CONVEX[case]()
    found = solve(problem, name)
    assert found.status is Status.CONVERGED
    assert found.gap is None
    assert found.coefficients.shape == c.shape
    assert found.coefficients.dtype == c.dtype
    if not any(word in case for word in MAY_STOP_SHORT.get(name, ())):
        assert error(found.coefficients, c) < STEPS


def test_the_table_names_every_solver_without_certificate():
    assert {name for name, _ in PAIRS} == {
        name
        for name, s in SOLVERS.items()
        if any(not p.convex and p not in (BestSubset, MCP, SCAD) for p in s.solves)
    }
