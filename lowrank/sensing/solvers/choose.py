"""Which solvers are tried, in what order, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lowrank.errors import InputError
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.solvers import AUTO, SOLVERS, Solver
from lowrank.sensing.solvers.protocol import (
    checked_solver,
    default_settings,
    settings_of,
    with_settings,
)


def _candidates(problem: Problem, solver: str | Solver) -> Iterator[tuple[str, Solver, str]]:
    """Solvers to try, each with its name and why."""
    kind = type(problem)
    if not isinstance(solver, str):
        solver = checked_solver(solver)
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
        return with_settings(SOLVERS["cvxpy"](), {"backend": backend})
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
    listed = kind in solver.solves
    reason = solver.refuses(problem) if listed else "does not list it"
    if reason is None:
        return solver
    takers = [other for other in able if SOLVERS[other]().refuses(problem) is None]
    advice = f"take one of: {', '.join(takers) or 'none so far'}"
    if not listed:  # what to ask for so that this solver can answer
        asked = [f"{p.__name__} ({p.asked_by})" for p in solver.solves if p.asked_by]
        advice += f"; {name} takes {', '.join(asked or [p.__name__ for p in solver.solves])}"
    text = f"{name} cannot take this {kind.__name__}: it {reason}"
    raise InputError("solver", text, advice)


def _with(solver: Solver, **changes: Any) -> tuple[Solver, list[str]]:
    """The solver with these hyperparameters, and the names of those that it does not have."""
    asked = {name: value for name, value in changes.items() if value is not None}
    known = settings_of(solver) if asked else {}
    wanted = {name: value for name, value in asked.items() if name in known}
    return with_settings(solver, wanted), [name for name in asked if name not in known]


def describe(name: str, solver: Solver) -> str:
    """`name(hyperparameter=value, ...)`, those that differ from the default."""
    known, default = settings_of(solver), default_settings(solver)
    changed = [f"{k}={v!r}" for k, v in known.items() if k not in default or v != default[k]]
    return f"{name}({', '.join(changed)})"
