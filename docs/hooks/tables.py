"""Columns of sentences are marked, so that a phone need not squeeze them to a word a line."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

LONG = 30
"""Characters from which the text of a cell is a sentence."""

_TABLE = re.compile(r"<table>.*?</table>", re.S)
_ROW = re.compile(r"<tr>(.*?)</tr>", re.S)
_CELL = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.S)
_TAG = re.compile(r"<[^>]+>")


def marked(html: str) -> str:
    """The page with the class "long" on the head of each column that holds a sentence.

    Example:
        >>> row = "<tr><td>cp</td><td>" + "four layers; " * 4 + "</td></tr>"
        >>> marked(f"<table><tr><th>a</th><th>b</th></tr>{row}</table>")[:48]
        '<table><tr><th>a</th><th class="long">b</th></tr'
    """
    return _TABLE.sub(lambda table: _marked(table[0]), html)


def _marked(table: str) -> str:
    rows = [_CELL.findall(row) for row in _ROW.findall(table)]
    width = max(map(len, rows), default=0)
    lengths = [[len(unescape(_TAG.sub("", cell))) for cell in row] for row in rows]
    long = [max(row[at] for row in lengths if len(row) > at) >= LONG for at in range(width)]
    heads = iter(long)
    return re.sub(r"<th\b", lambda found: '<th class="long"' if next(heads) else found[0], table)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for each page, as HTML."""
    return marked(html)
