"""Fit a plan layer by layer, each to what the compressed ones before it produce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowrank.compression.calibration.downstream import Downstream
from lowrank.compression.calibration.fingerprint import of_class
from lowrank.compression.calibration.goals import Fitting, How
from lowrank.compression.calibration.prefix import Goal
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.methods import Method
from lowrank.compression.methods.shared.base import Joint, Target
from lowrank.compression.network.layers import LayerView, spec_of, write_weight
from lowrank.compression.network.own_stages import bias_holder
from lowrank.compression.network.stages import compose
from lowrank.compression.network.units import Parts, Unit, owners_of
from lowrank.compression.structure.fused import settle_fused
from lowrank.compression.structure.history import _RECORD, Applied, copy_model, history
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.pretrained.writing import guard
from lowrank.compression.structure.swap import install_unit, planned_units
from lowrank.decompositions.metric import Metric
from lowrank.progress import Progress
from lowrank.store import NOWHERE, Kept, Shelf


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
    data: Statistics | None = None,
    how: How = "sequential",
    *,
    max_iter: int | None = None,
    progress: Progress | None = None,
    shelf: Shelf = NOWHERE,
    shared: bool = False,
    teacher: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, Built]]:
    """A copy of the model with its layers replaced, and how close each came.

    Args:
        model: the network that the plan fits; left as it is.
        plan: what becomes of every layer.
        data: what fits are made to; without it, to the weights.
        how: sequential or parallel.
        max_iter: iterations of each fit; None leaves them to the methods.
        progress: called as (layer, done, total).
        shelf: keeps the fits, each of which follows from those before it.
        shared: weights that stay are the model's own, for a copy that is run and dropped.
        teacher: the dense network, where the model has narrower layers: fits in sequence aim at
            what it gives, and layers that read fewer channels are fitted in turn.
    """
    built: dict[str, Built] = {}
    originals: dict[str, nn.Module] = {}
    guard()
    with torch.inference_mode(False):  # its tensors could never be trained
        small = copy_model(model, _weights(model) if shared else None)
        fitting: Fitting | None = None
        readers: list[LayerView] = []
        units = planned_units(small, plan)
        if data is not None:
            fitting = Fitting(
                data, model, small, how, seed=plan.seed, teacher=teacher, narrowed=plan.narrowed
            )
            units.sort(key=lambda u: fitting.place(owners_of(u[0])))
            readers = fitting.readers(plan.replaced)
        for done, (unit, method) in enumerate(units):
            if progress is not None:
                progress(f"fitting {unit.layers[0].name}", done, len(units))
            names = owners_of(unit)
            while readers and fitting is not None and _before(fitting, readers[0], names):
                _fit_reader(fitting, small, readers.pop(0))
            counts = _importance(data, model, names)
            fit = partial(_fit, fitting, unit, method, plan.seed, max_iter, counts)
            shelf = shelf.part(*_told(unit, method))
            made = shelf.kept("fit", fit, _packed, partial(_unpacked, unit, method))
            install_unit(small, unit, made.parts, originals)
            for name, shift, error in zip(names, made.shifts, made.errors, strict=True):
                if shift is not None and data is not None:
                    take_mean(small, name, shift, data.sinks.get(name, Downstream()).norm)
                built[name] = Built(error, made.fitted)
        for view in readers:
            if fitting is not None:
                _fit_reader(fitting, small, view)
    if progress is not None:
        progress("fitting", len(units), len(units))
    settle_fused(small)
    small.__dict__[_RECORD] = (*history(small), Applied(plan, originals))
    return small, built


def _before(fitting: Fitting, reader: LayerView, names: Sequence[str]) -> bool:
    return fitting.place([reader.name]) < fitting.place(names)


def _fit_reader(fitting: Fitting, small: nn.Module, view: LayerView) -> None:
    """Fit, in place, a layer that reads fewer channels to what the compressed prefix gives it."""
    goal = fitting.of_reader(view)
    if goal is None:
        return
    write_weight(small.get_submodule(view.name), view.spec, goal.weight)
    if goal.centred:
        norm = fitting.data.sinks.get(view.name, Downstream()).norm
        take_mean(small, view.name, mean_lost(goal, goal.weight), norm)


def _weights(model: nn.Module) -> dict[int, object]:
    """What no replacement changes in place, by its id: biases take means."""
    return {id(p): p for p in model.parameters() if p.ndim > 1 and p.is_leaf}


def _fit(
    fitting: Fitting | None,
    unit: Unit,
    method: Method,
    seed: int,
    max_iter: int | None,
    counts: Sequence[float],
) -> Replacement:
    """What replaces a unit, fitted to its goals."""
    goals, fitted = _goals(fitting, owners_of(unit))
    return factorize(unit, method, seed, goals, max_iter, counts, fitted)


def _goals(fitting: Fitting | None, names: Sequence[str]) -> tuple[Sequence[Goal | None], str]:
    """What the layers of a unit should become, and how that was found, in words."""
    return ([None] * len(names), "to its weights") if fitting is None else fitting.goals(names)


def _importance(data: Statistics | None, model: nn.Module, names: Sequence[str]) -> list[float]:
    """What an error as large as each layer's whole output counts, where there are several."""
    if data is None or len(names) == 1:
        return [1.0] * len(names)
    return [data.importance(model, name).weight(data.exponent) for name in names]


