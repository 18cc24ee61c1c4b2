"""Layers whose weight a model asks for its type: an empty tensor beside the factors answers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowrank
from lowrank.compression.network.scan import scan

torch.set_num_threads(1)


class Asking(nn.Module):
    """A layer, and what is done before it with what it holds: of `TYPES` or `VALUES`."""

    def __init__(self, kind: str, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(24, 32), nn.Linear(32, 24, bias=bias)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return self.last((TYPES | VALUES)[self.kind](self, self.first(x).relu()))


Ask = Callable[[Asking, Tensor], Tensor]


def _unless_int8(n: Asking, x: Tensor) -> Tensor:
    if isinstance(n.last.weight, Tensor) and n.last.weight.dtype not in (x.dtype, torch.int8):
        return x.to(n.last.weight.dtype)
    return x


TYPES: dict[str, Ask] = {
    "dtype": lambda n, x: x.to(n.last.weight.dtype),
    "device": lambda n, x: x.to(device=n.last.weight.device),
    "both": lambda n, x: x.to(n.last.weight.device, n.last.weight.dtype),
    "as the weight": lambda n, x: x.to(n.last.weight),
    "type as": lambda n, x: x.type_as(n.last.weight),
    "unless int8": _unless_int8,
    "floating": lambda n, x: x if n.last.weight.is_floating_point() else x.long(),
    "of torch": lambda n, x: x if torch.is_floating_point(n.last.weight) else x.long(),
    "on a graphics card": lambda n, x: x.cuda() if n.last.weight.is_cuda else x,
    "bytes": lambda n, x: x * n.last.weight.element_size() / 4,
    "a bias": lambda n, x: x if n.last.bias is None else x + 1,
    "the bias' type": lambda n, x: x if n.last.bias is None else x.to(n.last.bias.dtype),
}
VALUES: dict[str, Ask] = {
    "product": lambda n, x: x + F.linear(x, n.last.weight).mean(),
    "operator": lambda n, x: x + (x @ n.last.weight.T).mean(),
    "shape": lambda n, x: x * n.last.weight.shape[0],
    "length": lambda n, x: x * len(n.last.weight),
    "norm": lambda n, x: x / n.last.weight.norm(),
    "data": lambda n, x: x + n.last.weight.data.mean(),
    "detached": lambda n, x: x + n.last.weight.detach().mean(),
    "in a list": lambda n, x: x + torch.cat([n.last.weight, n.last.weight]).mean(),
    "cast itself": lambda n, x: x + n.last.weight.to(x.dtype).mean(),
    "like it": lambda n, x: x + torch.zeros_like(n.last.weight).sum(),
    "numbers": lambda n, x: x + n.last.weight.tolist()[0][0],
    "trained": lambda n, x: x if n.last.weight.requires_grad else x + 1,
    "after its type": lambda n, x: x.to(n.last.weight.dtype) + n.last.weight.mean(),
    "in training": lambda n, x: x + n.last.weight.mean() if n.training else x,
}


X = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))


def _net(kind: str, *, bias: bool = True) -> Asking:
    torch.manual_seed(0)
    return Asking(kind, bias=bias).eval()


def _small(net: nn.Module, *, data: bool) -> tuple[nn.Module, lowrank.Report]:
    return lowrank.compress(net, X[:1], params=0.6, data=X if data else None)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", TYPES)
def test_a_layer_asked_for_its_type_is_replaced(kind: str, bias: bool, tmp_path: Path) -> None:
    net = _net(kind, bias=bias)
    small, report = _small(net, data=bias)
    row = report.plan.layers["last"]
    assert "last" in report.plan.replaced
    assert row.asked
    assert set(row.asked) <= {"weight", "bias"}
    assert lowrank.Plan.from_json(report.plan.to_json()) == report.plan
    assert type(small.last) is nn.Sequential  # of stock layers, with nothing in the file beside
    assert small.state_dict().keys() == dict(small.named_parameters()).keys()

    y = small(X)
    small.train()(X).sum().backward()
    assert torch.equal(pickle.loads(pickle.dumps(small)).eval()(X), y)
    lowrank.save(small, tmp_path / "small.safetensors")
    assert torch.equal(
        lowrank.load(tmp_path / "small.safetensors", into=_net(kind, bias=bias))(X), y
    )
    assert torch.allclose(lowrank.densify(small)(X), y, atol=1e-5)
    for dtype in (torch.bfloat16, torch.float64):
        assert copy.deepcopy(small).to(dtype)(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize("kind", VALUES)
def test_a_layer_whose_values_are_read_stays_dense(kind: str) -> None:
    small, report = _small(_net(kind), data=False)
    assert "Asking reads its weight directly" in report.left_alone["last"]
    assert ("in training mode" in report.left_alone["last"]) == (kind == "in training")
    assert isinstance(small.last, nn.Linear)
    small(X), small.train()(X)


def test_the_plan_of_a_layer_left_dense_knows_what_is_asked_of_it() -> None:
    """So that a choice by hand for it runs, too."""
    net = _net("dtype")
    _, report = lowrank.compress(net, X[:1], params=0.9, skip="last")
    plan = report.plan.with_choice("last", lowrank.ChannelSVD(4))
    small, _ = lowrank.apply(net, plan, example=X[:1])
    assert small.last.weight.numel() == 0
    assert small.last.weight.dtype == torch.float32
    assert small(X).shape == X.shape


@pytest.mark.parametrize("kind", ["dtype", "product"])
def test_a_model_is_left_as_it_was(kind: str) -> None:
    net = _net(kind)
    before = {k: (id(p), p.requires_grad, p.clone()) for k, p in net.named_parameters()}
    scan(net, X[:1])
    for k, p in net.named_parameters():
        assert (id(p), p.requires_grad) == before[k][:2]
        assert torch.equal(p, before[k][2])
        assert type(p) is nn.Parameter
        assert not vars(p)


def test_what_is_exported_has_no_trace_of_the_empty_tensor() -> None:
    small, _ = _small(_net("dtype"), data=False)
    program = torch.export.export(small, (X,))
    assert torch.allclose(program.module()(X), small(X), atol=1e-6)
    assert all(p.numel() for p in program.state_dict.values())
