"""Which k columns can fit better than a goal: proofs for all subsets at once.

`||y - A_T c||^2 < goal` for some c exactly where `Q = gain G - g g^H`, with `G = A^H A`,
`g = A^H y` and `gain = ||y||^2 - goal`, is not positive definite on T. Write `Q = D + O`, the
diagonal and the rest. The mean over the q-subsets P of a t-set T of `u_P^H (D + s_q O) u_P`, with
`s_q = (t - 1) / (q - 1)`, is `q / t u^H Q u`. So a T on which Q is not definite holds a P on which
`D + s_q O` is not, and that one a (q-1)-subset on which `D + s_{q-1} O` is not: from the pairs
upwards, level by level, all that could become a T is listed, and where nothing is left none exists.
Needed are neither bounds of the coefficients nor a ridge.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg

from lowrank.sensing.operators.arrays import Array

DEFINITE = 1e-9
"""Smallest eigenvalue, at unit diagonal, up to which a matrix does not count as definite."""

SINGLE = 1e-3
"""The same for what is computed in single precision, and then once more in double."""

WEAK = 0.05
"""Smallest eigenvalue up to which a set is extended by every column, and judged in double: the
inverse of a weaker one would carry single precision's rounding beyond `SINGLE`."""

DEPENDENT = 1e-7
"""Length of what is left of a unit column outside the span of others, below which it is in it."""

FACTORS = 6
"""Directions that many columns may share, whose part in Q is dropped."""

MOST_DROPPED = 0.95
"""Share of a column's diagonal that may go with them."""

CHUNK = 2**18
"""Entries of the array that a chunk of subsets is extended in: it should stay in the cache."""


class Subsets(NamedTuple):
    """Subsets on which Q is not definite: the last level reached, (number, size), and if it is t.

    `sizes` are their numbers, level by level.
    """

    sets: Array
    complete: bool
    sizes: list[int]


@dataclass(frozen=True, eq=False)
class Columns:
    """Unit columns B (m, p) and what they are to fit, r (m,).

    Attributes:
        B: the columns, of length 1, outside the span of those that are taken for certain.
        names: which columns of the whole they are, (p,).
        r: what those that are taken leave of y.
        D: diagonal that leaves `B^H B - D` semidefinite, (p,).
    """

    B: Array
    names: Array
    r: Array
    D: Array

    @property
    def energy(self) -> float:
        """`||r||^2`."""
        return float(np.vdot(self.r, self.r).real)

    def without(self, out: Array) -> Columns:
        """Those that are not in `out`."""
        keep = ~np.isin(self.names, out)
        return Columns(self.B[:, keep], self.names[keep], self.r, self.D[keep])

    def given(self, taken: Array) -> Columns:
        """What the others can add to those that are taken: the columns outside their span."""
        if not taken.size:
            return self
        inside = np.isin(self.names, taken)
        Q = span(self.B[:, inside])[0]
        B, r = self.B[:, ~inside], self.r
        for _ in range(2):  # the second pass restores what cancellation lost
            B = B - Q @ (Q.conj().T @ B)
            r = r - Q @ (Q.conj().T @ r)
        length = np.linalg.norm(B, axis=0)
        free = length > DEPENDENT
        names, D = self.names[~inside][free], self.D[~inside][free]
        return Columns(B[:, free] / length[free], names, r, D / length[free] ** 2)


def span(B: Array) -> tuple[Array, Array]:
    """An orthonormal basis of what unit columns span, and which of them are enough for it."""
    Q, R, order = scipy.linalg.qr(B, mode="economic", pivoting=True)
    rank = int((np.abs(np.diag(R)) > DEPENDENT).sum())
    return Q[:, :rank], order[:rank]


def saturated(columns: Columns, G: Array) -> float:
    """`||r||^2` that is left when every column is taken: no subset leaves less; 0 if unknown."""
    m, p = columns.B.shape
    if p >= m:
        return 0.0
    try:
        L = np.linalg.cholesky(G)
    except np.linalg.LinAlgError:
        return 0.0
    if np.diag(L).real.min() < np.sqrt(DEFINITE):
        return 0.0
    z = scipy.linalg.solve_triangular(L, columns.B.conj().T @ columns.r, lower=True)
    return columns.energy - float(np.vdot(z, z).real)


