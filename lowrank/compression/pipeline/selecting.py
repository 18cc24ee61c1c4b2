"""Channels that go and factors for what stays, in one plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple, cast

from torch import nn

from lowrank.compression.calibration.settings import Calibration
from lowrank.compression.fitting.batchnorm import renormalise
from lowrank.compression.fitting.layerwise import replace_layers
from lowrank.compression.gauges.quality import Unmatched, compare_on
from lowrank.compression.gauges.timing import time_ratio
from lowrank.compression.network.channels.narrowing import narrow
from lowrank.compression.network.channels.units import find_channels
from lowrank.compression.network.example import Example
from lowrank.compression.network.scan import scan
from lowrank.compression.planning.clock import AIM, Timed, plan_on_the_clock
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.measure import measured
from lowrank.compression.planning.rules import Rules
from lowrank.compression.planning.selection import Score
from lowrank.compression.planning.selection.narrowed import narrowed_model, proven
from lowrank.compression.planning.selection.path import Count, Selection, Step, select
from lowrank.compression.structure.history import copy_model
from lowrank.compression.structure.plan import Plan
from lowrank.errors import BudgetError, InputError
from lowrank.progress import Progress

_SHARES = (0.0, 0.35, 0.7)
"""Shares of what must be saved that channels save, each of them tried; factors save the rest."""

_TRIAL_STEPS = 30
"""Iterations of each fit of a trial."""

Budgets = Mapping[str, float | None]


class Chosen(NamedTuple):
    """A plan, what its structure took, its curves, and the model without the channels that go."""

    plan: Plan
    timed: Timed | None
    curves: Curves
    model: nn.Module


def check_select(budget: Budgets, max_drop: float | None, rules: Rules) -> None:
    """Refuse what channels cannot be selected for.

    Raises:
        InputError: it names what is not served beside selection.
    """
    beside = {"max_drop": max_drop, "memory": budget["memory"], "int8": rules.int8 or None}
    beside["low_bits"] = rules.low_bits or None
    for name, value in beside.items():
        if value is not None:
            advice = f"drop {name}, or budget params, bytes, macs or latency"
            raise InputError("select", f"channels are not selected beside {name}", advice)


def find_selection(
    model: nn.Module,
    example: Example,
    curves: Curves,
    rules: Rules,
    *,
    exponent: float = 0.5,
    progress: Progress | None = None,
) -> tuple[Selection, dict[str, str]]:
    """The curve of every unit of a model, and why some of its channels stay.

    Args:
        model: the dense network; left as it is.
        example: inputs of one forward pass.
        curves: of its layers.
        rules: the user's; layers that they leave dense keep their channels.
        exponent: how layers are weighed.
        progress: called as (unit, done, total).
    """
    found = scan(model, example)
    left_out, _ = rules.ruled_out(found)
    channels = find_channels(model, example, found, left_out)
    channels, failed = proven(model, example, channels)
    selection = select(
        model, found, channels, curves.total, curves.data,
        score=cast(Score, rules.select), exponent=exponent, seed=curves.calibration.seed,
        importance={c.layer: c.importance for c in curves.curves}, progress=progress,
    )  # fmt: skip
    return selection, {**channels.reasons, **failed}


def choose(
    model: nn.Module,
    whole: nn.Module,
    example: Example,
    curves: Curves,
    budget: Budgets,
    exponent: float,
    rules: Rules,
    settings: Calibration,
    progress: Progress | None,
) -> Chosen:
    """The plan that loses least of the outputs, of those in which channels save more or less.

    Args:
        model: the dense network.
        whole: it with packed modules taken apart.
        example: inputs of one forward pass.
        curves: of the dense layers.
        budget: as it was given.
        exponent: how layers are weighed.
        rules: the user's.
        settings: of the calibration.
        progress: called as (what, done, total).

    Raises:
        BudgetError: neither channels nor factors reach it.
    """
    selection, _ = find_selection(
        whole, example, curves, rules, exponent=exponent, progress=progress
    )
    setting = _Setting(model, whole, example, curves, selection, budget, exponent, rules, settings)
    tried, refused = [], None
    steps = setting.steps()
    for done, step in enumerate(steps):
        if progress is not None:
            progress("trying fewer channels", done, len(steps))
        try:
            chosen = setting.planned(step)
        except BudgetError as error:
            refused = error
            continue
        tried.append((setting.lost(chosen, step) if len(steps) > 1 else 0.0, chosen))
    if not tried:
        problem = "neither fewer channels nor factors reach it"
        raise refused or BudgetError("budget", problem, "raise it, or allow more layers or methods")
    wanted = budget["latency"]
    if wanted is not None:
        tried = _in_time(tried, wanted)
    return min(tried, key=lambda one: one[0])[1]


def _in_time(tried: list[tuple[float, Chosen]], wanted: float) -> list[tuple[float, Chosen]]:
    """Those that meet a latency budget; where none does, the fastest."""
    ratios = [one.timed.ratio if one.timed is not None else 1.0 for _, one in tried]
    met = [t for t, ratio in zip(tried, ratios, strict=True) if ratio <= wanted]
    return met or [tried[ratios.index(min(ratios))]]


@dataclass(frozen=True, eq=False)
class _Setting:
    """All that plans follow from; see `choose`."""

    model: nn.Module
    whole: nn.Module
    example: Example
    curves: Curves
    selection: Selection
    budget: Budgets
    exponent: float
    rules: Rules
    settings: Calibration

    @property
    def _limits(self) -> dict[Count, float]:
        """Measure -> what it may come to."""
        counts: tuple[Count, ...] = ("params", "bytes", "macs")
        given = {c: v for c in counts if (v := self.budget[c]) is not None}
        whole = self.curves.total
        return {c: v * getattr(whole, c) if v <= 1 else v for c, v in given.items()}

    def steps(self) -> list[Step]:
        """Points of the path, from no channel gone to as many as the budget asks for."""
        limits, latency = self._limits, self.budget["latency"]
        count: Count = next(iter(limits), "macs")
        path = self.selection.path(count, least=0.0 if latency is not None else limits[count])
        last = _at(path, limits) or path[-1]
        if latency is not None:
            last = max(last, self._fast(path, latency), key=lambda s: len(s.dropped))
        if self.rules.methods == ():
            return [last]
        total, limit = getattr(self.curves.total, count), getattr(last.cost, count)
        goals: list[dict[Count, float]] = [{count: total - s * (total - limit)} for s in _SHARES]
        found = [_at(path, goal) for goal in goals] + [last] * (latency is not None)
        return list({len(s.dropped): s for s in found if s is not None}.values())

    def _fast(self, path: list[Step], latency: float) -> Step:
        """The first point of the path that is fast enough by itself, by halves."""
        low, high = 0, len(path) - 1
        while high - low > max(1, len(path) // 32):
            middle = (low + high) // 2
            small = copy_model(self.whole)
            narrow(small, self.selection.narrowed(path[middle].dropped))
            if time_ratio(self.model, small, self.example).ratio <= AIM * latency:
                high = middle
            else:
                low = middle
        return path[high]

    def planned(self, step: Step) -> Chosen:
        """The plan of what stays behind a step."""
        rules, data = self.rules, self.curves.data
        if step.dropped:
            small = narrowed_model(self.whole, self.selection.narrowed(step.dropped), data)
            if data is not None:
                renormalise(self.whole, small, data.batches, data.loss)
            curves = measured(
                small, self.example, None if data is None else data.batches, self.settings, rules,
                latency=self.budget["latency"] is not None,
            )  # fmt: skip
        else:
            small, curves = self.whole, self.curves
        if (wanted := self.budget["latency"]) is None:
            return Chosen(self._plan(curves, step, None), None, curves, small)
        timed = plan_on_the_clock(
            self.model, self.example, curves, wanted, lambda limit: self._plan(curves, step, limit)
        )
        return Chosen(timed.plan, timed, curves, small)

    def _plan(self, curves: Curves, step: Step, limit: float | None) -> Plan:
        """The plan within a predicted fraction of the dense model's time, and the other budgets."""
        given = {k: float(v) for k, v in self.budget.items() if v is not None}
        if self.rules.methods == () and limit is None:
            plan = self._checked(curves, step)
        else:
            mine: dict[str, float] = {}
            for name, most in self._limits.items():
                mine[name] = int(most) if most < getattr(curves.total, name) else 1.0
            if limit is not None and curves.timing is not None and self.curves.timing is not None:
                mine["latency"] = min(1.0, limit * self.curves.timing.whole / curves.timing.whole)
            plan = curves.plan(**mine, exponent=self.exponent)
        return replace(self._merged(plan, step), budget=given)

    def _checked(self, curves: Curves, step: Step) -> Plan:
        for name, most in self._limits.items():
            least = getattr(step.cost, name)
            if least > most:
                whole = getattr(self.curves.total, name)
                problem = f"{name}={self.budget[name]} cannot be reached by fewer channels alone; "
                problem += f"the smallest is {least / whole:.4f}"
                raise BudgetError("budget", problem, "raise it, or name methods beside select")
        return curves.dense("its channels alone are selected", {})

    def _merged(self, plan: Plan, step: Step) -> Plan:
        """The plan with the channels that go before, and costs beside those of the whole layers."""
        if not step.dropped:
            return plan
        narrowed = self.selection.narrowed(step.dropped)
        rows = dict(plan.layers)
        for name in narrowed.keys() & self.selection.views.keys():
            dense = self.selection.views[name].cost()
            small = self.selection.cost_of(name, step.dropped)
            rows[name] = replace(rows[name], dense=dense, cost=rows[name].cost or small)
        return replace(plan, layers=rows, total=self.curves.total, narrowed=narrowed)

    def lost(self, chosen: Chosen, step: Step) -> float:
        """What a plan loses of the outputs, by a fit in short; without data what it predicts."""
        data = chosen.curves.data
        if data is None:
            return chosen.plan.error + step.lost
        small, _ = replace_layers(
            chosen.model, chosen.plan, data, self.settings.how, max_iter=_TRIAL_STEPS
        )
        renormalise(self.whole, small, data.batches, data.loss)
        try:
            return compare_on(self.model, small, data.batches, data.loss).loss
        except Unmatched:
            return inf


def _at(path: list[Step], limits: Mapping[Count, float]) -> Step | None:
    """The first point of the path within the limits."""
    within = (
        s for s in path if all(getattr(s.cost, name) <= most for name, most in limits.items())
    )
    return next(within, None)
