"""What a sparse part beside a low-rank one keeps: columns, rows or entries, in a metric.

All minimise tr(G D C D^T), D = W - L - S, over S of the given pattern and L of the given
rank: in closed form for given columns or rows, by projections in turn for single entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lowrank.decompositions.low_rank_sparse import STEP_BEYOND, WINDOW
from lowrank.decompositions.metric import (
    Metric,
    best_map,
    output_maps,
    output_maps_of,
    output_moment,
    scaled_cholesky,
)

Mask: TypeAlias = int | Literal["2:4"]
"""How many entries may stay, or two of every four neighbours in a row."""


_N_SETS = 2
"""Alternations that choose columns or rows."""


_N_CG = (8, 3)
"""Conjugate-gradient steps that fit the kept entries; the fewer where each is long."""


_LONG = 1e9
"""Multiplications from which such a step is long."""


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
        carry: C_rk C_kk^-1, over columns; None where C is diagonal.
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
        return tails(output_moment(self.W_rest, self.metric))

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
    W = metric.cast(W)
    g, i = W.shape[0], W.shape[-1] // places
    free = torch.ones(g, i, dtype=torch.bool, device=W.device).scatter(1, kept, value=False)
    rest = free.nonzero()[:, 1].reshape(g, -1)
    k, r = _columns(kept, places), _columns(rest, places)
    W_k, W_r = (W.gather(2, c[:, None].expand(-1, W.shape[1], -1)) for c in (k, r))
    if metric.C.ndim == 2:
        left = replace(metric, C=metric.C.gather(1, r))
        return ColumnSplit(kept, rest, W_k, W_r, left, None)
    C_kk, C_rk, C_rr = (_sub(metric.C, a, b) for a, b in ((k, k), (r, k), (r, r)))
    ridge = max(1e-12, torch.finfo(W.dtype).eps) * C_kk.diagonal(dim1=1, dim2=2).mean(-1)
    ridge = ridge.clamp_min(torch.finfo(W.dtype).tiny)[:, None, None]
    eye = torch.eye(C_kk.shape[-1], dtype=W.dtype, device=W.device)
    carry = torch.linalg.solve(C_kk + ridge * eye, C_rk.mT).mT
    schur = C_rr - carry @ C_rk.mT
    left = replace(metric, C=(schur + schur.mT) / 2)
    return ColumnSplit(kept, rest, W_k, W_r, left, carry)


def columns_curve(
    W: Tensor, product: Tensor, metric: Metric, kept: Tensor, places: int
) -> list[float]:
    """`split_columns(W, metric, kept, places).curve()`, without the others' metric.

    Their outputs' moment is W C W^T - (W C)_k C_kk^-1 (W C)_k^T.

    Args:
        W: (groups, o, i * places).
        product: W C.
        metric: the error.
        kept: (groups, n) channel numbers.
        places: columns of a channel.
    """
    W = metric.cast(W)
    if metric.C.ndim == 2:
        return split_columns(W, metric, kept, places).curve()
    k = _columns(kept, places)
    scale, L = scaled_cholesky(_sub(metric.C, k, k))
    taken = product.gather(2, k[:, None].expand(-1, W.shape[1], -1)) * scale[:, None]
    Z = torch.linalg.solve_triangular(L, taken.mT, upper=False)  # (g, n * places, o)
    return tails(metric.left(metric.left(product @ W.mT - Z.mT @ Z).mT))


def tails(S: Tensor) -> list[float]:
    """Sums of all but the first 0, 1, ... eigenvalues, over the groups."""
    values = torch.linalg.eigvalsh((S + S.mT) / 2).flip(-1)
    tail = values.clamp_min(0).sum(0).flip(0).cumsum(0).flip(0)
    return [*tail.tolist(), 0.0]


def worst_columns(
    W: Tensor, metric: Metric, n: int, places: int, rank: int, *, product: Tensor | None = None
) -> Tensor:
    """The channels that a map of given rank serves worst, (groups, n), ascending.

    Args:
        W: (groups, o, i * places).
        metric: the error.
        n: how many, at most i.
        places: columns of a channel.
        rank: of the map; 0 for none.
        product: W C, where it is known.
    """
    W = metric.cast(W)
    i = W.shape[-1] // places
    index = torch.arange(i * places, device=W.device).reshape(i, places)
    own = metric.block(index)  # (g, i, places, places)
    WC = metric.times(W) if product is None else product
    D = W - _low(W, WC, metric, rank)
    kept = _worst(D, own, metric, n)
    for _ in range(_N_SETS - 1 if rank else 0):
        mask = torch.zeros_like(own[..., 0, 0]).scatter(1, kept, 1.0)
        S = D * mask.repeat_interleave(places, 1)[:, None]
        D = W - _low(W - S, WC - _times_kept(S, metric, kept, places), metric, rank)
        kept = _worst(D, own, metric, n)
    return kept


def _worst(D: Tensor, own: Tensor, metric: Metric, n: int) -> Tensor:
    """The n channels in which D costs most on its own, by their blocks of C."""
    X = metric.left(D).unflatten(-1, own.shape[1:3])
    lost = torch.einsum("goik,gikl,goil->gi", X, own, X)
    return lost.topk(n, dim=1).indices.sort(1).values


def _times_kept(S: Tensor, metric: Metric, kept: Tensor, places: int) -> Tensor:
    """S C for an S that is zero but in the kept channels."""
    if metric.C.ndim == 2:
        return metric.times(S)
    k = _columns(kept, places)
    rows = metric.C.gather(1, k[:, :, None].expand(-1, -1, S.shape[-1]))
    return S.gather(2, k[:, None].expand(-1, S.shape[1], -1)) @ rows


def worst_rows(moment: Tensor, metric: Metric, n: int, rank: int) -> Tensor:
    """The rows of W that a map of given rank serves worst, (n,), ascending; for one group.

    All is W times a matrix on the left, so W C W^T is all that is asked of W.

    Args:
        moment: W C W^T, (o, o).
        metric: the error.
        n: how many.
        rank: of the map; 0 for none.
    """
    moment = metric.cast(moment)
    o = len(moment)
    rank = min(rank, o)
    own = moment.diagonal()
    rows = torch.eye(o, dtype=moment.dtype, device=moment.device)
    kept, S = rows.new_zeros(0, dtype=torch.long), rows[:0]  # rows of S are S W
    for _ in range(_N_SETS if rank else 1):
        U, F = rows[:, :0], rows[:0]  # D = W - U F W
        if rank:
            Sm = S @ moment
            left = moment.clone()  # (W - S) C (W - S)^T
            left[kept] -= Sm
            left[:, kept] -= Sm.mT
            left[kept[:, None], kept] += Sm @ S.mT
            U, F = (f[0] for f in output_maps_of(left[None], metric, rank))
            F = F - F[:, kept] @ S
        Fm = F @ moment
        lost = own - 2 * (U * Fm.mT).sum(-1) + ((U @ (Fm @ F.mT)) * U).sum(-1)
        if metric.G is not None:
            lost = lost * metric.G[0].diagonal()
        kept = lost.topk(n).indices.sort().values
        S = rows[kept] - U[kept] @ F
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
    W = metric.cast(W)
    WC, best = metric.times(W), _Best(metric)
    zero = torch.zeros_like(W)
    for S in (zero,) if start is None else (zero, metric.cast(start)):
        SC = S if S is zero else metric.times(S)
        last: _Gap | None = None
        gains: list[float] = []
        for step in range(n_steps):
            U, V, VC = _map(W - S, WC - SC, metric, rank)
            gap = _Gap(W - U @ V, WC - U @ VC)
            gains.append(best.note(U, V, S, gap.without(S, SC)))
            if (
                not rank
                or step == n_steps - 1
                or (len(gains) > WINDOW and gains[-1 - WINDOW] - gains[-1] < TOL * gains[-1])
            ):
                break
            moved = gap if last is None else last.towards(gap, 1 + STEP_BEYOND)
            (S, SC), last = _fitted(moved, metric, _kept_entries(moved.D, metric, mask)), gap
        S, SC = _fitted(gap, metric, _kept_entries(gap.D, metric, mask))
        best.note(U, V, S, gap.without(S, SC))
    return best.parts


@dataclass(frozen=True, eq=False)
class _Gap:
    """A difference D and its product D C, carried along because products with C are dear."""

    D: Tensor
    DC: Tensor

    def without(self, S: Tensor, SC: Tensor) -> _Gap:
        """That of D - S."""
        return _Gap(self.D - S, self.DC - SC)

    def towards(self, other: _Gap, weight: float) -> _Gap:
        """(1 - weight) times this and weight times the other."""
        return _Gap(torch.lerp(self.D, other.D, weight), torch.lerp(self.DC, other.DC, weight))

    def error(self, metric: Metric) -> float:
        return float((self.DC * metric.weighs(self.D)).sum())


class _Best:
    """The best of the parts seen so far."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.error = math.inf
        self.parts: tuple[Tensor, Tensor, Tensor]

    def note(self, U: Tensor, V: Tensor, S: Tensor, gap: _Gap) -> float:
        """Keep the parts if they are, with the gap W - U V - S; their error."""
        error = gap.error(self.metric)
        if not error >= self.error:
            self.error, self.parts = error, (U, V, S)
        return error


