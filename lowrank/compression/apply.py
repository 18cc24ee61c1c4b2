"""Replace the layers of a model as a plan says, and put them back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lowrank.compression.curves import Progress
from lowrank.compression.example import Example
from lowrank.compression.layers import (
    LayerSpec,
    canonical,
    is_transposed_linear,
    module_layout,
    spec_of,
    tied_head,
)
from lowrank.compression.methods import Method
from lowrank.compression.methods.base import compose, require
from lowrank.compression.plan import Plan, Tied
from lowrank.compression.quality import compare_outputs
from lowrank.compression.report import Figures, LayerReport, Report
from lowrank.compression.scan import held_elsewhere, refuse_valueless, static_reason
from lowrank.errors import InputError, PlanError

_RECORD = "_lowrank_applied"


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
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """A copy of the model with its layers replaced as the plan says.

    Args:
        model: the network that the plan was made for; left as it is.
        plan: what becomes of every layer.
        example: inputs of one forward pass; with them the report holds MACs, latency and
            the error of the outputs, measured.
        data: batches on which the outputs of both models are compared; see `compress`.
        progress: called as (layer, done, total).

    Returns:
        The new model, made of stock `torch.nn` layers, and the report.

    Raises:
        PlanError: the plan is for another model, or asks for what would break this one.
        RankError: a rank that does not fit its layer.

    Example:
        >>> import torch, lowrank
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> plan = lowrank.measure(model, torch.zeros(1, 64)).plan(params=0.5)
        >>> small, report = lowrank.apply(model, plan)
        >>> small[0]
        Sequential(
          (0): Linear(in_features=64, out_features=15, bias=False)
          (1): Linear(in_features=15, out_features=64, bias=True)
        )
    """
    if not isinstance(plan, Plan):
        raise PlanError("plan", f"{plan!r} is no plan", "read a file with lowrank.Plan.load")
    plan.check_model(model)
    _check_choices(model, plan)
    for name in plan.replaced:
        refuse_valueless(name, model.get_submodule(name))
    plan = _without_stale_figures(model, plan)
    errors: dict[str, float] = {}
    originals: dict[str, nn.Module] = {}
    methods = plan.replaced
    with torch.inference_mode(False):  # its tensors could never be trained
        small = copy_model(model)
        for done, (name, method) in enumerate(methods.items()):
            if progress is not None:
                progress(name, done, len(methods))
            errors[name] = _replace(small, name, method, plan.seed, originals)
        for name, row in plan.layers.items():
            if isinstance(row.choice, Tied):
                _replace_head(small, name, row.choice.to, originals)
    if progress is not None:
        progress("replaced", len(methods), len(methods))
    small.__dict__[_RECORD] = (*history(small), Applied(plan, originals))
    return small, _report(model, small, plan, errors, example, data)


def build_structure(model: nn.Module, plan: Plan) -> None:
    """Replace the layers in place by stages of the plan's shapes with arbitrary weights."""
    plan.check_model(model)
    _check_choices(model, plan)
    originals: dict[str, nn.Module] = {}
    for name, method in plan.replaced.items():
        module = model.get_submodule(name)
        spec = _spec(module)
        stages = [
            s.build(dtype=_weight(module).dtype, device=_weight(module).device)
            for s in method.specs(spec)
        ]
        _install(model, name, _chain(module, stages), originals)
    for name, row in plan.layers.items():
        if isinstance(row.choice, Tied):
            _replace_head(model, name, row.choice.to, originals)
    model.__dict__[_RECORD] = (*history(model), Applied(plan, originals))


