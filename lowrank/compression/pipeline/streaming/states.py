"""The hidden states of the calibration examples between two blocks, on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowrank.compression.network.example import without_key_cache
from lowrank.compression.network.tensors import tensors
from lowrank.compression.pipeline.streaming.source import Source
from lowrank.compression.structure.pretrained.tensor_files import (
    made,
    raw,
    stored_in,
    write_tensors,
)
from lowrank.errors import InputError

_HIDDEN = object()
"""Stands for the hidden state in the arguments of a call."""

_NAME = "hidden"


class _Enough(BaseException):
    """The last block has been reached."""


@dataclass(frozen=True, eq=False)
class Calls:
    """How the model calls its blocks, without the hidden states.

    Args:
        of: for every batch and block, its arguments, with `_HIDDEN` for the hidden state.
        masks: for every batch, which positions hold words; None for all.
        positions: in all batches.
        examples: in all batches.
    """

    of: tuple[tuple[tuple[Any, Mapping[str, Any]], ...], ...]
    masks: tuple[Tensor | None, ...]
    positions: int
    examples: int

    def run(self, block: nn.Module, k: int, batch: int, hidden: Tensor) -> Tensor:
        """The hidden state behind a block."""
        args, kwargs = tree_map(lambda v: hidden if v is _HIDDEN else v, self.of[batch][k])
        with torch.no_grad():
            return _first(block(*args, **kwargs))


@dataclass(eq=False)
class _Recorder:
    """Notes the calls of all blocks of a model, none of which runs."""

    n: int
    known: dict[Any, Tensor] = field(default_factory=dict)
    found: list[tuple[Any, Mapping[str, Any]]] = field(default_factory=list)
    first: Tensor | None = None
    last: Tensor | None = None

    def note(self, args: Any, kwargs: Any) -> Tensor:
        hidden = _hidden(args, kwargs)
        if self.last is None:
            self.first = hidden
        elif not torch.equal(self.last, hidden):
            problem = "its blocks do not pass one hidden state from each to the next"
            raise InputError("model", problem, "compress it in memory")
        self.last = hidden
        self.found.append(tree_map(lambda v: self._kept(v, hidden), (args, dict(kwargs))))
        return hidden

    def _kept(self, value: Any, hidden: Tensor) -> Any:
        if value is hidden:
            return _HIDDEN
        if not isinstance(value, Tensor):
            return value
        values = hashlib.sha256(raw(value.contiguous())).digest()
        key = (value.dtype, tuple(value.shape), values)
        return self.known.setdefault(key, value.detach().clone())


def recorded(source: Source, batches: Sequence[Mapping[str, Tensor]], path: Path | None) -> Calls:
    """How the blocks are called on the calibration examples; the first one's inputs are written.

    Args:
        source: the model.
        batches: keyword inputs.
        path: folder for the hidden states before the first block; None if they are there.

    Raises:
        InputError: the model cannot be run on them, or its blocks are not in a row.
    """
    calls: list[tuple[tuple[Any, Mapping[str, Any]], ...]] = []
    known: dict[Any, Tensor] = {}

    def firsts() -> Iterator[Tensor]:
        for batch in batches:
            recorder = _Recorder(len(source.blocks), known)
            with _stubs(source, recorder, structure):
                _run(source.model, batch)
            assert recorder.first is not None
            calls.append(tuple(recorder.found))
            yield recorder.first

    with source.front(), without_key_cache(source.model):
        structure = _structure(source, batches[0])
        if path is None:
            for _ in firsts():
                pass
        else:
            write_states(path, firsts())
    shapes = [next(iter(batch.values())).shape for batch in batches]
    positions = sum(prod(shape[:2]) for shape in shapes)
    return Calls(tuple(calls), tuple(map(_mask, batches)), positions, sum(s[0] for s in shapes))


def write_states(folder: Path, states: Iterable[Tensor]) -> None:
    """Write the hidden states of all batches, a file each; the folder is there when all are."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for k, state in enumerate(states):
        write_tensors(part / f"{k:06d}.safetensors", {_NAME: made(state)})
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(part, folder)


def read_states(folder: Path) -> Iterator[Tensor]:
    """The hidden states, a batch at a time."""
    for path in sorted(folder.iterdir()):
        yield stored_in(path)[_NAME].read()


def _mask(batch: Mapping[str, Tensor]) -> Tensor | None:
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2 or bool(mask.all()):
        return None
    return mask.bool()


def _structure(source: Source, batch: Mapping[str, Tensor]) -> Any:
    """What the first block returns, with `_HIDDEN` in the place of the hidden state."""
    shown: list[Any] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        state = _first(output)
        shown.append(tree_map(lambda v: _HIDDEN if v is state else v, output))
        raise _Enough

    with source.filled(source.blocks[0]) as block:
        handle = block.register_forward_hook(leave)
        try:
            _run(source.model, batch)
        finally:
            handle.remove()
    if not shown:
        problem = f"{source.blocks[0]} does not run on the examples"
        raise InputError("model", problem, "compress it in memory")
    return shown[0]


@contextmanager
def _stubs(source: Source, recorder: _Recorder, structure: Any) -> Iterator[None]:
    """Blocks that note how they are called and hand their hidden state on."""
    blocks = [source.model.get_submodule(name) for name in source.blocks]

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = recorder.note(args, kwargs)
        if len(recorder.found) == recorder.n:
            raise _Enough
        return tree_map(lambda v: hidden if v is _HIDDEN else v, structure)

    try:
        for block in blocks:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _run(model: Any, batch: Mapping[str, Tensor]) -> None:
    """Run the model up to where it is stopped."""
    try:
        with torch.no_grad():
            model(**batch)
    except _Enough:
        return
    except InputError:
        raise
    except Exception as error:
        problem = f"the model refuses the examples ({type(error).__name__}: {error})"
        advice = "give token ids (n, length) that its embedding knows, or a dict of its inputs"
        raise InputError("data", problem, advice) from error
    problem = "its blocks are not all run"
    raise InputError("model", problem, "compress it in memory")


def _hidden(args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    return _first([*args, kwargs.get("hidden_states"), *kwargs.values()])


def _first(output: Any) -> Tensor:
    return next(t for t in tensors(output) if t.is_floating_point())
