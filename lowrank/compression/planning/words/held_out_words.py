"""Tables of words, weighed by what a low rank of them costs texts whose words it had not.

Calibration prices an error in a word's row to second order, and every row alike. A word that
calibration never had is nearly lost by a low rank, which takes more than that, and texts to come
are full of such words. So the table is fitted as if some examples had not been there, and these
tell what it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.fitting.layerwise import replace_layers
from lowrank.compression.gauges.quality import positions, quality_of, vocabularies
from lowrank.compression.network.cutting import few_of, held_out
from lowrank.compression.network.example import Example, run
from lowrank.compression.network.hooks import watching
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.prefix_cache import Reached
from lowrank.compression.planning.candidates import Candidate, Curve
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.sensitivity import alone, kept_importance
from lowrank.compression.structure.swap import folded_weight
from lowrank.store import NOWHERE, Shelf

_FEWEST = 8
"""Examples of which some are."""


_SIZE = 0.5
"""Of a table that is tried, at most so much of the dense one."""


def weighed_tables(model: nn.Module, curves: Curves, shelf: Shelf = NOWHERE) -> Curves:
    """The curves with tables of words weighed so, no less than before.

    Args:
        model: the dense network; left as it is.
        curves: of a language model, from data.
        shelf: keeps what was found.
    """
    data = curves.data
    if data is None or not data.words or not data.effort.gradients:
        return curves
    if data.calibrated.n_examples < _FEWEST:
        return curves
    parts = held_out(data.batches, model)
    shelf = shelf.part("held-out words")
    weighed = partial(_weighed, model, curves, data, *parts)
    made = [
        kept_importance(shelf, c, partial(weighed, c)) if _is_table(data, c) else c
        for c in curves.curves
    ]
    return replace(curves, curves=tuple(made))


def _is_table(data: Statistics, curve: Curve) -> bool:
    view = data.views.get(curve.layer)
    return view is not None and view.spec.kind == "embedding"


def _weighed(
    model: nn.Module,
    curves: Curves,
    data: Statistics,
    rest: Sequence[Example],
    held: Sequence[Example],
    curve: Curve,
) -> Curve:
    view, counts = data.views[curve.layer], curve.importance
    if data.reason(view.name) is not None:
        return curve
    if curve.fixed or not held or counts is None or not counts.loss:
        return curve
    offered = [c for c in curve.candidates if c.cost.params <= _SIZE * curve.dense.params]
    if not offered:
        return curve
    tried = min(offered, key=lambda c: c.error)
    without = _without(data, view, _words(model, view, held), _words(model, view, rest))
    small, _ = replace_layers(
        model, alone(curves, tried), without, "parallel", max_iter=0, shared=True
    )
    told, loss = _told(without, model, small, tried), _loss(model, small, held)
    if not loss > told > 0:
        return curve
    return replace(curve, importance=replace(counts, loss=counts.loss * loss / told))


def _words(model: nn.Module, view: LayerView, batches: Sequence[Example]) -> Tensor:
    """The words (n,) that a table is asked for; those of its first call in each batch."""
    found: list[Tensor] = []

    def see(_: LayerView, x: Tensor, y: Tensor) -> None:
        found.append(x.detach().flatten().cpu())
        raise Reached

    for batch in batches:
        with watching([view], see), suppress(Reached):
            run(model, batch)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def _without(data: Statistics, view: LayerView, held: Tensor, others: Tensor) -> Statistics:
    """The statistics as if the words held out (n,) were known from other texts alone."""
    moments = data.calibrated.layers[view.name]
    C = moments.C[0]
    away, here = (torch.bincount(w, minlength=len(C)).to(C) for w in (held, others))
    gone = (away > 0) & (here == 0) & (C * moments.n <= away + 0.5)  # nor counted in further texts
    never = (away == 0) & (here == 0)
    if not bool(never.any()):
        return data
    less = replace(moments, C=torch.where(gone, C[never].median(), C)[None])
    layers = {**data.calibrated.layers, view.name: less}
    return replace(data, calibrated=replace(data.calibrated, layers=layers), shelf=NOWHERE)


def _told(data: Statistics, model: nn.Module, small: nn.Module, tried: Candidate) -> float:
    """What the metric says that the table loses, in nats an example."""
    view, moments = data.views[tried.layer], data.calibrated.layers[tried.layer]
    made = folded_weight(small.get_submodule(view.name), tried.method, view.spec)
    lost = data.metric(model, view.name).error((view.weight() - made).flatten(2))
    return 0.5 * moments.felt_size * lost


def _loss(model: nn.Module, small: nn.Module, batches: Sequence[Example]) -> float:
    """How far the scores diverge, in nats an example."""
    n = positions(run(model, few_of(batches[0], 1)))
    pairs = ((run(model, b), run(small, b)) for b in batches)
    return quality_of(pairs, vocabularies(model)).kl * n
