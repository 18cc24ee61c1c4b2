"""Approximate message passing with the minimax threshold."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@lru_cache(maxsize=64)
def minimax_threshold(delta: float, *, nonneg: bool = False) -> float:
    """Threshold, in units of the noise, that recovers the least sparse signals at `delta = m/n`.

    It maximises `rho(a) = (1 - c M(a) / delta) / (1 + a^2 - c M(a))` with
    `M(a) = (1 + a^2) Phi(-a) - a phi(a)` and `c = 2`, or 1 for non-negative signals.

    Args:
        delta: sensing ratio m/n, in (0, 1].
        nonneg: signals are known to be non-negative.

    Returns:
        The threshold `a`.

    Example:
        >>> round(minimax_threshold(0.25), 2)
        1.29

    Source: Donoho, Maleki and Montanari, 2009, equation (7) of the supplement.
    """
    sides = 1 if nonneg else 2

    def rho(a: float) -> float:
        phi = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
        M = sides * ((1 + a * a) * math.erfc(a / math.sqrt(2)) / 2 - a * phi)
        return (1 - M / delta) / (1 + a * a - M)

    low, high, golden = 0.0, 8.0, (math.sqrt(5) - 1) / 2
    for _ in range(48):  # golden section; rho has one peak where it is positive
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (left, high) if rho(left) < rho(right) else (low, right)
    return (low + high) / 2


class AmpState(NamedTuple):
    """Where message passing stopped: pseudo-data, residual, noise level, iterations.

    `falling` is False if the residual grew or stalled; `reached` is True if it fell far enough.
    """

    pseudo: Array
    z: Array
    sigma: float
    n_iter: int
    falling: bool
    reached: bool


def amp_start(
    A: Array, y: Array, weights: Array | float = 1.0, *, norm: float = 1.0, reach: float = 0.03,
    max_iter: int = 25, nonneg: bool = False,
) -> AmpState:  # fmt: skip
    """Run AMP only until the residual shows that the support is about known.

    Args:
        A: matrix, shape (m, n); float32 halves the time.
        y: measurements, shape (m,).
        weights: penalty weights about 1, a number or shape (n,).
        norm: norm that the columns of A about have; pseudo-data are for columns of norm 1.
        reach: stop at `||z|| < reach ||y||`.
        max_iter: number of iterations, two products each.
        nonneg: threshold one-sidedly.

    Returns:
        The state; not `falling` for coherent matrices, not `reached` near the phase transition.
    """
    m, n = A.shape
    number = A.dtype.type
    threshold = weights * number(minimax_threshold(min(m / n, 0.95), nonneg=nonneg))
    scale = float(np.linalg.norm(y))
    z = y = y.astype(A.dtype, copy=False)
    x = pseudo = np.zeros(n, A.dtype)
    size, onto_unit, root = scale, number(1 / norm), math.sqrt(m)
    for it in range(1, max_iter + 1):
        pseudo = x + (z * onto_unit) @ A
        x = np.clip(pseudo, 0, None) if nonneg else pseudo
        cut = threshold * number(size / root)
        x = x - (np.minimum(x, cut) if nonneg else np.clip(x, -cut, cut))
        z = y - A @ (x * onto_unit) + z * number(np.count_nonzero(x) / m)
        size = math.sqrt(float(z @ z))
        if not size < (0.35 if it >= 10 else 1.5) * scale:
            return AmpState(pseudo, z, size / root, it, False, False)
        if size < reach * scale:
            break
    return AmpState(pseudo, z, size / root, it, True, size < reach * scale)
