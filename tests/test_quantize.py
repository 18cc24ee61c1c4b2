"""int8: what is quantized, what it costs, and one budget of bytes over ranks and bits."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lowrank
from lowrank.compression import (
    TOTAL,
    Plan,
    Rounding,
    count_macs,
    is_int8,
    quantize_linear,
    reasons_against,
    rounded,
    run,
    scan,
    stage_bytes,
    weight_bytes,
)
from lowrank.compression.methods import ChannelSVD
from lowrank.errors import CheckpointError, InputError, PlanError


def _has_torchao() -> bool:
    from lowrank.compression import require_torchao

    try:
        require_torchao()
    except InputError:
        return False
    return True


needs_torchao = pytest.mark.skipif(not _has_torchao(), reason="torchao is not installed")

ROUNDING = 0.02
"""Relative error of the outputs of a few int8 layers: weights and inputs in 255 steps."""


class Net(nn.Module):
    """A convolution and three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b, self.c = nn.Linear(64, 96), nn.Linear(96, 96), nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)).unflatten(2, (2, -1)).mean((3, 4))  # (b, 16, 2)
        h = torch.cat([h.flatten(1), h.flatten(1).square()], 1)
        return self.c(torch.relu(self.b(torch.relu(self.a(h)))))


def _net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net().eval()
    with torch.no_grad():  # spectra that fall, as in trained networks
        for layer in (net.a, net.b):
            U, s, Vh = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(U @ torch.diag(s * 0.93 ** torch.arange(len(s))) @ Vh)
    return net


X = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _error(net: nn.Module, small: nn.Module) -> float:
    expected = run(net, X)
    return float((run(small, X) - expected).norm() / expected.norm())


# --- what needs no torchao ---------------------------------------------------------------


def test_reasons_name_what_stays() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.words = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.words.weight
            self.wide = nn.Linear(4, 4).double()
            self.attention = nn.MultiheadAttention(4, 2)
            self.fine, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

    found = reasons_against(Odd())
    assert "linear layers only, and this is a Conv2d" in found["conv"]
    assert "linear layers only, and this is a Embedding" in found["words"]
    assert found["head"] == "it shares its weight with words"
    assert "torch.float64" in found["wide"]
    assert "NonDynamicallyQuantizableLinear" in found["attention.out_proj"]
    assert "fine" not in found
    assert "norm" not in found


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_reasons_speak_of_the_layer_whatever_holds_its_weight() -> None:
    lin = nn.Linear
    net = nn.ModuleDict(
        {"normed": parametrizations.weight_norm(lin(4, 4)), "lazy": nn.LazyLinear(3)}
    )
    net["pruned"] = prune.l1_unstructured(lin(4, 4), "weight", amount=2)
    net["scripted"] = torch.jit.script(nn.Sequential(lin(4, 4)))
    net.update({"thin": lin(1, 8), "fine": lin(2, 8)})
    found = reasons_against(net)
    assert "fine" not in found
    assert "its weight is parametrized" in found["normed"]
    assert "has no weights yet" in found["lazy"]
    assert "recomputed from" in found["pruned"]
    assert "this is a RecursiveScriptModule" in found["scripted.0"]
    assert "at least 2 inputs" in found["thin"]
    assert set(found) == {"normed", "lazy", "pruned", "scripted.0", "thin"}


@pytest.mark.parametrize("rank", [1, 2])
def test_no_factor_of_one_input_is_in_int8(rank: int) -> None:
    net = nn.Sequential(nn.Linear(12, 8)).eval()
    x = torch.randn(5, 12)
    (curve,) = lowrank.measure(net, x, methods=["channel_svd", "group_svd"]).curves
    (view,) = scan(net, x).views
    for mine in Rounding(view, None).of(curve.candidates):
        widths = [s.in_channels for s in mine.method.stages(view.spec)]
        assert min(widths) > 1, mine.method
    plan = lowrank.measure(net, x).plan(params=0.9).with_choice("0", ChannelSVD(rank))
    plan = replace(plan, layers={"0": replace(plan.layers["0"], int8=True)})
    if rank == 1:
        with pytest.raises(PlanError, match="two inputs at least"):
            lowrank.apply(net, plan)
    elif _has_torchao():
        assert lowrank.apply(net, plan)[0](x).shape == (5, 8)


