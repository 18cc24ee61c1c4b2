"""Every built-in solver stands in the guide's table and in the reference, also a new one.

What the pages have by hand stays; of a solver that they do not name, its docstring speaks.
"""

from __future__ import annotations

import re
from typing import Any

from lowrank.sensing import SOLVERS


def completed(page: str, text: str) -> str:
    """The page's Markdown, with the solvers that it does not name yet."""
    if page == "reference/solvers.md":
        lines = [f"::: {cls.__module__}.{cls.__qualname__}" for cls in SOLVERS.values()]
        missing = [line for line in lines if not re.search(rf"^{re.escape(line)}$", text, re.M)]
        head, mark, tail = text.partition("## What a solver is")
        return head + "".join(f"{line}\n\n" for line in missing) + mark + tail
    if page == "choose-a-solver.md":
        *before, after = text.split("\n| `")
        last, rest = after.split("\n", 1)
        rows = "".join(_row(name) for name in SOLVERS if f"`{name}`" not in text)
        return "\n| `".join([*before, f"{last}\n{rows}{rest}"])
    return text


def _row(name: str) -> str:
    cls = SOLVERS[name]
    summary = (cls.__doc__ or "").split("\n", 1)[0].replace("|", "\\|")
    return f"| `{name}` | {', '.join(p.__name__ for p in cls.solves)} | {summary} | |\n"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return completed(page.file.src_uri, markdown)
