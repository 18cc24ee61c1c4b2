"""Frequent words whole, the others of low rank: what is kept, what it costs, what it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lowrank
from lowrank import AdaptiveEmbedding
from lowrank.compression import LayerSpec, compose
from lowrank.compression.calibration.moments import Sums
from lowrank.compression.methods.words.adaptive_embedding import _WIDE, _offered
from lowrank.decompositions.metric import Metric

WORDS, FEATURES = 300, 16


class Texts(nn.Module):
    """Words, and what is made of their mean."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, FEATURES, **settings)
        self.head = nn.Linear(FEATURES, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.words(x)).mean(1))


def texts(n: int, seed: int) -> Tensor:
    """Of words whose frequency falls as Zipf's law has it."""
    generator = torch.Generator().manual_seed(seed)
    often = 1 / torch.arange(1, WORDS + 1)
    return torch.multinomial(often, n * 12, replacement=True, generator=generator).reshape(n, 12)


def spec(**settings: object) -> LayerSpec:
    return LayerSpec("embedding", WORDS, FEATURES, **settings)


def metric(seed: int = 0) -> Metric:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(FEATURES, 40, dtype=torch.float64, generator=generator)
    counts = 1 / torch.arange(1, WORDS + 1, dtype=torch.float64)
    return Metric(counts[None], (A @ A.T)[None])


def weight(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, FEATURES, WORDS, dtype=torch.float64, generator=generator)


def test_the_curve_is_what_is_built_where_the_same_words_are_kept() -> None:
    W, m = weight(), metric()
    reference = FEATURES // 4
    seen = 0
    for method, planned in AdaptiveEmbedding.candidates(spec(), W, round_to=1, seed=0, metric=m):
        factors = method.factor(spec(), W, seed=0, metric=m)
        error = m.error(W - compose(spec(), method.stages(spec()), factors)) / m.error(W)
        assert error <= 1.1 * planned + 1e-12
        if method.rank == reference:
            assert error == pytest.approx(planned, rel=1e-9)
            seen += 1
    assert seen >= 3


def test_kept_rows_are_exact_and_the_rest_is_the_best_of_its_rank() -> None:
    W, m, method = weight(1), metric(1), AdaptiveEmbedding(3, 40)
    factors = method.factor(spec(), W, seed=0, metric=m)
    place = factors[0][0]
    made = compose(spec(), method.stages(spec()), factors)
    whole = place < 40
    assert int(whole.sum()) == 40
    assert torch.equal(made[:, :, whole], W[:, :, whole])
    assert m.G is not None
    root = torch.linalg.cholesky(m.G[0]).T
    rest = root @ W[0][:, ~whole] * m.C[0, ~whole].sqrt()
    least = torch.linalg.svdvals(rest)[3:].square().sum()
    assert m.error(W - made) == pytest.approx(float(least), rel=1e-9)


@pytest.mark.parametrize("settings", [{}, {"padding_idx": 7}])
def test_a_network_keeps_its_words_its_padding_and_its_way_to_disk(
    settings: dict[str, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net, x = Texts(**settings).eval(), texts(32, 0)
    rules = {"words": AdaptiveEmbedding(4, 30)}
    small, report = lowrank.compress(net, x, params=0.9, overrides=rules, data=x)
    assert isinstance(report.plan["words"], AdaptiveEmbedding)
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=Texts(**settings))
    assert torch.equal(again(x), small(x))
    torch.testing.assert_close(lowrank.densify(small)(x), small(x))
    held = load_file(tmp_path / "small.safetensors")
    assert sum(t.numel() * t.element_size() for t in held.values()) == report.compressed.bytes
    if settings:
        assert not small.words(torch.tensor([7])).any()
        small(torch.full((2, 12), 7)).sum().backward()
        assert all(p.grad is None or not p.grad.any() for p in small.words.parameters())


def test_words_of_unlike_frequency_lose_less_than_by_low_rank_alone() -> None:
    torch.manual_seed(1)
    net, x, others = Texts().eval(), texts(256, 1), texts(256, 2)
    lost = []
    for methods in (["channel_svd"], ["channel_svd", "adaptive_embedding"]):
        small, report = lowrank.compress(net, x[:2], params=0.6, data=x, methods=methods)
        lost.append((small(others) - net(others)).square().mean().item())
    assert isinstance(report.plan["words"], AdaptiveEmbedding)
    assert lost[1] < 0.7 * lost[0]


@pytest.mark.parametrize(("features", "n"), [(_WIDE, 5), (_WIDE + 1, 2)])
def test_fewer_shares_are_tried_of_wide_tables(features: int, n: int) -> None:
    kept = _offered(LayerSpec("embedding", 6400, features))
    assert len(kept) == n
    assert all(1 <= k < 6400 for k in kept)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"sparse": True}, "gradients are sparse"), ({"scale_grad_by_freq": True}, "scaled by how")],
)
def test_tables_with_gradients_of_their_own_kind_are_left(
    settings: dict[str, bool], reason: str
) -> None:
    assert reason in (AdaptiveEmbedding.supports(spec(**settings)) or "")


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (AdaptiveEmbedding(1, 0), "kept 0 is outside 1..299"),
        (AdaptiveEmbedding(1, WORDS), "kept 300 is outside 1..299"),
        (AdaptiveEmbedding(0, 9), "rank 0 is outside 1..16 beside 9 whole words"),
        (AdaptiveEmbedding(9, 292), "rank 9 is outside 1..8 beside 292 whole words"),
        (AdaptiveEmbedding(8, 292), None),
    ],
)
def test_what_does_not_fit_is_said(method: AdaptiveEmbedding, wrong: str | None) -> None:
    assert method.check(spec()) == wrong


@pytest.mark.parametrize("n", [0, 50])
def test_words_that_never_came_have_the_share_of_those_that_came_once(n: int) -> None:
    sums = Sums(spec())
    sums.count(
        torch.cat([torch.arange(10), torch.arange(10, 30).repeat(3), *[torch.zeros(n)]]).long()
    )
    found = sums.moments()
    seen, expected = found.metric(seen=True).C[0], found.metric().C[0]
    mean = float(seen.mean())
    assert float(expected[30:].sum()) == pytest.approx((10 - (n > 0)) / (70 + n), rel=0.05)
    assert float((expected[:30] - seen[:30]).max()) < 0.01 * mean


def test_padding_is_no_word_of_the_text() -> None:
    texts = torch.tensor([[5, 6, 0, 0, 0], [5, 7, 8, 0, 0]])
    plain, padded = Sums(spec()), Sums(spec(padding_idx=0))
    plain.count(texts[texts > 0])
    padded.count(texts)
    assert torch.equal(plain.moments().C, padded.moments().C)
    nothing = Sums(spec(padding_idx=0))
    nothing.count(torch.zeros(2, 3, dtype=torch.int64))
    assert nothing.moments().n == 6


def test_it_is_tried_by_default() -> None:
    net, data = Texts(), texts(64, 0)
    curves = lowrank.measure(net, data[:2], data=data)
    names = {c.method.name for curve in curves.curves for c in curve.candidates}
    assert "adaptive_embedding" in names
