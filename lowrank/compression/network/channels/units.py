"""The channels of a model that may go, and the layers that go narrower with them.

A *unit* is a set of channels that the same layers make: a producer or, behind a residual sum,
several, with the norms that pass them on and the readers that take them in. It is found by running
the example with marks (see `marks`): a channel that the model returns, or that a function reads
which no rule speaks of, stays, and the unit says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lowrank.compression.network.channels.marks import FIXED, Marks, Ties, folded, lean
from lowrank.compression.network.example import Example, as_written, evaluating, run
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import Scan, held_elsewhere

Side: TypeAlias = Literal["in", "out"]

_CARRIERS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU)
"""Modules with numbers for each channel, which they pass on."""


@dataclass(frozen=True, eq=False)
class ChannelUnit:
    """Channels that the same layers make.

    Args:
        name: of the first layer that makes them.
        channels: the channels that may go, by number; in each layer some positions.
        makers: the layers that make them.
        readers: the layers that read them.
        width: how many channels its makers have, with those that stay.
    """

    name: str
    channels: tuple[int, ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    width: int


@dataclass(frozen=True, eq=False)
class Channels:
    """Every channel of a model.

    Args:
        sides: (layer, side) -> the channel of each position; 0 stays.
        units: those that may go.
        reasons: layer -> why its outputs stay as they are.
        depthwise: layers that pass each channel on by itself.
    """

    sides: Mapping[tuple[str, Side], tuple[int, ...]]
    units: tuple[ChannelUnit, ...]
    reasons: Mapping[str, str]
    depthwise: frozenset[str] = frozenset()

    def kept(self, dropped: Sequence[int]) -> dict[tuple[str, Side], tuple[int, ...]]:
        """Of each side of a layer that goes narrower, the positions that stay.

        Args:
            dropped: channels that go, those that matter least first: of a side that would lose
                all, the last of these stays.
        """
        gone, found = self.spared(dropped), {}
        for side, marks in self.sides.items():
            stay = tuple(k for k, mark in enumerate(marks) if mark not in gone)
            if len(stay) < len(marks):
                found[side] = stay
        return found

    def spared(self, dropped: Sequence[int]) -> set[int]:
        """The channels that go, so that no side of a layer loses all."""
        gone = set(dropped)
        places = {mark: k for k, mark in enumerate(dropped)}
        for marks in self.sides.values():
            if gone.issuperset(marks):
                gone.discard(max(marks, key=places.__getitem__))
        return gone

    def without(self, names: Collection[str]) -> Channels:
        """The same without the units of these names."""
        units = tuple(u for u in self.units if u.name not in names)
        return replace(self, units=units)


def find_channels(
    model: nn.Module, example: Example, found: Scan, left_out: Mapping[str, str] | None = None
) -> Channels:
    """Which channels of which layers travel together.

    Args:
        model: the network; left as it is.
        example: inputs of one forward pass.
        found: its layers.
        left_out: layers that must stay as they are -> why.
    """
    trace = _Trace(model, found, left_out or {})
    with trace.watching(), torch.no_grad(), evaluating(model), as_written(model), trace.marks:
        output = run(model, example)
    trace.marks.fix("the model returns it", output)
    return trace.channels()


class _Trace:
    """One run with marks, and the layers that it passed."""

    def __init__(self, model: nn.Module, found: Scan, left_out: Mapping[str, str]) -> None:
        self.ties = Ties()
        self.marks = Marks(self.ties)
        shared = _shared(model)
        held = held_elsewhere(model)
        views = [u.layers[0] for u in found.units if len(u.layers) == 1]
        self.layers = {
            v.name: v
            for v in views
            if v.name not in left_out and not shared & {id(v.module)} and _may_go(v)
        }
        self.carriers = {
            name: m
            for name, m in model.named_modules()
            if isinstance(m, _CARRIERS) and not {id(m)} & (shared | held.keys())
            and not m._forward_hooks and not m._forward_pre_hooks
        }  # fmt: skip
        self.left_out = {**found.reasons, **left_out}
        self.sides: dict[tuple[str, Side], Tensor] = {}

    def watching(self) -> ExitStack:
        """Hooks on the layers."""
        stack = ExitStack()
        for name, view in self.layers.items():
            self._hook(stack, name, view.module, view)
        for name, module in self.carriers.items():
            self._hook(stack, name, module, None)
        return stack

    def _hook(self, stack: ExitStack, name: str, module: nn.Module, view: LayerView | None) -> None:
        def enter(module: nn.Module, args: Any) -> None:
            self.marks.paused += 1

        def leave(module: nn.Module, args: Any, output: Tensor) -> None:
            if view is None:
                self._carry(name, args[0], output)
            else:
                self._pass(name, view, args[0], output)
            self.marks.paused -= 1

        stack.callback(module.register_forward_pre_hook(enter).remove)
        stack.callback(module.register_forward_hook(leave).remove)

    def _pass(self, name: str, view: LayerView, x: Tensor, y: Tensor) -> None:
        spec = view.spec
        if spec.reads_words:
            self._note((name, "in"), None, 1, 1)
            self._mark(
                y, self.sides.setdefault((name, "out"), self.ties.new(spec.out_channels)), -1
            )
            return
        axis = -1 if spec.kind == "linear" else -1 - len(spec.kernel)
        read = self._row(x, axis)
        depthwise = spec.groups > 1 and spec.groups == spec.in_channels
        self._note((name, "in"), read, spec.in_channels, 1 if depthwise else spec.groups)
        if depthwise:
            inputs = self.sides[name, "in"]
            made = inputs.repeat_interleave(spec.out_channels // spec.in_channels)
            self._note((name, "out"), made, spec.out_channels, 1)
        elif (name, "out") not in self.sides:
            made = self.ties.new(spec.out_channels // spec.groups).repeat(spec.groups)
            self.sides[name, "out"] = made
        self._mark(y, self.sides[name, "out"], axis)

    def _carry(self, name: str, x: Tensor, y: Tensor) -> None:
        module = self.carriers[name]
        weight = next(module.parameters(recurse=False), None)
        width = getattr(module, "num_features", None) or (0 if weight is None else weight.numel())
        if isinstance(module, nn.GroupNorm):
            width = module.num_channels
        axis = 1 if x.ndim > 1 else 0
        if isinstance(module, _InstanceNorm) and x.ndim == _spatial(module) + 1:
            axis = 0
        if width <= 1 and self.marks.of(x) is not None:  # one number for all: of each element
            self.marks.put(y, self.marks.of(x))  # type: ignore[arg-type]
            return
        row = self._row(x, axis)
        self._note((name, "in"), row, width, 1)
        if isinstance(module, nn.GroupNorm) and row is not None:  # a group is normed as one
            by_group = row.reshape(module.num_groups, -1)
            first = by_group[:, :1].expand(by_group.shape)
            self.ties.tie(by_group, first, "another channel of its group is fixed")
        self._mark(y, self.sides[name, "in"], axis)

    def _row(self, x: Tensor, axis: int) -> Tensor | None:
        """The channel of each position along an axis, where that is all that tells them apart."""
        marks = self.marks.of(x)
        if marks is None:
            return None
        row = lean(marks).movedim(axis, 0)
        if row.numel() != row.shape[0]:
            self.ties.fix(row, "a layer reads it together with others of its place")
            return None
        return row.reshape(-1).expand(x.shape[axis])

    def _note(self, side: tuple[str, Side], row: Tensor | None, width: int, groups: int) -> None:
        """One more call of a layer: what it reads is what it read before."""
        row = torch.zeros(width, dtype=torch.int64) if row is None else row
        before = self.sides.setdefault(side, row)
        self.ties.tie(before, row, "a layer that is called twice reads what is fixed")
        by_group = row.reshape(groups, -1)  # what stands at one place of all groups goes together
        for other in by_group[1:]:
            self.ties.tie(by_group[0], other, "another group reads what is fixed")

    def _mark(self, y: Tensor, row: Tensor, axis: int) -> None:
        shape = [1] * y.ndim
        shape[axis] = -1
        self.marks.put(y, folded(row.reshape(shape).expand(y.shape)))

    def channels(self) -> Channels:
        """What the run showed."""
        sides = {side: tuple(self.ties.roots(row)) for side, row in self.sides.items()}
        reasons = {}
        for (name, side), row in self.sides.items():
            if side == "out" and not any(sides[name, "out"]):
                why = Counter(filter(None, map(self.ties.reason, row.tolist())))
                reasons[name] = why.most_common(1)[0][0]
        depthwise = frozenset(n for n, view in self.layers.items() if _is_depthwise(view))
        return Channels(sides, tuple(self._units(sides)), reasons, depthwise)

    def _units(self, sides: Mapping[tuple[str, Side], Sequence[int]]) -> Iterator[ChannelUnit]:
        makers = [n for n, view in self.layers.items() if (n, "out") in sides]
        makers = [n for n in makers if not _is_depthwise(self.layers[n])]
        groups: list[tuple[set[int], list[str]]] = []
        for name in makers:
            own, names = {m for m in sides[name, "out"] if m != FIXED}, [name]
            if not own:
                continue
            for other in [g for g in groups if g[0] & own]:
                own, names = own | other[0], other[1] + names
                groups.remove(other)
            groups.append((own, names))
        for own, names in groups:
            read = [n for (n, s), row in sides.items() if s == "in" and own & set(row)]
            readers = [n for n in read if n in self.layers and not _is_depthwise(self.layers[n])]
            width = max(len(set(sides[n, "out"]) | own) for n in names)
            if len(own) > 1 or width > len(own):
                yield ChannelUnit(names[0], tuple(sorted(own)), tuple(names), tuple(readers), width)


def _may_go(view: LayerView) -> bool:
    """Whether a layer may lose outputs: an embedding whose rows are not scaled to a norm may."""
    return getattr(view.module, "max_norm", None) is None


def _is_depthwise(view: LayerView) -> bool:
    return view.spec.groups > 1 and view.spec.groups == view.spec.in_channels


def _spatial(module: nn.Module) -> int:
    return int(type(module).__name__[-2]) if type(module).__name__[-1] == "d" else 1


def _shared(model: nn.Module) -> set[int]:
    """The modules that hold numbers of a parameter which another one holds, too."""
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            start = int(parameter.storage_offset())
            ends = ((n - 1) * s for n, s in zip(parameter.shape, parameter.stride(), strict=True))
            where = parameter.untyped_storage().data_ptr()
            spans.setdefault(where, []).append((start, start + int(sum(ends)) + 1, id(module)))
    found: set[int] = set()
    for some in spans.values():
        some.sort()
        for k, (_, end, one) in enumerate(some):
            for start, _, other in some[k + 1 :]:
                if start >= end:
                    break
                found |= {one, other} if one != other else set()
    return found
