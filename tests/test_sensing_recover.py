"""The front door: what it chooses, what it says, and what it does with bad input."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch

from lowrank.errors import InputError
from lowrank.sensing import (
    BPDN,
    SOLVERS,
    Analysis,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    GroupLasso,
    JointSparse,
    KSparse,
    Lasso,
    OneBit,
    PosteriorMean,
    Status,
    bases,
    certify,
    operators,
    recover,
    reweighted,
    solve,
    sparse_signal,
    total_variation,
)
from lowrank.sensing.operators.operator import from_functions

TOL = 1e-8


@pytest.fixture(name="instance")
def random_instance():
    A = operators.gaussian(40, 100, seed=0).to_dense()
    x = sparse_signal(100, 6, seed=1)
    return A, x, A @ x


def test_noiseless(instance):
    A, x, y = instance
    result = recover(A, y)
    assert result.status is Status.OPTIMAL
    assert result.gap <= TOL
    np.testing.assert_allclose(result.x, x, atol=1e-7)
    assert result.support.tolist() == np.flatnonzero(x).tolist()
    assert "first choice for BasisPursuit, dense 40 x 100" in result.why
    assert result.n_products > 0
    assert result.seconds > 0


def test_noise_lam_and_nonneg_choose_the_formulation(instance):
    A, x, y = instance
    bound = recover(A, y, noise=0.1)
    assert bound.residual_norm == pytest.approx(0.1, rel=1e-6)
    penalised = recover(A, y, lam=0.05)
    assert penalised.objective == pytest.approx(
        0.5 * penalised.residual_norm**2 + 0.05 * np.abs(penalised.x).sum()
    )
    nonneg = recover(A, A @ abs(x), nonneg=True)
    np.testing.assert_allclose(nonneg.x, abs(x), atol=1e-7)
    assert recover(A, y, noise=0.0).objective == pytest.approx(recover(A, y).objective, rel=1e-7)


def test_basis(instance):
    A, c, _ = instance
    Psi = bases.dct(100)
    result = recover(A, A @ (Psi @ c), basis=Psi)
    np.testing.assert_allclose(result.coefficients, c, atol=1e-7)
    np.testing.assert_allclose(result.x, Psi @ c, atol=1e-7)


@pytest.mark.parametrize("solver", ["auto", "admm", "cvxpy", "spg"])
def test_every_route_gives_one_answer(instance, solver):
    A, _, y = instance
    expected = solve(BPDN(A, y, 0.05), "cvxpy:clarabel")
    result = solve(BPDN(A, y, 0.05), solver)
    assert result.objective == pytest.approx(expected.objective, rel=1e-6)


def test_debias_stands_beside_x(instance):
    A, x, y = instance
    result = recover(A, y, lam=0.005, debias=True)
    np.testing.assert_allclose(result.debiased, x, atol=1e-8)
    assert np.abs(result.x - x).max() > 1e-4


def test_matrix_free_partial_dct():
    A, x = operators.partial_dct(512, m=200, seed=0), sparse_signal(512, 30, seed=1)
    result = recover(A, A @ x)
    assert result.status is Status.OPTIMAL
    np.testing.assert_allclose(result.x, x, atol=1e-6)


def test_complex_matrix_free():
    A, x = operators.partial_fourier(256, m=100, seed=0), sparse_signal(256, 12, seed=1)
    result = recover(A, A @ x)
    assert result.status is Status.OPTIMAL
    np.testing.assert_allclose(result.x, x, atol=1e-6)


def test_tv_of_a_picture_from_radial_lines():
    picture = np.zeros((32, 32))
    picture[8:20, 6:25], picture[12:16, 10:18] = 1.0, 0.5
    mask = operators.radial_mask((32, 32), 12)
    A = operators.for_real_signals(operators.partial_fourier((32, 32), mask=mask))
    result = solve(total_variation(A, A @ picture.ravel(), (32, 32)))
    assert result.status is Status.OPTIMAL
    assert np.linalg.norm(result.x - picture.ravel()) < 1e-5 * np.linalg.norm(picture)


def test_torch_in_torch_out(instance):
    A, x, y = (torch.tensor(v) for v in instance)
    for matrix, measurements in ((A, y), (A.numpy(), y), (A, y.numpy())):
        result = recover(matrix, measurements)
        assert isinstance(result.x, torch.Tensor)
        assert result.x.dtype == torch.float64
        torch.testing.assert_close(result.x, x, atol=1e-7, rtol=0)
    single = recover(A.float(), y.float(), noise=1e-3)
    assert single.x.dtype == torch.float32
    assert single.status is Status.OPTIMAL


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", ["bfloat16", "sparse", "sparse rows", "conjugated"])
def test_any_kind_of_tensor(instance, kind):
    A, x, _ = instance
    make = {
        "bfloat16": lambda: torch.from_numpy(A).bfloat16(),
        "sparse": lambda: torch.from_numpy(A).to_sparse(),
        "sparse rows": lambda: torch.from_numpy(A).to_sparse_csr(),
        "conjugated": lambda: torch.from_numpy(A + 0.5j * A[::-1]).conj(),
    }
    tensor = make[kind]()
    dense = (tensor.float() if kind == "bfloat16" else tensor.to_dense().resolve_conj()).numpy()
    result = recover(tensor, torch.from_numpy(dense @ x))
    assert result.status is Status.OPTIMAL
    assert isinstance(result.x, torch.Tensor)
    np.testing.assert_allclose(result.x.numpy(), x, atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("kind", ["exact", "noisy", "penalised", "complex"])
def test_a_constant_is_the_optimum_of_tv(kind, dense):
    A = operators.gaussian(20, 36, seed=0, dtype=complex if kind == "complex" else float)
    flat = np.full(36, 0.7 + (0.2j if kind == "complex" else 0))
    y = A @ flat
    options = {"penalised": {"lam": 0.1}, "noisy": {"epsilon": 0.1}}.get(kind, {})
    if kind == "noisy":
        y = y + 0.015 * np.random.default_rng(0).standard_normal(20)
    problem = total_variation(A.to_dense() if dense else A, y, (6, 6), **options)
    result = solve(problem)
    assert result.status is Status.OPTIMAL
    assert result.why == "a constant is the optimum"
    assert result.objective <= 1e-24
    np.testing.assert_allclose(result.x, flat, atol=0.05 if kind == "noisy" else 1e-12)


def test_a_constant_that_does_not_fit_is_not_the_optimum():
    step = np.repeat([0.0, 1.0], 18)
    for options in ({"epsilon": 0.1}, {"lam": 0.1}):
        result = solve(total_variation(np.eye(36), step, 36, **options))
        assert result.status is Status.OPTIMAL
        assert result.objective > 0.05
    by_index = np.diag(np.arange(1.0, 37)) @ (np.eye(36) - np.eye(36, k=1))
    assert solve(Analysis(np.eye(36), np.ones(36), by_index)).objective == pytest.approx(36)


def test_why_names_those_that_did_no_better(instance, monkeypatch):
    A, _, y = instance
    monkeypatch.setattr(sys.modules[solve.__module__], "_is_better", lambda found, best: False)
    results = (
        solve(BPDN(A, y, noise), tol=1e-300, max_iter=200) for noise in (0.01, 0.02, 0.05, 0.1)
    )
    short = next((result for result in results if not result.status.ok), None)
    assert short is not None  # no solver ends with a gap of 0 throughout; seconds for each noise
    assert short.solver.startswith("exact_l1")
    assert short.why.startswith("exact_l1: first choice for BPDN")
    assert "; admm ended" in short.why
    assert "exact_l1 ended" not in short.why


@pytest.mark.parametrize("solver", ["auto", "exact_l1", "admm", "homotopy", "fista"])
def test_an_error_of_the_callback_is_not_a_breakdown(instance, solver):
    A, _, y = instance
    with pytest.raises(ZeroDivisionError):
        solve(Lasso(A, y, 0.01), solver, callback=lambda k, c: 1 / 0)


def test_batch(instance):
    A, x, _ = instance
    X = np.stack([x, 2 * x, np.roll(x, 3), 0 * x], axis=1)
    result = recover(A, A @ X, lam=1e-3)
    alone = [recover(A, A @ column, lam=1e-3) for column in X.T]
    assert result.x.shape == X.shape
    np.testing.assert_allclose(result.x, np.stack([r.x for r in alone], axis=1), atol=1e-5)
    assert result.objective == pytest.approx(sum(r.objective for r in alone), rel=1e-7)


def test_reweighting_finds_what_l1_misses():
    A, x = operators.gaussian(50, 150, seed=3).to_dense(), sparse_signal(150, 17, seed=4)
    problem = BasisPursuit(A, A @ x)
    plain, better = solve(problem), reweighted(problem)
    assert np.linalg.norm(plain.x - x) > 0.1
    np.testing.assert_allclose(better.x, x, atol=1e-5)


def test_inconsistent_system_is_infeasible_with_distance():
    A = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result = recover(A, np.array([1.0, 2.0, 0.0]))
    assert result.status is Status.INFEASIBLE
    assert "0.707107 away from y" in result.message
    assert recover(A, np.array([1.0, 2.0, 0.0]), noise=0.8).status is Status.OPTIMAL
    assert recover(A, np.array([1.0, 2.0, 0.0]), noise=0.6).status is Status.INFEASIBLE


def _inconsistent(m, n):
    """Problems without a solution that go to a first-order method, by name."""
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    C = A + 1j * rng.standard_normal((m, n))
    free = from_functions((m, n), lambda x: A @ x, lambda v: A.T @ v)
    return {
        "a bound": (BasisPursuit(A, y, upper=2.0), "auto"),
        "a bound and noise": (BPDN(A, y, 0.01, upper=2.0), "auto"),
        "a bound, matrix-free": (BasisPursuit(free, y, upper=2.0), "auto"),
        "complex": (BasisPursuit(C, y), "auto"),
        "several signals": (BPDN(C, rng.standard_normal((m, 2)), 0.01), "auto"),
        "analysis": (Analysis(A, y, np.eye(n), epsilon=0.01), "auto"),
        "by admm": (BasisPursuit(A, y), "admm"),
        "by spg": (BasisPursuit(A, y), "spg"),
    }


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", _inconsistent(6, 1))
@pytest.mark.parametrize("shape", [(6, 1), (60, 40)])
def test_inconsistency_is_seen_long_before_the_last_iteration(kind, shape):
    problem, solver = _inconsistent(*shape)[kind]
    found = solve(problem, solver)
    assert found.status is Status.INFEASIBLE
    assert found.n_iter < 1000
    assert "away from y" in found.message


def test_a_tight_box_is_seen_to_be_too_tight():
    A = np.random.default_rng(0).standard_normal((20, 50))
    y = A @ sparse_signal(50, 5, seed=0)
    assert solve(BasisPursuit(A, y, lower=-0.01, upper=0.01)).status is Status.INFEASIBLE
    assert solve(BasisPursuit(A, y, lower=-9.0, upper=9.0)).status is Status.OPTIMAL


def test_nonneg_infeasible_with_distance():
    result = recover(np.eye(2), np.array([1.0, -0.25]), nonneg=True)
    assert result.status is Status.INFEASIBLE
    assert "0.25 away from y" in result.message


def test_infeasible_by_word_alone_says_so():
    problem = DantzigSelector(-np.eye(2), np.ones(2), 0.1, lower=0)
    result = solve(problem, "cvxpy")
    assert result.status is Status.INFEASIBLE
    assert "by the solver's word alone" in result.message


def test_more_rows_than_unknowns_is_said():
    A = operators.gaussian(30, 10, seed=0).to_dense()
    x = sparse_signal(10, 3, seed=1)
    result = recover(A, A @ x)
    assert "m > n" in result.why
    np.testing.assert_allclose(result.x, x, atol=1e-8)


def test_wrong_adjoint_is_said():
    A = from_functions((5, 5), np.cumsum, np.cumsum)
    with pytest.warns(UserWarning, match="fails the dot test with relative error"):
        recover(A, np.ones(5), lam=0.1, max_iter=10)


def test_single_precision_operators_are_said_and_small_ones_formed():
    matrix = operators.gaussian(10, 20, seed=0).to_dense().astype(np.float32)
    A = from_functions(
        (10, 20),
        lambda x: matrix @ x.astype(np.float32),
        lambda y: matrix.T @ y.astype(np.float32),
        dtype=np.float32,
    )
    assert recover(A, np.ones(10)).gap < 1e-8
    half = lambda x: 0.5 * x.astype(np.float32)  # noqa: E731
    large = from_functions((2100, 2100), half, half, dtype=np.float32)
    with pytest.warns(UserWarning, match="cannot reach the tolerance 1e-08; solved to 1e-05"):
        assert recover(large, np.ones(2100), lam=0.1).status is Status.OPTIMAL
    with pytest.warns(UserWarning, match="tolerance 1e-09; pass tol=1e-05"):
        recover(large, np.ones(2100), lam=0.1, tol=1e-9, max_iter=2)


def test_max_iter_and_tol_reach_the_solver(instance):
    A, _, y = instance
    result = recover(A, y, lam=0.05, solver="fista", max_iter=10, tol=1e-12)
    assert result.solver == "fista(tol=1e-12, max_iter=10)"
    assert result.status is Status.MAX_ITER
    loose = recover(A, y, lam=0.05, solver="fista", tol=1e-3)
    assert loose.status is Status.OPTIMAL
    assert 1e-8 < loose.gap <= 1e-3


def test_callback_stops_auto_for_good(instance):
    A, _, y = instance
    free = operators.from_functions(A.shape, lambda x: A @ x, lambda r: A.T @ r)
    result = recover(free, y, lam=0.05, callback=lambda k, c: k == 1)
    assert (result.solver, result.n_iter) == ("exact_l1_matrix_free()", 1)
    assert result.status is Status.MAX_ITER
    assert "stopped by the callback" in result.message
    assert "max_iter" not in result.message


@dataclasses.dataclass(frozen=True)
class Broken:
    solves = (BasisPursuit,)

    def refuses(self, problem):
        return None

    def solve(self, problem, *, x0=None, callback=None):
        raise ZeroDivisionError("no pivot")


def test_breakdown_is_a_status(instance):
    A, _, y = instance
    result = solve(BasisPursuit(A, y), Broken())
    assert result.status is Status.DIVERGED
    assert "broke down: no pivot" in result.why


NO_COLUMN = (BasisPursuit(np.zeros((5, 8)), np.ones(5)), BPDN(np.zeros((5, 8)), np.ones(5), 0.1))
ABLE = [
    (problem, name)
    for problem in NO_COLUMN
    for name, solver in SOLVERS.items()
    if type(problem) in solver.solves and solver().refuses(problem) is None
]


@pytest.mark.parametrize(("problem", "solver"), [*ABLE, *((one, "auto") for one in NO_COLUMN)])
def test_a_matrix_of_zeros_is_no_accident(problem, solver):
    found = solve(problem, solver)
    assert found.status is Status.INFEASIBLE
    assert "no column of A correlates with y" in found.why
    assert "broke down" not in found.why
    assert "nan" not in found.why


@pytest.mark.parametrize("solver", ["homotopy", "exact_l1"])
@pytest.mark.parametrize("options", [{}, {"noise": 0.1}, {"lam": 0.1}])
def test_a_run_cut_short_states_one_gap(instance, solver, options):
    A, _, y = instance
    found = recover(A, y, solver=solver, max_iter=1, **options)
    assert found.status is Status.MAX_ITER
    assert "stopped short" in found.why
    assert "gap" not in found.why  # that of the certificate is in the message
    assert f"gap {found.gap:.1e}" in found.message


def test_products_are_counted(instance):
    A, _, y = instance
    result = recover(operators.from_matrix(A), y, lam=0.05, solver="fista", max_iter=10)
    assert 20 <= result.n_products <= 45  # two an iteration, the gap, and backtracking


def test_repr_tells_all(instance):
    A, _, y = instance
    text = repr(recover(A, y))
    for part in ("OPTIMAL", "6 of 100 non-zero", "gap", "iterations", "why:"):
        assert part in text


def test_certificate_is_scale_free(instance):
    A, _, y = instance
    for a, b in ((1e-6, 1e6), (1e5, 1e-5)):
        result = recover(a * A, b * y)
        assert result.status is Status.OPTIMAL
        result = recover(a * A, b * y, lam=0.05 * a * b)
        assert result.status is Status.OPTIMAL


def test_certificate_refutes_a_wrong_answer(instance):
    A, x, y = instance
    problem = Lasso(A, y, 0.05)
    good = solve(problem).coefficients
    assert certify(problem, good).gap < TOL
    assert certify(problem, good + 1e-3).gap > 1e-6
    assert certify(BasisPursuit(A, y), 0.9 * x).infeasibility > 0.05
    assert not certify(BasisPursuit(A, y), 0 * x).holds(TOL)
    with pytest.raises(InputError, match="not convex"):
        certify(KSparse(A, y, 3), x)
    with pytest.raises(InputError, match="in the basis"):
        certify(problem, x[:5])


def test_import_is_light():
    code = (
        "import sys, lowrank.sensing; "
        "print([m for m in ('cvxpy', 'matplotlib', 'tensorly', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


EYE, ONES = np.eye(3), np.ones(3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: recover(EYE, np.ones(4)), "y has shape \\(4,\\) and A has 3 rows"),
        (lambda: recover(EYE, [1, np.nan, 2]), "1 of 3 values are NaN or Inf"),
        (lambda: recover(EYE, ONES, noise=-1), "noise: -1 is not zero or positive"),
        (lambda: recover(EYE, ONES, noise=ONES), "noise: ndarray is not a number"),
        (lambda: recover(EYE, ONES, tol=0), "tol: 0 is not positive"),
        (lambda: recover(EYE, ONES, tol="x"), "tol: str is not a number"),
        (lambda: recover(EYE, ONES, max_iter=0), "max_iter: 0 is no integer from 1 on"),
        (lambda: recover(EYE, ONES, max_iter=1.5), "max_iter: 1.5 is no integer"),
        (lambda: recover(EYE, ONES, basis="dcl"), "basis: .dcl. is no basis"),
        (lambda: recover(EYE, ONES, solver=None), "None is neither a name nor a solver"),
        (lambda: recover(EYE, ONES, solver=dict), "dict is neither a name nor a solver"),
        (lambda: recover(EYE, ONES, solver="omp"), r"omp solves KSparse \(sparsity=\)"),
        (lambda: recover(lambda x: x, ONES), "A: <lambda> is a function, which.*from_functions"),
        (lambda: recover([[1, 2], [3]], [1, 2]), "rows of different lengths"),
        (lambda: recover(EYE, 1e300 * ONES), "y: values up to 1.0e\\+300, whose squares overflow"),
        (lambda: recover(EYE, ONES, lam=0.0), "0.0 is not positive"),
        (lambda: recover(EYE, ONES, lam=1, noise=1), "noise and lam exclude each other"),
        (lambda: recover(EYE, ONES, sparsity=4), "4 is outside 1..3"),
        (lambda: recover(EYE, ONES, sparsity=1, nonneg=True), "joins neither"),
        (lambda: recover(EYE, ONES, x0=np.ones(2)), "finite coefficients in the basis"),
        (lambda: recover(EYE, ONES, x0=1j * ONES), "the coefficients are real"),
        (lambda: recover(EYE, ONES, lam_fraction="5%"), "str is not a number"),
        (lambda: recover(EYE, ONES, solver="nope"), "'nope' is not one of"),
        (lambda: recover(EYE, ONES, solver="cvxpy:nope"), "CVXPY finds no solver"),
        (lambda: recover(EYE, ONES, solver="fista"), "for BasisPursuit take .* or spg"),
        (
            lambda: recover(EYE, ONES, lam=9.0, solver="omp"),
            r"omp solves KSparse \(sparsity=\), and",
        ),
        (lambda: recover(EYE, 0 * ONES, solver="nope"), "'nope' is not one of"),
        (lambda: recover(EYE * 1j, ONES, nonneg=True), "which have no order"),
        (lambda: recover(EYE, ONES, weights=[1, 0, 1]), "positive real numbers"),
        (lambda: recover(EYE, ONES, basis=bases.dct(4)), "basis makes 4 samples"),
        (lambda: Lasso(EYE, ONES, 1.0, lower=0.5), "does not contain 0"),
        (lambda: Lasso(EYE, ONES, 1.0, upper=[1, 2]), "pass a number or \\(3,\\)"),
        (lambda: ConstrainedLasso(EYE, ONES, 1.0, upper=2.0), "only c >= 0"),
        (lambda: ConstrainedLasso(EYE, ONES, -1.0), "tau"),
        (lambda: DantzigSelector(EYE, ONES, np.inf), "finite"),
        (lambda: ElasticNet(EYE, ONES, 1.0, 0.0), "ridge"),
        (lambda: GroupLasso(EYE, ONES, 1.0, [0, 1]), "one integer label"),
        (lambda: JointSparse(EYE, ONES, 1.0), "is not \\(m, L\\)"),
        (lambda: OneBit(EYE, [1, 0, -1], 2.0), "not all values are -1 or 1"),
        (lambda: OneBit(EYE, [1, 1, -1], 0.5), "below 1"),
        (lambda: Analysis(EYE, ONES, np.eye(4)), "both act on the signal"),
        (lambda: Analysis(EYE, ONES, EYE, components=2), "does not divide"),
        (lambda: total_variation(EYE, np.ones((3, 2)), 3), "one signal at a time"),
        (lambda: PosteriorMean(EYE, ONES, -1.0), "noise_std"),
        (lambda: sparse_signal(3, 4, seed=0), "outside 0..3"),
        (lambda: reweighted(KSparse(EYE, ONES, 1)), "no weighted L1 norm"),
        (lambda: reweighted(BasisPursuit(EYE, ONES), rounds=0), "must be positive"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_zero_from_a_matrix_that_sees_nothing_is_explained():
    assert "no column of A correlates" in recover(np.zeros((5, 10)), np.ones(5), sparsity=2).why
    assert "no column" not in recover(np.eye(3), np.ones(3), sparsity=2).why


@pytest.mark.parametrize("solver", ["omp", "cosamp", "iht", "subspace_pursuit"])
def test_greedy_solvers_do_not_mind_the_units_of_columns(solver):
    rng = np.random.default_rng(0)
    A, units = rng.standard_normal((60, 120)), 10.0 ** rng.uniform(-3, 3, 120)
    c = np.zeros(120)
    c[[3, 20, 50, 99]] = 1, 1.5, -2, 3
    seen = []
    call = lambda k, c: seen.append(c)  # noqa: E731
    found = recover(A * units, A @ c, sparsity=4, solver=solver, callback=call)
    assert found.support.tolist() == [3, 20, 50, 99]
    np.testing.assert_allclose(found.x * units, c, atol=1e-6)
    np.testing.assert_allclose(seen[-1] * units, c, atol=1e-3)


@pytest.mark.parametrize("size", [1e-310, 1e-200, 1e-145, 1e155, 1e200])
@pytest.mark.parametrize("which", ["A", "y"])
def test_data_whose_squares_leave_the_range_are_refused(instance, which, size):
    A, _, y = instance
    data = {"A": A, "y": y}
    data[which] = data[which] * size
    for options in ({}, {"sparsity": 3}, {"lam_fraction": 0.1}):
        with pytest.raises(InputError, match=f"{which}: .*squares .*flow; rescale {which}"):
            recover(**data, **options)


@pytest.mark.parametrize("size", [1e-130, 1e130])
def test_units_within_the_range_do_not_matter(instance, size):
    A, x, y = instance
    np.testing.assert_allclose(recover(A, y * size).x / size, x, atol=1e-6)
    np.testing.assert_allclose(recover(A * size, y).x * size, x, atol=1e-6)


def test_data_that_is_not_there_and_functions_of_the_wrong_shape_get_a_sentence(instance):
    torch = pytest.importorskip("torch")
    A, _, y = instance
    short = operators.from_functions(A.shape, lambda x: (A @ x)[1:], lambda r: A.T @ r)
    with pytest.raises(InputError, match=r"forward makes shape .* is declared"):
        recover(short, y)
    with pytest.raises(InputError, match=r"1 of \d+ values are masked"):
        recover(A, np.ma.masked_array(y, np.arange(y.size) == 3))
    with pytest.raises(InputError, match="meta device"):
        recover(torch.empty(A.shape, device="meta"), y)
    with pytest.raises(InputError, match=r"sparsity: .* outside 1"):
        recover(A, y, sparsity=np.array([2, 3]))


@pytest.mark.parametrize("kind", ["real", "complex", "rounded", "batch"])
def test_as_many_non_zeros_as_measurements_are_remarked_on(kind):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((20, 80)) + (1j * rng.standard_normal((20, 80)) * (kind == "complex"))
    A = A if kind == "complex" else A.real
    y = {"rounded": np.round(A[:, 3], 3), "batch": np.stack([A[:, 3], rng.standard_normal(20)], 1)}
    found = recover(A, y.get(kind, rng.standard_normal(20)))
    assert "as many non-zeros as measurements" in found.why
    assert "as many" not in recover(A, A[:, 3]).why
    assert "as many" not in recover(A[:, :10], A[:, :10] @ np.ones(10)).why


def test_zeros_have_no_sign():
    with pytest.raises(InputError, match=r"2 values are 0, .*np\.where"):
        OneBit(EYE, [1, 0, 0], 2.0)


def test_cvxpy_is_not_recommended_once_it_has_had_its_turn():
    rng = np.random.default_rng(0)
    A = 10.0 ** rng.uniform(-6, 6, (6, 9))
    problem = Analysis(A, A @ np.ones(9), rng.standard_normal((8, 9)))
    found = solve(problem, tol=1e-300, max_iter=3)
    assert not found.status.ok
    assert "cvxpy" in found.why
    assert 'take solver="cvxpy"' not in found.message
