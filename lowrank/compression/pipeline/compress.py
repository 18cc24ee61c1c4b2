"""The whole of it in one call: measure, plan, replace, compare."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from lowrank.compression.calibration.effort import effort_of
from lowrank.compression.calibration.settings import Calibration, calibration_of
from lowrank.compression.gauges.memory import MemoryCheck, measure_memory
from lowrank.compression.gauges.quality import Scorer, check_drop, speaks
from lowrank.compression.gauges.timing import LatencyCheck, time_ratio
from lowrank.compression.network.cutting import few_of
from lowrank.compression.network.example import Example, Tally, batch_size, tallying, unwrapped
from lowrank.compression.pipeline.apply import (
    applied,
    check_refine,
    read_data,
    val_of,
)
from lowrank.compression.pipeline.forecast import expected
from lowrank.compression.pipeline.report import Report
from lowrank.compression.pipeline.selecting import Chooser, Chosen, check_select
from lowrank.compression.pipeline.sweep import smallest, smallest_of
from lowrank.compression.planning.budget import given_of
from lowrank.compression.planning.clock import TRIES, Timed, plan_on_the_clock, structure
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.measure import check_asked, measured, usable
from lowrank.compression.planning.rules import Named, Rules, rules_of
from lowrank.compression.planning.weighting import weighing
from lowrank.compression.structure.opening import opened, without_masks
from lowrank.compression.structure.plan import Plan
from lowrank.errors import BudgetError, InputError
from lowrank.progress import Progress, in_stages

if TYPE_CHECKING:
    from typing_extensions import Unpack


@torch.inference_mode(False)
def compress(
    model: nn.Module,
    example: Example,
    *,
    params: float | None = None,
    bytes: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    memory: float | None = None,
    max_drop: float | None = None,
    metric: Scorer | None = None,
    data: object = None,
    val: object = None,
    refine: bool | int = False,
    calibration: Calibration | None = None,
    rules: Rules | None = None,
    progress: Progress | None = None,
    **named: Unpack[Named],
) -> tuple[nn.Module, Report]:
    """A smaller copy of a trained network: factorized layers in place of dense ones.

    Every layer gets the method and rank, or stays dense, so that the summed error is least
    within the budget: without data the relative squared error of the weights; with data that
    of the layers' outputs, weighed by what the model's output feels of them. With data the
    layers are then fitted one after another to what the compressed ones before them produce,
    without gradient steps on the network. All arguments are checked before the model is run.

    Args:
        model: the trained network; left as it is. Of one that `torch.compile` or `DataParallel`
            wraps, what is inside is compressed and returned, to be wrapped anew.
        example: inputs of one forward pass: a tensor, a tuple or a dict of inputs.
        params: parameters to keep: a fraction in (0, 1] of the whole model, or a whole number.
        bytes: bytes of parameters to keep, and of what tells where they belong, likewise.
        macs: multiply-accumulates on the example to keep, likewise.
        latency: time of a forward pass on the example to keep, a fraction in (0, 1]. Layers are
            timed on the model's device with the number of threads that is set, and the result
            against the dense model, until the budget is met or four plans were tried. A model
            that cannot get faster comes back dense.
        memory: peak bytes of a forward pass (weights and activations) to keep, a fraction in
            (0, 1] or a whole number; the result's structure is run and measured.
        max_drop: instead of a budget: the smallest model in MACs whose metric is at most so
            much lower; `lowrank.compression.smallest` finds that in parameters too.
        metric: quality of a model, a function of it, the higher the better, for `max_drop`:
            accuracy, for instance.
        data: batches of inputs (a loader, a list, one tensor, or a pair with labels, which
            are not looked at) to plan and fit on; a few hundred examples do.
        val: batches on which the outputs of both models are compared; by default what the
            data holds beyond the calibration examples, else those, else the example.
        refine: block-wise refinement on the calibration data, without labels: True, or the
            number of gradient steps for a block; see `apply`.
        calibration: how many examples are used, what weighs the layers, how they are fitted,
            and the seed; see `Calibration`.
        rules: which layers may be replaced, and by what; see `Rules`.
        progress: called as (what, done, total).
        **named: `effort="quick"`, "default" or "thorough", what it may cost, and `cache=folder`,
            which keeps what was measured and fitted, see `Calibration`; and single rules by their
            names in `Rules`: `methods="channel_svd"`, `skip="fc"`, `only=`, `round_to=8`,
            `overrides={"fc": lowrank.ChannelSVD(8)}`, `int8=True`, `low_bits=True`,
            `stock=True`.

    Returns:
        The new model, made of stock `torch.nn` layers (with `stock=True` also where rarer
        methods are tried) on the same device and of the same type, and a report that lists
        every layer.

    Raises:
        BudgetError: no budget, one that makes no sense, or one that cannot be reached.
        InputError: bad names, NaN or Inf, a model or an example that cannot be used, or int8
            without a budget of bytes or without torchao.
        Interrupted: by Ctrl-C; it has the curves of the layers that were measured.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU())
        >>> small, report = lowrank.compress(net, torch.randn(1, 256), params=0.5)
        >>> report.kept("parameters") <= 0.5
        True
        >>> small(torch.randn(3, 256)).shape
        torch.Size([3, 256])
    """
    model, effort, cache = unwrapped(model), named.pop("effort", None), named.pop("cache", None)
    settings = calibration_of(calibration, effort=effort, cache=cache)
    rules = rules_of(rules, named)
    budget = {"params": params, "bytes": bytes, "macs": macs, "latency": latency, "memory": memory}
    _check_size(budget, max_drop, metric, rules)
    check_refine(refine, data)
    timed_too = {"latency": latency is not None, "memory": memory is not None}
    whole = opened(model, example, stock=rules.stock, skip=rules.skip, timed=latency is not None)
    if rules.select is not None:
        whole = without_masks(whole)
    check_asked(whole, example, rules, **timed_too, progress=progress)
    compared = val_of(val, example)
    read, rest = read_data(data, example, settings, rest=val is None)
    words = progress is not None and read is not None and speaks(whole, few_of(example, 1))
    if progress is not None:
        held = bool(compared or rest)
        known = expected(whole, example, read, settings, rules, held=held, words=words)
        progress(str(known), 0, 1)
    asked = timed_too["latency"], max_drop is not None, bool(refine)
    progress = in_stages(progress, _stages(settings, rules, read is not None, words, *asked))
    started, used = time.process_time(), model
    with tallying() as tally:
        curves = measured(whole, example, read, settings, rules, **timed_too, progress=progress)
        with usable(lambda: (_MEASURED, curves), settings.cache):
            chooser, timed, teacher = None, None, None
            if progress is not None and max_drop is None:
                progress("planning", 0, 1)
            exponent = curves.exponent
            if max_drop is None:
                exponent = _exponent(model, curves, budget, rules, settings, progress)
            if rules.select is not None:
                chooser = Chooser.of(
                    model, whole, example, curves, exponent, rules, settings, progress
                )
            if max_drop is not None and metric is not None:
                plan, _, curves, used, teacher = _within_drop(
                    model, chooser or curves, metric, max_drop, refine, settings, progress
                )
            elif chooser is not None:
                plan, timed, curves, used, teacher = chooser.choose(budget, progress)
            else:
                plan, timed = _planned(model, example, curves, budget, exponent)
            small, report = applied(
                used,
                plan,
                dense=model,
                example=example,
                data=curves.data,
                teacher=teacher,
                val=compared or rest,
                settings=settings,
                refine=refine,
                progress=progress,
            )
    report = _checked(model, small, example, curves, timed, report)
    if chooser is not None:
        report = replace(report, staying=chooser.staying)
    spent = time.process_time() - started
    return small, replace(report, remarks=(*report.remarks, *_spent(curves, tally, spent)))


def _stages(
    settings: Calibration,
    rules: Rules,
    data: bool,
    words: bool,
    latency: bool,
    max_drop: bool,
    refine: bool,
) -> list[str]:
    """What a compression goes through, each by the word that tells it."""
    effort, weighting = effort_of(settings.effort), settings.weighting
    weighed = data and effort.trials and settings.exponent is None and not max_drop and not words
    quiet = ("gradients", "outputs", *(("probe",) if words else ()))
    probed = data and effort.probes and weighting not in quiet
    every = {
        "calibrating": data, "measuring": True, "narrowing": words and rules.free,
        "timing": latency, "probing": probed,
        "trying": max_drop, "planning": not max_drop, "weighing": weighed, "fitting": True,
        "refining": refine, "checking": True,
    }  # fmt: skip
    return [name for name, there in every.items() if there]


_MEASURED = "interrupted with all layers measured"
"""How far it was where the fits are interrupted."""


def _spent(curves: Curves, tally: Tally, seconds: float) -> list[str]:
    """What compressing took, where data tells how many passes that is."""
    if curves.data is None:
        return []
    n = sum(map(batch_size, curves.data.batches))
    passes = f"{tally.passes / n:.1f} forward passes over the {n} examples"
    return [
        f"compressing took {passes} (a backward pass is two), {seconds:.0f} s of one core in all"
    ]


def _check_size(
    budget: Mapping[str, float | None],
    max_drop: float | None,
    metric: Scorer | None,
    rules: Rules,
) -> None:
    """Refuse a budget that makes no sense, none, or two that settle the same."""
    if max_drop is None:
        given_of(budget)
        if metric is not None:
            problem = "there is no max_drop that it measures"
            raise InputError("metric", problem, "pass max_drop=0.01, say")
    elif given := [name for name, value in budget.items() if value is not None]:
        problem = f"given beside {', '.join(given)}, which settles the size already"
        raise BudgetError("max_drop", problem, "give one or the other")
    elif metric is None:
        problem = "there is no metric to measure it by"
        raise InputError("max_drop", problem, "pass metric=, a function of a model")
    else:
        check_drop(metric, max_drop)
    if rules.select is not None:
        check_select(budget, rules)
    for name in ("int8", "low_bits"):
        if getattr(rules, name) and budget["bytes"] is None:
            raise InputError(name, "there is no budget of bytes", f"pass bytes=0.2, or drop {name}")


def _within_drop(
    model: nn.Module,
    known: Curves | Chooser,
    metric: Scorer,
    most: float,
    refine: bool | int,
    settings: Calibration,
    progress: Progress | None,
) -> Chosen:
    """The plan of the smallest model within the drop; all dense if there is none."""
    if isinstance(known, Curves):
        curves = known
        found = smallest(model, curves, metric, most, refine=refine, progress=progress)
        if found is not None:
            return Chosen(found[1], None, curves, model)
    else:
        curves = known.curves
        best = smallest_of(
            model, known.reaching("macs"), metric, most,
            refine=refine, settings=settings, progress=progress,
        )  # fmt: skip
        if best is not None:
            return best[1]
    plan = curves.dense(f"no smaller model loses at most {most:g} of the metric", {})
    return Chosen(plan, None, curves, model)


def _exponent(
    model: nn.Module,
    curves: Curves,
    budget: Mapping[str, float | None],
    rules: Rules,
    settings: Calibration,
    progress: Progress | None,
) -> float:
    """How strongly layers are weighed; where channels go, too, factors alone may not reach the
    budget that weightings are tried at."""
    if rules.methods == ():
        return curves.exponent
    try:
        return weighing(model, curves, budget, settings.exponent, progress, fit=settings.fit)
    except BudgetError:
        if rules.select is None:
            raise
        return curves.exponent


def _planned(
    model: nn.Module,
    example: Example,
    curves: Curves,
    budget: Mapping[str, float | None],
    exponent: float,
) -> tuple[Plan, Timed | None]:
    """The plan, and under a latency budget what its structure took.

    Raises:
        BudgetError: factors do not reach it; channels may, if there is none of memory.
    """
    try:
        return _by_factors(model, example, curves, budget, exponent)
    except BudgetError as error:
        if budget["memory"] is not None:
            raise
        advice = f'{error.advice}, or let channels go, too: select="lasso"'
        raise BudgetError(error.where, error.problem, advice) from None


def _by_factors(
    model: nn.Module,
    example: Example,
    curves: Curves,
    budget: Mapping[str, float | None],
    exponent: float,
) -> tuple[Plan, Timed | None]:
    wanted = budget["latency"]

    def within(limit: float | None) -> Plan:
        mine = {**budget, "latency": limit}
        if budget["memory"] is None:
            return curves.plan(**mine, exponent=exponent)
        return _within_memory(model, example, curves, mine, exponent)

    if wanted is None:
        return within(None), None
    timed = plan_on_the_clock(model, example, curves, wanted, within)
    return timed.plan, timed


def _within_memory(
    model: nn.Module,
    example: Example,
    curves: Curves,
    budget: Mapping[str, float | None],
    exponent: float,
) -> Plan:
    """The plan whose structure meets a memory budget when it is run: what is predicted to fit
    and does not is planned anew, with as much less.

    Raises:
        BudgetError: no plan does.
    """
    assert curves.memory is not None
    limit = asked = _bytes_within(budget["memory"], curves.memory.dense.total)
    taken: list[int] = []
    while len(taken) < TRIES and asked > 1:
        try:
            plan = curves.plan(**{**budget, "memory": asked}, exponent=exponent)
        except BudgetError:
            if not taken:
                raise
            break
        taken.append(measure_memory(structure(model, plan), example).total)
        if taken[-1] <= limit:
            return replace(plan, budget={**plan.budget, "memory": budget["memory"] or 0.0})
        asked -= taken[-1] - limit
    problem = f"{limit:,} bytes were not met by {len(taken)} plans; the best takes {min(taken):,}"
    raise BudgetError("memory", problem, "raise it, or allow more layers or methods")


def _bytes_within(given: float | None, whole: int) -> int:
    """The bytes that a memory budget allows."""
    assert given is not None
    return int(given * whole if given <= 1 else given)


def _checked(
    model: nn.Module,
    small: nn.Module,
    example: Example,
    curves: Curves,
    timed: Timed | None,
    report: Report,
) -> Report:
    """The report with the finished model's time and memory beside what was asked for."""
    given = report.plan.budget
    if timed is not None:
        found = time_ratio(model, small, example)
        check = LatencyCheck(given["latency"], timed.predicted, found, timed.tries)
        before = replace(report.dense, latency=found.dense)
        after = replace(report.compressed, latency=found.compressed)
        report = replace(report, latency=check, dense=before, compressed=after)
    if curves.memory is not None:
        dense, value = curves.memory.dense.total, given["memory"]
        limit = _bytes_within(value, dense)
        memory = MemoryCheck(limit, dense, measure_memory(small, example).total)
        report = replace(report, memory=memory)
    return report
