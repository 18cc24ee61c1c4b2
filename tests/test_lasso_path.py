"""The path of the LASSO: every point certified, lam = 0 its end, sparse and dense alike."""

import numpy as np
import pytest
import scipy.sparse as sp

from lowrank.errors import InputError
from lowrank.sensing import (
    BasisPursuit,
    Lasso,
    Status,
    bases,
    certify,
    lasso_path,
    recover,
    solve,
)
from lowrank.sensing.path import MANY, points


@pytest.mark.parametrize("shape", [(30, 90), (90, 30), (30, 30)])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("lower", [-np.inf, 0.0])
def test_every_point_is_that_of_a_single_run(shape, form, lower):
    rng = np.random.default_rng(0)
    A = rng.standard_normal(shape) * (rng.random(shape) < 0.5)
    y = rng.standard_normal(shape[0])
    path = lasso_path(form(A), y, n_lams=12, lower=lower)
    assert set(path.statuses) == {Status.OPTIMAL}
    assert not path.coefficients[:, 0].any()
    for lam, c in zip(path.lams[1:], path.coefficients.T[1:], strict=True):
        alone = recover(A, y, lam=lam, nonneg=lower == 0)
        np.testing.assert_allclose(c, alone.x, atol=1e-5)


@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (10, 10)])
def test_the_end_is_the_least_squares_solution_of_smallest_norm(shape):
    rng = np.random.default_rng(1)
    A, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    path = lasso_path(A, y, [1.0, 0.1, 0.0])
    fitted = A @ np.linalg.lstsq(A, y, rcond=None)[0]
    end = solve(BasisPursuit(A, fitted))
    np.testing.assert_allclose(path.coefficients[:, 2], end.x, atol=1e-6)
    assert path.statuses[2] is Status.OPTIMAL
    near = lasso_path(A, y, [1e-7]).coefficients[:, 0]
    np.testing.assert_allclose(near, end.x, atol=1e-4)


def test_operators_in_a_basis_have_a_path():
    Psi = bases.dct(32)
    A = np.random.default_rng(0).standard_normal((16, 32))
    free = bases.dct(32).H @ bases.dct(32)
    path = lasso_path(A, np.ones(16), n_lams=4, smallest=0.1, basis=Psi)
    assert path.coefficients.shape == (32, 4)
    assert lasso_path(free, np.ones(32), [0.5, 0.1]).gaps.max() < 1e-8
    assert "4 of 4 points optimal" in repr(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lams": [-1.0]},
        {"lams": [np.nan]},
        {"lams": []},
        {"n_lams": 1},
        {"smallest": 1.0},
        {"lams": [1.0, 0.0], "lower": 0.0},
    ],
)
def test_bad_grids_are_refused(wrong):
    with pytest.raises(InputError):
        lasso_path(np.eye(3), np.ones(3), **wrong)


def test_several_signals_are_refused():
    with pytest.raises(InputError, match="one signal"):
        lasso_path(np.eye(3), np.ones((3, 2)))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("shape", [(30, 90), (90, 30)])
@pytest.mark.parametrize("form", [np.asarray, sp.csc_array])
@pytest.mark.parametrize("bounds", [{}, {"lower": 0.0}, {"lower": -0.2, "upper": 0.3}])
@pytest.mark.parametrize("n_lams", [MANY, MANY + 30])
def test_lines_between_solutions_keep_the_gap_that_is_measured(shape, form, bounds, n_lams):
    rng = np.random.default_rng(2)
    A = rng.standard_normal(shape) * (rng.random(shape) < 0.5)
    y = A[:, :5].sum(axis=1) + rng.standard_normal(shape[0])
    problem = Lasso(form(A), y, 1.0, weights=0.5 + rng.random(shape[1]), **bounds)
    lams = problem.lam_max * np.geomspace(1, 1e-3, n_lams)
    tol = 1e-3
    for lam, (c, gap) in zip(lams, points(problem, lams, tol, share=1.0), strict=True):
        proof = certify(Lasso(form(A), y, lam, weights=problem.weights, **bounds), c)
        assert gap <= tol
        assert proof.infeasibility == 0
        assert proof.objective - proof.dual_objective <= 1.01 * tol * float(y @ y) / 2
