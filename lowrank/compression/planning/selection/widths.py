"""Units of neurons that go narrower as a whole, in the same knapsack as factors.

The neurons of a block's hidden layer, which some layers make and one reads: a decoder's gate and
up projections with its down projection, say. Whether they go narrower, or which of these layers is
factorized, is one choice, so that the planner takes whichever loses less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import TypeAlias

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.network.channels.narrowing import Narrowed, narrowed_shapes
from lowrank.compression.network.channels.units import Channels, ChannelUnit, find_channels
from lowrank.compression.network.example import Example
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import Scan
from lowrank.compression.network.stages import Cost
from lowrank.compression.network.tensors import mapped, tensors
from lowrank.compression.network.units import total
from lowrank.compression.planning.selection.narrowed import proven
from lowrank.compression.planning.selection.path import narrowed_by
from lowrank.compression.planning.selection.readers import Reader, reader_of
from lowrank.decompositions.metric import scaled_cholesky
from lowrank.errors import LowRankError
from lowrank.progress import Progress

LEVELS, _LEAST = 16, 4
"""A unit is offered at so many sixteenths of its width, and no narrower than at four of them."""

_EVEN, _EVEN_FROM = 16, 256
"""Widths are multiples of this in units of so many neurons and more: kernels run in such tiles."""

_PLACES = 16
"""Places of a text on which the neurons are followed."""

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Width:
    """One width of a unit.

    Args:
        narrowed: each layer -> what stays of it.
        costs: each layer -> its cost then.
        shapes: each layer -> the shapes of its parameters then.
        error: relative squared error of the reader's output, its weight reconstructed.
    """

    narrowed: Mapping[str, Narrowed]
    costs: Mapping[str, Cost]
    shapes: Mapping[str, Shapes]
    error: float

    @property
    def cost(self) -> Cost:
        """Of all layers together."""
        return total(list(self.costs.values()))


@dataclass(frozen=True)
class Widths:
    """A unit and what it may become as a whole.

    Args:
        makers: the layers that make its neurons.
        reader: the one that reads them, and whose output is the worse for those that go.
        options: every width that is offered, widest first.
    """

    makers: tuple[str, ...]
    reader: str
    options: tuple[Width, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.makers, self.reader)


def find_widths(
    model: nn.Module,
    example: Example,
    found: Scan,
    data: Statistics,
    free: Collection[str],
    *,
    round_to: int = 1,
    progress: Progress | None = None,
) -> tuple[Widths, ...]:
    """The units of a model that may go narrower, each by its moments.

    Args:
        model: the dense network; left as it is.
        example: inputs of one forward pass.
        found: its layers.
        data: their moments.
        free: the layers that a plan may replace.
        round_to: widths are multiples of this.
        progress: called as (unit, done, total).
    """
    left_out = {v.name: "it stays as it is" for v in found.views if v.name not in free}
    views = {v.name: v for v in found.views}
    short = _shortened(example)
    try:
        channels = neurons(model, short, found, left_out)
    except LowRankError:  # the model takes no text as short as that
        channels = neurons(model, example, found, left_out)
    units = [u for u in channels.units if _serves(u, views, data)]
    every = []
    with torch.inference_mode(False), torch.no_grad():
        for done, unit in enumerate(units):
            if progress is not None:
                progress(f"narrowing {unit.name}", done, len(units))
            reader = reader_of(model, views[unit.readers[0]], channels, data, 1.0)
            options = tuple(_options(unit, channels, views, reader, round_to))
            if options:
                every.append(Widths(unit.makers, unit.readers[0], options))
    return tuple(every)


def _shortened(example: Example) -> Example:
    """The first few words of a text: what becomes of neurons is the same at every place."""
    words = [t for t in tensors(example) if t.ndim > 1]
    if not words or any(t.is_floating_point() for t in words):
        return example
    length = words[0].shape[1]
    return mapped(example, lambda t: t[:1, :_PLACES] if t.shape[1:2] == (length,) else t)


def neurons(
    model: nn.Module, example: Example, found: Scan, left_out: Mapping[str, str]
) -> Channels:
    """The units of neurons, put to the proof.

    Args:
        model: the dense network.
        example: inputs of one forward pass.
        found: its layers.
        left_out: those that stay as they are -> why.
    """
    every = find_channels(model, example, found, left_out)
    others = {u.name for u in every.units} - {u.name for u in _by_themselves(every)}
    channels, _ = proven(model, example, every.without(others))
    return channels


def _by_themselves(channels: Channels) -> Iterator[ChannelUnit]:
    """The units of neurons, each at one place of its layers, which carry no channels of another
    unit, with one reader."""
    uses = Counter(n for u in channels.units for n in {*u.makers, *u.readers})
    for unit in channels.units:
        own, names = set(unit.channels), {*unit.makers, *unit.readers}
        carried = {n for (n, _), marks in channels.sides.items() if own & set(marks)}
        if len(unit.readers) != 1 or carried != names or any(uses[n] > 1 for n in names):
            continue
        sides = [channels.sides[n, "out"] for n in unit.makers]
        sides.append(channels.sides[unit.readers[0], "in"])
        if all(own == set(marks) and len(own) == len(marks) for marks in sides):
            yield unit


def _serves(unit: ChannelUnit, views: Mapping[str, LayerView], data: Statistics) -> bool:
    names = (*unit.makers, *unit.readers)
    plain = all(n in views and views[n].spec.kind == "linear" for n in names)
    plain = plain and all(views[n].spec.groups == 1 for n in names)
    return plain and data.reason(unit.readers[0]) is None


def _options(
    unit: ChannelUnit,
    channels: Channels,
    views: Mapping[str, LayerView],
    reader: Reader,
    round_to: int,
) -> Iterator[Width]:
    names, n = {*unit.makers, *unit.readers}, len(unit.channels)
    mine = replace(channels, sides={s: row for s, row in channels.sides.items() if s[0] in names})
    for kept, error, _ in fewer(reader, widths_of(n, round_to)):
        stay = {int(reader.columns[k]) for k in kept}
        what = narrowed_by(mine, [mark for mark in unit.channels if mark not in stay])
        yield Width(
            what,
            {name: _cost(views[name], w) for name, w in what.items()},
            {name: narrowed_shapes(views[name].module, w) for name, w in what.items()},
            error,
        )


def widths_of(n: int, round_to: int = 1) -> list[int]:
    """The widths that n neurons are offered at, multiples of `round_to`, widest first.

    Example:
        >>> widths_of(8)
        [7, 6, 5, 4, 3, 2]
    """
    even = lcm(_EVEN if n >= _EVEN_FROM else 1, round_to)
    return sorted({n * k // LEVELS // even * even for k in range(_LEAST, LEVELS)} - {0, n})[::-1]


def _cost(view: LayerView, what: Narrowed) -> Cost:
    """Of a linear layer as narrow; a reader keeps its bias."""
    dense, kept = view.cost(), what.inputs or what.outputs
    assert kept is not None
    share = len(kept.places) / kept.of
    gone = (1 - share) * (view.spec.n_weights if what.outputs is None else dense.params)
    size = dense.bytes / max(1, dense.params)
    return Cost(
        round(dense.params - gone), round(dense.bytes - gone * size), round(share * dense.macs)
    )


def fewer(reader: Reader, widths: Sequence[int]) -> Iterator[tuple[list[int], float, Tensor]]:
    """The columns that stay at each width, the relative squared error of the output, and the
    weight on what stays that makes up best for the rest.

    Backward elimination in rounds: of the weight W' that makes up best for what has gone, a
    neuron alone costs w'_j^T G w'_j / P_jj more, with P the inverse of the moment of those that
    stay (the optimal brain surgeon's rule, Hassibi and Stork 1993, on a layer's own output). Those
    that cost least go, a sixteenth of all in a round.

    Args:
        reader: of all neurons.
        widths: falling.
    """
    W = reader.W[0]
    kept = torch.arange(W.shape[1], device=W.device)
    stay = _Kept.by_rows if reader.wide else _Kept.by_moment
    now = stay(reader, kept)
    whole, made = now.explained(reader, W), W
    for width in widths:
        left = reader.metric.weighs(made[None])[0]
        cost = (made * left).sum(0) / now.spread
        kept = kept[cost.argsort()[len(kept) - width :].sort().values]
        now = stay(reader, kept)
        made = now.made
        share = now.explained(reader, made) / whole if whole > 0 else 1.0
        yield kept.tolist(), max(1 - share, 0.0), made


@dataclass(frozen=True, eq=False)
class _Kept:
    """What some of a reader's inputs make of its output.

    Args:
        seen: (o, k), the moment W C[:, S] of the output and those inputs S.
        made: (o, k), the weight W C[:, S] C[S, S]^-1 on them that comes closest to the output.
        spread: (k,), the diagonal of C[S, S]^-1.
    """

    seen: Tensor
    made: Tensor
    spread: Tensor

    @classmethod
    def by_moment(cls, reader: Reader, kept: Tensor) -> _Kept:
        """Of a moment that is written out."""
        C = reader.C[0]
        scale, L = scaled_cholesky(C[kept][:, kept][None])
        scale, inverse = scale[0], torch.cholesky_inverse(L[0])  # of D C D, with D the scale
        seen = reader.W[0] @ C[:, kept]
        return cls(seen, (seen * scale) @ inverse * scale, scale.square() * inverse.diagonal())

    @classmethod
    def by_rows(cls, reader: Reader, kept: Tensor) -> _Kept:
        """Of a moment D + R^T R, by the inverse of I + R D^-1 R^T (Woodbury): in float64, as it
        is a small difference of large numbers."""
        W, R = reader.W[0, :, kept].double(), reader.metric.rows
        D = reader.metric.C[0, kept].double()
        if R is None:
            return cls(W * D, W.to(reader.W), 1 / D)
        S = R[0, :, kept].double()
        seen = W * D + reader.at_rows[0].double() @ S
        eye = torch.eye(len(S), dtype=S.dtype, device=S.device)
        L = torch.linalg.cholesky(eye + S / D @ S.T)
        Z = torch.linalg.solve_triangular(L, S / D, upper=False)  # Z^T Z is what D^-1 has too much
        made = seen / D - (seen @ Z.T) @ Z
        return cls(seen, made.to(reader.W), 1 / D - Z.square().sum(0))

    def explained(self, reader: Reader, made: Tensor) -> float:
        """tr(G made C[S, :] W^T), for `made` or, of all inputs, for W."""
        return float((reader.metric.weighs(made[None])[0].double() * self.seen.double()).sum())
