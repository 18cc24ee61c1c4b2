"""Diagnostics against brute force; phase-transition curves against values from the literature."""

import itertools
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from lowrank.errors import InputError
from lowrank.sensing import (
    babel,
    bayes_threshold,
    dual_certificate,
    irrepresentability,
    l1_threshold,
    mutual_coherence,
    null_space_constant,
    restricted_isometry,
    spark,
)
from lowrank.sensing.phase_transition import basis_pursuit, basis_pursuit_nonneg, phase_transition

ROUND = 1e-9
"""Round-off of a few products of small matrices, and HiGHS's default feasibility."""
FOUR_DIGITS = 5e-5
"""Rounding of thresholds printed with four digits."""
CURVE = 0.03
"""Finite-size distance from the asymptotic curve that n = 400 may show."""


def gaussian(m, n, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n)) / math.sqrt(m)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(2, 8), st.integers(0, 10**6), st.booleans())
def test_coherence_and_babel_by_definition(m, n, seed, is_complex):
    A = gaussian(m, n, seed) + (1j * gaussian(m, n, seed + 1) if is_complex else 0)
    unit = A / np.linalg.norm(A, axis=0)
    gram = np.abs(unit.conj().T @ unit)
    np.fill_diagonal(gram, 0)
    assert mutual_coherence(A) == pytest.approx(gram.max(), abs=ROUND)
    by_hand = [np.sort(gram, axis=1)[:, ::-1][:, :k].sum(axis=1).max() for k in range(1, n)]
    assert babel(A) == pytest.approx(by_hand, abs=ROUND)
    assert babel(A, 1) == pytest.approx(by_hand[:1], abs=ROUND)


def test_coherence_of_more_columns_than_one_block():
    A = gaussian(8, 2500)
    unit = A / np.linalg.norm(A, axis=0)
    assert mutual_coherence(A) == pytest.approx(np.triu(abs(unit.T @ unit), 1).max(), abs=ROUND)


def test_spark():
    assert spark(gaussian(4, 9)) == 5  # general position
    assert spark(np.eye(3)) == 4  # nothing is dependent
    assert spark(np.array([[1.0, 0, 2.0], [0, 1.0, 0]])) == 2  # parallel columns
    assert spark(np.array([[1.0, 0.0], [0.0, 0.0]])) == 1  # a zero column
    A = gaussian(6, 9)
    A[:, 8] = A[:, 0] + A[:, 1]
    assert spark(A) == 3
    fourier = np.exp(-2j * np.pi * np.outer(np.arange(3), np.arange(8)) / 8)
    assert spark(fourier) == 4  # Vandermonde: any three columns are independent


def test_restricted_isometry_sampled_below_exact():
    A = gaussian(6, 10)
    exact = restricted_isometry(A, 3)
    sampled = restricted_isometry(A, 3, samples=40, seed=1)
    values = [
        np.linalg.eigvalsh(A[:, S].T @ A[:, S])
        for S in map(list, itertools.combinations(range(10), 3))
    ]
    assert exact.exact
    assert exact.n_supports == 120
    assert exact.smallest == pytest.approx(min(v[0] for v in values), abs=ROUND)
    assert exact.largest == pytest.approx(max(v[-1] for v in values), abs=ROUND)
    assert not sampled.exact
    assert sampled.n_supports == 40
    assert sampled.constant <= exact.constant
    assert sampled == restricted_isometry(A, 3, samples=40, seed=1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 2, 3])
def test_null_space_constant_on_a_plane(seed, k):
    # A two-dimensional null space: scan its directions.
    A = gaussian(4, 6, seed)
    basis = np.linalg.svd(A)[2][4:].T
    angle = np.linspace(0, np.pi, 200_001)
    h = np.sort(np.abs(basis @ np.stack([np.cos(angle), np.sin(angle)])), axis=0)[::-1]
    scan = (h[:k].sum(axis=0) / h[k:].sum(axis=0)).max()
    exact = null_space_constant(A, k)
    assert exact >= scan * (1 - ROUND)
    assert exact == pytest.approx(scan, rel=1e-3)  # the scan's step


def test_null_space_constant_decides_recovery():
    assert null_space_constant(np.eye(3), 2) == 0
    assert null_space_constant(np.array([[1.0, 1.0, 0.0]]), 2) == math.inf
    A = gaussian(7, 10, 1)
    k = 1
    assert null_space_constant(A, k) < 1
    for i in range(10):
        x = np.zeros(10)
        x[i] = 1
        assert np.allclose(basis_pursuit(A, A @ x), x, atol=1e-7)


