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

from lowrank.compression.methods.shared.base import Method
from lowrank.compression.methods.shared.folding import spread_products
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import (
    _EXACT,
    Features,
    Metric,
    Products,
    Projected,
    energy,
    variable_projection,
)

CURVE = 0.1
"""Share of a fit's work that each of the few fits of an error curve may take."""


_MOST, _FEWEST = 150, 3
"""Most iterations of one descent, and fewest that are worth while."""


_HOPS, _HOP = 12, 0.3
"""Descents from around the best so far, and how far away each starts: noise of this share of
a factor's root mean square. On 3 x 3 kernels a dozen of them take a seventh off the squared
error, where as many iterations in a row take half of that."""


_SLOW, _PATIENCE = 2e-3, 3
"""After so many descents in a row that lower the squared error by less than this share, no further
one is begun."""


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
    reads: Tensor | None = None,
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
        reads: where the features are those that `folding.spread` makes of the only free
            factor, the indices of the inputs that it reads, from `folding.places`.

    Source: the hops: Wales and Doye 1997, "Global optimization by basin-hopping", at
        temperature zero.
    """
    W = weight.flatten(2)
    features = partial(method.features, spec)
    products = None if reads is None else _by_reads(metric, reads, metric.cast(W))
    best: Projected | None = None
    for start in method.starts(spec, weight, metric, seed=seed):
        found = variable_projection(W, metric, features, start, max_iter=0, products=products)
        best = found if best is None else min(best, found, key=lambda f: f.error)
        affordable = _affordable(metric, best, metric.work)
        if affordable < _FEWEST:  # nor is another start
            break
    assert best is not None
    if max_iter is not None or affordable < _FEWEST:
        n = 0 if affordable < _FEWEST else min(max_iter or 0, affordable)
        return variable_projection(W, metric, features, best.free, max_iter=n) if n else best
    best = variable_projection(W, metric, features, best.free, max_iter=min(_MOST, affordable))
    generator = torch.Generator().manual_seed(seed)
    exact = best.error <= _EXACT * energy(weight, metric)
    slow = 0
    for _ in range(0 if exact else min(_HOPS, affordable // _MOST - 1)):
        near = [_near(f, generator) for f in best.free]
        found = _descent(W, metric, features, near, _MOST, level=best.error)
        slow = slow + 1 if found.error > (1 - _SLOW) * best.error else 0
        best = min(best, found, key=lambda f: f.error)
        if slow == _PATIENCE:
            break
    return best


def _by_reads(metric: Metric, reads: Tensor, W: Tensor) -> Products:
    def products(free: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        return spread_products(free[0], reads, metric, W)

    return products


def affords_search(method: Method, spec: LayerSpec, metric: Metric) -> bool:
    """Whether a curve may have fits that search, or closed forms alone."""
    last = method.stages(spec)[-1]
    assert isinstance(last, LayerSpec)
    q = last.n_weights // last.out_channels
    return CURVE * metric.work >= _FEWEST * _per_step(metric, spec.groups, q)


def _affordable(metric: Metric, start: Projected, work: float) -> int:
    """Iterations from a start that so many multiplications allow."""
    groups, _, q = start.last.shape
    return int(work / _per_step(metric, groups, q))


def _per_step(metric: Metric, groups: int, q: int) -> int:
    """Multiplications of an iteration over q features in each group."""
    return groups * q * (3 * metric.per_row + q * q)


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
    wide = W.shape[-1] >= _SINGLE_FROM and metric.dtype != torch.float32
    wide = wide and level > _SINGLE_ERROR * metric.energy(W)
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
    reads: Tensor | None = None,
) -> float:
    """Squared error of a short fit, for curves."""
    start = fit_factors(method, spec, weight, metric, seed=seed, max_iter=0, reads=reads)
    n = min(max_iter, _affordable(metric, start, CURVE * metric.work))
    if n < _FEWEST:
        return start.error
    W, features = weight.flatten(2), partial(method.features, spec)
    found = _descent(W, metric, features, start.free, n, level=start.error)
    return min(start.error, found.error)


def fit_stages(
    method: Searched,
    spec: LayerSpec,
    weight: Tensor,
    metric: Metric,
    *,
    seed: int,
    max_iter: int | None = None,
    reads: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The stages of `fit`, in the weight's type."""
    found = fit_factors(method, spec, weight, metric, seed=seed, max_iter=max_iter, reads=reads)
    return tuple(s.to(weight.dtype) for s in method.weights(spec, found.free, found.last))
