"""Working sets for the LASSO and the elastic net, dense or sparse: exact on few columns at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import ElasticNet, Lasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.designs import Array, DenseDesign, Design, Index, SparseDesign
from lowrank.sensing.solvers.faces import Face, minimise
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

AT_FIRST = 100
"""Columns that come in at once at the start; later as many as are not zero."""


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
        design: columns that an earlier fit of the same matrix has gathered, and which they are.

    Attributes:
        x: coefficients of the columns that take part.
        taking: which columns these are.
        c: `A^T (y - A x) - ridge x`, (n,).
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
    ) -> None:
        self.A, self.y, self.weights, self.ridge = A, y, weights, ridge
        self.lower, self.upper = lower, upper
        sparse = not isinstance(A, np.ndarray)
        self.design: Design = SparseDesign(A) if sparse else DenseDesign(A)
        self._rows = A.T
        self.taking: Index = np.empty(0, np.intp)
        self._takes = np.zeros(weights.size, dtype=bool)
        self._bounded = bool(np.isfinite(lower).any() or np.isfinite(upper).any())
        self.x, self.residual = np.empty(0), y
        self.n_products = self.n_steps = 0
        self.c = self._correlate(y)
        self.start = self.c

    def _correlate(self, r: Array) -> Array:
        self.n_products += 1
        return np.asarray(self._rows @ r)

    def pull(self) -> Array:
        """`|c_j| / w_j` of every column that is zero, on the side where it may move; else 0."""
        if self._bounded:
            up, down = np.where(self.upper > 0, self.c, 0), np.where(self.lower < 0, -self.c, 0)
            size = np.maximum(np.maximum(up, down), 0) / self.weights
        else:
            size = np.abs(self.c) / self.weights
        size[self.taking] = 0.0
        return np.asarray(size)

    @property
    def n_active(self) -> int:
        """Number of coefficients that are not zero."""
        return int(np.count_nonzero(self.x))

    def descend(self, lam: float, slack: float) -> Iterator[float]:
        """Go down to `lam`, yielding what was reached after each product with the matrix.

        A stage admits the columns that pull most, at most as many as are active, and goes down no
        further than the strongest that is left out; the last stages stay at `lam` until nothing
        pulls more than it.
        """
        while True:
            pull = self.pull()
            here = lam
            new = np.flatnonzero(pull > lam * (1 + slack))
            limit = max(AT_FIRST, self.n_active)
            if new.size > limit:
                order = np.argpartition(pull[new], new.size - limit - 1)
                here = float(pull[new[order[new.size - limit - 1]]])
                new = new[order[new.size - limit :]]
            if new.size:
                self._admit(new)
            self._minimise(here, slack)
            self.c = self._correlate(self.residual)
            if self.ridge:
                self.c[self.taking] -= self.ridge * self.x
            yield here
            if here <= lam and not (self.pull() > lam * (1 + slack)).any():
                return

    def _admit(self, new: Index) -> None:
        self.design.admit(new)
        self.taking = np.concatenate([self.taking, new])
        self._takes[new] = True
        self.x = np.concatenate([self.x, np.zeros(new.size)])

    def _minimise(self, lam: float, slack: float) -> None:
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
        self.n_steps += minimise(self.design, face, slack)
        for _ in range(2):  # what the Gram matrix's rounding has left
            self.residual = self.y - self.design.combine(face.x)
            face.c = self.design.correlate(self.residual) - face.ridge * face.x
            if not minimise(self.design, face, slack):
                break
            self.residual = self.y - self.design.combine(face.x)
        self.x = face.x / norms

    def coefficients(self) -> Array:
        """Of all columns, (n,)."""
        full = np.zeros(self.weights.size)
        full[self.taking] = self.x
        return np.clip(full, self.lower, self.upper) if self._bounded else full


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
        """Minimise; `x0` is not used."""
        assert isinstance(problem, Lasso | ElasticNet)
        y = np.asarray(problem.y, dtype=np.float64)
        columns = y.reshape(len(y), -1).T
        X = np.zeros((problem.n_unknowns, len(columns)))
        R = np.array(columns.T, dtype=np.float64)
        A, steps, most, products, note = matrix_of(problem), 0, 0, 0, []
        status, calls = Status.OPTIMAL, itertools.count(1)
        for j, column in enumerate(columns):
            fit = fit_of(problem, A, np.ascontiguousarray(column))
            ended = False
            for k, _ in enumerate(fit.descend(problem.lam, max(self.tol / 50, 1e-14)), 1):
                most = max(most, k)
                ended = k >= self.max_iter
                if callback is not None:
                    X[:, j] = fit.coefficients()
                    shown = X.copy().reshape(problem.unknown_shape)
                    ended = bool(callback(next(calls), shown)) or ended
                if ended:
                    break
            X[:, j], R[:, j] = fit.coefficients(), fit.residual
            status = Status.MAX_ITER if ended else status
            products, steps = products + fit.n_products, steps + fit.n_steps
            note.append(fit.taking.size)
        return SolverResult(
            X.reshape(problem.unknown_shape),
            dual=R.reshape(y.shape),
            status=status,
            n_iter=most,
            n_products=products,
            note=f"{max(note)} of {X.shape[0]} columns took part, {steps} Newton steps",
        )


def fit_of(problem: Lasso | ElasticNet, A: Any, y: Array) -> Fit:
    """The fit of one signal of a problem."""
    lower, upper = np.asarray(problem.lower), np.asarray(problem.upper)
    ridge = problem.ridge if isinstance(problem, ElasticNet) else 0.0
    return Fit(A, y, np.asarray(problem.weights), lower, upper, ridge)
