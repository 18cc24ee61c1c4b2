"""What random networks (`grammar.py`) brought to light, each kind by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import Batch, Objective, count_macs, run
from lowrank.errors import InputError

# --- lazy models -----------------------------------------------------------------------------

LAZY: dict[str, Callable[[], nn.Module]] = {
    "weights": lambda: nn.LazyLinear(8),
    "statistics": lambda: nn.LazyBatchNorm1d(affine=False),
}


def _read_only(path: Path) -> dict[str, Callable[[nn.Module, Tensor], object]]:
    return {
        "run": run,
        "profile": lowrank.profile,
        "count_macs": count_macs,
        "measure": lowrank.measure,
        "compress": lambda m, x: lowrank.compress(m, x, params=0.5, data=x),
        "export": lowrank.export_program,
        "quantize": lambda m, x: lowrank.quantize(m),
        "finetune": lambda m, x: lowrank.finetune(nn.Linear(8, 8), teacher=m, data=x),
        "save": lambda m, x: lowrank.save(m, path / "net.safetensors"),
    }


@pytest.mark.parametrize("kind", LAZY)
def test_a_lazy_model_is_refused_and_stays_lazy(kind: str, tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    for name, act in _read_only(tmp_path).items():
        model = nn.Sequential(nn.Linear(8, 8), LAZY[kind]())
        with pytest.raises(InputError, match=r"1\..*: it is lazy and has no values yet; run the"):
            act(model, x)
        held = [*model[1].parameters(), *model[1].buffers()]
        assert any(nn.parameter.is_lazy(t) for t in held), name


def test_nothing_is_loaded_into_a_lazy_model(tmp_path: Path) -> None:
    small, _ = lowrank.compress(nn.Sequential(nn.Linear(8, 8)), torch.zeros(1, 8), params=0.7)
    lowrank.save(small, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match=r"0\.weight: it is lazy"):
        lowrank.load(tmp_path / "small.safetensors", into=nn.Sequential(nn.LazyLinear(8)))


# --- branches by data ------------------------------------------------------------------------


class ByMean(nn.Module):
    """One layer for batches of positive mean, another one for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.up if float(x.detach().mean()) > 0 else self.down)(x))


@pytest.mark.parametrize("place", range(8))
def test_batches_that_are_cut_anew_may_take_another_branch(place: int) -> None:
    """One example of eight lifts the mean: where it is held out, the rest run another layer."""
    x = torch.randn(8, 8) - 0.5
    x[place] += 8
    model = ByMean().eval()
    settings = {"params": 0.9, "methods": "channel_svd", "data": [x]}
    small, _ = lowrank.compress(model, torch.full((1, 8), -1.0), **settings)
    assert small(x).isfinite().all()


# --- several types in one model --------------------------------------------------------------


class Cast(nn.Module):
    """A layer in a type of its own."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer.to(dtype), dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.to(self.dtype)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_data_of_a_model_of_several_types_stay_in_theirs(dtype: torch.dtype) -> None:
    teacher = nn.Sequential(nn.Sequential(Cast(nn.Linear(8, 8), dtype)), nn.Linear(8, 4))
    x = torch.randn(6, 8)
    terms = Objective("mse").terms(teacher, teacher, Batch(x, None))
    assert all(float(term.detach()) == 0 for term in terms.values())
    small, _ = lowrank.compress(teacher, x, params=0.8, data=x, refine=2, methods="channel_svd")
    assert small(x).dtype == torch.float32


# --- linear layers without a weight of their own ---------------------------------------------


def test_int8_leaves_the_linear_layer_inside_of_a_sparse_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its weight is stored as the non-zeros, which are no matrix."""
    quantized: list[Any] = []
    where = "lowrank.compression.pipeline.quantize.quantize_linear"
    monkeypatch.setattr(where, lambda model, names: quantized.extend(names))
    plan = {"0": lowrank.LowRankSparse(rank=0, density=0.5, sparsity="2:4")}
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4))
    small, _ = lowrank.compress(model, torch.zeros(1, 16), bytes=0.9, overrides=plan, only="0")
    lowrank.quantize(small)
    assert quantized == ["1"]
