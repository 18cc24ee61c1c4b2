"""The shape of a layer and of the stages that replace it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kind = Literal["linear", "embedding", "conv", "conv_transpose"]


Factor: TypeAlias = "Tensor | tuple[Factor, ...]"
"""What fills a stage: its canonical weight; for stages with several parts a tuple of these."""


_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


_CONV_TRANSPOSE: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


SCALE_BYTES = 5
"""Bytes beside the int8 weights of a row: its scale in float32 and its zero point in int8."""


NARROWEST = 2
"""Inputs that torchao's int8 layers take at least: with one it mistakes the scales of rows."""


@dataclass(frozen=True)
class Cost:
    """What a layer costs on one run of the example: weights, their bytes, and MACs.

    Biases are left out: no replacement changes them.
    """

    params: int
    bytes: int
    macs: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.params + other.params, self.bytes + other.bytes, self.macs + other.macs)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.params - other.params, self.bytes - other.bytes, self.macs - other.macs)


@dataclass(frozen=True)
class Call:
    """One call of a layer: how many maps it applied, and over which grid.

    Args:
        batch: pictures (convolutions) or vectors (linear layers and embeddings).
        size: spatial size of the input, () for linear layers and embeddings.
    """

    batch: int
    size: tuple[int, ...] = ()


