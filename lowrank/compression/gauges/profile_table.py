"""How a profile prints: a table as wide as the terminal, with alike blocks merged."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from lowrank.compression.gauges.timing import Latency
from lowrank.tables import amount, digits, ranges

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table
    from rich.text import Text


_COLUMNS = (
    ("layer", "kind", "output", "parameters", "bytes", "MACs", "%", "FLOPs"),
    ("layer", "kind", "parameters", "bytes", "MACs", "%", "FLOPs"),
    ("layer", "kind", "parameters", "MACs", "%", "FLOPs"),
    ("layer", "kind", "parameters", "MACs", "%"),
)
"""Sets of columns, widest first; a narrow terminal gets the first one that fits."""


_MERGED = re.compile(r"\d[-,]\d")


_Row: TypeAlias = "tuple[str, list[LayerProfile] | None]"


def table(cost: Profile, console: Console, width: int) -> Table:
    """The layers as an outline; alike layers of repeated blocks share a row, which is their sum."""
    rows = list(_outline(merge_alike([layer for layer in cost.layers if _matters(layer)])))
    for columns in _COLUMNS:
        grid = _grid(columns, rows, cost)
        if console.measure(grid, options=console.options.update(width=10_000)).maximum <= width:
            break
    return grid


def summary(cost: Profile) -> Text:
    """What holds for the model as a whole, one fact a line."""
    shapes = ", ".join(f"{name} {shape}" for name, shape in cost.example_shapes.items())
    peak, bound = amount(cost.peak_activation_bytes, "B"), amount(cost.activation_bound_bytes, "B")
    size, buffers = amount(cost.bytes, "B"), amount(cost.buffer_bytes, "B")
    lines = [
        f"{cost.model} on {cost.device}, {_plural(cost.threads, 'thread')}: {shapes}",
        f"parameters  {cost.parameters:,} ({size}), buffers {buffers}",
        f"compute     {amount(cost.macs)} MACs, {amount(cost.flops)} FLOPs (1 MAC = 2 FLOPs)",
        f"activations {peak} at the peak, at least {bound} needed",
    ]
    from rich.text import Text

    return Text("\n".join([*lines, *_notes(cost)]))


def _notes(cost: Profile) -> Iterator[str]:
    """The lines that not every profile has."""
    if cost.latency:
        low, high = cost.latency.quartiles_ms
        yield (
            f"latency     {digits(cost.latency.median_ms)} ms, median of {cost.latency.runs} "
            f"(quartiles {digits(low)} to {digits(high)}), {cost.latency.warmup} before to warm up"
        )
    for layer in cost.layers:
        if layer.tied_to:
            yield f"tied        {layer.name} shares parameters that {layer.tied_to} counts"
    if cost.uncounted:
        yield f"not counted {', '.join(cost.uncounted)}: no rule for what they compute"
    hidden = sum(not _matters(layer) for layer in cost.layers)
    if hidden:
        yield f"not shown   {_plural(hidden, 'layer')} without parameters or arithmetic"


def _grid(columns: Sequence[str], rows: Sequence[_Row], cost: Profile) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_footer=True)
    totals = _totals(cost)
    for name in columns:
        text = name in ("layer", "kind")
        grid.add_column(
            name,
            footer=Text(totals.get(name, "")),
            justify="left" if text else "right",
            no_wrap=not text,
            overflow="fold",
        )
    for label, group in rows:
        cells = {"layer": label} | (_cells(group, cost) if group else {})
        grid.add_row(*(Text(cells.get(name, "")) for name in columns))
    return grid


def merge_alike(layers: Sequence[LayerProfile]) -> list[tuple[str, list[LayerProfile]]]:
    """Group layers that cost the same and whose names differ in one block number only.

    Returns:
        (name, layers) for each group, ordered by its first layer; the block numbers that
        differ are written as ranges.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lowrank.compression import profile
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
        >>> groups = merge_alike(profile(net, torch.zeros(1, 4), latency=False).layers)
        >>> [(name, len(group)) for name, group in groups]
        [('0-1', 2), ('2', 1)]
    """
    groups: list[list[LayerProfile]] = []
    waiting: dict[Any, list[LayerProfile]] = {}
    for layer in layers:
        keys = list(_keys(layer))
        key = next((key for key in keys if key in waiting), None)
        if key is None:
            groups.append([layer])
            waiting |= dict.fromkeys(keys, groups[-1])
            continue
        group = waiting[key]
        for other in set(_keys(group[0])) - {key}:  # only this one number may differ now
            waiting.pop(other, None)
        group.append(layer)
    return [(_merged_name([layer.name for layer in group]), group) for group in groups]


def _keys(layer: LayerProfile) -> Iterator[Any]:
    """The layer with each of its block numbers left out in turn, outermost first."""
    alike = dataclasses.replace(layer, name="")
    parts = layer.name.split(".")
    for index, part in enumerate(parts):
        if part.isdecimal():
            yield (*parts[:index], None, *parts[index + 1 :]), alike


def _merged_name(names: list[str]) -> str:
    columns = zip(*(name.split(".") for name in names), strict=True)
    return ".".join(
        part[0] if len(set(part)) == 1 else ",".join(ranges(map(int, part))) for part in columns
    )


def _matters(layer: LayerProfile) -> bool:
    return bool(layer.parameters or layer.flops or layer.tied_to)


@dataclass
class _Node:
    """A part of the outline: a module that has a row, or a container that only has children."""

    group: list[LayerProfile] | None = None
    children: dict[str, _Node] = field(default_factory=dict)


def _outline(groups: Sequence[tuple[str, list[LayerProfile]]]) -> Iterator[_Row]:
    root = _Node()
    for name, group in groups:
        node = root
        for part in name.split("."):
            node = node.children.setdefault(part, _Node())
        node.group = group
    return _rows(root, "")


def _rows(node: _Node, indent: str) -> Iterator[_Row]:
    for label, child in node.children.items():
        while child.group is None and len(child.children) == 1:
            [(part, child)] = child.children.items()
            label = f"{label}.{part}"
        alike = _MERGED.search(label)
        times = f" x{_size(child)}" if alike else ""
        yield f"{indent}{label}{times}", child.group
        yield from _rows(child, indent + "  ")


def _size(node: _Node) -> int:
    """How many alike layers each row under a merged block number stands for."""
    return len(node.group) if node.group else _size(next(iter(node.children.values())))


def _cells(group: Sequence[LayerProfile], cost: Profile) -> dict[str, str]:
    first, count = group[0], len(group)
    macs = count * first.macs
    return {
        "kind": first.kind,
        "output": " x ".join(map(str, first.output_shape or ())),
        "parameters": "tied" if first.tied_to else _or_dash(count * first.parameters),
        "bytes": _or_dash(count * first.bytes, "B"),
        "MACs": _or_dash(macs),
        "%": f"{100 * macs / cost.macs:.1f}" if macs else "",
        "FLOPs": _or_dash(count * first.flops),
    }


def _totals(cost: Profile) -> dict[str, str]:
    return {
        "layer": "total",
        "parameters": amount(cost.parameters),
        "bytes": amount(cost.bytes, "B"),
        "MACs": amount(cost.macs),
        "%": "100.0" if cost.macs else "",
        "FLOPs": amount(cost.flops),
    }


def _or_dash(value: int, unit: str = "") -> str:
    return amount(value, unit) if value else "-"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class LayerProfile:
    """What one module holds and runs itself, its children not included.

    Attributes:
        name: the module's name in the model; `"(model)"` for the model itself.
        kind: the module's class.
        parameters: elements of the module's own parameters that no earlier module holds.
        bytes: their size in their own dtype.
        buffer_bytes: size of the module's own buffers.
        macs: multiply-accumulates that the module runs.
        flops: 2 x `macs` plus all other arithmetic.
        output_shape: shape of the first floating-point output of the last call.
        calls: how often the module ran.
        tied_to: the module that counts this one's shared parameters, if any.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    buffer_bytes: int
    macs: int
    flops: int
    output_shape: tuple[int, ...] | None
    calls: int
    tied_to: str | None


