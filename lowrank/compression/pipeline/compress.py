"""The whole of it in one call: measure, plan, replace, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from lowrank.compression.calibration.calibrate import Loss
from lowrank.compression.calibration.goals import How
from lowrank.compression.calibration.statistics import Weighting
from lowrank.compression.gauges.memory import MemoryCheck, measure_memory
from lowrank.compression.gauges.quality import Scorer
from lowrank.compression.gauges.timing import LatencyCheck, compare
from lowrank.compression.methods import MethodsLike
from lowrank.compression.network.batches import check_batches
from lowrank.compression.network.example import Example
from lowrank.compression.pipeline.apply import apply
from lowrank.compression.pipeline.report import Report
from lowrank.compression.planning.clock import Timed, plan_on_the_clock
from lowrank.compression.planning.curves import Curves, all_dense
from lowrank.compression.planning.measure import measure
from lowrank.compression.planning.weighting import weighing
from lowrank.compression.structure.choices import Choice
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
    data: object = None,
    val: object = None,
    calibration: int = 256,
    loss: Loss | None = None,
    weighting: Weighting = "probe",
    exponent: float | None = None,
    fit: How | None = None,
    refine: bool | int = False,
    max_drop: float | None = None,
    metric: Scorer | None = None,
    methods: MethodsLike = None,
    skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
    overrides: Mapping[str, Choice] | None = None,
    round_to: int = 1,
    int8: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """A smaller copy of a trained network: factorized layers in place of dense ones.

    Every layer gets the method and rank, or stays dense, so that the summed error is least
    within the budget: without data the relative squared error of the weights; with data that
    of the layers' outputs, weighed by what the model's output feels of them. With data the
    layers are then fitted one after another to what the compressed ones before them produce,
    without gradient steps on the network.

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
        data: batches of inputs (a loader, a list, one tensor, or a pair with labels, which
            are not looked at) to plan and fit on; a few hundred examples do.
        val: batches on which the outputs of both models are compared; by default what the
            data holds beyond the calibration examples, else those, else the example.
        calibration: how many examples of the data are used.
        loss: whose gradients weigh the layers' outputs; see `measure`.
        weighting: "probe", "gradients", "outputs", or a function of a model whose value, the
            higher the better, tells what layers matter; see `measure`.
        exponent: how strongly layers are weighed by what the loss feels of them, 0 to 1; by
            default the best of 0, 0.5, 0.75 and 1 on the calibration examples.
        fit: "sequential" or "parallel"; see `apply`.
        refine: block-wise refinement on the calibration data, without labels: True, or the
            number of gradient steps for a block; see `apply`.
        max_drop: instead of a budget: the smallest model in MACs whose metric is at most so
            much lower; `lowrank.compression.pipeline.sweep.smallest` finds that in parameters too.
        metric: quality of a model, higher is better, for `max_drop`: accuracy, for instance.
        methods: names or classes of methods that may be used, or a single one; by default
            all of `lowrank.compression.methods.METHODS`.
        skip: layers to leave dense: names or patterns such as "layer1.*".
        only: the only layers to consider.
        overrides: layer name -> the method to use there, or `Dense(reason)`.
        round_to: ranks are multiples of this, where the layer is large enough.
        int8: linear layers, dense or factorized, may also be quantized to int8 (by torchao)
            after they are fitted, so that ranks and bits share the budget of `bytes`; where
            it serves the budget, that is. Convolutions stay in their type.
        seed: seed of the randomised fits.
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
    if metric is not None and max_drop is None:
        raise InputError("metric", "there is no max_drop that it measures", "pass max_drop=0.01")
    if int8 and bytes is None:
        raise InputError("int8", "there is no budget of bytes", "pass bytes=0.2, or drop int8")
    curves = measure(
        model,
        example,
        data=data,
        calibration=calibration,
        loss=loss,
        weighting=weighting,
        methods=methods,
        skip=skip,
        only=only,
        overrides=overrides,
        round_to=round_to,
        latency=latency is not None,
        memory=memory is not None,
        int8=int8,
        seed=seed,
        progress=progress,
    )
    budget = {"params": params, "bytes": bytes, "macs": macs, "latency": latency, "memory": memory}
    if max_drop is not None:
        how = {"exponent": exponent, "fit": fit, "refine": refine, "progress": progress}
        plan, timed = _within_drop(model, curves, budget, metric, max_drop, how), None
    else:
        exponent = weighing(model, curves, budget, exponent, progress, fit=fit)
        plan, timed = _planned(model, example, curves, budget, exponent)
    rest = None if data is None else check_batches(data, example, _used(curves))
    small, report = apply(
        model,
        plan,
        example=example,
        data=curves.data,
        val=val if val is not None else rest or None,
        fit=fit,
        refine=refine,
        progress=progress,
    )
    return small, _checked(model, small, example, curves, timed, report)


def _within_drop(
    model: nn.Module,
    curves: Curves,
    budget: Mapping[str, float | None],
    metric: Scorer | None,
    max_drop: float,
    how: Mapping[str, Any],
) -> Plan:
    """The plan of the smallest model within the drop; all dense if there is none."""
    from lowrank.compression.pipeline.sweep import smallest

    given = [name for name, value in budget.items() if value is not None]
    if given:
        problem = f"given beside {', '.join(given)}, which settles the size already"
        raise BudgetError("max_drop", problem, "give one or the other")
    if metric is None:
        raise InputError("max_drop", "there is no metric to measure it by", "pass metric=")
    found = smallest(model, curves, metric, max_drop, **how)
    if found is not None:
        return found[1]
    return all_dense(curves, f"no smaller model loses at most {max_drop:g} of the metric")


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
        found = compare(model, small, example)
        check = LatencyCheck(given["latency"], timed.predicted, found, timed.tries)
        report = replace(report, latency=check)
    if curves.memory is not None:
        dense, value = curves.memory.dense.total, given["memory"]
        limit = int(value * dense if value <= 1 else value)
        memory = MemoryCheck(limit, dense, measure_memory(small, example).total)
        report = replace(report, memory=memory)
    return report


def _used(curves: Curves) -> Sequence[Example]:
    return () if curves.data is None else curves.data.batches
