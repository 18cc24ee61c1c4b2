"""Pictures of recoveries, and the progress bar: what they hold."""

import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from rich.console import Console

from lowrank.errors import InputError
from lowrank.sensing import bases, operators, plots, progress_bar, recover, sparse_signal

A, X = operators.gaussian(40, 100, seed=0), sparse_signal(100, 5, seed=1)


def labels(figure):
    return [ax.get_ylabel() for ax in figure.axes]


def test_a_panel_for_all_that_is_known():
    found = recover(A, A @ X, solver="fista", lam_fraction=0.01)
    figure = found.plot(X, A @ X)
    assert labels(figure) == ["true signal", "measurement", "signal", "relative gap"]
    assert figure.axes[3].get_yscale() == "log"
    assert "fista: optimal" in figure.get_suptitle()


def test_coefficients_of_a_basis_have_a_panel():
    signal = bases.dct(100) @ X
    found = recover(A, A @ signal, basis=bases.dct(100))
    assert labels(found.plot()) == ["signal", "coefficient"]
    assert labels(found.plot(unit="mV"))[0] == "signal (mV)"


def test_stems_stand_where_the_signal_is():
    (ax,) = recover(A, A @ X).plot().axes
    drawn = ax.get_lines()[-1]
    np.testing.assert_array_equal(drawn.get_xdata(), np.flatnonzero(X))
    np.testing.assert_allclose(drawn.get_ydata(), X[X != 0], atol=1e-8)


def test_the_modulus_of_complex_signals():
    x, F = sparse_signal(64, 3, seed=0, kind="complex"), operators.partial_fourier(64, m=32, seed=0)
    panels = labels(recover(F, F @ x).plot(x, F @ x))
    assert panels[:3] == ["|true signal|", "|measurement|", "|signal|"]


def test_the_first_of_several_signals():
    Y = np.stack([A @ X, A @ X[::-1]], axis=1)
    figure = recover(A, Y).plot(measurements=Y)
    assert "signal 1 of 2" in figure.get_suptitle()


def test_zero_is_drawn():
    assert labels(recover(A, np.zeros(40)).plot()) == ["signal"]


def test_only_the_largest_of_very_many():
    values = np.zeros(20000)
    values[: plots.MAX_DRAWN + 100] = np.arange(plots.MAX_DRAWN + 100) + 1
    ax = Figure().subplots()
    plots.signal(ax, values)
    assert len(ax.get_lines()[-1].get_xdata()) == plots.MAX_DRAWN


def test_colours_differ_in_grey_or_by_marker():
    grey = [float(np.dot(to_rgb(c), (0.299, 0.587, 0.114))) for c in (plots.TRUE, plots.FOUND)]
    assert abs(grey[0] - grey[1]) > 0.1


def test_a_truth_of_another_shape():
    with pytest.raises(InputError, match="not its coefficients"):
        recover(A, A @ X).plot(X[:5])


def test_the_bar_shows_iterations_on_a_terminal_alone():
    for is_terminal in (True, False):
        drawn = io.StringIO()
        with progress_bar(Console(file=drawn, force_terminal=is_terminal, width=80)) as bar:
            recover(A, A @ X, lam_fraction=0.01, solver="fista", callback=bar)
        assert ("iteration 1, " in drawn.getvalue()) == is_terminal
    assert drawn.getvalue() == ""
