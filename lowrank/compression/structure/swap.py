"""Put factorized stages in a layer's place, and the layer back in theirs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank.compression.methods import Method
from lowrank.compression.network.example import is_wrapper
from lowrank.compression.network.layers import LayerView, is_transposed_linear, spec_of
from lowrank.compression.network.own_stages import bias_holder
from lowrank.compression.network.stages import (
    Factor,
    LayerSpec,
    Stage,
    compose,
    leaves,
    module_layout,
    weight_of,
    with_leaves,
)
from lowrank.compression.network.units import Parts, Unit, unit_of
from lowrank.compression.structure.plan import Plan
from lowrank.errors import PlanError
from lowrank.linalg import wide


def planned_units(model: nn.Module, plan: Plan) -> list[tuple[Unit, Method]]:
    """The units that a plan replaces in a model, and the method of each.

    Raises:
        PlanError: a layer is none, or layers that are tied make no unit.
    """
    found = []
    for names, method in plan.units.items():
        views = [_view(name, model.get_submodule(name), plan) for name in names]
        unit = unit_of(views, plan.layers[names[0]].behind)
        if unit is None:
            problem = f"it makes no unit with {', '.join(names[1:])}, which are tied to it"
            raise PlanError(names[0], problem, "untie them in the plan")
        found.append((unit, method))
    return found


def _view(name: str, module: nn.Module, plan: Plan) -> LayerView:
    row = plan.layers[name]
    return LayerView(name, (name,), module, layer_spec(module), (), row.asked, row.gain)


def chained(
    module: nn.Module, stages: Sequence[nn.Module], asked: Sequence[str] = ()
) -> nn.Sequential:
    """The stages in a row, with everything of the layer that is not its weight.

    Of the parameters that the model asks for their type or device there is an empty tensor, which
    goes with the model wherever that goes, and into no file.
    """
    weight = weight_of(module)
    chain = nn.Sequential(*stages)
    for name in asked:
        own = module._parameters[name]
        empty = None if own is None else own.detach().new_empty(0)
        chain.register_buffer(name, empty, persistent=False)
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
    chain.__dict__[_MADE] = True
    _put(model, module, chain)


_MADE = "_lowrank_made"


def is_made(module: nn.Module) -> bool:
    """Whether a plan put this in a layer's place."""
    return _MADE in module.__dict__


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new
                if is_wrapper(parent):  # its forward is the one of what it was made around
                    parent.__setstate__(vars(parent))


def install_unit(
    model: nn.Module, unit: Unit, parts: Parts, originals: dict[str, nn.Module]
) -> None:
    """Put the modules that replace a unit in its layers' places, and keep the layers' shells."""
    for view, row in zip(unit.layers, parts.rows, strict=True):
        install(model, view.name, chained(view.module, row, view.asked), originals)
    trained = any(view.parameter.requires_grad for view in unit.layers)
    for module in parts.front or parts.rows[0][:-1]:
        module.requires_grad_(trained)
    if parts.front and unit.behind is not None:
        maker = model.get_submodule(unit.behind)
        install(model, unit.behind, _followed(maker, parts.front), originals)


def _followed(maker: nn.Module, front: Sequence[nn.Module]) -> nn.Sequential:
    """A module, which stays as it is, and stages that run behind it."""
    chain = nn.Sequential(maker, *front)
    for key, value in vars(maker).items():
        if not key.startswith("_"):
            chain.__dict__[key] = value
    for stage in front:
        stage.train(maker.training)
    return chain


def restore_units(model: nn.Module, plan: Plan, originals: Mapping[str, nn.Module]) -> None:
    """Put dense layers, with the weights that the stages amount to, back in their places."""
    found = []
    for names, method in plan.units.items():  # all weights first: a head reads its table
        unit = unit_of([_view(n, originals[n], plan) for n in names], plan.layers[names[0]].behind)
        assert unit is not None
        found.append((unit, _weights(model, unit, method)))
    for unit, weights in found:
        restored: list[Tensor] = []
        for k, (view, owner) in enumerate(zip(unit.layers, unit.owners, strict=True)):
            weight = weights[len(restored)] if owner == k else restored[owner]
            put_dense(model, view.name, view.module, weight)
            _settle_gain(view)
            if owner == k:
                restored.append(weight_of(view.module))
        if unit.behind is not None:
            chain = model.get_submodule(unit.behind)
            _put(model, chain, chain.get_submodule("0"))


def _weights(model: nn.Module, unit: Unit, method: Method) -> tuple[Tensor, ...]:
    """The weights, each in its layer's layout, that the stages in a model amount to."""
    stages = method.stages(unit.spec)
    rows = tuple(stages_in(model, view.name) for view in unit.layers)
    front = () if unit.behind is None else stages_in(model, unit.behind)[1:]
    made = _folded(unit.spec, stages, unit.read(Parts(rows, front), stages))
    owners = [view for k, view in enumerate(unit.layers) if unit.owners[k] == k]
    return tuple(
        module_layout(view.spec, W / view.gain, transposed=is_transposed_linear(view.module))
        for view, W in zip(owners, unit.split(made), strict=True)
    )


def _settle_gain(view: LayerView) -> None:
    """Give an embedding that was built without values the number that it multiplies by."""
    weight = weight_of(view.module)
    for name, buffer in view.module._buffers.items():
        if buffer is not None and buffer.is_meta and buffer.numel() == 1:
            made = torch.full_like(buffer, view.gain, device=weight.device)
            view.module._buffers[name] = made


def stages_in(model: nn.Module, name: str) -> tuple[nn.Module, ...]:
    """The modules in a row that a plan put in a module's place."""
    chain = model.get_submodule(name)
    assert isinstance(chain, nn.Sequential)
    return tuple(chain)


def folded_weight(chain: nn.Module, method: Method, spec: LayerSpec) -> Tensor:
    """The canonical weight that the stages of a replaced layer amount to."""
    assert isinstance(chain, nn.Sequential)
    stages = method.stages(spec)
    factors = [stage.read(module) for stage, module in zip(stages, chain, strict=True)]
    return _folded(spec, stages, factors)


def _folded(spec: LayerSpec, stages: Sequence[Stage], factors: Sequence[Factor]) -> Tensor:
    found = [wide(f) if f.is_floating_point() else f for f in leaves(factors)]
    return compose(spec, stages, with_leaves(factors, found))


def put_dense(model: nn.Module, name: str, shell: nn.Module, weight: Tensor) -> None:
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
