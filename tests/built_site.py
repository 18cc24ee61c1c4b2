"""The site as mkdocs writes it: built into a folder, and what a page of it links to."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


def built(folder: Path) -> Path:
    """Build the site strictly into a folder."""
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed; it is in the docs extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    settings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


class Page(HTMLParser):
    """A page of the site: its places, its links and its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.places: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[tuple[str, str]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.places |= {held[name] for name in ("id", "name") if name in held}
        if tag in ("a", "link") and "href" in held:
            self.links.append(held["href"])
        if tag == "script" and "src" in held:
            self.links.append(held["src"])
        if tag == "img":
            self.pictures.append((held["src"], held.get("alt", "")))

    def faults(self, pages: Mapping[Path, Page]) -> list[str]:
        """Links that lead nowhere on the site, and pictures without words."""
        links = [*self.links, *(source for source, _ in self.pictures)]
        found = [f"{link} {wrong}" for link in links if (wrong := self._wrong(link, pages))]
        found += [f"{source} has no words" for source, alt in self.pictures if not alt.strip()]
        return [f"{self.path}: {fault}" for fault in found]

    def _wrong(self, link: str, pages: Mapping[Path, Page]) -> str | None:
        parts = urlsplit(link)
        if parts.scheme:
            return None
        target = Path(os.path.normpath(self.path.parent / unquote(parts.path)))
        target = self.path if not parts.path else target
        target = target / "index.html" if target.is_dir() else target
        if not target.is_file():
            return "is not there"
        lost = (
            parts.fragment
            and target in pages
            and unquote(parts.fragment) not in pages[target].places
        )
        return "has no such place" if lost else None
