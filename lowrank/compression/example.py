"""An example: the input that a model is run on, as a tensor, a tuple or a dict.

| example | the model is called as |
|---|---|
| tensor `x` | `model(x)` |
| tuple or list `(x, y)` | `model(x, y)` |
| dict `{"input_ids": x}` | `model(input_ids=x)` |

A model whose one argument is itself a tuple or a dict gets it wrapped: `({"a": x},)`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lowrank.errors import InputError

Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is run on: a tensor, positional inputs, or keyword inputs."""

_FORMS = "pass a tensor, a tuple of inputs, or a dict of keyword inputs"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, evaluation mode; every module's own training flag comes back after.

    The flags are set directly, not through `model.train`, which a model may override with
    side effects (merging adapters, freezing statistics) that no flag can take back.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, flag in flags:
            module.training = flag


def call(model: nn.Module, example: Example) -> Any:
    """The model's output on the example, in whatever mode the model is.

    Raises:
        InputError: the model raised an exception, which the error names and chains.

    Example:
        >>> call(nn.Linear(3, 2), torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    args, kwargs = arguments(example)
    try:
        return model(*args, **kwargs)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(
            "example",
            f"the model refused the example: {reason}; given {describe(example)}",
            f"{_FORMS} that the model's forward takes",
        ) from error


def run(model: nn.Module, example: Example) -> Any:
    """The model's output on the example, in evaluation mode and without gradients.

    Nothing is moved between devices; every submodule's training flag is what it was
    afterwards, also when the model fails.

    Args:
        model: any module.
        example: a tensor, a tuple or list of positional inputs, or a dict of keyword inputs.

    Returns:
        Whatever the model returns.

    Raises:
        InputError: the model raised an exception, which the error names and chains.

    Example:
        >>> run(nn.Linear(3, 2), torch.zeros(4, 3)).shape
        torch.Size([4, 2])
        >>> run(nn.Bilinear(3, 2, 5), (torch.zeros(4, 3), torch.zeros(4, 2))).shape
        torch.Size([4, 5])
        >>> run(nn.Linear(3, 2), {"input": torch.zeros(4, 3)}).shape
        torch.Size([4, 2])
    """
    with evaluating(model):
        return call(model, example)


def check(example: Example, name: str = "example") -> None:
    """Refuse an example without tensors, with an empty tensor, or with NaN or Inf.

    Args:
        example: inputs of one forward pass.
        name: what the message calls it.

    Raises:
        InputError: says which input is at fault.

    Example:
        >>> check({"x": torch.tensor([1.0, float("nan")])})
        Traceback (most recent call last):
        lowrank.errors.InputError: example['x']: holds NaN or Inf in 1 of 2 values; ...
    """
    inputs = list(named_tensors(example, name))
    if not inputs:
        raise InputError(name, f"holds no tensor, given {describe(example)}", _FORMS)
    for part, tensor in inputs:
        if tensor.numel() == 0:
            raise InputError(
                part, f"is empty, shape {tuple(tensor.shape)}", "pass at least one example"
            )
        # Tensors without data (meta device, fake tensors) have no values to look at.
        if tensor.is_meta or isinstance(tensor, FakeTensor) or not _is_float(tensor):
            continue
        bad = int(tensor.numel() - torch.isfinite(tensor).sum())
        if bad:
            problem = f"holds NaN or Inf in {bad} of {tensor.numel()} values"
            raise InputError(part, problem, "clean the data before it is used")


def batch_size(example: Example) -> int:
    """Length of the first axis of the example's first tensor that has an axis; else 1.

    Example:
        >>> batch_size({"input_ids": torch.zeros(8, 128)})
        8
    """
    return next((t.shape[0] for _, t in named_tensors(example) if t.ndim), 1)


def flatten(output: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output, in order.

    Looks into tuples, lists, dicts (so transformers' ModelOutput too) and dataclasses;
    anything else, caches and integer tensors among it, is left out.

    Example:
        >>> logits, ids = torch.zeros(2, 10), torch.zeros(2, dtype=torch.long)
        >>> [tuple(t.shape) for t in flatten({"logits": logits, "ids": ids})]
        [(2, 10)]
    """
    return [tensor for tensor in tensors(output) if _is_float(tensor)]


