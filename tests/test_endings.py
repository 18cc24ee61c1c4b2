"""A budget that stays unspent because a method's curve ends is not left over in silence."""

import json

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression.methods import ChannelSVD
from lowrank.errors import PlanError

torch.set_num_threads(1)


def _net() -> nn.Module:
    torch.manual_seed(0)
    first = nn.Conv2d(16, 32, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(32, 8, 3), nn.Flatten(), nn.Linear(32, 4))


X = torch.zeros(1, 16, 4, 4)


@pytest.mark.parametrize("method", ["legonet", "monochromatic"])
@pytest.mark.parametrize("measure", ["params", "macs"])
def test_a_curve_that_ends_early_is_named(method: str, measure: str) -> None:
    plan = lowrank.measure(_net(), X, methods=method, only="0").plan(**{measure: 0.97})
    kept = getattr(plan.cost, measure) / getattr(plan.total, measure)
    left = round(100 * (1 - kept / 0.97))
    (note,) = plan.notes
    assert f"nothing closer to dense is offered for 0 ({method} " in note
    assert f"{left} % of {measure}=0.97 stays unspent" in note
    assert left > 2


@pytest.mark.parametrize("budget", [0.97, 0.9, 0.8, 0.6, 0.4])
@pytest.mark.parametrize("measure", ["params", "macs"])
def test_all_methods_spend_their_budget_without_a_note(
    budget: float, measure: str, every_method: lowrank.Curves
) -> None:
    assert every_method.plan(**{measure: budget}).notes == ()


@pytest.fixture(scope="module")
def every_method() -> lowrank.Curves:
    return lowrank.measure(_net(), X)


def test_a_tight_budget_a_whole_rank_or_the_users_own_choice_bring_no_note() -> None:
    curves = lowrank.measure(_net(), X, methods="monochromatic", only="0")
    most = max(c.cost.params for c in curves.curves[0].candidates)
    limit = curves.total.params - curves.curves[0].dense.params + most
    spare = int(0.02 * curves.total.params)
    assert curves.plan(params=limit).notes == ()
    assert curves.plan(params=limit + spare).notes == ()
    assert curves.plan(params=limit + spare + 2).notes != ()
    assert curves.plan(params=limit + spare + 2, macs=0.9999).notes != ()

    whole = nn.Sequential(nn.Linear(16, 16, bias=False))  # rank 7 is 0.875, rank 8 as large as it
    plan = lowrank.measure(whole, torch.zeros(1, 16), methods="channel_svd").plan(params=0.99)
    assert plan.replaced
    assert plan.notes == ()
    forced = {"0": ChannelSVD(2)}
    plan = lowrank.measure(whole, torch.zeros(1, 16), overrides=forced).plan(params=0.9)
    assert plan.notes == ()


def test_one_budget_that_is_spent_explains_what_another_leaves() -> None:
    curves = lowrank.measure(_net(), X, methods="monochromatic", only="0")
    alone = curves.plan(params=0.97)
    spent = alone.cost.macs / alone.total.macs
    assert alone.notes
    assert curves.plan(params=0.97, macs=spent + 0.01).notes == ()
    both = curves.plan(params=0.97, macs=spent + 0.05).notes
    assert "of params=0.97 and" in both[0]


def _all_at_their_last(net: nn.Module) -> str:
    """The note where 3 % of the whole stay with every layer at its last candidate."""
    curves = lowrank.measure(net, X, methods="monochromatic")
    saved = sum(
        c.dense.params - max(o.cost.params for o in c.candidates)
        for c in curves.curves
        if c.candidates
    )
    (note,) = curves.plan(params=int(1.03 * curves.total.params - saved)).notes
    return note


def _block() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 1))


def test_layers_that_end_alike_are_named_as_one_and_only_some_of_many() -> None:
    torch.manual_seed(0)
    assert " 0-2.0 (monochromatic " in _all_at_their_last(nn.Sequential(*(_block() for _ in "abc")))
    flat = nn.Sequential(*(layer for _ in range(7) for layer in _block()))
    note = _all_at_their_last(flat)
    assert " 0 (monochromatic " in note
    assert " 10 (monochromatic " in note
    assert ") and 1 more, so " in note
    assert " 12 (" not in note


def test_the_note_is_kept_shown_and_dropped_with_the_choice() -> None:
    net = _net()
    plan = lowrank.measure(net, X, methods="monochromatic", only="0").plan(params=0.97)
    (note,) = plan.notes
    assert lowrank.Plan.from_json(plan.to_json()) == plan
    assert f"note: {note}" in " ".join(str(plan).split())
    report = lowrank.apply(net, plan)[1]
    assert note in report.notes
    assert note in report.to_dict()["notes"]
    assert plan.with_choice("0", ChannelSVD(2)).notes == ()
    old = {k: v for k, v in plan.to_dict().items() if k != "notes"}
    assert lowrank.Plan.from_dict(old).notes == ()
    for wrong in ("text", [1], {"a": 1}, None):
        with pytest.raises(PlanError, match="no list of texts"):
            lowrank.Plan.from_json(json.dumps(old | {"notes": wrong}))
