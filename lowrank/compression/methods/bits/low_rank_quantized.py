"""Weights of a few bits, with a low-rank layer beside them for what rounding loses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.channel_svd import ChannelSVD
from lowrank.compression.methods.shared.base import Method, is_whole, rank_grid
from lowrank.compression.methods.shared.folding import even
from lowrank.compression.network.bits.quantized import PLANES, QuantizedStage
from lowrank.compression.network.own_stages import Branches
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.compression.network.units import Bond
from lowrank.decompositions.metric import Metric, identity, output_moment
from lowrank.decompositions.quantized import (
    low_rank_plus_quantized,
    quantized,
    spread_of,
    values_of,
)

_OFFERED = ((2, 32), (3, 32), (4, 32), (4, 128), (5, 64), (6, 64), (8, 128))
"""Bits and entries of a piece that are planned with."""


_WORDS = 4096
"""Rows of a table at which its errors are looked at, about."""


_SEEN = (3, 32)
"""At which it is found out what errors that are made up for, and what L, gain."""


_SHARE = 0.25
"""Largest rank that is planned with, as a share of the full one."""


_N_RANKS = 6
"""How many ranks are planned with beside each number of bits."""


_STEPS = 3
"""Alternations of a fit, where nothing else is said."""


@dataclass(frozen=True)
class LowRankQuantized(Method):
    """`W ~ Q + L`: codes of `bits` bits, and a low-rank layer on the same input.

    Q has symmetric levels, with a step for each `group` neighbours in a filter; the factors of L
    are rounded likewise, at `factor_bits`, or stay in the layer's type. With data, rounding
    errors of an input are made up for by the inputs behind it, and L is the best of its rank for
    what Q leaves of the output; both are fitted in turns. Weights are put together in every
    pass: this saves bytes and no time.

    Args:
        rank: of L, 0 for none.
        bits: 2, 3, 4, 5, 6 or 8.
        group: entries of a filter that share a step, from 1 up.
        factor_bits: of the factors of L, likewise; None for the layer's own type.

    Source: Frantar et al. 2023 (GPTQ); Zhang et al. 2024 (LQER); Saha et al. 2024 (CALDERA).
    """

    name: ClassVar[str] = "low_rank_quantized"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    serves: ClassVar[tuple[Bond, ...]] = ("alone", "table")
    rank: int
    bits: int = 4
    group: int = 32
    factor_bits: int | None = 4

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return None

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[LowRankQuantized]:
        if spec.kind == "embedding":
            return []
        return [cls(_full(spec), bits, 32, None) for bits in (3, 4)]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[LowRankQuantized, float]]:
        embeds = spec.kind == "embedding"
        metric = identity(weight, torch.float32) if metric is None else metric.formed
        W = metric.cast(weight.flatten(2))
        if embeds and metric.C.ndim == 2:  # some of the words tell enough
            step = max(1, W.shape[2] // _WORDS)
            W, metric = W[:, :, ::step], replace(metric, C=metric.C[:, ::step])
        shape = _Shape.flat() if embeds else _Shape.of(W, metric, _ranks(spec, round_to))
        whole = metric.error(W) or 1.0
        for bits, group in _OFFERED:
            rest = _rest(W, metric, bits, group, embeds=embeds)
            alone = max(metric.error(rest), 0.0) / whole
            for rank, share in shape.shares.items():
                yield cls(rank, bits, group), alone * share

    def check(self, spec: LayerSpec) -> str | None:
        if self.bits not in PLANES:
            return f"bits {self.bits!r} is none of {', '.join(map(str, PLANES))}"
        if self.factor_bits not in (*PLANES, None):
            return (
                f"factor_bits {self.factor_bits!r} is none of {', '.join(map(str, PLANES))}, None"
            )
        if not is_whole(self.group) or self.group < 1:
            return f"group {self.group!r} is not a whole number from 1 up"
        full = 0 if spec.kind == "embedding" else _full(spec)
        if not is_whole(self.rank) or not 0 <= self.rank <= full:
            return f"rank {self.rank!r} is outside 0..{full} beside {self.bits} bits"
        return None

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        if not self.rank:
            return (QuantizedStage(spec, self.bits, self.group),)
        plain = spec.along(range(len(spec.kernel)), spec.in_channels, spec.out_channels,
                           groups=spec.groups)  # fmt: skip
        low: tuple[Stage, ...] = ChannelSVD(self.rank).stages(spec)
        if self.factor_bits is not None:
            low = tuple(QuantizedStage(_layer(s), self.factor_bits, _FACTOR_GROUP) for s in low)
        return (Branches((low, (QuantizedStage(plain, self.bits, self.group),)), spec.groups),)

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Factor, ...]:
        if spec.kind == "embedding":
            rows = weight.flatten(2).mT
            return (tuple(quantized(rows, identity(rows), self.bits, self.group,
                                    dtype=weight.dtype)),)  # fmt: skip
        metric = identity(weight) if metric is None else metric.formed
        W, spread = weight.flatten(2), spread_of(metric)
        if not self.rank:
            grid = quantized(W, metric, self.bits, self.group, dtype=weight.dtype, spread=spread)
            return (tuple(grid),)
        n = _STEPS if max_iter is None else min(_STEPS, 1 + max_iter // 10)
        U, V, grid = low_rank_plus_quantized(
            W, metric, self.rank, self.bits, self.group,
            dtype=weight.dtype, n_steps=n, spread=spread,
        )  # fmt: skip
        return ((self._low(spec, weight, U, V), (tuple(grid),)),)

    def _low(self, spec: LayerSpec, weight: Tensor, U: Tensor, V: Tensor) -> tuple[Factor, ...]:
        """The factors of L, as its two stages hold them."""
        g, o, i, *kernel = spec.weight_shape
        V, U = even(V, U)
        ones = (1,) * len(kernel)
        if self.factor_bits is None:
            first, last = V.reshape(g, self.rank, i, *kernel), U.reshape(g, o, self.rank, *ones)
            return first.to(weight.dtype), last.to(weight.dtype)
        return tuple(self._coarse(X, weight.dtype) for X in (V, U))

    def _coarse(self, X: Tensor, dtype: torch.dtype) -> Factor:
        """A factor on its grid."""
        assert self.factor_bits is not None
        plain = identity(X, X.dtype)
        return tuple(quantized(X, plain, self.factor_bits, _FACTOR_GROUP, dtype=dtype))


_FACTOR_GROUP = 64
"""Entries of a factor's row that share a step."""


