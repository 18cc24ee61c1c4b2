"""Watch what layers take and give while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

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
