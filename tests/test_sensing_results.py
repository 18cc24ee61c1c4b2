"""What problems and answers are as objects: they pickle, print short, and hold numbers only."""

import dataclasses
import pickle
import sys
from functools import partial

import numpy as np
import pytest
from sensing_cases import NOT_CONVEX, OPERATORS, PROBLEMS, RUNS

from lowrank.errors import InputError
from lowrank.sensing import (
    SCAD,
    SOLVERS,
    AnalysisLasso,
    BasisPursuit,
    Lasso,
    OneBit,
    Status,
    certify,
    lasso_path,
    noise,
    operators,
    problems,
    recover,
    reweighted,
    solve,
    total_variation,
)

MADE = {**PROBLEMS, **{name: lambda case=case: case()[0] for name, case in NOT_CONVEX.items()}}
MADE |= {"best subset": RUNS["branch_and_bound"], "mcp": RUNS["local_linear"]}
MADE["scad"] = lambda: SCAD(np.eye(3), np.ones(3), 0.1)
MADE["group bpdn"] = lambda: problems.GroupBPDN(np.eye(3), np.ones(3), 0.1, [0, 0, 1])
MADE["joint bpdn"] = lambda: problems.JointBPDN(np.eye(3), np.ones((3, 2)), 0.1)
MADE["sparse groups"] = lambda: problems.SparseGroupLasso(np.eye(3), np.ones(3), 0.1, [0, 0, 1])
MADE["slope"] = lambda: problems.SLOPE(np.eye(3), np.ones(3), 0.1, lower=0)
MADE["overlap"] = lambda: problems.OverlappingGroupLasso(
    np.eye(3), np.ones(3), 0.1, [[0, 1], [1, 2]]
)
ONE_A_KIND = {type(make()): name for name, make in MADE.items()}


@pytest.mark.parametrize("name", ONE_A_KIND.values())
def test_problems_pickle_without_what_follows_from_them(name):
    problem = MADE[name]()
    derived = problem.operator, problem.n_unknowns
    assert derived
    twin = pickle.loads(pickle.dumps(problem))
    assert type(twin) is type(problem)
    assert set(twin.__dict__) <= {f.name for f in dataclasses.fields(problem)} | {"tensor_like"}
    np.testing.assert_array_equal(twin.operator.to_dense(), problem.operator.to_dense())
    np.testing.assert_array_equal(twin.y, problem.y)
    assert len(pickle.dumps(problem)) < 3 * problem.operator.to_dense().nbytes + 2**16


def test_every_problem_is_pickled_here():
    concrete = {getattr(problems, name) for name in dir(problems) if not name.startswith("_")}
    kinds = {c for c in concrete if isinstance(c, type) and issubclass(c, problems.Problem)}
    assert set(ONE_A_KIND) == kinds - {problems.Problem}


@pytest.mark.parametrize("name", ["admm", "omp", "exact_l1", "sbl"])
def test_answers_pickle_and_are_equal_to_themselves_alone(name):
    found = solve(RUNS[name](), name)
    twin = pickle.loads(pickle.dumps(found))
    assert twin.to_dict() == found.to_dict()
    assert twin.status is found.status
    np.testing.assert_array_equal(twin.x, found.x)
    assert found == found
    assert found != twin
    assert twin in [found, twin]


@pytest.mark.parametrize("name", SOLVERS)
def test_what_is_printed_is_short(name):
    problem = RUNS[name]()
    claimed = SOLVERS[name]().solve(problem)
    proven = [certify(problem, claimed.coefficients)] if problem.convex else []
    for text in map(repr, (problem, claimed, *proven)):
        assert len(text) < 200
        assert "array" not in text
    assert type(problem).__name__ in repr(problem)
    assert claimed.status.name in repr(claimed)
    assert len(repr(solve(problem, name))) < 800


def test_a_problem_prints_its_shapes_and_numbers():
    assert repr(Lasso(np.eye(3, 5), np.ones(3), 0.1)) == "Lasso(A 3 x 5, y (3,), lam=0.1)"


@pytest.mark.parametrize(
    "make",
    [
        lambda: BasisPursuit([[1.0, 0.0], [1.0, 0.0]], [1.0, 2.0]),
        lambda: problems.BPDN([[1.0, 0.0], [1.0, 0.0]], [1.0, 2.0], 0.1),
        lambda: problems.Analysis([[1.0, 0.0], [1.0, 0.0]], [1.0, 2.0], np.eye(2)),
        lambda: BasisPursuit(np.eye(2), [1.0, -0.25], lower=0),
    ],
)
def test_what_has_no_solution_has_no_gap(make):
    found = solve(make())
    assert found.status is Status.INFEASIBLE
    assert found.gap is None
    assert "gap none (infeasible)" in repr(found)
    assert found.to_dict()["gap"] is None
    assert "none: the problem has no solution" in dict(found._certificate()).values()


