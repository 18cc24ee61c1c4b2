"""Group-wise SVD: the input channels in subspaces, each with its own low-rank map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.channel_svd import Fold, _folds
from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    lost_energy,
    outside,
    rank_grid,
    worthwhile,
)
from lowrank.compression.methods.shared.error_curves import n_refined, nested_curve, refined_curve
from lowrank.compression.methods.shared.folding import even, marginal, spread, weighted
from lowrank.compression.methods.shared.search import fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric, energy, identity, input_directions, whitened
from lowrank.decompositions.svd import singular_values

_GROUPS = (2, 4, 8)
"""Numbers of subspaces that are tried; more of them cost more than they save."""


_WIDE = 2048
"""Fan-in beyond which a curve in the metric takes seconds."""


_REFINED = 512
"""Fan-in up to which the curves of linear layers take short fits into account."""


_N_LINEAR = 40
"""Iterations on a linear layer: one descent gets within 2 % of what a dozen hops find there."""


@dataclass(frozen=True)
class GroupSVD(Method):
    """One grouped convolution and one that mixes: `groups` low-rank maps, summed.

    For a linear layer both are linear, the first block-diagonal.

    The input channels of every group of the layer are split into `groups` subspaces of
    neighbours. With `kernel_first` each has a k x k map to `rank` channels and a 1 x 1
    convolution mixes them; with `kernel_last` a 1 x 1 map, and a k x k convolution mixes.
    The mixing stage is in closed form for all subspaces at once, which ALDS leaves apart.

    Args:
        groups: number of subspaces, at least 2; it divides the channels of a group.
        rank: channels in between for each subspace.
        fold: where the kernel goes.

    Source: Liebenwein et al. 2021, "Compressing neural networks: towards determining the
        optimal layer-wise decomposition" (ALDS), section 2.2.
    """

    name: ClassVar[str] = "group_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    groups: int
    rank: int
    fold: Fold = "kernel_first"

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        if spec.kind == "embedding":
            return "a look-up has no input channels to split"
        if (reason := depthwise(spec)) is not None:
            return reason
        if not _splits(spec):
            return "its input channels do not split into equal subspaces"
        return None

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[GroupSVD]:
        k = _splits(spec)[0]
        return [cls(k, _full(spec, k, fold), fold) for fold in _folds(spec)]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[GroupSVD, float]]:
        for fold in _folds(spec):
            for k in _tried(spec, fold, metric):
                top = worthwhile(cls(k, 1, fold), spec, _full(spec, k, fold))
                ranks = rank_grid(top, round_to=round_to, limit=32)
                if ranks:
                    lost = cls(k, ranks[-1], fold)._curve(spec, weight, metric)
                    curve = _refined(cls(k, 1, fold), spec, weight, metric, ranks, lost, seed)
                    yield from ((cls(k, rank, fold), error) for rank, error in curve)

    def check(self, spec: LayerSpec) -> str | None:
        if self.fold not in ("kernel_first", "kernel_last"):
            return f"fold {self.fold!r} is neither 'kernel_first' nor 'kernel_last'"
        channels = spec.weight_shape[2]
        if not isinstance(self.groups, int) or self.groups < 2 or channels % self.groups:
            return f"groups {self.groups!r} do not divide {channels} channels from 2 up"
        return outside("rank", self.rank, _full(spec, self.groups, self.fold), spec)

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        parts = spec.groups * self.groups
        inner, axes = parts * self.rank, range(len(spec.kernel))
        if self.fold == "kernel_first":
            return (
                spec.along(axes, spec.in_channels, inner, groups=parts),
                spec.pointwise(inner, spec.out_channels, groups=spec.groups, bias=spec.bias),
            )
        return (
            spec.pointwise(spec.in_channels, inner, groups=parts),
            spec.along(axes, inner, spec.out_channels, groups=spec.groups, bias=spec.bias),
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
        if metric is None:  # subspaces are orthogonal: the start is the best there is
            return fit_stages(self, spec, weight, identity(weight), seed=seed, max_iter=0)
        if max_iter is None and not spec.kernel:
            max_iter = _N_LINEAR
        return fit_stages(self, spec, weight, metric, seed=seed, max_iter=max_iter)

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        V = free[0]  # (g, r, k, n)
        eye = torch.eye(V.shape[2], dtype=V.dtype, device=V.device)
        rows = (V[:, :, :, None, :] * eye[None, None, :, :, None]).flatten(3).flatten(1, 2)
        if self.fold == "kernel_first":
            return rows  # (g, r * k, i * K)
        return spread(rows, spec.kernel, ())  # (g, r * k * K, i * K)

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        yield (self._maps(spec, weight, metric),)

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        g, o, i, *kernel = spec.weight_shape
        ones = (1,) * len(kernel)
        inner = kernel if self.fold == "kernel_first" else ones
        outer = ones if self.fold == "kernel_first" else kernel
        first = free[0].flatten(1, 2)  # (g, r * k, n), k fastest
        first, last = even(first, last.reshape(g, o, self.rank * self.groups, *outer))
        # subspace by subspace, as a grouped convolution orders its outputs
        turned = first.unflatten(1, (self.rank, -1)).transpose(1, 2)
        columns = last.unflatten(2, (self.rank, -1)).transpose(2, 3).flatten(2, 3)
        shape = (g * self.groups, self.rank, i // self.groups, *inner)
        return turned.reshape(shape), columns.contiguous()

    def _curve(self, spec: LayerSpec, weight: Tensor, metric: Metric | None) -> list[float]:
        """Relative squared error at every rank up to this one."""
        if metric is None:  # without data the subspaces' errors add up
            return lost_energy(singular_values(self._slices(spec, weight).flatten(0, 1)))
        V = self._maps(spec, weight, metric)
        width = self.groups * (prod(spec.kernel) if self.fold == "kernel_last" else 1)
        products = metric.products(self.features(spec, (V,)), weighted(metric, weight))
        return nested_curve(weight, metric, whitened(*products), width)

    def _slices(self, spec: LayerSpec, weight: Tensor) -> Tensor:
        """The folded weight of every subspace: (g, k, o, n) or (g, k, o * K, n)."""
        g, o, i, *kernel = spec.weight_shape
        K, k = prod(kernel), self.groups
        slices = weight.reshape(g, o, k, i // k, K).movedim(2, 1)  # (g, k, o, i / k, K)
        if self.fold == "kernel_first":
            return slices.flatten(3)
        return slices.transpose(-1, -2).flatten(2, 3)

    def _maps(self, spec: LayerSpec, weight: Tensor, metric: Metric) -> Tensor:
        """Leading directions of each subspace in its own metric: (g, rank, groups, n), nested."""
        _, _, i, *kernel = spec.weight_shape
        K, k = prod(kernel), self.groups
        W = weighted(metric, weight).reshape(weight.shape)
        inputs = metric if self.fold == "kernel_first" else marginal(metric, spec, ())
        width = i * K if self.fold == "kernel_first" else i
        own = inputs.block(torch.arange(width).reshape(k, -1))  # (g, k, n, n)
        rows = self._slices(spec, W).flatten(0, 1)
        V = input_directions(rows, Metric(own.flatten(0, 1)), self.rank)
        return V.unflatten(0, (spec.groups, k)).transpose(1, 2)


def _refined(
    method: GroupSVD,
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric | None,
    ranks: Sequence[int],
    nested: Sequence[float],
    seed: int,
) -> Iterator[tuple[int, float]]:
    """The nested curve; for linear layers, whose subspaces share most, with what fits gain."""
    if metric is None or spec.kernel or spec.weight_shape[2] > _REFINED:
        yield from ((rank, nested[rank - 1]) for rank in ranks)
        return
    whole = energy(weight, metric) or 1.0

    def error(rank: int) -> float:
        wanted = replace(method, rank=rank)
        return fit_error(wanted, spec, weight, metric, seed=seed, max_iter=10) / whole

    yield from refined_curve(ranks, nested, error, n_fits=n_refined(metric))


def _tried(spec: LayerSpec, fold: Fold, metric: Metric | None) -> list[int]:
    """Numbers of subspaces on the curve; where data makes them dear, the leading one alone."""
    wide = metric is not None and spec.n_weights // spec.out_channels > _WIDE
    if wide and fold == "kernel_last":
        return []
    return _splits(spec)[: 1 if wide else None]


def _splits(spec: LayerSpec) -> list[int]:
    channels = spec.weight_shape[2]
    return [k for k in _GROUPS if channels % k == 0 and channels >= 2 * k]


def _full(spec: LayerSpec, groups: int, fold: Fold) -> int:
    _, o, i, *kernel = spec.weight_shape
    K, n = prod(kernel), i // groups
    return min(o, n * K) if fold == "kernel_first" else min(o * K, n)
