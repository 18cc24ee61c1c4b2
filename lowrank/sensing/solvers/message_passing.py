"""L1 problems of large operators: message passing, then the support, then the proof."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import BPDN, BasisPursuit, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.bg_amp import BernoulliGaussianAMP
from lowrank.sensing.solvers.newton import newton_on_support
from lowrank.sensing.solvers.on_support import Sides, Twin, find_dual, fit_support
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.soft_messages import Penalty, soft_messages
from lowrank.sensing.solvers.vamp import VAMP
from lowrank.status import Status

MESSAGES = 60
"""Iterations of message passing; where it works at all, a dozen or two do."""
MIN_ROWS = 128
"""With fewer rows a matrix is formed in about as many products as a proof takes here."""
CLOSE = 1e-5
"""Relative change at which message passing hands over to least squares on the support."""
ROUGH = 1e-3
"""The same where noise, or a penalty, moves the solution by more."""
ORTHOGONAL = 1e-6
"""How far `A A^H w` may be from a multiple of a random `w` for orthogonal rows of one length."""
FITS = 0.2
"""Relative residual of an exact fit, in units of the tolerance."""


class Probed(NamedTuple):
    """The operator over `length`, and whether its rows are then orthonormal.

    Otherwise its columns have norm 1 in the mean of squares.
    """

    A: Operator
    length: float
    orthonormal: bool


def probe(A: Operator) -> Probed | None:
    """What kind of message passing an operator is for: known, or by two products."""
    if (known := A.facts.row_gram) is not None:
        return Probed(A / float(np.sqrt(known)), float(np.sqrt(known)), True)
    w = np.random.default_rng(0).standard_normal(A.shape[0])
    w /= np.linalg.norm(w)
    back = A.adjoint(w)
    gram = float(np.linalg.norm(back)) ** 2  # the mean of its values is that of A A^H
    if not 1e-200 < gram < 1e200:
        return None
    off = float(np.linalg.norm(A.forward(back) - gram * w))
    orthonormal = off <= ORTHOGONAL * gram
    length = float(np.sqrt(gram if orthonormal else gram * A.shape[0] / A.shape[1]))
    return Probed(A / length, length, orthonormal)


class _Stopped(Exception):
    """The limit is reached, or the callback asked to stop."""


class _Found(NamedTuple):
    """A dual point of one signal, or None; whether it proves; and what was done."""

    dual: Array | None
    proven: bool
    note: str


class _Watch:
    """Counts the iterations of a signal, shows each, and stops where that is asked for."""

    def __init__(self, c: Array, j: int, max_iter: int, show: Callback | None) -> None:
        self.c, self.j, self.max_iter, self.show = c, j, max_iter, show
        self.n_iter, self.asked = 0, False

    @property
    def watched(self) -> bool:
        """Whether coefficients are shown, or may be the last ones."""
        return self.show is not None or self.n_iter + 1 >= self.max_iter

    def tell(self, x: Array | None = None) -> None:
        """Take note of an iteration, with its coefficients where they are new."""
        if self.n_iter >= self.max_iter:
            raise _Stopped
        self.n_iter += 1
        if x is not None:
            self.c[:, self.j] = x
        if self.show is not None and self.show(self.n_iter, self.c):
            self.asked = True
            raise _Stopped


@dataclass(frozen=True)
class MessagePassing:
    """Basis pursuit, BPDN and the LASSO with a large operator: message passing, then the proof.

    Message passing with a learned Bernoulli-Gaussian prior finds a sparse signal in a dozen
    iterations where the rows are orthogonal and of one length (VAMP), or the entries of the matrix
    about independent (AMP); two products tell where nothing is known. Least squares on its support,
    by conjugate gradients, makes it exact, and a dual point that is found on a set larger than
    the support proves it to be the optimum of basis pursuit. For BPDN and the LASSO, message
    passing with a soft threshold goes on to their own solution, which semismooth Newton ends.
    Where nothing is proven, the answer is a start for a convex method, and says so.

    It takes one or two hundred products, most of them in single precision where the operator allows
    it, and a dozen vectors of the signal's length.

    Args:
        tol: relative gap and infeasibility to prove.
        max_iter: limit of the iterations of each signal: of message passing, and solves on a
            support after it.

    Example:
        >>> from lowrank.sensing import operators, solve
        >>> A = operators.partial_dct(512, m=200, seed=0)
        >>> problem = BasisPursuit(A, A.columns([3, 40]) @ [1.0, -2.0])
        >>> solve(problem, MessagePassing()).support.tolist()
        [3, 40]

    Source: Rangan, Schniter and Fletcher, 2019, and Vila and Schniter, 2013, for message passing;
        Fuchs, 2004, for the dual point on the support; the larger set is ours.
    """

    tol: float = 1e-8
    max_iter: int = 200

    solves: ClassVar[tuple[type[Problem], ...]] = (BasisPursuit, BPDN, Lasso)

    def refuses(self, problem: Problem) -> str | None:
        """Takes operators with fewer rows than columns, and complex matrices."""
        A = problem.operator
        if A.is_dense and not problem.is_complex:
            return "is for operators, and complex matrices"
        if A.shape[0] < MIN_ROWS and not problem.is_complex:
            return f"is for {MIN_ROWS} rows or more"
        if A.shape[0] >= A.shape[1]:
            return "needs fewer rows than columns"
        if problem.bounded and not problem.nonneg:
            return "knows no bounds other than c >= 0"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Find, fit and prove; `x0` is not used."""
        assert isinstance(problem, BasisPursuit | BPDN | Lasso)
        y, shape = np.asarray(problem.y), problem.unknown_shape
        columns = y.reshape(len(y), -1)
        c = np.zeros((problem.n_unknowns, columns.shape[1]), problem.dtype)
        duals = np.zeros(columns.shape, problem.dtype)
        calls = itertools.count(1)
        notes: dict[str, None]
        show = callback and (lambda k, c: callback(next(calls), c.reshape(shape).copy()))
        counts: list[int] = []
        problem = problem.counting(counts.append)
        probed, n_iter, notes = probe(problem.operator), 0, {}
        twin = Twin(probed.A, problem.dtype) if probed else None
        status, known = Status.OPTIMAL if probed else Status.STALLED, probed is not None
        for j, column in enumerate(columns.T if probed else ()):
            assert probed is not None
            assert twin is not None
            watch, found = _Watch(c, j, self.max_iter, show), _Found(None, False, "")
            try:
                found = self._column(problem, probed, twin, column, watch)
            except _Stopped:
                status = Status.MAX_ITER
            n_iter, notes[found.note] = max(n_iter, watch.n_iter), None
            if found.dual is not None:
                duals[:, j] = found.dual
            known = known and found.dual is not None
            if not found.proven and status is Status.OPTIMAL:
                status = Status.STALLED
            if watch.asked:
                break
        return SolverResult(
            c.reshape(shape),
            dual=duals.reshape(y.shape) if known else None,
            status=status,
            n_iter=n_iter,
            n_products=sum(counts) + (twin.products if twin else 0),
            note="; ".join(filter(None, notes)),
            warm=status is Status.STALLED and bool(c.any()),
        )

    def _column(
        self, problem: Problem, probed: Probed, twin: Twin, y: Array, watch: _Watch
    ) -> _Found:
        """A dual point of one signal, whose coefficients the watch holds; and what was done."""
        bound = problem.residual_bound
        if np.linalg.norm(y) <= (bound or 0.0):
            return _Found(np.zeros_like(y), True, "")
        find = self._exact if bound == 0 else self._penalised
        return find(problem, probed, twin, y / probed.length, watch)

    def _exact(
        self, problem: Problem, probed: Probed, twin: Twin, y: Array, watch: _Watch
    ) -> _Found:
        """Basis pursuit: the sparse signal, and a dual point on its support."""
        A, weights = probed.A, np.asarray(problem.weights)  # type: ignore[attr-defined]
        guess = _messages(twin, y, probed.orthonormal, 0.0, CLOSE, watch)
        if guess is None:
            watch.c[:, watch.j] = 0
            return _Found(None, False, "message passing diverged")
        fit = fit_support(A, twin, y, guess, FITS * self.tol, watch.tell)
        watch.c[:, watch.j] = fit.x
        found = f"message passing found {fit.support.size} non-zeros"
        if fit.left > self.tol:
            return _Found(None, False, f"{found}, which leave {fit.left:.1g} of y")
        if problem.nonneg and (fit.x < 0).any():
            return _Found(None, False, f"{found}, not all positive")
        signs = fit.x[fit.support] / np.abs(fit.x[fit.support])
        sides = Sides(fit.support, signs, weights, problem.nonneg)
        dual = find_dual(A, twin, sides, self.tol / 2, watch.tell)
        if dual is None:
            return _Found(None, False, f"{found}, without a dual point: they may not be the least")
        return _Found(dual / probed.length, True, f"{found}, and a dual point on them")

    def _penalised(
        self, problem: Problem, probed: Probed, twin: Twin, y: Array, watch: _Watch
    ) -> _Found:
        """BPDN and the LASSO: message passing to near the solution, and Newton's method on it."""
        bound, weights = problem.residual_bound, np.asarray(problem.weights)  # type: ignore[attr-defined]
        epsilon = (bound or 0.0) / probed.length
        lam = None if bound is not None else problem.factor / probed.length**2
        penalty = Penalty(weights, problem.nonneg, lam, epsilon)
        noise = None if bound is None else epsilon / np.sqrt(len(y))
        rough = (
            ROUGH if bound is None else max(CLOSE, min(ROUGH, epsilon / float(np.linalg.norm(y))))
        )
        guess = _messages(twin, y, probed.orthonormal, noise, rough, watch)
        if guess is None or (problem.nonneg and (guess < 0).any()):
            guess = np.zeros(problem.n_unknowns, problem.dtype)
        limit = min(MESSAGES, watch.max_iter - watch.n_iter)
        more: dict[str, Any] = {"orthonormal": probed.orthonormal, "limit": limit}
        near = soft_messages(twin, y, penalty, guess, tell=watch.tell, **more)
        if near is None:
            watch.c[:, watch.j] = 0
            return _Found(None, False, "message passing diverged")
        x, first = near
        diagonal = len(y) / len(x) if probed.orthonormal else 1.0
        solved = newton_on_support(
            probed.A, twin, y, penalty, x, lam or first, self.tol / 2, watch.tell, diagonal
        )
        watch.c[:, watch.j] = solved.x
        found = f"message passing and Newton's method, gap {solved.error:.0e}"
        return _Found(solved.dual, solved.error <= self.tol, found)


