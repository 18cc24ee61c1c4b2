"""What a decomposition returns: frozen factors that know their size and their error.

Factors of half-precision input are float32: rounding them is the business of whoever stores them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from lowrank.linalg import TensorLike, khatri_rao, mode_product, relative_error


class Factors(Protocol):
    """What every decomposition's result offers."""

    @property
    def rank(self) -> int | tuple[int, ...]:
        """An int (SVD, CP), or one int per mode (Tucker) or bond (tensor train)."""
        ...

    @property
    def n_params(self) -> int:
        """Numbers to store once scales (singular values, weights) are folded into a factor."""
        ...

    def to_tensor(self) -> Tensor:
        """Multiply the factors out."""
        ...

    def error(self, W: TensorLike) -> float:
        """Relative Frobenius error ||W - W'|| / ||W||; 0 for W = W' = 0, inf if only W is 0."""
        ...


@dataclass(frozen=True, eq=False)
class SVDFactors:
    """Truncated singular value decomposition W' = U diag(s) Vh, batch dimensions first.

    Attributes:
        U: (..., m, r), orthonormal columns.
        s: (..., r), descending, >= 0.
        Vh: (..., r, n), orthonormal rows.
    """

    U: Tensor
    s: Tensor
    Vh: Tensor

    @property
    def rank(self) -> int:
        """Number of singular values kept."""
        return self.s.shape[-1]

    @property
    def n_params(self) -> int:
        """batch * r * (m + n): what the two matrices of `balanced` hold."""
        return self.U.numel() + self.Vh.numel()

    def to_tensor(self) -> Tensor:
        """U diag(s) Vh, shape (..., m, n)."""
        return (self.U * self.s[..., None, :]) @ self.Vh

    def balanced(self) -> tuple[Tensor, Tensor]:
        """Two factors of equal norm: U diag(sqrt(s)) (..., m, r), diag(sqrt(s)) Vh (..., r, n)."""
        root = self.s.sqrt()
        return self.U * root[..., None, :], root[..., :, None] * self.Vh

    def error(self, W: TensorLike) -> float:
        """Relative Frobenius error, over all batches together."""
        return relative_error(W, self.to_tensor())


@dataclass(frozen=True, eq=False)
class TuckerFactors:
    """Tucker decomposition W' = core x_modes[0] factors[0] x_modes[1] factors[1] ...

    Attributes:
        core: like W, with size ranks[k] along modes[k].
        factors: one (I_modes[k], ranks[k]) matrix with orthonormal columns per mode.
        modes: the axes that are factorized; the others are left as they are.
    """

    core: Tensor
    factors: tuple[Tensor, ...]
    modes: tuple[int, ...]

    @property
    def rank(self) -> tuple[int, ...]:
        """One rank per entry of `modes`."""
        return tuple(U.shape[1] for U in self.factors)

    @property
    def n_params(self) -> int:
        """Core and factors together."""
        return self.core.numel() + sum(U.numel() for U in self.factors)

    def to_tensor(self) -> Tensor:
        """Multiply the core by every factor along its mode."""
        W = self.core
        for mode, U in zip(self.modes, self.factors, strict=True):
            W = mode_product(W, U, mode)
        return W

    def error(self, W: TensorLike) -> float:
        """Relative Frobenius error."""
        return relative_error(W, self.to_tensor())


CPStatus = Literal["exact", "converged", "max_iter", "bounded", "given"]
"""How `cp` ended: in closed form (exact; for a matrix, optimal); the error stopped falling;
iterations ran out; the sensitivity bound stopped the descent, as a better fit needs components
that cancel each other. "given": taken from elsewhere, see `from_tensorly`."""


@dataclass(frozen=True, eq=False)
class CPFactors:
    """CP decomposition W' = sum_r weights[r] factors[0][:, r] o factors[1][:, r] o ...

    Attributes:
        weights: (R,), descending, >= 0.
        factors: one (I_n, R) matrix per mode, columns of unit norm.
        status: how the fit ended; see `CPStatus`.
        n_iter: sweeps over all modes that led to this result, the discarded starts not counted.
        sensitivity: growth of a perturbation of the factors in W', against an orthogonal
            decomposition of the same norm and rank; see `lowrank.decompositions.cp.sensitivity`.
    """

    weights: Tensor
    factors: tuple[Tensor, ...]
    status: CPStatus
    n_iter: int
    sensitivity: float

    @property
    def rank(self) -> int:
        """Number of components."""
        return self.weights.shape[0]

    @property
    def n_params(self) -> int:
        """R times the sum of the sizes: what the matrices of `balanced` hold."""
        return sum(A.numel() for A in self.factors)

    @property
    def converged(self) -> bool:
        """True if the fit is in closed form or its error stopped falling within the bound."""
        return self.status in ("exact", "converged")

    def balanced(self) -> tuple[Tensor, ...]:
        """Factors with the weights spread evenly: every column of a component has one norm."""
        scale = self.weights ** (1 / len(self.factors))
        return tuple(A * scale for A in self.factors)

    def to_tensor(self) -> Tensor:
        """Sum of the rank-one components."""
        if len(self.factors) == 1:
            return (self.factors[0] * self.weights).sum(-1)
        shape = tuple(A.shape[0] for A in self.factors)
        largest = shape.index(max(shape))  # its factor is left out of the product: the least memory
        others = [A for n, A in enumerate(self.factors) if n != largest]
        W = (self.factors[largest] * self.weights) @ khatri_rao(others).mT  # (I_largest, rest)
        rest = shape[:largest] + shape[largest + 1 :]
        return W.unflatten(1, rest).movedim(0, largest).contiguous()

    def error(self, W: TensorLike) -> float:
        """Relative Frobenius error."""
        return relative_error(W, self.to_tensor())


@dataclass(frozen=True, eq=False)
class TTFactors:
    """Tensor train W'[i_1, ..., i_N] = cores[0][:, i_1, :] cores[1][:, i_2, :] ...

    Attributes:
        cores: N tensors (r_{n-1}, I_n, r_n) with r_0 = r_N = 1; all but the last left-orthogonal.
    """

    cores: tuple[Tensor, ...]

    @property
    def rank(self) -> tuple[int, ...]:
        """The N - 1 inner ranks."""
        return tuple(core.shape[2] for core in self.cores[:-1])

    @property
    def n_params(self) -> int:
        """All cores together."""
        return sum(core.numel() for core in self.cores)

    def to_tensor(self) -> Tensor:
        """Contract the cores from left to right."""
        W = self.cores[0]
        for core in self.cores[1:]:
            W = torch.tensordot(W, core, dims=1)  # (1, I_1, ..., I_n, r_n)
        return W.squeeze(0).squeeze(-1)

    def error(self, W: TensorLike) -> float:
        """Relative Frobenius error."""
        return relative_error(W, self.to_tensor())