@dataclass(frozen=True)
class Profile:
    """What a model costs on one example, in total and layer by layer. Prints as a table.

    Attributes:
        model: the model's class.
        layers: every module that holds parameters or buffers, computes, or is a leaf that ran.
        parameters: distinct parameters; a tied one counts once.
        bytes: their size in their own dtype.
        buffer_bytes: size of the buffers.
        macs: multiply-accumulates for the whole batch.
        flops: 2 x `macs` plus all other arithmetic.
        peak_activation_bytes: the most that was alive at one time of all that the forward
            pass allocated, measured. Parameters and the example itself are not in it; on a
            GPU the kernels' workspaces are, on a CPU they are not.
        activation_bound_bytes: the largest sum of one operation's inputs and outputs among
            them. No order of the same operations can do with less.
        latency: time of a forward pass, or None if it was not asked for or there is no data.
        threads: CPU threads that one operation may use.
        device: where the model ran.
        batch_size: examples in the batch.
        example_shapes: shape of every input tensor, by name.
        uncounted: operations without a counting rule; what they cost is missing above.
    """

    model: str
    layers: tuple[LayerProfile, ...]
    parameters: int
    bytes: int
    buffer_bytes: int
    macs: int
    flops: int
    peak_activation_bytes: int
    activation_bound_bytes: int
    latency: Latency | None
    threads: int
    device: str
    batch_size: int
    example_shapes: dict[str, tuple[int, ...]]
    uncounted: tuple[str, ...]

    @property
    def latency_ms(self) -> float | None:
        """Median time of a forward pass in milliseconds."""
        return self.latency.median_ms if self.latency else None

    @property
    def latency_runs(self) -> int:
        """Timed runs behind the median; 0 if the model was not timed."""
        return self.latency.runs if self.latency else 0

    @property
    def warmup(self) -> int:
        """Untimed runs before them."""
        return self.latency.warmup if self.latency else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return {**asdict(self), "latency_ms": self.latency_ms}

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:

        yield table(self, console, options.max_width)
        yield summary(self)
