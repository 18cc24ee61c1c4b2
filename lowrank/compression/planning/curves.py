"""Measure once, plan often: the cost and the error of every layer x method x rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lowrank.compression.calibration.settings import Calibration, check_exponent
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.gauges.memory import Peaks
from lowrank.compression.methods.shared.base import ranks_of
from lowrank.compression.network.channels.narrowing import Narrowed
from lowrank.compression.network.stages import Cost
from lowrank.compression.planning.budget import NS, Budget, budget_of, refusal
from lowrank.compression.planning.candidates import Candidate, Curve, Share, Whole
from lowrank.compression.planning.knapsack import (
    Choices,
    Group,
    choose_grouped,
    least,
    smallest,
)
from lowrank.compression.planning.layer_times import Timing
from lowrank.compression.planning.selection.widths import Width, Widths
from lowrank.compression.structure.choices import Dense, PlannedLayer, Tied
from lowrank.compression.structure.plan import Plan, _short
from lowrank.errors import BudgetError
from lowrank.tables import merge_names


@dataclass(frozen=True)
class Curves:
    """The cost and the error of every layer x method x rank; plans for any budget at once.

    Args:
        curves: the layers that some method can serve.
        reasons: every other layer -> why it stays dense.
        kinds: every layer, in the model's order -> its class name.
        shapes: every layer -> the shapes of its own parameters.
        total: cost of the whole model on the example.
        calibration: what they were measured with.
        data: what was found out from data; None where errors are those of the weights.
        timing: how long the candidates take; None where that was not asked for.
        memory: what the model holds while it runs; None where that was not asked for.
        joint: what several of the layers may become together, beside their own curves.
        widths: units of layers that may go narrower as a whole, beside their own curves.
        asked: layer -> its parameters whose type or device the model asks for.
        gains: embedding -> what it multiplies the rows of its table by, if anything.
    """

    curves: tuple[Curve, ...]
    reasons: dict[str, str]
    kinds: dict[str, str]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    total: Cost
    calibration: Calibration = field(default_factory=Calibration)
    data: Statistics | None = field(default=None, compare=False, repr=False)
    timing: Timing | None = field(default=None, compare=False, repr=False)
    memory: Peaks | None = field(default=None, compare=False, repr=False)
    joint: tuple[Curve, ...] = ()
    widths: tuple[Widths, ...] = ()
    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    gains: Mapping[str, float] = field(default_factory=dict)

    def plot(
        self, layers: Sequence[str] | None = None, *, method: str = "channel_svd", ax: Any = None
    ) -> Any:
        """Draw the relative error of the weights against the rank, a line for each layer.

        A line is solid and marked where the replacement runs fewer MACs than the dense layer,
        and faint beyond.

        Args:
            layers: names of up to 6 layers; by default 4 large ones, spread over the depth.
            method: a method with a single rank. Of its variants the layer's best is drawn.
            ax: matplotlib axes to draw on; new ones by default.

        Returns:
            The axes.

        Raises:
            InputError: a layer that has no such curve, more than 6, or a method with several
                ranks.
        """
        from lowrank.compression.pictures.curves import error_against_rank
        from lowrank.compression.planning.rank_lines import rank_lines

        lines = rank_lines(self.curves, layers, method)
        return error_against_rank(lines, xlabel=f"rank of {method}", ax=ax)

    def plot_trade_off(
        self,
        budgets: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
        *,
        measure: Literal["macs", "params", "bytes"] = "macs",
        label: str | None = None,
        ax: Any = None,
    ) -> Any:
        """Draw the predicted error of the best plan for each budget.

        Args:
            budgets: kept fractions in (0, 1]; those out of reach are left out.
            measure: "macs", "params" or "bytes".
            label: name of the line in the legend.
            ax: matplotlib axes to draw on, which may hold other lines; new ones by default.

        Returns:
            The axes.

        Raises:
            InputError: an unknown measure.
            BudgetError: no budget can be reached.
        """
        from lowrank.compression.pictures.curves import trade_off
        from lowrank.drawing import check_measure

        check_measure(measure)
        plans, refused = [], BudgetError("budgets", "there are none", "pass fractions such as 0.5")
        for budget in budgets:
            try:
                plans.append(self.plan(**{measure: budget}))
            except BudgetError as error:
                refused = error
        if not plans:
            raise refused
        kept = [asdict(p.cost)[measure] / asdict(p.total)[measure] for p in plans]
        return trade_off(kept, [p.error for p in plans], measure=measure, label=label, ax=ax)

    def plan(
        self,
        *,
        params: float | None = None,
        bytes: float | None = None,
        macs: float | None = None,
        latency: float | None = None,
        memory: float | None = None,
        exponent: float | None = None,
    ) -> Plan:
        """The method and rank, or dense, of every layer: least summed error in the budget.

        Every budget is a kept fraction in (0, 1] of the whole model, or an absolute figure
        as a whole number; several at once must all be met. A layer is replaced only where
        each given measure gets smaller. The plan's error is within 1e-4 (relative) of the
        optimum with one budget. Where the budget stays unspent because the methods of some
        layers offer nothing closer to dense, the plan's notes say so.

        Args:
            params: parameters to keep.
            bytes: bytes of parameters to keep.
            macs: multiply-accumulates to keep, on the example.
            latency: time of a forward pass to keep, a fraction, as predicted from timed
                layers; needs `measure(..., latency=True)`. Where no layer can get faster
                all stay dense.
            memory: peak bytes of a forward pass to keep, weights and activations; needs
                `measure(..., memory=True)`.
            exponent: with data, layers are weighed by outputs^(1 - exponent) loss^exponent:
                from the size of the output that is lost (0) to what the loss feels of it (1);
                by default that of the calibration, else 0.5, or 1 where the model's output
                scores words.

        Raises:
            InputError: an exponent outside 0..1.
            BudgetError: the budget makes no sense, or is below the smallest that can be
                reached, which the message names.
        """
        values = {"params": params, "bytes": bytes, "macs": macs}
        budget = budget_of(self.wholes, {**values, "latency": latency, "memory": memory})
        if exponent is None:
            exponent = self.exponent
        check_exponent(exponent)
        offers = {c.layer: self._offer(c, budget.names, exponent) for c in self.curves}
        joint = self._together(budget.names, exponent)
        fixed = np.array(budget.wholes, float)
        fixed -= np.sum([self._dense(c, budget.names) for c in self.curves], axis=0)
        picked = _picked(offers, joint, np.array(budget.limits) - fixed)
        if picked is None and budget.names == ("latency",):
            picked = _all_dense(offers, joint)
        if picked is None:
            raise refusal(budget, fixed + _least(offers, joint), self._beyond_reach())
        why = {c.layer: _why_dense(c, offers[c.layer], budget) for c in self.curves}
        taken = {layer: option or Dense(why[layer]) for layer, option in picked.items()}
        notes = self._endings(picked, offers, joint, np.array(budget.limits) - fixed, budget)
        return replace(self._planned(taken, budget.given), notes=notes)

    def _beyond_reach(self) -> str:
        """Where most of the parameters are that no method may touch, for a refusal."""
        sizes = {
            name: sum(math.prod(shape) for shape in self.shapes[name].values())
            for name in self.reasons
        }
        largest = max(sizes.values(), default=0)
        if largest < _NOTEWORTHY * self.total.params:
            return ""
        reason = self.reasons[max(sizes, key=lambda name: sizes[name])]
        names = [n for n, r in self.reasons.items() if r == reason and 4 * sizes[n] >= largest]
        count = sum(sizes[n] for n in names)
        where = merge_names(names)
        more = f" and {len(where) - 3} others" if len(where) > 3 else ""
        some = ", ".join(where[:3])
        return f"{count:,} parameters of {some}{more} stay as they are ({reason})"

    def dense(self, reason: str, given: Mapping[str, float]) -> Plan:
        """The plan that leaves every layer as it is.

        Args:
            reason: why, for the layers that could be replaced.
            given: the budget that it answers.
        """
        return self._planned({c.layer: Dense(reason) for c in self.curves}, given)

    def _planned(
        self, taken: Mapping[str, Dense | Candidate | Whole | Width], given: Mapping[str, float]
    ) -> Plan:
        rows = {
            name: PlannedLayer(self.kinds[name], self.shapes[name], Dense(reason))
            for name, reason in self.reasons.items()
        }
        together = {c.layers: c for c in (*self.curves, *self.joint)}
        narrow = {w.layers[0]: w for w in self.widths}
        narrowed: dict[str, Narrowed] = {}
        for curve in self.curves:
            if curve.layer in taken:
                choice = taken[curve.layer]
                if isinstance(choice, Width):
                    rows |= self._narrow_rows(narrow[curve.layer], choice)
                    narrowed |= choice.narrowed
                    continue
                covered = choice.layers if isinstance(choice, Candidate) else curve.layers
                rows |= _rows(together[covered], choice)
        rows = {
            n: replace(r, shapes=r.shapes or self.shapes[n], **self._of_layer(n))
            for n, r in rows.items()
        }
        rows |= _with_guests(rows)
        layers = {name: rows[name] for name in self.kinds}
        seed = self.calibration.seed
        return Plan(layers, self.total, dict(given), seed, narrowed=narrowed)

    def _of_layer(self, name: str) -> dict[str, Any]:
        """What a row says of the layer itself, whatever becomes of it."""
        return {
            "kind": self.kinds[name],
            "asked": self.asked.get(name, ()),
            "gain": self.gains.get(name, 1.0),
        }

    def _narrow_rows(self, unit: Widths, width: Width) -> dict[str, PlannedLayer]:
        """The rows of layers that go narrower; their kinds are put in by the caller."""
        dense = {c.layer: c.dense for c in self.curves}
        return {
            n: PlannedLayer(
                "", dict(width.shapes[n]), Dense(FEWER), dense[n], width.costs[n],
                width.error if n == unit.reader else None,
            )
            for n in unit.layers
        }  # fmt: skip

    def _endings(
        self,
        picked: _Taken,
        offers: Mapping[str, _Offer],
        joint: Sequence[_Joint],
        limits: NDArray[np.float64],
        budget: Budget,
    ) -> tuple[str, ...]:
        """A note on layers whose methods end far below what the budget could use."""
        if "latency" in budget.names:  # predicted only: the clock has its own say
            return ()
        chosen = {n: _source(offers[n], joint, option) for n, option in picked.items()}
        room = limits - np.sum([o.choices.costs[at] for o, at in chosen.values()], axis=0)
        if np.any(room <= _UNSPENT * np.array(budget.wholes)):
            return ()
        skipped = {c.layer for c in self.curves if c.fixed}
        skipped |= {j.layers[0] for j in joint if any(len(offers[n].options) > 1 for n in j.layers)}
        ended: dict[str, list[str]] = {}
        for name, option in picked.items():
            if isinstance(option, Candidate) and name not in skipped and _ends(*chosen[name], room):
                ended.setdefault(_short(option.method), []).append(name)
        return (_ending(ended, room, budget),) if ended else ()

    @property
    def exponent(self) -> float:
        """How strongly layers are weighed by what the loss feels of them, if nothing is said."""
        if self.calibration.exponent is not None:
            return self.calibration.exponent
        return 0.5 if self.data is None else self.data.exponent

    def predicted(self, plan: Plan, exponent: float | None = None) -> float:
        """The plan's error as the planner weighs it, as a share of losing every output."""
        exponent = self.exponent if exponent is None else exponent
        lost = whole = 0.0
        for curve in self.curves:
            weight = 1.0 if curve.importance is None else curve.importance.weight(exponent)
            whole += weight
            lost += weight * (plan.layers[curve.layer].error or 0.0)
        return lost / whole if whole else 0.0

    @property
    def fixed(self) -> bool:
        """Whether some layer is replaced in any plan, by the user's rule."""
        return any(curve.fixed for curve in self.curves)

    @property
    def wholes(self) -> dict[str, float]:
        """Measure -> what the dense model has of it."""
        wholes: dict[str, float] = asdict(self.total)
        if self.timing is not None:
            wholes["latency"] = NS * self.timing.whole
        if self.memory is not None:
            wholes["memory"] = self.memory.dense.total
        return wholes

    def _dense(self, curve: Curve, names: Sequence[str]) -> list[float]:
        """The measures of a layer as it is."""
        costs: dict[str, float] = asdict(curve.dense)
        if self.timing is not None and "latency" in names:
            costs["latency"] = NS * self.timing.dense(curve.key)
        costs["memory"] = curve.dense.bytes  # beside the peak of the activations
        return [costs[name] for name in names]

    def _costs(self, curve: Curve, names: Sequence[str]) -> NDArray[np.float64]:
        """The measures of a layer's candidates, (n, n_names)."""
        columns = []
        for name in names:
            if name == "latency" and self.timing is not None:
                columns.append(NS * self.timing.predict(curve.key, curve.candidates))
                continue
            field_ = "bytes" if name == "memory" else name
            column = np.array([getattr(c.cost, field_) for c in curve.candidates], float)
            if name == "memory" and self.memory is not None:
                column += self.memory.rises[curve.key]
            columns.append(column)
        return np.stack(columns, axis=1)

    def _together(self, names: Sequence[str], exponent: float) -> list[_Joint]:
        """What layers may become together: fewer neurons, or else factors that they share."""
        narrow = [self._narrow_offer(w, names, exponent) for w in self.widths]
        taken = {n for offer in narrow if offer.options for n in offer.layers}
        shared = [c for c in self.joint if not taken & set(c.layers)]
        return [*narrow, *(self._joint_offer(c, names, exponent) for c in shared)]

    def _narrow_offer(self, unit: Widths, names: Sequence[str], exponent: float) -> _Joint:
        """The widths of a unit, smaller in every measure."""
        apart = {c.layer: c for c in self.curves}
        curves = [apart[name] for name in unit.layers]
        dense = np.array([self._dense(c, names) for c in curves])  # (n_layers, n_names)
        costs = np.array([self._narrow_costs(curves, dense, w, names) for w in unit.options])
        counts = apart[unit.reader].importance
        weight = 1.0 if counts is None else counts.weight(exponent)
        errors = weight * np.array([w.error for w in unit.options])
        kept = np.flatnonzero(np.all(costs < dense.sum(0), axis=1))
        choices = Choices(costs[kept], errors[kept])
        return _Joint(unit.layers, [unit.options[i] for i in kept], choices)

    def _narrow_costs(
        self,
        curves: Sequence[Curve],
        dense: NDArray[np.float64],
        width: Width,
        names: Sequence[str],
    ) -> list[float]:
        """The measures of layers that go narrower; their time falls as their MACs."""
        found = []
        for k, name in enumerate(names):
            costs = [width.costs[c.layer] for c in curves]
            if name == "latency":
                shares = [cost.macs / c.dense.macs for cost, c in zip(costs, curves, strict=True)]
                found.append(float(dense[:, k] @ np.array(shares)))
            else:
                field_ = "bytes" if name == "memory" else name
                found.append(float(sum(getattr(cost, field_) for cost in costs)))
        return found

    def _joint_offer(self, curve: Curve, names: Sequence[str], exponent: float) -> _Joint:
        """The joint candidates of layers that also stand alone, smaller in every measure."""
        apart = {c.layer: c for c in self.curves}
        members = [apart[name] for name in curve.layers]
        dense = np.sum([self._dense(c, names) for c in members], axis=0)
        costs = self._costs(curve, names)
        weights = [1.0 if c.importance is None else c.importance.weight(exponent) for c in members]
        errors = [[share.error or 0.0 for share in c.shares] for c in curve.candidates]
        kept = np.flatnonzero(np.all(costs < dense, axis=1))
        choices = Choices(costs[kept], (np.array(errors) @ np.array(weights))[kept])
        return _Joint(curve.layers, [curve.candidates[i] for i in kept], choices)

    def _offer(self, curve: Curve, names: Sequence[str], exponent: float) -> _Offer:
        """Dense, and what makes every budgeted measure of the layer smaller."""
        dense, costs = np.array(self._dense(curve, names)), self._costs(curve, names)
        weight = 1.0 if curve.importance is None else curve.importance.weight(exponent)
        errors = weight * np.array([c.error for c in curve.candidates])
        if curve.fixed:
            return _Offer([curve.candidates[0]], Choices(costs[:1], errors[:1]))
        smaller = np.all(costs < dense, axis=1)
        if not {"bytes", "latency"} & set(names):  # zeros are stored away, but computed
            stored = [c.method.stored_sparse for c in curve.candidates]
            smaller &= ~np.array(stored, bool)
        kept = np.flatnonzero(smaller)
        whole = _Offer(
            [None, *(curve.candidates[i] for i in kept)],
            Choices(np.vstack([dense, costs[kept]]), np.append(0.0, errors[kept])),
        )
        return _with_int8(whole, curve, names, weight)


