"""CP: 1 x 1, one depthwise convolution per kernel axis, 1 x 1."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from lowrank.compression.layers import LayerSpec
from lowrank.compression.methods.base import (
    depthwise,
    kernel_axes,
    long_kernel,
    no_kernel,
    outside,
    rank_grid,
    worthwhile,
)
from lowrank.decompositions.cp import cp

_FITS = 5
"""Ranks at which the error curve is fitted; between them it is interpolated."""

_CURVE_SWEEPS = 25
"""Sweeps of those fits: one start, stopped early, for an error slightly too high."""

_TOP = 256
"""Largest rank on the curve: beyond it the fits take minutes, and on kernels so large the
channel SVD and Tucker-2 come closer. A plan may still ask for more."""


@dataclass(frozen=True)
class CP:
    """A 1 x 1 convolution to `rank` channels, depthwise ones per kernel axis, 1 x 1 back.

    The canonical polyadic decomposition of the weight, with factors of equal norm.

    Args:
        rank: number of components, per group.

    Source: Lebedev et al. 2015, "Speeding-up convolutional neural networks using fine-tuned
        CP-decomposition"; stabilised after Phan et al. 2020.
    """

    name: ClassVar[str] = "cp"
    rank: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 1, "the channel SVD with idle stages") or depthwise(spec)

    @classmethod
    def full_rank(cls, spec: LayerSpec) -> CP:
        return cls(_full(spec))

    @classmethod
    def candidates(
        cls, spec: LayerSpec, weight: Tensor, *, round_to: int, seed: int
    ) -> Iterable[tuple[CP, float]]:
        ranks = rank_grid(
            min(_TOP, worthwhile(cls(1), spec, _full(spec))), round_to=round_to, limit=48
        )
        if not ranks:
            return
        fitted = sorted({ranks[int(j)] for j in np.linspace(0, len(ranks) - 1, _FITS)})
        errors = [_fit_error(weight, rank, seed) for rank in fitted]
        errors = list(np.minimum.accumulate(errors))  # a larger rank can always do as well
        logs = np.log(np.maximum(errors, 1e-12))
        for rank in ranks:
            yield cls(rank), float(np.exp(np.interp(rank, fitted, logs)))

    def check(self, spec: LayerSpec) -> str | None:
        return outside("rank", self.rank, _full(spec), spec)

    def specs(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        g, inner = spec.groups, self.rank * spec.groups
        return (
            spec.pointwise(spec.in_channels, inner, groups=g),
            *(spec.along(axes, inner, inner, groups=inner) for axes in kernel_axes(spec)),
            spec.pointwise(inner, spec.out_channels, groups=g, bias=spec.bias),
        )

    def factor(self, spec: LayerSpec, weight: Tensor, *, seed: int) -> tuple[Tensor, ...]:
        groups = [_balanced_factors(w, self.rank, seed) for w in weight]
        out, inp, *along = (torch.stack(f) for f in zip(*groups, strict=True))
        ones = (1,) * len(spec.kernel)
        stages = [inp.mT.reshape(*inp.mT.shape, *ones)]  # (g, r, i, 1...)
        for axes, F in zip(kernel_axes(spec), along, strict=True):
            extent = [k if a in axes else 1 for a, k in enumerate(spec.kernel)]
            stages.append(F.mT.reshape(-1, 1, 1, *extent))  # (g * r, 1, 1, *extent)
        return (*stages, out.reshape(*out.shape, *ones))


def _balanced_factors(w: Tensor, rank: int, seed: int) -> list[Tensor]:
    """CP factors of (o, i, *k) without the axes of extent 1, all of equal column norms."""
    return list(cp(long_kernel(w), rank, seed=seed).balanced())


def _fit_error(weight: Tensor, rank: int, seed: int) -> float:
    energy = float(weight.double().square().sum())
    lost = sum(_squared_error(w, rank, seed) for w in weight)
    return lost / energy if energy else 0.0


def _squared_error(w: Tensor, rank: int, seed: int) -> float:
    w = long_kernel(w)
    fit = cp(w, rank, n_starts=1, max_iter=_CURVE_SWEEPS, seed=seed)
    return fit.error(w) ** 2 * float(w.double().square().sum())


def _full(spec: LayerSpec) -> int:
    """A rank at which every tensor of this shape is exact."""
    _, *shape = spec.weight_shape
    return prod(shape) // max(shape)
