"""Working sets for the LASSO and the elastic net: exact on few columns at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import ElasticNet, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.designs import (
    ROUNDING,
    Array,
    DenseDesign,
    Design,
    Index,
    SparseDesign,
    WholeDesign,
)
from lowrank.sensing.solvers.dual_newton import approach
from lowrank.sensing.solvers.exact_l1 import ExactL1
from lowrank.sensing.solvers.faces import MAX_STEPS, Face, minimise
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

STEPS, ITERATED = 3, 2
"""Newton steps of a stage that is not the last, and of one where each is an iteration of its own:
the next stage goes on from wherever it ends."""


ROUGH, ROUGHER = 1e-3, 1e-2
"""How far the gradient may be off there, relative to the slopes, and for sparse columns."""


NEWCOMERS = 0.01
"""Columns that a last stage admits, relative to those that are not zero, beyond which it stays
rough where digits cost: more will have to come."""


NEARLY = 0.5
"""How much columns pull, relative to lam, that the dual's steps take along: they cost little."""


REFINED, AGAIN = 2, 5
"""How often the minimum that a Gram matrix leads to is refined by products with the columns, and
how often where it is of single precision; another takes its place where that does not do."""


MANY_COLUMNS = 400
"""Columns from which on a few products with them cost less than half their Gram matrix does."""


CROWDED = 0.8
"""Share of the rows from which on so many coefficients of a wide dense matrix are not zero that the
faces are hardly independent, and the exact path takes over."""


TRIED, LEAST = 2.0, 512
"""Columns that take part, relative to the rows, and in number, from which on it takes over too."""


WHOLE = 0.4
"""Share of the columns of a tall matrix from which on the Gram matrix of all costs less."""


FEW_ROWS = 200
"""Rows of a wide dense matrix up to which Newton's method on the dual takes over from the descent
where many coefficients are not zero: its systems are no larger than that."""


PATIENCE = 80
"""Its Newton steps in a stage, after which the exact path takes over, if that can."""


SPARSE_PATIENCE = 200
"""The same for sparse columns, of which iterations only come near each minimum."""


MISSED = 50
"""How far off the gradient may be at the end, relative to what was asked for, before it does."""


FILLED = 0.05
"""Share of the entries of a sparse matrix from which on the exact path takes over as for others."""


MOST = 0.2
"""Share of the columns of a tall matrix from which on the descent begins with the signs of least
squares."""


PULLED = 0.7
"""Share of its columns that lam lets correlate with y from which on that is sure to come."""


MAX_ENTRIES = 2**28
"""Entries of a dense matrix that this solver takes."""


