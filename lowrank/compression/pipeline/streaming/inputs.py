"""What the linear layers of a block are given, summed over the calibration examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.moments import Moments, Sums, rows_of_a_draw
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.pipeline.streaming.states import Calls, read_states
from lowrank.errors import InputError

_NOISE = 0.1
"""Relative size of the disturbance by which the block is asked what an error in a layer does."""

_PROBED = 1024
"""Positions on which it is asked."""


@dataclass(eq=False)
class Inputs:
    """Moments of the inputs of a block's layers; layers that read the same share them.

    Args:
        specs: the layers.
        positions: of all examples together.
    """

    specs: Mapping[str, LayerSpec]
    positions: int
    owner: dict[str, str] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    _read: dict[int, tuple[Tensor, str]] = field(default_factory=dict)

    def moments(self, name: str) -> Moments | None:
        """Those of a layer; None where it was never given anything."""
        sums = self.sums.get(self.owner.get(name, name))
        return None if sums is None or not sums.n else sums.moments()

    def see(self, name: str, x: Tensor, mask: Tensor | None) -> None:
        """Add what a layer is given."""
        known = self._read.get(id(x))
        owner = known[1] if known is not None else name
        self._read[id(x)] = (x, owner)
        if self.owner.setdefault(name, owner) != name:
            return
        if mask is not None and mask.shape == x.shape[:-1]:
            x = x[mask]
        examples = x.shape[0] if x.ndim > 2 else 1
        x = x.reshape(-1, 1, x.shape[-1])  # (positions, groups, d)
        if not len(x):
            return
        sums = self.sums.setdefault(name, Sums(self.specs[name]))
        sums.seen += len(x)
        kept = x[:: -(-self.positions // sums.look(self.positions).positions)]
        sums.add(kept, rows=rows_of_a_draw(len(kept), examples))

    def forget(self) -> None:
        """Drop the tensors that were seen: others may get their places in memory."""
        self._read.clear()


def collect(
    inputs: Inputs,
    block: nn.Module,
    k: int,
    layers: Mapping[str, nn.Module],
    states: Path,
    calls: Calls,
) -> Iterator[Tensor]:
    """Run a block on the hidden states before it, and give those behind it.

    Args:
        inputs: what its layers are given is added to these.
        block: with its weights.
        k: its number.
        layers: its linear layers, by name.
        states: the hidden states.
        calls: how the block is called.

    Raises:
        InputError: the block gives NaN or Inf.
    """
    mask: list[Tensor | None] = [None]

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, args: inputs.see(name, args[0], mask[0])

    with ExitStack() as stack:
        for name, module in layers.items():
            stack.callback(module.register_forward_pre_hook(hook(name)).remove)
        for n, hidden in enumerate(read_states(states)):
            mask[0] = calls.masks[n]
            after = checked(k, calls.run(block, k, n, hidden))
            inputs.forget()
            yield after


def checked(k: int, hidden: Tensor) -> Tensor:
    """The hidden state behind a block, if it is finite.

    Raises:
        InputError: it is not; names the block.
    """
    if not bool(torch.isfinite(hidden).all()):
        problem = "its output holds NaN or Inf on the calibration examples"
        raise InputError(f"block {k}", problem, "check its weights, and the examples")
    return hidden


def run_through(block: nn.Module, k: int, states: Path, calls: Calls) -> Iterator[Tensor]:
    """The hidden states behind a block."""
    for n, hidden in enumerate(read_states(states)):
        yield checked(k, calls.run(block, k, n, hidden))


def felt(
    block: nn.Module, k: int, layers: Mapping[str, nn.Module], states: Path, calls: Calls
) -> dict[str, float]:
    """What an error in a layer's output does to the block's, both relative and squared.

    The layer's output is disturbed by noise of a given size, and the change of the hidden state
    behind the block over that state's size is what counts: it goes on to all later blocks.
    """
    batches, n = [], 0
    for b, hidden in enumerate(read_states(states)):
        batches.append((b, hidden))
        n += hidden[..., 0].numel()
        if n >= _PROBED:
            break
    plain = [calls.run(block, k, b, hidden) for b, hidden in batches]
    whole = sum(float(y.double().square().sum()) for y in plain)
    found = {}
    for name, module in layers.items():
        with _disturbed(module):
            pairs = zip(batches, plain, strict=True)
            moved = sum(_distance(calls.run(block, k, b, h), y) for (b, h), y in pairs)
        found[name] = moved / max(whole, 1e-300) / _NOISE**2
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().sum())


class _disturbed(ExitStack):
    """A layer whose output has noise on it, the same in every run."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def noisy(_: nn.Module, args: object, output: Tensor) -> Tensor:
            noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
            return output + _NOISE * output.double().square().mean().sqrt().float() * noise

        self.callback(module.register_forward_hook(noisy).remove)