def test_dual_certificate_is_basis_pursuit():
    # The best certificate proves exactly those signals that basis pursuit recovers.
    proven = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        A = gaussian(8, 16, seed)
        support = rng.choice(16, 3, replace=False)
        signs = rng.choice([-1.0, 1.0], 3)
        x = np.zeros(16)
        x[support] = signs * rng.uniform(0.5, 2, 3)
        found = dual_certificate(A, support, signs)
        assert A[:, support].T @ found.v == pytest.approx(signs, abs=1e-7)
        assert found.off_support <= irrepresentability(A, support, signs) + 1e-7
        recovered = np.allclose(basis_pursuit(A, A @ x), x, atol=1e-6)
        assert recovered == found.proves
        proven += found.proves
    assert 0 < proven < 30


def test_irrepresentability():
    A = gaussian(10, 20)
    S = [1, 5, 7]
    pinv = np.linalg.pinv(A[:, S])
    rest = np.setdiff1d(np.arange(20), S)
    worst = np.abs(pinv @ A[:, rest]).sum(axis=0).max()
    every = [irrepresentability(A, S, s) for s in itertools.product([1.0, -1.0], repeat=3)]
    assert irrepresentability(A, S) == pytest.approx(worst, abs=ROUND)
    assert max(every) == pytest.approx(worst, abs=ROUND)
    assert irrepresentability(np.ones((2, 3)), [0, 1]) == math.inf
    assert not dual_certificate(np.ones((2, 3)), [0, 1], [1.0, -1.0]).proves


@pytest.mark.parametrize(
    ("delta", "l1", "nonneg"),
    [
        (0.1, 0.1894, 0.2410),
        (0.25, 0.2674, 0.3651),
        (0.5, 0.3857, 0.5582),
        (0.75, 0.5337, 0.7659),
    ],
)
def test_donoho_tanner_thresholds(delta, l1, nonneg):
    assert l1_threshold(delta) == pytest.approx(l1, abs=FOUR_DIGITS)
    assert l1_threshold(delta, nonneg=True) == pytest.approx(nonneg, abs=FOUR_DIGITS)


def test_thresholds_at_the_ends():
    for delta in (1e-6, 1e-3, 0.999):
        assert 0 < l1_threshold(delta) < l1_threshold(delta, nonneg=True) < 1
        assert l1_threshold(delta) < bayes_threshold(delta) < 1
    assert l1_threshold(0.9999) > 0.98


def mmse_by_quadrature(tau, eps):
    """E[x^2] - E[E[x | r]^2] straight from the definition."""

    def density(r, v):
        return math.exp(-r * r / (2 * v)) / math.sqrt(2 * math.pi * v)

    def squared_mean(r):
        slab, spike = eps * density(r, 1 + tau**2), (1 - eps) * density(r, tau**2)
        if slab + spike == 0:
            return 0.0
        return (slab / (slab + spike) * r / (1 + tau**2)) ** 2 * (slab + spike)

    ends = [0, *(tau * np.arange(1, 9)), 12 * math.sqrt(1 + tau**2)]
    return eps - 2 * sum(quad(squared_mean, a, b)[0] for a, b in itertools.pairwise(ends))


@pytest.mark.parametrize("delta", [0.25, 0.5])
def test_bayes_threshold_by_its_definition(delta):
    rho = bayes_threshold(delta)
    taus = np.geomspace(0.03, 3, 40)

    def worst(eps):
        return max(mmse_by_quadrature(t, eps) / (delta * t * t) for t in taus)

    assert worst(0.97 * rho * delta) < 1 < worst(1.03 * rho * delta)


GRID = ([0.3, 0.6], [0.1, 0.3, 0.5, 0.7])


def counting(calls, stop=None):
    def recover(A, y):
        calls.append(A.shape)
        if stop is not None and len(calls) > stop:
            raise KeyboardInterrupt
        return basis_pursuit(A, y)

    return recover


