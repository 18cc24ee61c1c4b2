"""Replace the layers of a model as a plan says, and put them back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import nn

from lowrank.compression.batchnorm import batch_norms, improves
from lowrank.compression.calibrate import calibration_batches, check_batches, in_memory
from lowrank.compression.curves import Progress
from lowrank.compression.example import Example, held_out
from lowrank.compression.fits import Data, Fitting, How, take_mean
from lowrank.compression.int8 import (
    dequantize,
    int8_layers,
    linear_in,
    quantize_linear,
    reasons_against,
    stage_bytes,
    stages_fit,
)
from lowrank.compression.layers import LayerView
from lowrank.compression.methods.base import require
from lowrank.compression.network.units import names_of, owners_of, total
from lowrank.compression.plan import Dense, Plan, Tied
from lowrank.compression.quality import Quality, compare_on, compare_outputs
from lowrank.compression.replacing import (
    factorize,
    install_unit,
    layer_spec,
    mean_lost,
    planned_units,
    restore_units,
)
from lowrank.compression.report import Figures, LayerReport, Report
from lowrank.compression.scan import held_elsewhere, refuse_valueless, scan, static_reason
from lowrank.compression.sequential import Goal
from lowrank.compression.sinks import Sink
from lowrank.errors import InputError, PlanError

_RECORD = "_lowrank_applied"

_IN_SHORT = 150
"""Iterations of a fit that only a trial of the refinement stands on."""


@dataclass(frozen=True, eq=False)
class Applied:
    """A plan that a model has been through, and what it takes to undo it.

    Args:
        plan: the plan.
        originals: replaced layer -> the dense module, without its weights.
    """

    plan: Plan
    originals: dict[str, nn.Module]


def history(model: nn.Module) -> tuple[Applied, ...]:
    """The plans that a model has been through, first to last."""
    return tuple(model.__dict__.get(_RECORD, ()))


def apply(
    model: nn.Module,
    plan: Plan,
    *,
    example: Example | None = None,
    data: object = None,
    val: object = None,
    calibration: int = 256,
    fit: How | None = None,
    refine: bool | int = False,
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
        calibration: how many examples of the data are used.
        fit: "sequential", as above, or "parallel", every layer to the dense model's own
            inputs; by default sequential where there is data.
        refine: then train block after block on the dense block's outputs, without labels:
            True, or the number of gradient steps for a block (100); and the whole model on
            the dense one's outputs, five times as many steps. A trial in short, with a quarter
            of the examples held out, decides whether each is done. It needs data.
        progress: called as (layer, done, total).

    Returns:
        The new model, made of stock `torch.nn` layers, and the report.

    Raises:
        PlanError: the plan is for another model, or asks for what would break this one.
        RankError: a rank that does not fit its layer.
        InputError: data without a batch, a way to fit that is unknown, or a plan with int8
            where torchao is missing.

    Example:
        >>> import torch, lowrank
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> plan = lowrank.measure(model, torch.zeros(1, 64)).plan(macs=0.5)
        >>> small, report = lowrank.apply(model, plan)
        >>> small[0]
        Sequential(
          (0): Linear(in_features=64, out_features=16, bias=False)
          (1): Linear(in_features=16, out_features=64, bias=True)
        )
    """
    _check_plan(model, plan)
    known = _known(model, plan, example, data, calibration, fit)
    plan = _without_stale_figures(model, plan)
    small, built, notes = _made(model, plan, known, fit or "sequential", refine, progress)
    if plan.int8:
        quantize_linear(small, plan.int8)
    rows = _rows(plan, built)
    before, after = Figures.of(model, small, example)
    quality = _quality(model, small, example, data, known, val)
    return small, Report(rows, plan, before, after, quality, (*notes, *_int8_notes(plan)))


@dataclass(frozen=True)
class Built:
    """A layer that was replaced.

    Args:
        error: relative error of its weight, or of its output where it was fitted to data.
        fitted: to what, in words.
    """

    error: float
    fitted: str


