"""Plan by predicted latency, time the result, and plan again until the clock agrees.

What is timed is the plan's structure with random weights, so a plan that misses costs no fit.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import nn

from lowrank.compression.gauges.timing import Timer, time_ratio
from lowrank.compression.methods import Method
from lowrank.compression.network.example import Example
from lowrank.compression.network.units import key_of
from lowrank.compression.planning.budget import checked
from lowrank.compression.planning.curves import NO_FASTER, Curves
from lowrank.compression.planning.layer_times import fill
from lowrank.compression.structure.history import build_structure, copy_model, history
from lowrank.compression.structure.plan import Plan
from lowrank.errors import BudgetError

TRIES, MOST = 4, 8
"""Plans that are timed as a whole before the best of them is taken, and most of them while none
meets the budget or those that do leave much of it."""


SHARPER = 3
"""Most times that the candidates of a plan are timed themselves and the plan is made anew."""


AIM, SPENT, MUCH = 0.97, 0.92, 0.8
"""Shares of the budget: aimed at, for a clock never gives a figure twice; below which a plan leaves
quality on the table; and below which it leaves so much that more plans are worth their time."""


@dataclass(frozen=True)
class Timed:
    """A plan and what its structure took.

    Attributes:
        plan: what becomes of every layer.
        predicted: its time over the dense model's, from its layers' times.
        ratio: the same, measured on the whole structure.
        tries: how many plans were timed.
    """

    plan: Plan
    predicted: float
    ratio: float
    tries: int


def plan_on_the_clock(
    model: nn.Module,
    example: Example,
    curves: Curves,
    wanted: float,
    plan_within: Callable[[float], Plan],
    *,
    timer: Timer | None = None,
) -> Timed:
    """The plan of least error whose structure meets a latency budget when it is timed.

    Each try times the chosen candidates themselves and plans anew with that, then times the
    whole structure; the limit then moves by what was measured, and more are tried while none
    meets the budget or much of it is left. A model that comes out no faster stays dense.

    Args:
        model: the dense model.
        example: inputs of one forward pass.
        curves: measured with `latency=True`.
        wanted: time to keep, a fraction.
        plan_within: the plan for a predicted fraction; BudgetError where there is none.
        timer: seconds of one run; by default the clock that suits the device.

    Returns:
        Of the plans that met the budget the one that spends most of it; where none did, the
        fastest, or a dense plan if that is none.

    Raises:
        BudgetError: no plan is predicted to meet the budget.
    """
    assert curves.timing is not None
    tried: list[Timed] = []
    wanted = checked("latency", wanted)
    points: list[tuple[float, float]] = []
    limit = AIM * wanted
    for attempt in range(1, MOST + 1):
        met = [t.ratio for t in tried if t.ratio <= AIM * wanted]
        if attempt > TRIES and met and max(met) >= MUCH * wanted:
            break
        try:
            plan = _sharpened(curves, plan_within, limit)
        except BudgetError:
            if met:
                break
            if tried:  # between what is out of reach and what was too slow
                limit = (limit + points[-1][0]) / 2
                continue
            plan = _sharpened(curves, plan_within, wanted)
        if not plan.replaced and not plan.narrowed:
            tried.append(Timed(plan, 1.0, 1.0, len(tried)))
            break
        found = time_ratio(model, structure(model, plan), example, timer=timer)
        tried.append(Timed(plan, curves.timing.ratio(_keyed(plan)), found.ratio, len(tried) + 1))
        if SPENT * wanted <= found.ratio <= AIM * wanted:
            break
        points.append((limit, found.ratio))
        limit = _next_limit(points, AIM * wanted)
    return _best(curves, tried, wanted)


def _next_limit(points: list[tuple[float, float]], aim: float) -> float:
    """The predicted time to ask for, from what was asked for and measured so far.

    At first in proportion; then on the line through the last two, where that rises; at most halfway
    to nothing or to all of it.
    """
    limit, measured = points[-1]
    proposed = limit * aim / measured
    if len(points) > 1:
        before, measured_before = points[-2]
        if (limit - before) * (measured - measured_before) > 0:
            slope = (measured - measured_before) / (limit - before)
            proposed = limit + (aim - measured) / slope
    return min(max(proposed, limit / 2), (1 + limit) / 2)


def _best(curves: Curves, tried: list[Timed], wanted: float) -> Timed:
    met = [t for t in tried if t.ratio <= AIM * wanted]
    best = max(met, key=lambda t: t.ratio) if met else min(tried, key=lambda t: t.ratio)
    given = {**best.plan.budget, "latency": wanted}
    if best.plan.replaced and best.ratio >= 1 and not curves.fixed and len(given) == 1:
        return Timed(curves.dense(NO_FASTER, given), 1.0, 1.0, len(tried))
    return Timed(replace(best.plan, budget=given), best.predicted, best.ratio, len(tried))


def structure(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the model with the plan's stages, and random weights in them."""
    small = copy_model(model)
    build_structure(small, plan)
    rng = torch.Generator().manual_seed(plan.seed)
    for name in history(small)[-1].originals:
        fill(small.get_submodule(name), rng)
    return small


def _keyed(plan: Plan) -> dict[str, Method]:
    return {key_of(names): method for names, method in plan.units.items()}


def _sharpened(curves: Curves, plan_within: Callable[[float], Plan], limit: float) -> Plan:
    """The plan for a limit, made anew while timing its candidates changes it."""
    assert curves.timing is not None
    plan = plan_within(limit)
    curves.timing.sharpen(_keyed(plan))
    with suppress(BudgetError):  # then the last plan is the nearest
        for _ in range(SHARPER):
            again = plan_within(limit)
            if again.units == plan.units:
                break
            plan = again
            curves.timing.sharpen(_keyed(plan))
    return plan
