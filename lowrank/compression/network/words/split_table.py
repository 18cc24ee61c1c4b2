"""An embedding that holds some rows whole and the others as a product of two factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.network.own_stages import StoredStage
from lowrank.compression.network.stages import Call, Factor

_PLACES = torch.int32
"""Type of the rows' places."""


class SplitTable(nn.Module):
    """Rows of words: `whole[p]` where p = place[word] < kept, else `basis @ rare[p - kept]`.

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
        self, stage: SplitTableStage, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        words, features = stage.in_channels, stage.out_channels
        self.kept, self.padding_idx = stage.kept, stage.padding_place
        self.register_buffer("place", torch.arange(words, dtype=_PLACES, device=device))
        sizes = {
            "whole": (stage.kept, features),
            "rare": (words - stage.kept, stage.rank),
            "basis": (features, stage.rank),
        }
        for name, size in sizes.items():
            empty = torch.zeros(size, dtype=dtype, device=device)
            self.register_parameter(name, nn.Parameter(empty))

    def forward(self, x: Tensor) -> Tensor:
        place = self.place[x].long()
        whole = F.embedding(place.clamp_max(self.kept - 1), self.whole, self.padding_idx)
        rare = F.embedding((place - self.kept).clamp_min(0), self.rare)
        return torch.where((place < self.kept).unsqueeze(-1), whole, F.linear(rare, self.basis))

    def stored_buffers(self) -> Sequence[Tensor]:
        """The places."""
        return (self.place,)

    def extra_repr(self) -> str:
        rank, words = self.basis.shape[1], len(self.place)
        return f"{words}, {self.basis.shape[0]}, kept={self.kept}, rank={rank}"


@dataclass(frozen=True)
class SplitTableStage(StoredStage):
    """The factor is (place, whole, rare, basis), as `SplitTable` holds them.

    Bytes count the places, four for each word. A row of either kind is read at every position,
    and the rare ones multiplied by the basis: `MACs = rank * features` a word.

    Args:
        layer: the embedding's shape.
        kept: rows that are whole, 1..words - 1; with a padding word it is the first of them.
        rank: of the others.
    """

    kept: int
    rank: int

    reads_words = True

    @property
    def padding_place(self) -> int | None:
        """The place of the padding word, which takes no gradient."""
        return None if self.layer.padding_idx is None else 0

    @property
    def n_weights(self) -> int:
        """Number of weights of all three."""
        rare = self.in_channels - self.kept
        return (self.kept + self.rank) * self.out_channels + rare * self.rank

    def n_bytes(self, element_size: int) -> int:
        return self.n_weights * element_size + self.in_channels * _PLACES.itemsize

    def macs(self, call: Call) -> int:
        return call.batch * self.rank * self.out_channels

    def build(self, *, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        return SplitTable(self, dtype=dtype, device=device)

    def write(self, module: nn.Module, factor: Factor) -> None:
        assert isinstance(module, SplitTable)
        place, whole, rare, basis = cast("tuple[Tensor, ...]", factor)
        module.place = place.to(module.place)
        with torch.no_grad():
            for own, values in ((module.whole, whole), (module.rare, rare), (module.basis, basis)):
                own.copy_(values)

    def read(self, module: nn.Module) -> Factor:
        assert isinstance(module, SplitTable)
        parts = (module.whole, module.rare, module.basis)
        return module.place, *(part.detach() for part in parts)

    def matrix(self, factor: Factor, like: Tensor) -> Tensor:
        place, whole, rare, basis = cast("tuple[Tensor, ...]", factor)
        rows = torch.cat([whole.to(like), rare.to(like) @ basis.to(like).mT])
        return rows[place.long()].mT[None]
