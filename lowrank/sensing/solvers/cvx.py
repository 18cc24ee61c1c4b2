"""Every convex problem in CVXPY: the reference, and a solver in its own right.

Each problem is stated for its matrix, with CVXPY `Parameter`s for the rest (y, lam, weights,
bounds), and the last statement is kept, so that a re-solve for new measurements skips
canonicalization.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.sparse import csr_array

from lowrank.errors import InputError
from lowrank.sensing.certificates import certify
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.problems.groups import (
    GroupBPDN,
    GroupLasso,
    JointBPDN,
    JointSparse,
    SparseGroupLasso,
)
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
from lowrank.sensing.problems.losses import (
    HuberLasso,
    LogisticLasso,
    PoissonLasso,
    QuantileLasso,
)
from lowrank.sensing.problems.other import OneBit
from lowrank.sensing.problems.overlap import OverlappingGroupLasso
from lowrank.sensing.problems.slope import SLOPE
from lowrank.sensing.problems.structured import Analysis, AnalysisLasso
from lowrank.sensing.result import SolverResult
from lowrank.sensing.solvers.protocol import Callback
from lowrank.status import Status

MAX_ELEMENTS = 2**22
"""Largest m x n that is handed to CVXPY; its copies of a dense matrix are sparse ones."""


BYTES_PER_ELEMENT = 200
"""Memory per matrix element, from statement to factorisation (measured with Clarabel)."""


MAX_HELD = 2**26
"""Bytes, by `BYTES_PER_ELEMENT`, up to which the last statement is kept for the next solve."""


SIMPLEX_ELEMENTS = 2**15
"""Linear programs up to this m x n go to SciPy's simplex, whose answers are exact vertices."""


COARSE, FINE = 1e-2, 1e-5
"""Shares of the tolerance that backends are asked for: first, and where the certificate, which
makes the dual point feasible, proves less than the tolerance."""


_NAMES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "CLARABEL": (("tol_gap_abs", "tol_gap_rel", "tol_feas"), "max_iter", "time_limit"),
    "SCS": (("eps_abs", "eps_rel"), "max_iters", "time_limit_secs"),
    "OSQP": (("eps_abs", "eps_rel"), "max_iter", "time_limit"),
}
"""Backends' own names of their tolerances and of the limits of iterations and of seconds."""


