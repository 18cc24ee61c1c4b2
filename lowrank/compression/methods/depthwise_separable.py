"""Depthwise separable: a few filters for each input channel, then 1 x 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    lost_energy,
    no_kernel,
    outside,
    worthwhile,
)
from lowrank.compression.methods.shared.error_curves import n_refined, nested_curve, refined_curve
from lowrank.compression.methods.shared.folding import affordable, even, weighted
from lowrank.compression.methods.shared.search import affords_search, fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import (
    Metric,
    add_gram,
    energy,
    identity,
    input_directions,
    whitened,
)
from lowrank.decompositions.svd import singular_values


@dataclass(frozen=True)
class DepthwiseSeparable(Method):
    """A depthwise convolution with `multiplier` filters per input channel, then 1 x 1.

    Each input channel's filters are projected on their leading few; the 1 x 1 convolution
    then mixes all of them. It costs multiplier * in * (kernel + out), and serves strided
    layers best, since all of the mixing is done at the output's resolution.

    Args:
        multiplier: filters per input channel, 1..min(out / groups, kernel).

    Source: Chollet 2017, "Xception"; the decoupling of a trained kernel: Guo et al. 2018,
        "Network decoupling", equation 2, here in one metric with a joint 1 x 1 fit.
    """

    name: ClassVar[str] = "depthwise_separable"
    rank_names: ClassVar[tuple[str, ...]] = ("multiplier",)
    multiplier: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 1, "the layer itself with an idle stage") or depthwise(spec)

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[DepthwiseSeparable]:
        return [cls(_full(spec))]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[DepthwiseSeparable, float]]:
        top = worthwhile(cls(1), spec, _full(spec))
        if metric is None:  # channels are orthogonal: their errors add up
            g, o, i, *_ = spec.weight_shape
            slices = weight.reshape(g, o, i, -1).transpose(1, 2).flatten(0, 1)
            lost = lost_energy(singular_values(slices))
            yield from ((cls(m), lost[m - 1]) for m in range(1, top + 1))
            return
        i = spec.weight_shape[2]
        top = affordable(metric, i, top)
        W = weighted(metric, weight)
        N = whitened(*_products(_filters(spec, weight, metric, top), metric, W))
        lost = nested_curve(weight, metric, N, i)
        whole = energy(weight, metric) or 1.0

        def error(m: int) -> float:
            return fit_error(cls(m), spec, weight, metric, seed=seed, max_iter=20) / whole

        search = error if affords_search(cls((top + 1) // 2), spec, metric) else None
        for m, refined in refined_curve(range(1, top + 1), lost, search, n_fits=n_refined(metric)):
            yield cls(m), refined

    def check(self, spec: LayerSpec) -> str | None:
        return outside("multiplier", self.multiplier, _full(spec), spec)

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        inner = self.multiplier * spec.in_channels
        axes = range(len(spec.kernel))
        return (
            spec.along(axes, spec.in_channels, inner, groups=spec.in_channels),
            spec.pointwise(inner, spec.out_channels, groups=spec.groups, bias=spec.bias),
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
        if metric is None:
            return fit_stages(self, spec, weight, identity(weight), seed=seed, max_iter=0)
        return fit_stages(self, spec, weight, metric, seed=seed, max_iter=max_iter)

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        return _features(free[0])

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        yield (_filters(spec, weight, metric, self.multiplier),)

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        g, o, i, *kernel = spec.weight_shape
        first, last = even(free[0].flatten(1, 2), last)  # (g, m * i, K), (g, o, m * i)
        # channel by channel, as a grouped convolution orders its outputs
        turned = first.unflatten(1, (-1, i)).transpose(1, 2)  # (g, i, m, K)
        columns = last.unflatten(2, (-1, i)).transpose(2, 3).flatten(2)
        ones = (1,) * len(kernel)
        return (
            turned.reshape(g * i, self.multiplier, 1, *kernel),
            columns.reshape(g, o, -1, *ones),
        )


def _filters(spec: LayerSpec, weight: Tensor, metric: Metric, n: int) -> Tensor:
    """The n leading filters of each input channel in its own metric: (g, n, i, K), nested."""
    g, o, i, *kernel = spec.weight_shape
    k = prod(kernel)
    places = torch.arange(i * k).reshape(i, k)
    own = metric.block(places)  # (g, i, K, K)
    W = weighted(metric, weight).reshape(g, o, i, k)
    slices = W.transpose(1, 2).flatten(0, 1)  # (g * i, o, K)
    V = input_directions(slices, Metric(own.flatten(0, 1)), n)  # (g * i, n, K)
    return V.reshape(g, i, n, k).transpose(1, 2)


def _features(filters: Tensor) -> Tensor:
    """(g, m, i, K) as features (g, m * i, i * K)."""
    eye = torch.eye(filters.shape[2], dtype=filters.dtype, device=filters.device)
    return (filters[:, :, :, None, :] * eye[None, None, :, :, None]).flatten(3).flatten(1, 2)


def _products(filters: Tensor, metric: Metric, W: Tensor) -> tuple[Tensor, Tensor]:
    """`Metric.products` of `_features`, each of which reads one channel.

    Args:
        filters: (g, m, i, K).
        metric: the error.
        W: (g, o, i * K).
    """
    g, m, i, K = filters.shape
    if metric.rows is None and metric.C.ndim == 3:
        C = metric.C.unflatten(1, (i, K))  # (g, i, K, d)
        MC = torch.einsum("gmik,gikd->gmid", filters, C)
        S = torch.einsum("gmidk,gndk->gmind", MC.unflatten(-1, (i, K)), filters)
        return S.flatten(3).flatten(1, 2), W @ MC.flatten(1, 2).mT
    own = filters * metric.C.unflatten(1, (i, K))[:, None]
    blocks = torch.einsum("gmik,gnik->gimn", own, filters)
    S = W.new_zeros(g, m, i, m, i)
    S.diagonal(dim1=2, dim2=4).copy_(blocks.permute(0, 2, 3, 1))
    P = torch.einsum("goik,gmik->gomi", W.unflatten(-1, (i, K)), own)
    S, P = S.reshape(g, m * i, m * i), P.flatten(2)
    if metric.rows is None:
        return S, P
    A = torch.einsum("gnik,gmik->gmin", metric.rows.unflatten(-1, (i, K)), filters).flatten(1, 2)
    return add_gram(S, A), P.baddbmm_(W @ metric.rows.mT, A.mT)


def _full(spec: LayerSpec) -> int:
    _, o, _, *kernel = spec.weight_shape
    return min(o, prod(kernel))
