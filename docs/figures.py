"""Draw the pictures of the guides: `python docs/figures.py [NAMES]`, all of them by default.

Each goes to `docs/assets/NAME.svg`. What is measured comes from `benchmarks/results/`, whose
scripts made it, or is computed here in seconds; the others are drawings of how things are built.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "docs" / "assets"
RESULTS = ROOT / "benchmarks" / "results"
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALE = {BLUE: "#D6E8F4", ORANGE: "#F8E0CF", GREEN: "#D3EFE6", "#666666": "#EEEEEE"}
GREY = "#666666"
LOOK = {
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "lowrank",
    "savefig.facecolor": "white",
}


def result(name: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((RESULTS / f"{name}.json").read_text("utf-8"))


def accuracies() -> dict[str, dict[float, float]]:
    """Way of compressing -> share of the MACs kept -> mean accuracy, from `resnet20.py`."""
    drawn: dict[str, dict[float, list[float]]] = {}
    for name, row in result("resnet20")["rows"].items():
        if name != "dense":
            way, kept, _ = name.rsplit(" ", 2)
            drawn.setdefault(way, {}).setdefault(float(kept), []).append(row["accuracy"])
    return {
        way: {kept: float(np.mean(values)) for kept, values in sorted(rows.items())}
        for way, rows in drawn.items()
    }


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty sheet, in units of a tenth of an inch."""
    figure, ax = plt.subplots(figsize=(width, height), layout="none")
    ax.set_position((0, 0, 1, 1))
    ax.set(xlim=(0, 10 * width), ylim=(10 * height, 0))
    ax.axis("off")
    return figure, ax


