"""Newton's method on active groups: group, sparse-group and joint LASSO, and their pursuits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.feasibility import distance_if_infeasible
from lowrank.sensing.norms import Blocks
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.groups import (
    GroupBPDN,
    GroupLasso,
    JointBPDN,
    JointSparse,
    SparseGroupLasso,
)
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.group_columns import Active, Index, pulls
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

MAX_ENTRIES = 2**28
"""Entries of a matrix that this solver takes."""

FEW = 10
"""Groups that may come in with one stage, besides as many as are not zero."""

SHARE = 0.5
"""Of the groups that are not zero, how many may come in."""

STEPS = 1
"""Newton steps of a stage that is not the last."""

ROUGH = 0.1
"""How far the gradient may be off there, relative to the weights."""

MAX_STEPS = 300
"""Most Newton steps of the last stage; ten are usual."""

EXACT = 1e-3
"""Share of `lam_max` at which exact measurements are met by adding back what is missed."""

SLOW = 0.2
"""Share of what was missed before, above which lam is made smaller."""

FASTER = 0.1
"""By how much."""

PATIENCE = 5
"""How often in turn that may be in vain."""

FAINT = 1e-11
"""Share of `lam_max` below which no lam meets a bound on the residual: nothing does."""

_KINDS = GroupLasso | SparseGroupLasso | JointSparse | GroupBPDN | JointBPDN

Show = Callable[[Array], bool]
"""Told the coefficients of one signal, whether to stop."""


@dataclass(frozen=True)
class GroupNewton:
    """Group, sparse-group and joint LASSO, exact on few groups at a time, and their pursuits.

    From `lam_max` down to lam in few stages, each of which admits the groups that pull hardest and
    minimises over those admitted: by proximal steps of single groups, which come in and go so, and
    Newton's method on those that are not zero, from the smaller of the Gram matrices of their
    columns and rows. Products with the whole matrix tell which groups are still missing. A bound on
    the residual is met by a root search for lam, with the slope that the Hessian gives; exact
    measurements by adding to y what the answer misses of it, until nothing is.

    Args:
        tol: relative gap to reach; about 1e-13 is usual.
        max_iter: limit of the stages of each signal.

    Example:
        >>> from lowrank.sensing import solve
        >>> problem = GroupLasso(np.eye(4), [3.0, 4.0, 0.5, 0.0], 0.5**0.5, [0, 0, 1, 1])
        >>> solve(problem, GroupNewton()).x.round(9).tolist()
        [2.4, 3.2, 0.0, 0.0]

    Source: working sets as in Massias, Gramfort, Salmon 2018; block steps of Yuan, Lin 2006,
        section 2; exact measurements by Osher, Burger, Goldfarb, Xu, Yin 2005; Newton steps, the
        stages and the root search are ours.
    """

    tol: float = 1e-8
    max_iter: int = 1000

    solves: ClassVar[tuple[type[Problem], ...]] = (
        GroupLasso,
        SparseGroupLasso,
        JointSparse,
        GroupBPDN,
        JointBPDN,
    )

    def refuses(self, problem: Problem) -> str | None:
        """A matrix is needed; joint rows may have either sign, and complex entries no own slope."""
        A = problem.operator
        if not A.is_dense and not A.is_sparse:
            return "needs a matrix, and A is matrix-free"
        if A.is_dense and A.shape[0] * A.shape[1] > MAX_ENTRIES:
            return f"holds matrices up to {MAX_ENTRIES} entries"
        if problem.coupled and problem.bounded:
            return "takes no bounds of rows"
        if problem.is_complex and isinstance(problem, SparseGroupLasso):
            return "needs real data for an L1 norm within groups, and this is complex"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise, signal by signal unless they share their support."""
        data, calls = _Data(problem), itertools.count(1)
        Y = np.asarray(problem.y).reshape(problem.operator.shape[0], -1)
        X, V = (
            np.zeros((problem.n_unknowns, Y.shape[1]), problem.dtype),
            np.zeros_like(Y, problem.dtype),
        )
        parts = [slice(None)] if problem.coupled else [slice(j, j + 1) for j in range(Y.shape[1])]
        most, worst, notes = 0, Status.OPTIMAL, list[str]()
        for part in parts:

            def show(c: Array, part: slice = part) -> bool:
                X[:, part] = c
                told = callback and callback(next(calls), X.copy().reshape(problem.unknown_shape))
                return bool(told)

            start = None if x0 is None else x0.reshape(X.shape)[:, part]
            run = _Run(problem, data, Y[:, part], self, show, start)
            status = run.to_the_end()
            X[:, part], V[:, part] = data.joined(run.coefficients()), data.back(run.dual())
            most, notes = max(most, run.n_iter), [*notes, run.note()]
            worst = worst if status is Status.OPTIMAL else status
            if run.stopped:
                break
        return SolverResult(
            X.reshape(problem.unknown_shape),
            dual=V.reshape(np.shape(problem.y)),
            status=worst,
            n_iter=most,
            note=notes[-1],
        )


