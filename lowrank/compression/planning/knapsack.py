"""The planner's mathematics: one choice per layer, least error, within every limit.

A multiple-choice knapsack. Dominated choices are dropped, the linear relaxation prices the
budgets, choices whose reduced cost rules them out are dropped
too (Dembo and Hammer 1980), and the few that are left are searched from both ends (Horowitz and
Sahni 1974) until no plan can be better by more than 1e-4. Where they are too many for that, as
may be with several budgets, they go to an integer programme.
Layers may also be chosen for in groups, one by one or all together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import block_diag, csr_array

_GAP = 1e-4
"""Plans are sought until none can be better by more than this share of the error."""


_WIDTH, _SEARCHES = 1_000, 4
"""Partial plans of each half kept after each layer, and searches before all that is left is one
integer programme: reached mostly with several budgets at once."""


_MOVES = 600
"""Single changes that are tried in pairs."""


_ROUNDS = 40
"""Rounds of such changes."""


_TINY = 1e-12
"""Errors below this, on a scale where the largest single one is 1, are rounding."""


_ROWS, _NODES = 1e3, 20_000
"""Of the integer programme: the size of its rows, and the most nodes."""


@dataclass(frozen=True)
class Choices:
    """What one layer may become.

    Args:
        costs: (n, n_budgets) non-negative.
        errors: (n,) non-negative.
    """

    costs: NDArray[np.float64]
    errors: NDArray[np.float64]


def choose(layers: Sequence[Choices], limits: Sequence[float]) -> list[int] | None:
    """Index of the choice per layer with the least summed error within all the limits.

    minimise   sum_l errors[l][c_l]   subject to   sum_l costs[l][c_l] <= limits

    Args:
        layers: the choices of each layer.
        limits: (n_budgets,) upper bounds on the summed costs.

    Returns:
        One index per layer, within 1e-4 of the optimum, or None where nothing fits.

    Example:
        >>> import numpy as np
        >>> layer = Choices(np.array([[4.0], [1.0]]), np.array([0.0, 0.5]))
        >>> choose([layer, layer], [5.0])
        [0, 1]
    """
    if not layers:
        return []
    kept = [_undominated(layer) for layer in layers]
    unit = max(max(float(layer.errors.max()) for layer in layers), np.finfo(float).tiny)
    thinned = [
        Choices(layer.costs[k], layer.errors[k] / unit)
        for layer, k in zip(layers, kept, strict=True)
    ]
    picked = _solve(thinned, np.asarray(limits, float))
    return None if picked is None else [int(k[p]) for k, p in zip(kept, picked, strict=True)]


def smallest(layers: Sequence[Choices]) -> NDArray[np.float64]:
    """The least summed cost that can be reached, for each budget alone."""
    return np.sum([layer.costs.min(axis=0) for layer in layers], axis=0)


def _undominated(layer: Choices) -> NDArray[np.int64]:
    """Choices that no other one beats in error and in every cost."""
    order = np.lexsort((*layer.costs.T[::-1], layer.errors))  # by rising error
    costs = layer.costs[order]
    if costs.shape[1] == 1:
        before = np.minimum.accumulate(np.append(np.inf, costs[:-1, 0]))
        return order[costs[:, 0] < before]
    beaten = np.all(costs[None] <= costs[:, None], axis=2)  # [j, i]: i costs no more than j
    return order[~np.any(np.tril(beaten, -1), axis=1)]


def _solve(layers: Sequence[Choices], limits: NDArray[np.float64]) -> list[int] | None:
    """Price the budgets by the relaxation, then solve over what it cannot rule out."""
    within = _rounded_up(limits, len(layers))
    if np.any(smallest(layers) > within):
        return None
    closest = [int(np.argmin(c.errors)) for c in layers]
    if np.all(_spent(layers, closest) <= within):
        return closest
    price, first = _relaxed(layers, within)
    reduced = [c.errors + c.costs @ price for c in layers]
    floor = float(sum(r.min() for r in reduced) - within @ price)  # a bound at any prices
    excess = [r - r.min() for r in reduced]
    best = _best(layers, within, first, [int(np.argmin(c.costs.sum(1))) for c in layers])
    if best is not None:
        best = _improve(layers, within, excess, best, floor)
        if _error(layers, best) <= floor * (1 + _GAP) + _TINY:
            return best
    for _ in range(_SEARCHES):  # a better plan rules out more, so that the next search sees further
        found, complete = _search(layers, within, excess, best, floor)
        better = _best(layers, within, best, found)
        if complete or better == best:
            break
        best = better
    return better if complete else _programme(layers, within, excess, better, floor)


def _rounded_up(limits: NDArray[np.float64], n_layers: int) -> NDArray[np.float64]:
    """What sums come to at most, whatever the order of the layers, that equal the limits."""
    return limits * (1 + 2 * n_layers * np.finfo(float).eps)


def _best(
    layers: Sequence[Choices], limits: NDArray[np.float64], *plans: list[int] | None
) -> list[int] | None:
    """The plan of least error among those that fit."""
    fitting = [p for p in plans if p is not None and np.all(_spent(layers, p) <= limits)]
    return min(fitting, key=lambda p: _error(layers, p), default=None)


def _relaxed(
    layers: Sequence[Choices], limits: NDArray[np.float64]
) -> tuple[NDArray[np.float64], list[int] | None]:
    """Error per unit of each budget, and the plan that the linear relaxation rounds to."""
    scale = np.where(limits > 0, limits, 1.0)
    found = linprog(
        np.concatenate([c.errors for c in layers]),
        A_ub=np.concatenate([c.costs / scale for c in layers]).T,
        b_ub=limits / scale,
        A_eq=_one_each(layers),
        b_eq=np.ones(len(layers)),
        method="highs",
    )
    if found.x is None:
        return np.zeros(len(limits)), None
    return np.maximum(-found.ineqlin.marginals, 0) / scale, _rounded(layers, found.x)


def _search(
    layers: Sequence[Choices],
    limits: NDArray[np.float64],
    excess: Sequence[NDArray[np.float64]],
    best: list[int] | None,
    floor: float,
) -> tuple[list[int] | None, bool]:
    """Grow all partial plans of each half of the layers, and join those that fit together best.

    A plan's error is at least `floor` plus the excess, at the relaxation's prices, of
    every choice made so far.

    Returns:
        The best plan that is better than `best`, and whether it was sought among all.
    """
    room = _room(layers, best, floor)
    core = _core(excess, room)
    if not all(map(len, core)):
        return None, True
    order = sorted(range(len(layers)), key=lambda l: len(core[l]))
    left, right = (
        _grown(layers, half, core, limits, excess, room) for half in (order[::2], order[1::2])
    )
    fits = left.over[:, None] + right.over <= room
    for b, limit in enumerate(limits):
        fits &= left.spent[:, b, None] + right.spent[:, b] <= limit
    both = np.where(fits, left.errors[:, None] + right.errors, np.inf)
    complete = left.complete and right.complete
    if not fits.any():
        return None, complete
    i, j = np.unravel_index(int(np.argmin(both)), both.shape)
    picks = left.picks(int(i)) | right.picks(int(j))
    return [picks[l] for l in range(len(layers))], complete


@dataclass(frozen=True)
class _Grown:
    """Partial plans of some of the layers.

    Args:
        spent: (n, n_budgets).
        errors: (n,).
        over: (n,) excess at the relaxation's prices.
        trail: per layer, its number, each plan's parent, and its choice.
        complete: these are all that matter.
    """

    spent: NDArray[np.float64]
    errors: NDArray[np.float64]
    over: NDArray[np.float64]
    trail: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]
    complete: bool

    def picks(self, state: int) -> dict[int, int]:
        """Layer -> choice of one of the plans."""
        picked = {}
        for l, parents, choices in reversed(self.trail):
            picked[l] = int(choices[state])
            state = int(parents[state])
        return picked


def _grown(
    layers: Sequence[Choices],
    order: Sequence[int],
    core: Sequence[NDArray[np.int64]],
    limits: NDArray[np.float64],
    excess: Sequence[NDArray[np.float64]],
    room: float,
) -> _Grown:
    """The partial plans of some layers, one layer after another, at most `_WIDTH` of them."""
    left = limits - sum(c.costs[k].min(axis=0) for c, k in zip(layers, core, strict=True))
    spent, errors, over, complete = np.zeros((1, len(limits))), np.zeros(1), np.zeros(1), True
    trail: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    for l in order:
        j = core[l]
        over_ = (over[:, None] + excess[l][j]).ravel()
        spent_ = (spent[:, None] + layers[l].costs[j]).reshape(-1, len(limits))
        errors_ = (errors[:, None] + layers[l].errors[j]).ravel()
        left = left + layers[l].costs[j].min(axis=0)
        alive = np.flatnonzero((over_ <= room) & np.all(spent_ <= left, axis=1))
        alive = alive[_front(spent_[alive], errors_[alive])]
        if len(alive) > _WIDTH:
            alive, complete = alive[np.argpartition(over_[alive], _WIDTH)[:_WIDTH]], False
        parents, choices = np.divmod(alive, len(j))
        trail.append((l, parents, j[choices]))
        spent, errors, over = spent_[alive], errors_[alive], over_[alive]
    return _Grown(spent, errors, over, trail, complete)


def _room(layers: Sequence[Choices], best: list[int] | None, floor: float) -> float:
    """The excess that a plan may have which is better than `best` by more than the gap."""
    return np.inf if best is None else _error(layers, best) * (1 - _GAP) - floor + _TINY


def _core(excess: Sequence[NDArray[np.float64]], room: float) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(e <= room) for e in excess]


def _front(costs: NDArray[np.float64], errors: NDArray[np.float64]) -> NDArray[np.int64]:
    """With one budget, the partial plans that no other beats; else all of them."""
    if costs.shape[1] > 1:
        return np.arange(len(errors))
    order = np.lexsort((errors, costs[:, 0]))
    best_before = np.minimum.accumulate(np.append(np.inf, errors[order][:-1]))
    return order[errors[order] < best_before]


def _programme(
    layers: Sequence[Choices],
    limits: NDArray[np.float64],
    excess: Sequence[NDArray[np.float64]],
    best: list[int] | None,
    floor: float,
) -> list[int] | None:
    """The choices that are left as an integer programme, where the search kept too few plans."""
    core = _core(excess, _room(layers, best, floor))
    if not all(map(len, core)):
        return best
    rest = [Choices(c.costs[k], c.errors[k]) for c, k in zip(layers, core, strict=True)]
    scale = np.where(limits > 0, limits, 1.0) / _ROWS  # rows are met to an absolute 1e-6
    costs = np.concatenate([c.costs / scale for c in rest]).T
    found = milp(
        np.concatenate([c.errors for c in rest]),
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(_one_each(rest), 1, 1),
            LinearConstraint(costs, -np.inf, limits / scale),
        ],
        options={
            "mip_rel_gap": _GAP / 2,
            "node_limit": _NODES,
            "presolve": False,  # two times slower here, and prints
        },
    )
    if found.x is None:
        return best
    picks = [int(k[np.argmax(x)]) for k, x in zip(core, _split(found.x, rest), strict=True)]
    return _best(layers, limits, best, picks)


def _improve(
    layers: Sequence[Choices],
    limits: NDArray[np.float64],
    excess: Sequence[NDArray[np.float64]],
    picks: list[int],
    floor: float,
) -> list[int]:
    """Change one or two layers at a time while that lowers the error within the limits."""
    for _ in range(_ROUNDS):
        if (error := _error(layers, picks)) <= floor * (1 + _GAP) + _TINY:
            break
        moves = [
            (l, j) for l, e in enumerate(excess) for j in np.flatnonzero(e <= error - floor + _TINY)
        ]
        moves = sorted(moves, key=lambda m: float(excess[m[0]][m[1]]))[:_MOVES]
        l, j = np.array(moves).T
        gain = np.array([layers[a].errors[picks[a]] - layers[a].errors[b] for a, b in moves])
        cost = np.array([layers[a].costs[b] - layers[a].costs[picks[a]] for a, b in moves])
        slack = limits - _spent(layers, picks)
        fits = np.all(cost[:, None] + cost <= slack, axis=2) & (l[:, None] != l)
        both = np.where(fits, gain[:, None] + gain, -np.inf)
        a, b = np.unravel_index(int(np.argmax(both)), both.shape)
        if both[a, b] <= _TINY:
            break
        picks = picks.copy()
        picks[l[a]], picks[l[b]] = int(j[a]), int(j[b])
    return picks


def _one_each(layers: Sequence[Choices]) -> csr_array:
    return csr_array(block_diag([np.ones((1, len(c.errors))) for c in layers]))


def _split(x: NDArray[np.float64], layers: Sequence[Choices]) -> list[NDArray[np.float64]]:
    return np.split(x, np.cumsum([len(c.errors) for c in layers])[:-1])


def _error(layers: Sequence[Choices], picks: Sequence[int]) -> float:
    return float(sum(c.errors[p] for c, p in zip(layers, picks, strict=True)))


def _spent(layers: Sequence[Choices], picks: Sequence[int]) -> NDArray[np.float64]:
    return np.sum([c.costs[p] for c, p in zip(layers, picks, strict=True)], axis=0)


def _rounded(layers: Sequence[Choices], x: NDArray[np.float64]) -> list[int]:
    """The relaxation rounded to the cheapest choice in use."""
    used = [np.flatnonzero(share > 1e-9) for share in _split(x, layers)]
    return [int(u[np.argmin(c.costs[u].sum(1))]) for c, u in zip(layers, used, strict=True)]


# --- groups: layers that are chosen for one by one, or all together ---------------------------
#
# What a group may become is every combination of its layers' choices, beside the joint ones. Few
# of these combinations can matter: what a combination costs at given prices of the budgets beyond
# the best one is the sum of what its parts do. So only those within the gap between the bound
# that the best prices give and a known plan are written out, for the plain knapsack above.

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
    n_layers = sum(len(g.apart) for g in every)
    if np.any(least(every, len(bound)) > _rounded_up(bound, n_layers)):
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
