"""A plan: for every layer of a model, the method that replaces it or why it stays dense.

Plans are JSON: printable, diffable, editable by hand, and bound to the model by the class
and the parameter shapes of every layer. Names in a file are looked up among the `known` methods.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text
from torch import nn

from lowrank.atomic import write_text
from lowrank.compression.methods import Method
from lowrank.compression.methods.shared.base import ranks_of
from lowrank.compression.network.channels.narrowing import Narrowed
from lowrank.compression.network.layer_names import suggestion
from lowrank.compression.network.layers import own_shapes
from lowrank.compression.network.scan import holds_parameters, kind_of
from lowrank.compression.network.stages import Cost
from lowrank.compression.structure.choices import (
    Choice,
    Dense,
    PlannedLayer,
    Tied,
    _cells,
    _kept,
    _row_from_dict,
    _row_to_dict,
)
from lowrank.errors import PlanError
from lowrank.tables import _Fitted, amount, by_reason, merge_names

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from lowrank.compression.pictures.plan import Bar


FORMAT, VERSION = "lowrank.plan", 1


@dataclass(frozen=True)
class Plan:
    """What becomes of every layer of a model.

    Args:
        layers: every module that holds parameters, in the model's order -> its row.
        total: cost of the whole dense model on the example.
        budget: the limits that the plan was made for, as given.
        seed: seed of the randomised fits.
        notes: what a reader must not miss, such as a budget that stays unspent.
        narrowed: the layers that lose channels before any is replaced -> what stays of them. The
            rows, with their shapes, are of the layers as narrow.

    Example:
        >>> import torch, lowrank
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> curves = lowrank.measure(model, torch.zeros(1, 64), methods="channel_svd")
        >>> plan = curves.plan(macs=0.5)
        >>> plan["0"]
        ChannelSVD(rank=16, fold='kernel_first')
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    layers: dict[str, PlannedLayer]
    total: Cost
    budget: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    notes: tuple[str, ...] = ()
    narrowed: dict[str, Narrowed] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Choice:
        return self.layers[name].choice

    @property
    def replaced(self) -> dict[str, Method]:
        """The layers that a method replaces, by themselves or with others tied to them."""
        chosen = {name: row.choice for name, row in self.layers.items()}
        return {n: c for n, c in chosen.items() if not isinstance(c, Dense | Tied)}

    @property
    def units(self) -> dict[tuple[str, ...], Method]:
        """The names of the layers that each method covers -> the method."""
        covered = {name: [name] for name in self.replaced}
        for name, row in self.layers.items():
            if isinstance(row.choice, Tied) and row.choice.to in covered:
                covered[row.choice.to].append(name)
        return {tuple(names): self.replaced[first] for first, names in covered.items()}

    @property
    def hosts(self) -> dict[str, tuple[str, ...]]:
        """The modules behind which a shared factor runs -> the layers that share it."""
        units = {names: self.layers[names[0]].behind for names in self.units if len(names) > 1}
        return {host: names for names, host in units.items() if host is not None}

    @property
    def int8(self) -> list[str]:
        """The layers that are quantized after fitting, replaced or dense."""
        return [name for name, row in self.layers.items() if row.int8]

    @property
    def cost(self) -> Cost:
        """Predicted cost of the whole model after the plan."""
        total = self.total
        for row in self.layers.values():
            if row.cost is not None and row.dense is not None:
                total = total - row.dense + row.cost
        return total

    @property
    def error(self) -> float:
        """Predicted relative squared error, summed over the replaced layers."""
        return sum(row.error or 0.0 for row in self.layers.values())

    def with_choice(self, name: str, choice: Choice) -> Plan:
        """The same plan with another choice for one layer, its predictions and int8 dropped.

        The notes, which were of the plan as it was made, are dropped, too.

        Raises:
            PlanError: the plan has no such layer.
        """
        if name not in self.layers:
            raise PlanError(name, "the plan has no such layer", suggestion(name, self.layers))
        bare = {
            n: replace(self.layers[n], cost=None, error=None, int8=False) for n in self.unit(name)
        }
        bare[name] = replace(bare[name], choice=choice)
        return replace(self, layers={**self.layers, **bare}, notes=())

    def unit(self, name: str) -> tuple[str, ...]:
        """The layers that are replaced together with this one, itself included."""
        return next((names for names in self.units if name in names), (name,))

    def check_model(self, model: nn.Module) -> None:
        """Refuse a model that the plan was not made for.

        Raises:
            PlanError: names the first layer that is missing, new, or of another shape.
        """
        modules = dict(model.named_modules())
        for name, row in self.layers.items():
            where = name or "(model)"
            if name not in modules:
                raise PlanError(where, "the model has no such layer", suggestion(name, modules))
            have = own_shapes(modules[name])
            kind = kind_of(modules[name])
            if kind != row.kind or have != row.shapes:
                raise PlanError(
                    where,
                    f"the plan is for {_describe(row.kind, row.shapes)}, "
                    f"the model has {_describe(kind, have)}",
                    "build the model that the plan was made for, or measure this one",
                )
        for name, module in modules.items():
            if name not in self.layers and holds_parameters(module):
                raise PlanError(
                    name or "(model)",
                    "the plan has no row for this layer of the model",
                    'add one, such as {"dense": "by hand"}, or measure this model',
                )

    def diff(self, other: Plan) -> dict[str, tuple[Choice | None, Choice | None]]:
        """Layers whose choice differs: name -> (this plan's, the other's)."""
        names = dict.fromkeys([*self.layers, *other.layers])
        pairs = {
            n: (
                self.layers[n].choice if n in self.layers else None,
                other.layers[n].choice if n in other.layers else None,
            )
            for n in names
        }
        return {n: (a, b) for n, (a, b) in pairs.items() if a != b}

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "budget": self.budget,
            "seed": self.seed,
            "total": asdict(self.total),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"narrowed": narrowed} if (narrowed := self._narrowed_rows()) else {}),
            "layers": {name: _row_to_dict(row) for name, row in self.layers.items()},
        }

    def _narrowed_rows(self) -> dict[str, Any]:
        return {name: what.to_dict() for name, what in self.narrowed.items()}

    def to_json(self) -> str:
        """The plan as JSON text, one layer a line."""
        head = {k: v for k, v in self.to_dict().items() if k != "layers"}
        lines = [f" {json.dumps(k)}: {json.dumps(v)}," for k, v in head.items()]
        rows = [
            f"  {json.dumps(name)}: {json.dumps(_row_to_dict(row))}"
            for name, row in self.layers.items()
        ]
        return "{\n" + "\n".join(lines) + '\n "layers": {\n' + ",\n".join(rows) + "\n }\n}\n"

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all."""
        write_text(Path(path), self.to_json())

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """The plan of JSON values.

        Raises:
            PlanError: the values are no plan of a version that this release reads.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise PlanError("plan", f"it has no format {FORMAT!r}", "pass a plan's JSON")
        if data.get("version") != VERSION:
            raise PlanError(
                "plan", f"version {data.get('version')!r} is not {VERSION}", "make it anew"
            )
        try:
            rows = {name: _row_from_dict(name, row) for name, row in data["layers"].items()}
            total, budget = Cost(**data["total"]), dict(data.get("budget", {}))
            narrowed = dict(data.get("narrowed", {}))
            stays = {name: Narrowed.from_dict(name, row) for name, row in narrowed.items()}
            return cls(rows, total, budget, int(data.get("seed", 0)), _notes_of(data), stays)
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                "plan", f"it is not readable ({type(error).__name__}: {error})", "make it anew"
            ) from error

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of a JSON text.

        Raises:
            PlanError: the text is no JSON, or no plan.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError("plan", f"it is not JSON ({error})", "mend the line") from error
        return cls.from_dict(data)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file.

        Raises:
            PlanError: the file is missing, no JSON, or no plan.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(str(path), f"cannot be read ({error})", "check the path") from error
        return cls.from_json(text)

    def plot(self, *, measure: Literal["macs", "params", "bytes"] = "macs", ax: Any = None) -> Any:
        """Draw what is kept of every layer that a method could replace.

        The outline is the dense layer, the filled part what is kept; the method and its ranks
        stand beside it.

        Args:
            measure: "macs", "params" or "bytes".
            ax: matplotlib axes to draw on; new ones, as high as the plan needs, by default.

        Returns:
            The axes.

        Raises:
            InputError: an unknown measure, or a plan without a layer to draw.
        """
        from lowrank.compression.pictures.plan import plan_bars
        from lowrank.drawing import check_measure

        check_measure(measure)
        before, after = asdict(self.total)[measure], asdict(self.cost)[measure]
        kept = f"{100 * after / before:.1f} %" if before else "nothing"
        what = measure.replace("macs", "MACs")
        title = f"The plan keeps {kept} of {amount(before)} {what}"
        return plan_bars(_bars(self, measure), measure=measure, title=title, ax=ax)

    def __str__(self) -> str:
        from lowrank.tables import as_text

        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:

        yield plan_table(self)


