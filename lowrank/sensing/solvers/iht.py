"""Iterative hard thresholding: plain, normalised, and with pursuit."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.other import KSparse
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.sensing.solvers.support import each_column, fit, largest
from lowrank.status import Status

SHRINK = 0.7
"""Factor by which a normalised step that breaks the descent bound is cut."""


@dataclass(frozen=True)
class IHT:
    """Gradient steps on `||A c - y||^2 / 2`, each cut to its k largest entries.

        c <- H_k( c + step A^H (y - A c) )

    Attributes:
        variant: "niht" takes the step that is exact on the present support, cut until it descends;
            "htp" fits by least squares on the support that a step gives; "iht" keeps the step
            `1 / ||A||_2^2`, which always descends.
        tol: stop when the residual norm, or the change of the coefficients, is at most `tol` times
            that of y, or of the coefficients.
        max_iter: most iterations.

    Example:
        >>> A = np.array([[1.0, 0.0, 0.6], [0.0, 1.0, 0.8]])
        >>> IHT("htp").solve(KSparse(A, [0.0, 2.0], 1)).coefficients.round(12)
        array([0., 2., 0.])

    Source: Blumensath, Davies 2009 (IHT), 2010, section III (NIHT); Foucart 2011, algorithm HTP,
    with a step that is exact along the k largest entries of the gradient.
    """

    variant: Literal["iht", "niht", "htp"] = "niht"
    tol: float = 1e-10
    max_iter: int = 5000

    solves: ClassVar[tuple[type[Problem], ...]] = (KSparse,)

    def __post_init__(self) -> None:
        if self.variant not in ("iht", "niht", "htp"):
            problem = f"variant={self.variant!r}"
            raise InputError("IHT", problem, "take 'iht', 'niht' or 'htp'")

    def refuses(self, problem: Problem) -> str | None:
        """Takes every instance."""
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Signal by signal; `x0` is ignored."""
        assert isinstance(problem, KSparse)
        return each_column(problem, partial(self._column, problem.k), callback)

    def _column(
        self, k: int, A: Operator, y: Array, callback: Callback | None
    ) -> tuple[Array, Status, list[float]]:
        c, r = np.zeros(A.shape[1], dtype=y.dtype), y
        size = float(np.linalg.norm(y))
        S, history = largest(A.adjoint(y), k), [size]
        while len(history) <= self.max_iter and history[-1] > self.tol * size:
            g = A.adjoint(r)
            S_last, c_last = S, c
            S, c, r = self._advance(k, A, y, S, c, g)
            history.append(float(np.linalg.norm(r)))
            moved = float(np.linalg.norm(c - c_last))
            still = self.variant == "htp" and np.array_equal(S, S_last) and len(history) > 2
            if still or moved <= self.tol * float(np.linalg.norm(c)):
                return c, Status.CONVERGED, history[1:]
            if callback is not None and callback(len(history) - 1, c):
                break
        status = Status.CONVERGED if history[-1] <= self.tol * size else Status.MAX_ITER
        return c, status, history[1:]

    def _advance(
        self, k: int, A: Operator, y: Array, S: Array, c: Array, g: Array
    ) -> tuple[Array, Array, Array]:
        """The next support, coefficients and residual from the gradient `g = A^H (y - A c)`."""
        if self.variant == "iht":
            S, c = cut(c + g / A.norm() ** 2, k)
            return S, c, y - A.forward(c)
        # the gradient of a fitted support vanishes there: pursuit steps along its largest entries
        step = exact_step(A, largest(g, k) if self.variant == "htp" else S, g)
        S_next, trial = cut(c + step * g, k)
        if self.variant == "htp":
            return (S_next, *fit(A, S_next, y))
        while not np.array_equal(S_next, S):  # on a new support the step must still descend
            change = trial - c
            image = A.forward(change)
            bound = 0.99 * float(np.vdot(change, change).real)
            if step * float(np.vdot(image, image).real) <= bound:
                break
            step *= SHRINK
            S_next, trial = cut(c + step * g, k)
        return S_next, trial, y - A.forward(trial)


def cut(v: Array, k: int) -> tuple[Array, Array]:
    """The k largest entries: their indices, and the vector with zeros elsewhere."""
    S = largest(v, k)
    kept = np.zeros_like(v)
    kept[S] = v[S]
    return S, kept


def exact_step(A: Operator, S: Array, g: Array) -> float:
    """`||g_S||^2 / ||A g_S||^2`, the best step along the gradient on the support."""
    inside = np.zeros_like(g)
    inside[S] = g[S]
    image = A.forward(inside)
    curvature = float(np.vdot(image, image).real)
    return float(np.vdot(inside, inside).real) / curvature if curvature > 0 else 1.0
