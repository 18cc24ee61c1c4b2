"""HTML reports: what stands in them, that nothing is fetched, and how a real browser shows them."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lowrank
from lowrank.cli import main
from lowrank.compression import Dense, Quality, save_compression
from lowrank.errors import InputError

NASTY = '<script>alert("x")</script>&amp;'
VOID = {"meta", "link", "br", "img"}


class Page(HTMLParser):
    """Tags as they nest, addresses, and the text of every table row."""

    def __init__(self, path):
        super().__init__()
        self.open, self.addresses, self.rows, self.words = [], [], [], ""
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.addresses += [v for k, v in attrs if k in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
        if "style" not in self.open and "script" not in self.open:
            self.words += data

    def row(self, name):
        return next(row for row in self.rows if row[0] == name)


@pytest.fixture(scope="module")
def compressed():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(512, 40)
    )
    methods = ["channel_svd", "tucker2"]
    return lowrank.compress(net, torch.randn(2, 3, 8, 8), params=0.5, methods=methods)[1]


@pytest.fixture(scope="module")
def page(compressed, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    tuned = Quality(0.01, 0.99, 0.001, 2)
    scores = {"accuracy, %": (95.25, 90.0, 94.5), "a score": (1.0, None)}
    options = {"finetuned": tuned, "scores": scores, "peak_memory": (2_000_000, 1_500_000)}
    compressed.save_html(path, checkpoint="somewhere/else.safetensors", **options)
    return Page(path)


def test_headline_has_every_figure_in_three_columns(page, compressed):
    assert page.rows[0] == ["figure", "dense", "compressed", "fine-tuned"]
    kept = 100 * compressed.kept("parameters")
    assert f"({kept:.1f} %)" in page.row("parameters")[2]
    assert page.row("peak memory, activations")[1:3] == ["2.000 MB", "1.500 MB (75.0 %)"]
    assert page.row("latency, ms")[3] == "as compressed"
    assert page.row("same answers")[3] == "99.0 %"
    assert page.row("accuracy, %")[1:] == ["95.25", "90", "94.5"]
    assert page.row("a score")[2:] == ["not measured", "not fine-tuned"]


def test_what_was_not_measured_says_so(compressed, tmp_path):
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    plan = lowrank.measure(net, torch.zeros(1, 32)).plan(params=0.6)
    lowrank.apply(net, plan)[1].save_html(tmp_path / "report.html")
    bare = Page(tmp_path / "report.html")
    for name in ("MACs", "peak memory, activations", "latency, ms"):
        assert bare.row(name)[1:] == ["not measured", "not measured"]
    assert bare.row("same answers")[1:] == ["reference", "not measured"]
    assert "lowrank.save(small" in bare.words


def test_it_opens_with_three_figures_and_the_plan(page, compressed, tmp_path):
    large = re.findall(r'<dd class="value">(.*?)</dd><dt>(.*?)</dt>', page.source)
    kept = f"{100 * compressed.kept('parameters'):.1f} %"
    assert large[0] == (kept, "of the parameters")  # the budget's own measure
    assert [of for _, of in large[1:]] == ["of the time", "accuracy, %"]
    assert large[2][0] == "94.5"
    places = [page.source.index(s) for s in ("<dl", "<h2>The plan", "<table", "<h2>Predicted")]
    assert places == sorted(places)
    compressed.save_html(tmp_path / "r.html")
    assert re.findall(r"<dt>(.*?)</dt>", Page(tmp_path / "r.html").source)[2] == (
        "same answers as dense"
    )


def test_no_column_for_what_was_not_done(compressed, tmp_path):
    compressed.save_html(tmp_path / "r.html", scores={"accuracy, %": (95.25, 90.0)})
    bare = Page(tmp_path / "r.html")
    assert bare.rows[0] == ["figure", "dense", "compressed"]
    assert bare.row("accuracy, %")[1:] == ["95.25", "90"]
    assert "fine-tuned" not in bare.words
    figures = compressed.to_dict()
    for row in figures["layers"]:
        row["measured_error"] = None
    save_compression(figures, tmp_path / "r.html")
    heads = [row for row in Page(tmp_path / "r.html").rows if row[0] == "layer"]
    assert heads
    assert all("built error" not in row for row in heads)


def test_every_layer_is_there_with_its_reason(page, compressed):
    for row in compressed.layers:
        shown = page.row(row.name)
        assert shown[1] == row.kind
        if isinstance(row.choice, Dense):
            assert shown[2] == row.choice.reason
        else:
            assert f"{100 * row.measured_error:.2f} %" in shown


def test_how_to_load_and_what_it_was_made_with(page):
    assert 'lowrank.load("else.safetensors", into=build_model())' in page.words
    assert page.row("torch")[1] == torch.__version__
    assert page.row("seed")[1] == "0"
    assert page.row("budget")[1] == "params 0.5"


def test_nothing_is_fetched(page):
    assert all(address.startswith("data:") for address in page.addresses)
    assert sum(a.startswith("data:image/svg") for a in page.addresses) == 2
    assert "default-src 'none'" in page.source
    assert not re.search(r"https?://", page.source)


def test_names_are_escaped(tmp_path):
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    plan = lowrank.measure(net, torch.zeros(1, 32)).plan(params=0.6)
    _, report = lowrank.apply(net, plan)
    first = report.layers[0]
    object.__setattr__(first, "name", NASTY)
    path = tmp_path / "a&b<c>.html"
    report.save_html(path, title=NASTY, checkpoint="<&>.safetensors")
    odd_page = Page(path)
    assert "<script>alert" not in odd_page.source
    assert odd_page.row(NASTY)
    assert 'lowrank.load("<&>.safetensors"' in odd_page.words


def test_a_page_from_the_json_of_a_report(compressed, page, tmp_path):
    figures = json.loads(json.dumps(compressed.to_dict()))
    save_compression(figures, tmp_path / "r.html")
    shown = Page(tmp_path / "r.html")
    for row in compressed.layers:
        assert shown.row(row.name) == page.row(row.name)
    assert shown.row("parameters")[:3] == page.row("parameters")[:3]
    assert "MACs are multiply-accumulates" in shown.words
    assert not any(a.startswith("data:image/svg") for a in shown.addresses)


def test_the_same_report_gives_the_same_page(compressed, tmp_path):
    for name in "ab":
        compressed.save_html(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_refusals(compressed, tmp_path):
    with pytest.raises(InputError, match="1 figures for 'x'"):
        compressed.save_html(tmp_path / "r.html", scores={"x": (1.0,)})
    with pytest.raises(InputError, match="cannot be written"):
        compressed.save_html(tmp_path / "nowhere" / "r.html")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def recovered():
    A = np.random.default_rng(0).standard_normal((40, 100))
    x = np.zeros(100)
    x[::20] = 1.0, -2.0, 3.0, 4.0, 5.0
    return lowrank.recover(A, A @ x), x, A @ x


def test_recovery_page(recovered, tmp_path):
    found, x, y = recovered
    found.save_html(tmp_path / "r.html", truth=x, measurements=y)
    shown = Page(tmp_path / "r.html")
    assert shown.row("non-zeros")[1] == "5 of 100"
    assert shown.row("relative gap")[1] == f"{found.gap:.1e}"
    assert shown.rows[shown.rows.index(["index", "coefficient"]) + 1] == ["80", "5"]
    assert all(address.startswith("data:") for address in shown.addresses)
    with pytest.raises(InputError, match="truth"):
        found.save_html(tmp_path / "r.html", truth=x[:-1])


def test_recovery_page_says_what_is_not_proven(recovered, tmp_path):
    A = np.random.default_rng(0).standard_normal((40, 100))
    found = lowrank.recover(A, recovered[2], sparsity=5)
    found.save_html(tmp_path / "r.html")
    assert Page(tmp_path / "r.html").row("certificate")[1] == "none: the problem is not convex"
    stopped = lowrank.recover(A, recovered[2], lam=0.01, solver="fista", max_iter=2)
    stopped.save_html(tmp_path / "r.html")
    assert "max_iter" in Page(tmp_path / "r.html").words


def test_commands_write_reports(recovered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))\n"
    )
    run = CliRunner().invoke
    compress = ["compress", "net.py:build", "--input", "1x64", "--params", "0.5"]
    done = run(main, [*compress, "-o", "small.safetensors", "--report", "report.html"])
    assert done.exit_code == 0, done.output
    shown = Page(tmp_path / "report.html")
    assert "not measured" not in shown.row("peak memory, activations")[1]
    assert 'lowrank.load("small.safetensors"' in shown.words
    assert run(main, [*compress, "--report", "report.txt"]).exit_code == 2
    A = np.random.default_rng(0).standard_normal((40, 100))
    np.save("A.npy", A)
    np.save("y.npy", recovered[2])
    recover = ["recover", "--matrix", "A.npy", "--measurements", "y.npy"]
    done = run(main, [*recover, "--report", "r.html"])
    assert done.exit_code == 0, done.output
    assert "OPTIMAL" in Page(tmp_path / "r.html").words.upper()
    assert run(main, [*recover, "--report", "y.npy"]).exit_code == 2


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("kind", ["compression", "recovery"])
def test_in_a_real_browser(browser, compressed, recovered, kind, width, tmp_path):
    path = tmp_path / f"{kind} <&>.html"
    if kind == "compression":
        compressed.save_html(path, title=NASTY, scores={"accuracy, %": (95.2, 93.0, 95.0)})
    else:
        recovered[0].save_html(path, truth=recovered[1], measurements=recovered[2])
    tab = browser.new_page(viewport={"width": width, "height": 900})
    said, asked, dialogs = [], [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("dialog", lambda dialog: dialogs.append(dialog.message))
    tab.goto(path.as_uri())
    assert said == dialogs == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(over) == 0
    assert tab.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    headline = tab.locator(".headline, .narrow").first
    assert headline.evaluate("e => e.scrollWidth - e.clientWidth") == 0
    assert len(tab.screenshot(path=tmp_path / "page.png", full_page=True)) > 20_000
    sorts_by_number(tab)
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 718, "height": 1000})  # A4 within its margins
    assert tab.evaluate(over) == 0
    tab.close()


def sorts_by_number(tab):
    table = tab.locator("table.sortable").first
    head = table.locator("th.number button").last
    column = "t => [...t.tBodies[0].rows].map(r => parseFloat(r.lastElementChild.dataset.value))"
    for sign in (1, -1):
        head.press("Enter")
        values = np.array(table.evaluate(column), dtype=float)
        assert (np.diff(sign * values) >= 0).all()
