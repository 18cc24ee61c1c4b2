"""Rows assembled from few bricks: dictionary learning with 1-sparse codes, in a metric."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank.decompositions.metric import Metric
from lowrank.decompositions.observed import check_count
from lowrank.errors import InputError
from lowrank.linalg import TensorLike, as_working

_RIDGE = 1e-10
"""Relative to the diagonal: what keeps the small systems solvable where bricks repeat."""


@dataclass(frozen=True, eq=False)
class Bricks:
    """Every row of a matrix in parts, each a multiple of one brick.

    Attributes:
        bricks: (n, d) of unit norm; 0 where a brick is not needed.
        index: (rows, parts), which brick each part is.
        coefficients: (rows, parts), how much of it.
    """

    bricks: Tensor
    index: Tensor
    coefficients: Tensor

    def to_matrix(self) -> Tensor:
        """The matrix (rows, parts * d) that they amount to."""
        return (self.bricks[self.index] * self.coefficients[..., None]).flatten(1)


def assemble(
    W: TensorLike,
    n_bricks: int,
    splits: int,
    metric: Metric | None = None,
    *,
    max_iter: int = 20,
    exact_steps: int = 2,
) -> Bricks:
    """Approximate the rows of W by parts that share a small set of bricks.

        minimise  tr(G (W - W') C (W - W')^T),   W'[r, part j] = a[r, j] brick[index[r, j]]

    Each step takes for every part the brick that serves it best, and for every brick the
    least-squares one for its parts; both in the diagonal blocks of C, one for each part. Then
    the parts of a row are chosen anew, one given the others, in the whole of C.

    Args:
        W: (rows, splits * d).
        n_bricks: bricks, from 1 up; with rows * splits of them W is exact.
        splits: parts of a row.
        metric: the error, of one group, G by its diagonal only; the squared Frobenius norm
            if None.
        max_iter: steps in which all parts count by one average block, which are cheap.
        exact_steps: steps with every part's own block.

    Raises:
        InputError: not a finite real matrix, splits that do not divide the columns, no brick,
            or steps below 0.

    Example:
        >>> W = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 3.0, 4.0, 0.0]])
        >>> parts = assemble(W, 2, 2)
        >>> parts.index.tolist(), torch.equal(parts.to_matrix(), W)
        ([[0, 1], [1, 0]], True)

    Source: Yang et al. 2019, "LegoNet", equations 4-6, who train codes and bricks together;
        the alternation is k-means on lines (K-SVD with one atom, Aharon et al. 2006).
    """
    W = as_working(W, "bricks", min_dim=2)
    metric = Metric(W.new_ones(1, W.shape[-1])) if metric is None else metric.formed
    W = metric.cast(W)
    if W.ndim != 2:
        raise InputError("bricks", f"shape {tuple(W.shape)}, need a matrix", "flatten it first")
    check_count(max_iter, "max_iter", 10**9, "bricks", least=0)
    check_count(exact_steps, "exact_steps", 10**9, "bricks", least=0)
    rows, columns = W.shape
    if not isinstance(splits, int) or splits < 1 or columns % splits:
        raise InputError(
            "bricks", f"{splits!r} splits do not divide {columns} columns", "change it"
        )
    if not isinstance(n_bricks, int) or n_bricks < 1:
        raise InputError("bricks", f"{n_bricks!r} bricks are none", "give 1 or more")
    slices = W.unflatten(1, (splits, -1))  # (rows, s, d)
    if n_bricks >= rows * splits:
        return _each_its_own(slices, n_bricks)
    problem = _Problem(slices, metric)
    bricks = problem.first(n_bricks)
    for step in range(max_iter + exact_steps):
        index, coefficients = problem.code(bricks)
        update = problem.averaged if step < max_iter else problem.least_squares
        bricks = update(bricks, index, coefficients)
    index, coefficients = problem.code_jointly(bricks, *problem.code(bricks))
    return Bricks(bricks, index, coefficients)


def _each_its_own(slices: Tensor, n: int) -> Bricks:
    rows, splits, d = slices.shape
    norms = slices.norm(dim=-1)
    bricks = slices.new_zeros(n, d)
    safe = torch.where(norms > 0, norms, 1.0)
    bricks[: rows * splits] = (slices / safe[..., None]).flatten(0, 1)
    index = torch.arange(rows * splits, device=slices.device).reshape(rows, splits)
    return Bricks(bricks, index, norms)


class _Problem:
    """The parts, their metric, and what one step needs of them.

    Args:
        slices: (rows, s, d), in the metric's type.
        metric: of one group.
    """

    def __init__(self, slices: Tensor, metric: Metric) -> None:
        rows, s, d = slices.shape
        self.slices, self.metric = slices, metric
        places = torch.arange(s * d, device=slices.device).reshape(s, d)
        self.diagonal = metric.C.ndim == 2
        self.blocks = metric.C[0, places] if self.diagonal else metric.block(places)[0]
        self.inner = self._times(slices.transpose(0, 1))  # w C of each part, (s, rows, d)
        self.energy = (self.inner * slices.transpose(0, 1)).sum(-1).T  # (rows, s)
        self.weights = slices.new_ones(rows)
        if metric.G is not None:
            self.weights = metric.G[0].diagonal().clamp_min(0)

    def _times(self, X: Tensor) -> Tensor:
        """X C with every part's own block, (s, m, d) or (m, d)."""
        return X * self.blocks[:, None] if self.diagonal else X @ self.blocks

    def first(self, n: int) -> Tensor:
        """n of the parts, each the one that those before it serve worst."""
        flat = self.slices.flatten(0, 1)
        unit = _unit(flat)
        worth = (self.energy * self.weights[:, None]).flatten()
        missing, taken = worth.clone(), []
        for _ in range(n):
            taken.append(int(missing.argmax()))
            like = (unit @ unit[taken[-1]]).square()
            missing = torch.minimum(missing, worth * (1 - like).clamp_min(0))
        return unit[taken]

    def code(self, bricks: Tensor) -> tuple[Tensor, Tensor]:
        """The best brick of every part on its own: numbers and coefficients (rows, s)."""
        products = torch.einsum("srd,nd->rsn", self.inner, bricks)
        squares = (self._times(bricks.expand(len(self.blocks), -1, -1)) * bricks).sum(-1)  # (s, n)
        squares = squares.clamp_min(torch.finfo(bricks.dtype).tiny)
        index = (products.square() / squares).argmax(-1)
        chosen = products.gather(2, index[..., None])[..., 0]
        return index, chosen / squares.expand(len(index), -1, -1).gather(2, index[..., None])[
            ..., 0
        ]

    def averaged(self, bricks: Tensor, index: Tensor, coefficients: Tensor) -> Tensor:
        """Least squares for each brick as if every part had the same block."""
        a = coefficients * self.weights[:, None]
        flat = self.slices.flatten(0, 1) * a.flatten()[:, None]
        sums = torch.zeros_like(bricks).index_add(0, index.flatten(), flat)
        return self._filled(bricks, sums, index, coefficients)

    def least_squares(self, bricks: Tensor, index: Tensor, coefficients: Tensor) -> Tensor:
        """Least squares for each brick over its parts in their own blocks."""
        n, (_, s) = len(bricks), index.shape
        a = coefficients * self.weights[:, None]
        numbers = index + n * torch.arange(s, device=index.device)
        share = a.new_zeros(n * s).index_add(0, numbers.flatten(), (a * coefficients).flatten())
        right = (self.inner.transpose(0, 1) * a[..., None]).flatten(0, 1)
        right = torch.zeros_like(bricks).index_add(0, index.flatten(), right)
        moments = torch.einsum("sn,s...->n...", share.reshape(s, n), self.blocks)
        if self.diagonal:
            solved = right / moments.clamp_min(torch.finfo(a.dtype).tiny)
        else:
            solved = torch.linalg.solve(_ridged(moments), right[..., None])[..., 0]
        return self._filled(bricks, solved, index, coefficients)

    def _filled(self, bricks: Tensor, new: Tensor, index: Tensor, coefficients: Tensor) -> Tensor:
        """The new bricks; those that no part took start at the parts that lose most."""
        used = torch.bincount(index.flatten(), minlength=len(bricks)) > 0
        free = (~used).nonzero().flatten()
        if len(free):
            D = self.slices - bricks[index] * coefficients[..., None]
            lost = (D.square().sum(-1) * self.weights[:, None]).flatten()
            worst = lost.topk(min(len(free), lost.numel())).indices
            new = new.clone()
            new[free[: len(worst)]] = self.slices.flatten(0, 1)[worst]
        return _unit(new)

    def code_jointly(
        self, bricks: Tensor, index: Tensor, coefficients: Tensor, *, sweeps: int = 3
    ) -> tuple[Tensor, Tensor]:
        """The parts of a row one given the others, in the whole of C; then all coefficients.

        Returns:
            Numbers and coefficients (rows, s).
        """
        _, s, d = self.slices.shape
        n = len(bricks)
        eye = torch.eye(s, dtype=bricks.dtype, device=bricks.device)
        placed = torch.einsum("st,nd->sntd", eye, bricks).reshape(1, s * n, s * d)
        spread = self.metric.times(placed)[0]
        gram = spread @ placed[0].mT  # (s n, s n)
        products = (self.slices.flatten(1) @ spread.mT).unflatten(1, (s, n))
        diagonal = gram.diagonal().reshape(s, n).clamp_min(torch.finfo(bricks.dtype).tiny)
        offset = n * torch.arange(s, device=index.device)
        for _ in range(sweeps if s > 1 and not self.diagonal else 0):
            for j in range(s):
                others = coefficients.index_fill(1, torch.tensor(j, device=index.device), 0.0)
                seen = gram[index + offset][..., j * n : (j + 1) * n]  # (rows, s, n)
                c = products[:, j] - torch.einsum("rs,rsn->rn", others, seen)
                best = (c.square() / diagonal[j]).argmax(-1)
                value = c.gather(1, best[:, None])[:, 0] / diagonal[j, best]
                index, coefficients = index.clone(), coefficients.clone()
                index[:, j], coefficients[:, j] = best, value
        flat = index + offset
        A = _ridged(gram[flat[:, :, None], flat[:, None, :]])
        right = products.flatten(1).gather(1, flat)
        return index, torch.linalg.solve(A, right[..., None])[..., 0]


def _unit(X: Tensor) -> Tensor:
    return X / X.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(X.dtype).tiny)


def _ridged(A: Tensor) -> Tensor:
    info = torch.finfo(A.dtype)
    size = A.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(info.tiny / info.eps)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return A + (_RIDGE * size)[..., None, None] * eye
