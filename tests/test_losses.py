"""Logistic, Poisson, Huber and quantile losses: terms by definition, answers against CVXPY."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from lowrank.errors import InputError
from lowrank.sensing import (
    HuberLasso,
    LogisticLasso,
    PoissonLasso,
    QuantileLasso,
    Status,
    certify,
    losses,
    operators,
    solve,
)

CVXPY = 1e-6
"""Relative accuracy of the objective that CVXPY is taken at its word for."""

RNG = np.random.default_rng(0)
SIGNS, COUNTS = np.array([[1.0], [-1.0], [1.0]]), np.array([[0.0], [3.0], [1.0]])
LOSSES = {
    "logistic": losses.Logistic(SIGNS),
    "poisson": losses.Poisson(COUNTS),
    "huber": losses.Huber(0.7),
    "pinball": losses.Pinball(0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_what_they_say(name):
    loss = LOSSES[name]
    for seed in range(5):
        rng = np.random.default_rng(seed)
        r, t = 2 * rng.standard_normal((3, 1)), float(rng.uniform(0.1, 5))
        slope = loss.subgradient(r)
        steps = 1e-6 * np.eye(3)[:, :, None]
        differences = [float((loss.value(r + h) - loss.value(r - h))[0]) / 2e-6 for h in steps]
        assert slope[:, 0] == pytest.approx(differences, abs=1e-7)
        fenchel = float(loss.value(r)[0] + loss.conjugate(slope)[0])
        assert fenchel == pytest.approx(float((r * slope).sum()), abs=1e-9)
        assert loss.cap(slope)[0] >= 1 - 1e-12
        p = loss.prox(r, t)
        near = [p, *(p + h for h in 1e3 * steps), *(p - h for h in 1e3 * steps)]
        worse = [float(t * loss.value(u)[0] + ((u - r) ** 2).sum() / 2) for u in near]
        assert worse[0] == min(worse)


def test_the_logistic_and_the_poisson_prox_solve_their_equations_far_out():
    for r in (-300.0, -20.0, 0.0, 20.0, 300.0):
        for t in (1e-3, 1.0, 1e3):
            at = np.full((3, 1), r)
            for name in ("logistic", "poisson"):
                loss = LOSSES[name]
                p = loss.prox(at, t)
                left = p - at + t * loss.subgradient(p)
                size = np.abs(at) + t * (1 + COUNTS) + np.abs(p - at)
                assert (np.abs(left) <= 1e-9 * size).all()


def design(kind, rng):
    m, n = int(rng.integers(1, 14)), int(rng.integers(1, 10))
    A = rng.standard_normal((m, n))
    if kind == "one row":
        A = A[:1]
    elif kind == "repeated":
        A = np.repeat(np.repeat(A, 2, axis=0), 2, axis=1)
    elif kind == "zero columns":
        A[:, rng.random(n) < 0.4] = 0
    elif kind == "integers":
        A = np.round(A)
    elif kind == "scaled":
        A = A * 10.0 ** rng.integers(-2, 3, n)
    return A


DESIGNS = ("random", "one row", "repeated", "zero columns", "integers", "scaled")


def made(name, kind, seed):
    """A problem with a lam from near nothing to beyond lam_max, some weighted or bounded.

    Where slopes cancel, lam_max is rounding, and no float64 tells a share of it from nothing.
    """
    rng = np.random.default_rng(seed)
    A = design(kind, rng)
    m, n = A.shape
    eta = A @ (rng.standard_normal(n) * (rng.random(n) < 0.5))
    eta = eta / max(1.0, np.abs(eta).max() / 3)
    flips = np.where(rng.random(m) < 0.2, -1.0, 1.0)
    y, more = {
        "logistic": lambda: (flips * np.where(eta < 0, -1, 1), {}),
        "poisson": lambda: (rng.poisson(np.exp(eta)).astype(float), {}),
        "huber": lambda: (eta + rng.standard_t(1, m), {"delta": float(10 ** rng.uniform(-1.5, 1))}),
        "quantile": lambda: (eta + rng.standard_t(2, m), {"tau": float(rng.uniform(0.05, 0.95))}),
    }[name]()  # fmt: skip
    if seed % 7 == 3:
        y = np.full(m, 1.0)
    if seed % 4 == 1:
        more["weights"] = rng.uniform(0.3, 3, n)
    if seed % 5 == 2:
        more |= {"lower": 0.0} if seed % 2 else {"lower": -0.3, "upper": 0.5}
    make = PROBLEMS[name]
    top = make(A, y, 1.0, **more).lam_max
    top = top if top > 1e-14 * np.abs(A).sum() else 1.0
    return make(A, y, top * float(rng.choice([1e-3, 0.03, 0.3, 0.9, 1.1])), **more)


PROBLEMS = {
    "logistic": LogisticLasso,
    "poisson": PoissonLasso,
    "huber": HuberLasso,
    "quantile": QuantileLasso,
}


def with_intercept(problem):
    """The problem with an intercept, and lam anew; None where there is no finite one."""
    try:
        other = replace(problem, intercept=True)
    except InputError:
        return None
    rounding = 1e-14 * np.abs(problem.A.to_dense()).sum()
    before, after = (top if top > rounding else 1.0 for top in (problem.lam_max, other.lam_max))
    return replace(other, lam=problem.lam / before * after)


def checked(name, kind, seed, intercept=False):
    """Our answer and CVXPY's, each held against the other's bound."""
    problem = made(name, kind, seed)
    problem = with_intercept(problem) if intercept else problem
    if problem is None:
        return
    found, reference = solve(problem), solve(problem, "cvxpy")
    size = max(abs(found.objective), 1e-9)
    assert found.status is Status.OPTIMAL, (found, problem)
    assert found.gap <= 1e-8
    assert found.infeasibility <= 1e-8
    assert found.dual_objective <= found.objective + 1e-12 * size
    if reference.status is Status.OPTIMAL:
        assert found.objective == pytest.approx(reference.objective, rel=CVXPY, abs=CVXPY * size)
    if reference.infeasibility <= 1e-9:  # then its point bounds the minimum, however it ended
        assert found.dual_objective <= reference.objective + 1e-9 * size


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_answer_is_cvxpy_s(name):
    for seed, kind in enumerate(DESIGNS):
        checked(name, kind, seed)


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_answer_with_an_intercept_is_cvxpy_s(name):
    for seed in (0, 3, 6, 10):
        checked(name, DESIGNS[seed % len(DESIGNS)], seed, intercept=True)


@pytest.mark.fuzz
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_answer_is_cvxpy_s_at_length(name, intercept):
    for seed in range(300 if intercept else 1000):
        checked(name, DESIGNS[seed % len(DESIGNS)], seed, intercept)


@pytest.mark.parametrize("name", LOSSES)
def test_the_best_intercept_is_the_best(name):
    loss, rng = losses.WithIntercept(LOSSES[name]), np.random.default_rng(2)
    for _ in range(5):
        r, t = 3 * rng.standard_normal((3, 1)), float(rng.uniform(0.1, 5))
        direct = minimize_scalar(lambda b, r=r: float(LOSSES[name].value(r + b)[0])).fun
        assert loss.value(r)[0] == pytest.approx(direct, abs=1e-7)
        assert loss.value(r)[0] <= direct + 1e-12
        assert abs(loss.subgradient(r).sum()) < 1e-12
        p = loss.prox(r, t)
        worse = [p, *(p + 1e-3 * rng.standard_normal((9, 3, 1)))]
        gains = [float(t * loss.value(u)[0] + ((u - r) ** 2).sum() / 2) for u in worse]
        assert gains[0] == min(gains)


def test_a_constant_goes_into_the_intercept():
    A = RNG.standard_normal((60, 10))
    y = 5 + A[:, 0] + 0.1 * RNG.standard_normal(60)
    for problem in (
        HuberLasso(A, y, 0.5, delta=0.2, intercept=True),
        QuantileLasso(A, y, 0.5, tau=0.5, intercept=True),
    ):
        found = solve(problem)
        assert found.status is Status.OPTIMAL
        assert found.intercept == pytest.approx(5, abs=0.1)
        assert abs(found.dual.sum()) < 1e-10
        shifted = solve(replace(problem, y=y + 100))
        assert shifted.intercept == pytest.approx(found.intercept + 100, abs=1e-4)
    assert solve(HuberLasso(A, y, 0.5, delta=0.2)).intercept is None
    assert "intercept" in found.to_dict()


def test_an_intercept_for_sparse_designs_and_operators():
    import scipy.sparse

    A = scipy.sparse.random(40, 60, 0.2, random_state=0, format="csc")
    y = 3 + A @ np.eye(60)[4] * 2 + 0.01 * RNG.standard_normal(40)
    D = operators.from_functions(A.shape, lambda x: A @ x, lambda v: A.T @ v)
    for kind in (A, D):
        found = solve(HuberLasso(kind, y, 0.05, delta=0.1, intercept=True))
        assert found.status is Status.OPTIMAL
        assert found.intercept == pytest.approx(3, abs=0.2)
        labels = np.where(y > 3, 1.0, -1.0)
        assert solve(LogisticLasso(kind, labels, 0.1, intercept=True)).status is Status.OPTIMAL


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_wrong_answer_is_not_certified(name):
    problem = made(name, "random", 0)
    found = solve(problem)
    assert certify(problem, found.coefficients, found.dual).holds(1e-8)
    assert not certify(problem, found.coefficients + 0.1).holds(1e-4)
    zero = certify(problem, 0 * found.coefficients)
    assert zero.objective >= found.objective * (1 - 1e-9)
    assert zero.dual_objective <= found.objective * (1 + 1e-9)


@pytest.mark.parametrize("name", PROBLEMS)
def test_lam_max_is_where_zero_begins(name):
    problem = made(name, "random", 4)
    y, top = problem.y, problem.lam_max
    more = {n: getattr(problem, n) for n in ("delta", "tau") if hasattr(problem, n)}
    A = problem.operator
    assert solve(type(problem)(A, y, 1.001 * top, **more)).support.size == 0
    assert solve(type(problem)(A, y, 0.5 * top, **more)).support.size > 0


def test_wide_tall_and_sparse_designs_are_certified():
    import scipy.sparse

    for m, n in ((30, 120), (120, 15)):
        rng = np.random.default_rng(m)
        A = scipy.sparse.random(m, n, 0.2, random_state=rng, format="csc")
        x = np.zeros(n)
        x[:4] = 2, -2, 1.5, -1
        eta = A @ x
        labels = np.where(eta + rng.logistic(size=m) < 0, -1.0, 1.0)
        for problem in (
            LogisticLasso(A, labels, 0.3),
            PoissonLasso(A, rng.poisson(np.exp(eta)).astype(float), 0.5),
            HuberLasso(A, eta + rng.standard_t(1, m), 0.3, delta=0.5),
            QuantileLasso(A.toarray(), eta + rng.standard_t(1, m), 0.5, tau=0.4),
        ):
            found = solve(problem)
            assert found.status is Status.OPTIMAL, found


def test_an_operator_of_two_functions_is_enough():
    D = operators.partial_dct(64, m=40, seed=0)
    free = operators.from_functions(D.shape, D.forward, D.adjoint)
    labels = np.where(D @ (3 * np.eye(64)[5] - 2 * np.eye(64)[20]) < 0, -1.0, 1.0)
    found = solve(LogisticLasso(free, labels, 0.05))
    assert found.status is Status.OPTIMAL
    robust = solve(HuberLasso(free, labels, 0.3, delta=0.2))
    assert robust.status is Status.OPTIMAL


def test_a_gross_error_hardly_moves_the_robust_fit():
    A = RNG.standard_normal((50, 10))
    y = A[:, 0] + 0.1 * RNG.standard_normal(50)
    wrong = y.copy()
    wrong[7] = 1e6
    one, other = (solve(HuberLasso(A, data, 1.0, delta=0.2)).x for data in (y, wrong))
    assert np.abs(one - other).max() < 0.05


def test_the_quantile_has_its_share_below():
    A = np.ones((200, 1))
    y = RNG.standard_normal(200)
    for tau in (0.1, 0.5, 0.9):
        level = float(solve(QuantileLasso(A, y, 1e-6, tau=tau)).x[0])
        assert np.mean(y < level) == pytest.approx(tau, abs=0.01)
        direct = minimize_scalar(lambda c, t=tau: np.maximum(t * (y - c), (t - 1) * (y - c)).sum())
        found = solve(QuantileLasso(A, y, 1e-6, tau=tau)).objective
        assert found <= direct.fun + 1e-5


EYE, ONES = np.eye(3), np.ones(3)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: LogisticLasso(EYE, [0, 1, 1], 1.0),
            r"not all labels are -1 or 1; pass 2 \* y - 1",
        ),
        (lambda: PoissonLasso(EYE, [1, -2, 0], 1.0), "a count of -2 is negative"),
        (lambda: HuberLasso(EYE, ONES, 1.0, 0.0), "delta: 0.0 is not positive"),
        (lambda: QuantileLasso(EYE, ONES, 1.0, 1.0), r"tau: 1.0 is outside \(0, 1\)"),
        (lambda: QuantileLasso(EYE, ONES, 1.0, 0.0), "tau: 0.0 is not positive"),
        (lambda: PoissonLasso(EYE, ONES, 0.0), "lam: 0.0 is not positive"),
        (lambda: HuberLasso(EYE, np.ones((3, 2)), 1.0, 1.0), "one signal at a time"),
        (lambda: LogisticLasso(EYE, ONES, 1.0, intercept=True), "all labels are alike"),
        (lambda: PoissonLasso(EYE, 0 * ONES, 1.0, intercept=True), "all counts are 0"),
        (lambda: HuberLasso(EYE, ONES, 1.0, 1.0, intercept=1), "1 is neither True nor False"),
        (lambda: LogisticLasso(1j * EYE, ONES, 1.0), "LogisticLasso is of real data"),
        (lambda: LogisticLasso(EYE, [1, np.nan, 1], 1.0), "NaN"),
        (lambda: solve(PoissonLasso(EYE, ONES, 0.1), debias=True), "least squares do not fit"),
        (lambda: solve(LogisticLasso(EYE, ONES, 0.1), "admm"), "take cvxpy or prox_newton"),
    ],
)
def test_bad_input_gets_a_sentence(call, says):
    with pytest.raises(InputError, match=says):
        call()
