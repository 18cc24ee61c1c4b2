"""Pictures of sparse recovery beyond a single signal's panels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.errors import InputError
from lowrank.plots.style import EDGE, STYLES, axes_of, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank.decompositions import Completion, LowRankSparse
    from lowrank.sensing.noise import Selection
    from lowrank.sensing.phase_transition import PhaseTransition
    from lowrank.sensing.result import Recovery


def support(found: Recovery, truth: Any, *, ax: Axes | None = None) -> Axes:
    """Draw which non-zeros were found, which were missed, and which are false.

    Args:
        found: a recovery of one signal.
        truth: its true coefficients, (p,); the signal itself where there is no basis.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: several signals, or a truth of another shape.

    Example:
        >>> import matplotlib
        >>> from lowrank.sensing import recover
        >>> matplotlib.use("agg")
        >>> ax = support(recover(np.eye(3), [1.0, 0.0, 2.0]), [1.0, 0.0, 2.0])
        >>> ax.get_title()
        '2 of 2 non-zeros found, 0 false'
    """
    c, true = np.asarray(found.coefficients), np.asarray(truth)
    if c.ndim != 1 or c.shape != true.shape:
        text = f"shape {true.shape} for coefficients {c.shape}"
        raise InputError("truth", text, "pass the coefficients of one signal")
    on, got = true != 0, np.isin(np.arange(c.size), found.support)
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


def convergence(
    found: Recovery | LowRankSparse[Any] | Completion[Any], *, ax: Axes | None = None
) -> Axes:
    """Draw what the solver wrote down each iteration on a log axis, such as the relative gap.

    Args:
        found: a recovery, a low-rank plus sparse split, or a completed matrix.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: the solver kept no history; a direct method has none.

    Example:
        >>> import matplotlib
        >>> from lowrank.decompositions import robust_pca
        >>> matplotlib.use("agg")
        >>> convergence(robust_pca(np.eye(4))).get_yscale()
        'log'
    """
    from lowrank.sensing import plots

    history = found.history
    if not history:
        raise InputError("history", "the solver kept none", "there is nothing to draw")
    ax = axes_of(ax, height=3.4)
    if isinstance(history, dict):
        plots.convergence(found, ax)  # type: ignore[arg-type]
        return ax
    names = ("primal residual", "dual residual")
    if found.gap is None:
        names = ("relative residual", "its decrease")
    for name, values, (colour, _, dash) in zip(names, np.array(history).T, STYLES, strict=False):
        positive = np.where(values > 0, values, np.nan)
        ax.plot(np.arange(1, values.size + 1), positive, color=colour, linestyle=dash, label=name)
    ax.set(yscale="log", xlabel="iteration", ylabel="relative size")
    ax.legend(frameon=False, fontsize=9)
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


def selection(found: Selection, *, ax: Axes | None = None) -> Axes:
    """Draw a rule's score against the penalty, and the penalty that it chose.

    Args:
        found: what a `lam_by_...` function of `lowrank.sensing` returned.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib
        >>> from lowrank.sensing import lam_by_information
        >>> matplotlib.use("agg")
        >>> rng = np.random.default_rng(0)
        >>> A = rng.standard_normal((30, 50))
        >>> ax = selection(lam_by_information(A, A[:, 3] + 0.1 * rng.standard_normal(30)))
        >>> ax.get_xlabel()
        'penalty λ'
    """
    ax = axes_of(ax, height=3.4)
    finite = np.isfinite(found.scores)
    ax.plot(found.lams[finite], found.scores[finite], color=STYLES[0][0], marker="o", ms=4)
    ax.axvline(found.lam, color=STYLES[1][0], linestyle="--", label=f"λ = {found.lam:.3g}")
    ax.set(xscale="log", xlabel="penalty λ", ylabel=f"score of {found.rule}")
    ax.invert_xaxis()
    ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


def phase_map(found: PhaseTransition, *, nonneg: bool = False, ax: Axes | None = None) -> Axes:
    """Draw the share of recoveries over `m / n` and `k / m`, with the exact thresholds over it.

    Args:
        found: what `phase_transition` returned.
        nonneg: draw the threshold of L1 with non-negative signals in place of that without.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib
        >>> from lowrank.sensing.phase_transition import phase_transition
        >>> matplotlib.use("agg")
        >>> ax = phase_map(phase_transition([0.5], [0.1, 0.9], n=40, trials=3))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('m / n', 'k / m')
    """
    from lowrank.sensing.phase_transition import bayes_threshold, l1_threshold

    ax = axes_of(ax, height=5.0)
    delta = np.broadcast_to(found.deltas[:, None], found.rhos.shape)
    shares = ax.scatter(delta, found.rhos, c=found.fraction, cmap="cividis", vmin=0, vmax=1)
    shares.set(edgecolor=EDGE, linewidth=0.4)
    ax.figure.colorbar(shares, ax=ax, label=f"share recovered of {found.trials}, n = {found.n}")
    grid = np.linspace(0.02, 0.98, 49)
    name = "non-negative L1" if nonneg else "L1"
    lines = ax.plot(grid, [l1_threshold(d, nonneg=nonneg) for d in grid], label=f"{name}, exact")
    lines += ax.plot(grid, [bayes_threshold(d) for d in grid], label="Bayes AMP, exact")
    for line, (colour, _, dash) in zip(lines, (STYLES[1], STYLES[4]), strict=True):
        line.set(color=colour, linestyle=dash)
    ax.plot(found.deltas, found.threshold(), "D", mfc="white", mec=STYLES[1][0], label="50 %")
    ax.set(xlabel="m / n", ylabel="k / m", xlim=(0, 1), ylim=(0, 1))
    ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return tidy(ax)


def video_frames(
    found: LowRankSparse[Any], shape: tuple[int, int], frames: Sequence[int] = (0,)
) -> Any:
    """Draw frames of a video beside their still and their moving part, a row each.

    Args:
        found: the split of a matrix with a frame in each column.
        shape: (rows, columns) of a frame; pixels in C order.
        frames: columns to draw.

    Returns:
        A matplotlib figure, which is not registered with pyplot.

    Raises:
        InputError: a shape with another number of pixels, or a frame that is not there.

    Example:
        >>> from lowrank.decompositions import robust_pca
        >>> figure = video_frames(robust_pca(np.ones((6, 4))), (2, 3), (0, 3))
        >>> [ax.get_title() for ax in figure.axes[:3]]
        ['frame 0', 'low rank, L', 'sparse, |S|']
    """
    from matplotlib.figure import Figure

    L, S = np.asarray(found.L), np.asarray(found.S)
    if int(np.prod(shape)) != L.shape[0] or not all(0 <= t < L.shape[1] for t in frames):
        text = f"shape {shape} and frames {list(frames)} for a matrix {L.shape}"
        raise InputError("video_frames", text, "pixels are rows, frames are columns")
    figure = Figure(
        figsize=(8, 0.3 + 8 / 3 * shape[0] / shape[1] * len(frames) + 0.3 * len(frames))
    )
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(frames), 3, squeeze=False)
    low, high = float((L + S).min()), float((L + S).max())
    for row, t in zip(axes, frames, strict=True):
        parts = {f"frame {t}": L[:, t] + S[:, t], "low rank, L": L[:, t]}
        for ax, (title, values) in zip(row, parts.items(), strict=False):
            ax.imshow(values.reshape(shape), cmap="gray", vmin=low, vmax=high)
            ax.set_title(title, fontsize=10)
        row[2].imshow(np.abs(S[:, t]).reshape(shape), cmap="gray", vmin=0, vmax=high - low or 1)
        row[2].set_title("sparse, |S|", fontsize=10)
        for ax in row:
            ax.set_axis_off()
    return figure
