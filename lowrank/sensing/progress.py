"""A progress bar for long runs, as a callback."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lowrank.sensing.operators.arrays import Array
from lowrank.sensing.solvers.branch_and_bound import Standing

PAUSE = 0.1
"""Seconds between updates; an iteration of a small problem takes far less."""


class Bar:
    """A callback that draws: `bar(iteration, coefficients)`; `bar.standing` is for best subsets."""

    def __init__(self, bar: Progress) -> None:
        self._bar, self._task, self._last = bar, bar.add_task("recovering", total=None), 0.0

    def __call__(self, iteration: int, coefficients: Array) -> bool:
        """Show the iteration and the non-zeros, and go on."""
        nonzeros = np.count_nonzero(coefficients)
        return self._show(f"iteration {iteration:,}, {nonzeros:,} non-zeros")

    def standing(self, standing: Standing) -> bool:
        """Show the nodes and the gap of a branch and bound, and go on."""
        return self._show(str(standing))

    def _show(self, text: str) -> bool:
        if (now := time.monotonic()) - self._last >= PAUSE:
            self._last = now
            self._bar.update(self._task, description=text)
        return False


@contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Bar]:
    """A bar on standard error that shows the iteration, the non-zeros and the time.

    How many iterations there will be is not known, so the bar moves without an end.

    Args:
        console: where to draw; None is standard error.

    Returns:
        Within the block, a callback for `recover` and `solve`, whose `standing` is a report for
        `BranchAndBound`. Where standard error is no terminal it draws nothing.

    Example:
        >>> from lowrank.sensing import recover
        >>> with progress_bar() as bar:
        ...     found = recover(np.eye(3), [3.0, 0.0, 0.0], lam=1.0, callback=bar)
        >>> found.status.name
        'OPTIMAL'
    """
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield Bar(bar)
