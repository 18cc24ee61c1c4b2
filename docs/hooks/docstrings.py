"""How docstrings read in the reference: `Example:` is code, `][` no link, `>= 0` no quotation.

A star beside a quotation mark or a dot is part of a pattern of names, no emphasis.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_LINK = re.compile(r"\](?=\[)")
_STAR = re.compile(r'(?<=[".])\*|\*(?=[".])')
_QUOTE = re.compile(r"^(\s+\w+: )(?=>)")


def prose(line: str) -> str:
    """A line of text as Markdown that shows every character of it; code stays as it is.

    Example:
        >>> prose('names such as "head.*"; `x[:][0]`')
        'names such as "head.\\\\*"; `x[:][0]`'
    """
    parts = re.split(r"(`[^`]*`)", _QUOTE.sub(r"\1\\", line))
    return "".join(part if part[:1] == "`" else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return _LINK.sub(r"]\\", _STAR.sub(r"\\*", text))


class Docstrings(Extension):
    """Prepare every docstring before it is parsed."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section of examples; keep brackets in formulas from reading as links."""
        if obj.docstring is None:
            return
        lines = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value).split("\n")
        inside = False
        for number, line in enumerate(lines):
            inside = line == "Examples:" or (inside and (line.startswith(" ") or not line))
            if not inside:
                lines[number] = prose(line)
        obj.docstring.value = "\n".join(lines)
