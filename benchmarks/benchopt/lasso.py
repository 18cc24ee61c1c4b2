"""Solver of benchopt's `benchmark_lasso`: copy it to `solvers/` there as lowrank_kit.py."""

from __future__ import annotations

from typing import Any, ClassVar

from benchopt import BaseSolver
from benchopt.stopping_criterion import SufficientProgressCriterion


class Solver(BaseSolver):  # type: ignore[misc]
    """`1/2 ||y - X beta||^2 + lmbd ||beta||_1` by the library's own choice of solver."""

    name = "lowrank"
    sampling_strategy = "tolerance"
    # the first settings lead to one answer, which is no sign that no better one follows
    stopping_criterion = SufficientProgressCriterion(strategy="tolerance", patience=7)
    requirements: ClassVar = ["pip::lowrank-kit"]
    references: ClassVar = [
        "Newton steps on faces in working sets; lowrank/sensing/solvers/working_set.py"
    ]

    def skip(self, X: Any, y: Any, lmbd: float, fit_intercept: bool) -> tuple[bool, str | None]:
        """The formulation has no intercept."""
        return fit_intercept, "no intercept: centre the columns" if fit_intercept else None

    def set_objective(self, X: Any, y: Any, lmbd: float, fit_intercept: bool) -> None:
        """Keep the data, and import the library: not where benchopt only lists its solvers."""
        from lowrank.sensing import Lasso, solve

        self.X, self.y, self.lmbd, self._lasso, self._solve = X, y, lmbd, Lasso, solve

    def run(self, tol: float) -> None:
        """Minimise to a relative gap, the cube of what benchopt lowers from an enormous one."""
        problem = self._lasso(self.X, self.y, self.lmbd)
        self.beta = self._solve(problem, tol=min(max(min(tol, 1.0) ** 3, 1e-14), 0.1)).x

    def get_result(self) -> dict[str, Any]:
        """The coefficients, (n,)."""
        return {"beta": self.beta}
