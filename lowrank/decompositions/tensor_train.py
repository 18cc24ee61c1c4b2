"""Tensor train: a chain of three-way cores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from lowrank.decompositions.factors import TTFactors
from lowrank.decompositions.svd import singular_values, truncated_svd
from lowrank.errors import RankError
from lowrank.linalg import TensorLike, as_working, check_rank


def tensor_train(W: TensorLike, ranks: Sequence[int], *, name: str = "tensor_train") -> TTFactors:
    """Quasi-optimal tensor train by a sequence of truncated SVDs.

        W'[i_1, ..., i_N] = G_1[i_1] G_2[i_2] ... G_N[i_N],   G_n[i] of size r_{n-1} x r_n

    The error is at most `tt_error_bound`, which is at most sqrt(N - 1) times the best one.

    Args:
        W: (I_1, ..., I_N) with N >= 2, any float type.
        ranks: the N - 1 inner ranks; r_n is at most min(r_{n-1} I_n, I_{n+1} ... I_N).
        name: what an error message calls W.

    Returns:
        `TTFactors`, all cores but the last left-orthogonal.

    Raises:
        InputError: W is not a finite real tensor with at least two modes.
        RankError: the number of ranks or one of them does not fit the shape.

    Example:
        >>> import torch
        >>> W = torch.ones(2, 3, 4)
        >>> factors = tensor_train(W, (1, 1))
        >>> factors.n_params, round(factors.error(W), 5)
        (9, 0.0)

    Source: Oseledets 2011, algorithm 1, with fixed ranks.
    """
    W = as_working(W, name, min_dim=2)
    _check_ranks(tuple(W.shape), ranks, name)
    cores, rest, left = [], W, 1
    for size, rank in zip(W.shape, ranks, strict=False):  # the last mode takes what is left
        svd = truncated_svd(rest.reshape(left * size, -1), rank, name=name)
        cores.append(svd.U.reshape(left, size, rank))
        rest, left = svd.s[:, None] * svd.Vh, rank
    return TTFactors((*cores, rest[:, :, None]))  # (r_{N-1}, I_N, 1)


def tt_spectra(W: TensorLike, *, name: str = "tt_spectra") -> tuple[Tensor, ...]:
    """Singular values of the unfoldings (I_1 ... I_k) x (I_{k+1} ... I_N), k = 1..N-1.

    Computed once, they bound the error of every choice of ranks: see `tt_error_bound`.

    Args:
        W: (I_1, ..., I_N) with N >= 2, any float type.
        name: what an error message calls W.

    Returns:
        N - 1 vectors of singular values, descending.

    Raises:
        InputError: W is not a finite real tensor with at least two modes.

    Example:
        >>> import torch
        >>> [len(s) for s in tt_spectra(torch.ones(2, 3, 4))]
        [2, 4]
    """
    W = as_working(W, name, min_dim=2)
    rows = [math.prod(W.shape[:k]) for k in range(1, W.ndim)]
    return tuple(singular_values(W.reshape(m, -1), name=name) for m in rows)


def tt_error_bound(spectra: Sequence[Tensor], ranks: Sequence[int]) -> float:
    """Upper bound on the relative error of `tensor_train`, from `tt_spectra`.

        error^2 <= sum_k sum_{i > r_k} s_{k,i}^2 / ||W||^2

    Args:
        spectra: what `tt_spectra` returned.
        ranks: as many inner ranks.

    Returns:
        The bound, >= 0; 0 for a zero tensor.

    Raises:
        RankError: another number of ranks than of spectra, or a rank below 1.

    Example:
        >>> import torch
        >>> round(tt_error_bound(tt_spectra(torch.ones(2, 3, 4)), (1, 1)), 3)
        0.0

    Source: Oseledets 2011, theorem 2.2.
    """
    if len(ranks) != len(spectra):
        problem = f"{len(ranks)} ranks for {len(spectra)} spectra"
        raise RankError("tt_error_bound", problem, "give one rank per spectrum")
    if not all(rank >= 1 for rank in ranks):
        raise RankError("tt_error_bound", f"ranks {tuple(ranks)}", "give ranks from 1 up")
    total = float(spectra[0].double().square().sum())
    tails = sum(float(s[r:].double().square().sum()) for s, r in zip(spectra, ranks, strict=True))
    return math.sqrt(tails / total) if total else 0.0


def _check_ranks(shape: tuple[int, ...], ranks: Sequence[int], name: str) -> None:
    if len(ranks) != len(shape) - 1:
        problem = f"{len(ranks)} ranks for shape {shape}"
        raise RankError(name, problem, f"give {len(shape) - 1}, one between two modes")
    left = 1
    for k, rank in enumerate(ranks):
        full = min(left * shape[k], math.prod(shape[k + 1 :]))
        check_rank(rank, full, shape, name, f" between modes {k} and {k + 1}")
        left = rank
