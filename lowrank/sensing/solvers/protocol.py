"""What a solver is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Protocol, TypeAlias

from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.problems.base import Problem
from lowrank.sensing.result import SolverResult

Callback: TypeAlias = Callable[[int, Array], Any]
"""Called as `callback(iteration, coefficients)` each iteration; a true return value stops.

Iterations count from 1, over the signals of a batch that are solved one by one; the coefficients
are those of all signals, of the problem's `unknown_shape`.
"""


class Solver(Protocol):
    """An immutable algorithm: hyperparameters, the problems it takes, and `solve`.

    Where it iterates it has `tol` and `max_iter`, the limit of its `n_iter` for each signal; where
    it has none of a name that a user asks for, the answer's `why` says so. It is made without
    arguments; a dataclass serves best, as its settings are then told apart from the defaults.
    """

    solves: ClassVar[tuple[type[Problem], ...]]

    def refuses(self, problem: Problem) -> str | None:
        """Why this instance of a listed problem cannot be taken, or None if it can.

        Reasons are phrases such as "needs a matrix, and A is matrix-free".
        """

    def solve(
        self, problem: Problem, *, x0: Array | None = None, callback: Callback | None = None
    ) -> SolverResult:
        """Minimise; `x0` are coefficients to start from, and may be ignored."""


def checked_solver(solver: Any) -> Solver:
    """The solver, or an instance of the class.

    Raises:
        InputError: it is neither.
    """
    missing = [name for name in ("solves", "refuses", "solve") if not hasattr(solver, name)]
    if missing:
        name = solver.__name__ if isinstance(solver, type) else repr(solver)
        text = f"{name} is neither a name nor a solver: it has no {', no '.join(missing)}"
        raise InputError("solver", text, 'pass a name, a solver such as ADMM(), or "auto"')
    made: Solver = solver() if isinstance(solver, type) else solver
    return made


def settings_of(solver: Solver) -> dict[str, Any]:
    """The hyperparameters: a dataclass's fields, the attributes of another object or its class."""
    if is_dataclass(solver):
        return {f.name: getattr(solver, f.name) for f in fields(solver)}
    named = [name for name in ("tol", "max_iter") if hasattr(solver, name)]
    own = [name for name in getattr(solver, "__dict__", ()) if not name.startswith("_")]
    return {name: getattr(solver, name) for name in dict.fromkeys([*named, *own])}


def default_settings(solver: Solver) -> dict[str, Any]:
    """Those of a solver as it is made without arguments, as far as its class tells."""
    if is_dataclass(solver):
        return {f.name: f.default for f in fields(solver)}
    return {k: v for k, v in vars(type(solver)).items() if k in settings_of(solver)}


def hidden_settings(solver: Solver) -> list[str]:
    """The fields of a dataclass that its repr leaves out, such as an executor."""
    return [f.name for f in fields(solver) if not f.repr] if is_dataclass(solver) else []


def with_settings(solver: Solver, settings: Mapping[str, Any]) -> Solver:
    """A copy with these hyperparameters; the solver itself where there are none."""
    if not settings:
        return solver
    if is_dataclass(solver):
        return replace(solver, **settings)
    twin = copy.copy(solver)
    for name, value in settings.items():
        setattr(twin, name, value)
    return twin
