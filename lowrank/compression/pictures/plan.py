"""Pictures of a plan, and of what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowrank.drawing import (
    DENSE,
    EDGE,
    REPLACED,
    STYLES,
    UNITS,
    Measure,
    axes_of,
    check_measure,
    tidy,
)
from lowrank.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Bar(NamedTuple):
    """What is kept of a layer: its size as it is and as it becomes, and words beside it.

    Example:
        >>> Bar("fc", 4096, 2048, "channel_svd 16: 50 %", True).after
        2048
    """

    name: str
    before: float
    after: float
    text: str
    replaced: bool


def plan_bars(
    bars: Sequence[Bar], *, measure: Measure = "macs", title: str = "", ax: Axes | None = None
) -> Axes:
    """Draw what is kept of every layer, the first on top; `Plan.plot` calls it.

    The outline is the dense layer, the filled part what is kept; the words stand beside it.

    Args:
        bars: (name, size before, size after, words, whether it is replaced) of each layer.
        measure: what the sizes are: "macs", "params" or "bytes".
        title: of the picture.
        ax: axes to draw on; new ones, as high as the bars need, by default.

    Raises:
        InputError: an unknown measure, or no bar.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> bars = [Bar("fc", 4096, 2048, "channel_svd 16: 50 %", True)]
        >>> [text.get_text() for text in plan_bars(bars, measure="params").get_yticklabels()]
        ['fc']
    """
    check_measure(measure)
    if not bars:
        raise InputError("plan", "none of its layers could be replaced", "there is nothing to draw")
    from matplotlib.ticker import EngFormatter

    ax = axes_of(ax, height=1.2 + 0.24 * len(bars))
    size = 9 if len(bars) <= 40 else 6
    at = np.arange(len(bars))
    before, after = [bar.before for bar in bars], [bar.after for bar in bars]
    colours = [REPLACED if bar.replaced else DENSE for bar in bars]
    ax.barh(at, before, height=0.72, color="white", edgecolor=EDGE, lw=0.7)
    ax.barh(at, after, height=0.72, color=colours, edgecolor=EDGE, lw=0.7)
    for y, bar in enumerate(bars):
        ax.annotate(
            bar.text,
            (bar.before, y),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=size,
        )
    ax.set_yticks(at, [bar.name for bar in bars], fontsize=size)
    ax.set_ylim(len(bars) - 0.4, -0.6)  # the first layer on top
    ax.set_xlim(0, 1.55 * max(before))  # room for the labels
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.set_xlabel(UNITS[measure])
    ax.set_title(title, fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def predicted_against_measured(
    rows: Sequence[tuple[str, float, float]], *, ax: Axes | None = None
) -> Axes:
    """Draw the error of every layer as planned and as built, side by side; `Report.plot` calls it.

    Args:
        rows: (name, predicted, measured relative error) of each layer.
        ax: axes to draw on; new ones, as high as the rows need, by default.

    Raises:
        InputError: no row.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> predicted_against_measured([("fc", 0.10, 0.12)]).get_xlabel()
        'relative error, %'
    """
    if not rows:
        raise InputError("report", "no layer of it was replaced", "there is nothing to draw")
    ax = axes_of(ax, height=1.4 + 0.24 * len(rows))
    at = np.arange(len(rows))
    predicted, measured = (100 * np.array([row[i] for row in rows], dtype=float) for i in (1, 2))
    ax.hlines(at, predicted, measured, colors=EDGE, lw=1)
    for values, label, (colour, marker, _) in zip(
        (predicted, measured), ("predicted", "measured"), STYLES, strict=False
    ):
        (points,) = ax.plot(values, at, color=colour, linestyle="none", marker=marker, label=label)
        points.set(markersize=6, markerfacecolor="none" if label == "predicted" else colour)
    ax.set_yticks(at, [row[0] for row in rows], fontsize=9 if len(rows) <= 40 else 6)
    ax.set_ylim(len(rows) - 0.4, -0.6)  # the first layer on top
    ax.set_xlim(left=0)
    ax.set_xlabel("relative error, %")
    ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return tidy(ax)
