"""Low rank plus sparse as an approximation: against the plain alternation, and its promises."""

import pytest
import torch

from lowrank.decompositions import low_rank_plus_sparse, truncated_svd
from lowrank.errors import InputError, RankError
from lowrank.status import Status

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}


def weights(m, n, dtype=torch.float32, seed=0):
    """Falling spectrum, and a few outliers."""
    rng = torch.Generator().manual_seed(seed)
    W = torch.randn(m, n, generator=rng, dtype=torch.float64) * torch.arange(1.0, n + 1) ** -0.5
    outliers = torch.rand(m, n, generator=rng) < 0.02
    return (W + outliers * torch.randn(m, n, generator=rng, dtype=torch.float64)).to(dtype)


def alternation(W, rank, card, steps):
    """Full SVDs and exact thresholds in turn."""
    S = torch.zeros_like(W)
    for _ in range(steps):
        U, s, Vh = torch.linalg.svd(W - S, full_matrices=False)
        R = W - (U[:, :rank] * s[:rank]) @ Vh[:rank]
        kept = R.abs().flatten().topk(card).indices
        S = torch.zeros_like(W).flatten().index_put((kept,), R.flatten()[kept]).view_as(W)
    return float((R - S).norm() / W.norm())


@pytest.mark.one_in(3)
@pytest.mark.parametrize("shape", [(120, 80), (80, 120), (400, 150)])
@pytest.mark.parametrize(("rank", "density"), [(8, 0.05), (20, 0.25), (40, 0.3)])
def test_is_not_above_eighty_plain_steps(shape, rank, density):
    W = weights(*shape)
    ours = low_rank_plus_sparse(W, rank, density)
    plain = alternation(W, rank, round(density * W.numel()), 80)
    assert ours.residual_norm <= 1.003 * plain * float(W.norm())  # two local optima


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("density", [0.0, 0.013, 0.4, 1.0])
def test_keeps_rank_and_count_and_says_its_residual(dtype, density):
    W = weights(50, 40, dtype)
    parts = low_rank_plus_sparse(W, 6, density)
    assert parts.L.dtype == parts.S.dtype == dtype
    assert int((parts.S != 0).sum()) == round(density * W.numel())
    s = torch.linalg.svdvals(parts.L)
    assert float(s[6:].max()) < ROUNDING[dtype] * float(s[0])
    left = float((W - parts.L - parts.S).norm())
    assert parts.residual_norm == pytest.approx(left, abs=ROUNDING[dtype] * float(W.norm()))


def test_without_a_sparse_part_it_is_the_truncated_svd():
    W = weights(50, 40, torch.float64)
    parts = low_rank_plus_sparse(W, 6, 0.0)
    torch.testing.assert_close(parts.L, truncated_svd(W, 6).to_tensor())
    assert parts.status is Status.CONVERGED


def test_is_exact_where_the_matrix_is_such_a_sum():
    rng = torch.Generator().manual_seed(0)
    L = torch.randn(90, 3, generator=rng, dtype=torch.float64) @ torch.randn(
        3, 60, generator=rng, dtype=torch.float64
    )
    S = 9.0 * (torch.rand(90, 60, generator=rng) < 0.03)
    parts = low_rank_plus_sparse(L + S, 3, 0.05, max_iter=300, tol=1e-6)
    assert parts.residual_norm < 1e-3 * float((L + S).norm())


def test_full_rank_is_exact():
    W = weights(30, 20, torch.float64)
    left = low_rank_plus_sparse(W, 20, 0.1).residual_norm
    assert left < ROUNDING[torch.float64] * float(W.norm())


def test_one_answer_each_time():
    W = weights(300, 200)
    first, again = low_rank_plus_sparse(W, 9, 0.1), low_rank_plus_sparse(W, 9, 0.1)
    assert torch.equal(first.S, again.S)


def test_zero_matrix():
    parts = low_rank_plus_sparse(torch.zeros(5, 4), 2, 0.5)
    assert parts.residual_norm == 0.0


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_density_outside(density):
    with pytest.raises(InputError, match=r"fc: density .* is outside 0\.\.1; give a share"):
        low_rank_plus_sparse(torch.ones(5, 4), 2, density, name="fc")


def test_bad_rank_and_shape():
    with pytest.raises(RankError, match=r"fc: rank 5 is outside 1\.\.4"):
        low_rank_plus_sparse(torch.ones(5, 4), 5, 0.1, name="fc")
    with pytest.raises(InputError, match="need a matrix"):
        low_rank_plus_sparse(torch.ones(2, 5, 4), 2, 0.1)
