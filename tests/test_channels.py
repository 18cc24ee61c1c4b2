"""Channels of the zoo's and the grammar's networks: all accounted for, none missed once dropped."""

import pytest
from account import Account, account
from grammar import network

from lowrank.errors import LowRankError
from tests.zoo import SMALL

QUICK = ("audio", "unet")
SEEDS, FUZZ, CHUNK = range(12), range(1000, 2000), 50


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SMALL]
)
def test_the_zoo(name):
    net = SMALL[name]
    found = account(net.build().eval(), net.example())
    assert not found.faults
    assert found.units


def of_seed(seed: int) -> Account:
    net = network(seed)
    try:
        return account(net.build(), net.example())
    except LowRankError:  # the network is refused, with or without channels
        return Account()


@pytest.mark.parametrize("seed", SEEDS)
def test_networks_of_the_grammar(seed):
    assert not of_seed(seed).faults


@pytest.mark.fuzz
@pytest.mark.parametrize("first", FUZZ[::CHUNK])
def test_networks_without_end(first):
    faults = {seed: of_seed(seed).faults for seed in range(first, first + CHUNK)}
    assert not {seed: some for seed, some in faults.items() if some}
