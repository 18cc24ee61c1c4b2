"""What all pictures share: colours, dashes, axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from lowrank.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Measure = Literal["macs", "params", "bytes"]
"""What a plan is drawn in."""

UNITS = {"macs": "MACs on the example", "params": "parameters", "bytes": "bytes"}

STYLES: tuple[tuple[str, str, Any], ...] = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", (0, (5, 1, 1, 1, 1, 1))),
    ("#000000", "v", (0, (1, 1))),
    ("#56B4E9", "P", (0, (7, 2))),
)
"""Colours of Okabe and Ito 2008, each with a marker and a dash of its own."""

DENSE, REPLACED, EDGE = "#BDBDBD", "#0072B2", "#222222"


def axes_of(ax: Axes | None, *, height: float) -> Axes:
    """The axes given, or new ones of that height in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7.0, height), layout="constrained")
    return ax


def tidy(ax: Axes) -> Axes:
    """A pale grid behind, and no box."""
    ax.grid(color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def check_measure(measure: str) -> None:
    """Refuse what is no measure of a plan."""
    if measure not in UNITS:
        raise InputError("measure", f"{measure!r} is unknown", f"choose among {', '.join(UNITS)}")
