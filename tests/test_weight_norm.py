"""Layers under weight norm: the weight that it gives is what is compressed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import lowrank
from lowrank.compression.network.channels.weight_norm import weight_normed


def _by_a_hook(module: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(module)


NORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parametrization": parametrizations.weight_norm,
    "along another axis": lambda m: parametrizations.weight_norm(m, dim=1),
    "whole": lambda m: parametrizations.weight_norm(m, dim=None),
    "hook": _by_a_hook,
}

BUDGETS: dict[str, dict[str, Any]] = {
    "params": {"params": 0.5},
    "data": {"macs": 0.5, "data": True, "effort": "quick"},
    "channels": {"macs": 0.5, "data": True, "select": "lasso", "effort": "quick"},
}


def _net(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        norm(nn.Conv1d(3, 8, 3, padding=1)),
        nn.ReLU(),
        norm(nn.ConvTranspose1d(8, 8, 4, 2, 1, bias=False)),
        nn.ReLU(),
        nn.Flatten(),
        norm(nn.Linear(64, 16)),
        nn.Linear(16, 4),
    )
    for p in net[2].parameters():
        p.requires_grad_(False)
    return net.eval()


ASKED = [
    *((kind, "params") for kind in NORMS),
    *(("parametrization", b) for b in BUDGETS if b != "params"),
]


@pytest.mark.parametrize(("kind", "budget"), ASKED)
def test_weights_under_weight_norm_are_compressed(kind: str, budget: str, tmp_path: Path) -> None:
    net, x = _net(NORMS[kind]), torch.randn(16, 3, 4)
    before, expected = {k: v.clone() for k, v in net.state_dict().items()}, net(x)
    asked = dict(BUDGETS[budget])
    data = x if asked.pop("data", False) else None
    small, report = lowrank.compress(net, x[:1], data=data, **asked)
    assert not any("norm" in why or "hook" in why for why in report.left_alone.values())
    assert net.state_dict().keys() == before.keys()
    assert torch.equal(net(x), expected)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not weight_normed(small)
    assert all(p.requires_grad for p in small[0].parameters())
    assert not any(p.requires_grad for p in small[2].parameters())

    lowrank.save(small, tmp_path / "net.safetensors")
    again = lowrank.load(tmp_path / "net.safetensors", into=_net(NORMS[kind]))
    torch.testing.assert_close(again.eval()(x), small(x))
    dense = lowrank.densify(small)
    torch.testing.assert_close(dense(x), small(x), rtol=1e-4, atol=1e-4)
    plain = [k.replace("_g", "").replace(".parametrizations", "") for k in before]
    assert dense.state_dict().keys() <= {k.replace(".original0", "") for k in plain}


@pytest.mark.parametrize("kind", ["parametrization", "hook"])
def test_a_layer_that_is_left_out_keeps_its_weight_norm(kind: str, tmp_path: Path) -> None:
    net, x = _net(NORMS[kind]), torch.randn(4, 3, 4)
    small, _ = lowrank.compress(net, x, params=0.6, skip="0")
    assert weight_normed(net) == ["0", "2", "5"]
    assert weight_normed(small) == ["0"]
    lowrank.save(small, tmp_path / "net.safetensors")
    again = lowrank.load(tmp_path / "net.safetensors", into=_net(NORMS[kind])).eval()
    torch.testing.assert_close(again(x), small(x))


class _Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_other_parametrizations_stay() -> None:
    tied = parametrizations.weight_norm(nn.Linear(8, 8))
    other = parametrizations.weight_norm(nn.Linear(8, 8))
    for name in ("original0", "original1"):
        shared = getattr(tied.parametrizations.weight, name)
        setattr(other.parametrizations.weight, name, shared)
    twice = parametrizations.weight_norm(nn.Linear(8, 8))
    parametrize.register_parametrization(twice, "weight", _Doubled())
    doubled = parametrize.register_parametrization(nn.Linear(8, 8), "weight", _Doubled())
    net = nn.Sequential(
        tied, other, twice, doubled, parametrizations.spectral_norm(nn.Linear(8, 8))
    )
    assert weight_normed(net) == []
    with pytest.raises(lowrank.errors.InputError, match="remove_parametrizations first"):
        lowrank.compress(net, torch.randn(2, 8), params=0.5)


def test_a_refused_budget_names_what_is_parametrized() -> None:
    net = nn.Sequential(parametrizations.spectral_norm(nn.Linear(32, 32)), nn.Linear(32, 8))
    said = r"1,056 parameters of 0 stay as they are \(its weight is parametrized; remove_par"
    with pytest.raises(lowrank.errors.BudgetError, match=said):
        lowrank.compress(net.eval(), torch.randn(2, 32), params=0.3)
