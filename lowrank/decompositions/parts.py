"""What splitting or completing a matrix hands back: the parts, how far to trust them, the cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic

from lowrank.decompositions.observed import Array
from lowrank.status import Status


@dataclass(frozen=True, eq=False, repr=False)
class LowRankParts(Generic[Array]):
    """A low-rank matrix `L` and what is left of the data, `S`; equal to itself alone.

    Attributes:
        L: (m, n) low-rank part, defined on the missing entries too.
        S: (m, n) the rest; zero on the missing entries.
        status: how the run ended; `status.value` is advice. OPTIMAL where a duality gap proves
            it, CONVERGED where the problem is not convex.
        rank: of `L`.
        n_iter: iterations done.
        objective: value at `L` of what is minimised.
        gap: relative duality gap between `objective` and the value of `dual`, a proof of how far
            from the optimum the answer can be; None where the problem is not convex.
        residual_norm: Frobenius norm of what the parts leave of the observed entries.
        dual: (m, n) dual point, `||dual||_2 <= 1` up to a scale that `gap` accounts for; None
            where the problem is not convex.
        history: name -> its value at each iteration: "primal_residual" and "dual_residual" of a
            convex solver, "residual" and its "decrease" of any other, all relative.
    """

    L: Array
    S: Array
    status: Status
    rank: int
    n_iter: int
    objective: float
    gap: float | None
    residual_norm: float
    dual: Array | None
    history: dict[str, list[float]]

    def __repr__(self) -> str:
        m, n = self.L.shape
        gap = "none (not convex)" if self.gap is None else f"{self.gap:.1e}"
        line = (
            f"{type(self).__name__}({self.status.name}: {m} x {n} of rank {self.rank}, objective "
            f"{self.objective:.6g}, residual {self.residual_norm:.3g}, gap {gap}; "
            f"{self.n_iter} iterations)"
        )
        return line if self.status.ok else f"{line}\n  {self.status.value}"

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values: everything but the matrices and the history."""
        names = ("rank", "n_iter", "objective", "gap", "residual_norm")
        return {
            "status": self.status.name.lower(),
            "shape": list(self.L.shape),
            **{name: getattr(self, name) for name in names},
        }
