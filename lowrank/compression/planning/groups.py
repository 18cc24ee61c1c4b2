"""The knapsack with groups: layers that are chosen for one by one, or all together.

What a group may become is every combination of its layers' choices, beside the joint ones. Few
of these combinations can matter: the linear relaxation, which needs no combinations, prices the
budgets, and what a combination costs at these prices beyond the best one is the sum of what
its parts do. So only those within the gap to a known plan are written out, for a plain knapsack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog

from lowrank.compression.planning.knapsack import Choices, choose

_GAP, _TINY = 1e-4, 1e-12
"""As in the plain knapsack: the share of the error, and what is rounding where 1 is the largest."""


_EVALUATIONS, _CLOSE, _DEAREST = 200, 1e-9, 1e9
"""Of the bound that prices give: how often and how closely, and the highest price of a limit."""


_FEW, _MANY = 12, 20_000
"""Combinations of a group that are written out before a plan is known, and at most."""


@dataclass(frozen=True)
class Group:
    """Layers that are chosen for one by one, or all together.

    Args:
        apart: the choices of each layer.
        together: those for all of them at once.
    """

    apart: tuple[Choices, ...]
    together: Choices


Picked = tuple[int, ...] | int
"""For a group: a choice for each layer, or the number of one for all of them."""


def choose_grouped(
    layers: Sequence[Choices], groups: Sequence[Group], limits: Sequence[float]
) -> tuple[list[int], list[Picked]] | None:
    """The choices with the least summed error within all the limits.

    Args:
        layers: the choices of each layer that is in no group.
        groups: the others.
        limits: (n_budgets,) upper bounds on the summed costs.

    Returns:
        One index per layer and one `Picked` per group, within 1e-4 of the optimum, or None
        where nothing fits.

    Example:
        >>> one = Choices(np.array([[4.0], [1.0]]), np.array([0.0, 0.5]))
        >>> both = Choices(np.array([[3.0]]), np.array([0.1]))
        >>> choose_grouped([one], [Group((one, one), both)], [7.0])
        ([0], [0])
        >>> choose_grouped([one], [Group((one, one), both)], [12.0])
        ([0], [(0, 0)])
    """
    if not groups:
        picked = choose(layers, limits)
        return None if picked is None else (picked, [])
    bound = np.asarray(limits, float)
    every = [*(Group((c,), _none(len(bound))) for c in layers), *groups]
    if np.any(least(every, len(bound)) > bound):
        return None
    most = max(float(c.errors.max(initial=0.0)) for g in every for c in (*g.apart, g.together))
    unit = max(most, np.finfo(float).tiny)
    scaled = [_scaled(g, unit) for g in every]
    floor, price = _priced(scaled, bound)
    best = _best_of([_written_out(g, price, np.inf, _FEW) for g in scaled], bound)
    if best is None or best[1] > floor * (1 + _GAP) + _TINY:
        room = np.inf if best is None else best[1] * (1 - _GAP) - floor + _TINY
        found = _best_of([_written_out(g, price, room, _MANY) for g in scaled], bound)
        best = min((b for b in (best, found) if b is not None), key=lambda b: b[1], default=None)
    if best is None:
        return None
    n = len(layers)
    return [p[0] for p in best[0][:n] if not isinstance(p, int)], best[0][n:]


def _none(n_budgets: int) -> Choices:
    return Choices(np.zeros((0, n_budgets)), np.zeros(0))


def _scaled(group: Group, unit: float) -> Group:
    parts = [Choices(c.costs, c.errors / unit) for c in (*group.apart, group.together)]
    return Group(tuple(parts[:-1]), parts[-1])


def least(groups: Sequence[Group], n_budgets: int) -> NDArray[np.float64]:
    """The least summed cost of the groups that can be reached, for each budget alone."""
    total = np.zeros(n_budgets)
    for group in groups:
        apart = np.sum([c.costs.min(axis=0) for c in group.apart], axis=0)
        total += np.vstack([apart[None], group.together.costs]).min(axis=0)
    return total


@dataclass(frozen=True)
class _Written:
    """Combinations of a group as plain choices, and what each of them stands for."""

    choices: Choices
    picks: list[Picked]


def _best_of(
    groups: Sequence[_Written], limits: NDArray[np.float64]
) -> tuple[list[Picked], float] | None:
    """What is picked of each group, and the error."""
    if not all(g.picks for g in groups):
        return None
    picked = choose([g.choices for g in groups], limits.tolist())
    if picked is None:
        return None
    error = float(sum(g.choices.errors[p] for g, p in zip(groups, picked, strict=True)))
    return [g.picks[p] for g, p in zip(groups, picked, strict=True)], error


def _written_out(group: Group, price: NDArray[np.float64], room: float, most: int) -> _Written:
    """The choices of a group whose cost at the prices is within `room` of the best."""
    values = [c.errors + c.costs @ price for c in group.apart]
    together = group.together.errors + group.together.costs @ price
    apart = sum(float(v.min()) for v in values)
    cheapest = min(apart, float(together.min(initial=np.inf)))
    costs, errors = np.zeros((1, len(price))), np.zeros(1)
    over, picks = np.array([apart - cheapest]), np.zeros((1, 0), int)
    for choices, value in zip(group.apart, values, strict=True):
        above = value - value.min()
        over = (over[:, None] + above).ravel()
        costs = (costs[:, None] + choices.costs).reshape(-1, len(price))
        errors = (errors[:, None] + choices.errors).ravel()
        n = len(above)
        alive = _useful(costs, errors, over, room, most)
        picks = np.column_stack([picks[alive // n], alive % n])
        costs, errors, over = costs[alive], errors[alive], over[alive]
    within = np.flatnonzero(together - cheapest <= room)
    kept = within[np.argsort(together[within])[:most]]
    every = Choices(
        np.vstack([costs, group.together.costs[kept]]),
        np.append(errors, group.together.errors[kept]),
    )
    return _Written(every, [*map(tuple, picks.tolist()), *kept.tolist()])


def _useful(
    costs: NDArray[np.float64],
    errors: NDArray[np.float64],
    over: NDArray[np.float64],
    room: float,
    most: int,
) -> NDArray[np.int64]:
    """Combinations within the room; with one budget, only those that no other beats."""
    alive = np.flatnonzero(over <= room)
    if costs.shape[1] == 1:
        order = alive[np.lexsort((errors[alive], costs[alive, 0]))]
        before = np.minimum.accumulate(np.append(np.inf, errors[order][:-1]))
        alive = order[errors[order] < before]
    if len(alive) > most:
        alive = alive[np.argpartition(over[alive], most)[:most]]
    return alive


def _priced(
    groups: Sequence[Group], limits: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The best bound on the error that prices give, and these prices.

    At given prices each group has a best choice, and what they come to, less the price of
    the limits, bounds the error from below: a concave function of the prices that is linear
    between changes of these choices. Each evaluation gives one of the lines, and the next prices
    are the best for the lines so far.

    Source: Kelley 1960, "The cutting-plane method for solving convex programs".
    """
    scale = np.maximum(limits, 1.0)
    price, highest = np.zeros(len(limits)), np.inf
    lines: list[NDArray[np.float64]] = []
    best = (-np.inf, price)
    for _ in range(_EVALUATIONS):
        error, cost = _at(groups, price / scale)
        slope = (cost - limits) / scale
        value = error + float(price @ slope)
        if value > best[0]:
            best = value, price.copy()
        if highest - best[0] <= _CLOSE * abs(best[0]):
            break
        lines.append(np.array([error, *slope]))
        cuts = np.array(lines)
        found = linprog(
            np.append(np.zeros(len(limits)), -1.0),  # the highest point under all lines
            A_ub=np.column_stack([-cuts[:, 1:], np.ones(len(cuts))]),
            b_ub=cuts[:, 0],
            bounds=[*([(0.0, _DEAREST)] * len(limits)), (None, None)],
            method="highs",
        )
        if found.x is None:
            break
        price, highest = found.x[:-1], float(found.x[-1])
    return best[0], best[1] / scale


def _at(groups: Sequence[Group], price: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """Error and cost of the best choices at given prices."""
    error, cost = 0.0, np.zeros(len(price))
    for group in groups:
        picks = [(c, int(np.argmin(c.errors + c.costs @ price))) for c in group.apart]
        e = sum(float(c.errors[k]) for c, k in picks)
        s = np.sum([c.costs[k] for c, k in picks], axis=0)
        together = group.together.errors + group.together.costs @ price
        if len(together) and together.min() < e + s @ price:
            k = int(np.argmin(together))
            e, s = float(group.together.errors[k]), group.together.costs[k]
        error, cost = error + e, cost + s
    return error, cost
