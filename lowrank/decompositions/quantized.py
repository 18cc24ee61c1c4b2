"""Weights on a grid of few levels, alone and beside a low-rank part, in a metric.

A row is cut into pieces of `group` entries; piece j of row i has the levels
(k - (2^bits - 1) / 2) t_ij for k = 0 .. 2^bits - 1, symmetric about zero. The steps t_ij are
themselves coarse: a number per row times a whole number of 255ths per piece, so that a piece
costs one byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lowrank.decompositions.metric import Metric, best_map

FINEST = 255
"""The largest share of a row's step, in its own parts, that a piece may have."""


_SHRUNK = {2: 0.3, 3: 0.5, 4: 0.6}
"""Bits -> the least share of a piece's largest entry that its outermost level may be at."""


_TRIED = 13
"""How many such shares are tried."""


_DAMPING = 0.01
"""Share of the mean of the diagonal of C that is added to it."""


_BLOCK = 64
"""Columns whose errors are carried within them before they are carried beyond."""


class Grid(NamedTuple):
    """A weight of few levels.

    Args:
        codes: (groups, o, d) uint8, the levels' numbers.
        shares: (groups, o, pieces) uint8, each piece's step in 255ths of its row's.
        steps: (groups, o), the row's step, in the type that it is stored in.
    """

    codes: Tensor
    shares: Tensor
    steps: Tensor


@dataclass(frozen=True, eq=False)
class Spread:
    """How the error of a column is made up for by those behind it.

    Args:
        order: (groups, d) the columns, those with the largest inputs first.
        factor: (groups, d, d) U, upper triangular, with U^T U the inverse of the damped moment.
    """

    order: Tensor
    factor: Tensor