def _layer(stage: Stage) -> LayerSpec:
    assert isinstance(stage, LayerSpec)
    return stage


def _full(spec: LayerSpec) -> int:
    _, o, *rest = spec.weight_shape
    return min(o, torch.Size(rest).numel())


def _ranks(spec: LayerSpec, round_to: int) -> list[int]:
    """A few ranks of L, from low ones up."""
    top = int(_SHARE * _full(spec))
    if top < 2:
        return []
    grid = rank_grid(top, round_to=round_to, limit=top)
    places = {round(len(grid) * 2.0**-k) for k in range(_N_RANKS)}
    return [grid[p - 1] for p in sorted(places) if p > 0]


def _rest(W: Tensor, metric: Metric, bits: int, group: int, *, embeds: bool = False) -> Tensor:
    """What entries lose that go to their nearest levels; those of a table in rows of words."""
    rows = W.mT if embeds else W
    rule = identity(rows, W.dtype) if embeds else metric
    rest = rows - values_of(quantized(rows, rule, bits, group), bits, group, W.dtype)
    return rest.mT if embeds else rest


@dataclass(frozen=True, eq=False)
class _Shape:
    """The error by the rank of L, beside that of nearest levels alone: much the same at any bits.

    Args:
        shares: rank -> share of the error that stays.
    """

    shares: dict[int, float]

    @classmethod
    def flat(cls) -> _Shape:
        """Without L, and with nothing made up for."""
        return cls({0: 1.0})

    @classmethod
    def of(cls, W: Tensor, metric: Metric, ranks: list[int]) -> _Shape:
        """From one fit: its error, and what the spectrum of its rest has behind each rank."""
        bits, group = _SEEN
        rounded = metric.error(_rest(W, metric, bits, group)) or 1.0
        grid = quantized(W, metric, bits, group, spread=spread_of(metric))
        rest = W - values_of(grid, bits, group, W.dtype)
        moment = output_moment(rest, metric)
        values = torch.linalg.eigvalsh(moment).flip(-1).clamp_min(0).sum(0)
        lost = values.flip(0).cumsum(0).flip(0)
        places = {0: 0, **{rank: rank for rank in ranks if rank < len(lost)}}
        return cls({rank: float(lost[at]) / rounded for rank, at in places.items()})
