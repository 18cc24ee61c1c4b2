"""A matrix as the sum of a low-rank part and a sparse part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lowrank.decompositions.nuclear_norm import EXTRA, Huber, minimise, named
from lowrank.decompositions.observed import Array, Observed, check_count, check_positive, observe
from lowrank.decompositions.parts import LowRankParts
from lowrank.decompositions.svd import truncated_svd
from lowrank.errors import InputError
from lowrank.linalg import TensorLike, as_working, check_rank, frobenius
from lowrank.status import Status


@dataclass(frozen=True, eq=False, repr=False)
class LowRankSparse(LowRankParts[Array]):
    """`M = L + S`, up to noise and missing entries; S is sparse.

    Attributes:
        lam: weight of the sparse part that was used; None where a count was given instead.

    The others are those of `LowRankParts`; `residual_norm` is `||M - L - S||_F` on the observed
    entries.
    """

    lam: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values: everything but the matrices and the history."""
        return {**super().to_dict(), "nonzeros": int((self.S != 0).sum()), "lam": self.lam}

    def plot(self, shape: tuple[int, int], frames: Sequence[int] = (0,)) -> Any:
        """Draw frames of a video with their parts; see `lowrank.plots.video_frames`."""
        from lowrank.decompositions.pictures import video_frames

        return video_frames(self.L, self.S, shape, frames)


def robust_pca(
    M: Array,
    lam: float | None = None,
    *,
    mask: Any = None,
    noise: float = 0.0,
    outliers: Literal["entries", "columns"] = "entries",
    max_iter: int = 1000,
    tol: float = 1e-7,
) -> LowRankSparse[Array]:
    """Split a matrix into low rank plus sparse corruption, by convex optimisation.

        minimise  ||L||_* + lam ||S||_1   subject to  L + S = M on the observed entries

    With `noise > 0` the constraint gives way to `||M - L - S||_F^2 / (2 nu)` with
    `nu = noise * sqrt(p) (sqrt(m) + sqrt(n))`, `p` the observed share: the spectral norm of the
    noise, so that none of it adds to the rank (stable principal component pursuit). With
    `outliers="columns"` whole columns are corrupted and `||S||_1` becomes the sum of their
    Euclidean norms (outlier pursuit).

    Args:
        M: (m, n) array or tensor, real or complex; anything where `mask` is False. A DataFrame
            comes back as one; of a masked array what is masked is missing.
        lam: weight of the sparse part, > 0. Default `1 / sqrt(max(m, n))` for entries, and
            `min(0.7, sqrt(10 / n))` for columns, which allows for up to a tenth of them to be
            corrupted, all alike at worst; a rank well above 10 needs a larger `lam` (below 1).
        mask: (m, n) bool, True where observed.
        noise: standard deviation of dense noise on each entry, >= 0.
        outliers: what is corrupted: single entries, or whole columns.
        max_iter: most singular value thresholds.
        tol: relative duality gap and relative residual of the constraint to reach.

    Returns:
        The parts, with status and duality gap. All is computed in double precision and comes back
        in the dtype, device and array type of `M`.

    Raises:
        InputError: not a matrix, observed NaN or Inf, wrong mask, `lam` or `tol` not above 0.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> L = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 40))
        >>> S = 5.0 * (rng.random((60, 40)) < 0.05)
        >>> result = robust_pca(L + S)
        >>> result.status.name, result.rank, bool(np.abs(result.L - L).max() < 1e-5)
        ('OPTIMAL', 2, True)

    Source: Candes, Li, Ma, Wright 2011, eq. (1.1), `lam` theorem 1.1; Zhou, Li, Wright, Candes,
    Ma 2010, eq. (6) (noise; theirs is `nu = noise sqrt(2 n)`, which lets noise into the rank);
    Xu, Caramanis, Sanghavi 2012, theorem 1 (columns; their `lam = 3 / (7 sqrt(k))` for `k`
    outliers, without the 3 / 7 that the proof needs). Solver: see `nuclear_norm.minimise`.
    """
    seen = observe(M, mask, "robust_pca", holes="masked")
    m, n = seen.M.shape
    if outliers not in ("entries", "columns"):
        problem = f"outliers={outliers!r}, allowed are 'entries' and 'columns'"
        raise InputError("robust_pca", problem, "name what is corrupted")
    columns = outliers == "columns"
    if lam is None:
        lam = min(0.7, math.sqrt(10 / n)) if columns else 1 / math.sqrt(max(m, n))
    check_positive(lam, "lam", "robust_pca")
    check_positive(noise, "noise", "robust_pca", zero=True)
    check_positive(tol, "tol", "robust_pca")
    check_count(max_iter, "max_iter", 10**9, "robust_pca")
    nu = noise * seen.scale * math.sqrt(seen.fraction) * (math.sqrt(m) + math.sqrt(n))
    f = Huber(float(lam), nu, seen.mask, columns)
    found = minimise(seen.M, f, max_iter=max_iter, tol=tol)
    S = torch.sub(found.E, found.Y, alpha=nu)  # the noise takes nu Y of E, the sparse part the rest
    size = torch.linalg.vector_norm(found.Y, dim=0) if columns else found.Y.abs()
    S *= size >= lam * (1 - 1e-12)  # exact zeros: elsewhere, and where missing, S is round-off
    return LowRankSparse(
        seen.back(found.L / seen.scale),
        seen.back(S / seen.scale),
        found.status,
        found.rank,
        found.n_iter,
        found.objective / seen.scale,
        found.gap,
        _residual_norm(seen, found.L + S),
        seen.back(found.Y),
        found.history,
        float(lam),
    )


