"""Matrices as people hold them: holes in every form, and transformers of rows."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lowrank.decompositions import complete, go_dec, robust_pca
from lowrank.errors import InputError
from lowrank.sensing import estimators
from lowrank.sensing.estimators import RobustPCA, SoftImpute
from lowrank.sensing.matrix_estimators import _robust_rows

RNG = np.random.default_rng(0)
M = RNG.standard_normal((60, 2)) @ RNG.standard_normal((2, 30))
SEEN = RNG.random(M.shape) < 0.6
HOLES = np.where(SEEN, M, np.nan)


def of_pandas(values, **labels):
    return pytest.importorskip("pandas").DataFrame(values, **labels)


GIVEN = {
    "NaN": lambda: HOLES,
    "complex NaN": lambda: HOLES + 0j,
    "masked": lambda: np.ma.array(M, mask=~SEEN),
    "masked, NaN below": lambda: np.ma.masked_invalid(HOLES),
    "sparse": lambda: sp.csr_array(np.where(SEEN, M, 0)),
    "sparse matrix": lambda: sp.coo_matrix(np.where(SEEN, M, 0)),
    "tensor": lambda: torch.tensor(HOLES),
    "frame": lambda: of_pandas(HOLES),
    "nullable frame": lambda: of_pandas(HOLES).convert_dtypes(),
}


@pytest.mark.parametrize("kind", GIVEN)
@pytest.mark.parametrize("options", [{}, {"rank": 2}, {"lam": 1e-6}])
def test_holes_in_every_form(kind, options):
    given = GIVEN[kind]()
    plain, found = complete(HOLES, SEEN, **options), complete(given, **options)
    np.testing.assert_allclose(np.asarray(found.L), plain.L, atol=1e-9)
    np.testing.assert_allclose(np.asarray(found.S), plain.S, atol=1e-9)
    kept = type(given) if "frame" in kind or kind == "tensor" else np.ndarray
    assert type(found.L) is type(found.S) is kept
    assert len(repr(found)) < 200


def test_stored_zeros_are_observed():
    given = sp.coo_array((np.zeros(3), ([0, 1, 2], [0, 1, 2])), shape=(3, 3))
    assert not complete(given).L.any()


def test_frames_keep_their_labels():
    frame = of_pandas(HOLES, index=[f"user {i}" for i in range(60)])
    found, split = complete(frame), robust_pca(of_pandas(M, index=frame.index))
    assert all((part.index == frame.index).all() for part in (found.L, found.dual, split.L))
    masked = robust_pca(np.ma.array(M, mask=~SEEN))
    np.testing.assert_allclose(masked.L, robust_pca(M, mask=SEEN).L)


@pytest.mark.parametrize("make", [np.array, torch.tensor, of_pandas])
def test_what_nothing_is_known_of_is_named_and_nan(make):
    given = HOLES.copy()
    given[3], given[:, [1, 5]] = np.nan, np.nan
    with pytest.warns(UserWarning, match=r"row 3 and columns 1, 5 without an observed entry"):
        found = complete(make(given))
    assert (found.empty_rows, found.empty_columns) == ((3,), (1, 5))
    assert found.to_dict()["empty_columns"] == [1, 5]
    empty = np.isnan(np.asarray(found.L))
    assert empty[3].all()
    assert empty[:, [1, 5]].all()
    assert empty.sum() == 30 + 2 * 60 - 2
    assert not np.isnan(np.asarray(found.S)).any()


def test_labels_are_named_and_not_all_of_them():
    given = of_pandas(np.where(np.arange(30) < 9, np.nan, M), columns=[f"c{j}" for j in range(30)])
    with pytest.warns(UserWarning, match=r"columns 'c0', 'c1', 'c2', 'c3', 'c4' and 4 more"):
        complete(given)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: complete(of_pandas({"a": ["x", "y"], "b": [1, 2]})), "what is no number"),
        (lambda: complete(np.where(SEEN, M, np.inf)), "observed values are NaN or Inf"),
        (lambda: complete(np.full((3, 3), np.nan)), "observes no entry"),
        (lambda: complete(M, "all"), "mask is a str"),
        (lambda: complete(np.ma.array(M, mask=~SEEN), SEEN[:5]), "need bool"),
        (lambda: robust_pca(HOLES), "set mask to False"),
        (lambda: robust_pca(sp.eye_array(4)), "whether what it does not store is 0 or missing"),
        (lambda: go_dec(np.ma.array(M, mask=~SEEN), 2, 3), "values are masked; robust_pca"),
        (lambda: SoftImpute(lam=1.0, rank=2).fit(HOLES), "lam excludes rank"),
        (lambda: SoftImpute(lam=-1.0).fit(HOLES), "lam=-1.0"),
        (lambda: SoftImpute(lam_fraction=2.0).fit(HOLES), r"outside \(0, 1\]"),
        (lambda: RobustPCA(outliers="all").fit(M), "allowed are 'entries' and 'rows'"),
        (lambda: RobustPCA().fit(M).inverse_transform(M), r"there are 2 components"),
    ],
)
def test_bad_input_gets_a_sentence(make, says):
    with pytest.raises(InputError, match=says):
        make()


# --- transformers ----------------------------------------------------------------------------


@parametrize_with_checks([SoftImpute(), RobustPCA(noise=0.1)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("options", [{"lam": 0}, {"rank": 2}, {"lam": 1e-4}, {}])
def test_holes_of_new_rows_are_filled(options):
    imputer = SoftImpute(**options).fit(HOLES[:45])
    filled = imputer.transform(HOLES[45:])
    near = 0.2 if not options else 1e-3
    assert np.linalg.norm(filled - M[45:]) < near * np.linalg.norm(M[45:])
    assert np.array_equal(filled[SEEN[45:]], M[45:][SEEN[45:]])
    assert np.array_equal(imputer.inverse_transform(filled), filled)
    assert imputer.components_.shape == (len(imputer.singular_values_), 30)


def test_training_rows_are_filled_with_their_own_answer():
    rows = HOLES + 0.3 * RNG.standard_normal(M.shape)
    imputer = SoftImpute(lam=2.0, tol=1e-11, max_iter=5000)
    filled = imputer.fit_transform(rows)
    np.testing.assert_allclose(filled[~SEEN], imputer.completion_.L[~SEEN], atol=1e-5)


def test_rows_and_columns_of_nothing_stay_nan():
    given = HOLES.copy()
    given[:, 4] = np.nan
    with pytest.warns(UserWarning, match="column 4 without"):
        imputer = SoftImpute(lam=0).fit(given)
    given[7] = np.nan
    with pytest.warns(UserWarning, match="rows without an observed entry stay NaN: 7"):
        filled = imputer.transform(given)
    assert np.isnan(filled[7]).all()
    assert np.isnan(filled[:, 4]).all()
    assert np.isnan(filled).sum() == 30 + 59


SPIKES = 5.0 * (RNG.random(M.shape) < 0.05) * RNG.choice([-1, 1], M.shape)


@pytest.mark.parametrize("holes", [False, True])
def test_outliers_of_new_rows_move_nothing(holes):
    X = M + SPIKES
    if holes:
        X[RNG.random(M.shape) < 0.1] = np.nan
    pca = RobustPCA().fit(X[:45])
    rows = pca.inverse_transform(pca.transform(X[45:]))
    np.testing.assert_allclose(rows, M[45:], atol=1e-4)
    np.testing.assert_allclose(pca.low_rank_, M[:45], atol=1e-4)
    again = pickle.loads(pickle.dumps(pca))
    np.testing.assert_array_equal(again.transform(X[45:]), pca.transform(X[45:]))


def test_whole_rows_are_outliers():
    X = M.copy()
    X[[3, 17]] = 10 * RNG.standard_normal((2, 30))
    pca = RobustPCA(outliers="rows").fit(X)
    assert set(np.flatnonzero(np.linalg.norm(pca.sparse_, axis=1) > 1)) == {3, 17}
    rows = pca.inverse_transform(pca.transform(M))
    np.testing.assert_allclose(rows, M, atol=1e-4)


@pytest.mark.parametrize("bend", [0.0, 0.2])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_places_minimise_the_loss(bend, noise):
    V = np.linalg.qr(RNG.standard_normal((30, 3)))[0].T
    X = RNG.standard_normal((20, 3)) @ V + SPIKES[:20] + noise * RNG.standard_normal((20, 30))
    found = _robust_rows(X, SEEN[:20], V, bend)

    def loss(a):
        z = np.abs(X - a @ V)
        bent = np.where(z <= bend, z * z / (2 * bend), z - bend / 2) if bend else z
        return (bent * SEEN[:20]).sum(axis=1)

    best = loss(found)
    for step in (1e-1, 1e-2, 1e-3):  # convex: no step from the optimum goes down
        for _ in range(20):
            assert (
                loss(found + step * RNG.standard_normal(found.shape)) >= (1 - 1e-4) * best - 1e-9
            ).all()


def test_they_pipe_clone_and_name_their_columns():
    piped = make_pipeline(MaxAbsScaler(), SoftImpute(lam=0), RobustPCA())
    places = piped.fit_transform(HOLES)
    np.testing.assert_allclose(piped.inverse_transform(places), M, atol=1e-3)
    assert clone(piped[-1]).get_params() == RobustPCA().get_params()
    assert [*RobustPCA().fit(M).get_feature_names_out()] == ["robustpca0", "robustpca1"]
    assert repr(SoftImpute(rank=3)) == "SoftImpute(rank=3)"
    assert estimators.SoftImpute is SoftImpute


def test_a_run_that_stops_early_warns():
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        SoftImpute(lam=0, max_iter=3).fit(HOLES)
