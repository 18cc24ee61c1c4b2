"""The metric against plain definitions: Eckart-Young, least squares, finite differences."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from lowrank.compression.methods.shared.folding import places, spread, spread_products
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import (
    Metric,
    best_last,
    best_map,
    inner_products,
    input_directions,
    moments_of,
    nested_gains,
    output_moment,
    variable_projection,
    whitened,
)
from lowrank.errors import InputError
from lowrank.linalg import leading_eigenvectors

ROUNDING = 1e-9
"""Relative to the energy: float64, matrices of a few dozen rows, condition up to 1e6."""

GROUPS, OUT, FAN_IN = 2, 7, 12


def _randn(*shape: int, seed: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _moment(side: int, n: int, seed: int) -> Tensor:
    """Second moment of n examples: singular where there are fewer than `side`."""
    X = _randn(GROUPS, n, side, seed=seed)
    return X.mT @ X / n


W = _randn(GROUPS, OUT, FAN_IN, seed=0)
G = _moment(OUT, 3 * OUT, 1)

METRICS = {
    "full": Metric(_moment(FAN_IN, 40, 2)),
    "full and G": Metric(_moment(FAN_IN, 40, 2), G),
    "five examples": Metric(_moment(FAN_IN, 5, 3)),
    "five examples and a singular G": Metric(_moment(FAN_IN, 5, 3), _moment(OUT, 4, 4)),
    "diagonal": Metric(_randn(GROUPS, FAN_IN, seed=5).square()),
    "diagonal with zeros, and G": Metric(
        _randn(GROUPS, FAN_IN, seed=5).square() * (torch.arange(FAN_IN) % 3 > 0), G
    ),
    "rows": Metric(_randn(GROUPS, FAN_IN, seed=6).square(), rows=_randn(GROUPS, 5, FAN_IN, seed=7)),
    "rows and G": Metric(
        _randn(GROUPS, FAN_IN, seed=6).square(), G, _randn(GROUPS, 5, FAN_IN, seed=7)
    ),
    "rows alone": Metric(
        torch.zeros(GROUPS, FAN_IN, dtype=torch.float64), rows=_randn(GROUPS, 5, FAN_IN, seed=7)
    ),
    "full and felt": Metric(
        _moment(FAN_IN, 40, 2),
        0.1 + _randn(GROUPS, OUT, seed=10).square(),
        felt=_randn(GROUPS, 3, OUT, seed=11),
    ),
    "rows and felt, one of them zero": Metric(
        _randn(GROUPS, FAN_IN, seed=6).square(),
        torch.full((GROUPS, OUT), 0.01, dtype=torch.float64),
        _randn(GROUPS, 5, FAN_IN, seed=7),
        felt=_randn(GROUPS, 3, OUT, seed=11) * torch.tensor([1.0, 0.0, 2.0])[:, None],
    ),
    "diagonal and more felt than outputs": Metric(
        _randn(GROUPS, FAN_IN, seed=5).square(),
        0.1 + _randn(GROUPS, OUT, seed=10).square(),
        felt=_randn(GROUPS, 2 * OUT, OUT, seed=12),
    ),
}


@pytest.fixture(params=METRICS, ids=str)
def metric(request: pytest.FixtureRequest) -> Metric:
    return METRICS[request.param]


def _full_C(metric: Metric) -> Tensor:
    full = torch.diag_embed(metric.C) if metric.C.ndim == 2 else metric.C
    return full if metric.rows is None else full + metric.rows.mT @ metric.rows


def _full_G(metric: Metric) -> Tensor:
    if metric.G is None:
        return torch.eye(OUT, dtype=W.dtype).expand(GROUPS, -1, -1)
    if metric.felt is None:
        return metric.G
    return torch.diag_embed(metric.G) + metric.felt.mT @ metric.felt


def _plain_error(D: Tensor, metric: Metric) -> float:
    parts = zip(_full_G(metric), D, _full_C(metric), strict=True)
    return float(sum(torch.trace(g @ d @ c @ d.T) for g, d, c in parts))


def _root(S: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(S)
    return vectors * values.clamp_min(0).sqrt()[:, None, :] @ vectors.mT


def _singular_values(metric: Metric) -> Tensor:
    """Of G^1/2 W C^1/2, whose tails are the least errors (Eckart and Young)."""
    left = _root(_full_G(metric)) @ W
    return torch.linalg.svdvals(left @ _root(_full_C(metric)))


def test_error_is_the_trace(metric: Metric) -> None:
    assert metric.error(W) == pytest.approx(_plain_error(W, metric), rel=ROUNDING)


def test_left_and_right_are_of_one_root_of_G(metric: Metric) -> None:
    eye = torch.eye(OUT, dtype=W.dtype).expand(GROUPS, -1, -1)
    root = metric.left(eye)  # R^T
    torch.testing.assert_close(root.mT @ root, _full_G(metric))
    torch.testing.assert_close(metric.right(eye), root)
    torch.testing.assert_close(metric.weighs(W), _full_G(metric) @ W)
    if metric.G is not None:
        inside = metric.left(W)  # where G is singular, what it leaves
        torch.testing.assert_close(metric.left(metric.unweighted(inside)), inside)
        diagonal = _full_G(metric).diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(metric.of_each_output, diagonal)


def test_written_out_a_metric_is_the_same(metric: Metric) -> None:
    formed = metric.formed
    assert formed.rows is None
    assert formed.felt is None
    assert formed.error(W) == pytest.approx(metric.error(W), rel=ROUNDING)


def test_times_and_block_are_those_of_the_full_moment(metric: Metric) -> None:
    C = _full_C(metric)
    torch.testing.assert_close(metric.times(W), W @ C)
    index = torch.tensor([[0, 5, 7], [2, 3, 11]])
    expected = C[:, index[..., :, None], index[..., None, :]]
    torch.testing.assert_close(metric.block(index), expected)


@pytest.mark.parametrize("rank", [1, 3, OUT])
def test_best_map_reaches_the_bound_of_eckart_and_young(metric: Metric, rank: int) -> None:
    U, V = best_map(W, metric, rank)
    bound = float(_singular_values(metric)[:, rank:].square().sum())
    assert U.shape == (GROUPS, OUT, rank)
    assert V.shape == (GROUPS, rank, FAN_IN)
    found = metric.error(W - U @ V)
    assert found == pytest.approx(bound, abs=1e-6 * metric.error(W))  # as exact as pinv's cut-off


def test_spectrum_of_the_output_moment_gives_every_rank_at_once(metric: Metric) -> None:
    values = torch.linalg.eigvalsh(output_moment(W, metric)).flip(-1)
    expected = _singular_values(metric).square()
    assert torch.allclose(values, expected, atol=ROUNDING * float(expected.sum()))


@pytest.mark.parametrize("name", [n for n, m in METRICS.items() if m.G is None])
def test_both_sides_give_the_same_input_directions(name: str) -> None:
    """Tall weights take the eigenvectors of the other side; the row space is the same."""
    metric = METRICS[name]
    tall = _randn(GROUPS, 2 * FAN_IN, FAN_IN, seed=8)
    for rank in (1, 4):
        V = input_directions(tall, metric, rank)
        _, best = best_map(tall, metric, rank)
        A = best_last(*metric.products(V, tall))
        B = best_last(*metric.products(best, tall))
        energy = metric.error(tall)
        found, wanted = metric.error(tall - A @ V), metric.error(tall - B @ best)
        assert found == pytest.approx(wanted, abs=1e-8 * energy)


def test_input_directions_are_nested() -> None:
    metric = METRICS["full"]
    tall = _randn(GROUPS, 2 * FAN_IN, FAN_IN, seed=8)
    few, many = (input_directions(tall, metric, r) for r in (2, 5))
    cosines = (few * many[:, :2]).sum(-1).abs()
    assert torch.allclose(cosines, torch.ones_like(cosines), atol=1e-8)


def test_best_last_solves_the_least_squares_problem(metric: Metric) -> None:
    """Its gradient vanishes, so no other last factor is better."""
    M = _randn(GROUPS, 4, FAN_IN, seed=9)
    A = best_last(*metric.products(M, W)).requires_grad_()
    D = W - A @ M
    left = _full_G(metric) @ D
    (metric.times(D) * left).sum().backward()
    assert A.grad is not None
    assert float(A.grad.norm()) < 1e-7 * metric.error(W)


def test_best_last_copes_with_repeated_and_zero_features() -> None:
    metric = METRICS["full"]
    M = _randn(GROUPS, 4, FAN_IN, seed=9)
    repeated = torch.cat([M, M[:, :2], torch.zeros(GROUPS, 1, FAN_IN)], dim=1)
    lost = []
    for features in (M, repeated):
        A = best_last(*metric.products(features, W))
        lost.append(metric.error(W - A @ features))
    assert lost[1] == pytest.approx(lost[0], rel=1e-6)


def _left_after(metric: Metric, M: Tensor) -> float:
    A = best_last(*metric.products(M, W))
    return metric.error(W - A @ M)


@pytest.mark.parametrize("width", [1, 2])
def test_nested_gains_are_explicit_least_squares(metric: Metric, width: int) -> None:
    M = _randn(GROUPS, 4, FAN_IN, seed=10)  # four, so that five examples still tell them apart
    energy = metric.error(W)
    lost = energy - nested_gains(W, metric, M, width).cumsum(0)
    expected = [_left_after(metric, M[:, : n * width]) for n in range(1, 4 // width + 1)]
    assert lost.tolist() == pytest.approx(expected, abs=1e-7 * energy)


def test_nested_moments_sum_to_the_gains(metric: Metric) -> None:
    M = _randn(GROUPS, 4, FAN_IN, seed=10)
    S, P = metric.products(M, metric.left(W))
    traces = moments_of(whitened(S, P), 2, [1, 2]).diagonal(dim1=-2, dim2=-1).sum((1, 2))
    assert torch.allclose(traces, nested_gains(W, metric, M, 2).cumsum(0))


@pytest.mark.parametrize("axes", [(), (0,), (1,)])
def test_products_of_spread_features_are_the_plain_ones(
    metric: Metric, axes: tuple[int, ...]
) -> None:
    spec = LayerSpec("conv", 3 * GROUPS, OUT * GROUPS, (2, 2), groups=GROUPS)
    index = places(spec, axes)
    V = _randn(GROUPS, 2, index.shape[1], seed=13)
    M = spread(V, spec.kernel, axes)
    found = spread_products(V, index, metric, W)
    for one, other in zip(found, metric.products(M, W), strict=True):
        torch.testing.assert_close(one, other)


def test_energy_is_remembered_for_the_very_weight_alone() -> None:
    metric, X = METRICS["full"], W.clone()
    assert metric.energy(X) == metric.energy(X) == metric.error(X)
    X *= 2  # in place: the same memory, another weight
    assert metric.energy(X) == pytest.approx(4 * metric.energy(W))


def _bilinear(free: list[Tensor]) -> Tensor:
    """Features of a CP decomposition: products of two vectors."""
    a, b = free
    return (a[..., :, None] * b[..., None, :]).flatten(2)


def _start() -> list[Tensor]:
    return [_randn(GROUPS, 2, 3, seed=11), _randn(GROUPS, 2, 4, seed=12)]


def test_variable_projection_never_gets_worse(metric: Metric) -> None:
    found = [
        variable_projection(W, metric, _bilinear, _start(), max_iter=n) for n in (0, 1, 5, 20, 60)
    ]
    lost = [f.error for f in found]
    assert lost == sorted(lost, reverse=True)
    assert lost[-1] < lost[0]
    best = found[-1]
    made = best.last @ _bilinear(list(best.free))
    assert metric.error(W - made) == pytest.approx(best.error, abs=1e-7 * metric.error(W))


def test_variable_projection_keeps_a_start_that_is_the_optimum() -> None:
    metric = METRICS["full"]
    exact = _randn(GROUPS, OUT, 2, seed=13) @ _bilinear(_start())
    found = variable_projection(exact, metric, _bilinear, _start(), max_iter=20)
    assert found.error < 1e-10 * metric.error(exact)


def test_variable_projection_ends_where_the_slope_is_zero() -> None:
    """The slope by finite differences of the projected error, not by the code's own formula."""
    metric = METRICS["full and G"]
    found = variable_projection(W, metric, _bilinear, _start(), max_iter=400)

    def slope(free: list[Tensor]) -> Tensor:
        step, out = 1e-5, []
        for k, part in enumerate(free):
            for place in range(part.numel()):
                ends = []
                for sign in (1, -1):
                    moved = [f.clone() for f in free]
                    moved[k].view(-1)[place] += sign * step
                    ends.append(_left_after(metric, _bilinear(moved)))
                out.append((ends[0] - ends[1]) / (2 * step))
        return torch.tensor(out)

    at_end = slope([f.contiguous() for f in found.free]).norm()
    assert float(at_end) < 0.01 * float(slope(_start()).norm())


