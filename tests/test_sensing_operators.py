"""Operators and bases against their own matrices."""

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from sensing_cases import OPERATORS

from lowrank.errors import InputError
from lowrank.sensing import adjoint_error, as_operator, bases, operators
from lowrank.sensing.operators.operator import from_functions, from_matrix

ROUNDING = 1e-12


@pytest.fixture(params=OPERATORS, name="A")
def operator(request):
    return OPERATORS[request.param]()


def test_dot_test(A):
    assert adjoint_error(A) < ROUNDING


def test_is_its_matrix(A):
    rng = np.random.default_rng(0)
    M = A.to_dense()
    x, X = rng.standard_normal(A.shape[1]), rng.standard_normal((A.shape[1], 3))
    y, Y = rng.standard_normal(A.shape[0]), rng.standard_normal((A.shape[0], 3))
    assert M.shape == A.shape
    assert np.issubdtype(M.dtype, np.complexfloating) == A.is_complex
    for v in (x, X):
        np.testing.assert_allclose(A @ v, M @ v, atol=ROUNDING)
    for v in (y, Y):
        np.testing.assert_allclose(A.H @ v, M.conj().T @ v, atol=ROUNDING)
    np.testing.assert_allclose(A @ (X + 1j), M @ (X + 1j), atol=ROUNDING)
    np.testing.assert_allclose(A.H @ (Y - 2j), M.conj().T @ (Y - 2j), atol=ROUNDING)
    np.testing.assert_allclose(A.columns([2, 0]), M[:, [2, 0]], atol=ROUNDING)


@pytest.mark.one_in(2)
def test_facts(A):
    M = A.to_dense()
    assert A.norm() == pytest.approx(np.linalg.norm(M, 2), rel=1e-9)
    np.testing.assert_allclose(A.column_norms(), np.linalg.norm(M, axis=0), atol=1e-10)
    if A.row_orthonormal:
        np.testing.assert_allclose(M @ M.conj().T, np.eye(A.shape[0]), atol=ROUNDING)
    if A.is_dense:
        np.testing.assert_allclose(A.dense, M)


def test_is_a_scipy_operator(A):
    assert isinstance(A, LinearOperator)
    assert as_operator(A) is A
    v = np.ones(A.shape[1])
    np.testing.assert_allclose((2 * A) @ v, 2 * (A @ v))


@pytest.mark.parametrize(
    "name", ["partial dct", "partial fourier 2d", "partial hadamard", "random convolution"]
)
def test_row_orthonormal_says_so(name):
    assert OPERATORS[name]().row_orthonormal


@pytest.mark.parametrize("name", ["dct 2d", "fourier", "haar", "db4", "sym8 2d"])
def test_orthonormal_bases_say_so(name):
    assert OPERATORS[name]().orthonormal


@pytest.mark.parametrize("name", ["bior4.4", "db4 symmetric", "concatenation"])
def test_other_bases_do_not(name):
    assert not OPERATORS[name]().orthonormal


def test_known_norm_needs_no_product():
    counts = []
    A = (operators.partial_dct(64, m=9, seed=0) @ bases.dct(64)).counting(counts.append)
    assert (A.norm(), counts) == (1.0, [])


def test_norm_of_large_operator_by_lanczos():
    A = operators.gaussian(100, 150, seed=0)
    assert A.norm() == pytest.approx(np.linalg.norm(A.dense, 2), rel=1e-6)


def test_from_everything():
    M = np.arange(6).reshape(2, 3)
    for given_as in (
        M,
        M.tolist(),
        scipy.sparse.csr_array(M),
        scipy.sparse.coo_matrix(M),
        torch.tensor(M),
        aslinearoperator(M.astype(float)),
    ):
        A = as_operator(given_as)
        np.testing.assert_allclose(A.to_dense(), M)
        np.testing.assert_allclose(A.H @ np.ones(2), M.sum(axis=0))


def test_torch_in_torch_out():
    A = operators.partial_fourier((4, 4), m=5, seed=0)
    x = torch.arange(16, dtype=torch.float32)
    y = A @ x
    assert y.dtype == torch.complex64
    np.testing.assert_allclose(y.numpy(), A @ x.numpy(), rtol=1e-6)
    assert (A.H @ y.to(torch.complex128)).dtype == torch.complex128


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.data())
def test_dct_column_norms(n, data):
    rows = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    A = operators.partial_dct(n, rows=sorted(rows))
    np.testing.assert_allclose(A.column_norms(), np.linalg.norm(A.to_dense(), axis=0), atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 9))
def test_hadamard_is_hadamard(j):
    A = operators.partial_hadamard(2**j, rows=np.arange(2**j))
    np.testing.assert_allclose(A.to_dense(), scipy.linalg.hadamard(2**j) / 2 ** (j / 2), atol=1e-12)


def test_finite_differences_of_a_ramp():
    D = bases.finite_differences((3, 4))
    gradient = (D @ np.add.outer(10.0 * np.arange(3), np.arange(4)).ravel()).reshape(2, 3, 4)
    assert gradient[0, :2].tolist() == [[10.0] * 4] * 2
    assert (gradient[0, 2] == 0).all()
    assert (gradient[1, :, :3] == 1).all()


def test_masks():
    mask = operators.variable_density_mask((32, 32), 200, seed=0)
    centre = np.abs(np.fft.fftfreq(32)) < 0.25
    assert mask[np.ix_(centre, centre)].sum() > 2 * 200 / 4
    radial = operators.radial_mask((64, 64), 7)
    flipped = np.roll(radial[::-1, ::-1], (1, 1), axis=(0, 1))
    assert (radial == flipped).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: from_matrix(np.zeros(3)), "is not a matrix"),
        (lambda: from_matrix(np.zeros((0, 3))), "is not a matrix"),
        (lambda: from_matrix([[np.nan, 1.0]]), "1 of 2 values are NaN or Inf"),
        (lambda: from_matrix([["a"]]), "not numeric"),
        (lambda: operators.partial_dct(8, rows=[1, 1]), "distinct indices in 0..7"),
        (lambda: operators.partial_dct(8, rows=[8]), "distinct indices"),
        (lambda: operators.partial_dct(8, m=3), "1 <= m <= n and a seed"),
        (lambda: operators.partial_hadamard(12, m=3, seed=0), "not a power of 2"),
        (lambda: operators.partial_fourier((4, 4), mask=np.ones(16)), "of the signal's shape"),
        (lambda: operators.sparse_binary(3, 5, seed=0, ones=4), "outside 1..3"),
        (lambda: operators.toeplitz(2, 3, taps=[1.0]), "m \\+ n - 1 = 4"),
        (lambda: operators.toeplitz(2, 3), "give one of them"),
        (lambda: operators.variable_density_mask((2, 2), 5, seed=0), "outside 1..4"),
        (lambda: bases.wavelet(64, name="db99"), "not one of PyWavelets'"),
        (lambda: bases.wavelet(65), "pad the signal"),
        (lambda: bases.wavelet(64, level=9), "outside 1..6"),
        (lambda: bases.wavelet(64, mode="nope"), "mode 'nope' is not one of"),
        (lambda: bases.concatenation(bases.dct(3), bases.dct(4)), "one signal length"),
        (lambda: bases.dct(), "has no samples"),
        (
            lambda: operators.gaussian(3, 4, seed=0) @ bases.dct(5),
            "A has 4 columns and B has 5 rows",
        ),
    ],
)
def test_bad_input_gets_a_sentence(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_wrong_adjoint_is_measured():
    wrong = from_functions((4, 4), np.cumsum, np.cumsum)
    assert wrong.dot_test > 0.01
    assert not wrong.trusted
