"""Replace the layers of a model as a plan says, and put them back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.effort import effort_of
from lowrank.compression.calibration.fingerprint import of_library, of_model
from lowrank.compression.calibration.goals import How
from lowrank.compression.calibration.settings import Calibration, calibration_of, check_progress
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.fitting.batchnorm import renormalise
from lowrank.compression.fitting.blocks import STEPS
from lowrank.compression.fitting.layerwise import Built, replace_layers
from lowrank.compression.fitting.refine import refine, try_out
from lowrank.compression.gauges.quality import Loss, Quality, Unmatched, compare_on
from lowrank.compression.network.batches import Batches, Form, Inputs, further_of, taken
from lowrank.compression.network.cutting import held_out, in_memory, rows_held_out, rows_of
from lowrank.compression.network.example import Example, check, unwrapped
from lowrank.compression.network.scan import refuse_valueless, scan
from lowrank.compression.network.units import names_of, total
from lowrank.compression.pipeline.report import Figures, LayerReport, Report
from lowrank.compression.planning.measure import usable
from lowrank.compression.planning.selection.cut import cut_statistics
from lowrank.compression.planning.selection.narrowed import narrowed_model
from lowrank.compression.structure.choices import Dense, Tied
from lowrank.compression.structure.history import _check_choices, remember_form
from lowrank.compression.structure.int8 import (
    linear_in,
    quantize_linear,
    reasons_against,
    stage_bytes,
    stages_fit,
)
from lowrank.compression.structure.opening import apart_for, closed, opened_for
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.recurrent import Recurrent
from lowrank.compression.structure.swap import layer_spec, planned_units
from lowrank.errors import InputError, PlanError
from lowrank.progress import Progress
from lowrank.store import NOWHERE, Shelf, Store

_IN_SHORT = 150
"""Iterations of a fit that only a trial of the refinement stands on."""


@torch.inference_mode(False)
def apply(
    model: nn.Module,
    plan: Plan,
    *,
    example: Example | None = None,
    data: object = None,
    val: object = None,
    refine: bool | int = False,
    calibration: Calibration | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """A copy of the model with its layers replaced as the plan says.

    Without data every replacement comes as close to the layer's weight as it can. With data
    the layers are fitted one after another, in the order in which they run: each to the
    inputs that the compressed layers before it really produce, towards the dense layer's
    outputs, plus what the other branch of a residual sum has already lost. Biases and batch
    norms take the shift of the mean; batch-norm statistics are estimated anew if that helps
    on examples held out.

    Args:
        model: the network that the plan was made for; left as it is.
        plan: what becomes of every layer.
        example: inputs of one forward pass; with them the report holds MACs, latency and
            the error of the outputs, measured.
        data: batches of inputs to fit the layers to, or `curves.data` from `measure`.
        val: batches on which the outputs of both models are compared; by default what the
            data holds beyond the calibration examples, else those, else the example.
        refine: then train block after block on the dense block's outputs, without labels:
            True, or the number of gradient steps for a block (100); and the whole model on
            the dense one's outputs, five times as many steps (a language model half as many,
            towards its scores of every next word). A trial in short, with a quarter
            of the examples held out, decides whether each is done. It needs data.
        calibration: how many examples of the data are used, what weighs the layers' outputs,
            and how layers are fitted; beside `curves.data`, how they are fitted only. The seed
            of the plan governs by default.
        cache: folder that keeps moments and fits, so that a call that was stopped goes on at the
            layer where it was; see `Calibration`.
        progress: called as (layer, done, total).

    Returns:
        The new model, made of stock `torch.nn` layers, and the report.

    Raises:
        PlanError: the plan is for another model, or asks for what would break this one.
        RankError: a rank that does not fit its layer.
        InputError: data without a batch, a way to fit that is unknown, or a plan with int8
            where torchao is missing.
        Interrupted: by Ctrl-C; with a cache it goes on from where it was.

    Example:
        >>> import torch, lowrank
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> curves = lowrank.measure(model, torch.zeros(1, 64), methods="channel_svd")
        >>> plan = curves.plan(macs=0.5)
        >>> small, report = lowrank.apply(model, plan)
        >>> small[0]
        Sequential(
          (0): Linear(in_features=64, out_features=16, bias=False)
          (1): Linear(in_features=16, out_features=64, bias=True)
        )
    """
    model = unwrapped(model)
    _check_type(plan)
    _check_plan(opened_for(model, plan), plan)
    measured = Calibration(seed=plan.seed)
    if isinstance(data, Statistics):
        measured = replace(measured, weighting=data.weighting)
    given = calibration is not None and not isinstance(data, Statistics)
    settings = calibration_of(calibration, None if given else measured, cache=cache)
    check_refine(refine, data)
    check_progress(progress)
    if example is not None:
        check(example)
    compared = val_of(val, example)
    read, rest = read_data(data, example, settings, rest=val is None)
    with usable(lambda: ("interrupted before all layers were replaced", None), settings.cache):
        used, teacher = model, None
        if plan.narrowed and read is not None:
            used, read, teacher = narrowed(model, plan, example, read, settings, progress)
        return applied(
            used, plan, dense=model, teacher=teacher, example=example, data=read,
            val=compared or rest, settings=settings, refine=refine, progress=progress,
        )  # fmt: skip


def _still_wide(plan: Plan, data: Statistics) -> bool:
    """Whether data are of layers in full width that are to go narrower."""
    widths = [(data.views[n].spec, w) for n, w in plan.narrowed.items() if n in data.views]
    return any(
        kept.of == wide
        for spec, w in widths
        for kept, wide in ((w.inputs, spec.in_channels), (w.outputs, spec.out_channels))
        if kept is not None
    )


def narrowed(
    model: nn.Module,
    plan: Plan,
    example: Example | None,
    data: Sequence[Example] | Statistics,
    settings: Calibration,
    progress: Progress | None,
) -> tuple[nn.Module, Statistics, nn.Module]:
    """The model without the channels that go, its readers reconstructed, what is known of it, and
    the dense network, at which its fits aim."""
    whole = apart_for(model, plan)
    known = _known(whole, example, data, settings, settings.opened(), progress)
    assert known is not None
    small = narrowed_model(whole, plan.narrowed, known)
    return small, cut_statistics(known, small, plan.narrowed), whole


def applied(
    model: nn.Module,
    plan: Plan,
    *,
    example: Example | None,
    data: Sequence[Example] | Statistics | None,
    val: Iterable[Example] | None,
    settings: Calibration,
    refine: bool | int,
    progress: Progress | None,
    dense: nn.Module | None = None,
    teacher: nn.Module | None = None,
) -> tuple[nn.Module, Report]:
    """What `apply` gives, of arguments that were checked and data that were read.

    `dense` is the whole network, where channels of the model are gone already; `teacher` the same
    with packed modules taken apart, at which fits aim then.
    """
    store, dense = settings.opened(), model if dense is None else dense
    if isinstance(data, Statistics) and teacher is None and _still_wide(plan, data):
        model, data, teacher = narrowed(model, plan, example, data, settings, progress)
    model = opened_for(model, plan)
    known = _known(model, example, data, settings, store, progress)
    plan = _without_stale_figures(model, plan)
    how = settings.how(words=known is not None and known.words)
    shelf = _shelf(store, model, known, plan, how)
    small, built, notes = _made(model, plan, known, how, refine, progress, shelf, teacher)
    if plan.int8:
        quantize_linear(small, plan.int8)
    closed(small, plan)
    remember_form(small, known.batches[0] if example is None and known else example)
    if progress is not None:
        progress("checking outputs", 0, 1)
    rows = _rows(plan, built)
    before, after = Figures.of(dense, small, example)
    loss = settings.loss if known is None else known.loss
    quality, said = _quality(dense, small, example, known, val, loss)
    remarks = (*notes, *said, *_int8_notes(plan), *_loop_notes(small), *shelf.remarks)
    return small, Report(rows, plan, before, after, quality, remarks)


def _check_type(plan: object) -> None:
    if not isinstance(plan, Plan):
        raise PlanError("plan", f"{plan!r} is no plan", "read a file with lowrank.Plan.load")


def _check_plan(model: nn.Module, plan: Plan) -> None:
    plan.check_model(model)
    _check_choices(model, plan)
    _check_int8(model, plan)
    for name in plan.replaced:
        refuse_valueless(name, model.get_submodule(name))


def check_refine(refine: object, data: object) -> None:
    """Refuse steps that make no sense, and steps without data.

    Raises:
        InputError: says so.
    """
    if not isinstance(refine, int) or refine < 0:
        raise InputError("refine", f"{refine!r} steps make no sense", "give a number such as 100")
    if refine and data is None:
        raise InputError("refine", "there is no data to refine on", "pass data=")


def val_of(val: object, example: Example | None) -> Inputs | None:
    """The batches to compare on.

    Raises:
        InputError: they are none.
    """
    if val is None:
        return None
    batches = Batches.of(val, Form.of(example), name="val")
    batches.first()
    return Inputs(batches)


def read_data(
    data: object, example: Example | None, settings: Calibration, *, rest: bool
) -> tuple[Sequence[Example] | Statistics | None, list[Example] | None]:
    """The examples to fit on, and those behind them to compare on, if these are wanted.

    Raises:
        InputError: data that is none.
    """
    if data is None or isinstance(data, Statistics):
        return data, None
    used, behind = taken(data, example, settings.count, rest=_COMPARED if rest else 0)
    return used, behind or None


_COMPARED = 256
"""Examples that models are compared on, of those behind the calibration's."""


