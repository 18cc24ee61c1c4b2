"""The scikit-learn estimators, by scikit-learn's own checks and against what they stand for."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.linear_model
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, KFold, ShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowrank.errors import InputError
from lowrank.sensing import Status, estimators, operators, recover
from lowrank.sensing.estimators import (
    BPDN,
    BPDNCV,
    OMP,
    OMPCV,
    TALL,
    BasisPursuit,
    ElasticNet,
    GroupLasso,
    GroupLassoCV,
    HuberLasso,
    Lasso,
    LassoCV,
    LogisticLasso,
    PoissonLasso,
    QuantileLasso,
)

ALL = (BasisPursuit(), BPDN(), Lasso(), ElasticNet(), GroupLasso(), OMP())
CHOOSING = (LassoCV(n_lams=8), BPDNCV(n_lams=8), OMPCV(), GroupLassoCV(n_lams=4))


def _counts_rows(estimator):
    """What cannot hold where the noise level is estimated: of rows given twice it is another."""
    if not isinstance(estimator, BPDN | OMP):
        return {}
    why = "the level that it estimates is of the number of rows"
    return {f"check_sample_weight_equivalence_on_{kind}_data": why for kind in ("dense", "sparse")}


@pytest.mark.one_in(3)
@parametrize_with_checks(
    [*ALL, BasisPursuit(fit_intercept=False), Lasso(nonneg=True)],
    expected_failed_checks=_counts_rows,
)
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


SIMPLE = (Lasso(3.0), BPDN(4.0), ElasticNet(2.0), GroupLasso(lam=3.0), OMP(3), BasisPursuit())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("estimator", [*SIMPLE, *CHOOSING], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("centred", [True, False])
def test_sparse_data_give_what_dense_data_give(estimator, centred):
    rng = np.random.default_rng(1)
    X = rng.standard_normal((40, 20)) * (rng.random((40, 20)) < 0.3) + 0.0
    y = 3 * X[:, 2] - 2 * X[:, 9] + 5 + 0.1 * rng.standard_normal(40)
    weights = rng.integers(0, 3, 40)
    estimator = clone(estimator).set_params(fit_intercept=centred)
    dense = clone(estimator).fit(X, y, sample_weight=weights)
    for form in (sp.csr_matrix, sp.csc_array):
        sparse = clone(estimator).fit(form(X), y, sample_weight=weights)
        np.testing.assert_allclose(sparse.coef_, dense.coef_, atol=1e-5)
        np.testing.assert_allclose(sparse.predict(form(X)), dense.predict(X), atol=1e-5)


def test_centred_sparse_columns_stay_sparse(monkeypatch):
    X = sp.random(300, 500, density=0.02, random_state=0, format="csc")
    y = np.random.default_rng(0).standard_normal(300) + X[:, [3]].toarray()[:, 0] * 9

    def refuse(self, *args, **kwargs):
        assert min(self.shape) < 200
        return dense(self, *args, **kwargs)

    dense = sp.csc_matrix.toarray
    for kind in (sp.csc_array, sp.csc_matrix, sp.csr_array, sp.csr_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
    fitted = Lasso(lam_fraction=0.5).fit(X, y)
    assert fitted.recovery_.solver.startswith("working_set")
    assert fitted.status_ is Status.OPTIMAL


@pytest.mark.parametrize("estimator", [Lasso(3.0), ElasticNet(2.0, 1.0)])
def test_weights_are_those_of_scikit_learn(estimator, data):
    X, y, _ = data
    weights = np.random.default_rng(2).random(60)
    mine = clone(estimator).fit(X, y, sample_weight=weights)
    lam, ridge = estimator.lam, getattr(estimator, "ridge", 0.0)
    options = {"alpha": (lam + ridge) / 60, "l1_ratio": lam / (lam + ridge)}
    theirs = sklearn.linear_model.ElasticNet(**options, tol=1e-13, max_iter=10**6)
    theirs.fit(X, y, sample_weight=weights)
    np.testing.assert_allclose(mine.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(mine.intercept_, theirs.intercept_, atol=1e-4)


def test_whole_weights_repeat_rows(data):
    X, y, _ = data
    times = np.arange(60) % 3
    weighted = BPDN(0.3).fit(X, y, sample_weight=times)
    repeated = BPDN(0.3).fit(np.repeat(X, times, axis=0), np.repeat(y, times))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)


def test_what_a_search_picks_can_be_met_by_all_rows():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((80, 20))  # more rows than columns: noise has to be allowed for
    y = X[:, 3] + 0.5 * rng.standard_normal(80)
    search = GridSearchCV(BPDN(), {"noise": [0.55, 0.7, 0.9]}, cv=5, error_score=-np.inf)
    best = search.fit(X, y).best_estimator_
    residual = y - best.predict(X)
    assert np.sqrt(np.mean(residual**2)) <= best.noise * (1 + 1e-7)


@pytest.mark.parametrize("estimator", CHOOSING, ids=lambda e: type(e).__name__)
def test_cross_validation_finds_the_columns(estimator, data):
    X, y, c = data
    fitted = clone(estimator).fit(X, y)
    assert np.linalg.norm(fitted.coef_ - c) < 0.2
    assert fitted.mse_path_.shape == (len(fitted.grid_), 5)
    assert pickle.loads(pickle.dumps(clone(fitted))).get_params() == estimator.get_params()


def test_the_path_of_a_fold_is_that_of_scikit_learn(data):
    X, y, _ = data
    mine = LassoCV(n_lams=10, smallest=0.05).fit(X, y)
    options = {"alphas": mine.grid_ / 60, "tol": 1e-10, "max_iter": 10**5, "cv": 5}
    theirs = sklearn.linear_model.LassoCV(**options).fit(X, y)
    np.testing.assert_allclose(mine.mse_path_, theirs.mse_path_, rtol=1e-2)
    np.testing.assert_allclose(mine.lam_ / 60, theirs.alpha_)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("rows", [10 * TALL - 1, 10 * TALL])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("twice", [True, False], ids=["a column twice", "independent"])
@pytest.mark.parametrize(
    ("cv", "sums"),
    [(5, 5), (KFold(5, shuffle=True, random_state=0), 5), (ShuffleSplit(5, random_state=0), 6)],
    ids=["in order", "shuffled", "that overlap"],
)
def test_folds_of_tall_matrices_share_moments(rows, centre, weighted, twice, cv, sums, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, 10)) + 3
    X[:, 9] = X[:, 8] if twice else X[:, 9]
    y = X[:, 3] - X[:, 8] + 0.3 * rng.standard_normal(rows) + 5
    weights = 0.5 + rng.random(rows) if weighted else None
    monkeypatch.setattr(estimators, "FOLD_TOL", 1e-9)
    found, made = [], []
    of = estimators._Moments.of
    monkeypatch.setattr(estimators._Moments, "of", lambda *a: made.append(1) or of(*a))
    for tall in (TALL, np.inf):
        monkeypatch.setattr(estimators, "TALL", tall)
        model = LassoCV(n_lams=12, fit_intercept=centre, cv=cv)
        found.append(model.fit(X, y, sample_weight=weights).mse_path_)
        assert len(made) == (sums if rows == 10 * TALL else 0)
    np.testing.assert_allclose(*found, rtol=1e-3)


@pytest.mark.parametrize("level", [0.0, 1e6])
@pytest.mark.parametrize("noise", [0.3, 1e-5])
def test_errors_from_moments_are_those_of_predictions(level, noise, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 10)) + level
    y = X[:, 3] - X[:, 8] + noise * rng.standard_normal(120) + level
    found = []
    for clear in (estimators.CLEAR, np.inf):
        monkeypatch.setattr(estimators, "CLEAR", clear)
        found.append(LassoCV(n_lams=12, smallest=1e-6).fit(X, y))
    np.testing.assert_allclose(found[0].mse_path_, found[1].mse_path_, rtol=1e-7)
    assert found[0].lam_ == found[1].lam_


def test_the_fit_to_all_rows_begins_where_their_moments_say(data):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 10)) + 3
    y = X[:, 3] - X[:, 8] + 0.3 * rng.standard_normal(120) + 5
    for terms in ({}, {"nonneg": True}, {"fit_intercept": False}):
        for weights in (None, 0.5 + rng.random(120)):
            model = LassoCV(n_lams=12, **terms).fit(X, y, sample_weight=weights)
            assert model.recovery_.n_iter == 0
            alone = Lasso(model.lam_, **terms).fit(X, y, sample_weight=weights)
            np.testing.assert_allclose(model.coef_, alone.coef_, atol=1e-8)


@pytest.mark.parametrize(
    "estimator", [LassoCV([0.0, 1.0]), BPDNCV([0.0]), GroupLassoCV(lams=[-1.0]), LassoCV(n_lams=1)]
)
def test_grids_that_are_none_are_refused(estimator, data):
    with pytest.raises(InputError):
        estimator.fit(*data[:2])


BEYOND_SQUARES = (LogisticLasso(), PoissonLasso(), HuberLasso(), QuantileLasso())


@pytest.mark.slow
@parametrize_with_checks(list(BEYOND_SQUARES))
def test_scikit_learns_own_checks_of_losses(estimator, check):
    check(estimator)


def test_losses_are_those_of_scikit_learn(data):
    X, y, _ = data
    X = X[:, :20]
    labels = np.where(X[:, 3] - X[:, 7] > 0, "up", "down")
    mine = LogisticLasso(lam=2.0).fit(X, labels)
    more = {"solver": "saga", "tol": 1e-10, "max_iter": 100_000}
    theirs = sklearn.linear_model.LogisticRegression(C=0.5, l1_ratio=1.0, **more)
    theirs.fit(X, labels)
    np.testing.assert_allclose(mine.coef_, theirs.coef_[0], atol=1e-4)
    np.testing.assert_allclose(mine.predict_proba(X), theirs.predict_proba(X), atol=1e-4)
    assert (mine.predict(X) == theirs.predict(X)).all()
    median = QuantileLasso(lam=2.0).fit(X, y)
    alpha = 2.0 / len(y)
    theirs = sklearn.linear_model.QuantileRegressor(quantile=0.5, alpha=alpha).fit(X, y)
    np.testing.assert_allclose(median.predict(X), theirs.predict(X), atol=1e-4)
    counts = np.round(np.exp(X[:, 3] / 2))
    assert PoissonLasso().fit(X, counts).score(X, counts) > 0.8
    wrong = y.copy()
    wrong[::9] += 1e4
    assert HuberLasso(lam_fraction=0.01).fit(X, wrong).recovery_.status is Status.OPTIMAL


def test_one_class_is_no_classification(data):
    X, y, _ = data
    with pytest.raises(InputError, match="1 class; give two classes"):
        LogisticLasso().fit(X, np.ones(len(y)))
    with pytest.raises(InputError, match="Only binary classification is supported, not 3"):
        LogisticLasso().fit(X, np.arange(len(y)) % 3)


def test_operators_are_no_rows(data):
    X, y, _ = data
    pylops = pytest.importorskip("pylops")
    for A in (pylops.MatrixMult(X), operators.gaussian(60, 90, seed=0)):
        for estimator in (Lasso(), LassoCV(), HuberLasso(), LogisticLasso()):
            with pytest.raises(InputError, match="is an operator, and estimators take rows; pass"):
                estimator.fit(A, y)
        with pytest.raises(InputError, match="is an operator"):
            Lasso().fit(X, y).predict(A)


def test_groups_are_sets_of_indices_too(data):
    X, y, _ = data
    labels = np.arange(90) // 3
    sets = [np.flatnonzero(labels == g).tolist() for g in range(30)]
    by_sets, by_labels = (GroupLasso(g, lam_fraction=0.2).fit(X, y) for g in (sets, labels))
    np.testing.assert_array_equal(by_sets.coef_, by_labels.coef_)
    with pytest.raises(InputError, match="coefficient 89 is in no group"):
        GroupLasso([list(range(89))]).fit(X, y)
