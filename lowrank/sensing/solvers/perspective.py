"""The perspective relaxation of a best subset, by a first-order method whose bounds are rigorous.

With a diagonal D that leaves `H = G - D` semidefinite, `c^H G c` is `c^H H c` and a sum of squares.
On c with at most t non-zeros that sum is `sum D c^2 / z` for some `0 <= z <= 1` with `sum z <= t`,
which is convex in c and z. And every u, converged or not, gives a lower bound by the tangent of
`c^H H c` at u.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array

SEMIDEFINITE = 1e-10
"""Share of a unit column that stays in H, so that rounding leaves it semidefinite."""

STEPS = 300
"""Most steps of a node."""

CLOSE = 0.02
"""Distance to the relaxation's minimum, as a share of what the minimum lacks to the goal."""


class Relaxed(NamedTuple):
    """A lower bound of what t columns leave of `||r||^2`, and what share each column has."""

    bound: float
    z: Array


def diagonal_part(G: Array) -> Array:
    """A diagonal D >= 0, as large as is cheaply found, with `G - D` semidefinite; (p,).

    The better of a multiple of the identity and of a multiple of `1 / diag(G^-1)`, which is what a
    column has outside the span of all others.
    """
    p = len(G)
    values, vectors = np.linalg.eigh(G)
    if not p or values[0] <= 1e3 * SEMIDEFINITE:
        return np.zeros(p)
    alone = 1 / ((np.abs(vectors) ** 2) @ (1 / values))
    scale = np.sqrt(alone)
    share = float(np.linalg.eigvalsh(G / np.outer(scale, scale))[0])
    candidates = (np.full(p, values[0]), share * alone)
    return np.maximum(max(candidates, key=np.sum) - SEMIDEFINITE, 0)


def relaxed(
    G: Array, g: Array, D: Array, t: int, energy: float, goal: float, steps: int = STEPS
) -> Relaxed:
    """Accelerated proximal gradients on the relaxation until its bound reaches the goal, or cannot.

    Args:
        G: Gram matrix (p, p).
        g: correlations with r (p,).
        D: positive (p,), with `G - D` semidefinite.
        t: most columns.
        energy: `||r||^2`.
        goal: bound to reach.
        steps: limit.

    Returns:
        The best bound found. It is rigorous wherever the method stops.

    Source: Beck, Teboulle 2009; the relaxation: Guenluek, Linderoth 2010; the diagonal: Frangioni,
    Gentile 2007; prox of the k-support norm: McDonald, Pontil, Stamos 2016.
    """
    H = G - np.diag(D)
    length = 1 / _largest(H)
    c = last = np.zeros_like(g)
    Hc = last_H = np.zeros_like(g)
    momentum, best, z = 1.0, -np.inf, np.zeros(len(g))
    for _ in range(steps):
        rest = g - Hc
        best = max(best, energy - float(np.vdot(c, Hc).real) - _top(np.abs(rest) ** 2 / D, t))
        if best >= goal:
            break
        ahead = (momentum - 1) / (next_momentum := (1 + np.sqrt(1 + 4 * momentum**2)) / 2)
        momentum = next_momentum
        at, at_H = c + ahead * (c - last), Hc + ahead * (Hc - last_H)
        v = at + length * (g - at_H)
        z = _shares(np.abs(v), D, length, t)
        last, last_H = c, Hc
        c = v * z / (z + length * D)
        Hc = H @ c
        if np.vdot(at - c, c - last).real > 0:
            momentum = 1.0
        spread = float((D * np.abs(c) ** 2)[z > 0] @ (1 / z[z > 0]))
        primal = energy + float(np.vdot(c, Hc - 2 * g).real) + spread
        if primal - best < CLOSE * (goal - primal):  # the bound will not get there
            break
    return Relaxed(best, z)


def _top(values: Array, t: int) -> float:
    """The sum of the t largest."""
    return float(values.sum() if t >= values.size else np.partition(values, -t)[-t:].sum())


def _largest(H: Array) -> float:
    """At least the largest eigenvalue."""
    return float(np.abs(H).sum(axis=1).max()) if len(H) < 64 else _power(H)


def _power(H: Array) -> float:
    v = np.random.default_rng(0).standard_normal(len(H)).astype(H.dtype)
    for _ in range(20):
        v = H @ v
        v /= np.linalg.norm(v)
    return 1.1 * float(np.linalg.norm(H @ v))


def _shares(size: Array, D: Array, length: float, t: int) -> Array:
    """The z of a proximal step: `clip(sqrt(D) |v| / tau - length D, 0, 1)`, whose sum is t."""
    a, b = np.sqrt(D) * size, length * D
    if (size > 0).sum() <= t:
        return np.asarray((size > 0).astype(float))
    inside = a > 0
    a, b = a[inside], b[inside]
    ends = np.concatenate([b / a, (1 + b) / a])  # where a share begins and where it is whole
    order = np.argsort(ends)
    slopes = np.cumsum(np.concatenate([a, -a])[order])
    sums = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(ends[order]))])
    i = int(np.searchsorted(sums, t, side="right")) - 1
    at = ends[order][i] + (t - sums[i]) / slopes[i]
    z = np.zeros(size.shape)
    z[inside] = np.clip(a * at - b, 0, 1)
    return z
