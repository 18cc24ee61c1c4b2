"""Watch a model run: what layers take and give, and who reads their parameters past their forward.

A chain of factors answers to no `weight`. A model that multiplies by the weight of a layer itself
needs that layer whole; one that asks what type the weight has, to cast its input to that, or where
it is, is content with an empty tensor of the same type in the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowrank.compression.network.layers import LayerView

Seen = Callable[[LayerView, Tensor, Tensor], Any]
"""Called with a layer, its input and its output."""


def _as_it_is(x: Tensor) -> AbstractContextManager[object]:
    """Without the autocast that the layer runs under: sums of squares would be rounded, too."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if on else nullcontext()


@contextmanager
def watching(views: Sequence[LayerView], see: Seen) -> Iterator[None]:
    """Call `see` at every call of the layers; what it returns, if anything, is the output."""
    with ExitStack() as stack:
        for view in views:

            def hook(
                module: nn.Module, args: Any, kwargs: Any, y: Tensor, view: LayerView = view
            ) -> Any:
                x = next(iter([*args, *kwargs.values()]))
                with _as_it_is(x):
                    return see(view, x, y)

            handle = view.module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


Read = Callable[[nn.Module, str, Any], Any]
"""Called with a module, the name of a parameter and its value; what it gives is what is read."""

_ASKS = frozenset(
    (
        *(
            getattr(Tensor, name).__get__
            for name in ("dtype", "device", "is_cuda", "is_cpu", "is_meta", "is_quantized")
        ),
        Tensor.is_floating_point,
        Tensor.is_complex,
        Tensor.element_size,
        Tensor.get_device,
        torch.is_floating_point,
        torch.is_complex,
    )
)
"""What an empty tensor of the same type and in the same place answers as the whole does."""

_TAKE_AFTER = frozenset((Tensor.to, Tensor.type_as))
"""What asks no more of any tensor but the first."""


@contextmanager
def watched_reads(modules: Iterable[nn.Module], read: Read) -> Iterator[None]:
    """Let `read(module, name, value)` give what a read of a parameter of these modules gives."""
    own = {id(m): set(m._parameters) for m in modules}

    def getattribute(self: nn.Module, name: str) -> Any:
        if name[:1] != "_" and name in own.get(id(self), ()):
            return read(self, name, self._parameters[name])
        return object.__getattribute__(self, name)

    nn.Module.__getattribute__ = getattribute  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del nn.Module.__getattribute__


def lent(parameter: Tensor, used: Callable[[], None]) -> Tensor:
    """The parameter, in a form that calls `used` as soon as more than its type or place counts."""
    shown = parameter.detach().as_subclass(_Lent)
    if not shown.is_inference():
        shown.requires_grad_(parameter.requires_grad)
    shown.used = used
    return shown


class _Lent(Tensor):
    """A tensor that says when it is used."""

    used: Callable[[], None]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _ASKS:
            looked_at = args[:1] if func in _TAKE_AFTER else (args, kwargs)
            for tensor in tree_leaves(looked_at):
                if isinstance(tensor, cls):
                    vars(tensor).get("used", _nothing)()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def _nothing() -> None:
    """What a form of a form, which no one watches, calls."""