def densify(model: nn.Module) -> nn.Module:
    """A copy in which every replaced layer is one dense layer of its original class again.

    The weights are the products of the factors, so the outputs stay the same up to
    rounding; training the factors in between is fine.

    Raises:
        PlanError: the model has not been through `apply`.

    Example:
        >>> import torch, lowrank
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> small, _ = lowrank.compress(model, torch.zeros(1, 64), params=0.5)
        >>> lowrank.densify(small)
        Sequential(
          (0): Linear(in_features=64, out_features=64, bias=True)
        )
    """
    if not history(model):
        raise PlanError("model", "it holds no factorized layers", "pass what apply returned")
    dense = copy_model(model)
    for applied in reversed(history(dense)):
        methods, heads = applied.plan.replaced, applied.plan.layers
        # weights first: a tied head reads its embedding's factors
        weights = {n: _folded(dense.get_submodule(n), applied.originals[n]) for n in methods}
        for name in methods:
            _restore(dense, name, applied.originals[name], weights[name])
        for name, row in heads.items():
            if isinstance(row.choice, Tied):
                shared = _weight(dense.get_submodule(row.choice.to))
                _restore(dense, name, applied.originals[name], shared)
    del dense.__dict__[_RECORD]
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
    modules = dict(model.named_modules())
    held = held_elsewhere(model)
    for name, method in plan.replaced.items():
        module = modules[name]
        if (reason := static_reason(module) or held.get(id(module))) is not None:
            raise PlanError(
                name or "model", f"it cannot be replaced: {reason}", "make it dense in the plan"
            )
        require(method, _spec(module), name)
        shared = [
            n
            for n, m in modules.items()
            if n != name
            and m is not module
            and any(p is _weight(module) for p in m.parameters(recurse=False))
        ]
        tied = {n for n, r in plan.layers.items() if r.choice == Tied(name)}
        if set(shared) - tied:
            raise PlanError(
                name, f"it shares its weight with {', '.join(shared)}", "make it dense in the plan"
            )
    for name, row in plan.layers.items():
        if isinstance(row.choice, Tied) and row.choice.to not in plan.replaced:
            raise PlanError(name, f"it is tied to {row.choice.to}, which is dense", "make it dense")


def _without_stale_figures(model: nn.Module, plan: Plan) -> Plan:
    """The plan without the predictions of rows whose method was changed by hand."""
    heads = {r.choice.to: n for n, r in plan.layers.items() if isinstance(r.choice, Tied)}
    layers = dict(plan.layers)
    for name, method in plan.replaced.items():
        specs = method.specs(_spec(model.get_submodule(name)))
        params = sum(s.n_weights for s in specs)
        if name in heads:
            head = tied_head(specs, _spec(model.get_submodule(heads[name])))
            params += sum(s.n_weights for s in head[:-1])
        row = layers[name]
        if row.cost is not None and row.cost.params != params:
            layers[name] = replace(row, cost=None, error=None)
    return replace(plan, layers=layers)