def replace_layers(
    model: nn.Module,
    plan: Plan,
    data: Data | None = None,
    how: How = "sequential",
    *,
    max_iter: int | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, dict[str, Built]]:
    """A copy of the model with its layers replaced, and how close each came.

    Args:
        model: the network that the plan fits; left as it is.
        plan: what becomes of every layer.
        data: what fits are made to; without it, to the weights.
        how: sequential or parallel.
        max_iter: iterations of each fit; None leaves them to the methods.
        progress: called as (layer, done, total).
    """
    built: dict[str, Built] = {}
    originals: dict[str, nn.Module] = {}
    with torch.inference_mode(False):  # its tensors could never be trained
        small = copy_model(model)
        fitting = None if data is None else Fitting(data, model, small, how, seed=plan.seed)
        units = planned_units(small, plan)
        if fitting is not None:
            units.sort(key=lambda u: fitting.place(owners_of(u[0])))
        for done, (unit, method) in enumerate(units):
            if progress is not None:
                progress(unit.layers[0].name, done, len(units))
            names = owners_of(unit)
            goals, fitted = _goals(fitting, names)
            made = factorize(unit, method, plan.seed, goals, max_iter)
            install_unit(small, unit, made.parts, originals)
            for name, goal, weight, error in zip(
                names, goals, made.weights, made.errors, strict=True
            ):
                if goal is not None and goal.centred and data is not None:
                    norm = data.sinks.get(name, Sink()).norm
                    take_mean(small, name, mean_lost(goal, weight), norm)
                built[name] = Built(error, fitted)
    if progress is not None:
        progress("replaced", len(units), len(units))
    small.__dict__[_RECORD] = (*history(small), Applied(plan, originals))
    return small, built


def _goals(fitting: Fitting | None, names: Sequence[str]) -> tuple[Sequence[Goal | None], str]:
    """What the layers of a unit should become, and how that was found, in words."""
    return ([None] * len(names), "to its weights") if fitting is None else fitting.goals(names)


def renormalise(model: nn.Module, small: nn.Module, batches: Sequence[Example]) -> bool:
    """Estimate batch-norm statistics anew; kept only if outputs held out come closer.

    A fourth of the examples is held out; of a single one nothing is, and nothing is kept.
    True if they were kept.
    """
    rest, held = held_out(batches, model)
    if not held:
        return False

    def lost(candidate: nn.Module) -> float:
        return compare_on(model, candidate, held).loss

    return improves(small, batch_norms(small), rest, lost) is not None


def _check_plan(model: nn.Module, plan: Plan) -> None:
    if not isinstance(plan, Plan):
        raise PlanError("plan", f"{plan!r} is no plan", "read a file with lowrank.Plan.load")
    plan.check_model(model)
    _check_choices(model, plan)
    _check_int8(model, plan)
    for name in plan.replaced:
        refuse_valueless(name, model.get_submodule(name))


def _known(
    model: nn.Module,
    plan: Plan,
    example: Example | None,
    data: object,
    calibration: int,
    fit: How | None,
) -> Data | None:
    if fit is not None and fit not in get_args(How):
        raise InputError("fit", f"{fit!r} is unknown", f"choose among {', '.join(get_args(How))}")
    if data is None:
        return None
    if isinstance(data, Data):
        return data.bound(model)
    batches = calibration_batches(data, example, calibration)
    shown = batches[0] if example is None else example
    found = scan(model, shown)
    batches = in_memory(batches, found.views, shown)
    return Data.of(model, found.units, batches, seed=plan.seed)


def _quality(
    model: nn.Module,
    small: nn.Module,
    example: Example | None,
    data: object,
    known: Data | None,
    val: object,
) -> Quality | None:
    if example is None and known is not None:
        example = known.batches[0]  # what the model takes
    if val is not None or known is None:
        return compare_outputs(model, small, example, val)
    if not isinstance(data, Data) and (rest := check_batches(data, example, known.batches)):
        return compare_outputs(model, small, example, rest)
    return replace(compare_on(model, small, known.batches), held_out=False)


def _made(
    model: nn.Module,
    plan: Plan,
    known: Data | None,
    how: How,
    steps: bool | int,
    progress: Progress | None,
) -> tuple[nn.Module, dict[str, Built], list[str]]:
    """The new model, how close its layers came, and what there is to say of the data."""
    if not isinstance(steps, int) or steps < 0:
        raise InputError("refine", f"{steps!r} steps make no sense", "give a number such as 100")
    if steps and known is None:
        raise InputError("refine", "there is no data to refine on", "pass data=")
    if known is None or not steps or not plan.replaced:
        return _fitted(model, plan, known, how, progress)
    from lowrank.compression.blocks import STEPS  # which trains, a floor above
    from lowrank.compression.refine import refine, try_out

    steps, layers = STEPS if steps is True else steps, list(plan.replaced)
    part, held = known.parted(model)
    trial = None
    if held:
        tried, _, _ = _fitted(model, plan, part, how, progress, max_iter=_IN_SHORT)
        trial = try_out(
            tried, model, part.batches, held, layers,
            steps=steps, seed=plan.seed, progress=progress,
        )  # fmt: skip
    small, built, notes = _fitted(model, plan, known, how, progress)
    found = refine(
        small, model, known.batches, layers,
        trial=trial, steps=steps, seed=plan.seed, progress=progress,
    )  # fmt: skip
    return small, built, [*notes, str(found)]


