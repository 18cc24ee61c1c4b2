"""Neurons of a block's hidden layer that go, within the same budget as factors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.moments import Moments
from lowrank.compression.network.channels.narrowing import Kept, Narrowed
from lowrank.compression.network.example import first_line
from lowrank.compression.network.layers import LayerView, write_weight
from lowrank.compression.network.scan import scan
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.planning.selection.readers import WIDEST, Reader
from lowrank.compression.planning.selection.widths import fewer, neurons, widths_of
from lowrank.errors import LowRankError


@dataclass(frozen=True)
class Neurons:
    """Layers that go narrower together, by their names.

    Args:
        makers: those that make the neurons, one each in its place.
        reader: the one that reads them.
    """

    makers: tuple[str, ...]
    reader: str

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.makers, self.reader)

    def within(self, block: str) -> Neurons:
        """The same of a block."""
        return Neurons(tuple(f"{block}.{n}" for n in self.makers), f"{block}.{self.reader}")

    def narrowed(self, places: Sequence[int], of: int) -> dict[str, Narrowed]:
        """What stays of each layer where these neurons stay."""
        kept = Kept(tuple(places), of)
        makers = {name: Narrowed(outputs=kept) for name in self.makers}
        return {**makers, self.reader: Narrowed(inputs=kept)}


@dataclass(frozen=True)
class Widths:
    """What a unit may become.

    Args:
        neurons: the unit.
        sizes: numbers of neurons, widest first.
        lost: relative squared error of the reader's output at each.
    """

    neurons: Neurons
    sizes: tuple[int, ...]
    lost: tuple[float, ...]


class _Called(nn.Module):
    """A block that is called with a hidden state alone."""

    def __init__(self, block: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.block, self._run = block, run

    def forward(self, hidden: Tensor) -> Tensor:
        return self._run(self.block, hidden)


def find_neurons(
    block: nn.Module,
    run: Callable[[nn.Module, Tensor], Tensor],
    hidden: Tensor,
    free: Collection[str],
) -> tuple[tuple[Neurons, ...], str | None]:
    """The units of a block, and why there is none.

    Args:
        block: with its weights.
        run: calls it, or a copy of it, with a hidden state.
        hidden: such a state.
        free: names in the block of the linear layers that a plan may replace.
    """
    model = _Called(block, run)
    try:
        found = scan(model, hidden)
        names = {f"block.{name}" for name in free}
        stay = {v.name: "it stays as it is" for v in found.views if v.name not in names}
        channels = neurons(model, hidden, found, stay)
    except LowRankError as error:
        return (), first_line(error)
    units = []
    for unit in channels.units:
        sides = [channels.sides[n, "out"] for n in unit.makers]
        alike = all(marks == channels.sides[unit.readers[0], "in"] for marks in sides)
        if alike and names.issuperset((*unit.makers, *unit.readers)):
            makers = tuple(n.removeprefix("block.") for n in unit.makers)
            units.append(Neurons(makers, unit.readers[0].removeprefix("block.")))
    return tuple(units), None if units else "none are made and read by the blocks' layers alone"


def fit_in(unit: Neurons, specs: Mapping[str, LayerSpec], like: Mapping[str, LayerSpec]) -> bool:
    """Whether the layers of a unit are as in another block.

    Args:
        unit: by names in a block.
        specs: the layers of the block.
        like: those of the block that it was found in.
    """
    return all(name in specs and specs[name] == like[name] for name in unit.layers)


def widths_at(unit: Neurons, module: nn.Module, spec: LayerSpec, moments: Moments) -> Widths:
    """What a unit may become, by the moments of its reader's inputs.

    Args:
        unit: with its whole names.
        module: its reader, with its weights.
        spec: of that.
        moments: of its inputs.
    """
    sizes = widths_of(spec.in_channels)
    lost = tuple(error for _, error, _ in fewer(_reader(unit, module, spec, moments), sizes))
    return Widths(unit, tuple(sizes), lost)


def fewer_neurons(
    unit: Neurons, n: int, module: nn.Module, spec: LayerSpec, moments: Moments
) -> tuple[list[int], float, Callable[[nn.Module], None]]:
    """Which neurons stay, the reader's relative squared error, and what writes its new weight.

    Args:
        unit: with its whole names.
        n: how many stay.
        module: its reader, with its weights.
        spec: of that.
        moments: of its inputs.
    """
    reader = _reader(unit, module, spec, moments)
    *_, (kept, lost, made) = fewer(reader, [w for w in widths_of(spec.in_channels) if w >= n])
    mean = moments.mean[0].to(made)
    shift = reader.W[0] @ mean - made @ mean[kept]

    def write(small: nn.Module) -> None:
        write_weight(small, replace(spec, in_channels=n), made[None].float())
        if spec.bias:
            bias: Any = small.bias
            bias += shift.to(bias)

    return kept, lost, write


def _reader(unit: Neurons, module: nn.Module, spec: LayerSpec, moments: Moments) -> Reader:
    metric = moments.metric(centred=spec.bias)
    if spec.in_channels <= WIDEST:
        metric = metric.formed
        if metric.C.ndim == 2:
            metric = replace(metric, C=torch.diag_embed(metric.C))
    view = LayerView(unit.reader, (unit.reader,), module, spec, ())
    return Reader(view, torch.arange(spec.in_channels), metric, 1.0)
