"""Operators made of others: products, facts, routes and pickles against their own matrices."""

import pickle
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import aslinearoperator
from sensing_cases import OPERATORS

from lowrank.errors import InputError
from lowrank.sensing import as_operator, bases, operators, recover, solve, sparse_signal
from lowrank.sensing.operators import diagonal, operator
from lowrank.sensing.operators.facts import Facts
from lowrank.sensing.operators.operator import from_functions, from_matrix
from lowrank.sensing.problems.l1 import (
    BPDN,
    BasisPursuit,
    ConstrainedLasso,
    ElasticNet,
    Lasso,
    SqrtLasso,
)
from lowrank.sensing.problems.other import KSparse, PosteriorMean
from lowrank.sensing.solvers import SOLVERS

ROUNDING = 1e-11
LANCZOS = 1e-6
MOST_ENTRIES = 20_000
SMALL = {name: make for name, make in OPERATORS.items() if np.prod(make().shape) < MOST_ENTRIES} | {
    "haar 2d": lambda: bases.wavelet(8, 4, name="haar"),
    "db2 2d symmetric": lambda: bases.wavelet(7, 6, name="db2", level=1, mode="symmetric"),
    "radial fourier": lambda: operators.partial_fourier(
        (7, 6), mask=operators.radial_mask((7, 6), 3)
    ),
    "tight": lambda: bases.concatenation(bases.dct(8), bases.identity(8)),
    "diagonal": lambda: diagonal([1.0, -2.0, 3.0j]),
    "signs": lambda: diagonal([1.0, -1.0, 1j]),
    "partial hadamard": lambda: operators.partial_hadamard(32, m=9, seed=0),
    "rows of a transform": lambda: bases.dct(9)[[1, 3, 4, 8]],
    "stated": lambda: from_matrix(np.linalg.qr(np.eye(5, 3) + 1)[0].T, row_orthonormal=True),
}
"""Every kind of operator, so small that many matrices are made of it."""


def _weights(n):
    return 1 + np.arange(n) % 3 + 0.5j * (np.arange(n) % 2)


def _unitary(n):
    return bases.fourier(n)


EXPRESSIONS = {
    "itself": (lambda A: A, lambda M: M),
    "minus": (lambda A: -A, lambda M: -M),
    "twice": (lambda A: 2 * A, lambda M: 2 * M),
    "by i": (lambda A: A * 1.5j, lambda M: 1.5j * M),
    "third": (lambda A: A / 3, lambda M: M / 3),
    "nothing": (lambda A: 0 * A, lambda M: 0 * M),
    "adjoint": (lambda A: A.H, lambda M: M.conj().T),
    "transpose": (lambda A: A.T, lambda M: M.T),
    "conjugate": (lambda A: A.conj(), lambda M: M.conj()),
    "in a basis": (lambda A: A @ _unitary(A.shape[1]), lambda M: M @ _dense_fourier(M.shape[1])),
    "turned": (lambda A: _unitary(A.shape[0]) @ A, lambda M: _dense_fourier(M.shape[0]) @ M),
    "gram": (lambda A: A.H @ A, lambda M: M.conj().T @ M),
    "cogram": (lambda A: A @ A.H, lambda M: M @ M.conj().T),
    "sum": (lambda A: A + 2 * A, lambda M: 3 * M),
    "difference": (lambda A: A - 1j * A, lambda M: M - 1j * M),
    "plus matrix": (lambda A: A + np.ones(A.shape), lambda M: M + 1),
    "weighed": (
        lambda A: A @ diagonal(_weights(A.shape[1])),
        lambda M: M * _weights(M.shape[1]),
    ),
    "whitened": (
        lambda A: diagonal(_weights(A.shape[0])) @ A,
        lambda M: _weights(M.shape[0])[:, None] * M,
    ),
    "rows": (lambda A: A[[2, 0]], lambda M: M[[2, 0]]),
    "rows twice": (lambda A: A[[2, 0, 2]], lambda M: M[[2, 0, 2]]),
    "all rows": (lambda A: A[::-1], lambda M: M[::-1]),
    "columns": (lambda A: A[:, [-1, 0]], lambda M: M[:, [-1, 0]]),
    "all columns": (lambda A: A[:, ::-1], lambda M: M[:, ::-1]),
    "submatrix": (lambda A: A[1:, ::2], lambda M: M[1:, ::2]),
    "sampled": (
        lambda A: operators.sampling(A.shape[0], [2, 0]) @ A,
        lambda M: M[[2, 0]],
    ),
    "into a wide basis": (
        lambda A: A @ bases.concatenation(bases.identity(A.shape[1]), bases.dct(A.shape[1])),
        lambda M: M @ np.hstack([np.eye(M.shape[1]), bases.dct(M.shape[1]).to_dense()]),
    ),
    "real parts": (
        operators.for_real_signals,
        lambda M: np.concatenate([M.real, M.imag]),
    ),
    "beside itself": (
        lambda A: bases.concatenation(A, A.conj()),
        lambda M: np.concatenate([M, M.conj()], axis=1),
    ),
    "nested": (
        lambda A: (-2 * (A.H[1:] @ diagonal(_weights(A.shape[0])))).T,
        lambda M: (-2 * (M.conj().T[1:] * _weights(M.shape[0]))).T,
    ),
}
"""How operators are made of one, and the same of its matrix."""


