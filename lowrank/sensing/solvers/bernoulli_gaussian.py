"""The Bernoulli-Gaussian prior of message passing: posterior of one entry, and its EM update.

Each entry is 0 with probability `1 - rho` and else Gaussian of variance `s`; it is seen as
`r = x + N(0, tau)`. Arrays are (n, batch), parameters (batch,).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.solvers.amp import minimax_threshold
from lowrank.status import Status

# Shares are kept this far from 0 and 1, so that log-odds stay finite.
MARGIN = 1e-6


class Prior(NamedTuple):
    """Share `rho` of non-zeros and their variance `s`, (batch,)."""

    rho: Array
    s: Array


class Messages(NamedTuple):
    """Where message passing ended.

    Attributes:
        x: estimate, (n, batch).
        status: how it ended.
        n_iter: iterations.
        variance: mean posterior variance of an entry, (batch,): the squared error that state
            evolution predicts where the prior fits.
        unbiased: the squared error of an entry by Stein's formula, (batch,), which holds whatever
            the prior as long as the pseudo-data are the signal and white noise.
        spread: standard deviation of that, (batch,).
    """

    x: Array
    status: Status
    n_iter: int
    variance: Array
    unbiased: Array
    spread: Array


def ended(
    x: Array, status: Status, n_iter: int, r: Array, tau: Array, mean: Array, slope: Array
) -> Messages:
    """The result, from the last pseudo-data `r`, their variance and the posterior of them."""
    moved = (np.abs(mean - r) ** 2).mean(axis=0, dtype=float)
    variance, unbiased = slope * tau, moved - tau + 2 * tau * slope
    return Messages(x, status, n_iter, variance, unbiased, tau * np.sqrt(2 / len(r)))


class Posterior(NamedTuple):
    """Mean, its average derivative `d mean / d r`, and the prior that fits the posterior best."""

    mean: Array
    slope: Array
    prior: Prior


def first_prior(delta: float, energy: Array) -> Prior:
    """Start of EM: the sparsity that L1 could recover, with variance from the signal's energy.

    Args:
        delta: sensing ratio m/n.
        energy: estimate of `||x||^2 / n`, (batch,).

    Source: Vila and Schniter, 2013, equations (69) to (71).
    """
    a = minimax_threshold(min(delta, 0.95))
    M = 2 * ((1 + a * a) * math.erfc(a / math.sqrt(2)) / 2 - a * math.exp(-a * a / 2) / 2.5066283)
    rho = max(min(delta, 0.95) * (1 - M / min(delta, 0.95)) / (1 + a * a - M), MARGIN)
    return Prior(np.full(energy.shape, rho), np.maximum(energy, 1e-300) / rho)


def posterior(r: Array, tau: Array, prior: Prior) -> Posterior:
    """Posterior of the entries, real or circular complex, and one EM step for the prior.

    Args:
        r: pseudo-data, (n, batch).
        tau: their noise variance, (batch,).
        prior: the present prior.

    Source: Vila and Schniter, 2013, equations (12) to (14), (19) and (25), with zero mean.
    """
    dimension = 1.0 if np.iscomplexobj(r) else 0.5
    rho, s = prior
    own = r.real.dtype  # what is of an entry stays in the precision of r
    gain = s / (s + tau)
    square = r.real**2 + r.imag**2 if np.iscomplexobj(r) else r * r
    odds = np.log(rho / (1 - rho)) + dimension * np.log(tau / (s + tau))
    share = expit(odds.astype(own) + square * (dimension * gain / tau).astype(own))
    total, energy = share.sum(axis=0), share * square * (gain**2).astype(own)
    # share (1 - share) and not E x^2 - (E x)^2, whose digits cancel once tau is small
    variance = np.einsum("ij,ij->j", energy, 1 - share) + gain * tau * total
    fitted = Prior(
        np.clip(total / len(r), MARGIN, 1 - MARGIN),
        np.maximum(energy.sum(axis=0) / np.maximum(total, 1e-300) + gain * tau, 1e-300),
    )
    slope = (variance / (len(r) * tau)).astype(own)
    return Posterior(share * (gain.astype(own) * r), slope, fitted)
