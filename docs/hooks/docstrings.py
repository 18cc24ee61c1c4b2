"""How docstrings read in the reference: `Example:` is code, `][` no link, `>= 0` no quotation."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_LINK = re.compile(r"\](?=\[)")
_QUOTE = re.compile(r"^(\s+\w+: )(?=>)")


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
                lines[number] = _QUOTE.sub(r"\1\\", _LINK.sub(r"]\\", line))
        obj.docstring.value = "\n".join(lines)
