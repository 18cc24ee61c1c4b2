"""Supports to start from: greedy choices, improved by exchanging one column for another."""

from __future__ import annotations

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.solvers.subset_bounds import DEPENDENT, Columns, span

CLOSER = 1e-12
"""Share of `||y||^2` by which an exchange must lower the residual."""


def left(columns: Columns, support: Array) -> float:
    """`||r||^2` that these columns leave; the support names columns."""
    return columns.given(np.asarray(support, dtype=int)).energy


def completed(columns: Columns, t: int) -> Array:
    """At most t columns, one after another, each the one that leaves least."""
    r, Q = columns.r, np.zeros((len(columns.r), 0), columns.B.dtype)
    chosen: list[int] = []
    for _ in range(min(t, columns.names.size)):
        gain = _gains(columns, Q, r)
        gain[chosen] = 0
        j = int(gain.argmax())
        if not gain[j] > 0:
            break
        chosen.append(j)
        Q = span(columns.B[:, chosen])[0]
        r = columns.r - Q @ (Q.conj().T @ columns.r)
    return columns.names[chosen]


def _gains(columns: Columns, Q: Array, r: Array) -> Array:
    """By how much each column would lower `||r||^2`, beside those that span Q."""
    rest = 1 - (np.abs(Q.conj().T @ columns.B) ** 2).sum(axis=0)
    along = np.abs(columns.B.conj().T @ r) ** 2
    return np.where(rest > DEPENDENT, along / np.maximum(rest, DEPENDENT), 0)


def exchanged(columns: Columns, support: Array, rounds: int = 50) -> Array:
    """The support after the best exchanges of one column, as long as any lowers the residual.

    Args:
        columns: all of them, `names` being 0, 1, ...
        support: names of columns.
        rounds: most exchanges.

    Returns:
        A support of the same size, of which no single exchange is better.
    """
    best = np.sort(np.asarray(support, dtype=int))
    lowest = left(columns, best)
    for _ in range(rounds):
        tried = [_exchange(columns, best, e) for e in best]
        if not tried:
            break
        value, support = min(tried, key=lambda pair: pair[0])
        if not value < lowest - CLOSER * columns.energy:
            break
        best, lowest = support, value
    return best


def _exchange(columns: Columns, support: Array, e: int) -> tuple[float, Array]:
    """What is left with the best column in place of e, and that support."""
    rest = support[support != e]
    Q = span(columns.B[:, rest])[0]
    r = columns.r - Q @ (Q.conj().T @ columns.r)
    gain = _gains(columns, Q, r)
    gain[rest] = 0
    j = int(gain.argmax())
    taken = np.sort(np.append(rest, j if gain[j] > 0 else e))
    return float(np.vdot(r, r).real - gain[j]), taken
