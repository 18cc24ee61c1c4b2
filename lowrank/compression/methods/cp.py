"""CP: 1 x 1, one depthwise convolution per kernel axis, 1 x 1."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    kernel_axes,
    long_kernel,
    no_kernel,
    outside,
    rank_grid,
    worthwhile,
)
from lowrank.compression.methods.shared.error_curves import (
    asks_rivals,
    fitted_curve,
    least_of_rivals,
    likened_curve,
)
from lowrank.compression.methods.shared.search import CURVE, fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.cp import cp
from lowrank.decompositions.factors import CPFactors
from lowrank.decompositions.metric import WORK, Metric, changes, energy

Kernel = Literal["separable", "whole"]


_CURVE_SWEEPS = 25
"""Sweeps of fits for curves: one start, stopped early, for an error slightly too high."""


_START_SWEEPS = 10
"""Sweeps of what a fit to data only starts from."""


_DENSE = 256
"""Up to this rank the curve has most of its ranks; beyond it a few, to what saves weights."""


_SEARCHED = 40
"""Iterations of a fit for the curve in a metric."""


_FARTHER, _FAR = 1.6, 1.25
"""Ratios of squared errors from which other methods make a curve needless: before the search of
its first fit, and after it."""


_CHEAP = 12
"""Evaluations at the highest rank that a curve must afford to have more than two fits."""


_SAVED = 0.02
"""Share of a component's weights from which saving them by a separable kernel is worth a curve."""


_LEAST_RANK = 32
"""A curve goes up to this rank, whatever it costs."""


_CURVE_WORK, _FIT_WORK = 2e10, 4e11
"""Multiplications that the sweeps of a fit to the weight alone may take, for a curve and in
earnest: fewer sweeps at high ranks, where the start, orthogonal components of the weight's
slices, is near the end."""


