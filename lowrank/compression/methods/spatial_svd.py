"""Spatial SVD: a k x k convolution becomes k x 1, then 1 x k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor

from lowrank.compression.methods.shared.base import (
    Method,
    lost_energy,
    no_kernel,
    outside,
    rank_grid,
    worthwhile,
)
from lowrank.compression.methods.shared.error_curves import (
    asks_rivals,
    least_of_rivals,
    n_refined,
    nested_curve,
    refined_curve,
)
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
from lowrank.decompositions.metric import Metric, energy
from lowrank.decompositions.svd import singular_values, truncated_svd

_FAR, _FAR_AS_IT_IS = 1.4, 1.1
"""Ratios of squared errors from which other methods make a curve needless: where a search would
follow, and where none is affordable."""


@dataclass(frozen=True)
class SpatialSVD(Method):
    """Two convolutions: along one axis of the kernel, then along the others.

    The weight is folded to (out * other axes, in * first axis) and cut at `rank`, so this
    is the best such pair in the Frobenius norm. On a depthwise layer each filter becomes a
    pair of one-dimensional ones. In three dimensions axis 0 gives the (2 + 1)-d form.
    With data the pair is fitted by variable projection, the second one in closed form.

    Args:
        rank: channels in between, per group, 1..min of the folded matrix.
        axis: spatial axis that the first convolution works on.

    Source: Jaderberg, Vedaldi, Zisserman 2014, scheme 2.
    """

    name: ClassVar[str] = "spatial_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    rank: int
    axis: int = 0

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 2, "the layer itself with an idle stage")

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[SpatialSVD]:
        return [cls(_full(spec, axis), axis) for axis in range(len(spec.kernel))]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[SpatialSVD, float]]:
        for axis in _axes(spec, metric):
            top = worthwhile(cls(1, axis), spec, _full(spec, axis))
            ranks = rank_grid(top, round_to=round_to, limit=64)
            if metric is None:
                lost = lost_energy(singular_values(split_off(weight, [axis])))
                yield from ((cls(rank, axis), lost[rank - 1]) for rank in ranks)
            elif ranks:
                yield from _curve(spec, weight, metric, axis, ranks, seed)

    def check(self, spec: LayerSpec) -> str | None:
        if self.axis not in range(len(spec.kernel)):
            return f"axis {self.axis} is outside 0..{len(spec.kernel) - 1}"
        return outside("rank", self.rank, _full(spec, self.axis), spec)

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        inner, g = self.rank * spec.groups, spec.groups
        rest = [a for a in range(len(spec.kernel)) if a != self.axis]
        return (
            spec.along([self.axis], spec.in_channels, inner, groups=g),
            spec.along(rest, inner, spec.out_channels, groups=g, bias=spec.bias),
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
        if metric is not None:
            return fit_stages(
                self, spec, weight, metric,
                seed=seed, max_iter=max_iter, reads=places(spec, [self.axis]),
            )  # fmt: skip
        U, Vh = truncated_svd(
            split_off(weight, [self.axis]), self.rank
        ).balanced()  # (g, o * rest, r), (g, r, i * k)
        g, o, *_ = spec.weight_shape
        first, rest = self._kernels(spec)
        last = U.reshape(g, o, *rest, self.rank).movedim(-1, 2)  # (g, o, r, *rest)
        return Vh.reshape(g, self.rank, -1, *first), last

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        return spread(free[0], spec.kernel, [self.axis])

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        yield (first_stage(spec, weight, metric, [self.axis], self.rank),)
        yield (self.factor(spec, weight, seed=seed)[0].flatten(2),)

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        g, o, i, *_ = spec.weight_shape
        first, rest = self._kernels(spec)
        return even(free[0].reshape(g, self.rank, i, *first), last.reshape(g, o, self.rank, *rest))

    def _kernels(self, spec: LayerSpec) -> tuple[list[int], list[int]]:
        """Kernels of the first and the second convolution."""
        first = [k if a == self.axis else 1 for a, k in enumerate(spec.kernel)]
        rest = [1 if a == self.axis else k for a, k in enumerate(spec.kernel)]
        return first, rest


def _axes(spec: LayerSpec, metric: Metric | None) -> list[int]:
    """The axes worth a curve; where that is dear, one of those of the same extent."""
    long = [a for a, k in enumerate(spec.kernel) if k > 1]
    if metric is None or affords_search(
        SpatialSVD(max(1, _full(spec, long[0]) // 4)), spec, metric
    ):
        return long
    return [a for a in long if spec.kernel.index(spec.kernel[a]) == a]


def _curve(
    spec: LayerSpec, weight: Tensor, metric: Metric, axis: int, ranks: Sequence[int], seed: int
) -> Iterator[tuple[SpatialSVD, float]]:
    width = prod(spec.kernel) // spec.kernel[axis]
    most = affordable(metric, width, ranks[-1])
    ranks = [r for r in ranks if r <= most] or ranks[:1]
    reads = places(spec, [axis])

    def nested_to(rank: int) -> list[float]:
        N = nested_stages(spec, weight, metric, [axis], rank, most=ranks[-1])
        return nested_curve(weight, metric, N, width)

    searched = affords_search(SpatialSVD(max(1, ranks[-1] // 2), axis), spec, metric)
    if asks_rivals(weight, metric):
        first = SpatialSVD(ranks[len(ranks) // 3], axis)
        rival = least_of_rivals(metric, sum(s.n_weights for s in first.stages(spec)))
        far = _FAR if searched else _FAR_AS_IT_IS
        if rival is not None and (lost := nested_to(first.rank)[-1]) > far * rival:
            yield first, lost
            return
    nested = nested_to(ranks[-1])
    whole = energy(weight, metric) or 1.0

    def error(rank: int) -> float:
        method = SpatialSVD(rank, axis)
        found = fit_error(method, spec, weight, metric, seed=seed, max_iter=10, reads=reads)
        return found / whole

    search = error if searched else None
    for rank, lost in refined_curve(ranks, nested, search, n_fits=n_refined(metric)):
        yield SpatialSVD(rank, axis), lost


def _full(spec: LayerSpec, axis: int) -> int:
    _, o, i, *kernel = spec.weight_shape
    k = kernel[axis]
    return min(o * prod(kernel) // k, i * k)
