"""Units: an embedding and the head that reads its table, and layers that read the same input."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import SMALL, Net, _transformers, _words

import lowrank
from lowrank.compression.calibration.goals import Fitting
from lowrank.compression.methods.shared.base import Target
from lowrank.compression.methods.shared_input import SharedInputSVD
from lowrank.compression.network.example import run
from lowrank.compression.network.scan import scan
from lowrank.compression.network.tensors import flatten
from lowrank.compression.planning.knapsack import Choices, Group, choose_grouped
from lowrank.compression.structure.history import history
from lowrank.decompositions.metric import Metric
from lowrank.errors import PlanError, RankError

torch.set_num_threads(1)

WIDTH, RANK = 32, 6


class Attention(nn.Module):
    """Grouped queries: fewer keys and values than queries."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.q = nn.Linear(width, width, bias=bias)
        self.k = nn.Linear(width, width // 2, bias=bias)
        self.v = nn.Linear(width, width // 2, bias=bias)
        self.o = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))


class Block(nn.Module):
    """Llama's block; with `own_width` its attention computes with the width of its input."""

    def __init__(self, width: int, bias: bool = False) -> None:
        super().__init__()
        self.before, self.attention = nn.RMSNorm(width), Attention(width, bias)
        self.between = nn.RMSNorm(width)
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        h = self.between(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def llama(bias: bool = False, rank: int | None = RANK) -> nn.Sequential:
    """Two blocks, whose layers with a common input have a common row space if it has a rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, WIDTH), *(Block(WIDTH, bias) for _ in range(2))).eval()
    return model if rank is None else with_common_inputs(model, X[:1], rank)


def with_common_inputs(model: nn.Module, example: object, rank: int = RANK) -> nn.Module:
    rng = torch.Generator().manual_seed(1)
    for unit in scan(model, example).same_input:
        V = torch.randn(rank, unit.spec.in_channels, generator=rng)
        for view in unit.layers:
            B = torch.randn(view.spec.out_channels, rank, generator=rng)
            noise = torch.randn(view.parameter.shape, generator=rng)
            with torch.no_grad():
                view.parameter.copy_((B @ V / rank**0.5 + 0.05 * noise) / V.shape[1] ** 0.5)
    return model


X = torch.randn(48, 6, 16, generator=torch.Generator().manual_seed(2))
Q, K, V = ("1.attention.q", "1.attention.k", "1.attention.v")


def outputs(model: nn.Module, example: object) -> list[Tensor]:
    return flatten(run(model, example))


# --- which layers read the same input ---------------------------------------------------------


def test_layers_with_one_input_are_found_by_running_the_model() -> None:
    found = scan(llama(), X[:1]).same_input
    layers = [[view.name for view in unit.layers] for unit in found]
    assert layers[:2] == [[Q, K, V], ["1.gate", "1.up"]]
    assert [unit.behind for unit in found[:2]] == ["1.before", "1.between"]


BEHIND = {"llama": "input_layernorm", "vit": "layernorm_before", "bert": None, "gpt2": False}


@pytest.mark.parametrize("name", BEHIND)
def test_inputs_of_transformers(name: str) -> None:
    """BERT's attention reads what its residual sum reads too; GPT-2 has one layer for all three."""
    found = scan(SMALL[name].build(), SMALL[name].example()).same_input
    if BEHIND[name] is False:
        assert not found
        return
    assert sorted({len(unit.layers) for unit in found}) == ([2, 3] if name == "llama" else [3])
    ends = {None if u.behind is None else u.behind.rpartition(".")[2] for u in found}
    assert BEHIND[name] in ends


class Pair(nn.Module):
    """Two layers, and what is done with their input besides."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm, self.a, self.b = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        first = self.a(h)
        if self.how == "in place":
            h.add_(1.0)
        if self.how == "another":
            h = h + 0
        y = first + self.b(h)
        if self.how == "residual":
            return y + h
        if self.how == "width":
            return y / h.shape[-1] ** 0.5
        if self.how == "shape":
            return y.reshape(h.shape[0], -1)
        if self.how == "weight":
            return y * self.norm.weight
        if self.how == "twice":
            return y + self.norm(y).sum(-1, keepdim=True)
        return y


FOUND = {
    "plain": (1, "norm"),
    "shape": (1, "norm"),
    "residual": (1, None),
    "width": (1, None),
    "weight": (1, None),
    "twice": (1, None),
    "in place": (0, None),
    "another": (0, None),
}


@pytest.mark.parametrize("how", FOUND)
def test_who_else_reads_the_input(how: str) -> None:
    found = scan(Pair(how).eval(), torch.randn(3, 8)).same_input
    assert (len(found), found[0].behind if found else None) == FOUND[how]


# --- the mathematics --------------------------------------------------------------------------


def targets(data: bool) -> list[Target]:
    rng = torch.Generator().manual_seed(0)
    C = torch.randn(12, 12, generator=rng, dtype=torch.float64)
    found = []
    for o, counts in ((10, 1.0), (4, 3.0), (4, 0.2)):
        G = torch.randn(o, o, generator=rng, dtype=torch.float64)
        metric = Metric((C @ C.T)[None], (G @ G.T)[None]) if data else None
        W = torch.randn(1, o, 12, generator=rng, dtype=torch.float64)
        found.append(Target(W, metric, counts))
    return found


def lost(target: Target, made: Tensor) -> float:
    metric = target.metric or Metric(torch.ones(1, 12, dtype=torch.float64))
    return metric.error(target.weight - made) / metric.error(target.weight)


@pytest.mark.parametrize("data", [False, True])
def test_shared_factor_is_the_best_there_is(data: bool) -> None:
    """Each layer's error is that of the factors; their sum is the tail of one spectrum."""
    some = targets(data)
    C = some[0].metric.C if some[0].metric else torch.eye(12, dtype=torch.float64)[None]
    rows = [t.scale**0.5 * (t.metric.left(t.weight) if t.metric else t.weight) for t in some]
    stacked = torch.cat(rows, 1)
    tail = torch.linalg.eigvalsh(stacked @ C @ stacked.mT)[0].flip(0)
    for method, errors in SharedInputSVD.together(some, round_to=1):
        first, last = method.factor_together(some)
        made = [B @ first for B in last.split([10, 4, 4], 1)]
        assert [lost(t, W) for t, W in zip(some, made, strict=True)] == pytest.approx(errors)
        whole = sum(t.importance * e for t, e in zip(some, errors, strict=True))
        assert whole == pytest.approx(float(tail[method.rank :].sum()), rel=1e-8)
    first, last = SharedInputSVD(12).factor_together(some)
    assert torch.allclose(last @ first, torch.cat([t.weight for t in some], 1), atol=1e-9)


@pytest.mark.parametrize("first", [torch.float32, torch.float64])
def test_layers_whose_moments_are_of_two_types_share_a_factor(first: torch.dtype) -> None:
    """Of some widths sums are in float64: of q, k and v beside a much wider up, say."""
    some = targets(True)
    for k, target in enumerate(some):
        kind = first if k else torch.float64 if first == torch.float32 else torch.float32
        m = target.metric
        assert m is not None
        assert m.G is not None
        some[k] = replace(target, metric=Metric(m.C.to(kind), m.G.to(kind)))
    right = dict(SharedInputSVD.together(targets(True), round_to=1))
    for method, errors in SharedInputSVD.together(some, round_to=1):
        assert errors == pytest.approx(right[method], rel=1e-4, abs=1e-6)
        made = method.factor_together(some)
        assert {f.dtype for f in made} == {some[0].weight.dtype}


@pytest.mark.parametrize("widest", [320, 321])
def test_parallel_attention_beside_a_wide_layer(widest: int) -> None:
    torch.manual_seed(0)

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.q, self.up = nn.LayerNorm(48), nn.Linear(48, 40), nn.Linear(48, widest)
            self.out = nn.Linear(40 + widest, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.out(torch.cat([self.q(x), self.up(x)], -1).relu())

    net, x = Parallel().eval(), torch.randn(64, 48)
    small, report = lowrank.compress(net, x[:1], params=0.5, data=x, methods=["shared_input_svd"])
    assert report.plan.hosts or report.plan.units
    assert small(x).shape == (64, 8)


def _small_group(rng: np.random.Generator, n_budgets: int) -> Group:
    def some(n: int) -> Choices:
        return Choices(rng.integers(1, 30, (n, n_budgets)).astype(float), rng.uniform(0, 200, n))

    apart = tuple(some(rng.integers(2, 5)) for _ in range(rng.integers(2, 4)))
    return Group(apart, some(rng.integers(0, 4)))


def _every(group: Group) -> list[tuple[np.ndarray, float]]:
    spread = itertools.product(*[range(len(c.errors)) for c in group.apart])
    found = [
        (
            np.sum([c.costs[i] for c, i in zip(group.apart, picks, strict=True)], axis=0),
            sum(c.errors[i] for c, i in zip(group.apart, picks, strict=True)),
        )
        for picks in spread
    ]
    return found + list(zip(group.together.costs, group.together.errors, strict=True))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("seed", range(60))
def test_groups_are_chosen_apart_or_together_as_is_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_budgets = 1 + seed % 3 // 2
    groups = [_small_group(rng, n_budgets) for _ in range(rng.integers(1, 3))]
    alone = [c for _ in range(rng.integers(0, 2)) for c in _small_group(rng, n_budgets).apart]
    none = Choices(np.zeros((0, n_budgets)), np.zeros(0))
    options = [_every(g) for g in (*(Group((c,), none) for c in alone), *groups)]
    low, high = (
        np.sum([f([cost for cost, _ in o], axis=0) for o in options], axis=0)
        for f in (np.min, np.max)
    )
    limits = low + rng.uniform(0, 0.8) * (high - low)
    plans = list(itertools.product(*options))
    fit = [p for p in plans if np.all(sum(c for c, _ in p) <= limits + 1e-9)]
    found = choose_grouped(alone, groups, limits.tolist())
    if found is None:
        assert not fit
        return
    best = min(sum(e for _, e in p) for p in fit)
    cost = sum((c.costs[i] for c, i in zip(alone, found[0], strict=True)), np.zeros(n_budgets))
    error = sum(c.errors[i] for c, i in zip(alone, found[0], strict=True))
    for group, picks in zip(groups, found[1], strict=True):
        if isinstance(picks, int):
            cost, error = cost + group.together.costs[picks], error + group.together.errors[picks]
        for c, i in zip(group.apart, picks, strict=True) if isinstance(picks, tuple) else ():
            cost, error = cost + c.costs[i], error + c.errors[i]
    assert np.all(cost <= limits + 1e-9)
    assert error <= best * (1 + 1e-4) + 1e-9


# --- the whole way ----------------------------------------------------------------------------

NETS = {
    "plain": Net(llama, lambda: X[:1]),
    "with biases": Net(lambda: llama(bias=True), lambda: X[:1]),
    "llama": SMALL["llama"],
    "qwen2": Net(
        _transformers(
            "Qwen2ForCausalLM", "Qwen2Config", vocab_size=80, hidden_size=32,
            intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, use_cache=False,
        ),
        _words(8, 80),
    ),
    "bert": SMALL["bert"],
}  # fmt: skip


@pytest.mark.one_in(3)
@pytest.mark.parametrize("budget", ["params", "macs"])
@pytest.mark.parametrize("name", NETS)
def test_shared_factors_go_the_whole_way(name: str, budget: str, tmp_path: Path) -> None:
    net = NETS[name]
    example = net.example()
    model = with_common_inputs(net.build(), example)
    small, report = lowrank.compress(
        model, example, **{budget: 0.6}, methods=["channel_svd", "shared_input_svd"]
    )
    plan = report.plan
    units = [names for names, m in plan.units.items() if m.name == "shared_input_svd"]
    assert units or (name, budget) == ("bert", "macs")  # there each layer runs it anew
    assert (plan.cost.params, plan.cost.macs) == (
        report.compressed.parameters,
        report.compressed.macs,
    )
    for q, *others in units:
        first = small.get_submodule(q)
        for other in others:
            assert plan[other] == lowrank.Tied(q)
            assert plan.layers[other].error is not None
            row = small.get_submodule(other)
            assert len(row) == 1 if plan.layers[q].behind else row[0] is first[0]
    assert lowrank.Plan.from_json(plan.to_json()) == plan
    assert plan == lowrank.measure(
        model, example, methods=["channel_svd", "shared_input_svd"]
    ).plan(**{budget: 0.6})
    expected = outputs(small, example)
    lowrank.save(small, tmp_path / "small.safetensors")
    again = lowrank.load(tmp_path / "small.safetensors", into=net.build())
    assert all(map(torch.equal, outputs(again, example), expected))
    dense = lowrank.densify(small)
    assert [type(m) for m in dense.modules()] == [type(m) for m in model.modules()]
    for a, b in zip(outputs(dense, example), expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()
    lowrank.export_program(small, example)  # compares the outputs itself


@pytest.mark.parametrize(("common", "keep"), [(True, 0.5), (False, 0.6)])
def test_a_shared_factor_is_chosen_only_where_it_is_cheaper(common: bool, keep: float) -> None:
    """Weights without a common row space are replaced one by one."""
    model = llama(rank=RANK if common else None)
    if not common:
        own_spaces(model)
    methods = ["channel_svd", "shared_input_svd"]
    plan, alone = (
        lowrank.measure(model, X[:1], methods=m).plan(params=keep) for m in (methods, methods[:1])
    )
    assert any(len(names) > 1 for names in plan.units) is common
    assert plan.error < 0.8 * alone.error if common else plan.error <= 1.0001 * alone.error


def own_spaces(model: nn.Module) -> None:
    """Each layer of a low rank of its own."""
    rng = torch.Generator().manual_seed(3)
    for unit in scan(model, X[:1]).same_input:
        for view in unit.layers:
            o, d = view.parameter.shape
            left, right = (torch.randn(n, 3, generator=rng) for n in (o, d))
            with torch.no_grad():
                view.parameter.copy_(left @ right.T / d)


@pytest.mark.parametrize("fit", ["sequential", "parallel"])
def test_data_says_how_a_shared_factor_is_fitted(fit: str) -> None:
    model = llama(bias=True)
    rules = lowrank.Rules(
        overrides={Q: SharedInputSVD(4), "2.gate": SharedInputSVD(4)}, methods="channel_svd"
    )
    blind, _ = lowrank.compress(model, X[:1], params=0.9, rules=rules)
    calibration = lowrank.Calibration(fit=fit, weighting="outputs")
    small, report = lowrank.compress(
        model, X[:1], params=0.9, data=X, rules=rules, calibration=calibration
    )
    wanted = (
        "behind the compressed layers" if fit == "sequential" else "to the dense model's inputs"
    )
    rows = {row.name: row for row in report.layers}
    for name in (Q, K, V, "2.gate", "2.up"):
        assert wanted in rows[name].fitted
    for name in (Q, K, V):
        assert rows[name].measured_error == pytest.approx(rows[name].predicted_error, rel=0.1)
    off = [(run(m, X) - run(model, X)).norm().item() for m in (small, blind)]
    assert off[0] < off[1]


def test_layers_of_a_unit_are_fitted_to_inputs_from_before_it() -> None:
    """In a model whose first two of three layers stand in a module that ends before the third."""

    class Held(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])
            self.third, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            h = x.tanh()
            return self.last(self.pair(h) + self.third(h))

    class Two(nn.ModuleList):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) + self[1](x)

    torch.manual_seed(0)
    model = Held().eval()
    model.pair = Two(model._modules.pop("two"))
    x = torch.randn(64, 16)
    rules = lowrank.Rules(overrides={"pair.0": SharedInputSVD(3), "last": lowrank.ChannelSVD(16)})
    calibration = lowrank.Calibration(weighting="outputs")
    _, report = lowrank.compress(
        model, x[:1], params=1.0, data=x, rules=rules, calibration=calibration
    )
    plan = report.plan
    data = lowrank.measure(model, x[:1], data=x, calibration=calibration, rules=rules).data
    small, _ = lowrank.apply(model, plan, data=data)
    fitting = Fitting(data, model, small, "sequential", seed=0)
    goal, _ = fitting.goal("last")
    with torch.no_grad():
        W, b = small.last[1].weight @ small.last[0].weight, small.last[1].bias
        h = x.tanh()
        given = small.pair(h) + small.third(h)
        wanted = torch.linalg.lstsq(
            torch.cat([given, torch.ones(64, 1)], 1), run(model, x)
        ).solution
    assert (given @ W.T + b - run(model, x)).norm() <= 1.05 * (
        torch.cat([given, torch.ones(64, 1)], 1) @ wanted - run(model, x)
    ).norm() + 1e-3
    assert goal is not None


def test_training_takes_the_factor_behind_another_module() -> None:
    model = llama()
    rules = lowrank.Rules(overrides={Q: SharedInputSVD(4)})
    small, report = lowrank.compress(model, X[:1], params=0.95, rules=rules, methods="channel_svd")
    assert report.plan.hosts == {"1.before": (Q, K, V)}
    factor, norm = small[1].before[1].weight, small[1].before[0].weight
    before, scale = factor.detach().clone(), norm.detach().clone()
    lowrank.finetune(small, teacher=model, data=X, epochs=1, lr=1e-2, only_factors=True)
    assert not torch.equal(factor, before)
    assert torch.equal(norm, scale)
    start = (run(small, X) - run(model, X)).norm()
    fitted, report = lowrank.apply(model, report.plan, data=X, refine=20)
    assert any(note.startswith(("refined", "not refined")) for note in report.notes)
    assert (run(fitted, X) - run(model, X)).norm() < 2 * start
    assert lowrank.densify(fitted)[1].before.weight.shape == (WIDTH,)


def test_hooks_modes_and_frozen_layers_stay() -> None:
    model = llama().train()
    seen: list[torch.Size] = []
    model[1].before.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    model[1].requires_grad_(False)
    rules = lowrank.Rules(overrides={Q: SharedInputSVD(4)})
    small, _ = lowrank.compress(model, X[:1], params=0.95, rules=rules)
    seen.clear()
    small(X[:1])
    assert seen == [(1, 6, WIDTH)]
    assert small[1].before[1].training
    assert not small[1].before[1].weight.requires_grad
    assert small[1].before.normalized_shape == (WIDTH,)


# --- rules and plans by hand ------------------------------------------------------------------


def test_rules_decide_who_shares() -> None:
    model = llama()
    example = X[:1]

    def joint(**rules: object) -> list[tuple[tuple[str, ...], str | None]]:
        rules.setdefault("methods", ["channel_svd", "shared_input_svd"])
        curves = lowrank.measure(model, example, rules=lowrank.Rules(**rules))
        return [(c.layers, c.behind) for c in curves.joint if c.layers[0].startswith("1.a")]

    assert joint() == [((Q, K, V), "1.before")]
    assert joint(skip=[K]) == [((Q, V), None)]  # K reads the input as it is
    assert joint(skip=[K, V]) == []
    assert joint(methods=["channel_svd"]) == []
    assert joint(overrides={Q: lowrank.ChannelSVD(2)}) == [((K, V), None)]


def test_an_override_replaces_all_that_read_the_input() -> None:
    model = llama()
    chosen = {"*.q": SharedInputSVD(5)}
    rules = lowrank.Rules(overrides=chosen, skip=[V], methods="channel_svd")
    small, report = lowrank.compress(model, X[:1], params=0.95, rules=rules)
    assert report.plan.units[Q, K] == SharedInputSVD(5)
    assert report.plan[V] == lowrank.Dense("skipped by the user")
    assert small[1].attention.q[0] is small[1].attention.k[0]
    with pytest.raises(RankError, match=r"1.down.*does not serve it by itself"):
        lowrank.measure(model, X[:1], rules=lowrank.Rules(overrides={"1.down": SharedInputSVD(2)}))


def _plan(model: nn.Module) -> lowrank.Plan:
    rules = lowrank.Rules(overrides={Q: SharedInputSVD(4)}, methods="channel_svd")
    return lowrank.measure(model, X[:1], rules=rules).plan(params=0.95)


def test_plans_can_be_edited() -> None:
    model = llama()
    plan = _plan(model)
    ranked = plan.with_choice(Q, SharedInputSVD(7))
    assert ranked.layers[K].cost is None
    small, report = lowrank.apply(model, ranked, example=X[:1])
    assert small[1].before[1].out_features == 7
    assert report.plan.layers[V].cost is None
    loose = replace(plan, layers={**plan.layers, Q: replace(plan.layers[Q], behind=None)})
    apart, report = lowrank.apply(model, loose, example=X[:1])
    assert apart[1].attention.q[0] is apart[1].attention.v[0]
    together, _ = lowrank.apply(model, plan)
    assert torch.allclose(run(apart, X), run(together, X), atol=1e-5)


EDITS = {
    "a method that serves single layers": (
        lambda p: p.with_choice(Q, lowrank.ChannelSVD(4)), "together with"
    ),
    "the first made dense": (lambda p: p.with_choice(Q, lowrank.Dense()), "no method replaces"),
    "tied to a layer of another width": (
        lambda p: p.with_choice("1.down", lowrank.Tied(Q)), "makes no unit"
    ),
    "behind a layer": (
        lambda p: replace(p, layers={**p.layers, Q: replace(p.layers[Q], behind="1.attention.o")}),
        "can run behind",
    ),
    "behind nothing": (
        lambda p: replace(p, layers={**p.layers, Q: replace(p.layers[Q], behind="1.norm")}),
        "can run behind",
    ),
    "in int8": (
        lambda p: replace(p, layers={**p.layers, K: replace(p.layers[K], int8=True)}),
        "shares factors with",
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_edits_that_would_break_the_model_are_refused(edit: str) -> None:
    model = llama()
    change, problem = EDITS[edit]
    with pytest.raises((PlanError, RankError), match=problem):
        lowrank.apply(model, change(_plan(model)))


def test_tables_name_who_shares() -> None:
    text = str(_plan(llama()))
    assert "sharing the factors of q beside them: 1.attention.k, 1.attention.v" in text
    assert "a factor that layers share runs behind it" in text


def test_latency_and_memory_see_the_unit_whole() -> None:
    model = llama()
    curves = lowrank.measure(model, X[:1], latency=True, memory=True, methods="shared_input_svd")
    keys = {c.key for c in curves.joint}
    assert keys <= set(curves.memory.rises)
    key = f"{Q} + {K} + {V}"
    dense = sum(curves.timing.dense(n) for n in (Q, K, V))
    assert curves.timing.dense(key) == pytest.approx(dense, rel=1e-6)
    assert curves.timing.whole >= dense
    _, report = lowrank.compress(model, X[:1], memory=0.8, methods="shared_input_svd")
    assert any(len(names) > 1 for names in report.plan.units)
    assert report.memory.measured <= report.memory.limit


def test_layers_of_a_unit_with_a_tied_table_have_their_own_figures() -> None:
    net = SMALL["gpt2"]
    model, example = net.build(), net.example()
    plan = lowrank.measure(model, example, methods="channel_svd").plan(params=0.4)
    words, head = (plan.layers[n] for n in ("transformer.wte", "lm_head"))
    assert head.choice == lowrank.Tied("transformer.wte")
    assert (head.dense.params, head.cost.params) == (0, 48 * words.choice.rank)
    assert words.cost.params == (300 + 48) * words.choice.rank
    small, report = lowrank.apply(model, plan, example=example)
    assert report.compressed.parameters == plan.cost.params
    assert report.compressed.macs == plan.cost.macs
    assert set(history(small)[0].originals) >= {"transformer.wte", "lm_head"}
    old = plan.to_dict()  # as files had it before: all in the embedding's row
    row = old["layers"]["transformer.wte"]
    row["cost"] = {k: v + getattr(head.cost, k) for k, v in row["cost"].items()}
    old["layers"]["lm_head"] = {k: old["layers"]["lm_head"][k] for k in ("kind", "shapes", "tied")}
    read = lowrank.Plan.from_dict(old)
    again, report = lowrank.apply(model, read)
    assert report.plan.layers["transformer.wte"].cost is not None
    assert all(map(torch.equal, outputs(small, example), outputs(again, example)))


class _Branching(nn.Module):
    """Reads the norm's output elsewhere, on a way that an example of five steps does not take."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.norm = kind, nn.LayerNorm(24)
        self.q, self.k, self.out = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        y = self.out(self.q(h) * self.k(h))
        long = self.kind == "length" and x.shape[1] > 5
        return y + h.mean() if long or (self.kind == "training" and self.training) else y


@pytest.mark.parametrize("kind", ["nothing", "length", "training"])
def test_readers_that_the_example_does_not_show(kind: str) -> None:
    torch.manual_seed(0)
    model, x, longer = _Branching(kind).eval(), torch.randn(1, 5, 24), torch.randn(6, 8, 24)
    few = lowrank.Calibration(weighting="outputs")
    curves = lowrank.measure(
        model, x, data=longer, calibration=few, methods=["shared_input_svd", "channel_svd"]
    )
    (joint,) = curves.joint
    assert (joint.behind == "norm") == (kind == "nothing")
    assert not any(part.training for part in model.modules())
