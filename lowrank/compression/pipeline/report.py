"""What a compression cost and gained: predicted beside measured, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

from lowrank.compression.gauges.counting import TOTAL, count_macs
from lowrank.compression.gauges.memory import MemoryCheck
from lowrank.compression.gauges.quality import Quality
from lowrank.compression.gauges.timing import Latency, LatencyCheck, compare_latency
from lowrank.compression.network.example import Example
from lowrank.compression.network.own_stages import weight_bytes, weight_count
from lowrank.compression.network.stages import Cost
from lowrank.compression.structure.choices import (
    Choice,
    Dense,
    Tied,
    _cells,
    _error,
    describe_choice,
)
from lowrank.compression.structure.plan import Plan, _layers, names_by_reason, selected
from lowrank.errors import InputError
from lowrank.tables import amount, digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console, ConsoleOptions, RenderResult

    from lowrank.drawing import Measure


_RUNS, _WARMUP = 7, 2


@dataclass(frozen=True)
class Figures:
    """A whole model, measured.

    Args:
        parameters: number of parameters, shared ones once.
        bytes: their storage.
        macs: multiply-accumulates on the example; None without an example.
        latency: median time of a forward pass on the example, both models in turns.
    """

    parameters: int
    bytes: int
    macs: int | None
    latency: Latency | None

    @property
    def latency_ms(self) -> float | None:
        """Median time of a forward pass in milliseconds."""
        return None if self.latency is None else self.latency.median_ms

    @classmethod
    def of(
        cls, dense: nn.Module, small: nn.Module, example: Example | None
    ) -> tuple[Figures, Figures]:
        """The figures of the dense and the compressed model, timed in turns."""
        both = (dense, small)
        latency: tuple[Latency | None, ...] = (None, None)
        macs: tuple[int | None, ...] = (None, None)
        if example is not None:
            latency = compare_latency(both, example, repeats=_RUNS, warmup=_WARMUP)
            macs = tuple(count_macs(m, example)[TOTAL] for m in both)
        first, second = (
            cls(
                weight_count(m),
                weight_bytes(m),
                n,
                t,
            )
            for m, n, t in zip(both, macs, latency, strict=True)
        )
        return first, second

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
            "latency_ms": self.latency_ms,
        }


@dataclass(frozen=True)
class LayerReport:
    """One layer of a report.

    Args:
        name: path of the layer.
        kind: its class name.
        choice: what became of it.
        dense: cost of its weights before; None where no method could serve it.
        cost: predicted cost of its replacement; None where it stays dense.
        predicted_error: ||W - W'|| / ||W|| as planned; None where it stays dense.
        measured_error: the same of what was built; the errors are those of the layer's
            output where it was planned and fitted on data.
        fitted: what it was fitted to, in words; None where it stays dense.
        int8: its linear layers are quantized.
    """

    name: str
    kind: str
    choice: Choice
    dense: Cost | None
    cost: Cost | None
    predicted_error: float | None
    measured_error: float | None
    fitted: str | None = None
    int8: bool = False

    @property
    def reason(self) -> str | None:
        """Why the layer stays dense; None where it was replaced."""
        return self.choice.reason if isinstance(self.choice, Dense) else None


@dataclass(frozen=True)
class Report:
    """What a compression cost and gained.

    Args:
        layers: every layer of the model, replaced or dense with the reason.
        plan: the plan that was applied.
        dense: the model before.
        compressed: the model after.
        quality: outputs against the dense model's; None where nothing was run.
        remarks: on the calibration and what followed it.
        latency: the latency budget against the clock; None without one.
        memory: the memory budget against the finished model; None without one.
        staying: where channels were selected, the layers whose channels all stay -> why.
    """

    layers: tuple[LayerReport, ...]
    plan: Plan
    dense: Figures
    compressed: Figures
    quality: Quality | None
    remarks: tuple[str, ...] = ()
    latency: LatencyCheck | None = None
    memory: MemoryCheck | None = None
    staying: Mapping[str, str] = field(default_factory=dict)

    @property
    def replaced(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(row for row in self.layers if not isinstance(row.choice, Dense))

    @property
    def left_alone(self) -> dict[str, str]:
        """Every layer that stays dense -> why."""
        return {r.name: r.choice.reason for r in self.layers if isinstance(r.choice, Dense)}

    def kept(self, measure: str) -> float | None:
        """Kept fraction of "parameters" ("params"), "bytes", "macs" or "latency_ms".

        Raises:
            InputError: another name.
        """
        name = "parameters" if measure == "params" else measure
        if name == "latency_ms" and self.latency is not None:
            return self.latency.measured.ratio  # of rounds in turns, as the budget was judged
        dense, small = self.dense.to_dict(), self.compressed.to_dict()
        if name not in dense:
            known = ", ".join(dense)
            raise InputError("measure", f"{measure!r} is unknown", f"choose among {known}")
        before, after = dense[name], small[name]
        return None if before is None or after is None or not before else after / before

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must not miss."""
        notes = [*self.remarks, *self.plan.notes]
        apart = {r.fitted: r.name for r in self.layers if r.fitted and ": " in r.fitted}
        for fitted in apart:
            names = [r.name for r in self.layers if r.fitted == fitted]
            notes.append(f"fitted {fitted} ({', '.join(names)})")
        if self.quality is not None and not self.quality.held_out:
            notes.append("outputs are compared on the calibration examples: pass val= others")
        notes += [str(check) for check in (self.latency, self.memory) if check is not None]
        ratio = self.kept("latency_ms")
        if self.replaced and ratio is not None and ratio > 1:
            notes.append(
                f"the compressed model runs {ratio:.2f} times as long as the dense one here: "
                "fewer MACs are not less time"
            )
        if not self.replaced and not self.plan.narrowed:
            slow = self.latency is not None and ": the network cannot get faster here"
            notes.append(f"no layer was replaced{slow or ''}")
        return tuple(notes)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "dense": self.dense.to_dict(),
            "compressed": self.compressed.to_dict(),
            "kept": {k: self.kept(k) for k in ("parameters", "bytes", "macs", "latency_ms")},
            "quality": None if self.quality is None else self.quality.to_dict(),
            "latency": None if self.latency is None else asdict(self.latency),
            "memory": None if self.memory is None else asdict(self.memory),
            "notes": list(self.notes),
            "channels": self._channels(),
            "layers": [_layer_to_dict(row) for row in self.layers],
            "plan": self.plan.to_dict(),
        }

    def _channels(self) -> dict[str, dict[str, Any]] | None:
        """What stays of the layers that lost channels, and why others lost none."""
        if not self.plan.narrowed and not self.staying:
            return None
        kept = {
            name: {side: None if k is None else str(k) for side, k in what.sides}
            for name, what in self.plan.narrowed.items()
        }
        return {"kept": kept, "staying": dict(self.staying)}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each replaced layer's error as planned and as built, side by side.

        Args:
            ax: axes to draw on; new ones, as high as the layers need, by default.

        Raises:
            InputError: no layer was replaced.
        """
        from lowrank.compression.pictures.plan import predicted_against_measured

        errors = [(r.name, r.predicted_error, r.measured_error) for r in self.replaced]
        known = [(n, a, b) for n, a, b in errors if a is not None and b is not None]
        return predicted_against_measured(known, ax=ax)

    def save_html(
        self,
        path: str | Path,
        *,
        finetuned: Quality | None = None,
        scores: Mapping[str, Sequence[float | None]] | None = None,
        peak_memory: tuple[int, int] | None = None,
        checkpoint: str | Path | None = None,
        title: str = "Compression report",
    ) -> None:
        """Write the report as one self-contained HTML page.

        Args:
            path: file to write.
            finetuned: outputs of the fine-tuned model against the dense one's.
            scores: further figures of quality, name -> dense, compressed and, where there is
                one, fine-tuned, such as `{"accuracy, %": (95.3, 93.6, 95.0)}`.
            peak_memory: peak bytes of the activations, dense and compressed, as `profile`
                gives them.
            checkpoint: the file that `lowrank.save` wrote, for the instructions.
            title: of the page.

        Raises:
            InputError: a row of `scores` that has neither two nor three figures, or a file that
                cannot be written.

        Example:
            >>> import tempfile, torch, lowrank
            >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
            >>> _, report = lowrank.compress(net, torch.zeros(1, 32), params=0.6)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     report.save_html(f"{folder}/report.html")
            ...     "<h1>Compression report</h1>" in Path(folder, "report.html").read_text("utf-8")
            True
        """
        from lowrank.compression.pipeline.html import save_compression

        save_compression(
            self.to_dict(),
            path,
            finetuned=None if finetuned is None else finetuned.to_dict(),
            scores=scores,
            peak_memory=peak_memory,
            checkpoint=checkpoint,
            timed=_timed(self),
            pictures=_pictures(self),
            title=title,
        )

    def __str__(self) -> str:
        from lowrank.tables import as_text

        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:

        yield from report_tables(self)


def _timed(report: Report) -> str:
    """How the time was taken, in a sentence; empty where nothing was run."""
    latency = report.compressed.latency
    if latency is None:
        return ""
    return (
        f"Latency: median of {latency.runs} forward passes on the example, both models in turns, "
        f"on {latency.device} with {latency.threads} thread{'s' * (latency.threads != 1)}."
    )


def _pictures(report: Report) -> Iterator[tuple[str, Figure, str]]:
    """Heading, picture and caption of what can be drawn."""
    from matplotlib.figure import Figure

    rows = sum(row.dense is not None for row in report.plan.layers.values())
    if rows:
        figure = Figure(figsize=(8, 1.2 + 0.24 * rows), layout="constrained")
        measures: tuple[Measure, ...] = ("macs", "params", "bytes")
        measure: Measure = next((m for m in measures if m in report.plan.budget), "macs")
        report.plan.plot(measure=measure, ax=figure.subplots())
        yield "The plan", figure, "Outline: the dense layer; filled: what is kept of it"
    built = sum(row.measured_error is not None for row in report.replaced)
    if built:
        figure = Figure(figsize=(8, 1.4 + 0.24 * built), layout="constrained")
        report.plot(ax=figure.subplots())
        caption = "Error of each replaced layer, as planned and as built"
        yield "Predicted and measured errors", figure, caption


def _layer_to_dict(row: LayerReport) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "choice": describe_choice(row.choice),
        "replaced": not isinstance(row.choice, Dense),
        "reason": row.reason,
        "tied_to": row.choice.to if isinstance(row.choice, Tied) else None,
        "cost_dense": None if row.dense is None else asdict(row.dense),
        "cost": None if row.cost is None else asdict(row.cost),
        "predicted_error": row.predicted_error,
        "measured_error": row.measured_error,
        "fitted": row.fitted,
        "int8": row.int8,
    }


def report_tables(report: Report) -> Iterator[RenderableType]:
    """The layers as built, the others by reason, the whole model before and after, notes."""
    rows = {
        r.name: _cells(report.plan.layers[r.name]) | {"built": _error(r.measured_error)}
        for r in report.replaced
    }
    yield from _layers(rows, report.plan, report.left_alone, extra=("built",))
    yield from _channel_lines(report)
    yield _figures(report)
    for line in _report_lines(report):
        yield Text(line)


def _channel_lines(report: Report) -> Iterator[RenderableType]:
    """What stays of the layers that lost outputs, and why those of others stay."""
    kept = {n: str(what.outputs) for n, what in selected(report.plan).items()}
    yield from names_by_reason("channels kept", kept)
    yield from names_by_reason("channels that stay", report.staying)


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
        times = f"{digits(before.latency_ms)} ms", f"{digits(after.latency_ms)} ms"
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
            f"{timed.device}, {timed.threads} thread{'s' if timed.threads != 1 else ''}, "
            f"{timed.clock}"
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
