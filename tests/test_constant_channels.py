"""Channels that are constant on the calibration data, or all but: no fit breaks on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.calibration.moments import Regression

torch.set_num_threads(1)


class Constant(nn.Module):
    """Some channels of what goes through become a value, with noise of a size."""

    def __init__(self, value: float, noise: float) -> None:
        super().__init__()
        self.value, self.noise = value, noise

    def forward(self, x: Tensor) -> Tensor:
        flat = self.value + self.noise * x[:, ::3]
        return x.index_copy(1, torch.arange(0, x.shape[1], 3), flat)


def _net(layer: nn.Module, value: float, noise: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU6(), nn.Conv2d(24, 24, 1), Constant(value, noise),
        layer, nn.ReLU6(), nn.Conv2d(24, 32, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    ).eval()  # fmt: skip


LAYERS = {
    "depthwise": lambda: nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False),
    "depthwise 1 x 1": lambda: nn.Conv2d(24, 24, 1, groups=24),
    "grouped": lambda: nn.Conv2d(24, 24, 3, padding=1, groups=8),
    "whole": lambda: nn.Conv2d(24, 24, 3, padding=1),
}


@pytest.mark.parametrize(
    ("value", "noise"), [(0.0, 0.0), (6.0, 0.0), (0.0, 1e-20), (1e3, 1e-5), (-1e4, 1e-3)]
)
@pytest.mark.one_in(3)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_network_with_constant_channels_is_compressed(
    layer: str, value: float, noise: float
) -> None:
    net = _net(LAYERS[layer](), value, noise)
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    small, report = lowrank.compress(net, x[:1], macs=0.7, data=x)
    assert report.kept("macs") <= 0.7
    with torch.no_grad():
        y, expected = small(x), net(x)
    assert bool(y.isfinite().all())
    assert float((y - expected).norm() / expected.norm()) < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, -1e-30, -1e-12])
def test_a_group_of_which_rounding_leaves_no_moment_keeps_its_weight(
    size: float, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(0)
    A, W, Q = (torch.randn(3, *s, generator=rng, dtype=dtype) for s in ((9, 9), (1, 9), (1, 9)))
    C = A @ A.mT
    C[1] = size * torch.ones(9, 9, dtype=dtype)
    given: dict[str, Any] = {"mean": torch.zeros(3, 1), "folds": ((Q, C), (Q, C))}
    share = torch.full((3,), 0.1, dtype=dtype)
    found = Regression(Q * C.abs().amax((1, 2), keepdim=True), **given).solution(W, C, share)
    assert bool(found.isfinite().all())
    if size < 0 or size < torch.finfo(dtype).tiny ** 0.5:
        assert torch.equal(found[1], W[1])