FEWER = "its channels alone are selected"
"""Why a layer is not factorized that goes narrower."""


NO_FASTER = "no rank makes it faster here"
"""Why a layer stays dense under a latency budget alone."""


@dataclass(frozen=True)
class _Offer:
    """What a layer may become within the budget's measures; None is dense."""

    options: Sequence[Whole | Candidate | None]
    choices: Choices


@dataclass(frozen=True)
class _Joint:
    """What layers that also stand alone may become together."""

    layers: tuple[str, ...]
    options: Sequence[Candidate | Width]
    choices: Choices


_Taken: TypeAlias = "Mapping[str, Whole | Candidate | Width | None]"
"""First layer of a unit -> what it becomes; None is dense. A joint choice stands at its first."""


def _grouped(
    offers: Mapping[str, _Offer], joint: Sequence[_Joint]
) -> tuple[dict[str, _Offer], list[_Joint], list[Group]]:
    """The layers that stand alone, those that may go together, and these as groups."""
    joint = [j for j in joint if j.options]
    members = {name for j in joint for name in j.layers}
    alone = {name: offer for name, offer in offers.items() if name not in members}
    groups = [Group(tuple(offers[n].choices for n in j.layers), j.choices) for j in joint]
    return alone, joint, groups


def _picked(
    offers: Mapping[str, _Offer], joint: Sequence[_Joint], limits: NDArray[np.float64]
) -> _Taken | None:
    """What the knapsack chooses."""
    alone, joint, groups = _grouped(offers, joint)
    found = choose_grouped([o.choices for o in alone.values()], groups, limits.tolist())
    if found is None:
        return None
    taken: dict[str, Whole | Candidate | Width | None] = {
        n: o.options[p] for (n, o), p in zip(alone.items(), found[0], strict=True)
    }
    for j, picks in zip(joint, found[1], strict=True):
        if isinstance(picks, int):
            taken[j.layers[0]] = j.options[picks]
        else:
            taken |= {n: offers[n].options[p] for n, p in zip(j.layers, picks, strict=True)}
    return taken


