"""Interior point for total variation denoising of signals and pictures, by sparse factors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.linalg import splu

from lowrank.sensing.bases import finite_differences
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator

MAX_POINTS = 2**18
"""Samples of a picture up to which its Newton matrix is factored; of a signal, four times."""
BACK = 0.99
"""Share of the way to the boundary that a step takes."""
LEAST_TARGET = 1e-3
"""Share of the present complementarity that a step aims at, at least."""


def sparse_differences(D: Operator) -> list[csr_array] | None:
    """The components of finite differences of a signal or picture, or None for another D."""
    recipe: Any = D.recipe
    if getattr(recipe, "func", None) is not finite_differences or len(recipe.args) > 2:
        return None
    n = D.shape[1]
    if n > (MAX_POINTS if len(recipe.args) == 2 else 4 * MAX_POINTS):
        return None
    places = np.arange(n).reshape(recipe.args)
    return [_difference(places, axis) for axis in range(places.ndim)]


def _difference(places: Array, axis: int) -> csr_array:
    """`x_{i+1} - x_i` along an axis, 0 at the last."""
    here = np.delete(places, -1, axis).ravel()
    there = np.delete(places, 0, axis).ravel()
    ones = np.ones(here.size)
    entries = np.concatenate([-ones, ones])
    at = np.concatenate([here, here]), np.concatenate([here, there])
    return csr_array(coo_array((entries, at), shape=(places.size, places.size)))


class Inside(NamedTuple):
    """A point inside the balls: p (d, points), `f = (lam^2 - |p|^2) / 2`, its multiplier z."""

    p: Array
    z: Array
    lam: float

    @property
    def f(self) -> Array:
        """How far inside each ball p is."""
        return np.asarray((self.lam**2 - (self.p**2).sum(axis=0)) / 2)

    def moved(self, dp: Array, dz: Array, size: float) -> Inside:
        """That share of the step further."""
        return Inside(self.p + size * dp, self.z + size * dz, self.lam)

    def reach(self, dp: Array, dz: Array) -> float:
        """The largest step, at most 1, that stays inside and keeps z non-negative."""
        a, half = (dp**2).sum(axis=0), (self.p * dp).sum(axis=0)
        with np.errstate(all="ignore"):
            out = np.where(a > 0, (np.sqrt(half**2 + 2 * a * self.f) - half) / a, np.inf)
            down = np.where(dz < 0, -self.z / dz, np.inf)
        return float(min(1.0, out.min(), down.min()))


def denoised(b: Array, Ds: list[csr_array], lam: float, coupled: bool) -> Iterator[Array]:
    """The steps towards `argmin 1/2 ||D^T p - b||^2` over `|p_i| <= lam`, each feasible.

    Args:
        b: real data, (n,).
        Ds: components of D, (n, n) each.
        lam: bound of the lengths.
        coupled: the components at a point have one length together; else each its own.

    Yields:
        p, (d n,), as `D^T` takes it, strictly inside.

    Source: Mehrotra 1992 for the choice of the target; that each step takes one n x n sparse
    factor, by the inverse of the 2 x 2 blocks, is ours.
    """
    n, d = b.size, len(Ds)
    shape = (d, n) if coupled else (1, d * n)
    g = np.stack([D @ b for D in Ds]).reshape(shape)  # D x
    lengths = np.sqrt((g**2).sum(axis=0))
    pattern = _Pattern(Ds, coupled)
    now = Inside(np.zeros(shape), (lengths + lengths.mean()) / lam, lam)
    while True:
        f, mu = now.f, float((now.z * now.f).mean())
        newton = _Newton(Ds, pattern, now, g)
        dp, dz = newton.step(0.0)
        tried = now.reach(dp, dz)
        there = now.moved(dp, dz, tried)
        share = (max(float((there.z * there.f).mean()), 0.0) / mu) ** 3
        bent = dz * (now.p * dp).sum(axis=0) + now.z * (dp**2).sum(axis=0) / 2
        target = min(1.0, max(share, LEAST_TARGET)) * mu + tried**2 * bent
        dp, dz = newton.step(target)
        now = now.moved(dp, dz, BACK * now.reach(dp, dz))
        f = now.f
        if not (f.min() > 0 and now.z.min() > 0):
            return
        yield now.p.ravel()
        x = b - sum(D.T @ part for D, part in zip(Ds, now.p.reshape(d, n), strict=True))
        g = np.stack([D @ x for D in Ds]).reshape(shape)


class _Pattern:
    """Where the entries of `I + sum_ij D_i^T diag(h_ij) D_j` come from, each of one h."""

    def __init__(self, Ds: list[csr_array], coupled: bool) -> None:
        self.n, ends = Ds[0].shape[0], [_ends(D) for D in Ds]
        d = range(len(Ds))
        self.pairs = [(i, j) for i in d for j in d if coupled or i == j]
        rows, columns, signs, source = [], [], [], []
        for k, (i, j) in enumerate(self.pairs):
            for a in range(2):
                for b in range(2):
                    rows.append(ends[i][0][:, a])
                    columns.append(ends[j][0][:, b])
                    signs.append(ends[i][1][:, a] * ends[j][1][:, b])
                    source.append(k * self.n + np.arange(self.n))
        sign = np.concatenate(signs)
        kept = np.flatnonzero(sign)
        self.sign, self.source = sign[kept], np.concatenate(source)[kept]
        one = np.arange(self.n)
        self.rows = np.concatenate([np.concatenate(rows)[kept], one])
        self.columns = np.concatenate([np.concatenate(columns)[kept], one])

    def matrix(self, h: Array) -> Any:
        """The sum, for h (pairs, n)."""
        entries = np.concatenate([self.sign * h.ravel()[self.source], np.ones(self.n)])
        return coo_array((entries, (self.rows, self.columns)), shape=(self.n, self.n)).tocsc()


def _ends(D: csr_array) -> tuple[Array, Array]:
    """Columns and values of the two entries of each row, (n, 2); zeros where it has none."""
    columns = np.tile(np.arange(D.shape[0])[:, None], (1, 2))
    values, full = np.zeros(columns.shape), np.diff(D.indptr) == 2
    columns[full], values[full] = D.indices.reshape(-1, 2), D.data.reshape(-1, 2)
    return columns, values


class _Newton:
    """Newton's equations at a point, with `I + D^T W^-1 D` factored, W of one block a ball."""

    def __init__(self, Ds: list[csr_array], pattern: _Pattern, now: Inside, g: Array) -> None:
        self.Ds, self.now, self.g = Ds, now, g
        self.f = now.f
        self.around = self.f + (now.p**2).sum(axis=0)
        self.factor = splu(
            pattern.matrix(self._blocks()),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )

    def _blocks(self) -> Array:
        """Entries of `W^-1`, in the order of `_Pattern.pairs`."""
        p, z, around = self.now.p, self.now.z, self.around
        if len(p) == 1:  # each entry by itself
            return np.asarray(((1 - p[0] ** 2 / around) / z).reshape(len(self.Ds), -1))
        d = range(len(p))
        return np.stack([((i == j) - p[i] * p[j] / around) / z for i in d for j in d])

    def solve_blocks(self, r: Array) -> Array:
        """`W^-1 r` with `W = z I + z / f p p^T`."""
        p = self.now.p
        return np.asarray((r - p * ((p * r).sum(axis=0) / self.around)) / self.now.z)

    def step(self, target: float | Array) -> tuple[Array, Array]:
        """The step of p and z towards `z f = target`."""
        p, z = self.now.p, self.now.z
        r = self.g - p * (target / self.f)
        parts = self.solve_blocks(r).reshape(len(self.Ds), -1)
        dx = -self.factor.solve(sum(D.T @ part for D, part in zip(self.Ds, parts, strict=True)))
        dp = self.solve_blocks(r + np.stack([D @ dx for D in self.Ds]).reshape(r.shape))
        return dp, (target - z * self.f + z * (p * dp).sum(axis=0)) / self.f
