"""How often words come in examples that are read and not run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lowrank.compression.network.example import Example, batch_size
from lowrank.compression.network.tensors import tensors
from lowrank.errors import InputError

LARGEST = 1 << 22
"""Numbers from here on are no words of a table."""


def may_be_words(batch: Example) -> bool:
    """Whether a batch holds numbers of words, and masks, alone: pictures in bytes are none."""
    found = tensors(batch)
    return bool(found) and all(t.dtype in (*_NUMBERS, torch.bool) for t in found)


_NUMBERS = (torch.int32, torch.int64)
"""What torch looks words up by."""


def numbers_in(batches: Iterable[Example], most: int) -> tuple[Tensor | None, ...]:
    """For each tensor of a batch, how often each whole number comes in all of them.

    Args:
        batches: inputs of a model; what comes behind one that it would not take is left out.
        most: examples to look at; the batch that reaches it is the last.

    Returns:
        Counts (numbers,) of int64; None for a tensor of other things than numbers of words. Empty
        where there is no batch, or where batches hold different numbers of tensors.

    Example:
        >>> import torch
        >>> numbers_in([(torch.tensor([[3, 1, 3]]), torch.tensor([[True, True, False]]))], 9)
        (tensor([0, 1, 0, 2]), None)
    """
    counts: list[Tensor | None] = []
    try:
        for batch in batches:
            found = tensors(batch)
            counts = counts or [torch.zeros(0, dtype=torch.int64)] * len(found)
            if len(counts) != len(found):
                return ()
            counts = [_more(c, t) for c, t in zip(counts, found, strict=True)]
            most -= batch_size(batch)
            if most <= 0:
                break
    except InputError:  # what is not run need not be whole
        pass
    return tuple(counts)


def _more(counts: Tensor | None, t: Tensor) -> Tensor | None:
    """The counts with those of one more tensor."""
    if counts is None or t.dtype not in _NUMBERS:
        return None
    if not t.numel():
        return counts
    if int(t.min()) < 0 or int(t.max()) >= LARGEST:
        return None
    new = torch.bincount(t.flatten().cpu(), minlength=len(counts))
    new[: len(counts)] += counts
    return new


class Sources:
    """Which tensor of its batches a table reads its words from: one that it is given as it is."""

    def __init__(self) -> None:
        self._left: dict[str, set[int]] = {}

    def see(self, name: str, words: Tensor, batch: Example) -> None:
        """One call of the table of that name."""
        same = {
            k
            for k, t in enumerate(tensors(batch))
            if t.shape == words.shape and torch.equal(t.to(words.device, words.dtype), words)
        }
        self._left[name] = self._left.get(name, same) & same

    def counts(self, name: str, further: Sequence[Tensor | None]) -> Tensor | None:
        """How often each word comes in the examples that were not run; None where no tensor of
        theirs is known to be what the table reads."""
        left = sorted(k for k in self._left.get(name, ()) if k < len(further))
        return next((further[k] for k in left if further[k] is not None), None)