def take_mean(small: nn.Module, name: str, shift: Tensor, norm: str | None) -> None:
    """Add a shift (out,) to a layer's output, by its bias or the batch norm behind it."""
    module = small.get_submodule(name)
    holder = module if spec_of(module) is not None else bias_holder(module)
    bias = holder._parameters.get("bias")
    with torch.no_grad():
        if bias is not None:
            bias.add_(shift.to(bias.dtype))
        elif norm is not None:
            module = small.get_submodule(norm)
            assert isinstance(module, _BatchNorm)
            assert module.running_mean is not None
            module.running_mean -= shift.to(module.running_mean.dtype)


@dataclass(frozen=True, eq=False)
class Replacement:
    """What replaces a unit.

    Args:
        parts: the modules.
        shifts: for each layer that owns a weight, what the mean of its output lacks (out,);
            None where nothing takes the mean.
        errors: likewise, how far its weight or output is off, relatively.
        fitted: to what, in words.
    """

    parts: Parts
    shifts: tuple[Tensor | None, ...]
    errors: tuple[float, ...]
    fitted: str


def factorize(
    unit: Unit,
    method: Method,
    seed: int,
    goals: Sequence[Goal | None],
    max_iter: int | None,
    counts: Sequence[float],
    fitted: str,
) -> Replacement:
    """The stages that replace a unit, closest to its layers' weights or to their goals."""
    owners = [view for k, view in enumerate(unit.layers) if unit.owners[k] == k]
    targets = [
        Target(_aim(view, goal), None if goal is None else goal.metric, count)
        for view, goal, count in zip(owners, goals, counts, strict=True)
    ]
    stages, spec = method.stages(unit.spec), unit.spec
    if len(targets) > 1:
        factors = cast(Joint, method).factor_together(targets)  # as `serves` promises
    else:
        W, metric = targets[0].weight, targets[0].metric
        factors = method.factor(spec, W, seed=seed, metric=metric, max_iter=max_iter)
    made = unit.split(compose(spec, stages, factors))
    parts = unit.build(stages)
    unit.write(parts, stages, factors)
    errors = [_relative(t.weight, m, t.metric) for t, m in zip(targets, made, strict=True)]
    shifts = [
        mean_lost(goal, W) if goal is not None and goal.centred else None
        for goal, W in zip(goals, made, strict=True)
    ]
    return Replacement(parts, tuple(shifts), tuple(errors), fitted)


def _told(unit: Unit, method: Method) -> tuple[object, ...]:
    """What tells a fit from others with the same before it."""
    settings = asdict(method)  # type: ignore[call-overload]
    names = [view.name for view in unit.layers]
    return unit.bond, names, unit.behind, of_class(type(method)), repr(settings)


def _packed(made: Replacement) -> Kept:
    tensors = {f"part {name}": t for name, t in _holder(made.parts).state_dict().items()}
    shifts = {f"shift {k}": t for k, t in enumerate(made.shifts) if t is not None}
    return Kept({"errors": made.errors, "fitted": made.fitted}, {**tensors, **shifts})


def _unpacked(unit: Unit, method: Method, kept: Kept) -> Replacement:
    parts, found = unit.build(method.stages(unit.spec)), kept.tensors
    state = {n.removeprefix("part "): t for n, t in found.items() if n.startswith("part ")}
    _holder(parts).load_state_dict(state, strict=True)
    errors = tuple(kept.record["errors"])
    shifts = tuple(found.get(f"shift {k}") for k in range(len(errors)))
    return Replacement(parts, shifts, errors, kept.record["fitted"])


def _holder(parts: Parts) -> nn.ModuleList:
    return nn.ModuleList([*(module for row in parts.rows for module in row), *parts.front])


def _aim(view: LayerView, goal: Goal | None) -> Tensor:
    wide_type = torch.promote_types(view.parameter.dtype, torch.float32)
    return view.weight() if goal is None else goal.weight.to(wide_type)


def _relative(W: Tensor, made: Tensor, metric: Metric | None) -> float:
    """Relative error in the metric, or of the weight."""
    if metric is None:
        norm = float(torch.linalg.vector_norm(W))
        return float(torch.linalg.vector_norm(W - made)) / norm if norm else 0.0
    energy = metric.energy(W.flatten(2))
    lost = metric.error((W - made).flatten(2))
    return (max(lost, 0.0) / energy) ** 0.5 if energy else 0.0


def mean_lost(goal: Goal, made: Tensor) -> Tensor:
    """What the mean of the output lacks, (out,)."""
    W = made.flatten(2).to(goal.mean_in.dtype)
    return (goal.mean_out - (W @ goal.mean_in[..., None]).squeeze(-1)).flatten()
