"""Weight norm (Salimans and Kingma, 2016), which is a way to train a weight: for a layer that is
replaced the weight is what counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from lowrank.compression.network.layers import is_parametrized


def weight_normed(model: nn.Module) -> list[str]:
    """Modules whose weight, and nothing else, is under weight norm of its own.

    Example:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> weight_normed(nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)))
        ['0']
    """
    found = {name: _sources(module) for name, module in model.named_modules()}
    held = Counter(id(p) for m in model.modules() for p in _own(m).values())
    return [
        name
        for name, sources in found.items()
        if sources and all(held[id(p)] == 1 for p in sources)
    ]


def fold_weight_norm(model: nn.Module, names: Collection[str]) -> None:
    """Put the weights that weight norm gives in its place, in place of the model's.

    A class that torch has made for a parametrized module serves its copies, too, and is left as
    it is.

    Args:
        model: the network.
        names: of its modules.
    """
    for name in names:
        module = model.get_submodule(name)
        trained = any(p.requires_grad for p in _sources(module))
        weight = cast(Tensor, module.weight).detach().clone()
        others = {k: p for k, p in module._parameters.items() if k not in ("weight_g", "weight_v")}
        if is_parametrized(module):
            module.__class__ = type(module).__bases__[0]
            del module._modules["parametrizations"]
        elif (key := _hook_of(module)) is not None:
            del module._forward_pre_hooks[key]
            module.__dict__.pop("weight", None)
        module._parameters.clear()
        module._parameters["weight"] = nn.Parameter(weight, requires_grad=trained)
        module._parameters.update(others)


def _sources(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that weight norm makes the weight of, or none."""
    if is_parametrized(module):
        lists = dict(cast(nn.ModuleDict, module.parametrizations).items())
        rules = list(cast(nn.ModuleList, lists["weight"])) if list(lists) == ["weight"] else []
        plain = len(rules) == 1 and type(rules[0]) is _WeightNorm
        return list(lists["weight"].parameters(recurse=False)) if plain else []
    if _hook_of(module) is None:
        return []
    return [p for n in ("weight_g", "weight_v") if (p := _own(module).get(n)) is not None]


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a module holds itself, each name of one: a scripted one has no dict."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False))


def _hook_of(module: nn.Module) -> int | None:
    """The key of the older form's only hook, which makes the weight before each pass."""
    hooks = {k: h for k, h in module._forward_pre_hooks.items() if isinstance(h, WeightNorm)}
    return next((k for k, h in hooks.items() if len(hooks) == 1 and h.name == "weight"), None)
