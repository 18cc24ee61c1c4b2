"""Exact L1 against linear programs, CVXPY and random search; message passing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

from lowrank.sensing import (
    BPDN,
    BasisPursuit,
    L1Fit,
    Lasso,
    PosteriorMean,
    Status,
    bases,
    certify,
    operators,
    solve,
)
from lowrank.sensing.solvers.active_set import basis_pursuit_target, make_segment, settle
from lowrank.sensing.solvers.amp import AMP, minimax_threshold
from lowrank.sensing.solvers.bg_amp import BernoulliGaussianAMP
from lowrank.sensing.solvers.column_pool import ColumnPool
from lowrank.sensing.solvers.dense_l1 import Goal
from lowrank.sensing.solvers.exact_l1 import ExactL1, by_linear_program
from lowrank.sensing.solvers.exact_l1_matrix_free import ExactL1MatrixFree, formed
from lowrank.sensing.solvers.homotopy import Homotopy, by_path, by_perturbed_path
from lowrank.sensing.solvers.interior_point import MehrotraInteriorPoint
from lowrank.sensing.solvers.simplex import pivot_to_optimum
from lowrank.sensing.solvers.vamp import VAMP

CERTIFIED = 1e-8  # the default accuracy, of the relative gap and of the constraint
LP_ACCURACY = 1e-6  # HiGHS at its default feasibility tolerance of 1e-7
KINDS = ("gauss", "ar", "dup", "sign", "int", "power", "scaled", "lowrank", "sparse")


def random_matrix(kind: str, m: int, n: int, rng: np.random.Generator) -> np.ndarray:
    A = rng.standard_normal((m, n))
    if kind == "ar":
        rho = rng.choice([0.8, 0.95, 0.99])
        for j in range(1, n):
            A[:, j] = rho * A[:, j - 1] + np.sqrt(1 - rho**2) * A[:, j]
    elif kind == "dup":
        A[:, n // 2 :] = A[:, : n - n // 2] * rng.choice([-1, 1], n - n // 2)
    elif kind == "sign":
        A = rng.choice([-1.0, 1.0], (m, n))
    elif kind == "int":
        A = rng.integers(-2, 3, (m, n)).astype(float)
    elif kind == "scaled":
        A *= 10.0 ** rng.uniform(-3, 3, n)
    elif kind == "lowrank":
        r = max(1, min(m, n) // 2)
        A = A[:, :r] @ rng.standard_normal((r, n))
    elif kind == "sparse":
        A *= rng.random((m, n)) < 0.3
    return A


def random_problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """A small problem of any kind: matrix, measurements, weights, lower bound."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 80))
    m = int(rng.integers(2, n + 1)) if rng.random() < 0.85 else int(rng.integers(n, n + 30))
    kind = str(rng.choice(KINDS))
    A = random_matrix(kind, m, n, rng)
    k = int(rng.integers(1, max(2, min(m, n))))
    values = [rng.standard_normal(k), rng.choice([-1.0, 1.0], k), np.arange(1, k + 1.0) ** -1.5]
    x = np.zeros(n)
    x[rng.permutation(n)[:k]] = values[rng.integers(3)]
    if kind == "power":
        x = rng.choice([-1, 1], n) * np.arange(1, n + 1.0) ** -1.0
    if kind == "scaled" and rng.random() < 0.5:
        x /= np.linalg.norm(A, axis=0)
    nonneg = rng.random() < 0.2
    weights = np.ones(n) if rng.random() < 0.7 else 10.0 ** rng.uniform(-1, 1, n)
    return A, A @ (np.abs(x) if nonneg else x), weights, 0.0 if nonneg else -np.inf


def linear_program_value(A: np.ndarray, y: np.ndarray, w: np.ndarray, lower: float) -> float:
    split = A if lower == 0 else np.hstack([A, -A])
    cost = w if lower == 0 else np.tile(w, 2)
    return float(linprog(cost, A_eq=split, b_eq=y, method="highs").fun)


def search(seeds: range) -> list[int]:
    """Solve random problems; return those without a proof. A false claim fails at once."""
    unproven = []
    for seed in seeds:
        A, y, weights, lower = random_problem(seed)
        problem = BasisPursuit(A, y, weights=weights, lower=lower)
        result = ExactL1().solve(problem)
        proven = certify(problem, result.coefficients, result.dual).holds(CERTIFIED)
        assert proven or result.status is not Status.OPTIMAL, f"seed {seed}: {result.note}"
        unproven += [] if proven else [seed]
    return unproven


