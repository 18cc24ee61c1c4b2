"""What methods offer the planner can be built: ranks that fit each other and the layer."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import lowrank
import lowrank.compression.pipeline.compress
from lowrank.compression import measure_memory, scan, weight_bytes
from lowrank.compression.methods import known
from lowrank.errors import BudgetError, RankError

compress_module = sys.modules["lowrank.compression.pipeline.compress"]

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(12, 18, 3), (6, 12, 5, 5)),
    "many outputs": (nn.Conv2d(3, 24, 2), (6, 3, 5, 5)),
    "many inputs": (nn.Conv2d(24, 3, (1, 3)), (6, 24, 5, 5)),
    "along a line": (nn.Conv1d(6, 9, 2), (6, 6, 9)),
    "transposed": (nn.ConvTranspose2d(12, 5, 3), (6, 12, 4, 4)),
    "grouped": (nn.Conv2d(12, 18, 3, groups=3), (6, 12, 5, 5)),
    "one output": (nn.Linear(24, 1), (6, 24)),
    "one input": (nn.Linear(1, 24), (6, 1)),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fitted", [False, True])
def test_whatever_is_offered_fits_its_layer(kind: str, fitted: bool) -> None:
    layer, shape = LAYERS[kind]
    torch.manual_seed(0)
    net, x = nn.Sequential(layer).eval(), torch.randn(shape)
    (view,) = scan(net, x).views
    names = [n for n, m in known().items() if "alone" in m.serves and not m.supports(view.spec)]
    if fitted:
        names = [n for n in names if n in ("channel_svd", "tucker2")]
    settings = lowrank.Calibration(weighting="outputs")
    curves = lowrank.measure(
        net, x, methods=names, data=x if fitted else None, calibration=settings
    )
    methods = [c.method for c in curves.curves[0].candidates]
    assert not [m for m in methods if m.check(view.spec)]
    for cls in {type(m) for m in methods}:
        mine = [m for m in methods if type(m) is cls]
        for method in (mine[0], mine[len(mine) // 2], mine[-1]):
            stages = method.stages(view.spec)
            factors = method.factor(view.spec, view.weight(), seed=0, max_iter=1)
            for stage, factor in zip(stages, factors, strict=True):
                stage.write(stage.build(dtype=torch.float32, device="cpu"), factor)


@pytest.mark.parametrize("ranks", [(10, 1), (1, 12)])
def test_ranks_that_no_core_can_have_are_refused(ranks: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Conv2d(12, 18, 3)).eval()
    with pytest.raises(RankError, match="differ by more than 9 times"):
        lowrank.compress(
            net, torch.randn(1, 12, 5, 5), params=0.9, overrides={"0": lowrank.Tucker2(*ranks)}
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["grouped", "along a line"])
def test_bytes_are_those_of_all_that_is_stored(kind: str, dtype: torch.dtype) -> None:
    layer, shape = LAYERS[kind]
    net, x = nn.Sequential(layer).eval().to(dtype), torch.randn(shape).to(dtype)
    (view,) = scan(net, x).views
    own = ["low_rank_sparse", "biclustering", "legonet", "monochromatic", "group_svd"]
    own = [n for n in own if known()[n].supports(view.spec) is None]
    found = lowrank.measure(net, x, methods=own, round_to=2).curves[0].candidates
    assert found
    for candidate in found[:: max(1, len(found) // 25)]:
        stages = candidate.method.stages(view.spec)
        built = nn.Sequential(*(s.build(dtype=dtype, device="cpu") for s in stages))
        state = {k: t for k, t in built.state_dict().items() if not k.endswith("bias")}
        stored = sum(t.numel() * t.element_size() for t in state.values())
        assert stored == candidate.cost.bytes, candidate.method
        assert weight_bytes(built) - weight_bytes(nn.ParameterDict(_biases(built))) == stored


def _biases(model: nn.Module) -> dict[str, nn.Parameter]:
    named = model.named_parameters()
    return {n.replace(".", "_"): p for n, p in named if n.endswith("bias")}


def _padded(mode: str) -> nn.Sequential:
    torch.manual_seed(0)
    size = 4 if mode == "same" else 5
    how: Any = {"padding": "same"} if mode == "same" else {"padding": 2, "padding_mode": mode}
    pairs = [(nn.Conv2d(12, 12, size, **how), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(*(m for pair in pairs for m in pair)).eval()


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate", "same"])
def test_a_memory_budget_is_met_by_the_finished_model(mode: str) -> None:
    net, x = _padded(mode), torch.randn(1, 12, 8, 8)
    small, report = lowrank.compress(net, x, memory=0.85, methods="channel_svd")
    assert report.memory is not None
    assert report.memory.measured == measure_memory(small, x).total <= report.memory.limit
    assert report.plan.budget == {"memory": 0.85}


def test_a_plan_that_misses_its_memory_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _padded("zeros"), torch.randn(1, 12, 8, 8)
    real, off = compress_module.measure_memory, iter([2000, 0, 0, 0])
    plain, _ = lowrank.compress(net, x, memory=0.9, methods="channel_svd")
    seen = []

    def measure(model: nn.Module, example: torch.Tensor) -> Any:
        found = real(model, example)
        seen.append(found.total)
        return replace(found, weights=found.weights + next(off, 0))

    monkeypatch.setattr(compress_module, "measure_memory", measure)
    small, _ = lowrank.compress(net, x, memory=0.9, methods="channel_svd")
    assert seen[0] > seen[1] == seen[-1]
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in plain.parameters())
    off = iter([1 << 20] * 9)
    with pytest.raises(BudgetError, match=r"were not met by \d plans"):
        lowrank.compress(net, x, memory=0.9, methods="channel_svd")
