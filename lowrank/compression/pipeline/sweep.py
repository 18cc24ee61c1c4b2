"""The whole trade-off: size against quality, predicted and measured, from one calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import nn

from lowrank.compression.calibration.settings import Calibration, calibration_of, check_progress
from lowrank.compression.fitting.finetune import finetune as tune
from lowrank.compression.gauges.quality import (
    Quality,
    Scorer,
    Unmatched,
    check_drop,
    check_metric,
    compare_outputs,
    score,
)
from lowrank.compression.network.example import Example, unwrapped
from lowrank.compression.pipeline.apply import applied, check_refine, read_data, val_of
from lowrank.compression.pipeline.selecting import BUDGETS, Chooser, Chosen, check_select
from lowrank.compression.planning.budget import checked
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.measure import check_asked, measured, usable
from lowrank.compression.planning.rules import Named, Rules, rules_of
from lowrank.compression.planning.weighting import weighed_plan
from lowrank.compression.structure.history import copy_model
from lowrank.compression.structure.opening import opened, without_masks
from lowrank.compression.structure.plan import Plan
from lowrank.errors import BudgetError, InputError
from lowrank.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from typing_extensions import Unpack


Measure = Literal["macs", "params", "bytes"]


KEEPS = (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.12)


@dataclass(frozen=True)
class Point:
    """One compressed model of a sweep.

    Args:
        keep: the fraction that was asked for.
        kept: fractions of "params", "bytes" and "macs" that are left.
        predicted: error that the planner expected, as a share of losing every layer's output;
            see `Curves.predicted`.
        quality: outputs against the dense model's, measured.
        metric: the user's metric, measured; None where none was given.
        finetuned: the same after fine-tuning; None without.
        plan: what became of every layer.
    """

    keep: float
    kept: dict[str, float]
    predicted: float
    quality: Quality | None
    metric: float | None
    finetuned: float | None
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values, without the plan."""
        return {
            "keep": self.keep,
            "kept": self.kept,
            "predicted": self.predicted,
            "quality": None if self.quality is None else self.quality.to_dict(),
            "metric": self.metric,
            "finetuned": self.finetuned,
        }


