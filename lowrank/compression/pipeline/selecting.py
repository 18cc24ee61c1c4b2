"""Channels that go and factors for what stays, in one plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from typing import NamedTuple, cast

from torch import nn

from lowrank.compression.calibration.calibrate import Calibrated, outputs_of
from lowrank.compression.calibration.effort import EFFORTS
from lowrank.compression.calibration.settings import Calibration
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.fitting.batchnorm import renormalise
from lowrank.compression.fitting.layerwise import replace_layers
from lowrank.compression.gauges.quality import Unmatched, compare_on
from lowrank.compression.gauges.timing import Comparison, time_ratio
from lowrank.compression.network.channels.narrowing import Narrowed, narrow
from lowrank.compression.network.channels.units import find_channels
from lowrank.compression.network.cutting import rows_of, split_batches
from lowrank.compression.network.example import Example, batch_size, run
from lowrank.compression.network.layers import own_shapes
from lowrank.compression.network.scan import scan
from lowrank.compression.planning.budget import budget_of, refusal
from lowrank.compression.planning.clock import AIM, TRIES, Timed, plan_on_the_clock
from lowrank.compression.planning.curves import NO_FASTER, Curves
from lowrank.compression.planning.measure import measured
from lowrank.compression.planning.rules import Rules
from lowrank.compression.planning.selection import Score
from lowrank.compression.planning.selection.cut import cut_statistics
from lowrank.compression.planning.selection.narrowed import narrowed_model, proven
from lowrank.compression.planning.selection.path import Count, Selection, Step, select
from lowrank.compression.structure.history import copy_model
from lowrank.compression.structure.plan import Plan
from lowrank.errors import BudgetError, InputError
from lowrank.progress import Progress


def expected_passes(rules: Rules, *, norms: bool, kept: bool) -> float:
    """Forward passes over the examples that choosing takes, beside those of factors.

    Args:
        rules: the user's.
        norms: the model has batch norms, which are estimated anew.
        kept: the dense model's outputs are known from calibrating.
    """
    if rules.select is None or rules.methods == ():
        return 0.0
    passes = 1.0 + 1.25 * norms + (0.0 if kept else 1.0 + 0.25 * norms)
    return len(_SHARES) * passes / _TRIED


_SHARES = (0.0, 0.35, 0.7)
"""Shares of what must be saved that channels save, each of them tried; factors save the rest."""

_TRIAL_STEPS = 30
"""Iterations of each fit of a trial."""

_TRIED = 6
"""One of so many examples is one that trials are compared on."""

_LOOK = 0.3
"""Seconds that each look at the clock takes while widths are searched for."""

_FAR = 1.05
"""How far beyond a budget of time the clock may be before that counts as out of reach."""

ALONE = "channels alone are selected: no method was named"
"""Why layers stay dense where nothing is factorized."""

Budgets = Mapping[str, float | None]


class Chosen(NamedTuple):
    """A plan, what its structure took, its curves, the model without the channels that go, and
    where some do the dense one, at which fits aim."""

    plan: Plan
    timed: Timed | None
    curves: Curves
    model: nn.Module
    teacher: nn.Module | None = None


BUDGETS: Budgets = dict.fromkeys(("params", "bytes", "macs", "latency", "memory"))
"""None of them."""


def check_select(budget: Budgets, rules: Rules) -> None:
    """Refuse what channels cannot be selected for.

    Raises:
        InputError: it names what is not served beside selection.
    """
    beside = {"memory": budget["memory"]}
    if rules.methods == ():
        beside |= {"int8": rules.int8 or None, "low_bits": rules.low_bits or None}
    for name, value in beside.items():
        if value is not None:
            advice = f"drop {name}, or budget params, bytes, macs or latency"
            if name != "memory":
                advice = f"name methods beside select, or drop {name}"
            raise InputError("select", f"channels are not selected beside {name}", advice)


@dataclass(frozen=True, eq=False)
class Chooser:
    """Plans with fewer channels for any budget, from one calibration.

    Args:
        model: the dense network.
        whole: it with packed modules taken apart.
        example: inputs of one forward pass.
        curves: of the dense layers.
        selection: the curves of the channels.
        staying: layer -> why its channels stay.
        exponent: how layers are weighed.
        rules: the user's.
        settings: of the calibration.
    """

    model: nn.Module
    whole: nn.Module
    example: Example
    curves: Curves
    selection: Selection
    staying: Mapping[str, str]
    exponent: float
    rules: Rules
    settings: Calibration

    @classmethod
    def of(
        cls,
        model: nn.Module,
        whole: nn.Module,
        example: Example,
        curves: Curves,
        exponent: float,
        rules: Rules,
        settings: Calibration,
        progress: Progress | None,
    ) -> Chooser:
        """Follow the channels of a model, and order them."""
        found = scan(whole, example)
        left_out, _ = rules.ruled_out(found)
        channels = find_channels(whole, example, found, left_out)
        channels, failed = proven(whole, example, channels)
        selection = select(
            whole, found, channels, curves.total, curves.data,
            score=cast(Score, rules.select), exponent=exponent,
            round_to=rules.round_to, seed=curves.calibration.seed,
            progress=progress,
        )  # fmt: skip
        staying = {**left_out, **channels.reasons, **failed}
        return cls(model, whole, example, curves, selection, staying, exponent, rules, settings)

    def choose(self, budget: Budgets, progress: Progress | None = None) -> Chosen:
        """The plan that loses least of the outputs, of those in which channels save more or less.

        Args:
            budget: as it was given.
            progress: called as (what, done, total).

        Raises:
            BudgetError: neither channels nor factors reach it.
        """
        setting = _Setting(self, budget)
        tried: list[_Tried] = []
        refused: BudgetError | None = None
        steps = setting.steps()
        for done, step in enumerate(steps):
            if progress is not None:
                progress("trying fewer channels", done, len(steps))
            try:
                tried.append((setting.planned(step), step))
            except BudgetError as error:
                refused = error
                if not tried and step is steps[-1] and step is not setting.last:
                    steps.append(setting.last)
        if not tried:
            if refused is not None and refused.least and budget["latency"] is None:
                raise refusal(budget_of(self.curves.wholes, budget), refused.least)
            raise refused or BudgetError("budget", "no channel may go", "name methods, or raise it")
        if (wanted := budget["latency"]) is not None:
            tried = _in_time(tried, wanted)
        chosen, step = tried[0]
        if len(tried) > 1:
            chosen, step = min(tried, key=lambda one: setting.lost(*one))
        return setting.settled(chosen, step)

    def reaching(self, measure: Count) -> Callable[[float], Chosen | None]:
        """The plan for a kept fraction of a measure; None where it cannot be reached."""

        def reach(keep: float) -> Chosen | None:
            try:
                return self.choose({**BUDGETS, measure: keep})
            except BudgetError:
                return None

        return reach


_Tried = tuple[Chosen, Step]


def _in_time(tried: list[_Tried], wanted: float) -> list[_Tried]:
    """Those that meet a budget of time; where none does, the fastest.

    Raises:
        BudgetError: that is far from it.
    """
    ratios = [one.timed.ratio if one.timed is not None else 1.0 for one, _ in tried]
    met = [t for t, ratio in zip(tried, ratios, strict=True) if ratio <= wanted]
    if not met and min(ratios) > _FAR * wanted:
        problem = f"{wanted:g} was not met by {len(tried)} plans with fewer channels; "
        problem += f"the fastest takes {min(ratios):.3f} of the time"
        raise BudgetError("latency", problem, "raise it, or time a larger example")
    return met or [tried[ratios.index(min(ratios))]]


@dataclass(frozen=True, eq=False)
class _Setting:
    """All that the plans for a budget follow from; see `Chooser.choose`."""

    chooser: Chooser
    budget: Budgets

    @property
    def _alone(self) -> bool:
        """Whether nothing is factorized."""
        return self.chooser.rules.methods == ()

    @property
    def _limits(self) -> dict[Count, float]:
        """Measure -> what it may come to."""
        counts: tuple[Count, ...] = ("params", "bytes", "macs")
        given = {c: v for c in counts if (v := self.budget[c]) is not None}
        whole = self.chooser.curves.total
        return {c: v * getattr(whole, c) if v <= 1 else v for c, v in given.items()}

    @cached_property
    def path(self) -> list[Step]:
        """From all channels down, as far as the budget asks for."""
        least = 0.0 if self.budget["latency"] is not None else self._limits[self._count]
        return self.chooser.selection.path(self._count, least=least)

    @property
    def _count(self) -> Count:
        return next(iter(self._limits), "macs")

    @cached_property
    def last(self) -> Step:
        """The point at which channels alone meet the budget; else the last of the path."""
        last = self.chooser.selection.reach(self.path, self._limits) or self.path[-1]
        if (latency := self.budget["latency"]) is not None:
            last = max(last, self._fast(self.path, latency), key=lambda s: len(s.dropped))
        return last

    def steps(self) -> list[Step]:
        """Points of the path, from no channel gone to as many as the budget asks for."""
        latency, last, count = self.budget["latency"], self.last, self._count
        selection, total = self.chooser.selection, self.chooser.curves.total
        if self._alone:
            return [last]
        whole, limit = getattr(total, count), getattr(last.cost, count)
        goals: list[dict[Count, float]] = [{count: whole - s * (whole - limit)} for s in _SHARES]
        if latency is not None:
            goals = goals[:-1]
        found = [selection.reach(self.path, goal) for goal in goals] + [last] * (
            latency is not None
        )
        return list({len(s.dropped): s for s in found if s is not None}.values())

    def _fast(self, path: list[Step], latency: float) -> Step:
        """The first point of the path that is fast enough by itself, by halves."""
        low, high, apart = 0, len(path) - 1, max(1, len(path) // 32)
        while high - low > apart:
            middle = (low + high) // 2
            if self._time(path[middle], _LOOK).ratio <= AIM * latency:
                high = middle
            else:
                low = middle
        for _ in range(TRIES):  # a short look at the clock may be off
            if high == len(path) - 1 or self._time(path[high]).ratio <= AIM * latency:
                break
            high = min(high + apart, len(path) - 1)
        return path[high]

    def _time(self, step: Step, enough: float = 1.0) -> Comparison:
        """The model without these channels on the clock."""
        small = copy_model(self.chooser.whole)
        narrow(small, self._narrowed(step))
        return time_ratio(self.chooser.model, small, self.chooser.example, enough=enough)

    def _narrowed(self, step: Step) -> dict[str, Narrowed]:
        return self.chooser.selection.narrowed(step.dropped)

    def planned(self, step: Step) -> Chosen:
        """The plan of what stays behind a step."""
        chooser, wanted = self.chooser, self.budget["latency"]
        small, curves, teacher = chooser.whole, chooser.curves, None
        if step.dropped:
            teacher = chooser.whole
            small = narrowed_model(chooser.whole, self._narrowed(step), curves.data)
            curves = self._curves(small, step, short=wanted is None)
        if wanted is None:
            return Chosen(self._plan(curves, step, None), None, curves, small, teacher)
        timed = self._timed(step, curves, wanted)
        return Chosen(timed.plan, timed, curves, small, teacher)

    def _timed(self, step: Step, curves: Curves, wanted: float) -> Timed:
        """The plan behind a step whose structure was timed; where no factor helps, the step."""
        chooser = self.chooser
        try:
            if not self._alone:
                return plan_on_the_clock(
                    chooser.model, chooser.example, curves, wanted,
                    lambda limit: self._plan(curves, step, limit),
                )  # fmt: skip
        except BudgetError:
            if not step.dropped:
                raise
        plan = self._within(self._checked(curves, step), step)
        found = self._time(step).ratio
        return Timed(plan, found, found, 1)

    def _curves(self, small: nn.Module, step: Step, *, short: bool) -> Curves:
        """Of a model with fewer channels, by the moments of the whole one."""
        chooser = self.chooser
        narrowed, data = self._narrowed(step), chooser.curves.data
        effort = EFFORTS["quick"] if short else None
        if data is not None:
            data = cut_statistics(data, small, narrowed, effort)
        if self._alone:
            return _bare(chooser.curves, small, data)
        curves = measured(
            small, chooser.example, data, chooser.settings, chooser.rules,
            latency=self.budget["latency"] is not None,
        )  # fmt: skip
        known = {c.layer: c.importance for c in chooser.curves.curves}
        rows = [replace(c, importance=known.get(c.layer, c.importance)) for c in curves.curves]
        return replace(curves, curves=tuple(rows))

    def settled(self, chosen: Chosen, step: Step) -> Chosen:
        """The plan that was chosen, with all the effort that was asked for."""
        if not step.dropped or chosen.curves.data is None:
            return chosen
        if chosen.timed is not None or self._alone:
            return chosen
        curves = self._curves(chosen.model, step, short=False)
        return chosen._replace(plan=self._plan(curves, step, None), curves=curves)

    def _plan(self, curves: Curves, step: Step, limit: float | None) -> Plan:
        """The plan within a predicted fraction of the dense model's time, and the other budgets."""
        if self._alone:
            return self._within(self._checked(curves, step), step)
        plan = curves.plan(**self._left(curves, limit), exponent=self.chooser.exponent)
        return self._within(plan, step)

    def _within(self, plan: Plan, step: Step) -> Plan:
        """A plan of what stays, as one of the whole model for the budget that was given."""
        given = {k: float(v) for k, v in self.budget.items() if v is not None}
        return replace(self._merged(plan, step), budget=given)

    def _left(self, curves: Curves, limit: float | None) -> dict[str, float]:
        """The budget of a model that is narrower already."""
        left: dict[str, float] = {}
        for name, most in self._limits.items():
            now = getattr(curves.total, name)
            whole = int(most) if most >= 2 else most / now  # 1 is all, as a fraction
            left[name] = whole if most < now else 1.0
        before, after = self.chooser.curves.timing, curves.timing
        if limit is not None and before is not None and after is not None:
            left["latency"] = min(1.0, limit * before.whole / after.whole)
        return left

    def _checked(self, curves: Curves, step: Step) -> Plan:
        for name, most in self._limits.items():
            least = getattr(step.cost, name)
            if least > most:
                whole = getattr(self.chooser.curves.total, name)
                problem = f"{name}={self.budget[name]} cannot be reached by fewer channels alone; "
                problem += f"the smallest is {least / whole:.4f}"
                raise BudgetError("budget", problem, "raise it, or name methods beside select")
        return curves.dense(ALONE if self._alone else NO_FASTER, {})

    def _merged(self, plan: Plan, step: Step) -> Plan:
        """The plan with the channels that go before, and costs beside those of the whole layers."""
        if not step.dropped:
            return plan
        selection, narrowed = self.chooser.selection, self._narrowed(step)
        rows = dict(plan.layers)
        for name in narrowed.keys() & selection.views.keys():
            dense = selection.views[name].cost()
            small = selection.cost_of(name, step.dropped)
            rows[name] = replace(rows[name], dense=dense, cost=rows[name].cost or small)
        return replace(plan, layers=rows, total=self.chooser.curves.total, narrowed=narrowed)

    def lost(self, chosen: Chosen, step: Step) -> float:
        """What a plan loses of the outputs, by a fit in short; without data what it predicts."""
        data = chosen.curves.data
        if data is None:
            return chosen.plan.error + step.lost
        chooser, (few, known) = self.chooser, self._few
        small, _ = replace_layers(
            chosen.model, chosen.plan, data, "parallel", max_iter=_TRIAL_STEPS
        )
        renormalise(chooser.whole, small, few, data.loss, known=known)
        try:
            wanted = known.outputs_on(rows_of(few))
            return compare_on(chooser.model, small, few, data.loss, wanted=wanted).loss
        except Unmatched:
            return inf

    @cached_property
    def _few(self) -> tuple[list[Example], Calibrated]:
        """The first of the examples, and what is known of them."""
        data, model = self.chooser.curves.data, self.chooser.model
        assert data is not None
        wanted = max(1, sum(map(batch_size, data.batches)) // _TRIED)
        few = split_batches(data.batches, wanted, model)[:1]
        known = data.calibrated
        if not known.outputs:
            known = replace(known, outputs=outputs_of([run(model, few[0])], few))
        return few, known


def _bare(curves: Curves, small: nn.Module, data: Statistics | None) -> Curves:
    """Curves of a narrower model of which nothing is factorized."""
    modules = dict(small.named_modules())
    shapes = {name: own_shapes(modules[name]) for name in curves.shapes}
    return replace(curves, shapes=shapes, data=data)
