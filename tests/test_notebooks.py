"""Notebooks: both editions run the same code, the .ipynb is what the .py says and makes."""

import base64
import io
import json
import re
import runpy
import time
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
BUILD = runpy.run_path(str(FOLDER / "build.py"), run_name="build")
NAMES = BUILD["names"]()
EDITIONS = [f"{name}{suffix}" for name in NAMES for suffix in ("", ".zh")]


def source(edition):
    return BUILD["cells"]((FOLDER / f"{edition}.py").read_text("utf-8"))


def saved(edition):
    return json.loads((FOLDER / f"{edition}.ipynb").read_text("utf-8"))


def code(cells):
    return [(c["text"], c["tags"]) for c in cells if c["kind"] == "code"]


def outputs(edition):
    return [c["outputs"] for c in saved(edition)["cells"] if c["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_editions_have_the_same_code(name):
    english, chinese = source(name), source(f"{name}.zh")
    assert code(english) == code(chinese)
    assert [c["kind"] for c in english] == [c["kind"] for c in chinese]
    assert outputs(name) == outputs(f"{name}.zh")


@pytest.mark.parametrize("name", NAMES)
def test_editions_are_in_their_language(name):
    chinese = re.compile("[\u4e00-\u9fff]")
    assert not any(chinese.search(c["text"]) for c in source(name))
    assert all(chinese.search(c["text"]) for c in source(f"{name}.zh") if c["kind"] == "markdown")


@pytest.mark.parametrize("name", NAMES)
def test_last_cell_asserts_the_claim(name):
    *_, claim, last = source(name)
    assert "**Claim" in claim["text"]
    assert last["kind"] == "code"
    assert re.search(r"^assert ", last["text"], re.MULTILINE)


@pytest.mark.parametrize("edition", EDITIONS)
def test_notebook_is_in_step_with_its_source(edition):
    cells = saved(edition)["cells"]
    made = [(c["cell_type"], "".join(c["source"])) for c in cells]
    assert made == [(c["kind"], c["text"]) for c in source(edition)]


@pytest.mark.parametrize("edition", EDITIONS)
def test_notebook_tells_nothing_of_the_machine(edition):
    text = (FOLDER / f"{edition}.ipynb").read_text("utf-8")
    assert not re.search(r"/(home|root|work|tmp|opt|usr|Users)/", text)
    assert '"output_type": "error"' not in text


@pytest.mark.parametrize("edition", EDITIONS)
def test_notebook_is_valid(edition):
    nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")
    nbformat.validate(nbformat.from_dict(saved(edition)))


@pytest.mark.notebooks
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_and_makes_the_committed_outputs(name, record_property):
    pytest.importorskip("nbclient", reason="needs the notebooks extra")
    start = time.perf_counter()
    made = BUILD["execute"](name)
    record_property("seconds", time.perf_counter() - start)
    cells = [c for c in source(name) if c["kind"] == "code"]
    for cell, now, before in zip(cells, made, outputs(name), strict=True):
        assert [o["output_type"] for o in now] == [o["output_type"] for o in before]
        if "timing" not in cell["tags"]:
            for new, old in zip(now, before, strict=True):
                assert_alike(new, old)


def assert_alike(new, old):
    """The same words, numbers to a per cent, and pictures to what fonts may change."""
    for words in (lambda o: o.get("text", ""), lambda o: o.get("data", {}).get("text/plain", "")):
        number = re.compile(r"-?\d+\.?\d*(?:e[-+]?\d+)?")
        a, b = "".join(words(new)), "".join(words(old))
        assert number.sub("#", a) == number.sub("#", b)
        values = [np.array(number.findall(t), dtype=float) for t in (a, b)]
        np.testing.assert_allclose(*values, rtol=0.05, atol=1e-6)
    for picture in (k for k in old.get("data", {}) if k == "image/png"):
        a, b = (grey(o["data"][picture]) for o in (new, old))
        np.testing.assert_allclose(a.shape, b.shape, atol=12)
        if a.shape == b.shape:
            assert np.abs(a - b).mean() < 0.03


def grey(encoded):
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(base64.b64decode("".join(encoded))))
    return pixels[..., :3].mean(axis=-1)