def box(
    ax: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = BLUE
) -> None:
    """A box with words in it."""
    style = "round,pad=0,rounding_size=0.6"
    pale = PALE[colour]
    patch = FancyBboxPatch((x, y), width, height, boxstyle=style, fc=pale, ec=colour, lw=1.2)
    ax.add_patch(patch)
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow from one point to another."""
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="#333333"))


def overview() -> Figure:
    """What both halves do, on the bundled network and on a drawn signal."""
    import lowrank
    from lowrank.sensing import operators, sparse_signal

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7))
    ways = accuracies()
    lines = (
        ("default", "compressed, 256 pictures, no labels", BLUE, "o-"),
        ("fine-tuned", "and fine-tuned, two epochs", ORANGE, "s--"),
    )
    for way, label, colour, look in lines:
        kept, values = zip(*ways[way].items(), strict=True)
        left.plot([100 * k for k in kept], values, look, color=colour, label=label)
    dense = result("resnet20")["rows"]["dense"]["accuracy"]
    left.axhline(dense, color=GREY, lw=1, label=f"dense, {dense:.1f} %")
    left.set(xlabel="MACs kept, %", ylabel="accuracy, %", xlim=(55, 8), ylim=(90, 95))
    left.set_title("A ResNet-20 made smaller", fontsize=11)
    left.legend(loc="lower left", fontsize=9)
    n, m, k = 256, 64, 8
    x = sparse_signal(n, k, seed=1)
    A = operators.gaussian(m, n, seed=2).to_dense()
    found = lowrank.recover(A, A @ x).x
    at = np.flatnonzero(np.abs(found) > 1e-9)
    right.plot(np.linalg.pinv(A) @ (A @ x), color=GREEN, lw=0.9, label="least squares")
    right.vlines(at, 0, found[at], color=BLUE, lw=1)
    right.plot(at, found[at], "x", color=BLUE, ms=7, label="recovered")
    right.plot(at, x[at], "o", mfc="none", color=ORANGE, ms=9, label="the signal")
    right.set(xlabel="index", ylim=(-1.15, 0.8))
    right.set_title(f"{n} numbers found from {m} measurements", fontsize=11)
    right.legend(loc="lower left", fontsize=9, ncols=3, columnspacing=1)
    return figure


CHAINS = {
    "dense": [("k × k\nc → d", 8, GREY)],
    "channel_svd": [("k × k\nc → r", 4, BLUE), ("1 × 1\nr → d", 4, ORANGE)],
    "spatial_svd": [("k × 1\nc → r", 4, BLUE), ("1 × k\nr → d", 4, BLUE)],
    "tucker2": [
        ("1 × 1\nc → r₁", 4, ORANGE),
        ("k × k\nr₁ → r₂", 3, BLUE),
        ("1 × 1\nr₂ → d", 4, ORANGE),
    ],
    "cp": [
        ("1 × 1\nc → r", 4, ORANGE),
        ("k × 1\neach of r", 3, GREEN),
        ("1 × k\neach of r", 3, GREEN),
        ("1 × 1\nr → d", 4, ORANGE),
    ],
    "tensor_train": [
        ("1 × 1\nc → r₁", 4, ORANGE),
        ("k × 1\nr₁ → r₂", 3, BLUE),
        ("1 × k\nr₂ → r₃", 3, BLUE),
        ("1 × 1\nr₃ → d", 4, ORANGE),
    ],
    "group_svd": [("k × k\nin g groups", 4, GREEN), ("1 × 1\nmixes", 4, ORANGE)],
    "depthwise_separable": [("k × k\nm a channel", 4, GREEN), ("1 × 1\nm c → d", 4, ORANGE)],
}
"""Method -> its layers: what they do, how wide they are drawn, and the colour of their kind."""


def methods() -> Figure:
    """What a k x k convolution from c to d channels becomes."""
    figure, ax = blank(8.6, 0.72 * len(CHAINS) + 0.55)
    for row, (name, layers) in enumerate(CHAINS.items()):
        y = 7.2 * row + 1.2
        ax.text(1, y + 2.6, name, va="center", family="monospace", fontsize=10)
        x = 23.0
        for at, (text, size, colour) in enumerate(layers):
            width = 1.6 * size + 5
            if at:
                arrow(ax, (x - 2.8, y + 2.6), (x - 0.2, y + 2.6))
            box(ax, x, y, width, 5.2, text, colour)
            x += width + 3
    y = 7.2 * len(CHAINS) + 1.6
    kinds = ((BLUE, "a kernel across all channels"), (ORANGE, "1 × 1: mixes channels"))
    x = 1.0
    for colour, words in (*kinds, (GREEN, "few channels each: depthwise or grouped")):
        ax.add_patch(Rectangle((x, y), 2, 2, fc=PALE[colour], ec=colour))
        ax.text(x + 2.8, y + 1.1, words, va="center", fontsize=9)
        x += 6 + 1.32 * len(words) * 0.58
    return figure


def problems() -> Figure:
    """Which problem fits what is known, and what answers it."""
    rows = (
        ("nothing but y: it is exact", "basis pursuit", "recover(A, y)", "certified"),
        ("a bound on the noise", "BPDN", "recover(A, y, noise=0.01)", "certified"),
        ("that there is noise", "LASSO", "recover(A, y, lam_fraction=0.05)", "certified"),
        ("how many are not zero", "greedy", "recover(A, y, sparsity=10)", "no certificate"),
        ("a basis it is sparse in", "any of these", 'recover(A, y, basis="dct")', "certified"),
        (
            "that it is piecewise constant",
            "total variation",
            "solve(total_variation(A, y, shape))",
            "certified",
        ),
        ("some y are grossly wrong", "L1 fit", "solve(L1Fit(A, y))", "certified"),
    )
    figure, ax = blank(9.2, 0.62 * len(rows) + 0.5)
    for x, head in ((13.5, "you know …"), (37, "so minimise"), (64, "call")):
        ax.text(x, 2, head, ha="center", va="center", weight="bold")
    for row, (known, problem, call, proof) in enumerate(rows):
        y = 6.2 * row + 4
        box(ax, 1, y, 25, 4.6, known, GREY)
        arrow(ax, (26.2, y + 2.3), (28.8, y + 2.3))
        box(ax, 29, y, 16, 4.6, problem, BLUE)
        arrow(ax, (45.2, y + 2.3), (47.8, y + 2.3))
        colour = GREEN if proof == "certified" else ORANGE
        box(ax, 48, y, 32, 4.6, "", colour)
        ax.text(64, y + 2.3, call, ha="center", va="center", family="monospace", fontsize=9)
        ax.text(80.6, y + 2.3, proof, va="center", fontsize=9, color=colour)
    return figure


def solvers() -> Figure:
    """How far each family goes: share of signals found against the number of non-zeros."""
    import lowrank
    from lowrank.sensing import PosteriorMean, l1_threshold, operators, solve, sparse_signal

    n, m, trials = 256, 128, 12
    ks = np.arange(8, 81, 8)
    ways: dict[str, tuple[Callable[[Any, Any, int], Any], str, str]] = {
        "omp": (lambda A, y, k: lowrank.recover(A, y, sparsity=k, solver="omp"), GREEN, "^-."),
        "exact_l1": (lambda A, y, k: lowrank.recover(A, y), BLUE, "o-"),
        "bg_amp": (lambda A, y, k: solve(PosteriorMean(A, y), "bg_amp"), PINK, "D--"),
    }
    figure, ax = plt.subplots(figsize=(7.2, 3.4))
    for name, (find, colour, look) in ways.items():
        shares = []
        for k in ks:
            found = 0
            for trial in range(trials):
                x = sparse_signal(n, int(k), seed=(int(k), trial))
                A = operators.gaussian(m, n, seed=trial).to_dense()
                found += np.linalg.norm(find(A, A @ x, int(k)).x - x) < 1e-4 * np.linalg.norm(x)
            shares.append(100 * found / trials)
        ax.plot(ks, shares, look, color=colour, label=f"{name}")
    ax.axvline(l1_threshold(m / n) * m, color=GREY, ls=":", label="exact limit of L1")
    ax.set(xlabel=f"non-zeros k (n = {n}, m = {m})", ylabel="signals found, %")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def budgets() -> Figure:
    """Planned error of the bundled network against what is kept, and the plan at half the MACs."""
    import torch

    import lowrank
    from lowrank.demos.bundled import resnet20

    model, example = resnet20(), torch.zeros(1, 1, 28, 28)
    curves = lowrank.measure(model, example, methods=["channel_svd", "spatial_svd"])
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.6), width_ratios=(1, 1.25))
    kept = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2)
    for measure, colour, look in (("macs", BLUE, "o-"), ("params", ORANGE, "s--")):
        errors = [curves.plan(**{measure: share}).error for share in kept]
        label = {"macs": "MACs", "params": "parameters"}[measure]
        axes[0].plot([100 * share for share in kept], errors, look, color=colour, label=label)
    axes[0].set(
        xlabel="kept, %", ylabel="planned error, summed", title="One measurement, any budget"
    )
    axes[0].invert_xaxis()
    axes[0].legend(title="budget of", loc="upper left")
    curves.plan(macs=0.5).plot(ax=axes[1])
    return figure


def fine_tuning() -> Figure:
    """Points that are lost by each way, at four budgets, from `benchmarks/resnet20.py`."""
    dense = result("resnet20")["rows"]["dense"]["accuracy"]
    ways = accuracies()
    shown = (
        ("default", "compress", BLUE, ""),
        ("refined", "compress(refine=True), thorough", GREEN, ".."),
        ("fine-tuned", "finetune, two epochs, labels", ORANGE, "//"),
    )
    budgets_kept = (0.5, 0.33, 0.2, 0.12)
    figure, ax = plt.subplots(figsize=(7.6, 3.6))
    for at, (way, label, colour, hatch) in enumerate(shown):
        known = [(i, dense - ways[way][k]) for i, k in enumerate(budgets_kept) if k in ways[way]]
        where, lost = zip(*known, strict=True)
        bars = ax.bar(
            np.array(where) + 0.27 * (at - 1),
            lost,
            0.25,
            color=colour,
            hatch=hatch,
            label=label,
            ec="white",
        )
        ax.bar_label(bars, fmt="%.2f", fontsize=9, padding=1)
    ax.set_xticks(range(len(budgets_kept)), [f"{k:.0%}" for k in budgets_kept])
    ax.set(xlabel="MACs kept", ylabel="points below dense")
    ax.grid(axis="x", visible=False)
    ax.legend(loc="upper left")
    return figure


def serving() -> Figure:
    """Loss against time, planned by the clock and by MACs, from `latency_accuracy.py`."""
    figure, ax = plt.subplots(figsize=(7.2, 3.6))
    kinds = (
        ("by_the_clock", "planned by the clock", BLUE, "o"),
        ("macs_of_equal_loss", "planned by MACs\nto lose as much", ORANGE, "s"),
    )
    rows = result("latency_accuracy")["rows"]
    for kind, label, colour, marker in kinds:
        points = list({row[kind]["kept_macs"]: row[kind] for row in rows}.values())
        times = [100 * p["latency_ratio"] for p in points]
        lost = [p["points_below_dense"] for p in points]
        ax.plot(times, lost, marker, color=colour, ms=8, ls="none", label=label)
        for p, x, y in zip(points, times, lost, strict=True):
            words, left = f"{100 * p['kept_macs']:.0f} %", x < 70
            side = {"ha": "right" if left else "left", "va": "center", "fontsize": 9}
            ax.annotate(words, (x, y), (-8 if left else 8, 0), textcoords="offset points", **side)
    ax.axvline(100, color=GREY, lw=1)
    ax.text(
        99.3, 0.63, "as slow as dense", rotation=90, ha="right", va="bottom", color=GREY, fontsize=9
    )
    ax.set(
        xlabel="time of the dense network, %",
        ylabel="points below dense",
        xlim=(45, 138),
        ylim=(0.6, 2.1),
    )
    ax.legend(title="label: MACs kept", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def coming_from() -> Figure:
    """What is left of one layer, whoever compressed it."""
    figure, ax = blank(9.2, 2.7)
    shapes: Sequence[tuple[str, str, list[tuple[float, float, float, float, str]]]] = (
        ("dense", "W: d × c", [(0, 0, 12, 12, GREY)]),
        (
            "pruning, lowrank\n(select)",
            "fewer channels:\nneighbours shrink too",
            [(0, 0, 8, 8, GREEN)],
        ),
        (
            "AIMET (spatial SVD),\nlowrank",
            "two factors of rank r:\nno neighbour changes",
            [(0, 0, 4, 12, BLUE), (5, 0, 12, 4, BLUE)],
        ),
        (
            "tensorly-torch",
            "factors, multiplied out\nin each pass",
            [(0, 0, 3, 12, ORANGE), (4, 0, 4, 4, ORANGE), (9, 0, 12, 3, ORANGE)],
        ),
        (
            "lowrank (low rank\nplus sparse)",
            "factors, and a few\nwhole channels",
            [
                (0, 0, 3, 12, BLUE),
                (4, 0, 12, 3, BLUE),
                (4, 5, 1.2, 7, GREEN),
                (6, 5, 1.2, 7, GREEN),
            ],
        ),
    )
    for at, (title, words, parts) in enumerate(shapes):
        left = 18.4 * at + 1
        ax.text(left, 2.4, title, va="center", weight="bold", fontsize=10)
        for x, y, w, h, colour in parts:
            ax.add_patch(
                Rectangle((left + 0.75 * x, 6 + y), 0.75 * w, h, fc=PALE[colour], ec=colour, lw=1.2)
            )
        ax.text(left, 20, words, va="top", fontsize=10)
    return figure


def transformers() -> Figure:
    """Perplexity of a small language model at three budgets, from `language.py`."""
    saved = result("language")
    names = {
        "handbook": "a handbook",
        "reference": "a reference manual",
        "novel": "a novel, not seen",
    }
    rows = [r for r in saved["rows"] if r["settings"]["methods"] is None]
    rows = [r for r in rows if r["settings"]["effort"] == "default" and not r["settings"]["refine"]]
    rows = sorted(rows, key=lambda r: -r["settings"]["keep"])
    figure, ax = plt.subplots(figsize=(7.8, 3.0))
    for k, (name, color) in enumerate(zip(names, (BLUE, GREEN, ORANGE), strict=True)):
        ratios = [r["texts"][name]["ratio"] for r in rows]
        places = [at + 0.27 * (k - 1) for at in range(len(rows))]
        bars = ax.bar(places, ratios, 0.25, color=color, label=names[name])
        ax.bar_label(bars, [f"{v:.2f}" for v in ratios], padding=2, fontsize=9)
    ax.axhline(1, color=GREY, linewidth=1)
    kept = [f"{100 * r['settings']['keep']:.0f} % of the blocks" for r in rows]
    ax.set_xticks(range(len(rows)), kept)
    ax.set(ylabel="perplexity over dense", ylim=(0, None))
    ax.margins(y=0.1)
    ax.legend(frameon=False, loc="upper left")
    ax.grid(axis="x", visible=False)
    return figure


def recovery_from() -> Figure:
    """The problem of the page for those who come from elsewhere, and its two answers."""
    import lowrank

    rng = np.random.default_rng(0)
    A = rng.standard_normal((100, 256)) / 10
    x = np.zeros(256)
    x[rng.permutation(256)[:12]] = rng.standard_normal(12)
    e = 0.01 * rng.standard_normal(100)
    noise = float(np.linalg.norm(e))
    figure, ax = plt.subplots(figsize=(7.8, 2.8))
    marks = (("optimum", BLUE, "x", 7), ("mean", GREEN, "+", 9))
    for estimate, color, mark, size in marks:
        found = lowrank.recover(A, A @ x + e, noise=noise, estimate=estimate).x
        at = np.flatnonzero(np.abs(found) > 1e-3)
        off = np.linalg.norm(found - x) / np.linalg.norm(x)
        label = f'estimate="{estimate}", {100 * off:.1f} % off'
        ax.plot(at, found[at], mark, color=color, ms=size, label=label)
    held = np.flatnonzero(x)
    ax.vlines(held, 0, x[held], color=ORANGE, lw=1)
    ax.plot(held, x[held], "o", mfc="none", color=ORANGE, ms=9, label="the signal")
    ax.axhline(0, color=GREY, lw=0.8)
    ax.set(xlabel="index", xlim=(-4, 260))
    ax.margins(y=0.25)
    ax.legend(loc="lower left", fontsize=9, ncols=3, columnspacing=1)
    return figure


def large_models() -> Figure:
    """A folder larger than memory, compressed block by block."""
    figure, ax = blank(8.6, 2.3)
    for at in range(4):
        dark = at == 1
        box(ax, 2, 4.6 + 4 * at, 18, 3.2, f"block {at + 1}", BLUE if dark else GREY)
        box(ax, 66, 4.6 + 4 * at, 18, 3.2, f"block {at + 1}", ORANGE if at == 0 else GREY)
    ax.text(11, 2.2, "folder, safetensors", ha="center", weight="bold", fontsize=9)
    ax.text(43, 2.2, "memory: one block", ha="center", weight="bold", fontsize=9)
    ax.text(75, 2.2, "smaller folder", ha="center", weight="bold", fontsize=9)
    box(ax, 32, 6, 22, 13, "block 2\ncalibrate, plan, fit", BLUE)
    arrow(ax, (20.3, 10.2), (31.7, 11.5))
    arrow(ax, (54.3, 11.5), (65.7, 10.2))
    return figure


def selection() -> Figure:
    """Channels go from the layer that makes them, its norm and the layers that read them."""
    figure, ax = blank(8.2, 2.5)
    parts = (
        ("makes them:\na row each", 4),
        ("norm:\nan entry each", 32),
        ("read them:\na column each", 60),
    )
    gone = (1, 4, 5)
    for words, x in parts:
        upright = "column" in words
        long, short = 16.0, 1.7
        for at in range(7):
            colour = ORANGE if at in gone else BLUE
            w, h = (short, 13.0) if upright else (6.0 if "entry" in words else long, short)
            left, top = (x + 2.1 * at, 2.0) if upright else (x, 1.2 + 2.1 * at)
            dash = "--" if at in gone else "-"
            fill = "white" if at in gone else PALE[colour]
            ax.add_patch(Rectangle((left, top), w, h, fc=fill, ec=colour, ls=dash))
        ax.text(x, 17.2, words, va="top", fontsize=9)
    arrow(ax, (22, 8.5), (30, 8.5))
    arrow(ax, (40, 8.5), (58, 8.5))
    ax.text(
        32,
        23.5,
        "dashed: dropped; what reads them is refitted",
        va="center",
        fontsize=9,
        color=ORANGE,
    )
    return figure


def report() -> Any:
    """The top of a report's page, as Chromium shows it: an array of pixels."""
    import shutil
    import tempfile

    import torch
    from playwright.sync_api import sync_playwright

    import lowrank
    from lowrank.demos.bundled import fashion_mnist, resnet20

    model, images, others = resnet20(), *(fashion_mnist(part)[0] for part in ("train", "test"))
    torch.manual_seed(0)
    given = {"data": images[:128], "val": others[:256], "effort": "quick"}
    _, made = lowrank.compress(model, images[:64], macs=0.5, methods=["channel_svd"], **given)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        path = Path(folder) / "report.html"
        made.save_html(path)
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 900, "height": 1150}, device_scale_factor=1.6)
        tab.goto(path.as_uri())
        tab.screenshot(path=Path(folder) / "page.png")
        browser.close()
        return plt.imread(Path(folder) / "page.png")


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "overview": overview,
    "methods": methods,
    "problems": problems,
    "solvers": solvers,
    "budgets": budgets,
    "fine_tuning": fine_tuning,
    "serving": serving,
    "coming_from": coming_from,
    "transformers": transformers,
    "large_models": large_models,
    "recovery_from": recovery_from,
    "selection": selection,
}


def save_pixels(path: Path, pixels: Any) -> None:
    """Write a picture of a page in 64 colours."""
    from PIL import Image

    whole = Image.fromarray((255 * pixels[..., :3]).round().astype(np.uint8))
    whole.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def main(names: Sequence[str]) -> None:
    """Draw the pictures of these names and write them; "report" needs a browser."""
    for name in names:
        if name == "report":
            save_pixels(ASSETS / "report.png", report())
            continue
        with mpl.rc_context(LOOK):
            figure = DRAWINGS[name]()
            figure.savefig(ASSETS / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:] or [*DRAWINGS, "report"])
