"""From the whole model down: which channels go at every budget, and what that loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.network.channels.narrowing import Kept, Narrowed
from lowrank.compression.network.channels.units import Channels, ChannelUnit, Side
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import Scan
from lowrank.compression.network.stages import Cost
from lowrank.compression.planning.selection import Score
from lowrank.compression.planning.selection.readers import Reader, reader_of, readers_of
from lowrank.compression.planning.selection.scores import order
from lowrank.progress import Progress

LEVELS = 16
"""Widths of a unit that are looked at, at most."""

Count = Literal["params", "bytes", "macs"]

_COUNTS: tuple[Count, ...] = ("params", "bytes", "macs")

Array: TypeAlias = NDArray[np.float64]

_AHEAD = 4
"""Widths of a unit that a step looks at: what one channel more loses may save much."""


def narrowed_by(channels: Channels, dropped: Sequence[int]) -> dict[str, Narrowed]:
    """What stays of every layer of a model without these channels."""
    kept, sides = channels.kept(dropped), channels.sides

    def side(name: str, which: Side) -> Kept | None:
        if (name, which) not in kept:
            return None
        return Kept(kept[name, which], len(sides[name, which]))

    names, deep = dict.fromkeys(name for name, _ in kept), channels.depthwise
    return {n: Narrowed(side(n, "in"), side(n, "out"), n in deep) for n in names}


@dataclass(frozen=True, eq=False)
class UnitCurve:
    """What is lost against the number of channels that go.

    Args:
        unit: the unit.
        ordered: its channels, those that go first first.
        gone: how many go, rising from 0.
        lost: for each, what the readers lose, as plans weigh it.
        even: how many stay is a multiple of this.
    """

    unit: ChannelUnit
    ordered: tuple[int, ...]
    gone: tuple[int, ...]
    lost: tuple[float, ...]
    even: int = 1

    def rounded(self, gone: int) -> int:
        """The least number of channels, from this up, after which what stays is even."""
        return self.unit.width - (self.unit.width - gone) // self.even * self.even


@dataclass(frozen=True, eq=False)
class Step:
    """One point of the path.

    Args:
        dropped: channels that go.
        lost: what that loses, as plans weigh it.
        cost: of the whole model.
        gone: how many channels each unit has lost.
    """

    dropped: tuple[int, ...]
    lost: float
    cost: Cost
    gone: tuple[int, ...] = ()

    def within(self, limits: Mapping[Count, float]) -> bool:
        """Whether it costs no more than that."""
        return all(getattr(self.cost, name) <= most for name, most in limits.items())


@dataclass(frozen=True, eq=False)
class Selection:
    """Every unit's curve, and the way down.

    Args:
        channels: of the model.
        views: layer -> its view.
        curves: of all units.
        readers: layer -> it as a reader.
        total: cost of the whole model.
    """

    channels: Channels
    views: Mapping[str, LayerView]
    curves: tuple[UnitCurve, ...]
    readers: Mapping[str, Reader]
    total: Cost

    def cost(self, dropped: Sequence[int]) -> Cost:
        """Of the whole model without these channels."""
        gone, marks = self.channels.spared(dropped), self.channels.sides
        lost = [sum(m in gone for m in marks[side]) for side in self._sizes.sides]
        return self._sizes.cost(np.array(lost, float))

    @cached_property
    def _sizes(self) -> _Sizes:
        return _Sizes.of(self.channels, self.views, self.total)

    def cost_of(self, name: str, dropped: Sequence[int]) -> Cost:
        """Of one layer without these channels."""
        kept, dense = self.channels.kept(dropped), self.views[name].cost()
        touched = any(n == name for n, _ in kept)
        share = self._share(name, kept) if touched else 1.0
        return Cost(*(round(share * n) for n in (dense.params, dense.bytes, dense.macs)))

    def _share(self, name: str, kept: Mapping[tuple[str, Side], Sequence[int]]) -> float:
        spec = self.views[name].spec
        shares = [
            len(kept[name, side]) / len(self.channels.sides[name, side])
            for side in ("in", "out")
            if (name, side) in kept
        ]
        if spec.groups > 1 and spec.groups == spec.in_channels:
            return shares[0]  # a depthwise layer's two sides are one
        return float(np.prod(shares))

    def path(self, count: Count, *, least: float = 0.0) -> list[Step]:
        """From all channels down, at each step what loses least for what it saves.

        Args:
            count: what is saved.
            least: cost at which to stop.
        """
        sizes, at = self._sizes, [0] * len(self.curves)
        lost = [sizes.lost(c, self.channels) for c in self.curves]
        gone, error = np.zeros(len(sizes.sides)), 0.0
        steps = [Step((), 0.0, self.total, (0,) * len(at))]
        while sizes.of_count(gone, count) > least:
            best = self._best(at, lost, gone, count)
            if best is None:
                break
            unit, level = best
            curve = self.curves[unit]
            gone = gone - lost[unit][at[unit]] + lost[unit][level]
            error += curve.lost[level] - curve.lost[at[unit]]
            at[unit] = level
            counts = [c.gone[k] for c, k in zip(self.curves, at, strict=True)]
            steps.append(Step(self._dropped(counts), error, sizes.cost(gone), tuple(counts)))
        return steps

    def reach(self, path: Sequence[Step], limits: Mapping[Count, float]) -> Step | None:
        """The point of a path that is just within limits; None where there is none.

        Between two points of the path channels go one by one.
        """
        place = next((k for k, step in enumerate(path) if step.within(limits)), None)
        if place is None or place == 0:
            return None if place is None else path[0]
        before, found = path[place - 1], path[place]
        few, many = 0, max(b - a for a, b in zip(before.gone, found.gone, strict=True))
        whole = many
        while many - few > 1:
            middle = (few + many) // 2
            step = self._between(before, path[place], middle, middle / whole)
            if step.within(limits):
                many, found = middle, step
            else:
                few = middle
        return found

    def _between(self, before: Step, after: Step, more: int, share: float) -> Step:
        """The point of so many channels more than the one before, or a few more to be even."""
        rows = zip(self.curves, before.gone, after.gone, strict=True)
        counts = [c.rounded(a + more) if b > a else a for c, a, b in rows]
        dropped = self._dropped(counts)
        lost = before.lost + share * (after.lost - before.lost)
        return Step(dropped, lost, self.cost(dropped), tuple(counts))

    def _best(
        self, at: Sequence[int], lost: Sequence[Array], gone: Array, count: Count
    ) -> tuple[int, int] | None:
        """The unit and its width that lose least for what is saved."""
        here, price = self._sizes.of_count(gone, count), float("inf")
        found = None
        for u, curve in enumerate(self.curves):
            for level in range(at[u] + 1, min(at[u] + _AHEAD, len(curve.gone))):
                then = gone - lost[u][at[u]] + lost[u][level]
                saved = here - self._sizes.of_count(then, count)
                rise = curve.lost[level] - curve.lost[at[u]]
                if saved > 0 and rise / saved < price:
                    price, found = rise / saved, (u, level)
        return found

    def _dropped(self, counts: Sequence[int]) -> tuple[int, ...]:
        return tuple(m for c, n in zip(self.curves, counts, strict=True) for m in c.ordered[:n])

    def narrowed(self, dropped: Sequence[int]) -> dict[str, Narrowed]:
        """What stays of every layer without these channels."""
        return narrowed_by(self.channels, dropped)


@dataclass(frozen=True, eq=False)
class _Sizes:
    """The costs of all layers by how many positions each side has lost.

    Args:
        sides: (layer, side) of the layers, one after another.
        widths: (n_sides,) of each.
        inputs: (n_layers,) where a layer's inputs stand among the sides.
        outputs: likewise its outputs; of a depthwise layer, whose sides are one, its inputs again.
        costs: (n_layers, 3) parameters, bytes and MACs.
        total: of the whole model.
    """

    sides: tuple[tuple[str, Side], ...]
    widths: Array
    inputs: NDArray[np.intp]
    outputs: NDArray[np.intp]
    costs: Array
    total: Cost

    @classmethod
    def of(cls, channels: Channels, views: Mapping[str, LayerView], total: Cost) -> _Sizes:
        """Of a model's layers."""
        both: tuple[Side, Side] = ("in", "out")
        sides = tuple((n, s) for n in views for s in both)
        widths = np.array([len(channels.sides[side]) for side in sides], float)
        first = 2 * np.arange(len(views))
        specs = [v.spec for v in views.values()]
        one = np.array([s.groups > 1 and s.groups == s.in_channels for s in specs], bool)
        dense = [v.cost() for v in views.values()]
        costs = np.array([[c.params, c.bytes, c.macs] for c in dense], float).reshape(-1, 3)
        return cls(sides, widths, first, np.where(one, -1, first + 1), costs, total)

    def lost(self, curve: UnitCurve, channels: Channels) -> Array:
        """(levels, n_sides) positions that each side loses at each width of a unit."""
        rank = {mark: k for k, mark in enumerate(curve.ordered)}
        found = np.zeros((len(curve.gone), len(self.sides)))
        levels = np.array(curve.gone)
        for k, side in enumerate(self.sides):
            places = np.array([rank[m] for m in channels.sides[side] if m in rank])
            if len(places):
                found[:, k] = (places[None] < levels[:, None]).sum(1)
        return found

    def _saved(self, gone: Array) -> Array:
        stay = np.append(1 - gone / self.widths, 1.0)
        return ((1 - stay[self.inputs] * stay[self.outputs])[:, None] * self.costs).sum(0)

    def of_count(self, gone: Array, count: Count) -> float:
        """What the model has of one measure."""
        return float(getattr(self.total, count) - self._saved(gone)[_COUNTS.index(count)])

    def cost(self, gone: Array) -> Cost:
        """The whole model's cost."""
        whole = np.array([self.total.params, self.total.bytes, self.total.macs])
        return Cost(*(int(c) for c in whole - self._saved(gone)))


