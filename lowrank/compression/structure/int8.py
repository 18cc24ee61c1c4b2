"""int8 linear layers: which can be, what they cost, and how much their rounding loses.

PyTorch's route for them is torchao: weights are stored as int8 with one scale a row, inputs
are rounded token by token while the model runs ("dynamic"), and products are of whole
numbers. It has linear layers only; what this module computes needs no torchao.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lowrank.compression.network.own_stages import is_int8
from lowrank.compression.network.scan import static_reason
from lowrank.compression.network.stages import NARROWEST, Stage
from lowrank.compression.network.tensors import memory_of
from lowrank.errors import InputError

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of weights that torchao's dynamic int8 takes."""


_STEPS = 127.5
"""Half the range of int8: the largest weight of a row is 127.5 steps."""


def parts_of(tensor: Tensor) -> dict[str, Tensor]:
    """The plain tensors that an int8 weight is stored in, by name."""
    names, _ = tensor.data.__tensor_flatten__()  # type: ignore[attr-defined]
    return {name: getattr(tensor.data, name) for name in names}


def reasons_against(model: nn.Module) -> dict[str, str]:
    """Every module with a weight that cannot be int8 -> why.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> reasons_against(net)
        {'0': 'torchao has int8 kernels for linear layers only, and this is a Conv2d'}
    """
    shared = _shared(model)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList):
            continue  # what it holds belongs to the layer, which says why it stays
        matrix = any(p.ndim > 1 for p in module.parameters(recurse=False) if not is_lazy(p))
        if not matrix and not isinstance(module, nn.Linear):
            continue
        reason = _reason(module) or shared.get(id(module))
        if reason is not None:
            found[name] = reason
    return found


def _reason(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if _has_int8(module):
        return "it is int8 already"
    if not isinstance(module, nn.Linear):
        return f"torchao has int8 kernels for linear layers only, and this is a {kind}"
    if (reason := static_reason(module)) is not None:
        return reason
    if type(module) is not nn.Linear:
        return f"{kind} may use its weight otherwise than a Linear does"
    if module.in_features < NARROWEST:
        return f"torchao's int8 layers take at least {NARROWEST} inputs, and this one has 1"
    if module.weight.dtype not in TYPES:
        return f"torchao's int8 layers do not compute in {module.weight.dtype}"
    return None


def _shared(model: nn.Module) -> dict[int, str]:
    """Modules whose weight another one holds too: id -> why they stay."""
    users: dict[Any, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        if (weight := _own_weight(module)) is not None:
            users.setdefault(memory_of(weight), []).append((name, module))
    return {
        id(module): f"it shares its weight with {', '.join(n for n, _ in held if n != name)}"
        for held in users.values()
        for name, module in held
        if len(held) > 1
    }


def rounded(weight: Tensor) -> Tensor:
    """A weight (..., out, in) as int8 stores it: each row in steps of its largest entry / 127.5.

    Example:
        >>> rounded(torch.tensor([[1.0, 0.5, 0.001]]))
        tensor([[0.9961, 0.5020, 0.0000]])
    """
    step = (weight.abs().amax(-1, keepdim=True) / _STEPS).to(
        torch.promote_types(weight.dtype, torch.float32)
    )
    step = step.clamp_min(torch.finfo(torch.float32).eps)
    codes = (weight * (1 / step)).round().clamp(-128, 127)  # as torchao divides: it decides ties
    return (codes * step).to(weight.dtype)


def stages_fit(stages: Sequence[Stage]) -> bool:
    """Whether torchao has a kernel for every stage."""
    return all(s.int8_bytes() is not None for s in stages)


def stage_bytes(stages: Sequence[Stage]) -> int:
    """Bytes of linear stages in int8, their scales included."""
    return sum(s.int8_bytes() or 0 for s in stages)


def require_torchao() -> None:
    """Raise an InputError unless torchao is installed."""
    with _quiet():
        try:
            import torchao.quantization  # noqa: F401
        except ImportError as error:
            raise InputError(
                "int8", "torchao is not installed", 'pip install "lowrank-kit[quantize]"'
            ) from error


def quantize_linear(model: nn.Module, names: Iterable[str]) -> None:
    """Turn the weights of linear layers into int8, in place.

    Args:
        model: holds the layers.
        names: linear layers, or modules whose linear layers are meant.

    Raises:
        InputError: torchao is not installed.
    """
    require_torchao()
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    inside = {id(m) for name in names for m in linear_in(model.get_submodule(name))}

    def wanted(module: nn.Module, name: str) -> bool:
        return id(module) in inside and not is_int8(module.weight)  # type: ignore[arg-type]

    with _quiet():
        quantize_(model, Int8DynamicActivationInt8WeightConfig(), filter_fn=wanted)


def linear_in(module: nn.Module) -> list[nn.Linear]:
    """The linear layers of a module, itself included, that hold a weight of their own: a sparse
    stage holds the non-zeros for its layer, a parametrization makes them.
    """
    found = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return [m for m in found if isinstance(m._parameters.get("weight"), nn.Parameter)]


def int8_layers(model: nn.Module) -> list[str]:
    """Names of the layers whose weight is int8."""
    return [n for n, m in model.named_modules() if _has_int8(m)]


def _has_int8(module: nn.Module) -> bool:
    weight = _own_weight(module)
    return weight is not None and is_int8(weight)


def _own_weight(module: nn.Module) -> nn.Parameter | None:
    """The parameter of this name; of a scripted module, too, whose dict of them is none."""
    return dict(module.named_parameters(recurse=False)).get("weight")


def dequantize(model: nn.Module) -> None:
    """Turn int8 weights back into floating-point ones of the same values, in place."""
    for name in int8_layers(model):
        module = model.get_submodule(name)
        values = module.weight.dequantize()  # type: ignore[operator]
        module._parameters["weight"] = nn.Parameter(values)


def unpacked(state: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A state with the parts of int8 weights in their place, and those weights' names."""
    names = [n for n, t in state.items() if isinstance(t, Tensor) and is_int8(t)]
    flat: dict[str, Any] = {}
    for name, value in state.items():
        parts = parts_of(value) if name in names else {}
        flat |= {f"{name}.{part}": t for part, t in parts.items()} or {name: value}
    return flat, names


def packed(
    tensors: Mapping[str, Tensor], names: Sequence[str], dtype: Callable[[str], torch.dtype]
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The inverse of `unpacked`: floating-point weights in place of parts, and the parts.

    Args:
        tensors: what `unpacked` gave.
        names: of the int8 weights.
        dtype: name of a weight -> the type that it computes in.

    Raises:
        KeyError: a part is missing.
    """
    rest, parts = dict(tensors), {}
    for name in names:
        own = {k: rest.pop(k) for k in list(rest) if k.startswith(f"{name}.")}
        parts[name] = {k.removeprefix(f"{name}."): t for k, t in own.items()}
        q, scale = parts[name]["qdata"], parts[name]["scale"]
        rest[name] = (q * scale.reshape(-1, 1)).to(dtype(name))
    return rest, parts


def write_int8(model: nn.Module, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Make weights int8 with just these parts, in place."""
    if not parts:
        return
    quantize_linear(model, [name.rpartition(".")[0] for name in parts])
    with torch.no_grad():
        for name, values in parts.items():
            own = parts_of(model.get_parameter(name))
            for part, value in values.items():
                own[part].copy_(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torchao warns of and logs when it is imported, on machines without a GPU."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
