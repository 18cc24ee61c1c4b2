"""Pictures: what is drawn, with which labels, and that it can be told apart in grey."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn

import lowrank
from lowrank import plots
from lowrank.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def _no_window():
    before = matplotlib.get_backend()
    matplotlib.use("agg")
    yield
    matplotlib.pyplot.close("all")
    matplotlib.use(before)


@pytest.fixture(scope="module")
def curves():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(512, 40)
    )
    methods = ["channel_svd", "spatial_svd", "tucker2", "tensor_train"]
    return lowrank.measure(net, torch.zeros(1, 3, 8, 8), methods=methods)


@pytest.fixture
def ax():
    return Figure().subplots()


def bold(ax):
    return [line for line in ax.get_lines() if not line.get_label().startswith("_")]


def test_errors_fall_with_the_rank_and_are_those_measured(curves, ax):
    assert plots.error_against_rank(curves, ["2", "4"], ax=ax) is ax
    curve = next(c for c in curves.curves if c.layer == "4")
    errors = {c.method.rank: c.error**0.5 for c in curve.candidates}
    line = bold(ax)[1]
    assert line.get_label().startswith("4")
    for rank, error in zip(*line.get_data(), strict=True):
        assert error == errors[rank]
    for line in bold(ax):
        assert np.all(np.diff(line.get_ydata()) <= 0)


def test_bold_is_where_it_is_cheaper(curves, ax):
    plots.error_against_rank(curves, ["4"], ax=ax)
    curve = next(c for c in curves.curves if c.layer == "4")
    cheaper = {c.method.rank for c in curve.candidates if c.cost.macs < curve.dense.macs}
    assert set(bold(ax)[0].get_xdata()) == cheaper


def test_lines_differ_in_more_than_colour(curves, ax):
    plots.error_against_rank(curves, ax=ax)
    looks = {(line.get_marker(), line.get_linestyle()) for line in bold(ax)}
    assert len({marker for marker, _ in looks}) == len(bold(ax))


def test_axes_are_labelled(curves, ax):
    plots.error_against_rank(curves, method="spatial_svd", ax=ax)
    assert ax.get_xlabel() == "rank of spatial_svd"
    assert "‖W − W′‖ / ‖W‖" in ax.get_ylabel()


def test_curves_that_are_not_there(curves):
    with pytest.raises(InputError, match="'nowhere' has no curve of channel_svd"):
        plots.error_against_rank(curves, ["nowhere"])
    with pytest.raises(InputError, match="no method with a single rank"):
        plots.error_against_rank(curves, method="tucker2")
    with pytest.raises(InputError, match="1 to 6"):
        plots.error_against_rank(curves, ["4"] * 7)
    with pytest.raises(InputError, match="1 to 6"):
        plots.error_against_rank(curves, [])


@pytest.mark.parametrize("measure", ["macs", "params", "bytes"])
def test_bars_are_the_plan(curves, ax, measure):
    plan = curves.plan(macs=0.5)
    plots.plan_bars(plan, measure=measure, ax=ax)
    rows = {n: r for n, r in plan.layers.items() if r.dense is not None}
    outlines, kept = ax.containers
    assert [t.get_text() for t in ax.get_yticklabels()] == list(rows)
    for bar, full, row in zip(kept, outlines, rows.values(), strict=True):
        assert full.get_width() == getattr(row.dense, measure)
        assert bar.get_width() == getattr(row.cost or row.dense, measure)
    labels = [t.get_text() for t in ax.texts]
    assert any("%" in label for label in labels)


def test_filled_and_dense_differ_in_grey():
    grey = [float(np.dot(to_rgb(c), (0.299, 0.587, 0.114))) for c in (plots._DENSE, "#0072B2")]
    assert abs(grey[0] - grey[1]) > 0.3


def test_labels_do_not_leave_the_picture(curves):
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = plots.plan_bars(curves.plan(macs=0.5), ax=figure.subplots())
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for text in [*ax.texts, *ax.get_yticklabels(), ax.title]:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1


def test_new_axes_grow_with_the_plan(curves):
    ax = plots.plan_bars(curves.plan(macs=0.5))
    assert ax.figure.get_figheight() == pytest.approx(1.2 + 0.24 * 3)
    assert plots.error_against_rank(curves).figure is not ax.figure


def test_plans_that_cannot_be_drawn(curves):
    plan = curves.plan(macs=0.5)
    with pytest.raises(InputError, match="choose among macs, params, bytes"):
        plots.plan_bars(plan, measure="flops")
    with pytest.raises(InputError, match="none of its layers"):
        plots.plan_bars(lowrank.Plan({}, plan.total))
