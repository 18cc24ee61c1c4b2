"""Budgets, rules, plans and bad input, on small networks."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import Curves
from lowrank.compression.methods import METHODS
from lowrank.errors import BudgetError, InputError, PlanError, RankError


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

FEW = ["channel_svd", "tucker2", "low_rank_sparse"]
"""Where the methods are not the point: on channels, on kernels, and one that stores places."""


@pytest.fixture(scope="module")
def curves() -> Curves:
    """Every method on `_net()`, measured once: plans are frozen, so tests may share them."""
    return lowrank.measure(_net(), X)


@pytest.mark.parametrize(
    "budget",
    [
        {"params": 0.5},
        {"bytes": 0.4},
        {"macs": 0.5},
        {"macs": 80_000},
        {"params": 0.7, "macs": 0.4},
    ],
)
def test_budget_is_kept_and_predicted_is_measured(budget: dict[str, float]) -> None:
    model = _net()
    before = copy.deepcopy(model.state_dict())
    small, report = lowrank.compress(model, X, methods=FEW, **budget)
    for name, limit in budget.items():
        key = {"params": "parameters"}.get(name, name)
        whole, got = report.dense.to_dict()[key], report.compressed.to_dict()[key]
        assert got <= (limit * whole if limit <= 1 else limit)
        assert got == getattr(report.plan.cost, name)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert small(X).shape == (2, 10)
    assert {r.name for r in report.layers} == {"0", "1", "3", "7", "9"}
    assert report.left_alone["1"] == "no weight matrix"


def test_tighter_budgets_cost_more_error(curves: Curves) -> None:
    errors = [curves.plan(macs=keep).error for keep in (1.0, 0.8, 0.6, 0.4, 0.2)]
    assert errors[0] == 0
    assert errors == sorted(errors)


def test_plan_takes_the_best_of_all_methods(curves: Curves) -> None:
    model = _net()
    best = curves.plan(macs=0.5).error
    for name in METHODS:
        alone = lowrank.measure(model, X, methods=[name])
        try:
            assert best <= alone.plan(macs=0.5).error * (1 + 1e-3)
        except BudgetError:
            continue  # this method alone cannot reach it


def test_never_larger_in_the_budgeted_measure(curves: Curves) -> None:
    plan = curves.plan(params=0.9)
    for row in plan.layers.values():
        assert row.cost is None or row.cost.params < row.dense.params


def test_rules_are_followed() -> None:
    curves = lowrank.measure(
        _net(), X, skip=["9"], rules=lowrank.Rules(
            overrides={"7": lowrank.ChannelSVD(5), "0": lowrank.Dense("the input layer matters")},
            round_to=4,
        ),
    )  # fmt: skip
    plan = curves.plan(macs=0.5)
    assert plan["7"] == lowrank.ChannelSVD(5)
    assert plan["0"] == lowrank.Dense("the input layer matters")
    assert plan["9"] == lowrank.Dense("skipped by the user")
    for name, method in plan.replaced.items():
        if name != "7":
            ranks = [v for v in vars(method).values() if isinstance(v, int) and v > 2]
            assert all(r % 4 == 0 for r in ranks)
    only = lowrank.measure(_net(), X, rules=lowrank.Rules(only=["3"])).plan(macs=0.6)
    assert set(only.replaced) == {"3"}
    assert only["7"] == lowrank.Dense("not among the layers chosen by the user")


def test_same_seed_same_plan_and_weights() -> None:
    a, report_a = lowrank.compress(_net(), X, macs=0.3, calibration=lowrank.Calibration(seed=3))
    b, report_b = lowrank.compress(_net(), X, macs=0.3, calibration=lowrank.Calibration(seed=3))
    assert report_a.plan == report_b.plan
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_plan_is_json_that_can_be_edited_and_applied(tmp_path: Path, curves: Curves) -> None:
    model = _net()
    plan = curves.plan(macs=0.5)
    path = tmp_path / "plan.json"
    plan.save(path)
    assert lowrank.Plan.load(path) == plan
    data = json.loads(path.read_text())
    data["layers"]["7"] = {
        **{k: data["layers"]["7"][k] for k in ("kind", "shapes")},
        "method": "channel_svd",
        "rank": 7,
    }
    path.write_text(json.dumps(data))
    edited = lowrank.Plan.load(path)
    assert list(plan.diff(edited)) == ["7"]
    small, _ = lowrank.apply(model, edited)
    assert small[7][0].out_features == 7


def test_factors_can_be_compressed_again_and_folded_back() -> None:
    model = _net().double()
    x = X.double()
    once, _ = lowrank.compress(model, x, params=0.7)
    twice, report = lowrank.compress(once, x, params=0.8)
    assert any("." in row.name for row in report.layers)
    dense = lowrank.densify(twice)
    assert repr(dense) == repr(model)
    assert (dense(x) - twice(x)).abs().max() < 1e-10


def test_data_is_used_to_compare_the_outputs() -> None:
    batches = [(torch.randn(4, 3, 8, 8), torch.zeros(4)) for _ in range(3)]
    _, report = lowrank.compress(_net(), X, macs=0.5, data=batches, methods=FEW)
    assert report.quality.n_examples == 12
    assert 0 < report.quality.relative_error < 1


def test_half_precision_stays_half() -> None:
    model = _net().to(torch.bfloat16)
    small, report = lowrank.compress(model, X.bfloat16(), bytes=0.5, methods=FEW)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert report.compressed.bytes == 2 * report.compressed.parameters
    assert torch.isfinite(small(X.bfloat16())).all()


def test_compiles(curves: Curves) -> None:
    small, _ = lowrank.apply(_net(), curves.plan(macs=0.5))
    compiled = torch.compile(small, backend="aot_eager")
    assert torch.allclose(compiled(X), small(X), atol=1e-5)


def test_import_stays_light() -> None:
    code = (
        "import sys, lowrank; heavy = {'cvxpy', 'tensorly', 'matplotlib', 'transformers'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# Bad input: one sentence with the layer's name, and nothing changed.

BAD_BUDGETS = [
    ({"macs": 0}, "macs: 0 is not above 0"),
    ({"macs": -0.5}, "macs: -0.5 is not above 0"),
    ({"macs": 1.5}, "macs: 1.5 is above 1"),
    ({"macs": "half"}, "macs: 'half' is not a number"),
    ({"macs": True}, "macs: True is not a number"),
    ({"macs": float("nan")}, "macs: nan is not above 0"),
    ({}, "budget: none was given"),
    ({"macs": 0.001}, r"budget: macs=0.001 cannot be reached; the smallest is macs=0\.\d+"),
    ({"params": 1e-9, "macs": 0.5}, "cannot be reached.*each alone"),
]


@pytest.mark.parametrize(("budget", "sentence"), BAD_BUDGETS, ids=str)
def test_bad_budgets(budget: dict[str, object], sentence: str) -> None:
    with pytest.raises(BudgetError, match=sentence):
        lowrank.compress(_net(), X, methods=FEW, **budget)


def test_the_smallest_that_is_named_can_be_reached(curves: Curves) -> None:
    with pytest.raises(BudgetError) as caught:
        curves.plan(params=1e-6)
    figure = int(str(caught.value).split("(")[1].split(" of")[0].replace(",", ""))
    assert curves.plan(params=figure).cost.params == figure


BAD_CALLS = [
    ({"only": []}, InputError, "only: it is empty"),
    ({"only": ["layer9"]}, InputError, "only: 'layer9' matches no layer"),
    ({"skip": ["nope*"]}, InputError, r"skip: 'nope\*' matches no layer"),
    ({"methods": ["svd"]}, InputError, "methods: 'svd' is unknown; choose among channel_svd"),
    ({"methods": []}, InputError, "methods"),
    ({"round_to": 0}, InputError, "round_to: 0 is not a whole number from 1 up"),
    ({"overrides": {"17": lowrank.Dense()}}, InputError, "'17' matches no layer"),
    (
        {"overrides": {"3": "cp"}},
        InputError,
        "'cp' for 3 is neither a method with its ranks nor Dense",
    ),
    ({"overrides": {"3": lowrank.ChannelSVD(0)}}, RankError, "3: rank 0 is outside 1..32"),
    ({"overrides": {"3": lowrank.ChannelSVD(900)}}, RankError, "3: rank 900 is outside 1..32"),
    ({"overrides": {"7": lowrank.CP(3)}}, RankError, "7: cp does not fit"),
    ({"overrides": {"1": lowrank.CP(3)}}, PlanError, "1: it cannot be replaced: no weight matrix"),
]


@pytest.mark.parametrize(("call", "error", "sentence"), BAD_CALLS, ids=str)
def test_bad_calls(call: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        lowrank.compress(_net(), X, macs=0.5, rules=lowrank.Rules(**{"methods": FEW, **call}))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_weights_are_named(bad: float) -> None:
    model = _net()
    with torch.no_grad():
        model[3].weight[0, 0] = bad
    with pytest.raises(InputError, match=r"3\.weight: 9 of 4608 values are NaN or Inf"):
        lowrank.compress(model, X, macs=0.5)


def test_bad_examples() -> None:
    with pytest.raises(InputError, match="holds NaN or Inf"):
        lowrank.compress(_net(), X * float("nan"), macs=0.5)
    with pytest.raises(InputError, match=r"the model refused the example.*\(2, 5, 8, 8\)"):
        lowrank.compress(_net(), torch.randn(2, 5, 8, 8), macs=0.5)
    with pytest.raises(InputError, match="is empty"):
        lowrank.compress(_net(), torch.randn(0, 3, 8, 8), macs=0.5)


def test_nothing_to_replace() -> None:
    with pytest.raises(InputError, match="none of its 1 layers can be replaced"):
        lowrank.compress(nn.Sequential(nn.EmbeddingBag(9, 4)), torch.tensor([[1, 2]]), params=0.5)
    with pytest.raises(InputError, match="holds no parameters"):
        lowrank.compress(nn.Sequential(nn.ReLU()), torch.randn(2, 5), params=0.5)


def test_a_failed_call_leaves_the_model_as_it_was() -> None:
    model = _net().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError):
        lowrank.compress(model, torch.randn(2, 5, 8, 8), macs=0.5)
    with pytest.raises(BudgetError):
        lowrank.compress(model, X, macs=1e-6, methods=FEW)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert "__getattribute__" not in vars(nn.Module)


def test_plan_for_another_model_is_refused_with_the_first_mismatch(curves: Curves) -> None:
    plan = curves.plan(macs=0.5)
    other = _net()
    other[3] = nn.Conv2d(16, 24, 3, padding=1)
    with pytest.raises(PlanError, match=r"3: the plan is for Conv2d\(weight \(32, 16, 3, 3\)"):
        lowrank.apply(other, plan)
    with pytest.raises(PlanError, match="7: the model has no such layer"):
        lowrank.apply(
            other[:5],
            plan.with_choice("3", lowrank.Dense()).__class__(
                {k: v for k, v in plan.layers.items() if k != "3"}, plan.total
            ),
        )


BAD_PLANS = [
    ("{", "it is not JSON"),
    ("[]", "it has no format 'lowrank.plan'"),
    ('{"format": "lowrank.plan", "version": 99}', "version 99 is not 1"),
    ('{"format": "lowrank.plan", "version": 1}', "it is not readable"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_PLANS)
def test_bad_plan_files(text: str, sentence: str) -> None:
    with pytest.raises(PlanError, match=sentence):
        lowrank.Plan.from_json(text)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        ({"method": "magic", "rank": 3}, "7: method 'magic' is unknown; choose among channel_svd"),
        ({"method": "channel_svd"}, "7: channel_svd does not take"),
        ({"method": "channel_svd", "rang": 3}, "7: rang is not a setting of channel_svd"),
        ({"method": "channel_svd", "rank": 3, "dense": "x"}, "7: it has dense and method"),
        ({}, "7: it has none of them"),
    ],
)
def test_bad_plan_rows(edit: dict[str, object], sentence: str, curves: Curves) -> None:
    data = curves.plan(macs=0.5).to_dict()
    data["layers"]["7"] = {"kind": "Linear", "shapes": data["layers"]["7"]["shapes"], **edit}
    with pytest.raises(PlanError, match=sentence):
        lowrank.Plan.from_dict(data)


def test_hand_edited_ranks_are_checked_before_anything_is_built(curves: Curves) -> None:
    model = _net()
    plan = curves.plan(macs=0.5)
    with pytest.raises(RankError, match=r"7: rank 900 is outside 1\.\.64 for weight \(64, 128\)"):
        lowrank.apply(model, plan.with_choice("7", lowrank.ChannelSVD(900)))
    with pytest.raises(RankError, match="7: rank '3' is outside"):
        lowrank.apply(model, plan.with_choice("7", lowrank.ChannelSVD("3")))
    with pytest.raises(PlanError, match="12: the plan has no such layer"):
        plan.with_choice("12", lowrank.Dense())


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 32)
        self.b.weight = self.a.weight
        self.free = nn.Linear(32, 32)
        self.alias = self.free

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.alias(self.free(self.b(self.a(x))))


def test_shared_weights_stay_shared_and_aliases_go_together() -> None:
    model, x = Shared().eval(), torch.randn(2, 32)
    small, report = lowrank.compress(model, x, params=0.8)
    assert "shares its weight with b" in report.left_alone["a"]
    assert small.a.weight is small.b.weight
    assert small.alias is small.free
    assert isinstance(small.free, nn.Sequential)
    plan = report.plan.with_choice("a", lowrank.ChannelSVD(4))
    with pytest.raises(PlanError, match="a: it shares its weight with b"):
        lowrank.apply(model, plan)


LEFT_DENSE = {
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), "parametrized"),
    "old weight norm": (lambda: nn.utils.spectral_norm(nn.Linear(8, 8)), "recomputed"),
    "pruned": (lambda: _pruned(), "recomputed"),
    "bag": (lambda: nn.EmbeddingBag(9, 8), "not a layer with one weight matrix"),
    "max norm": (lambda: nn.Embedding(9, 8, max_norm=1.0), "max_norm"),
    "own forward": (lambda: _Scaled(8, 8), "more than its base class"),
    "complex": (lambda: nn.Linear(8, 8, dtype=torch.complex64), "not a real floating type"),
}


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(nn.Linear(8, 8), "weight", 0.5)


class _Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", LEFT_DENSE)
def test_layers_that_cannot_be_replaced_stay_dense_with_the_reason(name: str) -> None:
    from lowrank.compression import scan

    build, reason = LEFT_DENSE[name]
    model = nn.Sequential(build()).eval()
    x = torch.randn(4, 8)
    if name == "max norm":
        x = torch.randint(0, 9, (4,))
    if name == "bag":
        x = torch.randint(0, 9, (4, 2))
    if name == "complex":
        x = torch.randn(4, 8, dtype=torch.complex64)
    found = scan(model, x)
    assert not found.views
    assert any(reason in r for r in found.reasons.values())


def test_layer_read_directly_stays_dense() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.run, self.idle = (nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.run(x) @ self.read.weight

    _, report = lowrank.compress(Direct().eval(), torch.randn(2, 16), params=0.9)
    assert "reads its weight directly" in report.left_alone["read"]
    assert report.left_alone["idle"] == "the example never runs it"
    assert set(report.plan.replaced) == {"run"}


def test_a_subclass_that_adds_nothing_is_replaced() -> None:
    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + 0)

    _, report = lowrank.compress(nn.Sequential(Named(32, 32)), torch.randn(2, 32), params=0.5)
    assert set(report.plan.replaced) == {"0"}


def test_a_refused_example_is_the_only_complaint() -> None:
    """No warning from the hooks that watched the run (warnings are errors here)."""
    with pytest.raises(InputError, match="refused the example"):
        lowrank.measure(_net(), torch.randn(2, 3))


def test_a_subclass_that_drops_out_in_training_stays_dense() -> None:
    class Dropping(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    model, state = nn.Sequential(Dropping(32, 32), nn.Linear(32, 32)).eval(), torch.get_rng_state()
    _, report = lowrank.compress(model, torch.ones(2, 32), params=0.9)
    assert "more than its base class" in report.left_alone["0"]
    assert torch.equal(torch.get_rng_state(), state)
    assert not model[0].training


def test_what_is_no_plan_and_no_teacher_is_said(curves: Curves) -> None:
    with pytest.raises(PlanError, match=r"'plan.json' is no plan; read a file with"):
        lowrank.apply(_net(), "plan.json")
    with pytest.raises(InputError, match="teacher: None is no model"):
        lowrank.finetune(_net(), teacher=None, data=(X, torch.zeros(2).long()))
    data = curves.plan(macs=0.5).to_dict()
    del data["layers"]["7"]["kind"]
    with pytest.raises(PlanError, match="7: its row has no 'kind'"):
        lowrank.Plan.from_dict(data)
