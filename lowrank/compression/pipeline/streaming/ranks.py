"""Ranks and widths of all layers within a budget: alike in each, or by what errors do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.pipeline.streaming.neurons import Widths
from lowrank.compression.planning.knapsack import Choices, Group, choose_grouped
from lowrank.errors import BudgetError


@dataclass(frozen=True)
class Seen:
    """What a first pass over the blocks showed of a layer.

    Args:
        ranks: that may be taken.
        lost: relative squared error of its output at each.
        felt: what such an error does to the hidden state.
    """

    ranks: Sequence[int]
    lost: Sequence[float]
    felt: float


def full_rank(spec: LayerSpec) -> int:
    """The largest rank at which two layers have fewer weights than one; 0 if there is none.

    Example:
        >>> full_rank(LayerSpec("linear", 64, 64))
        31
    """
    per_rank = spec.in_channels + spec.out_channels
    return (spec.n_weights - 1) // per_rank


def alike(specs: Mapping[str, LayerSpec], room: float) -> dict[str, int | None]:
    """The same share of every layer's weights; None leaves a layer dense.

    Args:
        specs: the layers.
        room: weights that all of them together may have.

    Raises:
        BudgetError: rank 1 everywhere is too much.

    Example:
        >>> alike({"a": LayerSpec("linear", 64, 64)}, 2048)
        {'a': 16}
    """
    share = room / sum(spec.n_weights for spec in specs.values())
    if share >= 1:
        return dict.fromkeys(specs)
    ranks: dict[str, int | None] = {}
    for name, spec in specs.items():
        rank = int(share * spec.n_weights / (spec.in_channels + spec.out_channels))
        ranks[name] = min(max(1, rank), full_rank(spec)) or None
    check_room(specs, ranks, room)
    return ranks


Ranks: TypeAlias = dict[str, int | None]
"""Of each layer; None leaves it dense."""


@dataclass(frozen=True)
class Shared:
    """How a budget is shared out.

    Args:
        ranks: of all layers.
        sizes: reader of a unit that goes narrower -> how many neurons stay.
    """

    ranks: Ranks
    sizes: Mapping[str, int]


def by_errors(
    specs: Mapping[str, LayerSpec],
    seen: Mapping[str, Seen],
    units: Sequence[Widths],
    room: float,
) -> Shared:
    """The ranks and widths with the least summed change of the hidden state.

    Args:
        specs: the layers.
        seen: what the first pass showed of each.
        units: and of neurons that may go.
        room: weights that all of them together may have.

    Raises:
        BudgetError: the smallest ranks are too much.
    """
    options = {name: _options(spec, seen[name]) for name, spec in specs.items()}
    units = [u for u in units if u.sizes]
    inside = {name for unit in units for name in unit.neurons.layers}
    alone = [name for name in specs if name not in inside]
    groups = [
        Group(tuple(options[n].choices for n in u.neurons.layers), _narrower(specs, seen, u))
        for u in units
    ]
    picked = choose_grouped([options[n].choices for n in alone], groups, [room])
    if picked is None:
        check_room(specs, {n: min(full_rank(s), 1) or None for n, s in specs.items()}, room)
        return Shared(alike(specs, room), {})
    found = dict(zip(alone, picked[0], strict=True))
    sizes: dict[str, int] = {}
    for unit, which in zip(units, picked[1], strict=True):
        if isinstance(which, int):
            sizes[unit.neurons.reader] = unit.sizes[which]
        else:
            found |= dict(zip(unit.neurons.layers, which, strict=True))
    ranks = {n: options[n].ranks[found[n]] if n in found else None for n in specs}
    return Shared(ranks, sizes)


@dataclass(frozen=True)
class _Options:
    """What a layer may become, and what that costs and does."""

    ranks: Sequence[int | None]
    choices: Choices


def _options(spec: LayerSpec, row: Seen) -> _Options:
    per_rank = spec.in_channels + spec.out_channels
    kept = [k for k, rank in enumerate(row.ranks) if rank <= full_rank(spec)]
    costs = [*(float(row.ranks[k] * per_rank) for k in kept), float(spec.n_weights)]
    errors = [*(row.felt * row.lost[k] for k in kept), 0.0]
    ranks = [*(int(row.ranks[k]) for k in kept), None]
    return _Options(ranks, Choices(np.array(costs)[:, None], np.array(errors)))


def _narrower(specs: Mapping[str, LayerSpec], seen: Mapping[str, Seen], unit: Widths) -> Choices:
    """The widths of a unit; what its reader loses is what they do."""
    reader = unit.neurons.reader
    whole = sum(specs[name].n_weights for name in unit.neurons.layers)
    costs = np.array(unit.sizes) / specs[reader].in_channels * whole
    return Choices(costs[:, None], seen[reader].felt * np.array(unit.lost))


def weights_of(spec: LayerSpec, rank: int | None) -> int:
    """The weights of a layer at a rank; dense for None."""
    return spec.n_weights if rank is None else rank * (spec.in_channels + spec.out_channels)


def check_room(
    specs: Mapping[str, LayerSpec], ranks: Mapping[str, int | None], room: float
) -> None:
    """Refuse ranks that take more room than there is.

    Raises:
        BudgetError: they do.
    """
    taken = sum(weights_of(specs[name], rank) for name, rank in ranks.items())
    if taken > max(room, 0):
        problem = f"the blocks' layers would have {taken:,} weights, {max(room, 0):,.0f} are left"
        raise BudgetError("params", problem, "raise it: the other weights are not compressed here")
