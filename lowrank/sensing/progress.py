"""A progress bar for long runs, as a callback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.solvers import Callback

PAUSE = 0.1
"""Seconds between updates; an iteration of a small problem takes far less."""


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Callback]:
    """A bar on standard error that shows the iteration, the non-zeros and the time.

    How many iterations there will be is not known, so the bar moves without an end.

    Args:
        console: where to draw; None is standard error.

    Returns:
        Within the block, a callback for `recover` and `solve`. Where standard error is no
        terminal it draws nothing.

    Example:
        >>> from lowrank.sensing import recover
        >>> with progress_bar() as bar:
        ...     found = recover(np.eye(3), [3.0, 0.0, 0.0], lam=1.0, callback=bar)
        >>> found.status.name
        'OPTIMAL'
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task, last = bar.add_task("recovering", total=None), 0.0

        def advance(iteration: int, coefficients: Array) -> bool:
            nonlocal last
            if (now := time.monotonic()) - last >= PAUSE:
                last = now
                nonzeros = np.count_nonzero(coefficients)
                text = f"iteration {iteration:,}, {nonzeros:,} non-zeros"
                bar.update(task, description=text)
            return False

        yield advance
