"""What a plan chooses for one layer, as a row of JSON and of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias

from lowrank.compression.methods import Method, choose, known
from lowrank.compression.methods.shared.base import ranks_of, settings_of
from lowrank.compression.network.stages import Cost
from lowrank.errors import PlanError
from lowrank.tables import amount

_ROW = frozenset(
    ["kind", "shapes", "method", "cost", "cost_dense", "error", "int8", "behind", "asked", "gain"]
)
"""Keys of a replaced layer's row beside the settings of its method."""


@dataclass(frozen=True)
class Dense:
    """The layer stays as it is.

    Args:
        reason: why, for a person to read.
    """

    reason: str = "by hand"


@dataclass(frozen=True)
class Tied:
    """A layer that goes with another one, whose method covers both and whose factors it shares.

    Args:
        to: name of the other: the embedding whose table an output head reads, or the first
            of the layers that share a factor for their input.
    """

    to: str


Choice: TypeAlias = Method | Dense | Tied


@dataclass(frozen=True)
class PlannedLayer:
    """One row of a plan.

    Args:
        kind: class name of the layer.
        shapes: shape of each parameter that the layer itself holds.
        choice: what becomes of it.
        dense: cost of the layer's weights as they are; None where no method could serve it.
        cost: predicted cost of its replacement, or of itself in int8; None where it stays as it is.
        error: predicted relative squared error of the weight or output; None likewise.
        int8: its linear layers (itself, if dense) are quantized after fitting.
        behind: the module behind which the factor that it shares with others runs, once;
            None where nothing is shared, or each of them runs it.
        asked: its parameters whose type or device the model asks for: what stands in its place
            has an empty tensor of each of these names.
        gain: what an embedding multiplies the rows of its table by.
    """

    kind: str
    shapes: dict[str, tuple[int, ...]]
    choice: Choice
    dense: Cost | None = None
    cost: Cost | None = None
    error: float | None = None
    int8: bool = False
    behind: str | None = None
    asked: tuple[str, ...] = ()
    gain: float = 1.0


def describe_choice(choice: Choice) -> str:
    """The choice in a few words: `channel_svd rank 16, kernel_first`."""
    if isinstance(choice, Dense):
        return f"dense: {choice.reason}"
    if isinstance(choice, Tied):
        return f"shares the factors of {choice.to}"
    values = {f.name: getattr(choice, f.name) for f in fields(choice)}  # type: ignore[arg-type]
    words = [v if isinstance(v, str) else f"{k} {setting(v)}" for k, v in values.items()]
    return f"{choice.name} " + ", ".join(words)


def setting(value: object) -> str:
    """A method's setting as a reader wants it.

    Example:
        >>> setting(0.49921507064364207), setting(16)
        ('0.499', '16')
    """
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _row_to_dict(row: PlannedLayer) -> dict[str, Any]:
    choice = row.choice
    if isinstance(choice, Dense):
        chosen: dict[str, Any] = {"dense": choice.reason}
    elif isinstance(choice, Tied):
        chosen = {"tied": choice.to}
    else:
        chosen = {"method": choice.name, **asdict(choice)}  # type: ignore[call-overload]
    out = {"kind": row.kind, "shapes": {k: list(v) for k, v in row.shapes.items()}, **chosen}
    if row.dense is not None:
        out["cost_dense"] = asdict(row.dense)
    if row.cost is not None:
        out |= {"cost": asdict(row.cost), "error": row.error}
    out |= {"behind": row.behind} if row.behind is not None else {}
    out |= {"asked": list(row.asked)} if row.asked else {}
    out |= {"gain": row.gain} if row.gain != 1 else {}
    return out | ({"int8": True} if row.int8 else {})


def _row_from_dict(name: str, row: Mapping[str, Any]) -> PlannedLayer:
    for key in ("kind", "shapes"):
        if key not in row:
            raise PlanError(name, f"its row has no {key!r}", "make the plan anew")
    if not isinstance(row.get("int8", False), bool):
        raise PlanError(name, f"int8 is {row['int8']!r}", "give true or false")
    return PlannedLayer(
        kind=str(row["kind"]),
        shapes={k: tuple(int(n) for n in v) for k, v in row["shapes"].items()},
        choice=_choice_from_dict(name, row),
        dense=Cost(**row["cost_dense"]) if "cost_dense" in row else None,
        cost=Cost(**row["cost"]) if "cost" in row else None,
        error=None if row.get("error") is None else float(row["error"]),
        int8=row.get("int8", False),
        behind=None if row.get("behind") is None else str(row["behind"]),
        asked=tuple(str(name) for name in row.get("asked", ())),
        gain=float(row.get("gain", 1.0)),
    )


def _choice_from_dict(name: str, row: Mapping[str, Any]) -> Choice:
    given = [k for k in ("dense", "tied", "method") if k in row]
    if len(given) != 1:
        what = " and ".join(given) or "none of them"
        raise PlanError(name, f"it has {what}", "give one of 'dense', 'tied' and 'method'")
    if "dense" in row:
        return Dense(str(row["dense"]))
    if "tied" in row:
        return Tied(str(row["tied"]))
    if row["method"] not in known():
        raise PlanError(name, f"method {row['method']!r} is unknown", choose())
    cls = known()[row["method"]]
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    settings = {k: v for k, v in row.items() if k in names}
    spare = set(row) - names - _ROW
    if spare:
        raise PlanError(
            name,
            f"{', '.join(sorted(spare))} is not a setting of {cls.name}",
            f"it has {', '.join(sorted(names))}",
        )
    try:
        return cls(**settings)
    except TypeError as error:
        raise PlanError(name, f"{cls.name} does not take {settings}", str(error)) from error


def _cells(row: PlannedLayer) -> dict[str, str]:
    method, rank = _method_and_rank(row.choice)
    method += " int8" if row.int8 else ""
    cells = {"kind": row.kind, "method": method, "rank": rank}
    if (cost := row.cost) is not None:
        cells |= {"params": amount(cost.params), "macs": amount(cost.macs)}
        if (dense := row.dense) is not None:
            cells["params_kept"] = _kept(cost.params, dense.params)
            cells["macs_kept"] = _kept(cost.macs, dense.macs)
    return cells | {"planned": _error(None if row.error is None else row.error**0.5)}


def _method_and_rank(choice: Choice) -> tuple[str, str]:
    """The method with settings other than its defaults, and its ranks."""
    if isinstance(choice, Tied):
        return "tied", ""  # to what stands below the table: names are long
    assert not isinstance(choice, Dense)
    defaults = {f.name: f.default for f in fields(choice)}  # type: ignore[arg-type]
    words = [choice.name]
    for name, value in settings_of(choice).items():
        if value != defaults[name]:
            words.append(value if isinstance(value, str) else f"{name} {setting(value)}")
    return " ".join(words), ", ".join(map(str, ranks_of(choice)))


def _kept(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else ""


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.3f}"