_NAMELESS: tuple[tuple[str, ...], str, str] = ((), "", "")


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
        tol: relative gap that the certificate must show; the backend is asked for a hundredth,
            and Clarabel for 1e-5 of it where that proves too little.
        max_iter: limit of the backend's iterations for each signal; None is its own.
        time_limit: seconds for each signal and backend, where that has such a limit; None is none.
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
    time_limit: float | None = None
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
        GroupBPDN,
        GroupLasso,
        JointBPDN,
        JointSparse,
        SparseGroupLasso,
        SLOPE,
        OverlappingGroupLasso,
        Analysis,
        AnalysisLasso,
        OneBit,
        LogisticLasso,
        PoissonLasso,
        HuberLasso,
        QuantileLasso,
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
        """Solve column by column unless they are coupled, after each of which `callback` is called.

        The backends do not say what they are at in between, and `x0` is not used.
        """
        y = np.asarray(problem.y)
        compiled = _SHELF.take(_Structure.of(problem))
        columns = [y] if y.ndim == 1 or problem.coupled else list(y.T)
        found = np.zeros((problem.n_unknowns, len(columns)), problem.dtype)
        results: list[SolverResult] = []
        for j, column in enumerate(columns):
            results.append(self._solve_one(compiled, problem, column))
            if problem.coupled:
                found = results[0].coefficients
            else:
                found[:, j] = results[-1].coefficients
            so_far = max(1, sum(r.n_iter for r in results))
            if callback and callback(so_far, found.copy().reshape(problem.unknown_shape)):
                break
        _SHELF.put(compiled)
        worst = next((r.status for r in results if r.status is not Status.OPTIMAL), Status.OPTIMAL)
        return SolverResult(
            found.reshape(problem.unknown_shape),
            dual=_stacked([r.dual for r in results], len(columns)),
            analysis_dual=results[0].analysis_dual,
            status=Status.MAX_ITER if len(results) < len(columns) else worst,
            n_iter=max(r.n_iter for r in results),
            n_products=0,
            note=results[0].note,
        )

    def _solve_one(self, compiled: _Compiled, problem: Problem, y: Array) -> SolverResult:
        """The best of the attempts, by the certificate, up to the first that it proves."""
        units, one = compiled.assign(problem, y), _of_signal(problem, y)
        best, least = None, np.inf
        for backend, tol in self._attempts(compiled, problem):
            status = self._attempt(compiled.statement, backend, tol)
            result = self._result(compiled, problem, units, backend, status)
            with np.errstate(all="ignore"):
                proof = certify(one, result.coefficients, result.dual, result.analysis_dual)
            error = max(proof.gap, proof.infeasibility)
            if best is None or error < least:
                best, least = result, error
            if proof.holds(self.tol) or (status == "user_limit" and self._is_limited):
                break
        assert best is not None  # there is always a backend
        return best

    def _result(
        self, compiled: _Compiled, problem: Problem, units: _Units, backend: str, status: str
    ) -> SolverResult:
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

    @property
    def _is_limited(self) -> bool:
        return self.max_iter is not None or self.time_limit is not None

    def _unheard(self, backend: str) -> str:
        """That the backend runs without the limit asked for, if it does."""
        heard = self.max_iter is None or _NAMES.get(backend, _NAMELESS)[1]
        return "" if heard else f"; {backend} is given no limit of iterations"

    def _attempts(self, compiled: _Compiled, problem: Problem) -> Iterator[tuple[str, float]]:
        """Backends and their tolerances, in turn: that of an interior point costs little."""
        for name in self._backends(compiled, problem):
            yield name, COARSE * self.tol
            if name == "CLARABEL":
                yield name, FINE * self.tol

    def _attempt(self, statement: Any, backend: str, tol: float) -> str:
        options = _accuracy(backend, tol, self.max_iter, self.time_limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inaccuracy is the certificate's to tell
            try:
                statement.solve(solver=backend, verbose=self.verbose, warm_start=False, **options)
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
    """What a statement in CVXPY depends on; the rest are parameters.

    `pattern` is what of the terms is no parameter: which ends of the box are finite, the groups.
    """

    kind: type[Problem]
    digest: bytes
    columns: int
    is_complex: bool
    pattern: str
    problem: Problem = field(compare=False)
    matrix: Array = field(compare=False)
    analysis: Any = field(compare=False)

    @staticmethod
    def of(problem: Problem) -> _Structure:
        matrix, D = problem.operator.to_dense(), problem.analysis
        analysis = None if D is None else csr_array(D.to_dense())
        parts = [matrix] if analysis is None else [matrix, analysis.data, analysis.indices]
        hashed = hashlib.blake2b(repr((matrix.shape, matrix.dtype)).encode())
        for part in parts:
            hashed.update(np.ascontiguousarray(part).tobytes())
        return _Structure(
            type(problem),
            hashed.digest(),
            np.shape(problem.y)[1] if problem.coupled else 0,
            problem.is_complex,
            f"{problem.penalty.pattern}, {problem.residual_bound == 0}",
            problem,
            matrix,
            analysis,
        )


class _Units(NamedTuple):
    """What one unit in the statement is worth in coefficients, measurements and objective."""

    x: float
    y: float
    objective: float


class _Shelf:
    """The statement that was solved last, if it is small: a large one would hold gigabytes.

    It is off the shelf while it is in use, so that two threads never fill in the same parameters.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.held: _Compiled | None = None

    def take(self, structure: _Structure) -> _Compiled:
        """The statement of this structure: the one held, or a new one."""
        with self.lock:
            held, self.held = self.held, None
        same = held is not None and held.structure == structure
        return held if same and held is not None else _Compiled(structure)

    def put(self, compiled: _Compiled) -> None:
        """Keep this one alone."""
        if compiled.structure.matrix.size * BYTES_PER_ELEMENT <= MAX_HELD:
            with self.lock:
                self.held = compiled


_SHELF = _Shelf()


class _Compiled:
    """A CVXPY statement of one structure: `min f(r) + g(D x)` with `M x - r = b`."""

    def __init__(self, structure: _Structure) -> None:
        cp = self.cp = _cvxpy()
        s, problem = structure, structure.problem
        self.size = 1.0 if problem.only_dual is not None else _largest_column(s.matrix)
        self.A = A = s.matrix / self.size
        self.square = problem.design is not problem.operator  # the Dantzig selector's Gram matrix
        self.inner = self.size if self.square else 1.0
        columns = (s.columns,) if s.columns else ()
        self.unknown = cp.Variable((A.shape[1], *columns), complex=s.is_complex)
        rows = A.shape[1 if self.square else 0]
        self.target = cp.Parameter((rows, *columns), complex=s.is_complex)
        self.parameters: dict[str, Any] = {}
        self.structure = replace(s, problem=None, analysis=None)  # type: ignore[arg-type]
        constraints, objective = self._terms(problem, s)
        self.fit, self.analysis = constraints[0], constraints[1] if s.analysis is not None else None
        self.statement = cp.Problem(cp.Minimize(objective), constraints)
        linear = problem.loss.is_linear_program and problem.penalty.is_linear_program
        self.is_linear = linear and not s.is_complex and s.analysis is None

    def _terms(self, problem: Problem, s: _Structure) -> tuple[list[Any], Any]:
        """Constraints, the first of which tie M x to b and D x to its split, and the objective."""
        cp, x = self.cp, self.unknown
        inner, more, loss = x, list[Any](), 0
        if problem.residual_bound == 0 and s.analysis is None:
            tied = [self.A @ x == self.target]
        else:
            r = cp.Variable(self.target.shape, complex=s.is_complex)
            tied = self._fitted(x, r)
            more, loss = problem.loss.state(cp, r, self._parameter)
        if s.analysis is not None:
            inner = cp.Variable(s.analysis.shape[0], complex=s.is_complex)
            tied.append(s.analysis @ x == inner)
        within, penalty = problem.penalty.state(cp, inner, self._parameter)
        return [*tied, *more, *within], loss + penalty

    def _fitted(self, x: Any, r: Any) -> list[Any]:
        """`M x - r = b`; a Gram matrix by its factors, as squared it loses half of the digits."""
        if not self.square:
            return [self.A @ x - r == self.target]
        t = self.cp.Variable((self.A.shape[0], *x.shape[1:]), complex=self.structure.is_complex)
        return [self.A.conj().T @ t - r == self.target, self.A @ x == t]

    def _parameter(self, name: str, shape: tuple[int, ...] = (), **sign: bool) -> Any:
        cp = self.cp
        return self.parameters.setdefault(name, cp.Parameter(shape, **(sign or {"nonneg": True})))

    def units(self, problem: Problem, y: Array) -> _Units:
        """Units in which A and y are of size 1, as backends' tolerances are absolute."""
        if not problem.loss.has_unit:
            return _Units(1 / self.size, 1.0, 1.0)
        size = float(np.linalg.norm(y)) or 1.0
        x, degree = size / self.size, problem.loss.degree
        return _Units(x, size, size**degree if degree else x)

    def assign(self, problem: Problem, y: Array) -> _Units:
        """Fill in the parameters, in units that are returned."""
        units = self.units(problem, y)
        A, target = self.structure.matrix / self.size, y / units.y
        if not problem.loss.has_unit:
            target = 0 * y
        self.target.value = A.conj().T @ target if self.square else target
        values = {
            **problem.penalty.values(units.x, units.objective),
            **problem.loss.values(units.y * self.inner, units.objective),
        }
        if problem.only_dual is not None:
            values["signs"] = y
        for name, parameter in self.parameters.items():
            parameter.value = values[name]
        return units

    def dual(self, units: _Units) -> Array | None:
        """`v`, of the convention and in the units of `certificates`."""
        if self.fit.dual_value is None:
            return None
        return -np.asarray(self.fit.dual_value) * units.objective / (units.y * self.inner)

    def analysis_dual(self, units: _Units) -> Array | None:
        """`p`, of the convention and in the units of `certificates`."""
        if self.analysis is None or self.analysis.dual_value is None:
            return None
        return np.asarray(self.analysis.dual_value) * units.objective / units.x


def _of_signal(problem: Problem, y: Array) -> Problem:
    """The problem of one signal of a batch."""
    if y is problem.y or y.shape == np.shape(problem.y):
        return problem
    one = problem.with_operator(problem.operator)
    one._set("y", y)
    return one


def _largest_column(A: Array) -> float:
    return float(np.linalg.norm(A, axis=0).max()) or 1.0


def _cvxpy() -> Any:
    """CVXPY, imported when first needed: it takes a second."""
    return importlib.import_module("cvxpy")


def _stacked(duals: list[Array | None], columns: int) -> Array | None:
    """The duals of all columns side by side; None where one is not known."""
    known = [d for d in duals if d is not None]
    if len(known) < columns:
        return None
    return known[0] if columns == 1 else np.stack(known, axis=1)


def _accuracy(
    backend: str, tol: float, max_iter: int | None, seconds: float | None
) -> dict[str, Any]:
    """The tolerance and the limits under the backend's own names."""
    tolerances, limit, clock = _NAMES.get(backend, _NAMELESS)
    options: dict[str, Any] = dict.fromkeys(tolerances, tol)
    for name, value in ((limit, max_iter), (clock, seconds)):
        if name and value is not None:
            options[name] = value
    return options
