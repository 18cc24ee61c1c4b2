"""Truncated singular value decomposition: the best approximation of a matrix by one of low rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from lowrank.decompositions.factors import SVDFactors
from lowrank.errors import InputError
from lowrank.linalg import (
    TensorLike,
    as_working,
    check_rank,
    gram,
    leading_eigenvectors,
    leading_left_vectors,
)

Method = Literal["auto", "lapack", "gram", "randomized"]


GRAM_DEFECT = {torch.float32: torch.finfo(torch.float32).eps, torch.float64: 1e-10}
"""Loss of orthogonality, eps64 (s_max / s)^2, up to which the Gram route is trusted."""


def truncated_svd(
    W: TensorLike, rank: int, *, method: Method = "auto", seed: int = 0, name: str = "truncated_svd"
) -> SVDFactors:
    """Best approximation of given rank in the Frobenius norm.

        W' = argmin ||W - X||_F  subject to  rank(X) <= rank,   W' = U diag(s) Vh

    Args:
        W: (..., m, n), any float type; half types are computed and returned in float32.
        rank: number of singular values to keep, 1..min(m, n).
        method: "lapack" is an SVD cut short. "gram" takes eigenvectors of the float64 Gram
            matrix on the short side. "auto" takes the cheaper of the two, and goes back to
            "lapack" where the kept singular values are too small for the Gram matrix to resolve;
            for a float32 matrix with a short side from 256 it computes in float32 where the
            spectrum allows it: the error is the least to 1e-6 of itself, and the long factor is
            orthonormal to about 1e-4. "randomized" is a range finder with four power iterations,
            for a rank far below min(m, n), and not exact.
        seed: of the randomized method.
        name: what an error message calls W.

    Returns:
        `SVDFactors` with the batch dimensions of W.

    Raises:
        InputError: W is not a finite real matrix, or the method is unknown.
        RankError: the rank is outside 1..min(m, n).

    Example:
        >>> W = torch.outer(torch.arange(4.0), torch.arange(3.0))
        >>> factors = truncated_svd(W, 1)
        >>> factors.n_params, round(factors.error(W), 5)
        (7, 0.0)

    Source: Eckart and Young 1936; randomized: Halko, Martinsson and Tropp 2011, algorithms 4.4
    and 5.1.
    """
    W = as_working(W, name, min_dim=2)
    check_rank(rank, min(W.shape[-2:]), W.shape, name)
    if method not in get_args(Method):
        problem = f"method {method!r} is not one of {', '.join(get_args(Method))}"
        raise InputError(name, problem, "choose one of them")
    if method == "randomized":
        return _randomized(W, rank, seed)
    if method == "lapack" or (method == "auto" and not _gram_is_cheaper(W)):
        return _lapack(W, rank)
    factors = _gram(W, rank, leading_left_vectors if method == "auto" else _exact_vectors)
    return factors if method == "gram" or _resolved(factors.s, W.dtype) else _lapack(W, rank)


def singular_values(W: TensorLike, *, name: str = "singular_values") -> Tensor:
    """All singular values, at the price of eigenvalues of the Gram matrix where that is exact.

    float32 and narrower: within about 1e-7 s_max of the true values, from a float64 Gram matrix.
    float64: from the Gram matrix when it resolves the smallest one, else by LAPACK.
    The squared error of rank r is the sum of s[r:] ** 2.

    Args:
        W: (..., m, n), any float type.
        name: what an error message calls W.

    Returns:
        (..., min(m, n)), descending, >= 0.

    Raises:
        InputError: W is not a finite real matrix.

    Example:
        >>> singular_values(torch.diag(torch.tensor([1.0, 3.0, 2.0])))
        tensor([3., 2., 1.])
    """
    W = as_working(W, name, min_dim=2)
    s = torch.linalg.eigvalsh(gram(W)).flip(-1).clamp_min(0).sqrt()
    if W.dtype == torch.float64 and not _resolved(s, W.dtype):
        return torch.linalg.svdvals(W)
    return s.to(W.dtype)


def _gram_is_cheaper(W: Tensor) -> bool:
    """Measured on one thread: float32 LAPACK wins only on small, nearly square matrices."""
    short, long = sorted(W.shape[-2:])
    return W.dtype == torch.float64 or long >= 1.5 * short or short > 512


def _resolved(s: Tensor, dtype: torch.dtype) -> bool:
    """Are the singular vectors that belong to s orthogonal enough when read off the Gram matrix."""
    defect = torch.finfo(torch.float64).eps * (s[..., 0] / s[..., -1]) ** 2
    return bool((defect < GRAM_DEFECT[dtype]).all())  # 0 / 0 is NaN: not resolved


def _lapack(W: Tensor, rank: int) -> SVDFactors:
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    return SVDFactors(
        U[..., :rank].contiguous(), s[..., :rank].contiguous(), Vh[..., :rank, :].contiguous()
    )


def _exact_vectors(W: Tensor, rank: int) -> Tensor:
    return leading_eigenvectors(gram(W), rank)[1]


def _gram(W: Tensor, rank: int, vectors: Callable[[Tensor, int], Tensor]) -> SVDFactors:
    if W.shape[-2] > W.shape[-1]:
        turned = _gram(W.mT, rank, vectors)
        return SVDFactors(turned.Vh.mT.contiguous(), turned.s, turned.U.mT.contiguous())
    U = vectors(W, rank)
    Vh = U.mT @ W.to(U.dtype)  # (..., rank, n), rows orthogonal, of norm s
    s = torch.linalg.vector_norm(Vh, dim=-1)
    Vh /= torch.where(s > 0, s, 1.0)[..., None]
    return SVDFactors(U.to(W.dtype).contiguous(), s.to(W.dtype), Vh.to(W.dtype))


def _randomized(W: Tensor, rank: int, seed: int) -> SVDFactors:
    """Range finder with 10 extra columns and 4 power iterations, each orthonormalised.

    Not `torch.svd_lowrank`, which draws from the global generator.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)  # one answer on every device
    width = min(rank + 10, *W.shape[-2:])
    probe = torch.randn(*W.shape[:-2], W.shape[-1], width, generator=generator, dtype=W.dtype)
    Q = torch.linalg.qr(W @ probe.to(W.device)).Q
    for _ in range(4):
        Q = torch.linalg.qr(W @ torch.linalg.qr(W.mT @ Q).Q).Q
    inner = _lapack(Q.mT @ W, rank)
    return SVDFactors(Q @ inner.U, inner.s, inner.Vh)
