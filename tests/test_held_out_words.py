"""Tables of words are weighed by texts whose words calibration had not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.words.held_out_words import weighed_tables

torch.set_num_threads(1)

WORDS, WIDTH, LENGTH = 200, 16, 16


class Speaker(nn.Module):
    """Scores the next word.

    Args:
        tied: the head reads the embedding's table.
    """

    def __init__(self, tied: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(WORDS, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.scores = nn.Linear(WIDTH, WORDS, bias=False)
        if tied:
            self.scores.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.scores(x + torch.tanh(self.mix(x + x.roll(1, 1))))


def texts(n: int, own: bool) -> Tensor:
    """With half of each in words that no other has, or of a few words alone."""
    draw = torch.Generator().manual_seed(1)
    common = torch.randint(0, 8, (n, LENGTH), generator=draw)
    if own:
        rare = 10 + 5 * torch.arange(n)[:, None] + torch.randint(0, 5, (n, LENGTH), generator=draw)
        return torch.where(torch.arange(LENGTH) % 2 == 0, common, rare % WORDS)
    return common


def measured(net: nn.Module, ids: Tensor) -> Curves:
    return lowrank.measure(net, ids[:1], data=ids, methods="channel_svd", skip=["mix"])


def loss_of(curves: Curves) -> float:
    return next(c for c in curves.curves if c.layer == "table").importance.loss


def unweighed(curves: Curves, net: nn.Module) -> Curves:
    """As by gradients alone."""
    own = {n: curves.data.importance(net, n) for n in curves.data.views if n == "table"}
    return replace(
        curves,
        curves=tuple(replace(c, importance=own.get(c.layer, c.importance)) for c in curves.curves),
    )


@pytest.mark.parametrize(("gain", "raised"), [(1, False), (3, True)])
@pytest.mark.parametrize("own", [False, True])
def test_what_costs_more_than_was_told_weighs_more(gain: int, raised: bool, own: bool) -> None:
    """Large scores lose more than to second order; small ones lose less, and keep their weight."""
    net = Speaker(tied=True).eval()
    with torch.no_grad():
        net.table.weight *= gain
    state = {n: t.clone() for n, t in net.state_dict().items()}
    plain = unweighed(measured(net, texts(24, own)), net)
    ratio = loss_of(weighed_tables(net, plain)) / loss_of(plain)
    assert ratio > 2 if raised else ratio == 1
    assert all(torch.equal(t, state[n]) for n, t in net.state_dict().items())


@pytest.mark.parametrize(("n", "weighed"), [(7, False), (8, True)])
def test_few_examples_are_not_parted(n: int, weighed: bool) -> None:
    net = Speaker(tied=False).eval()
    plain = unweighed(measured(net, texts(n, own=True)), net)
    assert (weighed_tables(net, plain) is not plain) == weighed


def test_what_scores_no_words_is_left() -> None:
    class Reader(Speaker):
        def forward(self, ids: Tensor) -> Tensor:
            return super().forward(ids)[..., :3].mean(1)

    net = Reader(tied=False).eval()
    curves = measured(net, texts(24, own=True))
    assert weighed_tables(net, curves) is curves
