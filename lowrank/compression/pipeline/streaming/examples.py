"""The calibration examples of a model that is compressed block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lowrank.compression.gauges.texts import calibration_text
from lowrank.compression.network.example import check
from lowrank.compression.structure.pretrained.tensor_files import raw
from lowrank.errors import InputError

WINDOWS, LENGTH = 64, 512
"""Windows that are drawn from a text, and the most tokens of each."""

_TOKENS = 2048
"""Positions in a batch, about: what passes through a block at a time."""

_ADVICE = "give token ids (n, length), batches of them, dicts of inputs, or texts and tokenizer="


def batches_of(data: object, tokenizer: Any, config: Any, seed: int) -> list[dict[str, Tensor]]:
    """Keyword inputs, a batch at a time.

    Args:
        data: token ids (n, length), an iterable of such or of dicts of inputs; or, with a
            tokenizer, texts as `lowrank.evaluate.calibration_text` takes them.
        tokenizer: of the texts.
        config: of the model.
        seed: of the windows of texts.

    Raises:
        InputError: it is none of these.
    """
    if tokenizer is not None and _is_text(data):
        most = getattr(config, "max_position_embeddings", None) or LENGTH
        length = min(LENGTH, most)
        data = calibration_text(tokenizer, data, n_windows=WINDOWS, length=length, seed=seed)  # type: ignore[arg-type]
    if isinstance(data, Tensor | Mapping):
        data = [data]
    if not isinstance(data, Iterable) or isinstance(data, str):
        raise InputError("data", f"a {type(data).__name__} is no batches of tokens", _ADVICE)
    found = [part for item in data for part in _split(_named(item))]
    if not found:
        raise InputError("data", "there are no examples", _ADVICE)
    for batch in found:
        check(batch, "data")
    return found


def _is_text(data: object) -> bool:
    from pathlib import Path

    if isinstance(data, str | Path):
        return True
    return isinstance(data, list | tuple) and all(isinstance(d, str | Path) for d in data)


def _named(item: Any) -> dict[str, Tensor]:
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[0], Tensor):
        item = item[0]  # behind it stand labels
    if isinstance(item, Tensor):
        if item.is_floating_point():
            raise InputError("data", f"{item.dtype} numbers are no token ids", _ADVICE)
        item = {"input_ids": item if item.ndim > 1 else item[None]}
    if not isinstance(item, Mapping) or not all(isinstance(t, Tensor) for t in item.values()):
        raise InputError("data", f"a {type(item).__name__} is no batch of tokens", _ADVICE)
    named = {str(n): t for n, t in item.items() if n not in ("labels", "use_cache")}
    if len({len(t) if t.ndim else 0 for t in named.values()}) != 1:
        raise InputError("data", "inputs of one batch differ in their number", _ADVICE)
    return {n: t.long() if n.endswith("_ids") else t for n, t in named.items()}


def _split(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Parts of about so many positions."""
    n, positions = len(next(iter(batch.values()))), max(t[0].numel() for t in batch.values())
    step = max(1, _TOKENS // max(1, positions))
    return [{k: t[a : a + step].clone() for k, t in batch.items()} for a in range(0, n, step)]


def digest_of(batches: Iterable[Mapping[str, Tensor]]) -> str:
    """SHA-256 of the examples."""
    found = hashlib.sha256()
    for batch in batches:
        for name, tensor in sorted(batch.items()):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(raw(tensor.cpu().contiguous()))
    return found.hexdigest()
