"""Low rank plus sparse: a low-rank layer beside one that keeps little, but exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from lowrank.compression.methods.channel_svd import ChannelSVD
from lowrank.compression.methods.shared.base import (
    Method,
    depthwise,
    is_whole,
    lost_energy,
    rank_grid,
)
from lowrank.compression.methods.shared.error_curves import refined_curve
from lowrank.compression.methods.shared.folding import even
from lowrank.compression.network.own_stages import Branches, SelectStage, SparseStage
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.decompositions.metric import (
    Metric,
    best_map,
    energy,
    fewest_outputs,
    identity,
    output_moment,
)
from lowrank.decompositions.sparse_part import (
    Mask,
    columns_curve,
    low_rank_plus_masked,
    split_columns,
    tails,
    worst_columns,
    worst_rows,
)

Sparsity = Literal["channels", "filters", "unstructured", "2:4"]


_WIDE = 2048
"""Fan-in beyond which the curve takes a single density and short fits."""


_N_RANKS = 8


_DEAR, _DEAREST = 1e8, 1e9
"""Multiplications of an alternation from which curves of single weights try fewer densities, and
from which one."""


@dataclass(frozen=True)
class LowRankSparse(Method):
    """y = L x + S x: a channel SVD of `rank` beside a sparse part of `density`.

    What S may hold:

    - "channels": a few whole input channels, as a small dense layer on them; L reads the
      others. Given the channels the fit is in closed form.
    - "filters": a few whole filters, exactly as they were; L makes the other outputs.
    - "unstructured": single weights, stored as values and places. It saves bytes and
      parameters, and no MACs: torch computes the zeros, and they are counted. So where MACs
      are limited it is no candidate, and where time is the clock decides.
    - "2:4": two of every four neighbours in a filter, likewise; the pattern that some GPUs
      run faster, which the CPU does not.

    `density=0` leaves L alone, the channel SVD with its kernel first; `rank=0` S alone.

    Args:
        rank: of L, per group of the layer, from 0 up.
        density: share of the channels, filters or weights that S keeps, 0..1; 0.5 for "2:4".
        sparsity: what S may hold.

    Source: Yu, Liu, Wang, Tao 2017, "On compressing deep models by low rank and sparse
        decomposition"; the alternation in an output metric as in OATS (Zhang and Papyan
        2024) and 3BASiL (Makni et al. 2025), here with its L-step in closed form.
    """

    name: ClassVar[str] = "low_rank_sparse"
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    rank: int
    density: float
    sparsity: Sparsity = "channels"

    @property
    def stored_sparse(self) -> bool:
        """True where S holds single weights, or a pattern of them."""
        return self.sparsity in ("unstructured", "2:4") and self.density > 0

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        if spec.kind == "embedding":
            return "a look-up has no input channels to keep"
        return depthwise(spec)

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[LowRankSparse]:
        _, o, i, *kernel = spec.weight_shape
        k, some = prod(kernel), i // 2
        forms = [
            cls(_full(spec, 0, "channels"), 0.0),
            cls(min(o, (i - some) * k), some / i),
            cls(0, 1.0),
            cls(min(o - o // 3, i * k), (o // 3) / o, "filters"),
            cls(min(o, i * k), 0.25, "unstructured"),
            cls(0, 1.0, "unstructured"),
            cls(min(o, i * k), 0.5, "2:4"),
        ]
        return [method for method in forms if method.check(spec) is None]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[LowRankSparse, float]]:
        metric = identity(weight) if metric is None else metric.formed
        yield from _channel_curves(spec, weight, metric, round_to)
        if spec.groups == 1:
            yield from _filter_curves(spec, weight, metric, round_to)
        yield from _entry_curves(spec, weight, metric, round_to, seed)

    def check(self, spec: LayerSpec) -> str | None:
        if self.sparsity not in get_args(Sparsity):
            return f"sparsity {self.sparsity!r} is none of {', '.join(get_args(Sparsity))}"
        if not isinstance(self.density, int | float) or not 0 <= self.density <= 1:
            return f"density {self.density!r} is outside 0..1"
        kept = self.kept(spec)
        if self.sparsity == "filters" and kept and (spec.groups > 1 or not self.rank):
            return "kept filters need a layer of one group, and rank 1 for the others"
        if self.sparsity == "2:4" and kept:
            fan_in = spec.n_weights // spec.out_channels
            if self.density != 0.5 or fan_in % 4:
                return f"2:4 means density 0.5 and a fan-in of fours, not {self.density}, {fan_in}"
        if not self.rank and not kept:
            return f"rank 0 and density {self.density} keep nothing"
        full, rank = _full(spec, kept, self.sparsity), self.rank
        if is_whole(rank) and 0 <= rank <= full:
            return None
        return f"rank {rank!r} is outside 0..{full} beside density {self.density}"

    def kept(self, spec: LayerSpec) -> int:
        """Channels or filters per group, or weights of the layer, that S keeps."""
        _, o, i, *_ = spec.weight_shape
        of = {"channels": i, "filters": o}.get(self.sparsity, spec.n_weights)
        return round(self.density * of)

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        kept = self.kept(spec)
        if not kept:
            return ChannelSVD(self.rank).stages(spec)
        if self.sparsity == "channels":
            return self._channel_stages(spec, kept)
        if self.sparsity == "filters":
            return self._filter_stages(spec, kept)
        pattern: Literal["unstructured", "2:4"] = (
            "2:4" if self.sparsity == "2:4" else "unstructured"
        )
        if not self.rank:
            return (SparseStage(spec, kept, pattern),)
        plain = spec.along(range(len(spec.kernel)), spec.in_channels, spec.out_channels,
                           groups=spec.groups)  # fmt: skip
        low = ChannelSVD(self.rank).stages(spec)
        return (Branches((low, (SparseStage(plain, kept, pattern),)), spec.groups),)

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Factor, ...]:
        if not self.kept(spec):
            svd = ChannelSVD(self.rank)
            return svd.factor(spec, weight, seed=seed, metric=metric, max_iter=max_iter)
        metric = identity(weight) if metric is None else metric.formed
        W, plain = metric.cast(weight.flatten(2)), identity(weight, metric.dtype)
        if self.sparsity == "channels":
            return self._fit_channels(spec, weight, W, metric, plain)
        if self.sparsity == "filters":
            return self._fit_filters(spec, weight, W, metric, plain)
        return self._fit_entries(spec, weight, W, metric, plain, max_iter)

    def _channel_stages(self, spec: LayerSpec, kept: int) -> tuple[Stage, ...]:
        g, n, axes = spec.groups, len(spec.kernel), range(len(spec.kernel))
        alone = not self.rank
        take = SelectStage(spec.in_channels, g * kept, g, n)
        S = spec.along(axes, g * kept, spec.out_channels, groups=g, bias=spec.bias and alone)
        if alone:
            return take, S
        rest = spec.in_channels - g * kept
        low = (
            SelectStage(spec.in_channels, rest, g, n),
            *_pair(spec, rest, self.rank, spec.out_channels, spec.bias),
        )
        return (Branches((low, (take, S)), g),)

    def _filter_stages(self, spec: LayerSpec, kept: int) -> tuple[Stage, ...]:
        low = _pair(spec, spec.in_channels, self.rank, spec.out_channels - kept, False)
        S = spec.along(range(len(spec.kernel)), spec.in_channels, kept)
        both = Branches((low, (S,)), 1, joined=True)
        n = spec.out_channels
        return both, SelectStage(n, n, 1, len(spec.kernel), bias=spec.bias)

    def _fit_channels(
        self, spec: LayerSpec, weight: Tensor, W: Tensor, metric: Metric, plain: Metric
    ) -> tuple[Factor, ...]:
        g, o, i, *kernel = spec.weight_shape
        kept, K = self.kept(spec), prod(kernel)
        sets = [
            worst_columns(W, metric, kept, K, _reference(spec)),
            worst_columns(W, metric, kept, K, self.rank),
            worst_columns(W, plain, kept, K, self.rank),
        ]
        splits = [split_columns(W, metric, index, K) for index in _distinct(sets)]
        best = min(splits, key=lambda split: split.lost(self.rank))
        S, U, V = best.fit(self.rank)
        part = S.reshape(g, o, kept, *kernel).to(weight.dtype)
        if not self.rank:
            return best.kept, part
        low = _stages(spec, V, U, i - kept, weight.dtype)
        return (((best.rest, *low), (best.kept, part)),)

    def _fit_filters(
        self, spec: LayerSpec, weight: Tensor, W: Tensor, metric: Metric, plain: Metric
    ) -> tuple[Factor, ...]:
        _, o, i, *_ = spec.weight_shape
        kept = self.kept(spec)
        moment = (W @ metric.times(W).mT)[0]
        sets = [
            worst_rows(moment, metric, kept, _reference(spec)),
            worst_rows(moment, metric, kept, self.rank),
            worst_rows((W @ W.mT)[0], plain, kept, self.rank),
        ]
        rows = min(_distinct(sets), key=lambda r: _rows_lost(moment, metric, r)[self.rank - 1])
        rest = _others(rows, o)
        U, V = best_map(W[:, rest], _of_rows(metric, rest), self.rank)
        low = _stages(spec, V, U, i, weight.dtype)
        order = torch.cat([rest, rows]).argsort()[None]
        return (low, (weight[:, rows],)), order

    def _fit_entries(
        self,
        spec: LayerSpec,
        weight: Tensor,
        W: Tensor,
        metric: Metric,
        plain: Metric,
        max_iter: int | None,
    ) -> tuple[Factor, ...]:
        wide = W.shape[-1] > _WIDE
        n = (4 if wide else 40) if max_iter is None else max(1, min(40, max_iter // 4))
        mask: Mask = "2:4" if self.sparsity == "2:4" else self.kept(spec)
        start = None
        if metric.C.ndim == 3:
            start = low_rank_plus_masked(W, plain, self.rank, mask, n_steps=n)[2]
        U, V, S = low_rank_plus_masked(W, metric, self.rank, mask, n_steps=n, start=start)
        stage = self.stages(spec)[0]
        if isinstance(stage, Branches):
            last = stage.branches[1][0]
            assert isinstance(last, SparseStage)
            low = _stages(spec, V, U, spec.weight_shape[2], weight.dtype)
            return ((low, (last.sparse(S.to(weight.dtype)),)),)
        assert isinstance(stage, SparseStage)
        return (stage.sparse(S.to(weight.dtype)),)


def _pair(spec: LayerSpec, inputs: int, rank: int, outputs: int, bias: bool) -> tuple[Stage, ...]:
    """The two stages of a channel SVD with its kernel first, between other widths."""
    g, axes = spec.groups, range(len(spec.kernel))
    return (
        spec.along(axes, inputs, g * rank, groups=g),
        spec.pointwise(g * rank, outputs, groups=g, bias=bias),
    )


def _stages(
    spec: LayerSpec, V: Tensor, U: Tensor, channels: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Rows V (g, r, channels * K) and columns U (g, o, r) as the weights of `_pair`."""
    g, r, _ = V.shape
    V, U = even(V, U)
    ones = (1,) * len(spec.kernel)
    first = V.reshape(g, r, channels, *spec.kernel)
    return first.to(dtype), U.reshape(g, -1, r, *ones).to(dtype)


