"""Fitting any method's factors in the output metric, and the error curves that go with it.

A method that can be fitted to data says what its first stages turn into features
(`features`), where a search may start (`starts`), and how its stages' weights follow from
what was found (`weights`). The last stage is in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from lowrank.compression.layers import LayerSpec
from lowrank.decompositions.metric import (
    Features,
    Metric,
    Projected,
    input_directions,
    nested_gains,
    variable_projection,
)

_WORK = 2e11
"""Multiplications that one fit may take; it decides on the number of iterations."""

_MOST, _LEAST = 150, 6
"""Iterations of one descent."""

_HOPS, _HOP = 12, 0.3
"""Descents from around the best so far, and how far away each starts: noise of this share of
a factor's root mean square. On 3 x 3 kernels a dozen of them take a seventh off the squared
error, where as many iterations in a row take half of that."""

_SINGLE_FROM, _SINGLE_ERROR = 256, 3e-3
"""Fan-in and relative squared error from which a search is in float32."""

_EXACT = 1e-4
"""Relative squared error that is mostly what damping leaves of an exact fit: a gain over that
is none, and says nothing of other ranks."""

M = TypeVar("M")


class Searched(Protocol):
    """A method whose last stage combines features that its other stages make."""

    def features(self, spec: LayerSpec, free: Sequence[Tensor]) -> Tensor:
        """The features (groups, q, fan-in) that the free factors stand for."""

    def starts(
        self, spec: LayerSpec, weight: Tensor, metric: Metric, *, seed: int
    ) -> Iterable[Sequence[Tensor]]:
        """Free factors to start from, of which the best is taken."""

    def weights(self, spec: LayerSpec, free: Sequence[Tensor], last: Tensor) -> tuple[Tensor, ...]:
        """The canonical weights of the stages; `last` is (groups, out / groups, q)."""


def fit(
    method: Searched,
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    *,
    seed: int,
    max_iter: int | None = None,
) -> Projected:
    """The factors of a method with the least error in the metric that the search finds.

    A descent from the best start, and where the work allows more from around the best found:
    the error has many local minima of about the same depth, and better ones lie near good ones.

    Args:
        method: with its ranks.
        spec: the layer.
        weight: canonical weight, or the target in its place.
        metric: the error that is minimised.
        seed: of starts that are random.
        max_iter: L-BFGS iterations of a single descent; by default 150 and a dozen more
            descents, fewer for very large layers.

    Source: the hops: Wales and Doye 1997, "Global optimization by basin-hopping", at
        temperature zero.
    """
    W = weight.flatten(2)
    features = partial(method.features, spec)
    starts = [
        variable_projection(W, metric, features, start, max_iter=0)
        for start in method.starts(spec, weight, metric, seed=seed)
    ]
    best = min(starts, key=lambda f: f.error)
    if max_iter is not None:
        return variable_projection(W, metric, features, best.free, max_iter=max_iter)
    q, (g, _, d) = best.last.shape[-1], W.shape
    affordable = int(_WORK / (3 * g * q * d * d))
    n = min(_MOST, max(_LEAST, affordable))
    best = variable_projection(W, metric, features, best.free, max_iter=n)
    generator = torch.Generator().manual_seed(seed)
    exact = best.error <= _EXACT * energy(weight, metric)
    for _ in range(0 if exact else min(_HOPS, affordable // _MOST - 1)):
        near = [_near(f, generator) for f in best.free]
        found = _descent(W, metric, features, near, _MOST, level=best.error)
        best = min(best, found, key=lambda f: f.error)
    return best


def _near(factor: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(factor.shape, generator=generator, dtype=torch.float64).to(factor)
    return factor + _HOP * factor.square().mean().sqrt() * noise


def _descent(
    W: Tensor,
    metric: Metric,
    features: Features,
    start: Sequence[Tensor],
    max_iter: int,
    *,
    level: float,
) -> Projected:
    """A search, in float32 for wide layers unless errors near `level` are lost in it.

    What is found is measured in the metric's own type.
    """
    wide = W.shape[-1] >= _SINGLE_FROM and level > _SINGLE_ERROR * metric.error(W)
    search = metric.to(torch.float32) if wide else metric
    found = variable_projection(W, search, features, start, max_iter=max_iter)
    return variable_projection(W, metric, features, found.free, max_iter=0) if wide else found


def fit_error(
    method: Searched,
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    *,
    seed: int,
    max_iter: int,
) -> float:
    """Squared error of a short fit, for curves."""
    start = fit(method, spec, weight, metric, seed=seed, max_iter=0)
    W, features = weight.flatten(2), partial(method.features, spec)
    found = _descent(W, metric, features, start.free, max_iter, level=start.error)
    return min(start.error, found.error)


def fit_stages(
    method: Searched,
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    *,
    seed: int,
    max_iter: int | None = None,
) -> tuple[Tensor, ...]:
    """The stages of `fit`, in the weight's type."""
    found = fit(method, spec, weight, metric, seed=seed, max_iter=max_iter)
    return tuple(s.to(weight.dtype) for s in method.weights(spec, found.free, found.last))


