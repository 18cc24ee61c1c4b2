"""All factors of a replacement at once, by gradients of its output error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowrank.compression.network.stages import (
    Factor,
    LayerSpec,
    Stage,
    compose,
    leaves,
    with_leaves,
)
from lowrank.decompositions.metric import Metric, identity


def error_of(
    spec: LayerSpec,
    stages: Sequence[Stage],
    factors: Sequence[Factor],
    weight: Tensor,
    metric: Metric,
) -> float:
    """Squared error in the metric of what the factors amount to."""
    return metric.error((weight - compose(spec, stages, factors).to(weight)).flatten(2))


def cast_factors(factors: Sequence[Factor], dtype: torch.dtype) -> tuple[Factor, ...]:
    """The same with floating-point leaves of another type."""
    flat = [f.to(dtype) if f.is_floating_point() else f for f in leaves(factors)]
    return with_leaves(factors, flat)


def refined(
    spec: LayerSpec,
    stages: Sequence[Stage],
    factors: Sequence[Factor],
    weight: Tensor,
    metric: Metric,
    *,
    max_iter: int,
) -> tuple[Factor, ...]:
    """Factors of lower error in the metric, by L-BFGS on every floating-point one of them.

    Which entries, channels or bricks are taken stays as it is.

    Args:
        spec: the layer.
        stages: its replacement.
        factors: what fills it, to start from; never returned worse.
        weight: the canonical weight that is approximated.
        metric: the error that is minimised.
        max_iter: L-BFGS iterations, fewer for very large layers.

    Returns:
        Factors in the metric's type.
    """
    start = cast_factors(factors, metric.dtype)
    W = metric.cast(weight.flatten(2))
    energy = metric.error(W)
    per_step = 3 * W.shape[0] * W.shape[1] * metric.per_row
    max_iter = min(max_iter, max(2, int(metric.work / per_step)))
    if not max_iter or energy <= 0:
        return start
    flat = leaves(start)
    layout = torch.contiguous_format  # L-BFGS views its gradients
    floats = [f for f in flat if f.is_floating_point()]
    free = [f.clone(memory_format=layout).requires_grad_() for f in floats]
    best: list[tuple[float, list[Tensor]]] = []

    def rebuilt(values: Sequence[Tensor]) -> tuple[Factor, ...]:
        rest = iter(values)
        return with_leaves(start, [next(rest) if f.is_floating_point() else f for f in flat])

    def evaluate() -> Tensor:
        search.zero_grad()
        D = W - compose(spec, stages, rebuilt(free)).flatten(2)
        loss = (metric.times(D) * metric.weighs(D)).sum() / energy
        loss.backward()
        value = float(loss.detach())
        if not best or value < best[0][0]:
            best[:] = [(value, [f.detach().clone() for f in free])]
        return loss

    search = torch.optim.LBFGS(
        free,
        max_iter=max_iter,
        max_eval=2 * max_iter,
        history_size=20,
        tolerance_grad=0,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )
    with torch.enable_grad():
        search.step(evaluate)
    return rebuilt(best[0][1])


def fit_from(
    spec: LayerSpec,
    stages: Sequence[Stage],
    weight: Tensor,
    metric: Metric | None,
    start: Callable[[Metric], Sequence[Factor]],
    *,
    max_iter: int,
) -> tuple[Factor, ...]:
    """The refined factors of a start; with data the better of two starts, with and without.

    So an error in the metric is never above that of the fit to the weight alone.

    Args:
        spec: the layer.
        stages: its replacement.
        weight: canonical weight, whose type the factors have.
        metric: None for the weight alone.
        start: factors in a metric, with all that is discrete decided.
        max_iter: L-BFGS iterations of each refinement.
    """
    metric = None if metric is None else metric.formed
    plain = identity(weight) if metric is None else identity(weight, metric.dtype)
    found = refined(spec, stages, start(plain), weight, plain, max_iter=max_iter)
    if metric is not None:
        W = metric.cast(weight)
        starts = [cast_factors(f, metric.dtype) for f in (found, start(metric))]
        best = min(starts, key=lambda f: error_of(spec, stages, f, W, metric))
        found = refined(spec, stages, best, weight, metric, max_iter=max_iter)
    return cast_factors(found, weight.dtype)
