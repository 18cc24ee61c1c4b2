"""Shared input factor: linear layers that read the same input read it through one small layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import Joint, Target, outside, rank_grid
from lowrank.compression.methods.shared.folding import even
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.network.units import Bond
from lowrank.decompositions.metric import (
    Metric,
    best_last,
    energy,
    identity,
    input_directions,
    nested_gains,
)


@dataclass(frozen=True)
class SharedInputSVD(Joint):
    """One map to `rank` channels that several linear layers share, and one from there for each.

    For layers that read the same input x, as queries, keys and values do, or gate and up:

        minimise   sum_m w_m E || G_m^1/2 (W_m - B_m V) x ||^2   over B_m and V

    which is the best approximation of that rank of the stacked weights, with a G of blocks; each
    B_m is best for V by itself. The weight w_m is what an error as large as the layer's whole
    output counts, over that output's size.

    Args:
        rank: channels in between, 1..min(inputs, outputs of all layers).

    Source: reduced-rank regression, Izenman 1975; one basis for several
        weights: Wang et al. 2024, "Basis sharing: cross-layer parameter sharing".
    """

    name: ClassVar[str] = "shared_input_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    serves: ClassVar[tuple[Bond, ...]] = ("input",)
    rank: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return None if spec.kind == "linear" else "only linear layers share an input factor"

    @classmethod
    def variants(cls, spec: LayerSpec) -> list[SharedInputSVD]:
        return [cls(min(spec.in_channels, spec.out_channels))]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterator[tuple[SharedInputSVD, float]]:
        for method, (error,) in cls.together([Target(weight, metric)], round_to=round_to):
            yield method, error

    @classmethod
    def together(
        cls, targets: Sequence[Target], *, round_to: int
    ) -> Iterator[tuple[SharedInputSVD, tuple[float, ...]]]:
        d, out = targets[0].weight.shape[-1], sum(t.weight.shape[1] for t in targets)
        ranks = rank_grid(max(1, d * out // (d + out)), round_to=round_to, limit=64)
        if not ranks:
            return
        V = _directions(targets, ranks[-1])
        lost = torch.stack([_lost(target, V) for target in targets])
        for rank in ranks:
            yield cls(rank), tuple(lost[:, rank - 1].tolist())

    def check(self, spec: LayerSpec) -> str | None:
        return outside("rank", self.rank, min(spec.in_channels, spec.out_channels), spec)

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        return (
            spec.pointwise(spec.in_channels, self.rank),
            spec.pointwise(self.rank, spec.out_channels, bias=spec.bias),
        )

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Tensor, ...]:
        return self.factor_together([Target(weight, metric)])

    def factor_together(self, targets: Sequence[Target]) -> tuple[Tensor, ...]:
        V = _directions(targets, self.rank)
        lasts = []
        for target in targets:
            metric = _metric(target)
            products = metric.products(metric.cast(V), metric.cast(target.weight))
            lasts.append(best_last(*products).to(V.dtype))
        first, last = even(V, torch.cat(lasts, dim=1))
        return tuple(f.to(targets[0].weight.dtype) for f in (first, last))


def _metric(target: Target) -> Metric:
    return target.metric or identity(target.weight)


def _directions(targets: Sequence[Target], rank: int) -> Tensor:
    """V (1, rank, d), the most important direction first.

    The moment of the input is that of the first layer: the others' are the same, but for the
    mean of the input where some have a bias to take it and others have none, and for its type.
    """
    metric = _metric(targets[0])
    rows = [t.scale**0.5 * _metric(t).left(_metric(t).cast(t.weight)) for t in targets]
    R = torch.cat([metric.cast(r) for r in rows], dim=1)
    if R.shape[1] > R.shape[2]:
        R = torch.linalg.qr(R, mode="r").R
    return input_directions(R, replace(metric, G=None), rank)


def _lost(target: Target, V: Tensor) -> Tensor:
    """Relative squared error of a layer behind the first 1, 2, ... rows of V."""
    metric = _metric(target)
    whole = energy(target.weight, metric)
    gains = nested_gains(target.weight, metric, metric.cast(V), 1).double().cumsum(0)
    return (1 - gains / whole).clamp_min(0) if whole else torch.zeros_like(gains)
