"""Modules of torch that hand packed weights to a kernel, and ours of layers in their places."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn

from lowrank.compression.structure.attention import Attention, attention_apart, attention_together
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.recurrent import Recurrent, recurrent_apart, recurrent_together
from lowrank.compression.structure.swap import _put

_FIRST = {nn.MultiheadAttention: "q_proj", nn.LSTM: "ih_l0", nn.GRU: "ih_l0"}
"""The first layer of what stands in the place of each."""


def take_apart(model: nn.Module, names: Iterable[str]) -> None:
    """Put one of our modules in the place of each of these of torch's, in place.

    The parameters are the packed ones, or views of them: nothing is copied.
    """
    for name in names:
        packed = model.get_submodule(name)
        if isinstance(packed, nn.MultiheadAttention):
            _put(model, packed, attention_apart(packed))
        else:
            assert isinstance(packed, nn.RNNBase)
            _put(model, packed, recurrent_apart(packed))


def put_together(model: nn.Module, keep: Collection[str] = ()) -> None:
    """Put torch's module in the place of each of ours whose layers are all dense, in place.

    Args:
        model: holds them.
        keep: names of layers; what they stand in stays as it is.
    """
    for name, module in list(model.named_modules()):
        parts = {f"{name}.{part}": child for part, child in module.named_children()}
        dense = all(isinstance(child, nn.Linear) for child in parts.values())
        if dense and parts.keys().isdisjoint(keep):
            if isinstance(module, Attention):
                _put(model, module, attention_together(module))
            elif isinstance(module, Recurrent):
                _put(model, module, recurrent_together(module))


def packed_in(model: nn.Module, plan: Plan) -> list[str]:
    """Names of torch's modules in a model that a plan knows layer by layer."""
    return [
        name
        for name, module in model.named_modules()
        if type(module) in _FIRST and f"{name}.{_FIRST[type(module)]}" in plan.layers
    ]


def kept_apart(plan: Plan) -> set[str]:
    """Names of the layers that a plan leaves otherwise than it found them."""
    return {*(name for names in plan.units for name in names), *plan.int8}
