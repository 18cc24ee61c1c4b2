"""What a solver hands back (`SolverResult`) and what the user gets (`Recovery`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from lowrank.status import Status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class SolverResult:
    """What a solver claims; `solve` turns it into a `Recovery` by certifying it from outside.

    Attributes:
        coefficients: `c`, (n,) or (n, batch), in the basis.
        dual: a dual candidate `v` of the shape of the loss's argument (m,), any scale; None lets
            the certificate take the residual `y - A c`.
        analysis_dual: the candidate `p` that goes with `v` in an analysis problem.
        status: what the solver believes; a convex OPTIMAL is believed only with a certificate.
        n_iter: iterations of the outermost loop.
        n_products: products with A or A^H, where the solver uses the matrix itself; None where it
            only applies the operator, whose products are counted from outside.
        history: per iteration, e.g. {"objective": [...], "gap": [...]}.
        note: what the solver did, in a few words, for `Recovery.why`.
        bound: lower bound of the minimum that the solver has proven, where the problem is not
            convex; None where it has none.
        warm: whether the coefficients are worth starting from for the solver that is tried next.
    """

    coefficients: Array
    dual: Array | None = None
    analysis_dual: Array | None = None
    status: Status = Status.OPTIMAL
    n_iter: int = 0
    n_products: int | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""
    warm: bool = False
    bound: float | None = None

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.coefficients.shape))
        note = f"; {self.note}" if self.note else ""
        return f"SolverResult({self.status.name}: {shape}, {self.n_iter} iterations{note})"


@dataclass(frozen=True, eq=False)
class Recovery:
    """A recovered signal, how far it can be trusted, and what it cost.

    Attributes:
        x: the signal, (n,) or (n, batch): array, or tensor if tensors went in.
        coefficients: `c` with `x = Psi c`; the same as x without a basis.
        support: indices of the non-zero coefficients (rows, for several signals).
        status: how the run ended; `status.value` is advice.
        objective: the value that was minimised, at the answer.
        residual_norm: `||A x - y||_2`.
        gap: (objective - dual value) / size of the objective, the worst over a batch; of a best
            subset / `1/2 ||y||^2`; None where nothing is proven, or there is no solution.
        infeasibility: violation of the constraints relative to `||y||_2`; None where not convex.
        dual: the feasible dual point `v` behind the gap; None where not convex.
        dual_objective: its value, a proven lower bound of the minimum; of a best subset what branch
            and bound has proven.
        debiased: least squares on the support, if asked for; never replaces x.
        n_iter: iterations.
        n_products: products with A or its adjoint, one per vector.
        seconds: wall time of the solver; the certificate is outside it.
        history: per iteration, as the solver keeps it.
        solver: its name and hyperparameters.
        why: why this solver was taken, and what it did.
        message: status, figures and advice in a sentence.
        estimated_error: `||x - true x|| / ||x||` as message passing estimates it for a posterior
            mean; None for an optimum.
        stationarity: of a concave penalty, how far the gradient is from what the penalty allows,
            relative to its slope at 0; None for all else.
        intercept: constant that is added to `A x`, where the problem has one; else None.
    """

    x: Any
    coefficients: Any
    support: Array
    status: Status
    objective: float
    residual_norm: float
    gap: float | None
    infeasibility: float | None
    dual: Any
    dual_objective: float | None
    debiased: Any
    n_iter: int
    n_products: int
    seconds: float
    history: Mapping[str, Sequence[float]]
    solver: str
    why: str
    message: str
    estimated_error: float | None = None
    stationarity: float | None = None
    intercept: float | None = None

    def __repr__(self) -> str:
        why_none = "not convex" if self.dual_objective is None else self.status.name.lower()
        gap = f"none ({why_none})" if self.gap is None else f"{self.gap:.1e}"
        if self.stationarity is not None:
            gap = f"{gap}, stationary to {self.stationarity:.1e}"
        return (
            f"Recovery({self.status.name}: {self.support.size} of {self.coefficients.shape[0]} "
            f"non-zero, objective {self.objective:.6g}, residual {self.residual_norm:.3g}, "
            f"gap {gap}; {self.solver}, {self.n_iter} iterations, {self.n_products} products, "
            f"{self.seconds:.3g} s)\n  {self.message}\n  why: {self.why}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values: everything but the vectors."""
        names = ["objective", "residual_norm", "gap", "infeasibility", "dual_objective"]
        names += [n for n in ("stationarity", "intercept") if getattr(self, n) is not None]
        counts = ("n_iter", "n_products", "seconds", "solver", "why", "message")
        return {
            "status": self.status.name.lower(),
            "shape": list(self.x.shape),
            "nonzeros": int(self.support.size),
            **{name: getattr(self, name) for name in (*names, *counts)},
        }

    def plot(self, truth: Any = None, measurements: Any = None, *, unit: str = "") -> Figure:
        """Draw the signal, the measurements, the recovery and the convergence, a panel each.

        Args:
            truth: the true signal, of the shape of x; None draws the recovery alone.
            measurements: y, (m,) or (m, batch); None leaves them out.
            unit: of the signal, for the axis.

        Returns:
            A matplotlib figure; a notebook shows it, `figure.savefig(path)` writes it.

        Raises:
            InputError: the truth is not of the signal's shape.
        """
        from lowrank.sensing.plots import recovery

        return recovery(
            self.x, self.coefficients, truth=truth, measurements=measurements,
            history=self.history, title=self._title, unit=unit,
        )  # fmt: skip

    def save_html(
        self,
        path: str | Path,
        *,
        truth: Any = None,
        measurements: Any = None,
        title: str = "Recovery report",
    ) -> None:
        """Write the answer, its certificate and its pictures as one self-contained HTML page.

        Args:
            path: file to write.
            truth: the true signal, of the shape of x, if it is known.
            measurements: y, (m,) or (m, batch), to be drawn.
            title: of the page.

        Raises:
            InputError: the truth is not of the signal's shape, or the file cannot be written.
        """
        from lowrank.sensing.html import save_recovery

        name = self.status.name.lower()
        save_recovery(
            path,
            title=title,
            lead=[f"{name}: {self.status.value}", f"Why this solver: {self.why}"],
            notes=[] if self.status.ok else [f"{name}: {self.message}"],
            certificate=list(self._certificate()),
            drawn=self.plot(truth=truth, measurements=measurements),
            coefficients=self.coefficients,
        )

    @property
    def _title(self) -> str:
        c = self.coefficients
        batch = "" if c.ndim == 1 else f", signal 1 of {c.shape[1]}"
        gap = "" if self.gap is None else f", relative gap {self.gap:.1e}"
        return f"{self.solver.split('(')[0]}: {self.status.name.lower()}{gap}{batch}"

    def _certificate(self) -> Iterator[tuple[str, str]]:
        """The answer and the proof of it: (name, figure) each."""
        yield "status", f"{self.status.name.lower()}: {self.message}"
        yield "non-zeros", f"{self.support.size:,} of {self.coefficients.shape[0]:,}"
        yield "objective", f"{self.objective:.8g}"
        if self.gap is None or self.dual_objective is None:
            convex = self.dual_objective is not None
            yield (
                "certificate",
                f"none: the problem {'has no solution' if convex else 'is not convex'}",
            )
            if self.stationarity is not None:
                yield "stationary to", f"{self.stationarity:.1e} of the penalty's slope at 0"
        else:
            yield "proven bound", f"{self.dual_objective:.8g}"
            yield "relative gap", f"{self.gap:.1e}"
            yield "constraints violated by", f"{self.infeasibility:.1e} of ‖y‖"
        yield "‖A x − y‖", f"{self.residual_norm:.6g}"
        yield "solver", self.solver
        yield "iterations", f"{self.n_iter:,}"
        yield "products with A", f"{self.n_products:,}"
        yield "time", f"{self.seconds:.3g} s"
