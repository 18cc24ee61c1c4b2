"""The front door: choose the formulation and a solver, solve, certify from outside."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lowrank.errors import InputError
from lowrank.sensing.limits import TOL
from lowrank.sensing.operators.arrays import MatrixLike, to_numpy
from lowrank.sensing.operators.chunked import reduced_rows
from lowrank.sensing.posterior import posterior_mean
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.checks import checked_number
from lowrank.sensing.problems.groups import GroupBPDN, GroupLasso, JointBPDN, JointSparse
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.problems.other import BestSubset, KSparse, PosteriorMean
from lowrank.sensing.result import Recovery
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers import Callback, Solver


def recover(
    A: MatrixLike,
    y: ArrayLike,
    *,
    noise: float | Literal["auto"] | None = None,
    lam: float | None = None,
    lam_fraction: float | None = None,
    sparsity: int | None = None,
    exact: bool = False,
    ridge: float = 0.0,
    time_limit: float | None = None,
    estimate: Literal["optimum", "mean"] = "optimum",
    basis: MatrixLike | None = None,
    nonneg: bool = False,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    joint: bool = False,
    solver: str | Solver = "auto",
    tol: float | None = None,
    max_iter: int | None = None,
    x0: ArrayLike | None = None,
    debias: bool = False,
    callback: Callback | None = None,
) -> Recovery:
    """Recover a sparse signal from measurements `y = A x + e`.

    Nothing given is basis pursuit, `min ||c||_1` subject to `A Psi c = y`; `noise` is BPDN,
    `||A Psi c - y||_2 <= noise`; `lam` or `lam_fraction` is LASSO,
    `1/2 ||A Psi c - y||^2 + lam ||c||_1`; `sparsity` is k-sparse least squares, by a greedy method
    and without certificate, or with `exact=True` the best subset, proven. With `groups` or `joint`
    the length of each group, or of each row, takes the place of the modulus in the first three.

    Args:
        A: (m, n) array, sparse matrix, LinearOperator of SciPy or PyLops, `Operator`, torch tensor
            or `torch.nn.Linear`; or a Dask array, of whose rows, where they are more than memory
            holds, only a triangle is kept, with the same residuals.
        y: (m,), or (m, batch) for several signals.
        noise: bound on `||A x - y||_2`, >= 0; "auto" is `noise.estimate_noise(...).epsilon`, for
            a single signal.
        lam: penalty, > 0.
        lam_fraction: the same as a share of `noise.lam_max`, from where on the answer is zero;
            in (0, 1], and without units.
        sparsity: number of non-zeros, 1 .. min(m, n).
        exact: prove that no other `sparsity` columns fit better, by branch and bound. It takes as
            long as it takes: seconds for ten of a thousand columns of a random matrix, and beyond
            any patience for many alike columns; then `time_limit` gives the best so far and its
            gap, which is relative to `1/2 ||y||^2`.
        ridge: with `exact`, `ridge/2 ||c||^2` is added to the objective; >= 0.
        time_limit: seconds, after which the best so far is returned with its gap; solvers are asked
            to stop between two iterations. None is no limit.
        estimate: "optimum" of the convex problem, which is certified, or "mean" of the posterior
            under a sparse prior whose share and size of non-zeros are learned: with noise it is
            closer to a sparse signal than any optimum of L1. Its error is estimated, not proven
            (`Recovery.estimated_error`); where the prior does not fit the signal, the answer is the
            optimum after all, and `why` says so.
        basis: `Psi` with `x = Psi c`, such as `bases.dct(n)`, or a name: "dct", "fourier", a
            wavelet such as "db4", or "dct:32x32" for pictures; None is the identity.
        nonneg: the coefficients are known to be non-negative.
        weights: positive weights of the L1 norm; of the groups or rows, where these are asked for.
        groups: coefficients that are zero together: an integer label each, (p,), or the indices of
            each group. Weights default to the square roots of the groups' sizes.
        joint: the signals of y (m, batch) have one support; `noise` bounds the Frobenius norm of
            all residuals.
        solver: a name in `SOLVERS`, a solver object, or "auto".
        tol: relative gap to reach; None is 1e-8.
        max_iter: limit of the solver's iterations; None is the solver's own.
        x0: coefficients to start from, where the solver can use them.
        debias: also give least squares on the support, in `Recovery.debiased`.
        callback: `callback(iteration, coefficients)`; a true return value stops the run.

    Returns:
        `Recovery`: x and coefficients, status with advice, objective, certified gap, cost. Tensors
            come back in the precision and on the device of y, or else of A, as bfloat16 too;
            arrays in double precision, which is what the certificate is of.

    Raises:
        InputError: wrong shapes, NaN or Inf, contradictory options, an unknown or unsuited solver.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> A, x = rng.standard_normal((20, 40)), np.zeros(40)
        >>> x[[3, 17]] = 1, -2
        >>> result = recover(A, A @ x)
        >>> result.status.name, result.support.tolist(), bool(np.abs(result.x - x).max() < 1e-6)
        ('OPTIMAL', [3, 17], True)

    Source: Chen, Donoho, Saunders 1998; van den Berg, Friedlander 2008; Tibshirani 1996.
    """
    _check_estimate(
        estimate, solver,
        lam=lam, lam_fraction=lam_fraction, sparsity=sparsity, weights=weights, x0=x0,
        nonneg=nonneg or None,
    )  # fmt: skip
    _check_one_of(noise=noise, lam=lam, lam_fraction=lam_fraction, sparsity=sparsity)
    _check_exact(exact, sparsity, ridge)
    _check_together(groups, joint, sparsity, estimate)
    shared: dict[str, Any] = {"basis": basis, "weights": weights}
    shared["lower"] = 0.0 if nonneg else -np.inf
    problem: Problem
    A, y, reduced = reduced_rows(A, y)
    said = ""
    if isinstance(noise, str):
        _check_whole(reduced, 'noise="auto"')
        noise, said = _estimated(noise, A, y, basis, nonneg)
    if sparsity is not None:
        if nonneg or weights is not None:
            raise InputError("sparsity", "joins neither nonneg nor weights", "give noise or lam")
        problem = (
            BestSubset(A, y, sparsity, basis=basis, ridge=ridge)
            if exact
            else KSparse(A, y, sparsity, basis=basis)
        )
    elif lam is not None or lam_fraction is not None:
        problem = _penalised(A, y, 1.0 if lam is None else lam, groups, joint, shared)
        if lam_fraction is not None:
            lam, said = _fraction(lam_fraction, problem.lam_max)
            problem = _penalised(A, y, lam, groups, joint, shared)  # of A and y as they came
    else:
        bound = 0.0 if noise is None else checked_number("noise", noise, zero=True)
        problem = _constrained(A, y, bound, groups, joint, shared)
    options: dict[str, Any] = {"debias": debias, "callback": callback, "time_limit": time_limit}
    if estimate == "mean":
        _check_whole(reduced, 'estimate="mean"')
        bayes = PosteriorMean(A, y, _noise_std(problem), basis=basis)
        found = posterior_mean(problem, bayes, tol=tol, max_iter=max_iter, **options)
    else:
        found = solve(problem, solver, tol=tol, max_iter=max_iter, x0=x0, **options)
        if found.status.ok and isinstance(problem, BPDN) and not problem.bounded:
            said = f"{said}{CLOSER}; " if found.support.size else said
        elif found.status.ok and isinstance(problem, BasisPursuit) and _is_full(problem, found):
            said = f"{said}{FULL}; "
    if reduced:  # a dual point of the triangle is none of A
        found = replace(found, dual=None)
    said = f"{reduced}{said}"
    return replace(found, why=f"{said}{found.why}") if said else found


def _penalised(
    A: MatrixLike, y: ArrayLike, lam: float, groups: Any, joint: bool, shared: dict[str, Any]
) -> Lasso | GroupLasso | JointSparse:
    if groups is not None:
        return GroupLasso(A, y, lam, groups, **shared)
    return JointSparse(A, y, lam, **shared) if joint else Lasso(A, y, lam, **shared)


def _constrained(
    A: MatrixLike, y: ArrayLike, bound: float, groups: Any, joint: bool, shared: dict[str, Any]
) -> Problem:
    if groups is not None:
        return GroupBPDN(A, y, bound, groups, **shared)
    if joint:
        return JointBPDN(A, y, bound, **shared)
    return BPDN(A, y, bound, **shared) if bound > 0 else BasisPursuit(A, y, **shared)


def _check_together(groups: Any, joint: bool, sparsity: int | None, estimate: str) -> None:
    if not isinstance(joint, bool):
        raise InputError("joint", f"{joint!r} is neither True nor False", "pass one of them")
    if groups is not None and joint:
        text = "one asks for groups of coefficients, the other for rows of signals"
        raise InputError("groups, joint", text, "give one of them")
    named = "groups" if groups is not None else "joint" if joint else ""
    if named and (sparsity is not None or estimate == "mean"):
        other = "sparsity" if sparsity is not None else 'estimate="mean"'
        raise InputError(named, f"does not join {other}", "give noise or lam, or neither")


def _check_whole(reduced: str, what: str) -> None:
    if reduced:
        text = f"{what} looks at every row, and of this Dask array only the triangle is kept"
        raise InputError("A", text, "give noise= as a number, or pass some of the rows in memory")


CLOSER = 'an optimum is biased towards 0, estimate="mean" is closer to a sparse signal'
"""What BPDN's optimum is not."""