def _map(R: Tensor, RC: Tensor, metric: Metric, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, V and V C of the best map of R, whose product with C is known."""
    if not rank:
        return R.new_zeros(*R.shape[:2], 0), R[:, :0], R[:, :0]
    U, F = output_maps(R, metric, rank, product=RC)
    return U, F @ R, F @ RC


def _low(R: Tensor, product: Tensor, metric: Metric, rank: int) -> Tensor:
    if not rank:
        return torch.zeros_like(R)
    U, V = best_map(R, metric, min(rank, *R.shape[1:]), product=product)
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


def _fitted(gap: _Gap, metric: Metric, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The S on the mask of least error of D - S, by a few conjugate-gradient steps, and S C."""
    D, S = gap.D, gap.D * mask
    SC = metric.times(S)
    if metric.C.ndim == 2 and metric.G is None:
        return S, SC

    def slope(XC: Tensor) -> Tensor:
        return metric.weighs(XC) * mask

    scale = _diagonal(metric)[:, None]
    if metric.G is not None:
        scale = scale * metric.G.diagonal(dim1=1, dim2=2)[:, :, None]
    scale = scale.clamp_min(torch.finfo(D.dtype).tiny)
    r = slope(gap.DC - SC)
    p = z = r / scale
    rz = (r * z).sum()
    for _ in range(_N_CG[D.numel() * D.shape[-1] > _LONG]):
        if float(rz) <= 0:
            break
        pC = metric.times(p)
        q = slope(pC)
        curvature = (p * q).sum()
        if not float(curvature) > 0:  # it underflows once the fit is exact
            break
        step = rz / curvature
        S, SC, r = S + step * p, SC + step * pC, r - step * q
        z = r / scale
        rz, last = (r * z).sum(), rz
        p = z + rz / last * p
    return S, SC


def _diagonal(metric: Metric) -> Tensor:
    """The diagonal of C, (groups, d)."""
    if metric.C.ndim == 2:
        return metric.C
    return metric.C.diagonal(dim1=1, dim2=2)


def _columns(channels: Tensor, places: int) -> Tensor:
    """(g, n) channel numbers as (g, n * places) column numbers."""
    inner = torch.arange(places, device=channels.device)
    return (channels[:, :, None] * places + inner).flatten(1)


def _sub(C: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """C[g][rows[g], columns[g]] for every group."""
    groups = torch.arange(C.shape[0], device=C.device)[:, None, None]
    return C[groups, rows[:, :, None], columns[:, None, :]]
