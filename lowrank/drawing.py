"""What all pictures share: colours, dashes, axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

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


GREY = "#444444"


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


def kept_of(measure: Measure) -> str:
    """Label of an axis of kept shares.

    Example:
        >>> kept_of("macs")
        'MACs kept, %'
    """
    return f"{UNITS[measure].removesuffix(' on the example')} kept, %"


def check_measure(measure: str) -> None:
    """Refuse what is no measure of a plan."""
    if measure not in UNITS:
        raise InputError("measure", f"{measure!r} is unknown", f"choose among {', '.join(UNITS)}")


def convergence(
    history: Mapping[str, Sequence[float]],
    *,
    xlabel: str = "check by the solver",
    ylabel: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw what a solver wrote down as it went, such as the relative gap, on a log axis.

    Args:
        history: name -> its value at each step, up to three; a result's `history`. What is not
            above zero is left out.
        xlabel: what a step is.
        ylabel: what the values are; by default the relative gap, where that is all there is.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: the history is empty; a direct method has none.

    Example:
        >>> import matplotlib
        >>> from lowrank.decompositions import robust_pca
        >>> matplotlib.use("agg")
        >>> ax = convergence(robust_pca(np.eye(4)).history, xlabel="iteration")
        >>> ax.get_xlabel(), ax.get_yscale()
        ('iteration', 'log')
    """
    if not history:
        raise InputError("history", "the solver kept none", "there is nothing to draw")
    ax = axes_of(ax, height=3.4)
    looks = (STYLES[0][::2], STYLES[1][::2], (GREY, ":"))
    for (name, values), (colour, dash) in zip(history.items(), looks, strict=False):
        positive = np.where(np.asarray(values, dtype=float) > 0, values, np.nan)
        steps, marker = np.arange(1, len(positive) + 1), "." if len(positive) < 40 else ""
        label = name.replace("_", " ")
        ax.plot(steps, positive, color=colour, linestyle=dash, marker=marker, label=label)
    only_gap = "relative gap" if list(history) == ["gap"] else "value"
    ax.set(yscale="log", xlabel=xlabel, ylabel=ylabel or only_gap)
    if len(history) > 1:  # beside the axes, where no line can be
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return tidy(ax)