def test_gradient_of_the_projected_error_is_that_of_finite_differences() -> None:
    """d/dM of the projected error is -2 A^T G (W - A M) C, with A as if it were constant."""
    metric = METRICS["full and G"]
    assert metric.G is not None
    M, toward = _randn(GROUPS, 3, FAN_IN, seed=14), _randn(GROUPS, 3, FAN_IN, seed=15)
    A = best_last(*metric.products(M, W))
    slope = -2 * (metric.G @ A).mT @ metric.times(W - A @ M)
    step = 1e-5
    ends = [_left_after(metric, M + sign * step * toward) for sign in (1, -1)]
    difference = (ends[0] - ends[1]) / (2 * step)
    assert difference == pytest.approx(float((slope * toward).sum()), rel=1e-6)


def test_a_weight_of_zeros_is_fitted_without_error() -> None:
    zero = torch.zeros_like(W)
    found = variable_projection(zero, METRICS["full"], _bilinear, _start())
    assert found.error == 0


def test_a_moment_with_nan_gets_a_sentence() -> None:
    metric = Metric(torch.full((1, 3, 3), float("nan"), dtype=torch.float64))
    weight = torch.ones(1, 2, 3, dtype=torch.float64)
    with pytest.raises(InputError, match="the moment C is far from positive"):
        nested_gains(weight, metric, weight, 1)