def test_what_is_not_convex_says_so():
    found = recover(np.eye(3), np.ones(3), sparsity=1)
    assert "gap none (not convex)" in repr(found)


EYE, ONES = np.eye(3), np.ones(3)
NUMBERS = {
    "noise": partial(recover, EYE, ONES, noise=True),
    "noise false": partial(recover, EYE, ONES, noise=False),
    "numpy bool": partial(recover, EYE, ONES, noise=np.True_),
    "lam": partial(recover, EYE, ONES, lam=True),
    "lam_fraction": partial(recover, EYE, ONES, lam_fraction=True),
    "sparsity": partial(recover, EYE, ONES, sparsity=True),
    "numpy sparsity": partial(recover, EYE, ONES, sparsity=np.True_),
    "tol": partial(recover, EYE, ONES, tol=True),
    "max_iter": partial(recover, EYE, ONES, max_iter=True),
    "weights": partial(recover, EYE, ONES, weights=[True, True, True]),
    "lower": partial(Lasso, EYE, ONES, 0.1, lower=False),
    "upper": partial(Lasso, EYE, ONES, 0.1, upper=True),
    "epsilon": partial(problems.BPDN, EYE, ONES, True),
    "tau": partial(problems.ConstrainedLasso, EYE, ONES, True),
    "dantzig": partial(problems.DantzigSelector, EYE, ONES, True),
    "ridge": partial(problems.ElasticNet, EYE, ONES, 1.0, True),
    "sqrt lasso": partial(problems.SqrtLasso, EYE, ONES, True),
    "l1 fit": partial(problems.L1Fit, EYE, ONES, True),
    "group lam": partial(problems.GroupLasso, EYE, ONES, True, [0, 0, 1]),
    "groups": partial(problems.GroupLasso, EYE, ONES, 1.0, [True, True, False]),
    "joint": partial(problems.JointSparse, EYE, np.ones((3, 2)), True),
    "components": partial(AnalysisLasso, EYE, ONES, EYE, 0.1, True),
    "tv": partial(total_variation, EYE, ONES, 3, lam=True),
    "radius": partial(OneBit, EYE, ONES, True),
    "noise_std": partial(problems.PosteriorMean, EYE, ONES, True),
    "rounds": partial(reweighted, BasisPursuit(EYE, ONES), rounds=True),
    "floor": partial(reweighted, BasisPursuit(EYE, ONES), floor=True),
    "std": partial(noise.noise_bound, True, 10),
    "m": partial(noise.noise_bound, 0.1, True),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_bool_is_no_number(name):
    with pytest.raises(InputError):
        NUMBERS[name]()


def test_regularisation_takes_no_bools():
    from lowrank.sensing import (
        lam_by_cross_validation,
        lam_by_discrepancy,
        lam_by_information,
        lam_by_sure,
    )

    A, y = np.eye(6), np.array([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    for call in (
        lambda: lam_by_discrepancy(A, y, True),
        lambda: lam_by_cross_validation(A, y, folds=True),
        lambda: lam_by_sure(A, y, True),
        lambda: lam_by_sure(A, y, 0.1, lams=[True]),
        lambda: lam_by_information(A, y, std=True),
    ):
        with pytest.raises(InputError, match="bool is not a number"):
            call()


def test_zero_is_not_certified_for_a_flat_signal_seen_as_a_sum():
    found = solve(total_variation(np.ones((1, 9)), [18.0], 9, lam=0.1))
    assert found.status is Status.OPTIMAL
    np.testing.assert_allclose(found.x, 2.0)
    flat = certify(total_variation(np.ones((1, 9)), [18.0], 9, lam=0.1), np.zeros(9))
    assert flat.dual_objective <= 1e-9  # the minimum is 0: no larger bound is true
    assert not flat.holds(1e-6)


def test_tv_from_patterns_that_do_not_see_the_mean():
    rng = np.random.default_rng(2)
    half = np.r_[np.ones(16), -np.ones(16)]
    A = np.stack([rng.permutation(half) for _ in range(20)])  # A 1 = 0 and D 1 = 0: singular
    steps = np.repeat([0.0, 1.0, 0.2, 0.2], 8)
    found = solve(total_variation(A, A @ steps, 32, lam=0.05), "admm")
    assert found.status is Status.OPTIMAL
    assert "broke down" not in found.why


@pytest.mark.parametrize("seed", range(6))
def test_a_rank_deficient_analysis_problem_is_certified(seed):
    rng = np.random.default_rng(100 + seed)
    A, D = rng.standard_normal((8, 3)) @ rng.standard_normal((3, 11)), rng.standard_normal((1, 11))
    y = rng.standard_normal(8)
    free = np.linalg.svd(D)[2][1:].T
    best = np.linalg.norm(A @ free @ np.linalg.lstsq(A @ free, y, rcond=None)[0] - y) ** 2 / 2
    found = solve(AnalysisLasso(A, y, D, 20.0))
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(best, rel=1e-6)


def test_signals_of_a_batch_are_debiased_each_on_its_own_support():
    rng = np.random.default_rng(0)
    A, X = rng.standard_normal((30, 60)) / 5, np.zeros((60, 12))
    for j in range(12):
        X[rng.permutation(60)[:3], j] = 2.0
    found = solve(Lasso(A, A @ X, 0.05), debias=True)
    assert found.support.size > 30  # together they have no least squares of use
    np.testing.assert_allclose(found.debiased, X, atol=1e-6)


def test_the_certificate_makes_no_product_that_it_can_do_without():
    rng = np.random.default_rng(0)
    problem = Lasso(rng.standard_normal((20, 40)), rng.standard_normal(20), 1.0)
    found = solve(problem)
    made = []
    counted = problem.counting(made.append)
    assert certify(counted, found.coefficients, found.dual).gap < 1e-12
    assert len(made) == 2  # A c, and A^H of a dual that closes the gap by itself
    made.clear()
    assert certify(counted, np.zeros(40)).gap > 0
    assert len(made) == 1  # A 0 is 0
    made.clear()
    assert certify(counted, found.coefficients, rng.standard_normal(20)).gap < 1e-12
    assert len(made) == 3  # of a poor dual first, then of the residual


def test_advice_is_not_what_was_just_done():
    rng = np.random.default_rng(3)
    A = rng.standard_normal((12, 20))
    stalled = solve(Lasso(A, A[:, 0], 0.1), "cvxpy", tol=1e-300)
    assert stalled.status is Status.STALLED
    assert "cvxpy" not in stalled.message
    many = rng.standard_normal((12, 16))  # of so many signals one gap at least is not exactly 0
    assert "cvxpy" in solve(Lasso(A, many, 0.1), "exact_l1", tol=1e-300).message


@pytest.mark.parametrize("wrong", [3, "x"])
def test_a_callback_that_is_no_function_gets_a_sentence(wrong):
    with pytest.raises(InputError, match=r"^callback: .* is no function"):
        recover(np.eye(3)[:2], np.ones(2), callback=wrong)


def test_every_kind_of_object_pickles():
    """Operators and adjoints, those of lambdas, what is made of them, problems and answers."""
    made = {name: make() for name, make in OPERATORS.items()}
    A, B = made["gaussian"], np.random.default_rng(0).standard_normal((30, 40))
    free = operators.from_functions((30, 40), lambda x: B @ x, lambda v: B.T @ v)
    made |= {"free": free, "scaled": 2 * A, "sum": A + A, "slice": A[:, :5], "of": free @ free.H}
    made |= {"stacked": operators.hstack([A, A]), "block": operators.block_diag([A, A])}
    for name, operator in made.items():
        for one in (operator, operator.H):
            twin, x = pickle.loads(pickle.dumps(one)), np.ones(one.shape[1])
            np.testing.assert_allclose(twin @ x, one @ x, err_msg=name)
    found = recover(free, free @ np.eye(40)[3], lam=0.1)
    path = lasso_path(B, B[:, 3], n_lams=3)
    others = [found, path, certify(Lasso(B, B[:, 3], 0.1), np.zeros(40)), Lasso(free, B[:, 3], 0.1)]
    others += [make() for make in SOLVERS.values()]
    for thing in others:
        assert type(pickle.loads(pickle.dumps(thing))) is type(thing)


def test_a_lambda_without_cloudpickle_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    free = operators.from_functions((3, 3), lambda x: x, lambda v: v)
    with pytest.raises(pickle.PicklingError, match="define it at the top of a module"):
        pickle.dumps(free)
