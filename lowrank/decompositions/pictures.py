"""What a decomposition of a film looks like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def video_frames(L: Any, S: Any, shape: tuple[int, int], frames: Sequence[int] = (0,)) -> Figure:
    """Draw frames of a video beside their still and their moving part, a row each.

    Args:
        L: (pixels, frames) low-rank part, a frame in each column.
        S: sparse part, likewise.
        shape: (rows, columns) of a frame; pixels in C order.
        frames: columns to draw.

    Returns:
        A matplotlib figure, which is not registered with pyplot.

    Raises:
        InputError: a shape with another number of pixels, or a frame that is not there.

    Example:
        >>> from lowrank.decompositions import robust_pca
        >>> found = robust_pca(np.ones((6, 4)))
        >>> figure = video_frames(found.L, found.S, (2, 3), (0, 3))
        >>> [ax.get_title() for ax in figure.axes[:3]]
        ['frame 0', 'low rank, L', 'sparse, |S|']
    """
    from matplotlib.figure import Figure

    L, S = np.asarray(L), np.asarray(S)
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
