"""A low-rank matrix from some of its entries."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowrank.decompositions.nuclear_norm import Ball, Huber, minimise, named
from lowrank.decompositions.observed import Array, Observed, check_count, check_positive, observe
from lowrank.decompositions.parts import LowRankParts
from lowrank.errors import InputError
from lowrank.status import Status


@dataclass(frozen=True, eq=False, repr=False)
class Completion(LowRankParts[Array]):
    """A completed matrix `L`; the attributes are those of `LowRankParts`.

    `S` is what of the observed entries `L` leaves unexplained, `M - L` there and zero on the
    missing entries, and `residual_norm` is `||S||_F`. With a fixed rank
    the status INFEASIBLE says that no matrix of that rank was found within `epsilon` of them.

    Attributes:
        empty_rows: rows without an observed entry: nothing tells what they hold, and `L` is NaN
            there.
        empty_columns: the same of columns.
    """

    empty_rows: tuple[int, ...] = ()
    empty_columns: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values: everything but the matrices and the history."""
        empty = {"empty_rows": self.empty_rows, "empty_columns": self.empty_columns}
        return {**super().to_dict(), **{name: list(places) for name, places in empty.items()}}


def complete(
    M: Any,
    mask: Any = None,
    *,
    rank: int | None = None,
    lam: float | None = None,
    epsilon: float | None = None,
    max_iter: int = 1000,
    tol: float = 1e-7,
    seed: int = 0,
) -> Completion[Any]:
    """Complete a matrix from the entries `P(M)` that are observed.

        minimise  ||L||_*                             subject to  ||P(L - M)||_F <= epsilon
        minimise  lam ||L||_* + ||P(L - M)||_F^2 / 2            with lam     (soft-impute)
        minimise  ||P(L - M)||_F^2                    subject to  rank(L) <= rank

    The first with `epsilon = 0` is the default. The last is not convex and goes by alternating
    least squares; a given `epsilon` is then the misfit that still counts as a fit.

    Args:
        M: (m, n) array or tensor, real or complex; anything where `mask` is False. A DataFrame
            comes back as one; of a masked array what is masked is missing, and of a sparse matrix
            what is not stored.
        mask: (m, n) bool, True where observed; None takes NaN for missing.
        rank: fix the rank, 1..min(m, n).
        lam: weight of the nuclear norm, > 0; above `||P(M)||_2` the answer is zero. Not together
            with `rank` or `epsilon`.
        epsilon: largest Frobenius norm of the misfit, >= 0.
        max_iter: most iterations.
        tol: relative duality gap and residual to reach; with a fixed rank the relative misfit, or
            its relative decrease in one iteration, at which to stop.
        seed: of the random start that a fixed rank needs where the spectrum falls short.

    Returns:
        The completion, with status and duality gap. A row or column without an observed entry is
        NaN in it, and named in a warning.

    Raises:
        InputError: not a matrix, observed NaN or Inf, wrong mask, nothing observed, `lam` not
            above 0, `epsilon` below 0, `rank` out of range, or arguments that exclude each other.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> M = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
        >>> seen = rng.random((40, 30)) < 0.6
        >>> result = complete(np.where(seen, M, np.nan))
        >>> result.status.name, result.rank, bool(np.abs(result.L - M).max() < 1e-5)
        ('OPTIMAL', 2, True)

    Source: Candes and Recht 2009, eq. (1.5); Mazumder, Hastie, Tibshirani 2010, eq. (8);
    Jain, Netrapalli, Sanghavi 2013, algorithm 1 (without its sample splitting).
    """
    if lam is not None and (rank is not None or epsilon is not None):
        raise InputError("complete", "lam excludes rank and epsilon", "give one of them")
    check_positive(tol, "tol", "complete")
    check_count(max_iter, "max_iter", 10**9, "complete")
    if epsilon is not None:
        check_positive(epsilon, "epsilon", "complete", zero=True)
    seen = observe(M, mask, "complete", holes="nan")
    if rank is not None:
        check_count(rank, "rank", min(seen.M.shape), "complete")
        found = _fixed_rank(seen, rank, epsilon, max_iter, tol, seed)
    elif lam is not None:
        check_positive(lam, "lam", "complete")
        f = Huber(math.inf, lam * seen.scale, seen.mask)
        found = _convex(seen, f, lam, max_iter, tol)
    else:
        ball = Ball((epsilon or 0.0) * seen.scale, seen.mask)
        found = _convex(seen, ball, 1.0, max_iter, tol)
    return found if seen.mask is None else _without_empty(found, seen, seen.mask)


def _without_empty(found: Completion[Any], seen: Observed[Any], mask: Tensor) -> Completion[Any]:
    """NaN in rows and columns of which nothing is known, which are named."""
    rows, columns = (tuple(torch.nonzero(~mask.any(dim=axis)).ravel().tolist()) for axis in (1, 0))
    if not rows and not columns:
        return found
    labels = (None, None) if seen.frame is None else (seen.frame.index, seen.frame.columns)
    named = [
        f"{kind}{'s' * (len(places) > 1)} {_listed(places, label)}"
        for kind, places, label in zip(("row", "column"), (rows, columns), labels, strict=True)
        if places
    ]
    text = f"{' and '.join(named)} without an observed entry"
    warnings.warn(f"complete: {text}: NaN in the answer; drop, or observe some", stacklevel=3)
    L = seen.unframed(found.L)
    L = L.clone() if isinstance(L, Tensor) else L.copy()
    L[list(rows)] = math.nan
    L[:, list(columns)] = math.nan
    return replace(found, L=seen.framed(L), empty_rows=rows, empty_columns=columns)


