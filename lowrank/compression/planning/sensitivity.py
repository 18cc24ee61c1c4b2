"""What a model's output feels of each layer, asked of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from functools import cache, partial
from math import ceil, inf, prod
from typing import Any

from torch import Tensor, nn

from lowrank.compression.calibration.statistics import Importance, Statistics
from lowrank.compression.fitting.layerwise import replace_layers
from lowrank.compression.gauges import quality
from lowrank.compression.gauges.quality import (
    Scorer,
    Unmatched,
    positions,
    quality_of,
    score,
    vocabularies,
)
from lowrank.compression.methods import Method
from lowrank.compression.methods.channel_svd import ChannelSVD, lost_by_rank
from lowrank.compression.methods.shared.base import ranks_of
from lowrank.compression.network.cutting import can_be_cut, cut, few_of
from lowrank.compression.network.example import Example, batch_size, run
from lowrank.compression.network.prefix_cache import MEMORY, PrefixCache, Reached
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.network.tensors import tensors
from lowrank.compression.planning.candidates import Candidate, Curve, packed
from lowrank.compression.planning.curves import Curves, all_dense
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.swap import folded_weight
from lowrank.errors import InputError
from lowrank.linalg import SKETCHED_FROM
from lowrank.progress import Progress
from lowrank.store import NOWHERE, Kept, Shelf

_TOO_SMALL = 1e-6
"""Relative squared error from which a probe tells something."""


_EXAMPLES, _FEWEST, _FEW = 128, 16, 4
"""Most and fewest calibration examples that a probe runs; the least of all where each has
several outputs to compare, as sequences and pictures have."""


_WORK = 2e12
"""Multiplications that all probes together may take; it decides on the examples."""


def probe(
    model: nn.Module,
    curves: Curves,
    *,
    metric: Scorer | None = None,
    progress: Progress | None = None,
    shelf: Shelf = NOWHERE,
) -> Curves:
    """The curves with layers weighed by what replacing one alone does to the output.

    Every layer is replaced by itself at one or two ranks, and the loss per error of its
    output becomes its weight. `measure` has a cheaper weight, to first order, from gradients.

    Args:
        model: the dense network; left as it is.
        curves: from `measure` with data.
        metric: quality of a model, higher is better; by default the KL divergence of class
            scores from the dense model's, and the squared error of any other output.
        progress: called as (layer, done, total).
        shelf: keeps what probes found, but not by a metric, which is a function and cannot be
            told from others.

    Returns:
        Curves for the same budgets; as they were, with a note in their data, where the outputs
        of models cannot be compared.

    Raises:
        InputError: curves without data, or a metric that is not finite.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 4))
        >>> curves = lowrank.measure(net, torch.zeros(1, 32), data=torch.randn(64, 32))
        >>> plan = probe(net, curves).plan(params=0.5)
    """
    if curves.data is None:
        raise InputError("curves", "they were measured without data", "pass data= to measure")
    data = curves.data
    n = _n_examples(curves, positions(run(model, few_of(data.batches[0], 1))))
    shelf = shelf.part("probe", n) if metric is None else NOWHERE

    @cache  # where all is known, the model need not run
    def ready() -> Loss:
        return _loss_of(model, _some(model, data.batches, n), metric, data.loss)

    places = {name: k for k, name in enumerate(data.views)}  # in the order they run
    found: dict[str, Curve] = {}
    try:
        for curve in sorted(curves.curves, key=lambda c: places.get(c.layer, -1)):
            if progress is not None:
                progress(f"probing {curve.layer}", len(found), len(curves.curves))
            found[curve.layer] = kept_importance(
                shelf, curve, partial(_probed, model, curves, curve, ready)
            )
    except Unmatched as error:
        note = f"layers are not weighed by probes: {error.problem}"
        return replace(curves, data=replace(data, notes=(*data.notes, note)))
    return replace(curves, curves=tuple(found[c.layer] for c in curves.curves))


Loss = Callable[[nn.Module, str], float]
"""Of a model in which the named layer is another."""


def _loss_of(
    model: nn.Module,
    batches: Sequence[Example],
    metric: Scorer | None,
    given: quality.Loss | None,
) -> Loss:
    if metric is not None:
        best = score(metric, model, "the dense model")
        return lambda small, layer: best - score(metric, small, f"the model without {layer}")
    return _Outputs(model, batches, given).loss


class _Outputs:
    """What the dense model gives, and what finishes before the layer that is probed.

    Layers are asked for in the order in which they run.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Example], given: quality.Loss | None
    ) -> None:
        self.model, self.batches, self.given = model, batches, given
        self._words = vocabularies(model)
        self._replay = PrefixCache(model, len(batches), MEMORY // 2)
        self._layer = ""
        self._given: list[Any] = []
        size = 0
        for batch in batches:
            if size <= MEMORY // 4:  # what is beyond is computed again
                self._given.append(run(model, batch))
                size += sum(t.numel() * t.element_size() for t in tensors(self._given[-1]))

    def loss(self, small: nn.Module, layer: str) -> float:
        """The divergence of class scores, and the relative squared error of any other output."""
        if layer != self._layer:
            self._reach(layer)
        pairs = (
            (self._dense(k), self._replay.output(small, k, batch))
            for k, batch in enumerate(self.batches)
        )
        found = quality_of(pairs, self._words, self.given)
        return found.loss if found.scores else found.relative_error**2 + found.unmatched

    def _dense(self, k: int) -> Any:
        return self._given[k] if k < len(self._given) else run(self.model, self.batches[k])

    def _reach(self, layer: str) -> None:
        """Remember what finishes before the layer."""
        self._layer = layer

        def stop(module: nn.Module, args: Any) -> None:
            self._replay.mark()
            raise Reached

        handle = self.model.get_submodule(layer).register_forward_pre_hook(stop)
        try:
            for k, batch in enumerate(self.batches):
                self._replay.run(k, batch)
        finally:
            handle.remove()


def _n_examples(curves: Curves, n_positions: float) -> int:
    """How many examples a probe runs, of which each gives outputs at so many positions."""
    fewest = max(_FEW, ceil(_FEWEST / max(1.0, n_positions)))
    assert curves.data is not None
    effort = curves.data.effort
    runs = len(effort.probed) * max(1, len(curves.curves))
    affordable = int(_WORK / max(1, runs * curves.total.macs))
    examples = sum(map(batch_size, curves.data.batches))
    allowed = int(2 * effort.probes * examples / runs)  # a probe runs half of the model
    return min(_EXAMPLES, max(_FEW, min(allowed, max(fewest, affordable))))


def _some(model: nn.Module, batches: Sequence[Example], n: int) -> list[Example]:
    """The first n examples, or a few more where batches cannot be cut."""
    found: list[Example] = []
    for batch in batches:
        room = n - sum(batch_size(b) for b in found)
        if room <= 0:
            break
        several = batch_size(batch) > room and not isinstance(batch, Tensor)
        if isinstance(batch, Tensor) or (several and can_be_cut(model, batch)):
            batch = cut(batch, 0, room)
        found.append(batch)
    return found


def kept_importance(shelf: Shelf, curve: Curve, make: Callable[[], Curve]) -> Curve:
    """The curve with the importance that was found before, or is found now."""
    asked = packed(curve) if shelf.store is not None else None
    if asked is None:
        return make()

    def pack(made: Curve) -> Kept:
        counts = made.importance
        return Kept({"importance": None if counts is None else astuple(counts)})

    def unpack(kept: Kept) -> Curve:
        counts = kept.record["importance"]
        return replace(curve, importance=None if counts is None else Importance(*counts))

    return shelf.kept(asked.record, make, pack, unpack)


def _probed(model: nn.Module, curves: Curves, curve: Curve, ready: Callable[[], Loss]) -> Curve:
    if curve.importance is None or not curve.candidates or curves.data is None:
        return curve
    rates = []
    for wanted in curves.data.effort.probed:
        near = _stand_in(model, curves.data, curve, wanted)
        if near.error > 0:
            small, _ = replace_layers(
                model, alone(curves, near), curves.data, "parallel", max_iter=0, shared=True
            )
            error = _error_seen(model, small, curves.data, near)
            if error > _TOO_SMALL:
                rates.append(max(ready()(small, curve.layer), 0.0) / error)
    if not rates:
        return curve
    importance = replace(curve.importance, loss=max(sum(rates) / len(rates), 1e-12))
    return replace(curve, importance=importance)


def _stand_in(model: nn.Module, data: Statistics, curve: Curve, wanted: float) -> Candidate:
    """What a layer is replaced by in a probe: by a matrix of lower rank, which is found at once,
    or else by the candidate whose error is nearest."""
    nearest = min(curve.candidates, key=lambda c: abs(c.error - wanted))
    at_once = [c for c in curve.candidates if _is_found_at_once(c.method)]
    view = data.views.get(curve.layer)
    if at_once:  # their ranks lie close enough for a probe
        most = inf if view is None else _most_probed(view.spec)
        soon = [c for c in at_once if max(ranks_of(c.method)) <= most]
        return min(soon or at_once, key=lambda c: abs(c.error - wanted))
    known = data.reason(curve.layer) is None and not curve.members
    if not known or view is None or ChannelSVD.supports(view.spec) is not None:
        return nearest
    lost = lost_by_rank(view.weight(), "kernel_first", data.metric(model, view.name))
    rank = 1 + min(range(len(lost)), key=lambda k: abs(lost[k] - wanted))
    method = ChannelSVD(rank)
    return Candidate(view.name, method, view.cost(method.stages(view.spec)), lost[rank - 1])


def _most_probed(spec: LayerSpec) -> float:
    """The highest rank of a probe: of very wide layers an eighth of the full one."""
    _, o, i, *kernel = spec.weight_shape
    full = min(o, i * prod(kernel))
    return full // 8 if full >= SKETCHED_FROM else inf


def _is_found_at_once(method: Method) -> bool:
    return isinstance(method, ChannelSVD) and method.fold == "kernel_first"


def _error_seen(
    model: nn.Module, small: nn.Module, data: Statistics, candidate: Candidate
) -> float:
    """A replaced layer's error on the examples that the probe runs, in units of the curve's.

    A few examples say less of a layer's inputs than `Candidate.error` allows for, and what
    the model's output loses on them comes of their own error.
    """
    name = candidate.layer
    if data.reason(name) is not None:
        return candidate.error
    view = data.views[name]
    made = folded_weight(small.get_submodule(name), candidate.method, view.spec)
    W = view.weight()
    seen = data.metric(model, name, seen=True).error((W - made).flatten(2))
    whole = data.metric(model, name).energy(W.flatten(2))
    return seen / whole if whole else candidate.error


def alone(curves: Curves, candidate: Candidate) -> Plan:
    """A plan that replaces one layer."""
    dense = all_dense(curves, "not probed")
    return dense.with_choice(candidate.layer, candidate.method)
