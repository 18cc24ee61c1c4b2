"""What the commands share in talking: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of tables."
)


def fail(message: str) -> None:
    """One red line on stderr, however long."""
    tell(Text(f"error: {message}", style="red"))


def tell(message: str | Text) -> None:
    """One line on stderr; a terminal wraps it, a file does not."""
    text = message if isinstance(message, Text) else Text(message)
    Console(stderr=True).print(text, soft_wrap=True)


def show(*results: RenderableType) -> None:
    """Print results as tables on stdout."""
    console = Console()
    for result in results:
        console.print(result)


def show_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and Inf, which JSON lacks, become null."""
    click.echo(json.dumps(_finite(value), indent=2, allow_nan=False))


@contextmanager
def working() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr where that is a terminal; prints of foreign code go there too.

    Gives a function to call as (what is being done, steps done, steps in all).
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Since(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=600,
        transient=True,
        disable=not console.is_terminal,
        expand=True,
        redirect_stdout=False,
    )
    with bar, redirect_stdout(sys.stderr):  # the bar wraps stderr, so prints stay above it
        task, last = bar.add_task("starting", total=None), (0, 0)

        def advance(what: str, done: int, total: int) -> None:
            nonlocal last
            if total != last[1] or done < last[0]:  # another stage: its own pace
                bar.reset(task, total=total, completed=done, description=what)
            bar.update(task, description=what, completed=done)
            last = done, total

        yield advance


class _Since(ProgressColumn):
    """The time since the first stage began."""

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()

    def render(self, task: Task) -> Text:
        """The time as hours, minutes and seconds."""
        since = timedelta(seconds=int(time.monotonic() - self._began))
        return Text(str(since), style="progress.elapsed")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


FOLDER = click.Path(file_okay=False, path_type=Path)


FILE = click.Path(dir_okay=False, path_type=Path)


TARGET = click.Path(path_type=Path)
"""A file or a folder."""
