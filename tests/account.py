"""Every channel dimension of a network accounted for, and what was dropped moves nothing."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lowrank.compression import flatten
from lowrank.compression.network.channels.narrowing import narrow, widen
from lowrank.compression.network.channels.units import Channels, find_channels
from lowrank.compression.network.example import Example, evaluating, run
from lowrank.compression.network.scan import scan
from lowrank.compression.planning.selection.narrowed import proven
from lowrank.compression.planning.selection.path import narrowed_by
from lowrank.compression.structure.history import copy_model
from lowrank.compression.structure.opening import opened


@dataclass
class Account:
    """What became of the output dimensions of a network's layers.

    Args:
        units: that may lose channels.
        free: layers whose outputs are in a unit.
        fixed: layers whose outputs stay, by the reason.
        unseen: layers that the example does not run, or that no rule may touch.
        refused: units that the proof refused, by the reason.
        faults: what must not be.
    """

    units: int = 0
    free: int = 0
    fixed: Counter[str] = field(default_factory=Counter)
    unseen: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __iadd__(self, other: Account) -> Account:
        self.units, self.free = self.units + other.units, self.free + other.free
        self.fixed += other.fixed
        self.unseen += other.unseen
        self.refused += other.refused
        self.faults += other.faults
        return self


def account(model: nn.Module, example: Example) -> Account:
    """Follow the channels of a network, drop some of each unit, and shake what was dropped."""
    model = opened(model, example)
    found = scan(model, example)
    channels, failed = proven(model, example, find_channels(model, example, found))
    made = Account(units=len(channels.units), refused=Counter(map(_kind, failed.values())))
    loose = {m for u in channels.units for m in u.channels}
    for view in found.views:
        marks = channels.sides.get((view.name, "out"))
        if marks is None:
            made.unseen += 1
        elif loose & set(marks):
            made.free += 1
        elif view.name in channels.reasons:
            made.fixed[_kind(channels.reasons[view.name])] += 1
        elif len(set(marks)) == 1:
            made.fixed["it has one channel"] += 1
        elif not any(set(marks) & set(u.channels) for u in _refused(channels, failed)):
            made.fixed["its unit was refused"] += 1
    with torch.inference_mode(False), torch.no_grad():
        for unit in channels.units:
            made.faults += _moved(
                model, example, channels, unit.channels[: max(1, len(unit.channels) // 2)]
            )
    return made


def _refused(channels: Channels, failed: dict[str, str]) -> list[Any]:
    return [u for u in channels.units if u.name in failed]


def _kind(reason: str) -> str:
    return reason.split(" (")[0]


def _moved(
    model: nn.Module, example: Example, channels: Channels, dropped: tuple[int, ...]
) -> list[str]:
    """Faults of a network without some channels: it is the one in which nothing reads them."""
    what = narrowed_by(channels, dropped)
    if not what:
        return []
    gone = channels.spared(dropped)
    small = copy_model(model)
    narrow(small, what)
    wide = copy.deepcopy(small)
    widen(wide, what)
    faults = []
    if _shapes(wide) != _shapes(model):
        faults.append(f"{channels.units[0].name}: not as wide as before")
    _shake(wide, channels, gone)
    with evaluating(small), evaluating(wide):
        given, wanted = flatten(run(small, example)), flatten(run(wide, example))
    for a, b in zip(given, wanted, strict=True):
        if not b.numel():
            continue
        kind = torch.promote_types(b.dtype, torch.float64)
        off, size = ((a.to(kind) - b.to(kind)).nan_to_num(), b.to(kind).nan_to_num())
        if not off.abs().max() <= 1e-3 * size.abs().max() + 1e-6:
            faults.append(f"channels {sorted(gone)[:4]} of {list(what)[:4]} move the output")
    return faults


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Of all parameters; what shares memory is one parameter in a copy."""
    return {n: p.shape for n, p in model.named_parameters(remove_duplicate=False)}


def _shake(wide: nn.Module, channels: Channels, gone: set[int]) -> None:
    """Let what makes the channels that went give something, which nothing reads."""
    generator = torch.Generator().manual_seed(0)
    for (name, side), marks in channels.sides.items():
        module = wide.get_submodule(name)
        places = [k for k, m in enumerate(marks) if m in gone]
        if not places:
            continue
        made = side == "out" and not getattr(module, "transposed", False)
        norm = (
            side == "in" and getattr(module, "weight", None) is not None and module.weight.ndim == 1
        )
        if not (made or norm) or type(module).__name__ == "Conv1D":
            continue
        for tensor in (module.weight, getattr(module, "bias", None)):
            if tensor is None:
                continue
            at = (slice(None), places) if isinstance(module, nn.Embedding) else places
            noise = torch.rand(tensor[at].shape, generator=generator).to(tensor)
            tensor[at] = 0.1 + 0.1 * noise
