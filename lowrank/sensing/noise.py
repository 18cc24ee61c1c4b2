"""The parameters a person does not know: noise level and regularisation, for any solver.

Every rule works on LASSO, `min 1/2 ||A Psi c - y||^2 + lam ||c||_1`, through `sensing.solve`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaincinv

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import MatrixLike
from lowrank.sensing.problems.checks import not_bool
from lowrank.sensing.regularisation import MAX_ROUNDS, _lasso
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers.protocol import Solver
from lowrank.sensing.verdict import debiased, support_of

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
    the support takes out the bias of LASSO. Non-zeros too weak to be seen count as noise.

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

    Source: Sun, Zhang 2012, equation (4) and section 3.3 (least squares after selection).
    """
    problem = _lasso(A, y, basis, nonneg)
    values = np.asarray(problem.y)
    m, p = problem.operator.shape
    norms = problem.operator.column_norms()
    weights = np.where(norms > 0, norms, 1.0)
    size = float(np.linalg.norm(values))
    std, support = size / math.sqrt(m), np.zeros(0, dtype=int)
    for _ in range(MAX_ROUNDS):
        if std <= 1e-12 * size / math.sqrt(m):
            break
        lam = std * math.sqrt(2 * math.log(max(p, 2)))
        found = solve(replace(problem, lam=lam, weights=weights), solver, tol=SUPPORT_GAP)
        chosen = support_of(np.asarray(found.coefficients))
        if chosen.size > m // 2:  # too many to leave a residual: keep what the last round gave
            break
        r = values - problem.operator.forward(debiased(problem, np.asarray(found.coefficients)))
        last, std = std, float(np.linalg.norm(r)) / math.sqrt(m - chosen.size)
        support = chosen
        if abs(std - last) <= 1e-3 * last:
            break
    return NoiseEstimate(std, noise_bound(std, m, is_complex=problem.is_complex), int(support.size))


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