_UNSPENT = 0.02
"""Share of the whole model that a budget may leave over in silence."""


_NAMED = 6
"""Layers that a note names."""


def _source(
    offer: _Offer, joint: Sequence[_Joint], option: Whole | Candidate | Width | None
) -> tuple[_Offer | _Joint, int]:
    """Where the option was offered, and its position there."""
    sources: list[_Offer | _Joint] = [offer, *joint]
    places = ((o, k) for o in sources for k in range(len(o.options)))
    return next((o, k) for o, k in places if o.options[k] is option)


def _ends(offer: _Offer | _Joint, at: int, room: NDArray[np.float64]) -> bool:
    """Whether the option is the most exact beside dense, though a rank more would fit."""
    methods = {k: o.method for k, o in enumerate(offer.options) if isinstance(o, Candidate)}
    costs, errors = offer.choices.costs, offer.choices.errors
    if at not in methods or min(errors[k] for k in methods) < errors[at]:
        return False
    return bool(np.all(costs[at] / max(1, *ranks_of(methods[at])) <= room))


def _ending(ended: Mapping[str, list[str]], room: NDArray[np.float64], budget: Budget) -> str:
    """What stays unspent, and the layers where nothing could use it."""
    layers = [f"{n} ({method})" for method, names in ended.items() for n in merge_names(names)]
    more = f" and {len(layers) - _NAMED} more" if len(layers) > _NAMED else ""
    figures = zip(budget.given.items(), budget.limits, room, strict=True)
    shares = [f"{100 * left / limit:.0f} % of {k}={v:,}" for (k, v), limit, left in figures]
    return (
        f"nothing closer to dense is offered for {', '.join(layers[:_NAMED])}{more}, so "
        f"{' and '.join(shares)} stays unspent: allow more methods"
    )