def _known(
    model: nn.Module,
    example: Example | None,
    data: Sequence[Example] | Statistics | None,
    settings: Calibration,
    store: Store | None,
    progress: Progress | None,
) -> Statistics | None:
    if data is None:
        return None
    if isinstance(data, Statistics):
        return data.bound(model).kept_in(store)
    shown = data[0] if example is None else example
    found = scan(model, shown)
    return Statistics.of(
        model, found.units, in_memory(data, found.views, shown),
        loss=settings.loss, weighting=settings.weighting,
        effort=effort_of(settings.effort), seed=settings.seed, further=further_of(data),
        store=store, progress=progress,
    )  # fmt: skip


def _shelf(
    store: Store | None, model: nn.Module, known: Statistics | None, plan: Plan, how: How
) -> Shelf:
    """Where fits are kept, told from others by all that they follow from."""
    shelf = Shelf(store) if known is None else known.shelf
    if shelf.store is None:
        return shelf
    own = "probe" if known is None or callable(known.weighting) else known.weighting
    return shelf.part("fits", of_library(), of_model(model), how, plan.seed, own == "outputs")


def _quality(
    model: nn.Module,
    small: nn.Module,
    example: Example | None,
    known: Statistics | None,
    val: Iterable[Example] | None,
    loss: Loss | None,
) -> tuple[Quality | None, list[str]]:
    """How far the outputs are off, and what there is to say of it."""
    batches: Iterable[Example] | None = val
    wanted, held = None, val is not None or known is None
    if val is None and known is not None:
        batches, wanted = _compared(model, known)
    elif val is None and example is not None:
        batches = [example]
    if batches is None:
        return None, []
    try:
        found = compare_on(model, small, batches, loss, wanted=wanted)
    except Unmatched as error:
        return None, [error.problem]
    notes = []
    if found.unmatched:
        notes = [
            f"{100 * found.unmatched:.0f} % of the outputs have another length than the dense "
            "model's and are not compared"
        ]
    return replace(found, held_out=held), notes


