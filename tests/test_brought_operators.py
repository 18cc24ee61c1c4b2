"""What people bring as A: operators of other libraries, functions, layers, arrays in blocks."""

import pickle
from functools import partial

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import nn

from lowrank.errors import InputError
from lowrank.sensing import as_operator, lasso_path, recover
from lowrank.sensing.operators import chunked, foreign, from_functions, from_torch

M, N = 20, 40
RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((M, N))
SIGNAL = np.zeros(N)
SIGNAL[[3, 17]] = 1.0, -2.0


def forward(x):
    assert x.shape == (N,)
    return MATRIX @ x


def adjoint(y):
    assert y.shape == (M,)
    return MATRIX.T @ y


def lists(x):
    return (MATRIX @ x).tolist()


def columns(x):
    return (MATRIX @ x)[:, None]


class OnlyVectors:
    """Has a shape and products, takes (n,) alone, and says nothing of its type."""

    shape = (M, N)
    matvec, rmatvec = staticmethod(forward), staticmethod(adjoint)


class WithoutAdjoint:
    shape, dtype, matvec = (M, N), np.dtype(float), staticmethod(forward)


class WithoutAdjointOfScipy(LinearOperator):
    def __init__(self):
        super().__init__(np.dtype(float), (M, N))

    def _matvec(self, x):
        return MATRIX @ x


class OfWholeNumbers(OnlyVectors):
    dtype = np.dtype(int)


def linear(dtype):
    layer = nn.Linear(N, M, bias=False, dtype=dtype)
    layer.weight.data = torch.tensor(MATRIX, dtype=dtype)
    return layer


BROUGHT = {
    "SciPy, functions": lambda: LinearOperator((M, N), forward, adjoint, dtype=float),
    "SciPy, no dtype": lambda: LinearOperator((M, N), forward, adjoint),
    "SciPy, columns": lambda: LinearOperator((M, N), columns, adjoint, dtype=float),
    "SciPy, no adjoint": lambda: LinearOperator((M, N), forward, dtype=float),
    "SciPy, class without adjoint": WithoutAdjointOfScipy,
    "SciPy, own matmat": lambda: LinearOperator(
        (M, N), forward, adjoint, matmat=partial(np.matmul, MATRIX), dtype=float
    ),
    "SciPy, composed": lambda: (
        2 * LinearOperator((M, N), forward, adjoint, dtype=float) - aslinearoperator(MATRIX)
    ),
    "SciPy, matrix": lambda: aslinearoperator(scipy.sparse.csr_array(MATRIX)),
    "vectors only": OnlyVectors,
    "vectors only, no adjoint": WithoutAdjoint,
    "whole numbers": OfWholeNumbers,
    "lists": lambda: from_functions((M, N), lists, adjoint),
    "linear layer": lambda: linear(torch.float64),
    "torch function": lambda: from_torch(
        linear(torch.float64), torch.zeros(N, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("name", BROUGHT)
def test_is_its_matrix_and_is_solved(name):
    A = as_operator(BROUGHT[name]())
    X, Y = RNG.standard_normal((N, 3)), RNG.standard_normal((M, 3))
    for x, y in ((X, Y), (X[:, 0], Y[:, 0]), (X + 1j, Y - 2j), (X[:, 0] + 1j, Y[:, 0] - 2j)):
        np.testing.assert_allclose(A @ x, MATRIX @ x, atol=1e-12)
        np.testing.assert_allclose(A.H @ y, MATRIX.T @ y, atol=1e-12)
    found = recover(BROUGHT[name](), MATRIX @ SIGNAL)
    assert found.status.ok
    np.testing.assert_allclose(found.x, SIGNAL, atol=1e-9)


@pytest.mark.parametrize("name", BROUGHT)
def test_pickles(name):
    A = as_operator(BROUGHT[name]())
    twin = pickle.loads(pickle.dumps(A))
    assert np.array_equal(twin @ SIGNAL, A @ SIGNAL)
    assert repr(twin) == repr(A)


def test_complex_columns_go_through_a_product_of_vectors():
    F = np.fft.fft(np.eye(8))
    A = as_operator(
        LinearOperator((8, 8), lambda x: F @ x, lambda y: F.conj().T @ y, dtype=complex)
    )
    np.testing.assert_allclose(A.to_dense(), F)
    np.testing.assert_allclose(A.H @ np.eye(8), F.conj().T)


# --- what does not fit -----------------------------------------------------------------------


def _raises(x):
    raise RuntimeError("out of order")


LARGE = LinearOperator((3000, 3000), lambda x: x, dtype=float)
EXAMPLE = torch.zeros(8)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: as_operator(LARGE), r"\(3000, 3000\) has no adjoint, .* define rmatvec"),
        (
            lambda: as_operator(LinearOperator((2, 2), lambda x: x + 1, dtype=float)),
            "is not linear: A x differs",
        ),
        (
            lambda: recover(LinearOperator((2, 3), lambda x: x, lambda y: y, dtype=float), [1, 2]),
            r"matvec fails on float64 of shape \(3,\): ValueError",
        ),
        (
            lambda: recover(from_functions((2, 3), _raises, _raises), [1, 2]),
            "forward fails on .* RuntimeError: out of order; it is to take",
        ),
        (lambda: as_operator(nn.Linear(9, 5)), "adds a bias to A x; pass A.weight, and y - A.bias"),
        (lambda: as_operator(nn.Sequential()), "Sequential is a function, which .*from_torch"),
        (lambda: recover(np.cumsum, np.ones(3)), "cumsum is a function, which .*from_functions"),
        (lambda: from_torch(torch.relu, EXAMPLE), "relu is not linear"),
        (lambda: from_torch(nn.Dropout(), EXAMPLE), "Dropout is not linear.* eval mode"),
        (lambda: from_torch(nn.Linear(8, 3), EXAMPLE), "adds .* not 0 at 0; leave out its bias"),
        (lambda: from_torch(nn.Linear(5, 3, bias=False), EXAMPLE), r"fails on .* shape \(8,\)"),
        (lambda: from_torch(lambda x: x.numpy(), EXAMPLE), "gives ndarray; one tensor"),
        (lambda: from_torch(lambda x: x.detach(), EXAMPLE), "no gradient reaches the signal"),
        (
            lambda: from_torch(torch.real, torch.zeros(8, dtype=torch.complex64)),
            "real is not linear",
        ),
        (lambda: from_torch(torch.fft.fft, EXAMPLE.int()), "no tensor of real or complex numbers"),
        (lambda: from_torch(torch.fft.fft, np.zeros(8)), "ndarray is no tensor"),
        (lambda: from_torch(torch.clone, EXAMPLE.bfloat16()), "bfloat16 is too coarse"),
    ],
)
def test_what_does_not_fit_gets_a_sentence(make, says):
    with pytest.raises(InputError, match=says):
        make().dot_test  # noqa: B018


