"""A language model trained end to end on what the dense one expects of every next word."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from lowrank.compression.fitting.blocks import find_blocks
from lowrank.compression.fitting.distillation import Objective
from lowrank.compression.network.batches import Batch
from lowrank.compression.network.example import Example, evaluating
from lowrank.errors import InputError
from lowrank.progress import Progress

_WARM = 5
"""Steps over which the rate rises."""


_MOST = 1.0
"""Norm that the gradients are scaled down to."""


def distil_words(
    small: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Example],
    layers: Collection[str],
    *,
    steps: int,
    lr: float = 5e-5,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Train the blocks of a language model and its norms, in place, on the dense one's scores.

    The divergence KL(softmax(teacher) || softmax(small)), mean over all words, by Adam with a
    cosine schedule. Table and head stay as they are unless they were replaced: most of their
    words do not come up in a few texts.

    Args:
        small: the compressed model.
        teacher: the dense one.
        batches: inputs, a batch for each step.
        layers: names of the replaced layers.
        steps: gradient steps.
        lr: highest learning rate, above 0.
        seed: of the order of the batches.
        progress: called as (what, done, total).

    Raises:
        InputError: the divergence is NaN or infinite; the model is as it came.
        RuntimeError: gradients cannot be had.
    """
    objective, trained = Objective(temperature=1.0), _trained(small, teacher, layers)
    optimizer = torch.optim.Adam(trained, lr=lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: min(1, (t + 1) / _WARM) * 0.5 * (1 + math.cos(math.pi * t / steps))
    )
    generator, order = torch.Generator().manual_seed(seed), list[int]()
    with evaluating(small), _learning(small, trained), torch.enable_grad():
        for done in range(steps):
            if progress is not None:
                progress("refining end to end", done, steps)
            order = order or torch.randperm(len(batches), generator=generator).tolist()
            optimizer.zero_grad()
            batch = Batch(batches[order.pop()], None)
            loss = torch.stack([*objective.terms(small, teacher, batch).values()]).sum()
            if not bool(loss.isfinite()):
                raise InputError("refine", f"the divergence is {loss.item()}", "look at the data")
            loss.backward()
            nn.utils.clip_grad_norm_(trained, _MOST)
            optimizer.step()
            schedule.step()


def _trained(small: nn.Module, teacher: nn.Module, layers: Collection[str]) -> list[nn.Parameter]:
    """The parameters of the blocks, and the vectors elsewhere."""
    names = tuple(f"{n}." for b in find_blocks(teacher, list(layers)) for n in b.names)
    named = small.named_parameters()
    chosen = [p for n, p in named if n.startswith(names) or p.ndim < 2]
    return [p for p in chosen if p.is_floating_point()]


@contextmanager
def _learning(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Only these learn; flags come back, and if training fails the weights, too."""
    saved, ours = [p.detach().clone() for p in trained], {id(p) for p in trained}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in ours)
        yield
    except BaseException:
        with torch.no_grad():
            for p, value in zip(trained, saved, strict=True):
                p.copy_(value)
        raise
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None