def _full(spec: LayerSpec, kept: int, sparsity: Sparsity) -> int:
    """The largest rank of L beside what S keeps."""
    _, o, i, *kernel = spec.weight_shape
    K = prod(kernel)
    if sparsity == "channels":
        return min(o, (i - kept) * K)
    return min(o - kept if sparsity == "filters" else o, i * K)


def _reference(spec: LayerSpec) -> int:
    """The rank at which the curves decide what is kept."""
    return max(1, _full(spec, 0, "channels") // 4)


def _distinct(sets: list[Tensor]) -> list[Tensor]:
    return [s for k, s in enumerate(sets) if not any(torch.equal(s, t) for t in sets[:k])]


def _others(rows: Tensor, n: int) -> Tensor:
    free = torch.ones(n, dtype=torch.bool, device=rows.device)
    free[rows] = False
    return free.nonzero().flatten()


def _of_rows(metric: Metric, rows: Tensor) -> Metric:
    if metric.G is None:
        return metric
    return Metric(metric.C, metric.G[:, rows[:, None], rows])


def _rows_lost(moment: Tensor, metric: Metric, rows: Tensor) -> list[float]:
    """Squared error at rank 1, 2, ... of the rows that are not kept; moment is W C W^T."""
    rest = _others(rows, moment.shape[0])
    S = moment[rest[:, None], rest]
    if metric.G is not None:
        R = _of_rows(metric, rest).root_of_G[0]
        S = R.mT @ S @ R
    values = torch.linalg.eigvalsh((S + S.mT) / 2).flip(-1).clamp_min(0)
    return [float(values.sum()) * lost for lost in lost_energy(values.sqrt()[None])]


def _ranks(spec: LayerSpec, density: float, sparsity: Sparsity, round_to: int) -> list[int]:
    """A few ranks beside a density at which there are fewer weights than before."""
    one, two = (LowRankSparse(r, density, sparsity) for r in (1, 2))
    full = _full(spec, one.kept(spec), sparsity)
    if full < 2:
        return []
    first, second = (sum(s.n_weights for s in m.stages(spec)) for m in (one, two))
    top = min(full, 1 + (spec.n_weights - first) // max(1, second - first))
    return rank_grid(top, round_to=round_to, limit=_N_RANKS) if top > 0 else []


def _densities(spec: LayerSpec, n: int, shares: tuple[float, ...]) -> list[float]:
    """Shares of n channels or filters, as whole numbers of them, over n."""
    wide = spec.n_weights // spec.out_channels > _WIDE
    chosen = shares[1:2] if wide else shares
    return sorted({max(1, round(s * n)) / n for s in chosen if 0 < round(s * n) < n})


def _channel_curves(
    spec: LayerSpec, weight: Tensor, metric: Metric, round_to: int
) -> Iterator[tuple[LowRankSparse, float]]:
    _, _, i, *kernel = spec.weight_shape
    W, K = fewest_outputs(weight.flatten(2), metric), prod(kernel)
    whole = energy(weight, metric) or 1.0
    metric = replace(metric, G=None)
    product = metric.times(W)
    for density in _densities(spec, i, (1 / 16, 1 / 8, 1 / 4, 1 / 2)):
        kept = LowRankSparse(0, density).kept(spec)
        index = worst_columns(W, metric, kept, K, _reference(spec), product=product)
        errors = columns_curve(W, product, metric, index, K)
        yield LowRankSparse(0, density), errors[0] / whole
        for rank in _ranks(spec, density, "channels", round_to):
            yield LowRankSparse(rank, density), errors[rank] / whole


def _filter_curves(
    spec: LayerSpec, weight: Tensor, metric: Metric, round_to: int
) -> Iterator[tuple[LowRankSparse, float]]:
    W = metric.cast(weight.flatten(2))
    moment = (W @ metric.times(W).mT)[0]
    whole = energy(weight, metric) or 1.0
    for density in _densities(spec, spec.out_channels, (1 / 16, 1 / 8, 1 / 4)):
        kept = LowRankSparse(1, density, "filters").kept(spec)
        rows = worst_rows(moment, metric, kept, _reference(spec))
        errors = _rows_lost(moment, metric, rows)
        for rank in _ranks(spec, density, "filters", round_to):
            yield LowRankSparse(rank, density, "filters"), errors[rank - 1] / whole


def _entry_curves(
    spec: LayerSpec, weight: Tensor, metric: Metric, round_to: int, seed: int
) -> Iterator[tuple[LowRankSparse, float]]:
    metric = metric.to(torch.float32)  # the alternation needs no more
    W = metric.cast(weight.flatten(2))
    whole = energy(weight, metric) or 1.0
    alone = [lost / whole for lost in tails(output_moment(W, metric))]
    work = W.numel() * sum(W.shape[1:])  # of one step
    densities = (0.1, 0.2, 0.4, 0.05)[: 1 if work > _DEAREST else 3 if work > _DEAR else 4]
    kinds: list[tuple[Sparsity, float]] = [("unstructured", d) for d in densities]
    if W.shape[-1] % 4 == 0 and work <= _DEAREST:
        kinds.append(("2:4", 0.5))
    few = work > _DEAR
    for sparsity, density in kinds:
        offered = [LowRankSparse(0, density, sparsity)]
        offered += [
            LowRankSparse(rank, density, sparsity)
            for rank in _ranks(spec, density, sparsity, round_to)[::2]
        ]
        fits = {m.rank: m for m in offered if m.check(spec) is None}

        def error(rank: int, fits: dict[int, LowRankSparse] = fits) -> float:
            method = fits[rank]
            mask: Mask = "2:4" if method.sparsity == "2:4" else method.kept(spec)
            U, V, S = low_rank_plus_masked(W, metric, rank, mask, n_steps=1 if few else 2)
            return metric.error(W - U @ V - S) / whole

        if fits:  # between them as the low-rank part alone goes from rank to rank
            curve = refined_curve(
                [r + 1 for r in fits], alone, lambda r: error(r - 1), n_fits=3 if few else 5
            )
            yield from ((fits[r - 1], lost) for r, lost in curve)