class GroupedLinear(nn.Module):
    """Every group of features by its own linear map: a block-diagonal weight, as it is stored.

    y[..., g, :] = W[g] x[..., g, :] + b[g], one batched product for all groups. The weight is
    laid out as that of a grouped convolution.

    Args:
        in_features: of all groups; the groups divide them.
        out_features: of all groups; the groups divide them.
        groups: number of blocks.
        bias: whether a bias is added.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: (out_features, in_features / groups), group after group.

    Example:
        >>> layer = GroupedLinear(6, 4, groups=2)
        >>> layer.weight.shape, layer(torch.zeros(5, 7, 6)).shape
        (torch.Size([4, 3]), torch.Size([5, 7, 4]))
    """

    if TYPE_CHECKING:  # torch.jit reads no annotations of a class that are text
        bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        groups: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert in_features % groups == out_features % groups == 0
        self.in_features, self.out_features, self.groups = in_features, out_features, groups
        shape = (out_features, in_features // groups)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.register_parameter("bias", None)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and bias as `nn.Linear` does, by the fan-in of a group."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features)."""
        return grouped_linear(x, self.weight, self.bias, self.groups)

    def extra_repr(self) -> str:
        """The sizes, as `repr` shows them."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"groups={self.groups}, bias={self.bias is not None}"
        )


def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
    """What `GroupedLinear` computes, with a weight (out, in / groups)."""
    if groups == 1:
        return F.linear(x, weight, bias)
    blocks = weight.unflatten(0, [groups, -1]).transpose(1, 2)  # (g, i, o)
    rows = x.reshape([-1, groups, weight.shape[1]]).transpose(0, 1)  # (g, n, i)
    shape = list(x.shape)
    shape[-1] = weight.shape[0]
    y = torch.bmm(rows, blocks).transpose(0, 1).reshape(shape)
    return y if bias is None else y + bias


class Stage(Protocol):
    """One module of a replacement without its weights: what it is, costs and amounts to."""

    @property
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    def out_channels(self) -> int:
        """Channels of the output."""

    @property
    def groups(self) -> int:
        """Blocks of `matrix`; the groups of the replaced layer divide them."""

    @property
    def n_weights(self) -> int:
        """Number of weights, without the bias."""

    @property
    def stock(self) -> bool:
        """Whether the module is made of torch's own alone."""

    @property
    def lean(self) -> bool:
        """Whether the module allocates its output alone."""

    @property
    def reads_words(self) -> bool:
        """Whether the input holds numbers of words, not values."""

    def n_bytes(self, element_size: int) -> int:
        """Bytes of the weights and of what tells where they belong."""

    def int8_bytes(self) -> int | None:
        """The same with the weights in int8, None where torchao has no kernel for the module."""

    def macs(self, call: Call) -> int:
        """Multiply-accumulates of one call."""

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the output for an input of spatial size `size`."""

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The module, with arbitrary weights."""

    def write(self, module: nn.Module, factor: Factor) -> None:
        """Put the factor into the module that `build` made."""

    def read(self, module: nn.Module) -> Factor:
        """The inverse of `write`."""

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        """The canonical weight (groups, out / groups, in / groups, *kernel) it amounts to."""

    def after(self, factor: Factor, before: Tensor, groups: int) -> Tensor:
        """The canonical weight of what comes before and this stage in a row.

        Args:
            factor: what fills the stage.
            before: weight (groups, channels in between / groups, in / groups, *kernel).
            groups: of the whole.
        """

    def as_head(self, head: LayerSpec, gain: float = 1.0) -> Stage:
        """The stage of an output head of this shape that reads this table of words, and divides by
        a number that the table's rows are multiplied by."""

    def share(self, table: nn.Module, head: nn.Module) -> None:
        """Let the module of `as_head` hold the weights of this stage's, a table's."""


class OwnStage:
    """What a stage that no stock layer is says of itself, unless it says otherwise."""

    stock = False
    lean = False
    reads_words = False

    def n_bytes(self: Stage, element_size: int) -> int:
        """Bytes of the weights, stored as such."""
        return self.n_weights * element_size

    def int8_bytes(self) -> int | None:
        """None: torchao knows stock layers."""
        return None

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size of the input."""
        return size

    def after(self: Stage, factor: Factor, before: Tensor, groups: int) -> Tensor:
        """The product with `matrix`."""
        return product_after(self, factor, before, groups)

    def as_head(self, head: LayerSpec, gain: float = 1.0) -> Stage:
        """None: it is no table of words that a head could read."""
        raise NotImplementedError(f"{type(self).__name__} is no table of words")

    def share(self, table: nn.Module, head: nn.Module) -> None:
        """Likewise."""
        raise NotImplementedError(f"{type(self).__name__} is no table of words")


@dataclass(frozen=True)
class LayerSpec:
    """The shape of one stock layer, or of a grouped linear one: everything but its weights.

    Kernel, stride, padding, dilation and output padding have one entry per spatial axis;
    for linear layers and embeddings they are empty. An embedding maps `in_channels` words
    to `out_channels` features.
    """

    kind: Kind
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    groups: int = 1
    padding_mode: str = "zeros"
    bias: bool = False
    padding_idx: int | None = None
    scale_grad_by_freq: bool = False
    sparse: bool = False

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Canonical shape (groups, out / groups, in / groups, *kernel)."""
        g = self.groups
        return (g, self.out_channels // g, self.in_channels // g, *self.kernel)

    @property
    def n_weights(self) -> int:
        """Number of weights, without the bias."""
        return prod(self.weight_shape)

    @property
    def stock(self) -> bool:
        """Whether torch has the layer: of linear ones in groups it has none."""
        return self.kind != "linear" or self.groups == 1

    @property
    def lean(self) -> bool:
        """Whether it allocates its output alone: not a padded copy of its input, too."""
        if self.kind == "linear":
            return self.stock
        reach = (d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True))
        uneven = self.padding == "same" and any(r % 2 for r in reach)
        return self.padding_mode == "zeros" and not uneven

    @property
    def reads_words(self) -> bool:
        """True for embeddings."""
        return self.kind == "embedding"

    def n_bytes(self, element_size: int) -> int:
        """Bytes of the weights."""
        return self.n_weights * element_size

    def int8_bytes(self) -> int | None:
        """Bytes of a linear layer in int8, with its scales; None for others and narrow ones."""
        if self.kind != "linear" or self.groups > 1 or self.in_channels < NARROWEST:
            return None
        return self.n_weights + SCALE_BYTES * self.out_channels

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial size of the output for an input of spatial size `size`."""
        if not self.kernel or self.padding == "same":
            return size
        pads = (0,) * len(size) if isinstance(self.padding, str) else self.padding
        axes = zip(size, self.kernel, self.stride, pads, self.dilation, strict=True)
        if self.kind == "conv":
            return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
        extra = self.output_padding
        return tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for (n, k, s, p, d), e in zip(axes, extra, strict=True)
        )

    def macs(self, call: Call) -> int:
        """Multiply-accumulates of one call; a lookup has none."""
        if self.kind == "embedding":
            return 0
        grid = call.size if self.kind == "conv_transpose" else self.output_size(call.size)
        return call.batch * prod(grid) * self.n_weights

    def pointwise(
        self, in_channels: int, out_channels: int, *, groups: int = 1, bias: bool = False
    ) -> LayerSpec:
        """A 1 x 1 (or linear) stage between the given channels."""
        n = len(self.kernel)
        return LayerSpec(
            kind="conv" if n else "linear",
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=(1,) * n,
            stride=(1,) * n,
            padding=(0,) * n,
            dilation=(1,) * n,
            output_padding=(0,) * n,
            groups=groups,
            bias=bias,
        )

    def along(
        self,
        axes: Sequence[int],
        in_channels: int,
        out_channels: int,
        *,
        groups: int = 1,
        bias: bool = False,
    ) -> LayerSpec:
        """A stage that does this layer's spatial work on `axes` and nothing on the others."""

        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if a in axes else neutral for a, v in enumerate(values))

        padding = self.padding if isinstance(self.padding, str) else pick(self.padding, 0)
        return replace(
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=pick(self.kernel, 1),
            stride=pick(self.stride, 1),
            padding=padding,
            dilation=pick(self.dilation, 1),
            output_padding=pick(self.output_padding, 0),
            groups=groups,
            bias=bias,
        )

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The `torch.nn` layer (or `GroupedLinear`) of this shape, with uninitialised weights."""
        return nn.utils.skip_init(self._module_class(), device=device, dtype=dtype, **self._args())

    def write(self, module: nn.Module, factor: Factor) -> None:
        """Copy a canonical weight into a module of this shape."""
        assert isinstance(factor, Tensor)
        with torch.no_grad():
            weight_of(module).copy_(module_layout(self, factor))

    def read(self, module: nn.Module) -> Factor:
        """The canonical weight of a module of this shape, detached."""
        return canonical(self, weight_of(module).detach())

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        """The canonical weight itself."""
        assert isinstance(factor, Tensor)
        return factor

    def after(self, factor: Factor, before: Tensor, groups: int) -> Tensor:
        """The product of the weights."""
        return product_after(self, factor, before, groups)

    def as_head(self, head: LayerSpec, gain: float = 1.0) -> Stage:
        """The linear layer itself, which divides by nothing: what stands before it does."""
        return head

    def share(self, table: nn.Module, head: nn.Module) -> None:
        """Let the head hold the table's own weight."""
        head.weight = weight_of(table)

    def _module_class(self) -> type[nn.Module]:
        if self.kind == "linear":
            return nn.Linear if self.groups == 1 else GroupedLinear
        if self.kind == "embedding":
            return nn.Embedding
        return (_CONV if self.kind == "conv" else _CONV_TRANSPOSE)[len(self.kernel)]

    def _args(self) -> dict[str, object]:
        if self.kind == "linear":
            sizes = {"in_features": self.in_channels, "out_features": self.out_channels}
            grouped = {"groups": self.groups} if self.groups > 1 else {}
            return {**sizes, **grouped, "bias": self.bias}
        if self.kind == "embedding":
            return {
                "num_embeddings": self.in_channels,
                "embedding_dim": self.out_channels,
                "padding_idx": self.padding_idx,
                "scale_grad_by_freq": self.scale_grad_by_freq,
                "sparse": self.sparse,
            }
        args: dict[str, object] = {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": self.kernel,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "bias": self.bias,
            "padding_mode": self.padding_mode,
        }
        if self.kind == "conv_transpose":
            args["output_padding"] = self.output_padding
        return args


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a layer that is known to have one."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def canonical(spec: LayerSpec, weight: Tensor, *, transposed: bool = False) -> Tensor:
    """A module's weight as (groups, out / groups, in / groups, *kernel); a view where possible.

    Args:
        spec: shape of the layer.
        weight: the module's weight in its own layout.
        transposed: the module is a `Conv1D`, whose weight is (in, out).
    """
    if spec.kind == "embedding" or transposed:
        return weight.T.unsqueeze(0)  # (in, out) -> (1, out, in)
    g, o, i, *kernel = spec.weight_shape
    if spec.kind == "conv_transpose":
        return weight.reshape(g, i, o, *kernel).transpose(1, 2)  # (in, out/g, *k)
    return weight.reshape(g, o, i, *kernel)  # (out, in/g, *k)


