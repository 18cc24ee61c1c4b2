"""Refinement without labels: block by block, then end to end, where held-out examples gain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.fitting.blocks import STEPS, Trained, find_blocks, train_blocks
from lowrank.compression.fitting.finetune import finetune
from lowrank.compression.fitting.words import distil_words
from lowrank.compression.gauges.quality import Loss, compare_on, quality_of, vocabularies
from lowrank.compression.network.batches import Batch, mixable
from lowrank.compression.network.cutting import split_batches
from lowrank.compression.network.example import Example, batch_size, first_line, run
from lowrank.compression.network.tensors import tensors
from lowrank.compression.structure.history import history
from lowrank.errors import InputError
from lowrank.progress import Progress
from lowrank.tables import by_reason

_BATCH = 32
"""Examples in a step, at most."""


_WORDS = 1024
"""Words in a step on a language model, at most, where a text is no longer."""


_FAR = 0.1
"""Relative error of the outputs from which the full rate is taken; below, in proportion."""


_ROUNDS = 5
"""Steps of training end to end, as a multiple of a block's."""


_OF_WORDS = 0.5
"""Likewise of a language model, whose few texts are soon known by heart."""


_TRIED = 4
"""A trial on a language model makes a part as many steps: its examples held out are many words."""


@dataclass(frozen=True)
class Refined:
    """What refinement came to.

    Args:
        blocks: block -> what became of it.
        lost: of a trial, how far the outputs were off on examples held out: at first, with
            refined blocks, and after training end to end; empty if there was none.
        done: how many of these steps were made in earnest, 0 to 2.
        why: why there was no trial, or no training end to end; None where nothing barred them.
    """

    blocks: dict[str, Trained]
    lost: tuple[float, ...]
    done: int
    why: str | None = None

    def __str__(self) -> str:
        return "; ".join([self._done(), *self._left(), *([self.why] if self.why else [])])

    def _done(self) -> str:
        trained = [b for b in self.blocks.values() if b.why is None]
        if self.done == 0:
            lost = "not refined: in a trial, examples held out lost by it"
            return lost if len(self.lost) > 1 else "not refined"
        if not trained:
            none = "nothing was refined"
            return (
                none if self.blocks else f"{none}: no block holds a replaced layer that runs once"
            )
        n = len(trained)
        before, after = (
            sum(part) / n for part in zip(*((b.before, b.after) for b in trained), strict=True)
        )
        said = f"refined {n} blocks, whose relative error fell from {before:.3f} to {after:.3f} "
        if not self.lost:
            return f"{said}on average, without a trial"
        end = ", then trained end to end" if self.done > 1 else ""
        lost = f"{self.lost[0]:.4g} to {self.lost[self.done]:.4g}"
        return f"{said}on average{end}; in a trial the loss on examples held out went from {lost}"

    def _left(self) -> list[str]:
        """The blocks that could not be trained, by reason."""
        left = {name: b.why for name, b in self.blocks.items() if b.why is not None}
        return [f"left as fitted: {', '.join(v)} ({why})" for why, v in by_reason(left).items()]


@dataclass(frozen=True)
class Trial:
    """What examples held out say of refinement.

    Args:
        losses: for the model as it was, with refined blocks, and after training end to end:
            how far the outputs are off on each few of the examples.
        why: why there is none of training end to end; None where there is.
    """

    losses: tuple[tuple[float, ...], ...]
    why: str | None = None

    @property
    def means(self) -> tuple[float, ...]:
        """The mean loss of each."""
        return tuple(sum(row) / len(row) for row in self.losses)

    @property
    def best(self) -> int:
        """The last step that does no harm: 0 for none.

        A loss that rises by less than a standard error does not count as harm, as a quarter
        of a few hundred examples says little; and in earnest a step gains more than in short.
        """
        means = self.means
        harmless = (k for k in range(1, len(means)) if means[k] - self._error(k) < means[0])
        return max(harmless, default=0)

    def _error(self, k: int) -> float:
        """Standard error of the rise from the model as it was."""
        rises = [b - a for a, b in zip(self.losses[0], self.losses[k], strict=True)]
        return stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else 0.0


