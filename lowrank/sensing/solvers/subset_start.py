"""Supports to start from: greedy choices, improved by exchanging one column for another."""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.solvers.subset_bounds import DEPENDENT, Columns, span

CLOSER = 1e-12
"""Share of `||y||^2` by which an exchange must lower the residual."""


def left(columns: Columns, support: Array) -> float:
    """`||r||^2` that these columns leave; the support names columns, `names` being 0, 1, ..."""
    Q = span(columns.B[:, np.asarray(support, dtype=int)])[0]
    r = columns.r - Q @ (Q.conj().T @ columns.r)
    return float(np.vdot(r, r).real)


def completed(columns: Columns, t: int) -> Array:
    """At most t columns, one after another, each the one that leaves least."""
    search = _Gains(columns)
    chosen: list[int] = []
    for _ in range(min(t, columns.names.size)):
        gain = search.beside(chosen)[1]
        j = int(gain.argmax())
        if not gain[j] > 0:
            break
        chosen.append(j)
    return columns.names[chosen]


class _Gains:
    """By how much each column would lower `||r||^2`, beside some; products are kept."""

    def __init__(self, columns: Columns) -> None:
        self.columns, self.g = columns, columns.B.conj().T @ columns.r
        self.rows: dict[int, Array] = {}

    def beside(self, chosen: list[int]) -> tuple[float, Array]:
        """What the chosen columns leave, and what each other would take off, (p,); 0 for them."""
        B = self.columns.B
        for j in chosen:
            if j not in self.rows:
                self.rows[j] = B[:, j].conj() @ B
        rest, along = np.ones(len(self.g)), self.g
        taken = 0.0
        if chosen:
            R = np.linalg.qr(B[:, chosen], mode="r")
            if np.abs(np.diag(R)).min() <= DEPENDENT:
                return np.inf, np.zeros(len(self.g))
            both = np.column_stack([[self.rows[j] for j in chosen], self.g[chosen]])
            W = solve_triangular(R, both, trans="C")  # Q^H B, and Q^H r
            taken = float((np.abs(W[:, -1]) ** 2).sum())
            rest = 1 - (np.abs(W[:, :-1]) ** 2).sum(axis=0)
            along = self.g - W[:, :-1].conj().T @ W[:, -1]
        gain = np.where(rest > 1e-6, np.abs(along) ** 2 / np.maximum(rest, 1e-6), 0)
        gain[chosen] = 0
        return self.columns.energy - taken, gain


def exchanged(columns: Columns, support: Array, rounds: int = 50) -> Array:
    """The support after the best exchanges of one column, as long as any lowers the residual.

    Args:
        columns: all of them, `names` being 0, 1, ...
        support: names of columns.
        rounds: most exchanges.

    Returns:
        A support of the same size, of which no single exchange is better.
    """
    search, best = _Gains(columns), np.sort(np.asarray(support, dtype=int))
    lowest = left(columns, best)
    for _ in range(rounds):
        value, support = np.inf, best
        for e in best:
            rest = [int(j) for j in best if j != e]
            base, gain = search.beside(rest)
            j = int(gain.argmax())
            if base - gain[j] < value:
                value, support = base - float(gain[j]), np.sort([*rest, j])
        if not value < lowest - CLOSER * columns.energy:
            break
        best, lowest = support, value
    return best