def module_layout(spec: LayerSpec, weight: Tensor, *, transposed: bool = False) -> Tensor:
    """The inverse of `canonical`: a contiguous weight in the module's own layout."""
    if spec.kind == "embedding" or transposed:
        return weight[0].T.contiguous()
    g, o, i, *kernel = spec.weight_shape
    if spec.kind == "conv_transpose":
        return weight.transpose(1, 2).reshape(g * i, o, *kernel).contiguous()
    return weight.reshape(g * o, i, *kernel).contiguous()


def chain_macs(stages: Sequence[Stage], call: Call) -> int:
    """Multiply-accumulates of stages in a row."""
    total = 0
    for stage in stages:
        total += stage.macs(call)
        call = Call(call.batch, stage.output_size(call.size))
    return total


def tied_head(stages: Sequence[Stage], head: LayerSpec, gain: float = 1.0) -> tuple[Stage, ...]:
    """The stages of an output head that shares the replaced embedding's table.

    With the embedding `E = U B` (words x rank, rank x features) the head computes
    `h -> U (B h)`: a small linear stage, then one whose weight is the table `U` itself; of a
    table alone there is the second only.
    """
    first, *others = stages
    rank = first.out_channels
    last = head.pointwise(rank, head.out_channels, bias=head.bias)
    if not others:
        return (first.as_head(last, gain),)
    return head.pointwise(head.in_channels, rank), first.as_head(last)


