"""Best subset: against all subsets one by one, the proof itself, limits, and what it refuses."""

import itertools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lowrank.errors import InputError
from lowrank.sensing import BestSubset, Status, operators, recover, solve
from lowrank.sensing.solvers import branch_and_bound as module
from lowrank.sensing.solvers.branch_and_bound import BranchAndBound
from lowrank.sensing.solvers.perspective import diagonal_part, relaxed
from lowrank.sensing.solvers.subset_bounds import Columns, subsets_below, without_factors

ROUNDING = 1e-9
"""Share of 1/2 ||y||^2; the gap itself is at most 1e-8."""


def least(A, y, k, ridge=0.0):
    """The minimum over all subsets, one by one."""
    A = np.concatenate([A, np.sqrt(ridge) * np.eye(A.shape[1])])
    y = np.concatenate([y, np.zeros(A.shape[1])])
    subsets = (list(T) for T in itertools.combinations(range(A.shape[1]), k))
    rest = (y - A[:, T] @ np.linalg.lstsq(A[:, T], y, rcond=None)[0] for T in subsets)
    return min(float(np.vdot(r, r).real) for r in rest) / 2


def matrix(kind, n, p, rng):
    A = rng.standard_normal((n, p))
    if kind == "one factor":
        return A + 3
    if kind == "duplicates and zero":
        A[:, -1], A[:, p // 2] = A[:, 0], 0
        return A
    if kind == "sums":
        return A @ np.triu(np.ones((p, p)))
    return {"gaussian": A, "integers": np.round(A), "scaled": A * 10.0 ** rng.integers(-3, 4, p),
            "complex": A + 1j * rng.standard_normal((n, p))}[kind]  # fmt: skip


KINDS = (
    "gaussian",
    "one factor",
    "duplicates and zero",
    "sums",
    "integers",
    "scaled",
    "complex",
)


def checked(kind, seed, largest=11):
    rng = np.random.default_rng(seed)
    p, n = int(rng.integers(2, largest)), int(rng.integers(1, 16))
    k, ridge = int(rng.integers(1, min(n, p) + 1)), [0.0, 0.3][seed % 2]
    A = matrix(kind, n, p, rng)
    y = A[:, 0] + A[:, -1] if seed % 3 == 0 else rng.standard_normal(n)
    found = recover(A, y, sparsity=k, exact=True, ridge=ridge)
    size = np.vdot(y, y).real / 2
    best = least(A, y, k, ridge)
    assert found.status is Status.OPTIMAL
    assert found.gap <= 1e-8
    assert np.count_nonzero(found.x) <= k
    assert found.objective == pytest.approx(best, abs=ROUNDING * size)
    assert found.dual_objective <= best + ROUNDING * size


@pytest.mark.parametrize("kind", KINDS)
def test_no_subset_is_better(kind):
    for seed in range(6):
        checked(kind, seed)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_no_subset_is_better_at_length(kind):
    for seed in range(1000):
        checked(kind, seed)


def test_25_columns_against_all_subsets():
    rng = np.random.default_rng(0)
    for n in (15, 60):
        A, y = rng.standard_normal((n, 25)), rng.standard_normal(n)
        found = recover(A, y, sparsity=3, exact=True)
        assert found.status is Status.OPTIMAL
        assert found.objective == pytest.approx(least(A, y, 3), rel=ROUNDING)


def test_the_list_misses_no_subset(monkeypatch):
    """Every subset below the goal is listed, also by a tree that may list next to nothing."""
    rng = np.random.default_rng(1)
    A, y = rng.standard_normal((12, 30)), rng.standard_normal(12)
    whole = Columns(A / np.linalg.norm(A, axis=0), np.arange(30), y, np.zeros(30))
    G = whole.B.T @ whole.B
    triples = list(itertools.combinations(range(30), 3))
    fits = [np.linalg.lstsq(A[:, T], y, rcond=None)[1][0] for T in map(list, triples)]
    values = dict(zip(triples, fits, strict=True))
    goal = float(np.quantile(list(values.values()), 0.01))
    found = subsets_below(whole, G, 3, goal, limit=10**6, deadline=np.inf)
    below = {T for T, value in values.items() if value < goal}
    assert found.complete
    assert below <= set(map(tuple, found.sets.tolist()))
    monkeypatch.setattr(module, "LISTED", (0, 3))
    small = recover(A, y, sparsity=3, exact=True)
    assert small.n_iter > 20
    assert 2 * small.objective == pytest.approx(min(values.values()), rel=ROUNDING)


def test_dropping_factors_only_adds_subsets():
    rng = np.random.default_rng(0)
    N = 0.5 + 0.2 * rng.standard_normal((60, 60))
    N = np.triu(N, 1) + np.triu(N, 1).T
    less = without_factors(N.copy())
    assert np.abs(less).mean() < 0.6 * np.abs(N).mean()
    seen = []
    for _ in range(2000):
        T = rng.permutation(len(N))[:8]
        lowest = [np.linalg.eigvalsh(np.eye(8) + M[np.ix_(T, T)])[0] for M in (N, less)]
        assert lowest[0] > 0 or lowest[1] <= 1e-12
        seen.append(lowest[0] <= 0)
    assert 0 < sum(seen) < 2000


@pytest.mark.parametrize("kind", ["gaussian", "sums"])
def test_the_relaxation_is_a_bound_wherever_it_stops(kind):
    rng = np.random.default_rng(5)
    A = matrix(kind, 20, 9, rng)
    A /= np.linalg.norm(A, axis=0)
    y = rng.standard_normal(20)
    G, g, t = A.conj().T @ A, A.conj().T @ y, 3
    D = diagonal_part(G)
    assert D.min() > 0
    assert np.linalg.eigvalsh(G - np.diag(D))[0] >= 0
    best = 2 * least(A, y, t)
    exact = relaxed_by_cvxpy(G, g, D, t, float(y @ y))
    goal = exact + 1e-4
    bounds = [relaxed(G, g, D, t, float(y @ y), goal, steps).bound for steps in (1, 2, 5, 2000)]
    assert all(bound <= min(best, exact + 1e-6) + ROUNDING for bound in bounds)
    assert bounds[0] < bounds[-1]
    assert bounds[-1] == pytest.approx(exact, abs=1e-5)


def relaxed_by_cvxpy(G, g, D, t, energy):
    """The same relaxation as a cone program."""
    import cvxpy as cp

    n = len(g)
    root = np.linalg.cholesky(G - np.diag(D) + 1e-12 * np.eye(n)).T
    c, z, s = cp.Variable(n), cp.Variable(n), cp.Variable(n)
    cones = [
        cp.SOC(s[i] + z[i], cp.hstack([2 * np.sqrt(D[i]) * c[i], s[i] - z[i]])) for i in range(n)
    ]
    value = cp.sum_squares(root @ c) - 2 * g @ c + cp.sum(s) + energy
    program = cp.Problem(cp.Minimize(value), [z >= 0, z <= 1, cp.sum(z) <= t, *cones])
    return float(program.solve())


def hard(seed=0):
    """Noise alone: every subset is about as good as any other."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((60, 120)), rng.standard_normal(60)


def test_time_is_kept_and_the_gap_said():
    A, y = hard()
    begin = time.monotonic()
    found = recover(A, y, sparsity=15, exact=True, time_limit=0.3)
    assert time.monotonic() - begin < 10
    assert found.status is Status.TIME_LIMIT
    assert not found.status.ok
    assert 1e-8 < found.gap <= 1
    assert "raise time_limit" in found.message
    assert found.objective <= recover(A, y, sparsity=15).residual_norm ** 2 / 2 * (1 + ROUNDING)
    assert "left open" in found.why


def test_a_looser_gap_is_enough():
    A, y = hard()
    found = recover(A, y, sparsity=3, exact=True, tol=0.9)
    assert found.status is Status.OPTIMAL
    assert 0.01 < found.gap <= 0.9
    assert found.n_iter <= 1


def test_the_report_shows_a_gap_that_never_grows():
    A, y = hard()
    seen = []
    found = solve(BestSubset(A, y, 5), BranchAndBound(report=seen.append, max_iter=12))
    gaps = [standing.gap for standing in seen]
    assert len(seen) == found.n_iter >= 1
    assert all(b <= a + ROUNDING for a, b in itertools.pairwise(gaps))
    assert found.gap == pytest.approx(gaps[-1], abs=1e-12)
    assert "gap" in str(seen[-1])
    assert found.solver == "BranchAndBound(max_iter=12)"
    stopped = solve(BestSubset(A, y, 15), BranchAndBound(report=lambda standing: True))
    assert stopped.n_iter == 1
    assert stopped.status is Status.MAX_ITER


def test_the_bar_shows_the_gap():
    import io

    from rich.console import Console

    from lowrank.sensing import progress_bar

    A, y = hard()
    drawn = io.StringIO()
    with progress_bar(Console(file=drawn, force_terminal=True, width=80)) as bar:
        solve(BestSubset(A, y, 4), BranchAndBound(report=bar.standing, max_iter=1))
    assert "nodes" in drawn.getvalue()
    assert "gap" in drawn.getvalue()


def test_an_executor_changes_nothing():
    rng = np.random.default_rng(3)
    A, y = rng.standard_normal((30, 60)), rng.standard_normal(30)
    alone = recover(A, y, sparsity=5, exact=True)
    with ThreadPoolExecutor(2) as pool:
        together = recover(A, y, sparsity=5, exact=True, solver=BranchAndBound(executor=pool))
    assert together.status is Status.OPTIMAL
    assert together.support.tolist() == alone.support.tolist()


def test_signal_in_a_basis_tensors_and_operators_come_back_as_they_came():
    import torch

    A = operators.partial_dct(32, m=16, seed=0)
    c = np.zeros(32)
    c[[3, 20]] = 2, -1
    found = recover(A, torch.from_numpy(A @ c), sparsity=2, exact=True)
    assert torch.is_tensor(found.x)
    assert found.dual is None
    assert np.abs(found.x.numpy() - c).max() < 1e-12
    spikes = recover(np.eye(32), A.H @ (A @ c), sparsity=2, exact=True, basis="dct")
    assert spikes.status is Status.OPTIMAL


def test_zero_is_proven():
    for y in (np.zeros(3), np.array([0.0, 0.0, 2.0])):
        A = np.eye(3, 2) @ np.diag([1.0, 0.0])
        found = recover(A, y, sparsity=1, exact=True)
        assert found.status is Status.OPTIMAL
        assert not found.x.any()


EYE, ONES = np.eye(3), np.ones(3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: recover(EYE, ONES, exact=True), "exact: .* no sparsity is given"),
        (lambda: recover(EYE, ONES, sparsity=1, exact=1), "exact: 1 is neither True nor False"),
        (lambda: recover(EYE, ONES, sparsity=1, ridge=1.0), "ridge only joins the best subset"),
        (lambda: recover(EYE, ONES, time_limit=-1.0), "time_limit: -1.0 is not positive"),
        (lambda: recover(EYE, ONES, sparsity=1, exact=True, ridge=-1.0), "ridge: -1.0 is not"),
        (lambda: recover(EYE, ONES, sparsity=1, exact=True, time_limit=0.0), "time_limit: 0.0"),
        (lambda: recover(EYE, ONES, sparsity=4, exact=True), "sparsity: 4 is outside 1..3"),
        (
            lambda: recover(EYE, ONES, sparsity=1, exact=True, solver="omp"),
            r"omp solves KSparse .* this is BestSubset .* take branch_and_bound",
        ),
        (
            lambda: recover(EYE, np.ones((3, 2)), sparsity=1, exact=True),
            "branch_and_bound works on one signal",
        ),
        (
            lambda: recover(EYE, ONES, sparsity=1, exact=True, nonneg=True),
            "joins neither nonneg nor weights",
        ),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_too_many_columns_are_refused():
    wide = BestSubset(np.ones((1, module.LARGEST + 1)), [1.0], 1)
    assert "8,192 are the most" in BranchAndBound().refuses(wide)
