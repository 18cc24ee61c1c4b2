"""Budgets: kept fractions or absolute figures, in one or several measures at once."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real

from lowrank.compression.layers import Cost
from lowrank.errors import BudgetError


@dataclass(frozen=True)
class Budget:
    """Limits on the measures of a whole model.

    Args:
        given: measure ("params", "bytes", "macs") -> the value as the user gave it.
        limits: the absolute limit of each, in the same order.
    """

    given: dict[str, float]
    limits: tuple[float, ...]

    def measure(self, cost: Cost) -> tuple[int, ...]:
        """The budgeted measures of a cost, in order."""
        return tuple(getattr(cost, name) for name in self.given)


def budget_of(
    total: Cost,
    *,
    params: float | None = None,
    bytes: float | None = None,
    macs: float | None = None,
) -> Budget:
    """Check what the user gave and turn fractions into absolute limits.

    Args:
        total: the whole dense model.
        params: fraction in (0, 1], or a whole number of parameters.
        bytes: fraction in (0, 1], or a whole number of bytes.
        macs: fraction in (0, 1], or a whole number of multiply-accumulates.

    Raises:
        BudgetError: nothing was given, or a value that is neither of the two.

    Example:
        >>> budget_of(Cost(params=100, bytes=400, macs=1000), macs=0.5)
        Budget(given={'macs': 0.5}, limits=(500.0,))
    """
    values = {"params": params, "bytes": bytes, "macs": macs}
    given = {name: _checked(name, v) for name, v in values.items() if v is not None}
    if not given:
        raise BudgetError("budget", "none was given", "pass params=, bytes= or macs=, such as 0.5")
    limits = []
    for name, value in given.items():
        whole = getattr(total, name)
        if whole == 0:
            raise BudgetError(name, "the model has none on this example", "budget another measure")
        limits.append(value * whole if value <= 1 else float(value))
    return Budget(given, tuple(limits))


def _checked(name: str, value: object) -> float:
    advice = "give a fraction in (0, 1], or a whole number as an absolute figure"
    if isinstance(value, bool) or not isinstance(value, int | float | Real):
        raise BudgetError(name, f"{value!r} is not a number", advice)
    whole, value = isinstance(value, Integral), float(value)
    if not value > 0:
        raise BudgetError(name, f"{value:g} is not above 0", advice)
    if whole:
        return int(value)
    if value > 1:
        raise BudgetError(name, f"{value} is above 1", advice)
    return float(value)