@needs_torchao
def test_narrow_layers_run_in_int8_or_stay() -> None:
    for i, o in product((1, 2, 3, 17), repeat=2):
        net, x = nn.Sequential(nn.Linear(i, o), nn.Linear(o, 4)).eval(), torch.randn(3, i)
        if i == o == 1:
            with pytest.raises(InputError, match="at least 2 inputs"):
                lowrank.quantize(net)
            continue
        small, report = lowrank.quantize(net)
        assert small(x).shape == (3, 4)
        assert len(report.left_alone) == (i == 1) + (o == 1)


def test_errors_of_rounding_are_measured_in_the_metric() -> None:
    net = _net()
    curves = lowrank.measure(
        net,
        X[:1],
        data=[X],
        calibration=lowrank.Calibration(weighting="outputs"),
        methods=["channel_svd"],
    )
    view = next(v for v in scan(net, X[:1]).views if v.name == "b")
    assert curves.data is not None
    metric = curves.data.metric(net, "b")
    found = Rounding(view, metric).whole()
    assert found is not None
    cost, error = found
    W = net.b.weight.detach()[None]
    expected = metric.error(W - rounded(W)) / metric.error(W)
    assert error == pytest.approx(expected)
    assert 0 < error < 1e-3
    assert cost.params == 96 * 96
    assert cost.bytes == 96 * 96 + 5 * 96


def test_candidates_in_int8_cost_a_quarter_and_lose_a_little_more() -> None:
    net = _net()
    curve = next(
        c for c in lowrank.measure(net, X[:1], methods=["channel_svd"]).curves if c.layer == "b"
    )
    view = next(v for v in scan(net, X[:1]).views if v.name == "b")
    coarse = {c.method: c for c in Rounding(view, None).of(curve.candidates)}
    wider = [c for c in curve.candidates if c.method.rank > 1]  # type: ignore[attr-defined]
    assert set(coarse) == {c.method for c in wider}
    for fine in wider:
        mine = coarse[fine.method]
        assert mine.int8
        assert mine.cost.macs == fine.cost.macs
        assert mine.cost.params == fine.cost.params
        assert mine.cost.bytes == stage_bytes(fine.method.stages(view.spec))
        assert fine.error <= mine.error < fine.error + 1e-3


def test_nothing_is_offered_for_convolutions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    [view] = scan(net, X[:1]).views
    curves = lowrank.measure(net, X[:1])
    assert Rounding(view, None).whole() is None
    assert Rounding(view, None).of(curves.curves[0].candidates) == []


def test_a_missing_torchao_gets_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (
        lambda: lowrank.quantize(_net()),
        lambda: lowrank.compress(_net(), X[:1], bytes=0.2, int8=True),
    ):
        with pytest.raises(InputError, match=r"torchao is not installed; pip install .*quantize"):
            call()


def test_int8_without_bytes_or_beside_the_clock_is_refused() -> None:
    with pytest.raises(InputError, match="no budget of bytes"):
        lowrank.compress(_net(), X[:1], macs=0.5, int8=True)
    with pytest.raises(InputError, match="not measured for latency"):
        lowrank.compress(_net(), X[:1], bytes=0.5, latency=0.9, int8=True)


def test_plans_with_int8_round_trip() -> None:
    plan = lowrank.measure(_net(), X[:1], methods=["channel_svd"]).plan(bytes=0.5)
    data = plan.to_dict()
    data["layers"]["b"]["int8"] = True
    again = Plan.from_dict(json.loads(json.dumps(data)))
    assert again.int8 == ["b"]
    assert Plan.from_json(again.to_json()) == again
    assert '"int8"' not in plan.to_json()
    data["layers"]["b"]["int8"] = "yes"
    with pytest.raises(PlanError, match="b: int8 is 'yes'; give true or false"):
        Plan.from_dict(data)