def test_random_problems_all_end_in_a_proof() -> None:
    assert search(range(150)) == []


@pytest.mark.fuzz
def test_long_search_leaves_hardly_any_without_a_proof() -> None:
    """With bounds that span seven decades, rounding in `A^T u` alone costs a gap of 2e-8."""
    assert len(search(range(150, 3150))) <= 6


def tied_problem(seed: int) -> Lasso:
    rng = np.random.default_rng(seed)
    A = rng.choice([-1.0, 1.0], (5, 40))  # with many columns equal up to sign
    y = A[:, :3].sum(axis=1) + 0.1 * rng.standard_normal(5)
    return Lasso(A, y, 1e-3)


def test_ties_that_mislead_the_path_are_taken_apart() -> None:
    """Which seeds mislead it is up to the last bit of BLAS; every fifth one or so does."""
    misled = 0
    for problem in map(tied_problem, range(40)):
        pool = ColumnPool(np.asarray(problem.operator.dense), problem.y, np.ones(40))
        misled += by_path(pool, Goal(lam=problem.lam)) is None
        answer = by_perturbed_path(pool, Goal(lam=problem.lam))
        assert answer is not None
        assert certify(problem, answer.x, answer.u).holds(CERTIFIED)
        result = ExactL1().solve(problem)  # which solves columns equal up to sign as one
        assert certify(problem, result.coefficients, result.dual).holds(CERTIFIED)
    assert misled >= 3


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_basis_pursuit_agrees_with_the_linear_program(seed: int) -> None:
    A, y, weights, lower = random_problem(seed)
    found = solve(BasisPursuit(A, y, weights=weights, lower=lower), "exact_l1")
    value = linear_program_value(A, y, weights, lower)
    assert found.objective == pytest.approx(value, rel=LP_ACCURACY, abs=LP_ACCURACY)


@pytest.mark.parametrize("kind", ["gauss", "ar", "dup", "sign", "scaled"])
@pytest.mark.parametrize("lower", [-np.inf, 0.0])
@pytest.mark.parametrize("make", [BPDN, Lasso])
def test_noisy_problems_agree_with_cvxpy(kind: str, lower: float, make: type) -> None:
    rng = np.random.default_rng(3)
    A = random_matrix(kind, 20, 45, rng)
    y = A[:, :4] @ np.ones(4) + 0.01 * rng.standard_normal(20)
    size = np.linalg.norm(y) if make is BPDN else np.abs(A.T @ y).max()
    problem = make(A, y, 0.1 * float(size), lower=lower)
    result = ExactL1().solve(problem)
    certificate = certify(problem, result.coefficients, result.dual)
    assert certificate.holds(1e-10)
    reference = solve(problem, "cvxpy")
    assert certificate.objective == pytest.approx(reference.objective, rel=1e-6)


@pytest.mark.parametrize("solver", [Homotopy(), MehrotraInteriorPoint(), ExactL1()])
@pytest.mark.parametrize("kind", ["gauss", "ar", "power"])
def test_each_link_solves_basis_pursuit_alone(solver: ExactL1, kind: str) -> None:
    rng = np.random.default_rng(5)
    A = random_matrix(kind, 40, 100, rng)
    x = np.where(np.arange(100) < 8, 1.0, 0.0) if kind != "power" else np.arange(1, 101.0) ** -1.0
    problem = BasisPursuit(A, A @ x)
    result = solver.solve(problem)
    assert certify(problem, result.coefficients, result.dual).holds(CERTIFIED)


def test_a_large_matrix_takes_the_single_precision_route_to_the_same_proof() -> None:
    rng = np.random.default_rng(0)
    A = 7.0 * rng.standard_normal((256, 1024))
    x = np.zeros(1024)
    x[:40] = rng.standard_normal(40)
    problem = BasisPursuit(A, A @ x)
    result = ExactL1().solve(problem)
    assert "message passing" in result.note
    assert certify(problem, result.coefficients, result.dual).holds(1e-13)
    assert np.abs(result.coefficients - x).max() < 1e-12


ROUNDED = ("float16", "float32", 3, 4, 5, 6, 7, 8)


