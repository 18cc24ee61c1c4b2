"""Which solvers are tried, in what order, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from lowrank.errors import InputError
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.solvers import AUTO, SOLVERS, Solver
from lowrank.sensing.solvers.protocol import (
    checked_solver,
    default_settings,
    hidden_settings,
    settings_of,
    with_settings,
)

SHARE = 1000
"""Iterations of ADMM before CVXPY has its turn, where that is cheap; it goes on after that."""
ANALYSIS_SHARE = 60
"""The same for analysis problems with fewer rows than columns, which take thousands."""
COMPLEX = 4
"""How many times as much CVXPY costs where numbers are complex."""
CHEAP = 2**18
"""Entries of a matrix up to which CVXPY costs about as much as that many iterations."""


class Candidate(NamedTuple):
    """A solver to try: its name, itself, why, and how many iterations it has; None is its own."""

    name: str
    solver: Solver
    why: str
    share: int | None = None


def _candidates(problem: Problem, solver: str | Solver) -> Iterable[Candidate]:
    """Solvers to try; one that is asked for is checked at once."""
    if not isinstance(solver, str):
        solver = checked_solver(solver)
        name = type(solver).__name__
        return [Candidate(name, _accepting(name, solver, problem), "asked for")]
    if solver != "auto":
        named = _accepting(solver, _named(solver), problem)
        return [Candidate(solver, named, "asked for by name")]
    return _in_order(problem)


def _in_order(problem: Problem) -> Iterator[Candidate]:
    """Those of `AUTO` that take the problem."""
    kind = type(problem)
    reasons: list[str] = []
    any_fits = False
    order = _shared(problem)
    for i, name in enumerate(order):
        if kind not in SOLVERS[name].solves:
            continue
        candidate = SOLVERS[name]()
        reason = candidate.refuses(problem)
        if reason is None:
            any_fits = True
            share = None
            if name == "admm" and name in order[i + 1 :]:
                m, p = problem.operator.shape
                share = ANALYSIS_SHARE if problem.analysis is not None and m < p else SHARE
                share *= COMPLEX if problem.is_complex else 1
            why = f"{name}, to its own limit" if name in order[:i] else ""
            yield Candidate(name, candidate, why or _why(problem, name, reasons), share)
        else:
            reasons.append(f"{name} {reason}")
    if not any_fits:
        text = f"no solver takes this {kind.__name__} ({'; '.join(reasons) or 'none lists it'})"
        raise InputError("solver", text, "change the formulation or pass A as a matrix")


def _shared(problem: Problem) -> tuple[str, ...]:
    """The order in which solvers are tried: ADMM, CVXPY and ADMM where CVXPY is cheap."""
    m, p = problem.operator.shape
    both = {"admm", "cvxpy"} <= set(AUTO)
    if not both or m * p > CHEAP or SOLVERS["cvxpy"]().refuses(problem) is not None:
        return AUTO
    after = AUTO.index("admm") + 1
    rest = (name for name in AUTO[after:] if name != "cvxpy")
    return (*AUTO[:after], "cvxpy", "admm", *rest)


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
    listed = kind in solver.solves
    reason = solver.refuses(problem) if listed else None
    if listed and reason is None:
        return solver
    able = [other for other, cls in SOLVERS.items() if kind in cls.solves]
    takers = [other for other in able if SOLVERS[other]().refuses(problem) is None]
    advice = f"for {kind.__name__} take {_either(takers) or 'another formulation'}"
    if listed:
        raise InputError("solver", f"{name} cannot take this {kind.__name__}: it {reason}", advice)
    served = [p for p in solver.solves if p.asked_by] or list(solver.solves)
    text = f"{name} solves {_either(map(_named_with_door, served))}"
    raise InputError("solver", f"{text}, and this is {_named_with_door(kind)}", advice)


def _named_with_door(kind: type[Problem]) -> str:
    """A formulation, and what to give `recover` for it."""
    return f"{kind.__name__} ({kind.asked_by})" if kind.asked_by else kind.__name__


def _either(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *most, last = names or [""]
    return f"{', '.join(most)} or {last}" if most else last


def _with(solver: Solver, **changes: Any) -> tuple[Solver, list[str]]:
    """The solver with these hyperparameters, and the names of those that it does not have."""
    asked = {name: value for name, value in changes.items() if value is not None}
    known = settings_of(solver) if asked else {}
    wanted = {name: value for name, value in asked.items() if name in known}
    return with_settings(solver, wanted), [name for name in asked if name not in known]


def describe(name: str, solver: Solver) -> str:
    """`name(hyperparameter=value, ...)`, those that differ from the default and are shown."""
    known, default = settings_of(solver), default_settings(solver)
    known = {name: value for name, value in known.items() if name not in hidden_settings(solver)}
    changed = [f"{k}={v!r}" for k, v in known.items() if k not in default or v != default[k]]
    return f"{name}({', '.join(changed)})"
