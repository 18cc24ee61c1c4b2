"""What a compression costs: stated before, counted while it runs, and within its bounds."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.calibration import calibrate
from lowrank.compression.calibration.effort import EFFORTS, effort_of
from lowrank.compression.network.example import run, tallying
from lowrank.compression.network.prefix_cache import PrefixCache, Reached
from lowrank.compression.planning.weighting import weighing
from lowrank.errors import InputError


class Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.second = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    body = (Residual(16), Residual(16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *body, nn.Linear(16, 8))
    with torch.no_grad():
        net(torch.randn(64, 3, 8, 8))
    return net.eval()


X = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _spent(report: lowrank.Report) -> float:
    found = re.search(r"took ([\d.]+) forward passes over the (\d+) examples", str(report))
    assert found is not None
    assert int(found[2]) == len(X)
    return float(found[1])


@pytest.mark.parametrize(("effort", "most"), [("quick", 3.5), ("default", 14)])
def test_passes_stay_within_what_was_said(effort: str, most: float) -> None:
    net, told = _net(), []
    said = lowrank.forecast(net, X[:1], data=X, effort=effort)
    small, report = lowrank.compress(
        net, X[:1], data=X, macs=0.6, effort=effort, progress=lambda what, *_: told.append(what)
    )
    assert told[0] == str(said)
    assert said.examples == len(X)
    assert said.layers == 6
    assert _spent(report) <= said.passes
    assert said.passes <= most
    assert torch.isfinite(small(X)).all()


@pytest.mark.parametrize("n", [2, 16])
def test_few_examples_cost_no_more_than_was_said(n: int) -> None:
    """Each layer is probed on four at least, and what shows how the model runs counts for more."""
    net = _net()
    said = lowrank.forecast(net, X[:2], data=X[:n])
    with tallying() as tally:
        lowrank.compress(net, X[:2], data=X[:n], macs=0.6)
    assert 0.3 * said.passes <= tally.passes / n <= said.passes


@pytest.mark.parametrize("effort", ["quick", "default"])
@pytest.mark.parametrize("methods", ["select", ("channel_svd", "select")])
def test_passes_stay_within_what_was_said_where_channels_go(
    effort: str, methods: str | tuple[str, ...]
) -> None:
    """Plans that save more or less by channels share one calibration."""
    net, rules = _net(), lowrank.Rules(methods=methods)
    said = lowrank.forecast(net, X[:1], data=X, effort=effort, rules=rules)
    _, report = lowrank.compress(net, X[:1], data=X, macs=0.3, effort=effort, rules=rules)
    assert 0.3 * said.passes <= _spent(report) <= said.passes + 0.25
    assert said.passes <= 15.25  # the example's own are a quarter


@pytest.mark.parametrize("methods", ["channel_svd", "select", ("channel_svd", "select")])
def test_outputs_of_the_dense_model_are_kept_from_calibrating(
    methods: str | tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on the examples once, and where outputs are too large to keep once more and again."""
    net, rules, seen = _net(), lowrank.Rules(methods=methods), []

    def see(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        if module is net[0] and len(args[0]) > 4:  # the example, too, is run, and a few others
            seen.append(len(args[0]))

    net[0].register_forward_hook(see)
    found = {}
    for most in (calibrate.OUTPUTS, 0):
        monkeypatch.setattr(calibrate, "OUTPUTS", most)
        said = lowrank.forecast(net, X[:1], data=X, effort="quick", rules=rules)
        seen.clear()
        small, _ = lowrank.compress(net, X[:1], data=X, macs=0.5, effort="quick", rules=rules)
        found[most] = sum(seen), said.passes, small(X)
    (kept, less, a), (again, more, b) = found.values()
    assert kept == len(X)
    assert again >= kept + 0.25 * len(X)
    assert less + 0.25 <= more
    torch.testing.assert_close(a, b)


def test_passes_are_those_that_the_first_layer_sees() -> None:
    """Counted by a hook on the layer that every pass begins with, forward alone."""
    net, seen = _net(), []
    net[0].register_forward_hook(lambda m, args, y: seen.append(len(args[0])))
    with tallying() as tally:
        lowrank.compress(net, X[:1], data=X, macs=0.6, effort="quick", methods="channel_svd")
    dense = sum(seen)  # the copy keeps the hook, so that both models are seen
    assert tally.passes == pytest.approx(dense, abs=24)  # the example alone, profiled


def test_a_pass_that_ends_early_counts_in_part() -> None:
    net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    cache = PrefixCache(net, 1, 1 << 20)
    x = torch.randn(6, 4)

    def stop(module: nn.Module, args: object) -> None:
        cache.mark()
        raise Reached

    for place, share in ((2, 0.5), (3, 0.25)):  # what finished before is not run again
        handle = net[place].register_forward_pre_hook(stop)
        with tallying() as tally:
            cache.run(0, x)
        handle.remove()
        assert tally.passes == pytest.approx(6 * share)
    with tallying() as outer, tallying() as inner:
        run(net, x)
    assert outer.passes == inner.passes == 6


@pytest.mark.parametrize("effort", ["quick", "default"])
def test_rare_methods_are_tried_by_name_or_thoroughly(effort: str) -> None:
    net = nn.Sequential(nn.Linear(32, 32))
    x = torch.randn(64, 32)

    def tried(**options: object) -> set[str]:
        curves = lowrank.measure(net, x[:1], data=x, **options)
        return {c.method.name for curve in curves.curves for c in curve.candidates}

    assert tried(effort=effort) == {"channel_svd"}
    assert "group_svd" in tried(effort="thorough")
    assert tried(effort=effort, methods=["group_svd"]) == {"group_svd"}


def test_weightings_are_tried_with_thorough_effort_alone() -> None:
    net, x = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8)), torch.randn(64, 24)
    told: list[str] = []
    for effort in EFFORTS:
        curves = lowrank.measure(net, x[:1], data=x, effort=effort, methods="channel_svd")
        found = weighing(net, curves, {"params": 0.6}, None, lambda what, *_: told.append(what))
        assert effort == "thorough" or found == 0.5
        assert ("weighing layers" in told) == (effort == "thorough")


