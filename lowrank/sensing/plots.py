"""Pictures of recoveries: colour-blind safe, and told apart in grey by their markers and dashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.errors import InputError
from lowrank.sensing.operators import Array, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lowrank.sensing.result import Recovery

TRUE, FOUND, MEASURED = "#0072B2", "#D55E00", "#444444"
"""Blue, vermilion (Okabe, Ito 2008) and grey."""

MAX_DRAWN = 4000
"""More non-zeros than this are drawn as their largest."""


def recovery(
    found: Recovery, *, truth: Any = None, measurements: Any = None, unit: str = ""
) -> Figure:
    """Draw everything that is known of a recovery, a panel each, from the top: the true signal,
    the measurements, the recovered signal, its coefficients in a basis, the convergence.

    Of several signals the first is drawn, of complex ones the modulus.

    Args:
        found: what `recover` or `solve` returned.
        truth: the true signal (n,) or (n, batch), if it is known.
        measurements: y, (m,) or (m, batch).
        unit: of the signal, for the axis.

    Returns:
        A figure, which is not registered with pyplot; `figure.savefig(path)` writes it.

    Raises:
        InputError: the truth is not of the signal's shape.

    Example:
        >>> from lowrank.sensing import recover
        >>> figure = recovery(recover(np.eye(3), [1.0, 0.0, 2.0]), measurements=[1.0, 0.0, 2.0])
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['measurement', 'signal']
    """
    from matplotlib.figure import Figure

    panels = _panels(found, truth, measurements, unit)
    figure = Figure(figsize=(9, 0.6 + 2.0 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for panel, ax in zip(panels, axes, strict=True):
        panel(ax)
    figure.align_ylabels(axes)
    figure.suptitle(_title(found), fontsize=11)
    return figure


def convergence(found: Recovery, ax: Axes) -> None:
    """Draw what the solver wrote down each iteration, such as the relative gap, on a log axis.

    Args:
        found: a recovery with a history.
        ax: axes to draw on.
    """
    for (name, values), colour, dash in zip(
        found.history.items(), (TRUE, FOUND, MEASURED), ("-", "--", ":"), strict=False
    ):
        positive = np.where(np.asarray(values, dtype=float) > 0, values, np.nan)
        steps = np.arange(1, len(positive) + 1)
        marker = "." if len(positive) < 40 else ""
        label = name.replace("_", " ")
        ax.plot(steps, positive, color=colour, linestyle=dash, marker=marker, label=label)
    ax.set_yscale("log")
    ax.set_xlabel("check by the solver")
    ax.set_ylabel("relative gap" if list(found.history) == ["gap"] else "value")
    _tidy(ax, legend=len(found.history) > 1)


def signal(
    ax: Axes, values: Any, *, found: Any = None, label: str = "signal", unit: str = ""
) -> None:
    """Draw a signal, over it another: stems where it is sparse, lines where it is not.

    Args:
        ax: axes to draw on.
        values: the signal (n,), drawn in blue.
        found: what was recovered, (n,), drawn in vermilion over it; None draws one signal.
        label: of the axis.
        unit: of the values.
    """
    true = _first(values)
    other = None if found is None else _first(found)
    if all(_is_sparse(v) for v in (true, other) if v is not None):
        _stems(ax, true, TRUE, "o", "true")
        if other is not None:
            _stems(ax, other, FOUND, "x", "recovered")
    elif other is None:
        ax.plot(true, color=TRUE, lw=1.2)
    else:  # wide and pale below thin and dark, so that both show where they agree
        ax.plot(true, color=TRUE, lw=3.2, alpha=0.45, label="true")
        ax.plot(other, color=FOUND, lw=1.0, label="recovered")
    _label(ax, true.size, label, unit)
    _tidy(ax, legend=other is not None)


def _panels(
    found: Recovery, truth: Any, measurements: Any, unit: str
) -> list[Callable[[Axes], None]]:
    x, c = to_numpy(found.x), to_numpy(found.coefficients)
    panels: list[Callable[[Axes], None]] = []
    if truth is not None:
        shape = np.shape(to_numpy(truth))
        if shape != x.shape:
            text = f"shape {shape} for a signal {x.shape}"
            raise InputError("truth", text, "pass the signal itself, not its coefficients")
        panels.append(lambda ax: signal(ax, truth, label=_name("true signal", x), unit=unit))
    if measurements is not None:
        panels.append(lambda ax: _measured(ax, measurements))
    if truth is None:
        panels.append(lambda ax: _single(ax, x, _name("signal", x), unit))
    else:
        panels.append(lambda ax: signal(ax, truth, found=x, label=_name("signal", x), unit=unit))
    if c.shape != x.shape or not np.array_equal(c, x):
        panels.append(lambda ax: _single(ax, c, _name("coefficient", c), ""))
    if any(len(values) > 1 for values in found.history.values()):
        panels.append(lambda ax: convergence(found, ax))
    return panels


def _single(ax: Axes, values: Any, label: str, unit: str) -> None:
    v = _first(values)
    if _is_sparse(v):
        _stems(ax, v, FOUND, "x", label)
    else:
        ax.plot(v, color=FOUND, lw=1.2)
    _label(ax, v.size, label, unit)
    _tidy(ax)


def _label(ax: Axes, size: int, label: str, unit: str) -> None:
    ax.set_xlim(-0.01 * size, 1.01 * size)
    ax.set_ylabel(f"{label} ({unit})" if unit else label)
    ax.set_xlabel("index")


def _measured(ax: Axes, measurements: Any) -> None:
    y = _first(measurements)
    at = np.arange(y.size)
    ax.axhline(0, color="#999999", lw=0.6)
    ax.vlines(at, 0, y, color=MEASURED, lw=0.6)
    ax.plot(at, y, color=MEASURED, linestyle="none", marker=".", markersize=3)
    ax.set_xlim(-0.01 * y.size, 1.01 * y.size)
    ax.set_ylabel(_name("measurement", to_numpy(measurements)))
    ax.set_xlabel("number of the measurement")
    _tidy(ax)


def _stems(ax: Axes, values: Array, colour: str, marker: str, label: str) -> None:
    index = np.flatnonzero(values)
    if index.size > MAX_DRAWN:
        index = np.sort(np.argsort(-np.abs(values))[:MAX_DRAWN])
    size = 6 if index.size <= 200 else 3
    face = "none" if marker == "o" else colour
    ax.axhline(0, color="#999999", lw=0.6)
    ax.vlines(index, 0, values[index], color=colour, lw=0.9)
    (points,) = ax.plot(index, values[index], color=colour, linestyle="none", label=label)
    points.set(marker=marker, markersize=size, markerfacecolor=face)


def _is_sparse(values: Array) -> bool:
    return bool(np.count_nonzero(values) <= 0.5 * values.size)


def _first(values: Any) -> Array:
    """The signal, of several the first, of complex values the modulus."""
    array = to_numpy(values)
    array = array if array.ndim == 1 else array[:, 0]
    return np.abs(array) if np.iscomplexobj(array) else array


def _name(label: str, values: Array) -> str:
    return f"|{label}|" if np.iscomplexobj(values) else label


def _title(found: Recovery) -> str:
    batch = "" if found.coefficients.ndim == 1 else f", signal 1 of {found.coefficients.shape[1]}"
    gap = "" if found.gap is None else f", relative gap {found.gap:.1e}"
    return f"{found.solver.split('(')[0]}: {found.status.name.lower()}{gap}{batch}"


def _tidy(ax: Axes, *, legend: bool = False) -> None:
    ax.grid(color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    if legend:  # beside the axes, where no stem can be
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