@dataclass(frozen=True)
class Sweep:
    """The trade-off curve of a model.

    Args:
        points: one for every budget that could be reached, largest first.
        dense: the user's metric of the dense model; None where none was given.
        measure: what was budgeted.
        refused: budgets that could not be reached.
    """

    points: tuple[Point, ...]
    dense: float | None
    measure: Measure
    refused: tuple[float, ...] = ()

    def __iter__(self) -> Iterator[Point]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "measure": self.measure,
            "dense": self.dense,
            "points": [p.to_dict() for p in self.points],
            "refused": list(self.refused),
        }

    def __str__(self) -> str:
        from lowrank.tables import as_text

        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(self)
        yield "parameters, bytes, MACs: kept; planned, measured: relative error of the output"
        if self.dense is not None:
            yield f"metric of the dense model: {self.dense:.4g}"
        if self.refused:
            refused = ", ".join(f"{self.measure}={keep:g}" for keep in self.refused)
            yield f"could not be reached: {refused}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the measured metric against the kept fraction, before and after fine-tuning.

        Without a metric, the outputs' relative error, and the error that was predicted.
        """
        from lowrank.compression.pictures.sweep import sweep_curve

        kept = [p.kept[self.measure] for p in self]
        if self.dense is not None:
            metric = {
                "compressed": [p.metric for p in self],
                "fine-tuned": [p.finetuned for p in self],
            }
            return sweep_curve(kept, metric, measure=self.measure, dense=self.dense, ax=ax)
        error = {
            "measured": [p.quality.relative_error if p.quality else None for p in self],
            "predicted": [p.predicted**0.5 for p in self],
        }
        label = "relative error of the output"
        ax = sweep_curve(kept, error, measure=self.measure, ylabel=label, ax=ax)
        ax.set_yscale("log")
        return ax


_FIGURES: dict[str, Callable[[Point], float | None]] = {
    "parameters": lambda p: p.kept["params"],
    "bytes": lambda p: p.kept["bytes"],
    "MACs": lambda p: p.kept["macs"],
    "planned": lambda p: p.predicted**0.5,
    "measured": lambda p: None if p.quality is None else p.quality.relative_error,
    "same answer": lambda p: None if p.quality is None else p.quality.agreement,
    "metric": lambda p: p.metric,
    "fine-tuned": lambda p: p.finetuned,
}
"""What a printed sweep shows of each point, where it is known of one."""


_SHARES = {"parameters", "bytes", "MACs", "same answer"}


def _table(sweep: Sweep) -> Table:
    """A row for each budget, a column for each figure that is known."""
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column(f"{sweep.measure}=", justify="right")
    known = {n: f for n, f in _FIGURES.items() if any(f(p) is not None for p in sweep)}
    for name in known:
        grid.add_column(name, justify="right")
    for point in sweep:
        cells = (_figure(name, figure(point)) for name, figure in known.items())
        grid.add_row(f"{point.keep:g}", *cells)
    return grid


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if name in _SHARES else f"{value:.4g}"


@torch.inference_mode(False)
def sweep(
    model: nn.Module,
    example: Example,
    data: object = None,
    metric: Scorer | None = None,
    *,
    keeps: Sequence[float] = KEEPS,
    budget: Measure = "macs",
    curves: Curves | None = None,
    val: object = None,
    refine: bool | int = False,
    finetune: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    rules: Rules | None = None,
    progress: Progress | None = None,
    **named: Unpack[Named],
) -> Sweep:
    """Compress to several budgets from one calibration, and measure what each costs.

    Args:
        model: the trained network; left as it is.
        example: inputs of one forward pass.
        data: batches to calibrate and fit on; see `compress`.
        metric: quality of a model, higher is better; without it, outputs are compared.
        keeps: kept fractions in (0, 1].
        budget: what the fractions are of: "macs", "params" or "bytes".
        curves: from `measure`, to save measuring again; no rules then, and of the calibration
            only `fit` and `exponent`.
        val: batches on which outputs are compared; by default what the data holds beyond
            the calibration examples, else those, else the example.
        refine: block-wise refinement, as in `compress`.
        finetune: arguments of `lowrank.finetune` other than the models, such as
            `{"data": train, "epochs": 1}`; the metric is then measured after it too.
        calibration: how many examples are used, what weighs the layers, how they are fitted.
        rules: which layers may be replaced, and by what.
        progress: called as (what, done, total).
        **named: `effort=`, `cache=` and single rules by their names in `Rules`, as for `compress`.

    Returns:
        A `Sweep`: data that prints as JSON, and a picture by `plot()`.

    Raises:
        BudgetError: none of the budgets can be reached, or one makes no sense.
        InputError: no budgets, fine-tuning without a metric, a metric of the dense model that
            is not finite, an unknown measure, or rules beside curves.
        Interrupted: by Ctrl-C; it has the curves, for another sweep.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
        >>> found = sweep(net, torch.zeros(1, 64), torch.randn(64, 64), keeps=(0.8, 0.4))
        >>> [p.keep for p in found]
        [0.8, 0.4]
    """
    _check(keeps, budget, metric, finetune)
    model = unwrapped(model)
    effort, cache = named.pop("effort", None), named.pop("cache", None)
    rules = rules_of(rules, named)
    if rules.select is not None:
        check_select(BUDGETS, rules)
    known = None if curves is None else curves.calibration
    calibration = calibration_of(calibration, known, effort, cache)
    check_refine(refine, data if curves is None else curves.data)
    whole = opened(model, example, stock=rules.stock, skip=rules.skip)
    if rules.select is not None:
        whole = without_masks(whole)
    check_asked(whole, example, rules, latency=False, memory=False, progress=progress)
    if curves is not None:
        _check_curves(curves, data, rules)
    compared = val_of(val, example)
    read, rest = read_data(data, example, calibration, rest=val is None)
    dense = None if metric is None else score(metric, model, "the dense model")
    if curves is None:
        curves = measured(whole, example, read, calibration, rules, progress=progress)
    how = {"val": compared or rest, "refine": refine, "settings": calibration}
    points: list[Point] = []
    refused: list[float] = []

    def so_far() -> tuple[str, Curves | None]:
        return f"interrupted with {len(points) + len(refused)} of {len(keeps)} budgets done", curves

    with usable(so_far, calibration.cache):
        reach = _reaching(model, whole, example, curves, budget, calibration, rules, progress)
        for done, keep in enumerate(sorted(keeps, reverse=True)):
            if progress is not None:
                progress(f"{budget} {keep}", done, len(keeps))
            found = reach(keep)
            if found is None:
                refused.append(keep)
            else:
                points.append(_point(model, example, found, keep, metric, how, finetune))
    if not points:
        raise BudgetError("keeps", f"none of {tuple(keeps)} can be reached", "raise them")
    return Sweep(tuple(points), dense, budget, tuple(refused))


def _check_curves(curves: Curves, data: object, rules: Rules) -> None:
    if rules != Rules():
        problem = "given beside curves, which were measured by their own"
        raise InputError("rules", problem, "give them to measure, or drop the curves")
    if curves.data is None and data is not None:
        raise InputError("data", "the curves were measured without", "measure with it, or drop it")


def _point(
    model: nn.Module,
    example: Example,
    found: Chosen,
    keep: float,
    metric: Scorer | None,
    how: Mapping[str, Any],
    finetune: Mapping[str, Any] | None,
) -> Point:
    plan, curves = found.plan, found.curves
    small, report = applied(
        found.model, plan, dense=model, teacher=found.teacher, example=None, data=curves.data,
        progress=None, **how,
    )  # fmt: skip
    quality = report.quality
    if quality is None:
        with suppress(Unmatched):
            quality = compare_outputs(model, small, example)
    measured_ = None if metric is None else float(metric(small))
    tuned = None
    if finetune is not None and metric is not None:
        tuned = float(metric(tune(copy_model(small), teacher=model, **finetune)))
    kept = {k: v / getattr(plan.total, k) for k, v in asdict(plan.cost).items() if v}
    return Point(keep, kept, curves.predicted(plan), quality, measured_, tuned, plan)


Reach = Callable[[float], Chosen | None]
"""The plan for a kept fraction; None where it cannot be reached."""


def _reaching(
    model: nn.Module,
    whole: nn.Module,
    example: Example,
    curves: Curves,
    budget: Measure,
    how: Calibration,
    rules: Rules,
    progress: Progress | None,
) -> Reach:
    """Plans of factors alone, or where the rules select channels, of both."""
    if rules.select is None:
        return lambda keep: _reachable(model, curves, budget, keep, how)
    exponent = curves.exponent if how.exponent is None else how.exponent
    chooser = Chooser.of(model, whole, example, curves, exponent, rules, how, progress)
    return chooser.reaching(budget)


@torch.inference_mode(False)
def smallest(
    model: nn.Module,
    curves: Curves,
    metric: Scorer,
    max_drop: float,
    *,
    budget: Measure = "macs",
    refine: bool | int = False,
    calibration: Calibration | None = None,
    tol: float = 0.01,
    progress: Progress | None = None,
) -> tuple[float, Plan] | None:
    """The smallest kept fraction whose model loses at most `max_drop` of the metric.

    Bisection on the trade-off curve, each model fitted and measured for real.

    Args:
        model: the dense network.
        curves: from `measure`.
        metric: quality of a model, higher is better.
        max_drop: how much lower it may be, in its own units, from 0 up.
        budget: what is made small: "macs", "params" or "bytes".
        refine: block-wise refinement of every model that is tried.
        calibration: how layers are weighed and fitted, `exponent` and `fit`; by default as
            the curves were measured.
        tol: width of the last interval of kept fractions.
        progress: called as (what, done, total).

    Returns:
        The fraction and the plan, or None if not even the largest compressed model does.

    Raises:
        InputError: a drop that is negative or no number, a metric of the dense model that is
            not finite, or an unknown measure.
    """
    check_drop(metric, max_drop)
    _check_measure(budget)
    model = unwrapped(model)
    check_refine(refine, curves.data)
    check_progress(progress)
    how = calibration_of(calibration, curves.calibration)
    found = smallest_of(
        model, lambda keep: _reachable(model, curves, budget, keep, how), metric, max_drop,
        budget=budget, refine=refine, settings=how, tol=tol, progress=progress,
    )  # fmt: skip
    return None if found is None else (found[0], found[1].plan)


def smallest_of(
    model: nn.Module,
    reach: Reach,
    metric: Scorer,
    max_drop: float,
    *,
    budget: Measure = "macs",
    refine: bool | int,
    settings: Calibration,
    tol: float = 0.01,
    progress: Progress | None,
) -> tuple[float, Chosen] | None:
    """What `smallest` finds, among the plans that are reached."""
    wanted = score(metric, model, "the dense model") - max_drop
    low, high, best = 0.0, 1.0, None
    while high - low > tol:
        keep = (low + high) / 2
        if progress is not None:
            progress(f"trying {budget} {keep:.3f}", 0, 1)
        found = reach(keep)
        good = False
        if found is not None:
            small, _ = applied(
                found.model, found.plan, dense=model, teacher=found.teacher, example=None,
                data=found.curves.data, val=None, settings=settings, refine=refine, progress=None,
            )  # fmt: skip
            good = float(metric(small)) >= wanted
        if found is not None and good:
            best, high = (keep, found), keep
        else:
            low = keep
    return best


def _reachable(
    model: nn.Module,
    curves: Curves,
    budget: Measure,
    keep: float,
    how: Calibration,
) -> Chosen | None:
    try:
        plan = weighed_plan(model, curves, {budget: keep}, how.exponent, fit=how.fit)
    except BudgetError:
        return None
    return Chosen(plan, None, curves, model)


def _check_measure(budget: str) -> None:
    if budget not in get_args(Measure):
        known = ", ".join(get_args(Measure))
        raise InputError("budget", f"{budget!r} is no measure of size", f"choose among {known}")


def _check(
    keeps: Sequence[float],
    budget: str,
    metric: Scorer | None,
    finetune: Mapping[str, Any] | None,
) -> None:
    _check_measure(budget)
    if metric is not None:
        check_metric(metric)
    if not len(keeps):
        raise InputError("keeps", "it is empty", "give kept fractions such as (0.5, 0.3)")
    for keep in keeps:
        checked("keeps", keep)
    if finetune is None:
        return
    if metric is None:
        raise InputError("finetune", "there is no metric to measure it by", "pass metric=")
    known = set(signature(tune).parameters) - {"model", "teacher"}
    if "data" not in finetune or not set(finetune) <= known:
        strange = ", ".join(sorted(set(finetune) - known)) or "data is missing"
        raise InputError("finetune", f"its arguments: {strange}", 'give {"data": train, ...}')
