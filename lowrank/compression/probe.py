"""What a model's output feels of each layer, asked of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from lowrank.compression.apply import replace_layers
from lowrank.compression.compress import all_dense
from lowrank.compression.curves import Candidate, Curve, Curves, Progress
from lowrank.compression.example import Example, batch_size
from lowrank.compression.plan import Plan
from lowrank.compression.quality import compare_outputs
from lowrank.errors import InputError

Metric = Callable[[nn.Module], float]
"""Quality of a model, the higher the better: accuracy, for instance."""

_ERRORS = (0.02, 0.1)
"""Relative squared errors of a layer's output at which it is probed."""

_EXAMPLES, _FEWEST = 128, 16
"""Most and fewest calibration examples that a probe runs."""

_WORK = 2e12
"""Multiplications that all probes together may take; it decides on the examples."""


def probe(
    model: nn.Module,
    curves: Curves,
    *,
    metric: Metric | None = None,
    progress: Progress | None = None,
) -> Curves:
    """The curves with layers weighed by what replacing one alone does to the output.

    Every layer is replaced by itself at one or two ranks, and the loss per error of its
    output becomes its weight. `measure` has a cheaper weight, to first order, from gradients.

    Args:
        model: the dense network; left as it is.
        curves: from `measure` with data.
        metric: quality of a model, higher is better; by default the KL divergence of class
            scores from the dense model's, or the squared error of any other output.
        progress: called as (layer, done, total).

    Returns:
        Curves for the same budgets.

    Raises:
        InputError: curves without data.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 4))
        >>> curves = lowrank.measure(net, torch.zeros(1, 32), data=torch.randn(64, 32))
        >>> plan = probe(net, curves).plan(params=0.5)
    """
    if curves.data is None:
        raise InputError("curves", "they were measured without data", "pass data= to measure")
    some = _some(curves.data.batches, _n_examples(curves))
    loss = _loss_of(model, some, metric)
    found = []
    for done, curve in enumerate(curves.curves):
        if progress is not None:
            progress(f"probing {curve.layer}", done, len(curves.curves))
        found.append(_probed(model, curves, curve, loss))
    return replace(curves, curves=tuple(found))


def _loss_of(
    model: nn.Module, batches: Sequence[Example], metric: Metric | None
) -> Callable[[nn.Module], float]:
    if metric is not None:
        best = metric(model)
        return lambda small: best - metric(small)

    def loss(small: nn.Module) -> float:
        found = compare_outputs(model, small, None, batches)
        assert found is not None
        return found.kl if found.scores else found.relative_error**2

    return loss


def _n_examples(curves: Curves) -> int:
    runs = len(_ERRORS) * len(curves.curves)
    affordable = int(_WORK / max(1, runs * curves.total.macs))
    return min(_EXAMPLES, max(_FEWEST, affordable))


def _some(batches: Sequence[Example], n: int) -> list[Example]:
    """The first n examples, or a few more where batches cannot be cut."""
    found: list[Example] = []
    for batch in batches:
        room = n - sum(batch_size(b) for b in found)
        if room <= 0:
            break
        found.append(batch[:room] if isinstance(batch, Tensor) else batch)
    return found


def _probed(
    model: nn.Module, curves: Curves, curve: Curve, loss: Callable[[nn.Module], float]
) -> Curve:
    if curve.importance is None or not curve.candidates or curves.data is None:
        return curve
    rates = []
    for wanted in _ERRORS:
        near = min(curve.candidates, key=lambda c: abs(c.error - wanted))
        if near.error > 0:
            small, _ = replace_layers(
                model, _alone(curves, near), curves.data, "parallel", max_iter=0
            )
            rates.append(max(loss(small), 0.0) / near.error)
    if not rates:
        return curve
    importance = replace(curve.importance, loss=max(sum(rates) / len(rates), 1e-12))
    return replace(curve, importance=importance)


def _alone(curves: Curves, candidate: Candidate) -> Plan:
    """A plan that replaces one layer."""
    dense = all_dense(curves, "not probed")
    return dense.with_choice(candidate.layer, candidate.method)
