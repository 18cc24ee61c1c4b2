"""Where a layer's output goes: into a batch norm, and on into a sum with another branch.

A batch norm takes a shift of the mean that the layer has no bias for. A sum tells what the
other branch already lost, which the layer can make up for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from lowrank.compression.network.example import Example, call, evaluating
from lowrank.compression.network.hooks import watching
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.tensors import tensors

ADDITIONS = frozenset(
    (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)
)
"""The functions that a residual sum is written with."""


_PASSED_ON = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout))
"""Functions that in evaluation mode give their input."""


_NORM, _SUM = "batch norm", "residual sum"
"""Uses that matter here; others go by the function's name, which has no space."""


_PROPERTIES = ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout", "grad_fn")


_LOOKS = frozenset((Tensor.size, Tensor.dim, Tensor.is_floating_point)) | {
    getattr(Tensor, name).__get__ for name in _PROPERTIES
}
"""Looking at a tensor is not using it."""


@dataclass(frozen=True)
class Downstream:
    """What becomes of a layer's output.

    Args:
        norm: name of the batch norm that is all that reads it.
        added: it is added, after that norm if there is one, to a tensor of the same shape,
            and nothing else reads it.
    """

    norm: str | None = None
    added: bool = False


def find_downstream(
    model: nn.Module, views: Sequence[LayerView], example: Example
) -> dict[str, Downstream]:
    """Where the output of every layer goes that the example runs once.

    Args:
        model: the network, run once in evaluation mode.
        views: its layers.
        example: inputs of one forward pass.
    """
    once = [v for v in views if len(v.calls) == 1]
    names = {
        id(m): name
        for name, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None
    }
    uses = Uses()
    norms: dict[str, str] = {}

    def see(view: LayerView, x: Tensor, y: Tensor) -> None:
        uses.follow(view.name, y)

    def normed(module: nn.Module, args: Any, output: Any) -> None:
        owner = uses.owner(args[0]) if args and isinstance(args[0], Tensor) else None
        if owner is not None and owner[1] == 0 and isinstance(output, Tensor):
            norms[owner[0]] = names[id(module)]
            uses.follow(owner[0], output, 1)

    handles = [m.register_forward_hook(normed) for m in model.modules() if id(m) in names]
    try:
        with evaluating(model), watching(once, see), uses:
            output = call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in tensors(output):
        uses.used(tensor, "output")
    shared = {n for n, times in Counter(norms.values()).items() if times > 1}
    own = {layer: norm for layer, norm in norms.items() if norm not in shared}
    return {v.name: _sink(uses, v.name, own.get(v.name)) for v in once}


def _sink(uses: Uses, name: str, norm: str | None) -> Downstream:
    direct, after = uses.seen.get((name, 0), []), uses.seen.get((name, 1), [])
    if norm is not None and direct == [_NORM]:
        return Downstream(norm, after == [_SUM])
    return Downstream(None, direct == [_SUM])


class Uses(TorchFunctionMode):
    """Follows tensors through the functions that read them.

    Each followed tensor belongs to (layer, 0) or, behind a batch norm, to (layer, 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[str, int], list[str]] = {}
        self._owners: dict[int, tuple[str, int]] = {}
        self._kept: list[Tensor] = []  # so that no id comes twice

    def follow(self, layer: str, tensor: Tensor, stage: int = 0) -> None:
        """Note from now on who reads the tensor."""
        self._kept.append(tensor)
        self._owners[id(tensor)] = (layer, stage)

    def owner(self, tensor: Tensor) -> tuple[str, int] | None:
        """The layer and stage that a tensor belongs to."""
        return self._owners.get(id(tensor))

    def used(self, tensor: Tensor, how: str) -> None:
        """Note a use."""
        if (owner := self.owner(tensor)) is not None:
            self.seen.setdefault(owner, []).append(how)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _LOOKS or not self._owners:
            return result
        inputs = [t for t in tensors([*args, *kwargs.values()]) if self.owner(t) is not None]
        for tensor in inputs:
            if func in _PASSED_ON and isinstance(result, Tensor):
                owner = self.owner(tensor)
                assert owner is not None
                if result is not tensor:
                    self.follow(owner[0], result, owner[1])
                continue
            self.used(tensor, self._kind(func, args, kwargs))
            if result is tensor:  # worked on in place: from here on it is something else
                del self._owners[id(tensor)]
        return result

    def _kind(self, func: Any, args: Sequence[Any], kwargs: Any) -> str:
        if func is F.batch_norm:
            return _NORM
        if func in ADDITIONS and other_operand(args, kwargs, args[0]) is not None:
            return _SUM
        return getattr(func, "__name__", "other")


def other_operand(args: Sequence[Any], kwargs: Any, tensor: Any) -> Tensor | None:
    """The operand of an addition that is not `tensor`, if it is a plain sum of like shapes."""
    operands = list(args[:2])
    if kwargs.get("alpha", 1) != 1 or len(operands) != 2:
        return None
    if not all(isinstance(t, Tensor) for t in operands):
        return None
    a, b = operands
    if a.shape != b.shape or a is b:
        return None
    return b if tensor is a else a


def norm_scale(model: nn.Module, sink: Downstream) -> Tensor | None:
    """What the batch norm behind a layer multiplies each channel with, (out,)."""
    if sink.norm is None:
        return None
    norm = model.get_submodule(sink.norm)
    assert isinstance(norm, _BatchNorm)
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().double()
