"""Numbers from text: what spreadsheets, pandas and MATLAB write."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def read_text(path: Path) -> Array:
    """A matrix from lines of numbers, (rows, columns).

    Cells are separated by commas, semicolons, tabs or spaces; decimal commas are taken where these
    do not separate. A header, and the column in which pandas numbers its rows, are left out.

    Raises:
        ValueError: there are no numbers, rows differ in length, or a cell holds none.
    """
    rows = _rows(_decoded(path))
    first = 1
    if rows and _is_header(rows):
        numbered = not rows[0][0] and _counts([row[0] for row in rows[1:]])
        rows, first = [row[1:] if numbered else row for row in rows[1:]], 2
    if not rows:
        raise ValueError("it holds no numbers")
    for i, row in enumerate(rows, first):
        if len(row) != len(rows[0]):
            raise ValueError(f"row {i} has {len(row)} values, and row {first} has {len(rows[0])}")
    try:
        return np.array(rows, dtype=float)
    except ValueError:
        cells = [(c, i, j) for i, row in enumerate(rows, first) for j, c in enumerate(row, 1)]
        return np.array([_number(*cell) for cell in cells]).reshape(len(rows), -1)


def _decoded(path: Path) -> str:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if wide else "utf-8-sig")


def _rows(text: str) -> list[list[str]]:
    lines = [line.split("#")[0].strip(" \r\n") for line in text.split("\n")]
    lines = [line for line in lines if line.strip(" \t,;")]
    if not lines:
        return []
    sample = lines[-1]
    if ";" in sample or "\t" in sample:
        separator = ";" if ";" in sample else "\t"
        if "." not in sample:
            lines = [line.replace(",", ".") for line in lines]
        return [_cells(line, separator) for line in lines]
    return [_cells(line, ",") if "," in sample else line.split() for line in lines]


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(separator)]


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?(nan|inf(inity)?)", re.IGNORECASE)


def _is_header(rows: list[list[str]]) -> bool:
    """Whether the first row names columns: by words, or by 0, 1, 2 where others hold fractions."""
    head = rows[0]
    if not any(_NUMBER.match(cell) for cell in head):
        return any(head)
    named = _counts(head[1:]) if not head[0] else _counts(head)
    return named and len(rows) > 1 and not all(cell.isdigit() for cell in rows[1][1:])


def _counts(cells: list[str]) -> bool:
    """Whether cells are 0, 1, 2 and so on."""
    return len(cells) > 0 and cells == [str(k) for k in range(len(cells))]


def _number(cell: str, i: int, j: int) -> complex:
    text = cell.replace(" ", "")
    if not text:
        raise ValueError(f"row {i}, column {j} is empty")
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return complex(text.replace("i", "j"))
    except ValueError as error:
        raise ValueError(f"row {i}, column {j} is {text!r}, which is no number") from error
