"""`lowrank demo recover`: a sparse signal, measured and recovered."""

from __future__ import annotations

from pathlib import Path

import click

from lowrank.cli.console import FOLDER, json_option
from lowrank.cli.signal.table import present

COUNT = click.IntRange(min=1)


@click.command(short_help="A sparse signal, measured and recovered.")
@click.option(
    "-n", "--length", type=COUNT, default=400, metavar="N", help="Of the signal; 400 by default."
)
@click.option(
    "-m", "--measured", type=COUNT, default=120, metavar="M", help="Measurements; 120 by default."
)
@click.option(
    "-k", "--sparsity", type=COUNT, default=20, metavar="K", help="Non-zeros; 20 by default."
)
@click.option(
    "--noise",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SHARE",
    help="Norm of the noise as a share of that of the measurements; 0 by default.",
)
@click.option(
    "--kind",
    type=click.Choice(["gaussian", "sign", "uniform", "complex"]),
    default="gaussian",
    help="Of the non-zeros; gaussian by default.",
)
@click.option(
    "--output",
    type=FOLDER,
    default=".",
    metavar="FOLDER",
    help="Where the picture goes; the current folder by default.",
)
@click.option(
    "--seed", type=int, default=0, metavar="N", help="Of everything random; 0 by default."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    length: int,
    measured: int,
    sparsity: int,
    noise: float,
    kind: str,
    output: Path,
    seed: int,
    as_json: bool,
) -> None:
    """Make a K-sparse signal of length N, measure it M times, recover it from that.

    The table is the certificate of the answer; the picture shows the signal, the measurements
    and the recovery.

    \b
    lowrank demo recover
    lowrank demo recover -n 1000 -m 250 -k 50 --noise 0.02 --output /tmp
    """
    from lowrank.demos import signals as recovery_demo
    from lowrank.sensing.progress import progress_bar

    with progress_bar() as bar:
        found = recovery_demo.sparse(
            length,
            measured,
            sparsity,
            noise=noise,
            kind=kind,  # type: ignore[arg-type]  # click has checked it
            seed=seed,
            callback=bar,
        )
    present(ctx, found, output / "lowrank-demo-recover.png", as_json=as_json)
