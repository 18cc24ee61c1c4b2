"""The precision of a layer's fits is decided once: every method, in every class of width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import LayerSpec, compose, spec_of
from lowrank.compression.calibration import moments
from lowrank.compression.methods import METHODS, group_svd, legonet, low_rank_sparse
from lowrank.compression.methods.shared import search as fitting
from lowrank.decompositions import sparse_part
from lowrank.decompositions.metric import energy

WIDTHS = {
    "narrow": (torch.float64, {}),
    "searched in single": (torch.float64, {"single search": 32}),
    "single": (torch.float32, {"single search": 32, "single": 32, "wide": 32}),
    "dear": (torch.float32, {"single": 32, "wide": 32, "work": 1.0}),
    "rows": (torch.float32, {"single search": 32, "single": 32, "wide": 32, "largest": 32}),
}
"""Class of width -> the type that is computed in, and the thresholds moved below a fan-in of 72."""

THRESHOLDS = {
    "single search": ((fitting, "_SINGLE_FROM"),),
    "single": ((moments, "DOUBLE"),),
    "wide": ((low_rank_sparse, "_WIDE"), (legonet, "_WIDE"), (group_svd, "_WIDE")),
    "work": ((low_rank_sparse, "_DEAR"), (low_rank_sparse, "_DEAREST"), (sparse_part, "_LONG")),
    "largest": ((moments, "_FORMED"), (moments, "_ROWS_FROM")),
}


BY_GRADIENTS = lowrank.Calibration(weighting="gradients")


@pytest.fixture
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The type of a class of width, whose thresholds are moved."""
    dtype, moved = WIDTHS[request.param]
    for kind, value in moved.items():
        for module, name in THRESHOLDS[kind]:
            assert hasattr(module, name)
            monkeypatch.setattr(module, name, value)
    return dtype


LAYERS = {
    "conv": lambda: nn.Conv2d(8, 8, 3),
    "conv 1d": lambda: nn.Conv1d(12, 8, 3),
    "few channels": lambda: nn.Conv2d(2, 8, 5),
    "grouped": lambda: nn.Conv2d(16, 16, 3, groups=2),
    "linear": lambda: nn.Linear(40, 24),
}


def _net(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    out = layer.weight.shape[0]
    if kind == "linear":
        return nn.Sequential(layer, nn.ReLU(), nn.Linear(out, 4)).eval()
    norm = (nn.BatchNorm1d if kind == "conv 1d" else nn.BatchNorm2d)(out)
    return nn.Sequential(layer, norm, nn.ReLU(), nn.Flatten(2), _Mean(), nn.Linear(out, 4)).eval()


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1)


def _spec(layer: nn.Module) -> LayerSpec:
    spec = spec_of(layer)
    assert spec is not None
    return spec


def _inputs(net: nn.Sequential) -> Tensor:
    spec = _spec(net[0])
    shape = (16, spec.in_channels, *(7 for _ in spec.kernel))
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


KINDS = {
    "cp": ("conv 1d",),
    "monochromatic": ("few channels",),
    "low_rank_sparse": ("conv", "grouped", "linear"),
    "channel_svd": ("conv", "grouped", "linear"),
}
"""Method -> the layers it is tried on, where that is not the one of 3 x 3."""

CASES = [(name, kind) for name in METHODS for kind in KINDS.get(name, ("conv",))]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("width", WIDTHS, indirect=True)
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_method_serves_every_width(name: str, kind: str, width: torch.dtype) -> None:
    """The fit is computed in the type of the width and is as good as one in double."""
    net = _net(kind)
    x = _inputs(net)
    rules = lowrank.Rules(methods=name, only="0")
    curves = lowrank.measure(net, x[:1], data=x, calibration=BY_GRADIENTS, rules=rules)
    assert curves.data is not None
    goal = curves.data.goal(net, "0")
    metric, spec = goal.metric, curves.data.views["0"].spec
    assert metric.G is not None
    assert metric.C.dtype == metric.G.dtype == width
    methods = [c.method for c in curves.curves[0].candidates]
    for method in dict.fromkeys(methods[len(methods) // 3 :: max(1, len(methods) // 3)]):
        errors = []
        for m in (metric, metric.to(torch.float64)):
            factors = method.factor(spec, goal.weight, seed=0, metric=m, max_iter=3)
            made = compose(spec, method.stages(spec), factors)
            assert made.dtype == goal.weight.dtype
            errors.append(metric.to(torch.float64).error((goal.weight - made).flatten(2)))
        assert errors[0] <= 1.05 * errors[1] + 1e-6 * energy(goal.weight, metric)


def _served(channels: int) -> torch.dtype:
    """The type that a layer of this many channels is worked on in, which data and a plan fit."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten())
    x = torch.randn(4, channels, 4, 4)
    method = "low_rank_sparse"
    curves = lowrank.measure(net.eval(), x[:1], methods=method, data=x, calibration=BY_GRADIENTS)
    small, report = lowrank.apply(net, curves.plan(params=0.7), data=curves.data)
    assert "0" in report.plan.replaced
    assert small(x).isfinite().all()
    return moments.working_dtype(_spec(net[0]))


@pytest.mark.parametrize(("channels", "wanted"), [(3, torch.float64), (4, torch.float32)], ids=str)
@pytest.mark.parametrize("width", ["single"], indirect=True)
def test_data_serves_on_both_sides_of_a_bound(
    channels: int, wanted: torch.dtype, width: torch.dtype
) -> None:
    assert _served(channels) == wanted  # a fan-in of 27 or of 36, and a bound of 32


FULL = [(35, torch.float64), (36, torch.float32)]
"""A fan-in of 315 or of 324, and the bound of 320."""


@pytest.mark.parametrize(("channels", "wanted"), FULL, ids=str)
def test_the_bound_is_a_fan_in_of_320(channels: int, wanted: torch.dtype) -> None:
    assert moments.working_dtype(_spec(nn.Conv2d(channels, 4, 3))) == wanted


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "wanted"), FULL, ids=str)
def test_data_serves_on_both_sides_of_a_fan_in_of_640(channels: int, wanted: torch.dtype) -> None:
    assert _served(channels) == wanted
