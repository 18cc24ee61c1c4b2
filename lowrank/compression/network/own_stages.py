"""The few tiny modules that no stock layer can express, and the stages that stand for them.

All are made of stock layers, index buffers and a few lines of forward pass; they copy, save,
export, compile and script like any module. A stage is to its module what `LayerSpec` is to a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.network.stages import (
    Call,
    Factor,
    LayerSpec,
    OwnStage,
    Stage,
    chain_macs,
    chained,
    grouped_linear,
)
from lowrank.compression.network.tensors import distinct, memory_of

Pattern = Literal["unstructured", "2:4"]


_NUMBERS = torch.int32
"""Type of channels' numbers: the smallest that torch selects by."""


class Select(nn.Module):
    """Channels by number: y[:, c] = x[:, index[c]] (+ bias[c]).

    Args:
        n: number of output channels.
        axis: of the channels, counted from the end.
        device: of the numbers.
    """

    if TYPE_CHECKING:  # torch.jit reads no annotations of a class that are text
        index: Tensor
        bias: nn.Parameter | None

    def __init__(self, n: int, axis: int, *, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("index", torch.zeros(n, dtype=_NUMBERS, device=device))
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        y = x.index_select(self.axis, self.index)
        if self.bias is None:
            return y
        return y + self.bias.reshape([-1] + [1] * (-1 - self.axis))

    def stored_buffers(self) -> Sequence[Tensor]:
        """The numbers."""
        return (self.index,)

    def extra_repr(self) -> str:
        return f"{len(self.index)}, axis={self.axis}, bias={self.bias is not None}"


class Sum(nn.ModuleList):
    """The sum of several branches on the same input."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [branch(x) for branch in self]
        y: Tensor = parts[0]
        for part in parts[1:]:
            y = y + part
        return y

    def bias_part(self) -> nn.Module:
        """The last module of the first branch."""
        return list(self[0].children())[-1]


class Concat(nn.ModuleList):
    """The outputs of several branches on the same input, one after another.

    Args:
        branches: the modules.
        axis: of the channels, counted from the end.
    """

    def __init__(self, branches: Sequence[nn.Module], axis: int) -> None:
        super().__init__(branches)
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=self.axis)


class Shared(nn.Module):
    """One convolution applied to every split of the channels: (b, s * i, ...) to (b, s * n, ...).

    Args:
        layer: a convolution from i to n channels.
        splits: s.
        axis: of the channels, counted from the end.
    """

    def __init__(self, layer: nn.Module, splits: int, axis: int) -> None:
        super().__init__()
        self.layer, self.splits, self.axis = layer, splits, axis

    def forward(self, x: Tensor) -> Tensor:
        batched = x.ndim + self.axis  # 1, or 0 where x is a single example
        parts = x.unflatten(self.axis, [self.splits, -1]).flatten(0, batched)  # (b * s, i, ...)
        y: Tensor = self.layer(parts).unflatten(0, [-1, self.splits]).flatten(1, 2)
        return y if batched else y.squeeze(0)

    def extra_repr(self) -> str:
        return f"splits={self.splits}"


class Rebuilt(nn.Module):
    """A layer whose weight is put together in every pass, and then runs as torch's own does.

    Args:
        spec: the layer's shape.
        dtype: of the bias.
        device: of the bias.
    """

    if TYPE_CHECKING:
        bias: nn.Parameter | None

    def __init__(
        self, spec: LayerSpec, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        bias = torch.zeros(spec.out_channels, dtype=dtype, device=device) if spec.bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self.shape, self.transposed = list(spec.weight_shape), spec.kind == "conv_transpose"
        self.n_axes = len(spec.kernel)
        one = [1]  # of a linear layer, where nothing reads them; torch.jit takes no empty list
        self.stride, self.dilation = list(spec.stride) or one, list(spec.dilation) or one
        self.output_padding = list(spec.output_padding) or one
        self.mode = "constant" if spec.padding_mode == "zeros" else spec.padding_mode
        self.padding, self.around = _paddings(spec)

    def run(self, x: Tensor, flat: Tensor) -> Tensor:
        """The layer's output with the entries of its canonical weight in a row."""
        weight = flat.reshape(self.shape)  # (g, o, i, *k)
        weight = (weight.transpose(1, 2) if self.transposed else weight).flatten(0, 1)
        groups, n = self.shape[0], self.n_axes
        if n == 0:
            return grouped_linear(x, weight, self.bias, groups)
        y = x if x.ndim == n + 2 else x.unsqueeze(0)
        if self.around is not None:
            y = F.pad(y, self.around, self.mode)
        y = torch.convolution(
            y, weight, self.bias, self.stride, self.padding, self.dilation,
            self.transposed, self.output_padding, groups,
        )  # fmt: skip
        return y if x.ndim == n + 2 else y.squeeze(0)


class Sparse(Rebuilt):
    """A layer of which the non-zero weights alone are stored.

    torch's convolutions take dense weights, so each pass scatters the non-zeros into one
    and runs the dense layer: it saves memory and bytes on disk, and no time.

    Args:
        stage: the layer's shape, and which weights may stay.
        dtype: of the weights.
        device: of all.
    """

    if TYPE_CHECKING:
        index: Tensor

    def __init__(
        self, stage: SparseStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stage.layer, dtype=dtype, device=device)
        n = stage.n_weights
        self.weight = nn.Parameter(torch.zeros(n, dtype=dtype, device=device))
        self.register_buffer("index", torch.zeros(n, dtype=stage.index_dtype, device=device))
        self.quads, self.dense = stage.pattern == "2:4", stage.layer.n_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, self._entries())

    def _entries(self) -> Tensor:
        """All entries of the canonical weight."""
        places = self.index.long()
        if self.quads:
            first = 4 * torch.arange(len(self.weight) // 2, device=self.weight.device)
            places = places + first.repeat_interleave(2)
        flat = torch.zeros(self.dense, dtype=self.weight.dtype, device=self.weight.device)
        return flat.scatter(0, places, self.weight)

    def stored_buffers(self) -> Sequence[Tensor]:
        """The places."""
        return (self.index,)

    def extra_repr(self) -> str:
        return f"{len(self.weight)} of {self.dense}, {'2:4' if self.quads else 'unstructured'}"


def _paddings(spec: LayerSpec) -> tuple[list[int], list[int] | None]:
    """How far a convolution pads each axis with zeros, or what `F.pad` takes in its place."""
    none = [0] * len(spec.kernel) or [0]
    if spec.kind == "conv" and (spec.padding == "same" or spec.padding_mode != "zeros"):
        module = spec.build(dtype=torch.float32, device="meta")
        assert isinstance(module, nn.modules.conv._ConvNd)
        return none, list(module._reversed_padding_repeated_twice)
    return (none if isinstance(spec.padding, str) else list(spec.padding) or none), None


@runtime_checkable
class AddsBiasInside(Protocol):
    """A module of a stage whose bias is that of a part of it."""

    def bias_part(self) -> nn.Module:
        """The part whose bias is added to the output."""


@runtime_checkable
class StoresBuffers(Protocol):
    """A module of a stage of whose weight buffers hold a part."""

    def stored_buffers(self) -> Sequence[Tensor]:
        """The buffers that count as weights: places of non-zeros, packed entries."""


@runtime_checkable
class PacksWeights(Protocol):
    """A module that holds weights in buffers, several to a number."""

    scale: nn.Parameter

    def packed_weights(self) -> int:
        """How many they are, without the parameter."""


def weight_count(model: nn.Module) -> int:
    """A model's weights: its parameters, and those that its modules hold packed."""
    packs = {memory_of(m.scale): m for m in model.modules() if isinstance(m, PacksWeights)}
    held = sum(m.packed_weights() for m in packs.values())
    return held + sum(p.numel() for p in distinct(model.parameters()))


def bias_holder(chain: nn.Module) -> nn.Module:
    """The module whose bias is added to the output of a replacement: the last one, or its part."""
    holder = list(chain.children())[-1]
    while isinstance(holder, AddsBiasInside):
        holder = holder.bias_part()
    return holder


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters, and of what else its modules store of their weights."""
    stores = [m for m in model.modules() if isinstance(m, StoresBuffers)]
    buffers = [t for m in stores for t in m.stored_buffers()]
    return sum(_stored_bytes(t) for t in distinct((*model.parameters(), *buffers)))


def is_int8(tensor: Tensor) -> bool:
    """Whether a weight is stored as int8 with scales, as torchao stores it."""
    return type(tensor.data).__name__ == "Int8Tensor"


def _stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor; of the tensors inside where it is made of others, as int8 ones are."""
    if not hasattr(tensor.data, "__tensor_flatten__"):
        return tensor.numel() * tensor.element_size()
    names, _ = tensor.data.__tensor_flatten__()
    return sum(_stored_bytes(getattr(tensor.data, name)) for name in names)


@dataclass(frozen=True)
class SelectStage(OwnStage):
    """Channels by number; the factor holds the numbers, (groups, out / groups) within a group.

    They are a buffer, which counts among the bytes and not among the weights.

    Args:
        in_channels: of the whole input.
        out_channels: how many are taken.
        groups: channels are taken within each.
        n_axes: spatial axes of the input.
        bias: whether a bias follows.
    """

    in_channels: int
    out_channels: int
    groups: int
    n_axes: int
    bias: bool = False

    n_weights = 0

    @property
    def axis(self) -> int:
        """The channels' axis, counted from the end."""
        return -1 - self.n_axes

    def n_bytes(self, element_size: int) -> int:
        return self.out_channels * _NUMBERS.itemsize

    def macs(self, call: Call) -> int:
        return 0

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        module = Select(self.out_channels, self.axis, device=device)
        numbers = torch.arange(self.out_channels, device=device) % self.in_channels
        module.index = numbers.to(_NUMBERS)
        if self.bias:
            module.bias = nn.Parameter(torch.zeros(self.out_channels, dtype=dtype, device=device))
        return module

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, Select)
        assert isinstance(factor, Tensor)
        width = self.in_channels // self.groups
        offset = width * torch.arange(self.groups, device=factor.device)[:, None]
        module.index = (factor + offset).flatten().to(module.index)

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, Select)
        return module.index.reshape(self.groups, -1) % (self.in_channels // self.groups)

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        assert isinstance(factor, Tensor)
        eye = torch.eye(self.in_channels // self.groups, dtype=like.dtype, device=like.device)
        rows = eye[factor.to(like.device)]  # (g, o, i)
        return rows.reshape(*rows.shape, *(1,) * self.n_axes)

    def after(self, factor: Factor, before: Tensor, groups: int) -> Tensor:
        """Rows by number."""
        assert isinstance(factor, Tensor)
        return torch.stack([t[n] for t, n in zip(before, factor, strict=True)])


@dataclass(frozen=True)
class Branches(OwnStage):
    """Branches on the same input, summed, or with `joined` one after another.

    Args:
        branches: the stages of each.
        groups: of the layer that this replaces.
        joined: their outputs are concatenated within each group, not summed.
    """

    branches: tuple[tuple[Stage, ...], ...]
    groups: int
    joined: bool = False

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.branches[0][0].in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        each = [branch[-1].out_channels for branch in self.branches]
        return sum(each) if self.joined else each[0]

    @property
    def n_weights(self) -> int:
        """Number of weights, without the bias."""
        return sum(stage.n_weights for branch in self.branches for stage in branch)

    def n_bytes(self, element_size: int) -> int:
        return sum(s.n_bytes(element_size) for branch in self.branches for s in branch)

    def macs(self, call: Call) -> int:
        return sum(chain_macs(branch, call) for branch in self.branches)

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        for stage in self.branches[0]:
            size = stage.output_size(size)
        return size

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        built = [
            nn.Sequential(*(s.build(dtype=dtype, device=device) for s in branch))
            for branch in self.branches
        ]
        if not self.joined:
            return Sum(built)
        last = self.branches[0][-1]
        assert isinstance(last, LayerSpec)
        return Concat(built, -1 - len(last.kernel))

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, nn.ModuleList)
        for branch, chain, part in zip(self.branches, module, factor, strict=True):
            for stage, inner, values in zip(branch, chain.children(), part, strict=True):
                stage.write(inner, values)

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, nn.ModuleList)
        return tuple(
            tuple(stage.read(part) for stage, part in zip(branch, chain.children(), strict=True))
            for branch, chain in zip(self.branches, module, strict=True)
        )

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        parts = [
            chained(self.groups, branch, cast(tuple[Factor, ...], part))
            for branch, part in zip(self.branches, factor, strict=True)
        ]
        kernel = torch.broadcast_shapes(*(p.shape[3:] for p in parts))
        assert all(p.shape[3:] == kernel for p in parts)
        return torch.cat(parts, 1) if self.joined else torch.stack(parts).sum(0)


