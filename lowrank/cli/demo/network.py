"""`lowrank demo`: the main job on a real trained network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich import box
from rich.table import Table

from lowrank.cli.commands import Commands
from lowrank.cli.console import json_option, show, show_json, tell, working

if TYPE_CHECKING:
    from lowrank.demos.network import Demo


DEMOS = {"recover": "lowrank.cli.demo.sparse", "ecg": "lowrank.cli.demo.ecg"}
"""Further demos (`lowrank demo NAME`) -> the module whose `command` each is."""


@click.group(
    cls=Commands,
    modules=DEMOS,
    invoke_without_command=True,
    short_help="The whole of it on a bundled network.",
    subcommand_metavar="[DEMO]",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=".",
    metavar="FOLDER",
    help="Where the picture goes; the current folder by default.",
)
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Seed of everything random; 0 by default."
)
@json_option
@click.pass_context
def command(ctx: click.Context, output: Path, seed: int, as_json: bool) -> None:
    """Compress a real trained network to half of its MACs, offline, in two minutes.

    A ResNet-20 trained on Fashion-MNIST comes with the package. It is profiled, compressed
    and fine-tuned on 5,000 training pictures; the table shows what that did to its size, its
    speed and its accuracy on 2,000 test pictures. A picture shows the error of a few layers
    against the rank, and the plan.

    \b
    lowrank demo
    lowrank demo --json --output /tmp
    lowrank demo recover              a sparse signal, measured and recovered
    lowrank demo ecg                  a heartbeat from a quarter of its samples
    """
    if ctx.invoked_subcommand is not None:
        _check_place(ctx)
        return
    # Before torch is loaded: threads that wait actively take several times as long on busy cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from lowrank.demos import network as demo

    with working() as progress:
        found = demo.run(seed=seed, progress=progress)
        picture = demo.draw(found, output)
    if as_json:
        show_json(found.to_dict())
    else:
        show(found.profile, found.plan, table(found), notes(found))
    tell(f"wrote {picture}")


def _check_place(ctx: click.Context) -> None:
    """Options before the name of another demo would be lost."""
    for name in ("output", "seed", "as_json"):
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            demo = ctx.invoked_subcommand
            raise click.UsageError(f"options come after the demo's name: lowrank demo {demo} ...")


def table(found: Demo) -> Table:
    """The three networks, one a row, and the last against the first."""
    from lowrank.tables import amount, digits

    dense, last = found.dense, found.finetuned
    footer = (
        "kept",
        _percent(last.parameters / dense.parameters),
        _percent(last.bytes / dense.bytes),
        _percent(last.macs / dense.macs),
        _percent(last.latency.median_ms / dense.latency.median_ms),
        f"{100 * (last.accuracy - dense.accuracy):+.2f} points",
    )
    headers = ("", "parameters", "bytes", "MACs", "latency", "accuracy")
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_footer=True)
    for header, foot in zip(headers, footer, strict=True):
        grid.add_column(header, foot, justify="right" if header else "left", no_wrap=True)
    for name, stage in found.stages.items():
        grid.add_row(
            name.replace("finetuned", "fine-tuned"),
            f"{stage.parameters:,}",
            amount(stage.bytes, "B"),
            amount(stage.macs),
            f"{digits(stage.latency.median_ms)} ms",
            f"{100 * stage.accuracy:.2f} %",
        )
    return grid


def notes(found: Demo) -> str:
    """How the figures were taken, and what they do not show."""
    from lowrank.demos.network import BATCH

    timed = found.finetuned.latency
    threads = f"{timed.threads} thread{'s' if timed.threads != 1 else ''}"
    lines = [
        f"latency: {BATCH} pictures at once on {threads}, median of {timed.runs} passes in turns",
        f"accuracy: {found.n_test:,} test pictures; fine-tuned for {_times(found.epochs)} "
        f"on {found.n_train:,} others",
    ]
    ratio = timed.median_ms / found.dense.latency.median_ms
    if ratio > 1:
        lines.append(f"note: it takes {ratio:.2f} times as long here: fewer MACs are not less time")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _times(epochs: int) -> str:
    return "one epoch" if epochs == 1 else f"{epochs} epochs"
