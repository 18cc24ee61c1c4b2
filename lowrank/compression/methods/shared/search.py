"""Fitting any method's factors in the output metric, and the error curves that go with it.

A method that can be fitted to data says what its first stages turn into features
(`features`), where a search may start (`starts`), and how its stages' weights follow from
what was found (`weights`). The last stage is in closed form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import (
    _EXACT,
    Features,
    Metric,
    Projected,
    energy,
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


def fit_factors(
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
    start = fit_factors(method, spec, weight, metric, seed=seed, max_iter=0)
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
    found = fit_factors(method, spec, weight, metric, seed=seed, max_iter=max_iter)
    return tuple(s.to(weight.dtype) for s in method.weights(spec, found.free, found.last))
