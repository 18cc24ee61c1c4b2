"""Spatial SVD: a k x k convolution becomes k x 1, then 1 x k."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from lowrank.compression.layers import LayerSpec
from lowrank.compression.methods.base import lost_energy, no_kernel, outside, rank_grid, worthwhile
from lowrank.decompositions.svd import singular_values, truncated_svd


@dataclass(frozen=True)
class SpatialSVD:
    """Two convolutions: along one axis of the kernel, then along the others.

    The weight is folded to (out * other axes, in * first axis) and cut at `rank`, so this
    is the best such pair in the Frobenius norm. On a depthwise layer each filter becomes a
    pair of one-dimensional ones. In three dimensions axis 0 gives the (2 + 1)-d form.

    Args:
        rank: channels in between, per group, 1..min of the folded matrix.
        axis: spatial axis that the first convolution works on.

    Source: Jaderberg, Vedaldi, Zisserman 2014, scheme 2.
    """

    name: ClassVar[str] = "spatial_svd"
    rank: int
    axis: int = 0

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 2, "the layer itself with an idle stage")

    @classmethod
    def full_rank(cls, spec: LayerSpec) -> SpatialSVD:
        return cls(_full(spec, 0))

    @classmethod
    def candidates(
        cls, spec: LayerSpec, weight: Tensor, *, round_to: int, seed: int
    ) -> Iterable[tuple[SpatialSVD, float]]:
        for axis in (a for a, k in enumerate(spec.kernel) if k > 1):
            lost = lost_energy(singular_values(_matrix(weight, axis)))
            top = worthwhile(cls(1, axis), spec, _full(spec, axis))
            for rank in rank_grid(top, round_to=round_to, limit=64):
                yield cls(rank, axis), lost[rank - 1]

    def check(self, spec: LayerSpec) -> str | None:
        if self.axis not in range(len(spec.kernel)):
            return f"axis {self.axis} is outside 0..{len(spec.kernel) - 1}"
        return outside("rank", self.rank, _full(spec, self.axis), spec)

    def specs(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        inner, g = self.rank * spec.groups, spec.groups
        rest = [a for a in range(len(spec.kernel)) if a != self.axis]
        return (
            spec.along([self.axis], spec.in_channels, inner, groups=g),
            spec.along(rest, inner, spec.out_channels, groups=g, bias=spec.bias),
        )

    def factor(self, spec: LayerSpec, weight: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        U, Vh = truncated_svd(
            _matrix(weight, self.axis), self.rank
        ).balanced()  # (g, o * rest, r), (g, r, i * k)
        g, o, i, *kernel = spec.weight_shape
        first = [k if a == self.axis else 1 for a, k in enumerate(kernel)]
        rest = [1 if a == self.axis else k for a, k in enumerate(kernel)]
        last = U.reshape(g, o, *rest, self.rank).movedim(-1, 2)  # (g, o, r, *rest)
        return Vh.reshape(g, self.rank, i, *first), last


def _matrix(weight: Tensor, axis: int) -> Tensor:
    """(g, o, i, *k) as (g, o * other axes, i * this axis)."""
    moved = weight.movedim((2, 3 + axis), (-2, -1))  # (g, o, *rest, i, k)
    return moved.flatten(-2).flatten(1, -2)


def _full(spec: LayerSpec, axis: int) -> int:
    _, o, i, *kernel = spec.weight_shape
    k = kernel[axis]
    return min(o * prod(kernel) // k, i * k)
