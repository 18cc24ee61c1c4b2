"""Execute the notebooks: `python examples/notebooks/build.py [NAMES]`, all of them by default.

The source of a notebook is `NAME.py` in percent format, with its Chinese edition `NAME.zh.py`
around the same code cells. The code runs once; both editions are written with its outputs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MARK = "# %%"
Cell = dict[str, Any]


def names() -> list[str]:
    """Every notebook, in order."""
    return sorted(path.name.removesuffix(".zh.py") for path in HERE.glob("*.zh.py"))


def cells(source: str) -> list[Cell]:
    """The cells of a percent-format file: "kind" (markdown or code), "tags" and "text"."""
    found = []
    for part in ("\n" + source).split("\n" + MARK)[1:]:
        head, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        markdown = "[markdown]" in head
        if markdown:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        tags = json.loads(head.partition("tags=")[2] or "[]")
        kind = "markdown" if markdown else "code"
        found.append({"kind": kind, "tags": tags, "text": "\n".join(lines)})
    return found


def notebook(source: str, outputs: list[list[Cell]], language: str) -> Cell:
    """The notebook as JSON, with the outputs of its code cells."""
    results = iter(outputs)
    made = []
    for number, cell in enumerate(cells(source)):
        metadata = {"tags": cell["tags"]} if cell["tags"] else {}
        entry = {"cell_type": cell["kind"], "id": f"cell-{number}", "metadata": metadata}
        entry["source"] = cell["text"].splitlines(keepends=True)
        if cell["kind"] == "code":
            entry |= {"execution_count": None, "outputs": next(results)}
        made.append(entry)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}, "lang": language}
    return {"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def execute(name: str) -> list[list[Cell]]:
    """Run the code cells in a fresh kernel; the outputs of each."""
    import nbformat
    from nbclient import NotebookClient

    code = cells((HERE / f"{name}.py").read_text("utf-8"))
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c["text"]) for c in code if c["kind"] == "code"]
    )
    where = {"metadata": {"path": str(HERE)}}
    NotebookClient(book, timeout=600, resources=where, record_timing=False).execute()
    return [_merged([_clean(output) for output in cell.outputs]) for cell in book.cells]


def write(name: str) -> float:
    """Execute a notebook and write both editions; the seconds it took."""
    start = time.perf_counter()
    outputs = execute(name)
    seconds = time.perf_counter() - start
    for suffix, language in (("", "en"), (".zh", "zh")):
        source = (HERE / f"{name}{suffix}.py").read_text("utf-8")
        text = json.dumps(notebook(source, outputs, language), ensure_ascii=False, indent=1)
        (HERE / f"{name}{suffix}.ipynb").write_text(text + "\n", "utf-8")
    return seconds


def _merged(outputs: list[Cell]) -> list[Cell]:
    """Prints that follow one another as one output: how they are cut is chance."""
    made: list[Cell] = []
    for output in outputs:
        if made and output["output_type"] == "stream" and made[-1].get("name") == output["name"]:
            made[-1]["text"] += output["text"]
        else:
            made.append(output)
    return made


def _clean(output: Any) -> Cell:
    """An output without what differs from run to run or machine to machine."""
    plain = json.loads(json.dumps(output))
    if plain["output_type"] == "execute_result":
        plain["execution_count"] = None
    for key, value in plain.get("data", {}).items():
        plain["data"][key] = value.strip() if key.startswith("image/") else value
    return plain


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        print(f"{chosen}: {write(chosen):.1f} s", flush=True)
