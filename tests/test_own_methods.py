"""Methods by name and by class, and those that a user writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import methods
from lowrank.compression.methods import METHODS, ChannelSVD, SpatialSVD, known, register, resolve
from lowrank.errors import InputError, PlanError

torch.set_num_threads(1)
X = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Own(ChannelSVD):
    """A channel SVD by another name."""

    name: ClassVar[str] = "own"


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(methods, "_REGISTERED", {})


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))


def test_names_classes_and_single_ones_mean_the_same() -> None:
    pair = [ChannelSVD, SpatialSVD]
    assert resolve(["channel_svd", SpatialSVD]) == resolve((ChannelSVD, "spatial_svd")) == pair
    assert resolve("channel_svd") == resolve(ChannelSVD) == resolve({"channel_svd"}) == [ChannelSVD]
    assert resolve(["channel_svd", ChannelSVD]) == [ChannelSVD]
    assert resolve() == resolve(None) == list(METHODS.values())


@pytest.mark.parametrize("given", ["channel_svd", ChannelSVD, ["channel_svd"], (ChannelSVD,)])
def test_every_call_takes_them(given: object) -> None:
    plan = lowrank.measure(_net(), X, methods=given).plan(params=0.5)
    assert {type(m) for m in plan.replaced.values()} == {ChannelSVD}
    _, report = lowrank.compress(_net(), X, params=0.5, methods=given)
    assert report.plan == plan


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("svd", "methods: 'svd' is unknown; choose among channel_svd, "),
        (["channel_svd", "svd"], "'svd' is unknown"),
        ([], "there are none"),
        (3, "3 is neither a name nor a class"),
        ([None], "None is neither a name nor a class"),
        (ChannelSVD(4), "pass the class ChannelSVD"),
        ([nn.Linear], "Linear is no method: it has no candidates, check, "),
    ],
)
def test_what_is_no_method_is_refused(given: object, what: str) -> None:
    with pytest.raises(InputError) as caught:
        lowrank.measure(_net(), X, methods=given)
    assert what in str(caught.value)


def test_a_registered_method_is_known_to_plans_and_an_unregistered_one_works_meanwhile() -> None:
    small, report = lowrank.compress(_net(), X, params=0.5, methods=Own)
    assert {m.name for m in report.plan.replaced.values()} == {"own"}
    text = report.plan.to_json()
    with pytest.raises(PlanError, match=r"'own' is unknown.*lowrank\.register"):
        lowrank.Plan.from_json(text)
    assert register(Own) is Own
    assert lowrank.Plan.from_json(text) == report.plan
    assert resolve("own") == [Own]
    assert Own not in resolve()  # the default stays what it was
    again, _ = lowrank.compress(_net(), X, params=0.5, methods=["own"])
    assert torch.equal(again(X), small(X))


def test_rules_take_methods_that_are_not_registered() -> None:
    _, report = lowrank.compress(
        _net(), X, params=0.9, rules=lowrank.Rules(overrides={"0": Own(3)})
    )
    assert report.plan["0"] == Own(3)
    for wrong in (Own, "own", 3):
        with pytest.raises(InputError, match="neither a method with its ranks nor Dense"):
            lowrank.measure(_net(), X, rules=lowrank.Rules(overrides={"0": wrong}))


def test_names_do_not_clash() -> None:
    thief = dataclass(frozen=True)(type("Thief", (ChannelSVD,), {}))
    with pytest.raises(InputError, match=r"Thief has the name 'channel_svd' of lowrank\."):
        register(thief)
    with pytest.raises(InputError, match="give it another name"):
        lowrank.measure(_net(), X, methods=[thief])
    other = dataclass(frozen=True)(type("Other", (Own,), {}))
    assert resolve([other]) == [other]  # before the name is taken
    register(Own)
    with pytest.raises(InputError, match="has the name 'own'"):
        register(other)
    again = dataclass(frozen=True)(type("Own", (ChannelSVD,), {"name": "own"}))
    again.__module__, again.__qualname__ = Own.__module__, Own.__qualname__
    register(again)  # the cell of a notebook was run once more
    assert known()["own"] is again
    assert register(ChannelSVD) is ChannelSVD
    assert "channel_svd" not in methods._REGISTERED


@pytest.mark.parametrize("name", sorted({*methods._EVERY}))
def test_a_class_that_lacks_something_is_refused(name: str) -> None:
    body = {"name": "own", "__annotations__": {}}
    lacking = dataclass(frozen=True)(type("Lacking", (ChannelSVD,), body))
    assert register(lacking)
    members = {n: v for c in reversed(lacking.__mro__) for n, v in vars(c).items()}
    bare = {n: v for n, v in members.items() if not n.startswith("__") and n != name}
    with pytest.raises(InputError, match=f"is no method: it has no {name}; docs/add-a-method.md"):
        register(type("Bare", (), bare))


def test_a_class_that_would_not_read_back_is_refused() -> None:
    with pytest.raises(InputError, match="is no frozen dataclass"):
        register(type("Loose", (), {n: getattr(Own, n) for n in dir(Own) if "__" not in n}))
    with pytest.raises(InputError, match="has the name 'two words', which is no word"):
        register(dataclass(frozen=True)(type("Words", (Own,), {"name": "two words"})))

    @dataclass(frozen=True)
    class Row(Own):
        name: ClassVar[str] = "row"
        kind: str = "linear"

    with pytest.raises(InputError, match="has a field 'kind', which means something else"):
        register(Row)


def test_the_settings_of_no_method_may_be_taken_for_the_rest_of_a_row() -> None:
    plan = lowrank.measure(_net(), X, methods="channel_svd").plan(params=0.5)
    rows = json.loads(plan.to_json())["layers"].values()
    settings = {n for row in rows for n in row} - methods._PLAN_KEYS
    assert settings == {"rank", "fold"}
