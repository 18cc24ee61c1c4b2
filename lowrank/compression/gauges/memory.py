"""Peak memory of a forward pass: parameters, and what is alive beside them.

A chain in a layer's place makes the same output from the same input, so it never needs less
beside its weights, and it needs more where a tensor between its stages is alive together
with both. What a budget can win is therefore the weights; what a chain adds to the peak of the
activations counts against it.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lowrank.compression.gauges.counting import WatchMode
from lowrank.compression.network.example import Example, check, evaluating, spare, use_up
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.stages import Call, Stage
from lowrank.compression.network.tensors import distinct, tensors
from lowrank.compression.network.units import Unit


@dataclass(frozen=True)
class Memory:
    """What the dense model holds while it runs.

    Attributes:
        weights: bytes of its parameters and buffers.
        peak: most bytes alive at one time of all that the forward pass allocates.
        before: layer name -> bytes alive when each of its calls begins, its input included.
    """

    weights: int
    peak: int
    before: dict[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        """Peak of the whole forward pass."""
        return self.weights + self.peak

    def with_chain(self, view: LayerView, chain: Sequence[Stage]) -> int:
        """Peak of the activations with a chain in the layer's place, in bytes."""
        dtype, words = view.parameter.dtype, view.spec.kind == "embedding"
        calls = zip(self.before.get(view.name, ()), view.calls, strict=True)
        added = (alive + chain_bytes(chain, at, dtype, words=words) for alive, at in calls)
        return max([self.peak, *added])

    def with_unit(self, unit: Unit, stages: Sequence[Stage]) -> int:
        """The same for a unit: one of its layers runs at a time."""
        chains = zip(unit.layers, unit.chains(stages), strict=True)
        return max(self.with_chain(view, chain) for view, chain in chains)


@dataclass(frozen=True, eq=False)
class Peaks:
    """By how much candidates raise the peak of the activations.

    Only one chain runs at a time, so the peak of a model with several replaced layers rises
    by the most that one of them adds: the sum, which a planner can count, is never less.

    Attributes:
        dense: what the dense model holds.
        rises: unit -> (n,) bytes, one for each of its candidates alone.
    """

    dense: Memory
    rises: dict[str, NDArray[np.int64]]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Example,
        units: Mapping[str, Unit],
        offered: Mapping[str, Sequence[Sequence[Stage]]],
    ) -> Peaks:
        """Measure the model and look at every candidate's chain.

        Args:
            model: the dense model.
            example: inputs of one forward pass.
            units: the units by their keys.
            offered: unit -> the stages of each of its candidates.
        """
        views = {view.name: view for unit in units.values() for view in unit.layers}
        dense = measure_memory(model, example, views)
        rises = {
            key: np.array([dense.with_unit(units[key], s) - dense.peak for s in stages], int)
            for key, stages in offered.items()
        }
        return cls(dense, rises)


@dataclass(frozen=True)
class MemoryCheck:
    """A memory budget against the finished model, in bytes at the peak of a forward pass.

    Attributes:
        limit: what was allowed.
        dense: what the dense model takes.
        measured: what the compressed one takes.
    """

    limit: int
    dense: int
    measured: int

    def __str__(self) -> str:
        met = "met" if self.measured <= self.limit else "missed"
        return (
            f"memory budget {self.limit:,} bytes {met}: {self.measured:,} at the peak, "
            f"{self.measured / self.dense:.3f} of the dense model's"
        )


def chain_bytes(
    chain: Sequence[Stage], at: Call, dtype: torch.dtype, *, words: bool = False
) -> int:
    """Most bytes alive at one time that a chain allocates: each stage's input and output.

    The input of the first stage is its caller's. Stages that allocate more are run
    without data, on the meta device.

    Args:
        chain: the stages, first to last.
        at: batch and size of the chain's input.
        dtype: of the numbers.
        words: the chain reads whole numbers, as an embedding does.

    Example:
        >>> from lowrank.compression.network.stages import LayerSpec
        >>> stage = LayerSpec("linear", 64, 64)
        >>> chain_bytes([stage.pointwise(64, 8), stage.pointwise(8, 64)], Call(2), torch.float32)
        576
    """
    if not all(stage.lean for stage in chain):
        return _bytes_on_meta(chain, at, dtype, words=words)
    held, most = 0, 0
    for stage in chain:
        size = stage.output_size(at.size)
        made = at.batch * stage.out_channels * prod(size) * dtype.itemsize
        most, held, at = max(most, held + made), made, Call(at.batch, size)
    return most


def _bytes_on_meta(chain: Sequence[Stage], at: Call, dtype: torch.dtype, *, words: bool) -> int:
    module = nn.Sequential(*(stage.build(dtype=dtype, device="meta") for stage in chain))
    shape = (at.batch,) if words else (at.batch, chain[0].in_channels, *at.size)
    x = torch.empty(shape, dtype=torch.int64 if words else dtype, device="meta")
    with torch.no_grad(), MemoryMode() as mode:
        module(x)
    return mode.peak


def measure_memory(
    model: nn.Module, example: Example, views: Mapping[str, LayerView] | None = None
) -> Memory:
    """Run the example once and follow what it allocates.

    Args:
        model: the network, in evaluation mode for the run.
        example: inputs of one forward pass.
        views: layer name -> the layers that chains may replace.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU())
        >>> measure_memory(net, torch.zeros(4, 8))
        Memory(weights=576, peak=512, before={})
    """
    check(example)
    mode, before = MemoryMode(), defaultdict[str, list[int]](list)
    ready = spare(example)

    def note(name: str, module: nn.Module, inputs: Any) -> None:
        before[name].append(mode.current)

    with ExitStack() as stack:
        for view in (views or {}).values():
            hook = view.module.register_forward_pre_hook(partial(note, view.name), prepend=True)
            stack.callback(hook.remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(mode)
        use_up(model, ready)
    return Memory(
        sum(
            t.numel() * t.element_size() for t in distinct((*model.parameters(), *model.buffers()))
        ),
        mode.peak,
        {name: tuple(bytes_) for name, bytes_ in before.items()},
    )


class MemoryMode(WatchMode):
    """Follow the storages that operations create: bytes alive, their peak, and the bound.

    A storage counts from the operation that returns it until it is freed. One that an
    operation was given and that no earlier operation created (a parameter, a buffer, the
    example) never counts; views share their storage.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self.current = self.peak = self.bound = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        touched = set(given)
        for storage in _storages(out):
            touched.add(storage._cdata)
            if storage._cdata not in given and storage._cdata not in self.alive:
                self._create(storage)
        self.bound = max(self.bound, sum(self.alive[k][0] for k in touched if k in self.alive))
        return out

    def _create(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.alive[key] = size, weakref.ref(storage, lambda _: self._free(key))
        self.current += size
        self.peak = max(self.peak, self.current)

    def _free(self, key: int) -> None:
        self.current -= self.alive.pop(key)[0]


def _storages(value: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tensors(value) if t.layout is torch.strided]