def test_an_adjoint_that_is_none_is_named():
    wrong = LinearOperator((M, N), forward, lambda y: 2 * adjoint(y), dtype=float)
    with pytest.warns(UserWarning, match="CustomLinearOperator: the adjoint fails the dot test"):
        found = recover(wrong, MATRIX @ SIGNAL)
    assert found.status.ok  # by the matrix of its forward products
    np.testing.assert_allclose(found.x, SIGNAL, atol=1e-9)
    large = from_functions((2**12, 2**12), np.cumsum, np.cumsum)
    with pytest.warns(UserWarning, match="do not trust this, and correct rmatvec"):
        recover(large, np.ones(2**12), sparsity=1)


def test_the_norm_of_a_multiple_of_the_identity_in_single_precision():
    half = lambda x: 0.5 * x.astype(np.float32)  # noqa: E731
    assert from_functions((2100, 2100), half, half, dtype=np.float32).norm() == pytest.approx(0.5)


# --- functions of torch ----------------------------------------------------------------------


@pytest.mark.parametrize("real", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("function", "shape", "is_complex"),
    [
        (torch.fft.fft, (8,), False),
        (torch.fft.fft, (8,), True),
        (torch.fft.rfft, (9,), False),
        (torch.conj, (4,), False),
        (torch.fft.fft2, (3, 4), True),
        ("convolution", (1, 1, 6, 5), False),
    ],
)
def test_functions_of_torch_have_their_adjoint(function, shape, is_complex, real):
    if function == "convolution":
        function = nn.Conv2d(1, 2, 3, bias=False, dtype=real)
    A = from_torch(function, torch.zeros(shape, dtype=real.to_complex() if is_complex else real))
    assert A.dot_test < 10 * torch.finfo(real).eps
    np.testing.assert_allclose(A.H @ np.eye(A.shape[0]), A.to_dense().conj().T, atol=1e-6)
    pickle.loads(pickle.dumps(A))


