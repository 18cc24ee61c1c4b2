"""What a sparse part beside a low-rank one keeps: columns, rows or entries, in a metric.

All minimise tr(G D C D^T), D = W - L - S, over S of the given pattern and L of the given
rank: in closed form for given columns or rows, by projections in turn for single entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowrank.decompositions.low_rank_sparse import STEP_BEYOND, WINDOW
from lowrank.decompositions.metric import Metric, best_map, output_moment

Mask: TypeAlias = int | Literal["2:4"]
"""How many entries may stay, or two of every four neighbours in a row."""

_N_SETS = 2
"""Alternations that choose columns or rows."""

_N_CG = (8, 3)
"""Conjugate-gradient steps that fit the kept entries; the fewer where each is long."""


TOL = 1e-3
"""Steps end where five of them gain less than this share of the error."""


@dataclass(frozen=True, eq=False)
class ColumnSplit:
    """W in kept and other channels, and the metric that is left for the others.

    The kept columns S also take what of the others' error they can predict:
    S = W_k + (W_r - L) C_rk C_kk^-1, so the others' metric is the Schur complement.

    Attributes:
        kept: (groups, n) channel numbers.
        rest: (groups, i - n) the others.
        W_kept: (groups, o, n * places).
        W_rest: (groups, o, (i - n) * places).
        metric: of the others.
        carry: C_rk C_kk^-1, over columns, or over channels where C is in Kronecker form;
            None where C is diagonal.
    """

    kept: Tensor
    rest: Tensor
    W_kept: Tensor
    W_rest: Tensor
    metric: Metric
    carry: Tensor | None

    def curve(self) -> list[float]:
        """Squared error at rank 0, 1, ... of the low-rank part."""
        if not self.W_rest.shape[-1]:
            return [0.0]
        values = torch.linalg.eigvalsh(output_moment(self.W_rest, self.metric)).flip(-1)
        tail = values.clamp_min(0).sum(0).flip(0).cumsum(0).flip(0)
        return [*tail.tolist(), 0.0]

    def lost(self, rank: int) -> float:
        """Squared error at a rank."""
        return self.curve()[rank]

    def fit(self, rank: int) -> tuple[Tensor, Tensor, Tensor]:
        """S (g, o, n * places) and L = U V, (g, o, rank) and (g, rank, (i - n) * places)."""
        g, o, _ = self.W_rest.shape
        if rank:
            U, V = best_map(self.W_rest, self.metric, rank)
        else:
            U, V = self.W_rest.new_zeros(g, o, 0), self.W_rest[:, :0]
        D = self.W_rest - U @ V
        return self.W_kept + self._carried(D), U, V

    def _carried(self, D: Tensor) -> Tensor:
        if self.carry is None or not D.shape[-1]:
            return torch.zeros_like(self.W_kept)
        if D.shape[-1] == self.carry.shape[1]:
            return D @ self.carry
        folded = D.unflatten(-1, (self.rest.shape[1], -1))
        return torch.einsum("gork,grs->gosk", folded, self.carry).flatten(2)


def split_columns(W: Tensor, metric: Metric, kept: Tensor, places: int) -> ColumnSplit:
    """Keep whole channels of W.

    Args:
        W: (groups, o, i * places).
        metric: the error.
        kept: (groups, n) channel numbers.
        places: columns of a channel.
    """
    g, i = W.shape[0], W.shape[-1] // places
    free = torch.ones(g, i, dtype=torch.bool, device=W.device).scatter(1, kept, value=False)
    rest = free.nonzero()[:, 1].reshape(g, -1)
    k, r = _columns(kept, places), _columns(rest, places)
    W_k, W_r = (W.gather(2, c[:, None].expand(-1, W.shape[1], -1)) for c in (k, r))
    if metric.C.ndim == 2:
        left = Metric(metric.C.gather(1, r), metric.G)
        return ColumnSplit(kept, rest, W_k, W_r, left, None)
    rows, columns = (rest, kept) if metric.space is not None else (r, k)
    C_kk, C_rk, C_rr = (
        _sub(metric.C, a, b) for a, b in ((columns, columns), (rows, columns), (rows, rows))
    )
    ridge = 1e-12 * C_kk.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    eye = torch.eye(C_kk.shape[-1], dtype=W.dtype, device=W.device)
    carry = torch.linalg.solve(C_kk + ridge.clamp_min(1e-300) * eye, C_rk.mT).mT
    schur = C_rr - carry @ C_rk.mT
    left = Metric((schur + schur.mT) / 2, metric.G, metric.space)
    return ColumnSplit(kept, rest, W_k, W_r, left, carry)


def worst_columns(W: Tensor, metric: Metric, n: int, places: int, rank: int) -> Tensor:
    """The channels that a map of given rank serves worst, (groups, n), ascending.

    Args:
        W: (groups, o, i * places).
        metric: the error.
        n: how many, at most i.
        places: columns of a channel.
        rank: of the map; 0 for none.
    """
    i = W.shape[-1] // places
    index = torch.arange(i * places, device=W.device).reshape(i, places)
    own = metric.block(index).to(W.dtype)  # (g, i, places, places)
    S = torch.zeros_like(W)
    for _ in range(_N_SETS if rank else 1):
        D = W - _low(W - S, metric, rank)
        X = metric.left(D).unflatten(-1, (i, places))
        lost = torch.einsum("goik,gikl,goil->gi", X, own, X)
        kept = lost.topk(n, dim=1).indices.sort(1).values
        mask = torch.zeros_like(lost).scatter(1, kept, 1.0).repeat_interleave(places, 1)
        S = D * mask[:, None]
    return kept


def worst_rows(W: Tensor, metric: Metric, n: int, rank: int) -> Tensor:
    """The rows that a map of given rank serves worst, (n,), ascending; for one group."""
    S = torch.zeros_like(W)
    for _ in range(_N_SETS if rank else 1):
        D = W - _low(W - S, metric, rank)
        lost = (metric.times(D) * D).sum(-1)[0]
        if metric.G is not None:
            lost = lost * metric.G[0].diagonal()
        kept = lost.topk(n).indices.sort().values
        S = torch.zeros_like(W).index_copy(1, kept, D[:, kept])
    return kept


def low_rank_plus_masked(
    W: Tensor,
    metric: Metric,
    rank: int,
    mask: Mask,
    *,
    n_steps: int,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """W ~ U V + S with few entries in S, least error in the metric; projections in turn.

    The L-step is the best map of W - S. The S-step keeps the entries of W - L that cost most
    on their own, |D_ij| sqrt(G_ii C_jj), and fits them by conjugate gradients. Each move of L
    is carried on by 0.8 of itself before, as in `low_rank_plus_sparse`.

    Args:
        W: (groups, o, d).
        metric: the error.
        rank: of L, from 0 up.
        mask: entries that S may hold.
        n_steps: alternations.
        start: a first S; the best of all steps is returned, its own included.

    Returns:
        U (groups, o, rank), V (groups, rank, d), S (groups, o, d).

    Source: Zhou and Tao 2011, section 2.1, in the metric.
    """
    zero, best = torch.zeros_like(W), _Best(W, metric)
    for S in (zero,) if start is None else (zero, start.to(W)):
        last: Tensor | None = None
        gains: list[float] = []
        for _ in range(n_steps):
            U, V = _map(W - S, metric, rank)
            gains.append(best.note(U, V, S))
            if not rank or (
                len(gains) > WINDOW and gains[-1 - WINDOW] - gains[-1] < TOL * gains[-1]
            ):
                break
            L = U @ V
            moved = L if last is None else torch.lerp(last, L, 1 + STEP_BEYOND)
            S, last = _fitted(W - moved, metric, _kept_entries(W - moved, metric, mask)), L
        D = W - U @ V
        best.note(U, V, _fitted(D, metric, _kept_entries(D, metric, mask)))
    return best.parts


class _Best:
    """The best of the parts seen so far."""

    def __init__(self, W: Tensor, metric: Metric) -> None:
        self.W, self.metric = W, metric
        self.error = math.inf
        self.parts: tuple[Tensor, Tensor, Tensor]

    def note(self, U: Tensor, V: Tensor, S: Tensor) -> float:
        """Keep the parts if they are; their error."""
        error = self.metric.error(self.W - U @ V - S)
        if not error >= self.error:
            self.error, self.parts = error, (U, V, S)
        return error


def _map(R: Tensor, metric: Metric, rank: int) -> tuple[Tensor, Tensor]:
    if rank:
        return best_map(R, metric, rank)
    return R.new_zeros(*R.shape[:2], 0), R[:, :0]


def _low(R: Tensor, metric: Metric, rank: int) -> Tensor:
    U, V = _map(R, metric, min(rank, *R.shape[1:]))
    return U @ V


def _kept_entries(D: Tensor, metric: Metric, mask: Mask) -> Tensor:
    """1 where an entry stays, 0 elsewhere."""
    size = D.square() * _diagonal(metric)[:, None]
    if metric.G is not None:
        size = size * metric.G.diagonal(dim1=1, dim2=2)[:, :, None]
    if mask == "2:4":
        quads = size.unflatten(-1, (-1, 4))
        chosen = quads.topk(2, dim=-1).indices
        return torch.zeros_like(quads).scatter(-1, chosen, 1.0).flatten(2)
    chosen = size.flatten().topk(mask).indices
    return torch.zeros_like(size).flatten().scatter(0, chosen, 1.0).reshape(size.shape)


def _fitted(D: Tensor, metric: Metric, mask: Tensor) -> Tensor:
    """The S on the mask of least error of D - S, by a few steps of conjugate gradients."""
    if metric.C.ndim == 2 and metric.G is None:
        return D * mask

    def slope(X: Tensor) -> Tensor:
        Y = metric.times(X)
        return (Y if metric.G is None else metric.G @ Y) * mask

    scale = _diagonal(metric)[:, None]
    if metric.G is not None:
        scale = scale * metric.G.diagonal(dim1=1, dim2=2)[:, :, None]
    scale = scale.clamp_min(torch.finfo(D.dtype).tiny)
    S = D * mask
    r = slope(D - S)
    p = z = r / scale
    rz = (r * z).sum()
    for _ in range(_N_CG[D.numel() * D.shape[-1] > 1e9]):
        if float(rz) <= 0:
            break
        q = slope(p)
        step = rz / (p * q).sum()
        S, r = S + step * p, r - step * q
        z = r / scale
        rz, last = (r * z).sum(), rz
        p = z + rz / last * p
    return S


def _diagonal(metric: Metric) -> Tensor:
    """The diagonal of C, (groups, d)."""
    if metric.C.ndim == 2:
        return metric.C
    own = metric.C.diagonal(dim1=1, dim2=2)
    if metric.space is None:
        return own
    return (own[:, :, None] * metric.space.diagonal()).flatten(1)


def _columns(channels: Tensor, places: int) -> Tensor:
    """(g, n) channel numbers as (g, n * places) column numbers."""
    inner = torch.arange(places, device=channels.device)
    return (channels[:, :, None] * places + inner).flatten(1)


def _sub(C: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """C[g][rows[g], columns[g]] for every group."""
    groups = torch.arange(C.shape[0], device=C.device)[:, None, None]
    return C[groups, rows[:, :, None], columns[:, None, :]]