def rounded(y: np.ndarray, how: str | int) -> np.ndarray:
    """Measurements as another precision, or so many digits, leaves them."""
    return np.round(y, how) if isinstance(how, int) else y.astype(how).astype(float)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("how", "nonneg"),
    # with c >= 0, what the last digits leave is neither in reach nor out of it to the tolerance
    [*[(how, False) for how in ROUNDED], *[(how, True) for how in ROUNDED if how not in (7, 8)]],
)
@pytest.mark.parametrize("kind", ["gauss", "sign", "scaled", "ar"])
def test_rounded_measurements_agree_with_the_linear_program(
    how: str | int, kind: str, nonneg: bool
) -> None:
    rng = np.random.default_rng(len(kind))
    A = random_matrix(kind, 30, 120, rng)
    x = np.zeros(120)
    x[rng.choice(120, 4, replace=False)] = np.abs(rng.standard_normal(4)) if nonneg else 1.0
    y = rounded(A @ x, how)
    weights = rng.uniform(0.5, 2, 120)
    problem = BasisPursuit(A, y, weights=weights, lower=0.0 if nonneg else -np.inf)
    found = solve(problem)
    split = A if nonneg else np.hstack([A, -A])
    cost = weights if nonneg else np.tile(weights, 2)
    reference = linprog(cost, A_eq=split, b_eq=y, method="highs")
    if reference.status == 2:  # what rounding leaves may be out of reach of c >= 0
        assert found.status is Status.INFEASIBLE
    else:
        assert found.status.ok
        assert found.objective == pytest.approx(reference.fun, rel=LP_ACCURACY)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["float32", 5, 6, 7, 8])
