"""Denoising under an analysis operator, total variation among them, by its dual."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.sparse import csr_array

from lowrank.sensing.certificates import relative_gap
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.structured import AnalysisLasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.denoise_interior import denoised, sparse_differences
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status


@dataclass(frozen=True)
class Denoise:
    """`min 1/2 ||A x - y||^2 + lam ||D x||` where `A^H A = g I`, so that x is a denoised picture.

    Then `x = b - D^H p / g` with `b = A^H y / g`, and the dual `min ||g b - D^H p||^2` over the
    `p` of lengths up to lam takes a projection and one product with D and D^H each iteration of
    FISTA, none with A. Total variation of signals and pictures, where that is not enough, goes on
    by an interior point with one sparse factor a step, which is fast for every lam.

    Args:
        tol: relative duality gap at which to stop.
        max_iter: limit of the iterations.
        hand_over: iterations of FISTA before an interior point takes over, where there is one.
        check_every: iterations between checks of the gap.

    Example:
        >>> from lowrank.sensing import bases, solve, total_variation
        >>> step = np.array([0.0, 0.0, 0.0, 4.0, 4.0, 4.0])
        >>> solve(total_variation(bases.identity(6), step, 6, lam=0.3), Denoise()).x.round(6)
        array([0.1, 0.1, 0.1, 3.9, 3.9, 3.9])

    Source: Beck, Teboulle 2009, algorithm FGP; restarts of O'Donoghue, Candes 2015, section 3.2;
        Mehrotra 1992 for the interior point.
    """

    tol: float = 1e-8
    max_iter: int = 20_000
    hand_over: int = 200
    check_every: int = 20

    solves: ClassVar[tuple[type[Problem], ...]] = (AnalysisLasso,)

    def refuses(self, problem: Problem) -> str | None:
        """Needs orthogonal columns of one length, as the identity has."""
        if problem.operator.facts.column_gram is None:
            return "needs A^H A to be a multiple of the identity"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Iterate until the gap is within tol; `x0` is not used, as the unknown is p."""
        assert isinstance(problem, AnalysisLasso)
        assert problem.analysis is not None
        case = _Case(problem)
        Ds = None if np.iscomplexobj(case.b) else sparse_differences(problem.analysis)
        p, gaps, status, k = np.zeros(0), list[float](), Status.MAX_ITER, 0
        stopped = False
        first = _accelerated(case, self.max_iter if Ds is None else self.hand_over)
        more = iter(()) if Ds is None else case.interior(Ds)
        for steps, every in ((first, self.check_every), (more, 1)):
            for p in steps:
                k += 1
                if k % every == 0:
                    gaps.append(case.gap(p))
                    status = Status.OPTIMAL if gaps[-1] <= self.tol / 2 else status
                stopped = bool(callback is not None and callback(k, case.x(p)))
                if stopped or k == self.max_iter or status is Status.OPTIMAL:
                    break
            if stopped or k == self.max_iter or status is Status.OPTIMAL:
                break
        x = case.x(p)
        dual = np.asarray(problem.y) - problem.operator.forward(x)
        history = {"gap": gaps}
        return SolverResult(x, dual=dual, analysis_dual=p, status=status, n_iter=k, history=history)


class _Case:
    """What of the problem is left when A is: b, D, lam, and what A cannot fit."""

    def __init__(self, problem: AnalysisLasso) -> None:
        assert problem.analysis is not None
        A, y = problem.operator, np.asarray(problem.y)
        self.problem, self.D, self.lam = problem, problem.analysis, problem.lam
        self.g = A.facts.column_gram or 1.0
        self.b = A.adjoint(y) / self.g
        size2 = self.g * float(np.linalg.norm(self.b)) ** 2
        self.outside = max(float(np.linalg.norm(y)) ** 2 - size2, 0.0) / 2

    def x(self, p: Array) -> Array:
        """The picture that goes with p."""
        return np.asarray(self.b - self.D.adjoint(p) / self.g)

    def gap(self, p: Array) -> float:
        """Relative gap of p and its picture."""
        x, g = self.x(p), self.g
        parts = np.abs(self.D.forward(x).reshape(self.problem.components, -1))
        variation = self.lam * float(np.sqrt((parts**2).sum(axis=0)).sum())
        primal = g * float(np.linalg.norm(x - self.b)) ** 2 / 2 + variation
        dual = g * (float(np.linalg.norm(self.b)) ** 2 - float(np.linalg.norm(x)) ** 2) / 2
        both = np.array([primal + self.outside]), np.array([dual + self.outside])
        return float(relative_gap(*both, self.problem.gap_floor)[0])

    def interior(self, Ds: list[csr_array]) -> Iterator[Array]:
        """Steps of the interior point, in the units of p."""
        coupled = self.problem.components > 1
        return (self.g * p for p in denoised(self.b, Ds, self.lam / self.g, coupled))


def _accelerated(case: _Case, n_iter: int) -> Iterator[Array]:
    """FISTA with restarts on the dual."""
    project = _onto_lengths(case.lam, case.problem.components)
    step = case.g / (case.D.norm() ** 2 or 1.0)
    p = q = np.zeros(case.D.shape[0], np.result_type(case.b, case.D.dtype))
    t = 1.0
    for _ in range(n_iter):
        last, p = p, project(q + step * case.D.forward(case.x(q)))
        yield p
        if np.vdot(q - p, p - last).real > 0:
            t = 1.0
        t, before = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        q = p + (before - 1) / t * (p - last)


def _onto_lengths(lam: float, components: int) -> Callable[[Array], Array]:
    """Projection of p, whose `components` stand one after the other, onto lengths up to lam."""

    def project(p: Array) -> Array:
        if components == 1 and not np.iscomplexobj(p):
            return np.clip(p, -lam, lam)
        parts = p.reshape(components, -1)  # (components, points)
        lengths = np.sqrt((parts.real**2 + parts.imag**2).sum(axis=0))
        return np.asarray((parts / np.maximum(lengths / lam, 1)).ravel())

    return project
