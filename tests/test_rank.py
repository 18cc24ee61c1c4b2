"""Rank estimates: against their definitions, and on planted low rank plus noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank.decompositions import (
    energy_rank,
    error_rank,
    evbmf,
    evbmf_rank,
    singular_values,
    truncated_svd,
)
from lowrank.decompositions import rank as module
from lowrank.errors import InputError


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(m, n, rank, noise, seed=0):
    low = draw(m, rank, seed=seed) @ draw(rank, n, seed=seed + 1) / math.sqrt(rank)
    return low + noise * draw(m, n, seed=seed + 2)


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=12),
    st.floats(0.01, 0.99),
)
def test_ranks_are_the_least_that_do(values, bound):
    s = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    total = float((s**2).sum())
    r = error_rank(s, bound)
    slack = 1 + 1e-12  # a tail that equals the bound may fall on either side
    assert float((s[r:] ** 2).sum()) <= bound**2 * total * slack
    assert r == 1 or float((s[r - 1 :] ** 2).sum()) * slack > bound**2 * total
    assert energy_rank(s, 1 - bound**2) in (r - 1, r, r + 1)


def test_error_rank_keeps_its_promise():
    W = planted(30, 40, 5, 0.05)
    r = error_rank(singular_values(W), 0.1)
    assert truncated_svd(W, r).error(W) <= 0.1 < truncated_svd(W, r - 1).error(W)


def test_everything_and_nothing():
    s = torch.tensor([2.0, 1.0, 0.5])
    assert energy_rank(s, 1.0) == 3
    assert error_rank(s, 0.0) == 3
    assert energy_rank(torch.zeros(3), 0.9) == 1


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, math.nan])
def test_energy_outside_its_range(energy):
    with pytest.raises(InputError, match="energy"):
        energy_rank(torch.ones(3), energy)


@pytest.mark.parametrize("rel_error", [-0.1, 1.0, math.nan])
def test_error_outside_its_range(rel_error):
    with pytest.raises(InputError, match="relative error"):
        error_rank(torch.ones(3), rel_error)


def test_spectra_are_vectors():
    with pytest.raises(InputError, match="need a vector"):
        energy_rank(torch.ones(3, 3), 0.5)


@pytest.mark.parametrize(("m", "n"), [(60, 80), (80, 60), (50, 400), (100, 100)])
@pytest.mark.parametrize("rank", [1, 5, 12])
def test_evbmf_finds_the_planted_rank_and_noise(m, n, rank):
    noise = 0.1
    found = evbmf(planted(m, n, rank, noise))
    assert found.rank == rank
    # the variance of (m - r)(n - r) residual samples; 5 standard deviations, plus model error
    freedom = (m - rank) * (n - rank)
    assert found.sigma2 == pytest.approx(noise**2, rel=5 * math.sqrt(2 / freedom) + 0.02)


@pytest.mark.parametrize("seed", range(5))
def test_evbmf_finds_nothing_in_noise(seed):
    assert evbmf_rank(draw(60, 90, seed=seed)) == 0


def test_evbmf_with_known_noise():
    W = planted(60, 80, 4, 0.2)
    assert evbmf_rank(W, 0.04) == 4
    assert evbmf_rank(W, 1e6) == 0


def test_evbmf_shrinks_and_denoises():
    clean, noise = planted(60, 80, 4, 0.0), 0.3
    W = clean + noise * draw(60, 80, seed=9)
    found = evbmf(W)
    svd = truncated_svd(W, found.rank)
    assert (found.s < svd.s).all()
    shrunken = (svd.U * found.s) @ svd.Vh
    assert (shrunken - clean).norm() < (svd.to_tensor() - clean).norm()


def test_evbmf_shrinkage_is_the_larger_root_of_its_quadratic():
    """g^2 - s (1 - (L+M) v / s^2) g + L M v^2 / s^2 = 0."""
    W, v = planted(40, 70, 3, 0.2), 0.04
    L, M = 40, 70
    found = evbmf(W, v)
    s = singular_values(W)[: found.rank]
    residual = found.s**2 - s * (1 - (L + M) * v / s**2) * found.s + L * M * v**2 / s**2
    assert float(residual.abs().max() / (s**2).max()) < 1e-12
    assert (found.s > s / 2 * (1 - (L + M) * v / s**2)).all()


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.3, 1.0])
def test_components_enter_where_they_leave_the_free_energy_unchanged(alpha):
    """The threshold is where a component starts to pay, so the free energy has no jump there."""
    edge = module._threshold(alpha)
    below, above = (np.sqrt(np.array([edge * f])) for f in (1 - 1e-9, 1 + 1e-9))
    left = module._free_energy(below, alpha, 1, 1.0)
    assert module._free_energy(above, alpha, 1, 1.0) == pytest.approx(left, rel=1e-7)
    tau = 2.5129 * math.sqrt(alpha)  # the paper's approximation
    assert edge == pytest.approx((1 + tau) * (1 + alpha / tau), rel=0.02)


def test_evbmf_scales_with_the_matrix():
    W = planted(60, 80, 4, 0.1)
    small, large = evbmf(W), evbmf(1e3 * W)
    assert small.rank == large.rank
    assert large.sigma2 == pytest.approx(1e6 * small.sigma2, rel=1e-4)  # xatol of the search


def test_evbmf_without_noise():
    assert evbmf_rank(planted(30, 40, 3, 0.0)) == 3
    assert evbmf_rank(torch.zeros(5, 6)) == 0
    assert evbmf(torch.zeros(5, 6)).sigma2 == 0.0


def test_evbmf_on_half_and_vectors():
    assert evbmf_rank(planted(60, 80, 3, 0.1).half()) == 3
    assert evbmf_rank(torch.ones(1, 9)) in (0, 1)


@pytest.mark.parametrize("sigma2", [0.0, -1.0, math.inf, math.nan])
def test_evbmf_refuses_a_bad_variance(sigma2):
    with pytest.raises(InputError, match="noise variance"):
        evbmf(torch.ones(3, 4), sigma2)


def test_evbmf_refuses_a_tensor():
    with pytest.raises(InputError, match="conv1: shape"):
        evbmf_rank(torch.ones(3, 4, 5), name="conv1")
