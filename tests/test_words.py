"""Language models: weighed by the loss in full, from the gradients at every word."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lowrank
from lowrank.compression import calibrate
from lowrank.compression.calibration.gradients import of_words
from lowrank.compression.calibration.moments import WORDS_DAMPED
from lowrank.compression.fitting.words import distil_words
from lowrank.compression.gauges.quality import compare_on, speaks
from lowrank.compression.network.scan import scan
from lowrank.errors import InputError

VOCABULARY = 60


class Llama(nn.Module):
    """A block or more of grouped-query attention and a gated MLP, as in models of language."""

    def __init__(self, width: int = 16, *, blocks: int = 2, attends: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.ModuleList(_Block(width, attends) for _ in range(blocks))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class _Block(nn.Module):
    def __init__(self, width: int, attends: bool) -> None:
        super().__init__()
        self.attends, self.norms = attends, nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.q, self.o = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(width, width // 2, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        if self.attends:
            q, k, v = (f(y).unflatten(-1, (n, -1)).transpose(1, 2) for f, n in self._heads())
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.o(y.transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def _heads(self) -> list[tuple[nn.Linear, int]]:
        return [(self.q, 4), (self.k, 2), (self.v, 2)]


def _llama(width: int = 16, **how: bool | int) -> Llama:
    torch.manual_seed(0)
    net = Llama(width, **how).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        net.head.weight *= 3
    return net


def _ids(n: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (n, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("words", "kept"), [(1, 1), (2, 2), (3, 1), (9, 7)])
def test_gradients_are_of_words_between_the_first_and_the_last(words: int, kept: int) -> None:
    """Where there is one between: of two words both are kept."""
    assert of_words(torch.ones(2, words, 4)).shape == (2, kept, 4)
    assert of_words(torch.ones(words, 4)).shape == (words, 4)


@pytest.mark.parametrize(("times", "cut"), [(4.5, False), (5.5, True)])
def test_a_gradient_much_larger_than_the_others_is_cut(times: float, cut: bool) -> None:
    """On both sides of five times the mean, which counts that one, too."""
    n = 100
    gradient = torch.ones(1, n + 2, 4)
    gradient[0, 7] *= times * (n - 1) / (n - times)
    inner = gradient[:, 1:-1]
    found = of_words(gradient)
    assert torch.equal(found[0, 6], inner[0, 6]) != cut
    mean = torch.linalg.vector_norm(inner, dim=-1).mean()
    assert torch.linalg.vector_norm(found, dim=-1).max() <= 5.001 * mean
    others = [k for k in range(n) if k != 6]
    assert torch.equal(found[0, others], inner[0, others])


@pytest.mark.parametrize("words", [True, False])
def test_moments_of_gradients_are_those_of_autograd(words: bool) -> None:
    """Of every layer of a small Llama, token by token."""
    net, ids = _llama(), _ids(6, 9)

    def loss(scores: Tensor) -> Tensor:
        return F.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")

    found = calibrate(net, scan(net, ids).views, [ids], gradients=True, words=words, loss=loss)
    seen: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, x, y, name=name: seen.update({name: y}))
    total = loss(net(ids))
    for name, y in seen.items():
        (g,) = torch.autograd.grad(total, y, retain_graph=True)
        if words:
            g = g[:, 1:-1]
            lengths = g.norm(dim=-1, keepdim=True)
            g = torch.where(lengths > 5 * lengths.mean(), g * 5 * lengths.mean() / lengths, g)
        wanted = torch.einsum("bto,btp->op", g.double(), g.double()) / len(ids)
        G = found.layers[name].G
        assert G is not None
        torch.testing.assert_close(G[0], wanted, rtol=1e-4, atol=1e-5 * float(wanted.max()))


def test_gradients_of_words_are_damped_by_a_tenth() -> None:
    net, ids = _llama(blocks=1), _ids(8, 12)
    data = lowrank.measure(net, ids[:1], data=ids, methods="channel_svd").data
    assert data is not None
    moments = data.calibrated.layers["blocks.0.q"]
    weight = data.weight_of_outputs(net, "blocks.0.q")
    assert moments.G is not None
    assert weight is not None
    G = moments.G[0] / moments.felt_size
    wanted = (1 - WORDS_DAMPED) * G + WORDS_DAMPED * torch.eye(len(G), dtype=G.dtype)
    torch.testing.assert_close(weight.G[0], wanted)
    torch.testing.assert_close(weight.G[0].trace(), G.trace())


@pytest.mark.parametrize("layer", ["blocks.0.q", "blocks.0.gate", "blocks.1.down", "blocks.1.up"])
def test_the_predicted_loss_is_that_of_the_second_order(layer: str) -> None:
    """A layer's error, weighed as it is planned with, is the divergence that it makes: for a
    model in which words do not meet, where nothing is neglected but how inputs and gradients
    go together."""
    net, ids = _llama(24, attends="q" in layer), _ids(64, 24)
    curves = lowrank.measure(net, ids[:1], data=ids, methods="channel_svd")
    curve = next(c for c in curves.curves if c.layer == layer)
    assert curve.importance is not None
    candidate = min(curve.candidates, key=lambda c: c.error)
    predicted = curve.importance.weight(curves.exponent) * candidate.error
    plan = curves.dense("of others", {}).with_choice(layer, candidate.method)
    small, _ = lowrank.apply(net, plan, data=curves.data, calibration=_PARALLEL)
    found = compare_on(net, small, [ids]).kl * 24  # of an example
    assert 0.5 < predicted / found < 2


_PARALLEL = lowrank.Calibration(fit="parallel")


@pytest.mark.parametrize(("effort", "most"), [("quick", 4), ("default", 8)])
def test_language_models_are_weighed_by_gradients_in_full(effort: str, most: float) -> None:
    """Without probes, at any effort, in no more passes than was said before."""
    net, ids, told = _llama(blocks=1), _ids(256, 6), []
    said = lowrank.forecast(net, ids[:1], data=list(ids.split(32)), effort=effort)
    _, report = lowrank.compress(
        net, ids[:1], data=list(ids.split(32)), params=0.8, effort=effort,
        progress=lambda what, *_: told.append(what),
    )  # fmt: skip
    assert told[0] == str(said)
    assert not any("probing" in what for what in told)
    found = re.search(r"took ([\d.]+) forward passes", str(report))
    assert found is not None
    assert float(found[1]) <= said.passes + 0.3
    assert said.passes <= most
    curves = lowrank.measure(net, ids[:1], data=ids, effort=effort)
    assert curves.exponent == 1.0
    assert all(c.importance.loss is not None for c in curves.curves if "blocks" in c.layer)


def test_other_outputs_are_not_taken_for_words() -> None:
    """Of a width of its own, or as wide as the model, however many words that knows."""
    net, ids = _llama(), _ids(24, 12)
    body = nn.Sequential(nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16), nn.Linear(16, 8))
    assert speaks(net, ids[:1])
    assert not speaks(body, ids[:1])
    assert not speaks(nn.Linear(VOCABULARY, VOCABULARY), torch.zeros(1, 3, VOCABULARY))
    assert lowrank.measure(body, ids[:1], data=ids).exponent == 0.5
    told: list[str] = []
    lowrank.measure(body, ids[:1], data=ids, progress=lambda what, *_: told.append(what))
    assert any("probing" in what for what in told)


class Tagger(nn.Module):
    """Scores of `kinds` classes at each of the places, beside a table of as many rows."""

    def __init__(self, kinds: int, rows: int = 40) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(rows, 8), nn.Embedding(kinds, 8)
        self.head = nn.Linear(8, kinds)

    def forward(self, x: Tensor) -> Tensor:
        h = x if x.is_floating_point() else self.words(x)
        return self.head(h + self.types.weight[0])


@pytest.mark.parametrize(("kinds", "largest", "wanted"), [
    (2, 39, False), (2, 1, False), (5, 39, False), (5, 5, False), (5, 4, True), (40, 39, True),
])  # fmt: skip
def test_classes_of_places_are_no_words(kinds: int, largest: int, wanted: bool) -> None:
    ids = torch.arange(largest + 1)[None]
    assert speaks(Tagger(kinds), ids) == wanted
    assert speaks(Tagger(kinds), {"x": ids.int()}) == wanted
    assert not speaks(Tagger(kinds), torch.randn(1, 6, 8))  # queries, as of a detector


def test_a_scorer_of_the_users_is_asked_all_the_same() -> None:
    net, ids, asked = _llama(8, blocks=1), _ids(8, 12), []

    def quality(model: nn.Module) -> float:
        asked.append(model)
        with torch.no_grad():
            return -float((model(ids) - net(ids)).square().mean())

    lowrank.measure(net, ids[:1], data=ids, calibration=lowrank.Calibration(weighting=quality))
    assert len(asked) > 1


def _compressed(net: nn.Module, ids: Tensor) -> tuple[nn.Module, list[str]]:
    curves = lowrank.measure(net, ids[:1], methods="channel_svd", skip=["table", "head"])
    plan = curves.plan(params=0.7)
    return lowrank.apply(net, plan)[0], list(plan.replaced)


def test_blocks_and_norms_learn_what_the_dense_model_expects_of_words() -> None:
    """On other texts, too; the table and the head, whose words hardly come up, stay."""
    net, ids = _llama(), _ids(32, 24)
    seen, other = ids[:24].split(4), ids[24:]
    small, layers = _compressed(net, ids)
    before = {n: p.detach().clone() for n, p in small.named_parameters()}
    lost = compare_on(net, small, [other]).kl
    distil_words(small, net, seen, layers, steps=30, lr=5e-3)
    assert compare_on(net, small, [other]).kl < 0.8 * lost
    stay = {n for n, p in small.named_parameters() if torch.equal(p, before[n])}
    assert stay == {"table.weight", "head.weight"}
    assert all(p.requires_grad and p.grad is None for p in small.parameters())


def test_a_divergence_that_is_not_finite_leaves_the_model_as_it_came() -> None:
    net, ids = _llama(), _ids(8, 12)
    small, layers = _compressed(net, ids)
    before = {n: p.detach().clone() for n, p in small.named_parameters()}
    with pytest.raises(InputError, match="the divergence is"):
        distil_words(small, net, ids.split(4), layers, steps=9, lr=1e30)
    assert all(torch.equal(p, before[n]) for n, p in small.named_parameters())
