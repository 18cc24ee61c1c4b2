"""The whole of it in one call: measure, plan, replace, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from lowrank.compression.calibration.settings import Calibration, calibration_of
from lowrank.compression.gauges.memory import MemoryCheck, measure_memory
from lowrank.compression.gauges.quality import Scorer, check_drop
from lowrank.compression.gauges.timing import LatencyCheck, time_ratio
from lowrank.compression.methods import MethodsLike
from lowrank.compression.network.example import Example
from lowrank.compression.pipeline.apply import applied, check_refine, read_data, val_of
from lowrank.compression.pipeline.report import Report
from lowrank.compression.planning.budget import given_of
from lowrank.compression.planning.clock import Timed, plan_on_the_clock
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.measure import check_asked, measured
from lowrank.compression.planning.rules import Rules, rules_of
from lowrank.compression.planning.weighting import weighing
from lowrank.compression.structure.plan import Plan
from lowrank.errors import BudgetError, InputError
from lowrank.progress import Progress


def compress(
    model: nn.Module,
    example: Example,
    *,
    params: float | None = None,
    bytes: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
    memory: float | None = None,
    max_drop: tuple[Scorer, float] | None = None,
    data: object = None,
    val: object = None,
    refine: bool | int = False,
    methods: MethodsLike = None,
    skip: str | Sequence[str] = (),
    calibration: Calibration | None = None,
    rules: Rules | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """A smaller copy of a trained network: factorized layers in place of dense ones.

    Every layer gets the method and rank, or stays dense, so that the summed error is least
    within the budget: without data the relative squared error of the weights; with data that
    of the layers' outputs, weighed by what the model's output feels of them. With data the
    layers are then fitted one after another to what the compressed ones before them produce,
    without gradient steps on the network. All arguments are checked before the model is run.

    Args:
        model: the trained network; left as it is.
        example: inputs of one forward pass: a tensor, a tuple or a dict of inputs.
        params: parameters to keep: a fraction in (0, 1] of the whole model, or a whole number.
        bytes: bytes of parameters to keep, likewise.
        macs: multiply-accumulates on the example to keep, likewise.
        latency: time of a forward pass on the example to keep, a fraction in (0, 1]. Layers are
            timed on the model's device with the number of threads that is set, and the result
            against the dense model, until the budget is met or four plans were tried. A model
            that cannot get faster comes back dense.
        memory: peak bytes of a forward pass (weights and activations) to keep, a fraction in
            (0, 1] or a whole number.
        max_drop: instead of a budget, a metric and a drop, such as (accuracy, 0.01): the
            smallest model in MACs whose metric, a function of a model, the higher the better,
            is at most so much lower; `lowrank.compression.pipeline.sweep.smallest` finds that in
            parameters too.
        data: batches of inputs (a loader, a list, one tensor, or a pair with labels, which
            are not looked at) to plan and fit on; a few hundred examples do.
        val: batches on which the outputs of both models are compared; by default what the
            data holds beyond the calibration examples, else those, else the example.
        refine: block-wise refinement on the calibration data, without labels: True, or the
            number of gradient steps for a block; see `apply`.
        methods: names such as "channel_svd", or classes, of the methods that may be used, one
            or several; all by default.
        skip: layers to leave dense: names or patterns such as "layer1.*", one or several.
        calibration: how many examples are used, what weighs the layers, how they are fitted,
            and the seed; see `Calibration`.
        rules: the other rules for layers: `only`, `overrides`, `round_to`, and `int8`, by which
            ranks and bits share the budget of `bytes`; see `Rules`.
        progress: called as (what, done, total).

    Returns:
        The new model, made of stock `torch.nn` layers on the same device and of the same
        type, and a report that lists every layer.

    Raises:
        BudgetError: no budget, one that makes no sense, or one that cannot be reached.
        InputError: bad names, NaN or Inf, a model or an example that cannot be used, or int8
            without a budget of bytes or without torchao.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU())
        >>> small, report = lowrank.compress(net, torch.randn(1, 256), params=0.5)
        >>> report.kept("parameters") <= 0.5
        True
        >>> small(torch.randn(3, 256)).shape
        torch.Size([3, 256])
    """
    rules, settings = rules_of(rules, methods, skip), calibration_of(calibration)
    budget = {"params": params, "bytes": bytes, "macs": macs, "latency": latency, "memory": memory}
    _check_size(budget, max_drop, rules)
    check_refine(refine, data)
    timed_too = {"latency": latency is not None, "memory": memory is not None}
    check_asked(model, example, rules, **timed_too, progress=progress)
    compared = val_of(val, example)
    read, rest = read_data(data, example, settings, rest=val is None)
    curves = measured(model, example, read, settings, rules, **timed_too, progress=progress)
    if max_drop is not None:
        plan, timed = _within_drop(model, curves, *max_drop, refine, progress), None
    else:
        exponent = weighing(model, curves, budget, settings.exponent, progress, fit=settings.fit)
        plan, timed = _planned(model, example, curves, budget, exponent)
    small, report = applied(
        model,
        plan,
        example=example,
        data=curves.data,
        val=compared or rest,
        settings=settings,
        refine=refine,
        progress=progress,
    )
    return small, _checked(model, small, example, curves, timed, report)


def _check_size(
    budget: Mapping[str, float | None], max_drop: tuple[Scorer, float] | None, rules: Rules
) -> None:
    """Refuse a budget that makes no sense, none, or two that settle the same."""
    if max_drop is None:
        given_of(budget)
    elif given := [name for name, value in budget.items() if value is not None]:
        problem = f"given beside {', '.join(given)}, which settles the size already"
        raise BudgetError("max_drop", problem, "give one or the other")
    else:
        if not isinstance(max_drop, tuple | list) or len(max_drop) != 2:
            problem = f"{max_drop!r} is no metric with a drop"
            raise InputError("max_drop", problem, "give (accuracy, 0.01), say")
        check_drop(*max_drop)
    if rules.int8 and budget["bytes"] is None:
        raise InputError("int8", "there is no budget of bytes", "pass bytes=0.2, or drop int8")


def _within_drop(
    model: nn.Module,
    curves: Curves,
    metric: Scorer,
    most: float,
    refine: bool | int,
    progress: Progress | None,
) -> Plan:
    """The plan of the smallest model within the drop; all dense if there is none."""
    from lowrank.compression.pipeline.sweep import smallest

    found = smallest(model, curves, metric, most, refine=refine, progress=progress)
    if found is not None:
        return found[1]
    return curves.dense(f"no smaller model loses at most {most:g} of the metric", {})


def _planned(
    model: nn.Module,
    example: Example,
    curves: Curves,
    budget: Mapping[str, float | None],
    exponent: float,
) -> tuple[Plan, Timed | None]:
    """The plan, and under a latency budget what its structure took."""
    wanted = budget["latency"]
    if wanted is None:
        return curves.plan(**budget, exponent=exponent), None

    def within(limit: float) -> Plan:
        return curves.plan(**{**budget, "latency": limit}, exponent=exponent)

    timed = plan_on_the_clock(model, example, curves, wanted, within)
    return timed.plan, timed


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
        limit = int(value * dense if value <= 1 else value)
        memory = MemoryCheck(limit, dense, measure_memory(small, example).total)
        report = replace(report, memory=memory)
    return report
