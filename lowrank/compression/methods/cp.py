"""CP: 1 x 1, one depthwise convolution per kernel axis, 1 x 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
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
from lowrank.compression.methods.shared.error_curves import fitted_curve, likened_curve
from lowrank.compression.methods.shared.search import fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.cp import cp
from lowrank.decompositions.factors import CPFactors
from lowrank.decompositions.metric import Metric, energy

Kernel = Literal["separable", "whole"]


_CURVE_SWEEPS = 25
"""Sweeps of fits for curves: one start, stopped early, for an error slightly too high."""


_DENSE = 256
"""Up to this rank the curve has most of its ranks; beyond it a few, to what saves weights."""


_CURVE_WORK, _FIT_WORK = 2e10, 4e11
"""Multiplications that the sweeps of a fit may take, for a curve and in earnest: fewer sweeps at
high ranks, where the start, orthogonal components of the weight's slices, is near the end."""


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

        def error(rank: int, kernel: Kernel) -> float:
            if metric is None or whole is None:
                return _fit_error(weight, rank, kernel, seed)
            method = cls(rank, kernel)
            d = prod(weight.shape[2:])
            n = min(40, int(_CURVE_WORK / (3 * len(weight) * rank * d * d)))
            return fit_error(method, spec, weight, metric, seed=seed, max_iter=n) / whole

        kernels: tuple[Kernel, ...] = ("whole", "separable")
        known: dict[int, float] = {}
        for kernel in kernels if len(kernel_axes(spec)) > 1 else kernels[1:]:
            ranks = _ranks(worthwhile(cls(1, kernel), spec, _full(spec, kernel)), round_to)
            if ranks:
                curve = partial(error, kernel=kernel)
                known = dict(
                    likened_curve(ranks, known, curve)
                    if known
                    else fitted_curve(ranks, curve, n_fits=7 if ranks[-1] > _DENSE else 6)
                )
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
        fits = [_quick(w, self.rank, self.kernel, seed) for w in weight]
        columns = zip(*(f.balanced()[1:] for f in fits), strict=True)
        yield [torch.stack(c).mT for c in columns]

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


def _ranks(top: int, round_to: int) -> list[int]:
    """Ranks to `top`: 48 up to 256, and two dozen beyond, which are dear to fit."""
    low = rank_grid(min(_DENSE, top), round_to=round_to, limit=48)
    high = rank_grid(top, round_to=round_to, limit=24) if top > _DENSE else []
    last = [top // round_to * round_to] if high else []
    return low + [r for r in sorted({*high, *last}) if r > _DENSE]


def _quick(w: Tensor, rank: int, kernel: Kernel, seed: int) -> CPFactors:
    """One start, stopped early: for curves, and as the start of a fit to data."""
    T = _tensor(w, kernel)
    n = min(_CURVE_SWEEPS, _affordable(T, rank, _CURVE_WORK))
    return cp(T, rank, n_starts=1, max_iter=n, seed=seed)


def _earnest(w: Tensor, rank: int, kernel: Kernel, seed: int) -> CPFactors:
    """The fit to the weight alone; from one start where sweeps are dear."""
    T = _tensor(w, kernel)
    n = _affordable(T, rank, _FIT_WORK)
    return cp(T, rank, n_starts=2 if n >= 100 else 1, max_iter=min(100, n), seed=seed)


def _affordable(T: Tensor, rank: int, work: float) -> int:
    """How many sweeps of alternating least squares at a rank take so many multiplications."""
    solve = T.ndim * rank**3 / 3 + sum(T.shape) * rank**2
    return max(1, int(work / (2 * T.numel() * rank + solve)))


def _fit_error(weight: Tensor, rank: int, kernel: Kernel, seed: int) -> float:
    energies = [float(w.double().square().sum()) for w in weight]
    fits = [_quick(w, rank, kernel, seed).error(_tensor(w, kernel)) for w in weight]
    lost = sum(e * f**2 for e, f in zip(energies, fits, strict=True))
    return lost / (sum(energies) or 1.0)


def _full(spec: LayerSpec, kernel: Kernel) -> int:
    """A rank at which every tensor of this shape is exact."""
    _, o, i, *places = spec.weight_shape
    shape = (o, i, *places) if kernel == "separable" else (o, i, prod(places))
    return prod(shape) // max(shape)
