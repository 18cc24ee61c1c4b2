"""Tensor train: 1 x 1, one full convolution per kernel axis, 1 x 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    kernel_axes,
    long_kernel,
    no_kernel,
)
from lowrank.compression.methods.shared.search import fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric, energy
from lowrank.decompositions.tensor_train import tensor_train, tt_spectra

_LEVELS = 24
"""Error levels at which the ranks are chosen jointly."""


@dataclass(frozen=True)
class TensorTrain(Method):
    """1 x 1, then a one-dimensional convolution along each kernel axis, then 1 x 1.

    The tensor-train decomposition of the weight in the order (in, *kernel, out). With data
    all but the last core are fitted by variable projection, from that of the weight.

    Args:
        ranks: channels between the stages, per group; one more than there are kernel axes.

    Source: Oseledets 2011, algorithm 1 (TT-SVD); as layers, Garipov et al. 2016.
    """

    name: ClassVar[str] = "tensor_train"
    rank_names: ClassVar[tuple[str, ...]] = ("ranks",)
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ranks", tuple(self.ranks))

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 2, "the Tucker-2 form") or depthwise(spec)

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[TensorTrain]:
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
    ) -> Iterable[tuple[TensorTrain, float]]:
        spectra = [torch.stack(s) for s in zip(*map(_spectra, weight), strict=True)]
        tails = [_tail(s) for s in spectra]
        total = float(tails[0][0])
        found: dict[TensorTrain, float] = {}
        for level in torch.logspace(-4, 0, _LEVELS).tolist() if total else ():
            # each cut may lose the same share, as in TT-SVD with a prescribed accuracy
            ranks = [_rank_at(t, level * total / len(tails), round_to) for t in tails]
            ranks = _consistent(ranks, spec)
            lost = sum(float(t[r]) for t, r in zip(tails, ranks, strict=True))
            found.setdefault(cls(tuple(ranks)), lost / total)
        if metric is None:
            yield from found.items()
            return
        whole = energy(weight, metric) or 1.0
        for method in found:
            if sum(s.n_weights for s in method.stages(spec)) < spec.n_weights:
                lost = fit_error(method, spec, weight, metric, seed=seed, max_iter=10)
                yield method, lost / whole

    def check(self, spec: LayerSpec) -> str | None:
        full = _full(spec)
        if len(self.ranks) != len(full):
            return f"{len(self.ranks)} ranks were given, the layer takes {len(full)}"
        for r, f in zip(self.ranks, full, strict=True):
            if not (isinstance(r, int) and 1 <= r <= f):
                return f"ranks {self.ranks} are outside 1..{full}"
        if list(self.ranks) != _consistent(list(self.ranks), spec):
            return f"ranks {self.ranks} exceed what their neighbours can feed"
        return None

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        g, inner = spec.groups, [r * spec.groups for r in self.ranks]
        return (
            spec.pointwise(spec.in_channels, inner[0], groups=g),
            *(
                spec.along(axes, inner[j], inner[j + 1], groups=g)
                for j, axes in enumerate(kernel_axes(spec))
            ),
            spec.pointwise(inner[-1], spec.out_channels, groups=g, bias=spec.bias),
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
        trains = [tensor_train(_ordered(w), self.ranks).cores for w in weight]
        cores = [torch.stack(c) for c in zip(*trains, strict=True)]  # each (g, r, n, r')
        ones = (1,) * len(spec.kernel)
        first = cores[0].squeeze(1).mT  # (g, r, i)
        last = cores[-1].squeeze(3).mT  # (g, o, r)
        stages = [first.reshape(*first.shape, *ones)]
        for axes, core in zip(kernel_axes(spec), cores[1:-1], strict=True):
            extent = [k if a in axes else 1 for a, k in enumerate(spec.kernel)]
            moved = core.permute(0, 3, 1, 2)  # (g, r', r, k)
            stages.append(moved.reshape(*moved.shape[:3], *extent))
        return (*stages, last.reshape(*last.shape, *ones))

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        M = free[0].movedim(1, -1)  # (g, i, r)
        for core in free[1:]:  # (g, r', r, k)
            M = torch.einsum("g...r,gsrk->g...ks", M, core)
        return M.movedim(-1, 1).flatten(2)

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        first, *cores, _ = self.factor(spec, weight, seed=seed)
        yield [first.flatten(2), *(c.flatten(3) for c in cores)]

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        first, *cores = free
        Q, R = torch.linalg.qr(first.mT)  # all but the last with orthonormal rows, as TT-SVD
        ones = (1,) * len(spec.kernel)
        stages = [Q.mT.reshape(*Q.mT.shape, *ones)]
        for axes, core in zip(kernel_axes(spec), cores, strict=True):
            core = torch.einsum("gsrk,gqr->gsqk", core, R)  # (g, r', r, k)
            Q, R = torch.linalg.qr(core.flatten(2).mT)
            extent = [k if a in axes else 1 for a, k in enumerate(spec.kernel)]
            stages.append(Q.mT.reshape(*core.shape[:3], *extent))
        last = last @ R.mT
        return (*stages, last.reshape(*last.shape, *ones))


def _ordered(w: Tensor) -> Tensor:
    """(o, i, *k) as (i, *k, o), without the axes of extent 1."""
    return long_kernel(w).movedim(0, -1)


def _spectra(w: Tensor) -> tuple[Tensor, ...]:
    return tuple(tt_spectra(_ordered(w)))


def _tail(s: Tensor) -> Tensor:
    """Energy beyond rank 0, 1, ..., summed over the groups; s is (g, n)."""
    energy = s.double().square().sum(0)
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])


def _rank_at(tail: Tensor, allowed: float, round_to: int) -> int:
    rank = max(1, int((tail > allowed).sum()))
    rounded = max(round_to, rank // round_to * round_to)
    return min(rounded, len(tail) - 1)


def _full(spec: LayerSpec) -> tuple[int, ...]:
    _, o, i, *kernel = spec.weight_shape
    shape = [i, *(k for k in kernel if k > 1), o]
    left, right, full = 1, o * i, []
    for n in kernel:
        right *= n
    for n in shape[:-1]:
        left, right = left * n, right // n
        full.append(min(left, right))
    return tuple(full)


def _consistent(ranks: list[int], spec: LayerSpec) -> list[int]:
    """Ranks lowered to what the neighbouring ones can feed: r[j] <= r[j - 1] * n[j], and back."""
    _, o, i, *kernel = spec.weight_shape
    shape = [i, *(k for k in kernel if k > 1), o]
    out = list(ranks)
    for j in range(len(out)):
        out[j] = min(out[j], (out[j - 1] if j else 1) * shape[j])
    for j in reversed(range(len(out))):
        out[j] = min(out[j], (out[j + 1] if j + 1 < len(out) else 1) * shape[j + 1])
    return out
