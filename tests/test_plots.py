"""Pictures: what is drawn, with which labels, and that it can be told apart in grey."""

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import nn

import lowrank
from lowrank import drawing as style
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
    assert curves.plot(["2", "4"], ax=ax) is ax
    curve = next(c for c in curves.curves if c.layer == "4")
    errors = {c.method.rank: c.error**0.5 for c in curve.candidates}
    line = bold(ax)[1]
    assert line.get_label().startswith("4")
    for rank, error in zip(*line.get_data(), strict=True):
        assert error == errors[rank]
    for line in bold(ax):
        assert np.all(np.diff(line.get_ydata()) <= 0)


def test_bold_is_where_it_is_cheaper(curves, ax):
    curves.plot(["4"], ax=ax)
    curve = next(c for c in curves.curves if c.layer == "4")
    cheaper = {c.method.rank for c in curve.candidates if c.cost.macs < curve.dense.macs}
    assert set(bold(ax)[0].get_xdata()) == cheaper


def test_lines_differ_in_more_than_colour(curves, ax):
    curves.plot(ax=ax)
    looks = {(line.get_marker(), line.get_linestyle()) for line in bold(ax)}
    assert len({marker for marker, _ in looks}) == len(bold(ax))


def test_axes_are_labelled(curves, ax):
    curves.plot(method="spatial_svd", ax=ax)
    assert ax.get_xlabel() == "rank of spatial_svd"
    assert "‖W − W′‖ / ‖W‖" in ax.get_ylabel()


def test_curves_that_are_not_there(curves):
    with pytest.raises(InputError, match="'nowhere' has no curve of channel_svd"):
        curves.plot(["nowhere"])
    with pytest.raises(InputError, match="no method with a single rank"):
        curves.plot(method="tucker2")
    with pytest.raises(InputError, match="1 to 6"):
        curves.plot(["4"] * 7)
    with pytest.raises(InputError, match="1 to 6"):
        curves.plot([])


@pytest.mark.parametrize("measure", ["macs", "params", "bytes"])
def test_bars_are_the_plan(curves, ax, measure):
    plan = curves.plan(macs=0.5)
    plan.plot(measure=measure, ax=ax)
    rows = {n: r for n, r in plan.layers.items() if r.dense is not None}
    outlines, kept = ax.containers
    assert [t.get_text() for t in ax.get_yticklabels()] == list(rows)
    for bar, full, row in zip(kept, outlines, rows.values(), strict=True):
        assert full.get_width() == getattr(row.dense, measure)
        assert bar.get_width() == getattr(row.cost or row.dense, measure)
    labels = [t.get_text() for t in ax.texts]
    assert any("%" in label for label in labels)


def test_filled_and_dense_differ_in_grey():
    grey = [float(np.dot(to_rgb(c), (0.299, 0.587, 0.114))) for c in (style.DENSE, "#0072B2")]
    assert abs(grey[0] - grey[1]) > 0.3


def test_labels_do_not_leave_the_picture(curves):
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = curves.plan(macs=0.5).plot(ax=figure.subplots())
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    for text in [*ax.texts, *ax.get_yticklabels(), ax.title]:
        box = text.get_window_extent()
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1


def test_pictures_take_rows_of_any_origin(ax):
    lines = {str(i): plots.RankLine([1, 2, 4], [0.9, 0.5, 0.1 * i], i) for i in range(1, 4)}
    plots.error_against_rank(lines, ax=ax)
    assert [len(line.get_xdata()) for line in bold(ax)] == [1, 2, 3]
    for many in ({}, {str(i): lines["1"] for i in range(7)}):
        with pytest.raises(InputError, match="1 to 6"):
            plots.error_against_rank(many)
    bars = [plots.Bar("a", 10, 4, "half", True), plots.Bar("b", 8, 8, "dense", False)]
    outlines, kept = plots.plan_bars(bars, measure="params", title="a plan").containers
    assert [bar.get_width() for bar in outlines] == [10, 8]
    assert [bar.get_width() for bar in kept] == [4, 8]
    assert kept[0].get_facecolor() != kept[1].get_facecolor()
    drawn = plots.sweep_curve([0.8, 0.4], {"measured": [0.9, None], "tuned": [None, None]})
    assert [line.get_xydata().tolist() for line in drawn.get_lines()] == [[[80.0, 0.9]]]
    for draw in (plots.sweep_curve, plots.trade_off):
        with pytest.raises(InputError, match="choose among macs, params, bytes"):
            draw([], {}, measure="flops")


def test_new_axes_grow_with_the_plan(curves):
    ax = curves.plan(macs=0.5).plot()
    assert ax.figure.get_figheight() == pytest.approx(1.2 + 0.24 * 3)
    assert curves.plot().figure is not ax.figure


def test_plans_that_cannot_be_drawn(curves):
    plan = curves.plan(macs=0.5)
    with pytest.raises(InputError, match="choose among macs, params, bytes"):
        plan.plot(measure="flops")
    with pytest.raises(InputError, match="none of its layers"):
        lowrank.Plan({}, plan.total).plot()


