"""Units: the layers that one choice covers.

Most units hold one layer. An embedding and the output head that reads its table are one, and
so are linear layers that read the same input, which may share one input factor. A method sees a
unit as one linear map, `spec` and `weight`; the unit knows what stands in each of its layers'
places, which of it is shared, and what that costs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lowrank.compression.network.layers import LayerView, is_transposed_linear
from lowrank.compression.network.stages import (
    Call,
    Cost,
    Factor,
    LayerSpec,
    Stage,
    chain_macs,
    tied_head,
    weight_of,
)

Bond = Literal["alone", "table", "scaled table", "input"]
"""What holds a unit's layers together: it is one layer; they read one table of words, which the
embeddings may multiply by a number that the head does not; they read the same input."""


Chain: TypeAlias = tuple[Stage, ...]
"""Stages in a row; a dense layer is a chain of one."""


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules that replace a unit.

    Args:
        rows: for each layer, what stands in its place, first to last; rows may hold the same
            module, or modules with the same parameter.
        front: what runs once for all of them, behind the module that makes their input.
    """

    rows: tuple[tuple[nn.Module, ...], ...]
    front: tuple[nn.Module, ...] = ()


class Unit(Protocol):
    """Layers that one choice covers, seen as one linear map."""

    @property
    def bond(self) -> Bond:
        """What holds its layers together."""

    @property
    def layers(self) -> tuple[LayerView, ...]:
        """Its layers; the first gives the unit its name."""

    @property
    def behind(self) -> str | None:
        """The module that makes the layers' input, where shared stages run behind it, once."""

    @property
    def owners(self) -> tuple[int, ...]:
        """For each layer, the number of the one whose dense weight it holds."""

    @property
    def spec(self) -> LayerSpec:
        """The shape of the map that methods see."""

    def rebound(self, layers: Sequence[LayerView]) -> Unit:
        """The same of other views, such as those of a copy of the model."""

    def chains(self, stages: Sequence[Stage] | None) -> tuple[Chain, ...]:
        """What each layer's output is made by: the dense layer, or of the map's stages."""

    def runs(self, stages: Sequence[Stage] | None) -> list[tuple[Chain, tuple[Call, ...]]]:
        """What one pass of the example computes, and at which calls."""

    def costs(self, stages: Sequence[Stage] | None) -> tuple[Cost, ...]:
        """The cost of each layer; what is shared counts with the first that holds it."""

    def build(self, stages: Sequence[Stage]) -> Parts:
        """The modules, with arbitrary weights, of the layers' type and on their device."""

    def write(self, parts: Parts, stages: Sequence[Stage], factors: Sequence[Factor]) -> None:
        """Put what fills the map's stages into the modules."""

    def read(self, parts: Parts, stages: Sequence[Stage]) -> tuple[Factor, ...]:
        """The inverse of `write`."""

    def split(self, weight: Tensor) -> tuple[Tensor, ...]:
        """A canonical weight of the map as those of the layers that own one."""


def names_of(unit: Unit) -> tuple[str, ...]:
    """The names of a unit's layers."""
    return tuple(view.name for view in unit.layers)


def owners_of(unit: Unit) -> tuple[str, ...]:
    """The names of those that own a weight, each of which is fitted."""
    return tuple(v.name for k, v in enumerate(unit.layers) if unit.owners[k] == k)


def key_of(names: Sequence[str]) -> str:
    """One name for a unit: its only layer's, or all of them.

    Example:
        >>> key_of(["fc"]), key_of(["q", "k"])
        ('fc', 'q + k')
    """
    return " + ".join(names)


def total(costs: Sequence[Cost]) -> Cost:
    """The sum of costs."""
    return sum(costs, Cost(0, 0, 0))


