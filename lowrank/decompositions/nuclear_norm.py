"""Nuclear-norm minimisation with a duality gap: the engine of robust PCA and completion.

Every convex problem of `low_rank_sparse` and `completion` has the form

    minimise  ||L||_* + f(M - L)

with `f` a `Penalty`: separable, free on the missing entries, known by its conjugate. Its dual is

    maximise  <Y, M> - f*(Y)   subject to  ||Y||_2 <= 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lowrank.status import Status

EXTRA = 10
"""Directions that the warm subspace carries beyond the rank, so that it sees the rank grow."""


START = 1.25
"""First penalty, over the spectral norm of the matrix (Lin, Chen, Ma 2010)."""


GROWTH = 1.5
"""Factor by which the penalty moves towards balanced residuals (Lin, Chen, Ma 2010: 1.5)."""


CALMING = 0.7
"""Exponent on the factor whenever it turns, so that the penalty comes to rest and cannot cycle."""


RELAXATION = 1.6
"""Over-relaxation while the penalty rests (Boyd et al. 2011, section 3.4.3); halves the steps."""


PLAIN = 30
"""Steps without over-relaxation, which slows down those matrices that need no more than these."""


class Penalty(Protocol):
    """A convex `f` of the residual `M - L`, through its conjugate."""

    def dual_step(self, v: Tensor, tau: float) -> Tensor:
        """Prox of the conjugate at `v / tau`, in the place of `v`.

        `v - tau * dual_step(v, tau)` is the prox of `tau f`.
        """

    def bound(self, R: Tensor) -> float:
        """`f(R)`, or what moving `R` into the domain of `f` may add to the nuclear norm."""

    def conjugate(self, Y: Tensor) -> float:
        """`f*(Y)` for a `Y` that `dual_step` returned, shrunk by any factor in [0, 1]."""


@dataclass(frozen=True, eq=False)
class Huber:
    """`lam ||S||_1 + ||Z||_F^2 / (2 nu)` minimised over `S + Z = R`, on the observed entries.

    `nu = 0` leaves the L1 norm, `lam = inf` the square. With `columns` the L1 norm is the sum of
    the Euclidean norms of the columns.
    """

    lam: float
    nu: float = 0.0
    mask: Tensor | None = None
    columns: bool = False

    def dual_step(self, v: Tensor, tau: float) -> Tensor:
        """`v / (nu + tau)`, cut to `lam` entry by entry or column by column."""
        Y = v.mul_(1 / (self.nu + tau))
        if self.mask is not None:
            Y *= self.mask
        if not self.columns and not Y.is_complex():
            return Y.clamp_(-self.lam, self.lam)
        size = torch.linalg.vector_norm(Y, dim=0, keepdim=True) if self.columns else Y.abs()
        return Y * (self.lam / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp_max_(1.0)

    def bound(self, R: Tensor) -> float:
        """The penalty's value; every `R` is in its domain."""
        if self.mask is not None:
            R = R * self.mask
        size = torch.linalg.vector_norm(R, dim=0) if self.columns else R.abs()
        knee = self.lam * self.nu
        if self.nu == 0:
            return self.lam * float(size.sum())
        inside = size <= knee
        square = float(size[inside].square().sum()) / (2 * self.nu)
        outside = size[~inside]
        linear = self.lam * float((outside - knee / 2).sum()) if outside.numel() else 0.0
        return square + linear

    def conjugate(self, Y: Tensor) -> float:
        """`nu / 2 ||Y||_F^2`, on `|Y| <= lam`."""
        return self.nu / 2 * float(torch.linalg.vector_norm(Y)) ** 2


@dataclass(frozen=True, eq=False)
class Ball:
    """The constraint `||R||_F <= epsilon` on the observed entries."""

    epsilon: float
    mask: Tensor | None = None

    def _outside(self, R: Tensor) -> Tensor:
        R = R if self.mask is None else R * self.mask
        size = float(torch.linalg.vector_norm(R))
        return R * max(0.0, 1.0 - self.epsilon / size) if size else R

    def dual_step(self, v: Tensor, tau: float) -> Tensor:
        """What of `v` lies outside the ball, over `tau`."""
        return self._outside(v) / tau

    def bound(self, R: Tensor) -> float:
        """Nuclear norm of the smallest change of `L` that makes it feasible."""
        return float(singular_values(self._outside(R)).sum())

    def conjugate(self, Y: Tensor) -> float:
        """`epsilon ||Y||_F`."""
        return self.epsilon * float(torch.linalg.vector_norm(Y))


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the iteration ended; `E` is the part of `M` that `f` takes."""

    L: Tensor
    E: Tensor
    Y: Tensor
    rank: int
    status: Status
    n_iter: int
    objective: float
    gap: float
    history: dict[str, list[float]]


def singular_values(X: Tensor) -> Tensor:
    """Singular values by the Gram matrix of the short side, ascending.

    Ten times faster than an SVD; values below `sqrt(eps) * ||X||_2` are lost.
    """
    gram = X @ X.mH if X.shape[0] <= X.shape[1] else X.mH @ X
    return torch.linalg.eigvalsh(gram).clamp_min_(0).sqrt_()


def leading_right(X: Tensor) -> tuple[Tensor, Tensor]:
    """All singular values, descending, and right singular vectors (n, min(m, n)) of `X`."""
    if X.shape[0] >= X.shape[1]:
        w, V = torch.linalg.eigh(X.mH @ X)
        return w.clamp_min_(0).sqrt_().flip(0), V.flip(1)
    w, U = torch.linalg.eigh(X @ X.mH)
    s = w.clamp_min_(0).sqrt_()
    V = X.mH @ (U / s.clamp_min(s[-1] * 1e-12 + torch.finfo(s.dtype).tiny))
    return s.flip(0), V.flip(1)


def shrink(X: Tensor, tau: float, V: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Singular value threshold `argmin_L tau ||L||_* + ||L - X||_F^2 / 2`.

    One warm subspace step when `V`, the last right singular vectors with `EXTRA` to spare, is
    given and small; as the outer iteration settles so does the subspace. Else the Gram matrix.

    Args:
        X: (m, n).
        tau: threshold.
        V: (n, k) from the last call, or None to force the exact step.

    Returns:
        the thresholded matrix, its non-zero singular values, and the next `V`.

    Source: Lin, Chen, Ma 2010, section 4; Lin and Wei 2010 (warm start).
    """
    if V is not None and 4 * V.shape[1] <= min(X.shape):
        Q = torch.linalg.qr(X @ V).Q
        Ub, s, Vh = torch.linalg.svd(Q.mH @ X, full_matrices=False)
        rank = int((s > tau).sum())
        if rank < len(s):  # else a direction above tau may be missing
            L = (Q @ (Ub[:, :rank] * (s[:rank] - tau))) @ Vh[:rank]
            return L, s[:rank] - tau, Vh.mH[:, : rank + EXTRA]
    s, V = leading_right(X)
    rank = int((s > tau).sum())
    kept = V[:, :rank]
    L = (X @ (kept * (1 - tau / s[:rank]))) @ kept.mH
    return L, s[:rank] - tau, V[:, : rank + EXTRA]


