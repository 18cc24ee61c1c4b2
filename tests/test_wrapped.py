"""Models inside other modules, and models with parts that are no plain layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import lowrank
from lowrank.errors import CheckpointError, InputError, PlanError

X = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
FEW: Any = {"params": 0.8, "methods": "channel_svd"}

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:torch.quantize:UserWarning"
)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = (16, 48, 48, 8)
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).eval()


class Whole(nn.Module):
    """A network as the backbone of another."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.backbone, self.head = backbone, nn.Sequential(nn.Linear(8, 24), nn.Linear(24, 24))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def _compiled(net: nn.Module) -> nn.Module:
    return torch.compile(net, backend="eager")  # type: ignore[return-value]


def _in_place(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def _ran(net: nn.Module) -> nn.Module:
    wrapped = _compiled(net)
    wrapped(X)
    return wrapped


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "parallel": nn.DataParallel,
    "compiled": _compiled,
    "compiled and run": _ran,
    "compiled in place": _in_place,
    "both": lambda net: nn.DataParallel(_compiled(net)),
}


def _alike(a: nn.Module, b: nn.Module) -> None:
    with torch.no_grad():
        assert torch.allclose(a(X), b(X), atol=1e-5)


@pytest.mark.parametrize("how", WRAPS)
def test_what_is_inside_a_wrapper_is_compressed_saved_loaded_and_made_dense(
    how: str, tmp_path: Path
) -> None:
    wrap, path = WRAPS[how], tmp_path / "small.safetensors"
    plain, _ = lowrank.compress(_net(), X[:1], **FEW)
    small, report = lowrank.compress(wrap(_net()), X[:1], **FEW)
    assert [row.name for row in report.layers] == ["0", "2", "4"]
    assert len(report.replaced) > 0
    _alike(small, plain)
    lowrank.save(wrap(small), path)
    for into in (_net(), wrap(_net())):
        back = lowrank.load(path, into=into)
        assert back is into
        _alike(back, plain)
    dense = lowrank.densify(wrap(small))
    assert isinstance(dense[0], nn.Linear)  # type: ignore[index]
    _alike(dense, plain)
    lowrank.finetune(wrap(small), teacher=_net(), data=X, epochs=1, only_factors=True)


def test_a_part_that_is_compiled_is_seen_as_it_is_written() -> None:
    net = nn.Sequential(_ran(_net()[:4]), _net()[4]).eval()
    net(X)
    _, report = lowrank.compress(net, X[:1], data=X, **FEW)
    assert not any("never" in reason for reason in report.left_alone.values())


@pytest.mark.parametrize("order", ["part first", "whole first", "part alone"])
def test_parts_that_were_compressed_by_themselves_keep_their_plan(
    order: str, tmp_path: Path
) -> None:
    whole = Whole(_net()).eval()
    if order == "whole first":
        whole, _ = lowrank.compress(whole, X[:1], **FEW)
    whole.backbone, _ = lowrank.compress(whole.backbone, X[:1], **FEW)  # type: ignore[arg-type]
    if order == "part first":
        whole, _ = lowrank.compress(whole, X[:1], **FEW)
    lowrank.save(whole, tmp_path / "whole.safetensors")
    back = lowrank.load(tmp_path / "whole.safetensors", into=Whole(_net()).eval())
    _alike(back, whole)
    dense = lowrank.densify(back)
    _alike(dense, whole)
    assert not any(isinstance(m, nn.Sequential) for m in dense.backbone.children())  # type: ignore[union-attr]
    with pytest.raises(PlanError, match="holds no factorized layers"):
        lowrank.densify(dense)
    with pytest.raises(PlanError, match=r"no such (part|layer)"):
        lowrank.load(tmp_path / "whole.safetensors", into=_net())


def test_a_part_without_the_plan_of_the_whole_is_not_saved(tmp_path: Path) -> None:
    small, _ = lowrank.compress(Whole(_net()).eval(), X[:1], **FEW)
    with pytest.raises(CheckpointError, match="plan that is not with this model"):
        lowrank.save(small.backbone, tmp_path / "part.safetensors")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def _with(part: Callable[[], nn.Module]) -> Callable[[], nn.Sequential]:
    def make() -> nn.Sequential:
        net = _net()
        torch.manual_seed(2)
        net[2] = part()
        return net.eval()

    return make


def _block() -> nn.Sequential:
    return nn.Sequential(nn.Linear(48, 48), nn.ReLU())


def _hooked() -> nn.Module:
    return torch.nn.utils.weight_norm(nn.Linear(48, 48))


def _lazy() -> nn.Module:
    layer = nn.LazyLinear(48)
    layer(torch.zeros(1, 48))
    return layer


