"""The posterior mean under a learned sparse prior, with its own error estimate and a guard."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import PosteriorMean
from lowrank.sensing.result import Recovery, SolverResult
from lowrank.sensing.solve import solve
from lowrank.sensing.solvers import Callback
from lowrank.sensing.solvers.bernoulli_gaussian import Messages
from lowrank.sensing.solvers.bg_amp import BernoulliGaussianAMP
from lowrank.sensing.solvers.message_passing import Probed, probe
from lowrank.sensing.solvers.vamp import VAMP
from lowrank.sensing.verdict import Spent, _finish
from lowrank.status import Status

MISFIT = 2.0
"""Squared error over what the prior predicts from where on the prior does not fit the signal."""
RESIDUAL = 1.2
"""Residual over the noise from where on the estimate does not explain the measurements."""
TOL = 1e-6
"""Relative change of the estimate to stop at, far below its error with any noise."""


def posterior_mean(
    guard: Problem,
    problem: PosteriorMean,
    *,
    tol: float | None = None,
    max_iter: int | None = None,
    debias: bool = False,
    callback: Callback | None = None,
    time_limit: float | None = None,
) -> Recovery:
    """The posterior mean where its prior fits the signal, else the optimum of a convex problem.

    Message passing (VAMP where the rows are orthogonal and of one length, else AMP) sees the signal
    in white noise. How far its estimate is from the signal then follows twice: from the posterior,
    and by Stein's formula, which knows no prior. Where the second is well above the first, where
    message passing does not settle, or leaves more of y than noise, the prior is wrong.

    Args:
        guard: the convex problem.
        problem: the same measurements, with the noise.
        tol: relative change of the estimate to stop at; None is 1e-6.
        max_iter: limit of message passing's iterations; None is 200.
        debias: also give least squares on the support.
        callback: `callback(iteration, coefficients)`.
        time_limit: seconds for the convex problem, where that is what answers.

    Returns:
        `Recovery`; `estimated_error` is None where it is the guard's.

    Source: Rangan, Schniter and Fletcher, 2019; Vila and Schniter, 2013; Stein, 1981, theorem 1.
    """
    counts: list[int] = []
    counted, begin = problem.counting(counts.append), time.perf_counter()
    y = np.asarray(problem.y)
    columns = y.reshape(len(y), -1)
    wrong: str | None = "A is too small or too large to be probed"
    found = None
    with np.errstate(all="ignore"):  # what diverges is told by its status
        if (probed := probe(counted.operator)) is not None and y.any():
            found = _messages(problem, probed, columns, tol or TOL, max_iter or 200, callback)
            wrong = _misfit(problem, probed, columns, found)
    if found is None or wrong is not None:
        more: dict[str, Any] = {"callback": callback, "time_limit": time_limit}
        optimum = solve(guard, tol=tol, max_iter=max_iter, debias=debias, **more)
        if not y.any():
            return optimum
        text = f"the sparse prior does not fit ({wrong}), so this is the optimum of"
        return replace(optimum, why=f"{text} {type(guard).__name__}; {optimum.why}")
    x = found.x.reshape(problem.unknown_shape)
    seconds = time.perf_counter() - begin
    result = SolverResult(x, status=Status.CONVERGED, n_iter=found.n_iter, n_products=sum(counts))
    name = "vamp" if probed is not None and probed.orthonormal else "bg_amp"
    why = f"{name}: posterior mean under a learned Bernoulli-Gaussian prior, which fits"
    error = _relative_error(found)
    told = f"posterior mean, relative error estimated at {error:.2g}: not an optimum, so no gap"
    spent = Spent().plus(result, seconds)
    finished = _finish(problem, result, None, f"{name}()", why, tol or TOL, debias, spent)
    return replace(finished, message=told, estimated_error=error)


def _messages(
    problem: PosteriorMean, probed: Probed, y: Array, tol: float, max_iter: int,
    callback: Callback | None,
) -> Messages:  # fmt: skip
    """Message passing in units in which rows are orthonormal, or columns about of norm 1."""
    A, shape = probed.A, problem.unknown_shape
    noise_std = None if problem.noise_std is None else problem.noise_std / probed.length
    if probed.orthonormal:
        seen = callback and (lambda k, x: callback(k, x.reshape(shape).copy()))
        return VAMP(tol, max_iter)._iterate(A, y / probed.length, noise_std, seen)
    norms = np.ones((A.shape[1], 1))
    if A.knows_column_norms:
        norms = np.where((own := A.column_norms()) > 0, own, 1.0)[:, None]
    seen = callback and (lambda k, x: callback(k, x.reshape(shape).copy()))
    found = BernoulliGaussianAMP(tol, max_iter)._iterate(A, y / probed.length, norms, seen)
    scale = float(
        (1 / norms**2).mean()
    )  # of squares, as entries are seen in units of their columns
    more: dict[str, Any] = {"variance": scale * found.variance, "unbiased": scale * found.unbiased}
    return found._replace(x=found.x / norms, spread=scale * found.spread, **more)


def _misfit(problem: PosteriorMean, probed: Probed, y: Array, found: Messages) -> str | None:
    """What speaks against the prior, or None."""
    if found.status is Status.DIVERGED:
        return "message passing diverged"
    if found.status is Status.MAX_ITER:
        return "message passing did not settle"
    excess = found.unbiased / np.maximum(found.variance + 3 * found.spread, 1e-300)
    if not (excess < MISFIT).all():
        times = float(np.sqrt(np.max(found.unbiased / np.maximum(found.variance, 1e-300))))
        return f"the error is {times:.2g} times what the prior predicts"
    if problem.noise_std:
        left = np.linalg.norm(y / probed.length - probed.A.forward(found.x), axis=0)
        allowed = problem.noise_std / probed.length * np.sqrt(len(y))
        if not (left < RESIDUAL * allowed).all():
            return f"the residual is {float(left.max() / allowed):.2g} times the noise"
    return None


def _relative_error(found: Messages) -> float:
    """`||x - true x|| / ||x||` by Stein's formula, no less than half of what the prior predicts."""
    squares = np.maximum(found.unbiased, found.variance / 4) * len(found.x)
    return float(np.sqrt(squares.sum() / max(float(np.linalg.norm(found.x)) ** 2, 1e-300)))
