"""Watch what layers take and give while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from lowrank.compression.network.layers import LayerView

Seen = Callable[[LayerView, Tensor, Tensor], Any]
"""Called with a layer, its input and its output."""


@contextmanager
def watching(views: Sequence[LayerView], see: Seen) -> Iterator[None]:
    """Call `see` at every call of the layers; what it returns, if anything, is the output."""
    with ExitStack() as stack:
        for view in views:

            def hook(
                module: nn.Module, args: Any, kwargs: Any, y: Tensor, view: LayerView = view
            ) -> Any:
                return see(view, next(iter([*args, *kwargs.values()])), y)

            handle = view.module.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield
