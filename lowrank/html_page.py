"""A self-contained page: headings, tables, pictures and code, with nothing fetched from outside."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lowrank.atomic import write_text
from lowrank.errors import InputError
from lowrank.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


PACKAGES = ("torch", "numpy", "scipy")
"""What a page names the versions of."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Args:
        text: what is read.
        value: what the column is sorted by; "" sorts last, None sorts by the text.
        none: whether it says that there is no figure.
    """

    text: str
    value: float | str | None = None
    none: bool = False

    @classmethod
    def missing(cls, why: str) -> Cell:
        """A figure that is not there, and why."""
        return cls(why, "", True)


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        columns: (name, whether it holds numbers) of each.
        rows: as many cells each.
        kind: "headline", which fits a phone, "layers", which may scroll, or "narrow".
        sortable: by a click on the name of a column.
    """

    columns: Sequence[tuple[str, bool]]
    rows: Sequence[Sequence[Cell]]
    kind: str = "layers"
    sortable: bool = True

    def told(self) -> Table:
        """The table without the columns that hold no figure in any row."""
        keep = [
            i
            for i in range(len(self.columns))
            if not self.rows or not all(row[i].none for row in self.rows)
        ]
        columns = [self.columns[i] for i in keep]
        return replace(self, columns=columns, rows=[[row[i] for i in keep] for row in self.rows])


@dataclass(frozen=True)
class Figure:
    """A figure that the page opens with: what is read large, of what, and a word beside it."""

    value: str
    of: str
    beside: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, and below it whatever of these there is."""

    heading: str
    text: str = ""
    table: Table | None = None
    picture: str = ""
    caption: str = ""
    code: str = ""


@dataclass(frozen=True)
class Page:
    """A page.

    Args:
        title: of the page and the window.
        lead: paragraphs below the title.
        notes: what a reader must not miss.
        sections: the rest, in order.
        figures: what is read first, large.
    """

    title: str
    lead: Sequence[str]
    notes: Sequence[str]
    sections: Sequence[Section]
    figures: Sequence[Figure] = ()

    def html(self) -> str:
        """The page as text; all that it is made of is escaped."""
        from jinja2 import Environment, StrictUndefined

        source = (files("lowrank") / "assets" / "report.html.j2").read_text("utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined)
        return environment.from_string(source).render(page=self) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the page, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        text = self.html()
        try:
            write_text(Path(path), text)
        except OSError as error:
            raise InputError(str(path), f"cannot be written ({error})", "name another") from error


def picture(figure: Drawing) -> str:
    """The figure as the address of an image that holds it."""
    from matplotlib import rc_context

    written = io.BytesIO()
    with rc_context({"svg.hashsalt": "lowrank"}):  # the same figure, the same page
        figure.savefig(written, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(written.getvalue()).decode()}"


def versions(*further: tuple[str, str]) -> Table:
    """What the figures were made with, below whatever else is to be said."""
    rows = [*further, ("lowrank", __version__), ("Python", platform.python_version())]
    rows += [(package, version(package)) for package in PACKAGES]
    return facts([*rows, ("machine", f"{platform.system()} {platform.machine()}")])


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Names and values, two columns."""
    cells = [(Cell(name), Cell(value)) for name, value in rows]
    return Table((("what", False), ("value", False)), cells, "narrow", sortable=False)
