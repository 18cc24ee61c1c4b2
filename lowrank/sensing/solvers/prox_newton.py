"""Proximal Newton steps on a working set: logistic and Poisson regression with an l1 penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowrank.sensing.certificates import relative_gap, scaled_dual
from lowrank.sensing.losses import Logistic, Poisson
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.losses import LogisticLasso, PoissonLasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.working_set import Fit
from lowrank.status import Status

FLATTEST = 1e-8
"""Curvature of a row, relative to the largest, below which it is taken for more."""

FIRST = 50
"""Columns that may come in with one step, besides as many as there are."""

EXACT = 1e-10
"""How far the gradient of a step's quadratic may be off, relative to the slopes."""

ARMIJO = 1e-4
"""Share of the predicted decrease that a step must reach."""

ROUNDING = 1e-13
"""Relative change of the objective that is not told from none."""


@dataclass(frozen=True)
class ProxNewton:
    """Proximal Newton method with working sets for `min f(A c) + lam ||w c||_1`, f smooth.

    Each step minimises the quadratic model of f with the penalty, a weighted LASSO over the columns
    that take part, exactly and by faces; then it searches along the step. One product with the
    whole matrix tells the gap, and which columns are still missing.

    Args:
        tol: relative duality gap at which to stop.
        max_iter: limit of the steps.

    Example:
        >>> from lowrank.sensing import LogisticLasso, solve
        >>> solve(LogisticLasso(np.eye(2), [1, -1], 0.25), ProxNewton()).x.round(4).tolist()
        [1.0986, -1.0986]

    Source: Lee, Sun, Saunders 2014, algorithm 1; working sets as in Massias, Vaiter, Gramfort,
        Salmon 2020.
    """

    tol: float = 1e-8
    max_iter: int = 200

    solves: ClassVar[tuple[type[Problem], ...]] = (LogisticLasso, PoissonLasso)

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance, also operators, of which it forms the columns that take part."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Step until the duality gap is within tol."""
        assert isinstance(problem, LogisticLasso | PoissonLasso)
        at = _Point(problem, x0)
        gaps: list[float] = []
        status, k = Status.MAX_ITER, 0
        for k in range(1, self.max_iter + 1):
            moved = at.step()
            gaps.append(at.gap())
            if gaps[-1] <= self.tol / 2:
                status = Status.OPTIMAL
                break
            if callback is not None and callback(k, at.c.copy()):
                break
            if not moved and not at.admitted:
                status = Status.STALLED
                break
        note = f"{at.J.size} of {problem.n_unknowns} columns took part"
        return SolverResult(
            at.c, dual=at.v[:, 0], status=status, n_iter=k, history={"gap": gaps}, note=note
        )


class _Point:
    """Coefficients, what they predict, the dual point of the gradient, and the columns J."""

    def __init__(self, problem: LogisticLasso | PoissonLasso, x0: Array | None) -> None:
        self.problem, self.operator = problem, problem.operator
        assert isinstance(problem.plain_loss, Logistic | Poisson)
        self.plain, self.loss = problem.plain_loss, problem.loss
        self.weights = np.asarray(problem.weights)
        self.lower, self.upper = np.asarray(problem.lower), np.asarray(problem.upper)
        self.c = np.zeros(problem.n_unknowns) if x0 is None else np.array(x0, dtype=float)
        self.c = np.clip(self.c, self.lower, self.upper)
        self.J = np.empty(0, np.intp)
        self.columns = np.empty((self.operator.shape[0], 0), order="F")
        self.admitted = False
        self._admit(np.flatnonzero(self.c))
        self.eta = self.columns @ self.c[self.J]
        self._look()

    def _look(self) -> None:
        """The dual point, its correlations, and the columns that pull hardest of those missing."""
        self.v = -self.loss.subgradient(self.eta[:, None])
        self.z = self.operator.adjoint(self.v[:, 0])
        up, down = np.where(self.upper > 0, self.z, 0), np.where(self.lower < 0, -self.z, 0)
        pull = np.maximum(np.maximum(up, down), 0) / (self.problem.lam * self.weights)
        pull[self.J] = 0
        new = np.flatnonzero(pull > 1)
        most = max(FIRST, self.J.size)
        if new.size > most:
            new = new[np.argpartition(-pull[new], most)[:most]]
        self._admit(new)

    def _admit(self, new: Array) -> None:
        self.admitted = bool(new.size)
        if new.size:
            self.J = np.concatenate([self.J, new])
            self.columns = np.asfortranarray(
                np.concatenate([self.columns, np.asarray(self.operator.columns(new))], axis=1)
            )

    def value(self, eta: Array, inside: Array) -> float:
        """The objective, of what is predicted and of the coefficients of J."""
        size = self.problem.lam * float(self.weights[self.J] @ np.abs(inside))
        return float(self.loss.value(eta[:, None])[0]) + size

    def gap(self) -> float:
        """Relative duality gap."""
        primal = np.array([self.value(self.eta, self.c[self.J])])
        dual = scaled_dual(self.problem, self.v, self.z[:, None])[1]
        return float(relative_gap(primal, dual, self.problem.gap_floor)[0])

    def step(self) -> bool:
        """One Newton step over J; whether it lowered the objective."""
        J, before = self.J, self.c[self.J]
        if not J.size:
            return False
        gradient = -self.v[:, 0]
        curvature = self.plain.curvatures(self.eta + (self.problem.level(self.c) or 0.0))
        curvature = np.maximum(curvature, FLATTEST * float(curvature.max()) or FLATTEST)
        root = np.sqrt(curvature)
        rows, goal = root[:, None] * self.columns, root * self.eta - gradient / root
        if self.problem.intercept:  # which is minimised over, too
            along = root / np.linalg.norm(root)
            rows, goal = rows - np.outer(along, along @ rows), goal - along * (along @ goal)
        fit = Fit(
            np.asfortranarray(rows), goal,
            self.weights[J], self.lower[J], self.upper[J],
        )  # fmt: skip
        fit.begin(before)
        for _ in fit.descend(self.problem.lam, EXACT):
            pass
        moved = self._search(before, fit.coefficients() - before)
        self._look()
        return moved

    def _search(self, before: Array, d: Array) -> bool:
        """Go along d as far as the objective falls as it should."""
        along, start = self.columns @ d, self.value(self.eta, before)
        slope = float(-self.v[:, 0] @ along) + self.problem.lam * float(
            self.weights[self.J] @ (np.abs(before + d) - np.abs(before))
        )
        share = 1.0
        while share > 1e-12:
            here = self.value(self.eta + share * along, before + share * d)
            if here <= start + ARMIJO * share * slope + ROUNDING * abs(start):
                self.c[self.J] = before + share * d
                self.eta = self.eta + share * along
                return here < start
            share /= 2
        return False
