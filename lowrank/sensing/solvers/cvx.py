"""Every convex problem in CVXPY: the reference, and a solver in its own right.

Each problem is stated once per matrix with CVXPY `Parameter`s for everything else (y, lam,
weights, bounds), so a re-solve for new measurements skips canonicalization.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.operators.operator import Operator
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.l1 import (
    BPDN,
    BasisPursuit,
    ConstrainedLasso,
    DantzigSelector,
    ElasticNet,
    L1Fit,
    Lasso,
    SqrtLasso,
)
from lowrank.sensing.problems.other import OneBit
from lowrank.sensing.problems.structured import Analysis, AnalysisLasso, GroupLasso, JointSparse
from lowrank.sensing.result import SolverResult, Status
from lowrank.sensing.solvers.protocol import Callback

MAX_ELEMENTS = 2**22
"""Largest m x n that is handed to CVXPY; its copies of a dense matrix are sparse ones."""


BYTES_PER_ELEMENT = 200
"""Memory per matrix element, from statement to factorisation (measured with Clarabel)."""


SIMPLEX_ELEMENTS = 2**15
"""Linear programs up to this m x n go to SciPy's simplex, whose answers are exact vertices."""


_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "CLARABEL": (("tol_gap_abs", "tol_gap_rel", "tol_feas"), "max_iter"),
    "SCS": (("eps_abs", "eps_rel"), "max_iters"),
    "OSQP": (("eps_abs", "eps_rel"), "max_iter"),
}
"""Backends' own names of their tolerances and of the limit of iterations."""


_STATUS = {
    "infeasible": Status.INFEASIBLE,
    "infeasible_inaccurate": Status.INFEASIBLE,
    "unbounded": Status.UNBOUNDED,
    "unbounded_inaccurate": Status.UNBOUNDED,
    "user_limit": Status.MAX_ITER,
}


