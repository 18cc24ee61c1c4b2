"""An example: the input that a model is run on, as a tensor, a tuple or a dict.

| example | the model is called as |
|---|---|
| tensor `x` | `model(x)` |
| tuple or list `(x, y)` | `model(x, y)` |
| dict `{"input_ids": x}` | `model(input_ids=x)` |
| namedtuple or dataclass `b` | `model(b)` |

A model whose one argument is itself a tuple or a dict gets it wrapped: `({"a": x},)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lowrank.compression.network.tensors import (
    _is_float,
    _walk,
    describe,
    is_whole,
    mapped,
    tensors,
)
from lowrank.errors import InputError

Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is run on: a tensor, positional inputs, or keyword inputs."""


_FORMS = "pass a tensor, a tuple of inputs, or a dict of keyword inputs"


@contextmanager
def evaluating(model: nn.Module, *, compiled: bool = False) -> Iterator[None]:
    """No gradients, evaluation mode; every module's own training flag comes back after.

    Parts that `torch.compile` made run as they are written, and torch's encoders layer by layer,
    so that hooks see the layers, unless they are asked for `compiled`.

    The flags are set directly, not through `model.train`, which a model may override with
    side effects (merging adapters, freezing statistics) that no flag can take back.

    Raises:
        InputError: the model is lazy: to run it would give it weights.

    Example:
        >>> model = nn.Dropout()
        >>> with evaluating(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    refuse_lazy(model)
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), nullcontext() if compiled else as_written(model):
            yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """A context in which nothing that `torch.compile` made of the model is used, nor the one
    kernel that torch has for a whole encoder layer, nor its packed sequences."""
    with ExitStack() as stack:
        if any(isinstance(module, _FUSED) for module in model.modules()):
            stack.enter_context(separate_attention())
        if any(is_compiled(module) for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


_FUSED = (nn.TransformerEncoderLayer, nn.TransformerEncoder)


@contextmanager
def separate_attention() -> Iterator[None]:
    """Attention and encoder layers run their parts one by one, not as one fused operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def without_key_cache(model: nn.Module) -> Iterator[None]:
    """A transformers model gives no keys and values to go on from, which serve generation alone.

    They are an object that tracers cannot follow, and that grows when a call is made again.
    """
    configs = {id(c): c for m in model.modules() for c in _configs(m) if hasattr(c, "use_cache")}
    before = [(c, c.use_cache) for c in configs.values()]
    try:
        for config, _ in before:
            config.use_cache = False
        yield
    finally:
        for config, value in before:
            config.use_cache = value


def _configs(module: nn.Module) -> list[Any]:
    """A transformers module's settings, and those of its language part where it has others."""
    config = getattr(module, "config", None)
    text = getattr(config, "get_text_config", None)
    return [config, *([text()] if callable(text) else [])]


def is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` made this module, or compiled it where it stands."""
    return is_wrapper(module) or vars(module).get("_compiled_call_impl") is not None


def is_wrapper(module: nn.Module) -> bool:
    """Whether this is what `torch.compile` puts around a module."""
    return type(module).__name__ == "OptimizedModule"


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside what `torch.compile`, `DataParallel` or the like made of it.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(net)) is net
        True
    """
    while True:
        if is_wrapper(model):
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def refuse_lazy(model: nn.Module) -> None:
    """Refuse a model with parameters or buffers that its first pass would make.

    Raises:
        InputError: names the first.
    """
    for name, held in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(held):
            problem = "it is lazy and has no values yet"
            raise InputError(name, problem, "run the model once on an example")


def batch_size(example: Example) -> int:
    """Length of the first axis of the example's first tensor that has an axis; else 1.

    Example:
        >>> batch_size({"input_ids": torch.zeros(8, 128)})
        8
    """
    return next((t.shape[0] for _, t in named_tensors(example) if t.ndim), 1)


@dataclass
class Tally:
    """What ran while it was open.

    Args:
        passes: forward passes, summed over their examples. A backward pass counts as two; one
            that ends early or starts late by the share of the layers that it runs.
    """

    passes: float = 0.0


_open: ContextVar[tuple[Tally, ...]] = ContextVar("_open", default=())


@contextmanager
def tallying() -> Iterator[Tally]:
    """Count the passes that `call` makes meanwhile.

    Example:
        >>> with tallying() as tally:
        ...     _ = run(nn.Linear(3, 2), torch.zeros(4, 3))
        >>> tally.passes
        4.0
    """
    tally = Tally()
    token = _open.set((*_open.get(), tally))
    try:
        yield tally
    finally:
        _open.reset(token)


def count(passes: float) -> None:
    """Add passes, summed over examples, to whatever counts them."""
    for tally in _open.get():
        tally.passes += passes


def call(model: nn.Module, example: Example, *, counted: bool = True, name: str = "example") -> Any:
    """The model's output on a copy of the example, in whatever mode the model is.

    Args:
        model: any module.
        example: its inputs.
        counted: whether this is a whole pass to `tallying`.
        name: what errors call the inputs.

    Raises:
        InputError: the model raised an exception, which the error names and chains.

    Example:
        >>> call(nn.Linear(3, 2), torch.zeros(4, 3)).shape
        torch.Size([4, 2])
    """
    if counted:
        count(batch_size(example))
    return use_up(model, spare(example), name)


def spare(example: Example) -> Example:
    """A copy of the inputs: a model may work on them in place, as `x /= 255` does.

    Example:
        >>> x = torch.ones(2)
        >>> nn.ReLU(inplace=True)(spare(-x)), x
        (tensor([0., 0.]), tensor([1., 1.]))
    """
    known: dict[int, Tensor] = {}  # one tensor in two places stays one

    def copy_of(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            known[id(tensor)] = tensor.clone()
        return known[id(tensor)]

    return mapped(example, copy_of)


def use_up(model: nn.Module, example: Example, name: str = "example") -> Any:
    """The model's output on the example itself, which a model that works in place changes.

    Raises:
        InputError: the model raised an exception, which the error names and chains.
    """
    args, kwargs = arguments(example)
    try:
        return model(*args, **kwargs)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        given = "the example" if name == "example" else "a batch"
        raise InputError(
            name,
            f"the model refused {given}: {reason}; given {describe(example)}",
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

    A tensor of 0 and -Inf alone is a mask, and taken.

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
        if bad and not _is_mask(tensor):
            problem = f"holds NaN or Inf in {bad} of {tensor.numel()} values"
            raise InputError(part, problem, "clean the data before it is used")


def _is_mask(tensor: Tensor) -> bool:
    """Whether a tensor is a mask that is added to scores: 0 and -Inf alone."""
    return bool(((tensor == 0) | (tensor == -torch.inf)).all())


def named_tensors(example: Example, name: str = "example") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the example with the name that error messages use.

    Example:
        >>> [name for name, _ in named_tensors((torch.zeros(1), {"mask": torch.ones(1)}))]
        ['example[0]', "example[1]['mask']"]
    """
    return _walk(example, name)


def arguments(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of the model's forward.

    Example:
        >>> arguments({"x": 1})
        ((), {'x': 1})
    """
    if isinstance(example, Tensor) or is_whole(example):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise InputError("example", f"is a {type(example).__name__}", _FORMS)


def first_line(error: BaseException) -> str:
    """The first line of what an exception says, at most 200 characters of it."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0][:200]


@contextmanager
def _unchanged_rng(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _device(model: nn.Module, example: Example) -> torch.device:
    return next(iter([*model.parameters(), *model.buffers(), *tensors(example)])).device
