"""The solver files for benchopt, on a stand-in for its base class."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lowrank.sensing import Lasso, certify, solve, total_variation

FOLDER = Path(__file__).parent.parent / "benchmarks" / "benchopt"


@pytest.fixture
def solver(request, monkeypatch):
    """The `Solver` of a file, as benchopt loads it."""
    benchopt = ModuleType("benchopt")
    benchopt.BaseSolver = object
    stopping = ModuleType("benchopt.stopping_criterion")
    stopping.SufficientProgressCriterion = lambda **settings: settings
    monkeypatch.setitem(sys.modules, "benchopt", benchopt)
    monkeypatch.setitem(sys.modules, "benchopt.stopping_criterion", stopping)
    spec = importlib.util.spec_from_file_location("benchopt_solver", FOLDER / request.param)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Solver()


@pytest.mark.parametrize("solver", ["lasso.py"], indirect=True)
@pytest.mark.parametrize("tol", [1e38, 1e-10])
def test_the_lasso(solver, tol):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((20, 40)), rng.standard_normal(20)
    told = {"X": X, "y": y, "lmbd": 0.1 * float(np.abs(X.T @ y).max())}
    assert solver.skip(**told, fit_intercept=True)[0]
    assert not solver.skip(**told, fit_intercept=False)[0]
    solver.set_objective(**told, fit_intercept=False)
    solver.run(tol)
    beta = solver.get_result()["beta"]
    assert certify(Lasso(X, y, told["lmbd"]), beta).gap <= min(tol, 0.1)


@pytest.mark.parametrize("solver", ["tv_1d.py"], indirect=True)
def test_total_variation(solver):
    rng = np.random.default_rng(1)
    A, y = rng.standard_normal((12, 15)), rng.standard_normal(12)
    told = {"A": A, "reg": 0.5, "y": y, "c": 0.0, "delta": 0.9}
    assert solver.skip(**told, data_fit="huber")[0]
    assert not solver.skip(**told, data_fit="quad")[0]
    solver.set_objective(**told, data_fit="quad")
    solver.run(1e-8)
    u = solver.get_result()["u"]
    value = np.linalg.norm(A @ u - y) ** 2 / 2 + 0.5 * np.abs(np.diff(u)).sum()
    best = solve(total_variation(A, y, 15, lam=0.5)).objective
    assert value == pytest.approx(best, rel=1e-6)
