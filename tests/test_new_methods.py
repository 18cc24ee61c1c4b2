"""Low rank plus sparse, monochromatic, bi-clustering, LegoNet: what each promises."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import LayerSpec, relaxed, spec_of
from lowrank.compression.methods import (
    BiClustering,
    ChannelSVD,
    LegoNet,
    LowRankSparse,
    Method,
    Monochromatic,
    Tucker2,
)
from lowrank.compression.methods.biclustering import clusters
from lowrank.compression.methods.shared.error_curves import refined_curve
from lowrank.compression.methods.shared.joint_search import error_of
from lowrank.decompositions.bricks import assemble
from lowrank.decompositions.metric import Metric, best_map
from lowrank.decompositions.sparse_part import (
    columns_curve,
    low_rank_plus_masked,
    split_columns,
    worst_rows,
)
from lowrank.errors import InputError

ROUNDING = 1e-9
"""Relative to the energy: sums of a few hundred products in float64."""


def _layer(n: int = 12, o: int = 16) -> tuple[LayerSpec, Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(n, o, 3, padding=1).double()
    spec = spec_of(layer)
    assert spec is not None
    return spec, layer.weight.detach().reshape(spec.weight_shape)


def _metric(spec: LayerSpec, *, weighted: bool = True) -> Metric:
    """A correlated metric with outputs that count unequally."""
    g, o, *_ = spec.weight_shape
    d = spec.n_weights // spec.out_channels
    rng = torch.Generator().manual_seed(1)
    X = torch.randn(g, 3 * d, d, generator=rng, dtype=torch.float64)
    X = X @ torch.randn(g, d, d, generator=rng, dtype=torch.float64) / d**0.5
    Y = torch.randn(g, 3 * o, o, generator=rng, dtype=torch.float64)
    Y = Y * torch.linspace(0.3, 2, o, dtype=torch.float64)
    G = Y.mT @ Y / (3 * o) if weighted else None
    return Metric(X.mT @ X / (3 * d), G)


METHODS_OF_SMALL_SIZE: list[Method] = [
    LowRankSparse(3, 0.25),
    LowRankSparse(0, 0.5),
    LowRankSparse(3, 0.25, "filters"),
    LowRankSparse(3, 0.1, "unstructured"),
    LowRankSparse(0, 0.2, "unstructured"),
    LowRankSparse(2, 0.5, "2:4"),
    Monochromatic(4),
    Monochromatic(5, 2),
    BiClustering(2, 4, 2),
    LegoNet(8, 2),
]


@pytest.mark.parametrize("method", METHODS_OF_SMALL_SIZE, ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["C", "C and G"])
def test_with_a_metric_the_output_error_is_no_larger(method: Method, weighted: bool) -> None:
    spec, W = _layer()
    metric = _metric(spec, weighted=weighted)
    blind = error_of(spec, method.stages(spec), method.factor(spec, W, seed=0), W, metric)
    fitted = method.factor(spec, W, seed=0, metric=metric)
    seen = error_of(spec, method.stages(spec), fitted, W, metric)
    assert seen < blind


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False)
        self.fc = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.a(x)))
        return self.fc(torch.relu(self.b(h)).mean((2, 3)))


def _with(method: Method, net: Net, x: Tensor, **data: object) -> tuple[nn.Module, lowrank.Report]:
    """The network with the method on its layer a; the others stay, and are not measured."""
    rules = lowrank.Rules(only=["a"], overrides={"a": method})
    return lowrank.compress(net, x, params=10**9, rules=rules, **data)


X = torch.randn(2, 12, 8, 8, generator=torch.Generator().manual_seed(3))


@cache
def _fitted(method: Method) -> tuple[nn.Module, lowrank.Report]:
    """The seeded network with the method on its layer a, by its weights alone."""
    torch.manual_seed(0)
    return _with(method, Net().eval(), X)


class Side(nn.Module):
    """Networks side by side on one input: a graph for all of them, which is dear to make."""

    def __init__(self, methods: list[Method]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(copy.deepcopy(_fitted(m)[0]) for m in methods)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(net(x) for net in self.nets)


@pytest.mark.parametrize("method", METHODS_OF_SMALL_SIZE, ids=str)
def test_a_network_with_it_is_saved_and_comes_back(method: Method, tmp_path: Path) -> None:
    small, report = _fitted(method)
    assert report.plan["a"] == method
    assert lowrank.Plan.from_json(report.plan.to_json()) == report.plan

    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=Net()).eval()
    assert torch.equal(again(X), small(X))

    dense = lowrank.densify(small)
    assert type(dense.a) is nn.Conv2d
    assert torch.allclose(dense(X), small(X), atol=1e-4)

    trained = copy.deepcopy(small).train()
    trained(X).sum().backward()
    weights = [p for n, p in trained.a.named_parameters() if n.endswith("weight")]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in weights)


def test_networks_with_each_of_them_are_exported(tmp_path: Path) -> None:
    """Torch's exporter reads all of its library first: it takes over five seconds."""
    nets = Side(METHODS_OF_SMALL_SIZE).eval()
    lowrank.export_program(nets, X)  # both compare every output
    lowrank.export_onnx(nets, X, tmp_path / "nets.onnx")