# --- precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_come_back_as_they_came(dtype):
    A, y = torch.tensor(MATRIX, dtype=dtype), torch.tensor(MATRIX @ SIGNAL, dtype=dtype)
    for found in (recover(A, y), recover(MATRIX, y, lam=0.1), recover(linear(torch.float64), y)):
        assert {t.dtype for t in (found.x, found.coefficients, found.dual)} == {dtype}
    assert recover(MATRIX, y, lam=0.1, debias=True).debiased.dtype == dtype
    wide = torch.complex128 if dtype == torch.float64 else torch.complex64
    assert recover(MATRIX + 1j, y, lam=0.1).x.dtype == wide
    assert (as_operator(MATRIX) @ y.new_zeros(N)).dtype == dtype


def test_whole_numbers_come_back_in_double():
    assert (
        recover(torch.eye(3, dtype=torch.int64), torch.tensor([1, 0, 2])).x.dtype == torch.float64
    )


# --- Dask ------------------------------------------------------------------------------------


@pytest.fixture
def dask(monkeypatch):
    da = pytest.importorskip("dask.array")
    monkeypatch.setattr(chunked, "IN_MEMORY", 100)
    return da


def tall(complex_=False, batch=()):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((300, 12)) + (1j * rng.standard_normal((300, 12)) if complex_ else 0)
    return A, rng.standard_normal((300, *batch))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("chunks", [(7, 5), (100, 12), (300, 3)])
@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_tall_dask_arrays_have_the_answers_of_their_matrix(dask, chunks, complex_, batch):
    A, y = tall(complex_, batch)
    blocks = dask.from_array(A, chunks=chunks)
    for options in ({"lam": 5.0}, {"noise": 0.95 * float(np.linalg.norm(y, axis=0).min())}):
        plain, found = recover(A, y, **options), recover(blocks, y, **options)
        np.testing.assert_allclose(found.x, plain.x, atol=1e-7)
        assert found.residual_norm == pytest.approx(plain.residual_norm, rel=1e-9)
        assert found.objective == pytest.approx(plain.objective, rel=1e-7)
        assert found.dual is None
        assert "300 rows reduced to" in found.why


def test_dask_arrays_are_operators(dask):
    A, y = tall()
    blocks = dask.from_array(A.astype(np.float32), chunks=(40, 5))
    made = as_operator(blocks)
    assert not made.is_dense
    assert made.dot_test < 1e-12
    np.testing.assert_allclose(made.to_dense(), A.astype(np.float32))
    np.testing.assert_allclose(made.column_norms(), np.linalg.norm(made.to_dense(), axis=0))
    assert np.array_equal(pickle.loads(pickle.dumps(made)) @ np.ones(12), made @ np.ones(12))
    wide = recover(blocks.T, A.T[:, 5])
    assert wide.status.ok
    path, plain = lasso_path(blocks, y, n_lams=4), lasso_path(A, y, n_lams=4)
    np.testing.assert_allclose(path.coefficients, plain.coefficients, atol=1e-5)
    assert as_operator(dask.ones((3, 3))).is_dense


@pytest.mark.parametrize(
    ("spoil", "options", "says"),
    [
        (lambda a: a + np.nan, {"lam": 1.0}, "NaN or Inf"),
        (lambda a: a[:, 0], {"lam": 1.0}, "is not a matrix"),
        (lambda a: a[a[:, 0] > 0], {"lam": 1.0}, "compute_chunk_sizes"),
        (lambda a: a.astype(str), {"lam": 1.0}, "not numeric"),
        (lambda a: a[:250], {"lam": 1.0}, "y has shape"),
        (lambda a: a, {"noise": "auto"}, 'noise="auto" looks at every row'),
        (lambda a: a, {"noise": 0.1, "estimate": "mean"}, "looks at every row"),
    ],
)
def test_bad_dask_arrays_get_a_sentence(dask, spoil, options, says):
    A, y = tall()
    with pytest.raises(InputError, match=says):
        recover(spoil(dask.from_array(A, chunks=(50, 12))), y, **options)


# --- PyLops ----------------------------------------------------------------------------------


