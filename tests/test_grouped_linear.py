"""Linear layers in groups: block-diagonal weights, and the methods that make them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import Call, GroupedLinear, LayerSpec, canonical, spec_of

torch.set_num_threads(1)
GROUPED = [
    lowrank.GroupSVD(2, 5),
    lowrank.GroupSVD(4, 3, "kernel_last"),
    lowrank.BiClustering(2, 4, 2),
]


def _block_diagonal(layer: GroupedLinear) -> torch.Tensor:
    return torch.block_diag(*layer.weight.detach().chunk(layer.groups))


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 12), (2, 1, 3, 12), (0, 12)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_dense_layer_of_its_blocks(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = GroupedLinear(12, 8, groups=4, bias=bias).double()
    dense = nn.functional.linear(x := torch.randn(shape).double(), _block_diagonal(layer))
    expected = dense if layer.bias is None else dense + layer.bias
    assert layer(x).shape == (*shape[:-1], 8)
    assert torch.allclose(layer(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_spec_builds_what_it_says(groups: int, dtype: torch.dtype) -> None:
    spec = LayerSpec("linear", 6, 4, groups=groups, bias=True)
    layer = spec.build(dtype=dtype, device="cpu")
    assert type(layer) is (nn.Linear if groups == 1 else GroupedLinear)
    assert layer.weight.numel() == spec.n_weights == 24 // groups
    assert spec_of(layer) == spec
    W = torch.arange(float(spec.n_weights)).reshape(spec.weight_shape)
    spec.write(layer, W)
    assert torch.equal(spec.read(layer).float(), W)
    layer.bias.data.zero_()
    y = torch.einsum("goi,gi->go", W, torch.ones(groups, 6 // groups)).flatten()
    assert torch.equal(layer(torch.ones(2, 6, dtype=dtype)).float(), y.expand(2, 4))


class Block(nn.Module):
    """A feed-forward block on (batch, positions, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


def _block() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()


X = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", GROUPED, ids=str)
def test_a_compressed_block_saves_loads_densifies_and_exports(method, tmp_path) -> None:
    model, path = _block(), tmp_path / "small.safetensors"
    small, report = lowrank.compress(
        model, X, params=0.9, rules=lowrank.Rules(overrides={"up": method})
    )
    grouped = [m for m in small.up.modules() if isinstance(m, GroupedLinear)]
    assert grouped
    expected = small(X)
    lowrank.save(small, path)
    assert torch.equal(lowrank.load(path, into=_block())(X), expected)
    assert torch.allclose(lowrank.densify(small)(X), expected, atol=1e-5)
    assert type(lowrank.densify(small).up) is nn.Linear
    assert torch.allclose(copy.deepcopy(small)(X), expected)
    program = lowrank.export_program(small, X)
    assert torch.allclose(program.module()(X), expected, atol=1e-5)
    # the plan's parameters and MACs are the real ones
    assert report.compressed.parameters == sum(p.numel() for p in small.parameters())
    assert report.compressed.macs == report.plan.cost.macs
    assert report.compressed.bytes == report.plan.cost.bytes
    profile = lowrank.profile(small, X)
    assert profile.macs == report.plan.cost.macs


@pytest.mark.parametrize("method", GROUPED, ids=str)
def test_onnx_computes_the_same(method, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    small, _ = lowrank.compress(
        _block(), X, params=0.9, rules=lowrank.Rules(overrides={"up": method})
    )
    path = tmp_path / "small.onnx"
    lowrank.export_onnx(small, X, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert np.abs(found - small(X).detach().numpy()).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", GROUPED, ids=str)
def test_half_types(method, dtype: torch.dtype) -> None:
    model = _block().to(dtype)
    small, report = lowrank.compress(
        model, X.to(dtype), params=0.9, rules=lowrank.Rules(overrides={"up": method})
    )
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert report.compressed.bytes == report.plan.cost.bytes
    full, *_ = type(method).variants(spec_of(model.up))
    exact, _ = lowrank.compress(
        model, X.to(dtype), params=10**9, rules=lowrank.Rules(overrides={"up": full})
    )
    want, got = model(X.to(dtype)).float(), exact(X.to(dtype)).float()
    assert (want - got).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("with_data", [False, True])
def test_subspaces_of_a_linear_layer_are_found_where_there_are_some(with_data: bool) -> None:
    """Halves of the inputs of rank 4 each: 384 weights hold both, an SVD needs 512."""
    rng = torch.Generator().manual_seed(2)
    pair = [torch.randn(32, 4, generator=rng) @ torch.randn(4, 16, generator=rng) for _ in "ab"]
    model = nn.Sequential(nn.Linear(32, 32, bias=False))
    model[0].weight.data = torch.cat(pair, 1)
    x = torch.randn(256, 32, generator=rng)
    given = (
        {"data": x, "calibration": lowrank.Calibration(weighting="outputs")} if with_data else {}
    )
    of = {}
    for method in ("group_svd", "channel_svd"):
        [curve] = lowrank.measure(model, x[:1], methods=method, **given).curves
        of[method] = min(c.error for c in curve.candidates if c.cost.params <= 384)
    assert of["group_svd"] < 1e-3 < 0.05 < of["channel_svd"]


def test_data_of_grouped_layers_are_seen_group_by_group() -> None:
    """A compressed model's grouped layer is itself a layer: with data it is fitted by groups."""
    torch.manual_seed(0)
    model = nn.Sequential(GroupedLinear(16, 16, groups=2), nn.ReLU(), nn.Linear(16, 4)).eval()
    x = torch.randn(128, 16) * torch.logspace(-2, 0.5, 8).repeat(2)
    plan = {"0": lowrank.ChannelSVD(3)}
    seen, _ = lowrank.compress(
        model,
        x[:1],
        data=x,
        calibration=lowrank.Calibration(weighting="outputs"),
        params=0.99,
        rules=lowrank.Rules(overrides=plan),
    )
    blind, _ = lowrank.compress(model, x[:1], params=0.99, rules=lowrank.Rules(overrides=plan))
    assert [type(m) for m in seen[0]] == [GroupedLinear, GroupedLinear]
    lost = [(m[0](x) - model[0](x)).square().sum() for m in (seen, blind)]
    assert lost[0] < 0.5 * lost[1]


def test_int8_says_why_a_grouped_layer_stays() -> None:
    pytest.importorskip("torchao")
    small, _ = lowrank.compress(
        _block(), X, params=0.9, rules=lowrank.Rules(overrides={"up": GROUPED[0]})
    )
    quantized, found = lowrank.quantize(small)
    assert "up.1" in found.int8
    assert found.left_alone["up.0"].endswith("and this is a GroupedLinear")
    assert (quantized(X) - small(X)).norm() < 0.05 * small(X).norm()


def test_calls_count() -> None:
    spec = LayerSpec("linear", 12, 8, groups=4)
    assert spec.macs(Call(3)) == 3 * 24
    assert canonical(spec, GroupedLinear(12, 8, 4).weight).shape == (4, 2, 3)
