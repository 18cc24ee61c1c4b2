"""Factors to and from tensorly, and tensors of other libraries at the door."""

import numpy as np
import pytest
import tensorly
import torch
from tensorly.cp_tensor import CPTensor, cp_to_tensor
from tensorly.tt_tensor import TTTensor, tt_to_tensor
from tensorly.tucker_tensor import TuckerTensor, tucker_to_tensor

from lowrank.decompositions import (
    cp,
    evbmf_rank,
    from_tensorly,
    robust_pca,
    singular_values,
    tensor_train,
    to_tensorly,
    truncated_svd,
    tucker,
)
from lowrank.errors import InputError
from lowrank.linalg import as_tensor

SHAPES = ((5, 4), (4, 3, 5), (3, 4, 2, 3))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Some hundred roundings of numbers near 1."""


@pytest.fixture(params=["numpy", "pytorch"])
def backend(request):
    before = tensorly.get_backend()
    tensorly.set_backend(request.param)
    yield request.param
    tensorly.set_backend(before)


def _dense(tensor):
    made = {CPTensor: cp_to_tensor, TuckerTensor: tucker_to_tensor, TTTensor: tt_to_tensor}
    return as_tensor(made[type(tensor)](tensor), "W")


def _factors(W):
    yield cp(W, 3, max_iter=5)
    yield tucker(W, [2] * W.ndim)
    yield tucker(W, [2], modes=[1])
    yield tensor_train(W, [2] * (W.ndim - 1))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factors_go_to_tensorly_and_back(shape, dtype, backend):
    W = torch.randn(shape, dtype=dtype)
    for factors in _factors(W):
        theirs = to_tensorly(factors)
        own = factors.to_tensor()
        assert all(isinstance(array, _kind(backend)) for array in _arrays(theirs))
        for found in (_dense(theirs), from_tensorly(theirs).to_tensor()):
            assert found.dtype == dtype
            assert (found - own).norm() <= TOLERANCE[dtype] * own.norm()


def _arrays(tensor):
    if isinstance(tensor, TuckerTensor):
        return [tensor.core, *tensor.factors]
    return tensor.factors


def _kind(backend):
    return np.ndarray if backend == "numpy" else torch.Tensor


def test_what_tensorly_made_takes_our_form(backend):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((n, 4)) for n in (5, 3, 6)]
    arrays[1][:, 2] = 0  # a component that is zero
    given = CPTensor((tensorly.tensor([1.0, -2.0, 3.0, 0.5]), [tensorly.tensor(a) for a in arrays]))
    found = from_tensorly(given)
    assert found.status == "given"
    assert not found.converged
    assert bool((found.weights >= 0).all())
    assert bool((found.weights.diff() <= 0).all())
    for A in found.factors:
        torch.testing.assert_close(A.norm(dim=0), torch.ones(4, dtype=A.dtype))
    torch.testing.assert_close(found.to_tensor(), _dense(given).double())

    core = tensorly.tensor(rng.standard_normal((2, 6, 3)))  # a rank above the size of its mode
    given = TuckerTensor(
        (core, [tensorly.tensor(rng.standard_normal(s)) for s in ((4, 2), (5, 6), (3, 3))])
    )
    found = from_tensorly(given)
    assert found.rank == (2, 5, 3)
    for U in found.factors:
        torch.testing.assert_close(U.mT @ U, torch.eye(U.shape[1], dtype=U.dtype))
    torch.testing.assert_close(found.to_tensor(), _dense(given).double())

    cores = [rng.standard_normal(s) for s in ((1, 4, 3), (3, 2, 5), (5, 3, 1))]
    given = TTTensor([tensorly.tensor(c) for c in cores])
    found = from_tensorly(given)
    for core in found.cores[:-1]:
        Q = core.flatten(0, 1)
        torch.testing.assert_close(Q.mT @ Q, torch.eye(Q.shape[1], dtype=Q.dtype))
    torch.testing.assert_close(found.to_tensor(), _dense(given).double())


def test_weights_may_be_missing():
    arrays = [np.eye(3), np.eye(3)]
    assert from_tensorly(CPTensor((None, arrays))).weights.tolist() == [1.0, 1.0, 1.0]


def test_arrays_of_other_libraries_are_taken():
    rng = np.random.default_rng(0)
    W = rng.standard_normal((6, 5, 4))
    T = torch.from_numpy(W)
    shown = W[::-1].copy()[::-1]
    shown.flags.writeable = False
    for same in (W, shown, W.astype(">f8"), TTTensor([W[None, :, 0, :1], np.ones((1, 2, 1))])):
        want = T if isinstance(same, np.ndarray) else as_tensor(same.to_tensor(), "W")
        got = truncated_svd(same, 2).to_tensor()
        torch.testing.assert_close(got, truncated_svd(want, 2).to_tensor())
    assert cp(W, 2, max_iter=3).error(W) == cp(T, 2, max_iter=3).error(T)
    assert tucker(W, [2, 2, 2]).error(W) == tucker(T, [2, 2, 2]).error(T)
    assert tensor_train(W, [2, 2]).error(W) == tensor_train(T, [2, 2]).error(T)
    torch.testing.assert_close(singular_values(W[0]), singular_values(T[0]))
    assert evbmf_rank(W[0]) == evbmf_rank(T[0])
    assert isinstance(robust_pca(W[0]).L, np.ndarray)


@pytest.mark.parametrize(
    "wrong",
    [[[1.0]], "text", None, np.array(["a"]), np.ones((2, 2), int), np.ones((2, 2)) * 1j],
    ids=["list", "text", "None", "letters", "integers", "complex"],
)
def test_what_is_no_real_tensor_gets_a_sentence(wrong):
    with pytest.raises(InputError, match=r"need|numbers"):
        truncated_svd(wrong, 1)


def test_other_objects_get_a_sentence():
    with pytest.raises(InputError, match="need CPFactors"):
        to_tensorly(truncated_svd(torch.eye(3), 1))
    with pytest.raises(InputError, match="need a CPTensor"):
        from_tensorly(np.ones(3))
    ring = TTTensor.__new__(TTTensor)
    ring.factors = [np.ones((2, 3, 1)), np.ones((1, 3, 2))]
    with pytest.raises(InputError, match="tensor ring"):
        from_tensorly(ring)