# --- quantize ----------------------------------------------------------------------------


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("seed", range(4))  # some of them with an entry half way between steps
def test_rounded_is_what_torchao_stores(dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(48, 33)).to(dtype)
    expected = rounded(net[0].weight.detach())
    quantize_linear(net, ["0"])
    assert is_int8(net[0].weight)
    assert torch.equal(net[0].weight.dequantize(), expected)


@needs_torchao
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_quantize_keeps_parameters_and_bytes_apart(dtype: torch.dtype) -> None:
    net = _net().to(dtype)
    small, report = lowrank.quantize(net)
    assert report.int8 == ("a", "b", "c")
    assert list(report.left_alone) == ["conv"]
    n = sum(p.numel() for p in net.parameters())
    assert report.parameters == n == sum(p.numel() for p in small.parameters())
    weights = [m.weight for m in (net.a, net.b, net.c)]
    rest = dtype.itemsize * (n - sum(w.numel() for w in weights))
    assert report.bytes_after == rest + sum(w.numel() + 5 * w.shape[0] for w in weights)
    assert report.bytes_before == dtype.itemsize * n
    assert report.bytes_after == weight_bytes(small)
    text = str(report)
    assert f"parameters {n:,}, as before" in text
    assert "left: conv: torchao has int8 kernels for linear layers only" in text
    assert type(net.a.weight) is nn.Parameter
    wide, narrow = net.float(), small
    if dtype == torch.float32:
        assert 0 < _error(wide, narrow) < ROUNDING


@needs_torchao
def test_macs_are_counted_in_int8_too() -> None:
    net = _net()
    small, _ = lowrank.quantize(net)
    assert count_macs(small, X[:4])[TOTAL] == count_macs(net, X[:4])[TOTAL]


@needs_torchao
def test_skip_and_only() -> None:
    _, report = lowrank.quantize(_net(), skip=["c"])
    assert report.int8 == ("a", "b")
    assert report.left_alone["c"] == "skipped by the user"
    _, report = lowrank.quantize(_net(), only=["[ab]"], skip=["a"])
    assert report.int8 == ("b",)
    with pytest.raises(InputError, match="'d' matches no layer"):
        lowrank.quantize(_net(), skip=["d"])


@needs_torchao
def test_a_model_without_linear_layers_gets_a_sentence() -> None:
    with pytest.raises(InputError, match="no layer can be int8; 0: torchao has int8 kernels"):
        lowrank.quantize(nn.Sequential(nn.Conv2d(3, 3, 3)))


@needs_torchao
def test_quantized_layers_are_not_quantized_again_nor_factorized() -> None:
    small, _ = lowrank.quantize(_net(), only=["b"])
    _, report = lowrank.quantize(small)
    assert report.left_alone["b"] == "it is int8 already"
    assert report.int8 == ("a", "b", "c")
    reasons = scan(small, X[:1]).reasons
    assert "already quantized" in reasons["b"]


# --- one budget --------------------------------------------------------------------------


def _planned(**settings: Any) -> tuple[nn.Module, lowrank.Report]:
    return lowrank.compress(_net(), X[:1], data=[X], methods=["channel_svd"], **settings)


@needs_torchao
def test_ranks_and_bits_share_the_budget() -> None:
    small, report = _planned(bytes=0.3, int8=True)
    assert report.plan.int8
    assert report.kept("bytes") <= 0.3
    assert weight_bytes(small) == report.compressed.bytes == report.plan.cost.bytes
    assert report.kept("parameters") > report.kept("bytes")
    blind, without = _planned(bytes=0.3)
    assert _error(_net(), small) < _error(_net(), blind)
    assert without.plan.int8 == []
    assert any(note.startswith("in int8, inputs rounded") for note in report.notes)
    assert "int8" in str(report)


