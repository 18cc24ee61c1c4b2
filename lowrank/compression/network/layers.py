"""One view of every supported layer: a linear map applied at many positions.

The *canonical* weight of any layer is a tensor (groups, out / groups, in / groups, *kernel),
whatever the module's own layout is. `LayerSpec` is the shape of a stock layer without its
weights; the dense layer is described by one, its replacement by several in a row, so one
cost formula and one constructor serve every layer and every method. Where stock layers in a
row do not do, a `Stage` of another kind (see `modules`) stands in their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowrank.compression.network.stages import (
    _CONV,
    _CONV_TRANSPOSE,
    Call,
    Cost,
    GroupedLinear,
    LayerSpec,
    Stage,
    canonical,
    chain_macs,
    module_layout,
    weight_of,
)
from lowrank.linalg import wide


def spec_of(module: nn.Module) -> LayerSpec | None:
    """The shape of a supported layer, or None for any other module.

    Supported are linear layers, in groups too, transformers' `Conv1D`, embeddings, convolutions and
    transposed convolutions in one to three dimensions, and their subclasses; and what another
    library wrote anew as a linear layer.
    """
    bias = getattr(module, "bias", None) is not None
    if isinstance(module, nn.Linear):
        return LayerSpec("linear", module.in_features, module.out_features, bias=bias)
    if isinstance(module, GroupedLinear):
        sizes = module.in_features, module.out_features
        return LayerSpec("linear", *sizes, groups=module.groups, bias=bias)
    if is_transposed_linear(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return LayerSpec("linear", weight.shape[0], weight.shape[1], bias=bias)
    if isinstance(module, nn.Embedding):
        return LayerSpec(
            "embedding",
            module.num_embeddings,
            module.embedding_dim,
            padding_idx=module.padding_idx,
            scale_grad_by_freq=module.scale_grad_by_freq,
            sparse=module.sparse,
        )
    if isinstance(module, (*_CONV.values(), *_CONV_TRANSPOSE.values())):
        return _conv_spec(module, bias)
    if (told := _sizes_as_linear(module)) is not None:
        return LayerSpec("linear", *told, bias=bias)
    return None


def _sizes_as_linear(module: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a module that is laid out as `nn.Linear` is and says so, as that of
    PyTorch Geometric; whether it answers as one is seen when it runs."""
    if isinstance(module, torch.jit.ScriptModule):
        return None
    own = {k: p for k, p in module._parameters.items() if p is not None}
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or not own.keys() <= {"weight", "bias"} or weight.ndim != 2:
        return None
    if module._modules or module._buffers or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    n_out, n_in = weight.shape
    told = [
        (getattr(module, f"in_{what}", None), getattr(module, f"out_{what}", None))
        for what in ("features", "channels")
    ]
    return (n_in, n_out) if (n_in, n_out) in told else None


def _conv_spec(module: nn.Module, bias: bool) -> LayerSpec:
    assert isinstance(module, nn.modules.conv._ConvNd)
    transposed = isinstance(module, tuple(_CONV_TRANSPOSE.values()))
    padding = module.padding
    return LayerSpec(
        kind="conv_transpose" if transposed else "conv",
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=padding if isinstance(padding, str) else tuple(padding),
        dilation=tuple(module.dilation),
        output_padding=tuple(module.output_padding),
        groups=module.groups,
        padding_mode=module.padding_mode,
        bias=bias,
    )


def is_parametrized(module: nn.Module) -> bool:
    """Whether it is so itself: a compiled module answers for the one within."""
    return "parametrizations" in module._modules and parametrize.is_parametrized(module)


def own_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that the module itself holds, those behind parametrizations too."""
    own = [*module.named_parameters(recurse=False)]
    if is_parametrized(module):
        behind = cast(nn.ModuleDict, module.parametrizations)
        own += behind.named_parameters("parametrizations")
    return {k: () if nn.parameter.is_lazy(p) else tuple(p.shape) for k, p in own}


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is transformers' `Conv1D`: a linear layer with weight (in, out)."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def write_weight(module: nn.Module, spec: LayerSpec, W: Tensor) -> None:
    """Write a canonical weight into a layer, in place, as the layer lays it out."""
    weight = weight_of(module)
    laid = module_layout(spec, W, transposed=is_transposed_linear(module))
    with torch.no_grad():
        weight.copy_(laid.to(weight))


@dataclass(frozen=True, eq=False)
class LayerView:
    """A layer of a model, seen as a linear map.

    Args:
        name: the layer's (first) path in the model.
        paths: every path under which the model holds this module.
        module: the layer itself.
        spec: its shape.
        calls: what the example made it do, one entry per call.
        asked: its parameters that the model asks for their type or device, and nothing else.
        gain: what an embedding multiplies the rows of its table by; its canonical weight is
            the table so many times.
    """

    name: str
    paths: tuple[str, ...]
    module: nn.Module
    spec: LayerSpec
    calls: tuple[Call, ...]
    asked: tuple[str, ...] = ()
    gain: float = 1.0

    @property
    def parameter(self) -> nn.Parameter:
        """The module's weight."""
        return weight_of(self.module)

    def weight(self) -> Tensor:
        """The canonical weight, detached, in float32 or the layer's own wider type."""
        weight = wide(self.parameter.detach())
        found = canonical(self.spec, weight, transposed=is_transposed_linear(self.module))
        return found if self.gain == 1 else found * self.gain

    def cost(self, stages: Sequence[Stage] | None = None) -> Cost:
        """The cost of the dense layer, or of `stages` in its place, over all calls."""
        stages = [self.spec] if stages is None else list(stages)
        macs = sum(chain_macs(stages, call) for call in self.calls)
        size = self.parameter.element_size()
        params = sum(s.n_weights for s in stages)
        return Cost(params, sum(s.n_bytes(size) for s in stages), macs)