PARTS: dict[str, Callable[[], nn.Module]] = {
    "scripted": lambda: torch.jit.script(_block()),
    "traced": lambda: torch.jit.trace(_block(), torch.zeros(2, 48)),
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(48, 48)),
    "weight norm by a hook": _hooked,
    "pruned": lambda: prune.l1_unstructured(nn.Linear(48, 48), "weight", 0.5),
    "lazy, then run": _lazy,
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_that_are_no_plain_layers_go_all_the_way(kind: str, tmp_path: Path) -> None:
    make, path = _with(PARTS[kind]), tmp_path / "small.safetensors"
    net = make()
    small, _ = lowrank.compress(net, X[:1], data=X, refine=2, **FEW)
    lowrank.save(small, path)
    _alike(lowrank.load(path, into=make()), small)
    _alike(lowrank.densify(small), small)
    before = copy.deepcopy({k: v.clone() for k, v in small.state_dict().items()})
    lowrank.finetune(small, teacher=net, data=X, epochs=1)
    assert any(not torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_quantized_parts_are_compressed_with_data() -> None:
    quantize = torch.ao.quantization.quantize_dynamic
    net = _with(lambda: quantize(nn.Sequential(nn.Linear(48, 48)), {nn.Linear}))()
    small, report = lowrank.compress(net, X[:1], data=X, refine=2, **FEW)
    assert "already quantized" in report.left_alone["2.0"]
    assert any("no gradients can be had" in note for note in report.notes)
    _alike(lowrank.densify(small), small)


def test_a_lazy_model_is_not_loaded_into(tmp_path: Path) -> None:
    small, _ = lowrank.compress(_with(_lazy)(), X[:1], **FEW)
    lowrank.save(small, tmp_path / "small.safetensors")
    with pytest.raises(InputError, match="lazy and has no values yet"):
        lowrank.load(tmp_path / "small.safetensors", into=_with(lambda: nn.LazyLinear(48))())


class Words(nn.Module):
    """A table and a head over one memory: one parameter, or two that share it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.body = nn.Embedding(120, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 120, bias=False)
        if how == "memory":
            self.head.weight.data = self.table.weight.data
        else:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.table(ids))))


def test_parameters_over_one_memory_are_one(tmp_path: Path) -> None:
    ids = torch.randint(0, 120, (4, 6), generator=torch.Generator().manual_seed(0))
    small: dict[str, nn.Module] = {}
    for how in ("memory", "parameter"):
        net = Words(how).eval()
        size = lowrank.profile(net, ids, latency=False).parameters
        small[how], report = lowrank.compress(net, ids, params=0.7)
        assert report.dense.parameters == report.plan.total.params == size
        assert report.dense.bytes == 4 * size
        left = lowrank.profile(small[how], ids, latency=False).parameters
        assert report.compressed.parameters == left <= 0.7 * size
        lowrank.save(small[how], tmp_path / how)
        back = lowrank.load(tmp_path / how, into=Words(how).eval())
        assert torch.equal(back(ids), small[how](ids))
        dense = lowrank.densify(small[how])
        assert dense.head.weight is dense.table.weight  # type: ignore[union-attr]
    assert torch.equal(small["memory"](ids), small["parameter"](ids))


def test_layers_over_one_memory_stay_so_in_a_copy() -> None:
    net = _net()
    net.add_module("again", nn.Sequential(nn.Linear(8, 48), nn.Linear(48, 48), nn.Linear(48, 4)))
    net.again[1].weight.data = net[2].weight.data  # type: ignore[operator,union-attr,index]
    small, report = lowrank.compress(net.eval(), X[:1], params=0.9, methods="channel_svd")
    assert "shares its weight with again.1" in report.left_alone["2"]
    assert small[2].weight.data_ptr() == small.again[1].weight.data_ptr()  # type: ignore[union-attr,index,operator]


@pytest.mark.parametrize(
    "dressed", [parametrizations.spectral_norm, parametrizations.weight_norm, lambda m: m]
)
def test_a_compiled_part_with_a_parametrized_weight_comes_back(
    dressed: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        part = torch.compile(dressed(nn.Linear(16, 16)), backend="eager")
        return nn.Sequential(part, nn.Tanh(), nn.Linear(16, 24)).eval()

    x = torch.randn(4, 16)
    small, report = lowrank.compress(build(), x, params=0.8)
    assert len(report.layers) == 2  # the wrapper is no layer beside the one inside
    lowrank.save(small, tmp_path / "small.safetensors")
    loaded = lowrank.load(tmp_path / "small.safetensors", into=build())
    assert torch.equal(loaded(x), small(x))


COMPILED_AWAY = {
    "scripted": lambda net: torch.jit.script(net),
    "traced": lambda net: torch.jit.trace(net, X[:1]),
    "exported": lambda net: torch.export.export(net, (X[:1],)).module(),
}


@pytest.mark.parametrize("how", COMPILED_AWAY)
def test_what_was_made_from_a_module_sends_back_to_it(how: str) -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with pytest.raises(InputError, match=r"compress (the module that|what was)"):
        lowrank.compress(COMPILED_AWAY[how](net), X[:1], params=0.7)
