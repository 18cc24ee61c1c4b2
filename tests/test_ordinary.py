"""The benchmark of the networks that people have: its networks, and how it runs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import ordinary
from benchmarks.ordinary_networks import NETWORKS, SEED, Network, faded, with_statistics
from lowrank.compression import flatten

TINY = Network(
    lambda: nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)),
    (3, 8, 8),
    (3, 8, 8),
    64,
)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_runs_on_its_input(name: str) -> None:
    network = NETWORKS[name]
    x = network.inputs(network.reduced, 2)
    with torch.no_grad():
        outputs = flatten(network.seeded()(x))
    assert len(outputs[0]) == 2
    assert all(out.isfinite().all() for out in outputs)
    assert torch.equal(x, network.inputs(network.reduced, 2))


@pytest.mark.parametrize("kernel", [(), (3,)], ids=["linear", "conv"])
def test_spectra_fall_and_norms_stay(kernel: tuple[int, ...]) -> None:
    torch.manual_seed(SEED)
    layer = nn.Conv2d(64, 96, *kernel) if kernel else nn.Linear(64, 96)
    before = layer.weight.detach().clone().flatten(1)
    after = faded(nn.Sequential(layer))[0].weight.detach().flatten(1)

    def half(W: torch.Tensor) -> float:
        energies = torch.linalg.svdvals(W) ** 2
        return float(energies[: len(energies) // 2].sum() / energies.sum())

    torch.testing.assert_close(after.norm(), before.norm())
    assert half(before) + 0.05 < half(after) < 0.99


def test_batch_norms_hold_the_statistics_of_the_data() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).eval()
    x = 5 + 2 * torch.randn(600, 3)
    with_statistics(model, x)
    assert not any(m.training for m in model.modules())
    torch.testing.assert_close(model[0].running_mean, x.mean(0))
    torch.testing.assert_close(model[0].running_var, x.var(0), rtol=0.05, atol=0)


def test_a_run_out_of_time_is_a_row_with_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ordinary.NETWORKS, "few", TINY)
    row = ordinary.measured("few", "default", 0.05)
    assert row["failed"].startswith("out of time after 0.05 s in ")
    assert 0 < row["seconds"] < 2
    assert row["stages"]
    json.dumps(row)


def test_a_run_that_fails_is_a_row_with_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setitem(ordinary.NETWORKS, "few", TINY)
    monkeypatch.setattr(ordinary.lowrank, "compress", broken)
    row = ordinary.measured("few", "default", 60)
    assert row["failed"] == "ValueError: no such thing"
    assert "in broken" in row["traceback"]


def test_rows_that_are_there_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = []

    def run(name: str, effort: str, timeout: float) -> dict[str, Any]:
        ran.append((name, effort))
        return {"failed": f"run {len(ran)}"}

    monkeypatch.setattr(ordinary, "alone", run)
    out = tmp_path / "rows.json"

    def main(*networks: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
        call = ["ordinary", "--out", str(out), "--efforts", "default", "--networks", *networks]
        monkeypatch.setattr(sys, "argv", [*call, *more])
        ordinary.main()
        return json.loads(out.read_text())["rows"]

    main("yolo")
    rows = main("yolo", "vit-s")
    assert ran == [("yolo", "default"), ("vit-s", "default")]
    assert rows["yolo default"] == {"failed": "run 1"}
    assert main("yolo", more=("--again",))["yolo default"] == {"failed": "run 3"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["u-net-3d", "pointnet"])
def test_small_networks_are_compressed(name: str) -> None:
    row = ordinary.alone(name, "default", 600)
    assert "failed" not in row
    assert row["macs_kept"] <= ordinary.KEEP
    assert row["relative_error"] < 0.5
    assert row["peak_bytes"] > 0
    assert row["passes"] >= 1