@dataclass(frozen=True)
class CP(Method):
    """A 1 x 1 convolution to `rank` channels, depthwise ones in between, 1 x 1 back.

    The canonical polyadic decomposition of the weight, with factors of equal norm. With data
    all but the last are fitted by variable projection, from the decomposition of the weight.

    Args:
        rank: number of components, per group.
        kernel: "separable" has one depthwise convolution for each kernel axis; "whole" has a
            single one over the whole kernel, which costs a little more and comes closer: the
            decomposition of (out, in, kernel) with the kernel flattened.

    Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using fine-tuned
        CP-decomposition"; stabilised after Phan et al. 2020.
    """

    name: ClassVar[str] = "cp"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    rank: int
    kernel: Kernel = "separable"

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 1, "the channel SVD with idle stages") or depthwise(spec)

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[CP]:
        kernels: tuple[Kernel, ...] = ("separable", "whole")
        return [cls(_full(spec, k), k) for k in kernels[: len(kernel_axes(spec))]]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[CP, float]]:
        whole = None if metric is None else energy(weight, metric) or 1.0

        alone = cache(partial(_fit_error, weight, seed=seed))

        @cache
        def error(kernel: Kernel, most: int, rank: int) -> float:
            if metric is None or whole is None:
                return alone(rank, kernel)
            method = cls(rank, kernel)
            return fit_error(method, spec, weight, metric, seed=seed, max_iter=most) / whole

        known: dict[int, float] = {}
        for kernel in _kernels(spec, metric):
            top = worthwhile(cls(1, kernel), spec, _full(spec, kernel))
            ranks = _ranks(_fitted(weight, kernel, metric, top), round_to)
            if ranks:
                curve = partial(error, kernel, _SEARCHED)
                first = ranks[len(ranks) // 3]
                outdone = None
                if metric is not None:
                    outdone = _outdone(spec, weight, metric, first, kernel, error)
                if outdone is not None:
                    known = {first: outdone}
                elif known:
                    known = dict(likened_curve(ranks, known, curve, n_fits=_n_likened(metric)))
                else:
                    known = dict(fitted_curve(ranks, curve, n_fits=_n_fits(ranks, metric)))
                yield from ((cls(rank, kernel), lost) for rank, lost in known.items())

    def check(self, spec: LayerSpec) -> str | None:
        if self.kernel not in ("separable", "whole"):
            return f"kernel {self.kernel!r} is neither 'separable' nor 'whole'"
        return outside("rank", self.rank, _full(spec, self.kernel), spec)

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        g, inner = spec.groups, self.rank * spec.groups
        return (
            spec.pointwise(spec.in_channels, inner, groups=g),
            *(spec.along(axes, inner, inner, groups=inner) for axes in self._axes(spec)),
            spec.pointwise(inner, spec.out_channels, groups=g, bias=spec.bias),
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
            return fit_stages(self, spec, weight, metric, seed=seed, max_iter=max_iter)
        groups = [_earnest(w, self.rank, self.kernel, seed).balanced() for w in weight]
        out, *free = (torch.stack(f) for f in zip(*groups, strict=True))  # (g, n, r)
        return self._shaped(spec, [f.mT for f in free], out)

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        M = free[0]  # (g, r, i)
        for F in free[1:]:
            M = M[..., None] * F.unflatten(-1, ((1,) * (M.ndim - 2) + (-1,)))
        return M.flatten(2)

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        key = ("cp", self, seed, changes(weight))
        kept = metric.asides.get(key)
        if kept is None or kept[0] is not weight:
            work = CURVE * metric.work
            fits = [_quick(w, self.rank, self.kernel, seed, work) for w in weight]
            columns = zip(*(f.balanced()[1:] for f in fits), strict=True)
            kept = metric.asides[key] = weight, *(torch.stack(c).mT for c in columns)
        yield kept[1:]

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        rows = [*free, last.mT]
        norms = torch.stack([f.norm(dim=-1) for f in rows]).clamp_min(1e-30)  # (n, g, r)
        level = norms.log().mean(0).exp()
        even = [f * (level / n)[..., None] for f, n in zip(rows, norms, strict=True)]
        return self._shaped(spec, even[:-1], even[-1].mT)

    def _axes(self, spec: LayerSpec) -> list[list[int]]:
        """Kernel axes of each depthwise stage."""
        axes = kernel_axes(spec)
        return axes if self.kernel == "separable" else [sorted(a for stage in axes for a in stage)]

    def _shaped(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        """Stages from rows (g, r, n) of the inner factors and columns (g, o, r) of the last."""
        ones = (1,) * len(spec.kernel)
        stages = [free[0].reshape(*free[0].shape, *ones)]  # (g, r, i, 1...)
        for axes, F in zip(self._axes(spec), free[1:], strict=True):
            extent = [k if a in axes else 1 for a, k in enumerate(spec.kernel)]
            stages.append(F.reshape(-1, 1, 1, *extent))  # (g * r, 1, 1, *extent)
        return (*stages, last.reshape(*last.shape, *ones))


def _tensor(w: Tensor, kernel: Kernel) -> Tensor:
    """What is decomposed: (o, i, *k) without axes of extent 1, or (o, i, K)."""
    return long_kernel(w) if kernel == "separable" else w.flatten(2)


def _n_fits(ranks: Sequence[int], metric: Metric | None) -> int:
    """How many fits a curve stands on."""
    if metric is not None and metric.work < WORK:
        return 4 if CURVE * metric.work >= _CHEAP * ranks[-1] * metric.per_row else 2
    return 7 if ranks[-1] > _DENSE else 6


def _n_likened(metric: Metric | None) -> int:
    return 2 if metric is not None and metric.work < WORK else 3


def _outdone(
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    rank: int,
    kernel: Kernel,
    error: Callable[[Kernel, int, int], float],
) -> float | None:
    """The error at a rank where what was found before, of no more weights, is far closer, so that
    no curve is needed; else None."""
    if not asks_rivals(weight, metric):
        return None
    rival = least_of_rivals(metric, _n_weights(CP(rank, kernel), spec))
    if rival is None:
        return None
    for most, far in ((0, _FARTHER), (_SEARCHED, _FAR)):
        if (lost := error(kernel, most, rank)) > far * rival:
            return lost
    return None


def _n_weights(method: Method, spec: LayerSpec) -> int:
    return sum(s.n_weights for s in method.stages(spec))


def _kernels(spec: LayerSpec, metric: Metric | None) -> tuple[Kernel, ...]:
    """The kernels worth a curve; of wide layers the whole one, which costs hardly more."""
    if len(kernel_axes(spec)) < 2:
        return ("separable",)
    _, o, i, *kernel = spec.weight_shape
    saved = (prod(kernel) - sum(kernel)) / (o + i + prod(kernel))
    wide = metric is not None and metric.work < WORK and saved < _SAVED
    return ("whole",) if wide else ("whole", "separable")


def _ranks(top: int, round_to: int) -> list[int]:
    """Ranks to `top`: 48 up to 256, and two dozen beyond, which are dear to fit."""
    low = rank_grid(min(_DENSE, top), round_to=round_to, limit=48)
    high = rank_grid(top, round_to=round_to, limit=24) if top > _DENSE else []
    last = [top // round_to * round_to] if high else []
    return low + [r for r in sorted({*high, *last}) if r > _DENSE]


def _quick(w: Tensor, rank: int, kernel: Kernel, seed: int, work: float) -> CPFactors:
    """One start, stopped early: for curves, and as the start of a fit to data."""
    T = _tensor(w, kernel)
    most = _CURVE_SWEEPS if work >= CURVE * WORK else _START_SWEEPS
    n = min(most, _affordable(T, rank, work))
    return cp(T, rank, n_starts=1, max_iter=n, seed=seed)


def _earnest(w: Tensor, rank: int, kernel: Kernel, seed: int) -> CPFactors:
    """The fit to the weight alone; from one start where sweeps are dear."""
    T = _tensor(w, kernel)
    n = _affordable(T, rank, _FIT_WORK)
    return cp(T, rank, n_starts=2 if n >= 100 else 1, max_iter=min(100, n), seed=seed)


def _fitted(weight: Tensor, kernel: Kernel, metric: Metric | None, most: int) -> int:
    """The largest rank, of at most so many, of which a curve may have a fit."""
    if metric is None:
        T, ranks = _tensor(weight[0], kernel), range(_LEAST_RANK, most + 1)
        dear = bisect_left(ranks, _CURVE_WORK / len(weight), key=lambda rank: _sweep(T, rank))
        return min(most, _LEAST_RANK + dear)
    sweep = 2 * weight[0].numel() + metric.per_row  # for each component, and one evaluation
    most_of_all = int(CURVE * metric.work / (len(weight) * sweep))
    return min(most, max(_LEAST_RANK, most_of_all))


def _affordable(T: Tensor, rank: int, work: float) -> int:
    """How many sweeps of alternating least squares at a rank take so many multiplications."""
    return max(1, int(work / _sweep(T, rank)))


def _sweep(T: Tensor, rank: int) -> float:
    """Multiplications of one."""
    solve = T.ndim * rank**3 / 3 + sum(T.shape) * rank**2
    return 2 * T.numel() * rank + solve


def _fit_error(weight: Tensor, rank: int, kernel: Kernel, *, seed: int) -> float:
    energies = [float(w.double().square().sum()) for w in weight]
    work = _CURVE_WORK / len(weight)
    fits = [_quick(w, rank, kernel, seed, work).error(_tensor(w, kernel)) for w in weight]
    lost = sum(e * f**2 for e, f in zip(energies, fits, strict=True))
    return lost / (sum(energies) or 1.0)


def _full(spec: LayerSpec, kernel: Kernel) -> int:
    """A rank at which every tensor of this shape is exact."""
    _, o, i, *places = spec.weight_shape
    shape = (o, i, *places) if kernel == "separable" else (o, i, prod(places))
    return prod(shape) // max(shape)
