"""Which solvers are tried, in what order, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from lowrank.errors import InputError
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.solvers import AUTO, SOLVERS, Solver


def _candidates(problem: Problem, solver: str | Solver) -> Iterator[tuple[str, Solver, str]]:
    """Solvers to try, each with its name and why."""
    kind = type(problem)
    if not isinstance(solver, str):
        if isinstance(solver, type) or not hasattr(solver, "refuses"):
            text = f"{getattr(solver, '__name__', repr(solver))} is neither a name nor a solver"
            raise InputError("solver", text, 'pass a name, an instance such as ADMM(), or "auto"')
        yield type(solver).__name__, _accepting(type(solver).__name__, solver, problem), "asked for"
        return
    if solver != "auto":
        yield solver, _accepting(solver, _named(solver), problem), "asked for by name"
        return
    reasons: list[str] = []
    any_fits = False
    for name in AUTO:
        if kind not in SOLVERS[name].solves:
            continue
        candidate = SOLVERS[name]()
        reason = candidate.refuses(problem)
        if reason is None:
            any_fits = True
            yield name, candidate, _why(problem, name, reasons)
        else:
            reasons.append(f"{name} {reason}")
    if not any_fits:
        text = f"no solver takes this {kind.__name__} ({'; '.join(reasons) or 'none lists it'})"
        raise InputError("solver", text, "change the formulation or pass A as a matrix")


def _named(name: str) -> Solver:
    """The solver of a name; "cvxpy:scs" names the backend too."""
    family, _, backend = name.partition(":")
    if family == "cvxpy" and backend:
        return _with(SOLVERS["cvxpy"](), backend=backend)
    if name not in SOLVERS:
        text = f"{name!r} is not one of {', '.join(sorted(SOLVERS))}"
        raise InputError("solver", text, 'name one of these, "cvxpy:BACKEND", or "auto"')
    return SOLVERS[name]()


def _why(problem: Problem, name: str, reasons: list[str]) -> str:
    m, p = problem.operator.shape
    kind = "dense" if problem.operator.is_dense else "matrix-free"
    size = f"{kind} {m} x {p}{', m > n' if m > p else ''}"
    passed = f" (passed over: {'; '.join(reasons)})" if reasons else ""
    return f"{name}: first choice for {type(problem).__name__}, {size}{passed}"


def _accepting(name: str, solver: Solver, problem: Problem) -> Solver:
    kind = type(problem)
    able = [other for other, cls in SOLVERS.items() if kind in cls.solves]
    reason = "does not list it" if kind not in solver.solves else solver.refuses(problem)
    if reason is not None:
        takers = [other for other in able if SOLVERS[other]().refuses(problem) is None]
        text = f"{name} cannot take this {kind.__name__}: it {reason}"
        raise InputError("solver", text, f"take one of: {', '.join(takers) or 'none so far'}")
    return solver


def _with(solver: Solver, **changes: Any) -> Solver:
    """The solver with these hyperparameters, as far as it has them."""
    assert is_dataclass(solver)
    known = {f.name for f in fields(solver)}
    wanted = {k: v for k, v in changes.items() if v is not None and k in known}
    return replace(solver, **wanted) if wanted else solver


def describe(name: str, solver: Solver) -> str:
    """`name(hyperparameter=value, ...)`, those that differ from the default."""
    assert is_dataclass(solver)
    pairs = ((f, getattr(solver, f.name)) for f in fields(solver))
    changed = [f"{f.name}={value!r}" for f, value in pairs if value != f.default]
    return f"{name}({', '.join(changed)})"