@dataclass(frozen=True)
class SharedStage(OwnStage):
    """One convolution for every split of the input's channels, as in `Shared`.

    Args:
        layer: the convolution.
        splits: parts of the input.
    """

    layer: LayerSpec
    splits: int

    groups = 1

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.layer.in_channels * self.splits

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.layer.out_channels * self.splits

    @property
    def n_weights(self) -> int:
        """Number of weights: those of one split."""
        return self.layer.n_weights

    def n_bytes(self, element_size: int) -> int:
        return self.layer.n_bytes(element_size)

    def macs(self, call: Call) -> int:
        return self.layer.macs(Call(call.batch * self.splits, call.size))

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return self.layer.output_size(size)

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        layer = self.layer.build(dtype=dtype, device=device)
        return Shared(layer, self.splits, -1 - len(self.layer.kernel))

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, Shared)
        self.layer.write(module.layer, factor)

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, Shared)
        return self.layer.read(module.layer)

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        assert isinstance(factor, Tensor)
        _, n, c, *kernel = factor.shape
        eye = torch.eye(self.splits, dtype=factor.dtype, device=factor.device)
        blocks = torch.einsum("st,nck->snctk", eye, factor[0].flatten(2)).transpose(2, 3)
        return blocks.reshape(1, self.splits * n, self.splits * c, *kernel)


