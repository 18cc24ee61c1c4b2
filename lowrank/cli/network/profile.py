"""`lowrank profile`: what a model costs."""

from __future__ import annotations

import click

from lowrank.cli.console import json_option, show, show_json, working
from lowrank.cli.network.source import SOURCE_HELP, Source, source_options


@click.command(
    short_help="What a model costs, layer by layer.",
    help=f"""Count what a model costs, layer by layer: parameters, bytes, MACs, FLOPs, memory, time.

    \b
    lowrank profile net.py:build --input 1x3x224x224
    lowrank profile net.py:build --input 8x3x32x32 --weights small.safetensors --json
    lowrank profile ./my-bert --input input_ids=1x64:int64
{SOURCE_HELP}""",
)
@source_options
@click.option(
    "--repeats",
    type=click.IntRange(min=0),
    metavar="N",
    default=20,
    show_default=True,
    help="Timed passes; 0 leaves the time out.",
)
@json_option
def command(source: Source, repeats: int, as_json: bool) -> None:
    """Profile a model."""
    from lowrank.cli.network.loading import load  # brings torch along
    from lowrank.compression.gauges.profile import profile

    with working() as progress:
        loaded = load(source)
        progress("profiling", 0, 1)
        latency = repeats > 0
        cost = profile(loaded.model, loaded.example, latency=latency, repeats=max(repeats, 1))
    if as_json:
        show_json(cost.to_dict())
    else:
        show(cost)
