"""Files: strict, whole, unpickled, and harmless to the model when they are bad."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lowrank
from lowrank.errors import CheckpointError, ExportError, PlanError


def _net(width: int = 32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 8)).eval()


X = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small, _ = lowrank.compress(_net(), X, macs=0.5)
    lowrank.save(small, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_round_trip_is_exact_and_in_place(saved: Path) -> None:
    small, _ = lowrank.compress(_net(), X, macs=0.5)
    fresh = _net()
    fresh[1].running_mean += 1
    again = lowrank.load(saved, into=fresh)
    assert again is fresh
    assert torch.equal(again(X), small(X))
    assert torch.equal(lowrank.densify(again)(X), lowrank.densify(small)(X))


def test_dense_and_twice_compressed_models_are_saved_too(tmp_path: Path) -> None:
    once, _ = lowrank.compress(_net(), X, params=0.7)
    twice, _ = lowrank.compress(once, X, params=0.8)
    for name, model in {"dense": _net(), "twice": twice}.items():
        lowrank.save(model, tmp_path / name)
        assert torch.equal(lowrank.load(tmp_path / name, into=_net())(X), model(X))


def _truncate(data: bytes) -> bytes:
    return data[:-100]


def _flip_weight(data: bytes) -> bytes:
    return data[:-50] + bytes([data[-50] ^ 1]) + data[-49:]


def _flip_plan(data: bytes) -> bytes:
    method = re.search(rb"method\W+(\w+)", data)
    assert method is not None
    return data[: method.end() - 1] + b"x" + data[method.end() :]


def _empty(data: bytes) -> bytes:
    return b""


def _text(data: bytes) -> bytes:
    return b"not a checkpoint"


@pytest.mark.parametrize("damage", [_truncate, _flip_weight, _flip_plan, _empty, _text])
def test_damaged_files_are_refused_and_change_nothing(saved: Path, damage: object) -> None:
    saved.write_bytes(damage(saved.read_bytes()))
    model = _net()
    before = copy.deepcopy(model)
    with pytest.raises(CheckpointError, match="small"):
        lowrank.load(saved, into=model)
    assert repr(model) == repr(before)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_other_models_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"0: the plan is for Linear\(weight \(32, 32\)"):
        lowrank.load(saved, into=_net(48))
    with pytest.raises(CheckpointError, match=r"float32, the model has torch.float16.*model.to"):
        lowrank.load(saved, into=_net().half())
    with pytest.raises(CheckpointError, match="there is no such file"):
        lowrank.load(tmp_path / "missing", into=_net())
    save_file(_net().state_dict(), tmp_path / "plain")
    with pytest.raises(CheckpointError, match="plain weights and no plan"):
        lowrank.load(tmp_path / "plain", into=_net())
    save_file({}, tmp_path / "odd", metadata={"lowrank": json.dumps({"format": "x", "version": 3})})
    with pytest.raises(CheckpointError, match=r"format 3 is not lowrank.checkpoint 1"):
        lowrank.load(tmp_path / "odd", into=_net())


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowrank.compression.structure.checkpoint.save_file", full_disk)
    with pytest.raises(CheckpointError, match="No space left"):
        lowrank.save(_net(), saved)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    with pytest.raises(CheckpointError, match="cannot be written"):
        lowrank.save(_net(), saved.parent / "no such folder" / "x")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_exports_give_the_same_outputs(tmp_path: Path) -> None:
    import onnxruntime

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1), nn.AdaptiveAvgPool2d(4),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 12, 12)
    small, _ = lowrank.compress(net, x, macs=0.5)
    lowrank.export_program(small, x, tmp_path / "small.pt2")
    program = torch.export.load(tmp_path / "small.pt2")
    assert torch.allclose(program.module()(x), small(x), atol=1e-6)
    lowrank.export_onnx(small, x, tmp_path / "small.onnx", dynamic_batch=True)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    five = torch.randn(5, 3, 12, 12)
    [out] = session.run(None, {session.get_inputs()[0].name: five.numpy()})
    assert torch.allclose(torch.from_numpy(out), small(five), atol=1e-5)


def test_what_cannot_be_traced_is_one_sentence(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ExportError, match=r"torch.export: cannot trace the model"):
        lowrank.export_program(Odd(), X)
    with pytest.raises(ExportError, match="onnx: cannot trace the model"):
        lowrank.export_onnx(Odd(), X, tmp_path / "odd.onnx")
    assert not list(tmp_path.iterdir())
