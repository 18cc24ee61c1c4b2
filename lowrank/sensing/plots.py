"""Pictures of recoveries: colour-blind safe, and told apart in grey by their markers and dashes.

Each takes plain arrays; the results' own `plot` methods hand them down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.drawing import EDGE, GREY, STYLES, axes_of, convergence, tidy
from lowrank.errors import InputError
from lowrank.sensing.operators.arrays import Array, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TRUE, FOUND, MEASURED = STYLES[0][0], STYLES[1][0], GREY
"""Blue, vermilion (Okabe, Ito 2008) and grey."""


MAX_DRAWN = 4000
"""More non-zeros than this are drawn as their largest."""


def recovery(
    x: Any,
    coefficients: Any = None,
    *,
    truth: Any = None,
    measurements: Any = None,
    history: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
    unit: str = "",
) -> Figure:
    """Draw everything that is known of a recovery, a panel each, from the top: the true signal,
    the measurements, the recovered signal, its coefficients in a basis, the convergence.

    Of several signals the first is drawn, of complex ones the modulus. `Recovery.plot` calls it.

    Args:
        x: the recovered signal (n,) or (n, batch).
        coefficients: in a basis, (p,) or (p, batch); drawn where they are not the signal.
        truth: the true signal, of the shape of x, if it is known.
        measurements: y, (m,) or (m, batch).
        history: what the solver wrote down, name -> values; drawn where it took more than a step.
        title: of the figure.
        unit: of the signal, for the axis.

    Returns:
        A figure, which is not registered with pyplot; `figure.savefig(path)` writes it.

    Raises:
        InputError: the truth is not of the signal's shape.

    Example:
        >>> figure = recovery([1.0, 0.0, 2.0], measurements=[1.0, 0.0, 2.0])
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['measurement', 'signal']
    """
    from matplotlib.figure import Figure

    x = to_numpy(x)
    c = x if coefficients is None else to_numpy(coefficients)
    panels = _panels(x, c, truth, measurements, history or {}, unit)
    figure = Figure(figsize=(9, 0.6 + 2.0 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for panel, ax in zip(panels, axes, strict=True):
        panel(ax)
    figure.align_ylabels(axes)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


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


def support(coefficients: Any, truth: Any, *, tol: float = 1e-8, ax: Axes | None = None) -> Axes:
    """Draw which non-zeros were found, which were missed, and which are false.

    Args:
        coefficients: of one recovered signal, (p,).
        truth: its true coefficients, (p,); the signal itself where there is no basis.
        tol: share of the largest coefficient up to which one counts as zero.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: several signals, or a truth of another shape.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> ax = support([0.9, 0.0, 2.1], [1.0, 0.0, 2.0])
        >>> ax.get_title()
        '2 of 2 non-zeros found, 0 false'
    """
    c, true = to_numpy(coefficients), to_numpy(truth)
    if c.ndim != 1 or c.shape != true.shape:
        text = f"shape {true.shape} for coefficients {c.shape}"
        raise InputError("truth", text, "pass the coefficients of one signal")
    on, got = true != 0, np.abs(c) > tol * np.abs(c).max(initial=0.0)
    kinds = {"found": on & got, "missed": on & ~got, "false": ~on & got}
    ax = axes_of(ax, height=3.0)
    ax.axhline(0, color="#999999", lw=0.6)
    for (name, which), (colour, marker, _) in zip(kinds.items(), STYLES, strict=False):
        at, sizes = np.flatnonzero(which), np.abs(true if name == "missed" else c)[which]
        ax.vlines(at, 0, sizes, color=colour, lw=0.8)
        label = f"{name}: {at.size}"
        (points,) = ax.plot(at, sizes, color=colour, marker=marker, linestyle="none", label=label)
        points.set(markersize=6, markerfacecolor="none" if name == "missed" else colour)
    title = f"{kinds['found'].sum()} of {on.sum()} non-zeros found, {kinds['false'].sum()} false"
    ax.set(xlabel="index", ylabel="|coefficient|", title=title)
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return tidy(ax)


def regularisation_path(
    lams: Any, coefficients: Any, *, truth: Any = None, chosen: float | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Draw every coefficient against the penalty, large penalties on the left.

    Args:
        lams: penalties, (l,).
        coefficients: (l, p), the answer at each.
        truth: the true coefficients (p,); their non-zeros are then drawn bold, the rest faint.
        chosen: a penalty to mark.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: shapes that do not go together.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> ax = regularisation_path([1.0, 0.1], [[0.0, 0.0], [0.9, 0.0]], truth=[1.0, 0.0])
        >>> ax.get_xlabel()
        'penalty λ'
    """
    lam, path = np.asarray(lams, dtype=float), np.asarray(coefficients)
    if path.ndim != 2 or lam.shape != path.shape[:1]:
        text = f"shape {path.shape} for {lam.size} penalties"
        raise InputError("coefficients", text, "pass a row for each penalty")
    on = (np.abs(path) > 0).any(axis=0) if truth is None else np.asarray(truth) != 0
    ax = axes_of(ax, height=4.0)
    names = ("true non-zeros", "all others") if truth is not None else ("coefficients", None)
    faint = np.flatnonzero(~on & (np.abs(path) > 0).any(axis=0))
    for j in faint:
        ax.plot(lam, path[:, j], color="#A0A0A0", lw=0.7)
    for j in np.flatnonzero(on):
        ax.plot(lam, path[:, j], color=STYLES[0][0], lw=1.5)
    ax.plot([], [], color=STYLES[0][0], label=names[0])
    if faint.size:
        ax.plot([], [], color="#A0A0A0", lw=0.7, label=names[1])
    if chosen is not None:
        ax.axvline(chosen, color=STYLES[1][0], linestyle="--", label=f"λ = {chosen:.3g}")
    ax.set(xscale="log", xlabel="penalty λ", ylabel="coefficient")
    ax.invert_xaxis()
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return tidy(ax)


