"""LegoNet: filters assembled from a small set of bricks that all of them share."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from lowrank.compression.methods.shared.base import Method, depthwise, outside
from lowrank.compression.methods.shared.brick_choice import free_choice
from lowrank.compression.methods.shared.joint_search import error_of, fit_from, refined
from lowrank.compression.network.layers import spec_of
from lowrank.compression.network.own_stages import SelectStage, Shared, SharedStage
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.decompositions.bricks import assemble
from lowrank.decompositions.metric import Metric, energy, identity

_SPLITS = (2, 4, 8)
"""Numbers of parts of a filter that are tried."""


_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
"""Bricks over filters: below 1 it saves MACs, above only parameters."""


_WIDE = 2048
"""Fan-in beyond which the curve takes two points."""


@dataclass(frozen=True)
class LegoNet(Method):
    """Every filter in `splits` parts over the input channels, each a multiple of one brick.

    The `n_bricks` bricks are convolved with every split of the input once; a filter then
    takes one result from each and adds them up. It has n_bricks * in / splits * kernel
    weights and splits coefficients a filter; numbers of bricks are no weights. MACs fall to
    about n_bricks / out.

    Args:
        n_bricks: bricks, 1..out * splits, at which it is exact.
        splits: parts of a filter; it divides the input channels.

    Source: Yang, Wang, Liu, Chen, Xu, Tian, Xu 2019, "LegoNet: efficient convolutional neural
        networks with Lego filters". They train bricks and codes from scratch by a
        straight-through estimator; here a trained layer is coded in the output metric.
    """

    name: ClassVar[str] = "legonet"
    rank_names: ClassVar[tuple[str, ...]] = ("n_bricks",)
    n_bricks: int
    splits: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        if not spec.kernel:
            return "bricks are pieces of kernels, and a linear layer has none"
        if spec.groups > 1:
            return depthwise(spec) or "a grouped layer's filters do not read the same channels"
        if not _splits(spec):
            return "its input channels do not split into equal parts"
        return None

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[LegoNet]:
        s = _splits(spec)[0]
        return [cls(spec.out_channels * s, s)]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[LegoNet, float]]:
        metric = identity(weight) if metric is None else metric.formed
        W, whole = metric.cast(weight), energy(weight, metric) or 1.0
        single = metric.to(torch.float32)
        wide = spec.n_weights // spec.out_channels > _WIDE
        for method in _offered(spec, round_to, wide):
            found = method._assembled(spec, W, metric, max_iter=2 if wide else 6, exact_steps=0)
            stages = method.stages(spec)
            if metric.C.ndim == 3 and not wide:  # else there is nothing between the parts to gain
                found = refined(spec, stages, found, W, single, max_iter=6)
            yield method, error_of(spec, stages, found, W, metric) / whole

    def check(self, spec: LayerSpec) -> str | None:
        channels = spec.in_channels
        if not isinstance(self.splits, int) or self.splits < 1 or channels % self.splits:
            return f"splits {self.splits!r} do not divide {channels} channels"
        return outside("n_bricks", self.n_bricks, spec.out_channels * self.splits, spec)

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        s, n, axes = self.splits, self.n_bricks, range(len(spec.kernel))
        brick = spec.along(axes, spec.in_channels // s, n)
        taken = s * spec.out_channels
        return (
            SharedStage(brick, s),
            SelectStage(s * n, taken, 1, len(spec.kernel)),
            spec.pointwise(taken, spec.out_channels, groups=spec.out_channels, bias=spec.bias),
        )

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Factor, ...]:
        def start(metric: Metric) -> tuple[Factor, ...]:
            return self._assembled(spec, metric.cast(weight), metric, max_iter=20)

        n = 40 if max_iter is None else min(40, max_iter)
        return fit_from(spec, self.stages(spec), weight, metric, start, max_iter=n)

    def relaxed(self, chain: nn.Sequential) -> AbstractContextManager[nn.Module] | None:
        """Which brick each part of a filter takes; see `Codes`."""
        parts = list(chain)
        whole = len(parts) == 3 and isinstance(parts[0], Shared) and spec_of(parts[2]) is not None
        return free_choice(chain, self.splits, self.n_bricks) if whole else None

    def _assembled(
        self, spec: LayerSpec, W: Tensor, metric: Metric, *, max_iter: int, exact_steps: int = 2
    ) -> tuple[Factor, ...]:
        s, n, o = self.splits, self.n_bricks, spec.out_channels
        one = replace(metric, C=metric.C[:1])
        found = assemble(W.flatten(2)[0], n, s, one, max_iter=max_iter, exact_steps=exact_steps)
        offset = n * torch.arange(s, device=W.device)
        return (
            found.bricks.reshape(1, n, spec.in_channels // s, *spec.kernel),
            (found.index + offset).reshape(1, o * s),
            found.coefficients.reshape(o, 1, s, *(1,) * len(spec.kernel)),
        )


def _splits(spec: LayerSpec) -> list[int]:
    return [s for s in _SPLITS if spec.in_channels % s == 0 and spec.in_channels > s]


def _offered(spec: LayerSpec, round_to: int, wide: bool) -> list[LegoNet]:
    """Numbers of bricks that make the layer smaller."""
    found = []
    for s in _splits(spec)[1:2] if wide else _splits(spec):
        for share in _SHARES[1:3] if wide else _SHARES:
            n = max(round_to, int(share * spec.out_channels) // round_to * round_to)
            method = LegoNet(n, s)
            small = sum(stage.n_weights for stage in method.stages(spec)) < spec.n_weights
            if small and method.check(spec) is None:
                found.append(method)
    return list(dict.fromkeys(found))