def _least(offers: Mapping[str, _Offer], joint: Sequence[_Joint]) -> NDArray[np.float64]:
    """The least that can be reached, for each budget alone."""
    alone, _, groups = _grouped(offers, joint)
    n = next(iter(offers.values())).choices.costs.shape[1]
    return smallest([o.choices for o in alone.values()]) + least(groups, n)


def _with_int8(offer: _Offer, curve: Curve, names: Sequence[str], weight: float) -> _Offer:
    """The offer with what int8 makes smaller in a budgeted measure, and larger in none."""
    dense = np.array([getattr(curve.dense, n, 0) for n in names])
    found = [
        (option, cost)
        for option in curve.int8
        if np.all((cost := np.array([getattr(option.cost, n, 0) for n in names])) <= dense)
        and np.any(cost < dense)
    ]
    if not found:
        return offer
    costs = np.vstack([offer.choices.costs, *(cost for _, cost in found)])
    errors = np.append(offer.choices.errors, [weight * option.error for option, _ in found])
    return _Offer([*offer.options, *(option for option, _ in found)], Choices(costs, errors))


def _all_dense(offers: Mapping[str, _Offer], joint: Sequence[_Joint]) -> _Taken | None:
    """No layer has a candidate: nothing can get faster, which is no mistake in the budget."""
    some = any(len(o.options) > 1 or o.options[0] for o in offers.values())
    return None if some or any(j.options for j in joint) else dict.fromkeys(offers)


