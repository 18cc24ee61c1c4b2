"""Every convex problem on degenerate data: no answer is called optimal that CVXPY betters."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lowrank.sensing import (
    BPDN,
    AnalysisLasso,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    GroupLasso,
    JointSparse,
    L1Fit,
    Lasso,
    OneBit,
    Problem,
    Recovery,
    SqrtLasso,
    certify,
    solve,
    total_variation,
)
from lowrank.sensing.problems.structured import Analysis
from lowrank.status import Status

WORSE = 1e-6
"""How much the objective of an answer that is called optimal may be above CVXPY's, relative."""

Rng = np.random.Generator


def _correlated(m: int, n: int, rng: Rng) -> np.ndarray:
    shared = rng.standard_normal((m, 1))
    return np.asarray(shared + 0.1 * rng.standard_normal((m, n)))


def _zeroed(m: int, n: int, rng: Rng) -> np.ndarray:
    A = rng.standard_normal((m, n))
    A[:, rng.random(n) < 0.3] = 0
    A[rng.random(m) < 0.2] = 0
    return A


DESIGNS: dict[str, Callable[[int, int, Rng], np.ndarray]] = {
    "random": lambda m, n, rng: rng.standard_normal((m, n)),
    "correlated": _correlated,
    "one row": lambda m, n, rng: rng.standard_normal((1, n)),
    "one row of ones": lambda m, n, rng: np.ones((1, n)),
    "repeated rows": lambda m, n, rng: rng.standard_normal((m, n))[rng.integers(0, m, m)],
    "repeated columns": lambda m, n, rng: rng.standard_normal((m, n))[:, rng.integers(0, n, n)],
    "signs": lambda m, n, rng: rng.choice([-1.0, 1.0], (m, n)),
    "integers": lambda m, n, rng: rng.integers(-2, 3, (m, n)).astype(float),
    "zero rows and columns": _zeroed,
    "rank one": lambda m, n, rng: np.outer(rng.standard_normal(m), rng.standard_normal(n)),
    "rows that sum to 0": lambda m, n, rng: (lambda A: A - A.mean(axis=1, keepdims=True))(
        rng.standard_normal((m, n))
    ),
    "scaled columns": lambda m, n, rng: rng.standard_normal((m, n)) * 10 ** rng.uniform(-2, 2, n),
    "identity-like": lambda m, n, rng: np.eye(m, n),
    "tall": lambda m, n, rng: rng.standard_normal((m + n, n)),
    "small": lambda m, n, rng: 1e-6 * rng.standard_normal((m, n)),
    "large": lambda m, n, rng: 1e6 * rng.standard_normal((m, n)),
}


