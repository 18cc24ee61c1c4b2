"""What the planner chooses among: candidates and their curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from statistics import median
from typing import Any, ClassVar

from lowrank.compression.calibration.statistics import Importance
from lowrank.compression.methods import Method
from lowrank.compression.network.stages import Cost
from lowrank.compression.network.units import key_of
from lowrank.store import Kept, text_of


@dataclass(frozen=True)
class Share:
    """What one layer of a unit has of a candidate.

    Args:
        cost: of what stands in its place; what is shared counts with the first layer.
        error: of its own weight or output; None where that is another layer's.
    """

    cost: Cost
    error: float | None


@dataclass(frozen=True)
class Candidate:
    """One way to replace a unit: all that the planner ever sees.

    Args:
        layer: name of the unit's first layer, mostly its only one.
        method: the method with its ranks.
        cost: parameters, bytes and MACs of the replacement's weights.
        error: relative squared error of the weight, ||W - W'||^2 / ||W||^2; with data, of
            the layer's output. Of several layers the sum.
        int8: its linear layers are quantized; the cost and the error are those of that.
        shares: what each layer has of it, where the unit holds several.
        others: the unit's further layers.
    """

    layer: str
    method: Method
    cost: Cost
    error: float
    int8: bool = False
    shares: tuple[Share, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it covers."""
        return (self.layer, *self.others)


@dataclass(frozen=True)
class Whole:
    """A linear layer's own weight in int8.

    Args:
        cost: of the quantized layer.
        error: relative squared error of its rounding, as for `Candidate`.
    """

    cost: Cost
    error: float
    int8: ClassVar[bool] = True


@dataclass(frozen=True)
class Curve:
    """The candidates of one unit.

    Args:
        layer: name of its first layer, mostly its only one.
        dense: cost of its weights as they are.
        candidates: every method at every rank worth considering.
        members: each layer and its dense cost, where the unit holds several.
        behind: the module behind which what they share runs once, if there is one.
        fixed: the unit must take its one candidate, by the user's rule.
        importance: how much an error of the whole output counts; None without data.
        int8: the layer's own weight and its candidates in int8, where that was asked for.
    """

    layer: str
    dense: Cost
    candidates: tuple[Candidate, ...]
    members: tuple[tuple[str, Cost], ...] = ()
    behind: str | None = None
    fixed: bool = False
    importance: Importance | None = None
    int8: tuple[Whole | Candidate, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that the candidates cover."""
        return tuple(name for name, _ in self.members) or (self.layer,)

    @property
    def key(self) -> str:
        """The unit's name among those that are timed and followed."""
        return key_of(self.layers)


def on_one_scale(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """The curves, where layers without a loss of their own, which no gradient reached, have as
    much for the size of their output as the others have in the middle.

    Example:
        >>> from lowrank.compression.network.stages import Cost
        >>> from lowrank.compression.calibration.statistics import Importance
        >>> known = [Importance(2.0, 8.0), Importance(3.0)]
        >>> curves = [Curve("", Cost(1, 1, 1), (), importance=one) for one in known]
        >>> [c.importance.loss for c in on_one_scale(curves)]
        [8.0, 12.0]
    """
    known = [c.importance for c in curves if c.importance is not None]
    rates = [i.loss / i.outputs for i in known if i.loss is not None and i.outputs > 0]
    return tuple(
        replace(c, importance=replace(c.importance, loss=median(rates) * c.importance.outputs))
        if rates and c.importance is not None and c.importance.loss is None
        else c
        for c in curves
    )


def packed(curve: Curve) -> Kept | None:
    """A curve as JSON values; None where they do not tell all of it."""
    record = {
        "layer": curve.layer,
        "dense": astuple(curve.dense),
        "candidates": [_row(c) for c in curve.candidates],
        "members": [[name, astuple(cost)] for name, cost in curve.members],
        "behind": curve.behind,
        "fixed": curve.fixed,
        "importance": None if curve.importance is None else astuple(curve.importance),
        "int8": [_row(c) for c in curve.int8],
    }
    options = [c for c in (*curve.candidates, *curve.int8) if isinstance(c, Candidate)]
    classes = {c.method.name: type(c.method) for c in options}
    kept = Kept(record)
    try:
        whole = unpacked(Kept(json.loads(text_of(record))), classes) == curve
    except (TypeError, ValueError):  # of a user's method, which may hold anything
        return None
    return kept if whole else None


def unpacked(kept: Kept, classes: Mapping[str, type[Method]]) -> Curve:
    """The inverse of `packed`.

    Args:
        kept: the record.
        classes: the methods that it may speak of, by their names.
    """
    record = kept.record
    counts = record["importance"]
    return Curve(
        record["layer"],
        Cost(*record["dense"]),
        tuple(_candidate(row, classes) for row in record["candidates"]),
        tuple((name, Cost(*cost)) for name, cost in record["members"]),
        record["behind"],
        record["fixed"],
        None if counts is None else Importance(*counts),
        tuple(_option(row, classes) for row in record["int8"]),
    )


def _row(option: Candidate | Whole) -> dict[str, Any]:
    row: dict[str, Any] = {"cost": astuple(option.cost), "error": option.error}
    if isinstance(option, Whole):
        return row
    shares = [[astuple(s.cost), s.error] for s in option.shares]
    method = [option.method.name, asdict(option.method)]  # type: ignore[call-overload]
    others = {"others": option.others, "shares": shares, "int8": option.int8}
    return {**row, "layer": option.layer, "method": method, **others}


def _option(row: Mapping[str, Any], classes: Mapping[str, type[Method]]) -> Candidate | Whole:
    if "method" in row:
        return _candidate(row, classes)
    return Whole(Cost(*row["cost"]), row["error"])


def _candidate(row: Mapping[str, Any], classes: Mapping[str, type[Method]]) -> Candidate:
    name, settings = row["method"]
    method = classes[name](**settings)
    shares = tuple(Share(Cost(*cost), error) for cost, error in row["shares"])
    cost, others = Cost(*row["cost"]), tuple(row["others"])
    return Candidate(row["layer"], method, cost, row["error"], row["int8"], shares, others)