def leaves(factors: Sequence[Factor]) -> list[Tensor]:
    """The tensors of factors, in order."""
    out: list[Tensor] = []
    for factor in factors:
        out += [factor] if isinstance(factor, Tensor) else leaves(factor)
    return out


def with_leaves(factors: Sequence[Factor], values: Sequence[Tensor]) -> tuple[Factor, ...]:
    """The same factors with other tensors in order: the inverse of `leaves`."""
    rest = iter(values)

    def fill(factor: Factor) -> Factor:
        return next(rest) if isinstance(factor, Tensor) else tuple(fill(f) for f in factor)

    return cast(tuple[Factor, ...], fill(tuple(factors)))


def chained(groups: int, stages: Sequence[Stage], factors: Sequence[Factor]) -> Tensor:
    """The canonical weight that stages in a row amount to.

    Every spatial axis is worked on by one stage at most, so kernels multiply by
    broadcasting and channels contract: W[g, o, j] = sum_i B[g, o, i] A[g, i, j].

    Args:
        groups: of the dense layer.
        stages: first to last.
        factors: what fills them.

    Returns:
        Weight (groups, out / groups, in / groups, *kernel).
    """
    like = next(f for f in leaves(factors) if f.is_floating_point())
    total: Tensor | None = None
    for stage, factor in zip(stages, factors, strict=True):
        if total is None:
            total = _within_groups(stage.matrix(factor, like), stage.groups // groups)
        else:
            total = stage.after(factor, total, groups)
    assert total is not None
    return total


def product_after(stage: Stage, factor: Factor, before: Tensor, groups: int) -> Tensor:
    """What `Stage.after` is where a stage's matrix has to be multiplied."""
    blocks = before.unflatten(1, (stage.groups // groups, -1)).flatten(0, 1)
    made = _after(stage.matrix(factor, before), blocks)
    return made.unflatten(0, (groups, -1)).flatten(1, 2)


def _within_groups(weight: Tensor, n: int) -> Tensor:
    """(g * n, o, i, *k) as (g, n * o, n * i, *k), block-diagonal over the n."""
    if n == 1:
        return weight
    gn, o, i, *kernel = weight.shape
    blocks = weight.reshape(gn // n, n, o, i, *kernel)
    eye = torch.eye(n, dtype=weight.dtype, device=weight.device)
    eye = eye.reshape(1, n, 1, n, 1, *(1,) * len(kernel))
    return (blocks.unsqueeze(3) * eye).reshape(gn // n, n * o, n * i, *kernel)


def _after(after: Tensor, before: Tensor) -> Tensor:
    """sum_i after[g, o, i, *ka] before[g, i, j, *kb], kernels multiplied by broadcasting."""
    kernel = torch.broadcast_shapes(after.shape[3:], before.shape[3:])
    letters = "xyz"[: len(kernel)]
    ka = "".join(c for c, n in zip(letters, after.shape[3:], strict=True) if n > 1)
    kb = "".join(c for c, n in zip(letters, before.shape[3:], strict=True) if n > 1)
    squeezed_a = after.reshape(*after.shape[:3], *(n for n in after.shape[3:] if n > 1))
    squeezed_b = before.reshape(*before.shape[:3], *(n for n in before.shape[3:] if n > 1))
    out = "".join(c for c in letters if c in ka + kb)
    product = torch.einsum(f"goi{ka},gij{kb}->goj{out}", squeezed_a, squeezed_b)
    return product.reshape(*product.shape[:3], *kernel)


def compose(spec: LayerSpec, stages: Sequence[Stage], factors: Sequence[Factor]) -> Tensor:
    """The canonical weight (groups, out / groups, in / groups, *kernel) of stages in a row.

    Args:
        spec: the dense layer.
        stages: first to last.
        factors: what fills them.
    """
    return chained(spec.groups, stages, factors)
