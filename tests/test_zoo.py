"""Every architecture through the whole of it: compress, run, list, save, load, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import FULL, SMALL, Net

import lowrank
from lowrank.compression import flatten, run, scan
from lowrank.compression.structure.choices import Tied

pytestmark = [
    # transformers' own deprecations and tracer notes are not ours to mend
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


OWN_MODULES = {"low_rank_sparse", "legonet", "biclustering", "monochromatic"}
"""Methods with sums, selections or sparse storage, which no stock module has; nor has torch a
linear layer in groups."""


def _own_modules_only_where_stock_ones_cannot_serve(small, report):
    own = {n for n, m in small.named_modules() if "lowrank" in type(m).__module__}
    free = {n for n, m in report.plan.replaced.items() if m.name in OWN_MODULES}
    linear = {n for n, row in report.plan.layers.items() if row.kind == "Linear"}
    free |= {n for n in linear & {*report.plan.replaced} if report.plan[n].name == "group_svd"}
    free |= {n for n, m in report.plan.replaced.items() if m.name == "adaptive_embedding"}
    rows = report.plan.layers.items()
    free |= {n for n, row in rows if isinstance(row.choice, Tied) and row.choice.to in free}
    assert all(any(n == f or n.startswith(f"{f}.") for f in free) for n in own)


def _whole_way(net: Net, folder: Path, methods: list[str] | None = None) -> None:
    model, example = net.build(), net.example()
    before = [t.clone() for t in flatten(run(model, example))]
    small, report = lowrank.compress(model, example, params=0.5, methods=methods)

    holders = {n for n, m in model.named_modules() if m._parameters}
    assert holders <= {row.name for row in report.layers}
    assert all(row.reason or row.name in _replaced(report) for row in report.layers)
    assert report.kept("parameters") <= 0.5
    assert report.plan.cost.params == sum(p.numel() for p in small.parameters())
    assert report.plan.cost.macs == report.compressed.macs
    assert all(torch.equal(a, b) for a, b in zip(flatten(run(model, example)), before, strict=True))
    _own_modules_only_where_stock_ones_cannot_serve(small, report)

    expected = flatten(run(small, example))
    assert all(torch.isfinite(t).all() for t in expected)
    lowrank.save(small, folder / "small.safetensors")
    loaded = lowrank.load(folder / "small.safetensors", into=net.build())
    for a, b in zip(expected, flatten(run(loaded, example)), strict=True):
        assert torch.equal(a, b)
    lowrank.export_program(small, example)  # compares the outputs itself
    dense = lowrank.densify(small)
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    for a, b in zip(expected, flatten(run(dense, example)), strict=True):
        assert (a - b).abs().max() <= 1e-3 * a.abs().max()


def _replaced(report: lowrank.Report) -> set[str]:
    return {row.name for row in report.replaced}


FEW: dict[str, list[str]] = {
    "resnet": ["channel_svd", "tucker2", "biclustering"],
    "vgg": ["channel_svd", "tensor_train", "monochromatic"],
    "mobilenet": ["channel_svd", "spatial_svd", "group_svd"],
    "convnext": ["channel_svd", "group_svd", "depthwise_separable"],
    "vit": ["channel_svd", "shared_input_svd", "legonet"],
    "bert": ["channel_svd", "shared_input_svd", "low_rank_sparse"],
    "llama": ["channel_svd", "shared_input_svd", "group_svd"],
    "whisper": ["channel_svd", "shared_input_svd"],
}
"""Methods of each kind where all would take long: every dimension and a transformer have all of
them, and so has every network at its full size."""


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_go_the_whole_way(name: str, tmp_path: Path) -> None:
    """Ten to fifty layers, and an export: MobileNet, with fifty-two, may take over five seconds."""
    _whole_way(SMALL[name], tmp_path, FEW.get(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_full_networks_go_the_whole_way(name: str, tmp_path: Path) -> None:
    _whole_way(FULL[name], tmp_path)


def test_tied_head_shares_the_table_of_the_embedding() -> None:
    net = SMALL["gpt2"]
    model, example = net.build(), net.example()
    small, report = lowrank.compress(
        model, example, params=0.4, methods=["channel_svd", "group_svd"]
    )
    plan = report.plan
    assert isinstance(plan["transformer.wte"], lowrank.ChannelSVD)
    assert plan["lm_head"] == lowrank.Tied("transformer.wte")
    assert small.lm_head[1].weight is small.transformer.wte[0].weight
    dense = lowrank.densify(small)
    assert dense.lm_head.weight is dense.transformer.wte.weight


def test_tied_head_stays_dense_with_its_embedding() -> None:
    net = SMALL["gpt2"]
    _, report = lowrank.compress(
        net.build(), net.example(), params=0.8, skip=["transformer.wte"], methods=["channel_svd"]
    )
    assert "transformer.wte" in report.left_alone["lm_head"]


def test_layers_that_are_called_in_their_own_way_stay_dense() -> None:
    net = SMALL["whisper"]
    _, report = lowrank.compress(net.build(), net.example(), params=0.6, methods=["channel_svd"])
    assert "more than one tensor" in report.left_alone["model.decoder.embed_positions"]


def test_every_layer_of_torchs_encoder_can_be_replaced() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    x = torch.randn(2, 5, 32)
    _, report = lowrank.compress(model, x, params=0.5)
    parts = ("linear1", "linear2", *(f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")))
    replaceable = {name for name, row in report.plan.layers.items() if row.dense is not None}
    assert replaceable == {f"layers.{k}.{part}" for k in (0, 1) for part in parts}
    assert "stock" in scan(model, x).reasons["layers.0.self_attn"]