def test_rounding_is_a_scale_of_its_own(how: str | int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    A, x = rng.standard_normal((80, 800)), np.zeros(800)
    x[rng.choice(800, 6, replace=False)] = rng.standard_normal(6)
    found = solve(BasisPursuit(A, rounded(A @ x, how)))
    assert "homotopy by scales" in found.why  # the linear program would take a hundred times longer
    assert found.status.ok
    assert found.gap is not None
    assert found.gap < 1e-12
    seen: list[np.ndarray] = []

    def note(k: int, c: np.ndarray) -> None:
        seen.append(c)

    solve(BasisPursuit(A, rounded(A @ x, how)), callback=note)
    assert np.abs(seen[-1] - x).max() < 1e-3  # the large entries are there beside the tiny ones


def test_three_scales_are_taken_apart_one_by_one() -> None:
    rng = np.random.default_rng(1)
    A, x = rng.standard_normal((60, 300)), np.zeros(300)
    x[:6] = 1, -1, 2, 1e-5, -2e-5, 1e-5
    found = solve(BasisPursuit(A, A @ x + 1e-9 * rng.standard_normal(60)))
    assert found.status.ok
    assert found.gap is not None
    assert found.gap < 1e-12
    np.testing.assert_allclose(found.x[:6], x[:6], atol=1e-8)


def test_rounded_measurements_of_repeated_rows_are_infeasible() -> None:
    rng = np.random.default_rng(0)
    A = np.repeat(rng.standard_normal((10, 60)), 2, axis=0)
    x = np.zeros(60)
    x[:2] = 1.0, -2.0
    y = A @ x
    y[1::2] = rounded(y[1::2], "float16")  # each row is measured twice, and rounded once
    assert solve(BasisPursuit(A, y)).status is Status.INFEASIBLE


def test_linear_program_is_a_sound_last_resort() -> None:
    A, y, weights, _ = random_problem(4)
    answer = by_linear_program(ColumnPool(A, y, weights), Goal())
    assert answer is not None
    assert answer.error < CERTIFIED


def test_batches_and_trivial_columns() -> None:
    rng = np.random.default_rng(1)
    A = rng.standard_normal((20, 50))
    Y = np.stack([A[:, 3], np.zeros(20), A[:, 4] - A[:, 9]], axis=1)
    found = solve(BasisPursuit(A, Y), "exact_l1")
    assert found.status is Status.OPTIMAL
    assert not np.asarray(found.x)[:, 1].any()
    zero = solve(Lasso(A, Y[:, 0], 1.001 * float(np.abs(A.T @ Y[:, 0]).max())), ExactL1())
    assert not np.asarray(zero.x).any()


def test_zero_column_and_inconsistent_system() -> None:
    A = np.zeros((4, 3))
    A[:2, :2] = [[1.0, 2.0], [0.0, 1.0]]
    assert solve(BasisPursuit(A, [1.0, 0.0, 0.0, 0.0]), "exact_l1").status is Status.OPTIMAL
    assert solve(BasisPursuit(A, [1.0, 0.0, 1.0, 0.0]), "exact_l1").status is Status.INFEASIBLE


def test_exact_l1_says_what_it_does_not_take() -> None:
    y = np.ones(8)
    free = BasisPursuit(operators.partial_dct(16, m=8, seed=0), y)
    assert "matrix-free" in str(ExactL1().refuses(free))
    assert "complex" in str(ExactL1().refuses(BasisPursuit(np.ones((8, 9)) * 1j, y)))
    assert "bounds" in str(ExactL1().refuses(BasisPursuit(np.ones((8, 9)), y, upper=1.0)))


def test_updated_factor_solves_like_a_new_one() -> None:
    rng = np.random.default_rng(2)
    A, y = rng.standard_normal((200, 300)), rng.standard_normal(200)
    updated, fresh = ColumnPool(A, y, np.ones(300)), ColumnPool(A, y, np.ones(300))
    rhs = rng.standard_normal((120, 2))
    updated.solve(np.arange(120), rhs)
    support = np.concatenate([np.arange(4, 120), [130, 250, 131, 299]])
    (kept, X), (_, Y) = updated.solve(support, rhs), fresh.solve(support, rhs)
    assert kept.size == 120
    np.testing.assert_allclose(X, Y, rtol=0, atol=1e-12)
    gram = A[:, support].T @ A[:, support]
    np.testing.assert_allclose(gram @ X, rhs, rtol=0, atol=1e-10)


def test_dependent_columns_leave_the_support() -> None:
    A = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    pool = ColumnPool(A, A @ [1.0, 1.0, 0.0], np.ones(3))
    line = make_segment(pool, np.arange(3), np.ones(3))
    assert line.support.size == 2
    assert line.exact
    settled = settle(pool, np.arange(3), np.ones(3), 0.0, basis_pursuit_target, 5)
    assert settled is not None
    assert settled.line.support.tolist() == [2]


def test_minimax_threshold_gives_the_weak_threshold_of_l1() -> None:
    """The peak of `rho` at the threshold is the Donoho-Tanner value at delta = 1/4."""
    from scipy.stats import norm

    a, delta = minimax_threshold(0.25), 0.25
    M = 2 * ((1 + a * a) * norm.cdf(-a) - a * norm.pdf(a))
    assert (1 - M / delta) / (1 + a * a - M) == pytest.approx(0.2674, abs=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "sign", "complex"])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_vamp_reaches_the_oracle(kind: str, noise: float) -> None:
    n, m, k = 4096, 1024, 120
    rng = np.random.default_rng(0)
    make = operators.partial_fourier if kind == "complex" else operators.partial_dct
    A = make(n, m=m, seed=1)
    x = np.zeros(n, dtype=complex if kind == "complex" else float)
    support = rng.permutation(n)[:k]
    values = rng.choice([-1.0, 1.0], k) if kind == "sign" else rng.standard_normal(k)
    x[support] = values * (1 if kind != "complex" else np.exp(2j * np.pi * rng.random(k)))
    error, oracle, status = _errors(A, x, support, noise, VAMP(), rng)
    assert status is Status.CONVERGED
    assert error < (1e-8 if noise == 0 else 1.1 * oracle)


@pytest.mark.parametrize("kind", ["gaussian", "sign"])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_bernoulli_gaussian_amp_reaches_the_oracle(kind: str, noise: float) -> None:
    rng = np.random.default_rng(0)
    A = operators.from_matrix(3.0 * rng.standard_normal((512, 2048)))
    x, support = np.zeros(2048), rng.permutation(2048)[:70]
    x[support] = rng.standard_normal(70) if kind == "gaussian" else rng.choice([-1.0, 1.0], 70)
    error, oracle, status = _errors(A, x, support, noise, BernoulliGaussianAMP(), rng)
    assert status is Status.CONVERGED
    assert error < (1e-8 if noise == 0 else 1.15 * oracle)


