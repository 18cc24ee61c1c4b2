"""Layers whose weights are stored at 2 to 8 bits, and computed with in their own type.

A row of the canonical weight is cut into pieces of `group` entries. It holds a code per entry,
packed into bytes, a byte per piece and one number in the layer's own type: the grid that
`lowrank.decompositions.quantized` fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lowrank.compression.network.own_stages import Rebuilt, StoredStage
from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.decompositions.quantized import FINEST, Grid, pieces_of, values_of

PLANES = {2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 8: [8]}
"""Bits of a code -> how they are split, so that each part fits a byte a whole number of times."""


def row_bytes(d: int, bits: int) -> int:
    """Bytes of the packed codes of a row of d entries.

    Example:
        >>> row_bytes(64, 4), row_bytes(7, 4), row_bytes(8, 3)
        (32, 4, 3)
    """
    return sum(-(-d // (8 // p)) for p in PLANES[bits])


def packed_codes(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, d) as bytes (rows, row_bytes(d, bits)): those of a byte lie far apart.

    Example:
        >>> packed_codes(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4)
        tensor([[49,  2]], dtype=torch.uint8)
    """
    planes = []
    rest = codes.long()
    for p in PLANES[bits]:
        per = 8 // p
        part = rest % 2**p
        part = nn.functional.pad(part, (0, -part.shape[1] % per)).unflatten(1, (per, -1))
        digits = 2 ** (p * torch.arange(per, device=codes.device))
        planes.append((part * digits[:, None]).sum(1))
        rest = rest // 2**p
    return torch.cat(planes, 1).to(torch.uint8)


def unpacked_codes(packed: Tensor, planes: list[int], d: int, dtype: torch.dtype) -> Tensor:
    """The inverse of `packed_codes`: bytes (..., bytes) to codes (..., d) in a floating type.

    Digits are split off by products with powers of two, which are exact in every such type, run
    on vectors of numbers, and export everywhere; shifts of bytes do not.
    """
    parts, at, above = [], 0, 0
    for p in planes:
        per, base = 8 // p, float(1 << p)
        n = (d + per - 1) // per
        rest, digits = packed[..., at : at + n].to(dtype), []
        for _ in range(per - 1):
            higher = torch.floor(rest * (1.0 / base))
            digits.append(rest - higher * base)
            rest = higher
        digits.append(rest)
        part = torch.cat(digits, -1)[..., :d]
        parts.append(part * float(1 << above) if above else part)
        at, above = at + n, above + p
    codes = parts[0]
    for part in parts[1:]:
        codes = codes + part
    return codes


def entries(
    packed: Tensor, shares: Tensor, scale: Tensor, planes: list[int], group: int, d: int
) -> Tensor:
    """The weights (..., d) of rows: codes (..., bytes), shares (..., pieces), steps (...)."""
    half = ((1 << sum(planes)) - 1) / 2
    values = unpacked_codes(packed, planes, d, scale.dtype) - half
    steps = shares.to(scale.dtype) * (scale / 255).unsqueeze(-1)
    if d == group * shares.shape[-1]:
        return (values.unflatten(-1, [-1, group]) * steps.unsqueeze(-1)).flatten(-2)
    return values * steps.repeat_interleave(group, -1)[..., :d]


class _Packed:
    """What holds packed weights says of them."""

    if TYPE_CHECKING:
        packed: Tensor
        shares: Tensor
        scale: nn.Parameter
        width: int

    def stored_buffers(self) -> Sequence[Tensor]:
        """The codes and the pieces' shares."""
        return self.packed, self.shares

    def packed_weights(self) -> int:
        """How many weights the codes stand for."""
        return len(self.scale) * self.width


