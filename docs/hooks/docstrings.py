"""How docstrings read in the reference: `Example:` is a section of code, `][` is no link."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

_LINK = re.compile(r"\](?=\[)")


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
                lines[number] = _LINK.sub(r"]\\", line)
        obj.docstring.value = "\n".join(lines)
