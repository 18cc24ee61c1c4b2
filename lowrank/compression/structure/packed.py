"""Modules that hand packed weights to a kernel, and ours of layers in their places."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from lowrank.compression.network.scan import is_packed_experts
from lowrank.compression.structure.attention import Attention, attention_apart, attention_together
from lowrank.compression.structure.experts import (
    DOWN,
    Experts,
    experts_apart,
    experts_together,
    first_of,
)
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.recurrent import (
    Recurrent,
    RecurrentCell,
    cell_apart,
    cell_together,
    recurrent_apart,
    recurrent_together,
)
from lowrank.compression.structure.swap import _put

_FIRST = {
    nn.MultiheadAttention: "q_proj",
    **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), "ih_l0"),
    **dict.fromkeys((nn.LSTMCell, nn.GRUCell, nn.RNNCell), "ih"),
}
"""The first layer of what stands in the place of each of torch's."""


def take_apart(model: nn.Module, names: Iterable[str]) -> None:
    """Put one of our modules in the place of each of these of packed weights, in place.

    The parameters are the packed ones, or views of them: nothing is copied.
    """
    for name in names:
        packed = model.get_submodule(name)
        if isinstance(packed, nn.MultiheadAttention):
            _put(model, packed, attention_apart(packed))
        elif is_packed_experts(packed):
            _put(model, packed, experts_apart(packed))
        elif isinstance(packed, nn.RNNCellBase):
            _put(model, packed, cell_apart(packed))
        else:
            assert isinstance(packed, nn.RNNBase)
            _put(model, packed, recurrent_apart(packed))


def put_together(model: nn.Module, keep: Collection[str] = ()) -> None:
    """Put the packed module in the place of each of ours whose layers are all dense, in place.

    Args:
        model: holds them.
        keep: names of layers; what they stand in stays as it is.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, Attention | Recurrent | RecurrentCell | Experts):
            continue
        parts = _layers(name, module)
        dense = all(isinstance(child, nn.Linear) for child in parts.values())
        if dense and parts.keys().isdisjoint(keep):
            if isinstance(module, Attention):
                _put(model, module, attention_together(module))
            elif isinstance(module, Recurrent):
                _put(model, module, recurrent_together(module))
            elif isinstance(module, RecurrentCell):
                _put(model, module, cell_together(module))
            else:
                _put(model, module, experts_together(module))


def _layers(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """The layers of one of our modules, or what stands in their places, by their whole names."""
    if not isinstance(module, Experts):
        return {f"{name}.{part}": child for part, child in module.named_children()}
    lists = {part: module.get_submodule(part) for part in (first_of(module), DOWN)}
    return {f"{name}.{p}.{e}": m for p, some in lists.items() for e, m in some.named_children()}


def packed_in(model: nn.Module, plan: Plan) -> list[str]:
    """Names of the packed modules in a model that a plan knows layer by layer."""
    first = {name: _first(module) for name, module in model.named_modules()}
    return [name for name, part in first.items() if part and f"{name}.{part}" in plan.layers]


def _first(module: nn.Module) -> str | None:
    """The first layer of what stands in the place of a packed module; None of any other, and of
    what is apart already."""
    if isinstance(module, Experts):
        return None
    return f"{first_of(module)}.0" if is_packed_experts(module) else _FIRST.get(type(module))


def kept_apart(plan: Plan) -> set[str]:
    """Names of the layers that a plan leaves otherwise than it found them."""
    return {*(name for names in plan.units for name in names), *plan.int8, *plan.narrowed}
