"""ADMM, where CVXPY is cheap, has a share of iterations before it."""

from __future__ import annotations

import numpy as np
import pytest

from lowrank.sensing import AnalysisLasso, DantzigSelector, Problem, Status, operators, solve
from lowrank.sensing.solvers.choose import ANALYSIS_SHARE, CHEAP, SHARE, _in_order


def hard(n: int = 60) -> AnalysisLasso:
    """Second differences of a walk that few rows see: ADMM crawls."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n // 3, n))
    y = A @ np.cumsum(rng.standard_normal(n)) + rng.standard_normal(n // 3)
    return AnalysisLasso(A, y, np.diff(np.eye(n), 2, axis=0), 0.01 * float(np.abs(A.T @ y).max()))


def names(problem: Problem) -> list[tuple[str, int | None]]:
    return [(c.name, c.share) for c in _in_order(problem) if c.name in ("admm", "cvxpy")]


def test_cvxpy_takes_over_where_admm_crawls() -> None:
    found = solve(hard())
    assert found.status is Status.OPTIMAL
    assert found.solver == "cvxpy()"
    assert "admm ended MAX_ITER" in found.why
    assert found.n_iter < 10 * ANALYSIS_SHARE


def test_asked_for_by_name_it_has_all_its_iterations() -> None:
    alone = solve(hard(), "admm", max_iter=2 * ANALYSIS_SHARE)
    assert alone.n_iter == 2 * ANALYSIS_SHARE


def test_shares_by_problem_and_size() -> None:
    assert names(hard()) == [("admm", ANALYSIS_SHARE), ("cvxpy", None), ("admm", None)]
    small = DantzigSelector(np.eye(3, 5), np.ones(3), 0.1)
    assert names(small) == [("admm", SHARE), ("cvxpy", None), ("admm", None)]
    n = int(np.sqrt(CHEAP)) + 1
    large = DantzigSelector(np.eye(n), np.ones(n), 0.1)
    assert names(large) == [("admm", None), ("cvxpy", None)]
    free = DantzigSelector(operators.partial_dct(16, m=8, seed=0), np.ones(8), 0.1)
    assert names(free) == [("admm", None)]


@pytest.mark.parametrize("stop", [1, 3])
def test_the_callback_still_stops(stop: int) -> None:
    seen: list[int] = []

    def callback(k: int, c: np.ndarray) -> bool:
        seen.append(k)
        return k == stop

    found = solve(hard(), callback=callback)
    assert seen == list(range(1, stop + 1))
    assert found.solver == "admm()"
