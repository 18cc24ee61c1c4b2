"""CP: recovery, agreement with tensorly, and the control of components that cancel."""

import importlib
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lowrank
from lowrank.compression import spec_of
from lowrank.compression.methods import CP
from lowrank.decompositions import cp, sensitivity, truncated_svd
from lowrank.errors import InputError, RankError

with warnings.catch_warnings():  # tensorly's imports warn under newer numpy and scipy
    warnings.simplefilter("ignore")
    import tensorly

module = importlib.import_module("lowrank.decompositions.cp")  # the function hides its module

methods_cp = importlib.import_module("lowrank.compression.methods.cp")

FLOOR = 2 * module.ERROR_FLOOR
"""The descent stops at errors below the floor; the truth may differ from it by rounding."""


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def multiply(factors):
    W = factors[0]
    for A in factors[1:]:
        W = W[..., None, :] * A
    return W.sum(-1)


def fading(*shape, seed=0):
    """A tensor whose singular values fall in every mode, like a trained kernel's."""
    W = draw(*shape, seed=seed)
    for mode, n in enumerate(shape):
        scale = torch.arange(1, n + 1, dtype=W.dtype) ** -0.7
        W = W * scale.reshape([-1 if k == mode else 1 for k in range(len(shape))])
    return W


def border_rank_two(n=8):
    """Rank 3, but the limit of tensors of rank 2 whose components diverge (de Silva and Lim)."""
    a, b = torch.linalg.qr(draw(n, 2)).Q.T
    parts = ((a, a, b), (a, b, a), (b, a, a))
    return sum(torch.einsum("i,j,k->ijk", *part) for part in parts)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=4).map(tuple))