def relative_gap(M: Tensor, L: Tensor, norm: float, Y: Tensor, f: Penalty) -> tuple[float, float]:
    """Primal value at `L` and the relative duality gap to `Y` shrunk into the dual's domain."""
    primal = norm + f.bound(M - L)
    scale = 1 / max(1.0, float(singular_values(Y)[-1]))
    dual = scale * float((Y.conj() * M).sum().real) - f.conjugate(scale * Y)
    return primal, abs(primal - dual) / primal if primal else 0.0


def minimise(M: Tensor, f: Penalty, *, max_iter: int, tol: float) -> Solution:
    """Minimise `||L||_* + f(M - L)` by an inexact augmented Lagrangian with balanced residuals.

    Args:
        M: (m, n), float64 or complex128, zero on the missing entries.
        f: penalty of the residual.
        max_iter: most singular value thresholds.
        tol: relative duality gap and relative primal residual to reach.

    Source: Lin, Chen, Ma 2010, algorithm 5. Deviation: their penalty only grows, which stops the
    iteration at a feasible point that need not be the optimum; here it follows the ratio of the
    residuals (Boyd et al. 2011, section 3.4.1), and the gap decides.
    """
    spectrum, basis = leading_right(M)
    size, top = float(torch.linalg.vector_norm(M)), float(spectrum[0])
    mu = START / top if top else 1.0
    V: Tensor | None = basis[:, : int((spectrum > 1 / mu).sum()) + EXTRA]
    rest, L, Y = M.clone(), torch.zeros_like(M), torch.zeros_like(M)  # rest = M - E
    s, primal, gap = M.real.new_zeros(0), 0.0, 0.0
    status = Status.MAX_ITER
    history: list[tuple[float, float]] = []
    settled, next_check, growth, went_up = False, 0, GROWTH, True
    for n_iter in range(max_iter):
        L_last, (L, s, V) = L, shrink(torch.add(rest, Y, alpha=1 / mu), 1 / mu, V)
        taken = rest.lerp_(L, RELAXATION) if settled and n_iter >= PLAIN else L
        v = torch.add(M, Y, alpha=1 / mu).sub_(taken)
        Y_last, Y = Y, f.dual_step(v, 1 / mu)
        step = torch.sub(Y, Y_last, out=Y_last)
        rest = torch.add(taken, step, alpha=1 / mu)
        feasible = float(torch.linalg.vector_norm(step)) / (mu * size or 1.0)
        moving = mu * float(torch.linalg.vector_norm(L_last.sub_(L)))
        moving /= float(torch.linalg.vector_norm(Y)) or 1.0
        history.append((feasible, moving))
        if feasible <= tol and moving <= 10 * tol and n_iter >= next_check:
            primal, gap = relative_gap(M, L, float(s.sum()), Y, f)
            if gap <= tol and float(torch.linalg.vector_norm(rest - L)) <= tol * size:
                status = Status.OPTIMAL
                break
            V, next_check = V if gap <= 100 * tol else None, n_iter + 5  # else one may be missed
        settled = moving / 10 <= feasible <= moving
        if not settled:
            up = feasible > moving
            growth **= 1.0 if up == went_up else CALMING
            mu, went_up = mu * growth if up else mu / growth, up
    if status is Status.MAX_ITER:
        primal, gap = relative_gap(M, L, float(s.sum()), Y, f)
    residuals = named(history, "primal_residual", "dual_residual")
    return Solution(L, M - rest, Y, len(s), status, len(history), primal, gap, residuals)


def named(history: Sequence[tuple[float, ...]], *names: str) -> dict[str, list[float]]:
    """A history with a row for each iteration, as name -> values.

    Example:
        >>> named([(0.5, 0.1), (0.2, 0.0)], "residual", "decrease")
        {'residual': [0.5, 0.2], 'decrease': [0.1, 0.0]}
    """
    return {name: [row[i] for row in history] for i, name in enumerate(names)}
