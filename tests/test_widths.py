"""Neurons of a decoder's blocks that go, in the same knapsack as factors."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import compare_outputs
from lowrank.compression.calibration import moments
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.fitting.blocks import find_blocks
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import scan
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.planning.curves import FEWER
from lowrank.compression.planning.selection import readers
from lowrank.compression.planning.selection.readers import Reader
from lowrank.compression.planning.selection.widths import Widths, fewer, find_widths, widths_of
from lowrank.decompositions import metric
from lowrank.decompositions.metric import Metric

transformers = pytest.importorskip("transformers")

X = torch.randint(96, (8, 24), generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS = {
    "Llama": SMALL,
    "Qwen3": {**SMALL, "head_dim": 8},
    "Gemma": {**SMALL, "head_dim": 8},
    "Mistral": {**SMALL, "sliding_window": 8},
    "GPT2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "Qwen2Moe": {
        **SMALL, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 48,
        "num_experts": 4, "num_experts_per_tok": 2,
    },
    "GPTNeoX": {
        "vocab_size": 96, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 32,
    },
}  # fmt: skip


def model(kind: str = "Llama", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    special = {"bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**{**KINDS[kind], **special, **changes})
    made: nn.Module = getattr(transformers, name)(config).eval()
    return made


def units(net: nn.Module, **rules: Any) -> tuple[Widths, ...]:
    return lowrank.measure(net, X[:1], data=X, **rules).widths


# --- which units there are ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "Qwen2Moe"])
def test_every_block_has_one_unit(kind: str) -> None:
    net = model(kind)
    found = units(net)
    makers = {"GPT2": ["c_fc"], "GPTNeoX": ["dense_h_to_4h"]}.get(kind, ["gate_proj", "up_proj"])
    assert [[n.rpartition(".")[2] for n in w.makers] for w in found] == [makers] * 2
    for unit in found:
        sizes = [o.cost.params for o in unit.options]
        errors = [o.error for o in unit.options]
        assert sizes == sorted(sizes, reverse=True)
        assert errors == sorted(errors)
        assert all(0 < e < 1 for e in errors)


@pytest.mark.parametrize(
    "rules",
    [{"methods": "channel_svd"}, {"skip": "*down_proj"}, {"skip": "*gate_proj"}, {"skip": "*mlp*"}],
)
def test_rules_keep_units_whole(rules: dict[str, Any]) -> None:
    assert units(model(), **rules) == ()


def test_networks_that_score_no_words_keep_theirs() -> None:
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    assert lowrank.measure(net, torch.randn(1, 16), data=torch.randn(64, 16)).widths == ()


def test_neurons_that_something_else_reads_stay() -> None:
    class Seen(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.mlp.act_fn(self.mlp.gate_proj(x)) * self.mlp.up_proj(x)
            out: Tensor = self.mlp.down_proj(hidden)
            return out + hidden.amax(-1, keepdim=True)

    net = model()
    net.model.layers[0].mlp = Seen(net.model.layers[0].mlp)
    assert [w.reader for w in units(net)] == ["model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    ("width", "even"), [(80, 1), (255, 1), (256, 16), (264, 16)], ids=["80", "255", "256", "264"]
)
def test_wide_units_are_offered_in_tiles(width: int, even: int) -> None:
    net = model(intermediate_size=width, num_hidden_layers=1)
    (unit,) = units(net)
    kept = [len(o.narrowed[unit.reader].inputs.places) for o in unit.options]
    assert all(n % even == 0 and width / 5 < n < width for n in kept)
    assert even == 1 or len(kept) >= 10


# --- what they lose -----------------------------------------------------------------------


def reader(n: int, weighed: bool, wide: bool = False) -> Reader:
    generator = torch.Generator().manual_seed(n)
    rows = torch.randn(200, n, generator=generator, dtype=torch.float64)
    rows[:, 1:] += 0.7 * rows[:, :-1]
    linear = nn.Linear(n, 5, bias=False, dtype=torch.float64)
    nn.init.normal_(linear.weight, generator=generator)
    felt = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    metric = Metric(rows.T @ rows / 200 @ torch.eye(n, dtype=torch.float64)[None])
    if wide:  # as of more inputs than have their moment written out
        few = rows[: n // 2] / (n // 2) ** 0.5
        metric = Metric(torch.rand(1, n, generator=generator).double() / 4 + 0.1, rows=few[None])
    if weighed:
        metric = replace(metric, G=(felt.T @ felt)[None])
    view = LayerView("reader", ("reader",), linear, LayerSpec("linear", n, 5), ())
    return Reader(view, torch.arange(n), metric, 1.0)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("n", [6, 8, 24])
def test_errors_are_those_of_least_squares(
    n: int, weighed: bool, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr(readers, "WIDEST", n - 1)
    one = reader(n, weighed, wide)
    assert one.wide == wide
    whole = one.metric.error(one.W)
    widths = list(range(n - 1, 0, -1))
    for width, (kept, error, left) in zip(widths, fewer(one, widths), strict=True):
        assert len(kept) == width
        stays = torch.zeros(n, dtype=torch.bool)
        stays[kept] = True
        made = one.reconstructed(stays)
        assert error == pytest.approx(one.metric.error(one.W - made) / whole, rel=1e-6)
        torch.testing.assert_close(left, made[0][:, kept])


def test_one_by_one_they_are_close_to_the_best_of_all_subsets() -> None:
    one = reader(10, True)
    found = dict(zip(range(9, 0, -1), fewer(one, list(range(9, 0, -1))), strict=True))
    for width in (8, 5, 3):
        every = []
        for kept in combinations(range(10), width):
            stays = torch.zeros(10, dtype=torch.bool)
            stays[list(kept)] = True
            every.append(one.metric.error(one.W - one.reconstructed(stays)) / one.whole)
        assert min(every) - 1e-9 <= found[width][1] <= 1.5 * min(every)


def test_neurons_that_are_copies_go_first() -> None:
    one = reader(8, True)
    one.metric.C[0, 7] = one.metric.C[0, 6]
    one.metric.C[0, :, 7] = one.metric.C[0, :, 6]
    ((kept, error, _),) = fewer(one, [7])
    assert {6, 7} - set(kept)
    assert error < 1e-3


# --- from plan to folder ------------------------------------------------------------------


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "fit"),
    [
        ("Llama", "sequential"),
        ("GPT2", "parallel"),
        pytest.param("Llama", "parallel", marks=SLOW),
        pytest.param("GPT2", "sequential", marks=SLOW),
        pytest.param("Qwen3", "sequential", marks=SLOW),
        pytest.param("GPTNeoX", "sequential", marks=SLOW),
    ],
)
def test_planned_built_saved_loaded_and_whole_again(kind: str, fit: str, tmp_path: Path) -> None:
    net = model(kind)
    before = net(X).logits
    calibration = lowrank.Calibration(fit=fit)  # type: ignore[arg-type]
    small, report = lowrank.compress(net, X[:1], data=X, params=0.75, calibration=calibration)
    assert torch.equal(net(X).logits, before)
    plan = report.plan
    assert plan.narrowed
    assert all(plan[name] == lowrank.Dense(FEWER) for name in plan.narrowed)
    held = sum(p.numel() for p in small.parameters())
    assert held <= 0.75 * sum(p.numel() for p in net.parameters())
    assert held == pytest.approx(plan.cost.params, rel=3e-3)  # a maker's bias is not counted
    after = small(X).logits
    again, _ = lowrank.apply(net, lowrank.Plan.from_json(plan.to_json()), data=X,
                             example=X[:1], calibration=calibration)  # fmt: skip
    torch.testing.assert_close(again(X).logits, after)
    lowrank.save(small, tmp_path / "small.safetensors")
    torch.testing.assert_close(
        lowrank.load(tmp_path / "small.safetensors", into=model(kind))(X).logits, after
    )
    lowrank.save_pretrained(small, tmp_path / "folder")
    loaded = lowrank.load_pretrained(tmp_path / "folder")
    torch.testing.assert_close(loaded(X).logits, after)
    assert loaded.generate(X[:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)
    wide = lowrank.densify(small)
    assert {n: p.shape for n, p in wide.named_parameters()} == {
        n: p.shape for n, p in net.named_parameters()
    }
    torch.testing.assert_close(wide(X).logits, after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "share"), [("Llama", 1.005), ("GPT2", 0.9)])
def test_readers_fitted_in_turn_lose_less(kind: str, share: float) -> None:
    """On words that no fit has seen, where the first has no bias for what a mean lost."""
    net = model(kind)
    others = torch.randint(96, (32, 24), generator=torch.Generator().manual_seed(77))
    curves = lowrank.measure(net, X[:1], data=X)
    plan = curves.plan(params=0.7)
    lost = {}
    for fit in ("parallel", "sequential"):
        how = lowrank.Calibration(fit=fit)  # type: ignore[arg-type]
        small, _ = lowrank.apply(net, plan, data=curves.data, calibration=how)
        lost[fit] = compare_outputs(net, small, None, others).kl
    assert lost["sequential"] < share * lost["parallel"]


@pytest.mark.parametrize(
    "budget",
    [
        {"params": 0.8, "macs": 0.7},
        {"memory": 0.9},
        pytest.param({"macs": 0.7}, marks=SLOW),
        pytest.param({"bytes": 0.7}, marks=SLOW),
        pytest.param({"params": 0.5}, marks=SLOW),
    ],
)
def test_every_budget_is_met(budget: dict[str, float]) -> None:
    net = model()
    _, report = lowrank.compress(net, X[:1], data=X, **budget)  # type: ignore[arg-type]
    for name, value in budget.items():
        check = report.memory
        kept = report.kept(name) if check is None else check.measured / check.dense
        assert kept is not None
        assert kept <= value + 1e-9


def test_beside_int8() -> None:
    pytest.importorskip("torchao")
    _, report = lowrank.compress(model(), X[:1], data=X, bytes=0.3, int8=True)
    assert report.kept("bytes") <= 0.3


def test_a_budget_that_is_no_bound_keeps_all_neurons() -> None:
    curves = lowrank.measure(model(), X[:1], data=X)
    assert curves.plan(params=1.0).narrowed == {}


def test_they_lose_less_than_factors_alone() -> None:
    net = model()
    both, alone = (
        lowrank.measure(net, X[:1], data=X, **rules)
        for rules in ({}, {"methods": ["channel_svd", "shared_input_svd"]})
    )
    assert both.predicted(both.plan(params=0.8)) < alone.predicted(alone.plan(params=0.8))


def test_inputs_by_name_with_a_mask() -> None:
    net = model()
    example = {"input_ids": X[:1], "attention_mask": torch.ones_like(X[:1])}
    found = scan(net, example)
    data = Statistics.of(net, found.units, [example])
    free = {v.name for v in found.views}
    assert len(find_widths(net, example, found, data, free)) == 2


# --- every way to a smaller model ---------------------------------------------------------


def _closeness(net: nn.Module) -> Any:
    expected = net(X).logits.detach().flatten()
    return lambda m: float(torch.cosine_similarity(m(X).logits.detach().flatten(), expected, dim=0))


def test_a_sweep_and_a_drop() -> None:
    net = model()
    found = lowrank.sweep(net, X[:1], keeps=[0.8, 0.6], budget="params", data=X)
    assert all(point.plan.narrowed for point in found.points)
    losses = [p.quality.kl for p in found.points if p.quality is not None and p.quality.kl]
    assert losses == sorted(losses)
    metric = _closeness(net)
    # halves of it are tried first, in which neurons go
    small, _ = lowrank.compress(net, X[:1], data=X, max_drop=0.1, metric=metric)
    assert metric(small) >= 0.9


@pytest.mark.parametrize("n", [2, 5, 8])
def test_passes_stay_within_what_was_said(n: int) -> None:
    net = model()
    said = lowrank.forecast(net, X[:1], data=X[:n]).passes
    _, report = lowrank.compress(net, X[:1], data=X[:n], params=0.7)
    spent = next(re.search(r"took ([\d.]+) forward", r) for r in report.remarks if "took" in r)
    assert spent is not None
    assert float(spent[1]) <= said + 0.05  # it is rounded


def test_progress_tells_of_every_stage() -> None:
    told: list[str] = []
    lowrank.compress(
        model(), X[:1], data=X, params=0.7, progress=lambda what, done, total: told.append(what)
    )
    stages = list(dict.fromkeys(what.split()[1] for what in told if what[1:2] == "/"))
    assert stages == ["calibrating", "measuring", "narrowing", "planning", "fitting", "checking"]
    assert len([what for what in told if what[1:2] != "/"]) == 1, "the forecast comes first"


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"effort": "thorough"}, {"effort": "quick"}, {"stock": True}, {"refine": 5}]
)
def test_other_efforts(how: dict[str, Any]) -> None:
    _, report = lowrank.compress(model(), X[:1], data=X, params=0.7, **how)
    assert report.plan.narrowed
    kept = report.kept("params")
    assert kept is not None
    assert kept <= 0.7


@pytest.mark.slow
def test_half_precision_and_twice() -> None:
    half = model().bfloat16()
    small, _ = lowrank.compress(half, X[:1], data=X, params=0.8)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    once, _ = lowrank.compress(model(), X[:1], data=X, params=0.8)
    again, report = lowrank.compress(once, X[:1], data=X, params=0.8)
    assert report.plan.narrowed
    expected = again(X).logits
    torch.testing.assert_close(lowrank.densify(again)(X).logits, expected, rtol=1e-4, atol=1e-5)


def test_whole_blocks_are_refined_towards_the_dense_ones() -> None:
    net = model()
    layers = [n for n, m in net.named_modules() if isinstance(m, nn.Linear) and "layers" in n]
    assert [str(b) for b in find_blocks(net, layers)] == ["model.layers.0", "model.layers.1"]
    _, report = lowrank.compress(net, X[:1], data=X, params=0.6, refine=20)
    said = next(r for r in report.remarks if "refine" in r)
    assert "then trained end to end" in said


def test_experts_beside_a_unit_that_goes_narrower() -> None:
    net = model("Qwen2Moe")
    small, report = lowrank.compress(net, X[:1], data=X, params=0.6)
    assert {n.split(".")[4] for n in report.plan.narrowed} == {"shared_expert"}
    assert any(".experts." in n for n in report.plan.replaced)
    torch.testing.assert_close(lowrank.densify(small)(X).logits, small(X).logits)


@pytest.mark.parametrize("n", [64, 255, 256, 300, 1536])
@pytest.mark.parametrize("round_to", [1, 8, 24])
def test_widths_are_multiples(n: int, round_to: int) -> None:
    """Of sixteen in large units, too."""
    widths = widths_of(n, round_to)
    assert widths == sorted(set(widths), reverse=True)
    assert all(0 < w < n and w % round_to == 0 and (n < 256 or w % 16 == 0) for w in widths)
    assert widths


@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX"])
def test_more_neurons_than_have_their_moment_written_out(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every language model beyond a billion parameters has."""
    net = model(kind, intermediate_size=600)
    written = {w.reader: [o.error for o in w.options] for w in units(net)}
    for module in (readers, moments, metric):
        for name in ("WIDEST", "_FORMED"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, 599)
    held = {w.reader: [o.error for o in w.options] for w in units(net)}
    assert held.keys() == written.keys()
    for name, errors in written.items():
        assert held[name] == pytest.approx(errors, rel=0.05)
    small, report = lowrank.compress(net, X[:1], data=X, params=0.5)
    assert report.plan.narrowed
    assert compare_outputs(net, small, X[:1], X).kl < 0.1
