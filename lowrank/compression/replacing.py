"""Put factorized stages in a layer's place, and the layer back in theirs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank.compression.layers import (
    LayerSpec,
    canonical,
    is_transposed_linear,
    leaves,
    module_layout,
    spec_of,
    tied_head,
    weight_of,
    with_leaves,
)
from lowrank.compression.methods import Method
from lowrank.compression.methods.base import compose
from lowrank.compression.modules import bias_holder
from lowrank.compression.sequential import Goal
from lowrank.decompositions.metric import Metric
from lowrank.linalg import wide


@dataclass(frozen=True, eq=False)
class Replacement:
    """Stages in a row, the canonical weight they amount to, and its relative error."""

    chain: nn.Sequential
    weight: Tensor
    error: float


def factorize(
    model: nn.Module,
    name: str,
    method: Method,
    seed: int,
    goal: Goal | None,
    max_iter: int | None,
) -> Replacement:
    """The stages that replace a layer, closest to its weight or to the goal."""
    module = model.get_submodule(name)
    spec, weight = layer_spec(module), weight_of(module)
    if goal is None:
        W = canonical(spec, wide(weight.detach()), transposed=is_transposed_linear(module))
    else:
        W = goal.weight.to(torch.promote_types(weight.dtype, torch.float32))
    stages = method.stages(spec)
    metric = None if goal is None else goal.metric
    factors = method.factor(spec, W, seed=seed, metric=metric, max_iter=max_iter)
    made = compose(spec, stages, factors)
    modules = []
    for stage, factor in zip(stages, factors, strict=True):
        modules.append(stage.build(dtype=weight.dtype, device=weight.device))
        stage.write(modules[-1], factor)
    return Replacement(chained(module, modules), made, _relative(W, made, metric))


def _relative(W: Tensor, made: Tensor, metric: Metric | None) -> float:
    """Relative error in the metric, or of the weight."""
    if metric is None:
        norm = float(torch.linalg.vector_norm(W))
        return float(torch.linalg.vector_norm(W - made)) / norm if norm else 0.0
    energy = metric.error(W.flatten(2))
    lost = metric.error((W - made).flatten(2))
    return (max(lost, 0.0) / energy) ** 0.5 if energy else 0.0


def mean_lost(goal: Goal, made: Tensor) -> Tensor:
    """What the mean of the output lacks, (out,)."""
    W = made.flatten(2).to(goal.mean_in.dtype)
    return (goal.mean_out - (W @ goal.mean_in[..., None]).squeeze(-1)).flatten()


def chained(module: nn.Module, stages: Sequence[nn.Module]) -> nn.Sequential:
    """The stages in a row, with everything of the layer that is not its weight."""
    weight = weight_of(module)
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


def install(model: nn.Module, name: str, chain: nn.Module, originals: dict[str, nn.Module]) -> None:
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


def replace_head(model: nn.Module, name: str, to: str, originals: dict[str, nn.Module]) -> None:
    """Build the output head on the factors of the embedding that it was tied to."""
    head, embedding = model.get_submodule(name), model.get_submodule(to)
    assert isinstance(embedding, nn.Sequential)
    table, small = weight_of(embedding[0]), weight_of(embedding[1])  # (words, r), (features, r)
    stages = tied_head([layer_spec(embedding[0])], layer_spec(head))
    modules = [s.build(dtype=table.dtype, device=table.device) for s in stages]
    with torch.no_grad():
        weight_of(modules[0]).copy_(small.T)
    chain = chained(head, modules)
    modules[-1].weight = table
    install(model, name, chain, originals)


def module_weight(chain: nn.Module, method: Method, original: nn.Module) -> Tensor:
    """The weight, in the original module's layout, that the stages amount to."""
    spec = layer_spec(original)
    folded = folded_weight(chain, method, spec)
    return module_layout(spec, folded, transposed=is_transposed_linear(original))


def folded_weight(chain: nn.Module, method: Method, spec: LayerSpec) -> Tensor:
    """The canonical weight that the stages of a replaced layer amount to."""
    assert isinstance(chain, nn.Sequential)
    stages = method.stages(spec)
    factors = [stage.read(module) for stage, module in zip(stages, chain, strict=True)]
    found = [wide(f) if f.is_floating_point() else f for f in leaves(factors)]
    return compose(spec, stages, with_leaves(factors, found))


def restore(model: nn.Module, name: str, shell: nn.Module, weight: Tensor) -> None:
    """Put the dense layer, with this weight and the chain's bias, back where the chain is."""
    chain = model.get_submodule(name)
    assert isinstance(chain, nn.Sequential)
    last = bias_holder(chain)
    own = [p for p in chain.parameters() if p is not last._parameters.get("bias")]
    first = own[0]
    if not isinstance(weight, nn.Parameter):
        # the factors may be 1 wide and so of either layout: then the shell's strides tell
        channels_last = any(_is_channels_last(p) for p in (*own, weight_of(shell)))
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


def layer_spec(module: nn.Module) -> LayerSpec:
    """The spec of a layer that is known to have one."""
    spec = spec_of(module)
    assert spec is not None
    return spec