def select(
    model: nn.Module,
    found: Scan,
    channels: Channels,
    total: Cost,
    data: Statistics | None,
    *,
    score: Score = "lasso",
    exponent: float = 0.5,
    round_to: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Selection:
    """The curve of every unit of a model.

    Args:
        model: the dense network; left as it is.
        found: its layers.
        channels: its channels.
        total: cost of the whole model on the example.
        data: its moments; without them weights alone count.
        score: how channels are ordered; see `order`.
        exponent: how layers are weighed.
        round_to: layers that go narrower keep multiples of so many channels.
        seed: of what is drawn.
        progress: called as (unit, done, total).
    """
    views = {v.name: v for v in found.views if (v.name, "in") in channels.sides}
    names = {name for unit in channels.units for name in unit.readers}
    readers = {n: reader_of(model, views[n], channels, data, exponent) for n in views if n in names}
    curves = []
    with torch.inference_mode(False), torch.no_grad():
        for done, unit in enumerate(channels.units):
            if progress is not None:
                progress(f"selecting {unit.name}", done, len(channels.units))
            some = readers_of(unit, readers)
            ordered = order(score, model, unit, channels, some, seed=seed + done)
            curves.append(_curve(unit, ordered, some, _even(unit, channels, round_to)))
    return Selection(channels, views, tuple(curves), readers, total)


def _even(unit: ChannelUnit, channels: Channels, round_to: int) -> int:
    """Of how many channels a unit keeps a multiple, so that its layers do: one may be a whole head
    of a layer, or one of each of its groups."""
    mine = set(unit.channels)
    each = [sum(m in mine for m in channels.sides[n, "out"]) for n in unit.makers]
    return round_to // gcd(round_to, *(n // len(mine) for n in each))


def _levels(n: int, width: int, even: int) -> list[int]:
    """How many of the n channels go that may, of `width`: spread evenly, what stays even.

    Example:
        >>> _levels(16, 16, 4)
        [0, 4, 8, 12]
    """
    most = n - 1 if n == width else n
    allowed = [0, *(g for g in range(1, most + 1) if (width - g) % even == 0)]
    places = {round(k * (len(allowed) - 1) / LEVELS) for k in range(LEVELS + 1)}
    return [allowed[k] for k in sorted(places)]


def _curve(
    unit: ChannelUnit, ordered: Sequence[int], readers: Sequence[Reader], even: int
) -> UnitCurve:
    gone = _levels(len(ordered), unit.width, even)
    lost = sum((r.lost(ordered, gone) for r in readers), np.zeros(len(gone)))
    lost = np.maximum.accumulate(lost).tolist()
    return UnitCurve(unit, tuple(ordered), tuple(gone), tuple(lost), even)
