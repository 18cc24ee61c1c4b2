"""Channel SVD: one layer becomes two, through `rank` channels in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    lost_energy,
    outside,
    rank_grid,
    worthwhile,
)
from lowrank.compression.methods.shared.error_curves import n_refined, nested_curve, refined_curve
from lowrank.compression.methods.shared.folding import (
    affordable,
    even,
    first_stage,
    nested_stages,
    places,
    split_off,
    spread,
)
from lowrank.compression.methods.shared.search import affords_search, fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.network.units import Bond
from lowrank.decompositions.metric import Metric, best_map, energy, output_moment
from lowrank.decompositions.svd import singular_values, truncated_svd

Fold = Literal["kernel_first", "kernel_last"]


@dataclass(frozen=True)
class ChannelSVD(Method):
    """Two layers through `rank` channels per group: the best in the Frobenius norm.

    `kernel_first` folds the weight to (out, in * kernel): a k x k layer, then 1 x 1.
    `kernel_last` folds it to (out * kernel, in): 1 x 1, then k x k. For linear layers and
    embeddings there is no kernel and both are the plain SVD.

    With data, kernel first is the best such pair in the output metric, from one spectrum;
    kernel last is fitted by variable projection, the k x k layer in closed form.

    Args:
        rank: channels in between, per group, 1..min of the folded matrix.
        fold: where the kernel goes.

    Source: Zhang, Zou, He, Sun 2016, "Accelerating very deep convolutional networks"
        (kernel first); Denton et al. 2014, section 3.2 (bi-linear folding).
    """

    name: ClassVar[str] = "channel_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    serves: ClassVar[tuple[Bond, ...]] = ("alone", "table", "scaled table")
    rank: int
    fold: Fold = "kernel_first"

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return depthwise(spec)

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[ChannelSVD]:
        return [cls(_full(spec, fold), fold) for fold in _folds(spec)]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[ChannelSVD, float]]:
        for fold in _folds(spec):
            top = worthwhile(cls(1, fold), spec, _full(spec, fold))
            ranks = rank_grid(top, round_to=round_to, limit=64)
            if metric is None or fold == "kernel_first":
                lost = lost_by_rank(weight, fold, metric)
                yield from ((cls(rank, fold), lost[rank - 1]) for rank in ranks)
            elif ranks:
                yield from _last_curve(spec, weight, metric, ranks, seed)

    def check(self, spec: LayerSpec) -> str | None:
        if self.fold not in ("kernel_first", "kernel_last"):
            return f"fold {self.fold!r} is neither 'kernel_first' nor 'kernel_last'"
        return outside("rank", self.rank, _full(spec, self.fold), spec)

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
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

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Tensor, ...]:
        if metric is not None and self.fold == "kernel_last" and spec.kernel:
            return fit_stages(
                self, spec, weight, metric,
                seed=seed, max_iter=max_iter, reads=places(spec, ()),
            )  # fmt: skip
        if metric is not None:
            U, V = best_map(weight.flatten(2), metric, self.rank, sketched=max_iter == 0)
            return self._folded(spec, *(f.to(weight.dtype) for f in reversed(even(V, U))))
        folded = _matrix(weight, self.fold)
        return self._folded(spec, *truncated_svd(folded, self.rank).balanced())

    def _folded(self, spec: LayerSpec, U: Tensor, Vh: Tensor) -> tuple[Tensor, ...]:
        """Stages from (g, m, r) and (g, r, n) of the folded matrix."""
        g, o, i, *kernel = spec.weight_shape
        ones = (1,) * len(kernel)
        if self.fold == "kernel_first":
            return Vh.reshape(g, self.rank, i, *kernel), U.reshape(g, o, self.rank, *ones)
        last = U.reshape(g, o, *kernel, self.rank).movedim(-1, 2)  # (g, o, r, *k)
        return Vh.reshape(g, self.rank, i, *ones), last

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        return spread(free[0], spec.kernel, ())

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        yield (first_stage(spec, weight, metric, (), self.rank),)
        yield (self.factor(spec, weight, seed=seed)[0].flatten(2),)

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        g, o, i, *kernel = spec.weight_shape
        first = free[0].reshape(g, self.rank, i, *(1,) * len(kernel))
        return even(first, last.reshape(g, o, self.rank, *kernel))


def lost_by_rank(weight: Tensor, fold: Fold, metric: Metric | None) -> list[float]:
    """Relative squared error at rank 1, 2, ... of one folding; with data of kernels first only."""
    if metric is None:
        return lost_energy(singular_values(_matrix(weight, fold)))
    values = torch.linalg.eigvalsh(output_moment(weight.flatten(2), metric)).flip(-1)
    lost = lost_energy(values.clamp_min(0).sqrt())
    return lost[: weight.flatten(2).shape[-1]]


def _last_curve(
    spec: LayerSpec, weight: Tensor, metric: Metric, ranks: Sequence[int], seed: int
) -> Iterator[tuple[ChannelSVD, float]]:
    width, reads = prod(spec.kernel), places(spec, ())
    most = affordable(metric, width, _full(spec, "kernel_last"))  # as Tucker-2, which begins so
    ranks = [r for r in ranks if r <= most] or ranks[:1]
    N = nested_stages(spec, weight, metric, (), max(most, ranks[-1]))
    nested = nested_curve(weight, metric, N, width)
    whole = energy(weight, metric) or 1.0

    def error(rank: int) -> float:
        method = ChannelSVD(rank, "kernel_last")
        found = fit_error(method, spec, weight, metric, seed=seed, max_iter=10, reads=reads)
        return found / whole

    search = (
        error
        if affords_search(ChannelSVD(ranks[-1] // 2 or 1, "kernel_last"), spec, metric)
        else None
    )
    for rank, lost in refined_curve(ranks, nested, search, n_fits=n_refined(metric)):
        yield ChannelSVD(rank, "kernel_last"), lost


def _folds(spec: LayerSpec) -> tuple[Fold, ...]:
    """The foldings that differ; on a kernel of one place both are the same."""
    return ("kernel_first", "kernel_last") if any(k > 1 for k in spec.kernel) else ("kernel_first",)


def _matrix(weight: Tensor, fold: Fold) -> Tensor:
    """(g, o, i, *k) folded to (g, o, i * k) or (g, o * k, i)."""
    return weight.flatten(2) if fold == "kernel_first" else split_off(weight, ())


def _full(spec: LayerSpec, fold: Fold) -> int:
    _, o, i, *kernel = spec.weight_shape
    k = prod(kernel)
    return min(o, i * k) if fold == "kernel_first" else min(o * k, i)