def test_exact_at_full_rank(shape):
    W = draw(*shape)
    factors = cp(W, math.prod(shape) // max(shape))
    assert factors.error(W) < 1e-12
    assert factors.status == "exact"
    assert factors.converged


@pytest.mark.parametrize("shape", [(8, 7, 6), (12, 10, 3, 3), (20, 5, 3, 3), (4, 5, 3, 3, 2)])
@pytest.mark.parametrize("rank", [1, 4])
def test_recovers_a_planted_decomposition(shape, rank):
    W = multiply([draw(n, rank, seed=n + k) for k, n in enumerate(shape)])
    factors = cp(W, rank, max_iter=500, tol=1e-6)
    assert factors.error(W) < FLOOR
    assert factors.status == "converged"


@pytest.mark.parametrize("shape", [(10, 9, 8), (16, 12, 3, 3), (3, 3, 12, 16)])
@pytest.mark.parametrize("rank", [3, 10])
def test_no_worse_than_tensorly(shape, rank):
    from tensorly.decomposition import parafac

    W = fading(*shape)
    ours = cp(W, rank, max_iter=200, tol=1e-5)
    with tensorly.backend_context("pytorch"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = parafac(W, rank, n_iter_max=100, init="random", random_state=0, tol=1e-7)
        reference = float((tensorly.cp_to_tensor(theirs) - W).norm() / W.norm())
    # local minima differ, and ours is held to the sensitivity bound: 2 % either way
    assert ours.error(W) < 1.02 * reference
    assert ours.sensitivity <= 10


def test_error_falls_with_the_rank():
    W = fading(16, 12, 3, 3)
    errors = [cp(W, rank).error(W) for rank in (1, 2, 4, 8, 16, 32, 64, 108)]
    assert all(b < a for a, b in itertools.pairwise(errors))


def test_never_worse_than_the_components_of_its_slices():
    """The first start is an orthogonal CP of known error, and sweeps only improve on it."""
    W = fading(16, 12, 3, 3)
    start = module._start(module._slice_components(W / W.norm(), 20))
    swept = module._sweep(W / W.norm(), start, module._least_squares)
    assert cp(W, 20).error(W) <= swept.error


def test_matrix_is_the_svd():
    W = draw(8, 12)
    factors = cp(W, 3)
    assert factors.error(W) == pytest.approx(truncated_svd(W, 3).error(W), rel=1e-9)


def test_components_are_sorted_unit_and_counted():
    W = fading(9, 8, 3, 3)
    factors = cp(W, 7)
    assert factors.rank == 7
    assert factors.n_params == sum(A.numel() for A in factors.balanced()) == 7 * 23
    assert (factors.weights.diff() <= 0).all()
    assert (factors.weights >= 0).all()
    for A in factors.factors:
        torch.testing.assert_close(A.norm(dim=0), torch.ones(7, dtype=A.dtype))
    balanced = factors.balanced()
    torch.testing.assert_close(multiply(balanced), factors.to_tensor())
    for A in balanced[1:]:
        torch.testing.assert_close(A.norm(dim=0), balanced[0].norm(dim=0))
    assert factors.sensitivity == pytest.approx(sensitivity(balanced), rel=1e-6)


def test_order_of_the_modes_does_not_matter():
    W = fading(5, 12, 9)
    turned = cp(W.permute(2, 0, 1), 4)
    assert turned.error(W.permute(2, 0, 1)) == pytest.approx(cp(W, 4).error(W), rel=1e-3)


def test_scale_does_not_matter():
    W = fading(8, 7, 6)
    small, large = cp(1e-12 * W, 4), cp(1e12 * W, 4)
    assert small.error(1e-12 * W) == pytest.approx(large.error(1e12 * W), rel=1e-6)


def test_one_seed_one_answer():
    W = draw(8, 7, 6)
    first, again = cp(W, 9, seed=3), cp(W, 9, seed=3)
    assert torch.equal(first.to_tensor(), again.to_tensor())


# --- sensitivity -------------------------------------------------------------------------------


def test_sensitivity_is_what_a_perturbation_does():
    """Monte Carlo over noise on balanced factors, against the formula it is defined by."""
    factors = cp(fading(8, 7, 6), 5).balanced()
    W, sigma, trials = multiply(factors), 1e-4, 400
    generator = torch.Generator().manual_seed(0)
    moved = []
    for _ in range(trials):
        noise = [sigma * torch.randn(A.shape, generator=generator, dtype=A.dtype) for A in factors]
        shifted = multiply([A + E for A, E in zip(factors, noise, strict=True)])
        moved.append(float((shifted - W).square().sum()))
    growth = sum(moved) / trials / sigma**2
    orthogonal = (8 + 7 + 6) * 5 ** (1 / 3) * float(W.norm()) ** (4 / 3)
    assert sensitivity(factors) == pytest.approx(growth / orthogonal, rel=0.05)  # 4 deviations


def test_sensitivity_ignores_scaling_and_sees_cancellation():
    eye = torch.eye(4, dtype=torch.float64)
    scale = draw(4).exp()
    assert sensitivity([eye, eye, eye]) == pytest.approx(1.0)
    assert sensitivity([3 * eye, eye, eye]) == pytest.approx(1.0)
    assert sensitivity([eye * scale, eye / scale, eye]) == pytest.approx(1.0)
    a, b = eye[:, :1], eye[:, :1] + 0.01 * eye[:, 1:2]
    assert sensitivity([torch.cat([a, -b], 1), torch.cat([a, a], 1), torch.cat([a, a], 1)]) > 100


# --- degeneracy --------------------------------------------------------------------------------


def test_border_rank_diverges_without_the_bound():
    """The error falls towards 0 only as the components grow: that is what the bound is for."""
    W = border_rank_two()
    loose = [cp(W, 2, max_iter=n, tol=1e-12, max_sensitivity=math.inf) for n in (20, 60, 200)]
    assert loose[0].error(W) > loose[1].error(W) > loose[2].error(W)
    assert loose[0].sensitivity < loose[1].sensitivity < loose[2].sensitivity
    assert loose[2].sensitivity > 30
    assert not loose[1].converged  # later, at a sensitivity of hundreds, rounding may stop it


@pytest.mark.parametrize("bound", [2.0, 5.0, 10.0, 20.0])
def test_border_rank_is_cured(bound):
    W = border_rank_two()
    factors = cp(W, 2, max_iter=500, tol=1e-6, max_sensitivity=bound)
    assert 0.8 * bound < factors.sensitivity <= bound  # the bound is used, and kept
    # the error of the pair ((a + t b)^3 - a^3) / t is O(t) and its sensitivity O(t^(-4/3))
    assert factors.error(W) < 0.11 * bound ** (-3 / 2) * 2
    assert not factors.converged
    assert cp(W, 3).error(W) < FLOOR  # at its true rank nothing needs to cancel


def test_correction_preserves_the_error_and_lowers_the_sensitivity():
    T = fading(24, 20, 3, 3)
    T = T / T.norm()
    fit = module._start([draw(n, 24, seed=k) for k, n in enumerate(T.shape)])
    for _ in range(60):
        fit = module._sweep(T, fit, module._least_squares)
    corrected = module._correct(T, fit, fit.error)
    assert corrected.error <= fit.error * (1 + 1e-6)
    assert corrected.sensitivity < 0.9 * fit.sensitivity


def test_correction_solves_its_subproblem():
    """Stationary: M - A V = mu A D with D = diag(weights^(-2/N)); and the error bound is met."""
    A, Z, weights = draw(7, 4), draw(30, 4, seed=1), draw(4, seed=2).exp()
    T = A @ Z.T + 0.5 * draw(7, 30, seed=3)
    T, bound = T / T.norm(), 0.8
    M, V = T @ Z, Z.T @ Z
    A = module._least_sensitive(bound, 3)(M, V, weights)
    mu = (M - A @ V) / (A * weights ** (-2 / 3))
    torch.testing.assert_close(mu, mu[:1, :1].expand_as(mu), rtol=1e-9, atol=0)
    assert float(mu[0, 0]) > 0
    assert float((T - A @ Z.T).norm()) == pytest.approx(bound, rel=1e-7)  # xtol of the root: 1e-8


def test_bound_holds_on_a_kernel_and_costs_little():
    W = fading(24, 20, 3, 3).float()
    free = cp(W, 24, max_sensitivity=math.inf, tol=1e-4)
    held = cp(W, 24, max_sensitivity=5.0, tol=1e-4)
    assert free.sensitivity > 5.0 >= held.sensitivity
    assert held.error(W) < 1.05 * free.error(W)


# --- edges -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_narrow_types_give_float32(dtype):
    W = fading(9, 8, 7).to(dtype)
    factors = cp(W, 5)
    assert {A.dtype for A in (*factors.factors, factors.weights)} == {torch.float32}
    assert factors.error(W) == pytest.approx(cp(W.double(), 5).error(W.double()), rel=1e-5)


def test_zero_tensor():
    factors = cp(torch.zeros(5, 4, 3), 2)
    assert factors.error(torch.zeros(5, 4, 3)) == 0.0
    assert factors.status == "exact"
    assert sensitivity(factors.balanced()) == 0.0


@pytest.mark.parametrize("rank", [1, 2, 5, 10])
def test_more_components_than_needed(rank):
    W = multiply([draw(n, 1, seed=n) for n in (7, 6, 5)])
    factors = cp(W, rank)
    assert factors.error(W) < FLOOR
    assert all(torch.isfinite(A).all() for A in factors.factors)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_coinciding_singular_values(rank):
    W = torch.zeros(4, 5, 6, dtype=torch.float64)
    W[0, 0, 0] = W[1, 1, 1] = 1
    assert cp(W, rank).error(W) == pytest.approx(math.sqrt(0.5) if rank == 1 else 0, abs=FLOOR)


def test_mode_of_size_one():
    W = draw(6, 1, 3, 3)
    assert cp(W, 9).error(W) < 1e-12
    assert cp(W, 3).error(W) < cp(W, 1).error(W)


@pytest.mark.parametrize("rank", [0, 21])
def test_rank_outside(rank):
    with pytest.raises(RankError, match=rf"conv1: rank {rank} is outside 1\.\.20"):
        cp(draw(6, 5, 4), rank, name="conv1")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"n_starts": 0}, "n_starts 0"),
        ({"max_iter": 0}, "max_iter 0"),
        ({"max_sensitivity": 0.5}, "max_sensitivity 0.5"),
        ({"max_sensitivity": math.nan}, "max_sensitivity nan"),
    ],
)
def test_options_outside(option, message):
    with pytest.raises(InputError, match=message):
        cp(draw(6, 5, 4), 2, **option)


