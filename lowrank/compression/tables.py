"""How plans and reports print: tables as wide as the terminal, layers left dense by reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lowrank.compression.names import ranges
from lowrank.compression.plan import Choice, Dense, Tied, setting
from lowrank.compression.profile_table import amount

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

    from lowrank.compression.plan import Plan, PlannedLayer
    from lowrank.compression.report import Report

_HEADERS = {
    "layer": "layer",
    "kind": "kind",
    "method": "method",
    "rank": "rank",
    "params": "params",
    "params_kept": "kept",
    "macs": "MACs",
    "macs_kept": "kept",
    "planned": "error",
    "built": "built",
}
"""Every column -> what stands above it; text columns first."""

_Label: TypeAlias = "tuple[str, str | None]"
_Labels: TypeAlias = "list[_Label]"
"""What stands in the first column, and the layer, if any, that it stands for."""

_TEXT = frozenset({"layer", "kind", "method"})
"""Columns of words."""

_LEAST = 12
"""Characters of a layer's name that are in one line, however narrow the terminal."""


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


def as_text(printable: RenderableType) -> str:
    """The plain text of what a terminal would show, as wide as this one."""
    console = Console(color_system=None)
    with console.capture() as capture:
        console.print(printable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def plan_table(plan: Plan) -> Group:
    """The replaced layers with what they cost, the others by reason, and the totals."""
    replaced = {n: r for n, r in plan.layers.items() if not isinstance(r.choice, Dense)}
    rows = {name: _cells(row) for name, row in replaced.items()}
    dense = {n: r.choice.reason for n, r in plan.layers.items() if isinstance(r.choice, Dense)}
    return Group(*_layers(rows, plan, dense), Text(_plan_summary(plan)))


def report_tables(report: Report) -> Iterator[RenderableType]:
    """The layers as built, the others by reason, the whole model before and after, notes."""
    rows = {
        r.name: _cells(report.plan.layers[r.name]) | {"built": _error(r.measured_error)}
        for r in report.replaced
    }
    yield from _layers(rows, report.plan, report.left_alone, extra=("built",))
    yield _figures(report)
    for line in _report_lines(report):
        yield Text(line)


def by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> the names of its layers, with the numbers of alike names as ranges.

    Example:
        >>> by_reason({"0.bn": "no weight matrix", "1.bn": "no weight matrix", "fc": "by hand"})
        {'no weight matrix': ['0-1.bn'], 'by hand': ['fc']}
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        groups.setdefault(reason, []).append(name or "(model)")
    return {reason: merge_names(names) for reason, names in groups.items()}


def merge_names(names: Sequence[str]) -> list[str]:
    """Names that differ in consecutive block numbers only, as one name with a range.

    Example:
        >>> merge_names(["a.0.x", "a.0.y", "a.1.x", "a.1.y", "a.4.x"])
        ['a.0-1.x', 'a.4.x', 'a.0-1.y']
    """
    patterns = [tuple(name.split(".")) for name in names]
    for index in range(max((len(p) for p in patterns), default=0)):
        groups: dict[tuple[str, ...], list[int]] = {}
        for parts in patterns:
            number = index < len(parts) and parts[index].isdecimal()
            key = (*parts[:index], "*", *parts[index + 1 :]) if number else parts
            groups.setdefault(key, []).extend([int(parts[index])] if number else [])
        patterns = [
            (*key[:index], run, *key[index + 1 :]) if numbers else key
            for key, numbers in groups.items()
            for run in (ranges(numbers) if numbers else [""])
        ]
    return [".".join(parts) for parts in patterns]


@dataclass(frozen=True)
class _Fitted:
    """A table in the first form that fits the width that it is given.

    Full names first, with ever fewer columns; then an outline, whose labels are shorter.

    Args:
        rows: name -> its cells by column.
        columns: sets of columns to try, the widest first.
        totals: what stands below each column.
    """

    rows: Mapping[str, Mapping[str, str]]
    columns: Sequence[tuple[str, ...]]
    totals: Mapping[str, str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full: _Labels = [(name or "(model)", name) for name in self.rows]
        for labels, columns in product([full, list(_outline(self.rows))], self.columns):
            grid = self._grid(labels, columns)
            wanted = console.measure(grid, options=options.update(width=10_000)).maximum
            if wanted <= options.max_width:
                break
        yield grid

    def _grid(self, labels: _Labels, columns: Sequence[str]) -> Table:
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
        longest = max(len(label) for label, _ in labels)
        for name in columns:
            grid.add_column(
                _header(name, columns),
                footer=Text(self.totals.get(name, "")),
                justify="left" if name in _TEXT else "right",
                no_wrap=name not in ("layer", "method"),
                overflow="fold",
                min_width=min(longest, _LEAST) if name == "layer" else None,
            )
        for label, layer in labels:
            cells = {"layer": label} | dict(self.rows[layer] if layer is not None else {})
            grid.add_row(*(Text(cells.get(name, "")) for name in columns))
        return grid


def _header(name: str, columns: Sequence[str]) -> str:
    """What stands above a column, which depends on its neighbours."""
    if name == "planned" and "built" in columns:
        return "planned"
    measure, _, kept = name.partition("_")
    return f"{_HEADERS[measure]} kept" if kept and measure not in columns else _HEADERS[name]


def _outline(names: Iterable[str]) -> Iterator[_Label]:
    """The names as an outline: (indented label, name), without a name for a heading."""
    known = set(names)
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for part in name.split("."):
            node = node.setdefault(part, {})

    def walk(node: dict[str, Any], above: str, indent: str) -> Iterator[_Label]:
        for label, child in node.items():
            while above + label not in known and len(child) == 1:
                [(part, child)] = child.items()
                label = f"{label}.{part}"
            path = above + label
            yield indent + label, path if path in known else None
            yield from walk(child, f"{path}.", indent + "  ")

    return walk(tree, "", "")


def _layers(
    rows: Mapping[str, Mapping[str, str]],
    plan: Plan,
    dense: Mapping[str, str],
    *,
    extra: tuple[str, ...] = (),
) -> Iterator[RenderableType]:
    if rows:
        yield _Fitted(rows, [(*columns, *extra) for columns in _column_sets(plan)], _totals(plan))
    for name, row in plan.layers.items():
        if isinstance(row.choice, Tied):
            yield Text(f"{name} shares the factors of {row.choice.to}")
    if not dense:
        return
    yield Text(f"left dense ({len(dense)}):")
    for reason, names in by_reason(dense).items():
        yield Text(f"  {reason}")
        yield Padding(Text(", ".join(names), overflow="fold"), (0, 0, 0, 4))
    yield Text()


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
    ranks: list[int] = []
    words = [choice.name]
    for f in fields(choice):  # type: ignore[arg-type]
        value = getattr(choice, f.name)
        if f.name.startswith("rank"):
            ranks.extend(value if isinstance(value, tuple) else (value,))
        elif value != f.default:
            words.append(value if isinstance(value, str) else f"{f.name} {setting(value)}")
    return " ".join(words), ", ".join(map(str, ranks))


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
    return "\n".join(lines)


def _change(before: int, after: int, unit: str = "") -> str:
    change = f"{amount(before, unit)} -> {amount(after, unit)}"
    return f"{change}, {_kept(after, before)} kept" if before else change


def _figures(report: Report) -> Table:
    before, after = report.dense, report.compressed
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column("")
    for header in ("dense", "compressed", "kept", "removed"):
        grid.add_column(header, justify="right", no_wrap=True)
    grid.add_row("parameters", f"{before.parameters:,}", f"{after.parameters:,}", *_both(report))
    sizes = amount(before.bytes, "B"), amount(after.bytes, "B")
    grid.add_row("bytes", *sizes, *_both(report, "bytes"))
    if before.macs is not None and after.macs is not None:
        grid.add_row("MACs", amount(before.macs), amount(after.macs), *_both(report, "macs"))
    if before.latency_ms is not None and after.latency_ms is not None:
        times = f"{before.latency_ms:.3g} ms", f"{after.latency_ms:.3g} ms"
        grid.add_row("latency", *times, *_both(report, "latency_ms"))
    return grid


def _both(report: Report, measure: str = "parameters") -> tuple[str, str]:
    kept = report.kept(measure)
    if kept is None:
        return "", ""
    return f"{100 * kept:.1f} %", f"{100 * (1 - kept):.1f} %" if kept <= 1 else "none"


def _report_lines(report: Report) -> Iterator[str]:
    """What the tables do not say: how it was timed, what happened to the outputs, notes."""
    timed = report.compressed.latency
    if timed is not None:
        yield (
            f"latency: median of {timed.runs} passes in turns on the example, "
            f"{timed.device}, {timed.threads} thread{'s' if timed.threads != 1 else ''}"
        )
    if any(r.predicted_error is not None for r in report.replaced):
        on_data = any(row.fitted and "weights" not in row.fitted for row in report.replaced)
        what = "layer's output on data" if on_data else "weights, ||W - W'|| / ||W||"
        yield f"planned, built: relative error of the {what}"
    if (quality := report.quality) is not None:
        plural = "s" if quality.n_examples != 1 else ""
        answers = ""
        if quality.agreement is not None:
            same = 100 * quality.agreement
            answers = f", same answer {same:.1f} %, KL {quality.kl:.3g} nats"
        yield (
            f"outputs on {quality.n_examples:,} example{plural}: relative error "
            f"{quality.relative_error:.3g}{answers}"
        )
    for note in report.notes:
        yield f"note: {note}"


def _kept(after: int, before: int) -> str:
    return f"{100 * after / before:.1f} %" if before else ""


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.3f}"
