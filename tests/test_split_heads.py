"""Output heads that read a table of whole and of low-rank rows."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank import AdaptiveEmbedding
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.network.words.split_table import SplitHead, SplitTableStage

torch.set_num_threads(1)

WORDS, WIDTH = 120, 24
IDS = torch.randint(0, WORDS, (8, 9), generator=torch.Generator().manual_seed(1))


class Scaled(nn.Embedding):
    """As Gemma's.

    Args:
        gain: what rows are multiplied by.
    """

    def __init__(self, gain: float) -> None:
        super().__init__(WORDS, WIDTH)
        self.embed_scale = gain

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


class Speaker(nn.Module):
    """A table, and a head that reads it.

    Args:
        gain: what the table's rows are multiplied by where they are looked up.
        bias: of the head.
        n: embeddings of the table.
    """

    def __init__(self, gain: float = 1.0, bias: bool = False, n: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        tables = [nn.Embedding(WORDS, WIDTH) if gain == 1 else Scaled(gain) for _ in range(n)]
        self.tables = nn.ModuleList(tables)
        self.between = nn.Linear(WIDTH, WIDTH)
        self.scores = nn.Linear(WIDTH, WORDS, bias=bias)
        for table in (*self.tables[1:], self.scores):
            table.weight = self.tables[0].weight

    def forward(self, ids: Tensor) -> Tensor:
        x = sum(table(ids) for table in self.tables)
        return self.scores(torch.tanh(self.between(x)))


KINDS = [(1.0, False, 1), (1.0, True, 1), (1.0, False, 2), (3.0, False, 1), (-0.5, True, 2)]


def split(net: Speaker, kept: int, rank: int, data: bool) -> nn.Module:
    plan = lowrank.measure(net, IDS, methods="channel_svd", skip="between").plan(params=0.9)
    plan = plan.with_choice("tables.0", AdaptiveEmbedding(rank, kept))
    return lowrank.apply(net, plan, data=IDS if data else None, example=IDS)[0]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("kept", [1, 30, WORDS - WIDTH - 1, WORDS - 1])
def test_at_full_rank_nothing_changes(kind: tuple[float, bool, int], kept: int) -> None:
    net = Speaker(*kind).eval()
    full = min(WIDTH, WORDS - kept)
    small = split(net, kept, full, data=True)
    assert isinstance(small.scores[0], SplitHead)
    assert torch.allclose(small(IDS), net(IDS), atol=2e-4)


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_head_and_table_stay_one(kind: tuple[float, bool, int], data: bool, tmp_path: Path) -> None:
    net = Speaker(*kind).eval()
    small = split(net, 30, 6, data)
    y = small(IDS)
    held = sum(p.numel() for p in small.parameters())
    assert held == lowrank.profile(small, IDS).parameters
    others = sum(p.numel() for p in net.parameters() if p.shape != (WORDS, WIDTH))
    assert held == 36 * WIDTH + 90 * 6 + others
    for name in ("place", "whole", "rare", "basis"):
        one, other = getattr(small.tables[0][0], name), getattr(small.scores[0], name)
        assert one is other
    dense = lowrank.densify(small)
    assert torch.allclose(dense(IDS), y, atol=1e-4)
    assert dense.scores.weight is dense.tables[0].weight
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=Speaker(*kind).eval())
    assert torch.equal(again(IDS), y)
    assert again.scores[0].whole is again.tables[0][0].whole
    assert torch.equal(copy.deepcopy(small)(IDS), y)
    half = copy.deepcopy(small).bfloat16()(IDS)
    assert torch.allclose(half.float(), y, atol=0.2 * float(y.detach().abs().max()))
    tuned = lowrank.finetune(small, teacher=net, data=[IDS], epochs=1)
    assert sum(p.numel() for p in tuned.parameters()) == held
    assert tuned.scores[0].rare is tuned.tables[0][0].rare


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_it_exports_and_is_scripted() -> None:
    small = split(Speaker(bias=True).eval(), 30, 6, data=True)
    y = small(IDS)
    assert torch.allclose(torch.export.export(small, (IDS,)).module()(IDS), y, atol=1e-5)
    head = small.scores[0]
    h = torch.randn(3, WIDTH)
    assert torch.equal(torch.jit.script(head)(h), head(h))


def test_its_macs_are_counted_by_torch_alike() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    net = Speaker().eval()
    forced = {"tables.0": AdaptiveEmbedding(6, 30)}
    small, report = lowrank.compress(net, IDS, params=0.9, overrides=forced)
    with FlopCounterMode(display=False) as counter:
        small(IDS)
    counted = lowrank.profile(small, IDS).macs
    assert counter.get_total_flops() == 2 * counted
    stage = SplitTableStage(LayerSpec("embedding", WORDS, WIDTH), 30, 6)
    head = stage.as_head(LayerSpec("linear", WIDTH, WORDS))
    assert head.n_weights == stage.n_weights == 36 * WIDTH + 90 * 6
    assert report.plan.cost.macs == counted


def test_the_default_keeps_words_of_a_shared_table_whole() -> None:
    often = 1 / (1 + torch.arange(WORDS).float()) ** 1.5
    draw = torch.Generator().manual_seed(3)
    ids = torch.multinomial(often, 64 * 9, True, generator=draw).reshape(64, 9)
    net, lost = Speaker().eval(), {}
    for stock in (False, True):
        small, report = lowrank.compress(net, ids[:1], params=0.6, data=ids, stock=stock)
        found = report.plan.replaced["tables.0"]
        assert isinstance(found, lowrank.ChannelSVD if stock else AdaptiveEmbedding)
        with torch.no_grad():
            p, q = (m(ids).log_softmax(-1) for m in (net, small))
        lost[stock] = float((p.exp() * (p - q)).sum(-1).mean())
    assert lost[False] < lost[True]


def test_folders_of_transformers_hold_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    net = transformers.LlamaForCausalLM(config).eval()
    forced = {"model.embed_tokens": AdaptiveEmbedding(6, 30)}
    small, _ = lowrank.compress(net, IDS, params=0.9, data=IDS, overrides=forced)
    assert isinstance(small.lm_head[0], SplitHead)
    lowrank.save_pretrained(small, tmp_path)
    again = lowrank.load_pretrained(tmp_path)
    assert torch.equal(again(IDS).logits, small(IDS).logits)
    assert again.lm_head[0].place is again.model.embed_tokens[0].place
    assert again.lm_head[0].rare is again.model.embed_tokens[0].rare
    settings = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(IDS, **settings), small.generate(IDS, **settings))