def subsets_below(
    columns: Columns, G: Array, t: int, goal: float, *, limit: int, deadline: float
) -> Subsets:
    """All t-subsets that leave less than the goal of `||r||^2`, and perhaps some that do not.

    Args:
        columns: p of them, at least t.
        G: their Gram matrix (p, p).
        t: size of the subsets, >= 1.
        goal: squared length, below `||r||^2`.
        limit: most subsets of a level.
        deadline: by `time.monotonic()`.

    Returns:
        The subsets (number, t), rows of indices into the columns; those of a smaller size, and
        `complete` false, where a level had more than the limit or the deadline passed.
    """
    gain = columns.energy - goal
    g = columns.B.conj().T @ columns.r
    D = gain - np.abs(g) ** 2
    alone = np.flatnonzero(gain * DEFINITE >= D)
    if alone.size or t == 1:
        return Subsets(alone[:, None], t == 1, [alone.size])
    N = _unit_diagonal(gain * G - np.outer(g, g.conj()), D)
    N = without_factors(N)
    sets = _pairs(N, 1 / (t - 1))
    sizes = [len(sets)]
    for q in range(2, t):
        if not sizes[-1] <= limit:
            return Subsets(sets, False, sizes)
        grown = _extended(N, sets, (t - 1) / q, 20 * limit, deadline)
        if grown is None:
            return Subsets(sets, False, sizes)
        sets = grown
        sizes.append(len(sets))
    return Subsets(sets.reshape(-1, t), True, sizes)


def _unit_diagonal(Q: Array, D: Array) -> Array:
    """The off-diagonal part of Q for a diagonal of 1."""
    d = np.sqrt(D)
    Q /= np.outer(d, d)
    np.fill_diagonal(Q, 0)
    return Q


def without_factors(N: Array) -> Array:
    """N less what a few directions that all columns share add to `I + N`, at a diagonal of 1.

    A matrix less a semidefinite part is definite on fewer subsets, so nothing is missed; and with
    columns that have a factor in common, every pair would look like the beginning of a subset.
    """
    p = len(N)
    if p <= 4 * FACTORS:
        return N
    Z = np.random.default_rng(0).standard_normal((p, FACTORS)).astype(N.dtype)
    for _ in range(12):
        Z = np.linalg.qr(Z + N @ Z)[0]
    values, U = np.linalg.eigh(Z.conj().T @ (Z + N @ Z))
    usual = max(0.0, float(np.median(values)))
    excess = np.where(values > 1.5 * usual, values - usual, 0)
    if not excess.any():
        return N
    Z = Z @ U
    part = (np.abs(Z) ** 2) @ excess
    share = min(1.0, MOST_DROPPED / float(part.max()))  # something of every column must be left
    less = _unit_diagonal(N - (Z * (share * excess)) @ Z.conj().T, 1 - share * part)
    return less if np.linalg.norm(less) < np.linalg.norm(N) else N


def _pairs(N: Array, least: float) -> Array:
    """Pairs (number, 2) whose entry is at least this large."""
    i, j = np.nonzero(np.triu(np.abs(N) >= least * (1 - DEFINITE), 1))
    return np.stack([i, j], axis=1).astype(np.int32)


def _extended(N: Array, sets: Array, s: float, most: int, deadline: float) -> Array | None:
    """All sets of one more element, on which `I + s N` is not definite, that hold one of these.

    None where they become too many, or it is too late.
    """
    number, q = sets.shape
    single = N.astype(np.complex64 if np.iscomplexobj(N) else np.float32)
    inverse, whole = _inverses(N, sets, s)
    inverse = (s * s * inverse).astype(single.dtype)
    step = max(1, CHUNK // (q * len(N)))
    found, total = [np.zeros((0, q + 1), np.int32)], 0
    for start in range(0, number, step):
        part = sets[start : start + step]
        X = single[part]  # (sets, q, p)
        fitted = (X.conj() * np.matmul(inverse[start : start + step], X)).real.sum(axis=1)
        hit = (fitted >= 1 - SINGLE) | whole[start : start + step, None]
        hit[np.arange(len(part))[:, None], part] = False
        row, column = np.nonzero(hit)
        found.append(np.concatenate([part[row], column[:, None].astype(np.int32)], axis=1))
        total += len(row)
        if total > most or time.monotonic() > deadline:
            return None
    grown = _distinct(np.sort(np.concatenate(found), axis=1))
    lowest = np.linalg.eigvalsh(_submatrices(N, grown, s))[:, 0]
    return np.asarray(grown[lowest <= DEFINITE])


def _submatrices(N: Array, sets: Array, s: float) -> Array:
    """`I + s N` on each set, (number, q, q)."""
    M = s * N[sets[:, :, None], sets[:, None, :]]
    diagonal = np.arange(sets.shape[1])
    M[:, diagonal, diagonal] = 1
    return np.asarray(M)


def _inverses(N: Array, sets: Array, s: float) -> tuple[Array, Array]:
    """Inverses of `I + s N` on each set; 0 where it is hardly definite, and where that is."""
    values, vectors = np.linalg.eigh(_submatrices(N, sets, s))
    whole = values[:, 0] <= WEAK
    scaled = vectors / np.where(whole[:, None], np.inf, values)[:, None, :]
    return scaled @ vectors.conj().transpose(0, 2, 1), whole


def _distinct(sets: Array) -> Array:
    """The sets, sorted rows, each once."""
    rows = np.ascontiguousarray(sets)
    keys = rows.view([("", rows.dtype)] * rows.shape[1])[:, 0]
    return rows[np.unique(keys, return_index=True)[1]]
