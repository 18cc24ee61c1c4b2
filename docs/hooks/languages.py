"""Two languages in one site: each page names its counterpart, and says which it is in."""

from __future__ import annotations

import re
from typing import Any

NAMES = {"en": "English", "zh": "中文"}
CHINESE = "zh/"
_ALTERNATE = re.compile(r'\s*<link rel="alternate"[^>]*hreflang[^>]*>')


def language(uri: str) -> str:
    """The language of a page, by its place.

    Example:
        >>> language("zh/index.md"), language("budgets.md")
        ('zh', 'en')
    """
    return "zh" if uri.startswith(CHINESE) else "en"


def counterparts(uri: str, there: set[str]) -> dict[str, str]:
    """The page in each language; the first page of a language that has no such one.

    Example:
        >>> counterparts("notebooks.md", {"notebooks.md", "zh/notebooks.md", "zh/index.md"})
        {'en': 'notebooks.md', 'zh': 'zh/notebooks.md'}
    """
    english = uri.removeprefix(CHINESE)
    chinese = CHINESE + english
    return {
        "en": english if english in there else "index.md",
        "zh": chinese if chinese in there else CHINESE + "index.md",
    }


def on_page_context(context: Any, *, page: Any, config: Any, nav: Any) -> Any:
    """Called by mkdocs for each page, just before it is written."""
    pages = {other.file.src_uri: other for other in nav.pages}
    config.theme["language"] = language(page.file.src_uri)
    config.extra["alternate"] = [
        {"name": NAMES[lang], "link": pages[uri].url or "./", "lang": lang}
        for lang, uri in counterparts(page.file.src_uri, set(pages)).items()
    ]
    return context


def on_post_page(output: str, **_: Any) -> str:
    """Called by mkdocs with each page as it is written: the menu of languages is links, no script.

    The theme's script takes what a page's head names as another language to be a site of its own,
    and sends links into that language to its first page.
    """
    return _ALTERNATE.sub("", output)