def _spec(module: nn.Module) -> LayerSpec:
    spec = spec_of(module)
    assert spec is not None
    return spec


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _replace(
    model: nn.Module, name: str, method: Method, seed: int, originals: dict[str, nn.Module]
) -> float:
    """Replace one layer; returns the relative error of its weight."""
    module = model.get_submodule(name)
    spec, weight = _spec(module), _weight(module)
    wide = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    W = canonical(spec, wide, transposed=is_transposed_linear(module))
    specs = method.specs(spec)
    factors = method.factor(spec, W, seed=seed)
    norm = float(torch.linalg.vector_norm(W))
    error = float(torch.linalg.vector_norm(W - compose(spec, specs, factors)))
    stages = []
    for stage_spec, factor in zip(specs, factors, strict=True):
        stage = stage_spec.build(dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            _weight(stage).copy_(module_layout(stage_spec, factor))
        stages.append(stage)
    _install(model, name, _chain(module, stages), originals)
    return error / norm if norm else 0.0


def _chain(module: nn.Module, stages: Sequence[nn.Module]) -> nn.Sequential:
    """The stages in a row, with everything of the layer that is not its weight."""
    weight = _weight(module)
    for stage in stages:
        _weight(stage).requires_grad_(weight.requires_grad)
    bias = module._parameters.get("bias")
    if bias is not None:
        stages[-1].register_parameter("bias", bias)  # the same object: it may be shared
    chain = nn.Sequential(*stages)
    if _is_channels_last(weight):
        for stage in stages:
            _weight(stage).data = _weight(stage).data.contiguous(memory_format=_layout(weight))
    for key, value in vars(module).items():
        if not key.startswith("_"):  # stride, in_features, ...: a model may read them
            chain.__dict__[key] = value
    _move_hooks(module, chain)
    for part in chain.modules():
        part.training = module.training
    return chain


def _is_channels_last(weight: Tensor) -> bool:
    if weight.ndim not in (4, 5) or weight.is_contiguous():
        return False
    return weight.is_contiguous(memory_format=_layout(weight))


def _layout(weight: Tensor) -> torch.memory_format:
    return torch.channels_last if weight.ndim == 4 else torch.channels_last_3d


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _move_hooks(source: nn.Module, target: nn.Module) -> None:
    for name in _HOOKS:
        hooks = getattr(source, name)
        getattr(target, name).update(hooks)
        hooks.clear()
    target._is_full_backward_hook = source._is_full_backward_hook


def _install(
    model: nn.Module, name: str, chain: nn.Module, originals: dict[str, nn.Module]
) -> None:
    """Put the chain wherever the model holds the layer, and keep the layer's shell."""
    module = model.get_submodule(name)
    shell = copy.deepcopy(module).to("meta")
    originals[name] = shell
    _put(model, module, chain)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new


def _replace_head(model: nn.Module, name: str, to: str, originals: dict[str, nn.Module]) -> None:
    """Build the output head on the factors of the embedding that it was tied to."""
    head, embedding = model.get_submodule(name), model.get_submodule(to)
    assert isinstance(embedding, nn.Sequential)
    table, small = _weight(embedding[0]), _weight(embedding[1])  # (words, r), (features, r)
    specs = tied_head([_spec(embedding[0])], _spec(head))
    stages = [s.build(dtype=table.dtype, device=table.device) for s in specs]
    with torch.no_grad():
        _weight(stages[0]).copy_(small.T)
    chain = _chain(head, stages)
    stages[-1].weight = table
    _install(model, name, chain, originals)


def _folded(chain: nn.Module, original: nn.Module) -> Tensor:
    """The weight, in the original module's layout, that the stages amount to."""
    assert isinstance(chain, nn.Sequential)
    spec = _spec(original)
    specs = [_spec(stage) for stage in chain]
    wide = [
        canonical(s, w if w.dtype == torch.float64 else w.float())
        for s, w in ((s, _weight(m).detach()) for s, m in zip(specs, chain, strict=True))
    ]
    folded = compose(spec, specs, wide)
    return module_layout(spec, folded, transposed=is_transposed_linear(original))


def _restore(model: nn.Module, name: str, shell: nn.Module, weight: Tensor) -> None:
    chain = model.get_submodule(name)
    assert isinstance(chain, nn.Sequential)
    first, last = _weight(chain[0]), chain[-1]
    if not isinstance(weight, nn.Parameter):
        # the factors may be 1 wide and so of either layout: then the shell's strides tell
        channels_last = any(_is_channels_last(_weight(m)) for m in (*chain, shell))
        layout = _layout(first) if channels_last else torch.contiguous_format
        value = weight.to(first.dtype).contiguous(memory_format=layout)
        weight = nn.Parameter(value, requires_grad=first.requires_grad)
    shell._parameters["weight"] = weight
    if getattr(last, "bias", None) is not None:
        shell._parameters["bias"] = last._parameters["bias"]
    _move_hooks(chain, shell)
    for part in shell.modules():
        part.training = chain.training
    _put(model, chain, shell)


def _report(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    errors: dict[str, float],
    example: Example | None,
    data: object,
) -> Report:
    rows = []
    for name, row in plan.layers.items():
        predicted = None if row.error is None else row.error**0.5
        rows.append(
            LayerReport(
                name, row.kind, row.choice, row.dense, row.cost, predicted, errors.get(name)
            )
        )
    before, after = Figures.of(model, small, example)
    quality = compare_outputs(model, small, example, data)
    return Report(tuple(rows), plan, before, after, quality)
