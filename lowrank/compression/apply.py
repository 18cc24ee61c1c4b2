"""Replace the layers of a model as a plan says, and put them back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from lowrank.compression.batchnorm import batch_norms, improves
from lowrank.compression.calibrate import calibration_batches, check_batches
from lowrank.compression.curves import Progress
from lowrank.compression.example import Example, fourths
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
from lowrank.compression.layers import (
    LayerSpec,
    canonical,
    is_transposed_linear,
    leaves,
    module_layout,
    spec_of,
    tied_head,
    with_leaves,
)
from lowrank.compression.methods import Method
from lowrank.compression.methods.base import compose, require
from lowrank.compression.modules import bias_holder
from lowrank.compression.plan import Dense, Plan, Tied
from lowrank.compression.quality import Quality, compare_outputs
from lowrank.compression.report import Figures, LayerReport, Report
from lowrank.compression.scan import held_elsewhere, refuse_valueless, scan, static_reason
from lowrank.compression.sequential import Goal
from lowrank.compression.sinks import Sink
from lowrank.decompositions.metric import Metric
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
    methods = plan.replaced
    with torch.inference_mode(False):  # its tensors could never be trained
        small = copy_model(model)
        fitting = None if data is None else Fitting(data, model, small, how, seed=plan.seed)
        order = list(methods) if fitting is None else fitting.order(list(methods))
        for done, name in enumerate(order):
            if progress is not None:
                progress(name, done, len(methods))
            goal, fitted = (None, "to its weights") if fitting is None else fitting.goal(name)
            made = _factorized(small, name, methods[name], plan.seed, goal, max_iter)
            _install(small, name, made.chain, originals)
            if goal is not None and goal.centred and data is not None:
                norm = data.sinks.get(name, Sink()).norm
                take_mean(small, name, _shift(goal, made.weight), norm, made.chain)
            built[name] = Built(made.error, fitted)
        for name, row in plan.layers.items():
            if isinstance(row.choice, Tied):
                _replace_head(small, name, row.choice.to, originals)
    if progress is not None:
        progress("replaced", len(methods), len(methods))
    small.__dict__[_RECORD] = (*history(small), Applied(plan, originals))
    return small, built


def renormalise(model: nn.Module, small: nn.Module, batches: Sequence[Example]) -> bool:
    """Estimate batch-norm statistics anew; kept only if outputs held out come closer.

    Every fourth batch is held out. True if they were kept.
    """
    rest, held = fourths(batches)

    def lost(candidate: nn.Module) -> float:
        found = compare_outputs(model, candidate, None, held)
        assert found is not None
        return found.loss

    return improves(small, batch_norms(small), rest or held, lost) is not None


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
    if data is None or isinstance(data, Data):
        return data
    batches = calibration_batches(data, example, calibration)
    views = scan(model, batches[0] if example is None else example).views
    return Data.of(model, views, batches, seed=plan.seed)


def _quality(
    model: nn.Module,
    small: nn.Module,
    example: Example | None,
    data: object,
    known: Data | None,
    val: object,
) -> Quality | None:
    if val is not None or known is None:
        return compare_outputs(model, small, example, val)
    if not isinstance(data, Data) and (rest := check_batches(data, example, known.batches)):
        return compare_outputs(model, small, example, rest)
    seen = compare_outputs(model, small, example, list(known.batches))
    return None if seen is None else replace(seen, held_out=False)


def _made(
    model: nn.Module,
    plan: Plan,
    known: Data | None,
    how: How,
    steps: bool | int,
    progress: Progress | None,
) -> tuple[nn.Module, dict[str, Built], list[str]]:
    """The new model, how close its layers came, and what there is to say of the data."""
    if steps and known is None:
        raise InputError("refine", "there is no data to refine on", "pass data=")
    if known is None or not steps or not plan.replaced:
        return _fitted(model, plan, known, how, progress)
    from lowrank.compression.blocks import STEPS  # which trains, a floor above
    from lowrank.compression.refine import refine, try_out

    steps, layers = STEPS if steps is True else int(steps), list(plan.replaced)
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
    for name, method in plan.replaced.items():
        module = model.get_submodule(name)
        spec = _spec(module)
        weight = _weight(module)
        stages = [s.build(dtype=weight.dtype, device=weight.device) for s in method.specs(spec)]
        _install(model, name, _chain(module, stages), originals)
    for name, row in plan.layers.items():
        if isinstance(row.choice, Tied):
            _replace_head(model, name, row.choice.to, originals)
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
        methods, heads = applied.plan.replaced, applied.plan.layers
        # weights first: a tied head reads its embedding's factors
        weights = {
            name: _folded(dense.get_submodule(name), method, applied.originals[name])
            for name, method in methods.items()
        }
        for name in methods:
            _restore(dense, name, applied.originals[name], weights[name])
        for name, row in heads.items():
            if isinstance(row.choice, Tied):
                shared = _weight(dense.get_submodule(row.choice.to))
                _restore(dense, name, applied.originals[name], shared)
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


def _check_int8(model: nn.Module, plan: Plan) -> None:
    """Refuse rows in int8 whose layer, or whose stages, torchao cannot serve."""
    reasons = reasons_against(model) if plan.int8 else {}
    for name in plan.int8:
        choice, module = plan.layers[name].choice, model.get_submodule(name)
        problem = reasons.get(name)
        if isinstance(choice, Tied):
            problem = f"it shares its table with {choice.to}"
        elif not isinstance(choice, Dense):
            linear = stages_fit(choice.specs(_spec(module)))
            problem = None if linear else f"{choice.name} does not make it linear layers alone"
        elif not linear_in(module):
            problem = problem or "it is no linear layer"
        if problem is not None:
            raise PlanError(name or "model", f"it cannot be int8: {problem}", 'drop its "int8"')


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
        if row.cost is None:
            continue
        if row.cost.params != params or (row.int8 and row.cost.bytes != stage_bytes(specs)):
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


@dataclass(frozen=True, eq=False)
class _Made:
    """Stages in a row, the canonical weight they amount to, and its relative error."""

    chain: nn.Sequential
    weight: Tensor
    error: float


def _factorized(
    model: nn.Module,
    name: str,
    method: Method,
    seed: int,
    goal: Goal | None,
    max_iter: int | None,
) -> _Made:
    """The stages that replace a layer, closest to its weight or to the goal."""
    module = model.get_submodule(name)
    spec, weight = _spec(module), _weight(module)
    if goal is None:
        wide = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
        W = canonical(spec, wide, transposed=is_transposed_linear(module))
    else:
        W = goal.weight.to(torch.promote_types(weight.dtype, torch.float32))
    specs = method.specs(spec)
    metric = None if goal is None else goal.metric
    factors = method.factor(spec, W, seed=seed, metric=metric, max_iter=max_iter)
    made = compose(spec, specs, factors)
    stages = []
    for stage_spec, factor in zip(specs, factors, strict=True):
        stage = stage_spec.build(dtype=weight.dtype, device=weight.device)
        stage_spec.write(stage, factor)
        stages.append(stage)
    return _Made(_chain(module, stages), made, _relative(W, made, metric))


def _relative(W: Tensor, made: Tensor, metric: Metric | None) -> float:
    """Relative error in the metric, or of the weight."""
    if metric is None:
        norm = float(torch.linalg.vector_norm(W))
        return float(torch.linalg.vector_norm(W - made)) / norm if norm else 0.0
    energy = metric.error(W.flatten(2))
    lost = metric.error((W - made).flatten(2))
    return (max(lost, 0.0) / energy) ** 0.5 if energy else 0.0


def _shift(goal: Goal, made: Tensor) -> Tensor:
    """What the mean of the output lacks, (out,)."""
    W = made.flatten(2).to(goal.mean_in.dtype)
    return (goal.mean_out - (W @ goal.mean_in[..., None]).squeeze(-1)).flatten()


def _chain(module: nn.Module, stages: Sequence[nn.Module]) -> nn.Sequential:
    """The stages in a row, with everything of the layer that is not its weight."""
    weight = _weight(module)
    chain = nn.Sequential(*stages)
    for parameter in chain.parameters():
        parameter.requires_grad_(weight.requires_grad)
        if _is_channels_last(weight) and parameter.ndim == weight.ndim:
            parameter.data = parameter.data.contiguous(memory_format=_layout(weight))
    bias = module._parameters.get("bias")
    if bias is not None:
        bias_holder(chain).register_parameter("bias", bias)  # the same object: it may be shared
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


def _folded(chain: nn.Module, method: Method, original: nn.Module) -> Tensor:
    """The weight, in the original module's layout, that the stages amount to."""
    spec = _spec(original)
    folded = folded_weight(chain, method, spec)
    return module_layout(spec, folded, transposed=is_transposed_linear(original))