@pytest.mark.parametrize(("n", "d"), [(9, 12), (9, 20), (9, 8)], ids=["bands", "few", "narrow"])
def test_inner_products_are_those_of_the_columns(
    n: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("lowrank.decompositions.metric"), "_BAND", 8)
    X = _randn(2, n, d, seed=0)
    assert torch.allclose(inner_products(X), X.mT @ X)


@pytest.mark.parametrize("rank", [4, 5], ids=["a fifth", "more than a quarter"])
@pytest.mark.parametrize("size", [18, 19], ids=["wide", "narrow"])
def test_a_map_of_very_wide_layers_may_be_sketched(
    rank: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.import_module("lowrank.decompositions.metric")
    monkeypatch.setattr(found, "SKETCHED_FROM", size)
    seen = []
    monkeypatch.setattr(found, "sketched_eigenvectors", lambda S, r: seen.append(r) or _top(S, r))
    W = torch.randn(1, 18, 30, generator=torch.Generator().manual_seed(0)).double()
    metric = Metric(torch.ones(1, 30).double())
    made = [torch.matmul(*best_map(W, metric, rank, sketched=s)) for s in (False, True)]
    assert seen == ([4] if (rank, size) == (4, 18) else [])
    assert torch.allclose(*made)


def _top(S: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    return leading_eigenvectors(S, rank)
