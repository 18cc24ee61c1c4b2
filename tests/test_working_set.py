"""The LASSO and its family on every kind of design: certified, and sparse matrices stay sparse."""

import numpy as np
import pytest
import scipy.sparse as sp

from lowrank.sensing import ElasticNet, Lasso, Status, recover, solve
from lowrank.sensing.solvers import working_set
from lowrank.sensing.solvers.designs import HELD, DenseDesign, SparseDesign, WholeDesign
from lowrank.sensing.solvers.dual_newton import approach
from lowrank.sensing.solvers.exact_l1 import NEAR, ExactL1
from lowrank.sensing.solvers.faces import Face, minimise
from lowrank.sensing.solvers.working_set import FEW_ROWS, LEAST, WHOLE, Fit

KINDS = {
    "random": lambda rng, m, n: rng.standard_normal((m, n)),
    "repeated columns": lambda rng, m, n: np.repeat(rng.standard_normal((m, n)), 2, axis=1),
    "scaled columns": lambda rng, m, n: rng.standard_normal((m, n)) * 10 ** rng.uniform(-3, 3, n),
    "integers": lambda rng, m, n: np.round(rng.standard_normal((m, n))),
    "empty columns": lambda rng, m, n: rng.standard_normal((m, n)) * (np.arange(n) % 2),
    "rank one": lambda rng, m, n: np.outer(rng.standard_normal(m), np.ones(n)),
    "scattered": lambda rng, m, n: rng.standard_normal((m, n)) * (rng.random((m, n)) < 0.1),
}


def drawn(rng, kind):
    """A small problem with bounds, weights, ridge and sparse storage at random."""
    m, n = rng.integers(1, 30, 2)
    A = KINDS[kind](rng, m, n)
    n, y = A.shape[1], rng.standard_normal(m)
    lam = float(np.abs(A.T @ y).max()) * 10 ** rng.uniform(-4, 0) or 1.0
    terms = {}
    if (side := rng.integers(4)) == 1:
        terms["lower"] = 0
    elif side == 2:
        terms |= {"lower": -0.3 * rng.random(n), "upper": 0.3 * rng.random(n)}
    if rng.integers(3) == 0:
        terms["weights"] = 10 ** rng.uniform(-1, 1, n)
    if rng.integers(2):
        A = sp.csr_array(A)
    if rng.integers(3) == 0:
        return ElasticNet(A, y, lam, 0.1 * lam, **terms)
    return Lasso(A, y, lam, **terms)


@pytest.mark.parametrize("kind", KINDS)
def test_every_design_is_certified(kind):
    rng = np.random.default_rng(list(KINDS).index(kind))
    for _ in range(25):
        problem = drawn(rng, kind)
        found = solve(problem, "working_set", tol=1e-10)
        assert found.status is Status.OPTIMAL, (problem, found)
        assert problem.penalty.violation(found.x[:, None]).max() == 0


@pytest.mark.parametrize("shape", [(20, 200), (200, 20), (40, 40)])
@pytest.mark.parametrize("fraction", [0.5, 0.1, 0.01, 0.001])
def test_it_agrees_with_the_exact_path(shape, fraction):
    rng = np.random.default_rng(3)
    A, y = rng.standard_normal(shape), rng.standard_normal(shape[0])
    found = recover(A, y, lam_fraction=fraction, solver="working_set", tol=1e-12)
    exact = recover(A, y, lam_fraction=fraction, solver="homotopy", tol=1e-12)
    sparse = recover(sp.coo_array(A), y, lam_fraction=fraction, tol=1e-12)
    assert found.status is exact.status is sparse.status is Status.OPTIMAL
    np.testing.assert_allclose(found.x, exact.x, atol=1e-8)
    np.testing.assert_allclose(sparse.x, exact.x, atol=1e-8)


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_array, sp.coo_array, sp.lil_array])
def test_sparse_matrices_stay_sparse(form, monkeypatch):
    A = sp.random(300, 900, density=0.01, random_state=0)
    y = np.random.default_rng(0).standard_normal(300)
    made = []
    dense = sp.csc_array.toarray

    def watched(self, *args, **kwargs):
        made.append(self.shape)
        return dense(self, *args, **kwargs)

    for kind in (sp.csc_array, sp.csc_matrix, sp.csr_array, sp.csr_matrix):
        monkeypatch.setattr(kind, "toarray", watched)
    for problem in (Lasso, lambda *a: ElasticNet(*a, 0.1)):
        lam = 0.2 * float(np.abs(A.T @ y).max())
        found = solve(problem(form(A), y, lam))
        assert found.status is Status.OPTIMAL
        assert found.solver.startswith("working_set")
    assert all(shape[0] * shape[1] < A.shape[0] * A.shape[1] / 4 for shape in made)


