"""Documentation: every public name stands in the reference with an example, and all code runs."""

import doctest
import importlib
import inspect
import re
import runpy
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from built_site import Page, built

import lowrank
import lowrank.compression.pipeline.html
import lowrank.decompositions
import lowrank.errors
import lowrank.evaluate
import lowrank.plots
import lowrank.sensing
from lowrank.compression.methods import METHODS
from lowrank.sensing import (
    bases,
    estimators,
    gallery,
    matrix_estimators,
    operators,
    phase_transition,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = {
    path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")
}
completed = runpy.run_path(str(DOCS / "hooks" / "solvers.py"))["completed"]
PAGES = {name: completed(name, text) for name, text in WRITTEN.items()}
REFERENCE = "\n".join(text for name, text in PAGES.items() if name.startswith("reference/"))
EXAMPLES = dict(re.findall(r"^::: (\S+)\n\n```pycon\n(.*?)```", REFERENCE, re.M | re.S))
INTERNAL = {"on_shape"}


def _is_from(found, module):
    """Whether a module, or a file of a package, defines it."""
    home = str(getattr(found, "__module__", None))
    return home == module.__name__ or home.startswith(f"{module.__name__}.")


def public():
    """Functions and classes that users reach by a public name."""
    packages = (lowrank, lowrank.sensing, lowrank.decompositions, lowrank.evaluate, lowrank.plots)
    found = [getattr(p, name) for p in packages for name in p.__all__]
    found += [*METHODS.values(), *lowrank.sensing.SOLVERS.values()]
    modules = (bases, estimators, gallery, matrix_estimators, operators, phase_transition)
    for module in (*modules, lowrank.errors, lowrank.compression.pipeline.html):
        found += [
            o
            for name, o in vars(module).items()
            if not name.startswith("_") and _is_from(o, module)
        ]
    found = [o for o in found if inspect.isclass(o) or inspect.isfunction(o)]
    return {f"{o.__module__}.{o.__qualname__}": o for o in found if o.__name__ not in INTERNAL}


PUBLIC = public()


@pytest.fixture(autouse=True)
def _no_window():
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    yield
    plt.close("all")
    matplotlib.use(before)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_in_the_reference_with_an_example(name):
    listed = re.search(rf"^::: {re.escape(name)}$", REFERENCE, re.M)
    assert listed, f"add '::: {name}' to a page in docs/reference"
    text = (PUBLIC[name].__doc__ or "") + EXAMPLES.get(name, "")
    assert ">>>" in text, f"{name} has no example, in its docstring or on its page"


def test_the_reference_names_only_what_is_there():
    names = re.findall(r"^::: (\S+)$", REFERENCE, re.M)
    assert len(names) == len(set(names))
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_reference_run(name):
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    case = doctest.DocTestParser().get_doctest(EXAMPLES[name], {}, name, name, 0)
    runner = doctest.DocTestRunner(optionflags=flags)
    said = []
    runner.run(case, out=said.append)
    assert not runner.failures, "".join(said)


GUIDES = [name for name, text in PAGES.items() if "```python\n" in text]


@pytest.mark.parametrize("page", GUIDES)
def test_code_of_the_guides_runs(page, tmp_path, monkeypatch):
    """With all methods and an export, as a reader would: some pages take over five seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    scope = {"__name__": "guide"}
    for block in re.findall(r"```python\n(.*?)```", PAGES[page], re.S):
        exec(compile(block, page, "exec"), scope)
    sys.modules.pop("net", None)


def test_tables_name_every_method_and_solver():
    methods, solvers = PAGES["choose-a-decomposition.md"], PAGES["choose-a-solver.md"]
    assert [name for name in METHODS if f"`{name}`" not in methods] == []
    assert [name for name in lowrank.sensing.SOLVERS if f"`{name}`" not in solvers] == []


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M))
    assert listed == set(PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return built(tmp_path_factory.mktemp("site"))


@pytest.mark.docs
def test_the_documentation_builds_strictly(site):
    reference = (site / "reference" / "recovery" / "index.html").read_text("utf-8")
    assert "lowrank.sensing.recover.recover" in reference


@pytest.mark.docs
def test_links_of_the_site_lead_to_a_place_and_pictures_have_words(site):
    pages = {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 50
    assert [fault for page in pages.values() for fault in page.faults(pages)] == []


def test_a_dead_link_is_found(tmp_path):
    here, there = tmp_path / "index.html", tmp_path / "b" / "index.html"
    there.parent.mkdir()
    there.write_text('<h1 id="top">b</h1><img src="../a.png" alt="a line"><a href="..#x">up</a>')
    links = "".join(f'<a href="{to}"></a>' for to in ("b/#top", "b/#no", "c/"))
    here.write_text(f'<p id="x"></p>{links}<img src="a.png">')
    pages = {path: Page(path) for path in (here, there)}
    assert pages[there].faults(pages) == [f"{there}: ../a.png is not there"]
    (tmp_path / "a.png").touch()
    assert pages[there].faults(pages) == []
    assert [fault.split(": ")[1] for fault in pages[here].faults(pages)] == [
        "b/#no has no such place",
        "c/ is not there",
        "a.png has no words",
    ]


def without_comments(text):
    """The blocks of code and the commands between backticks on lines of their own."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)
    code = [(kind, re.sub(r" *#.*$", "", body, flags=re.M)) for kind, body in blocks]
    return code, re.findall(r"^`[^`]+`$", text, re.M)


def test_the_chinese_readme_is_in_step():
    english, chinese = ((ROOT / n).read_text("utf-8") for n in ("README.md", "README.zh.md"))
    assert without_comments(english) == without_comments(chinese)
    for pattern in (r"^#+ ", r"^\|", r"^- "):  # as many headings, rows and points
        counts = [len(re.findall(pattern, text, re.M)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
    rows = [re.findall(r"^\|.*\|$", text, re.M) for text in (english, chinese)]
    for here, there in zip(*rows, strict=True):
        figures = [sorted(re.findall(r"\d+(?:[.,]\d+)*x?", row)) for row in (here, there)]
        assert figures[0] == figures[1], there
    used = [set(re.findall(r"`([^`\n]+)`", text)) for text in (english, chinese)]
    assert used[0] == used[1]
