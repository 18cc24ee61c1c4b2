"""SVD, Tucker and tensor train: exactness, optimality, bounds, and agreement with the peers."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.decompositions import (
    hosvd_core,
    singular_values,
    tensor_train,
    truncated_svd,
    tt_error_bound,
    tt_spectra,
    tucker,
    tucker_error_surface,
)
from lowrank.errors import InputError, RankError
from lowrank.linalg import leading_left_vectors

with warnings.catch_warnings():  # tensorly's imports warn under newer numpy and scipy
    warnings.simplefilter("ignore")
    import tensorly

EXACT = {torch.float64: 1e-12, torch.float32: 2e-6}
"""Relative error of a product of factors: tens of eps."""
GRAM_ORTHOGONALITY = 1e-9
"""The Gram route is trusted up to a defect of 1e-10 per pair; ten for the norm of the matrix."""

matrix_shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
tensor_shapes = st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def fading(*shape, seed=0):
    """A tensor whose singular values fall in every mode, like a trained kernel's."""
    W = draw(*shape, seed=seed)
    for mode, n in enumerate(shape):
        scale = torch.arange(1, n + 1, dtype=W.dtype) ** -0.7
        W = W * scale.reshape([-1 if k == mode else 1 for k in range(len(shape))])
    return W


# --- SVD ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(matrix_shapes, st.sampled_from(["auto", "lapack", "gram"]))
def test_svd_is_exact_at_full_rank(shape, method):
    W = draw(*shape)
    assert truncated_svd(W, min(shape), method=method).error(W) < EXACT[torch.float64]