class Fit:
    """The path of one penalised least-squares problem: it descends in lam, and keeps its columns.

    Args:
        A: array (m, n), or sparse in CSC form.
        y: measurements (m,).
        weights: of the L1 norm, (n,).
        lower: bounds (n,), at most 0.
        upper: bounds (n,), at least 0.
        ridge: factor of `1/2 ||x||^2`.
        shift: `(u, v)` where the matrix is `A - u v^T`.
        b: `A^T y`, (n,), where that is known.

    Attributes:
        x: coefficients of the columns that take part.
        taking: which columns these are.
        b: `A^T y`, (n,).
        c: `A^T (y - A x) - ridge x`, (n,).
        reached: lam of the last stage.
        done: whether that is the lam asked for, and nothing is left out that should take part.
        patience: Newton steps that a stage may take where rows are few; the dual is gone by there
            only if something takes over from it.
        tired: whether one has taken as many, and may not be at its minimum.
        n_products: products with the whole matrix.
        n_steps: Newton steps.
    """

    def __init__(
        self,
        A: Any,
        y: Array,
        weights: Array,
        lower: Array,
        upper: Array,
        ridge: float = 0.0,
        shift: tuple[Array, Array] | None = None,
        b: Array | None = None,
    ) -> None:
        self.A, self.y, self.weights, self.ridge = A, y, weights, ridge
        self.lower, self.upper = lower, upper
        sparse = not isinstance(A, np.ndarray)
        self.design: Design = SparseDesign(A, shift) if sparse else DenseDesign(A)
        self._rows, self._shift = A.T, shift
        self.taking: Index = np.empty(0, np.intp)
        self._bounded = bool(np.isfinite(lower).any() or np.isfinite(upper).any())
        self.x = np.empty(0)
        self._residual: Array | None = y
        self.n_products = self.n_steps = 0
        self.patience, self.tired = MAX_STEPS, False
        self._stride, self._quick = 1.0, False
        self.b = self.c = self._correlate(y) if b is None else b
        self.reached, self.done = np.inf, False
        self._foretold: tuple[float, Array] | None = None

    def begin(self, x: Array) -> None:
        """Start from these coefficients, (n,)."""
        self._admit(np.flatnonzero(x))
        self.x[:] = np.clip(x, self.lower, self.upper)[self.taking]
        self._residual = None
        self._correlate_residual()

    def stands(self, x: Array, lam: float, slack: float) -> bool:
        """Whether coefficients (n,) are the minimum, by two products."""
        Ax = np.asarray(self.A @ x)
        if self._shift is not None:
            Ax -= (self._shift[1] @ x) * self._shift[0]
        slopes, inside = lam * self.weights, (x >= self.lower) & (x <= self.upper)
        near = 1 - 2 * ROUNDING  # of a bound, where units of unit columns have left their rounding
        ends = near * self.lower, near * self.upper
        face = Face(x, self._correlate(self.y - Ax), slopes, *ends, self.ridge * np.ones(x.size))
        face.c -= self.ridge * x
        g, free = face.uphill(face.signs(slack))
        return bool(inside.all() and (np.abs(g[free]) <= slack * slopes[free]).all())

    def move(self, x: Array, c: Array) -> None:
        """Go to a point (w,) of the columns that took part first, with what belongs to it."""
        self.x = np.concatenate([x, np.zeros(self.taking.size - x.size)])
        self._residual, self.c = None, c
        self.reached, self._foretold = np.inf, None

    @property
    def tall(self) -> bool:
        """Whether the Gram matrix of all columns is smaller than the matrix."""
        m, n = self.A.shape
        return isinstance(self.A, np.ndarray) and m >= n

    @property
    def whole(self) -> bool:
        """Whether all columns take part, with their Gram matrix."""
        return isinstance(self.design, WholeDesign)

    def take_all(self, quick: bool = False) -> None:
        """Let all columns take part, with their Gram matrix; those that did stay the first.

        `quick` forms it in single precision, which serves one minimum.
        """
        rest = np.delete(np.arange(self.weights.size), self.taking)
        self.taking = np.concatenate([self.taking, rest])
        self.x = np.concatenate([self.x, np.zeros(rest.size)])
        self.design = WholeDesign(self.A, self.taking, quick and self.weights.size >= MANY_COLUMNS)

    @property
    def residual(self) -> Array:
        """`y - A x`, (m,)."""
        if self._residual is None:
            self._residual = self.y - self.design.combine(self.x * self.design.norms)
        return self._residual

    def _correlate_residual(self) -> None:
        self.c = self._correlate(self.residual)
        if self.ridge:
            self.c[self.taking] -= self.ridge * self.x

    def _correlate(self, r: Array) -> Array:
        self.n_products += 1
        c = np.asarray(self._rows @ r)
        return c if self._shift is None else c - (self._shift[0] @ r) * self._shift[1]

    def pull(self, c: Array, taking: bool = False) -> Array:
        """`|c_j| / w_j` on the side where they may move, 0 of columns that take part already (of
        those that are not zero, if `taking`).
        """
        if self._bounded:
            up, down = np.where(self.upper > 0, c, 0), np.where(self.lower < 0, -c, 0)
            size = np.maximum(np.maximum(up, down), 0) / self.weights
        else:
            size = np.abs(c) / self.weights
        size[self.taking[self.x != 0] if taking else self.taking] = 0.0
        return np.asarray(size)

    @property
    def crowded(self) -> bool:
        """Whether faces of a wide dense matrix are hardly independent, and there is more to do."""
        m, n = self.A.shape
        if self.tired:
            return True
        if self.done or m >= n or self._thin:
            return False
        full = self.n_active > CROWDED * m and not self._few_rows
        return full or self.taking.size > max(TRIED * m, LEAST)

    @property
    def _full(self) -> bool:
        """Whether half as many coefficients are not zero as there are rows, and these are few."""
        return self._few_rows and self.n_active > self.A.shape[0] / 2

    @property
    def _iterates(self) -> bool:
        """Whether Newton steps go by conjugate gradients, so that digits cost."""
        return isinstance(self.design, SparseDesign) and self.design.many

    @property
    def _few_rows(self) -> bool:
        m, n = self.A.shape
        ends = self.patience < MAX_STEPS
        return ends and isinstance(self.A, np.ndarray) and m <= FEW_ROWS and m < n

    @property
    def _thin(self) -> bool:
        """Whether so few entries of the matrix are not zero that products beat factors."""
        m, n = self.A.shape
        return not isinstance(self.A, np.ndarray) and self.A.nnz < FILLED * m * n

    @property
    def _most(self) -> int:
        """Newton steps of a stage, after which something may take over."""
        if self.patience == MAX_STEPS or isinstance(self.A, np.ndarray):
            return self.patience if self._few_rows else MAX_STEPS
        return SPARSE_PATIENCE

    def _misses(self, lam: float, slack: float) -> bool:
        """Whether sparse columns that take part are not at their minimum, and another may be."""
        if self.patience == MAX_STEPS or isinstance(self.A, np.ndarray):
            return False
        J, signs = self.taking, np.sign(self.x)
        slopes = lam * self.weights[J]
        off = np.where(signs == 0, np.abs(self.c[J]) - slopes, np.abs(self.c[J] - signs * slopes))
        off[(self.x <= self.lower[J]) | (self.x >= self.upper[J])] = 0.0
        return bool((off > slack * slopes).any())

    @property
    def n_active(self) -> int:
        """Number of coefficients that are not zero."""
        return int(np.count_nonzero(self.x))

    def descend(self, lam: float, slack: float) -> Iterator[float]:
        """Go down to `lam`, yielding what was reached after each product with the matrix.

        A stage admits the columns that pull most, about as many as the design lets move in one
        step, and goes down no further than the strongest that is left out; the last stages stay at
        `lam` until nothing pulls more than it.
        """
        at, before = self.reached, self._foretold
        most = float((np.abs(self.b) / self.weights).max(initial=0.0))
        self._quick = slack * lam > 2 * ROUNDING * most
        if self.tall and not self.whole:
            pulled = np.count_nonzero(self.pull(self.c) > lam)
            if pulled > PULLED * self.weights.size:
                self.take_all(self._quick)
        if self.whole and self.reached == np.inf and not self.x.any():
            self._leap(lam)
        while True:
            here, new = self._next(lam * (1 + slack), at, before)
            last = here <= lam * (1 + slack)
            here = lam if last else here
            before, at = (at, self.c), here
            self._admit(new)
            fine = last and not (self._iterates and new.size > NEWCOMERS * self.n_active)
            steps = ITERATED if self._iterates else STEPS
            self._minimise(here, slack if fine else self._rough, MAX_STEPS if last else steps)
            if not self.whole:
                self._correlate_residual()
            self._foretold = before if before is not None and before[0] > here else None
            self.reached = here
            self.tired = self.tired or (fine and self._misses(here, MISSED * slack))
            left = float(self.pull(self.c).max())
            self.done = fine and left <= lam * (1 + slack)
            self._stride = _adapted(self._stride, left / here)
            yield here
            if self.done:
                return

    def _leap(self, lam: float) -> None:
        """From 0 to the minimum for the signs of least squares, if most of them stay."""
        design, norms, J = self.design, self.design.norms, self.taking
        assert isinstance(design, WholeDesign)
        ridge, slopes = self.ridge / norms**2, lam * self.weights[J] / norms
        if (found := design.for_signs(self.b[J] / norms, slopes, ridge)) is None:
            return
        signs, x = found
        stay = (x * signs > 0) & (x > self.lower[J] * norms) & (x < self.upper[J] * norms)
        if np.count_nonzero(stay) < MOST * J.size:
            return
        x[~stay] = 0.0
        self.x, self._residual, self.c = x / norms, None, self.b.copy()
        self.c[J] -= norms * (design.curve(x) + ridge * x)

    def _next(
        self, lam: float, at: float, before: tuple[float, Array] | None
    ) -> tuple[float, Index]:
        """Where the next stage ends, no lower than lam, and the columns that it admits.

        Correlations change linearly between stages, nearly: the last two foretell who pulls there.
        """
        pull = self.pull(self.c, taking=self.whole)
        new = np.flatnonzero(pull > lam)
        few, share = self.design.entering
        limit = max(few, int(share * self.n_active))
        if self._full:
            return lam, _largest(pull, new, 2 * limit)
        rank, here = int(limit * self._stride), lam
        if new.size > rank:
            order = np.argpartition(pull[new], new.size - rank - 1)
            here = float(pull[new[order[new.size - rank - 1]]])
            new = new[order[new.size - rank :]]
        new = _largest(pull, new, limit)
        if self._iterates and self.n_active + new.size > self.A.shape[0]:
            return lam, np.flatnonzero(pull > NEARLY * lam)
        if before is None or not here < at < before[0] < np.inf:
            return here, new
        ahead = self.pull(self.c + (self.c - before[1]) * ((at - here) / (before[0] - at)))
        foretold = _largest(ahead, np.flatnonzero(ahead > here), limit)
        return here, np.union1d(new, foretold) if here == lam else foretold

    def _admit(self, new: Index) -> None:
        if self.tall and not self.whole and self.taking.size + new.size > WHOLE * self.A.shape[1]:
            self.take_all(self._quick)
        elif new.size and not self.whole:
            self.design.admit(new)
            self.taking = np.concatenate([self.taking, new])
            self.x = np.concatenate([self.x, np.zeros(new.size)])

    @property
    def _rough(self) -> float:
        return ROUGHER if isinstance(self.design, SparseDesign) else ROUGH

    def _minimise(self, lam: float, slack: float, most: int) -> None:
        """To the minimum over the columns that take part, in units of unit columns."""
        J, norms = self.taking, self.design.norms
        if not J.size:
            return
        face = Face(
            self.x * norms,
            self.c[J] / norms,
            lam * self.weights[J] / norms,
            self.lower[J] * norms,
            self.upper[J] * norms,
            self.ridge / norms**2,
        )
        design, way = self.design, None
        if self._full or self._iterates:
            way = partial(approach, design, y=self.y, most=self.patience if self._full else most)
        last, most = most == MAX_STEPS and not self._few_rows, min(most, self._most)
        steps = minimise(design, face, slack, most, way)
        self.n_steps += steps
        self.tired = most == self._most < MAX_STEPS and steps >= most
        self.x, self._residual = face.x / norms, None
        size = max(float(np.abs(self.b[J] / norms).max()), float(np.linalg.norm(face.x)))
        unsure = design.rounding * size / float(face.slopes.min())
        refined = not last or self.tired or slack > unsure or self._refined(face, slack)
        if self.whole:
            self.c = np.empty_like(self.c)
            self.c[J] = face.c * norms
        if not refined:
            self.design = WholeDesign(self.A, J)
            self._correlate_residual()
            self._minimise(lam, slack, MAX_STEPS)

    def _refined(self, face: Face, slack: float) -> bool:
        """Take away what the Gram matrix's rounding has left, by products with the columns; whether
        no better Gram matrix is needed for that.
        """
        quick = self.design.rounding > ROUNDING
        for _ in range(AGAIN if quick else REFINED):
            face.c = self.design.correlate(self.residual) - face.ridge * face.x
            if not minimise(self.design, face, slack):
                return True
            self.x, self._residual = face.x / self.design.norms, None
        return not (quick and self.whole)

    def coefficients(self) -> Array:
        """Of all columns, (n,)."""
        full = np.zeros(self.weights.size)
        full[self.taking] = self.x
        return np.clip(full, self.lower, self.upper) if self._bounded else full