def selection(
    lams: Any, scores: Any, *, chosen: float, score: str = "score", ax: Axes | None = None
) -> Axes:
    """Draw a rule's score against the penalty, and the penalty that it chose.

    Args:
        lams: penalties that were tried, (l,).
        scores: the rule's figure for each, (l,); those that are not finite are left out.
        chosen: the penalty that won.
        score: what the figure is.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> selection([1.0, 0.1, 0.01], [3.0, 1.0, 2.0], chosen=0.1).get_xlabel()
        'penalty λ'
    """
    lam, value = np.asarray(lams, dtype=float), np.asarray(scores, dtype=float)
    ax = axes_of(ax, height=3.4)
    finite = np.isfinite(value)
    ax.plot(lam[finite], value[finite], color=STYLES[0][0], marker="o", ms=4)
    ax.axvline(chosen, color=STYLES[1][0], linestyle="--", label=f"λ = {chosen:.3g}")
    ax.set(xscale="log", xlabel="penalty λ", ylabel=score)
    ax.invert_xaxis()
    ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


def phase_map(
    deltas: Any,
    rhos: Any,
    shares: Any,
    *,
    limits: Mapping[str, tuple[Any, Any]] | None = None,
    half: Any = None,
    label: str = "share recovered",
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of recoveries over `m / n` and `k / m`, with thresholds over it.

    Args:
        deltas: sensing ratios m / n, (d,).
        rhos: sparsities k / m, (d, r), or (r,) for all ratios alike.
        shares: of recoveries, (d, r), in [0, 1].
        limits: name of a threshold -> its line, (ratios, sparsities); up to four.
        half: sparsities of 50 % success, (d,), drawn as diamonds.
        label: of the shares.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> limits = {"L1, exact": ([0.4, 0.6], [0.34, 0.45])}
        >>> ax = phase_map([0.5], [0.1, 0.9], [[1.0, 0.0]], limits=limits)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('m / n', 'k / m')
    """
    ax = axes_of(ax, height=5.0)
    delta, rho = np.broadcast_arrays(np.asarray(deltas, dtype=float)[:, None], rhos)
    colours: dict[str, Any] = {"cmap": "cividis", "vmin": 0, "vmax": 1}
    if min(delta.shape) > 1:
        drawn = _filled(ax, delta[:, 0], rho, np.asarray(shares), colours)
    else:
        drawn = ax.scatter(delta, rho, c=shares, edgecolor=EDGE, linewidth=0.4, **colours)
    ax.figure.colorbar(drawn, ax=ax, label=label)
    looks = [STYLES[i] for i in (1, 4, 2, 3)]
    for (name, line), (colour, _, dash) in zip((limits or {}).items(), looks, strict=False):
        ax.plot(*line, color="white", lw=3.5, alpha=0.7)  # seen on dark cells and on bright ones
        ax.plot(*line, color=colour, linestyle=dash, lw=2, label=name)
    if half is not None:
        ax.plot(deltas, half, "D", mfc="white", mec=STYLES[1][0], label="50 %")
    ax.set(xlabel="m / n", ylabel="k / m", xlim=(0, 1), ylim=(0, 1))
    if limits or half is not None:
        ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return tidy(ax)


def _filled(ax: Axes, deltas: Array, rhos: Array, shares: Array, colours: dict[str, Any]) -> Any:
    """A cell around each point, half way to its neighbours; the map of the last column."""
    across = _edges(deltas)
    for i, (rho, share) in enumerate(zip(rhos, shares, strict=True)):
        up, first = np.unique(rho, return_index=True)  # whole k may come out twice
        drawn = ax.pcolormesh(across[i : i + 2], _edges(up), share[first][:, None], **colours)
    return drawn


def _edges(centres: Array) -> Array:
    """Bounds of the cells around rising centres, within [0, 1]: (n,) to (n + 1,)."""
    middle = (centres[1:] + centres[:-1]) / 2
    ends = (2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]) if len(middle) else (0, 1)
    return np.clip(np.concatenate([ends[:1], middle, ends[1:]]), 0, 1)


def _panels(
    x: Array,
    c: Array,
    truth: Any,
    measurements: Any,
    history: Mapping[str, Sequence[float]],
    unit: str,
) -> list[Callable[[Axes], Any]]:
    panels: list[Callable[[Axes], Any]] = []
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
    if any(len(values) > 1 for values in history.values()):
        panels.append(lambda ax: convergence(history, ax=ax))
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


def _tidy(ax: Axes, *, legend: bool = False) -> None:
    tidy(ax)
    if legend:  # beside the axes, where no stem can be
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