@pytest.mark.parametrize("method", ["auto", "lapack", "gram"])
@pytest.mark.parametrize("shape", [(30, 20), (20, 60), (40, 40), (3, 10, 25)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_svd_is_eckart_young(method, shape, dtype):
    W = draw(*shape, dtype=dtype)
    reference = torch.linalg.svdvals(W.double())
    for rank in (1, 7, min(shape[-2:])):
        svd = truncated_svd(W, rank, method=method)
        torch.testing.assert_close(
            svd.s.double(), reference[..., :rank], rtol=EXACT[dtype], atol=EXACT[dtype]
        )
        optimum = math.sqrt(float((reference[..., rank:] ** 2).sum() / (reference**2).sum()))
        assert svd.error(W) == pytest.approx(optimum, abs=EXACT[dtype])
        eye = torch.eye(rank, dtype=dtype).expand(*shape[:-2], -1, -1)
        slack = max(EXACT[dtype], GRAM_ORTHOGONALITY)
        torch.testing.assert_close(svd.U.mT @ svd.U, eye, rtol=0, atol=slack)
        torch.testing.assert_close(svd.Vh @ svd.Vh.mT, eye, rtol=0, atol=slack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(24, 100), (100, 24)])
def test_svd_guard_falls_back_where_gram_cannot_resolve(shape, dtype):
    """Singular values from 1 to 1e-7: their squares are lost next to 1."""
    U = torch.linalg.qr(draw(shape[0], 24)).Q
    V = torch.linalg.qr(draw(shape[1], 24, seed=1)).Q
    s = torch.logspace(0, -7, 24, dtype=torch.float64)
    W = ((U * s) @ V.T).to(dtype)
    svd = truncated_svd(W, 24)
    eye = torch.eye(24, dtype=dtype)
    torch.testing.assert_close(svd.U.T @ svd.U, eye, rtol=0, atol=EXACT[dtype])
    torch.testing.assert_close(svd.Vh @ svd.Vh.T, eye, rtol=0, atol=EXACT[dtype])
    torch.testing.assert_close(svd.s.double(), s, rtol=0, atol=EXACT[dtype])


@pytest.mark.parametrize("shape", [(24, 100), (100, 24), (30, 30), (2, 8, 30)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_singular_values_give_the_error_curve(shape, dtype):
    W = draw(*shape, dtype=dtype)
    s = singular_values(W).double()
    expected = torch.linalg.svdvals(W.double())
    tolerance = EXACT[torch.float64 if dtype == torch.float64 else torch.float32]
    torch.testing.assert_close(s, expected, rtol=0, atol=tolerance * float(expected.max()))


def test_singular_values_of_a_deficient_double_matrix_are_exact():
    W = draw(30, 4) @ draw(4, 50, seed=1)
    s = singular_values(W)
    assert float(s[4:].max() / s[0]) < EXACT[torch.float64]


def test_svd_rank_deficient_keeps_orthonormal_factors():
    W = draw(20, 3) @ draw(3, 50, seed=1)
    svd = truncated_svd(W, 8)
    assert svd.error(W) < EXACT[torch.float64]
    torch.testing.assert_close(
        svd.Vh @ svd.Vh.T, torch.eye(8, dtype=W.dtype), rtol=0, atol=EXACT[W.dtype]
    )


def steep(m, n, ratio, dtype=torch.float32):
    """Singular values from 1 to 1 / ratio in geometric steps."""
    U, V = torch.linalg.qr(draw(m, m)).Q, torch.linalg.qr(draw(n, m, seed=1)).Q
    s = torch.logspace(0, -math.log10(ratio), m, dtype=torch.float64)
    return ((U * s) @ V.T).to(dtype), s


SINGLE_SLACK = {"short": 1e-5, "long": 1e-3}
"""Orthonormality of the two factors in float32: tens of eps; ten times the defect allowed."""


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ratio", [3, 30, 1e3, 1e6])
@pytest.mark.parametrize("rank", [30, 150, 300])
def test_large_float32_svd_loses_nothing_by_its_gram_matrix(turned, ratio, rank):
    W, s = steep(300, 500, ratio)
    svd = truncated_svd(W.mT if turned else W, rank)
    short, long = (svd.Vh.mT, svd.U) if turned else (svd.U, svd.Vh.mT)
    for factor, slack in ((short, "short"), (long, "long")):
        defect = factor.double().mT @ factor.double() - torch.eye(rank)
        assert float(defect.abs().max()) < SINGLE_SLACK[slack]
    optimum = math.sqrt(float(s[rank:].square().sum() / s.square().sum()))
    exact = (svd.U.double() * svd.s.double()) @ svd.Vh.double()
    error = float((exact - (W.mT if turned else W).double()).norm() / W.double().norm())
    assert error == pytest.approx(optimum, rel=1e-6, abs=EXACT[torch.float32])


@pytest.mark.parametrize(("ratio", "single"), [(3, True), (30, True), (1e3, False)])
def test_float32_gram_is_used_only_where_it_resolves(ratio, single):
    W, _ = steep(300, 500, ratio)
    vectors = leading_left_vectors(W, 299)
    assert vectors.dtype == (torch.float32 if single else torch.float64)


def test_float32_gram_is_refused_where_little_is_lost():
    """Of an error of 1e-5 the noise of a float32 Gram matrix is too large a part."""
    W = draw(300, 20, seed=3) @ draw(20, 400, seed=4)
    W = (W + 1e-5 * W.norm() / 300 * draw(300, 400)).float()
    assert leading_left_vectors(W, 20).dtype == torch.float64
    assert truncated_svd(W, 20).error(W) == pytest.approx(
        truncated_svd(W.double(), 20).error(W.double()),
        rel=1e-2,  # rounding of the factors
    )


def test_svd_error_falls_with_the_rank():
    W = fading(20, 50)
    errors = [truncated_svd(W, r).error(W) for r in range(1, 21)]
    assert all(b < a for a, b in itertools.pairwise(errors))


def test_randomized_svd_is_near_optimal_and_seeded():
    W = fading(200, 300)
    optimum = truncated_svd(W, 20).error(W)
    first, again, other = (
        truncated_svd(W, 20, method="randomized", seed=seed) for seed in (0, 0, 1)
    )
    assert optimum <= first.error(W) < 1.02 * optimum
    assert torch.equal(first.U, again.U)
    assert not torch.equal(first.U, other.U)


def test_svd_counts_what_it_stores():
    svd = truncated_svd(draw(3, 10, 25), 4)
    left, right = svd.balanced()
    assert svd.n_params == left.numel() + right.numel() == 3 * 4 * 35
    assert svd.rank == 4
    torch.testing.assert_close(left @ right, svd.to_tensor())
    torch.testing.assert_close(left.norm(dim=-2), right.norm(dim=-1))


@pytest.mark.parametrize("rank", [0, -1, 6, 2.5, True])
def test_svd_rank_outside(rank):
    with pytest.raises(RankError, match=rf"^fc: rank {rank} is outside 1\.\.5 for shape \(5, 9\)"):
        truncated_svd(draw(5, 9), rank, name="fc")


def test_svd_unknown_method():
    with pytest.raises(InputError, match="method 'fast' is not one of auto, lapack"):
        truncated_svd(draw(5, 9), 2, method="fast")


# --- Tucker ------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(tensor_shapes, st.data())
def test_tucker_is_exact_at_full_rank_in_any_modes(shape, data):
    axes = st.lists(st.sampled_from(range(len(shape))), min_size=1, unique=True)
    modes = tuple(data.draw(axes))
    W = draw(*shape)
    ranks = [min(shape[m], W.numel() // shape[m]) for m in modes]
    factors = tucker(W, ranks, modes=modes)
    assert factors.error(W) < EXACT[torch.float64]
    assert factors.rank == tuple(ranks)
    assert factors.n_params == factors.core.numel() + sum(U.numel() for U in factors.factors)
    for U in factors.factors:
        eye = torch.eye(U.shape[1], dtype=U.dtype)
        torch.testing.assert_close(U.T @ U, eye, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", [(12, 10, 3, 3), (6, 40, 5)])
@pytest.mark.parametrize("ranks", [(4, 3), (1, 1), (6, 10)])
def test_tucker_agrees_with_tensorly(shape, ranks):
    from tensorly.decomposition import partial_tucker

    W = fading(*shape)
    ours = tucker(W, ranks, modes=(0, 1), n_sweeps=100, tol=1e-10).error(W)
    with tensorly.backend_context("pytorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (core, factors), _ = partial_tucker(W, list(ranks), modes=[0, 1], n_iter_max=100, tol=1e-10)
        theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=[0, 1])
    assert ours <= float((theirs - W).norm() / W.norm()) * (1 + 1e-5)


def test_tucker_of_a_large_float32_kernel_is_that_of_float64():
    W = fading(300, 280, 3, 3).float()
    single = tucker(W, (150, 140), modes=(0, 1))
    double = tucker(W.double(), (150, 140), modes=(0, 1))
    assert single.core.dtype == torch.float32
    assert single.error(W) == pytest.approx(double.error(W.double()), rel=1e-5)
    assert tucker(W, (300, 280), modes=(0, 1)).error(W) < 2 * EXACT[torch.float32]


@pytest.mark.parametrize("seed", range(5))
def test_tucker_stops_near_where_sweeps_lead(seed):
    W = draw(24, 20, 3, 3, seed=seed)
    limit = tucker(W, (8, 8), modes=(0, 1), n_sweeps=200, tol=0.0).error(W)
    assert tucker(W, (8, 8), modes=(0, 1)).error(W) < 1.01 * limit


def test_error_surface_is_the_error_of_every_truncation():
    W = fading(7, 6, 3, 3)
    surface = tucker_error_surface(W, (0, 1))
    assert surface.shape == (7, 6)
    for i in range(7):
        for j in range(6):
            hosvd = tucker(W, (i + 1, j + 1), modes=(0, 1), n_sweeps=0).error(W)
            hooi = tucker(W, (i + 1, j + 1), modes=(0, 1)).error(W)
            assert math.sqrt(surface[i, j]) == pytest.approx(hosvd, abs=1e-12)
            assert hooi <= hosvd + 1e-12
    assert (surface.diff(dim=0) <= 0).all()
    assert (surface.diff(dim=1) <= 0).all()


def test_error_surface_follows_the_order_of_the_modes():
    W = fading(4, 5, 6)
    surface = tucker_error_surface(W, (2, 0, 1))
    assert surface.shape == (6, 4, 5)
    expected = tucker(W, (3, 2, 4), modes=(2, 0, 1), n_sweeps=0).error(W)
    assert math.sqrt(surface[2, 1, 3]) == pytest.approx(expected, abs=1e-12)
    torch.testing.assert_close(surface, tucker_error_surface(W).permute(2, 0, 1))


def test_error_surface_does_not_cancel_near_full_rank():
    W = draw(6, 2) @ draw(2, 40, seed=1) + 1e-9 * draw(6, 40, seed=2)
    surface = tucker_error_surface(W.reshape(6, 5, 8), (0,))
    assert math.sqrt(surface[1]) == pytest.approx(truncated_svd(W, 2).error(W), rel=1e-3)


def test_hosvd_core_rotates_without_loss():
    W = draw(8, 2, 3)
    full = hosvd_core(W)
    assert full.rank == (6, 2, 3)  # mode 0 has at most 2 * 3 independent fibres
    assert full.error(W) < EXACT[torch.float64]
    slices = full.core.flatten(1)
    gram = slices @ slices.T
    torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("ranks", "modes", "error", "message"),
    [
        ((4, 3), (0,), RankError, "2 ranks for 1 modes"),
        ((5, 3), (0, 1), RankError, r"rank 5 of mode 0 is outside 1\.\.4"),
        ((4, 0), (0, 1), RankError, r"rank 0 of mode 1 is outside 1\.\.5"),
        ((4, 3), (0, 0), InputError, "not distinct axes"),
        ((4, 3), (0, 3), InputError, r"not distinct axes 0\.\.2"),
        ((4, 3), (0, -1), InputError, "not distinct axes"),
        ((), (), InputError, "not distinct axes"),
    ],
)
def test_tucker_bad_ranks_and_modes(ranks, modes, error, message):
    with pytest.raises(error, match=f"conv1: .*{message}"):
        tucker(draw(4, 5, 6), ranks, modes=modes, name="conv1")


# --- tensor train ------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(tensor_shapes)
def test_tensor_train_is_exact_at_full_rank(shape):
    W = draw(*shape)
    full = [min(math.prod(shape[:k]), math.prod(shape[k:])) for k in range(1, len(shape))]
    factors = tensor_train(W, full)
    assert factors.error(W) < EXACT[torch.float64]
    assert factors.rank == tuple(full)
    assert factors.n_params == sum(core.numel() for core in factors.cores)
    assert [core.shape[1] for core in factors.cores] == list(shape)


@pytest.mark.parametrize("ranks", [(1, 1, 1), (4, 3, 2), (8, 9, 3), (6, 20, 3)])
def test_tensor_train_agrees_with_tensorly_and_its_bound(ranks):
    from tensorly.decomposition import tensor_train as reference

    W = fading(10, 9, 8, 3)
    ours = tensor_train(W, ranks).error(W)
    with tensorly.backend_context("pytorch"):
        theirs = tensorly.tt_to_tensor(reference(W, [1, *ranks, 1]))
    assert ours == pytest.approx(float((theirs - W).norm() / W.norm()), rel=1e-8)
    spectra = tt_spectra(W)
    bound = tt_error_bound(spectra, ranks)
    worst = max(
        float((s[r:] ** 2).sum().sqrt() / W.norm()) for s, r in zip(spectra, ranks, strict=True)
    )
    assert worst * (1 - 1e-9) <= ours <= bound * (1 + 1e-9)


def test_tensor_train_of_a_matrix_is_its_svd():
    W = draw(8, 12)
    assert tensor_train(W, (3,)).error(W) == pytest.approx(truncated_svd(W, 3).error(W), rel=1e-9)


def test_tensor_train_cores_are_left_orthogonal():
    for core in tensor_train(fading(6, 5, 4), (4, 3)).cores[:-1]:
        flat = core.flatten(0, 1)
        eye = torch.eye(flat.shape[1], dtype=flat.dtype)
        torch.testing.assert_close(flat.T @ flat, eye, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((2,), "1 ranks for shape"),
        ((0, 2), r"rank 0 between modes 0 and 1 is outside 1\.\.4"),
        ((5, 2), r"rank 5 between modes 0 and 1 is outside 1\.\.4"),
        ((1, 6), r"rank 6 between modes 1 and 2 is outside 1\.\.5"),
    ],
)
def test_tensor_train_bad_ranks(ranks, message):
    with pytest.raises(RankError, match=f"conv1: {message}"):
        tensor_train(draw(4, 5, 6), ranks, name="conv1")


def test_bound_needs_a_rank_per_spectrum():
    with pytest.raises(RankError, match="1 ranks for 2 spectra"):
        tt_error_bound(tt_spectra(draw(4, 5, 6)), (2,))


# --- all of them -------------------------------------------------------------------------------

DECOMPOSITIONS = {
    "svd": lambda W: truncated_svd(W.reshape(6, -1), 4),
    "svd randomized": lambda W: truncated_svd(W.reshape(6, -1), 4, method="randomized"),
    "tucker": lambda W: tucker(W, (3, 2), modes=(0, 1)),
    "tensor train": lambda W: tensor_train(W, (3, 4)),
}


def tensors_of(factors):
    for value in vars(factors).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from (v for v in value if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("decompose", DECOMPOSITIONS.values(), ids=DECOMPOSITIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_types_give_float32_factors_of_the_same_tensor(decompose, dtype):
    W = fading(6, 5, 4).to(dtype)
    factors = decompose(W)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    assert {t.dtype for t in tensors_of(factors)} == {working}
    reference = decompose(W.double())
    shaped = W.reshape(reference.to_tensor().shape)
    # the random probe is drawn in the working dtype, so its two answers differ a little
    assert factors.error(shaped) == pytest.approx(reference.error(shaped.double()), rel=1e-2)


@pytest.mark.parametrize("decompose", DECOMPOSITIONS.values(), ids=DECOMPOSITIONS)
def test_zero_tensor_has_no_error(decompose):
    W = torch.zeros(6, 5, 4)
    factors = decompose(W)
    assert torch.equal(factors.to_tensor().reshape(W.shape), W)
    assert factors.error(W.reshape(factors.to_tensor().shape)) == 0.0


@pytest.mark.parametrize("decompose", DECOMPOSITIONS.values(), ids=DECOMPOSITIONS)
def test_factors_are_finite_frozen_and_independent_of_the_input(decompose):
    W = fading(6, 5, 4).requires_grad_()
    factors = decompose(W)
    assert not any(t.requires_grad for t in tensors_of(factors))
    before = factors.to_tensor().clone()
    with torch.no_grad():
        W.zero_()
    assert torch.equal(factors.to_tensor(), before)
    with pytest.raises(AttributeError):
        factors.extra = 1


@pytest.mark.parametrize("decompose", DECOMPOSITIONS.values(), ids=DECOMPOSITIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(decompose, bad):
    W = fading(6, 5, 4)
    W[1, 2, 3] = bad
    with pytest.raises(InputError, match="1 of 120 values are NaN or Inf"):
        decompose(W)


def test_spectra_of_zero():
    W = torch.zeros(3, 4, 5)
    assert float(tucker_error_surface(W).abs().max()) == 0.0
    assert tt_error_bound(tt_spectra(W), (1, 1)) == 0.0
