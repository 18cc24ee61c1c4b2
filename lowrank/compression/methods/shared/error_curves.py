"""Errors at many ranks from fits at a few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from torch import Tensor

from lowrank.decompositions.metric import _EXACT, WORK, Metric, energy, gains_of


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
    """Places among n ranks, closer at low ones, where the error falls fastest; of a single one
    the middle."""
    if n_fits == 1:
        return [n // 2]
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


def nested_curve(weight: Tensor, metric: Metric, N: Tensor, width: int) -> list[float]:
    """Relative squared error of the first 1, 2, ... blocks of features with the best last stage.

    Args:
        weight: canonical weight.
        metric: the error.
        N: `whitened` products of the features (groups, o, n * width) in the order in which they
            are added.
        width: features in a block.
    """
    total = energy(weight, metric)
    lost = (total - gains_of(N, width).cumsum(0)).clamp_min(0)
    return (lost / total if total else lost).tolist()


def refined_curve(
    ranks: Sequence[int],
    nested: Sequence[float],
    error: Callable[[int], float] | None,
    *,
    n_fits: int = 3,
) -> Iterator[tuple[int, float]]:
    """The nested curve, lowered by what fits at a few ranks gain; the gain is interpolated.

    Args:
        ranks: ascending.
        nested: relative squared error at rank 1, 2, ...
        error: the same of a fit at a rank; None leaves the nested curve as it is.
        n_fits: how many.
    """
    if error is None:
        yield from ((rank, nested[rank - 1]) for rank in ranks)
        return
    shares = np.linspace(0, 1, n_fits) if n_fits > 1 else [0.5]
    fitted = sorted({ranks[int(x * (len(ranks) - 1))] for x in shares})
    gains = [min(1.0, error(r) / nested[r - 1]) if nested[r - 1] > _EXACT else 1.0 for r in fitted]
    for rank in ranks:
        yield rank, nested[rank - 1] * float(np.interp(rank, fitted, gains))


_WIDE = 96
"""Channels from which other methods are asked first whether a curve is worth while. Narrower layers
have one: there searches gain most."""


def asks_rivals(weight: Tensor, metric: Metric) -> bool:
    """Whether a curve is spared where other methods are far closer: of wide layers, where work is
    bounded."""
    return metric.work < WORK and min(weight.shape[1:3]) >= _WIDE


def least_of_rivals(metric: Metric, n_weights: int) -> float | None:
    """The least relative squared error of what was found before with no more weights; None where
    nothing was."""
    return min((lost for n, lost in metric.rivals if n <= n_weights), default=None)


def n_refined(metric: Metric) -> int:
    """How many fits a nested curve is refined by: where work is bounded, a single one."""
    return 3 if metric.work >= WORK else 1