@needs_torchao
def test_below_a_quarter_ranks_fall_too() -> None:
    small, report = _planned(bytes=0.17, int8=True)
    rows = {n: report.plan.layers[n] for n in report.plan.int8}
    assert any(isinstance(row.choice, ChannelSVD) for row in rows.values())
    assert report.kept("bytes") <= 0.17
    again, _ = lowrank.apply(_net(), Plan.from_json(report.plan.to_json()), data=[X])
    assert weight_bytes(again) == weight_bytes(small)


@needs_torchao
def test_the_predicted_error_is_that_of_the_quantized_layer() -> None:
    """Without data: of the weights, which can be compared after dequantizing."""
    net = nn.Sequential(nn.Linear(64, 64, bias=False))
    small, report = lowrank.compress(net, torch.randn(1, 64), bytes=0.27, int8=True)
    row = report.plan.layers["0"]
    assert row.int8
    W = net[0].weight.detach()
    made = lowrank.densify(small)[0].weight.detach()
    assert row.error == pytest.approx(float((W - made).square().sum() / W.square().sum()), rel=0.01)


@needs_torchao
def test_several_budgets_at_once() -> None:
    _, report = _planned(bytes=0.2, macs=0.7, int8=True)
    assert report.kept("bytes") <= 0.2
    assert report.kept("macs") <= 0.7


@needs_torchao
@pytest.mark.parametrize(
    ("name", "words"),
    [("conv", "it cannot be int8: torchao has int8 kernels for linear layers only")],
)
def test_a_plan_that_cannot_be_is_refused(name: str, words: str) -> None:
    data = lowrank.measure(_net(), X[:1], methods=["channel_svd"]).plan(bytes=0.9).to_dict()
    row = data["layers"][name]
    data["layers"][name] = {k: row[k] for k in ("kind", "shapes")} | {"dense": "", "int8": True}
    with pytest.raises(PlanError, match=words):
        lowrank.apply(_net(), Plan.from_dict(data))


# --- files and the way back --------------------------------------------------------------


def _whole() -> nn.Module:
    return lowrank.quantize(_net())[0]


def _factorized() -> nn.Module:
    return _planned(bytes=0.17, int8=True)[0]


def _in_half() -> nn.Module:
    return lowrank.quantize(_net().bfloat16())[0]


@needs_torchao
@pytest.mark.parametrize("build", [_whole, _factorized, _in_half])
def test_saved_and_loaded_it_is_the_same(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    small = build()
    path = tmp_path / "small.safetensors"
    lowrank.save(small, path)
    dtype = small.conv.bias.dtype if isinstance(small.conv, nn.Conv2d) else torch.float32
    again = lowrank.load(path, into=_net(1).to(dtype)).eval()
    x = X.to(dtype)
    assert torch.equal(run(again, x), run(small, x))
    assert weight_bytes(again) == weight_bytes(small)
    assert path.stat().st_size < weight_bytes(small) + 20_000  # the plan's JSON


@needs_torchao
def test_another_model_is_refused_and_left_alone(tmp_path: Path) -> None:
    lowrank.save(_whole(), tmp_path / "small.safetensors")
    other = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(CheckpointError, match="an int8 weight does not fit"):
        lowrank.load(tmp_path / "small.safetensors", into=other)
    assert type(other[0].weight) is nn.Parameter


@needs_torchao
@pytest.mark.parametrize("build", [_whole, _factorized])
def test_densify_takes_it_back_to_floating_point(build: Callable[[], nn.Module]) -> None:
    small = build()
    dense = lowrank.densify(small)
    assert all(type(p) is nn.Parameter for p in dense.parameters())
    assert _error(small, dense) < ROUNDING  # inputs are no longer rounded
    assert type(dense.b) is nn.Linear


@needs_torchao
def test_it_cannot_be_trained_and_says_so() -> None:
    with pytest.raises(InputError, match="a is int8, which cannot be trained; fine-tune first"):
        lowrank.finetune(_whole(), teacher=_net(), data=X)


@needs_torchao
def test_it_exports() -> None:
    small = _factorized()
    program = lowrank.export_program(small, X[:2])
    assert torch.allclose(program.module()(X[:2]), run(small, X[:2]), atol=1e-5)