def test_spectrum_holds_the_sizes_and_the_errors_left(ax):
    W = torch.randn(8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plots.spectrum(W, label="W", ax=ax)
    sizes, left = (line.get_ydata() for line in ax.get_lines())
    s = torch.linalg.svdvals(W).numpy()
    np.testing.assert_allclose(sizes, s / s[0])
    np.testing.assert_allclose(left[0], np.sqrt((s[1:] ** 2).sum() / (s**2).sum()))
    assert np.isnan(left[-1])  # nothing is left, which no log axis can show


def test_trade_off_draws_the_plans(curves, ax):
    assert curves.plot_trade_off((0.7, 0.5), ax=ax) is ax
    kept, errors = ax.get_lines()[0].get_data()
    plans = [curves.plan(macs=b) for b in (0.7, 0.5)]
    np.testing.assert_allclose(kept, [100 * p.cost.macs / p.total.macs for p in plans])
    assert list(errors) == [p.error for p in plans]
    curves.plot_trade_off(measure="params", label="params", ax=ax)
    assert len({line.get_marker() for line in ax.get_lines()}) == 2


def test_trade_off_says_when_nothing_can_be_reached(curves, ax):
    with pytest.raises(lowrank.LowRankError):
        curves.plot_trade_off((1e-6,), ax=ax)
    with pytest.raises(lowrank.LowRankError, match="there are none"):
        curves.plot_trade_off((), ax=ax)


def test_predicted_stands_beside_measured(ax):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    _, report = lowrank.compress(net, torch.zeros(1, 32), params=0.6)
    report.plot(ax=ax)
    predicted, measured = (line.get_xdata() for line in bold(ax))
    rows = report.replaced
    np.testing.assert_allclose(predicted, [100 * r.predicted_error for r in rows])
    np.testing.assert_allclose(measured, [100 * r.measured_error for r in rows])
    assert report.plot().get_xlabel() == "relative error, %"
    assert report.plan.plot(measure="params").get_xlabel() == "parameters"
    empty = lowrank.Report((), report.plan, report.dense, report.compressed, None)
    with pytest.raises(InputError, match="no layer"):
        empty.plot()


A = np.random.default_rng(0).standard_normal((30, 50)) / 30**0.5
X = np.zeros(50)
X[[3, 17, 40]] = 1.0, -2.0, 0.5


def test_support_tells_found_from_missed_and_false(ax):
    found = lowrank.recover(A, A @ X + 0.05 * A[:, 9], lam=0.6)
    plots.support(found.coefficients, X, ax=ax)
    on, got = set(np.flatnonzero(X)), set(found.support)
    names = {line.get_label().split(":")[0]: set(line.get_xdata()) for line in bold(ax)}
    assert names == {"found": on & got, "missed": on - got, "false": got - on}
    with pytest.raises(InputError, match="one signal"):
        plots.support(found.coefficients, X[:-1], ax=ax)


def test_path_and_selection(ax):
    lams = np.array([1.0, 0.1, 0.01])
    path = np.stack([lowrank.recover(A, A @ X, lam=lam).x for lam in lams])
    plots.regularisation_path(lams, path, truth=X, chosen=0.1, ax=ax)
    blue = [line for line in ax.get_lines() if line.get_color() == style.STYLES[0][0]]
    assert len(blue) == 3 + 1  # and the one of the legend
    with pytest.raises(InputError, match="a row for each penalty"):
        plots.regularisation_path(lams, path.T)
    noise = 0.05 * np.random.default_rng(1).standard_normal(30)
    chosen = lowrank.sensing.lam_by_information(A, A @ X + noise)
    drawn = chosen.plot()
    assert chosen.lam in drawn.get_lines()[1].get_xdata()


def test_convergence_of_each_kind_of_result(ax):
    from lowrank.decompositions import go_dec, robust_pca

    M = np.ones((8, 6)) + np.eye(8, 6)
    convex, greedy = robust_pca(M), go_dec(M, 1, 6)
    drawn = plots.convergence(convex.history, xlabel="iteration", ylabel="relative size")
    assert (drawn.get_xlabel(), drawn.get_ylabel()) == ("iteration", "relative size")
    assert [len(line.get_xdata()) for line in drawn.get_lines()] == [convex.n_iter] * 2
    assert [text.get_text() for text in drawn.get_legend().get_texts()] == [
        "primal residual",
        "dual residual",
    ]
    assert plots.convergence(greedy.history).get_legend().get_texts()[0].get_text() == "residual"
    slow = lowrank.recover(A, A @ X, lam=0.1, solver="fista")
    assert plots.convergence(slow.history, ax=ax).get_ylabel() == "relative gap"
    with pytest.raises(InputError, match="kept none"):
        plots.convergence(lowrank.recover(A, A @ X, lam=0.1, solver="homotopy").history)


def test_video_frames_are_the_parts():
    from lowrank.decompositions import robust_pca

    M = np.outer(np.arange(1.0, 13), np.ones(5))
    M[4, 2] += 9
    found = robust_pca(M)
    figure = plots.video_frames(found.L, found.S, (3, 4), (0, 2))
    pictures = [ax.images[0].get_array() for ax in figure.axes]
    np.testing.assert_allclose(pictures[0], M[:, 0].reshape(3, 4), atol=1e-5)
    np.testing.assert_allclose(pictures[5].ravel(), np.abs(found.S[:, 2]))
    with pytest.raises(InputError, match="pixels are rows"):
        plots.video_frames(found.L, found.S, (3, 5))


def test_phase_map_is_what_plot_draws():
    from lowrank.sensing.phase_transition import phase_transition

    result = phase_transition([0.4, 0.6], [0.1, 0.9], n=30, trials=2)
    ax = result.plot()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("m / n", "k / m")
    assert sum(drawn.get_array().size for drawn in ax.collections) == 4


def test_results_plot_themselves(curves, ax):
    assert curves.plot(["4"], ax=ax) is ax
    assert ax.get_legend().get_texts()[0].get_text().startswith("4")
    noise = 0.05 * np.random.default_rng(1).standard_normal(30)
    drawn = lowrank.sensing.lam_by_information(A, A @ X + noise).plot()
    assert drawn.get_xlabel() == "penalty λ"
    M = np.outer(np.arange(1.0, 13), np.ones(5))
    figure = lowrank.decompositions.robust_pca(M).plot((3, 4), (0, 2))
    assert len(figure.axes) == 6