def _fitted(
    model: nn.Module,
    plan: Plan,
    known: Data | None,
    how: How,
    progress: Progress | None,
    *,
    max_iter: int | None = None,
) -> tuple[nn.Module, dict[str, Built], list[str]]:
    small, built = replace_layers(model, plan, known, how, max_iter=max_iter, progress=progress)
    if known is None:
        return small, built, []
    notes = [str(known.calibration)]
    if renormalise(model, small, known.batches):
        notes.append("batch-norm statistics were estimated anew")
    return small, built, notes


def _int8_notes(plan: Plan) -> tuple[str, ...]:
    if not plan.int8:
        return ()
    names = ", ".join(plan.int8)
    return (
        f"in int8, inputs rounded while the model runs: {names}; layers that are not linear "
        "stay in their type, for which torchao has no int8 kernel",
    )


def build_structure(model: nn.Module, plan: Plan) -> None:
    """Replace the layers in place by stages of the plan's shapes with arbitrary weights."""
    plan.check_model(model)
    _check_choices(model, plan)
    originals: dict[str, nn.Module] = {}
    for unit, method in planned_units(model, plan):
        install_unit(model, unit, unit.build(method.stages(unit.spec)), originals)
    model.__dict__[_RECORD] = (*history(model), Applied(plan, originals))


def densify(model: nn.Module) -> nn.Module:
    """A copy in which every replaced layer is one dense layer of its original class again.

    Layers in int8 become floating-point ones of the same, rounded, weights.

    The weights are the products of the factors, so the outputs stay the same up to
    rounding; training the factors in between is fine.

    Raises:
        PlanError: the model has not been through `apply` or `quantize`.

    Example:
        >>> import torch, lowrank
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> small, _ = lowrank.compress(model, torch.zeros(1, 64), params=0.5)
        >>> lowrank.densify(small)
        Sequential(
          (0): Linear(in_features=64, out_features=64, bias=True)
        )
    """
    if not history(model) and not int8_layers(model):
        raise PlanError("model", "it holds no factorized layers", "pass what apply returned")
    dense = copy_model(model)
    dequantize(dense)
    for applied in reversed(history(dense)):
        restore_units(dense, applied.plan, applied.originals)
    dense.__dict__.pop(_RECORD, None)
    return dense


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy of the model.

    Raises:
        InputError: the model holds tensors that cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except RuntimeError as error:
        raise InputError(
            "model", f"it cannot be copied ({error})", "run it under torch.no_grad() first"
        ) from error


def _check_choices(model: nn.Module, plan: Plan) -> None:
    """Refuse, before anything is built, a plan edited into something that would break."""
    held = held_elsewhere(model)
    for name, row in plan.layers.items():
        if isinstance(row.choice, Dense):
            continue
        module = model.get_submodule(name)
        if (reason := static_reason(module) or held.get(id(module))) is not None:
            raise PlanError(
                name or "model", f"it cannot be replaced: {reason}", "make it dense in the plan"
            )
        if isinstance(row.choice, Tied) and row.choice.to not in plan.replaced:
            problem = f"it is tied to {row.choice.to}, which no method replaces"
            raise PlanError(name, problem, "make it dense, or tie it to the first of its unit")
    users = _users_of_weights(model)
    for unit, method in planned_units(model, plan):
        require(method, unit)
        names = names_of(unit)
        for view, owner in zip(unit.layers, unit.owners, strict=True):
            own = {n for n, other in zip(names, unit.owners, strict=True) if other == owner}
            _check_sharing(view, users[id(view.parameter)], own)


def _users_of_weights(model: nn.Module) -> dict[int, dict[str, nn.Module]]:
    """The modules that hold each parameter, by the parameter's id."""
    users: dict[int, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), {})[name] = module
    return users


def _check_sharing(view: LayerView, users: Mapping[str, nn.Module], own: set[str]) -> None:
    """Refuse a layer whose weight others hold than those of its unit that should."""
    held = {n for n, m in users.items() if m is not view.module} | {view.name}
    if others := sorted(held - own):
        problem = f"it shares its weight with {', '.join(others)}"
        raise PlanError(view.name, problem, "make it dense in the plan")
    if others := sorted(own - held):
        problem = f"{', '.join(others)} is tied to it and has a weight of its own"
        raise PlanError(view.name, problem, "untie it in the plan")


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
            problem = None if linear else f"{choice.name} does not make it linear layers alone"
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
