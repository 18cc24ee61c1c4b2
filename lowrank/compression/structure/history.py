"""What was done to a model: the record of a plan, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from lowrank.compression.methods.shared.base import require
from lowrank.compression.network.batches import Form
from lowrank.compression.network.channels.masks import masked, unmask
from lowrank.compression.network.channels.narrowing import narrow, widen
from lowrank.compression.network.channels.weight_norm import fold_weight_norm, weight_normed
from lowrank.compression.network.example import Example, first_line, is_wrapper, unwrapped
from lowrank.compression.network.layer_names import suggestion
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import TORCH_FIELDS, held_elsewhere, is_plain, static_reason
from lowrank.compression.network.tensors import memory_of
from lowrank.compression.network.units import names_of
from lowrank.compression.structure.choices import Dense, Tied
from lowrank.compression.structure.fused import settle_fused
from lowrank.compression.structure.int8 import dequantize, int8_layers
from lowrank.compression.structure.packed import (
    kept_apart,
    packed_in,
    put_together,
    take_apart,
)
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.swap import install_unit, planned_units, restore_units, stages_in
from lowrank.errors import InputError, PlanError

_RECORD = "_lowrank_applied"

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Applied:
    """A plan that a model has been through, and what it takes to undo it.

    Args:
        plan: the plan.
        originals: replaced layer -> the dense module, without its weights.
        form: how the model takes its inputs, as an example showed; None without one.
    """

    plan: Plan
    originals: dict[str, nn.Module]
    form: Form | None = None


def history(model: nn.Module) -> tuple[Applied, ...]:
    """The plans that a model has been through as a whole, first to last."""
    return tuple(unwrapped(model).__dict__.get(_RECORD, ()))


def records(model: nn.Module) -> list[tuple[str, Applied]]:
    """The plans of a model and of parts that were compressed by themselves, with the parts'
    names; one that was made of what another gave comes after it."""
    rest = [
        (name, applied)
        for name, module in unwrapped(model).named_modules()
        for applied in module.__dict__.get(_RECORD, ())
    ]
    found = []
    while rest:
        free = (r for r in rest if not any(_follows(r, other) for other in rest if other is not r))
        first = next(free, rest[0])
        rest.remove(first)
        found.append(first)
    return found


def _follows(record: tuple[str, Applied], other: tuple[str, Applied]) -> bool:
    """Whether a plan speaks of layers inside what another plan put into the model."""
    (at, applied), (there, earlier) = record, other
    rows = [f"{at}.{name}" if at else name for name in applied.plan.layers]
    made = [f"{there}.{name}." if there else f"{name}." for name in earlier.originals]
    return any(row.startswith(tuple(made)) for row in rows)


def part_of(model: nn.Module, name: str) -> nn.Module:
    """The part of a model that a plan is for.

    Raises:
        PlanError: the model has none of this name.
    """
    known = dict(model.named_modules())
    if name not in known:
        raise PlanError(name, "the model has no such part", suggestion(name, known))
    return known[name]


def form_of(model: nn.Module) -> Form:
    """How a model takes its inputs: as it was compressed with, else by its forward's arguments."""
    shown = next((a.form for a in reversed(history(model)) if a.form is not None), None)
    return (shown or Form.taken_by(model)).to_train(model)


def remember_form(model: nn.Module, example: Example | None) -> None:
    """Keep, with the record of the last plan, the form that an example shows."""
    if example is not None:
        *before, last = history(model)
        model.__dict__[_RECORD] = (*before, replace(last, form=Form.of(example)))


def factors_in(model: nn.Module) -> list[nn.Module]:
    """The modules that the plans of a model put into it: in layers' places, and behind others."""
    found = []
    for at, applied in records(model):
        part = unwrapped(model).get_submodule(at)
        covered = [name for names in applied.plan.units for name in names]
        found += [part.get_submodule(name) for name in covered]
        for host in applied.plan.hosts:
            found += stages_in(part, host)[1:]
    return found


def build_structure(model: nn.Module, plan: Plan) -> None:
    """Replace the layers in place by stages of the plan's shapes with arbitrary weights."""
    fold_weight_norm(model, unnormed_by(model, plan))
    unmask(model, unmasked_by(model, plan))
    take_apart(model, packed_in(model, plan))
    narrow(model, plan.narrowed)
    plan.check_model(model)
    _check_choices(model, plan)
    originals: dict[str, nn.Module] = {}
    for unit, method in planned_units(model, plan):
        install_unit(model, unit, unit.build(method.stages(unit.spec)), originals)
    put_together(model, kept_apart(plan))
    settle_fused(model)
    model.__dict__[_RECORD] = (*history(model), Applied(plan, originals))


