"""The planner's choice against brute force, and against an integer programme at full size."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from lowrank.compression import Choices
from lowrank.compression.planning import knapsack
from lowrank.compression.planning.knapsack import choose, smallest

# the promise of the planner, and what is rounding where the largest error is 1
PROMISE, ROUNDING = 1e-4, 1e-12


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


@settings(max_examples=100, deadline=None)
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
    assert error <= best * (1 + PROMISE) + ROUNDING


def _programme(layers: list[Choices], limits: np.ndarray) -> float:
    """The least error by HiGHS; inf where nothing fits."""
    starts = np.cumsum([0, *(len(c.errors) for c in layers)])
    one_each = np.zeros((len(layers), starts[-1]))
    for row, (a, b) in enumerate(pairwise(starts)):
        one_each[row, a:b] = 1
    errors = np.concatenate([c.errors for c in layers])
    costs = np.concatenate([c.costs for c in layers])
    scale = np.where(limits > 0, limits, 1.0) / 1e3  # rows are met to an absolute 1e-6
    unit = errors.max() or 1.0
    found = milp(
        errors / unit,
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint((costs / scale).T, -np.inf, limits / scale),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return np.inf if found.x is None else float(errors @ np.rint(found.x))


def _layer(rng: np.random.Generator, kind: str, budgets: int) -> Choices:
    n = int(rng.integers(1, 15))
    size = (n, budgets)
    costs, errors = rng.integers(0, 30, size).astype(float), rng.random(n)
    if kind == "whole errors":
        errors = rng.integers(0, 100, n).astype(float)
    elif kind == "no errors":
        errors = np.zeros(n)
    elif kind == "equal costs":
        costs = np.full(size, float(rng.integers(1, 4)))
    elif kind == "like layers":
        width, share = rng.integers(10, 1000), rng.random(n)
        costs = np.rint(width * share[:, None] * rng.uniform(0.7, 1.3, size))
        errors = width * (1 - share) ** 2
    elif kind == "of all sizes":
        costs = rng.random(size) * 10.0 ** rng.integers(-1, 3)
        errors = 10.0 ** rng.uniform(-8, 2, n)
    return Choices(costs, errors)


KINDS = ("plain", "whole errors", "no errors", "equal costs", "like layers", "of all sizes")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_equals_an_integer_programme(kind: str, budgets: int) -> None:
    planned = 0
    for seed in range(10):
        rng = np.random.default_rng([seed, budgets])
        layers = [_layer(rng, kind, budgets) for _ in range(rng.integers(2, 14 - 3 * budgets))]
        middle = sum(c.costs.mean(axis=0) for c in layers) * rng.uniform(0.4, 1.2)
        drawn = sum(c.costs[rng.integers(len(c.errors))] for c in layers)  # met exactly
        for limits in (smallest(layers), middle, drawn):
            picks, best = choose(layers, limits.tolist()), _programme(layers, limits)
            assert (picks is None) == (best == np.inf)
            if picks is None:
                continue
            spent = sum(c.costs[p] for c, p in zip(layers, picks, strict=True))
            assert np.all(spent <= limits * (1 + 1e-14))
            error = sum(c.errors[p] for c, p in zip(layers, picks, strict=True))
            unit = max(c.errors.max() for c in layers)
            assert error <= best * (1 + PROMISE) + ROUNDING * unit
            planned += 1
    assert planned >= 10


def test_a_search_does_not_throw_away_a_better_plan() -> None:
    layers = [
        Choices(np.array([[5.0], [12.0], [12.0]]), np.array([27.0, 30.0, 22.0])),
        Choices(np.array([[4.0], [3.0], [10.0]]), np.array([70.0, 79.0, 19.0])),
        Choices(np.array([[5.0], [10.0], [5.0]]), np.array([65.0, 3.0, 37.0])),
    ]
    assert choose(layers, [18.0]) == [0, 1, 1]  # 109; the search alone ended at 134


def test_budgets_at_the_exact_sum_of_fractions_are_met() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        costs = rng.random((9, 1, 2))
        layers = [Choices(c, np.ones(1)) for c in costs]
        assert choose(layers, costs[rng.permutation(9), 0].sum(axis=0).tolist()) == [0] * 9
        assert choose(layers, (costs[:, 0].sum(axis=0) * (1 - 1e-9)).tolist()) is None


@pytest.mark.parametrize("n", [40, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("keep", [0.8, 0.5, 0.3])
def test_is_near_an_integer_programme_at_the_size_of_a_resnet50(keep: float, n: int) -> None:
    rng = np.random.default_rng(0)
    layers = []
    for _ in range(54):
        width, share = rng.integers(64, 2048), np.append(rng.uniform(0, 1, n), 1.0)
        cost = share * width**2 * np.append(rng.uniform(0.7, 1.3, n), 1.0)
        layers.append(Choices(cost[:, None], (1 - share) ** 2 * rng.uniform(0.8, 1.2, n + 1)))
    limit = keep * np.sum([c.costs[-1] for c in layers], axis=0)
    picks = choose(layers, limit.tolist())
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budgets", [1, 2, 3])
def test_the_least_errors_are_taken_where_they_fit(
    kind: str, budgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: no programme is solved for a budget that binds nothing."""
    monkeypatch.setattr(knapsack, "linprog", None)
    rng = np.random.default_rng(budgets)
    layers = [_layer(rng, kind, budgets) for _ in range(5)]
    picks = choose(layers, sum(c.costs.max(axis=0) for c in layers).tolist())
    assert picks is not None
    for layer, p in zip(layers, picks, strict=True):
        assert layer.errors[p] == layer.errors.min()
        as_close = layer.costs[layer.errors == layer.errors[p]]
        less = np.all(as_close <= layer.costs[p], axis=1) & np.any(
            as_close < layer.costs[p], axis=1
        )
        assert not less.any()


def test_says_what_cannot_be_reached() -> None:
    layers = [Choices(np.array([[3.0, 1.0], [2.0, 5.0]]), np.array([0.0, 1.0]))] * 2
    assert choose(layers, [3.0, 100.0]) is None
    assert smallest(layers).tolist() == [4.0, 2.0]


def test_no_layers_and_no_errors() -> None:
    assert choose([], [1.0]) == []
    zero = Choices(np.array([[2.0], [1.0]]), np.zeros(2))
    assert choose([zero, zero], [2.0]) == [1, 1]