def _rows(curve: Curve, taken: Dense | Candidate | Whole) -> dict[str, PlannedLayer]:
    """The rows of a unit's layers; their kinds and shapes are put in by the caller."""
    first, *others = curve.members or ((curve.layer, curve.dense),)
    rows = {curve.layer: _row(taken, first[1])}
    if isinstance(taken, Candidate):
        rows[curve.layer] = replace(rows[curve.layer], behind=curve.behind)
    for k, (name, dense) in enumerate(others, 1):
        if isinstance(taken, Candidate):
            share = taken.shares[k]
            choice = Tied(curve.layer)
            rows[name] = PlannedLayer("", {}, choice, dense, share.cost, share.error)
        else:
            rows[name] = PlannedLayer("", {}, Dense(f"shares the weight of {curve.layer}"), dense)
    return rows


def _with_guests(rows: Mapping[str, PlannedLayer]) -> dict[str, PlannedLayer]:
    """The rows of modules behind which a shared factor runs, which stay as they are."""
    found = {}
    for row in rows.values():
        host = row.behind
        if host is not None and host in rows and isinstance(stays := rows[host].choice, Dense):
            reason = f"{stays.reason}; a factor that layers share runs behind it"
            found[host] = replace(rows[host], choice=Dense(reason))
    return found


