"""Layers that other libraries wrote anew: what answers as a linear layer is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowrank


class Linear(nn.Module):
    """As that of PyTorch Geometric."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, names: str = "channels") -> None:
        super().__init__()
        setattr(self, f"in_{names}", n_in)
        setattr(self, f"out_{names}", n_out)
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / n_in**0.5)
        self.bias = nn.Parameter(torch.randn(n_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Scaled(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Noisy(Linear):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x + torch.randn_like(x) if self.training else x


class Turned(Linear):
    """Square, so that its shape does not tell that the weight is turned."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Unsaid(Linear):
    """Nothing says which side is which."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        self.in_channels = self.out_channels = None


def _net(settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    layers = Linear(16, 32, **settings), nn.ReLU(), Linear(32, 32, **settings), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(32, 4)).eval()


@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"names": "features"}], ids=str)
@pytest.mark.parametrize("asked", [{}, {"methods": "select"}], ids=["factors", "channels"])
def test_linear_layers_of_other_libraries(
    settings: dict[str, Any], asked: dict[str, str], tmp_path: Path
) -> None:
    net, x = _net(settings), torch.randn(20, 16)
    small, report = lowrank.compress(net, x, params=0.6, **asked)
    assert report.kept("parameters") <= 0.6
    assert asked or "2" not in report.left_alone
    if asked:
        told = getattr(small[0], f"out_{settings.get('names', 'channels')}")
        assert small[0].weight.shape[0] == told < 32
    lowrank.save(small, tmp_path / "net.safetensors")
    again = lowrank.load(tmp_path / "net.safetensors", into=_net(settings)).eval()
    torch.testing.assert_close(again(x), small(x))
    dense = lowrank.densify(small)
    assert type(dense[0]) is Linear
    torch.testing.assert_close(dense(x), small(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Scaled, "Scaled does more than its base class's forward"),
        (Noisy, "Noisy does more than its base class's forward"),
        (Turned, "Turned does more than its base class's forward"),
        (Unsaid, "Unsaid is not a layer with one weight matrix"),
    ],
)
def test_what_answers_otherwise_stays(kind: type[nn.Module], why: str) -> None:
    net = nn.Sequential(kind(32, 32), nn.Linear(32, 32)).eval()
    _, report = lowrank.compress(net, torch.randn(4, 32), params=0.8)
    assert report.left_alone["0"] == why


def test_a_namesake_of_torchs_layer_is_told_apart() -> None:
    net = nn.Sequential(Linear(32, 32), nn.Linear(32, 32)).eval()
    net[0].extra = nn.Parameter(torch.randn(3))
    _, report = lowrank.compress(net, torch.randn(4, 32), params=0.8)
    assert report.left_alone["0"] == f"{__name__}.Linear is not torch's Linear"


class Scale(nn.Module):
    """A number a channel, laid out to be broadcast."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("shape", [(32,), (1, 32), (1, 1), ()], ids=str)
def test_a_number_for_each_channel_is_no_matrix(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(Scale(*shape), nn.Linear(32, 32))
    _, report = lowrank.compress(net, torch.randn(4, 32), params=0.8)
    assert report.left_alone["0"] == "no weight matrix"
