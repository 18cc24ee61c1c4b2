"""Picture of a sweep: what each size costs, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lowrank.drawing import DENSE, STYLES, Measure, axes_of, check_measure, kept_of, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep_curve(
    kept: Sequence[float],
    lines: Mapping[str, Sequence[float | None]],
    *,
    measure: Measure = "macs",
    ylabel: str = "metric",
    dense: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw figures of quality against the kept fraction; `Sweep.plot` calls it.

    Args:
        kept: kept fractions in (0, 1].
        lines: name in the legend -> its figure at each fraction, None where there is none.
        measure: what the fractions are of: "macs", "params" or "bytes".
        ylabel: what the figures are.
        dense: the dense model's figure, drawn as a level.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: an unknown measure.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> ax = sweep_curve([0.8, 0.4], {"compressed": [0.92, 0.90]}, dense=0.93)
        >>> ax.get_xlabel()
        'MACs kept, %'
    """
    check_measure(measure)
    ax = axes_of(ax, height=4.0)
    if dense is not None:
        ax.axhline(dense, color=DENSE, lw=2, label="dense")
    for (label, values), (color, marker, dash) in zip(lines.items(), STYLES, strict=False):
        known = [(100 * x, y) for x, y in zip(kept, values, strict=True) if y is not None]
        if known:
            x, y = zip(*known, strict=True)
            ax.plot(x, y, color=color, marker=marker, ls=dash, label=label)
    ax.set(xlabel=kept_of(measure), ylabel=ylabel)
    ax.invert_xaxis()
    ax.legend(frameon=False)
    return tidy(ax)
