"""How strongly layers are weighed by what the loss feels of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf

from torch import nn

from lowrank.compression.calibration.goals import How
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.fitting.layerwise import replace_layers
from lowrank.compression.gauges.quality import Unmatched, compare_on, score
from lowrank.compression.network.example import Example, batch_size
from lowrank.compression.planning.curves import Curves
from lowrank.compression.structure.opening import opened_for
from lowrank.compression.structure.plan import Plan
from lowrank.progress import Progress

EXPONENTS = (0.0, 0.5, 0.75, 1.0)
"""Weightings of the layers that are tried on the calibration examples."""


_TRIAL_STEPS = 30
"""Iterations of each fit in a trial of a weighting."""


_TRIAL_WORK = 1e11
"""Multiplications of the dense model on the examples up to which trials fit in sequence; on
larger ones a few of such fits would take longer than all the rest."""


def weighed_plan(
    model: nn.Module,
    curves: Curves,
    budget: Mapping[str, float | None],
    exponent: float | None,
    progress: Progress | None = None,
    *,
    fit: How | None = None,
) -> Plan:
    """The plan at the given exponent, or at the one whose quick trial does best."""
    exponent = weighing(model, curves, budget, exponent, progress, fit=fit)
    return curves.plan(**budget, exponent=exponent)


def weighing(
    model: nn.Module,
    curves: Curves,
    budget: Mapping[str, float | None],
    exponent: float | None,
    progress: Progress | None = None,
    *,
    fit: How | None = None,
) -> float:
    """The given exponent, or with thorough effort the one whose plan does best in a quick trial.

    Of a language model losses are in nats, which are summed, and there is no trial.

    A trial fits every layer in short, as `apply` will unless the model is large (then to the
    dense model's inputs), and compares outputs on the calibration examples (first of all the
    user's quality, where that weighs the layers); a quarter of the examples
    is held out of the fits, for there a model that knows the others by heart gives itself
    away. Which plan is best depends on the fit: what a layer loses is mended in part by those
    behind it when these are fitted to what it gives.
    """
    known = curves.data
    if known is None or exponent is not None or not known.effort.trials or known.words:
        return curves.exponent if exponent is None else exponent
    plans = {e: curves.plan(**budget, exponent=e) for e in EXPONENTS}
    model = opened_for(model, plans[EXPONENTS[0]])
    data, held = known.parted(model)
    examples = [*data.batches, *held]
    work = curves.total.macs * sum(map(batch_size, examples))
    how: How = fit or ("sequential" if work <= _TRIAL_WORK else "parallel")
    lost: dict[float, tuple[float, float]] = {}
    for done, (e, plan) in enumerate(plans.items()):
        if progress is not None:
            progress("weighing layers", done, len(plans))
        same = next((d for d in lost if plans[d].layers == plan.layers), None)
        lost[e] = lost[same] if same is not None else _trial(model, plan, data, examples, how)
    best = min(lost, key=lost.__getitem__)
    return curves.exponent if lost[best][1] == inf else best


def _trial(
    model: nn.Module, plan: Plan, data: Statistics, examples: Sequence[Example], how: How
) -> tuple[float, float]:
    """What a plan loses: of the user's quality if that weighs layers, and of the outputs."""
    small, _ = replace_layers(model, plan, data, how, max_iter=_TRIAL_STEPS)
    scorer = data.weighting if callable(data.weighting) else None
    quality = 0.0 if scorer is None else score(scorer, small, "a trial")
    try:
        return -quality, compare_on(model, small, examples, data.loss).loss
    except Unmatched:
        return -quality, 0.0 if scorer is not None else inf
