"""Tucker-2: 1 x 1, a small k x k core, 1 x 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.layers import LayerSpec
from lowrank.compression.methods.base import depthwise, no_kernel, outside, rank_grid
from lowrank.decompositions.tucker import tucker, tucker_error_surface


@dataclass(frozen=True)
class Tucker2:
    """Three convolutions: 1 x 1 to `rank_in`, the k x k core, 1 x 1 from `rank_out`.

    The Tucker decomposition of the weight in its two channel modes.

    Args:
        rank_out: output channels of the core, per group.
        rank_in: input channels of the core, per group.

    Source: Kim et al. 2016, "Compression of deep CNNs for fast and low power mobile
        applications", section 3.
    """

    name: ClassVar[str] = "tucker2"
    rank_out: int
    rank_in: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 1, "the channel SVD with idle stages") or depthwise(spec)

    @classmethod
    def full_rank(cls, spec: LayerSpec) -> Tucker2:
        return cls(*_full(spec))

    @classmethod
    def candidates(
        cls, spec: LayerSpec, weight: Tensor, *, round_to: int, seed: int
    ) -> Iterable[tuple[Tucker2, float]]:
        energy = weight.double().square().sum(dim=tuple(range(1, weight.ndim)))  # (g,)
        total = float(energy.sum())
        surface = sum(
            tucker_error_surface(w, (0, 1)).double() * e
            for w, e in zip(weight, energy, strict=True)
        )
        assert isinstance(surface, Tensor)
        lost = (surface / total if total else surface).clamp_min(0)  # (rank_out, rank_in)
        full_out, full_in = _full(spec)
        for rank_out in rank_grid(full_out, round_to=round_to, limit=24):
            for rank_in in rank_grid(full_in, round_to=round_to, limit=24):
                yield cls(rank_out, rank_in), float(lost[rank_out - 1, rank_in - 1])

    def check(self, spec: LayerSpec) -> str | None:
        full_out, full_in = _full(spec)
        wrong = outside("rank_out", self.rank_out, full_out, spec)
        return wrong or outside("rank_in", self.rank_in, full_in, spec)

    def specs(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        g, axes = spec.groups, range(len(spec.kernel))
        inner_in, inner_out = self.rank_in * g, self.rank_out * g
        return (
            spec.pointwise(spec.in_channels, inner_in, groups=g),
            spec.along(axes, inner_in, inner_out, groups=g),
            spec.pointwise(inner_out, spec.out_channels, groups=g, bias=spec.bias),
        )

    def factor(self, spec: LayerSpec, weight: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        parts = [tucker(w, (self.rank_out, self.rank_in), modes=(0, 1)) for w in weight]
        core = torch.stack([p.core for p in parts])  # (g, rank_out, rank_in, *k)
        U_out = torch.stack([p.factors[0] for p in parts])  # (g, o, rank_out)
        U_in = torch.stack([p.factors[1] for p in parts])  # (g, i, rank_in)
        ones = (1,) * len(spec.kernel)
        first = U_in.mT.reshape(*U_in.mT.shape, *ones)
        return first, core, U_out.reshape(*U_out.shape, *ones)


def _full(spec: LayerSpec) -> tuple[int, int]:
    _, o, i, *kernel = spec.weight_shape
    return min(o, i * prod(kernel)), min(i, o * prod(kernel))
