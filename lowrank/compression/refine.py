"""Refinement without labels: block by block, then end to end, where held-out examples gain."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.batches import mixable
from lowrank.compression.blocks import STEPS, Progress, find_blocks, train_blocks
from lowrank.compression.example import Example, batch_size, run, split_batches
from lowrank.compression.finetune import finetune
from lowrank.compression.quality import Quality, compare_outputs

_BATCH = 32
"""Examples in a step, at most."""

_ROUNDS = 5
"""Steps of training end to end, as a multiple of a block's."""


@dataclass(frozen=True)
class Refined:
    """What refinement came to.

    Args:
        blocks: block -> its relative error before and after, ||y' - y|| / ||y||, on the
            examples that it was trained on.
        lost: how far the outputs were off on examples held out: at first, with refined
            blocks, and after training end to end, as far as it went; empty where there were
            too few examples to hold any out.
        kept: how many of these steps were kept, 0 to 2.
    """

    blocks: dict[str, tuple[float, float]]
    lost: tuple[float, ...]
    kept: int

    def __str__(self) -> str:
        n = len(self.blocks)
        if not n:
            return "nothing was refined: no block holds a replaced layer that runs once"
        if self.kept == 0:
            return f"refined {n} blocks, to no gain on examples held out: left as they were"
        before, after = (sum(b[k] for b in self.blocks.values()) / n for k in (0, 1))
        end = ", then trained end to end" if self.kept > 1 else ""
        said = f"refined {n} blocks, whose relative error fell from {before:.3f} to {after:.3f} on "
        if not self.lost:
            return f"{said}average; too few examples to hold any out"
        lost = f"{self.lost[0]:.4g} to {self.lost[self.kept]:.4g}"
        return f"{said}average{end}; on examples held out the outputs' loss fell from {lost}"


def refine(
    small: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Example],
    layers: Sequence[str],
    *,
    held: Sequence[Example] = (),
    steps: int = STEPS,
    lr: float = 1e-3,
    only_factors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Refined:
    """Train, in place, towards the dense model's outputs; no labels are needed.

    Block after block first (see `train_blocks`), then the whole model on the outputs and
    what the blocks give (see `distil`). What does not bring the outputs closer on examples
    held out is taken back.

    Args:
        small: the compressed model.
        teacher: the dense one.
        batches: inputs, from `calibration_batches`.
        layers: names of the replaced layers.
        held: inputs that the layers were not fitted to either; without any, blocks alone
            are trained.
        steps: gradient steps for a block; five times as many follow end to end.
        lr: learning rate of the blocks at the start, above 0.
        only_factors: train the replaced layers alone in the blocks, not all parameters.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        InputError: steps or a learning rate that make no sense.
    """
    parts = split_batches(batches, _BATCH)
    stages = [copy.deepcopy(small.state_dict())]
    blocks = train_blocks(
        small,
        teacher,
        parts,
        layers,
        steps=steps,
        lr=lr,
        only_factors=only_factors,
        seed=seed,
        progress=progress,
    )
    if not held or not blocks:
        return Refined(blocks, (), int(bool(blocks)))
    stages.append(copy.deepcopy(small.state_dict()))
    if all(p.dtype.itemsize >= 4 for p in small.parameters() if p.is_floating_point()):
        distil(small, teacher, parts, layers, steps=_ROUNDS * steps, seed=seed, progress=progress)
        stages.append(copy.deepcopy(small.state_dict()))
    lost: list[float] = []
    for state in stages:
        small.load_state_dict(state)
        lost.append(_compared(teacher, small, held).loss)
    kept = min(range(len(lost)), key=lost.__getitem__)
    small.load_state_dict(stages[kept])
    return Refined(blocks, tuple(lost), kept)


def distil(
    small: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Example],
    layers: Sequence[str],
    *,
    steps: int,
    lr: float = 7e-4,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train the whole model, in place, on the dense one's outputs and blocks.

    A few hundred examples are soon known by heart. So they are mixed in pairs where they are
    floating-point, and the blocks' outputs weigh more than the model's own.

    Args:
        small: the compressed model.
        teacher: the dense one.
        batches: inputs, a batch for each step.
        layers: names of the replaced layers.
        steps: gradient steps, at least; whole rounds through the batches are made.
        lr: learning rate at the start, above 0.
        seed: of everything random.
        progress: called as (what, done, total).
    """
    scores = _compared(teacher, small, batches[:1]).scores
    finetune(
        small,
        teacher=teacher,
        data=_joined(batches),
        epochs=-(-steps // len(batches)),
        lr=lr,
        loss="kl" if scores else "mse",
        hints=_hints(teacher, layers, batches[0]),
        hint_weight=10.0,
        mix=all(map(mixable, batches)),
        recalibrate=False,
        batch_size=max(map(batch_size, batches)),
        seed=seed,
        progress=_named("refining end to end", progress),
    )


def _named(name: str, progress: Progress | None) -> Callable[[str, int, int], None] | bool:
    return False if progress is None else lambda what, done, total: progress(name, done, total)


def _joined(batches: Sequence[Example]) -> Any:
    """One tensor, to be shuffled anew every time, where the batches are tensors of one shape."""
    tensors = [b for b in batches if isinstance(b, Tensor)]
    same = len(tensors) == len(batches) and len({b.shape[1:] for b in tensors}) == 1
    return torch.cat(tensors) if same else batches


def _compared(teacher: nn.Module, small: nn.Module, batches: Sequence[Example]) -> Quality:
    found = compare_outputs(teacher, small, None, list(batches))
    assert found is not None
    return found


def _hints(teacher: nn.Module, layers: Sequence[str], batch: Example) -> list[str]:
    """The last modules of the blocks, where they give a single tensor, once."""
    names = [b.names[-1] for b in find_blocks(teacher, layers)]
    seen: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        teacher.get_submodule(n).register_forward_hook(lambda m, i, out, n=n: seen[n].append(out))
        for n in names
    ]
    try:
        run(teacher, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [n for n, outs in seen.items() if len(outs) == 1 and isinstance(outs[0], Tensor)]
