"""Matrix and tensor operations that several floors share, on torch tensors of any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from lowrank.errors import InputError, RankError


def wide(X: Tensor) -> Tensor:
    """X in float32, or in float64 where it is: sums and squares of half types lose too much.

    Example:
        >>> wide(torch.ones(2, dtype=torch.float16)).dtype
        torch.float32
    """
    return X if X.dtype == torch.float64 else X.float()


@runtime_checkable
class _Array(Protocol):
    """What NumPy reads: its own arrays, and those of other libraries."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        """As NumPy's."""


@runtime_checkable
class _Factorized(Protocol):
    """A tensor in factors, tensorly's or ours."""

    def to_tensor(self) -> Any:
        """Multiply the factors out."""


TensorLike: TypeAlias = "Tensor | np.ndarray | _Array | _Factorized"
"""A torch tensor, an array of NumPy or of another of tensorly's backends, or factors."""


def as_tensor(W: object, name: str) -> Tensor:
    """A tensor of torch, of NumPy or another library, or in factors, as a torch tensor.

    Args:
        W: what NumPy can read as an array of numbers, or has a method `to_tensor`.
        name: layer or function that the error message names.

    Returns:
        The same values in the same precision; of an array that may be written, a view.

    Raises:
        InputError: it is no array of numbers.

    Example:
        >>> as_tensor(np.ones((2, 3)), "W").shape
        torch.Size([2, 3])
    """
    if isinstance(W, Tensor):
        return W
    if isinstance(W, _Factorized):
        return as_tensor(W.to_tensor(), name)
    if not isinstance(W, _Array):
        problem = f"got {type(W).__name__}, need a real floating-point tensor or array"
        raise InputError(name, problem, "convert it with torch.as_tensor or numpy.asarray")
    array = np.asarray(W)
    if array.dtype.kind not in "biufc":
        raise InputError(name, f"got dtype {array.dtype}, need numbers", "use .astype(float)")
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def as_working(W: object, name: str, *, min_dim: int = 1) -> Tensor:
    """Check a tensor and return it, detached, in the dtype that is computed in.

    float64 and float32 stay what they are; every narrower type becomes float32.

    Args:
        W: real floating-point tensor of at least `min_dim` dimensions, not empty; or an array of
            another library, see `as_tensor`.
        name: layer or function that the error message names.
        min_dim: least number of dimensions.

    Returns:
        The same values in float32 or float64, on the same device.

    Raises:
        InputError: not a real floating-point tensor, empty, too few dimensions, NaN or Inf.

    Example:
        >>> as_working(torch.ones(2, 3, dtype=torch.float16), "fc").dtype
        torch.float32
    """
    W = as_tensor(W, name)
    if not W.is_floating_point():
        problem = f"got a {W.dtype} tensor, need a real floating-point tensor"
        raise InputError(name, problem, "convert it with .float()")
    if W.ndim < min_dim or W.numel() == 0:
        problem = f"shape {tuple(W.shape)}, need at least {min_dim} non-empty dimensions"
        raise InputError(name, problem, "reshape it")
    W = W.detach()
    W = wide(W)
    if not is_finite(W):
        bad = W.numel() - int(torch.isfinite(W).sum())
        raise InputError(
            name,
            f"{bad} of {W.numel()} values are NaN or Inf, all must be finite",
            "repair or leave out this tensor",
        )
    return W


def is_finite(X: Tensor) -> bool:
    """Whether no value is NaN or Inf: mostly the sum tells, at a thirtieth of the time.

    Example:
        >>> is_finite(torch.ones(2)), is_finite(torch.tensor([1.0, math.inf]))
        (True, False)
    """
    return bool(X.sum().isfinite()) or bool(X.isfinite().all())


def check_rank(rank: int, full: int, shape: Sequence[int], name: str, where: str = "") -> None:
    """Refuse a rank that is not an integer in 1..full.

    Args:
        rank: what was asked for.
        full: the largest rank that makes sense.
        shape: of the tensor, for the message.
        name: layer or function that the message names.
        where: which of several ranks, e.g. " of mode 0".

    Raises:
        RankError: the rank is outside its range or not an integer.

    Example:
        >>> check_rank(9, 4, (4, 6), "fc")
        Traceback (most recent call last):
        lowrank.errors.RankError: fc: rank 9 is outside 1..4 for shape (4, 6); choose an integer \
in that range
    """
    if not hasattr(rank, "__index__") or isinstance(rank, bool) or not 1 <= rank <= full:
        problem = f"rank {rank}{where} is outside 1..{full} for shape {tuple(shape)}"
        raise RankError(name, problem, "choose an integer in that range")


