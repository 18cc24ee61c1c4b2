"""Large operators: message passing first, and nothing optimal without a proof."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank import recover
from lowrank.sensing import BasisPursuit, Status, bases, operators, solve
from lowrank.sensing.operators.operator import Operator, from_functions, from_matrix
from lowrank.sensing.solvers.message_passing import MessagePassing, probe
from lowrank.sensing.solvers.on_support import Sides, Twin, find_dual, solve_gram

N, M, K = 1024, 256, 30


def two_functions(A: Operator) -> Operator:
    """Nothing known but the products, of single vectors."""
    return from_functions(A.shape, A.forward, A.adjoint, dtype=A.dtype)


def gaussian_functions(m: int, n: int) -> Operator:
    matrix = np.random.default_rng(4).standard_normal((m, n))
    return from_functions((m, n), lambda x: matrix @ x, lambda y: matrix.T @ y)


DESIGNS = {
    "dct": lambda: operators.partial_dct(N, m=M, seed=1),
    "hadamard": lambda: operators.partial_hadamard(N, m=M, seed=1),
    "fourier": lambda: operators.partial_fourier(N, m=M, seed=1),
    "convolution": lambda: operators.random_convolution(N, m=M, seed=1),
    "multiple": lambda: 300.0 * operators.partial_dct(N, m=M, seed=1),
    "two functions": lambda: two_functions(operators.partial_dct(N, m=M, seed=1)),
    "two complex functions": lambda: two_functions(operators.partial_fourier(N, m=M, seed=1)),
    "in a basis": lambda: operators.sampling(N, np.arange(0, N, 4)) @ bases.fourier(N),
    "wavelets": lambda: operators.random_convolution(N, m=M, seed=1) @ bases.wavelet(N, name="db4"),
    "independent": lambda: gaussian_functions(M, N),
}
SIGNALS = {
    "gaussian": lambda rng, k: rng.standard_normal(k),
    "sign": lambda rng, k: rng.choice([-1.0, 1.0], k),
    "positive": lambda rng, k: 1 + rng.random(k),
    "decades": lambda rng, k: 10.0 ** rng.uniform(-3, 3, k) * rng.choice([-1.0, 1.0], k),
}
COHERENT = ("in a basis",)


def instance(design: str, signal: str, k: int = K) -> tuple[Operator, np.ndarray, np.ndarray]:
    A, rng = DESIGNS[design](), np.random.default_rng(2)
    x = np.zeros(A.shape[1], complex if A.is_complex else float)
    x[rng.permutation(x.size)[:k]] = SIGNALS[signal](rng, k)
    if A.is_complex:
        x = x * np.exp(2j * np.pi * rng.random(x.size))
    return A, x, A @ x


@pytest.mark.parametrize("signal", ["gaussian", "sign", "decades"])
@pytest.mark.parametrize("design", [d for d in DESIGNS if d not in COHERENT])
def test_sparse_signals_are_found_and_proven(design: str, signal: str) -> None:
    A, x, y = instance(design, signal)
    found = recover(A, y)
    assert found.status is Status.OPTIMAL
    assert found.solver == "message_passing()", found
    assert found.n_products < 250
    assert np.linalg.norm(found.x - x) <= 1e-7 * np.linalg.norm(x)
    assert np.abs(A.H @ np.asarray(found.dual)).max() <= 1 + 1e-9  # a bound, whoever says so
    assert np.vdot(found.dual, y).real >= np.abs(x).sum() * (1 - 1e-8)


def test_every_fourth_sample_in_fourier_is_no_proof() -> None:
    A, _, y = instance("in a basis", "sign")  # frequencies fold: other signals are as short
    problem = BasisPursuit(A, y)
    found = solve(problem, MessagePassing())
    assert found.status is not Status.OPTIMAL or found.gap <= 1e-8


@pytest.mark.parametrize("penalty", ["noise", "lam"])
@pytest.mark.parametrize("design", ["dct", "two complex functions", "wavelets", "independent"])
def test_noisy_problems_end_by_newton(design: str, penalty: str) -> None:
    A, _, y = instance(design, "sign")
    e = np.random.default_rng(5).standard_normal(y.size)
    e *= 0.02 * np.linalg.norm(y) / np.linalg.norm(e)
    given: dict = {"noise": float(np.linalg.norm(e))}
    if penalty == "lam":
        given = {"lam": 0.05 * float(np.abs(A.H @ y).max())}
    found = recover(A, y + e, **given)
    assert found.status is Status.OPTIMAL
    assert found.solver == "message_passing()", found
    assert "Newton" in found.why
    if not A.is_complex:
        exact = recover(A.to_dense(), y + e, **given)
        assert found.objective == pytest.approx(exact.objective, rel=1e-8)


@pytest.mark.parametrize("penalty", ["noise", "lam"])
@pytest.mark.parametrize("more", ["weights", "nonneg", "batch"])
def test_noisy_problems_with_weights_signs_and_batches(more: str, penalty: str) -> None:
    A, x, y = instance("dct", "positive")
    options: dict = {"nonneg": True} if more == "nonneg" else {}
    if more == "weights":
        options = {"weights": 1 + np.arange(x.size) / x.size}
    if more == "batch":
        y = np.stack([y, -2 * y[::-1], 0 * y], axis=1)
    options |= {"noise": 0.05} if penalty == "noise" else {"lam": 0.05}
    found = recover(A, y + 0.002 * np.random.default_rng(5).standard_normal(y.shape), **options)
    exact = recover(
        A.to_dense(), y + 0.002 * np.random.default_rng(5).standard_normal(y.shape), **options
    )
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(exact.objective, rel=1e-8)
    assert "message_passing" in found.why


@pytest.mark.parametrize("more", ["weights", "nonneg", "batch"])
def test_weights_signs_and_batches(more: str) -> None:
    A, x, y = instance("dct", "positive")
    options: dict = {"nonneg": True} if more == "nonneg" else {}
    if more == "weights":
        options = {"weights": np.where(x != 0, 1.0, 1.5)}
    if more == "batch":
        x = np.stack([x, -x[::-1], 0 * x], axis=1)
        y = A @ x
    found = recover(A, y, **options)
    assert found.solver == "message_passing()", found
    assert found.status is Status.OPTIMAL
    assert np.linalg.norm(found.x - x) <= 1e-7 * np.linalg.norm(x)


def test_weights_against_the_signal_are_not_proven_away() -> None:
    A, x, y = instance("dct", "sign")
    weights = np.where(x != 0, 30.0, 1.0)  # so that the sparse signal is not the optimum
    found = solve(BasisPursuit(A, y, weights=weights), MessagePassing())
    assert found.status is not Status.OPTIMAL
    assert "they may not be the least" in found.why


@pytest.mark.parametrize("k", [40, 150])
def test_what_is_found_beyond_the_reach_of_l1_is_not_called_optimal(k: int) -> None:
    A, x, y = instance("dct", "gaussian", k)
    found = solve(BasisPursuit(A, y), MessagePassing())
    if found.status is Status.OPTIMAL:
        assert found.objective <= np.abs(x).sum() * (1 + 1e-8)
    else:
        assert found.gap > 1e-8 or found.infeasibility > 1e-8


def test_coherent_functions_fall_through_to_a_convex_method() -> None:
    n, m = 400, 150
    walk = np.cumsum(np.random.default_rng(0).standard_normal((m, n)), axis=1)
    A = from_functions((m, n), lambda x: walk @ x, lambda y: walk.T @ y)
    x = np.zeros(n)
    x[[5, 200, 333]] = [1.0, -2.0, 1.0]
    found = recover(A, A @ x)
    assert found.status is Status.OPTIMAL
    assert "message_passing ended" in found.why or "message_passing" in found.solver


def test_what_a_solver_finds_is_where_the_next_one_starts() -> None:
    A, x, y = instance("dct", "gaussian", 60)
    first = solve(BasisPursuit(A, y, weights=np.where(x != 0, 30.0, 1.0)), MessagePassing())
    assert first.status is Status.STALLED
    raw = MessagePassing().solve(BasisPursuit(A, y, weights=np.where(x != 0, 30.0, 1.0)))
    assert raw.warm
    assert np.allclose(raw.coefficients, x)


@pytest.mark.parametrize("design", DESIGNS)
def test_two_products_tell_orthogonal_rows(design: str) -> None:
    A = DESIGNS[design]()
    probed = probe(A)
    assert probed is not None
    assert probed.orthonormal == (design != "independent")
    w = np.random.default_rng(9).standard_normal(A.shape[0])
    back = probed.A.forward(probed.A.adjoint(w))
    if probed.orthonormal:
        np.testing.assert_allclose(back, w, atol=1e-8)


@pytest.mark.parametrize("design", ["dct", "two functions", "fourier", "hadamard"])
def test_conjugate_gradients_solve_on_the_support(design: str) -> None:
    A, rng = DESIGNS[design](), np.random.default_rng(3)
    J = rng.permutation(A.shape[1])[:40]
    b = rng.standard_normal(40)
    twin = Twin(A, np.dtype(complex if A.is_complex else float))
    q, image, back = solve_gram(twin, J, b, twin.accuracy)
    columns = A.columns(J)
    exact = np.linalg.solve(columns.conj().T @ columns, b)
    tol = 100 * twin.accuracy * np.linalg.norm(exact)
    np.testing.assert_allclose(q, exact, atol=tol)
    np.testing.assert_allclose(image, columns @ exact, atol=tol)
    np.testing.assert_allclose(back, A.adjoint(columns @ exact), atol=tol)


def test_single_precision_only_where_the_operator_keeps_it() -> None:
    double = np.dtype(float)
    assert Twin(DESIGNS["dct"](), double).dtype == np.float32
    assert Twin(DESIGNS["two functions"](), double).dtype == double
    assert Twin(DESIGNS["independent"](), double).dtype == double


@pytest.mark.parametrize("seed", range(20))
def test_dual_points_against_the_linear_program(seed: int) -> None:
    """Where there is no dual point, none is found; what is found is one."""
    from scipy.optimize import linprog

    rng = np.random.default_rng(seed)
    m, n, k = 12, 30, int(rng.integers(1, 7))
    matrix = rng.standard_normal((m, n)) / np.sqrt(m)
    J, s = rng.permutation(n)[:k], rng.choice([-1.0, 1.0], k)
    A = from_matrix(matrix)
    sides = Sides(J, s, np.ones(n), False)
    u = find_dual(A, Twin(A, np.dtype(float)), sides, 1e-9, lambda: None)
    off = np.delete(matrix.T, J, axis=0)
    exists = linprog(
        np.zeros(m),
        A_ub=np.vstack([off, -off]),
        b_ub=np.ones(2 * (n - k)),
        A_eq=matrix.T[J],
        b_eq=s,
        bounds=(None, None),
    ).success
    if u is not None:
        assert exists
        assert np.abs(matrix.T[J] @ u - s).max() <= 1e-9
        assert np.abs(off @ u).max() <= 1 + 1e-9


@pytest.mark.parametrize("max_iter", [3, 14])
def test_a_limit_ends_every_signal_of_a_batch(max_iter: int) -> None:
    A, x, _ = instance("dct", "sign")
    X = np.stack([x, -x[::-1]], axis=1)
    found = solve(BasisPursuit(A, A @ X), MessagePassing(), max_iter=max_iter)
    assert found.status is Status.MAX_ITER
    assert found.n_iter == max_iter
    assert (np.abs(np.asarray(found.coefficients)).max(axis=0) > 0).all()


@pytest.mark.parametrize("complex_", [False, True])
def test_matrices_of_few_rows_are_formed_from_their_rows(complex_: bool) -> None:
    make = operators.partial_fourier if complex_ else operators.partial_dct
    A, J = make(4096, m=3, seed=0), [0, 1, 1500, 4095]
    used: list[int] = []
    formed = A.counting(used.append).to_dense()
    assert sum(used) == 3
    assert formed.shape == A.shape
    np.testing.assert_allclose(formed[:, J], A.columns(J), atol=1e-12)
    wrong = from_functions(A.shape, A.forward, lambda y: 2 * A.adjoint(y), dtype=A.dtype)
    np.testing.assert_allclose(wrong.to_dense(), formed, atol=1e-12)  # by its columns
    np.testing.assert_allclose(A.H.to_dense(), formed.conj().T, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_complex_matrices_are_solved_and_proven(seed: int) -> None:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((128, 512)) + 1j * rng.standard_normal((128, 512))
    x = np.zeros(512, complex)
    x[rng.permutation(512)[:15]] = rng.standard_normal(15) + 1j * rng.standard_normal(15)
    found = recover(A, A @ x)
    assert found.status is Status.OPTIMAL
    assert found.solver == "message_passing()"
    assert np.linalg.norm(found.x - x) <= 1e-7 * np.linalg.norm(x)
