"""Formulas between dollar signs as MathML, which browsers draw by themselves, with no script."""

from __future__ import annotations

import re
from typing import Any

_CODE = re.compile(r"^(```|~~~).*?^\1 *$|`[^`\n]+`", re.M | re.S)
_FORMULA = re.compile(r"(?<![\\$])(\$\$?)(?![\s$])(.+?)(?<![\s\\])\1", re.S)
_MARK = "\u2997{}\u2998"  # brackets that no page uses, and Markdown leaves alone


def marked(markdown: str) -> tuple[str, list[tuple[str, bool]]]:
    """The text with a mark for each formula, and the formulas: LaTeX, and whether it stands alone.

    Example:
        >>> text, formulas = marked("`$HOME` and $x_1$")
        >>> formulas
        [('x_1', False)]
    """
    formulas: list[tuple[str, bool]] = []

    def mark(found: re.Match[str]) -> str:
        formulas.append((" ".join(found[2].split()), found[1] == "$$"))
        return _MARK.format(len(formulas) - 1)

    parts, at = [], 0
    for code in _CODE.finditer(markdown):
        parts += [_FORMULA.sub(mark, markdown[at : code.start()]), code[0]]
        at = code.end()
    parts.append(_FORMULA.sub(mark, markdown[at:]))
    return "".join(parts), formulas


def drawn(html: str, formulas: list[tuple[str, bool]]) -> str:
    """The page with MathML in place of the marks."""
    from latex2mathml.converter import convert

    for number, (latex, alone) in enumerate(formulas):
        made = convert(latex, display="block" if alone else "inline")
        html = html.replace(_MARK.format(number), made)
    return html


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page, before Markdown is read."""
    text, page.meta["formulas"] = marked(markdown)
    return text


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page, as HTML."""
    return drawn(html, page.meta.get("formulas", []))
