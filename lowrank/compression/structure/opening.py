"""Models whose packed modules are taken apart, to be measured, planned and replaced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from lowrank.compression.network.channels.masks import masked, unmask
from lowrank.compression.network.channels.narrowing import narrow
from lowrank.compression.network.channels.weight_norm import fold_weight_norm, weight_normed
from lowrank.compression.network.example import Example, check
from lowrank.compression.network.scan import (
    holds_parameters,
    is_packed,
    packed_modules,
    refuse_valueless,
    require_module,
)
from lowrank.compression.structure.experts import Experts
from lowrank.compression.structure.fused import settle_fused
from lowrank.compression.structure.history import copy_model, unmasked_by, unnormed_by
from lowrank.compression.structure.packed import kept_apart, packed_in, put_together, take_apart
from lowrank.compression.structure.plan import Plan


def opened(
    model: nn.Module,
    example: Example,
    *,
    stock: bool = False,
    timed: bool = False,
    skip: Sequence[str] = (),
) -> nn.Module:
    """The model; or where it has attention, recurrent modules or experts that can be taken
    apart, or weights under weight norm, one over the same weights in which they are plain layers.

    Args:
        model: the network; left as it is.
        example: inputs of one forward pass, which show what else reads the packed weights.
        stock: no module of ours may stand in the result, so that none is taken apart.
        timed: time counts, so that recurrent modules stay with torch's kernel, which is faster
            than any loop.
        skip: patterns of names; modules that they match stay as they are.

    Raises:
        InputError: a model or an example that is none, or parameters that hold no numbers.
    """
    require_module(model)
    model = without_weight_norm(model, [n for n in weight_normed(model) if not _named(n, skip)])
    if stock or not any(is_packed(m, recurrent=not timed) for m in model.modules()):
        return model
    check(example)
    for name, module in model.named_modules():
        if holds_parameters(module):
            refuse_valueless(name, module)
    found = packed_modules(model, example, recurrent=not timed)
    free = [name for name, why in found.items() if why is None]
    return _apart(model, [n for n in free if not _named(n, skip)])


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(name == p or fnmatchcase(name, p) for p in patterns)


def opened_for(model: nn.Module, plan: Plan) -> nn.Module:
    """The same for a plan: that is taken apart of whose layers it speaks, and layers are as narrow
    as it says.

    Raises:
        PlanError: a layer of another width.
    """
    apart = apart_for(model, plan)
    if not plan.narrowed:
        return apart
    same = _same(model) if apart is model else apart
    with torch.inference_mode(False):
        narrow(same, plan.narrowed)
    return same


def apart_for(model: nn.Module, plan: Plan) -> nn.Module:
    """The model in full width, with that taken apart of whose layers a plan speaks."""
    model = without_weight_norm(model, unnormed_by(model, plan))
    return _apart(without_masks(model, unmasked_by(model, plan)), packed_in(model, plan))


def without_weight_norm(model: nn.Module, names: Collection[str]) -> nn.Module:
    """The model; or where modules are named, one over the same weights in which theirs are plain.

    Args:
        model: the network; left as it is.
        names: of modules under weight norm.
    """
    if not names:
        return model
    same = _same(model)
    with torch.inference_mode(False), torch.no_grad():
        fold_weight_norm(same, names)
    return same


def without_masks(model: nn.Module, names: Collection[str] | None = None) -> nn.Module:
    """The model; or where weights are masked, a copy in which the masks are part of them.

    Args:
        model: the network; left as it is.
        names: of the modules; by default all.
    """
    found = [n for n in masked(model) if names is None or n in names]
    if not found:
        return model
    with torch.inference_mode(False):
        same = copy_model(model)
        unmask(same, found)
    return same


def _apart(model: nn.Module, names: Sequence[str]) -> nn.Module:
    if not names:
        return model
    same = _same(model)
    with torch.inference_mode(False):
        take_apart(same, names)
    _visit_every_expert(same, True)
    settle_fused(same)
    return same


def _visit_every_expert(model: nn.Module, every: bool) -> None:
    """While a model is looked at, an expert to which no token is sent is a layer all the same."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.every = every


def _same(model: nn.Module) -> nn.Module:
    """A model of its own over the same weights."""
    with torch.inference_mode(False):
        return copy_model(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def closed(model: nn.Module, plan: Plan) -> None:
    """Put that together, in place, of which a plan left all layers dense."""
    put_together(model, kept_apart(plan))
    _visit_every_expert(model, False)
    settle_fused(model)
