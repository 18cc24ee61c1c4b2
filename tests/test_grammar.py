"""No crash on any network: a hundred of the grammar's walk through the library, 2,000 on demand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from grammar import DRESSES, FORMS, GIVES, NESTED, PIECES, network
from walk import CHEAP, DONE, FAULT, REFUSALS, STEPS, walk

from lowrank.compression import flatten

SEEDS = range(100)
"""Of the default suite: two cheap steps each."""

FUZZ, CHUNK = range(1000, 3000), 50
"""Of the long search: every step."""


def _check(seed: int, steps: int | None) -> None:
    net = network(seed)
    faults = [str(o) for o in walk(net, steps) if o.result == FAULT]
    assert not faults, f"{net}\n" + "\n".join(faults)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_small_network_goes_the_whole_way_or_is_refused_in_words(seed: int) -> None:
    _check(seed, 2)


@pytest.mark.fuzz
@pytest.mark.parametrize("first", FUZZ[::CHUNK])
def test_networks_without_end(first: int) -> None:
    for seed in range(first, first + CHUNK):
        _check(seed, None)


def test_a_seed_gives_one_network() -> None:
    for seed in range(5):
        one, two = network(seed), network(seed)
        assert one.features == two.features
        state, other = one.build().state_dict(), two.build().state_dict()
        assert list(state) == list(other)
        example, again = flatten(one.example()), flatten(two.example())
        assert all(torch.equal(a, b) for a, b in zip(example, again, strict=True))


@pytest.mark.fuzz
def test_every_rule_of_the_grammar_is_drawn() -> None:
    drawn = {feature for seed in range(600) for feature in network(seed).features}
    pieces = {name for table in PIECES.values() for name in table}
    assert {*pieces, *NESTED, *DRESSES} <= drawn
    assert {f"takes {name}" for name in FORMS} | {f"gives {name}" for name in GIVES} <= drawn


@pytest.mark.fuzz
def test_most_networks_are_compressed() -> None:
    """Else the walk would show little."""
    found = [o for seed in range(60) for o in walk(network(seed), 0) if o.step == "compress"]
    assert sum(o.result == DONE for o in found) >= 40


def test_a_refusal_is_right_only_where_its_reason_is_there() -> None:
    said = "InputError: 0.weight: it is lazy and has no values yet; run the model once"
    lazy = next(r for r in REFUSALS if r.name == "lazy")
    net = network(0)
    assert lazy.fits(said, replace(net, features=("map", "lazy")))
    assert not lazy.fits(said, replace(net, features=("map",)))
    assert not lazy.fits("ValueError: lazy", replace(net, features=("lazy",)))


def test_a_fault_is_an_exception_that_no_refusal_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(way: object) -> None:
        raise IndexError("tuple index out of range")

    monkeypatch.setitem(CHEAP, "densify", broken)
    monkeypatch.setitem(STEPS, "densify", broken)
    outcomes = [o for seed in range(4) for o in walk(network(seed), len(CHEAP))]
    faults = {str(o) for o in outcomes if o.result == FAULT}
    assert faults == {"densify: fault IndexError: tuple index out of range"}