def _adapted(stride: float, left: float) -> float:
    """How many of those that pull most the next stage may pass for each that it admits, where what
    was left out pulls `left` times as much as it should: correlated columns hardly come in.
    """
    if left < 1.1:
        return min(2 * stride, 32.0)
    return max(stride / 2, 1.0) if left > 1.2 else stride


def _largest(size: Array, among: Index, most: int) -> Index:
    """Those of the largest size, at most so many."""
    if among.size <= most:
        return among
    return among[np.argpartition(size[among], among.size - most)[among.size - most :]]


def matrix_of(problem: Problem) -> Any:
    """The matrix of a problem's operator, sparse where it is so; None without."""
    A = problem.operator
    return A.sparse if A.sparse is not None else A.dense


@dataclass(frozen=True)
class WorkingSet:
    """The LASSO and the elastic net with a real matrix, dense or sparse, tall or wide.

    From `lam_max` down to lam in few stages, each of which admits the columns that correlate most
    with the residual and minimises over those admitted so far by Newton steps on faces: from their
    Gram matrix, or for many sparse columns by conjugate gradients. Products with the whole matrix
    only tell which columns are still missing.

    Args:
        tol: relative gap to reach; about 1e-14 is usual.
        max_iter: limit of the stages of each signal.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(Lasso(np.eye(2), [3.0, 0.5], lam=1.0), WorkingSet()).x.tolist()
        [2.0, 0.0]

    Source: working sets as in Massias, Gramfort, Salmon 2018; Newton steps on faces and their
        projected search as in Bertsekas 1982; the stages in lam and their lengths are ours.
    """

    tol: float = 1e-8
    max_iter: int = 1000

    solves: ClassVar[tuple[type[Problem], ...]] = (Lasso, ElasticNet)

    def refuses(self, problem: Problem) -> str | None:
        """A real matrix is needed."""
        A = problem.operator
        if A.sparse is None and not A.is_dense:
            return "needs a matrix, and A is matrix-free"
        if problem.is_complex:
            return "needs real data, and this is complex"
        if A.sparse is None and A.shape[0] * A.shape[1] > MAX_ENTRIES:
            return f"holds matrices up to {MAX_ENTRIES} entries"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; columns that `x0` needs come in first."""
        assert isinstance(problem, Lasso | ElasticNet)
        A, shape, calls = matrix_of(problem), np.shape(problem.y), itertools.count(1)
        columns = np.asarray(problem.y, dtype=np.float64).reshape(shape[0], -1).T
        X = np.zeros((problem.n_unknowns, len(columns)))
        show: Callback | None = None
        if callback is not None:
            show = lambda _, c: callback(next(calls), c)  # noqa: E731
        path_takes = isinstance(problem, Lasso) and ExactL1().refuses(problem) is None
        fits: list[Fit] = []
        most, ended = 0, False
        for j, column in enumerate(columns):
            b = np.ascontiguousarray(problem.correlations.reshape(X.shape)[:, j])
            fit = fit_of(problem, A, np.ascontiguousarray(column), b)
            fit.patience = PATIENCE if path_takes else MAX_STEPS
            fits.append(fit)
            slack, start = max(self.tol / 50, 1e-14), None if x0 is None else x0.reshape(X.shape)
            if start is not None and fit.stands(start[:, j], problem.lam, slack):
                X[:, j] = start[:, j]
                continue
            if start is not None:
                fit.begin(start[:, j])
            tried = False
            for k, _ in enumerate(fit.descend(problem.lam, slack), 1):
                most, crowded = max(most, k), path_takes and not tried and fit.crowded
                if show is not None or crowded:
                    X[:, j] = fit.coefficients()
                stop = show is not None and show(k, X.copy().reshape(problem.unknown_shape))
                if not stop and k < self.max_iter and crowded:
                    rest = ExactL1(self.tol, self.max_iter - most)
                    found = rest.solve(problem, x0=X.reshape(problem.unknown_shape), callback=show)
                    if found.status is not Status.STALLED or isinstance(A, np.ndarray):
                        return _joined(fits, most, found)
                    tried = True
                ended = bool(stop) or k >= self.max_iter
                if ended or (tried and fit.tired):
                    break
            X[:, j] = fit.coefficients()
            if ended:
                break
        return SolverResult(
            X.reshape(problem.unknown_shape),
            status=Status.MAX_ITER if ended else Status.OPTIMAL,
            n_iter=most,
            n_products=sum(fit.n_products for fit in fits),
            note=_note(fits),
        )


def _note(fits: list[Fit]) -> str:
    taking, n = max(fit.taking.size for fit in fits), fits[0].weights.size
    steps = sum(fit.n_steps for fit in fits)
    return f"{taking} of {n} columns took part, {steps} Newton steps"


def _joined(fits: list[Fit], n_iter: int, found: SolverResult) -> SolverResult:
    """What the exact path found, with the cost of what was before."""
    products = sum(fit.n_products for fit in fits) + (found.n_products or 0)
    note = f"{_note(fits)}; too many for their faces, so the exact path: {found.note}"
    return replace(found, n_iter=n_iter + found.n_iter, n_products=products, note=note)


def fit_of(problem: Lasso | ElasticNet, A: Any, y: Array, b: Array | None = None) -> Fit:
    """The fit of one signal of a problem; `b` is `A^T y` where that is known."""
    lower, upper = np.asarray(problem.lower), np.asarray(problem.upper)
    ridge = problem.ridge if isinstance(problem, ElasticNet) else 0.0
    shift = problem.operator.shift
    return Fit(A, y, np.asarray(problem.weights), lower, upper, ridge, shift, b)