def test_networks_with_each_of_them_run_under_compile() -> None:
    nets = Side(METHODS_OF_SMALL_SIZE).eval()
    torch.compiler.reset()
    with torch.no_grad():
        fast = torch.compile(nets, backend="eager", fullgraph=True)
        assert all(torch.allclose(a, b) for a, b in zip(fast(X), nets(X), strict=True))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("method", METHODS_OF_SMALL_SIZE, ids=str)
def test_fitted_to_data_it_serves_the_network_better(method: Method) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    base = (
        torch.randn(1, 12, 8, 8)
        + torch.randn(64, 12, 1, 1) * torch.linspace(0, 2, 12)[:, None, None]
    )
    x = base + 0.3 * torch.randn(64, 12, 8, 8)
    blind, _ = _fitted(method)
    seen, _ = _with(method, net, x[:1], data=[x[:48]])
    with torch.no_grad():
        lost = [(m(x[48:]) - net(x[48:])).square().sum() for m in (blind, seen)]
    assert lost[1] < lost[0]


def test_curve_of_kept_channels_is_that_of_the_others_own_metric() -> None:
    spec, W = _layer()
    metric, kept = _metric(spec), torch.tensor([[1, 4, 7]])
    flat = W.flatten(2)
    expected = split_columns(flat, metric, kept, 9).curve()
    found = columns_curve(flat, metric.times(flat), metric, kept, 9)
    assert np.allclose(found, expected, rtol=1e-8, atol=1e-10 * expected[0])


def test_worst_rows_need_only_the_moment() -> None:
    """The same rows as by the maps themselves: best map, worst rows, best map of the others."""
    spec, W = _layer()
    metric, flat = _metric(spec), W.flatten(2)
    S = torch.zeros_like(flat)
    for _ in range(2):
        U, V = best_map(flat - S, metric, 2)
        D = flat - U @ V
        lost = ((metric.times(D) * D).sum(-1) * metric.G.diagonal(dim1=1, dim2=2))[0]
        kept = lost.topk(3).indices.sort().values
        S = torch.zeros_like(flat).index_copy(1, kept, D[:, kept])
    moment = (flat @ metric.times(flat).mT)[0]
    assert torch.equal(worst_rows(moment, metric, 3, 2), kept)