class _Data:
    """Real columns of the matrix, and the penalty: complex ones are two each, of two rows."""

    def __init__(self, problem: Problem) -> None:
        assert isinstance(problem, _KINDS)
        self.A: Operator = problem.operator
        self.complex, self.p = problem.is_complex, problem.n_unknowns
        blocks = problem.blocks
        self.blocks = Blocks(*(np.tile(v, 2) for v in blocks)) if self.complex else blocks
        if self.complex:
            self.blocks = self.blocks._replace(weights=blocks.weights)
        self.order = np.argsort(self.blocks.labels, kind="stable")
        sizes = np.bincount(self.blocks.labels)
        self.ends = np.concatenate([[0], np.cumsum(sizes)])

    def rows(self, g: int) -> Index:
        """The coefficients of a group."""
        return np.asarray(self.order[self.ends[g] : self.ends[g + 1]])

    def split(self, Y: Array) -> Array:
        """Real rows of these."""
        return np.concatenate([Y.real, Y.imag]) if self.complex else np.asarray(Y, dtype=float)

    def back(self, R: Array) -> Array:
        """Complex rows of real ones."""
        half = len(R) // 2
        return R[:half] + 1j * R[half:] if self.complex else R

    joined = back

    def correlate(self, R: Array) -> Array:
        """`A^T R`."""
        return self.split(self.A.adjoint(self.back(R)))

    def columns(self, J: Index) -> Array:
        """The transposed columns, (J, rows)."""
        if not self.complex:
            return np.asarray(self.A.columns(J)).T
        turned = np.asarray(self.A.columns(J % self.p)) * np.where(self.p <= J, 1j, 1.0)
        return self.split(turned).T


