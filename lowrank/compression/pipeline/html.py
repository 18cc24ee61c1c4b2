"""The report of a compression, and that of a recovery, as self-contained HTML pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.errors import InputError
from lowrank.html_page import Cell, Figure, Page, Section, Table, picture, versions
from lowrank.tables import amount, digits

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


Scores = Mapping[str, Sequence[float | None]]
"""Name of a figure of quality -> dense, compressed and, where there is one, fine-tuned."""


def save_compression(
    report: Mapping[str, Any],
    path: str | Path,
    *,
    finetuned: Mapping[str, Any] | None = None,
    scores: Scores | None = None,
    peak_memory: tuple[int, int] | None = None,
    checkpoint: str | Path | None = None,
    timed: str = "",
    pictures: Iterable[tuple[str, Drawing, str]] = (),
    title: str = "Compression report",
) -> None:
    """Write a compression's report as one HTML page that needs nothing else.

    `Report.save_html` calls it. From the JSON of a report, without pictures, it works too.

    Args:
        report: the figures, as `Report.to_dict` or `lowrank compress --json` gives them.
        path: file to write.
        finetuned: outputs of the fine-tuned model against the dense one's, as in the report.
        scores: further figures of quality, such as `{"accuracy, %": (95.3, 93.6, 95.0)}`.
        peak_memory: peak bytes of the activations, dense and compressed, as `profile` gives them.
        checkpoint: the file that `lowrank.save` wrote, for the instructions.
        timed: how the time was taken, in a sentence.
        pictures: (heading, figure, caption) each; the first stands before the tables.
        title: of the page.

    Raises:
        InputError: a row of `scores` that has neither two nor three figures, or a file that
            cannot be written.

    Example:
        >>> import tempfile, torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
        >>> _, report = lowrank.compress(net, torch.zeros(1, 32), params=0.6)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_compression(report.to_dict(), f"{folder}/report.html")
        ...     "<h1>Compression report</h1>" in Path(folder, "report.html").read_text("utf-8")
        True
    """
    rows = [*_costs(report, peak_memory, finetuned is not None), *_quality(report, finetuned)]
    rows += _scores(scores or {})
    columns = (("figure", False), *((n, True) for n in ("dense", "compressed", "fine-tuned")))
    headline = Table(columns, rows, "headline", sortable=False).told()
    drawn = [
        Section(name, picture=picture(figure), caption=text) for name, figure, text in pictures
    ]
    sections = [
        *drawn[:1],
        Section("Before and after", table=headline, text=_how_measured(report, timed)),
        *_layers(report["layers"], report.get("channels")),
        *_channels(report.get("channels")),
        *drawn[1:],
        Section("How to load the result", code=_loading(checkpoint), text=LOADING),
        Section("Budget, seed and versions", table=versions(*_settings(report["plan"]))),
    ]
    figures = list(_figures(report, finetuned, scores or {}))[:3]
    Page(title, [_summary(report)], report["notes"], sections, figures).save(path)


LOADING = "The file holds weights and the plan, no code: the model is built first, then filled."


def _summary(report: Mapping[str, Any]) -> str:
    """One sentence that says what came of it."""
    kept = [
        f"{100 * ratio:.1f} % of the {name.replace('latency_ms', 'time').replace('macs', 'MACs')}"
        for name in ("parameters", "bytes", "macs", "latency_ms")
        if (ratio := report["kept"][name]) is not None
    ]
    replaced = [row["replaced"] for row in report["layers"]]
    narrower = len((report.get("channels") or {"kept": ()})["kept"])
    also = f", {narrower} narrower" if narrower else ""
    return f"{sum(replaced)} of {len(replaced)} layers replaced{also}. Kept: {', '.join(kept)}."


_MEASURES = {"params": "parameters", "bytes": "bytes", "macs": "macs"}
_NAMES = {"parameters": "of the parameters", "bytes": "of the storage", "macs": "of the MACs"}
_UNITS = {"bytes": "B"}


def _figures(
    report: Mapping[str, Any], finetuned: Mapping[str, Any] | None, scores: Scores
) -> Iterator[Figure]:
    """What was asked to shrink, time and quality; where one was not measured, another size."""
    asked = [_MEASURES[name] for name in report["plan"]["budget"] if name in _MEASURES]
    sizes = list(dict.fromkeys([*asked, "parameters", "macs", "bytes"]))
    known = [name for name in sizes if report["kept"][name] is not None]
    size, *others = (_size(report, name) for name in known)
    yield size
    yield from _time(report)
    yield from _answers(report["quality"] if finetuned is None else finetuned, scores)
    yield from others


def _size(report: Mapping[str, Any], name: str) -> Figure:
    before, after = (
        amount(report[which][name], _UNITS.get(name, "")) for which in ("dense", "compressed")
    )
    return Figure(f"{100 * report['kept'][name]:.1f} %", _NAMES[name], f"{after} of {before}")


def _time(report: Mapping[str, Any]) -> Iterator[Figure]:
    ratio = report["kept"]["latency_ms"]
    if ratio is not None:
        before, after = (digits(report[which]["latency_ms"]) for which in ("dense", "compressed"))
        yield Figure(f"{100 * ratio:.0f} %", "of the time", f"{after} of {before} ms")


def _answers(quality: Mapping[str, Any] | None, scores: Scores) -> Iterator[Figure]:
    """The first score, else the share of same answers, else the error of the outputs."""
    for name, values in scores.items():
        last = next((v for v in reversed(values[1:]) if v is not None), None)
        if last is not None:
            dense = "" if values[0] is None else f"dense: {values[0]:.4g}"
            yield Figure(f"{last:.4g}", name, dense)
            return
    if quality is None:
        return
    if quality["agreement"] is not None:
        yield Figure(f"{100 * quality['agreement']:.1f} %", "same answers as dense")
    else:
        yield Figure(f"{100 * quality['relative_error']:.2f} %", "error of the outputs")


def _how_measured(report: Mapping[str, Any], timed: str) -> str:
    if report["dense"]["macs"] is None:
        return "Nothing was run: no example was given."
    return f"{timed} MACs are multiply-accumulates on the example; 1 MAC is 2 FLOPs.".lstrip()


def _costs(
    report: Mapping[str, Any], peak: tuple[int, int] | None, tuned: bool
) -> Iterator[tuple[Cell, ...]]:
    dense, small, memory = report["dense"], report["compressed"], report["memory"]
    same = Cell("as compressed") if tuned else Cell.missing("not fine-tuned")
    rows: dict[str, tuple[float | None, float | None, str]] = {
        "parameters": (dense["parameters"], small["parameters"], ""),
        "storage": (dense["bytes"], small["bytes"], "B"),
        "MACs": (dense["macs"], small["macs"], ""),
        "peak memory, activations": (*(peak or (None, None)), "B"),
        "latency, ms": (dense["latency_ms"], small["latency_ms"], "ms"),
    }
    if memory is not None:
        rows["peak memory, with weights"] = (memory["dense"], memory["measured"], "B")
    for name, (before, after, unit) in rows.items():
        yield Cell(name), _figure(before, unit), _figure(after, unit, before), same


def _figure(value: float | None, unit: str, whole: float | None = None) -> Cell:
    if value is None:
        return Cell.missing("not measured")
    text = digits(value) if unit == "ms" else amount(value, unit)
    return Cell(f"{text} ({100 * value / whole:.1f} %)" if whole else text, value)


def _quality(
    report: Mapping[str, Any], finetuned: Mapping[str, Any] | None
) -> Iterator[tuple[Cell, ...]]:
    names = {
        "relative_error": ("error of the outputs", lambda v: f"{100 * v:.2f} %"),
        "agreement": ("same answers", lambda v: f"{100 * v:.1f} %"),
        "kl": ("KL divergence, nats", lambda v: f"{v:.3g}"),
    }
    tuned = "not measured" if finetuned is not None else "not fine-tuned"
    for key, (name, show) in names.items():
        cells = []
        for q, why in ((report["quality"], "not measured"), (finetuned, tuned)):
            without = q is not None and key != "relative_error" and q["agreement"] is None
            if q is None or without:
                cells.append(Cell.missing("no classes" if without else why))
            else:
                cells.append(Cell(show(q[key]), q[key]))
        yield Cell(name), Cell("reference"), *cells


def _scores(scores: Scores) -> Iterator[tuple[Cell, ...]]:
    for name, values in scores.items():
        if len(values) not in (2, 3):
            text = f"{len(values)} figures for {name!r}"
            raise InputError("scores", text, "give dense, compressed and, if any, fine-tuned")
        cells = [Cell.missing("not measured") if v is None else Cell(f"{v:.4g}", v) for v in values]
        yield Cell(name), *cells, *([Cell.missing("not fine-tuned")] * (3 - len(values)))


_COLUMNS = (
    ("layer", False),
    ("kind", False),
    ("became", False),
    ("parameters", True),
    ("kept", True),
    ("MACs", True),
    ("kept", True),
    ("planned error", True),
    ("built error", True),
)


def _layers(
    layers: Sequence[Mapping[str, Any]], channels: Mapping[str, Any] | None
) -> Iterator[Section]:
    replaced = [_replaced(row) for row in layers if row["replaced"]]
    if replaced:
        text = "Errors are relative to the layer's weights, or to its outputs where data was given."
        yield Section("Layers that were replaced", text, Table(_COLUMNS, replaced).told())
    narrower = {} if channels is None else channels["kept"]
    dense = [
        (Cell(row["name"] or "(model)"), Cell(row["kind"]), Cell(row["reason"]), _before(row))
        for row in layers
        if not row["replaced"] and row["name"] not in narrower
    ]
    if dense:
        columns = (*_COLUMNS[:2], ("why it stays dense", False), ("parameters", True))
        yield Section("Layers that stay dense, and why", table=Table(columns, dense).told())


def _channels(channels: Mapping[str, Any] | None) -> Iterator[Section]:
    """The layers that lost channels, and those that lost none."""
    if channels is None:
        return
    kept = [
        (Cell(name), *(Cell(sides[side] or "all") for side in ("inputs", "outputs")))
        for name, sides in channels["kept"].items()
    ]
    if kept:
        columns = (("layer", False), ("inputs", False), ("outputs", False))
        text = "Channels that were selected: what stays of each layer that went narrower."
        yield Section("Layers that went narrower", text, Table(columns, kept).told())
    staying = [(Cell(name), Cell(why)) for name, why in channels["staying"].items()]
    if staying:
        why = (("layer", False), ("why its channels stay", False))
        yield Section("Layers whose channels stay", table=Table(why, staying).told())


def _replaced(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    fitted = f"; fitted {row['fitted']}" if row["fitted"] else ""
    became = f"{row['choice']}{'; int8' if row['int8'] else ''}{fitted}"
    cells = [Cell(row["name"]), Cell(row["kind"]), Cell(became)]
    for measure in ("params", "macs"):
        if row["cost_dense"] is None or row["cost"] is None:
            cells += [Cell.missing("shared"), Cell.missing("–")]
            continue
        before, after = row["cost_dense"][measure], row["cost"][measure]
        share = 100 * after / before if before else 100.0
        cells += [Cell(f"{amount(before)} → {amount(after)}", before)]
        cells += [Cell(f"{share:.0f} %", share)]
    for error in (row["predicted_error"], row["measured_error"]):
        missing = Cell.missing("not measured")
        cells.append(missing if error is None else Cell(f"{100 * error:.2f} %", error))
    return tuple(cells)


def _before(row: Mapping[str, Any]) -> Cell:
    cost = row["cost_dense"]
    return Cell.missing("–") if cost is None else Cell(amount(cost["params"]), cost["params"])


def _loading(checkpoint: str | Path | None) -> str:
    if checkpoint is not None and Path(checkpoint).is_dir():
        return f'import lowrank\n\nmodel = lowrank.load_pretrained("{Path(checkpoint).name}")'
    name = "small.safetensors" if checkpoint is None else Path(checkpoint).name
    saving = (
        f'lowrank.save(small, "{name}")  # it was not saved yet\n' if checkpoint is None else ""
    )
    return (
        "import lowrank\n\n"
        f'{saving}model = lowrank.load("{name}", into=build_model())  # build_model: your own\n'
        'lowrank.export_onnx(model, example, "small.onnx")\n'
        'lowrank.export_program(model, example, "small.pt2")'
    )


def _settings(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    budget = ", ".join(f"{name} {value:g}" for name, value in plan["budget"].items())
    return [("budget", budget or "a plan by hand"), ("seed", str(plan["seed"]))]
