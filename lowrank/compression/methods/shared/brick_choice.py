"""Train which brick a filter takes: hard choices forward, straight-through gradients back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lowrank.compression.network.layers import spec_of
from lowrank.compression.network.own_stages import Select, Shared
from lowrank.compression.network.stages import canonical, weight_of

_MARGIN = 0.02
"""How far the taken brick's score is ahead of one at a right angle: some twenty steps of a
learning rate of a thousandth."""


class Codes(nn.Module):
    """A selection and the grouped 1 x 1 convolution behind it, with a score for every brick.

    Forward, each part of a filter takes the brick of highest score; backward, the scores get
    the gradient that a free code in that place would have had.

    Args:
        select: which brick of which split each part takes.
        mix: its coefficients, (out, splits, 1...).
        scores: (out, splits, n) to start from.

    Source: Bengio, Leonard, Courville 2013, section 3; Yang et al. 2019, equation 9.
    """

    def __init__(self, select: Select, mix: nn.Module, scores: Tensor) -> None:
        super().__init__()
        self.select, self.mix = select, mix
        weight = weight_of(mix)
        self.scores = nn.Parameter(scores.to(weight), requires_grad=weight.requires_grad)
        self.train(mix.training)

    def forward(self, x: Tensor) -> Tensor:
        """(b, splits * n, ...) to (b, out, ...)."""
        best = self.scores.argmax(-1, keepdim=True)
        hard = torch.zeros_like(self.scores).scatter(-1, best, 1.0)
        code = hard + self.scores - self.scores.detach()
        out, splits, _ = code.shape
        mixed = (code * weight_of(self.mix).reshape(out, splits, 1)).flatten(1)
        y = x.movedim(self.select.axis, -1) @ mixed.T
        if isinstance(self.mix.bias, Tensor):
            y = y + self.mix.bias
        return y.movedim(-1, self.select.axis)

    def settle(self) -> None:
        """Put the bricks of highest score into the selection."""
        n = self.scores.shape[-1]
        best = self.scores.detach().argmax(-1)
        offset = n * torch.arange(best.shape[1], device=best.device)
        self.select.index.copy_((best + offset).flatten())


@contextmanager
def free_choice(chain: nn.Sequential, splits: int, n_bricks: int) -> Iterator[Codes]:
    """While the context lasts, a chain of bricks, selection and mixing trains its selection.

    Args:
        chain: afterwards its modules are as before, with the bricks that were chosen last.
        splits: parts of a filter.
        n_bricks: bricks in a split.
    """
    shared, select, mix = chain
    assert isinstance(select, Select)
    codes = Codes(select, mix, _scores(shared, select, splits, n_bricks))
    chain._modules = {"0": shared, "1": codes}
    try:
        yield codes
    finally:
        codes.settle()
        chain._modules = {"0": shared, "1": select, "2": mix}


def _scores(shared: nn.Module, select: Select, splits: int, n_bricks: int) -> Tensor:
    """The taken brick ahead, the others by how much they are like it: (out, splits, n)."""
    assert isinstance(shared, Shared)
    spec = spec_of(shared.layer)
    assert spec is not None
    bricks = canonical(spec, weight_of(shared.layer).detach())[0].flatten(1).float()
    unit = bricks / bricks.norm(dim=1, keepdim=True).clamp_min(1e-30)
    taken = select.index.long().reshape(-1, splits) % n_bricks
    ahead = torch.nn.functional.one_hot(taken, n_bricks)  # of bricks that are parallel
    return _MARGIN * ((unit @ unit.T)[taken] + 0.01 * ahead)