def named_tensors(example: Example, name: str = "example") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the example with the name that error messages use.

    Example:
        >>> [name for name, _ in named_tensors((torch.zeros(1), {"mask": torch.ones(1)}))]
        ['example[0]', "example[1]['mask']"]
    """
    return _walk(example, name)


def split_batches(
    batches: Sequence[Example], size: int, model: nn.Module | None = None
) -> list[Example]:
    """Batches of at most `size` examples, where a batch can be cut.

    Example:
        >>> [len(b) for b in split_batches([torch.zeros(5, 3), torch.zeros(2, 3)], 4)]
        [4, 1, 2]
    """
    parts: list[Example] = []
    several: bool | None = None
    for batch in batches:
        if isinstance(batch, Tensor) and batch.ndim:
            parts.extend(batch.split(size))
            continue
        n = batch_size(batch)
        if several is None and n > size:
            several = model is not None and can_be_cut(model, batch)
        if several and n > size and _equally_long(batch):
            parts.extend(cut(batch, k, k + size) for k in range(0, n, size))
        else:
            parts.append(batch)
    return parts


def can_be_cut(model: nn.Module, batch: Example) -> bool:
    """Whether a model gives each example of a batch its output, whatever else is in the batch.

    The examples must be on the first axis of every tensor that is not 1 long there. A tensor
    may be as long by chance (positions, a mask over pairs), so the model is asked, about half
    of the batch.

    Example:
        >>> x, mask = torch.randn(8, 4, 3), torch.zeros(1, 4)
        >>> net = nn.MultiheadAttention(3, 1, batch_first=True)
        >>> can_be_cut(net, {"query": x, "key": x, "value": x, "need_weights": False})
        True
        >>> can_be_cut(net, {"query": x, "key": x, "value": x.movedim(0, 1), "need_weights": False})
        False
    """
    n = batch_size(batch)
    if n < 2 or not _equally_long(batch):
        return False
    half = n // 2
    try:
        whole, part = run(model, batch), run(model, cut(batch, 0, half))
    except InputError:
        return False
    pairs = list(zip(flatten(whole), flatten(part), strict=False))
    return bool(pairs) and all(
        y.ndim > 0 and len(y) == n and y[:half].shape == x.shape and _close(y[:half], x)
        for y, x in pairs
    )


def _close(y: Tensor, x: Tensor) -> bool:
    scale = float(y.abs().max()) if y.numel() else 0.0
    return bool(torch.allclose(y, x, rtol=1e-2, atol=1e-3 * scale))


def _equally_long(batch: Example) -> bool:
    return {t.shape[0] for t in tensors(batch) if t.ndim} - {1} == {batch_size(batch)}


def cut(batch: Example, start: int, stop: int) -> Example:
    """The examples from start to stop of a batch whose examples are on its tensors' first axis.

    Example:
        >>> cut({"x": torch.zeros(8, 3), "mask": torch.ones(1, 3)}, 2, 5)["x"].shape
        torch.Size([3, 3])
    """
    n = batch_size(batch)
    return mapped(batch, lambda t: t[start:stop] if t.ndim and len(t) == n else t)


def mapped(value: Any, f: Callable[[Tensor], Tensor]) -> Any:
    """The same tuples, dicts and dataclasses around other tensors.

    Example:
        >>> mapped({"x": torch.ones(1), "name": "a"}, lambda t: 2 * t)
        {'x': tensor([2.]), 'name': 'a'}
    """
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, f) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(mapped(item, f) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return dataclasses.replace(value, **{n: mapped(getattr(value, n), f) for n in names})
    return value


def held_out(
    batches: Sequence[Example], model: nn.Module, most: int = 64
) -> tuple[list[Example], list[Example]]:
    """Three quarters of the examples in batches of at most `most`, and a fourth held out.

    Where they cannot be cut into two batches, all and none.

    Example:
        >>> rest, held = held_out([torch.zeros(80, 3)], nn.Linear(3, 3))
        >>> [len(b) for b in rest], [len(b) for b in held]
        ([20, 20, 20], [20])
    """
    n = sum(map(batch_size, batches))
    parts = split_batches(batches, max(1, min(most, n // 4)), model)
    if len(parts) < 2:
        return parts, []
    return [b for k, b in enumerate(parts) if k % 4], parts[::4]


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside a tensor, tuple, list, dict or dataclass, in order.

    Example:
        >>> len(tensors((torch.zeros(1), {"mask": torch.ones(1)}, None)))
        2
    """
    return [tensor for _, tensor in _walk(value, "")]


def describe(example: Any) -> str:
    """Shape, dtype and device of every tensor, as error messages say it.

    Example:
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
    return type(example).__name__


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's forward.

    Example:
        >>> arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise InputError("example", f"is a {type(example).__name__}", _FORMS)


def _walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _walk(item, f"{name}[{key!r}]")
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from _walk(item, f"{name}[{index}]")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _walk(getattr(value, field.name), f"{name}.{field.name}")


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def first_line(error: Exception) -> str:
    """The first line of what an exception says, at most 200 characters of it."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0][:200]
