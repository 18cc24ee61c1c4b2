"""The parameters a person does not know: noise level and regularisation, for any solver.

Every rule works on LASSO, `min 1/2 ||A Psi c - y||^2 + lam ||c||_1`, through `sensing.solve`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtri, gammaincinv

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import MatrixLike
from lowrank.sensing.problems.checks import not_bool
from lowrank.sensing.problems.l1 import Lasso
from lowrank.sensing.regularisation import MAX_ROUNDS, _lasso, _log_binomial
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers.protocol import Solver
from lowrank.sensing.verdict import debiased, support_of

STARTS = 1.0, 0.3, 0.1, 0.03
"""Levels of noise to begin at, as shares of the measurements: from above, few measurements take all
of the signal for noise, and from far below, all noise for signal."""


CONFIDENCE = 0.95
"""Probability with which the noise stays below the bound that is estimated."""


SUPPORT_GAP = 1e-6
"""Gap of the LASSO answers of which the noise estimate only uses the support."""


@dataclass(frozen=True)
class NoiseEstimate:
    """Noise level of measurements.

    Attributes:
        std: standard deviation of the noise on each measurement.
        epsilon: bound that the noise's norm stays below with probability 95 %, for BPDN.
        n_columns: columns that were taken as signal.
    """

    std: float
    epsilon: float
    n_columns: int


def estimate_noise(
    A: MatrixLike,
    y: ArrayLike,
    *,
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    solver: str | Solver = "auto",
) -> NoiseEstimate:
    """Noise level of `y = A Psi c + e` with sparse c, by the scaled LASSO.

        S   <- support of LASSO at weights ||a_j||,  lam = std sqrt(2 log p)
        std <- ||y - P_S y|| / sqrt(m - |S|)

    repeated until it settles: at that lam pure noise selects hardly a column, and least squares on
    the support takes out the bias of LASSO. Few measurements let it settle at several levels; of
    all supports on the way from `STARTS` the extended Bayesian criterion takes one. Non-zeros too
    weak to be seen count as noise.

    Args:
        A: measurement operator (m, n).
        y: measurements (m,).
        basis: `Psi` (n, p); None is the identity.
        nonneg: for `c >= 0`.
        solver: any solver of LASSO, by name or as an object.

    Returns:
        Standard deviation of each measurement's noise, and a bound for BPDN.

    Raises:
        InputError: wrong shapes, NaN or Inf.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((80, 160)), np.zeros(160)
        >>> x[[3, 50]] = 1, -2
        >>> found = estimate_noise(A, A @ x + 0.1 * rng.standard_normal(80))
        >>> 0.08 < found.std < 0.12
        True

    Source: Sun, Zhang 2012, equation (4) and section 3.3 (least squares after selection); Chen,
        Chen 2008, equation (2), for the choice; the starts and the bound are ours.
    """
    problem = _lasso(A, y, basis, nonneg)
    m, p = problem.operator.shape
    size, parts = float(np.linalg.norm(np.asarray(problem.y))), 2 if problem.is_complex else 1
    weights = problem.operator.column_norms()
    weighed = replace(problem, weights=np.where(weights > 0, weights, 1.0))
    fits = [Fit(0, size)]
    for share in STARTS if size else ():
        fits += _fits(weighed, share * size / math.sqrt(m), solver)
    best = min(fits, key=lambda fit: _score(fit, parts * m, parts, p, size))
    std = best.residual_norm / math.sqrt(m - best.n_columns)
    return NoiseEstimate(std, _bound(best, m, parts, p), best.n_columns)


class Fit(NamedTuple):
    """Least squares on a support."""

    n_columns: int
    residual_norm: float


def _fits(problem: Lasso, std: float, solver: str | Solver) -> Iterator[Fit]:
    """Least squares on the supports of LASSO, on the way to a level of noise that agrees."""
    m, p = problem.operator.shape
    y, weights, least = np.asarray(problem.y), np.asarray(problem.weights), 1e-12 * std
    for _ in range(MAX_ROUNDS):
        if std <= least:
            return
        lam = std * math.sqrt(2 * math.log(max(p, 2)))
        c = np.array(solve(replace(problem, lam=lam), solver, tol=SUPPORT_GAP).coefficients)
        crowded = support_of(c).size > m // 2  # too many to leave a residual
        if crowded:
            c[np.argsort(-np.abs(c) * weights)[m // 4 :]] = 0
        chosen = support_of(c).size
        r = y - problem.operator.forward(debiased(problem, c))
        fit = Fit(chosen, float(np.linalg.norm(r)))
        yield fit
        last, std = std, fit.residual_norm / math.sqrt(m - chosen)
        if crowded or abs(std - last) <= 1e-3 * last:
            return


def _score(fit: Fit, m: int, parts: int, p: int, size: float) -> float:
    """The extended Bayesian criterion, of real measurements and unknowns."""
    left = max(fit.residual_norm, 1e-12 * size, 1e-300)
    price = math.log(m) * parts * fit.n_columns + 2 * _log_binomial(p, fit.n_columns)
    return 2 * m * math.log(left) + price


def _bound(fit: Fit, m: int, parts: int, p: int) -> float:
    """What the noise's norm stays below: what is left, and what the columns took of the noise.

    That share is to the rest as `F` tells; one column may be noise, and the best of p.
    """
    k = fit.n_columns
    if not k:
        return fit.residual_norm
    variance = fit.residual_norm**2 / (m - k)
    quantile = float(fdtri(parts * k, parts * (m - k), CONFIDENCE))
    return math.sqrt(fit.residual_norm**2 + variance * (k * quantile + 2 * math.log(p)))


def noise_bound(std: float, m: int, *, is_complex: bool = False, confidence: float = 0.95) -> float:
    """Bound that `||e||_2` of m Gaussian errors stays below: `std sqrt(chi-squared quantile)`.

    Args:
        std: standard deviation of each measurement's noise (of its modulus, if complex), >= 0.
        m: measurements.
        is_complex: complex errors have two degrees of freedom each.
        confidence: probability in (0, 1).

    Returns:
        epsilon for BPDN.

    Raises:
        InputError: a value out of range.

    Example:
        >>> round(noise_bound(0.1, 100), 4)
        1.1151
    """
    for name, value in (("std", std), ("m", m), ("confidence", confidence)):
        not_bool(name, np.asarray(value))
    if not std >= 0 or m < 1 or not 0 < confidence < 1:
        problem = f"std={std}, m={m}, confidence={confidence}"
        raise InputError("noise_bound", problem, "pass std >= 0, m >= 1, confidence in (0, 1)")
    parts = 2 if is_complex else 1
    return std * math.sqrt(2 * float(gammaincinv(parts * m / 2, confidence)) / parts)
