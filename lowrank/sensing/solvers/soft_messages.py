"""Message passing whose fixed point is the LASSO's, or BPDN's, solution."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.solvers.on_support import Twin

FIRST_THRESHOLD = 2.0
"""In units of the noise of the pseudo-data; BPDN's own is near it where epsilon is the noise."""
STEADY = 1e-4
"""Relative change of the coefficients at which they are handed over."""
CROWDED = 0.9
"""Non-zeros, as a share of the rows, from which on the threshold rises."""
RAISED = 1.25
"""How many times, then."""
QUIET = 0.02
"""The same, relative to what is left of the measurements, which is little where noise is."""


class Penalty(NamedTuple):
    """`lam ||w x||_1`, with `lam` given or such that `||y - A x|| = epsilon`."""

    weights: Array
    nonneg: bool
    lam: float | None
    epsilon: float

    def shrink(self, r: Array, theta: float) -> tuple[Array, float]:
        """Soft threshold at `theta w`, and its mean derivative."""
        size = np.maximum(r, 0) if self.nonneg else np.abs(r)
        kept = size > (cut := self.weights.astype(size.dtype) * size.dtype.type(theta))
        share = np.where(kept, 1 - cut / np.where(kept, size, 1), 0)
        if not np.iscomplexobj(r):
            return share * r, float(np.count_nonzero(kept)) / r.size
        return share * r, float((np.count_nonzero(kept) + share.sum()) / (2 * r.size))


def soft_messages(
    A: Twin, y: Array, penalty: Penalty, start: Array, *, orthonormal: bool, limit: int,
    tell: Callable[[Array], None],
) -> tuple[Array, float] | None:  # fmt: skip
    """Coefficients near the solution of the LASSO or BPDN, and its `lam`; None if it diverged.

    With `z` what is left of the measurements, `d` the mean derivative and `x` the thresholded
    pseudo-data `r`, the fixed point satisfies `A^H (y - A x) = theta (1 - d n / m) s` for columns
    of norm 1, and `theta (m / n - d) / (1 - d) s` for orthonormal rows, with `s` a subgradient of
    the L1 norm: so the threshold follows from `lam`, or is adjusted until `||y - A x||` fits.

    Args:
        A: the operator, with orthonormal rows, or columns of norm 1 on the average.
        y: measurements, (m,).
        penalty: weights, and `lam` or `epsilon`.
        start: an estimate, (n,).
        orthonormal: whether the rows are orthonormal.
        limit: of the iterations, two products each.
        tell: is told of the coefficients at each.

    Source: Donoho, Maleki and Montanari, 2011, equation (1.9), for the calibration with AMP; that
        with orthonormal rows is ours.
    """
    m, n = A.shape
    delta, x = m / n, start.astype(A.dtype)
    number = np.zeros(0, A.dtype).real.dtype.type
    y, z, d = y.astype(A.dtype), y.astype(A.dtype) - A.forward(x), 0.0
    unit, size = (delta, float(np.linalg.norm(y))) if orthonormal else (1.0, 0.0)
    size = float(np.linalg.norm(y))
    r, factor = x + A.adjoint(z) / number(unit), FIRST_THRESHOLD
    theta = 0.0
    for k in range(limit):
        noise = float(np.linalg.norm(z)) / np.sqrt(m) / np.sqrt(delta if orthonormal else 1.0)
        theta = _next_threshold(penalty, theta, factor * noise, d, delta, orthonormal)
        before, (x, d) = x, penalty.shrink(r, theta)
        while d > CROWDED * delta and theta > 0:
            theta *= RAISED
            x, d = penalty.shrink(r, theta)
        tell(x)
        if not d < CROWDED * delta:
            return None
        d = d or 0.5 / n
        if orthonormal:
            inner = x - number(d / (1 - d)) * (r - x)
            z = y - A.forward(inner)
        else:
            inner = x
            z = y - A.forward(x) + z * number(d / delta)
        left = float(np.linalg.norm(z)) * (1 - d / delta)
        if not left < 3 * size:
            return None
        change, length = float(np.linalg.norm(x - before)), float(np.linalg.norm(x))
        if change < min(STEADY * length, QUIET * left) and k > 3:
            break
        if penalty.lam is None and k > 1:
            factor *= float(np.clip((penalty.epsilon / left) ** 0.5, 0.8, 1.25))
        r = inner + A.adjoint(z) / number(unit)
    found = x.astype(np.result_type(x, float))
    return found, theta * _per_threshold(d, delta, orthonormal)


def _per_threshold(d: float, delta: float, orthonormal: bool) -> float:
    """`lam` of a fixed point over its threshold."""
    return (delta - d) / (1 - d) if orthonormal else 1 - d / delta


def _next_threshold(
    penalty: Penalty, theta: float, by_noise: float, d: float, delta: float, orthonormal: bool
) -> float:
    """The threshold that `lam` asks for, half the way; or a multiple of the noise."""
    if penalty.lam is None:
        return by_noise
    goal = penalty.lam / _per_threshold(d, delta, orthonormal)
    return float(np.sqrt(theta * goal)) if theta else max(goal, by_noise)