def relative_error(W: TensorLike, approximation: Tensor) -> float:
    """Relative Frobenius error of an approximation, over the whole tensor.

        error = ||W - W'||_F / ||W||_F,   0 if both are zero, inf if only W is

    Args:
        W: the original, any shape.
        approximation: W', the same shape.

    Returns:
        The error, >= 0. It is summed in float64; float32 data resolves it to about 1e-7.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> round(relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])), 6)
        0.8
    """
    W = as_tensor(W, "relative_error")
    if W.shape != approximation.shape:
        problem = f"shape {tuple(W.shape)} does not match {tuple(approximation.shape)}"
        raise InputError("relative_error", problem, "compare with the tensor that was factorized")
    W = W.detach().to(torch.promote_types(W.dtype, approximation.dtype))
    scale = frobenius(W)
    defect = frobenius(W - approximation)
    if scale == 0.0:
        return 0.0 if defect == 0.0 else math.inf
    return defect / scale


def frobenius(W: Tensor) -> float:
    """Frobenius norm of a tensor of any shape, summed in float64.

    Example:
        >>> frobenius(torch.tensor([[3.0, 4.0]]))
        5.0
    """
    return float(torch.linalg.vector_norm(W, dtype=torch.float64))


def unfold(W: Tensor, mode: int) -> Tensor:
    """Mode-n unfolding: axis `mode` becomes the rows, the others, in order, the columns.

    Args:
        W: (I_1, ..., I_N).
        mode: axis, 0..N-1.

    Returns:
        Matrix (I_mode, product of the other sizes).

    Example:
        >>> unfold(torch.zeros(2, 3, 4), 1).shape
        torch.Size([3, 8])

    Source: Kolda and Bader 2009, section 2.4; columns in C order, not Fortran order.
    """
    return W.movedim(mode, 0).flatten(1) if W.ndim > 1 else W[:, None]


def mode_product(W: Tensor, M: Tensor, mode: int) -> Tensor:
    """Mode-n product: every fibre along `mode` is multiplied by a matrix.

        result_(n) = M W_(n)

    Args:
        W: (I_1, ..., I_N).
        M: (J, I_mode).
        mode: axis, 0..N-1.

    Returns:
        (I_1, ..., J, ..., I_N).

    Example:
        >>> mode_product(torch.zeros(2, 3, 4), torch.zeros(5, 3), 1).shape
        torch.Size([2, 5, 4])

    Source: Kolda and Bader 2009, section 2.5.
    """
    return torch.tensordot(M, W, dims=([1], [mode])).movedim(0, mode)


def khatri_rao(factors: Sequence[Tensor]) -> Tensor:
    """Column-wise Kronecker product, rows in the column order of `unfold`.

    Args:
        factors: matrices (I_n, R) with the same number of columns.

    Returns:
        (product of the I_n, R).

    Example:
        >>> khatri_rao([torch.ones(2, 5), torch.ones(3, 5)]).shape
        torch.Size([6, 5])

    Source: Kolda and Bader 2009, section 2.6.
    """
    result = factors[0]
    for factor in factors[1:]:
        result = (result[:, None, :] * factor[None, :, :]).flatten(0, 1)  # (I * J, R)
    return result


ROWS = 64
"""Rows of a Gram matrix that are computed at a time: what lies above their diagonal is left out."""


SINGLE_FROM = 256
"""Least size of a Gram matrix from which float32 saves time worth having."""


SINGLE_DEFECT = 1e-4
"""Loss of orthogonality, u (s_max / s)^2 with u = 2^-24, up to which float32 is used."""


SINGLE_LOSS = 1e-6
"""Relative excess of the error over the optimum up to which float32 is used."""


