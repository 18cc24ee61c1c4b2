"""What a recovery looks like in a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table
from rich.text import Text

from lowrank.cli.console import fail, show, show_json, tell
from lowrank.cli.targets import saving

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lowrank.demos.signals import RecoveryDemo
    from lowrank.sensing import Recovery


def present(ctx: click.Context, found: RecoveryDemo, picture: Path, *, as_json: bool) -> None:
    """Print and draw a demo; the exit code is that of `lowrank recover`."""
    save_figure(found.draw(), picture)
    if as_json:
        show_json(found.to_dict())
    else:
        show(table(found.recovery), _figures(found))
    tell(f"wrote {picture}")
    if not found.recovery.status.ok:
        fail(f"{found.recovery.status.name.lower()}: {found.recovery.message}")
        ctx.exit(1)


def _figures(found: RecoveryDemo) -> str:
    size = f"{found.measurements.size:,} measurements of {found.truth.size:,} values"
    line = f"{size}: relative error {found.error:.2g}, signal to error {found.snr:.1f} dB"
    return "\n".join(["", line, *found.remarks])


SHOWN = 12
"""Indices of the support that the table lists."""


def table(found: Recovery) -> Table:
    """The certificate and the cost of an answer, a figure a row."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(found):
        grid.add_row(name, Text(value))
    return grid


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture in the format that its name ends in, whole or not at all."""
    with saving(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=120)


def _rows(found: Recovery) -> list[tuple[str, str]]:
    size, k = found.coefficients.shape[0], found.support.size
    indices = ", ".join(map(str, found.support[:SHOWN].tolist()))
    more = ", ..." if k > SHOWN else ""
    rows = [
        ("status", f"{found.status.name.lower()}: {found.status.value}"),
        ("non-zeros", f"{k:,} of {size:,}" + (f": {indices}{more}" if k else "")),
        ("objective", f"{found.objective:.8g}"),
    ]
    if found.gap is not None and found.dual_objective is not None:
        rows += [
            ("proven bound", f"{found.dual_objective:.8g}, so the relative gap is {found.gap:.1e}"),
            ("constraints", f"violated by {found.infeasibility:.1e} of ||y||"),
        ]
    cost = f"{found.n_iter:,} iterations, {found.n_products:,} products with A, "
    return [
        *rows,
        ("||A x - y||", f"{found.residual_norm:.6g}"),
        ("solver", found.solver),
        ("why", found.why),
        ("cost", f"{cost}{found.seconds:.3g} s"),
    ]