FULL = (
    "as many non-zeros as measurements: y is noisy or rounded (give noise=), "
    "or they are too few for this signal"
)
"""What basis pursuit's solution says where it has no zeros to spare."""


def _is_full(problem: BasisPursuit, found: Recovery) -> bool:
    """Whether a solution of a wide system has as many non-zeros as there are measurements."""
    m, n = problem.operator.shape
    size = np.abs(to_numpy(found.coefficients)).reshape(n, -1)
    counts = np.count_nonzero(size > 1e-8 * size.max(axis=0), axis=0)
    return m < n and bool((counts >= m).any())


def _check_estimate(estimate: str, solver: str | Solver, **given: object) -> None:
    if estimate not in ("optimum", "mean"):
        text = f"{estimate!r} is neither 'optimum' nor 'mean'"
        raise InputError("estimate", text, "pass one of them")
    named = [name for name, value in given.items() if value is not None]
    if solver != "auto":
        named.append("solver")
    if estimate == "mean" and named:
        text = f"{' and '.join(named)} cannot join the posterior mean"
        raise InputError("estimate", text, 'give noise= and basis= alone, or estimate="optimum"')


def _check_exact(exact: bool, sparsity: int | None, ridge: float) -> None:
    if not isinstance(exact, bool):
        raise InputError("exact", f"{exact!r} is neither True nor False", "pass one of them")
    if exact and sparsity is None:
        raise InputError("exact", "is of the best subset, and no sparsity is given", "give it")
    if ridge and not exact:
        text = "ridge only joins the best subset"
        raise InputError("recover", text, "give sparsity= and exact=True, or leave it out")


