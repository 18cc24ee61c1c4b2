"""`lowrank evaluate`: how well a language model predicts a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lowrank.cli.console import FILE, TARGET, fail, json_option, show, show_json, working
from lowrank.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from lowrank.compression.gauges.perplexity import Perplexity


@click.command(
    short_help="Perplexity and bits per byte of a language model on a text.",
    help="""Measure how well a causal language model predicts a text.

    \b
    lowrank evaluate ./small-llama text.txt
    lowrank evaluate ./llama text.txt --window 2048 --stride 1024 --json

    MODEL is a folder written by transformers' save_pretrained or by 'lowrank compress -o', with
    its tokenizer, or a .gguf file. TEXT is UTF-8. Each token counts once, but for the first.
    """,
)
@click.argument("model", type=TARGET)
@click.argument("text", type=FILE)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens that the model reads at a time; by default 1024, or all its positions.",
)
@click.option(
    "--stride",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens from one window to the next; by default the window.",
)
@click.option(
    "--allow-pickle", is_flag=True, help="Accept weights in a pickled file (.bin) of the folder."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    model: Path,
    text: Path,
    window: int | None,
    stride: int | None,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Evaluate a model."""
    try:
        found = _found(model, text, window, stride, allow_pickle)
    except InputError as error:
        if ctx.find_root().params["debug"]:
            raise
        fail(str(error))
        ctx.exit(2)
    if as_json:
        show_json(found.to_dict())
    else:
        show(_table(found))


def _found(
    model: Path, text: Path, window: int | None, stride: int | None, allow_pickle: bool
) -> Perplexity:
    from lowrank.cli.network import pretrained  # brings torch along
    from lowrank.compression.gauges.perplexity import perplexity
    from lowrank.compression.gauges.texts import documents

    documents(text)  # before a model is loaded
    with working() as progress:
        progress("loading", 0, 1)
        net = pretrained.load(model, allow_pickle=allow_pickle)
        tokens = pretrained.tokenizer(model)
        return perplexity(net, tokens, text, window=window, stride=stride, progress=progress)


def _table(found: Perplexity) -> Table:
    from rich.table import Table

    table = Table("", "value", "standard error", title=f"{found.tokens:,} tokens")
    for column in table.columns[1:]:
        column.justify = "right"
    error = found.perplexity * found.standard_error
    table.add_row("perplexity", f"{found.perplexity:.4g}", _figure(error))
    table.add_row("bits per byte", f"{found.bits_per_byte:.4g}", _figure(found.bits_per_byte_error))
    table.add_row("nats per token", f"{found.nats_per_token:.4g}", _figure(found.standard_error))
    plural = "" if found.windows == 1 else "s"
    table.caption = (
        f"{found.windows} window{plural} of {found.window} tokens, stride {found.stride}; "
        "the first token is not scored"
    )
    return table


def _figure(error: float) -> str:
    return "" if error != error else f"{error:.2g}"  # NaN for one window