def _signal(n: int, rng: Rng) -> np.ndarray:
    x = np.zeros(n)
    kind = rng.integers(5)
    if kind == 0:
        return x
    if kind == 1:
        return np.ones(n)
    support = rng.permutation(n)[: int(rng.integers(1, max(2, n // 2)))]
    x[support] = rng.standard_normal(support.size) if kind < 4 else rng.choice([-1.0, 1.0])
    return x


class Data:
    """A matrix, measurements, and what the penalties scale with."""

    def __init__(self, seed: int, *, complex_: bool = False) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.design = list(DESIGNS)[seed % len(DESIGNS)]
        m, n = int(rng.integers(1, 12)), int(rng.integers(2, 20))
        self.A = DESIGNS[self.design](m, n, rng)
        self.x = _signal(n, rng)
        if complex_:
            self.A = self.A + 1j * DESIGNS[self.design](m, n, rng)
            self.x = self.x * np.exp(2j * np.pi * rng.random(n))
        self.m, self.n = self.A.shape
        self.clean = self.A @ self.x
        noise = rng.standard_normal(self.m) * rng.choice([0.0, 0.01, 0.3])
        self.y = self.clean + noise * np.linalg.norm(self.clean) / np.sqrt(self.m)
        self.size = float(np.linalg.norm(self.y)) or 1.0
        self.top = float(np.abs(self.A.conj().T @ self.y).max()) or 1.0
        self.share = float(10 ** rng.uniform(-3, 0))
        self.weights = 10 ** rng.uniform(-1, 1, self.n)

    def constrained(self, **more: object) -> Problem:
        """Basis pursuit, or BPDN with a bound that may be 0."""
        if self.rng.random() < 0.5:
            return BasisPursuit(self.A, self.clean, **more)  # type: ignore[arg-type]
        return BPDN(self.A, self.y, 0.3 * self.share * self.size, **more)  # type: ignore[arg-type]


def _shape(n: int, rng: Rng) -> tuple[int, ...]:
    sides = [(a, n // a) for a in range(2, n) if n % a == 0]
    return sides[rng.integers(len(sides))] if sides and rng.random() < 0.6 else (n,)


def _tv(d: Data) -> Problem:
    shape, isotropic = _shape(d.n, d.rng), bool(d.rng.random() < 0.5)
    if d.rng.random() < 0.6:
        lam = 0.3 * d.share * d.top
        return total_variation(d.A, d.y, shape, lam=lam, isotropic=isotropic)
    return total_variation(
        d.A, d.y, shape, epsilon=0.3 * d.share * d.size, isotropic=isotropic
    )  # fmt: skip


def _analysis(d: Data) -> Problem:
    q = int(d.rng.integers(1, 2 * d.n))
    D = DESIGNS[str(d.rng.choice(["random", "signs", "zero rows and columns"]))](q, d.n, d.rng)
    if d.rng.random() < 0.6:
        return AnalysisLasso(d.A, d.y, D, 0.3 * d.share * d.top)
    return Analysis(d.A, d.y, D, 0.3 * d.share * d.size)


def _joint(d: Data, Y: np.ndarray) -> Problem:
    top = float(np.linalg.norm(d.A.conj().T @ Y, axis=1).max()) or 1.0
    return JointSparse(d.A, Y, d.share * top)


def _batch(d: Data) -> np.ndarray:
    return np.stack([d.y, -d.y[::-1], d.rng.standard_normal(d.m)], axis=1)


TYPES: dict[str, Callable[[Data], Problem]] = {
    "basis pursuit": lambda d: BasisPursuit(d.A, d.clean),
    "bpdn": lambda d: BPDN(d.A, d.y, 0.5 * d.share * d.size),
    "lasso": lambda d: Lasso(d.A, d.y, d.share * d.top),
    "weighted": lambda d: d.constrained(weights=d.weights),
    "weighted lasso": lambda d: Lasso(d.A, d.y, d.share * d.top, weights=d.weights),
    "non-negative": lambda d: d.constrained(lower=0.0),
    "non-negative lasso": lambda d: Lasso(d.A, d.y, d.share * d.top, lower=0.0),
    "boxed": lambda d: d.constrained(lower=-np.abs(d.x) - 0.1, upper=np.abs(d.x)),
    "bounds that may forbid": lambda d: d.constrained(lower=-0.5, upper=0.7),
    "boxed lasso": lambda d: Lasso(d.A, d.y, d.share * d.top, lower=-0.2, upper=0.4),
    "constrained lasso": lambda d: ConstrainedLasso(
        d.A, d.y, 2 * d.share * float(np.abs(d.x).sum())
    ),
    "dantzig": lambda d: DantzigSelector(d.A, d.y, d.share * d.top),
    "elastic net": lambda d: ElasticNet(d.A, d.y, d.share * d.top, 0.1 * d.top),
    "square-root lasso": lambda d: SqrtLasso(d.A, d.y, d.share * d.top / d.size),
    "l1 fit": lambda d: L1Fit(d.A, d.y, d.share * d.top / d.size),
    "group lasso": lambda d: GroupLasso(d.A, d.y, d.share * d.top, np.arange(d.n) // 3),
    "joint sparse": lambda d: _joint(d, _batch(d)),
    "total variation": _tv,
    "analysis": _analysis,
    "one bit": lambda d: OneBit(d.A, np.where(d.y < 0, -1.0, 1.0), 1 + float(d.rng.random())),
}

COMPLEX = (
    "basis pursuit", "bpdn", "lasso", "weighted", "dantzig", "elastic net", "square-root lasso",
    "l1 fit", "group lasso", "joint sparse", "total variation", "analysis",
)  # fmt: skip

CASES = [(name, False) for name in TYPES] + [(name, True) for name in COMPLEX]


def made(name: str, seed: int, complex_: bool) -> Problem:
    """A problem of that type, of the design that is the seed's turn."""
    return TYPES[name](Data(seed, complex_=complex_))


def compared(problem: Problem) -> tuple[str, Recovery]:
    """What is wrong with the answer, or how it ended: "optimal", "infeasible", "unproven"."""
    found = solve(problem)
    reference = solve(problem, "cvxpy")
    # what is certified bounds the minimum from below, and what is feasible from above
    size = max(abs(reference.objective), abs(found.objective), 1e-300)
    floor = 1e-8 * float(problem.gap_floor.sum()) + 1e-9 * size
    feasible = reference.infeasibility is not None and reference.infeasibility <= 1e-9
    if feasible and reference.status is not Status.INFEASIBLE:
        slack = WORSE * size + floor
        if found.status.ok and found.objective > reference.objective + slack:
            return "worse than CVXPY", found
        if found.dual_objective is not None and found.dual_objective > reference.objective + slack:
            return "a bound above CVXPY's point", found
        if found.status is Status.INFEASIBLE:
            return "called infeasible, and is not", found
    if not found.status.ok:
        return found.status.name.lower(), found
    again = certify(problem, found.coefficients, found.dual)
    if again.infeasibility > WORSE:
        return "infeasible and called optimal", found
    return "optimal", found


FINE = ("optimal", "infeasible")


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("name", "complex_"), CASES)
def test_a_degenerate_problem_of_each_type(name: str, complex_: bool) -> None:
    ended, found = compared(made(name, 4, complex_))
    assert ended in FINE, found


HARD = [
    *((name, False, seed) for name in ("non-negative", "constrained lasso") for seed in (362, 650)),
    ("boxed", False, 699),
    ("boxed lasso", False, 666),
    ("square-root lasso", False, 785),
    ("total variation", False, 430),
    ("dantzig", True, 560),
    ("dantzig", True, 843),
    *(("l1 fit", True, seed) for seed in (260, 362, 457)),
]
"""Problems whose first solvers all end short of the tolerance, or whose y is rounding."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "complex_", "seed"), HARD)
def test_a_small_problem_is_solved_to_the_end(name: str, complex_: bool, seed: int) -> None:
    ended, found = compared(made(name, seed, complex_))
    assert ended in FINE, found


@pytest.mark.parametrize("name", ["dantzig", "square-root lasso", "l1 fit", "total variation"])
def test_cvxpys_own_answers_are_proven(name: str) -> None:
    for seed in range(16):  # one of each design
        found = solve(made(name, seed, True), "cvxpy")
        assert found.status in (Status.OPTIMAL, Status.INFEASIBLE), (seed, found)


@pytest.mark.parametrize("size", [1e-30, 1e-16, 1e16])
@pytest.mark.parametrize("seed", range(8))
def test_how_a_problem_ends_does_not_depend_on_the_unit_of_y(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((8, 5))
    y = A @ np.abs(rng.standard_normal(5)) if seed % 2 else rng.standard_normal(8)
    for lower, upper in ((0.0, np.inf), (-3.0, 3.0)):
        ends = [
            solve(BasisPursuit(A, s * y, lower=s * lower, upper=s * upper)).status
            for s in (1.0, size)
        ]
        assert ends[0] is ends[1]
        assert (ends[0] is Status.INFEASIBLE) == (seed % 2 == 0)


@pytest.mark.parametrize("far", [1.0, 1e3, 1e9])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_that_are_far_off_cost_a_certificate_nothing(seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    A, x = rng.standard_normal((10, 15)), np.zeros(15)
    x[:4] = rng.standard_normal(4)
    free = solve(Lasso(A, A @ x, 0.1))
    size = far * np.abs(free.x).max()
    boxed = Lasso(A, A @ x, 0.1, lower=-size, upper=size)
    noise = 1 + 1e-12 * rng.standard_normal(10)
    assert certify(boxed, free.x, noise * free.dual).gap < 1e-10


@pytest.mark.parametrize("tau", [1.0, 1e6, 1e12, 1e16])
def test_a_budget_far_beyond_the_data_is_no_obstacle(tau: float) -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((9, 4))
    fitted = np.linalg.lstsq(A, y := rng.standard_normal(9), rcond=None)[0]
    found = solve(ConstrainedLasso(A, y, tau * float(np.abs(fitted).sum())))
    assert found.status is Status.OPTIMAL
    np.testing.assert_allclose(found.x, fitted, rtol=1e-3 if tau > 1e7 else 1e-4)


@pytest.mark.parametrize("shape", [(20, 40), (12, 12), (40, 10)])
@pytest.mark.parametrize("far", [1e6, 1e8, 1e10, 1e16, 1e20])
def test_a_budget_far_beyond_the_data_proves_nothing_wrong(shape, far) -> None:
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    problem = ConstrainedLasso(A, y, far * float(np.abs(y).sum()))
    least = float(np.linalg.norm(y - A @ np.linalg.lstsq(A, y, rcond=None)[0]) ** 2)
    for wrong in (np.zeros(shape[1]), np.full(shape[1], 1e-3)):
        assert certify(problem, wrong).gap > 1e-3
    found = solve(problem)
    assert found.status is Status.OPTIMAL
    assert found.residual_norm**2 - least <= 1e-6 * (y @ y)


@pytest.mark.parametrize("tau", [1e8, 1e12, 1e20])
def test_a_budget_far_beyond_what_dependent_columns_ask_for(tau: float) -> None:
    rng = np.random.default_rng(1)
    A = rng.standard_normal((12, 4)) @ rng.standard_normal((4, 8))
    y = A @ np.arange(8.0) + rng.standard_normal(12)
    found = solve(problem := ConstrainedLasso(A, y, tau))
    assert found.status is Status.OPTIMAL
    assert certify(problem, np.zeros(8)).gap > 1e-3
    beside = found.x + 1e3 * np.linalg.svd(A)[2][-1]  # as good, and no further from the data
    again = certify(problem, beside, found.dual)
    assert again.gap < 1e-6
    assert again.infeasibility == 0
    boxed = ConstrainedLasso(A, y, tau, lower=0.0)
    assert certify(boxed, np.zeros(8)).gap > 1e-3
    assert boxed.reach == tau


def test_a_budget_beyond_zero_data_stays_as_it_is() -> None:
    assert ConstrainedLasso(np.eye(3), np.zeros(3), 1e20).reach == 1e20
    assert solve(ConstrainedLasso(np.eye(3), np.zeros(3), 1e20)).status is Status.OPTIMAL


@pytest.mark.parametrize("seed", [699, 779])
def test_a_huge_dual_point_bounds_no_more_than_its_rounding_allows(seed: int) -> None:
    problem = made("boxed", seed, False)
    found = solve(problem, "admm")
    assert found.dual_objective is not None
    assert found.dual_objective <= found.objective * (1 + 1e-9)


@pytest.mark.fuzz
@pytest.mark.parametrize(("name", "complex_"), CASES)
def test_a_thousand_problems_of_each_type(name: str, complex_: bool) -> None:
    ends = {seed: compared(made(name, seed, complex_))[0] for seed in range(1000)}
    assert {seed: ended for seed, ended in ends.items() if ended not in FINE} == {}