@dataclass(frozen=True, eq=False)
class Alone:
    """One layer.

    Args:
        layer: the layer.
    """

    bond: ClassVar[Bond] = "alone"
    behind: ClassVar[None] = None
    owners: ClassVar[tuple[int, ...]] = (0,)
    layer: LayerView

    @property
    def layers(self) -> tuple[LayerView, ...]:
        return (self.layer,)

    @property
    def spec(self) -> LayerSpec:
        return self.layer.spec

    def rebound(self, layers: Sequence[LayerView]) -> Alone:
        return Alone(*layers)

    def chains(self, stages: Sequence[Stage] | None) -> tuple[Chain, ...]:
        return ((self.spec,) if stages is None else tuple(stages),)

    def runs(self, stages: Sequence[Stage] | None) -> list[tuple[Chain, tuple[Call, ...]]]:
        return [(self.chains(stages)[0], self.layer.calls)]

    def costs(self, stages: Sequence[Stage] | None) -> tuple[Cost, ...]:
        return (self.layer.cost(stages),)

    def build(self, stages: Sequence[Stage]) -> Parts:
        return Parts((_built(stages, self.layer),))

    def write(self, parts: Parts, stages: Sequence[Stage], factors: Sequence[Factor]) -> None:
        _write(stages, parts.rows[0], factors)

    def read(self, parts: Parts, stages: Sequence[Stage]) -> tuple[Factor, ...]:
        return _read(stages, parts.rows[0])

    def split(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (weight,)


@dataclass(frozen=True, eq=False)
class TiedTable:
    """Embeddings of one table, as an encoder's and its decoder's, and the head that reads it.

    The embeddings hold the same factors of `E = U B`. The head computes `h -> U (B h)`: its
    table `U` is the embeddings' own parameter, and `B` stands beside it once more, transposed,
    and without the gain of the embeddings.

    Args:
        embeddings: what looks words up in the table, of which methods see the first.
        head: the linear layer whose weight is that table, if there is one.
    """

    behind: ClassVar[None] = None
    embeddings: tuple[LayerView, ...]
    head: LayerView | None = None

    @property
    def bond(self) -> Bond:
        return "table" if self.head is None or self._gain == 1 else "scaled table"

    @property
    def _gain(self) -> float:
        return self.embeddings[0].gain

    @property
    def layers(self) -> tuple[LayerView, ...]:
        return self.embeddings if self.head is None else (*self.embeddings, self.head)

    @property
    def owners(self) -> tuple[int, ...]:
        return (0,) * len(self.layers)

    @property
    def spec(self) -> LayerSpec:
        return self.embeddings[0].spec

    def rebound(self, layers: Sequence[LayerView]) -> TiedTable:
        return _table_of(layers)

    def chains(self, stages: Sequence[Stage] | None) -> tuple[Chain, ...]:
        words = (self.spec,) if stages is None else tuple(stages)
        chains = (words,) * len(self.embeddings)
        if self.head is None:
            return chains
        head = self.head.spec
        scores = (head,) if stages is None else tied_head(stages, head, self._gain)
        return (*chains, scores)

    def runs(self, stages: Sequence[Stage] | None) -> list[tuple[Chain, tuple[Call, ...]]]:
        chains = self.chains(stages)
        return [(chain, v.calls) for chain, v in zip(chains, self.layers, strict=True)]

    def costs(self, stages: Sequence[Stage] | None) -> tuple[Cost, ...]:
        chains = self.chains(stages)
        found = [self.embeddings[0].cost(stages)]
        for view, chain in zip(self.layers[1:], chains[1:], strict=True):
            own = chain[:-1] if view is self.head else ()  # behind it stands the table
            found.append(_cost(own, [(chain, view.calls)], view))
        return tuple(found)

    def build(self, stages: Sequence[Stage]) -> Parts:
        words = _built(stages, self.embeddings[0])
        rows = (words,) * len(self.embeddings)
        if self.head is None:
            return Parts(rows)
        scores = _built(self.chains(stages)[-1], self.head)
        stages[0].share(words[0], scores[-1])
        return Parts((*rows, scores))

    def write(self, parts: Parts, stages: Sequence[Stage], factors: Sequence[Factor]) -> None:
        words, scores = parts.rows[0], parts.rows[-1]
        _write(stages, words, factors)
        if self.head is not None and len(scores) > 1:
            with torch.no_grad():
                weight_of(scores[0]).copy_(weight_of(words[1]).T / self._gain)

    def read(self, parts: Parts, stages: Sequence[Stage]) -> tuple[Factor, ...]:
        return _read(stages, parts.rows[0])

    def split(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (weight,)


@dataclass(frozen=True, eq=False)
class SameInput:
    """Linear layers that read the same input: one map with all their outputs.

    All stages of the map but the last are shared. They run once, behind the module that makes
    the input, where that is possible; else in each layer, which saves weights and no work.

    Args:
        layers: the linear layers, in the order in which they run.
        behind: the module that makes their input, which nothing else reads, if there is one.
    """

    bond: ClassVar[Bond] = "input"
    layers: tuple[LayerView, ...]
    behind: str | None = None

    @property
    def owners(self) -> tuple[int, ...]:
        return tuple(range(len(self.layers)))

    @property
    def spec(self) -> LayerSpec:
        specs = [view.spec for view in self.layers]
        return replace(
            specs[0],
            out_channels=sum(s.out_channels for s in specs),
            bias=any(s.bias for s in specs),
        )

    def of(self, names: Collection[str]) -> SameInput | None:
        """The unit of some of the layers; None if fewer than two are among them.

        Behind what makes the input a factor can run for all of them or for none.
        """
        some = tuple(view for view in self.layers if view.name in names)
        behind = self.behind if len(some) == len(self.layers) else None
        return SameInput(some, behind) if len(some) > 1 else None

    def rebound(self, layers: Sequence[LayerView]) -> SameInput:
        return SameInput(tuple(layers), self.behind)

    def chains(self, stages: Sequence[Stage] | None) -> tuple[Chain, ...]:
        if stages is None:
            return tuple((view.spec,) for view in self.layers)
        return tuple((*stages[:-1], last) for last in self._lasts(stages))

    def runs(self, stages: Sequence[Stage] | None) -> list[tuple[Chain, tuple[Call, ...]]]:
        if stages is None or self.behind is None:
            chains: Sequence[Chain] = self.chains(stages)
            once: list[tuple[Chain, tuple[Call, ...]]] = []
        else:
            chains = [(last,) for last in self._lasts(stages)]
            once = [(tuple(stages[:-1]), self.layers[0].calls)]
        return once + [(c, view.calls) for c, view in zip(chains, self.layers, strict=True)]

    def costs(self, stages: Sequence[Stage] | None) -> tuple[Cost, ...]:
        if stages is None:
            return tuple(view.cost() for view in self.layers)
        runs, found = self.runs(stages), []
        for n, (view, last) in enumerate(zip(self.layers, self._lasts(stages), strict=True)):
            own = (last,) if n else (*stages[:-1], last)
            mine = runs if self.behind is None else runs[1:]
            with_first = [runs[0]] if self.behind is not None and not n else []
            found.append(_cost(own, [*with_first, mine[n]], view))
        return tuple(found)

    def build(self, stages: Sequence[Stage]) -> Parts:
        shared = _built(stages[:-1], self.layers[0])
        lasts = [
            _built([last], view)
            for view, last in zip(self.layers, self._lasts(stages), strict=True)
        ]
        if self.behind is not None:
            return Parts(tuple(lasts), shared)
        return Parts(tuple((*shared, *last) for last in lasts))

    def write(self, parts: Parts, stages: Sequence[Stage], factors: Sequence[Factor]) -> None:
        *first, last = factors
        assert isinstance(last, Tensor)
        _write(stages[:-1], parts.front or parts.rows[0][:-1], first)
        for spec, row, rows in zip(self._lasts(stages), parts.rows, self.split(last), strict=True):
            spec.write(row[-1], rows)

    def read(self, parts: Parts, stages: Sequence[Stage]) -> tuple[Factor, ...]:
        lasts = [s.read(row[-1]) for s, row in zip(self._lasts(stages), parts.rows, strict=True)]
        stacked = torch.cat([f for f in lasts if isinstance(f, Tensor)], dim=1)
        return (*_read(stages[:-1], parts.front or parts.rows[0][:-1]), stacked)

    def split(self, weight: Tensor) -> tuple[Tensor, ...]:
        return weight.split([view.spec.out_channels for view in self.layers], dim=1)

    def _lasts(self, stages: Sequence[Stage]) -> list[LayerSpec]:
        """The last stage, for each layer the rows that are its own."""
        last = stages[-1]
        assert isinstance(last, LayerSpec)
        specs = (view.spec for view in self.layers)
        return [replace(last, out_channels=s.out_channels, bias=s.bias) for s in specs]


def unit_of(layers: Sequence[LayerView], behind: str | None = None) -> Unit | None:
    """The unit that these layers make, the first first; None if they make none.

    Args:
        layers: views of the layers.
        behind: the module that makes their common input, for shared stages.
    """
    if len(layers) == 1:
        return Alone(layers[0])
    kinds = {view.spec.kind for view in layers}
    if "embedding" in kinds:
        return table_of(layers)
    alike = kinds == {"linear"} and len({v.spec.in_channels for v in layers}) == 1
    return SameInput(tuple(layers), behind) if alike else None


def table_of(layers: Sequence[LayerView]) -> TiedTable | None:
    """Embeddings of one table with the head that reads it, if there is one; else None."""
    unit = _table_of(layers)
    heads = len(layers) - len(unit.embeddings)
    if len(layers) < 2 or not unit.embeddings or heads > 1:
        return None
    head = unit.head
    if head is not None and (head.spec.kind != "linear" or is_transposed_linear(head.module)):
        return None
    return unit if len({(view.spec, view.gain) for view in unit.embeddings}) == 1 else None


def _table_of(layers: Sequence[LayerView]) -> TiedTable:
    others = [view for view in layers if view.spec.kind != "embedding"]
    words = tuple(view for view in layers if view.spec.kind == "embedding")
    return TiedTable(words, others[0] if others else None)


def _cost(
    own: Sequence[Stage], runs: Sequence[tuple[Chain, tuple[Call, ...]]], view: LayerView
) -> Cost:
    """The weights of a layer's own stages, and the work of what it runs."""
    size = view.parameter.element_size()
    macs = sum(chain_macs(chain, call) for chain, calls in runs for call in calls)
    return Cost(sum(s.n_weights for s in own), sum(s.n_bytes(size) for s in own), macs)


def _built(stages: Sequence[Stage], view: LayerView) -> tuple[nn.Module, ...]:
    weight = view.parameter
    return tuple(stage.build(dtype=weight.dtype, device=weight.device) for stage in stages)


def _write(
    stages: Sequence[Stage], modules: Sequence[nn.Module], factors: Sequence[Factor]
) -> None:
    for stage, module, factor in zip(stages, modules, factors, strict=True):
        stage.write(module, factor)


def _read(stages: Sequence[Stage], modules: Sequence[nn.Module]) -> tuple[Factor, ...]:
    return tuple(stage.read(module) for stage, module in zip(stages, modules, strict=True))
