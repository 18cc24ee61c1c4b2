"""How plans and reports print: tables as wide as the terminal, layers left dense by reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:  # rich is slow to import, and wanted only to print
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table


_HEADERS = {
    "layer": "layer",
    "kind": "kind",
    "method": "method",
    "rank": "rank",
    "params": "parameters",
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


def as_text(printable: RenderableType) -> str:
    """The plain text of what a terminal would show, as wide as this one."""
    from rich.console import Console

    console = Console(color_system=None)
    with console.capture() as capture:
        console.print(printable)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


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
        from rich import box
        from rich.table import Table
        from rich.text import Text

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


def ranges(numbers: Iterable[int]) -> list[str]:
    """Consecutive numbers as first and last.

    Example:
        >>> ranges([5, 0, 1, 2])
        ['0-2', '5']
    """
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def digits(value: float) -> str:
    """A time with three digits, or all that stand before the point.

    Example:
        >>> digits(0.51349), digits(23.456), digits(1346.2)
        ('0.513', '23.5', '1,346')
    """
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def amount(value: float, unit: str = "") -> str:
    """A count with four digits and an SI prefix.

    Example:
        >>> amount(25_557_032), amount(1_088_744, "B"), amount(640)
        ('25.56 M', '1.089 MB', '640')
    """
    if value < 1000:
        return f"{value:g} {unit}".rstrip()
    power = min(int(math.log10(value * 1.00005)) // 3, 5)  # 999,950 is already 1.000 M
    return f"{value / 1000**power:#.4g} {' kMGTP'[power]}{unit}"