@dataclass(frozen=True)
class StoredStage(OwnStage):
    """What computes as a stock layer does, and stores its weight in another way.

    MACs are those of the stock layer, which torch does.

    Args:
        layer: the shape.
    """

    layer: LayerSpec

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.layer.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.layer.out_channels

    @property
    def groups(self) -> int:
        """Of the layer."""
        return self.layer.groups

    def macs(self, call: Call) -> int:
        return self.layer.macs(call)

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        return self.layer.output_size(size)


@dataclass(frozen=True)
class SparseStage(StoredStage):
    """A layer with few non-zero weights, stored as these and where they are.

    Bytes count both: 4 for each place, or 1 in the 2:4 pattern, where two of every four
    neighbours in a filter stay. MACs are those of the dense layer, which torch does; a kernel
    that skips zeros would do `n_weights` at every position.

    Args:
        layer: the shape, without its zeros known.
        n_weights: non-zeros.
        pattern: which may stay.
    """

    n_weights: int
    pattern: Pattern = "unstructured"

    @property
    def index_dtype(self) -> torch.dtype:
        """The type of what tells the places."""
        return torch.uint8 if self.pattern == "2:4" else torch.int32

    def n_bytes(self, element_size: int) -> int:
        return self.n_weights * (element_size + self.index_dtype.itemsize)

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        return Sparse(self, dtype=dtype, device=device)

    def dense(self, values: Tensor, index: Tensor) -> Tensor:
        """The canonical weight of the non-zeros and their places."""
        shape, places = self.layer.weight_shape, index.long()
        if self.pattern == "2:4":
            quads = 4 * torch.arange(len(values) // 2, device=values.device)
            places = places + quads.repeat_interleave(2)
        flat = values.new_zeros(prod(shape)).scatter(0, places, values)
        return flat.reshape(shape)

    def sparse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Values and index of a canonical weight with at most the allowed non-zeros."""
        flat = weight.flatten()
        if self.pattern == "2:4":
            quads = flat.reshape(-1, 4)
            places = quads.abs().topk(2, dim=1).indices.sort(1).values
            return quads.gather(1, places).flatten(), places.flatten().to(torch.uint8)
        places = flat.abs().topk(self.n_weights).indices.sort().values
        return flat[places], places.to(torch.int32)

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, Sparse)
        values, index = factor
        assert isinstance(values, Tensor)
        assert isinstance(index, Tensor)
        with torch.no_grad():
            module.weight.copy_(values)
        module.index = index.to(module.index)

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, Sparse)
        return module.weight.detach(), module.index

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        values, index = factor
        assert isinstance(values, Tensor)
        assert isinstance(index, Tensor)
        return self.dense(values, index)