def test_more_effort_fits_no_worse() -> None:
    errors = [
        lowrank.compress(
            _net(), X[:1], data=X, macs=0.4, effort=e, methods=["channel_svd", "spatial_svd"]
        )[1].quality.relative_error
        for e in ("quick", "default")
    ]
    assert errors[1] < errors[0]


def test_without_data_a_forecast_knows_no_passes() -> None:
    said = lowrank.forecast(_net(), X[:1], effort="thorough")
    assert (said.examples, said.passes) == (0, 0.0)
    assert "passes" not in str(said)


@pytest.mark.parametrize("effort", ["fast", "", 1, None])
def test_an_unknown_effort_is_named(effort: object) -> None:
    with pytest.raises(InputError, match=r"effort: .* is unknown; choose among quick, default"):
        effort_of(effort)
    if effort is not None:
        with pytest.raises(InputError, match="is unknown"):
            lowrank.compress(_net(), X[:1], params=0.5, effort=effort)


STAGES: dict[str, tuple[dict[str, object], str]] = {
    "weights": ({}, "measuring planning fitting checking"),
    "data": ({"data": X}, "calibrating measuring probing planning fitting checking"),
    "quick": ({"data": X, "effort": "quick"}, "calibrating measuring planning fitting checking"),
    "drop": (
        {"max_drop": 0.5, "metric": lambda net: 1.0},
        "measuring trying fitting checking",
    ),
    "clock": ({"latency": 1.0}, "measuring timing planning fitting checking"),
    "refined": (
        {"data": X, "refine": 1},
        "calibrating measuring probing planning fitting refining checking",
    ),
}


@pytest.mark.parametrize("way", STAGES)
def test_progress_says_which_of_how_many_stages_it_is(way: str) -> None:
    given, stages = STAGES[way]
    told: list[tuple[str, int, int]] = []
    budget = {} if {"max_drop", "latency"} & set(given) else {"macs": 0.7}
    how = {"methods": "channel_svd", **budget, **given}
    net = _net()
    lowrank.compress(net, X[:1], **how, progress=lambda *call: told.append(call))
    assert str(told[0][0]).startswith("up to")
    heads = [what.split()[:2] for what, _, _ in told[1:]]
    names = stages.split()
    every = [[f"{k}/{len(names)}", name] for k, name in enumerate(names, 1)]
    assert [head for head in every if head in heads] == every
    assert all(head in every for head in heads)
    assert all(0 <= done <= total for _, done, total in told)
    if way != "refined":  # which fits for its trial first
        assert heads == sorted(heads)
