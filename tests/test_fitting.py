"""The search for factors in the output metric, and the trial that weighs layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import LayerSpec, spec_of
from lowrank.compression.methods import CP, DepthwiseSeparable
from lowrank.compression.methods.shared import search
from lowrank.compression.methods.shared.search import Searched, fit_factors
from lowrank.compression.planning import weighting
from lowrank.decompositions.metric import Metric, energy


def _layer(i: int = 8, o: int = 8) -> tuple[LayerSpec, Tensor, Metric]:
    """A random 3 x 3 kernel and inputs of falling variance that are correlated."""
    torch.manual_seed(0)
    spec = spec_of(nn.Conv2d(i, o, 3, padding=1))
    assert spec is not None
    X = torch.randn(2000, 9 * i, dtype=torch.float64)
    X = X @ torch.randn(9 * i, 9 * i, dtype=torch.float64) * torch.linspace(1, 0.1, 9 * i)
    weight = torch.randn(1, o, i, 3, 3, dtype=torch.float64)
    return spec, weight, Metric((X.mT @ X / len(X))[None])


@pytest.mark.parametrize("method", [CP(10, "whole"), CP(12), DepthwiseSeparable(3)], ids=str)
def test_hops_come_closer_than_one_descent(method: Searched) -> None:
    spec, weight, metric = _layer()
    one = fit_factors(method, spec, weight, metric, seed=0, max_iter=150)
    many = fit_factors(method, spec, weight, metric, seed=0)
    assert many.error < 0.98 * one.error
    made = (many.last @ method.features(spec, many.free)).reshape(weight.shape)
    assert metric.error((weight - made).flatten(2)) == pytest.approx(many.error, rel=1e-6)


@pytest.mark.parametrize(("gains", "n"), [
    ([0.5] * 20, 12),
    ([1.0] * 20, 3),
    ([0.999] * 20, 3),
    ([0.997] * 20, 12),
    ([1.0, 1.1, 0.9] + [1.0] * 20, 6),
])  # fmt: skip
def test_hops_end_where_three_in_a_row_gain_little(
    monkeypatch: pytest.MonkeyPatch, gains: list[float], n: int
) -> None:
    spec, weight, metric = _layer()
    left, tried = iter(gains), []

    def descent(*args: Any, level: float, **kwargs: Any) -> Any:
        tried.append(level)
        return replace(first, error=next(left) * level)

    first = fit_factors(CP(5, "whole"), spec, weight, metric, seed=0, max_iter=0)
    monkeypatch.setattr(search, "_descent", descent)
    found = fit_factors(CP(5, "whole"), spec, weight, metric, seed=0)
    assert len(tried) == n
    assert found.error <= min(tried)


def test_hops_are_those_of_the_seed() -> None:
    spec, weight, metric = _layer(4, 4)
    a, b = (fit_factors(CP(5, "whole"), spec, weight, metric, seed=s) for s in (3, 3))
    assert a.error == b.error
    assert all(torch.equal(x, y) for x, y in zip(a.free, b.free, strict=True))


def test_wide_layers_are_searched_in_single_precision_and_measured_in_double() -> None:
    spec, weight, metric = _layer(32, 8)  # a fan-in of 288
    found = fit_factors(CP(8, "whole"), spec, weight, metric, seed=0)
    assert found.last.dtype == torch.float64
    made = (found.last @ CP(8, "whole").features(spec, found.free)).reshape(weight.shape)
    again = metric.error((weight - made).flatten(2))
    assert again == pytest.approx(found.error, rel=1e-9)
    assert found.error < energy(weight, metric)


@pytest.mark.parametrize(
    ("fit_", "work", "expected"),
    [
        (None, 1e11, "sequential"),
        (None, 1.0, "parallel"),  # a model too large for it
        ("parallel", 1e11, "parallel"),
        ("sequential", 1.0, "sequential"),
    ],
)
def test_layers_are_weighed_by_the_fits_that_will_be_made(
    fit_: str | None, work: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())
    x = torch.randn(64, 24)
    seen: list[str] = []
    whole = weighting.replace_layers

    def noted(*args: object, **kwargs: object) -> object:
        seen.append(str(args[3]))
        return whole(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(weighting, "replace_layers", noted)
    monkeypatch.setattr(weighting, "_TRIAL_WORK", work)
    how = lowrank.Calibration(fit=fit_, effort="thorough")
    lowrank.compress(net, x[:1], data=x, params=0.6, calibration=how, methods="channel_svd")
    assert seen
    assert set(seen) == {expected}
