"""Masks of `torch.nn.utils.prune`, taken as the start of a selection."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from torch.nn.utils import prune


def masked(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Modules whose weights are masked -> the names of these weights."""
    found = {}
    for name, module in model.named_modules():
        hooks = module._forward_pre_hooks.values()
        names = [h._tensor_name for h in hooks if isinstance(h, prune.BasePruningMethod)]
        if names:
            found[name] = tuple(names)
    return found


def unmask(model: nn.Module, names: Collection[str]) -> None:
    """Make masks part of the weights, in place: zeros where they were.

    Args:
        model: the network.
        names: of its modules.
    """
    for name, weights in masked(model).items():
        if name in names:
            for weight in weights:
                prune.remove(model.get_submodule(name), weight)