def pieces_of(d: int, group: int) -> int:
    """How many pieces a row of d entries has.

    Example:
        >>> pieces_of(64, 32), pieces_of(65, 32), pieces_of(9, 32)
        (2, 3, 1)
    """
    return -(-d // group)


def values_of(grid: Grid, bits: int, group: int, dtype: torch.dtype) -> Tensor:
    """The weight (groups, o, d) that codes stand for."""
    t = steps_along(grid.shares, grid.steps, grid.codes.shape[-1], group, dtype)
    return (grid.codes.to(dtype) - (2**bits - 1) / 2) * t


def steps_along(shares: Tensor, steps: Tensor, d: int, group: int, dtype: torch.dtype) -> Tensor:
    """The step of every entry (..., d)."""
    of_pieces = shares.to(dtype) * (steps.to(dtype) / FINEST).unsqueeze(-1)
    return of_pieces.repeat_interleave(group, -1)[..., :d]


def fitted_steps(
    W: Tensor, weights: Tensor, bits: int, group: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Steps that lose least when every entry goes to its nearest level.

    Args:
        W: (groups, o, d).
        weights: (groups, d) what a squared error in a column counts.
        bits: of a code.
        group: entries of a piece.
        dtype: that the rows' steps are stored in.

    Returns:
        Shares (groups, o, pieces) and steps (groups, o), as in `Grid`.
    """
    d = W.shape[-1]
    lack = pieces_of(d, group) * group - d
    X = torch.nn.functional.pad(W, (0, lack)).unflatten(-1, (-1, group))
    counts = torch.nn.functional.pad(weights, (0, lack)).unflatten(-1, (-1, group))[:, None]
    half = (2**bits - 1) / 2
    widest = X.abs().amax(-1, keepdim=True) / half
    best, chosen = torch.full_like(widest, float("inf")), widest
    for share in torch.linspace(1.0, _SHRUNK.get(bits, 0.9), _TRIED if bits < 8 else 3).tolist():
        t = share * widest
        lost = ((X - _nearest(X, t, half)).square_() * counts).sum(-1, keepdim=True)
        better = lost < best
        best, chosen = torch.where(better, lost, best), torch.where(better, t, chosen)
    t = chosen.squeeze(-1)
    steps = t.amax(-1).to(dtype)
    unit = steps.to(W)[..., None].clamp_min(torch.finfo(W.dtype).tiny)
    shares = (t / unit * FINEST).round().clamp(0, FINEST)
    shares = torch.where(t > 0, shares.clamp_min(1), shares)
    return shares.to(torch.uint8), steps


def _nearest(X: Tensor, t: Tensor, half: float) -> Tensor:
    """The nearest level to every entry; zero where a step is zero."""
    unit = torch.where(t > 0, t, 1.0)
    return ((X / unit + half).round_().clamp_(0, 2 * half) - half) * t


def spread_of(metric: Metric) -> Spread | None:
    """How errors are made up for in a metric; None where its inputs do not go together."""
    metric = metric.formed
    if metric.C.ndim == 2:
        return None
    C = metric.C
    diagonal = C.diagonal(dim1=1, dim2=2)
    order = diagonal.argsort(dim=-1, descending=True)
    damped = C.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    least = diagonal.mean(-1, keepdim=True) * _DAMPING
    more = torch.where(least > 0, least, 1.0)
    for _ in range(8):
        damped.diagonal(dim1=1, dim2=2).add_(more)
        L, info = torch.linalg.cholesky_ex(damped)
        if not info.any():
            break
        more = 4 * more
    else:
        return None
    U = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)[0]
    return Spread(order, U) if bool(U.isfinite().all()) else None


def quantized(
    W: Tensor,
    metric: Metric,
    bits: int,
    group: int,
    *,
    dtype: torch.dtype = torch.float32,
    spread: Spread | None = None,
) -> Grid:
    """The weight on a grid; the errors of columns are made up for by the columns behind them.

    Args:
        W: (groups, o, d).
        metric: in which errors count.
        bits: of a code.
        group: entries of a piece.
        dtype: that the rows' steps are stored in.
        spread: from `spread_of`; None rounds every entry to its nearest level.

    Example:
        >>> from lowrank.decompositions.metric import identity
        >>> W = torch.tensor([[[1.0, -3.0, 0.5, 0.0]]])
        >>> grid = quantized(W, identity(W), 8, 4)
        >>> values_of(grid, 8, 4, torch.float32).round(decimals=1)
        tensor([[[ 1.0000, -3.0000,  0.5000,  0.0000]]])

    Source: Frantar et al. 2023, "GPTQ", algorithm 1, with the columns in order of their inputs
    and steps that are fixed before; theirs are those of the largest entry.
    """
    W = metric.cast(W)
    C = metric.formed.C
    weights = C if C.ndim == 2 else C.diagonal(dim1=1, dim2=2)
    shares, steps = fitted_steps(W, weights.clamp_min(0), bits, group, dtype)
    t = steps_along(shares, steps, W.shape[-1], group, W.dtype)
    half = (2**bits - 1) / 2
    codes = _rounded(W, t, half) if spread is None else _carried(W, t, half, spread)
    return Grid(codes.to(torch.uint8), shares, steps)


def _rounded(W: Tensor, t: Tensor, half: float) -> Tensor:
    unit = torch.where(t > 0, t, 1.0)
    return (W / unit + half).round().clamp(0, 2 * half)


def _carried(W: Tensor, t: Tensor, half: float, spread: Spread) -> Tensor:
    """Codes, column after column."""
    order = spread.order[:, None, :]
    W, t = W.take_along_dim(order, 2), t.take_along_dim(order, 2)
    unit, U, d = torch.where(t > 0, t, 1.0), spread.factor, W.shape[-1]
    codes = torch.empty_like(W)
    for start in range(0, d, _BLOCK):
        end = min(start + _BLOCK, d)
        errors = W.new_empty(*W.shape[:2], end - start)
        for j in range(start, end):
            w = W[:, :, j]
            code = (w / unit[:, :, j] + half).round_().clamp_(0, 2 * half)
            codes[:, :, j] = code
            lost = (w - (code - half) * t[:, :, j]) / U[:, None, j, j]
            errors[:, :, j - start] = lost
            W[:, :, j + 1 : end] -= lost[:, :, None] * U[:, None, j, j + 1 : end]
        W[:, :, end:] -= errors @ U[:, start:end, end:]
    return torch.empty_like(codes).scatter_(2, order.expand_as(codes), codes)


class Parts(NamedTuple):
    """W ~ U V + Q.

    Args:
        U: (groups, o, rank).
        V: (groups, rank, d).
        grid: Q.
    """

    U: Tensor
    V: Tensor
    grid: Grid


def low_rank_plus_quantized(
    W: Tensor,
    metric: Metric,
    rank: int,
    bits: int,
    group: int,
    *,
    dtype: torch.dtype = torch.float32,
    n_steps: int = 3,
    spread: Spread | None = None,
) -> Parts:
    """A weight as low rank plus a grid: each in turn is fitted to what the other leaves.

        minimise  tr(G D C D^T),  D = W - U V - Q

    Args:
        W: (groups, o, d).
        metric: the error.
        rank: 1..min(o, d).
        bits: of a code of Q.
        group: entries of a piece of Q.
        dtype: that the rows' steps are stored in.
        n_steps: alternations; the best of them is returned.
        spread: from `spread_of`.

    Source: Saha et al. 2024, "Compressing large language models using low rank and low
    precision decomposition" (CALDERA), algorithm 1; Zhang et al. 2024, "LQER" (one step).
    """
    W = metric.cast(W)
    found: list[tuple[float, Parts]] = []
    low = torch.zeros_like(W)
    for _ in range(max(1, n_steps)):
        grid = quantized(W - low, metric, bits, group, dtype=dtype, spread=spread)
        rest = W - values_of(grid, bits, group, W.dtype)
        U, V = best_map(rest, metric, rank)
        low = U @ V
        found.append((metric.error(rest - low), Parts(U, V, grid)))
    return min(found, key=lambda one: one[0])[1]
