"""FISTA: accelerated proximal gradient with backtracking and restart; batches on BLAS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.certificates import relative_gap, scaled_dual
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.groups import (
    GroupLasso,
    JointSparse,
    SparseGroupLasso,
)
from lowrank.sensing.problems.l1 import ConstrainedLasso, ElasticNet, Lasso
from lowrank.sensing.problems.slope import SLOPE
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.scaling import equilibrated, scaled_start, unscaled
from lowrank.status import Status


@dataclass(frozen=True)
class FISTA:
    """Accelerated proximal gradient for `min 1/2 ||A c - y||^2 + g(c)`.

    The columns of a batch share the step and restart each on its own.

    Args:
        tol: relative duality gap to stop at.
        max_iter: limit of the iterations.
        check_every: iterations between gap checks, each of which costs one product with A^H.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(Lasso(np.eye(2), [3.0, 0.5], lam=1.0), FISTA()).x.round(8).tolist()
        [2.0, 0.0]

    Source: Beck, Teboulle 2009, algorithm with backtracking; gradient restart of
        O'Donoghue, Candes 2015, section 3.2.
    """

    tol: float = 1e-8
    max_iter: int = 20_000
    check_every: int = 10

    solves: ClassVar[tuple[type[Problem], ...]] = (
        Lasso,
        ConstrainedLasso,
        ElasticNet,
        GroupLasso,
        JointSparse,
        SparseGroupLasso,
        SLOPE,
    )

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Iterate until the duality gap is within tol."""
        problem, S = equilibrated(problem)
        A, g, y = problem.operator, problem.penalty, _columns(np.asarray(problem.y))
        c = scaled_start(problem, x0, S)
        Ac = A.forward(c)
        z, Az, theta = c, Ac, np.ones(y.shape[1])
        L = _rayleigh(A, y)
        gaps: list[float] = []
        status, k = Status.MAX_ITER, 0
        for k in range(1, self.max_iter + 1):
            gradient = A.adjoint(Az - y)
            while True:
                new = g.prox(z - gradient / L, 1 / L)
                A_new = A.forward(new)
                curvature = _squares(A_new - Az).sum() / max(_squares(new - z).sum(), 1e-300)
                if curvature <= L * (1 + 1e-9):
                    break
                L = max(1.5 * L, curvature)
            rising = _inner(z - new, new - c)
            rising = np.full(theta.shape, rising.sum()) if problem.coupled else rising
            theta = np.where(rising > 0, 1.0, theta)  # restart: the momentum points uphill
            following = (1 + np.sqrt(1 + 4 * theta**2)) / 2
            momentum = np.where(rising > 0, 0.0, (theta - 1) / following)
            z, Az = new + momentum * (new - c), A_new + momentum * (A_new - Ac)
            c, Ac, theta = new, A_new, following
            if k % self.check_every == 0:
                gaps.append(_gap(problem, c, Ac - y))
            if gaps and (gaps[-1] <= self.tol / 2 or not np.isfinite(gaps[-1])):
                status = Status.OPTIMAL if np.isfinite(gaps[-1]) else Status.DIVERGED
                break
            if callback is not None and callback(k, unscaled(problem, c, S)):
                break
        return SolverResult(
            unscaled(problem, c, S),
            dual=(y - Ac).reshape(np.shape(problem.y)),
            status=status,
            n_iter=k,
            history={"gap": gaps},
        )


def _columns(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _squares(x: Array) -> Array:
    return np.asarray((x.real**2 + x.imag**2).sum(axis=0))


def _inner(a: Array, b: Array) -> Array:
    return np.asarray((a.conj() * b).real.sum(axis=0))


def _rayleigh(A: Operator, y: Array) -> float:
    """A lower bound of `||A||^2` to start from: the Rayleigh quotient at `A^H y`."""
    if A.knows_norm:
        return A.norm() ** 2
    direction = A.adjoint(y)
    size = _squares(direction).sum()
    return float(_squares(A.forward(direction)).sum() / size) if size > 0 else 1.0


def _gap(problem: Problem, c: Array, r: Array) -> float:
    values = problem.loss.value(r)
    primal = (values.sum() if problem.coupled else values) + problem.penalty.value(c)
    _, dual = scaled_dual(problem, -r, problem.operator.adjoint(-r))
    return float(relative_gap(primal, dual, problem.gap_floor).max())
