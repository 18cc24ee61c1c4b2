"""Tucker decomposition: a small core and one matrix with orthonormal columns per chosen mode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank.decompositions.factors import TuckerFactors
from lowrank.errors import InputError, RankError
from lowrank.linalg import (
    TensorLike,
    as_working,
    check_rank,
    gram,
    leading_eigenvectors,
    leading_left_vectors,
    mode_product,
    unfold,
)


def tucker(
    W: TensorLike,
    ranks: Sequence[int],
    *,
    modes: Sequence[int] | None = None,
    n_sweeps: int = 5,
    tol: float = 1e-3,
    name: str = "tucker",
) -> TuckerFactors:
    """Tucker approximation of given ranks: sequentially truncated HOSVD and HOOI sweeps.

        min ||W - core x_a U_a x_b U_b ...||_F  subject to  U_k^T U_k = I,   k in modes

    Args:
        W: (I_1, ..., I_N), any float type; half types are computed and returned in float32.
        ranks: one per mode in `modes`, each at least 1 and at most min(I_mode, rest).
        modes: the modes to factorize; all of them when None.
        n_sweeps: most HOOI sweeps; 0 returns the truncated HOSVD, no mode before another.
        tol: stop when one update of each mode gains less than this fraction of the squared error.
        name: what an error message calls W.

    Returns:
        `TuckerFactors`; modes that are not listed keep their size in the core.

    Raises:
        InputError: W is not a finite real tensor, or the modes are not distinct axes of it.
        RankError: the number of ranks or one of them does not fit the shape.

    Example:
        >>> W = torch.randn(8, 6, 3, 3)
        >>> factors = tucker(W, (4, 2), modes=(0, 1))
        >>> factors.core.shape, factors.n_params
        (torch.Size([4, 2, 3, 3]), 116)

    Source: De Lathauwer, De Moor and Vandewalle 2000 (HOSVD; HOOI, algorithm 4.2); Vannieuwenhoven,
    Vandebril and Meerbergen 2012 (the sequential start). Every subspace by eigenvectors of a Gram
    matrix; see `truncated_svd` for where that is in float32.
    """
    W = as_working(W, name)
    modes = _check_modes(W, modes, name)
    _check_ranks(W, ranks, modes, name)
    if n_sweeps == 0 or len(modes) == 1:  # with one mode HOSVD is optimal
        factors = [_basis(W, mode, rank) for mode, rank in zip(modes, ranks, strict=True)]
        return TuckerFactors(_project(W, factors, modes), tuple(factors), modes)
    factors, core = _sequential(W, ranks, modes)
    total, captured = _energy(W), [_energy(core)]
    for step in range(n_sweeps * len(modes)):
        k = step % len(modes)
        partial = _project(W, factors, modes, skip=k)
        factors[k] = _basis(partial, modes[k], ranks[k])
        core = mode_product(partial, factors[k].mT, modes[k])
        captured.append(_energy(core))
        before = captured[max(0, step + 1 - len(modes))]
        if step + 1 >= len(modes) and captured[-1] - before <= tol * (total - before):
            break
    return TuckerFactors(core, tuple(factors), modes)


def hosvd_core(
    W: TensorLike, modes: Sequence[int] | None = None, *, name: str = "hosvd_core"
) -> TuckerFactors:
    """HOSVD at full rank: W itself in the bases of the left singular vectors of its unfoldings.

    Every truncated HOSVD is a leading corner of this core with as many leading columns.

    Args:
        W: (I_1, ..., I_N), any float type.
        modes: the modes to rotate; all of them when None.
        name: what an error message calls W.

    Returns:
        `TuckerFactors` with ranks min(I_mode, product of the other sizes), and no error.

    Raises:
        InputError: W is not a finite real tensor, or the modes are not distinct axes of it.

    Example:
        >>> hosvd_core(torch.randn(8, 2, 3), (0, 1)).rank
        (6, 2)

    Source: De Lathauwer, De Moor and Vandewalle 2000, theorem 2.
    """
    W = as_working(W, name)
    modes = _check_modes(W, modes, name)
    factors = [_basis(W, mode, _full_rank(W, mode)) for mode in modes]
    return TuckerFactors(_project(W, factors, modes), tuple(factors), modes)


def tucker_error_surface(
    W: TensorLike, modes: Sequence[int] | None = None, *, name: str = "tucker_error_surface"
) -> Tensor:
    """Squared relative error of the truncated HOSVD for all ranks at once.

        surface[i, j, ...] = sum of core^2 outside the corner [:i+1, :j+1, ...] / ||W||^2

    Exact for `tucker(..., n_sweeps=0)`, an upper bound for any number of sweeps.

    Args:
        W: (I_1, ..., I_N), any float type.
        modes: the modes to factorize; all of them when None.
        name: what an error message calls W.

    Returns:
        float64 tensor with one axis per mode, of size min(I_mode, product of the other sizes);
        zeros for a zero tensor.

    Raises:
        InputError: W is not a finite real tensor, or the modes are not distinct axes of it.

    Example:
        >>> surface = tucker_error_surface(torch.randn(8, 6, 3, 3), (0, 1))
        >>> surface.shape, round(float(surface[-1, -1]), 6)
        (torch.Size([8, 6]), 0.0)

    Source: Vannieuwenhoven, Vandebril and Meerbergen 2012, on the errors of nested truncations.
    """
    full = hosvd_core(W, modes, name=name)
    energy = full.core.double().square()
    others = [mode for mode in range(energy.ndim) if mode not in full.modes]
    energy = energy.permute(*full.modes, *others)
    energy = energy.reshape(*energy.shape[: len(full.modes)], -1).sum(-1)
    total = float(energy.sum())
    return _energy_outside(energy) / (total if total else 1.0)


def _energy_outside(energy: Tensor) -> Tensor:
    """Sum outside every leading corner: only sums of positive terms, so no cancellation."""
    outside = torch.zeros_like(energy)
    for axis in reversed(range(energy.ndim)):  # inside in the modes before, outside in this one
        part = energy.flip(axis).cumsum(axis).flip(axis).roll(-1, axis)
        part.select(axis, -1).zero_()  # nothing lies beyond the last index
        for before in range(axis):
            part = part.cumsum(before)
        outside += part
        energy = energy.sum(axis, keepdim=True)  # anywhere in the modes after
    return outside


def _basis(W: Tensor, mode: int, rank: int) -> Tensor:
    """Leading left singular vectors of an unfolding, (I_mode, rank)."""
    matrix = unfold(W, mode)
    if matrix.shape[0] <= matrix.shape[1]:
        return leading_left_vectors(matrix, rank).to(W.dtype)
    _, V = leading_eigenvectors(gram(matrix), rank)
    return torch.linalg.qr(matrix.double() @ V).Q.to(W.dtype)  # tall: QR also where s is 0


def _sequential(
    W: Tensor, ranks: Sequence[int], modes: tuple[int, ...]
) -> tuple[list[Tensor], Tensor]:
    """Bases one after the other, each of what the ones before have left, and the core."""
    factors = []
    for mode, rank in zip(modes, ranks, strict=True):
        factors.append(_basis(W, mode, rank))
        W = mode_product(W, factors[-1].mT, mode)
    return factors, W


def _project(
    W: Tensor, factors: Sequence[Tensor], modes: Sequence[int], skip: int | None = None
) -> Tensor:
    for k, (U, mode) in enumerate(zip(factors, modes, strict=True)):
        if k != skip:
            W = mode_product(W, U.mT, mode)
    return W


def _energy(W: Tensor) -> float:
    return float(torch.linalg.vector_norm(W, dtype=torch.float64)) ** 2


def _full_rank(W: Tensor, mode: int) -> int:
    return min(W.shape[mode], W.numel() // W.shape[mode])


def _check_modes(W: Tensor, modes: Sequence[int] | None, name: str) -> tuple[int, ...]:
    modes = tuple(range(W.ndim)) if modes is None else tuple(modes)
    if not modes or len(set(modes)) != len(modes) or not set(modes) <= set(range(W.ndim)):
        problem = f"modes {modes} are not distinct axes 0..{W.ndim - 1}"
        raise InputError(name, problem, "list each axis once, counted from 0")
    return modes


def _check_ranks(W: Tensor, ranks: Sequence[int], modes: tuple[int, ...], name: str) -> None:
    if len(ranks) != len(modes):
        problem = f"{len(ranks)} ranks for {len(modes)} modes of shape {tuple(W.shape)}"
        raise RankError(name, problem, "give one rank per mode")
    for mode, rank in zip(modes, ranks, strict=True):
        check_rank(rank, _full_rank(W, mode), W.shape, name, f" of mode {mode}")