def test_phase_transition_resumes_to_the_same_answer(tmp_path):
    path = tmp_path / "runs" / "grid.json"
    calls = []
    whole = phase_transition(*GRID, n=30, trials=4, recover=counting([]))
    with pytest.raises(KeyboardInterrupt):
        phase_transition(*GRID, n=30, trials=4, recover=counting(calls, stop=14), path=path)
    assert [p.name for p in path.parent.iterdir()] == ["grid.json"]
    saved = len(json.loads(path.read_text())["successes"])
    assert saved == 3
    calls.clear()
    resumed = phase_transition(*GRID, n=30, trials=4, recover=counting(calls), path=path)
    assert len(calls) == (8 - saved) * 4
    assert np.array_equal(resumed.successes, whole.successes)
    calls.clear()
    phase_transition(*GRID, n=30, trials=4, recover=counting(calls), path=path)
    assert not calls
    before = path.read_text()
    with pytest.raises(InputError, match="trials differ"):
        phase_transition(*GRID, n=30, trials=5, recover=counting([]), path=path)
    assert path.read_text() == before
    path.write_text("{")
    with pytest.raises(InputError, match="not a phase transition file"):
        phase_transition(*GRID, n=30, trials=4, path=path)


def test_phase_transition_on_an_executor(tmp_path):
    with ThreadPoolExecutor(2) as executor:
        path = tmp_path / "grid.json"
        parallel = phase_transition(*GRID, n=30, trials=3, executor=executor, path=path)

        def broken(A, y):
            raise ArithmeticError("broken")

        with pytest.raises(ArithmeticError):
            phase_transition(*GRID, n=30, trials=3, executor=executor, recover=broken)
    serial = phase_transition(*GRID, n=30, trials=3)
    assert np.array_equal(parallel.successes, serial.successes)
    assert parallel.rhos.shape == parallel.fraction.shape == (2, 4)


def test_threshold_of_a_known_logistic():
    class Known:
        rhos = np.linspace(0, 1, 11)[None]
        trials = 10**6
        successes = np.rint(trials / (1 + np.exp(20 * (rhos - 0.42))))

    from lowrank.sensing import PhaseTransition

    found = PhaseTransition(1, np.array([0.5]), Known.rhos, Known.successes, Known.trials)
    assert found.threshold()[0] == pytest.approx(0.42, abs=1e-4)
    never = PhaseTransition(1, np.array([0.5]), Known.rhos, 0 * Known.successes, 3)
    assert np.isnan(never.threshold()).all()


@pytest.mark.parametrize(
    ("recover", "kind", "nonneg"),
    [(basis_pursuit, "gaussian", False), (basis_pursuit_nonneg, "uniform", True)],
)
def test_short_phase_transition_is_near_the_curve(recover, kind, nonneg):
    exact = l1_threshold(0.5, nonneg=nonneg)
    rhos = exact + np.linspace(-0.1, 0.1, 5)
    found = phase_transition([0.5], rhos, n=200, trials=8, recover=recover, kind=kind)
    assert found.threshold()[0] == pytest.approx(exact, abs=2 * CURVE)  # few trials, smaller n


@pytest.mark.slow
def test_phase_transition_at_400_is_on_the_curve():
    deltas = [0.25, 0.5]
    exact = np.array([l1_threshold(d) for d in deltas])
    rhos = exact[:, None] + np.linspace(-0.12, 0.12, 13)
    found = phase_transition(deltas, rhos, n=400, trials=25, seed=1)
    assert np.abs(found.threshold() - exact).max() <= CURVE


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mutual_coherence(np.ones((3, 1))), "1 columns"),
        (lambda: mutual_coherence(np.eye(3)[:, [0, 0]] * [1, 0]), "zero"),
        (lambda: babel(np.eye(3), 3), "k=3"),
        (lambda: spark(gaussian(30, 60)), "subsets"),
        (lambda: restricted_isometry(np.eye(3), 4), "k=4"),
        (lambda: null_space_constant(1j * np.eye(3), 1), "complex"),
        (lambda: null_space_constant(gaussian(10, 60), 5), "linear programs"),
        (lambda: null_space_constant(np.eye(2), 0), "k=0"),
        (lambda: dual_certificate(np.eye(3), [0, 0], [1.0, 1.0]), "support"),
        (lambda: dual_certificate(np.eye(3), [0], [1.0, 1.0]), "signs"),
        (lambda: irrepresentability(np.eye(3), [3]), "support"),
        (lambda: l1_threshold(1.0), "delta=1.0"),
        (lambda: bayes_threshold(0.0), "delta=0.0"),
        (lambda: phase_transition([0.0], [0.5]), "m / n"),
        (lambda: phase_transition([0.5], [1.5]), "k / m"),
        (lambda: phase_transition([0.5], [[0.5], [0.5]]), "shape"),
        (lambda: phase_transition([0.5], [0.5], trials=0), "trials=0"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(InputError, match=words):
        call()
