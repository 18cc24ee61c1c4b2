"""One table of words under several names: an encoder's, a decoder's, and the output head's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.network.scan import scan
from lowrank.compression.network.units import names_of

torch.set_num_threads(1)

WORDS, WIDTH = 120, 24
IDS = torch.randint(0, WORDS, (8, 9), generator=torch.Generator().manual_seed(1))


class Readers(nn.Module):
    """Embeddings over one table, of which the first may never run, and perhaps a head.

    Args:
        n: embeddings.
        head: whether an output head reads the table, too.
        idle: the first embedding only hands its table on.
        first: the head stands before the embeddings in the module.
    """

    def __init__(self, n: int, *, head: bool, idle: bool, first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        if head and first:
            self.scores = nn.Linear(WIDTH, WORDS, bias=False)
        self.tables = nn.ModuleList(nn.Embedding(WORDS, WIDTH) for _ in range(n))
        self.between = nn.Linear(WIDTH, WIDTH)
        if not (head and first):
            self.scores = nn.Linear(WIDTH, WORDS if head else 3, bias=not head)
        for table in self.tables[1:]:
            table.weight = self.tables[0].weight
        if head:
            self.scores.weight = self.tables[0].weight
        self.idle = idle

    def forward(self, ids: Tensor) -> Tensor:
        x = sum(table(ids) for table in self.tables[self.idle :])
        return self.scores(torch.tanh(self.between(x)))


CASES = [
    (n, head, idle)
    for n in (1, 2, 3)
    for head in (False, True)
    for idle in (False, True)
    if n - idle > 0 and n + head > 1
]


def _net(n: int, head: bool, idle: bool, **settings: Any) -> Readers:
    return Readers(n, head=head, idle=idle, **settings).eval()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize(("n", "head", "idle"), CASES)
def test_all_that_hold_one_table_go_together(
    n: int, head: bool, idle: bool, data: bool, tmp_path: Path
) -> None:
    net = _net(n, head, idle, first=data)
    names = {*(f"tables.{k}" for k in range(n)), *(["scores"] if head else [])}
    assert {frozenset(names_of(u)) for u in scan(net, IDS).units} >= {frozenset(names)}
    small, report = lowrank.compress(net, IDS, params=0.5, data=IDS if data else None)
    plan = report.plan
    assert len(plan.replaced) - ("between" in plan.replaced) - ("scores" in plan.replaced) == 1
    assert names & set(plan.replaced)
    assert names <= {name for unit in plan.units for name in unit}
    assert lowrank.Plan.from_json(plan.to_json()) == plan

    held = sum(p.numel() for p in small.parameters())  # each of them once
    assert plan.cost.params == held <= 0.5 * sum(p.numel() for p in net.parameters())
    if idle:
        assert torch.equal(small.tables[0](IDS), small.tables[-1](IDS))
    y = small(IDS)
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=_net(n, head, idle, first=data))
    assert torch.equal(again(IDS), y)
    assert torch.equal(copy.deepcopy(small)(IDS), y)
    dense = lowrank.densify(small)
    assert torch.allclose(dense(IDS), y, atol=1e-5)
    assert {id(m.weight) for m in dense.tables} == {id(dense.tables[0].weight)}
    assert (dense.scores.weight is dense.tables[0].weight) == head
    tuned = lowrank.finetune(small, teacher=net, data=[IDS], epochs=1)
    assert sum(p.numel() for p in tuned.parameters()) == held


@pytest.mark.parametrize(("n", "head", "idle"), CASES)
def test_at_full_rank_nothing_changes(n: int, head: bool, idle: bool) -> None:
    net = _net(n, head, idle)
    curves = lowrank.measure(net, IDS, methods="channel_svd", skip="between")
    plan = curves.plan(params=0.6)
    (first,) = (name for name in plan.replaced if name.startswith("tables"))
    for rank, same in ((WIDTH, True), (WIDTH - 4, False)):
        edited = plan.with_choice(first, lowrank.ChannelSVD(rank))
        small, _ = lowrank.apply(net, edited, example=IDS)
        assert torch.allclose(small(IDS), net(IDS), atol=1e-4) == same


class ByMean(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.weight.mean()


@pytest.mark.parametrize("kind", ["padding", "does more", "read", "third", "never runs"])
def test_a_table_that_someone_else_needs_stays(kind: str) -> None:
    net = _net(2, True, True)
    if kind == "padding":
        net.tables[0] = nn.Embedding(WORDS, WIDTH, padding_idx=3)
    if kind == "does more":
        net.tables[0] = ByMean(WORDS, WIDTH)
    net.tables[0].weight = net.tables[1].weight
    if kind == "third":
        net.other = nn.Module()
        net.other.matrix = net.tables[0].weight
    if kind == "read":
        net.register_forward_hook(lambda m, x, y: y + m.tables[0].weight.mean())
    if kind == "never runs":
        net.idle = 2
        net.between.register_forward_pre_hook(lambda m, x: torch.ones(8, 9, WIDTH))
    small, report = lowrank.compress(net, IDS, params=0.99, methods="channel_svd")
    for name in ("tables.0", "tables.1", "scores"):
        assert name in report.left_alone
    assert small.tables[0].weight is small.tables[1].weight is small.scores.weight


class Scaled(nn.Embedding):
    """As those of M2M100, and, with a buffer, of Gemma 3.

    Args:
        gain: what rows are multiplied by.
        how: where it is held: as a number, a tensor, a buffer; or nowhere, or only at times.
    """

    def __init__(self, gain: float, how: str) -> None:
        super().__init__(WORDS, WIDTH)
        self.how = how
        if how in ("number", "training", "by word"):
            self.embed_scale = gain
        elif how == "tensor":
            self.embed_scale = torch.tensor(gain)
        elif how == "buffer":
            self.register_buffer("embed_scale", torch.tensor(gain), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = super().forward(ids)
        if self.how == "nowhere":
            return x * 3.0
        if self.how == "training" and self.training:
            return x
        gain = torch.as_tensor(self.embed_scale).to(x)
        return x * (gain + (ids % 5 == 0).unsqueeze(-1) if self.how == "by word" else gain)


def _scaled(gain: float, how: str, *, head: bool) -> Readers:
    net = _net(2, head, True)
    for k in range(2):
        net.tables[k] = Scaled(gain, how)
    net.tables[1].weight = net.tables[0].weight
    if head:
        net.scores.weight = net.tables[0].weight
    return net.eval()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("how", ["number", "tensor", "buffer"])
@pytest.mark.parametrize("gain", [-0.5, 1.0, 24**0.5])
def test_an_embedding_that_multiplies_by_a_number_is_replaced(
    gain: float, how: str, head: bool, tmp_path: Path
) -> None:
    net = _scaled(gain, how, head=head)
    curves = lowrank.measure(net, IDS, methods="channel_svd", skip="between")
    plan = curves.plan(params=0.6)
    assert plan.layers["tables.1"].gain == pytest.approx(gain)
    assert lowrank.Plan.from_json(plan.to_json()) == plan
    whole, _ = lowrank.apply(net, plan.with_choice("tables.1", lowrank.ChannelSVD(WIDTH)))
    assert torch.allclose(whole(IDS), net(IDS), atol=1e-4)
    small, _ = lowrank.apply(net, plan, example=IDS, data=IDS if head else None)
    y = small(IDS)
    dense = lowrank.densify(small)
    assert torch.allclose(dense(IDS), y, atol=1e-5)
    assert isinstance(dense.tables[1], Scaled)
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=_scaled(gain, how, head=head))
    assert torch.equal(again(IDS), y)
    assert torch.allclose(lowrank.densify(again)(IDS), y, atol=1e-5)
    if gain != 1:  # a table in few bits would serve the embedding and not the head
        packed, report = lowrank.compress(net, IDS, bytes=0.4, low_bits=True)
        methods = {type(m).__name__ for n, m in report.plan.replaced.items() if n == "tables.1"}
        allowed = {"ChannelSVD", "AdaptiveEmbedding"}
        assert methods <= (allowed if head else {*allowed, "LowRankQuantized"})
        assert packed(IDS).shape == y.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_number_is_found_in_other_types(dtype: torch.dtype) -> None:
    net = _scaled(24**0.5, "buffer", head=True).to(dtype)
    (unit,) = (u for u in scan(net, IDS).units if len(u.layers) == 3)
    assert unit.layers[0].gain == pytest.approx(24**0.5, rel=0.01)


@pytest.mark.parametrize("how", ["nowhere", "training", "by word"])
def test_an_embedding_that_does_more_than_multiply_stays(how: str) -> None:
    net = _scaled(3.0, how, head=True)
    _, report = lowrank.compress(net, IDS, params=0.99, methods="channel_svd")
    assert "does more than its base class's forward" in report.left_alone["tables.1"]


class Places(nn.Embedding):
    """As that of BART: of its input the shape alone counts."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(torch.arange(ids.shape[1], device=ids.device).expand_as(ids))


@pytest.mark.parametrize("longest", [9, WORDS])
def test_an_embedding_of_places_that_is_given_words_stays(longest: int) -> None:
    """Of words beyond its own length, too."""
    net = _net(2, True, False)
    net.tables = nn.ModuleList([net.tables[0], Places(longest, WIDTH)])
    small, report = lowrank.compress(net, IDS, params=0.6)
    assert "does more than its base class's forward" in report.left_alone["tables.1"]
    assert small(IDS).shape == net(IDS).shape
