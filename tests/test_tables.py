"""How plans and reports print."""

from collections import OrderedDict

import pytest
import torch
from rich.console import Console
from torch import nn

import lowrank
from lowrank.compression.methods import ChannelSVD
from lowrank.tables import as_text, by_reason, merge_names


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_projection = nn.Linear(48, 48)
        self.normalization = nn.LayerNorm(48)

    def forward(self, x):
        return x + self.attention_projection(self.normalization(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding_of_words = nn.Embedding(300, 48)
        self.encoder_blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.head = nn.Linear(48, 300, bias=False)
        self.head.weight = self.embedding_of_words.weight

    def forward(self, ids):
        return self.head(self.encoder_blocks(self.embedding_of_words(ids)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def plan(net):
    example = torch.ones(1, 5, dtype=torch.long)
    return lowrank.measure(net, example, methods=["channel_svd"]).plan(params=0.15)


@pytest.fixture(scope="module")
def report(net, plan):
    return lowrank.apply(net, plan, example=torch.ones(1, 5, dtype=torch.long))[1]


def printed(value, width):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(value)
    return capture.get()


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_lines_fit(plan, report, width):
    for value in (plan, report):
        assert max(map(len, printed(value, width).splitlines())) <= width


def test_wide_tables_hold_full_names_and_kinds(plan):
    text = printed(plan, 200)
    for name in plan.replaced:
        assert f" {name} " in text
    assert "Embedding" in text


def test_narrow_tables_become_an_outline(plan):
    text = printed(plan, 70).split("left dense")[0]
    assert "\n   0.attention_projection  channel_svd" in text
    assert "encoder_blocks.0.attention" not in text


def test_narrow_tables_show_what_the_budget_is_about(net, plan):
    assert "parameters" in printed(plan, 60).splitlines()[1]
    macs = lowrank.measure(net, torch.ones(1, 5, dtype=torch.long)).plan(macs=0.15)
    assert "MACs" in printed(macs, 60).splitlines()[1]


def test_every_layer_is_listed(plan, report):
    for value in (plan, report):
        text = printed(value, 120)
        assert "encoder_blocks.0-2.normalization" in text
        assert "no weight matrix" in text
        assert "head shares the factors of embedding_of_words" in text


def test_whole_model_is_the_plan_total(plan):
    text = printed(plan, 120)
    kept = 100 * plan.cost.params / plan.total.params
    assert f"{kept:.1f} % kept" in text
    assert "budget params=0.15" in text


def test_report_shows_both_models_and_how_it_was_timed(report):
    text = printed(report, 100)
    assert f"{report.dense.parameters:,}" in text
    assert f"{report.compressed.parameters:,}" in text
    assert "median of 7 passes in turns on the example, cpu, 1 thread" in text
    assert "outputs on 1 example:" in text
    for note in report.notes:
        assert note in text.replace("\n", " ") or note.split()[0] in text


def test_report_without_an_example(net, plan):
    text = printed(lowrank.apply(net, plan)[1], 100)
    assert "latency" not in text
    assert "outputs on" not in text


def test_choice_by_hand_has_no_prediction(plan):
    name = "encoder_blocks.0.attention_projection"
    edited = plan.with_choice(name, ChannelSVD(3, "kernel_last"))
    text = printed(edited, 120)
    assert "channel_svd kernel_last" in text
    assert "1 chosen by hand and counted as dense" in text


def test_text_has_no_colour_and_no_trailing_blanks(plan, report, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for value in (plan, report):
        text = as_text(value)
        assert text == str(value)
        assert "\x1b" not in text
        assert all(line == line.rstrip() for line in text.splitlines())


def test_names_with_brackets_are_not_markup():
    assert by_reason({"": "[red]why[/red]"}) == {"[red]why[/red]": ["(model)"]}
    net = nn.Sequential(OrderedDict({"[bold]": nn.Linear(64, 64)}))
    plan = lowrank.measure(net, torch.zeros(1, 64)).plan(params=0.5)
    assert "[bold]" in printed(plan, 80)


@pytest.mark.parametrize(
    ("names", "merged"),
    [
        ([], []),
        (["a.0", "a.1", "a.2"], ["a.0-2"]),
        (["a.0", "a.2"], ["a.0", "a.2"]),
        (["a.0.b.0", "a.0.b.1", "a.1.b.0", "a.1.b.1"], ["a.0-1.b.0-1"]),
        (["a.0.b.0", "a.0.b.1", "a.1.b.0"], ["a.0-1.b.0", "a.0.b.1"]),
        (["a.10", "a.9"], ["a.9-10"]),
        (["conv1", "conv2"], ["conv1", "conv2"]),
    ],
)
def test_merged_names(names, merged):
    assert sorted(merge_names(names)) == sorted(merged)


@pytest.fixture(scope="module")
def swept():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(64, 32)
    return lowrank.sweep(net, x[:1], data=x, keeps=(0.8, 0.4, 1e-3), methods="channel_svd")


def test_a_sweep_prints_a_row_for_each_budget(swept):
    text = str(swept)
    lines = [line.split() for line in text.splitlines()]
    assert [line[0] for line in lines if line and line[0][:2] == "0."] == ["0.8", "0.4"]
    assert f"{swept.points[0].kept['params']:.1%}" in text
    assert f"{swept.points[1].quality.relative_error:.4g}" in text
    assert "could not be reached: macs=0.001" in text
    assert "metric" not in text
    assert "Point(" not in text


@pytest.mark.parametrize("width", [60, 120])
def test_a_sweep_fits_its_terminal(swept, width):
    assert max(map(len, printed(swept, width).splitlines())) <= width


def test_layers_that_go_narrower_are_not_listed_as_left_dense(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    net.append(nn.Linear(64, 10))
    x = torch.randn(256, 64)
    _, report = lowrank.compress(net, x[:1], params=0.9, data=x, select="lasso")
    narrower = set(report.plan.narrowed) & set(report.left_alone)
    assert narrower
    for value in (report, report.plan):
        _, listed = printed(value, 80).split("narrower, not factorized")
        of_these, *_ = listed.split("\n\n")
        for name in narrower:
            assert f"{report.plan.narrowed[name]}" in of_these
            assert f"    {name}" in of_these
    report.save_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    *_, rest = page.split("Layers that stay dense, and why")
    dense, _ = rest.split("Layers that went narrower", 1)
    assert ">0</t" in dense
    assert not any(f">{name}</t" in dense for name in narrower)
