"""How many components a matrix deserves: by energy, by error, or by what stands out of noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor

from lowrank.decompositions.svd import singular_values
from lowrank.errors import InputError
from lowrank.linalg import TensorLike, as_working


def energy_rank(s: Tensor, energy: float) -> int:
    """Least rank that keeps a share of the squared singular values.

        min r  subject to  sum_{i <= r} s_i^2 >= energy * sum_i s_i^2

    Args:
        s: singular values, descending, shape (k,).
        energy: share to keep, in (0, 1].

    Returns:
        Rank in 1..k; 1 if all singular values are zero.

    Raises:
        InputError: s is not a finite vector, or the energy is outside (0, 1].

    Example:
        >>> import torch
        >>> energy_rank(torch.tensor([3.0, 1.0, 0.5]), 0.95)
        2
    """
    if not 0 < energy <= 1:
        raise InputError("energy_rank", f"energy {energy} is outside (0, 1]", "give a share")
    return _least_rank(s, 1 - energy, "energy_rank")


def error_rank(s: Tensor, rel_error: float) -> int:
    """Least rank whose best approximation has at most this relative Frobenius error.

        min r  subject to  sum_{i > r} s_i^2 <= rel_error^2 * sum_i s_i^2

    Args:
        s: singular values, descending, shape (k,).
        rel_error: bound on ||W - W'|| / ||W||, in [0, 1).

    Returns:
        Rank in 1..k; 1 if all singular values are zero.

    Raises:
        InputError: s is not a finite vector, or the error is outside [0, 1).

    Example:
        >>> import torch
        >>> error_rank(torch.tensor([3.0, 1.0, 0.5]), 0.2)
        2
    """
    if not 0 <= rel_error < 1:
        raise InputError("error_rank", f"relative error {rel_error} is outside [0, 1)", "lower it")
    return _least_rank(s, rel_error**2, "error_rank")


def _least_rank(s: Tensor, lost: float, name: str) -> int:
    """Least rank that loses at most this share of the energy, summed from the small end."""
    s = as_working(s, name)
    if s.ndim != 1:
        raise InputError(name, f"shape {tuple(s.shape)}, need a vector", "pass singular values")
    tails = s.double().square().flip(0).cumsum(0).flip(0)  # tails[r] = energy lost at rank r
    return max(1, int((tails > lost * tails[0]).sum()))


@dataclass(frozen=True, eq=False)
class EVBMF:
    """Global solution of empirical variational Bayes matrix factorization.

    Attributes:
        s: (rank,) posterior singular values, shrunken; the singular vectors are those of W.
        sigma2: noise variance per entry, given or estimated.
    """

    s: Tensor
    sigma2: float

    @property
    def rank(self) -> int:
        """Number of singular values that stand out of the noise; 0 if none does."""
        return self.s.shape[0]


def evbmf(W: TensorLike, sigma2: float | None = None, *, name: str = "evbmf") -> EVBMF:
    """Low-rank part of a noisy matrix by empirical variational Bayes, in closed form.

    With L = min(m, n), M = max(m, n), alpha = L / M, and tau > 0 the root of
    log(1 + tau) + alpha log(1 + tau / alpha) = tau, a singular value is kept if it exceeds
    sqrt(M sigma2 (1 + tau) (1 + alpha / tau)), and shrunken to

        s/2 (1 - (L+M) sigma2 / s^2 + sqrt((1 - (L+M) sigma2 / s^2)^2 - 4 L M sigma2^2 / s^4))

    An unknown sigma2 minimises the free energy, a function of one variable, between its bounds.

    Args:
        W: (m, n), any float type.
        sigma2: noise variance per entry, > 0; estimated when None.
        name: what an error message calls W.

    Returns:
        `EVBMF` with the posterior singular values and the noise variance.

    Raises:
        InputError: W is not a finite real matrix, or sigma2 is not positive.

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> W = torch.randn(60, 3) @ torch.randn(3, 80) + 0.1 * torch.randn(60, 80)
        >>> evbmf(W).rank
        3

    Source: Nakajima, Sugiyama, Babacan and Tomioka 2013, "Global analytic solution of
    fully-observed variational Bayesian matrix factorization": the empirical solution and its noise
    variance. They approximate tau by 2.5129 sqrt(alpha); we solve for it, and search a grid before
    the bounded minimisation.
    """
    W = as_working(W, name, min_dim=2)
    if W.ndim != 2:
        raise InputError(name, f"shape {tuple(W.shape)}, need a matrix", "unfold it first")
    if sigma2 is not None and not 0 < sigma2 < math.inf:
        raise InputError(name, f"noise variance {sigma2} is not positive", "omit it to estimate it")
    L, M = sorted(W.shape)
    spectrum = singular_values(W, name=name).double()
    s = spectrum.cpu().numpy()
    if sigma2 is None:
        sigma2 = _noise_variance(s, L, M)
    kept = s[s > math.sqrt(M * sigma2 * _threshold(L / M))]
    ratio = 1 - (L + M) * sigma2 / kept**2
    shrunken = kept / 2 * (ratio + np.sqrt(ratio**2 - 4 * L * M * sigma2**2 / kept**4))
    return EVBMF(spectrum.new_tensor(shrunken).to(W.dtype), sigma2)


def evbmf_rank(W: TensorLike, sigma2: float | None = None, *, name: str = "evbmf_rank") -> int:
    """Number of singular values of W that stand out of the noise; see `evbmf`.

    Args:
        W: (m, n), any float type.
        sigma2: noise variance per entry, > 0; estimated when None.
        name: what an error message calls W.

    Returns:
        Rank in 0..min(m, n).

    Raises:
        InputError: W is not a finite real matrix, or sigma2 is not positive.

    Example:
        >>> import torch
        >>> evbmf_rank(torch.zeros(4, 5))
        0
    """
    return evbmf(W, sigma2, name=name).rank


@lru_cache(maxsize=256)
def _threshold(alpha: float) -> float:
    """Squared singular value / (M sigma2) from which a component lowers the free energy."""

    def gain(tau: float) -> float:
        return math.log1p(tau) + alpha * math.log1p(tau / alpha) - tau

    near = 2.5129 * math.sqrt(alpha)  # exact for alpha = 1
    tau = brentq(gain, near / 4, near * 4)
    return (1 + tau) * (1 + alpha / tau)


def _noise_variance(s: NDArray[np.float64], L: int, M: int) -> float:
    """Minimise the free energy over log sigma2 between the bounds of the paper."""
    energy = float(s @ s)
    upper = energy / (L * M)
    if upper == 0.0:
        return 0.0
    tail = s[math.ceil(L / (1 + L / M)) - 1 :]  # what no number of components can explain
    lower = max(
        tail[0] ** 2 / (M * _threshold(L / M)),
        float(tail @ tail) / len(tail) / M,
        upper * 1e-12,  # an exactly low-rank matrix has no noise: keep the logarithm finite
    )
    grid = np.linspace(math.log(min(lower, upper)), math.log(upper), 65)  # several valleys
    values = [_free_energy(s, L, M, math.exp(x)) for x in grid]
    best = int(np.argmin(values))
    found = minimize_scalar(
        lambda x: _free_energy(s, L, M, math.exp(x)),
        bounds=(grid[max(best - 1, 0)], grid[min(best + 1, 64)]),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(found.x)


def _free_energy(s: NDArray[np.float64], L: int, M: int, sigma2: float) -> float:
    """Free energy up to a constant, as a function of the noise variance."""
    alpha = L / M
    x = s**2 / (M * sigma2)
    z = x[x > _threshold(alpha)]
    noise = x[x <= _threshold(alpha)]
    b = z - (1 + alpha)
    tau = (b + np.sqrt(b**2 - 4 * alpha)) / 2
    return float(
        np.sum(noise - np.log(np.maximum(noise, np.finfo(float).tiny)))
        + np.sum(z - tau)
        + np.sum(np.log((tau + 1) / z))
        + alpha * np.sum(np.log(tau / alpha + 1))
    )
