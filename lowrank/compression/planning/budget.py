"""Budgets: kept fractions or absolute figures, in one or several measures at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from lowrank.errors import BudgetError

NS = 1e9
"""Seconds are planned in nanoseconds: figures far below 1 are rounding to a linear program."""

FRACTIONS = frozenset({"latency"})
"""Measures without an absolute figure: another machine has another one."""


@dataclass(frozen=True)
class Budget:
    """Limits on the measures of a whole model.

    Args:
        given: measure ("params", "bytes", "macs", "latency", "memory") -> the value as the
            user gave it.
        limits: the absolute limit of each, in the same order.
        wholes: what the dense model has of each.
    """

    given: dict[str, float]
    limits: tuple[float, ...]
    wholes: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The budgeted measures, in order."""
        return tuple(self.given)


def budget_of(wholes: Mapping[str, float], values: Mapping[str, float | None]) -> Budget:
    """Check what the user gave and turn fractions into absolute limits.

    Args:
        wholes: measure -> what the whole dense model has of it.
        values: measure -> fraction in (0, 1], or an absolute figure as a whole number, or
            None.

    Raises:
        BudgetError: nothing was given, or a value that is neither of the two.

    Example:
        >>> budget_of({"params": 100, "macs": 1000}, {"params": None, "macs": 0.5})
        Budget(given={'macs': 0.5}, limits=(500.0,), wholes=(1000,))
    """
    given = given_of(values)
    limits = []
    for name, value in given.items():
        whole = wholes.get(name)
        if whole is None:
            raise BudgetError(name, "it was not measured", f"pass {name}=True to measure")
        if whole == 0:
            raise BudgetError(name, "the model has none on this example", "budget another measure")
        limits.append(value * whole if value <= 1 else float(value))
    return Budget(given, tuple(limits), tuple(wholes[name] for name in given))


def given_of(values: Mapping[str, float | None]) -> dict[str, float]:
    """The measures that were given, each a fraction as a float or a figure as an int.

    Raises:
        BudgetError: nothing was given, or a value that is neither of the two.

    Example:
        >>> given_of({"params": None, "macs": 0.5})
        {'macs': 0.5}
    """
    given = {name: checked(name, v) for name, v in values.items() if v is not None}
    if not given:
        names = ", ".join(f"{name}=" for name in values)
        raise BudgetError("budget", "none was given", f"pass one of {names} such as 0.5")
    return given


def checked(name: str, value: object) -> float:
    """What the user gave for a measure: a fraction as a float, an absolute figure as an int.

    Raises:
        BudgetError: it is neither.
    """
    advice = "give a fraction in (0, 1], or a whole number as an absolute figure"
    if isinstance(value, bool) or not isinstance(value, int | float | Real):
        raise BudgetError(name, f"{value!r} is not a number", advice)
    whole, value = isinstance(value, Integral), float(value)
    if name in FRACTIONS and value > 1:
        raise BudgetError(name, f"{value:g} is above 1", "give a fraction of the dense model's")
    if not value > 0:
        raise BudgetError(name, f"{value:g} is not above 0", advice)
    if whole:
        return int(value)
    if value > 1:
        raise BudgetError(name, f"{value} is above 1", advice)
    return float(value)


def refusal(
    budget: Budget, least: Sequence[float] | NDArray[np.float64], beyond: str = ""
) -> BudgetError:
    """The error that says what can be reached of each budget.

    Args:
        budget: as it was given.
        least: the least that can be reached of each, alone.
        beyond: what is out of reach, and why.
    """
    parts = []
    for name, low, whole in zip(budget.given, least, budget.wholes, strict=True):
        figures = f"{int(low):,} of {int(whole):,}"
        if name == "latency":
            figures = f"{1e3 * low / NS:.2f} of {1e3 * whole / NS:.2f} ms"
        parts.append(f"{name}={low / whole:.4f} ({figures})")
    given = ", ".join(f"{k}={v}" for k, v in budget.given.items())
    alone = " (each alone)" if len(parts) > 1 else ""
    return BudgetError(
        "budget",
        f"{given} cannot be reached; the smallest is {', '.join(parts)}{alone}"
        + (f"; {beyond}" if beyond else ""),
        "raise it, or allow more layers or methods",
        least=tuple(map(float, least)),
    )
