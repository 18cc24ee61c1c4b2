"""One page about a recovery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.html_page import Cell, Page, Section, Table, facts, picture, versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST = 200
"""Non-zeros that a recovery's table lists, the largest."""


def save_recovery(
    path: str | Path,
    *,
    certificate: Sequence[tuple[str, str]],
    drawn: Figure,
    coefficients: Any,
    lead: Sequence[str] = (),
    notes: Sequence[str] = (),
    title: str = "Recovery report",
) -> None:
    """Write a recovery's report as one HTML page that needs nothing else.

    `Recovery.save_html` calls it.

    Args:
        path: file to write.
        certificate: the answer and the proof of it, (name, figure) each.
        drawn: picture of the signal.
        coefficients: (p,), or (p, batch), of which the first are listed: the largest 200.
        lead: paragraphs below the title.
        notes: what a reader must not miss.
        title: of the page.

    Raises:
        InputError: the file cannot be written.

    Example:
        >>> import tempfile, lowrank
        >>> drawn = lowrank.sensing.plots.recovery([1.0, 0.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     facts = [("status", "optimal")]
        ...     save_recovery(
        ...         f"{folder}/r.html", certificate=facts, drawn=drawn, coefficients=[1.0, 0.0]
        ...     )
        ...     "optimal" in Path(folder, "r.html").read_text("utf-8")
        True
    """
    caption = "What is known of the recovery, a panel each"
    sections = [
        Section("The answer and its certificate", table=facts(certificate)),
        Section("The signal", picture=picture(drawn), caption=caption),
        Section("The largest coefficients", table=_coefficients(coefficients)),
        Section("Versions", table=versions()),
    ]
    Page(title, lead, notes, sections).save(path)


def _coefficients(coefficients: Any) -> Table:
    from lowrank.sensing.operators.arrays import to_numpy

    c = to_numpy(coefficients)
    c = c if c.ndim == 1 else c[:, 0]
    largest = np.argsort(-np.abs(c), kind="stable")[: min(MOST, int(np.count_nonzero(c)))]
    rows = [(Cell(str(i), float(i)), Cell(f"{c[i]:.6g}", float(np.abs(c[i])))) for i in largest]
    return Table((("index", True), ("coefficient", True)), rows, "narrow")