def _pylops_operators(pylops):
    from pylops.signalprocessing import DCT, DWT, FFT, FFT2D, FFTND

    matrix = pylops.MatrixMult(MATRIX)
    restriction = pylops.Restriction(N, [7, 3, 30])
    return {
        "matrix": matrix,
        "complex matrix": pylops.MatrixMult(MATRIX + 1j, dtype=complex),
        "sparse": pylops.MatrixMult(scipy.sparse.csr_matrix(MATRIX)),
        "of more dimensions": pylops.MatrixMult(MATRIX, otherdims=(2,)),
        "functions": pylops.FunctionOperator(forward, adjoint, M, N),
        "no adjoint": pylops.FunctionOperator(forward, M, N),
        "identity": pylops.Identity(5),
        "wide identity": pylops.Identity(3, 5),
        "tall identity": pylops.Identity(5, 3),
        "diagonal": pylops.Diagonal(np.arange(4.0)),
        "diagonal along": pylops.Diagonal(np.arange(4.0), dims=(3, 4)),
        "diagonal complex": pylops.Diagonal(np.arange(4) + 1j),
        "restriction": restriction,
        "restriction twice": pylops.Restriction(9, [3, 3, 1]),
        "restriction along": pylops.Restriction((4, 5), [2, 1], axis=1),
        **{f"dct {kind}": DCT((4, 5), type=kind) for kind in (1, 2, 3, 4)},
        "fft": FFT(8),
        "fft padded": FFT(8, nfft=16),
        "fft of one axis": FFT((3, 8), axis=1),
        "fft over n": FFT(8, norm="1/n"),
        "fft unscaled": FFT(8, norm="none"),
        "fft real": FFT(8, real=True),
        "fft scipy": FFT(8, engine="scipy", fftshift_after=True),
        "fft2d": FFT2D((4, 5)),
        "fftnd": FFTND((3, 4, 2)),
        "wavelets": DWT(16, wavelet="haar"),
        "flip": pylops.Flip(5),
        "roll": pylops.Roll(5, shift=2),
        "transpose": pylops.Transpose((3, 4), (1, 0)),
        "differences": pylops.FirstDerivative(9),
        "stack": pylops.VStack([matrix, restriction]),
        "beside": pylops.HStack([matrix, matrix]),
        "blocks": pylops.BlockDiag([matrix, pylops.Identity(3)]),
        "product": restriction @ DCT(N),
        "complex product": restriction @ FFT(N),
        "sum": matrix + 2 * matrix,
        "by i": 1j * matrix,
        "power": pylops.Roll(5) ** 3,
        "adjoint": matrix.H,
        "transposed": FFT(8).T,
        "conjugate": FFT(8).conj(),
        "columns": matrix.apply_columns([3, 1]),
        "Kronecker": pylops.Kronecker(pylops.Identity(2), pylops.MatrixMult(MATRIX[:3, :2])),
    }


def test_operators_of_pylops_are_their_matrices_and_facts_hold():
    pylops = pytest.importorskip("pylops", minversion="2.5")
    for name, given in _pylops_operators(pylops).items():
        A = as_operator(given)
        expected = np.stack([given.matvec(e) for e in np.eye(given.shape[1])], axis=1)
        np.testing.assert_allclose(A.to_dense(), expected, atol=1e-12, err_msg=name)
        assert A.dot_test < 1e-12, name
        np.testing.assert_allclose(A.norm(), np.linalg.norm(expected, 2), rtol=1e-6, err_msg=name)
        for gram, square in (
            (A.facts.row_gram, expected @ expected.conj().T),
            (A.facts.column_gram, expected.conj().T @ expected),
        ):
            if gram is not None:
                np.testing.assert_allclose(square, gram * np.eye(len(square)), atol=1e-12)
        assert np.array_equal(pickle.loads(pickle.dumps(A)).to_dense(), A.to_dense()), name


def test_what_pylops_knows_is_known():
    pylops = pytest.importorskip("pylops", minversion="2.5")
    made = {name: as_operator(given) for name, given in _pylops_operators(pylops).items()}
    known = ("product", "complex product", "fft", "wide identity", "roll", "transposed", "power")
    assert all(made[name].row_orthonormal for name in known)
    assert made["tall identity"].column_orthonormal
    assert made["diagonal"].facts.diagonal is not None
    dense = ("matrix", "sparse", "sum", "by i", "adjoint", "columns", "no adjoint")
    assert all(made[name].is_dense for name in dense)
    assert made["sparse"].sparse is not None
    assert made["restriction twice"].facts.row_gram is None


def test_pylops_of_real_numbers_only_is_named():
    pylops = pytest.importorskip("pylops", minversion="2.5")
    with pytest.raises(InputError, match="Real is linear over real numbers only"):
        as_operator(pylops.Real(4, dtype=complex))


def test_forming_is_bounded(monkeypatch):
    monkeypatch.setattr(foreign, "FORMED", 10)
    monkeypatch.setattr("lowrank.sensing.operators.operator.FORMED", 10)
    with pytest.raises(InputError, match="too large to form"):
        as_operator(WithoutAdjoint())
