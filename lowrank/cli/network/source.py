"""The options that name a model, its weights, its data and its input, alike in every command."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from lowrank.cli.console import FILE
from lowrank.cli.network.values import Input, InputType, ModelName

SOURCE_HELP = """
    \b
    MODEL is one of
      net.py:build                 a function (or class) of a file, called without arguments
      mypackage.nets:build         the same of an importable module
      ./my-bert                    a folder written by transformers' save_pretrained, or by
                                   'lowrank compress -o'; or a .gguf file
    \b
    The example input is the first of these that is there:
      --input 1x3x224x224          random numbers of this shape
      --data batch.safetensors     its first example
      example in net.py            a function beside build, or a value: a tensor, a tuple or
                                   a dict of inputs
      for a transformers folder    one sequence of 128 random tokens, or one picture
"""


@dataclass(frozen=True)
class Source:
    """What the user wants worked on.

    Args:
        model: name of the model.
        weights: file with its weights.
        allow_pickle: whether that file may be a pickled state dict.
        data: file or function with batches.
        inputs: shapes of the example.
    """

    model: str
    weights: Path | None
    allow_pickle: bool
    data: str | None
    inputs: tuple[Input, ...]

    @property
    def files(self) -> list[Path]:
        """The files and folders that are read: of a name FILE.py:FUNCTION the file."""
        named = [Path(n.rpartition(":")[0] or n) for n in (self.model, self.data) if n is not None]
        weights = [] if self.weights is None else [self.weights]
        return [path for path in (*named, *weights) if path.exists()]


def source_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options; the function gets them as one `source`."""

    @functools.wraps(function)
    def with_source(
        *,
        model: str,
        weights: Path | None,
        allow_pickle: bool,
        data: str | None,
        inputs: tuple[Input, ...],
        **rest: Any,
    ) -> None:
        function(source=Source(model, weights, allow_pickle, data, inputs), **rest)

    for option in reversed(_OPTIONS):
        with_source = option(with_source)
    return with_source


_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.argument("model", type=ModelName()),
    click.option(
        "--input",
        "inputs",
        type=InputType(),
        multiple=True,
        metavar="SHAPE",
        help="Shape of the example: 1x3x224x224, with a type 1x128:int64, for a keyword "
        "ids=1x128:int64; repeat it for several inputs. Floats are random, integers all 1.",
    ),
    click.option(
        "--data",
        metavar="FILE",
        help="Batches: .npy, or .safetensors or .npz with one tensor, or one for each keyword of "
        "the model, and 'labels' if you have them; a .txt beside a transformers folder with its "
        "tokenizer; or FILE.py:FUNCTION, which returns a loader, a list of batches, or tensors.",
    ),
    click.option(
        "--weights",
        type=FILE,
        metavar="FILE",
        help="Weights for the model: .safetensors, or what 'lowrank compress -o' wrote.",
    ),
    click.option(
        "--allow-pickle",
        is_flag=True,
        help="Accept --weights as a pickled state dict (.pt, .pth, .bin); only tensors are read.",
    ),
)
