"""The planner's choice against brute force, and against an integer programme at full size."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from lowrank.compression import Choices
from lowrank.compression.planning.knapsack import choose, smallest

# the promise of the planner: within 0.1 % of the optimum
PROMISE = 1e-3


def _random(rng: np.random.Generator, n_layers: int, n_choices: int, budgets: int) -> list[Choices]:
    layers = []
    for _ in range(n_layers):
        n = int(rng.integers(1, n_choices + 1))
        errors = rng.random(n) * (rng.random(n) > 0.2)
        layers.append(Choices(rng.integers(0, 30, (n, budgets)).astype(float), errors))
    return layers


def _brute_force(layers: list[Choices], limits: np.ndarray) -> float:
    best = np.inf
    for picks in product(*(range(len(c.errors)) for c in layers)):
        if np.all(sum(c.costs[p] for c, p in zip(layers, picks, strict=True)) <= limits):
            best = min(best, sum(c.errors[p] for c, p in zip(layers, picks, strict=True)))
    return best


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 2))
def test_equals_brute_force(seed: int, n_layers: int, budgets: int) -> None:
    rng = np.random.default_rng(seed)
    layers = _random(rng, n_layers, 6, budgets)
    limits = sum(c.costs.mean(axis=0) for c in layers) * rng.uniform(0.3, 1.3)
    picks, best = choose(layers, limits), _brute_force(layers, limits)
    if picks is None:
        assert best == np.inf
        return
    assert np.all(sum(c.costs[p] for c, p in zip(layers, picks, strict=True)) <= limits)
    error = sum(c.errors[p] for c, p in zip(layers, picks, strict=True))
    assert error <= best * (1 + PROMISE) + 1e-12


@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
def test_is_near_an_integer_programme_at_the_size_of_a_resnet50(keep: float) -> None:
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(54):
        width, share = rng.integers(64, 2048), np.append(rng.uniform(0, 1, 200), 1.0)
        cost = share * width**2 * np.append(rng.uniform(0.7, 1.3, 200), 1.0)
        layers.append(Choices(cost[:, None], (1 - share) ** 2 * rng.uniform(0.8, 1.2, 201)))
    limit = keep * sum(c.costs[-1] for c in layers)
    picks = choose(layers, limit)
    assert picks is not None
    assert sum(c.costs[p] for c, p in zip(layers, picks, strict=True)) <= limit
    starts = np.cumsum([0, *(len(c.errors) for c in layers)])
    one_each = np.zeros((len(layers), starts[-1]))
    for row, (a, b) in enumerate(pairwise(starts)):
        one_each[row, a:b] = 1
    costs = np.concatenate([c.costs[:, 0] for c in layers]) / limit
    optimum = milp(
        np.concatenate([c.errors for c in layers]),
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs[None], 0, 1)],
        options={"mip_rel_gap": 1e-5},
    ).fun
    error = sum(c.errors[p] for c, p in zip(layers, picks, strict=True))
    assert error <= optimum * (1 + PROMISE)


def test_says_what_cannot_be_reached() -> None:
    layers = [Choices(np.array([[3.0, 1.0], [2.0, 5.0]]), np.array([0.0, 1.0]))] * 2
    assert choose(layers, [3.0, 100.0]) is None
    assert smallest(layers).tolist() == [4.0, 2.0]


def test_no_layers_and_no_errors() -> None:
    assert choose([], [1.0]) == []
    zero = Choices(np.array([[2.0], [1.0]]), np.zeros(2))
    assert choose([zero, zero], [2.0]) == [1, 1]