def _compared(
    model: nn.Module, known: Statistics
) -> tuple[Sequence[Example], list[tuple[Tensor, ...]] | None]:
    """The calibration examples that models are compared on, with quick effort a fourth, and what
    the dense model gives on them, where that was kept."""
    if known.effort.level == "quick":
        rest, held = held_out(known.batches, model)
        if held:
            return held, known.calibrated.outputs_on(rows_held_out(rest, held))
    return known.batches, known.calibrated.outputs_on(rows_of(known.batches))


def _made(
    model: nn.Module,
    plan: Plan,
    known: Statistics | None,
    how: How,
    steps: bool | int,
    progress: Progress | None,
    shelf: Shelf,
    teacher: nn.Module | None,
) -> tuple[nn.Module, dict[str, Built], list[str]]:
    """The new model, how close its layers came, and what there is to say of the data."""
    if known is None or not steps or not (plan.replaced or plan.narrowed):
        return _fitted(model, plan, known, how, progress, shelf=shelf, teacher=teacher)
    steps = STEPS if steps is True else steps
    layers = [*dict.fromkeys((*plan.replaced, *plan.hosts, *plan.narrowed))]
    dense = model if teacher is None else teacher
    part, held = known.parted(model)
    trial, untried = None, "there were too few examples for a trial"
    if held:
        tried, _, _ = _fitted(model, plan, part, how, progress, max_iter=_IN_SHORT, teacher=teacher)
        try:
            trial = try_out(
                tried, dense, part.batches, held, layers,
                loss=known.loss, words=known.words, steps=steps, seed=plan.seed,
                progress=progress,
            )  # fmt: skip
        except Unmatched as error:
            untried = f"there was no trial: {error.problem}"
    small, built, notes = _fitted(model, plan, known, how, progress, shelf=shelf, teacher=teacher)
    found = refine(
        small, dense, known.batches, layers,
        trial=trial, untried=untried, words=known.words, steps=steps, seed=plan.seed,
        progress=progress,
    )  # fmt: skip
    return small, built, [*notes, str(found)]


