"""Channel SVD: one layer becomes two, through `rank` channels in between."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

from torch import Tensor

from lowrank.compression.layers import LayerSpec
from lowrank.compression.methods.base import depthwise, lost_energy, outside, rank_grid, worthwhile
from lowrank.decompositions.svd import singular_values, truncated_svd

Fold = Literal["kernel_first", "kernel_last"]


@dataclass(frozen=True)
class ChannelSVD:
    """Two layers through `rank` channels per group: the best in the Frobenius norm.

    `kernel_first` folds the weight to (out, in * kernel): a k x k layer, then 1 x 1.
    `kernel_last` folds it to (out * kernel, in): 1 x 1, then k x k. For linear layers and
    embeddings there is no kernel and both are the plain SVD.

    Args:
        rank: channels in between, per group, 1..min of the folded matrix.
        fold: where the kernel goes.

    Source: Zhang, Zou, He, Sun 2016, "Accelerating very deep convolutional networks"
        (kernel first); Denton et al. 2014, section 3.2 (bi-linear folding).
    """

    name: ClassVar[str] = "channel_svd"
    rank: int
    fold: Fold = "kernel_first"

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return depthwise(spec)

    @classmethod
    def full_rank(cls, spec: LayerSpec) -> ChannelSVD:
        return cls(_full(spec, "kernel_first"))

    @classmethod
    def candidates(
        cls, spec: LayerSpec, weight: Tensor, *, round_to: int, seed: int
    ) -> Iterable[tuple[ChannelSVD, float]]:
        folds: tuple[Fold, ...] = ("kernel_first", "kernel_last")
        for fold in folds if any(k > 1 for k in spec.kernel) else folds[:1]:
            lost = lost_energy(singular_values(_matrix(weight, fold)))
            top = worthwhile(cls(1, fold), spec, _full(spec, fold))
            for rank in rank_grid(top, round_to=round_to, limit=64):
                yield cls(rank, fold), lost[rank - 1]

    def check(self, spec: LayerSpec) -> str | None:
        if self.fold not in ("kernel_first", "kernel_last"):
            return f"fold {self.fold!r} is neither 'kernel_first' nor 'kernel_last'"
        return outside("rank", self.rank, _full(spec, self.fold), spec)

    def specs(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        inner, g = self.rank * spec.groups, spec.groups
        if spec.kind == "embedding":
            table = LayerSpec(
                "embedding",
                spec.in_channels,
                inner,
                padding_idx=spec.padding_idx,
                scale_grad_by_freq=spec.scale_grad_by_freq,
                sparse=spec.sparse,
            )
            return table, spec.pointwise(inner, spec.out_channels)
        axes = range(len(spec.kernel))
        if self.fold == "kernel_first" and spec.kernel:
            return (
                spec.along(axes, spec.in_channels, inner, groups=g),
                spec.pointwise(inner, spec.out_channels, groups=g, bias=spec.bias),
            )
        last = spec.along(axes, inner, spec.out_channels, groups=g, bias=spec.bias)
        return spec.pointwise(spec.in_channels, inner, groups=g), last

    def factor(self, spec: LayerSpec, weight: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        U, Vh = truncated_svd(
            _matrix(weight, self.fold), self.rank
        ).balanced()  # (g, m, r), (g, r, n)
        g, o, i, *kernel = spec.weight_shape
        ones = (1,) * len(kernel)
        if self.fold == "kernel_first":
            return Vh.reshape(g, self.rank, i, *kernel), U.reshape(g, o, self.rank, *ones)
        last = U.reshape(g, o, *kernel, self.rank).movedim(-1, 2)  # (g, o, r, *k)
        return Vh.reshape(g, self.rank, i, *ones), last


def _matrix(weight: Tensor, fold: Fold) -> Tensor:
    """(g, o, i, *k) folded to (g, o, i * k) or (g, o * k, i)."""
    if fold == "kernel_first":
        return weight.flatten(2)
    return weight.movedim(2, -1).flatten(1, -2)


def _full(spec: LayerSpec, fold: Fold) -> int:
    _, o, i, *kernel = spec.weight_shape
    k = prod(kernel)
    return min(o, i * k) if fold == "kernel_first" else min(o * k, i)
