"""Solver of benchopt's `benchmark_tv_1d`: copy it to `solvers/` there as lowrank_kit.py."""

from __future__ import annotations

from typing import Any, ClassVar

from benchopt import BaseSolver
from benchopt.stopping_criterion import SufficientProgressCriterion


class Solver(BaseSolver):  # type: ignore[misc]
    """`1/2 ||y - A u||^2 + reg ||D u||_1` by the library's own choice of solver."""

    name = "lowrank"
    sampling_strategy = "tolerance"
    # the first settings lead to one answer, which is no sign that no better one follows
    stopping_criterion = SufficientProgressCriterion(strategy="tolerance", patience=7)
    requirements: ClassVar = ["pip::lowrank-kit"]
    references: ClassVar = ["ADMM and interior points, certified; lowrank/sensing/solve.py"]

    def skip(
        self, A: Any, reg: float, y: Any, c: float, delta: float, data_fit: str
    ) -> tuple[bool, str | None]:
        """Total variation has squared errors alone."""
        quadratic = data_fit == "quad"
        return not quadratic, None if quadratic else f"no data_fit {data_fit!r}"

    def set_objective(
        self, A: Any, reg: float, y: Any, c: float, delta: float, data_fit: str
    ) -> None:
        """Keep the data, and import the library: not where benchopt only lists its solvers."""
        from lowrank.sensing import solve, total_variation

        self.A, self.y, self.reg, self._tv, self._solve = A, y, reg, total_variation, solve

    def run(self, tol: float) -> None:
        """Minimise to a relative gap, the cube of what benchopt lowers from an enormous one."""
        problem = self._tv(self.A, self.y, self.A.shape[1], lam=self.reg)
        self.u = self._solve(problem, tol=min(max(min(tol, 1.0) ** 3, 1e-12), 0.1)).x

    def get_result(self) -> dict[str, Any]:
        """The signal, (n,)."""
        return {"u": self.u}