def test_products_carried_through_the_alternation_are_the_true_ones() -> None:
    """What is returned has the least error of all steps, so a step more never does worse."""
    spec, W = _layer()
    metric, flat = _metric(spec), W.flatten(2)
    lost = []
    for n_steps in (1, 2, 4):
        U, V, S = low_rank_plus_masked(flat, metric, 3, flat.numel() // 5, n_steps=n_steps)
        assert int((S != 0).sum()) <= flat.numel() // 5
        lost.append(metric.error(flat - U @ V - S))
    assert lost == sorted(lost, reverse=True)


def test_kept_channels_are_the_best_of_their_kind() -> None:
    """Given the channels, no other low-rank map and dense rest do better: gradients vanish."""
    spec, W = _layer()
    metric, kept = _metric(spec), torch.tensor([[1, 4, 7]])
    flat = W.flatten(2)
    split = split_columns(flat, metric, kept, 9)
    S, U, V = split.fit(3)
    parts = [p.clone().requires_grad_() for p in (S, U, V)]

    def lost(S: Tensor, U: Tensor, V: Tensor) -> Tensor:
        D = torch.zeros_like(flat)
        columns = [
            (c[0][:, None] * 9 + torch.arange(9)).flatten() for c in (split.kept, split.rest)
        ]
        D = D.index_add(2, columns[0], split.W_kept - S)
        D = D.index_add(2, columns[1], split.W_rest - U @ V)
        return (metric.times(D) * (metric.G @ D)).sum()

    loss = lost(*parts)
    loss.backward()
    value = loss.detach()
    assert float(value) == pytest.approx(split.lost(3), rel=1e-8)
    for part in parts:
        assert part.grad is not None
        assert part.grad.norm() < 1e-6 * float(value) ** 0.5 * metric.error(flat) ** 0.5


def test_kept_filters_are_the_ones_of_the_layer() -> None:
    spec, W = _layer()
    method = LowRankSparse(3, 0.25, "filters")
    both, order = method.factor(spec, W, seed=0, metric=_metric(spec))
    rows = (order[0] >= 12).nonzero().flatten()
    assert torch.equal(both[1][0][0], W[0, rows])


def test_low_rank_beside_sparse_beats_either_alone_at_equal_size() -> None:
    """On low rank plus a few large entries, which is what the method is for."""
    torch.manual_seed(0)
    W = torch.randn(48, 4).double() @ torch.randn(4, 64).double()
    W = (W + 20 * (torch.rand(48, 64) < 0.03))[None]
    spec = LayerSpec("linear", 64, 48)
    n = 4 * (48 + 64) + round(0.04 * W.numel())
    both = LowRankSparse(4, 0.04, "unstructured")
    alone = LowRankSparse(0, n / W.numel(), "unstructured")
    metric = Metric(torch.ones(1, 64, dtype=torch.float64))
    lost = {
        m: error_of(spec, m.stages(spec), m.factor(spec, W, seed=0), W, metric)
        for m in (both, alone, ChannelSVD(n // (48 + 64)))
    }
    assert lost[both] < 0.3 * min(lost[alone], lost[ChannelSVD(n // (48 + 64))])


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (LowRankSparse(0, 0.0), "keep nothing"),
        (LowRankSparse(99, 0.25), "rank 99 is outside 0..16"),
        (LowRankSparse(1, 1.5), "density 1.5 is outside 0..1"),
        (LowRankSparse(1, 0.3, "2:4"), "density 0.5"),
        (LowRankSparse(0, 0.5, "filters"), "rank 1"),
        (LowRankSparse(1, 0.5, "rows"), "sparsity 'rows' is none of"),  # type: ignore[arg-type]
        (Monochromatic(40), "colours 40 is outside 1..16"),
        (Monochromatic(1, 2), "1 colours are fewer than 2 a filter"),
        (BiClustering(5, 2, 1), "in_clusters 5 do not divide 12 channels"),
        (BiClustering(2, 4, 9), "rank 9 is outside 1..4"),
        (LegoNet(8, 5), "splits 5 do not divide 12 channels"),
        (LegoNet(33, 2), "n_bricks 33 is outside 1..32"),
    ],
    ids=str,
)
def test_wrong_settings_get_a_sentence(method: Method, words: str) -> None:
    spec, _ = _layer()
    assert words in (method.check(spec) or "")


@pytest.mark.parametrize("sparsity", ["unstructured", "2:4"])
def test_stored_zeros_are_no_answer_to_a_budget_of_macs(sparsity: str) -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 12, 8, 8)
    curves = lowrank.measure(net, x, methods=["low_rank_sparse"])
    offered = {c.method.sparsity for curve in curves.curves for c in curve.candidates}
    assert sparsity in offered
    for share in (0.4, 0.6, 0.8):
        taken = curves.plan(macs=share).replaced.values()
        assert sparsity not in {m.sparsity for m in taken}
    taken = curves.plan(bytes=0.6).replaced.values()
    assert "unstructured" in {m.sparsity for m in taken}


def _planted(kind: str) -> tuple[LayerSpec, Tensor, Method]:
    """A weight that a method reproduces exactly at far less than full rank."""
    rng = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    spec = LayerSpec("conv", 8, 24, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
    if kind == "monochromatic":
        of = torch.arange(24) % 3
        W = draw(3, 8)[of][:, :, None] * draw(24, 9)[:, None, :]
        return spec, W.reshape(spec.weight_shape), Monochromatic(3)
    if kind == "legonet":
        of = torch.randint(5, (24, 2), generator=rng)
        W = draw(5, 36)[of] * draw(24, 2)[:, :, None]
        return spec, W.reshape(spec.weight_shape), LegoNet(5, 2)
    W = torch.zeros(24, 8, 9, dtype=torch.float64)
    for h in range(2):  # filters of a cluster are multiples of one, of its own on each inputs
        rows = torch.arange(h, 24, 2)
        for g in range(2):
            W[rows[:, None], torch.arange(g, 8, 2)] = draw(12, 1, 1) * draw(1, 4, 1) * draw(1, 1, 9)
    return spec, W.reshape(spec.weight_shape), BiClustering(2, 2, 1)


@pytest.mark.parametrize("kind", ["monochromatic", "legonet", "biclustering"])
@pytest.mark.parametrize("seen", [False, True], ids=["weight", "data"])
def test_a_planted_structure_is_found(kind: str, seen: bool) -> None:
    spec, W, method = _planted(kind)
    metric = _metric(spec) if seen else Metric(torch.ones(1, 72, dtype=torch.float64))
    found = method.factor(spec, W, seed=0, metric=metric if seen else None)
    error = error_of(spec, method.stages(spec), found, W, metric)
    assert error < 1e-6 * metric.error(W.flatten(2))


def test_clusters_are_found_up_to_sign_and_equally_large() -> None:
    rng = torch.Generator().manual_seed(0)
    lines = torch.randn(3, 10, generator=rng)
    signs = torch.randn(12, 1, generator=rng).sign()
    order = clusters(signs * lines[torch.arange(12) % 3], 3)
    assert all(len(set((part % 3).tolist())) == 1 for part in order.split(4))


def test_more_bricks_are_closer_and_all_of_them_exact() -> None:
    torch.manual_seed(0)
    W = torch.randn(20, 18).double()
    parts = [assemble(W, n, 2) for n in (2, 5, 10, 20, 40)]
    errors = [float((W - p.to_matrix()).square().sum()) for p in parts]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-20
    assert all(p.index.max() < n for p, n in zip(parts, (2, 5, 10, 20, 40), strict=True))


def test_bricks_in_a_metric_serve_it_better() -> None:
    spec, W = _layer()
    metric, flat = _metric(spec, weighted=False), W.flatten(2)
    blind, seen = (assemble(flat[0], 8, 2, m).to_matrix()[None] for m in (None, metric))
    assert metric.error(flat - seen) < metric.error(flat - blind)


@pytest.mark.parametrize(("n", "splits", "words"), [(0, 2, "0 bricks"), (3, 5, "5 splits")])
def test_impossible_bricks_are_refused(n: int, splits: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        assemble(torch.randn(4, 12), n, splits)


def _lego(net: Net, x: Tensor) -> nn.Module:
    return _with(LegoNet(6, 2), net, x[:1])[0]


def test_codes_are_free_only_within_the_context() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(8, 12, 8, 8)
    small = _lego(net, x)
    before, names = small(x), list(small.state_dict())
    with relaxed(small) as codes:
        assert torch.allclose(small(x), before, atol=1e-5)
        small(x).square().sum().backward()
        assert codes[0].scores.grad is not None
        assert codes[0].scores.grad.abs().sum() > 0
        wanted = torch.full_like(codes[0].scores, 0.0)
        wanted[..., 3] = 1.0
        codes[0].scores.data = wanted
        chosen = small(x)
    assert list(small.state_dict()) == names
    assert set(small.a[1].index.tolist()) == {3, 9}
    assert torch.allclose(small(x), chosen, atol=1e-5)


def test_from_codes_at_random_training_them_too_ends_lower() -> None:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(256, 12, 8, 8)
    lost = {}
    for codes in (False, True):
        small = _lego(net, x)
        rng = torch.Generator().manual_seed(0)
        taken = torch.randint(6, (16, 2), generator=rng) + torch.tensor([0, 6])
        small.a[1].index = taken.flatten().clone()
        lowrank.finetune(
            small,
            teacher=net,
            data=x,
            loss="mse",
            epochs=20,
            lr=3e-3,
            relax=codes,
            only_factors=True,
        )
        assert torch.equal(small.a[1].index, taken.flatten()) is not codes
        with torch.no_grad():
            lost[codes] = float((small(x) - net(x)).square().mean())
    assert lost[True] < lost[False]


def test_a_curve_of_one_input_channel_is_not_mistaken_for_exact() -> None:
    """Tucker-2 at full rank is exact there, and its rounding error must not scale the rest."""
    spec, W = _layer(1)
    metric, energy = _metric(spec), _metric(spec).error(W.flatten(2))
    found = list(Tucker2.candidates(spec, W, round_to=1, seed=0, metric=metric))
    assert min(error for method, error in found if method.rank_out == 1) > 1e-2
    for method, error in found:
        factors = method.factor(spec, W, seed=0, metric=metric)
        fitted = error_of(spec, method.stages(spec), factors, W, metric) / energy
        assert error == pytest.approx(fitted, rel=0.5, abs=1e-5)


@pytest.mark.parametrize("rounding", [0.0, 1e-10])
def test_gains_are_not_taken_from_what_is_exact(rounding: float) -> None:
    nested = [0.1, 0.01, 1e-6]  # of damping
    curve = list(refined_curve([1, 2, 3], nested, lambda r: rounding if r == 3 else nested[r - 1]))
    assert [error for _, error in curve] == nested
