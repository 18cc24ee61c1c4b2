"""Fold a layer's metric into the problem that a stage sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric, add_gram, changes, input_directions, whitened


def marginal(metric: Metric, spec: LayerSpec, axes: Sequence[int]) -> Metric:
    """The metric of the inputs at the kernel places along `axes`, summed over the others.

    Args:
        metric: over (in / groups) x kernel.
        spec: the layer.
        axes: kernel axes to keep.

    Returns:
        Metric over (in / groups) x the kept places, without G.
    """
    key = (*spec.weight_shape, -1, *axes)
    if key not in metric.marginals:
        metric.marginals[key] = _marginal(metric, places(spec, axes))
    return metric.marginals[key]


def places(spec: LayerSpec, axes: Sequence[int]) -> Tensor:
    """Where a first stage on `axes` reads its inputs, for each place off them.

    Returns:
        Indices into (in / groups) x kernel: (places off the axes, in / groups * places on them).
    """
    _, _, i, *kernel = spec.weight_shape
    index = torch.arange(i * int(np.prod(kernel))).reshape(i, *kernel)
    kept = [1 + a for a in axes]
    rest = [1 + a for a in range(len(kernel)) if a not in axes]
    return index.permute(*rest, 0, *kept).reshape(-1, i * int(np.prod([kernel[a] for a in axes])))


def weighted(metric: Metric, weight: Tensor) -> Tensor:
    """G^1/2 W (groups, o, d) of a canonical weight, remembered for the last one."""
    key = ("weighted", changes(weight))
    kept = metric.asides.get(key)
    if kept is None or kept[0] is not weight:
        made = metric.left(metric.cast(weight.flatten(2)))
        kept = metric.asides[key] = weight, made
    return kept[1]


def nested_stages(
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    axes: Sequence[int],
    blocks: int,
    *,
    most: int = 0,
) -> Tensor:
    """What nested first stages on `axes` explain of the output, block by block of features.

    The columns of N = G^1/2 W C M^T L^-T, L L^T = M C M^T, belong to the features M that
    `first_stage` makes of so many rows at all places; the squared norm of the first few is what
    the best last stage on these explains. Remembered for the last weight, as several methods
    begin with the same stage.

    Args:
        spec: the layer.
        weight: canonical weight.
        metric: the error.
        axes: kernel axes that the first stage works on.
        blocks: rows of it.
        most: rows that may be asked for later, whose directions are found at the same time.

    Returns:
        (groups, o, blocks * places off the axes).
    """
    reads = places(spec, axes)
    key, width = ("nested", changes(weight), spec.weight_shape, *axes), len(reads)
    kept = metric.asides.get(key)
    known = kept if kept is not None and kept[0] is weight else None
    if known is None or known[1].shape[-1] < blocks * width:
        if known is None or known[2].shape[1] < blocks:
            V = first_stage(spec, weight, metric, axes, max(blocks, most))
        else:
            V = known[2]
        products = spread_products(V[:, :blocks], reads, metric, weighted(metric, weight))
        known = metric.asides[key] = weight, whitened(*products), V
    return known[1][:, :, : blocks * width]


def spread_products(V: Tensor, index: Tensor, metric: Metric, W: Tensor) -> tuple[Tensor, Tensor]:
    """`Metric.products` of the features `spread(V)`, which are mostly zeros.

    Args:
        V: (groups, r, m), the rows of a first stage.
        index: (places, m), from `places`.
        metric: the error.
        W: (groups, o, d).

    Returns:
        M C M^T (groups, q, q) and W C M^T (groups, o, q), q = r * places ordered so.
    """
    if metric.rows is None and metric.C.ndim == 3:
        MC = torch.stack([V @ metric.C[:, at] for at in index], dim=2).flatten(1, 2)  # (g, q, d)
        S = torch.stack([MC[:, :, at] @ V.mT for at in index], dim=3)  # (g, q, r, places)
        return S.flatten(2), W @ MC.mT
    own = metric.C[:, index]  # (g, places, m)
    blocks = torch.einsum("grm,gpm,gsm->gprs", V, own, V)
    (g, r, _), n = V.shape, len(index)
    S = V.new_zeros(g, r, n, r, n)
    S.diagonal(dim1=2, dim2=4).copy_(blocks.movedim(1, -1))
    P = torch.stack([(W[:, :, at] * own[:, p, None]) @ V.mT for p, at in enumerate(index)], dim=3)
    S, P = S.reshape(g, r * n, r * n), P.flatten(2)
    if metric.rows is None:
        return S, P
    A = torch.stack([V @ metric.rows[:, :, at].mT for at in index], dim=2).flatten(1, 2)
    return add_gram(S, A), P.baddbmm_(W @ metric.rows.mT, A.mT)


def affordable(metric: Metric, width: int, most: int) -> int:
    """How many blocks of so many features a nested curve may have, of at most so many.

    Args:
        metric: the error, with the work of a fit.
        width: features in a block.
        most: blocks in all.
    """
    d = metric.C.shape[-1]
    n = d if metric.rows is None else metric.rows.shape[1]
    groups = metric.C.shape[0]

    def work(blocks: int) -> float:
        q = blocks * width
        return groups * (q * q * n + q**3 / 3)

    least = max(1, _LEAST_FEATURES // width)
    while most > least and work(most) > _NESTED * metric.work:
        most -= max(1, most // 32)
    return most


_NESTED, _LEAST_FEATURES = 0.4, 576
"""Share of a fit's work that a nested curve may take, and features that it always may have."""


def _marginal(metric: Metric, index: Tensor) -> Metric:
    if metric.rows is not None:
        X = metric.rows[:, :, index].flatten(1, 2)  # (g, n * rest, i * kept)
        return Metric(X.mT @ X + torch.diag_embed(metric.C[:, index].sum(1)))
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
    folded = split_off(weighted(metric, weight).reshape(weight.shape), axes)  # each place alike
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