def _messages(
    A: Twin, y: Array, orthonormal: bool, noise_std: float | None, tol: float, watch: _Watch
) -> Array | None:
    """An estimate of the signal by message passing, 0 where its posterior says so."""
    scale = float(np.linalg.norm(y)) / np.sqrt(len(y))  # single precision has its range
    data, n = (y / scale).astype(A.dtype)[:, None], A.shape[1]
    noise = None if noise_std is None else noise_std / scale
    limit = min(MESSAGES, watch.max_iter)

    def seen(k: int, x: Array) -> None:
        watch.tell(scale * x[:, 0] if watch.watched else None)

    if orthonormal:
        found = VAMP(tol, limit)._iterate(A, data, noise, seen)
    else:
        norms = np.ones((n, 1), data.real.dtype)
        found = BernoulliGaussianAMP(tol, limit)._iterate(A, data, norms, seen)
    if found.status is Status.DIVERGED or not np.isfinite(found.x).all():
        return None
    if watch.n_iter >= watch.max_iter:
        raise _Stopped
    x = scale * found.x[:, 0].astype(np.result_type(found.x, float))
    watch.c[:, watch.j] = x
    size = np.abs(x)
    usual = np.sqrt((size**2).sum() / max(np.count_nonzero(size > 1e-3 * size.max()), 1))
    x[size <= 10 * tol * usual] = 0
    return x
