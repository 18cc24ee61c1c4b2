"""The command line: one file for each command, imported when it is asked for.

Standard output holds the result and nothing else; progress, errors and whatever a model's
own code prints go to standard error.
"""

from __future__ import annotations

import click

from lowrank.cli.commands import Commands
from lowrank.version import __version__

COMMANDS = {
    "profile": "lowrank.cli.network.profile",
    "compress": "lowrank.cli.network.compress",
    "evaluate": "lowrank.cli.network.evaluate",
    "recover": "lowrank.cli.signal.recover",
    "demo": "lowrank.cli.demo.network",
}
"""Command -> the module whose `command` it is."""


@click.group(
    cls=Commands,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 failed, 2 a command line that makes no sense, 130 interrupted.",
)
@click.version_option(__version__, prog_name="lowrank")
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
def main(debug: bool) -> None:
    """Factorize trained PyTorch networks under a budget; recover sparse signals, with a proof.

    \b
    lowrank demo                      the whole of it on a bundled network, in two minutes
    lowrank profile net.py:build --input 1x3x224x224
    lowrank compress net.py:build --input 1x3x224x224 --macs 0.5 -o small.safetensors
    lowrank evaluate ./small-llama text.txt
    lowrank recover --matrix A.npy --measurements y.npy -o x.npy
    lowrank demo recover              a sparse signal, measured and recovered
    """