def _errors(
    A: operators.Operator,
    x: np.ndarray,
    support: np.ndarray,
    noise: float,
    solver: VAMP | BernoulliGaussianAMP,
    rng: np.random.Generator,
) -> tuple[float, float, Status]:
    clean = A @ x
    e = rng.standard_normal(clean.size).astype(clean.dtype)
    y = clean + noise * np.linalg.norm(clean) / np.linalg.norm(e) * e
    noise_std = float(np.linalg.norm(y - clean) / np.sqrt(y.size))
    result = solver.solve(PosteriorMean(A, y, noise_std))
    best = np.zeros_like(x)
    best[support] = np.linalg.lstsq(A.columns(support), y, rcond=None)[0]
    error, oracle = (np.linalg.norm(c - x) / np.linalg.norm(x) for c in (result.coefficients, best))
    return float(error), float(oracle), result.status


def test_vamp_owns_up_to_a_signal_that_is_not_sparse() -> None:
    x = np.arange(1, 1025.0) ** -0.7
    A = operators.partial_dct(1024, m=256, seed=0)
    result = VAMP().solve(PosteriorMean(A, A @ np.random.default_rng(0).permutation(x), 0.0))
    assert result.status in (Status.STALLED, Status.DIVERGED, Status.MAX_ITER)


@pytest.mark.parametrize("solver", [AMP(), BernoulliGaussianAMP()])
def test_message_passing_says_that_it_diverged(solver: AMP) -> None:
    A = 1.0 + 0.1 * np.random.default_rng(0).standard_normal((100, 200))
    y = A[:, :5].sum(axis=1)
    make = BasisPursuit if isinstance(solver, AMP) else PosteriorMean
    assert solver.solve(make(A, y)).status is Status.DIVERGED


def test_amp_takes_a_batch_and_claims_nothing() -> None:
    rng = np.random.default_rng(0)
    A, X = rng.standard_normal((300, 800)), np.zeros((800, 6))
    for column in X.T:
        column[rng.permutation(800)[:25]] = rng.standard_normal(25)
    result = AMP().solve(BasisPursuit(A, A @ X))
    assert result.status is Status.CONVERGED
    assert np.abs(result.coefficients - X).max() < 1e-6
    assert solve(BasisPursuit(A, A @ X), "amp").status is not Status.CONVERGED


@pytest.mark.parametrize(("m", "n"), [(60, 200), (256, 1024)])
def test_signal_that_is_not_sparse_ends_in_an_optimal_basis(m: int, n: int) -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((m, n))
    x = rng.choice([-1, 1], n) * rng.permutation(np.arange(1.0, n + 1)) ** -1.0
    problem = BasisPursuit(A, A @ x)
    result = MehrotraInteriorPoint().solve(problem)
    assert "simplex" in result.note
    assert np.count_nonzero(result.coefficients) == m
    assert certify(problem, result.coefficients, result.dual).holds(1e-12)


def test_simplex_repairs_any_basis_and_turns_down_dependent_columns() -> None:
    rng = np.random.default_rng(3)
    A, weights = rng.standard_normal((20, 60)), rng.uniform(0.5, 2.0, 60)
    y = rng.standard_normal(20)
    pool = ColumnPool(A, y, weights)
    found = pivot_to_optimum(pool, np.arange(20), 200)
    assert found is not None
    assert weights[found.columns] @ np.abs(found.x) == pytest.approx(
        linear_program_value(A, y, weights, -np.inf), rel=LP_ACCURACY
    )
    assert np.abs(found.c / weights).max() < 1 + 1e-12
    assert pivot_to_optimum(pool, np.arange(20), 1) is None
    twin = ColumnPool(np.hstack([A[:, :1], A]), y, np.ones(61))
    assert pivot_to_optimum(twin, np.arange(20), 200) is None


@pytest.mark.parametrize("seed", range(4))
def test_interior_point_solves_non_negative_problems(seed: int) -> None:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((30, 80))
    problem = BasisPursuit(A, A @ rng.exponential(size=80), lower=0.0)
    result = MehrotraInteriorPoint().solve(problem)
    assert result.n_iter > 1
    assert certify(problem, result.coefficients, result.dual).holds(CERTIFIED)


@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (3, 5)])
@pytest.mark.parametrize("lower", [-np.inf, 0.0])
def test_a_matrix_of_zeros(shape: tuple[int, int], lower: float) -> None:
    A = np.zeros(shape)
    assert solve(BasisPursuit(A, np.ones(shape[0]), lower=lower)).status is Status.INFEASIBLE
    assert not solve(BasisPursuit(A, np.zeros(shape[0]), lower=lower), "exact_l1").x.any()
    assert not solve(Lasso(A, np.ones(shape[0]), 0.1, lower=lower), "exact_l1").x.any()


