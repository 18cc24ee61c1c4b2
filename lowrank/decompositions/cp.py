"""CP decomposition: a sum of few rank-one tensors, kept from diverging.

Alternating least squares runs on the tensor reduced to its Tucker core, in float64, with
extrapolated steps. A best CP approximation need not exist: components can grow without bound
and cancel each other. So the sensitivity is watched in every sweep, and where it passes its bound
the components are shrunk at constant error before the descent goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn.functional import one_hot

from lowrank.decompositions.factors import CPFactors, CPStatus
from lowrank.decompositions.observed import check_positive
from lowrank.decompositions.svd import truncated_svd
from lowrank.decompositions.tucker import tucker
from lowrank.errors import InputError
from lowrank.linalg import TensorLike, as_working, check_rank, frobenius, khatri_rao, unfold

RIDGE = 1e-11
"""Added to the unit diagonal of the normal equations: Cholesky holds when columns coincide."""


SCREENING_SWEEPS = 10
"""Sweeps that every start gets before the best one goes on alone."""


CORRECTION_SWEEPS = 5
"""Sweeps of error-preserving correction each time the sensitivity passes its bound."""


PATIENCE = 3
"""Slow sweeps in a row after which the descent has converged."""


ERROR_FLOOR = 1e-7
"""Smaller relative errors drown in the rounding of 1 - 2 <T, T'> + <T', T'> in float64."""


POLISH_SWEEPS = 5
"""Sweeps on the whole tensor where the Tucker core was not exact."""


def cp(
    W: TensorLike,
    rank: int,
    *,
    n_starts: int = 2,
    max_iter: int = 100,
    tol: float = 1e-3,
    seed: int = 0,
    max_sensitivity: float = 10.0,
    name: str = "cp",
) -> CPFactors:
    """Approximate a tensor by a sum of `rank` rank-one tensors of bounded sensitivity.

        min ||W - sum_r weights_r a_r o b_r o ...||_F  subject to  sensitivity <= max_sensitivity

    Args:
        W: (I_1, ..., I_N) with N >= 2, any float type; half types are returned in float32.
        rank: number of components, 1..(product of all sizes except the largest); at that full
            rank, and for matrices, the result is exact or optimal without iterations.
        n_starts: one from singular vectors of the slices of the HOSVD core, the others random.
        max_iter: most sweeps over all modes, before up to 5 that polish a result found on a
            truncated Tucker core.
        tol: stop when three sweeps in a row lower the error by less than this fraction of it.
        seed: of the random starts.
        max_sensitivity: bound on `sensitivity`, at least 1.
        name: what an error message calls W.

    Returns:
        `CPFactors`; see `status`, `n_iter` and `sensitivity` for how the fit went.

    Raises:
        InputError: W is not a finite real tensor of two or more modes, or an option is out of
            range.
        RankError: the rank is outside its range.

    Example:
        >>> W = torch.einsum("ir,jr,kr->ijk", *(torch.randn(n, 2).double() for n in (6, 5, 4)))
        >>> factors = cp(W, 2, tol=1e-8, max_iter=500)
        >>> factors.n_params, factors.error(W) < 1e-3
        (30, True)

    Source: Kolda and Bader 2009, section 3.4 (ALS); Bro and Andersson 1998 (compression); Ang,
    Cohen, Gillis and Hien 2021 (extrapolation with restart); Phan et al. 2020, "Stable low-rank
    tensor decomposition for compression of CNN" (sensitivity and its minimisation at constant
    error). We correct during the descent, not after it.
    """
    W = as_working(W, name, min_dim=2)
    _check(W, rank, n_starts, max_iter, tol, max_sensitivity, name)
    scale = frobenius(W)
    if W.ndim == 2:
        return _from_svd(W, rank, name)
    if scale == 0.0:
        return _zero(W, rank)
    if rank == _full_rank(W.shape):
        return _exact(W)
    order = sorted(range(W.ndim), key=lambda n: -W.shape[n])  # the largest mode first
    run = _fit(
        W.double().permute(order) / scale, rank, n_starts, max_iter, tol, seed, max_sensitivity
    )
    back = [order.index(n) for n in range(W.ndim)]
    return _finish(run, back, scale, W.dtype)


