"""Frequent words whole, the others of low rank."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lowrank.compression.methods.shared.base import Method, is_whole, lost_energy, rank_grid
from lowrank.compression.methods.shared.folding import even
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.compression.network.units import Bond
from lowrank.compression.network.words.split_table import SplitTableStage
from lowrank.decompositions.metric import Metric, best_map, identity

_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
"""Shares of the words that are tried whole."""


_FEW_SHARES = _SHARES[1::2]
"""The same for wider tables than `_WIDE`."""


_WIDE = 1024
"""Features from which the eigenproblem of each share is dear."""


_N_RANKS = 24
"""How many ranks are planned with beside each share."""


@dataclass(frozen=True)
class AdaptiveEmbedding(Method):
    """A table of which `kept` words stay as they are, and the others share `rank` directions.

    It serves an embedding alone, and one with the output head that reads its rows.

    Which are kept is decided by what their error would count: how often the calibration data
    has them, times what the low rank misses of their rows. The numbers of the words stay what
    they were; a table of places says where a word's row lies.

    Args:
        rank: of the other words' rows, from 1 up.
        kept: number of words that are whole, 1..words - 1.

    Source: Chen, Si, Li, Chelba, Hsieh 2018, "GroupReduce: block-wise low-rank approximation
        for neural language model shrinking"; Baevski and Auli 2019, "Adaptive input
        representations for neural language modeling".
    """

    name: ClassVar[str] = "adaptive_embedding"
    serves: ClassVar[tuple[Bond, ...]] = ("alone", "table", "scaled table")
    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    rank: int
    kept: int

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        if spec.kind != "embedding":
            return "it is no table of words"
        if spec.scale_grad_by_freq or spec.sparse:
            return "its gradients are sparse, or scaled by how often a word comes"
        if spec.in_channels < 2:
            return "it has a single word"
        return None

    @classmethod
    def variants(cls, spec: LayerSpec) -> Iterable[AdaptiveEmbedding]:
        kept = max(1, spec.in_channels // 8)
        return [cls(_full(spec, kept), kept)]

    @classmethod
    def candidates(
        cls,
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[AdaptiveEmbedding, float]]:
        metric = identity(weight) if metric is None else metric.formed
        W = metric.cast(weight.flatten(2))
        X, often = metric.left(W), metric.C
        moment = _moment(X, often)
        whole = float(moment.diagonal(dim1=1, dim2=2).sum()) or 1.0
        order = _order(spec, X, often, moment, _full(spec, 1) // 4)
        for kept in _offered(spec):
            most = _worthwhile(spec, kept)
            rest = moment - _moment(X[:, :, order[:kept]], often[:, order[:kept]])
            values = torch.linalg.eigvalsh((rest + rest.mT) / 2).flip(-1).clamp_min(0)
            left = float(values.sum()) / whole
            lost = lost_energy(values.sqrt())
            for rank in rank_grid(most, round_to=round_to, limit=_N_RANKS) if most > 0 else ():
                yield cls(rank, kept), left * lost[rank - 1]

    def check(self, spec: LayerSpec) -> str | None:
        if not is_whole(self.kept) or not 1 <= self.kept < spec.in_channels:
            return f"kept {self.kept!r} is outside 1..{spec.in_channels - 1}"
        full = _full(spec, self.kept)
        if not is_whole(self.rank) or not 1 <= self.rank <= full:
            return f"rank {self.rank!r} is outside 1..{full} beside {self.kept} whole words"
        return None

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        return (SplitTableStage(spec, self.kept, self.rank),)

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Factor, ...]:
        metric = identity(weight) if metric is None else metric.formed
        W = metric.cast(weight.flatten(2))
        X, often = metric.left(W), metric.C
        order = _order(spec, X, often, _moment(X, often), self.rank)
        frequent = _sorted(spec, order[: self.kept])
        others = order[self.kept :].sort().values
        basis, rare = best_map(W[:, :, others], replace(metric, C=often[:, others]), self.rank)
        rare, basis = even(rare, basis)
        place = torch.empty(spec.in_channels, dtype=torch.int64, device=W.device)
        place[torch.cat([frequent, others])] = torch.arange(spec.in_channels, device=W.device)
        rows = weight.flatten(2)[0].mT
        return ((place, rows[frequent], rare[0].mT.to(rows), basis[0].to(rows)),)


def _full(spec: LayerSpec, kept: int) -> int:
    """The largest rank of the words beside those that are kept."""
    return min(spec.out_channels, spec.in_channels - kept)


def _offered(spec: LayerSpec) -> list[int]:
    """How many words are tried whole."""
    shares = _FEW_SHARES if spec.out_channels > _WIDE else _SHARES
    kept = {round(share * spec.in_channels) for share in shares}
    return sorted(k for k in kept if 1 <= k < spec.in_channels)


def _worthwhile(spec: LayerSpec, kept: int) -> int:
    """The largest rank with no more weights than the table has; 0 if none has."""
    one = SplitTableStage(spec, kept, 1).n_weights - kept * spec.out_channels
    left = (spec.in_channels - kept) * spec.out_channels
    return min(_full(spec, kept), left // one)


def _moment(X: Tensor, often: Tensor) -> Tensor:
    """(G^1/2 W) C (G^1/2 W)^T, (1, features, features), of X = G^1/2 W and the diagonal of C."""
    return (X * often[:, None, :]) @ X.mT


def _order(spec: LayerSpec, X: Tensor, often: Tensor, moment: Tensor, rank: int) -> Tensor:
    """The words by what a low rank would miss of them, most first; before all the padding."""
    E = torch.linalg.eigh((moment + moment.mT) / 2)[1][:, :, -max(1, rank) :]
    missed = X.square().sum(1) - (E.mT @ X).square().sum(1)
    score = (missed.clamp_min(0) * often)[0]
    if spec.padding_idx is not None:
        score[spec.padding_idx] = torch.inf
    return score.argsort(descending=True, stable=True)


def _sorted(spec: LayerSpec, words: Tensor) -> Tensor:
    """In ascending order, but for the padding, which stays first."""
    if spec.padding_idx is None:
        return words.sort().values
    return torch.cat([words[:1], words[1:].sort().values])