def go_dec(
    M: Array,
    rank: int,
    card: int,
    *,
    max_iter: int = 300,
    tol: float = 1e-8,
    seed: int = 0,
) -> LowRankSparse[Array]:
    """Split a large matrix into given rank plus a given number of corrupted entries.

        minimise  ||M - L - S||_F^2   subject to  rank(L) <= rank,  ||S||_0 <= card

    Not convex: each step is a projection, on a subspace that is carried from step to step, so no
    SVD of the whole matrix is ever taken. A step costs `O(m n rank)`.

    Args:
        M: (m, n) array or tensor, real or complex.
        rank: of the low-rank part, 1..min(m, n).
        card: entries that the sparse part may hold, 0..m n.
        max_iter: most steps.
        tol: stop when the residual, or its decrease in one step, falls below `tol ||M||_F`.
        seed: of the random start.

    Returns:
        The parts; float32 is computed in float32. `objective` is `||M - L - S||_F^2`.

    Raises:
        InputError: not a matrix, NaN or Inf, `rank` or `card` out of range.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> L = rng.standard_normal((60, 2)) @ rng.standard_normal((2, 40))
        >>> S = 5.0 * (rng.random((60, 40)) < 0.05)
        >>> result = go_dec(L + S, rank=2, card=int((S > 0).sum()))
        >>> result.status.name, bool(np.abs(result.L - L).max() < 1e-5)
        ('CONVERGED', True)

    Source: Zhou and Tao 2011, algorithm 2. Deviation: their bilateral random projection starts
    afresh in every step; here the last right subspace, with a few directions to spare, goes on.
    """
    seen = observe(M, None, "go_dec", single=True)
    m, n = seen.M.shape
    check_count(rank, "rank", min(m, n), "go_dec")
    check_count(card, "card", m * n, "go_dec", least=0)
    check_count(max_iter, "max_iter", 10**9, "go_dec")
    check_positive(tol, "tol", "go_dec")
    V = _random_basis(seen.M, min(rank + EXTRA, min(m, n)), seed)
    S, L = torch.zeros_like(seen.M), torch.zeros_like(seen.M)
    progress = _Progress(seen.M, tol)
    while not progress.done and len(progress.history) < max_iter:
        Q = torch.linalg.qr((seen.M - S) @ V).Q
        Ub, s, Vh = torch.linalg.svd(Q.mH @ (seen.M - S), full_matrices=False)
        L = (Q @ (Ub[:, :rank] * s[:rank])) @ Vh[:rank]
        V = Vh.mH
        S = _largest(seen.M - L, card)
        progress.record(L + S)
    return progress.result(seen, L, S, rank)


STEP_BEYOND = 0.8
"""Share of its last move by which the low-rank part is carried on before the sparse one is cut."""


WINDOW = 5
"""Steps over which the gain is judged."""


SAMPLE = 50_000
"""Entries from which the size of the last one kept is estimated before the final step."""


