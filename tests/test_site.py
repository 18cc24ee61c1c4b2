"""The site: notebooks, a gallery of them all, links that lead somewhere, pictures with words."""

import functools
import re
import runpy
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from built_site import built

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOOKS = {
    name: runpy.run_path(str(DOCS / "hooks" / f"{name}.py"))
    for name in ("notebooks", "formulas", "languages")
}
BOOKS = HOOKS["notebooks"]
PAGES = {path.relative_to(DOCS).as_posix(): path.read_text("utf-8") for path in DOCS.rglob("*.md")}
MADE = {
    BOOKS["address"](name, language): BOOKS["page"](name, language)
    for name in BOOKS["names"]()
    for language in BOOKS["HOME"]
}
IMAGE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^]]*\]\(([^)#\s]+)(?:#[\w-]+)?\)")


def galleries():
    return {
        f"{home}notebooks.md": PAGES[f"{home}notebooks.md"].replace(
            BOOKS["GALLERY"], BOOKS["gallery"](language)
        )
        for language, home in BOOKS["HOME"].items()
    }


WHOLE = PAGES | MADE | galleries()


def pictures():
    made = {where for name in BOOKS["names"]() for where in BOOKS["pictures"](name)}
    return made | {p.relative_to(DOCS).as_posix() for p in (DOCS / "assets").iterdir()}


def target(page, link):
    """The file that a link of a page leads to, from the root of the sources."""
    parts = []
    for part in (Path(page).parent / link).parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


@pytest.mark.parametrize("page", galleries())
def test_the_gallery_has_every_notebook(page):
    sources = sorted((ROOT / "examples" / "notebooks").glob("*.zh.py"))
    names = [path.name.removesuffix(".zh.py") for path in sources]
    home = page.removesuffix("notebooks.md")
    for name in names:
        card = rf"\[!\[(.+?)\]\((\S+)\)[^]]*\]\(notebooks/{name}\.md\)\n\n +\*\*\[.+\].+\n\n +\S+"
        assert re.search(card, WHOLE[page]), f"{name} has no picture, title and question"
        assert f"{home}notebooks/{name}.md" in MADE


@pytest.mark.parametrize("page", WHOLE)
def test_links_and_pictures_are_there(page):
    text = re.sub(r"^( *)```.*?^\1``` *$", "", WHOLE[page], flags=re.M | re.S)
    for link in LINK.findall(IMAGE.sub("", text)):
        if not re.match(r"https?:|mailto:", link):
            found = target(page, link)
            assert found in WHOLE or link.endswith(".ipynb") or (DOCS / found).is_file(), link
    for alt, source in IMAGE.findall(text):
        assert target(page, source) in pictures(), source
        assert len(alt) > 12, f"{source}: say what it shows"


def test_pages_name_their_counterparts():
    counterparts = HOOKS["languages"]["counterparts"]
    assert {counterparts(page, set(WHOLE))["zh"] for page in galleries()} == {"zh/notebooks.md"}
    for name in BOOKS["names"]():
        pair = {language: BOOKS["address"](name, language) for language in ("en", "zh")}
        for page in pair.values():
            assert counterparts(page, set(WHOLE)) == pair
    assert counterparts("references.md", set(WHOLE))["zh"] == "zh/index.md"


def test_every_formula_is_found():
    marked = HOOKS["formulas"]["marked"]
    for page, text in MADE.items():
        rest, formulas = marked(text)
        prose = re.sub(r"^```.*?^``` *$|`[^`\n]+`", "", rest, flags=re.M | re.S)
        assert "$" not in prose, (page, prose[prose.index("$") - 40 :][:90])
        assert all(latex.count("{") == latex.count("}") for latex, _ in formulas)
    assert marked("costs 5 $ or `$x$`, and $x$") == (
        "costs 5 $ or `$x$`, and \u29970\u2998",
        [("x", False)],
    )


@pytest.mark.parametrize("name", BOOKS["names"]())
def test_pictures_of_notebooks_say_what_they_show(name):
    chinese = re.compile("[\u4e00-\u9fff]")
    for language in BOOKS["HOME"]:
        alts = [alt for alt, _ in IMAGE.findall(MADE[BOOKS["address"](name, language)])]
        assert len(alts) == len(BOOKS["pictures"](name))
        assert all(bool(chinese.search(alt)) == (language == "zh") for alt in alts)


def guides():
    """The pages that the navigation lists as guides, and the landing pages."""
    listed = (ROOT / "mkdocs.yml").read_text("utf-8").split("- Guides:")[1].split("\n  - ")[0]
    return ["index.md", "zh/index.md", *re.findall(r"- (\S+\.md)", listed)]


def test_there_are_guides():
    assert len(guides()) > 8


@pytest.mark.parametrize("page", guides())
def test_every_guide_has_a_picture_and_the_command_that_makes_it(page):
    shown = IMAGE.findall(WHOLE[page])
    assert shown
    for _, source in shown:
        name = Path(source).stem
        assert re.search(rf"`python docs/figures\.py {name}`", WHOLE[page]), name


def test_pictures_of_the_guides_are_small_and_made_by_the_script():
    script = (DOCS / "figures.py").read_text("utf-8")
    for path in (DOCS / "assets").iterdir():
        assert path.stat().st_size < 150_000, path.name
        if path.suffix in (".svg", ".png") and path.stem != "import_graph":
            assert f'"{path.stem}"' in script, path.name


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    handler = functools.partial(Quiet, directory=str(built(tmp_path_factory.mktemp("site"))))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


OVER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
READY = """() => {
    document.querySelectorAll("img[loading=lazy]").forEach(i => { i.loading = "eager" });
    return [...document.images].every(i => i.complete);
}"""
BROKEN = "[...document.images].filter(i => !i.naturalWidth || !i.alt).map(i => i.src)"


@pytest.mark.browser
@pytest.mark.parametrize("page", WHOLE)
def test_in_a_real_browser(browser, served, page):
    """At two widths, light and dark: nothing goes over the edge, fails to load or complains."""
    for width, scheme in ((1280, "light"), (390, "dark")):
        said = []
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message, said=said: said.append(message.text))
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.goto(served + re.sub(r"(^|/)index\.md$|\.md$", "/", page).lstrip("/"))
        tab.wait_for_function(READY)
        assert (said, tab.evaluate(BROKEN)) == ([], [])
        assert tab.evaluate(OVER) <= 0, width
        narrow = "s => Math.min(...[...document.querySelectorAll(s)].map(e => e.clientWidth), 1e9)"
        assert tab.evaluate(narrow, ".md-content td") >= 30, "a column of one letter a line"
        tab.close()


@pytest.mark.browser
def test_a_link_into_the_other_language_leads_to_its_page(browser, served):
    tab = browser.new_page()
    tab.goto(served + "glossary/")
    name = BOOKS["names"]()[3]
    tab.evaluate(
        "to => document.querySelector('article').append("
        "Object.assign(document.createElement('a'), {href: to, id: 'to', textContent: 'there'}))",
        f"../zh/notebooks/{name}/",
    )
    tab.click("#to")
    tab.wait_for_url(f"**/zh/notebooks/{name}/")
    tab.click(".md-select button")
    tab.click(".md-select__link[hreflang=en]")
    tab.wait_for_url(re.compile(rf"(?<!zh)/notebooks/{name}/$"))
    tab.close()