def test_not_finite():
    W = draw(6, 5, 4)
    W[0, 0, 0] = math.nan
    with pytest.raises(InputError, match="conv1: 1 of 120 values"):
        cp(W, 2, name="conv1")


@pytest.mark.parametrize(("i", "o"), [(512, 512), (64, 512), (512, 64), (16, 16)])
@pytest.mark.parametrize("round_to", [1, 8])
def test_the_curve_goes_on_to_what_a_budget_can_use(i: int, o: int, round_to: int) -> None:
    spec = spec_of(nn.Conv2d(i, o, 3, device="meta"))
    assert spec is not None
    for kernel in ("whole", "separable"):
        one = sum(s.n_weights for s in CP(1, kernel).stages(spec))
        ranks = methods_cp._ranks(spec.n_weights // one, round_to)
        assert ranks == sorted(set(ranks))
        assert not any(r % round_to for r in ranks)
        assert 0.9 * spec.n_weights < ranks[-1] * one <= spec.n_weights
        assert max(np.diff(ranks), default=0) * one < 0.06 * spec.n_weights + round_to * one


def test_cp_spends_its_budget_beyond_the_dense_part_of_its_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(methods_cp, "_DENSE", 8)
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(16, 16, 3, 1, bias=False)), torch.randn(1, 16, 4, 4)
    _, report = lowrank.compress(net, x, methods="cp", params=0.6)
    assert 0.55 < report.kept("parameters") <= 0.6


def test_sweeps_are_fewer_where_they_are_dear() -> None:
    T = torch.empty(512, 512, 9, device="meta")
    assert methods_cp._affordable(T, 64, methods_cp._CURVE_WORK) > methods_cp._CURVE_SWEEPS
    assert methods_cp._affordable(T, 2290, methods_cp._CURVE_WORK) == 1
    assert 5 < methods_cp._affordable(T, 2290, methods_cp._FIT_WORK) < 50
