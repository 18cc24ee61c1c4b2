"""Execute the notebooks: `python examples/notebooks/build.py [NAMES]`, all of them by default.

The source of a notebook is `NAME.py` in percent format, with its Chinese edition `NAME.zh.py`
around the same code cells. The code runs once; both editions are written with its outputs.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MARK = "# %%"
SHARP = '--InlineBackend.figure_formats={"retina"}'  # twice the pixels, shown at the same size
INLINE = "module://matplotlib_inline.backend_inline"  # whatever the shell, or a test, draws with
Cell = dict[str, Any]
_ATTRIBUTE = re.compile(r'(\w+)=(\[[^]]*\]|"[^"]*")')


def names() -> list[str]:
    """Every notebook, in order."""
    return sorted(path.name.removesuffix(".zh.py") for path in HERE.glob("*.zh.py"))


def cells(source: str) -> list[Cell]:
    """The cells of a percent-format file: "kind" (markdown or code), "tags", "alt" and "text".

    "alt" is what a cell's picture shows, for those who cannot see it.
    """
    found = []
    for part in ("\n" + source).split("\n" + MARK)[1:]:
        head, _, body = part.partition("\n")
        lines = body.strip("\n").split("\n")
        markdown = "[markdown]" in head
        if markdown:
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        said = {key: json.loads(value) for key, value in _ATTRIBUTE.findall(head)}
        kind = "markdown" if markdown else "code"
        about = {"tags": said.get("tags", []), "alt": said.get("alt", "")}
        found.append({"kind": kind, **about, "text": "\n".join(lines)})
    return found


def notebook(source: str, outputs: list[list[Cell]], language: str) -> Cell:
    """The notebook as JSON, with the outputs of its code cells."""
    results = iter(outputs)
    made = []
    for number, cell in enumerate(cells(source)):
        metadata = {key: cell[key] for key in ("tags", "alt") if cell[key]}
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
    client = NotebookClient(book, timeout=3600, resources=where, record_timing=False)
    client.extra_arguments = [SHARP]
    client.execute(env=os.environ | {"MPLBACKEND": INLINE})
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
        plain["data"][key] = _small(value) if key == "image/png" else value
    return plain


def _small(encoded: str) -> str:
    """The picture in 256 colours of its own: a third of the bytes, and the eye sees no change."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    written = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return base64.b64encode(written.getvalue()).decode()


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        print(f"{chosen}: {write(chosen):.1f} s", flush=True)