def folded_weight(chain: nn.Module, method: Method, spec: LayerSpec) -> Tensor:
    """The canonical weight that the stages of a replaced layer amount to."""
    assert isinstance(chain, nn.Sequential)
    stages = method.specs(spec)
    factors = [stage.read(module) for stage, module in zip(stages, chain, strict=True)]
    return compose(spec, stages, with_leaves(factors, [_wide(f) for f in leaves(factors)]))


def _wide(values: Tensor) -> Tensor:
    """Half types in float32."""
    half = values.is_floating_point() and values.dtype != torch.float64
    return values.float() if half else values


def _restore(model: nn.Module, name: str, shell: nn.Module, weight: Tensor) -> None:
    chain = model.get_submodule(name)
    assert isinstance(chain, nn.Sequential)
    last = bias_holder(chain)
    own = [p for p in chain.parameters() if p is not last._parameters.get("bias")]
    first = own[0]
    if not isinstance(weight, nn.Parameter):
        # the factors may be 1 wide and so of either layout: then the shell's strides tell
        channels_last = any(_is_channels_last(p) for p in (*own, _weight(shell)))
        layout = _layout(weight) if channels_last else torch.contiguous_format
        value = weight.to(first.dtype).contiguous(memory_format=layout)
        weight = nn.Parameter(value, requires_grad=first.requires_grad)
    shell._parameters["weight"] = weight
    if getattr(last, "bias", None) is not None:
        shell._parameters["bias"] = last._parameters["bias"]
    _move_hooks(chain, shell)
    for part in shell.modules():
        part.training = chain.training
    _put(model, chain, shell)


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