@pytest.mark.parametrize("solver", [Homotopy(), MehrotraInteriorPoint(), ExactL1()])
def test_callback_sees_guesses_and_stops_exact_solvers(solver: ExactL1) -> None:
    A = np.random.default_rng(0).standard_normal((40, 100))
    problem = BasisPursuit(A, np.stack([A[:, :4].sum(axis=1), A[:, 5]], axis=1))
    seen: list[np.ndarray] = []
    result = solver.solve(problem, callback=lambda k, c: seen.append(c) or k == 2)
    assert [c.shape for c in seen] == [(100, 2)] * 2
    np.testing.assert_array_equal(result.coefficients, seen[-1])
    assert "callback" in result.note
    assert solver.solve(problem, callback=lambda k, c: None).status is Status.OPTIMAL


@pytest.mark.parametrize("make", [BasisPursuit, BPDN, Lasso])
def test_exact_l1_starts_from_x0(make: type) -> None:
    rng = np.random.default_rng(1)
    A = rng.standard_normal((100, 200)) * np.logspace(-2, 2, 200)
    args = () if make is BasisPursuit else (0.5,)
    problem = make(A, A[:, 90:105].sum(axis=1), *args)
    cold = ExactL1().solve(problem)
    warm = ExactL1().solve(problem, x0=cold.coefficients)
    assert "x0" in warm.note
    assert certify(problem, warm.coefficients, warm.dual).holds(CERTIFIED)
    astray = ExactL1().solve(problem, x0=rng.standard_normal(200))
    assert certify(problem, astray.coefficients, astray.dual).holds(CERTIFIED)


@pytest.mark.parametrize("nonneg", [False, True])
def test_equal_columns_are_solved_as_one(nonneg):
    from lowrank.sensing.solvers.exact_l1 import distinct

    rng = np.random.default_rng(3)
    half = rng.standard_normal((60, 120))
    A, x = np.concatenate([half, half], axis=1), np.zeros(240)
    x[rng.permutation(120)[:8]] = rng.random(8) + 0.5 if nonneg else rng.standard_normal(8)
    weights = np.concatenate([np.full(120, 2.0), np.ones(120)])
    chosen = distinct(ColumnPool(A, A @ x, weights))
    assert chosen is not None
    assert (chosen >= 120).all()  # the lighter ones
    lower = 0.0 if nonneg else -np.inf
    for problem in (
        BasisPursuit(A, A @ x, weights=weights, lower=lower),
        BPDN(A, A @ x, 0.01, weights=weights, lower=lower),
        Lasso(A, A @ x, 0.01, weights=weights, lower=lower),
    ):
        seen = []
        found = solve(problem, callback=lambda k, c: seen.append(c.shape))  # noqa: B023
        assert found.status is Status.OPTIMAL
        assert found.gap < 1e-10
        assert found.support.min() >= 120
        assert set(seen) == {(240,)}


def test_equal_products_do_not_make_equal_columns():
    from lowrank.sensing.solvers.exact_l1 import distinct

    signs = operators.rademacher(32, 64, seed=0).to_dense() * np.sqrt(32)
    y = signs[:, :2].sum(axis=1)
    pool = ColumnPool(signs, y, np.ones(64))
    assert np.unique(pool.correlation).size < 40  # sums of signs
    assert distinct(pool) is None
    assert solve(BasisPursuit(signs, y)).status is Status.OPTIMAL


@pytest.mark.parametrize("kind", ["rows of DCT", "functions in a basis", "non-negative"])
def test_small_operators_are_formed(kind: str) -> None:
    rng = np.random.default_rng(1)
    more: dict = {}
    if kind == "rows of DCT":
        A = operators.partial_dct(256, m=64, seed=0)
    else:
        M = rng.standard_normal((64, 256))
        A = operators.from_functions((64, 256), lambda x: M @ x, lambda y: M.T @ y)
        more = {"lower": 0.0} if kind == "non-negative" else {"basis": bases.dct(256)}
    signal = 1 / rng.permutation(np.arange(1.0, 257)) if kind != "non-negative" else rng.random(256)
    signal = signal if kind == "non-negative" else signal * rng.choice([-1, 1], 256)
    y = A @ signal
    for problem in (
        BasisPursuit(A, y, **more),
        BPDN(A, y, 0.05, **more),
        Lasso(A, y, 0.05, **more),
    ):
        found = solve(problem)
        assert found.status is Status.OPTIMAL
        assert found.gap < 1e-9
        assert found.solver == "exact_l1_matrix_free()"
        assert 64 <= found.n_products < 256  # a product a row, not a column