def try_out(
    small: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Example],
    held: Sequence[Example],
    layers: Sequence[str],
    *,
    loss: Loss | None = None,
    words: bool = False,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trial:
    """Refine a model in short, in place, to see what examples held out say of each step.

    Args:
        small: the compressed model, fitted without the examples held out.
        teacher: the dense one.
        batches: inputs, from `calibration_batches`.
        held: others.
        layers: names of the replaced layers.
        loss: of an output, which is compared where outputs have other lengths.
        words: the models' outputs score words.
        steps: gradient steps for a block, and of training end to end, which parameters in
            half precision are spared.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        Unmatched: the models' outputs cannot be compared.
    """
    parts, few = _in_steps(batches, teacher, words), split_batches(held, 4, teacher)
    steps = max(1, steps // _TRIED) if words else steps
    wanted, sizes = [run(teacher, batch) for batch in few], vocabularies(teacher)

    def losses() -> tuple[float, ...]:
        pairs = zip(wanted, few, strict=True)
        return tuple(quality_of([(y, run(small, b))], sizes, loss).loss for y, b in pairs)

    found = [losses()]
    blocks = train_blocks(small, teacher, parts, layers, steps=steps, seed=seed, progress=progress)
    barred = [b.why for b in blocks.values()]
    if barred and barred[0] is not None and all(barred):
        return Trial(tuple(found), barred[0])
    found.append(losses())
    if any(p.dtype.itemsize < 4 for p in small.parameters() if p.is_floating_point()):
        return Trial(tuple(found), "half precision is not trained end to end")
    why = _distilled(
        small, teacher, parts, layers, words=words, steps=steps, seed=seed, progress=progress
    )
    return Trial(tuple(found if why else [*found, losses()]), why)


def _distilled(*args: Any, words: bool, **kwargs: Any) -> str | None:
    """Train end to end, as far as that is possible; why it was not, or None."""
    try:
        (distil_words if words else distil)(*args, **kwargs)
    except (InputError, RuntimeError) as error:  # the models run, so gradients are at fault
        return f"not trained end to end: {first_line(error)}"
    return None


def refine(
    small: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Example],
    layers: Sequence[str],
    *,
    trial: Trial | None = None,
    untried: str = "there were too few examples for a trial",
    words: bool = False,
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Refined:
    """Train, in place, towards the dense model's outputs; no labels are needed.

    Block after block first (see `train_blocks`), then the whole model on the outputs and
    what the blocks give (see `distil`, and `distil_words` for language models): as far as a
    trial gained by it.

    Args:
        small: the compressed model.
        teacher: the dense one.
        batches: inputs, from `calibration_batches`.
        layers: names of the replaced layers.
        trial: what `try_out` found; without it, blocks alone are refined.
        untried: why there is none.
        words: the models' outputs score words.
        steps: gradient steps for a block; end to end five times as many follow, of a language
            model half as many.
        seed: of everything random.
        progress: called as (what, done, total).

    Raises:
        InputError: steps that make no sense.
    """
    lost, stages = ((), 1) if trial is None else (trial.means, trial.best)
    why = untried if trial is None else trial.why
    if not stages:
        return Refined({}, lost, 0, why)
    parts = _in_steps(batches, teacher, words)
    blocks = train_blocks(small, teacher, parts, layers, steps=steps, seed=seed, progress=progress)
    if stages > 1:
        steps = max(1, round(steps * (_OF_WORDS if words else _ROUNDS)))
        why = _distilled(
            small, teacher, parts, layers, words=words, steps=steps, seed=seed, progress=progress
        )
    return Refined(blocks, lost, stages if why is None else 1, why)


def _in_steps(batches: Sequence[Example], teacher: nn.Module, words: bool) -> list[Example]:
    """The batches as steps take them."""
    size = _BATCH
    if words:
        length = max((t.shape[1] for b in batches for t in tensors(b) if t.ndim > 1), default=1)
        size = max(1, _WORDS // length)
    return split_batches(batches, size, teacher)


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
        lr: learning rate at the start, above 0; less where the outputs are close already.
        seed: of everything random.
        progress: called as (what, done, total).
    """
    found = compare_on(teacher, small, batches)
    with _unfrozen(small):
        finetune(
            small,
            teacher=teacher,
            data=_joined(batches),
            epochs=-(-steps // len(batches)),
            lr=lr * min(1.0, max(found.relative_error, 1e-3) / _FAR),
            loss="kl" if found.scores else "mse",
            hints=_hints(teacher, layers, batches, _hosts(small)),
            hint_weight=30.0,
            mix=all(map(mixable, batches)),
            recalibrate=False,
            training=False,
            batch_size=max(map(batch_size, batches)),
            seed=seed,
            progress=_named("refining end to end", progress),
        )


@contextmanager
def _unfrozen(model: nn.Module) -> Iterator[None]:
    """A model of which nothing is to learn, frozen for its use, learns in the context."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    frozen = not any(p.requires_grad for p in parameters)
    try:
        for p in parameters if frozen else ():
            p.requires_grad_(True)
        yield
    finally:
        for p in parameters if frozen else ():
            p.requires_grad_(False)


def _named(name: str, progress: Progress | None) -> Callable[[str, int, int], None] | bool:
    return False if progress is None else lambda what, done, total: progress(name, done, total)


def _joined(batches: Sequence[Example]) -> Any:
    """One tensor, to be shuffled anew every time, where the batches are tensors of one shape;
    else batches without labels."""
    tensors = [b for b in batches if isinstance(b, Tensor)]
    same = len(tensors) == len(batches) and len({b.shape[1:] for b in tensors}) == 1
    return torch.cat(tensors) if same else [Batch(batch, None) for batch in batches]


def _hosts(model: nn.Module) -> set[str]:
    """The modules behind which factors run, so that they give another output than before."""
    return {host for applied in history(model) for host in applied.plan.hosts}


def _hints(
    teacher: nn.Module, layers: Sequence[str], batches: Sequence[Example], hosts: Collection[str]
) -> list[str]:
    """The last modules of the blocks, where they give a single tensor, once, in every batch,
    and for every example, which experts behind a router do not."""
    names = [n for b in find_blocks(teacher, layers) if (n := b.names[-1]) not in hosts]
    seen: dict[str, list[Any]] = {name: [] for name in names}
    handles = [
        teacher.get_submodule(n).register_forward_hook(lambda m, i, out, n=n: seen[n].append(out))
        for n in names
    ]
    good = dict.fromkeys(names, True)
    try:
        for batch in batches:
            run(teacher, batch)
            for n, outs in seen.items():
                good[n] &= len(outs) == 1 and _of_all(outs[0], batch_size(batch))
                outs.clear()
    finally:
        for handle in handles:
            handle.remove()
    return [n for n, single in good.items() if single]


def _of_all(output: Any, n: int) -> bool:
    """Whether an output is a tensor that holds something of each of n examples."""
    if not isinstance(output, Tensor) or not output.ndim or not output.numel():
        return False
    return len(output) % n == 0 or n in output.shape[1:2]
