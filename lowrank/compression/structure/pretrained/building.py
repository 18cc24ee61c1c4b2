"""A model of transformers with factors in it, built from its config and plans alone.

Writing and reading both go by this: what is written is first compared with what reading
will build.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.structure.fused import settle_fused
from lowrank.compression.structure.history import build_structure, part_of
from lowrank.compression.structure.plan import Plan


def build(model: Any, plans: Iterable[tuple[str, Plan]]) -> None:
    """Put factors with arbitrary weights into a dense model, in place.

    Args:
        model: a `PreTrainedModel` of the class that was compressed, its weights tied or not.
        plans: names of parts, and the plan that each has been through.

    Raises:
        PlanError: a plan is for another model.
    """
    tie(model, model.all_tied_weights_keys)
    for name, plan in plans:
        build_structure(part_of(model, name), plan)
    settle_fused(model)  # of what holds the parts, too
    model.all_tied_weights_keys = ties(model)


def ties(model: nn.Module) -> dict[str, str]:
    """Names in a model's state that stand for a tensor of an earlier name -> that name."""
    first: dict[int, str] = {}
    names = {n: first.setdefault(id(t), n) for n, t in model.state_dict(keep_vars=True).items()}
    return {name: other for name, other in names.items() if name != other}


def tie(model: nn.Module, names: Mapping[str, str]) -> None:
    """Let parameters be those of other names, as transformers does behind loading."""
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    for name, other in names.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, held[other])


def mismatch(
    have: Mapping[str, tuple[int, ...]],
    want: Mapping[str, tuple[int, ...]],
    sides: Sequence[str],
) -> str | None:
    """The first name that one of two states lacks, or has in another shape, in words; or None.

    Example:
        >>> mismatch({"a": (2, 3)}, {"a": (2, 4)}, ("the file", "the plan"))
        'a has shape (2, 3) in the file and (2, 4) in the plan'
    """
    for name in dict.fromkeys([*want, *have]):
        if name not in have or name not in want:
            there, missing = sides if name in have else reversed(sides)
            return f"{name} is in {there} and not in {missing}"
        if have[name] != want[name]:
            return f"{name} has shape {have[name]} in {sides[0]} and {want[name]} in {sides[1]}"
    return None


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def skeleton(model: Any, plans: Iterable[tuple[str, Plan]]) -> Any:
    """A model without weights as reading will build it, of the config and plans of another.

    Raises:
        PlanError: a plan does not fit what the config builds.
    """
    config = copy.deepcopy(model.config)
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        made = type(model)._from_config(config, dtype=model.dtype)
    build(made, plans)
    return made