def low_rank_plus_sparse(
    W: TensorLike,
    rank: int,
    density: float,
    *,
    max_iter: int = 40,
    tol: float = 1e-3,
    name: str = "low_rank_plus_sparse",
) -> LowRankSparse[Tensor]:
    """Approximate a weight matrix, which is neither, by low rank plus sparse.

        minimise  ||W - L - S||_F^2   subject to  rank(L) <= rank,  ||S||_0 <= density m n

    Not convex: projections in turn, as in `go_dec`, which is for matrices that nearly are such a
    sum. Here the start is the truncated SVD, the subspace goes on from step to step, and each
    move of `L` is carried on by 0.8 of itself, which ends lower than the plain alternation.

    Args:
        W: (m, n), any float type; half types are computed and returned in float32.
        rank: of the low-rank part, 1..min(m, n).
        density: share of the entries that the sparse part keeps, 0..1.
        max_iter: most steps.
        tol: stop when five steps gain less than this share of the residual.
        name: what an error message calls W.

    Returns:
        The parts; exactly `round(density m n)` entries of `S` are kept. `objective` is
        `||W - L - S||_F^2`.

    Raises:
        InputError: W is not a finite real matrix, or the density is outside 0..1.
        RankError: the rank is outside 1..min(m, n).

    Example:
        >>> W = torch.randn(60, 40, generator=torch.Generator().manual_seed(0))
        >>> parts = low_rank_plus_sparse(W, rank=8, density=0.1)
        >>> parts.rank, int((parts.S != 0).sum()), round(parts.residual_norm, 1)
        (8, 240, 21.9)

    Source: Zhou and Tao 2011, the alternation of section 2.1; the start, the over-relaxation and
    the threshold estimated on a sample of the entries are ours.
    """
    W = as_working(W, name, min_dim=2)
    if W.ndim != 2:
        raise InputError(name, f"shape {tuple(W.shape)}, need a matrix", "unfold it first")
    check_rank(rank, min(W.shape), W.shape, name)
    if not 0 <= density <= 1:
        raise InputError(name, f"density {density} is outside 0..1", "give a share of the entries")
    check_count(max_iter, "max_iter", 10**9, name)
    check_positive(tol, "tol", name, zero=True)
    card, size = round(density * W.numel()), frobenius(W) or 1.0
    V = truncated_svd(W, min(rank + EXTRA, *W.shape)).Vh.mT
    S, last, history = torch.zeros_like(W), None, [(1.0, math.inf)]
    while True:
        L, V = _low_rank(W - S, V, rank)
        settled = _settled(history, tol)
        if settled or len(history) > max_iter or card == 0:
            break
        R = W - (L if last is None else torch.lerp(last, L, 1 + STEP_BEYOND))
        S, last = _about_largest(R, card), L
        residual = frobenius(R - S) / size
        history.append((residual, history[-1][0] - residual))
    S = _largest(W - L, card)
    left = frobenius(W - L - S)
    return LowRankSparse(
        L,
        S,
        Status.CONVERGED if settled or card == 0 else Status.MAX_ITER,
        rank,
        len(history) - 1,
        left**2,
        None,
        left,
        None,
        named(history[1:], "residual", "decrease"),
    )