def _row(taken: Dense | Candidate | Whole, dense: Cost) -> PlannedLayer:
    if isinstance(taken, Candidate):
        first = taken.shares[0] if taken.shares else Share(taken.cost, taken.error)
        return PlannedLayer("", {}, taken.method, dense, first.cost, first.error, taken.int8)
    if isinstance(taken, Whole):
        kept = Dense("its own weight, in int8")
        return PlannedLayer("", {}, kept, dense, taken.cost, taken.error, taken.int8)
    return PlannedLayer("", {}, taken, dense)


def _why_dense(curve: Curve, offer: _Offer, budget: Budget) -> str:
    if not curve.candidates:
        return "no method fits a layer of this shape"
    if len(offer.options) > 1:
        return "worth more than it costs"
    if budget.names == ("latency",):
        return NO_FASTER
    return f"no rank makes it smaller in {' and '.join(budget.given)}"


_NOTEWORTHY = 0.01
"""Share of the parameters from which on a layer that stays dense is named in a refusal."""


def all_dense(curves: Curves, reason: str) -> Plan:
    """A plan that replaces nothing."""
    rows = {
        name: PlannedLayer(
            shapes=curves.shapes[name],
            choice=Dense(curves.reasons.get(name, reason)),
            **curves._of_layer(name),
        )
        for name in curves.kinds
    }
    return Plan(rows, curves.total, seed=curves.calibration.seed)