@dataclass(frozen=True)
class CVXPY:
    """Any convex problem with a dense matrix, by any solver that CVXPY finds installed.

    Args:
        backend: CVXPY's name of the solver, such as "CLARABEL", "SCS", "HIGHS"; None takes
            SciPy's HiGHS for small linear programs, Clarabel else, and SCS where that stops short.
            `solver="cvxpy:scs"` says the same.
        tol: relative gap that the certificate must show; the backend is asked for a hundredth.
        max_iter: limit of the backend's iterations; None is its own.
        verbose: let the backend print its log.

    Example:
        >>> from lowrank.sensing import solve
        >>> solve(Lasso(np.eye(2), [3.0, 0.5], lam=1.0), "cvxpy").x.round(6).tolist()
        [2.0, 0.0]

    Source: Diamond, Boyd 2016; parameters in the sense of Agrawal et al. 2019.
    """

    backend: str | None = None
    tol: float = 1e-8
    max_iter: int | None = None
    verbose: bool = False

    solves: ClassVar[tuple[type[Problem], ...]] = (
        BasisPursuit,
        BPDN,
        Lasso,
        ConstrainedLasso,
        DantzigSelector,
        ElasticNet,
        SqrtLasso,
        L1Fit,
        GroupLasso,
        JointSparse,
        Analysis,
        AnalysisLasso,
        OneBit,
    )

    def refuses(self, problem: Problem) -> str | None:
        """Needs the matrix, of a size that CVXPY can hold."""
        m, p = problem.operator.shape
        memory = f"CVXPY would take about {m * p * BYTES_PER_ELEMENT / 2**30:.2g} GiB"
        if not problem.operator.is_dense:
            return f"needs a matrix, and A is matrix-free ({m} x {p}; as a matrix, {memory})"
        if m * p > MAX_ELEMENTS:
            return f"is made for at most {MAX_ELEMENTS} elements, and A has {m} x {p} ({memory})"
        return None

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Solve by CVXPY, column by column unless they are coupled; `x0` and `callback` unused."""
        y = np.asarray(problem.y)
        compiled = _compiled(_Structure.of(problem))
        if y.ndim == 1 or problem.coupled:
            return self._solve_one(compiled, problem, y)
        results = [self._solve_one(compiled, problem, column) for column in y.T]
        worst = next((r.status for r in results if r.status is not Status.OPTIMAL), Status.OPTIMAL)
        return SolverResult(
            np.stack([r.coefficients for r in results], axis=1),
            dual=_stacked([r.dual for r in results]),
            status=worst,
            n_iter=sum(r.n_iter for r in results),
            n_products=0,
            note=results[0].note,
        )

    def _solve_one(self, compiled: _Compiled, problem: Problem, y: Array) -> SolverResult:
        units = compiled.assign(problem, y)
        names = self._backends(compiled, problem)
        backend, status = names[0], ""
        for backend in names:
            status = self._attempt(compiled.statement, backend)
            if status == "optimal" or (status == "user_limit" and self.max_iter):
                break
        stats = compiled.statement.solver_stats
        value = compiled.unknown.value
        known = value is not None and np.isfinite(value).all()
        shape = compiled.unknown.shape
        n_iter = int(getattr(stats, "num_iters", None) or 0)
        if status == "optimal_inaccurate" and n_iter >= (self.max_iter or np.inf):
            status = "user_limit"  # which SCS does not tell apart
        return SolverResult(
            np.asarray(value) * units.x if known else np.zeros(shape, problem.dtype),
            dual=compiled.dual(units) if known else None,
            analysis_dual=compiled.analysis_dual(units) if known else None,
            status=_STATUS.get(status, Status.OPTIMAL if known else Status.STALLED),
            n_iter=n_iter,
            n_products=0,
            note=f"CVXPY with {backend} said {status}{self._unheard(backend)}",
        )

    def _unheard(self, backend: str) -> str:
        """That the backend runs without the limit asked for, if it does."""
        heard = self.max_iter is None or _NAMES.get(backend, ((), ""))[1]
        return "" if heard else f"; {backend} is given no limit of iterations"

    def _attempt(self, statement: Any, backend: str) -> str:
        options = _accuracy(backend, self.tol / 100, self.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inaccuracy is the certificate's to tell
            try:
                statement.solve(solver=backend, verbose=self.verbose, **options)
            except _cvxpy().error.SolverError as error:
                return str(error)
        return str(statement.status)

    def _backends(self, compiled: _Compiled, problem: Problem) -> list[str]:
        """The backend asked for, or the default and one to turn to where it is inaccurate."""
        installed = _cvxpy().installed_solvers()
        if self.backend is not None:
            name = self.backend.upper()
            if name not in installed:
                text = f"CVXPY finds no solver {self.backend!r}"
                raise InputError("solver", text, f"take one of {', '.join(installed)}")
            return [name]
        m, p = problem.operator.shape
        simplex = ["SCIPY"] if m * p <= SIMPLEX_ELEMENTS and compiled.is_linear else []
        return [name for name in [*simplex, "CLARABEL", "SCS"] if name in installed]


@dataclass(frozen=True)
class _Structure:
    """What a statement in CVXPY depends on; the rest are parameters."""

    kind: type[Problem]
    digest: bytes
    columns: int
    is_complex: bool
    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    components: int = 1
    matrix: Array = field(compare=False, default_factory=lambda: np.zeros((0, 0)))
    analysis: Any = field(compare=False, default=None)

    @staticmethod
    def of(problem: Problem) -> _Structure:
        matrix = problem.operator.to_dense()
        D: Operator | None = getattr(problem, "D", None)
        analysis = None if D is None else csr_array(D.to_dense())
        parts = [matrix] if analysis is None else [matrix, analysis.data, analysis.indices]
        hashed = hashlib.blake2b(repr((matrix.shape, matrix.dtype)).encode())
        for part in parts:
            hashed.update(np.ascontiguousarray(part).tobytes())
        bounds = {
            name: tuple(np.flatnonzero(np.isfinite(getattr(problem, name, ()))).tolist())
            for name in ("lower", "upper")
        }
        return _Structure(
            type(problem),
            hashed.digest(),
            np.shape(problem.y)[1] if problem.coupled else 0,
            problem.is_complex,
            groups=tuple(np.asarray(getattr(problem, "groups", ())).tolist()),
            components=getattr(problem, "components", 1),
            matrix=matrix,
            analysis=analysis,
            **bounds,
        )


class _Units(NamedTuple):
    """What one unit in the statement is worth in coefficients, measurements and objective."""

    x: float
    y: float
    objective: float


@lru_cache(maxsize=8)
def _compiled(structure: _Structure) -> _Compiled:
    return _Compiled(structure)


class _Compiled:
    """A CVXPY statement of one structure: `min f(r) + g(x)` with `M x - r = b` and bounds."""

    def __init__(self, structure: _Structure) -> None:
        cp = self.cp = _cvxpy()
        self.structure, A = structure, structure.matrix
        kind = structure.kind
        self.size = 1.0 if kind is OneBit else float(np.linalg.norm(A, axis=0).max()) or 1.0
        A = A / self.size
        self.M = A.conj().T @ A if kind is DantzigSelector else A
        columns = (structure.columns,) if structure.columns else ()
        self.unknown = cp.Variable((A.shape[1], *columns), complex=structure.is_complex)
        self.target = cp.Parameter((self.M.shape[0], *columns), complex=structure.is_complex)
        self.parameters: dict[str, Any] = {}
        self.inner: Any = None
        if kind is OneBit:
            self._state_one_bit()
            return
        constraints, loss = self._loss()
        more, penalty = self._penalty()
        self.fit = constraints[0]
        self.analysis = more[0] if structure.analysis is not None else None
        self.statement = cp.Problem(
            cp.Minimize(loss + penalty), [*constraints, *more, *self._bounds()]
        )

    @property
    def is_linear(self) -> bool:
        """Whether it is a linear program."""
        linear = (BasisPursuit, DantzigSelector, L1Fit)
        return self.structure.kind in linear and not self.structure.is_complex

    def _parameter(self, name: str, shape: tuple[int, ...] = (), **sign: bool) -> Any:
        cp = self.cp
        return self.parameters.setdefault(name, cp.Parameter(shape, **(sign or {"nonneg": True})))

    def _loss(self) -> tuple[list[Any], Any]:
        """Constraints, the first of which ties M x to b, and the loss."""
        cp = self.cp
        kind, x = self.structure.kind, self.unknown
        if kind is BasisPursuit:
            return [self.M @ x == self.target], 0
        r = cp.Variable(self.target.shape, complex=self.structure.is_complex)
        tie = [self.M @ x - r == self.target]
        if kind in (BPDN, Analysis):
            return [*tie, cp.norm(r, 2) <= self._parameter("epsilon")], 0
        if kind is DantzigSelector:
            return [*tie, cp.max(cp.abs(r)) <= self._parameter("bound")], 0
        losses: dict[type[Problem], Callable[[Any], Any]] = {
            SqrtLasso: lambda r: cp.norm(r, 2),
            L1Fit: lambda r: cp.sum(cp.abs(r)),
        }
        loss = losses.get(kind, lambda r: 0.5 * cp.sum_squares(r))(r)
        if kind is ElasticNet:
            loss += self._parameter("ridge") / 2 * cp.sum_squares(x)
        return tie, loss

    def _penalty(self) -> tuple[list[Any], Any]:
        cp = self.cp
        s, x = self.structure, self.unknown
        p = x.shape[0]
        if s.kind is JointSparse:
            return [], self._parameter("weights", (p,)) @ cp.norm(x, 2, axis=1)
        if s.kind is GroupLasso:
            labels = np.array(s.groups)
            parts = [cp.norm(x[np.flatnonzero(labels == g)], 2) for g in range(labels.max() + 1)]
            return [], self._parameter("weights", (len(parts),)) @ cp.hstack(parts)
        if s.analysis is not None:
            self.inner = cp.Variable(s.analysis.shape[0], complex=s.is_complex)
            shape = (s.components, s.analysis.shape[0] // s.components)
            pieces = cp.reshape(self.inner, shape, order="C")
            lengths = cp.norm(pieces, 2, axis=0) if s.components > 1 else cp.abs(self.inner)
            factor = self._parameter("lam") if s.kind is AnalysisLasso else 1
            return [s.analysis @ x == self.inner], factor * cp.sum(lengths)
        norm = self._parameter("weights", (p,)) @ cp.abs(x)
        if s.kind is ConstrainedLasso:
            return [norm <= self._parameter("tau")], 0
        return [], norm

    def _bounds(self) -> list[Any]:
        s, x = self.structure, self.unknown
        found = []
        if s.lower:
            low = self._parameter("lower", (len(s.lower),), nonpos=True)
            found.append(x[list(s.lower)] >= low)
        if s.upper:
            found.append(x[list(s.upper)] <= self._parameter("upper", (len(s.upper),)))
        return found

    def _state_one_bit(self) -> None:
        cp = self.cp
        x = self.unknown
        within = [cp.norm(x, 2) <= 1, cp.norm(x, 1) <= self._parameter("tau")]
        self.fit = self.analysis = None
        self.statement = cp.Problem(cp.Maximize(self.target @ (self.M @ x)), within)

    def units(self, y: Array) -> _Units:
        """Units in which A and y are of size 1, as backends' tolerances are absolute."""
        kind = self.structure.kind
        if kind is OneBit:
            return _Units(1.0, 1.0, 1.0)
        size = float(np.linalg.norm(y)) or 1.0
        x = size / self.size
        half = (Lasso, ConstrainedLasso, ElasticNet, GroupLasso, JointSparse, AnalysisLasso)
        return _Units(
            x, size, size**2 if kind in half else size if kind in (SqrtLasso, L1Fit) else x
        )

    def assign(self, problem: Problem, y: Array) -> _Units:
        """Fill in the parameters, in units that are returned."""
        s, units = self.structure, self.units(y)
        target = y / units.y
        A = s.matrix / self.size
        self.target.value = A.conj().T @ target if s.kind is DantzigSelector else target
        lam = getattr(problem, "lam", 1.0) * units.x / units.objective
        plain = s.kind in (BasisPursuit, BPDN, ConstrainedLasso, DantzigSelector)
        bound = getattr(problem, "lam", 0.0) / (units.y * self.size)
        values: dict[str, Any] = {
            "lam": lam,
            "bound": bound,
            "weights": np.asarray(getattr(problem, "weights", 1.0)) * (1.0 if plain else lam),
            "epsilon": getattr(problem, "epsilon", 0.0) / units.y,
            "tau": getattr(problem, "tau", getattr(problem, "radius", 0.0)) / units.x,
            "ridge": getattr(problem, "ridge", 0.0) * units.x**2 / units.objective,
        }
        for name, parameter in self.parameters.items():
            bounded = name in ("lower", "upper")
            known = np.asarray(getattr(problem, name))[list(getattr(s, name))] if bounded else None
            parameter.value = values[name] if known is None else known / units.x
        return units

    def dual(self, units: _Units) -> Array | None:
        """`v`, of the convention and in the units of `certificates`."""
        if self.fit is None or self.fit.dual_value is None:
            return None
        inner = self.size if self.structure.kind is DantzigSelector else 1.0
        return -np.asarray(self.fit.dual_value) * units.objective / (units.y * inner)

    def analysis_dual(self, units: _Units) -> Array | None:
        """`p`, of the convention and in the units of `certificates`."""
        if self.analysis is None or self.analysis.dual_value is None:
            return None
        return np.asarray(self.analysis.dual_value) * units.objective / units.x


def _cvxpy() -> Any:
    """CVXPY, imported when first needed: it takes a second."""
    return importlib.import_module("cvxpy")


def _stacked(duals: list[Array | None]) -> Array | None:
    known = [d for d in duals if d is not None]
    return np.stack(known, axis=1) if len(known) == len(duals) else None


def _accuracy(backend: str, tol: float, max_iter: int | None) -> dict[str, Any]:
    """The tolerance and the limit under the backend's own names."""
    tolerances, limit = _NAMES.get(backend, ((), ""))
    options: dict[str, Any] = dict.fromkeys(tolerances, tol)
    if limit and max_iter is not None:
        options[limit] = max_iter
    return options
