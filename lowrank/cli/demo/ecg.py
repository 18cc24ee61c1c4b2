"""`lowrank demo ecg`: a heartbeat from a quarter as many measurements as it has samples."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank.cli.console import FOLDER, json_option
from lowrank.cli.signal.table import present


@click.command(short_help="A heartbeat from a quarter of its samples.")
@click.option(
    "-m",
    "--measured",
    type=click.IntRange(1, 1024),
    default=256,
    metavar="M",
    help="Measurements; 256, a quarter of the samples, by default.",
)
@click.option(
    "--output",
    type=FOLDER,
    default=".",
    metavar="FOLDER",
    help="Where the picture goes; the current folder by default.",
)
@click.option("--seed", type=int, default=0, metavar="N", help="Of the matrix; 0 by default.")
@json_option
@click.pass_context
def command(ctx: click.Context, measured: int, output: Path, seed: int, as_json: bool) -> None:
    """Recover PyWavelets' electrocardiogram, 1024 samples, from 256 random sums of them.

    It is sparse in wavelets, and coarse scales are penalised less than fine ones.

    \b
    lowrank demo ecg
    lowrank demo ecg -m 512 --output /tmp
    """
    from lowrank.demos import signals as recovery_demo
    from lowrank.sensing.progress import progress_bar

    with progress_bar() as bar:
        found = recovery_demo.ecg(measured, seed=seed, callback=bar)
    present(ctx, found, output / "lowrank-demo-ecg.png", as_json=as_json)
