"""The ranks of all layers within a budget: alike in every layer, or by what errors do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.planning.knapsack import Choices, choose
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


def by_errors(
    specs: Mapping[str, LayerSpec], seen: Mapping[str, Seen], room: float
) -> dict[str, int | None]:
    """The ranks with the least summed change of the hidden state; None leaves a layer dense.

    Args:
        specs: the layers.
        seen: what the first pass showed of each.
        room: weights that all of them together may have.

    Raises:
        BudgetError: the smallest ranks are too much.
    """
    rows = []
    for name, spec in specs.items():
        per_rank, row = spec.in_channels + spec.out_channels, seen[name]
        kept = [k for k, rank in enumerate(row.ranks) if rank <= full_rank(spec)]
        costs = [*(float(row.ranks[k] * per_rank) for k in kept), float(spec.n_weights)]
        errors = [*(row.felt * row.lost[k] for k in kept), 0.0]
        options = [*(int(row.ranks[k]) for k in kept), None]
        rows.append((options, Choices(np.array(costs)[:, None], np.array(errors))))
    picked = choose([choices for _, choices in rows], [room])
    if picked is None:
        check_room(specs, {n: min(full_rank(s), 1) or None for n, s in specs.items()}, room)
        return alike(specs, room)
    pairs = zip(specs, rows, picked, strict=True)
    return {name: options[k] for name, (options, _), k in pairs}


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