class _Run:
    """The path of one signal, or of several that share their support."""

    def __init__(
        self, problem: Problem, data: _Data, Y: Array, solver: GroupNewton, show: Show,
        start: Array | None,
    ) -> None:  # fmt: skip
        self.problem, self.data, self.show, self.solver = problem, data, show, solver
        self.Y = data.split(Y)
        self.at = Active(data.blocks, self.Y)
        self.slack = max(solver.tol / 50, 1e-14)
        self.feasible: bool | None = None
        self.n_iter, self.stopped, self.reached = 0, False, np.inf
        self.pull = pulls(data.blocks, data.correlate(self.Y))
        self.top = float(self.pull.max(initial=0.0))
        if start is not None:
            self._begin(data.split(start))

    def _begin(self, C: Array) -> None:
        self._admit(np.unique(self.data.blocks.labels[np.flatnonzero(C.any(axis=1))]))
        at = self.at
        at.X = np.clip(C[at.taking], at.lower, at.upper) if at.taking.size else at.X
        at.residual = self.Y - at.columns.T @ at.X
        self._look()

    def _look(self) -> None:
        """Which groups pull, of those that take no part."""
        self.pull = pulls(self.data.blocks, self.data.correlate(self.at.residual))
        self.pull[self.at.numbers] = 0

    def _admit(self, new: Index) -> None:
        if new.size:
            rows = [self.data.rows(g) for g in new]
            self.at.admit(new, rows, self.data.columns(np.concatenate(rows)))

    def to_the_end(self) -> Status:
        """Descend to lam, to the bound on the residual, or to none."""
        bound = self.problem.residual_bound
        if bound is None:
            self._down(self.problem.factor)
        elif bound > 0:
            return self._to_radius(bound)
        else:
            return self._to_nothing()
        return Status.MAX_ITER if self._ended else Status.OPTIMAL

    @property
    def _ended(self) -> bool:
        return self.stopped or self.n_iter >= self.solver.max_iter

    def _down(self, lam: float, radius: float = 0.0) -> None:
        """Stages until nothing pulls more than lam, or until the residual is within the radius."""
        for here, last in self._stages(lam):
            rough = max(self.slack, ROUGH)
            self.at.minimise(here, self.slack if last else rough, MAX_STEPS if last else STEPS)
            self.reached = here
            self._look()
            self.n_iter += 1
            self.stopped = self.show(self.data.joined(self.coefficients()))
            if self._ended or float(np.linalg.norm(self.at.residual)) < radius:
                return

    def _stages(self, lam: float) -> Iterator[tuple[float, bool]]:
        """Where each stage ends, and whether at lam; the groups that it needs come in before."""
        first = True
        while first or (self.pull > lam * (1 + self.slack)).any():
            new = np.flatnonzero(self.pull > lam)
            alive = int(np.count_nonzero(self.at.lengths(self.at.X)))
            limit, here = max(FEW, int(SHARE * alive)), lam
            if new.size > limit:
                order = np.argpartition(self.pull[new], new.size - limit - 1)
                here = min(float(self.pull[new[order[new.size - limit - 1]]]), self.reached)
                new = new[order[new.size - limit :]]
            self._admit(new)
            first = here > lam
            yield here, not first

    def coefficients(self) -> Array:
        """Of all columns, real, (p, L)."""
        full = np.zeros((self.data.blocks.labels.size, self.Y.shape[1]))
        full[self.at.taking] = self.at.X
        return full

    def dual(self) -> Array:
        """The residual, of y and what was added to it."""
        return self.at.residual

    def note(self) -> str:
        """What took part."""
        groups = self.data.blocks.weights.size
        return (
            f"{self.at.numbers.size} of {groups} groups took part, {self.at.n_steps} Newton steps"
        )

    def _to_radius(self, radius: float) -> Status:
        """The lam at which the residual is as long as the bound."""
        size = float(np.linalg.norm(self.Y))
        lam, low, high = self.top * min(1.0, radius / size) / 2, 0.0, self.top
        while not self._ended and lam > FAINT * self.top:
            self._down(lam, 0.5 * radius)
            if self.reached > lam:
                low, lam = 0.0, self.reached  # the bound was met on the way
                self._down(lam)
            r = float(np.linalg.norm(self.at.residual))
            explained = float((self.Y * self.at.residual).sum()) - r * r
            if abs(r - radius) <= 0.05 * self.solver.tol * min(size, max(explained, 0.0) / r):
                return Status.OPTIMAL
            low, high = (lam, high) if r < radius else (low, lam)
            bend = self.at.spread(lam)
            square = lam * lam - (r * r - radius * radius) / bend if bend > 0 else 0.0
            if square <= 0 and low == 0 and self._is_infeasible():
                return Status.INFEASIBLE
            guess = float(np.sqrt(square)) if square > 0 else 0.0
            inside = low < guess < high
            lam = guess if inside else (np.sqrt(low * high) if low > 0 else lam / 10)
            if high - low <= 1e-15 * high:
                return Status.STALLED
        return Status.MAX_ITER if self._ended else Status.STALLED

    def _is_infeasible(self) -> bool:
        """Whether nothing meets the bound; asked once."""
        if self.feasible is None:
            self.feasible = not distance_if_infeasible(self.problem, self.solver.tol)
        return not self.feasible

    def _to_nothing(self) -> Status:
        """Add back what is missed until nothing is, with a smaller lam where that goes slowly."""
        lam, last, size, idle = EXACT * self.top, np.inf, float(np.linalg.norm(self.Y)), 0
        while not self._ended:
            self._down(lam)
            missed = self.Y - self.at.columns.T @ self.at.X
            r, v = float(np.linalg.norm(missed)), float(np.linalg.norm(self.at.residual))
            worth = float(((self.Y - missed) * self.at.residual).sum())
            near = 0.1 * self.solver.tol
            if r * v <= near * max(worth, 0.0) and r <= near * size:
                return Status.OPTIMAL
            idle = idle + 1 if r > SLOW * last else 0
            if idle and self._is_infeasible():
                return Status.INFEASIBLE
            if idle > PATIENCE:
                return Status.STALLED
            less = FASTER if r > SLOW * last and lam > FAINT * self.top else 1.0
            lam, last = lam * less, min(r, last)
            self.at.residual = missed + less * self.at.residual  # the dual point stays
            self.reached = np.inf if less < 1 else self.reached
            self._look()
        return Status.MAX_ITER