def _fit(
    T: Tensor, rank: int, n_starts: int, max_iter: int, tol: float, seed: int, bound: float
) -> _Run:
    """Screen the starts, finish the best one on the Tucker core, polish it on the tensor."""
    core, bases = _reduce(T, rank)
    runs = [
        _descend(core, start, min(SCREENING_SWEEPS, max_iter), tol, bound)
        for start in _starts(core, rank, n_starts, seed)
    ]
    best = min(runs, key=lambda run: run.fit.error)
    run = _descend(core, best.fit, max(max_iter - best.n_iter, 0), tol, bound)
    fit, n_iter = _expand(run.fit, bases), best.n_iter + run.n_iter
    if all(U.shape[1] == min(n, T.numel() // n) for U, n in zip(bases, T.shape, strict=True)):
        return _Run(fit, run.status, n_iter)
    unseen = replace(fit, error=math.inf, sensitivity=math.inf)  # known on the core only
    polished = _descend(T, unseen, POLISH_SWEEPS, tol, bound)
    return _Run(polished.fit, run.status, n_iter + polished.n_iter)


def sensitivity(factors: Sequence[Tensor]) -> float:
    """Growth of a small perturbation of balanced CP factors in the tensor they make.

    Noise of variance sigma^2 on every entry of factors of equal column norms changes the tensor
    by sigma^2 sum_n I_n sum_r lambda_r^p in squared norm, with p = 2 - 2/N and lambda_r the norm
    of component r. It is given relative to that of R orthogonal components of equal norm:

        sensitivity = sum_r lambda_r^p / (R^(1/N) ||W'||^p)

    About 1 without cancellation, large where components cancel. It does not change when a
    factor's columns are scaled.

    Args:
        factors: N matrices (I_n, R).

    Returns:
        The sensitivity, >= 0; 0 for a zero tensor of zero components.

    Example:
        >>> sensitivity([torch.eye(3), torch.eye(3), torch.eye(3)])
        1.0

    Source: Phan et al. 2020, "Stable low-rank tensor decomposition for compression of CNN"; theirs
    is not divided by its value for orthogonal components.
    """
    wide = [A.double() for A in factors]
    weights = torch.stack([torch.linalg.vector_norm(A, dim=0) for A in wide]).prod(0)
    energy = torch.stack([A.mT @ A for A in wide]).prod(0).sum()
    return _sensitivity(weights, float(energy.clamp_min(0).sqrt()), len(wide))


def _sensitivity(weights: Tensor, norm: float, order: int) -> float:
    power = 2 - 2 / order
    growth = float((weights**power).sum())
    if growth == 0.0:
        return 0.0
    return growth / (len(weights) ** (1 / order) * norm**power) if norm > 0 else math.inf


@dataclass(frozen=True, eq=False)
class _Fit:
    """Components of unit norm, their weights, and the error against a tensor of norm 1."""

    factors: tuple[Tensor, ...]
    weights: Tensor
    error: float
    sensitivity: float


@dataclass(frozen=True, eq=False)
class _Run:
    fit: _Fit
    status: CPStatus
    n_iter: int


Update = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(T_(n) Z, Z^T Z, current weights) -> new factor, where Z is the Khatri-Rao of the others."""


def _sweep(T: Tensor, fit: _Fit, update: Update) -> _Fit:
    """Update every factor once, from left to right.

    What the factors on the left contribute is contracted once and carried along, so a sweep
    costs two products with the whole tensor instead of N.
    """
    factors, weights = list(fit.factors), fit.weights
    grams = [A.mT @ A for A in factors]
    carried = T
    for n in range(T.ndim):
        later = factors[n + 1 :]
        if n == 0:
            M = T.flatten(1) @ khatri_rao(later)  # (I_1, R)
        else:
            M = (carried.flatten(1, -2) * khatri_rao(later)).sum(1) if later else carried
        V = reduce(torch.mul, grams[:n] + grams[n + 1 :])
        A = update(M, V, weights)
        weights = torch.linalg.vector_norm(A, dim=0)
        factors[n] = _unit(A)
        grams[n] = factors[n].mT @ factors[n]
        if n == 0:
            carried = torch.tensordot(T, factors[0], dims=([0], [0]))  # (I_2, ..., I_N, R)
        elif later:
            carried = torch.einsum("i...r,ir->...r", carried, factors[n])
    energy = max(float((V * (A.mT @ A)).sum()), 0.0)  # of the fit
    error = math.sqrt(max(1 - 2 * float((M * A).sum()) + energy, 0.0))
    growth = _sensitivity(weights, math.sqrt(energy), T.ndim)
    return _Fit(tuple(factors), weights, error, growth)


def _least_squares(M: Tensor, V: Tensor, weights: Tensor) -> Tensor:
    """argmin_A ||T_(n) - A Z^T||."""
    del weights
    V = V.clone()
    V.diagonal().add_(RIDGE)
    return torch.cholesky_solve(M.mT, torch.linalg.cholesky(V)).mT


def _least_sensitive(bound: float, order: int) -> Update:
    """argmin_A sum_r weights_r^(-2/N) ||A_r||^2  subject to  ||T_(n) - A Z^T|| <= bound.

    The quadratic majorises the sensitivity sum_r ||A_r||^(2 - 2/N) at the current weights. Its
    solution is A = T_(n) Z (V + mu D)^-1, with mu the root of a scalar equation.
    """

    def update(M: Tensor, V: Tensor, weights: Tensor) -> Tensor:
        d = weights ** (1 / order)  # D^(-1/2)
        values, Q = torch.linalg.eigh(V * d * d[:, None])
        values = values.clamp_min(RIDGE * float(values[-1]))
        F = (M * d) @ Q
        f, v = F.square().sum(0).cpu().numpy(), values.cpu().numpy()

        def excess(log_mu: float) -> float:
            mu = math.exp(log_mu)
            return float(1 - bound**2 - (f * (v + 2 * mu) / (v + mu) ** 2).sum())

        low, high = math.log(v[0] * 1e-3), math.log(v[-1] * 1e3)
        if excess(low) >= 0:
            mu = 0.0  # no slack: plain least squares
        else:
            mu = math.exp(high if excess(high) <= 0 else brentq(excess, low, high, xtol=1e-8))
        return ((F / (values + mu)) @ Q.mT) * d

    return update


def _descend(T: Tensor, fit: _Fit, max_iter: int, tol: float, bound: float) -> _Run:
    """Extrapolated ALS under a bound on the sensitivity."""
    step, previous, slow = 0.5, fit, 0
    for n_iter in range(1, max_iter + 1):
        new = _sweep(T, _extrapolate(fit, previous, step), _least_squares)
        diverging = new.sensitivity > bound
        if diverging:
            new = _correct(T, new, new.error)
        outside = new.sensitivity > bound
        if previous is not fit and (new.error > fit.error or outside):
            step, previous = step / 3, fit  # too far: the next sweep is a plain one
            continue
        if outside:
            return _Run(_loosen(T, new, bound, fit), "bounded", n_iter)
        slow = slow + 1 if fit.error - new.error <= tol * new.error else 0
        previous, fit = (new if diverging else fit), new
        step = min(step * 1.2, 20.0)
        if slow == PATIENCE or fit.error < ERROR_FLOOR:
            return _Run(fit, "converged", n_iter)
    return _Run(fit, "max_iter", max_iter)


def _extrapolate(fit: _Fit, previous: _Fit, step: float) -> _Fit:
    if previous is fit or step == 0:
        return fit
    pairs = zip(fit.factors, previous.factors, strict=True)
    return replace(fit, factors=tuple(_unit(A + step * (A - B)) for A, B in pairs))


def _unit(A: Tensor) -> Tensor:
    """Columns of unit norm; a zero column stays zero."""
    norms = torch.linalg.vector_norm(A, dim=0)
    return A / torch.where(norms > 0, norms, 1.0)


def _correct(T: Tensor, fit: _Fit, error: float) -> _Fit:
    """Shrink the components as far as this error allows."""
    shrink = _least_sensitive(error, T.ndim)
    for _ in range(CORRECTION_SWEEPS):
        fit = _sweep(T, fit, shrink)
    return fit


def _loosen(T: Tensor, fit: _Fit, bound: float, before: _Fit) -> _Fit:
    """Give up error until the sensitivity bound holds, but no more than the sweep had gained."""
    allowed = fit.error
    while fit.sensitivity > bound and allowed < 1:
        allowed = min(1.02 * allowed + ERROR_FLOOR, 1.0)
        if before.sensitivity <= bound and before.error <= allowed:
            return before
        fit = _correct(T, fit, allowed)
    return fit


def _starts(core: Tensor, rank: int, n_starts: int, seed: int) -> list[_Fit]:
    generator = torch.Generator().manual_seed(seed)  # on the CPU: one answer on every device
    starts = [_start(_slice_components(core, rank))]
    for _ in range(n_starts - 1):
        draws = [torch.randn(n, rank, generator=generator, dtype=core.dtype) for n in core.shape]
        starts.append(_start([A.to(core.device) for A in draws]))
    return starts


def _start(factors: Sequence[Tensor]) -> _Fit:
    unit = tuple(_unit(A) for A in factors)
    return _Fit(unit, unit[0].new_ones(unit[0].shape[1]), math.inf, math.inf)


def _slice_components(core: Tensor, rank: int) -> list[Tensor]:
    """The strongest singular triplets of all slices along the two largest (leading) modes.

    A CP of orthogonal components, exact at full rank, from which no component starts to cancel.
    """
    slices = core.flatten(2).movedim(-1, 0)  # (I_3 ... I_N, I_1, I_2)
    U, s, Vh = torch.linalg.svd(slices, full_matrices=False)
    strongest = s.flatten().argsort(descending=True, stable=True)[:rank]
    which, k = strongest // s.shape[1], strongest % s.shape[1]
    others = _unit_vectors(which, core.shape[2:], core)
    return [U[which, :, k].mT, Vh[which, k, :].mT, *others]


def _unit_vectors(index: Tensor, shape: Sequence[int], like: Tensor) -> list[Tensor]:
    """For every axis a matrix (size, len(index)) of unit vectors that point at flat indices."""
    vectors = []
    for size in reversed(shape):
        vectors.append(one_hot(index % size, size).mT.to(like.dtype).contiguous())
        index = index // size
    return vectors[::-1]


def _reduce(T: Tensor, rank: int) -> tuple[Tensor, list[Tensor]]:
    """Tucker core with at most `rank` along each mode, and its bases, one mode after another.

    No error where no mode is larger than the rank. In sequence, because bases found apart from
    each other can miss the tensor altogether when singular values coincide.
    """
    bases: list[Tensor] = []
    for mode in range(T.ndim):
        kept = min(T.shape[mode], T.numel() // T.shape[mode], rank)
        part = tucker(T, [kept], modes=[mode])
        T, bases = part.core, [*bases, *part.factors]
    return T, bases


def _expand(fit: _Fit, bases: Sequence[Tensor]) -> _Fit:
    return replace(fit, factors=tuple(U @ A for U, A in zip(bases, fit.factors, strict=True)))


def _finish(run: _Run, back: Sequence[int], scale: float, dtype: torch.dtype) -> CPFactors:
    """Descending weights, axes in their own order, the scale and dtype of the input again."""
    by_weight = run.fit.weights.argsort(descending=True, stable=True)
    factors = [run.fit.factors[n][:, by_weight] for n in back]
    weights = run.fit.weights[by_weight]
    kept = tuple(A.to(dtype).contiguous() for A in factors)
    return CPFactors((weights * scale).to(dtype), kept, run.status, run.n_iter, run.fit.sensitivity)


def _exact(W: Tensor) -> CPFactors:
    """Every fibre along the largest mode is a component of its own."""
    largest = max(range(W.ndim), key=lambda n: W.shape[n])
    fibres = unfold(W, largest)  # (I_largest, R)
    weights = torch.linalg.vector_norm(fibres, dim=0)
    by_weight = weights.argsort(descending=True, stable=True)
    rest = W.shape[:largest] + W.shape[largest + 1 :]
    factors = _unit_vectors(by_weight, rest, W)
    factors.insert(largest, _unit(fibres)[:, by_weight])
    weights = weights[by_weight]
    growth = sensitivity([factors[0] * weights, *factors[1:]])
    return CPFactors(weights, tuple(factors), "exact", 0, growth)


def _from_svd(W: Tensor, rank: int, name: str) -> CPFactors:
    svd = truncated_svd(W, rank, name=name)
    factors = (svd.U, svd.Vh.mT.contiguous())
    return CPFactors(svd.s, factors, "exact", 0, sensitivity([svd.U * svd.s, svd.Vh.mT]))


def _zero(W: Tensor, rank: int) -> CPFactors:
    factors = tuple(W.new_zeros(n, rank) for n in W.shape)
    return CPFactors(W.new_zeros(rank), factors, "exact", 0, 0.0)


def _full_rank(shape: Sequence[int]) -> int:
    return math.prod(shape) // max(shape)


def _check(
    W: Tensor,
    rank: int,
    n_starts: int,
    max_iter: int,
    tol: float,
    max_sensitivity: float,
    name: str,
) -> None:
    check_rank(rank, _full_rank(W.shape), W.shape, name)
    if n_starts < 1 or max_iter < 1:
        problem = f"n_starts {n_starts} and max_iter {max_iter} must be at least 1"
        raise InputError(name, problem, "raise them")
    check_positive(tol, "tol", name, zero=True)
    if not max_sensitivity >= 1:
        problem = f"max_sensitivity {max_sensitivity} is below 1, that of orthogonal components"
        raise InputError(name, problem, "raise it; math.inf switches the bound off")