def gram(W: Tensor, *, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gram matrix on the shorter side: W W^T if m <= n, else W^T W.

    In float64 the squaring costs float32 data no accuracy: sqrt(eps64) = 1.5e-8 is below eps32.

    Args:
        W: (..., m, n).
        dtype: what it is computed in and comes back as.

    Returns:
        (..., k, k) with k = min(m, n).

    Example:
        >>> gram(torch.ones(2, 5))
        tensor([[5., 5.],
                [5., 5.]], dtype=torch.float64)
    """
    rows = W.to(dtype) if W.shape[-2] <= W.shape[-1] else W.to(dtype).mT
    k = rows.shape[-2]
    if rows.ndim > 2 or k <= 2 * ROWS or rows.device.type != "cpu":
        return rows @ rows.mT
    S = rows.new_zeros(k, k)
    for top in range(0, k, ROWS):
        S[top : top + ROWS, : top + ROWS] = rows[top : top + ROWS] @ rows[: top + ROWS].mT
    return S.tril_() + S.tril(-1).mT


def leading_left_vectors(W: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors of a wide matrix, from its Gram matrix.

    A large float32 matrix is done in float32 where the spectrum shows that this changes neither
    the error of the projection nor the orthogonality of what is projected, else in float64.

    Args:
        W: (..., m, n) with m <= n, float32 or float64.
        rank: how many, 1..m.

    Returns:
        (..., m, rank) with orthonormal columns, in the dtype that was computed in.

    Example:
        >>> leading_left_vectors(torch.eye(3, 5), 2).shape
        torch.Size([3, 2])
    """
    if W.dtype == torch.float32 and W.ndim == 2 and W.shape[0] >= SINGLE_FROM:
        S = gram(W, dtype=torch.float32)
        values, vectors = leading_eigenvectors(S, rank)
        if _single_suffices(values, float(S.trace()), W.shape[0]):
            return vectors
    return leading_eigenvectors(gram(W), rank)[1]


def _single_suffices(values: Tensor, total: float, k: int) -> bool:
    """Whether eigenvectors in float32 are as good as exact ones, by perturbation theory.

    float32 disturbs the matrix by about u s_1 in each entry of the eigenbasis, which mixes the
    kept vector i with the lost vector j by u s_1 / (s_i - s_j) and loses (u s_1)^2 / (s_i - s_j)
    of the energy; s_r stands for the difference.
    """
    largest, least = float(values[0]), float(values[-1])
    noise, rank = 2.0**-24 * largest, len(values)
    if not noise < SINGLE_DEFECT * least:
        return False
    lost = max(total - float(values.double().sum()), 0.0)
    return rank * (k - rank) * noise**2 / least <= 2 * SINGLE_LOSS * lost


def leading_eigenvectors(S: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues, descending, of a symmetric matrix, and their eigenvectors.

    Args:
        S: symmetric (..., k, k).
        rank: how many, 1..k.

    Returns:
        Eigenvalues (..., rank) and eigenvectors (..., k, rank) with orthonormal columns.

    Example:
        >>> values, vectors = leading_eigenvectors(torch.diag(torch.tensor([1.0, 3.0, 2.0])), 2)
        >>> values
        tensor([3., 2.])
    """
    k = S.shape[-1]
    if S.numel() == k * k and S.device.type == "cpu" and k >= 768 and 4 * rank <= k:
        values, vectors = _few_eigenvectors(S.reshape(k, k), rank)
        values, vectors = values.reshape(*S.shape[:-2], -1), vectors.reshape(*S.shape[:-1], -1)
    else:
        values, vectors = torch.linalg.eigh(S)
    return values.flip(-1)[..., :rank], vectors.flip(-1)[..., :rank]


def _few_eigenvectors(S: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The top of the spectrum, ascending; measured 2 to 3 times faster than all of it."""
    k = S.shape[0]
    top = (k - rank, k - 1)
    values, vectors = eigh(S.numpy(), subset_by_index=top, driver="evr", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


SKETCHED_FROM = 2048
"""Size of a matrix from which the top of its spectrum is sketched where that is good enough: an
eighth of it in a tenth of the time that all of it takes."""


def sketched_eigenvectors(S: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues and their vectors from a few products with a random block.

    What they hold of the trace falls short of the most that is possible by a tenth or so where the
    spectrum is flat, by a few per cent or less where it falls.

    Args:
        S: symmetric, positive semidefinite (k, k).
        rank: how many, 1..k.

    Returns:
        Eigenvalues (rank,), descending, none above the true one, and orthonormal vectors (k, rank).

    Example:
        >>> values, vectors = sketched_eigenvectors(torch.diag(torch.tensor([9.0, 4.0, 1.0])), 1)
        >>> torch.allclose(values, torch.tensor([9.0]))
        True

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4, and Rayleigh-Ritz on what it finds.
    """
    k = len(S)
    generator = torch.Generator().manual_seed(0)  # on the CPU: one answer on every device
    probe = torch.randn(k, min(k, rank + 10), generator=generator, dtype=S.dtype).to(S.device)
    Q = torch.linalg.qr(S @ probe).Q
    Q = torch.linalg.qr(S @ Q).Q
    values, vectors = torch.linalg.eigh(Q.mT @ (S @ Q))
    return values.flip(-1)[:rank], Q @ vectors.flip(-1)[:, :rank]


def soft_threshold(x: Tensor, tau: float | Tensor) -> Tensor:
    """Proximal map of tau ||x||_1: sign(x) max(|x| - tau, 0), element by element.

    Args:
        x: any shape.
        tau: threshold >= 0, a number or a tensor that broadcasts.

    Returns:
        The same shape as x.

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), 1.0)
        tensor([-2.,  0.,  1.])
    """
    return x.sign() * (x.abs() - tau).clamp_min(0)


def singular_value_threshold(W: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Proximal map of tau ||W||_*: the singular values are soft-thresholded.

        argmin_X  1/2 ||X - W||_F^2 + tau ||X||_*  =  U diag(max(s - tau, 0)) V^T

    Args:
        W: (..., m, n), float32 or float64.
        tau: threshold >= 0.

    Returns:
        The matrix X (..., m, n) and its singular values (..., min(m, n)).

    Example:
        >>> X, s = singular_value_threshold(torch.diag(torch.tensor([3.0, 1.0])), 2.0)
        >>> s
        tensor([1., 0.])

    Source: Cai, Candes and Shen 2010, theorem 2.1.
    """
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    s = (s - tau).clamp_min(0)
    return (U * s[..., None, :]) @ Vh, s