@pytest.mark.parametrize("how", [None, "float32", 4])
def test_wide_operators_of_few_rows_are_formed(how: str | int | None) -> None:
    A = operators.partial_dct(20_000, m=100, seed=0)
    x = np.zeros(20_000)
    x[[5, 700, 19_000]] = 1.0, -2.0, 1.5
    y = A @ x
    found = solve(BasisPursuit(A, y if how is None else rounded(y, how)))
    assert found.solver == "exact_l1_matrix_free()"
    assert found.status is Status.OPTIMAL
    assert found.gap < 1e-12
    assert np.abs(found.x - x).max() < 1e-2


def test_operator_with_a_wrong_adjoint_is_formed_by_its_columns() -> None:
    M = np.random.default_rng(0).standard_normal((4, 9))
    A = operators.from_functions((4, 9), lambda x: M @ x, lambda y: 2 * M.T @ y)
    np.testing.assert_allclose(formed(A), M, atol=1e-12)
    np.testing.assert_allclose(
        formed(operators.partial_dct(9, m=4, seed=0)),
        operators.partial_dct(9, m=4, seed=0).to_dense(),
        atol=1e-12,
    )


def test_only_small_real_operators_are_formed() -> None:
    refuses = ExactL1MatrixFree().refuses
    A = operators.partial_dct(8192, m=1024, seed=0)
    assert "4194304 entries" in str(refuses(BasisPursuit(A, np.ones(1024))))
    assert refuses(BasisPursuit(operators.partial_dct(8192, m=16, seed=0), np.ones(16))) is None
    A = operators.partial_dct(16, m=4, seed=0)
    assert "complex" in str(refuses(BasisPursuit(A, 1j * np.ones(4))))
    assert "bounds" in str(refuses(BasisPursuit(A, np.ones(4), upper=1.0)))
    assert "without a matrix" in str(refuses(BasisPursuit(np.eye(2), np.ones(2))))


TALL = ("gauss", "ar", "dup", "int", "scaled", "sparse")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", TALL)
def test_tall_l1_fits_agree_with_the_linear_program(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = int(rng.integers(2, 12))
    m = int(rng.integers(p, 60))
    A = random_matrix(kind, m, p, rng)
    gross = rng.standard_t(1, m) * (rng.random(m) < 0.3)  # else whole numbers, for ties
    y = A @ rng.standard_normal(p) + (gross if seed % 2 else rng.integers(-2, 3, m))
    lam, weights = 10.0 ** rng.uniform(-3, 1.5), rng.uniform(0.5, 2, p)
    found = solve(L1Fit(A, y, lam, weights=weights))
    assert found.solver in ("frisch_newton()", "none")
    assert found.status.ok
    split = np.hstack([A, -A, np.eye(m), -np.eye(m)])
    cost = np.concatenate([lam * weights, lam * weights, np.ones(2 * m)])
    reference = linprog(cost, A_eq=split, b_eq=y, method="highs").fun
    assert found.objective == pytest.approx(reference, rel=LP_ACCURACY, abs=1e-9)


def test_tall_l1_fit_takes_memory_for_its_unknowns_only() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((20_000, 5))  # (A, I) would take 3 GiB
    y = A @ [3.0, -2.0, 0, 0, 0] + rng.standard_t(2, 20_000)
    found = solve(L1Fit(A, np.stack([y, -y], axis=1), 5.0))
    assert found.solver == "frisch_newton()"
    assert found.status.ok
    assert found.gap is not None
    assert found.gap < 1e-9
    assert found.n_iter < 30
    np.testing.assert_allclose(found.x[:, 0], -found.x[:, 1], atol=1e-6)


def test_l1_fit_that_is_wide_or_bounded_goes_elsewhere() -> None:
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((30, 10)), rng.standard_normal(30)
    assert solve(L1Fit(A.T, y[:10], 0.1)).solver == "cross_bouquet()"
    assert solve(L1Fit(A, y, 0.1, upper=0.05)).solver in ("admm()", "cvxpy()")
