"""What a solver hands back (`SolverResult`) and what the user gets (`Recovery`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Status(Enum):
    """How a run ended; the value is the advice that goes with it.

    Example:
        >>> print(Status.MAX_ITER.value)
        stopped by max_iter before the tolerance: raise max_iter, loosen tol, or take another solver
    """

    OPTIMAL = "the gap and the constraints are within tol: the answer is certified"
    CONVERGED = (
        "the method reached its own fixed point; the problem is not convex, so nothing is certified"
    )
    MAX_ITER = (
        "stopped by max_iter before the tolerance: raise max_iter, loosen tol, "
        "or take another solver"
    )
    STALLED = (
        "no further progress above the tolerance: loosen tol, scale the columns of A, "
        'or take solver="cvxpy"'
    )
    INFEASIBLE = "no x satisfies the constraints: raise the noise level or check A and y"
    UNBOUNDED = "the objective has no lower bound: add a penalty or bounds"
    DIVERGED = (
        "the iteration grew without bound, so the answer is no answer: take a convex solver, "
        "or one made for this kind of matrix"
    )

    @property
    def ok(self) -> bool:
        """Whether the answer may be used as the answer."""
        return self in (Status.OPTIMAL, Status.CONVERGED)


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
    """

    coefficients: Array
    dual: Array | None = None
    analysis_dual: Array | None = None
    status: Status = Status.OPTIMAL
    n_iter: int = 0
    n_products: int | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""


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
        gap: (objective - dual value) / size of the objective, the worst over a batch; None where
            the problem is not convex.
        infeasibility: violation of the constraints relative to `||y||_2`; None where not convex.
        dual: the feasible dual point `v` behind the gap; None where not convex.
        dual_objective: its value, a proven lower bound of the minimum.
        debiased: least squares on the support, if asked for; never replaces x.
        n_iter: iterations.
        n_products: products with A or its adjoint, one per vector.
        seconds: wall time of the solver; the certificate is outside it.
        history: per iteration, as the solver keeps it.
        solver: its name and hyperparameters.
        why: why this solver was taken, and what it did.
        message: status, figures and advice in a sentence.
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

    def __repr__(self) -> str:
        gap = "none (not convex)" if self.gap is None else f"{self.gap:.1e}"
        return (
            f"Recovery({self.status.name}: {self.support.size} of {self.coefficients.shape[0]} "
            f"non-zero, objective {self.objective:.6g}, residual {self.residual_norm:.3g}, "
            f"gap {gap}; {self.solver}, {self.n_iter} iterations, {self.n_products} products, "
            f"{self.seconds:.3g} s)\n  {self.message}\n  why: {self.why}"
        )

    def plot(self, truth: Any = None, ax: Any = None) -> Any:
        """Stem plot of the recovered coefficients, over the true ones if they are given.

        Args:
            truth: the true coefficients, (n,); None draws the recovery alone.
            ax: matplotlib axes; None makes new ones.

        Returns:
            The matplotlib axes.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.subplots(figsize=(9, 3))[1]
        if truth is not None:
            _stems(ax, np.asarray(truth), "C0o", "true")
        _stems(ax, np.asarray(self.coefficients), "C3x", "recovered")
        title = f"{self.solver.split('(')[0]}: {self.status.name.lower()}"
        ax.set(xlabel="index", ylabel="coefficient", title=title)
        ax.legend()
        return ax


def _stems(ax: Any, values: Array, marker: str, label: str) -> None:
    if np.iscomplexobj(values):
        values, label = abs(values), f"|{label}|"
    values = values if values.ndim == 1 else np.linalg.norm(values, axis=1)
    index = np.flatnonzero(values)
    ax.stem(index, values[index], linefmt=f"{marker[:2]}-", markerfmt=marker, label=label)
