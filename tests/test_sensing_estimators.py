"""The scikit-learn estimators, by scikit-learn's own checks and against what they stand for."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import sklearn.linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowrank.errors import InputError
from lowrank.sensing import Status, recover
from lowrank.sensing.estimators import BPDN, OMP, BasisPursuit, ElasticNet, GroupLasso, Lasso

ALL = (BasisPursuit(), BPDN(), Lasso(), ElasticNet(), GroupLasso(), OMP())


@parametrize_with_checks([*ALL, BasisPursuit(fit_intercept=False), Lasso(nonneg=True)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    X, c = rng.standard_normal((60, 90)) + 2, np.zeros(90)
    c[[3, 17, 40]] = 1.0, -2.0, 3.0
    return X, X @ c + 7 + 0.02 * rng.standard_normal(60), c


def test_lasso_is_that_of_scikit_learn(data):
    X, y, _ = data
    mine = Lasso(lam=3.0).fit(X, y)
    theirs = sklearn.linear_model.Lasso(alpha=3.0 / 60, tol=1e-12, max_iter=100000).fit(X, y)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(mine.predict(X), theirs.predict(X), atol=1e-5)
    assert mine.status_ is Status.OPTIMAL
    assert mine.recovery_.gap < 1e-8


def test_noise_is_estimated(data):
    X, y, c = data
    fitted = BPDN().fit(X, y)
    assert np.linalg.norm(fitted.coef_ - c) < 0.03
    assert abs(fitted.intercept_ - 7) < 0.1
    assert "noise estimated" in fitted.recovery_.why


def test_basis_pursuit_of_a_tall_system_is_least_squares(data):
    X, y, _ = data
    fitted = BasisPursuit().fit(X[:, :20], y)
    theirs = sklearn.linear_model.LinearRegression().fit(X[:, :20], y)
    np.testing.assert_allclose(fitted.coef_, theirs.coef_, atol=1e-8)


def test_omp_takes_the_right_columns(data):
    X, y, c = data
    assert set(np.flatnonzero(OMP(3).fit(X, y).coef_)) == set(np.flatnonzero(c))


def test_they_search_and_pipe_and_pickle(data):
    X, y, _ = data
    grid = {"lasso__lam_fraction": [0.01, 0.1, 1.0]}
    found = GridSearchCV(make_pipeline(StandardScaler(), Lasso()), grid, cv=3).fit(X, y)
    assert found.best_params_["lasso__lam_fraction"] < 1
    again = pickle.loads(pickle.dumps(found.best_estimator_))
    np.testing.assert_array_equal(again.predict(X), found.predict(X))


def test_nonneg(data):
    X, y, _ = data
    assert BPDN(noise=30.0, nonneg=True).fit(X, y).coef_.min() >= 0


def test_a_run_that_stops_early_warns(data):
    X, y, _ = data
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        stopped = Lasso(solver="fista", max_iter=2).fit(X, y)
    assert stopped.status_ is Status.MAX_ITER
    assert stopped.n_iter_ == 2


def test_what_no_coefficients_satisfy_is_refused(data):
    X, y, _ = data
    with pytest.raises(InputError, match=r"infeasible.*away from y"):
        BPDN(noise=1e-3).fit(X[:, :5], y)
    with pytest.raises(InputError, match="not zero or positive"):
        BPDN(noise=-1.0).fit(X, y)
    with pytest.raises(InputError, match=r"outside 1\.\.60"):
        OMP(61).fit(X, y)


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_parameters_survive_a_clone(estimator):
    assert clone(estimator).get_params() == estimator.get_params()


def test_without_scikit_learn_it_says_what_to_install():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import lowrank.sensing\n"
        "try: import lowrank.sensing.estimators\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'lowrank-kit[sklearn]'" in done.stdout


def test_the_sparsest_of_equal_answers():
    X = np.array([[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]])
    fitted = BasisPursuit(fit_intercept=False).fit(X, [1.0, 1.0])
    assert fitted.recovery_.objective == pytest.approx(2.0)
    assert recover(X, [1.0, 1.0]).objective == pytest.approx(2.0)


def test_elastic_net_agrees_with_scikit_learn():
    rng = np.random.default_rng(5)
    X, y = rng.standard_normal((60, 20)), rng.standard_normal(60)
    mine = ElasticNet(lam=3.0, ridge=9.0).fit(X, y)
    theirs = sklearn.linear_model.ElasticNet(
        alpha=12.0 / 60, l1_ratio=0.25, tol=1e-12, max_iter=100000
    ).fit(X, y)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-7)
    assert mine.intercept_ == pytest.approx(theirs.intercept_, abs=1e-7)
    assert ElasticNet(nonneg=True).fit(X, y).coef_.min() >= 0
    assert not ElasticNet(lam_fraction=1.0).fit(X, y).coef_.any()


def test_group_lasso_keeps_groups_whole():
    rng = np.random.default_rng(6)
    X, groups = rng.standard_normal((60, 20)), np.repeat(np.arange(5), 4)
    y = X[:, 4:8] @ np.array([1.0, -2, 1, 0.5]) + 3
    fitted = GroupLasso(groups, lam_fraction=0.2).fit(X, y)
    assert np.unique(groups[np.flatnonzero(fitted.coef_)]).tolist() == [1]
    assert not GroupLasso(groups, lam_fraction=1.0).fit(X, y).coef_.any()
    alone = GroupLasso(lam=2.0).fit(X, y)  # groups of one are the LASSO
    np.testing.assert_allclose(alone.coef_, Lasso(lam=2.0).fit(X, y).coef_, atol=1e-6)
    with pytest.raises(ValueError, match="one integer label per coefficient"):
        GroupLasso([0, 1]).fit(X, y)