class Quantized(_Packed, Rebuilt):
    """A layer of packed weights, put together in every pass.

    Args:
        stage: the layer's shape and the grid.
        dtype: that is computed in.
        device: of all.
    """

    def __init__(
        self, stage: QuantizedStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stage.layer, dtype=dtype, device=device)
        self.planes, self.group, self.width = PLANES[stage.bits], stage.group, stage.width
        _hold(self, stage, dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        rows = entries(self.packed, self.shares, self.scale, self.planes, self.group, self.width)
        return self.run(x, rows.flatten())

    def extra_repr(self) -> str:
        return f"{self.shape}, bits={sum(self.planes)}, group={self.group}"


class QuantizedTable(_Packed, nn.Module):
    """An embedding of packed weights, of which those rows alone are put together that are read.

    Args:
        stage: the table's shape and the grid.
        dtype: of the output.
        device: of all.
    """

    def __init__(
        self, stage: QuantizedStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.planes, self.group, self.width = PLANES[stage.bits], stage.group, stage.width
        _hold(self, stage, dtype, device)

    def forward(self, x: Tensor) -> Tensor:
        packed, shares, scale = self.packed[x], self.shares[x], self.scale[x]
        return entries(packed, shares, scale, self.planes, self.group, self.width)

    def extra_repr(self) -> str:
        n = len(self.scale)
        return f"{n}, {self.width}, bits={sum(self.planes)}, group={self.group}"


def _hold(
    module: nn.Module, stage: QuantizedStage, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Give a module what a grid is stored in."""
    n, d = stage.rows, stage.width
    for name, width in (("packed", row_bytes(d, stage.bits)), ("shares", stage.pieces)):
        empty = torch.zeros(n, width, dtype=torch.uint8, device=device)
        module.register_buffer(name, empty)
    module.scale = nn.Parameter(torch.zeros(n, dtype=dtype, device=device))


@dataclass(frozen=True)
class QuantizedStage(StoredStage):
    """A layer with weights of a few bits; the factor is a `Grid`: codes, shares and steps.

    Bytes count all three. MACs are those of the dense layer, which torch does.

    Args:
        layer: the shape.
        bits: of a code.
        group: entries of a piece of a row; at most the row's.
    """

    bits: int
    group: int

    @property
    def reads_words(self) -> bool:  # type: ignore[override]
        """True for embeddings."""
        return self.layer.reads_words

    @property
    def rows(self) -> int:
        """Filters; of an embedding words."""
        return self.in_channels if self.reads_words else self.out_channels

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.layer.n_weights // self.rows

    @property
    def pieces(self) -> int:
        """Pieces of a row."""
        return pieces_of(self.width, self.group)

    @property
    def n_weights(self) -> int:
        """Entries, and the step of every row."""
        return self.rows * (self.width + 1)

    def n_bytes(self, element_size: int) -> int:
        return self.rows * (row_bytes(self.width, self.bits) + self.pieces + element_size)

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        cls = QuantizedTable if self.reads_words else Quantized
        return cls(self, dtype=dtype, device=device)

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, Quantized | QuantizedTable)
        codes, shares, steps = cast("tuple[Tensor, Tensor, Tensor]", factor)
        with torch.no_grad():
            module.packed.copy_(packed_codes(codes.flatten(0, 1), self.bits))
            module.shares.copy_(shares.flatten(0, 1))
            module.scale.copy_(steps.flatten())

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, Quantized | QuantizedTable)
        codes = unpacked_codes(module.packed, module.planes, self.width, torch.float32)
        codes = codes.to(torch.uint8)
        g = self.groups
        shares, steps = module.shares.unflatten(0, (g, -1)), module.scale.detach()
        return codes.unflatten(0, (g, -1)), shares, steps.unflatten(0, (g, -1))

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        rows = values_of(Grid(*cast("tuple[Tensor, ...]", factor)), self.bits, self.group,
                         like.dtype)  # fmt: skip
        return rows.mT if self.reads_words else rows.reshape(self.layer.weight_shape)

    def as_head(self, head: LayerSpec, gain: float = 1.0) -> Stage:
        """The output head that reads the same rows, which are not multiplied by anything."""
        assert gain == 1.0
        return QuantizedStage(head, self.bits, self.group)

    def share(self, table: nn.Module, head: nn.Module) -> None:
        """Let the head hold the table's own tensors."""
        assert isinstance(table, QuantizedTable)
        assert isinstance(head, Quantized)
        head.packed, head.shares, head.scale = table.packed, table.shares, table.scale


assert FINEST == 255  # which torch.jit cannot read from here