def _fitted(
    model: nn.Module,
    plan: Plan,
    known: Statistics | None,
    how: How,
    progress: Progress | None,
    *,
    max_iter: int | None = None,
    shelf: Shelf = NOWHERE,
    teacher: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, Built], list[str]]:
    small, built = replace_layers(
        model, plan, known, how, max_iter=max_iter, progress=progress, shelf=shelf, teacher=teacher
    )
    if known is None:
        return small, built, []
    if not (plan.replaced or plan.narrowed):  # as it came
        return small, built, [str(known.calibrated), *known.notes]
    dense = model if teacher is None else teacher
    renormed = renormalise(dense, small, known.batches, known.loss, known=known.calibrated)
    notes = [str(known.calibrated), *known.notes, *renormed]
    return small, built, notes


def _int8_notes(plan: Plan) -> tuple[str, ...]:
    if not plan.int8:
        return ()
    names = ", ".join(plan.int8)
    return (
        f"in int8, inputs rounded while the model runs: {names}; layers that are not linear "
        "stay in their type, for which torchao has no int8 kernel",
    )


def _loop_notes(small: nn.Module) -> tuple[str, ...]:
    names = [name for name, module in small.named_modules() if isinstance(module, Recurrent)]
    if not names:
        return ()
    return (
        f"as a loop over time, which is slower than torch's kernel: {', '.join(names)}; "
        "skip them, or budget latency, to keep the kernel",
    )


def _check_int8(model: nn.Module, plan: Plan) -> None:
    """Refuse rows in int8 whose layer, or whose stages, torchao cannot serve."""
    reasons = reasons_against(model) if plan.int8 else {}
    for name in plan.int8:
        choice, module = plan.layers[name].choice, model.get_submodule(name)
        problem = reasons.get(name)
        if len(unit := plan.unit(name)) > 1:
            problem = f"it shares factors with {', '.join(n for n in unit if n != name)}"
        elif not isinstance(choice, Dense | Tied):
            linear = stages_fit(choice.stages(layer_spec(module)))
            what = "does not make it linear layers alone, of two inputs at least"
            problem = None if linear else f"{choice.name} {what}"
        elif not linear_in(module):
            problem = problem or "it is no linear layer"
        if problem is not None:
            raise PlanError(name or "model", f"it cannot be int8: {problem}", 'drop its "int8"')


def _without_stale_figures(model: nn.Module, plan: Plan) -> Plan:
    """The plan without the predictions of units whose method was changed by hand."""
    layers = dict(plan.layers)
    for unit, method in planned_units(model, plan):
        stages, names = method.stages(unit.spec), names_of(unit)
        costs = [cost for name in names if (cost := layers[name].cost) is not None]
        known, real = total(costs), total(unit.costs(stages))
        in_int8 = layers[names[0]].int8 and known.bytes != stage_bytes(stages)
        if costs and (known.params != real.params or in_int8):
            layers |= {n: replace(layers[n], cost=None, error=None) for n in names}
    return replace(plan, layers=layers)


def _rows(plan: Plan, built: dict[str, Built]) -> tuple[LayerReport, ...]:
    rows = []
    for name, row in plan.layers.items():
        predicted = None if row.error is None else row.error**0.5
        made = built.get(name)
        rows.append(
            LayerReport(
                name,
                row.kind,
                row.choice,
                row.dense,
                row.cost,
                predicted,
                None if made is None else made.error,
                None if made is None else made.fitted,
                row.int8,
            )
        )
    return tuple(rows)
