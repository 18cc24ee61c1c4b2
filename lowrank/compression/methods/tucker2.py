"""Tucker-2: 1 x 1, a small k x k core, 1 x 1."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import Method, depthwise, no_kernel, outside, rank_grid
from lowrank.compression.methods.shared.error_curves import n_refined, refined_curve
from lowrank.compression.methods.shared.folding import (
    affordable,
    even,
    first_stage,
    nested_stages,
    places,
    spread_products,
)
from lowrank.compression.methods.shared.search import affords_search, fit_error, fit_stages
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric, best_last, best_map, energy, moments_of
from lowrank.decompositions.tucker import tucker, tucker_error_surface


@dataclass(frozen=True)
class Tucker2(Method):
    """Three convolutions: 1 x 1 to `rank_in`, the k x k core, 1 x 1 from `rank_out`.

    The Tucker decomposition of the weight in its two channel modes. With data the first
    two are fitted by variable projection from the leading directions of the inputs, the
    last in closed form.

    Args:
        rank_out: output channels of the core, per group.
        rank_in: input channels of the core, per group.

    Source: Kim et al. 2016, "Compression of deep CNNs for fast and low power mobile
        applications", section 3.
    """

    name: ClassVar[str] = "tucker2"
    rank_names: ClassVar[tuple[str, ...]] = ("rank_out", "rank_in")
    rank_out: int
    rank_in: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        return no_kernel(spec, 1, "the channel SVD with idle stages") or depthwise(spec)

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[Tucker2]:
        return [cls(*_full(spec))]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[Tucker2, float]]:
        full_out, full_in = _full(spec)
        ranks_out = rank_grid(full_out, round_to=round_to, limit=24)
        ranks_in = rank_grid(full_in, round_to=round_to, limit=24)
        if metric is not None:
            yield from _curve(spec, weight, metric, ranks_out, ranks_in, seed)
            return
        energies = weight.double().square().sum(dim=tuple(range(1, weight.ndim)))  # (g,)
        total = float(energies.sum())
        surface = sum(
            tucker_error_surface(w, (0, 1)).double() * e
            for w, e in zip(weight, energies, strict=True)
        )
        assert isinstance(surface, Tensor)
        lost = (surface / total if total else surface).clamp_min(0)  # (rank_out, rank_in)
        for rank_out in ranks_out:
            for rank_in in ranks_in:
                if _fit(rank_out, rank_in, spec):
                    yield cls(rank_out, rank_in), float(lost[rank_out - 1, rank_in - 1])

    def check(self, spec: LayerSpec) -> str | None:
        full_out, full_in = _full(spec)
        wrong = outside("rank_out", self.rank_out, full_out, spec)
        wrong = wrong or outside("rank_in", self.rank_in, full_in, spec)
        if wrong is None and not _fit(self.rank_out, self.rank_in, spec):
            places = prod(spec.kernel)
            return f"ranks {self.rank_out} and {self.rank_in} differ by more than {places} times"
        return wrong

    def stages(self, spec: LayerSpec) -> tuple[LayerSpec, ...]:
        g, axes = spec.groups, range(len(spec.kernel))
        inner_in, inner_out = self.rank_in * g, self.rank_out * g
        return (
            spec.pointwise(spec.in_channels, inner_in, groups=g),
            spec.along(axes, inner_in, inner_out, groups=g),
            spec.pointwise(inner_out, spec.out_channels, groups=g, bias=spec.bias),
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
        parts = [tucker(w, (self.rank_out, self.rank_in), modes=(0, 1)) for w in weight]
        core = torch.stack([p.core for p in parts])  # (g, rank_out, rank_in, *k)
        U_out = torch.stack([p.factors[0] for p in parts])  # (g, o, rank_out)
        U_in = torch.stack([p.factors[1] for p in parts])  # (g, i, rank_in)
        ones = (1,) * len(spec.kernel)
        first = U_in.mT.reshape(*U_in.mT.shape, *ones)
        return first, core, U_out.reshape(*U_out.shape, *ones)

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        first, core = free  # (g, rank_in, i), (g, rank_out, rank_in, K)
        return torch.einsum("gsrk,gri->gsik", core, first).flatten(2)

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterator[Sequence[Tensor]]:
        first = first_stage(spec, weight, metric, (), self.rank_in)
        yield first, self._best_core(spec, weight, metric, first)
        plain = self.factor(spec, weight, seed=seed)
        yield plain[0].flatten(2), plain[1].flatten(3)

    def _best_core(self, spec: LayerSpec, weight: Tensor, metric: Metric, first: Tensor) -> Tensor:
        """The core (g, rank_out, rank_in, K) that is best after the given first stage."""
        W = metric.cast(weight.flatten(2))
        S, P = spread_products(first, places(spec, ()), metric, W)
        reduced = best_last(S, P)  # (g, o, rank_in * K)
        inner = replace(metric, C=(S + S.mT) / 2, rows=None)
        return best_map(reduced, inner, self.rank_out)[1].unflatten(-1, (self.rank_in, -1))

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        first, core = free
        Q, R = torch.linalg.qr(first.mT)  # orthonormal rows, as without data
        core = torch.einsum("gsrk,gqr->gsqk", core, R)
        core, last = even(core, last)
        g, _, i, *kernel = spec.weight_shape
        ones = (1,) * len(kernel)
        return (
            Q.mT.reshape(g, self.rank_in, i, *ones),
            core.reshape(*core.shape[:3], *kernel),
            last.reshape(*last.shape, *ones),
        )


def _curve(
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    ranks_out: Sequence[int],
    ranks_in: Sequence[int],
    seed: int,
) -> Iterator[tuple[Tucker2, float]]:
    """Exact errors for nested first stages, lowered by what fits along the diagonal gain."""
    beside = {r: [q for q in ranks_out if _fit(q, r, spec)] for r in ranks_in}
    ranks_in = [r for r in ranks_in if beside[r]]
    if not ranks_in:
        return
    width = prod(spec.kernel)
    most = affordable(metric, width, _full(spec)[1])
    ranks_in = [r for r in ranks_in if r <= most] or ranks_in[:1]
    N = nested_stages(spec, weight, metric, (), max(most, ranks_in[-1]))
    steps = moments_of(N, width, ranks_in)  # (ranks, g, o, o)
    whole = energy(weight, metric) or 1.0
    lost = {}
    for rank_in, step in zip(ranks_in, steps, strict=True):
        kept = torch.linalg.eigvalsh(step).flip(-1).clamp_min(0).sum(0).cumsum(0)
        for rank_out in beside[rank_in]:
            explained = float(kept[min(rank_out, len(kept)) - 1])
            lost[rank_out, rank_in] = max(0.0, 1 - explained / whole)

    full_in = _full(spec)[1]

    def share(rank: int) -> tuple[int, int]:
        at = rank / full_in
        return min(beside[rank], key=lambda r: abs(r - at * ranks_out[-1])), rank

    def error(rank: int) -> float:
        method = Tucker2(*share(rank))
        return fit_error(method, spec, weight, metric, seed=seed, max_iter=10) / whole

    middle = [r for r in ranks_in if r <= 0.75 * ranks_in[-1]] or list(ranks_in)
    diagonal = [
        lost[share(min(ranks_in, key=lambda q: abs(q - r)))] for r in range(1, middle[-1] + 1)
    ]
    half = Tucker2(*share(middle[len(middle) // 2]))
    search = error if affords_search(half, spec, metric) else None
    gained = dict(refined_curve(middle, diagonal, search, n_fits=n_refined(metric)))
    for (rank_out, rank_in), value in lost.items():
        at = min(rank_in, middle[-1])
        before = diagonal[at - 1]
        yield Tucker2(rank_out, rank_in), value * (gained[at] / before if before > 0 else 1.0)


def _fit(rank_out: int, rank_in: int, spec: LayerSpec) -> bool:
    """Whether the core (rank_out, rank_in, *kernel) can be of these ranks: further channels on
    one side would be sums of the others."""
    places = prod(spec.kernel)
    return rank_out <= rank_in * places and rank_in <= rank_out * places


def _full(spec: LayerSpec) -> tuple[int, int]:
    _, o, i, *kernel = spec.weight_shape
    return min(o, i * prod(kernel)), min(i, o * prod(kernel))
