"""What the model holds besides its layers, plans edited by hand, and files that cannot be."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.methods import CP, ChannelSVD
from lowrank.errors import CheckpointError, ExportError, InputError, PlanError, RankError

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))


class _Held(nn.Module):
    """Calls `a` by another way than torch's modules, and `b` as usual."""

    def __init__(self, hold: Callable[[_Held], object]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.held = hold(self)

    def forward(self, x: Tensor) -> Tensor:
        held = self.held
        while isinstance(held, list | dict):
            held = held[0]
        return self.b(held(x))


def _two() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))


@pytest.mark.parametrize(
    "hold",
    [
        lambda m: [m.a],
        lambda m: {0: [m.a]},
        lambda m: m.a.__call__,
        lambda m: functools.partial(m.a),
        lambda m: functools.partial(m.a.__call__),
    ],
    ids=["list", "dict", "method", "partial", "partial of a method"],
)
def test_a_layer_called_past_the_modules_stays_dense(hold: Callable[[_Held], object]) -> None:
    model = _Held(hold)
    small, report = lowrank.compress(model, X, macs=0.7)
    assert "held holds it too" in report.left_alone["a"]
    assert isinstance(small.b, nn.Sequential)
    assert report.kept("macs") <= 0.7
    plan = lowrank.measure(
        _Held(lambda m: m.a), X, rules=lowrank.Rules(overrides={"a": ChannelSVD(4)})
    ).plan(params=0.9)
    with pytest.raises(PlanError, match="held holds it too"):
        lowrank.apply(model, plan)


def test_a_function_that_reaches_the_model_keeps_what_it_reaches_dense() -> None:
    with pytest.raises(InputError, match="held holds it too"):
        lowrank.compress(_Held(lambda m: lambda x: m.a(x)), X, params=0.9)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_still_compressed() -> None:
    _, report = lowrank.compress(torch.compile(_two(), backend="eager"), X, macs=0.6)
    assert len(report.replaced) == 2
    assert report.quality is not None
    assert report.quality.relative_error > 0.01


def test_a_model_that_is_one_layer_says_so() -> None:
    with pytest.raises(InputError, match=r"whole model; wrap it in nn\.Sequential"):
        lowrank.compress(nn.Linear(64, 64), X, params=0.5)
    with pytest.raises(InputError, match="NoneType"):
        lowrank.compress(None, X, params=0.5)  # type: ignore[arg-type]


def test_a_pre_hook_that_reads_the_weight_keeps_the_layer_dense() -> None:
    model = _two()
    model[0].register_forward_pre_hook(lambda m, args: (args[0] / m.weight.norm(),))
    small, report = lowrank.compress(model, X, params=0.7)
    assert "reads its weight directly" in report.left_alone["0"]
    assert small(X).shape == (2, 64)
    assert len(model[0]._forward_pre_hooks) == 1


class _Penalised(nn.Module):
    """Reads a weight in training mode alone, or never; its batch norm must not notice."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b = how, nn.Linear(64, 64), nn.Linear(64, 64)
        self.norm = nn.BatchNorm1d(64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.a(x))
        if self.training and self.how == "fails":
            raise RuntimeError("where are the targets?")
        if self.training and self.how == "reads":
            h = h + 1e-3 * self.a.weight.norm()
        return self.b(h)


@pytest.mark.parametrize("how", ["reads", "fails", "nothing"])
def test_a_weight_that_training_mode_reads_keeps_its_layer_dense(how: str) -> None:
    net, state = _Penalised(how).eval(), torch.get_rng_state()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    small, report = lowrank.compress(net, X, params=0.8)
    said = "reads its weight directly in training mode" in report.left_alone.get("a", "")
    assert said == (how == "reads")
    if how == "reads":
        lowrank.finetune(small, teacher=net, data=X, epochs=1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not net.training


def _edited(tmp_path: Path, edit: Callable[[dict[str, dict[str, object]]], object]) -> lowrank.Plan:
    plan = json.loads(lowrank.measure(_two(), X).plan(params=0.6).to_json())
    edit(plan["layers"])
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    return lowrank.Plan.load(tmp_path / "plan.json")


def test_a_rank_changed_by_hand_drops_the_old_predictions(tmp_path: Path) -> None:
    plan = _edited(tmp_path, lambda rows: rows["0"].update(rank=3))
    _, report = lowrank.apply(_two(), plan, example=X)
    first, last = report.replaced
    assert first.cost is None
    assert first.predicted_error is None
    assert first.measured_error is not None
    assert last.cost is not None
    assert str(report)


def test_a_missing_row_and_a_rank_of_true_are_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"^2: the plan has no row"):
        lowrank.apply(_two(), _edited(tmp_path, lambda rows: rows.pop("2")))
    with pytest.raises(RankError, match=r"^0: rank True"):
        lowrank.apply(_two(), _edited(tmp_path, lambda rows: rows["0"].update(rank=True)))


def test_a_model_without_values_is_not_loaded_into(tmp_path: Path) -> None:
    small, _ = lowrank.compress(_two(), X, params=0.6)
    lowrank.save(small, tmp_path / "small.safetensors")
    empty = _two().to("meta")
    with pytest.raises(CheckpointError, match="meta device"):
        lowrank.load(tmp_path / "small.safetensors", into=empty)
    assert isinstance(empty[0], nn.Linear)


def test_exports_that_cannot_be_written_or_read_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be written"):
        lowrank.export_program(_two(), X, tmp_path / "none" / "net.pt2")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match="cannot be written"):
        lowrank.export_onnx(_two(), X, tmp_path / "none" / "net.onnx")
    net = nn.Sequential(nn.Conv2d(3, 4, 3)).bfloat16()
    with pytest.raises(ExportError, match="onnxruntime refuses"):
        lowrank.export_onnx(net, torch.randn(1, 3, 8, 8).bfloat16(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_compressed_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        small, _ = lowrank.compress(_two(), X, params=0.6)
    with torch.inference_mode():
        model = _two()  # its own tensors are inference tensors
        again, _ = lowrank.compress(model, X, params=0.6)
    for net in (small, again):
        net(X).sum().backward()


def test_layers_that_share_a_weight_name_each_other_once() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    _, report = lowrank.compress(model, X, params=0.7)
    assert report.left_alone == {
        "0": "shares its weight with 1",
        "1": "shares its weight with 0",
    }


def test_channels_last_survives_factors_that_are_one_wide() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(1, 8, 9, 9)
    small, _ = lowrank.compress(model, x, params=1.0, rules=lowrank.Rules(overrides={"0": CP(6)}))
    assert lowrank.densify(small)[0].weight.is_contiguous(memory_format=torch.channels_last)