def _notes_of(data: Mapping[str, Any]) -> tuple[str, ...]:
    notes = data.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise PlanError("plan", f"notes {notes!r} are no list of texts", "mend or drop them")
    return tuple(notes)


def _bars(plan: Plan, measure: str) -> list[Bar]:
    """What is kept of every layer that a method could replace."""
    from lowrank.compression.pictures.plan import Bar

    bars = []
    for name, row in plan.layers.items():
        if row.dense is None:
            continue
        before, text = asdict(row.dense)[measure], _short(row.choice)
        if name in plan.narrowed:
            text = "narrower" if isinstance(row.choice, Dense) else f"narrower, {text}"
        after = before if row.cost is None else asdict(row.cost)[measure]
        if row.cost is not None and before:
            text = f"{text}: {100 * after / before:.0f} %"
        bars.append(Bar(name, before, after, text, not isinstance(row.choice, Dense)))
    return bars


def _short(choice: Choice) -> str:
    """`tucker2 12, 9`: the method and its ranks."""
    if isinstance(choice, Dense):
        return "dense"
    if isinstance(choice, Tied):
        return f"factors of {choice.to}"
    return f"{choice.name} {', '.join(map(str, ranks_of(choice)))}"


def _describe(kind: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    inside = ", ".join(f"{k} {v}" for k, v in shapes.items())
    return f"{kind}({inside})"


def _column_sets(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """Columns, widest set first; a narrow terminal sees what the budget is about."""
    measure = "params" if {"params", "bytes"} & set(plan.budget) else "macs"
    both = ("params", "params_kept", "macs", "macs_kept")
    return (
        ("layer", "kind", "method", "rank", *both, "planned"),
        ("layer", "method", "rank", *both, "planned"),
        ("layer", "method", "rank", measure, f"{measure}_kept", "planned"),
        ("layer", "method", "rank", f"{measure}_kept", "planned"),
    )


def plan_table(plan: Plan) -> Group:
    """The replaced layers with what they cost, the others by reason, and the totals."""
    replaced = {n: r for n, r in plan.layers.items() if not isinstance(r.choice, Dense)}
    rows = {name: _cells(row) for name, row in replaced.items()}
    dense = {n: r.choice.reason for n, r in plan.layers.items() if isinstance(r.choice, Dense)}
    return Group(*_layers(rows, plan, dense), Text(_plan_summary(plan)))


def _sharing(plan: Plan) -> Iterator[str]:
    """Which layers share the factors of which, those of one module by their own names."""
    beside: dict[str, list[str]] = {}
    for name, row in plan.layers.items():
        if isinstance(row.choice, Tied):
            (parent, _, _), (other, _, last) = name.rpartition("."), row.choice.to.rpartition(".")
            if parent == other and parent:
                beside.setdefault(last, []).append(name)
            else:
                yield f"{name} shares the factors of {row.choice.to}"
    for last, names in beside.items():
        yield f"sharing the factors of {last} beside them: {', '.join(merge_names(names))}"


def _layers(
    rows: Mapping[str, Mapping[str, str]],
    plan: Plan,
    dense: Mapping[str, str],
    *,
    extra: tuple[str, ...] = (),
) -> Iterator[RenderableType]:
    if rows:
        yield _Fitted(rows, [(*columns, *extra) for columns in _column_sets(plan)], _totals(plan))
    for line in _sharing(plan):
        yield Text(line, overflow="fold")
    narrower = {name: str(what) for name, what in plan.narrowed.items() if name in dense}
    whole = {name: why for name, why in dense.items() if name not in narrower}
    yield from names_by_reason("left dense", whole)
    yield from names_by_reason("narrower, not factorized", narrower)


def names_by_reason(title: str, reasons: Mapping[str, str]) -> Iterator[RenderableType]:
    """The layers below each reason; nothing where there are none."""
    if not reasons:
        return
    yield Text(f"{title} ({len(reasons)}):")
    for reason, names in by_reason(reasons).items():
        yield Text(f"  {reason}")
        yield Padding(Text(", ".join(names), overflow="fold"), (0, 0, 0, 4))
    yield Text()


def _totals(plan: Plan) -> dict[str, str]:
    cost, total = plan.cost, plan.total
    return {
        "layer": "whole model",
        "params": amount(cost.params),
        "params_kept": _kept(cost.params, total.params),
        "macs": amount(cost.macs),
        "macs_kept": _kept(cost.macs, total.macs),
    }


def _plan_summary(plan: Plan) -> str:
    cost, total = plan.cost, plan.total
    given = ", ".join(f"{k}={v:,}" for k, v in plan.budget.items()) or "none"
    unknown = sum(
        row.cost is None and not isinstance(row.choice, Dense | Tied)
        for row in plan.layers.values()
    )
    replaced = sum(not isinstance(row.choice, Dense) for row in plan.layers.values())
    lines = [
        f"{replaced} of {len(plan.layers)} layers replaced; budget {given}",
        f"parameters {_change(total.params, cost.params)}",
        f"bytes      {_change(total.bytes, cost.bytes, 'B')}",
        f"MACs       {_change(total.macs, cost.macs)}",
    ]
    if unknown:
        lines.append(f"{unknown} chosen by hand and counted as dense until the plan is applied")
    lines += [f"channels kept in {name}: {what}" for name, what in selected(plan).items()]
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def selected(plan: Plan) -> dict[str, Narrowed]:
    """The layers that lose outputs; what reads them follows."""
    return {n: what for n, what in plan.narrowed.items() if what.outputs is not None}


def _change(before: int, after: int, unit: str = "") -> str:
    change = f"{amount(before, unit)} -> {amount(after, unit)}"
    return f"{change}, {_kept(after, before)} kept" if before else change