def identity(weight: Tensor) -> Metric:
    """The metric without data: the Frobenius norm."""
    g, _, *rest = weight.shape
    d = int(np.prod(rest))
    return Metric(torch.ones(g, d, dtype=torch.float64, device=weight.device))


def energy(weight: Tensor, metric: Metric) -> float:
    """Squared norm of a canonical weight in the metric."""
    return metric.error(weight.flatten(2))


def fitted_curve(
    ranks: Sequence[int], error: Callable[[int], float], *, n_fits: int = 6
) -> Iterator[tuple[int, float]]:
    """The error at every rank, from fits at a few; in between its logarithm is interpolated.

    Args:
        ranks: ascending.
        error: relative squared error of a fit at a rank.
        n_fits: how many.
    """
    fitted = [ranks[j] for j in _places(len(ranks), n_fits)]
    errors = np.minimum.accumulate([error(r) for r in fitted])  # more can always do as well
    logs = np.log(np.maximum(errors, 1e-12))
    for rank in ranks:
        yield rank, float(np.exp(np.interp(rank, fitted, logs)))


def _places(n: int, n_fits: int) -> list[int]:
    """Places among n ranks, closer at low ones, where the error falls fastest."""
    return sorted({round((n - 1) * x**1.5) for x in np.linspace(0, 1, n_fits)})


def likened_curve(
    ranks: Sequence[int],
    known: Mapping[int, float],
    error: Callable[[int], float],
    *,
    n_fits: int = 3,
) -> Iterator[tuple[int, float]]:
    """The error at every rank from a few fits and the curve of a similar method.

    Between the fits the logarithm of the ratio of the two errors is interpolated.

    Args:
        ranks: ascending.
        known: rank -> relative squared error of the other method, ascending.
        error: relative squared error of a fit at a rank.
        n_fits: how many.
    """
    x, y = np.array([*known]), np.log(np.maximum([*known.values()], 1e-12))
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2]) if len(x) > 1 else 0.0
    logs = np.interp(ranks, x, y) + slope * np.maximum(0, ranks - x[-1])
    places = _places(len(ranks), n_fits)
    ratios = [np.log(max(error(ranks[j]), 1e-12)) - logs[j] for j in places]
    shifted = np.exp(logs + np.interp(np.arange(len(ranks)), places, ratios))
    yield from zip(ranks, map(float, np.minimum.accumulate(shifted)), strict=True)


def nested_curve(weight: Tensor, metric: Metric, M: Tensor, width: int) -> list[float]:
    """Relative squared error of the first 1, 2, ... blocks of features with the best last stage.

    Args:
        weight: canonical weight.
        metric: the error.
        M: features (groups, n * width, fan-in) in the order in which they are added.
        width: features in a block.
    """
    total = energy(weight, metric)
    gains = nested_gains(weight.flatten(2), metric, M, width)
    lost = (total - gains.cumsum(0)).clamp_min(0)
    return (lost / total if total else lost).tolist()


def refined_curve(
    ranks: Sequence[int],
    nested: Sequence[float],
    error: Callable[[int], float],
    *,
    n_fits: int = 3,
) -> Iterator[tuple[int, float]]:
    """The nested curve, lowered by what fits at a few ranks gain; the gain is interpolated.

    Args:
        ranks: ascending.
        nested: relative squared error at rank 1, 2, ...
        error: the same of a fit at a rank.
        n_fits: how many.
    """
    fitted = sorted({ranks[int(j)] for j in np.linspace(0, len(ranks) - 1, n_fits)})
    gains = [min(1.0, error(r) / nested[r - 1]) if nested[r - 1] > _EXACT else 1.0 for r in fitted]
    for rank in ranks:
        yield rank, nested[rank - 1] * float(np.interp(rank, fitted, gains))


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
        weighted = metric.left(weight.flatten(2).to(metric.dtype)).reshape(weight.shape)
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