SHOWN = 5
"""Rows and columns that a message names."""


def _listed(places: tuple[int, ...], labels: Any) -> str:
    """Some of the places, by their labels where they have any."""
    some = [repr(p) if labels is None else repr(labels[p]) for p in places[:SHOWN]]
    more = len(places) - len(some)
    return f"{', '.join(some)} and {more} more" if more else ", ".join(some)


def _convex(
    seen: Observed[Array], f: Huber | Ball, scale: float, max_iter: int, tol: float
) -> Completion[Array]:
    found = minimise(seen.M, f, max_iter=max_iter, tol=tol)
    S = _misfit(seen, found.L)
    return Completion(
        seen.back(found.L / seen.scale),
        seen.back(S / seen.scale),
        found.status,
        found.rank,
        found.n_iter,
        scale * (found.objective / seen.scale),
        found.gap,
        float(torch.linalg.vector_norm(S)) / seen.scale,
        seen.back(found.Y),
        found.history,
    )


def _fixed_rank(
    seen: Observed[Array], rank: int, epsilon: float | None, max_iter: int, tol: float, seed: int
) -> Completion[Array]:
    """Alternating least squares from the spectrum of the zero-filled matrix."""
    mask = torch.ones_like(seen.M, dtype=torch.bool) if seen.mask is None else seen.mask
    weight = mask.to(seen.M.dtype)
    V = _start(seen.M, rank, seed)
    size = float(torch.linalg.vector_norm(seen.M))
    epsilon = None if epsilon is None else epsilon * seen.scale
    target = tol if epsilon is None else epsilon / size if size else 0.0
    history: list[tuple[float, float]] = []
    settled = False
    L, S = torch.zeros_like(seen.M), seen.M
    while not settled and len(history) < max_iter:
        U = torch.linalg.qr(_least_squares_rows(seen.M, weight, V)).Q
        V = _least_squares_rows(seen.M.mH, weight.mH, U)
        L = U @ V.mH
        V = torch.linalg.qr(V).Q  # only its span matters, and a well-scaled basis solves better
        S = _misfit(seen, L)
        relative = _relative(S, seen.M)
        drop = (history[-1][0] if history else 1.0) - relative
        history.append((relative, drop))
        settled = relative <= target or abs(drop) <= tol * max(relative, target)
    status = Status.CONVERGED if settled else Status.MAX_ITER
    misfit = float(torch.linalg.vector_norm(S))
    if settled and epsilon is not None and misfit > epsilon + tol * size:
        status = Status.INFEASIBLE
    return Completion(
        seen.back(L / seen.scale),
        seen.back(S / seen.scale),
        status,
        rank,
        len(history),
        misfit**2 / seen.scale / seen.scale,
        None,
        misfit / seen.scale,
        None,
        named(history, "residual", "decrease"),
    )


RIDGE = 1e-13
"""Relative Tikhonov term: rows with fewer entries than the rank stay solvable."""


def _least_squares_rows(M: Tensor, weight: Tensor, V: Tensor) -> Tensor:
    """Each row `u_i = argmin ||w_i (M_i - u_i V^H)||`, all rows in one batched Cholesky.

    The normal matrices `V^T diag(w_i) conj(V)` are one matrix product, of the weights (m, n) with
    the row-wise outer products of `V` (n, k^2).
    """
    m, k = M.shape[0], V.shape[1]
    outer = (V.unsqueeze(2) * V.conj().unsqueeze(1)).reshape(-1, k * k)  # (n, k, k) -> (n, k^2)
    normal = (weight @ outer).view(m, k, k)
    trace = normal.diagonal(dim1=1, dim2=2).real.sum(1).clamp_min(torch.finfo(V.dtype).tiny)
    normal.diagonal(dim1=1, dim2=2).add_((RIDGE * trace + 1e-300).unsqueeze(1))
    right = (M @ V).unsqueeze(2)
    solved, failed = torch.linalg.solve_ex(normal.mT, right)
    if bool(failed.any()):
        solved = torch.linalg.pinv(normal.mT, hermitian=True) @ right
    return solved.squeeze(2)


def _start(M: Tensor, rank: int, seed: int) -> Tensor:
    """Top right singular vectors of the zero-filled matrix, filled up at random."""
    V = torch.linalg.svd(M, full_matrices=False).Vh[:rank].mH
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(V.shape, generator=generator, dtype=torch.float64).to(V)
    return torch.linalg.qr(V + 1e-9 * noise).Q


def _misfit(seen: Observed[Any], L: Tensor) -> Tensor:
    R = seen.M - L
    return R if seen.mask is None else R * seen.mask


def _relative(S: Tensor, M: Tensor) -> float:
    return float(torch.linalg.vector_norm(S)) / (float(torch.linalg.vector_norm(M)) or 1.0)
