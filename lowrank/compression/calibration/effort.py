"""How much work goes into a compression: what each level may spend, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lowrank.errors import InputError

Level = Literal["quick", "default", "thorough"]
"""Weights and one moment a layer without a search; a bounded search; all that helps."""


@dataclass(frozen=True)
class Effort:
    """What a level of effort may spend.

    Args:
        level: its name.
        fit: multiplications that the search of one layer's factors may take; for the curves,
            a tenth.
        moment: multiplications that one layer's second moment may take.
        probes: passes of the dense model over the examples that all probes may take together;
            0 leaves layers weighed by gradients, or by outputs where there are none.
        probed: relative squared errors of a layer's output at which it is probed.
        gradients: whether a backward pass is taken.
        sequential: whether layers are fitted behind the compressed ones by default.
        trials: whether weightings of the layers are tried in whole.
        rare: whether the methods that seldom win are tried too.
    """

    level: Level
    fit: float
    moment: float
    probes: float
    probed: tuple[float, ...] = (0.05,)
    gradients: bool = True
    sequential: bool = True
    trials: bool = False
    rare: bool = False


EFFORTS: dict[str, Effort] = {
    "quick": Effort("quick", 0.0, 3e9, 0.0, gradients=False, sequential=False),
    "default": Effort("default", 2e10, 1e10, 4.0),
    "thorough": Effort("thorough", 2e11, 6.9e10, 1e3, (0.02, 0.1), trials=True, rare=True),
}
"""Every level by its name."""


def effort_of(level: object) -> Effort:
    """The level of that name.

    Raises:
        InputError: there is none.

    Example:
        >>> effort_of("quick").sequential
        False
    """
    if level not in get_args(Level):
        advice = f"choose among {', '.join(get_args(Level))}"
        raise InputError("effort", f"{level!r} is unknown", advice)
    return EFFORTS[str(level)]
