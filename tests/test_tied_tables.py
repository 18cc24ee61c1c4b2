"""What an error in a table counts that embeddings and the output head read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank

torch.set_num_threads(1)

WORDS, WIDTH, LENGTH = 60, 16, 12


class Speaker(nn.Module):
    """Scores the next word, or several.

    Args:
        head: whether the head reads the table.
        gain: what the embedding's rows are multiplied by before they are read.
        n: embeddings of the one table.
        flat: how much of the last hidden state is left: scores near zero tell words apart less.
    """

    def __init__(self, *, head: bool = True, gain: float = 1.0, n: int = 1, flat: float = 1.0):
        super().__init__()
        torch.manual_seed(0)
        self.tables = nn.ModuleList(nn.Embedding(WORDS, WIDTH) for _ in range(n))
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)
        self.back = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.scores = nn.Linear(WIDTH, WORDS, bias=False)
        for table in self.tables[1:]:
            table.weight = self.tables[0].weight
        if head:
            self.scores.weight = self.tables[0].weight
        self.gain, self.flat = gain, flat

    def forward(self, ids: Tensor) -> Tensor:
        x = self.gain * sum(table(ids.roll(k, 1)) for k, table in enumerate(self.tables))
        x = x + x.roll(1, 1) / 2
        x = x + self.back(torch.relu(self.mix(x)))
        return self.scores(self.flat * self.norm(x))


def texts(n: int = 400) -> Tensor:
    """Of words of which some come far more often."""
    often = 1 / (1 + torch.arange(WORDS).float())
    draw = torch.Generator().manual_seed(3)
    return torch.multinomial(often, n * LENGTH, True, generator=draw).reshape(n, LENGTH)


def divergence(net: nn.Module, other: nn.Module, ids: Tensor) -> float:
    """In nats an example."""
    with torch.no_grad():
        p, q = (m(ids).double().log_softmax(-1) for m in (net, other))
    return float((p.exp() * (p - q)).sum() / len(ids))


def statistics(net: nn.Module, ids: Tensor, **settings: Any) -> Any:
    curves = lowrank.measure(
        net, ids[:1], data=list(ids.split(8)),
        calibration=lowrank.Calibration(count=len(ids), **settings), methods="channel_svd",
    )  # fmt: skip
    return curves.data


@pytest.mark.parametrize(
    "kind",
    [{}, {"flat": 0.3}, {"gain": 3.0}, {"n": 2}, {"n": 2, "head": False}, {"gain": 0.1, "n": 3}],
    ids=str,
)
def test_errors_of_a_table_are_priced_by_all_that_read_it(kind: dict[str, Any]) -> None:
    """Random small changes of its rows, and ones of rare or frequent words alone."""
    net, ids = Speaker(**kind).eval(), texts()
    found = statistics(net, ids)
    metric, moments = found.metric(net, "tables.0", seen=True), found.calibrated.layers["tables.0"]
    table = net.tables[0].weight
    rng = torch.Generator().manual_seed(5)
    for some in (slice(None), slice(0, 4), slice(20, None)):
        other = Speaker(**kind).eval()
        other.load_state_dict(net.state_dict())
        change = torch.zeros(WORDS, WIDTH)
        change[some] = 0.02 * torch.randn(table[some].shape, generator=rng)
        with torch.no_grad():
            other.tables[0].weight += change
        told = 0.5 * moments.felt_size * metric.error(change.T[None])
        assert 0.5 < told / divergence(net, other, ids) < 2


@pytest.mark.parametrize("flat", [0.1, 1.0])
def test_the_head_counts(flat: float) -> None:
    """A table that only the embedding reads is worth less than one that the head reads, too."""
    ids = texts(64)
    alone, both = (
        statistics(net, ids).importance(net, "tables.0").loss
        for net in (Speaker(head=False, flat=flat).eval(), Speaker(flat=flat).eval())
    )
    assert both > alone > 0


def test_without_gradients_a_shared_table_is_fitted_to_its_weights() -> None:
    net, ids = Speaker().eval(), texts(16)
    assert statistics(net, ids, weighting="outputs").reason("tables.0") == "its table is shared"
    assert statistics(net, ids).reason("tables.0") is None


def test_the_rest_of_the_model_hears_nothing_of_it() -> None:
    net, ids = Speaker().eval(), texts(16)
    found = statistics(net, ids)
    assert set(found.calibrated.layers) == {"tables.0", "mix", "back"}
    assert not found.calibrated.never_ran
    assert "scores" not in str(found.calibrated)


def test_frequent_words_are_kept_closest() -> None:
    net, ids = Speaker().eval(), texts()
    small, report = lowrank.compress(
        net, ids[:1], params=0.8, data=list(ids.split(8)), methods="channel_svd",
        skip=["mix", "back"],
    )  # fmt: skip
    assert "tables.0" in report.plan.replaced
    made = lowrank.densify(small).tables[0].weight - net.tables[0].weight
    lost = made.square().sum(1).detach()
    assert lost[:6].mean() < lost[-30:].mean() / 2


@pytest.mark.parametrize("n", [1, 2])
def test_examples_held_out_keep_what_is_known_of_a_table(n: int) -> None:
    net, ids = Speaker(n=n).eval(), texts(64)
    found = statistics(net, ids)
    rest, held = found.parted(net)
    assert held
    for part in (rest, found):
        assert part.reason("tables.0") is None
        assert part.metric(net, "tables.0").error(net.tables[0].weight.detach().T[None]) > 0
