"""Every method on every layer: exact at full rank, honest about its cost, all attributes kept."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from cases import LAYERS, PROMISE, SELECTIVE, full_rank_methods, layer_input
from torch import nn

import lowrank
from lowrank.compression import LayerView, canonical, compose, module_layout, scan, spec_of
from lowrank.compression.methods import METHODS
from lowrank.compression.network.own_stages import StoresBuffers, weight_count

# products of at most a few hundred terms of order one, through up to five stages
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


class Wrapped(nn.Module):
    """A layer inside a model, as every layer is."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@cache
def _swapped(
    name: str, method: object, dtype: torch.dtype
) -> tuple[nn.Module, torch.Tensor, nn.Module]:
    """The model around a layer, its input, and the model with a method in the layer's place."""
    torch.default_generator.manual_seed(0)
    build, shape = LAYERS[name]
    model = Wrapped(build().to(dtype)).eval()
    x = layer_input(model.layer, shape, dtype)
    rules = lowrank.Rules(overrides={"layer": method})
    small, _ = lowrank.apply(model, lowrank.measure(model, x, rules=rules).plan(params=10**9))
    return model, x, small


def _grid() -> list[tuple[str, object]]:
    return [
        (name, method)
        for name, (build, _) in LAYERS.items()
        for method in full_rank_methods(spec_of(build()))
    ]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("name", "method"), _grid(), ids=str)
def test_full_rank_is_the_layer_itself(name: str, method: object, dtype: torch.dtype) -> None:
    model, x, small = _swapped(name, method, dtype)
    found, expected = small(x), model(x)
    assert isinstance(small.layer, nn.Sequential)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def _bytes_of_buffers(chain: nn.Module) -> int:
    parts = [m for m in chain.modules() if isinstance(m, StoresBuffers)]
    return sum(b.numel() * b.element_size() for m in parts for b in m.stored_buffers())


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", LAYERS)
def test_costs_are_what_the_stages_hold_and_do(name: str) -> None:
    """Predicted parameters against the real count, MACs against torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    build, shape = LAYERS[name]
    layer = build()
    x = layer_input(layer, shape, torch.float32)
    [view] = scan(Wrapped(layer).eval(), x).views
    for method in full_rank_methods(view.spec):
        chain = _swapped(name, method, torch.float32)[2].layer
        cost = view.cost(method.stages(view.spec))
        held = {n: p.numel() for n, p in chain.named_parameters()}
        biases = sum(size for n, size in held.items() if n.endswith("bias"))
        assert cost.params == weight_count(chain) - biases
        assert cost.bytes == 4 * (sum(held.values()) - biases) + _bytes_of_buffers(chain)
        with FlopCounterMode(display=False) as counter:
            chain(x)
        assert 2 * cost.macs == counter.get_total_flops()


SHAPES = list(
    {
        (spec.kind, spec.groups, spec.weight_shape): name
        for name, (build, _) in LAYERS.items()
        if (spec := spec_of(build())) is not None
    }.values()
)
"""A layer for each shape of weights, on which padding, stride and bias have no say."""


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", SHAPES)
def test_candidates_promise_the_error_they_build(name: str) -> None:
    """The curve's error is the built one: exactly for SVDs, at least for Tucker-2 and TT."""
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().double()
    [view] = scan(Wrapped(layer).eval(), layer_input(layer, shape, torch.float64)).views
    W = view.weight()
    for cls in METHODS.values():
        if "alone" not in cls.serves or cls.supports(view.spec) is not None:
            continue
        offered = list(cls.candidates(view.spec, W, round_to=1, seed=0))
        assert offered or cls.name in SELECTIVE
        for method, promised in offered[:: max(1, len(offered) // 4)]:
            assert method.check(view.spec) is None
            specs = method.stages(view.spec)
            built = compose(view.spec, specs, method.factor(view.spec, W, seed=0))
            error = float((W - built).square().sum() / W.square().sum())
            if "svd" in cls.name:
                assert error == pytest.approx(promised, abs=1e-9)
            elif cls.name in PROMISE:
                assert error - promised < PROMISE[cls.name]
            else:
                assert error <= promised + 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_canonical_layout_round_trips(name: str) -> None:
    layer = LAYERS[name][0]()
    spec = spec_of(layer)
    W = canonical(spec, layer.weight.detach())
    assert tuple(W.shape) == spec.weight_shape
    assert torch.equal(module_layout(spec, W), layer.weight.detach())


def test_transposed_linear_of_transformers_becomes_two_linear_layers() -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = Wrapped(Conv1D(6, 10)).double().eval()
    nn.init.normal_(model.layer.bias)
    x = torch.randn(3, 10).double()
    small, _ = lowrank.compress(
        model, x, params=10**9, rules=lowrank.Rules(overrides={"layer": METHODS["channel_svd"](6)})
    )
    assert [type(m) for m in small.layer] == [nn.Linear, nn.Linear]
    assert (small(x) - model(x)).abs().max() < 1e-10
    dense = lowrank.densify(small)
    assert type(dense.layer) is Conv1D
    assert (dense(x) - model(x)).abs().max() < 1e-10


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LAYERS)
def test_densify_gives_the_layer_back(name: str) -> None:
    for method in full_rank_methods(spec_of(LAYERS[name][0]())):
        model, x, small = _swapped(name, method, torch.float64)
        dense = lowrank.densify(small)
        assert repr(dense) == repr(model)
        assert (dense(x) - model(x)).abs().max() < 1e-10
        assert dense.state_dict().keys() == model.state_dict().keys()


def test_attributes_of_the_layer_survive() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1).half().to(memory_format=torch.channels_last)
    layer.weight.requires_grad_(False)
    model = Wrapped(layer)
    model.layer.train()
    model.training = False
    seen = []
    layer.register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape)))
    x = torch.randn(1, 16, 8, 8).half()
    small, _ = lowrank.compress(model, x, macs=0.5, methods=["tucker2"])
    for stage in small.layer:
        assert stage.weight.dtype == torch.float16
        assert not stage.weight.requires_grad
        assert stage.training
    assert small.layer[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert small.layer[-1].bias.requires_grad
    assert not small.training
    assert small.layer.training
    seen.clear()
    small(x)
    assert seen == [(1, 16, 8, 8)]


def test_channels_last_input_gives_the_same_output() -> None:
    torch.manual_seed(0)
    model = Wrapped(nn.Conv2d(16, 16, 3, padding=1)).eval()
    x = torch.randn(2, 16, 8, 8)
    small, _ = lowrank.compress(model, x, macs=0.5)
    fast = small.to(memory_format=torch.channels_last)
    out = fast(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(out, small(x), atol=1e-5)


def test_view_counts_every_call() -> None:
    layer = nn.Conv2d(3, 3, 3, padding=1, bias=False)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x)[..., ::2])

    [view] = scan(Twice(), torch.randn(1, 3, 6, 6)).views
    assert isinstance(view, LayerView)
    assert view.cost().macs == 81 * (36 + 18)


def test_a_layer_that_says_another_size_stays() -> None:
    """As a head that was tied to a table of another length does."""
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8, bias=False))
    net[2].weight = nn.Parameter(torch.randn(12, 32))
    small, report = lowrank.compress(net, torch.randn(4, 16), params=0.9)
    assert "none of the size that it says" in report.left_alone["2"]
    assert small(torch.randn(4, 16)).shape == (4, 12)
