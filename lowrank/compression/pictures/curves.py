"""Spectra, error against rank, and what a budget costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lowrank.drawing import STYLES, Measure, axes_of, check_measure, kept_of, tidy
from lowrank.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


class RankLine(NamedTuple):
    """Error against rank: of the ascending ranks, the first `cheaper` run fewer MACs than dense.

    Example:
        >>> RankLine([1, 2, 4], [0.5, 0.3, 0.0], 2).cheaper
        2
    """

    ranks: Sequence[int]
    errors: Sequence[float]
    cheaper: int


def spectrum(W: Tensor, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the singular values of a matrix, and the error that each rank leaves.

    The solid line is `s_i / s_1`, the dashed one `||W - W_r|| / ||W||`, the tail of the spectrum.

    Args:
        W: (m, n) matrix; of more axes, such as a kernel, all but the first are joined.
        label: name of the matrix in the legend.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib, torch
        >>> matplotlib.use("agg")
        >>> ax = spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
        >>> ax.get_lines()[0].get_ydata().tolist()
        [1.0, 0.5, 0.25]
    """
    from lowrank.decompositions import singular_values

    s = singular_values(W.flatten(1) if W.ndim > 2 else W).double().cpu().numpy()
    energy = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    ax = axes_of(ax, height=4.0)
    ranks, prefix = np.arange(1, s.size + 1), f"{label}: " if label else ""
    size = s / (s[0] or 1.0)
    (line,) = ax.plot(ranks, np.where(size > 0, size, np.nan), label=f"{prefix}s_i / s_1")
    left = np.sqrt(energy[1:] / (energy[0] or 1.0))
    ax.plot(
        ranks, np.where(left > 0, left, np.nan), "--", color=line.get_color(),
        label=f"{prefix}error at rank i",
    )  # fmt: skip
    ax.set(yscale="log", xlabel="index i of the singular value, or rank", ylabel="relative size")
    ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


def error_against_rank(
    lines: Mapping[str, RankLine], *, xlabel: str = "rank", ax: Axes | None = None
) -> Axes:
    """Draw the relative error of the weights against the rank, a line for each layer.

    A line is solid and marked where the replacement runs fewer MACs than the dense layer,
    and faint beyond. `Curves.plot` calls it.

    Args:
        lines: name in the legend -> (ranks, relative errors, how many of the ranks are cheaper
            than dense), of up to 6 layers.
        xlabel: what the ranks are of.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: no line, or more than 6.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> line = RankLine([1, 2, 4], [0.5, 0.3, 0.0], 2)
        >>> error_against_rank({"fc": line}, xlabel="rank of channel_svd").get_xlabel()
        'rank of channel_svd'
    """
    if not 0 < len(lines) <= len(STYLES):
        text = f"{len(lines)} do not fit a picture of 1 to {len(STYLES)}"
        raise InputError("lines", text, "choose some of them")
    ax = axes_of(ax, height=4.0)
    for (label, (ranks, errors, n)), (colour, marker, dash) in zip(
        lines.items(), STYLES, strict=False
    ):
        ax.plot(ranks, errors, color=colour, lw=0.8, alpha=0.5)
        (bold,) = ax.plot(ranks[:n], errors[:n], color=colour, label=label)
        bold.set(marker=marker, markersize=5, markevery=max(1, n // 8), linestyle=dash)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel(xlabel)
    ax.set_ylabel("relative error  ‖W − W′‖ / ‖W‖")
    ax.set_ylim(0, 1)
    faint = any(line.cheaper < len(line.ranks) for line in lines.values())
    note = "\nbold: fewer MACs than dense" if faint else ""
    ax.set_title(f"Error against rank{note}", fontsize=11)
    ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


def trade_off(
    kept: Sequence[float],
    errors: Sequence[float],
    *,
    measure: Measure = "macs",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted error of plans against what each keeps; `Curves.plot_trade_off` calls it.

    Args:
        kept: kept fractions in (0, 1].
        errors: of the plan at each.
        measure: "macs", "params" or "bytes".
        label: name of the line in the legend.
        ax: axes to draw on, which may hold other lines; new ones by default.

    Raises:
        InputError: an unknown measure.

    Example:
        >>> import matplotlib
        >>> matplotlib.use("agg")
        >>> trade_off([0.8, 0.5], [0.1, 0.3], measure="params").get_xlabel()
        'parameters kept, %'
    """
    check_measure(measure)
    ax = axes_of(ax, height=4.0)
    colour, marker, dash = STYLES[len(ax.get_lines()) % len(STYLES)]
    percent = [100 * share for share in kept]
    (line,) = ax.plot(percent, errors, color=colour, linestyle=dash, label=label)
    line.set(marker=marker, markersize=5)
    ax.set_xlabel(kept_of(measure))
    ax.set_ylabel("predicted error of the plan")
    if label:
        ax.legend(frameon=False, fontsize=9)
    return tidy(ax)
