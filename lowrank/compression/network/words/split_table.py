"""A table that holds some rows whole and the others as a product of two factors: an embedding, and
the output head that reads the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.network.own_stages import StoredStage
from lowrank.compression.network.stages import Call, Factor, LayerSpec, Stage

_PLACES = torch.int32
"""Type of the rows' places."""


class SplitRows(nn.Module):
    """What both hold of a table.

    Args:
        stage: how many rows of each kind.
        dtype: of the rows.
        device: of all.
    """

    if TYPE_CHECKING:  # torch.jit reads no annotations of a class that are text
        place: Tensor
        whole: nn.Parameter
        rare: nn.Parameter
        basis: nn.Parameter

    def __init__(
        self, stage: SplitStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.kept = stage.kept
        place = torch.arange(stage.words, dtype=_PLACES, device=device)
        self.register_buffer("place", place)
        sizes = {
            "whole": (stage.kept, stage.features),
            "rare": (stage.words - stage.kept, stage.rank),
            "basis": (stage.features, stage.rank),
        }
        for name, size in sizes.items():
            empty = torch.zeros(size, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty))

    def stored_buffers(self) -> Sequence[Tensor]:
        """The places."""
        return (self.place,)

    def extra_repr(self) -> str:
        rank, words = self.basis.shape[1], len(self.place)
        return f"{words}, {self.basis.shape[0]}, kept={self.kept}, rank={rank}"


class SplitTable(SplitRows):
    """Rows of words: `whole[p]` where p = place[word] < kept, else `basis @ rare[p - kept]`.

    Args:
        stage: how many rows of each kind.
        dtype: of the rows.
        device: of all.
    """

    def __init__(
        self, stage: SplitTableStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stage, dtype=dtype, device=device)
        self.padding_idx = stage.padding_place

    def forward(self, x: Tensor) -> Tensor:
        place = self.place[x].long()
        whole = F.embedding(place.clamp_max(self.kept - 1), self.whole, self.padding_idx)
        rare = F.embedding((place - self.kept).clamp_min(0), self.rare)
        return torch.where((place < self.kept).unsqueeze(-1), whole, F.linear(rare, self.basis))


class SplitHead(SplitRows):
    """Scores of words, the products of what it reads, over `gain`, with their rows.

    Args:
        stage: how many rows of each kind.
        dtype: of the rows.
        device: of all.
    """

    if TYPE_CHECKING:
        bias: nn.Parameter | None

    def __init__(
        self, stage: SplitHeadStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(stage, dtype=dtype, device=device)
        self.gain = stage.gain
        bias = torch.zeros(stage.words, dtype=dtype, device=device) if stage.layer.bias else None
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))

    def forward(self, x: Tensor) -> Tensor:
        if self.gain != 1:
            x = x / self.gain
        rare = F.linear(F.linear(x, self.basis.t()), self.rare)
        y = torch.cat([F.linear(x, self.whole), rare], -1).index_select(-1, self.place)
        return y if self.bias is None else y + self.bias


@dataclass(frozen=True)
class SplitStage(StoredStage):
    """The factor is (place, whole, rare, basis), as `SplitRows` holds them.

    Bytes count the places, four for each word.

    Args:
        layer: the shape of the embedding, or of the head.
        kept: rows that are whole, 1..words - 1; with a padding word it is the first of them.
        rank: of the others.
    """

    kept: int
    rank: int

    @property
    def words(self) -> int:
        """Rows of the table."""
        return self.in_channels if self.layer.kind == "embedding" else self.out_channels

    @property
    def features(self) -> int:
        """Entries of a row."""
        return self.out_channels if self.layer.kind == "embedding" else self.in_channels

    @property
    def n_weights(self) -> int:
        """Number of weights of all three."""
        return (self.kept + self.rank) * self.features + (self.words - self.kept) * self.rank

    def n_bytes(self, element_size: int) -> int:
        return self.n_weights * element_size + self.words * _PLACES.itemsize

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, SplitRows)
        place, whole, rare, basis = cast("tuple[Tensor, ...]", factor)
        with torch.no_grad():
            module.place.copy_(place)
            for own, values in ((module.whole, whole), (module.rare, rare), (module.basis, basis)):
                own.copy_(values)

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, SplitRows)
        parts = (module.whole, module.rare, module.basis)
        return module.place, *(part.detach() for part in parts)

    def rows(self, factor: Factor, like: Tensor) -> Tensor:
        """The table (words, features)."""
        place, whole, rare, basis = cast("tuple[Tensor, ...]", factor)
        rows = torch.cat([whole.to(like), rare.to(like) @ basis.to(like).mT])
        return rows[place.long()]


@dataclass(frozen=True)
class SplitTableStage(SplitStage):
    """An embedding of rows of both kinds.

    A row of either is read at every position, and the rare ones multiplied by the basis:
    `MACs = rank * features` a word.

    Args:
        layer: the embedding's shape.
        kept: rows that are whole, 1..words - 1; with a padding word it is the first of them.
        rank: of the others.
    """

    reads_words = True

    @property
    def padding_place(self) -> int | None:
        """The place of the padding word, which takes no gradient."""
        return None if self.layer.padding_idx is None else 0

    def macs(self, call: Call) -> int:
        return call.batch * self.rank * self.out_channels

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        return SplitTable(self, dtype=dtype, device=device)

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        return self.rows(factor, like).mT[None]

    def as_head(self, head: LayerSpec, gain: float = 1.0) -> Stage:
        """The output head that reads the same rows."""
        return SplitHeadStage(head, self.kept, self.rank, gain)

    def share(self, table: nn.Module, head: nn.Module) -> None:
        """Let the head hold the table's own tensors."""
        assert isinstance(table, SplitTable)
        assert isinstance(head, SplitHead)
        head.place = table.place
        head.whole, head.rare, head.basis = table.whole, table.rare, table.basis


@dataclass(frozen=True)
class SplitHeadStage(SplitStage):
    """An output head of rows of both kinds.

    All rows are multiplied at every position, the rare ones behind the basis:
    `MACs = kept * features + rank * (features + words - kept)`.

    Args:
        layer: the head's shape.
        kept: rows that are whole, 1..words - 1.
        rank: of the others.
        gain: what its input is divided by.
    """

    gain: float = 1.0

    def macs(self, call: Call) -> int:
        return call.batch * self.n_weights

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        return SplitHead(self, dtype=dtype, device=device)

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        return self.rows(factor, like)[None] / self.gain
