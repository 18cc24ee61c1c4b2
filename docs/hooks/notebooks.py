"""The notebooks as pages of the site, in both languages, and the gallery that leads to them.

A page is the committed `.ipynb`, cell by cell: text, code, what it printed and its pictures. The
page and the pictures are made while the site is built; nothing is copied by hand.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
LANGUAGES = {"": "en", ".zh": "zh"}
"""How a notebook's name ends, and the language of that edition."""
HOME = {"en": "", "zh": "zh/"}
"""Where the pages of a language are."""
GALLERY = "<!-- gallery -->"
_DOWNLOAD = {"en": "Download this notebook", "zh": "下载本笔记"}
_QUESTION = re.compile(r"\*\*(?:Question: |问题：)(.*?)\*\*", re.S)
Book = dict[str, Any]


def names() -> list[str]:
    """Every notebook, in order."""
    return sorted(path.name.removesuffix(".zh.ipynb") for path in FOLDER.glob("*.zh.ipynb"))


def book(name: str, language: str) -> Book:
    """An edition of a notebook."""
    suffix = {language: suffix for suffix, language in LANGUAGES.items()}[language]
    return json.loads((FOLDER / f"{name}{suffix}.ipynb").read_text("utf-8"))


def address(name: str, language: str) -> str:
    """The page of a notebook, from the root of the site's sources."""
    return f"{HOME[language]}notebooks/{name}.md"


def pictures(name: str) -> dict[str, bytes]:
    """The pictures of a notebook: address -> PNG. Both editions have the same."""
    found = [output for cell in book(name, "en")["cells"] for output in _shown(cell)]
    return {
        f"notebooks/pictures/{name}-{number}.png": base64.b64decode(output["data"]["image/png"])
        for number, output in enumerate(found, 1)
    }


def page(name: str, language: str) -> str:
    """A notebook as Markdown."""
    number, parts = 0, []
    for cell in book(name, language)["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output in _shown(cell):
                number += 1
                parts.append(_picture(name, number, language, cell, output))
            elif printed := "".join(output.get("text", "")).rstrip():
                parts.append(f"``` {{ .text .printed }}\n{printed}\n```")
    parts.append(f"[{_DOWNLOAD[language]}]({name}.ipynb){{ .download }}")
    return "\n\n".join(parts) + "\n"


def gallery(language: str) -> str:
    """A card for each notebook: its picture, its title and its question, all of them links."""
    cards = [_card(name, language) for name in names()]
    return '<div class="grid cards gallery" markdown>\n\n' + "\n".join(cards) + "\n</div>\n"


def _card(name: str, language: str) -> str:
    made = book(name, language)
    cells = [cell for cell in made["cells"] for _ in _shown(cell)]
    tagged = [i for i, cell in enumerate(cells) if "thumbnail" in cell["metadata"].get("tags", [])]
    chosen = (tagged or [0])[0]
    text = "".join(made["cells"][0]["source"])
    title = text.split("\n", 1)[0].removeprefix("# ")
    question = _QUESTION.search(text)
    asked = "" if question is None else question[1].replace("\n", " ")
    asked = asked[:1].upper() + asked[1:]
    alt = cells[chosen]["metadata"].get("alt", "")
    there, up = f"notebooks/{name}.md", "../" if HOME[language] else ""
    source = f"{up}notebooks/pictures/{name}-{chosen + 1}.png"
    picture = f"![{alt}]({source}){{ loading=lazy }}"
    return f"-   [{picture}]({there})\n\n    **[{title}]({there})**\n\n    {asked}\n"


def _shown(cell: Book) -> list[Book]:
    """Outputs of a cell that are pictures."""
    return [o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]


def _picture(name: str, number: int, language: str, cell: Book, output: Book) -> str:
    up = "../" * (1 if HOME[language] else 0)
    size = output.get("metadata", {}).get("image/png", {})
    width = f" width={size['width']}" if "width" in size else ""
    source = f"{up}../notebooks/pictures/{name}-{number}.png"
    return f"![{cell['metadata'].get('alt', '')}]({source}){{{width} loading=lazy }}"


def on_config(config: Any) -> Any:
    """Called by mkdocs: the notebooks stand in the navigation behind their gallery."""
    sections = {name: pages for entry in config.nav for name, pages in _section(entry)}
    for language, home in HOME.items():
        for pages in sections.values():
            if f"{home}notebooks.md" in pages:
                pages += [address(name, language) for name in names()]
    return config


def _section(entry: Any) -> list[tuple[str, list[Any]]]:
    return list(entry.items()) if isinstance(entry, dict) else []


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: adds the pages, their pictures, and the notebooks to download."""
    from mkdocs.structure.files import File

    for name in names():
        for suffix, language in LANGUAGES.items():
            target = address(name, language)
            files.append(File.generated(config, target, content=page(name, language)))
            held = (FOLDER / f"{name}{suffix}.ipynb").read_bytes()
            saved = target.replace(".md", "/") + f"{name}.ipynb"
            files.append(File.generated(config, saved, content=held))
        for where, png in pictures(name).items():
            files.append(File.generated(config, where, content=png))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by mkdocs for each page: puts the gallery where it belongs."""
    language = "zh" if page.file.src_uri.startswith(HOME["zh"]) else "en"
    return markdown.replace(GALLERY, gallery(language))