def test_entries_that_are_given_twice_add_up():
    twice = sp.csc_array((np.array([1.0, 1.0, 3.0]), np.array([0, 0, 1]), np.array([0, 2, 3])))
    assert not twice.has_canonical_format
    found = recover(twice, [4.0, 3.0], lam=0.5)
    np.testing.assert_allclose(found.x, recover(twice.toarray(), [4.0, 3.0], lam=0.5).x)
    assert not twice.has_canonical_format  # the user's matrix is left as it was


def test_nan_in_sparse_data_is_refused():
    A = sp.csr_array(np.array([[1.0, np.nan], [0.0, 2.0]]))
    with pytest.raises(ValueError, match="NaN"):
        recover(A, np.ones(2), lam=0.1)


@pytest.mark.parametrize("rows", [60, FEW_ROWS + 40])
@pytest.mark.parametrize("fraction", [0.2, 1e-3])
def test_many_active_columns_of_a_wide_matrix_go_by_the_exact_path(rows, fraction):
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((rows, 1200)), rng.standard_normal(rows)
    found = recover(A, y, lam_fraction=fraction, solver="working_set")
    assert found.status is Status.OPTIMAL
    if rows > FEW_ROWS or fraction > 0.1:  # of few rows the dual is quick
        assert ("exact path" in found.why) == (fraction < 0.1)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("together", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("fraction", [0.3, 0.03, 1e-3, 1e-5])
def test_few_rows_with_columns_that_go_together(together, fraction):
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((40, 4)) @ rng.standard_normal((4, 800))
    A = np.sqrt(1 - together) * rng.standard_normal((40, 800)) + np.sqrt(together) * shared
    y = rng.standard_normal(40)
    for terms in ({}, {"nonneg": True}, {"weights": 10 ** rng.uniform(-1, 1, 800)}):
        found = recover(A, y, lam_fraction=fraction, solver="working_set", tol=1e-10, **terms)
        assert found.status is Status.OPTIMAL


@pytest.mark.parametrize("fraction", [0.1, 0.01, 1e-4])
def test_a_tall_matrix_is_read_few_times(fraction):
    rng = np.random.default_rng(2)
    A = rng.standard_normal((2000, 50)) + 0.5 * rng.standard_normal((2000, 1))
    found = recover(A, rng.standard_normal(2000), lam_fraction=fraction, tol=1e-10)
    assert found.status is Status.OPTIMAL
    assert found.n_products <= 4  # besides A^T y, the Gram matrix and the proof


def fit_to(A):
    n = A.shape[1]
    return Fit(A, np.ones(len(A)), np.ones(n), np.full(n, -np.inf), np.full(n, np.inf))


def test_many_columns_that_took_part_call_for_the_exact_path_too():
    fit = fit_to(np.random.default_rng(0).standard_normal((20, 2 * LEAST)))
    fit._admit(np.arange(LEAST))
    assert not fit.crowded
    fit._admit(np.array([LEAST]))
    assert fit.crowded
    fit.done = True
    assert not fit.crowded


def test_tall_matrices_go_by_the_gram_matrix_of_all_columns_once_many_take_part():
    A = np.random.default_rng(0).standard_normal((60, 20))
    few = int(WHOLE * 20)
    fit = fit_to(A)
    fit._admit(np.arange(few))
    assert not fit.whole
    fit._admit(np.array([few]))
    assert fit.whole
    assert fit.taking.size == 20
    wide = fit_to(A[:19])
    wide._admit(np.arange(few + 1))
    assert not wide.whole


@pytest.mark.parametrize("fraction", [0.3, 0.1, 0.01, 1e-3, 1e-5])
@pytest.mark.parametrize("together", [0.0, 0.9, 0.9999])
def test_tall_designs_whose_columns_go_together(fraction, together):
    rng = np.random.default_rng(6)
    A = rng.standard_normal((700, 90)) * np.sqrt(1 - together) + np.sqrt(
        together
    ) * rng.standard_normal((700, 1))
    y = A @ (rng.standard_normal(90) * (rng.random(90) < 0.5)) + rng.standard_normal(700)
    for terms in ({}, {"lower": 0}, {"lower": -0.2, "upper": 0.3}):
        lam = fraction * Lasso(A, y, 1.0).lam_max
        for problem in (Lasso(A, y, lam, **terms), ElasticNet(A, y, lam, 0.1 * lam, **terms)):
            found = solve(problem, "working_set", tol=1e-11)
            assert found.status is Status.OPTIMAL, (terms, problem)


@pytest.mark.parametrize("fraction", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("together", [0.0, 0.9995, 1 - 1e-9])
def test_gram_matrices_of_single_precision_are_refined_or_not_taken(
    fraction, together, monkeypatch
):
    monkeypatch.setattr(working_set, "MANY_COLUMNS", 40)
    rng = np.random.default_rng(6)
    A = np.sqrt(1 - together) * rng.standard_normal((900, 40))
    A += np.sqrt(together) * rng.standard_normal((900, 1))
    y = A @ rng.standard_normal(40) + np.sqrt(1 - together) * rng.standard_normal(900)
    for scale in (1.0, 1e-100, 10.0 ** rng.uniform(-15, 15, 40)):
        terms = {"weights": np.ones(40) * scale}
        lam = fraction * Lasso(scale * A, y, 1.0, **terms).lam_max
        for tol in (1e-10, 1e-13):
            found = solve(Lasso(scale * A, y, lam, **terms), "working_set", tol=tol)
            assert found.status is Status.OPTIMAL, found


def test_single_precision_is_for_columns_that_are_clearly_independent():
    rng = np.random.default_rng(0)
    A, order = rng.standard_normal((50, 6)), np.arange(6)
    exact = WholeDesign(A, order)
    quick = WholeDesign(A, order, quick=True)
    assert quick.rounding > exact.rounding
    np.testing.assert_allclose(quick._gram, exact._gram, atol=1e-6)
    A[:, 5] = A[:, 4] + 1e-3 * A[:, 5]
    for within in (A, 1e30 * A, A * [1, 1, 1, 0, 1, 1]):
        assert WholeDesign(within, order, quick=True).rounding == exact.rounding


@pytest.mark.parametrize("shape", [(30, 90), (400, 120)])
@pytest.mark.parametrize("terms", [{}, {"lower": 0.0}, {"lower": -0.2, "upper": 0.3}])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_start_that_is_the_minimum_costs_two_products(shape, terms, sparse):
    rng = np.random.default_rng(1)
    A = sp.random(*shape, density=0.2, format="csc", random_state=0) if sparse else None
    A = rng.standard_normal(shape) if A is None else A
    y = rng.standard_normal(shape[0])
    lam = 0.1 * Lasso(A, y, 1.0).lam_max
    for problem in (Lasso(A, y, lam, **terms), ElasticNet(A, y, lam, lam, **terms)):
        first = solve(problem, "working_set", tol=1e-12)
        again = solve(problem, "working_set", tol=1e-8, x0=first.x)
        assert again.status is Status.OPTIMAL
        np.testing.assert_array_equal(again.x, first.x)
        assert (again.n_iter, again.n_products) == (0, 1)  # besides A x, of the matrix itself
        for start in (0 * first.x, first.x + 1e-3, -first.x):
            found = solve(problem, "working_set", tol=1e-10, x0=start)
            assert found.n_iter
            assert found.status is Status.OPTIMAL
            np.testing.assert_allclose(found.x, first.x, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "density", "fits"), [((200, 300), 0.02, True), ((300, 306), 0.1, False)]
)
@pytest.mark.parametrize("seed", range(2))
def test_sparse_interpolations_go_on_by_the_exact_path(shape, density, fits, seed):
    rng = np.random.default_rng(seed)
    A = sp.random(*shape, density=density, format="csc", random_state=seed)
    y = A @ rng.standard_normal(shape[1]) if fits else rng.standard_normal(shape[0])
    found = recover(A, y, lam_fraction=1e-6, solver="working_set")
    assert found.status is Status.OPTIMAL, found


@pytest.mark.one_in(2)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sparse_interpolations_that_no_path_takes_end(seed):
    rng = np.random.default_rng(seed)
    A = sp.random(200, 300, density=0.02, format="csc", random_state=seed)
    found = recover(A, rng.standard_normal(200), lam_fraction=1e-6, solver="working_set")
    if found.status is not Status.OPTIMAL:  # empty rows: hardly a face is independent
        steps = int(found.why.split(" Newton steps")[0].split()[-1])
        assert steps < 3000, found


@pytest.mark.parametrize("scale", [1, 10])
def test_sparse_columns_are_those_of_the_dense_matrix(scale):
    rng = np.random.default_rng(0)
    m, n = 200 * scale, 60 * scale
    A = sp.random(m, n, density=0.05, format="csc", random_state=0)
    u, v = rng.standard_normal(m), rng.standard_normal(n)
    new = rng.permutation(n)
    assert (n > HELD) == (scale == 10)
    for shift in (None, (u, v)):
        sparse = SparseDesign(A, shift)
        dense = DenseDesign(A.toarray() - (0 if shift is None else np.outer(u, v)))
        for part in np.split(new, [n // 3]):
            sparse.admit(part)
            dense.admit(part)
        x, r, free = rng.standard_normal(n), rng.standard_normal(m), np.arange(0, n, 4)
        np.testing.assert_allclose(sparse.norms, dense.norms)
        np.testing.assert_allclose(sparse.combine(x), dense.combine(x), atol=1e-10)
        np.testing.assert_allclose(sparse.correlate(r), dense.correlate(r), atol=1e-10)
        np.testing.assert_allclose(sparse.curve(x), dense.curve(x), atol=1e-10)
        steps = [d.newton(free, x[free], np.full(free.size, 0.1), 1e-12) for d in (sparse, dense)]
        np.testing.assert_allclose(*steps, atol=1e-9)


@pytest.mark.parametrize("times", [0.8 * NEAR, 3 * NEAR])
def test_the_exact_path_goes_on_from_a_point_of_a_larger_lam(times):
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((30, 90)), rng.standard_normal(30)
    lam = 0.05 * float(np.abs(A.T @ y).max())
    x0 = recover(A, y, lam=times * lam, tol=1e-12).x
    found = solve(Lasso(A, y, lam), ExactL1(tol=1e-10), x0=x0)
    alone = solve(Lasso(A, y, lam), ExactL1(tol=1e-10))
    assert found.status is Status.OPTIMAL
    assert ("x0" in found.why) == (times < NEAR)
    assert found.n_products < alone.n_products
    np.testing.assert_allclose(found.x, alone.x, atol=1e-8)


@pytest.mark.parametrize("shape", [(40, 20), (20, 40)])
def test_a_start_may_have_all_columns(shape):
    rng = np.random.default_rng(0)
    A, y, x0 = rng.standard_normal(shape), rng.standard_normal(shape[0]), np.ones(shape[1])
    lam = 0.1 * float(np.abs(A.T @ y).max())
    found = solve(Lasso(A, y, lam), "working_set", x0=x0)
    assert found.status is Status.OPTIMAL
    np.testing.assert_allclose(found.x, recover(A, y, lam=lam).x, atol=1e-6)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("bound", [np.inf, 0.05])
def test_many_sparse_columns_come_near_the_minimum_by_the_dual(shifted, bound):
    rng = np.random.default_rng(8)
    m, n, lam = 60, HELD + 20, 0.05
    A = sp.random(m, n, density=0.1, format="csc", random_state=2)
    shift = (np.ones(m), rng.standard_normal(n) / 50) if shifted else None
    design, y = SparseDesign(A, shift), rng.standard_normal(m)
    design.admit(np.arange(n))
    assert design.many
    ridge, bounds = np.full(n, 0.01), np.full(n, bound)
    face = Face(np.zeros(n), design.correlate(y), np.full(n, lam), -bounds, bounds, ridge)
    assert approach(design, face, y, 1000) > 0
    r = y - design.combine(face.x)
    np.testing.assert_allclose(face.c, design.correlate(r) - ridge * face.x, atol=1e-12)
    step = face.x + face.c  # a point is optimal where a proximal step leads to itself
    kept = np.clip(np.sign(step) * np.maximum(np.abs(step) - lam, 0), -bounds, bounds)
    assert np.abs(kept - face.x).max() < 0.02 * np.abs(design.correlate(y)).max()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("terms", [{}, {"lower": 0}, {"lower": -0.3, "upper": 0.2}], ids=str)
@pytest.mark.parametrize("fraction", [0.1, 0.01, 1e-3, 1e-4])
def test_many_sparse_columns_are_solved_at_every_lam(fraction, terms):
    rng = np.random.default_rng(4)
    A = sp.random(300, 3 * HELD, density=0.02, format="csc", random_state=5)
    A.data += 0.5  # what all columns have in common
    y, weights = rng.standard_normal(300), rng.uniform(0.5, 2, 3 * HELD)
    for more in ({}, {"weights": weights}):
        lam = fraction * Lasso(A, y, 1.0, **more).lam_max
        found = solve(Lasso(A, y, lam, **terms, **more), "working_set", tol=1e-10)
        assert found.status is Status.OPTIMAL


def test_more_free_columns_than_rows_go_by_the_dual_at_once():
    design, y = DenseDesign(np.random.default_rng(0).standard_normal((6, 12))), np.ones(6)
    design.admit(np.arange(12))
    free, steps = np.full(12, np.inf), []
    for lam in (0.9, 1e-3):
        slopes = np.full(12, lam * float(np.abs(design.correlate(y)).max()))
        face = Face(np.zeros(12), design.correlate(y), slopes, -free, free, np.zeros(12))

        def way(at, x=face.x):
            steps.append(x.any())
            return approach(design, at, y, 1000)

        minimise(design, face, 1e-10, approach=way)
        assert (face.signs(1e-9) == np.sign(face.x)).all()
    assert steps == [False]  # where few are free, Newton steps do; else none comes before
