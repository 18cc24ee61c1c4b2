"""Factors to and from tensorly's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from lowrank.decompositions.cp import sensitivity
from lowrank.decompositions.factors import CPFactors, TTFactors, TuckerFactors
from lowrank.errors import InputError
from lowrank.linalg import as_tensor, mode_product, wide


@singledispatch
def to_tensorly(factors: Any) -> Any:
    """The same decomposition as tensorly's `CPTensor`, `TuckerTensor` or `TTTensor`.

    Its arrays are those of tensorly's present backend: NumPy's by default, the factors' own
    tensors under `tensorly.set_backend("pytorch")`. Modes that a Tucker decomposition leaves alone
    get an identity, since tensorly wants a factor for every mode.

    Args:
        factors: a `CPFactors`, `TuckerFactors` or `TTFactors`.

    Raises:
        InputError: it is none of these.

    Example:
        >>> import torch
        >>> from lowrank.decompositions import cp, to_tensorly
        >>> weights, matrices = to_tensorly(cp(torch.ones(4, 3, 2), 1))
        >>> weights.shape, [A.shape for A in matrices]
        ((1,), [(4, 1), (3, 1), (2, 1)])

    Source: Kossaifi, Panagakis, Anandkumar and Pantic 2019, "TensorLy: tensor learning in Python".
    """
    problem = f"got {type(factors).__name__}, need CPFactors, TuckerFactors or TTFactors"
    raise InputError("to_tensorly", problem, "pass what cp, tucker or tensor_train returns")


@to_tensorly.register
def _(factors: CPFactors) -> Any:
    from tensorly.cp_tensor import CPTensor

    return CPTensor((_handed(factors.weights), [_handed(A) for A in factors.factors]))


@to_tensorly.register
def _(factors: TuckerFactors) -> Any:
    from tensorly.tucker_tensor import TuckerTensor

    core = factors.core
    kept = dict(zip(factors.modes, factors.factors, strict=True))
    matrices = [
        kept[n] if n in kept else torch.eye(core.shape[n], dtype=core.dtype, device=core.device)
        for n in range(core.ndim)
    ]
    return TuckerTensor((_handed(core), [_handed(U) for U in matrices]))


@to_tensorly.register
def _(factors: TTFactors) -> Any:
    from tensorly.tt_tensor import TTTensor

    return TTTensor([_handed(core) for core in factors.cores])


def from_tensorly(tensor: Any) -> CPFactors | TuckerFactors | TTFactors:
    """Tensorly's `CPTensor`, `TuckerTensor` or `TTTensor`, of any backend, as factors.

    The tensor that they multiply out to is the same; the factors are brought to the form that ours
    have: of CP, columns of norm 1 and weights that are >= 0 and fall (status "given", since nothing
    is known of the fit); of Tucker, orthonormal columns; of a tensor train, left-orthogonal cores.

    Args:
        tensor: of tensorly; half types become float32.

    Raises:
        InputError: it is none of these, or a tensor ring, whose boundary ranks are above 1.

    Example:
        >>> import numpy as np
        >>> from tensorly.decomposition import tucker
        >>> from lowrank.decompositions import from_tensorly
        >>> W = np.arange(24.0).reshape(4, 3, 2)
        >>> factors = from_tensorly(tucker(W, rank=[2, 2, 2]))
        >>> factors.rank, factors.error(W) < 1e-6
        ((2, 2, 2), True)
    """
    from tensorly.cp_tensor import CPTensor
    from tensorly.tt_tensor import TTTensor
    from tensorly.tucker_tensor import TuckerTensor

    if isinstance(tensor, CPTensor):
        return _cp(tensor.weights, [_taken(A) for A in tensor.factors])
    if isinstance(tensor, TuckerTensor):
        return _tucker(_taken(tensor.core), [_taken(U) for U in tensor.factors])
    if isinstance(tensor, TTTensor):
        return _tensor_train([_taken(core) for core in tensor.factors])
    problem = f"got {type(tensor).__name__}, need a CPTensor, TuckerTensor or TTTensor"
    raise InputError("from_tensorly", problem, "decompose it first, with tensorly or with ours")


def _cp(given: Any, matrices: Sequence[Tensor]) -> CPFactors:
    rank = matrices[0].shape[1]
    weights = torch.ones_like(matrices[0][0]) if given is None else _taken(given).reshape(rank)
    norms = [torch.linalg.vector_norm(A, dim=0) for A in matrices]
    flat = torch.stack(norms).prod(0) == 0
    first = [torch.eye(len(A), 1, dtype=A.dtype, device=A.device) for A in matrices]
    units = [
        torch.where(n > 0, A / n.clamp_min(torch.finfo(A.dtype).tiny), e)
        for A, n, e in zip(matrices, norms, first, strict=True)
    ]
    weights = torch.where(flat, torch.zeros_like(weights), weights * torch.stack(norms).prod(0))
    units[0] = units[0] * torch.where(weights < 0, -1.0, 1.0).to(weights)
    weights, order = weights.abs().sort(descending=True, stable=True)
    kept = tuple(U[:, order] for U in units)
    growth = sensitivity([kept[0] * weights, *kept[1:]])
    return CPFactors(weights, kept, "given", 0, growth)


def _tucker(core: Tensor, matrices: Sequence[Tensor]) -> TuckerFactors:
    bases = []
    for mode, U in enumerate(matrices):
        Q, R = torch.linalg.qr(U)
        core = mode_product(core, R, mode)
        bases.append(Q)
    return TuckerFactors(core, tuple(bases), tuple(range(core.ndim)))


def _tensor_train(cores: Sequence[Tensor]) -> TTFactors:
    if cores[0].shape[0] != 1 or cores[-1].shape[2] != 1:
        ends = (cores[0].shape[0], cores[-1].shape[2])
        problem = f"boundary ranks {ends} are those of a tensor ring, need (1, 1)"
        raise InputError("from_tensorly", problem, "decompose it as a tensor train")
    done: list[Tensor] = []
    carry = torch.ones(1, 1, dtype=cores[0].dtype, device=cores[0].device)
    for core in cores[:-1]:
        core = torch.tensordot(carry, core, dims=1)  # (r, I, s)
        Q, carry = torch.linalg.qr(core.flatten(0, 1))
        done.append(Q.unflatten(0, core.shape[:2]))
    return TTFactors((*done, torch.tensordot(carry, cores[-1], dims=1)))


def _taken(array: Any) -> Tensor:
    """An array of any backend as a tensor in the precision that is computed in."""
    return wide(as_tensor(array, "from_tensorly").detach())


def _handed(tensor: Tensor) -> Any:
    """A tensor as an array of tensorly's present backend."""
    import tensorly

    if tensorly.get_backend() == "pytorch":
        return tensor.detach()
    return tensorly.tensor(tensor.detach().cpu().numpy())