def unmasked_by(model: nn.Module, plan: Plan) -> list[str]:
    """The modules with masks that a plan takes to be part of their weights."""
    rows = plan.layers
    return [
        name
        for name, weights in masked(model).items()
        if name in rows and all(weight in rows[name].shapes for weight in weights)
    ]


def unnormed_by(model: nn.Module, plan: Plan) -> list[str]:
    """The modules under weight norm whose weight a plan takes to be plain."""
    rows = plan.layers
    return [n for n in weight_normed(model) if n in rows and "weight" in rows[n].shapes]


def densify(model: nn.Module) -> nn.Module:
    """A copy in which every replaced layer is one dense layer of its original class again.

    Layers in int8 become floating-point ones of the same, rounded, weights. Of a model that
    `torch.compile` or `DataParallel` wraps it is a copy of what is inside.

    The weights are the products of the factors, so the outputs stay the same up to
    rounding; training the factors in between is fine. Where channels were selected it is as wide
    as before, with zeros in place of those that went.

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
    model = unwrapped(model)
    if not records(model) and not int8_layers(model):
        raise PlanError("model", "it holds no factorized layers", "pass what apply returned")
    dense = copy_model(model)
    dequantize(dense)
    for at, applied in reversed(records(dense)):
        restore_units(dense.get_submodule(at), applied.plan, applied.originals)
        widen(dense.get_submodule(at), applied.plan.narrowed)
    put_together(dense)
    settle_fused(dense)
    for module in dense.modules():
        module.__dict__.pop(_RECORD, None)
    return dense


def copy_model(model: ModelT, known: dict[int, Any] | None = None) -> ModelT:
    """A deep copy of the model.

    Args:
        model: the model.
        known: what stands in the copy for objects of given ids, as `copy.deepcopy` takes it.

    Raises:
        InputError: the model holds something that cannot be copied, such as a lock, an open
            file or the graph of a pass with gradients; names it.
    """
    try:
        memo = {**remade(model), **(known or {})}
        _wrap_anew(model, memo)
        made = copy.deepcopy(model, memo)
    except Exception as error:  # a class may copy itself in its own way, and fail in its own
        problem = f"it cannot be copied ({type(error).__name__}: {first_line(error)})"
        advice = "take it off the model, or detach it where it is a tensor with a graph"
        raise InputError(_uncopyable(model) or "model", problem, advice) from error
    for parameter in made.parameters():
        if not parameter.is_leaf:  # of a scripted part, which copies as if it computed
            parameter.detach_().requires_grad_(True)
    return made


def _wrap_anew(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy what `torch.compile` puts around modules that know how to copy themselves, as those
    with parametrizations do: their wrapper would be asked, and give its inside alone."""
    for module in reversed(list(model.modules())):
        if is_wrapper(module) and hasattr(module, "__deepcopy__") and id(module) not in memo:
            build, arguments = cast("tuple[Any, Any]", module.__reduce__())
            memo[id(module)] = build(*copy.deepcopy(arguments, memo))


def _uncopyable(model: nn.Module) -> str | None:
    """The first attribute, beside torch's own, that cannot be copied."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in TORCH_FIELDS:
                continue
            try:
                copy.deepcopy(value, {id(m): m for m in model.modules()})
            except Exception:
                return f"{name}.{key}" if name else f"model.{key}"
    return None


def remade(model: nn.Module) -> dict[int, Tensor]:
    """What a copy of a model holds in place of some of its tensors, by their ids: of those that
    hooks make anew in each pass, as of pruning and of weight norm, the values; of parameters
    over one memory, a single one."""
    held = (value for module in model.modules() for value in vars(module).values())
    found = {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
    tied: dict[Any, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        tied.setdefault(memory_of(parameter), []).append(parameter)
    for first, *others in tied.values():
        if others:
            found |= dict.fromkeys(map(id, (first, *others)), copy.deepcopy(first))
    return found


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
        _check_behind(model, plan, name)
    users = _users_of_weights(model)
    for unit, method in planned_units(model, plan):
        require(method, unit)
        names = names_of(unit)
        for view, owner in zip(unit.layers, unit.owners, strict=True):
            own = {n for n, other in zip(names, unit.owners, strict=True) if other == owner}
            _check_sharing(view, users[memory_of(view.parameter)], own)


def _check_behind(model: nn.Module, plan: Plan, name: str) -> None:
    """Refuse a module for a shared factor to run behind that is none, or is replaced itself."""
    behind = plan.layers[name].behind
    if behind is None:
        return
    module = dict(model.named_modules()).get(behind)
    if module is None or not is_plain(module):
        problem = f"no factor can run behind {behind!r}, which is no module or holds layers"
        raise PlanError(name, problem, 'drop "behind", so that each layer runs it')


def _users_of_weights(model: nn.Module) -> dict[Any, dict[str, nn.Module]]:
    """The modules that hold each parameter, by its memory."""
    users: dict[Any, dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(memory_of(parameter), {})[name] = module
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
