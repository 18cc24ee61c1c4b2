"""The tensors inside nested inputs and outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def flatten(output: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output, in order.

    Looks into tuples, lists, dicts (so transformers' ModelOutput too) and dataclasses;
    anything else, caches and integer tensors among it, is left out.

    Example:
        >>> import torch
        >>> logits, ids = torch.zeros(2, 10), torch.zeros(2, dtype=torch.long)
        >>> [tuple(t.shape) for t in flatten({"logits": logits, "ids": ids})]
        [(2, 10)]
    """
    return [tensor for tensor in tensors(output) if _is_float(tensor)]


def mapped(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, dicts and dataclasses around other tensors, each of its own class.

    Example:
        >>> import torch
        >>> mapped({"x": torch.ones(1), "name": "a"}, lambda t: 2 * t)
        {'x': tensor([2.]), 'name': 'a'}
    """
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return like_mapping(value, {key: mapped(item, f) for key, item in value.items()})
    if isinstance(value, tuple | list):
        return _like_sequence(value, [mapped(item, f) for item in value])
    if _is_record(value):
        return _like_record(value, f)
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is a record that goes to a model as one: a namedtuple or a dataclass.

    Example:
        >>> import torch
        >>> is_whole(torch.nn.utils.rnn.pack_sequence([torch.ones(2)])), is_whole((1, 2))
        (True, False)
    """
    return _is_named(value) or (_is_record(value) and not isinstance(value, Mapping))


def like_mapping(value: Mapping[Any, Any], items: dict[Any, Any]) -> Mapping[Any, Any]:
    """A mapping of the same class, if that can be written to, with other items."""
    if type(value) is dict or not isinstance(value, MutableMapping):
        return items
    new = copy.copy(value)
    for key in [key for key in new if key not in items]:
        del new[key]
    for key, item in items.items():
        new[key] = item
    return new


def _like_sequence(value: Any, items: list[Any]) -> Any:
    return type(value)._make(items) if _is_named(value) else type(value)(items)


def _like_record(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a dataclass, frozen or not, without going through what makes one."""
    new = copy.copy(value)
    for field in dataclasses.fields(value):
        object.__setattr__(new, field.name, mapped(getattr(value, field.name), f))
    return new


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(type(value), "_make")


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside a tensor, tuple, list, dict or dataclass, in order.

    Example:
        >>> import torch
        >>> len(tensors((torch.zeros(1), {"mask": torch.ones(1)}, None)))
        2
    """
    return [tensor for _, tensor in _walk(value, "")]


def describe(example: Any) -> str:
    """Shape, dtype and device of every tensor, as error messages say it.

    Example:
        >>> import torch
        >>> describe({"input_ids": torch.zeros(8, 128)})
        'dict(input_ids=float32 (8, 128) on cpu)'
    """
    if isinstance(example, Tensor):
        dtype = str(example.dtype).removeprefix("torch.")
        return f"{dtype} {tuple(example.shape)} on {example.device}"
    if isinstance(example, Mapping):
        inside = ", ".join(f"{key}={describe(value)}" for key, value in example.items())
        return f"{type(example).__name__}({inside})"
    if isinstance(example, (tuple, list)):
        return f"{type(example).__name__}({', '.join(map(describe, example))})"
    if _is_record(example):
        fields = ((f.name, getattr(example, f.name)) for f in dataclasses.fields(example))
        return f"{type(example).__name__}({', '.join(f'{k}={describe(v)}' for k, v in fields)})"
    return type(example).__name__


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{name}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}[{index}]")
    elif _is_record(value):
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name), f"{name}.{field.name}")


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def memory_of(tensor: Tensor) -> Any:
    """Equal for two tensors over the same memory, which need not be the same object."""
    made_of_others = hasattr(type(tensor.data), "__tensor_flatten__")
    if is_lazy(tensor) or made_of_others or tensor.layout is not torch.strided:
        return id(tensor)
    where = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return where, tuple(tensor.shape), tensor.stride()


def distinct(found: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, those over one memory once.

    Example:
        >>> import torch
        >>> a = torch.zeros(3)
        >>> len(distinct([a, a.view(3), a.clone()]))
        2
    """
    return list({memory_of(tensor): tensor for tensor in found}.values())


def parameter_over(value: Tensor, trained: bool) -> nn.Parameter:
    """A parameter on the same memory; on a copy of what was made for inference, which could
    never be trained.

    Example:
        >>> import torch
        >>> with torch.inference_mode():
        ...     row = torch.ones(2)
        >>> parameter_over(row, True).requires_grad
        True
    """
    return nn.Parameter(value.clone() if value.is_inference() else value, requires_grad=trained)
