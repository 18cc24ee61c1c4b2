"""Fold a layer's metric into the problem that a stage sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric, input_directions


def marginal(metric: Metric, spec: LayerSpec, axes: Sequence[int]) -> Metric:
    """The metric of the inputs at the kernel places along `axes`, summed over the others.

    Args:
        metric: over (in / groups) x kernel.
        spec: the layer.
        axes: kernel axes to keep.

    Returns:
        Metric over (in / groups) x the kept places, without G.
    """
    _, _, i, *kernel = spec.weight_shape
    index = torch.arange(i * int(np.prod(kernel))).reshape(i, *kernel)
    kept = [1 + a for a in axes]
    rest = [1 + a for a in range(len(kernel)) if a not in axes]
    index = index.permute(*rest, 0, *kept).reshape(-1, i * int(np.prod([kernel[a] for a in axes])))
    if metric.C.ndim == 2:
        return Metric(metric.C[:, index].sum(1))
    return Metric(torch.stack([metric.block(row) for row in index]).sum(0))


def split_off(weight: Tensor, axes: Sequence[int]) -> Tensor:
    """(g, o, i, *k) as (g, o * other places, i * places along `axes`)."""
    kernel_axes = range(weight.ndim - 3)
    rest = [3 + a for a in kernel_axes if a not in axes]
    kept = [3 + a for a in axes]
    moved = weight.permute(0, 1, *rest, 2, *kept)
    return moved.flatten(2 + len(rest)).flatten(1, 1 + len(rest))


def first_stage(
    spec: LayerSpec, weight: Tensor, metric: Metric, axes: Sequence[int], rank: int
) -> Tensor:
    """The first of two stages, best if the places off `axes` were independent: nested rows.

    Returns:
        (groups, rank, in / groups * places along `axes`).
    """
    folded = split_off(weight, axes)
    if metric.G is not None:  # weigh the outputs, each place alike
        weighted = metric.left(metric.cast(weight.flatten(2))).reshape(weight.shape)
        folded = split_off(weighted, axes)
    return input_directions(folded, marginal(metric, spec, axes), rank)


def spread(V: Tensor, kernel: Sequence[int], axes: Sequence[int]) -> Tensor:
    """Features of a first stage on `axes` at every place off them.

    Args:
        V: (groups, r, i * places along `axes`).
        kernel: sizes of all kernel axes.
        axes: those that the first stage works on.

    Returns:
        (groups, r * other places, i * places), rows ordered (r, other places).
    """
    rest = [a for a in range(len(kernel)) if a not in axes]
    n_rest = int(np.prod([kernel[a] for a in rest]))
    n_kept = int(np.prod([kernel[a] for a in axes]))
    g, r, _ = V.shape
    i = V.shape[-1] // n_kept
    eye = torch.eye(n_rest, dtype=V.dtype, device=V.device)
    wide = V.reshape(g, r, 1, 1, i, n_kept) * eye[None, None, :, :, None, None]
    # (g, r, rest, rest', i, kept) -> (g, r * rest, i, *kernel)
    shaped = wide.reshape(g, r * n_rest, *(kernel[a] for a in rest), i, *(kernel[a] for a in axes))
    places = {a: 2 + j for j, a in enumerate(rest)}
    places |= {a: 3 + len(rest) + j for j, a in enumerate(axes)}
    order = [0, 1, 2 + len(rest), *(places[a] for a in range(len(kernel)))]
    return shaped.permute(order).flatten(2)


def even(first: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the first and columns of the last factor scaled to equal norms.

    Args:
        first: (groups, r, ...).
        last: (groups, o, r, ...).
    """
    a = first.flatten(2).norm(dim=-1)  # (g, r)
    b = last.movedim(2, 1).flatten(2).norm(dim=-1)
    scale = torch.where((a > 0) & (b > 0), (b / a.clamp_min(1e-30)).sqrt(), 1.0)
    shape = (*scale.shape, *(1,) * (first.ndim - 2))
    back = (scale.shape[0], 1, scale.shape[1], *(1,) * (last.ndim - 3))
    return first * scale.reshape(shape), last / scale.reshape(back)