def _noise_std(problem: Problem) -> float:
    """The standard deviation of a measurement's noise, for a bound on its norm."""
    return (problem.residual_bound or 0.0) / float(np.sqrt(problem.A.shape[0]))


def _check_one_of(**given: object) -> None:
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        text = f"{' and '.join(named)} exclude each other, and were given together"
        raise InputError("recover", text, "give one of them")


def _fraction(fraction: float, top: float) -> tuple[float, str]:
    """lam as a share of lam_max, and that it is."""
    lam = share_of(fraction, top)
    return lam, f"lam = {lam:.6g}, {100 * fraction:g} % of lam_max = {top:.6g}; "


def share_of(fraction: float, top: float) -> float:
    """`fraction` of lam_max; where nothing correlates with y, every lam answers zero: 1.

    Raises:
        InputError: it is outside (0, 1].
    """
    fraction = checked_number("lam_fraction", fraction, zero=True)
    if not 0 < fraction <= 1:
        text = f"{fraction} is outside (0, 1]"
        raise InputError("lam_fraction", text, "0.01 to 0.5 is usual; at 1 the answer is zero")
    return fraction * top or 1.0


def _estimated(
    noise: str, A: MatrixLike, y: ArrayLike, basis: MatrixLike | None, nonneg: bool
) -> tuple[float, str]:
    """The estimated bound on the noise, 0 where the noise is below what is solved to."""
    from lowrank.sensing.noise import estimate_noise  # it solves, and so imports this module

    if noise != "auto":
        raise InputError("noise", f"{noise!r} is no number", 'give a number >= 0, or "auto"')
    found = estimate_noise(A, y, basis=basis, nonneg=nonneg)
    if not found.n_columns and found.epsilon:
        text = "no column of A stands out of the noise that was estimated, so the answer is 0"
        warnings.warn(f"noise='auto': {text}; give noise= if y holds a signal", stacklevel=3)
    if found.epsilon <= TOL * np.linalg.norm(to_numpy(y)):
        return 0.0, "noise estimated: none; "
    return found.epsilon, f"noise estimated: std {found.std:.3g}, epsilon {found.epsilon:.6g}; "