def _dense_fourier(n):
    return bases.fourier(n).to_dense()


@contextmanager
def told(expression):
    """Say in an error which expression it was."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the expression {expression!r}")
        raise


def check_products(A, M):
    rng = np.random.default_rng(0)
    size = max(1.0, np.abs(M).max(initial=0))
    assert A.shape == M.shape
    assert A.is_complex or not np.iscomplexobj(M)
    for batch in ((), (3,)):
        x, y = (rng.standard_normal((k, *batch)) for k in M.shape[::-1])
        np.testing.assert_allclose(A @ x, M @ x, atol=ROUNDING * size)
        np.testing.assert_allclose(A @ (1j * x), M @ (1j * x), atol=ROUNDING * size)
        np.testing.assert_allclose(A.H @ y, M.conj().T @ y, atol=ROUNDING * size)
        np.testing.assert_allclose(y.T @ A, y.T @ M, atol=ROUNDING * size)
    if A.is_dense:
        np.testing.assert_allclose(A.dense, M, atol=ROUNDING * size)


def check_facts(A, M):
    """Every fact that is claimed holds for the matrix."""
    norm = np.linalg.norm(M, 2)
    assert A.norm() == pytest.approx(norm, rel=LANCZOS, abs=ROUNDING)
    if A.knows_norm:
        assert A.facts.norm == pytest.approx(norm, rel=1e-9, abs=ROUNDING)
    for gram, square in ((A.facts.row_gram, M @ M.conj().T), (A.facts.column_gram, M.conj().T @ M)):
        if gram is not None:
            identity = gram * np.eye(len(square))
            np.testing.assert_allclose(square, identity, atol=ROUNDING * max(gram, 1))
    for said, square in (
        (A.facts.orthogonal_rows, M @ M.conj().T),
        (A.facts.orthogonal_columns, M.conj().T @ M),
    ):
        if said:
            lengths = np.diag(np.diag(square))
            np.testing.assert_allclose(square, lengths, atol=ROUNDING * max(norm**2, 1))
    atol = 1e-7 * max(1.0, float(norm))  # of what transforms tell, as a root of rounding
    np.testing.assert_allclose(A.column_norms(), np.linalg.norm(M, axis=0), atol=atol)
    np.testing.assert_allclose(A.row_norms(), np.linalg.norm(M, axis=1), atol=atol)
    if A.facts.diagonal is not None:
        np.testing.assert_allclose(np.diag(A.facts.diagonal), M, atol=ROUNDING * max(1, norm))
    if A.scales is not None:
        assert A.scales.shape == M.shape[1:]


def far_from_circulant(spectrum, square):
    """Relative distance of a Gram matrix from the circulant one that is said to be near it."""
    F = bases.fourier(spectrum.shape).to_dense().conj().T
    near = F.conj().T @ (spectrum.ravel()[:, None] * F)
    return float(np.linalg.norm(near - square) / max(np.linalg.norm(square), 1e-300))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", SMALL)
def test_algebra_keeps_to_the_matrix(name):
    A = SMALL[name]()
    for expression, (of_operator, of_matrix) in EXPRESSIONS.items():
        with told(expression):
            made, M = of_operator(A), of_matrix(A.to_dense())
            check_products(made, M)
            check_facts(made, M)


CIRCULANT = [name for name, make in SMALL.items() if make().gram_spectrum is not None]


@pytest.mark.parametrize("name", CIRCULANT)
def test_circulant_neighbours_stay_as_near(name):
    A = SMALL[name]()
    before = far_from_circulant(A.gram_spectrum, A.to_dense().conj().T @ A.to_dense())
    for expression, (of_operator, of_matrix) in EXPRESSIONS.items():
        made, M = of_operator(A), of_matrix(A.to_dense())
        for spectrum, square in (
            (made.facts.gram_spectrum, lambda: M.conj().T @ M),  # noqa: B023
            (made.facts.cogram_spectrum, lambda: M @ M.conj().T),  # noqa: B023
        ):
            if spectrum is not None:
                assert far_from_circulant(spectrum, square()) <= before + 1e-9, expression


@pytest.mark.parametrize("name", [name for name in SMALL if name != "functions"])
def test_pickles_whole(name):
    for expression, (of_operator, _) in EXPRESSIONS.items():
        with told(expression):
            check_pickle(of_operator(SMALL[name]()))


def check_pickle(A):
    known = A.norm() if A.knows_norm else None
    twin = pickle.loads(pickle.dumps(A))
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal(k) for k in A.shape[::-1])
    assert np.array_equal(twin @ x, A @ x)
    assert np.array_equal(twin.H @ y, A.H @ y)
    assert repr(twin) == repr(A)
    assert twin.trusted == A.trusted
    for fact in ("norm", "row_gram", "column_gram"):
        assert getattr(twin.facts, fact) == getattr(A.facts, fact), fact
    for fact in ("gram_spectrum", "cogram_spectrum", "diagonal", "scales"):
        mine, its = getattr(A.facts, fact), getattr(twin.facts, fact)
        assert (mine is None) == (its is None), fact
        assert mine is None or np.array_equal(mine, its), fact
    assert twin.knows_column_norms == A.knows_column_norms
    assert np.array_equal(twin.column_norms(), A.column_norms())
    assert known is None or twin.norm() == known
    assert len(repr(A)) < 250
    assert "\n" not in repr(A)


ROWS = operators.partial_dct(16, m=5, seed=0)
TURN = bases.fourier(16)
TIGHT = bases.concatenation(bases.dct(16), bases.identity(16))
PLAIN = operators.gaussian(5, 16, seed=0)
HAAR = bases.wavelet(16, name="haar")
BLUR = operators.circular_convolution(16, [1.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("made", "fact", "value"),
    [
        (ROWS @ TURN, "row_gram", 1.0),
        (ROWS @ TIGHT, "row_gram", 2.0),
        (TIGHT, "norm", np.sqrt(2)),
        (-3 * ROWS, "row_gram", 9.0),
        (1j * ROWS, "row_gram", 1.0),
        (ROWS.H, "column_gram", 1.0),
        (ROWS.T @ diagonal(np.full(5, 2.0)), "column_gram", 4.0),
        ((ROWS @ TURN).T, "column_gram", 1.0),
        (ROWS[2:], "row_gram", 1.0),
        (TURN[3:].conj(), "row_gram", 1.0),
        (TURN[:, [4, 2]], "column_gram", 1.0),
        (TURN @ TURN, "column_gram", 1.0),
        (TURN**3, "row_gram", 1.0),
        (ROWS.H @ ROWS, "norm", 1.0),
        (-2 * bases.finite_differences(4) @ bases.dct(4), "norm", 4 * np.cos(np.pi / 8)),
        (BLUR.H @ BLUR, "norm", 16.0),
        (bases.identity(4) - 3 * bases.identity(4), "row_gram", 4.0),
        (operators.for_real_signals(TURN), "column_gram", 1.0),
    ],
)
def test_what_is_proven_is_known(made, fact, value):
    assert getattr(made.facts, fact) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(
    ("made", "knows"),
    [
        (2 * ROWS, "knows_column_norms"),
        (ROWS.H, "knows_column_norms"),
        (ROWS @ TURN, "knows_row_norms"),
        (ROWS[1:], "knows_row_norms"),
        (ROWS @ diagonal(np.arange(16.0)), "knows_column_norms"),
        (diagonal(np.arange(5.0)) @ ROWS, "knows_row_norms"),
        (bases.concatenation(ROWS, ROWS), "knows_column_norms"),
        (ROWS[:, 3:7], "knows_column_norms"),
    ],
)
def test_lengths_stay_known(made, knows):
    assert getattr(made, knows)


RAMP = diagonal(1.0 + np.arange(5))
WEIGHED = RAMP @ ROWS
"""Orthogonal rows of different lengths."""


@pytest.mark.parametrize(
    ("made", "rows", "columns"),
    [
        (RAMP, True, True),
        (WEIGHED, True, False),
        (WEIGHED @ TURN, True, False),
        (WEIGHED.H, False, True),
        (ROWS.H @ RAMP, False, True),
        (TURN @ WEIGHED.H, False, True),
        (-2 * WEIGHED, True, False),
        (-2 * WEIGHED.H, False, True),
        (WEIGHED[2:], True, False),
        (WEIGHED[::-1], True, False),
        (WEIGHED.H[:, 2:], False, True),
        (WEIGHED.H[::-1], False, True),
        ((RAMP @ TURN[:5]).conj(), True, False),
        (bases.concatenation(WEIGHED, ROWS), True, False),
        (operators.for_real_signals((RAMP @ TURN[:5]).H), False, True),
        (WEIGHED @ WEIGHED.H, True, True),
        (RAMP + RAMP, True, True),
        (RAMP @ PLAIN, False, False),
        (ROWS @ diagonal(1.0 + np.arange(16)), False, False),
        (WEIGHED[[0, 0]], False, False),
        (WEIGHED[:, 1:], False, False),
        (bases.concatenation(WEIGHED, PLAIN), False, False),
        (WEIGHED + ROWS, False, False),
        (operators.for_real_signals(RAMP @ TURN[:5]), False, False),
    ],
)
def test_orthogonality_is_known_whatever_the_lengths(made, rows, columns):
    assert (made.facts.orthogonal_rows, made.facts.orthogonal_columns) == (rows, columns)
    counts = []
    counted = made.counting(counts.append)
    if rows or columns:  # their longest is the norm, and no product finds it
        lengths = counted.row_norms() if rows else counted.column_norms()
        assert counted.norm() == pytest.approx(lengths.max(), rel=1e-12)
        assert not counts
    check_facts(made, made.to_dense())


LENGTHS = {"norm", "row_norms", "column_norms"}
FILTER = LENGTHS | {"gram_spectrum", "cogram_spectrum"}
ORTHOGONAL = {"orthogonal_rows", "orthogonal_columns"}
DIAGONAL = LENGTHS | ORTHOGONAL | {"diagonal"}
LEVEL = diagonal(np.full(16, 2.0))


@pytest.mark.parametrize(
    ("made", "known"),
    [
        (PLAIN, set()),
        (RAMP @ PLAIN, {"row_norms"}),
        (RAMP + ROWS[:, :5], set()),
        (ROWS[:, :5] + RAMP, set()),
        (-2 * ROWS.H, LENGTHS | {"orthogonal_columns", "column_gram"}),
        (BLUR, FILTER),
        (BLUR @ TURN, {"norm", "row_norms", "cogram_spectrum"}),
        (TURN @ BLUR, {"norm", "column_norms", "gram_spectrum"}),
        (BLUR @ LEVEL, FILTER),
        (LEVEL @ BLUR.H, FILTER),
        (-2 * BLUR.H, FILTER),
        ((1j * BLUR).conj(), FILTER),
        (BLUR[::-1], FILTER - {"cogram_spectrum"}),
        (BLUR[:, ::-1], FILTER - {"gram_spectrum"}),
        (BLUR[2:], {"row_norms"}),
        (operators.for_real_signals(1j * BLUR), {"column_norms", "gram_spectrum"}),
        (RAMP @ RAMP, DIAGONAL),
        (-2 * RAMP, DIAGONAL),
        ((1j * RAMP).H, DIAGONAL),
        ((1j * RAMP).conj(), DIAGONAL),
        (RAMP + RAMP, DIAGONAL),
        (RAMP[::-1], DIAGONAL - {"diagonal"}),
        (ROWS[::-1], LENGTHS | {"orthogonal_rows", "row_gram"}),
        (ROWS[[0, 0]], {"row_norms"}),
        (ROWS.H @ ROWS, LENGTHS),
        (WEIGHED @ WEIGHED.H, LENGTHS | ORTHOGONAL),
        (bases.concatenation(ROWS, WEIGHED), {"norm_by", "row_norms", "orthogonal_rows"}),
    ],
)
def test_all_that_is_known_and_nothing_else(made, known):
    facts = {field.name: getattr(made.facts, field.name) for field in fields(made.facts)}
    assert {name for name, fact in facts.items() if fact is not None and fact is not False} == known
    check_facts(made, made.to_dense())


def test_weighed_measurements_cost_no_inner_iteration():
    weights = diagonal(10 ** np.linspace(-1, 1, 32))
    problem = Lasso(weights @ PARTIAL["dct"], np.ones(32), 0.01)
    found = solve(problem, "admm", max_iter=60)
    assert found.n_products <= 3 * found.n_iter + 12


@pytest.mark.parametrize(
    "made",
    [PLAIN @ HAAR, HAAR.T @ PLAIN.T, ROWS @ PLAIN.T, 2 * PLAIN, PLAIN.T, PLAIN + PLAIN, PLAIN[1:]],
)
def test_matrices_stay_dense(made):
    assert made.is_dense


@pytest.mark.parametrize("made", [ROWS @ HAAR, 2 * ROWS, ROWS.H, ROWS + PLAIN, ROWS[1:]])
def test_matrix_free_stays_matrix_free(made):
    assert not made.is_dense


@pytest.mark.parametrize(
    "made",
    [
        ROWS[[0, 0]],
        ROWS + ROWS[::-1],
        PLAIN @ TURN,
        ROWS[:, 1:],
        operators.for_real_signals(ROWS @ TURN),
    ],
)
def test_what_is_not_proven_is_not_claimed(made):
    assert made.facts.row_gram is None
    assert made.facts.column_gram is None


def test_norms_are_measured_once():
    counts = []
    A = operators.toeplitz(70, 90, seed=0).counting(counts.append)
    A.norm()
    spent = len(counts)
    for made in (-2 * A, A.T, A @ bases.dct(90), bases.dct(70) @ A, A[::-1], A.H @ A):
        made.norm()
        assert len(counts) == spent, made


def test_scales_go_with_the_columns():
    assert np.array_equal((PLAIN @ HAAR).scales, HAAR.scales)
    assert np.array_equal((-2 * HAAR).scales, HAAR.scales)
    assert np.array_equal(HAAR[:, [9, 3]].scales, HAAR.scales[[9, 3]])
    assert HAAR.T.scales is None
    assert np.array_equal(bases.scale_weights(PLAIN @ HAAR), bases.scale_weights(HAAR))


def test_adjoint_of_the_adjoint_is_the_operator():
    for A in (ROWS, ROWS @ TURN, 2 * PLAIN, PLAIN[2:]):
        assert A.H.H is A
    assert PLAIN.T.T is PLAIN


def _first_two(x):
    return x[:2]


def _two_and_zero(y):
    return np.concatenate([y, np.zeros_like(y[:1])])


@pytest.mark.parametrize(
    "make",
    [
        lambda: operators.Operator(
            (2, 3), float, _first_two, _two_and_zero, name="lens", facts=Facts(row_gram=1.0)
        ),
        lambda: from_functions((2, 3), _first_two, _two_and_zero, row_orthonormal=True),
    ],
)
def test_functions_that_pickle_make_operators_that_do(make):
    A = 2 * make()
    assert pickle.loads(pickle.dumps(A)).facts.row_gram == 4.0
    check_pickle(A)


def test_compared_by_identity():
    twin = pickle.loads(pickle.dumps(ROWS))
    assert ROWS == ROWS
    assert twin != ROWS
    assert len({ROWS, twin}) == 2


def test_measured_norm_travels():
    A = operators.gaussian(70, 90, seed=0)
    norm, counts = A.norm(), []
    twin = pickle.loads(pickle.dumps(A)).counting(counts.append)
    assert (twin.norm(), counts) == (norm, [])


def test_counting_counts_what_is_made_of_it():
    counts = []
    A = ROWS.H.counting(counts.append)
    (A.H @ A).forward(np.ones(5))
    (2 * A)[1:].adjoint(np.ones(15))
    assert len(counts) == 3


@pytest.mark.parametrize("n", [64, 66])
@pytest.mark.parametrize(
    ("make", "basis"),
    [
        (lambda n: operators.gaussian(n // 2, n, seed=0), "dct"),
        (lambda n: operators.gaussian(n // 2, n, seed=0, dtype=complex), "fourier"),
        (lambda n: operators.sparse_binary(n // 2, n, seed=0), "dct"),
        (lambda n: operators.partial_dct(n, m=n // 2, seed=0), "identity"),
        (lambda n: operators.sampling(n, np.arange(0, n, 2)), "random"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"noise": 0.1}, {"lam": 0.1}, {"sparsity": 3}])
def test_product_takes_the_route_of_the_basis(make, basis, n, options):
    Psi = {
        "dct": lambda: bases.dct(n),
        "fourier": lambda: bases.fourier(n),
        "identity": lambda: bases.identity(n),
        "random": lambda: bases.dictionary(operators.gaussian(n, n, seed=5)),
    }[basis]()
    A = make(n)
    y = A @ (Psi @ sparse_signal(n, 3, seed=1))
    stated, composed = recover(A, y, basis=Psi, **options), recover(A @ Psi, y, **options)
    assert composed.solver == stated.solver
    assert np.array_equal(composed.coefficients, stated.coefficients)
    assert composed.gap == stated.gap


@pytest.mark.parametrize(
    "make", [lambda A: 2 * A, lambda A: -A, lambda A: A[::-1], lambda A: 1j * A]
)
@pytest.mark.parametrize("A", [PLAIN, ROWS], ids=["dense", "matrix-free"])
def test_variants_take_the_same_route(A, make):
    x = np.zeros(16)
    x[3] = 2.0
    plain, found = recover(A, A @ x), recover(make(A), make(A) @ x)
    if not make(A).is_complex:
        assert found.solver == plain.solver
    np.testing.assert_allclose(found.x, plain.x, atol=1e-7)


PARTIAL = {
    "dct": operators.partial_dct(64, m=32, seed=0),
    "fourier": operators.partial_fourier(64, m=32, seed=0),
    "hadamard": operators.partial_hadamard(64, m=32, seed=0),
}
"""Orthonormal rows, matrix-free."""


def _stated(A, c):
    """Problems with the same answers for `c A` whatever c is, by name."""
    clean = A @ sparse_signal(64, 3, seed=1)
    y = c * (clean + 0.01 * np.random.default_rng(0).standard_normal(32))
    lam = 0.05 * float(np.abs(A.H @ (y / c)).max()) * c**2
    return {
        "basis pursuit": BasisPursuit(c * A, c * clean),
        "bpdn": BPDN(c * A, y, 0.05 * c),
        "lasso": Lasso(c * A, y, lam),
        "within a ball": ConstrainedLasso(c * A, y, 1.0),
        "elastic net": ElasticNet(c * A, y, lam, 0.1 * c**2),
        "square root": SqrtLasso(c * A, y, 0.2 * c),
        "sparse": KSparse(c * A, y, 3),
        "posterior": PosteriorMean(c * A, y, 0.01 * c),
        "posterior, noise unknown": PosteriorMean(c * A, y),
    }


@pytest.mark.parametrize("c", [1e-3, 2.0, 1e3])
@pytest.mark.parametrize("name", PARTIAL)
def test_multiples_take_the_same_route(name, c):
    A = PARTIAL[name]
    for kind, problem in _stated(A, 1.0).items():
        multiple = _stated(A, c)[kind]
        plain, found = solve(problem), solve(multiple)
        assert found.solver == plain.solver, kind
        assert found.status is plain.status, kind
        np.testing.assert_allclose(found.x, plain.x, atol=1e-6, err_msg=kind)


TRANSFORMS = ("admm", "fista", "vamp", "omp", "iht", "cosamp", "subspace_pursuit")
"""What works by products alone: a multiple changes nothing but roundings."""


@pytest.mark.one_in(3)
@pytest.mark.parametrize("c", [1e-3, 2.0, 1e3])
@pytest.mark.parametrize("solver", TRANSFORMS)
def test_multiples_take_as_many_products(solver, c):
    near = 0.15 if solver == "admm" else 0.0  # checked every so often
    taken = 0
    for A in PARTIAL.values():
        for kind, problem in _stated(A, 1.0).items():
            multiple = _stated(A, c)[kind]
            if type(problem) not in SOLVERS[solver].solves:
                continue
            refused = [SOLVERS[solver]().refuses(each) for each in (problem, multiple)]
            assert refused[0] == refused[1], kind
            if refused[0] is None:
                plain, found = (solve(each, solver, max_iter=60) for each in (problem, multiple))
                assert found.n_iter == pytest.approx(plain.n_iter, rel=near), kind
                assert found.n_products == pytest.approx(plain.n_products, rel=near), kind
                taken += 1
    assert taken


@pytest.mark.parametrize("n", [64])
@pytest.mark.parametrize(
    "name", ["dct", "fourier", "haar", "db4", "bior4.4", "dct:8x8", "haar:4x16"]
)
def test_basis_by_name(name, n):
    A = operators.gaussian(32, n, seed=0)
    kind, _, sides = name.partition(":")
    shape = [int(s) for s in sides.split("x")] if sides else [n]
    Psi = getattr(bases, kind)(shape) if kind in bases.BASES else bases.wavelet(shape, name=kind)
    y = A @ (Psi @ sparse_signal(Psi.shape[1], 2, seed=1))
    by_name, by_basis = recover(A, y, basis=name), recover(A, y, basis=Psi)
    assert np.array_equal(by_name.x, by_basis.x)
    assert by_name.solver == by_basis.solver


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dcl", "'dcl' is no basis; give dct, fourier"),
        ("dct:8x", "has no shape '8x'"),
        ("dct:8x9", "makes signals of 72 samples, and A has 64 columns"),
    ],
)
def test_no_basis_of_that_name(name, says):
    with pytest.raises(InputError, match=says):
        recover(np.ones((2, 64)), np.ones(2), basis=name)


M, N = PLAIN.to_dense(), HAAR.to_dense()


class Lens:
    """An operator of another library: it has a shape and products, and no class in common."""

    shape, dtype = M.shape, M.dtype

    def matvec(self, x):
        return M @ x

    def rmatvec(self, y):
        return M.T @ y


@pytest.mark.parametrize(
    ("made", "matrix"),
    [
        (PLAIN @ scipy.sparse.csr_array(N), M @ N),
        (scipy.sparse.csr_array(M) @ HAAR, M @ N),
        (PLAIN + scipy.sparse.csr_array(M), 2 * M),
        (PLAIN + M, 2 * M),
        (M - 3 * PLAIN, -2 * M),
        (PLAIN + torch.tensor(M), 2 * M),
        (torch.tensor(2.0) * PLAIN, 2 * M),
        (PLAIN * np.float32(2), 2 * M),
        (np.array(2) * PLAIN, 2 * M),
        (PLAIN @ aslinearoperator(N), M @ N),
        (as_operator(aslinearoperator(M) @ HAAR), M @ N),
        (as_operator(aslinearoperator(M) + PLAIN), 2 * M),
        (as_operator(-2 * aslinearoperator(M)), -2 * M),
        (as_operator(aslinearoperator(M).T), M.T),
        (as_operator(aslinearoperator(M).H), M.T),
        (as_operator(Lens()) @ HAAR, M @ N),
        (HAAR.T @ as_operator(Lens()).T, (M @ N).T),
        (sum([PLAIN, PLAIN]), 2 * M),
        (HAAR**2, N @ N),
    ],
)
def test_other_libraries_join(made, matrix):
    check_products(as_operator(made), matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_join(dtype):
    x, X = torch.arange(16, dtype=dtype), torch.ones(3, 5, dtype=dtype)
    assert (2 * PLAIN @ x).dtype == dtype
    found = X @ PLAIN
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), X.numpy() @ M, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [float, complex])
def test_products_with_a_matrix_form_few_columns_at_a_time(monkeypatch, dtype):
    monkeypatch.setattr(operator, "BLOCK", 3 * 16)
    D, widths = operators.gaussian(16, 10, seed=0, dtype=dtype), []
    for make, matrix in (
        (lambda A: A @ D, TURN.to_dense() @ D.dense),
        (lambda A: D.H @ A, D.dense.conj().T @ TURN.to_dense()),
    ):
        made = make(TURN.counting(widths.append))
        np.testing.assert_allclose(made.dense, matrix, atol=1e-13)
    assert max(widths, default=0) == 3


def test_matrices_of_scipy_are_dense():
    assert as_operator(aslinearoperator(M)).is_dense
    assert as_operator(aslinearoperator(M) @ HAAR).is_dense


def test_recover_takes_operators_of_other_libraries():
    x = np.zeros(16)
    x[3] = 1.0
    np.testing.assert_allclose(recover(Lens(), M @ x).x, x, atol=1e-7)


def test_wrong_adjoint_is_warned_of_behind_a_matrix():
    wrong = from_functions((16, 16), np.cumsum, np.cumsum)
    with pytest.warns(UserWarning, match="fails the dot test"):
        recover(PLAIN @ wrong, M[:, 3], sparsity=1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: PLAIN @ HAAR[:5], "A has 16 columns and B has 5 rows"),
        (lambda: PLAIN @ 2, "single number; use \\*"),
        (lambda: PLAIN @ np.ones(5), "A has 16 columns"),
        (lambda: np.ones(16) @ PLAIN, "A has 5 rows"),
        (lambda: PLAIN + 1, "add a multiple of bases.identity"),
        (lambda: PLAIN + HAAR, "shapes \\(5, 16\\) and \\(16, 16\\)"),
        (lambda: PLAIN * np.nan, "finite number"),
        (lambda: PLAIN / 0, "no number other than 0"),
        (lambda: PLAIN**2, "take a square one"),
        (lambda: HAAR**0, "whole power from 1 on"),
        (lambda: PLAIN[3], "indices such as \\[3\\]"),
        (lambda: PLAIN[[5]], "beyond 0..4"),
        (lambda: PLAIN[[]], "picks nothing"),
        (lambda: PLAIN[7:], "picks nothing"),
        (lambda: PLAIN[np.ones(4, bool)], "pass a slice, indices"),
        (lambda: PLAIN[1, 2, 3], "3 indices"),
        (lambda: from_matrix(M.T, row_orthonormal=True), "rows .* cannot be orthogonal"),
        (lambda: diagonal(M), "is no diagonal"),
        (lambda: PLAIN + None, "NoneType is not a matrix"),
    ],
)
def test_bad_algebra_gets_a_sentence(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_rows_are_no_vectors():
    with pytest.raises(TypeError, match="not iterable"):
        iter(PLAIN)


MADE = {
    "dct": bases.dct,
    "fourier": bases.fourier,
    "haar": lambda *shape: bases.wavelet(*shape, name="haar"),
    "identity": bases.identity,
    "differences": bases.finite_differences,
    "partial fourier": lambda *shape: operators.partial_fourier(*shape, m=5, seed=0),
}


@pytest.mark.parametrize("name", MADE)
def test_shapes_come_apart_or_together(name):
    wanted = MADE[name](8, 4).to_dense()
    for shape in (
        ((8, 4),),
        ([8, 4],),
        (np.array([8, 4]),),
        (torch.Size([8, 4]),),
        (np.int64(8), 4),
    ):
        assert np.array_equal(MADE[name](*shape).to_dense(), wanted)
    assert np.array_equal(MADE[name]((8,)).to_dense(), MADE[name](8).to_dense())


@pytest.mark.parametrize(
    "make",
    [
        *MADE.values(),
        lambda *shape: operators.sampling(shape[0] if len(shape) == 1 else shape, [0]),
        lambda *shape: operators.circular_convolution(
            shape[0] if len(shape) == 1 else shape, [1.0]
        ),
        lambda *shape: operators.variable_density_mask(
            shape[0] if len(shape) == 1 else shape, 1, seed=0
        ),
        lambda *shape: operators.radial_mask(shape[0] if len(shape) == 1 else shape, 3),
    ],
)
@pytest.mark.parametrize(
    "shape", [(8.5,), ("8",), (True,), (0, 4), (-3,), ((8, (8, 8)),), ((),), (None,), ([[8, 4]],)]
)
def test_no_shape_gets_a_sentence(make, shape):
    with pytest.raises(InputError, match=r"has no samples|is no shape"):
        make(*shape)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: operators.partial_dct(n, m=1, seed=0),
        lambda n: operators.partial_hadamard(n, m=1, seed=0),
        lambda n: operators.random_convolution(n, m=1, seed=0),
        lambda n: operators.gaussian(3, n, seed=0),
        lambda n: operators.rademacher(n, 3, seed=0),
        lambda n: operators.sparse_binary(3, n, seed=0),
        lambda n: operators.toeplitz(3, n, seed=0),
    ],
)
@pytest.mark.parametrize("n", [8.5, "8", (8, 8), 0, None, True])
def test_no_length_gets_a_sentence(make, n):
    with pytest.raises(InputError, match="no positive whole number"):
        make(n)


@pytest.mark.parametrize("rows", [[1.9, 2.2], [1.0, 2.0], ["1"], torch.tensor([1.0])])
@pytest.mark.parametrize(
    "make",
    [
        lambda rows: operators.sampling(16, rows),
        lambda rows: operators.partial_dct(16, rows=rows),
        lambda rows: operators.partial_hadamard(16, rows=rows),
        lambda rows: operators.random_convolution(16, seed=0, rows=rows),
    ],
)
def test_rows_that_are_no_indices_get_a_sentence(make, rows):
    with pytest.raises(InputError, match="numbers are no indices"):
        make(rows)


def test_sampling_takes_a_mask_of_the_picture():
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = mask[3, 0] = True
    assert (operators.sampling((4, 4), mask) @ np.arange(16)).tolist() == [6, 12]


def test_lengths_of_toeplitz_columns_do_not_cancel():
    A = operators.toeplitz(3, 4, taps=[1e9, 1.0, 2.0, 3.0, 4.0, 5.0])
    dense = from_matrix(A.to_dense().round())
    np.testing.assert_allclose(A.column_norms(), dense.column_norms(), rtol=1e-14)
    np.testing.assert_allclose(A.row_norms(), dense.row_norms(), rtol=1e-14)


def test_zero_and_extreme_multiples_claim_no_inverse():
    for a in (0.0, 1e-200, 1e200):
        assert (a * ROWS).facts.row_gram is None
    assert (0 * ROWS).norm() == 0


def test_facts_are_completed():
    assert Facts(row_gram=4.0).completed((3, 3)).column_gram == 4.0
    assert Facts(row_gram=4.0).completed((2, 3)).column_gram is None
    assert Facts(column_gram=4.0).completed((3, 2)).norm == 2.0