def _low_rank(R: Tensor, V: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """One step of subspace iteration from V (n, k): R at the given rank, and the new V."""
    Q = torch.linalg.qr(R @ V).Q
    B = Q.mT @ R  # (k, n)
    _, E = torch.linalg.eigh((B @ B.mT).double())
    B, Q = E.flip(-1).to(B).mT @ B, Q @ E.flip(-1).to(Q)
    size = torch.linalg.vector_norm(B, dim=1, keepdim=True)
    return Q[:, :rank] @ B[:rank], (B / torch.where(size > 0, size, 1.0)).mT


def _settled(history: list[tuple[float, float]], tol: float) -> bool:
    if len(history) <= WINDOW:
        return False
    return history[-1 - WINDOW][0] - history[-1][0] <= tol * history[-1][0]


def _about_largest(R: Tensor, card: int) -> Tensor:
    """`R` with all but about its `card` largest entries set to zero, by a sample's threshold."""
    stride = max(1, R.numel() // SAMPLE)
    while math.gcd(stride, R.shape[1]) > 1:  # or the sample would see some columns only
        stride += 1
    size = R.abs()
    sample = size.flatten()[::stride]
    kept = max(1, round(card * len(sample) / R.numel()))
    return torch.where(size >= sample.topk(kept).values[-1], R, 0.0)


def greedy_bilateral(
    M: Array,
    card: int,
    *,
    max_rank: int | None = None,
    step: int = 1,
    max_iter: int = 1000,
    tol: float = 1e-8,
    seed: int = 0,
) -> LowRankSparse[Array]:
    """Split a large matrix into low rank plus sparse when the rank is not known.

        find the smallest rank with  ||M - U V - S||_F <= tol ||M||_F,  ||S||_0 <= card

    The rank grows by `step` where the fit of the present rank has stalled; the new directions
    come from the residual. Not convex.

    Args:
        M: (m, n) array or tensor, real or complex.
        card: entries that the sparse part may hold, 0..m n.
        max_rank: largest rank to try; min(m, n) by default.
        step: directions added at a time.
        max_iter: most steps over all ranks.
        tol: relative residual to reach.
        seed: of the random start.

    Returns:
        The parts with the rank that was found. MAX_ITER also means that `max_rank` was reached
        without the residual asked for.

    Raises:
        InputError: not a matrix, NaN or Inf, a count out of range.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> L = rng.standard_normal((60, 3)) @ rng.standard_normal((3, 40))
        >>> S = 5.0 * (rng.random((60, 40)) < 0.05)
        >>> result = greedy_bilateral(L + S, card=int((S > 0).sum()))
        >>> result.status.name, result.rank
        ('CONVERGED', 3)

    Source: Zhou and Tao 2013, algorithm 1 (GreB), with GoDec's hard threshold for `S`.
    """
    seen = observe(M, None, "greedy_bilateral", single=True)
    full = min(seen.M.shape)
    max_rank = full if max_rank is None else max_rank
    check_count(max_rank, "max_rank", full, "greedy_bilateral")
    check_count(card, "card", seen.M.numel(), "greedy_bilateral", least=0)
    check_count(step, "step", full, "greedy_bilateral")
    check_count(max_iter, "max_iter", 10**9, "greedy_bilateral")
    check_positive(tol, "tol", "greedy_bilateral")
    V = _random_basis(seen.M, min(step, max_rank), seed)
    S, L = torch.zeros_like(seen.M), torch.zeros_like(seen.M)
    progress = _Progress(seen.M, tol)
    while not progress.reached and len(progress.history) < max_iter:
        U = torch.linalg.qr((seen.M - S) @ V).Q
        V = (seen.M - S).mH @ U
        L = U @ V.mH
        S = _largest(seen.M - L, card)
        progress.record(L + S)
        if progress.slow and not progress.reached:
            if V.shape[1] == max_rank:
                if progress.done:
                    break
                continue
            new = _residual_directions(seen.M - L - S, min(step, max_rank - V.shape[1]))
            V = torch.cat([V, new], dim=1)
    return progress.result(seen, L, S, V.shape[1], need_reached=True)


STALL = 0.05
"""A greedy step that removes less than this share of the residual makes the rank grow."""


class _Progress:
    """Residual of each step of a greedy method, and whether to go on."""

    def __init__(self, M: Tensor, tol: float) -> None:
        self.M, self.tol = M, tol
        self.size = float(torch.linalg.vector_norm(M))
        self.history: list[tuple[float, float]] = []
        if self.size == 0:
            self.history.append((0.0, 0.0))

    def record(self, fit: Tensor) -> None:
        residual = float(torch.linalg.vector_norm(self.M - fit)) / self.size
        last = self.history[-1][0] if self.history else 1.0
        self.history.append((residual, last - residual))

    @property
    def reached(self) -> bool:
        return bool(self.history) and self.history[-1][0] <= self.tol

    @property
    def done(self) -> bool:
        return self.reached or (bool(self.history) and abs(self.history[-1][1]) <= self.tol)

    @property
    def slow(self) -> bool:
        residual, decrease = self.history[-1]
        return decrease <= STALL * residual

    def result(
        self, seen: Observed[Array], L: Tensor, S: Tensor, rank: int, *, need_reached: bool = False
    ) -> LowRankSparse[Array]:
        good = self.reached if need_reached else self.done
        left = self.history[-1][0] * self.size
        return LowRankSparse(
            seen.back(L / seen.scale),
            seen.back(S / seen.scale),
            Status.CONVERGED if good else Status.MAX_ITER,
            rank,
            len(self.history),
            left**2 / seen.scale / seen.scale,
            None,
            left / seen.scale,
            None,
            named(self.history, "residual", "decrease"),
        )


def _residual_norm(seen: Observed[Any], fit: Tensor) -> float:
    R = seen.M - fit if seen.mask is None else (seen.M - fit) * seen.mask
    return float(torch.linalg.vector_norm(R)) / seen.scale


def _random_basis(M: Tensor, k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: one seed, one answer everywhere
    real = torch.randn(M.shape[1], k, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(real).Q.to(M)


def _largest(R: Tensor, card: int) -> Tensor:
    """`R` with all but its `card` largest entries set to zero."""
    if card == 0:
        return torch.zeros_like(R)
    kept = R.abs().flatten().topk(card, sorted=False).indices
    S = torch.zeros_like(R).flatten()
    S[kept] = R.flatten()[kept]
    return S.view_as(R)


def _residual_directions(R: Tensor, k: int) -> Tensor:
    """About the top `k` right singular vectors of the residual, by two power steps."""
    Q = _random_basis(R, k, 0)
    for _ in range(2):
        Q = torch.linalg.qr(R.mH @ (R @ Q)).Q
    return Q
