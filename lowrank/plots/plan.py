"""Pictures of a plan, and of what became of it."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from lowrank.compression.plan import Dense, Tied
from lowrank.compression.profile_table import amount
from lowrank.errors import InputError
from lowrank.plots.style import (
    DENSE,
    EDGE,
    REPLACED,
    STYLES,
    UNITS,
    Measure,
    axes_of,
    check_measure,
    tidy,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank.compression.layers import Cost
    from lowrank.compression.plan import Choice, Plan, PlannedLayer
    from lowrank.compression.report import Report


def plan_bars(plan: Plan, *, measure: Measure = "macs", ax: Axes | None = None) -> Axes:
    """Draw what the plan keeps of every layer that a method could replace.

    The outline is the dense layer, the filled part what is kept; the method and its ranks
    stand beside it.

    Args:
        plan: a plan.
        measure: "macs", "params" or "bytes".
        ax: axes to draw on; new ones, as high as the plan needs, by default.

    Raises:
        InputError: an unknown measure, or a plan without a layer to draw.

    Example:
        >>> import matplotlib, torch, lowrank
        >>> matplotlib.use("agg")
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
        >>> plan = lowrank.measure(net, torch.zeros(1, 32)).plan(params=0.6)
        >>> [text.get_text() for text in plan_bars(plan).get_yticklabels()]
        ['0', '1']
    """
    check_measure(measure)
    from matplotlib.ticker import EngFormatter

    costs = {n: row.dense for n, row in plan.layers.items() if row.dense is not None}
    if not costs:
        raise InputError("plan", "none of its layers could be replaced", "there is nothing to draw")
    ax = axes_of(ax, height=1.2 + 0.24 * len(costs))
    size = 9 if len(costs) <= 40 else 6
    before = [getattr(cost, measure) for cost in costs.values()]
    after = [getattr(plan.layers[n].cost or cost, measure) for n, cost in costs.items()]
    colours = [DENSE if isinstance(plan[n], Dense) else REPLACED for n in costs]
    at = np.arange(len(costs))
    ax.barh(at, before, height=0.72, color="white", edgecolor=EDGE, lw=0.7)
    ax.barh(at, after, height=0.72, color=colours, edgecolor=EDGE, lw=0.7)
    for y, (name, width) in enumerate(zip(costs, before, strict=True)):
        text = _label(plan.layers[name], costs[name], measure)
        ax.annotate(
            text, (width, y), (4, 0), textcoords="offset points", va="center", fontsize=size
        )
    ax.set_yticks(at, list(costs), fontsize=size)
    ax.set_ylim(len(costs) - 0.4, -0.6)  # the first layer on top
    ax.set_xlim(0, 1.55 * max(before))  # room for the labels
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.set_xlabel(UNITS[measure])
    ax.set_title(_plan_title(plan, measure), fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def predicted_against_measured(report: Report, *, ax: Axes | None = None) -> Axes:
    """Draw the error of every replaced layer as planned and as built, side by side.

    Args:
        report: what `compress` or `apply` returned.
        ax: axes to draw on; new ones, as high as the layers need, by default.

    Raises:
        InputError: no layer was replaced.

    Example:
        >>> import matplotlib, torch, lowrank
        >>> matplotlib.use("agg")
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
        >>> _, report = lowrank.compress(net, torch.zeros(1, 32), params=0.6)
        >>> predicted_against_measured(report).get_xlabel()
        'relative error, %'
    """
    rows = [r for r in report.replaced if r.predicted_error is not None]
    rows = [r for r in rows if r.measured_error is not None]
    if not rows:
        raise InputError("report", "no layer of it was replaced", "there is nothing to draw")
    ax = axes_of(ax, height=1.4 + 0.24 * len(rows))
    at = np.arange(len(rows))
    predicted, measured = (
        100 * np.array([getattr(r, f"{kind}_error") for r in rows], dtype=float)
        for kind in ("predicted", "measured")
    )
    ax.hlines(at, predicted, measured, colors=EDGE, lw=1)
    for values, label, (colour, marker, _) in zip(
        (predicted, measured), ("predicted", "measured"), STYLES, strict=False
    ):
        (points,) = ax.plot(values, at, color=colour, linestyle="none", marker=marker, label=label)
        points.set(markersize=6, markerfacecolor="none" if label == "predicted" else colour)
    ax.set_yticks(at, [r.name for r in rows], fontsize=9 if len(rows) <= 40 else 6)
    ax.set_ylim(len(rows) - 0.4, -0.6)  # the first layer on top
    ax.set_xlim(left=0)
    ax.set_xlabel("relative error, %")
    ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return tidy(ax)


def _label(row: PlannedLayer, dense: Cost, measure: Measure) -> str:
    before = getattr(dense, measure)
    if row.cost is None or not before:
        return _short(row.choice)
    return f"{_short(row.choice)}: {100 * getattr(row.cost, measure) / before:.0f} %"


def _short(choice: Choice) -> str:
    """`tucker2 12, 9`: the method and its ranks."""
    if isinstance(choice, Dense):
        return "dense"
    if isinstance(choice, Tied):
        return f"factors of {choice.to}"
    values = [getattr(choice, f.name) for f in fields(choice) if f.name.startswith("rank")]  # type: ignore[arg-type]
    flat = [n for v in values for n in (v if isinstance(v, tuple) else (v,))]
    return f"{choice.name} {', '.join(map(str, flat))}"


def _plan_title(plan: Plan, measure: Measure) -> str:
    before, after = getattr(plan.total, measure), getattr(plan.cost, measure)
    kept = f"{100 * after / before:.1f} %" if before else "nothing"
    return f"The plan keeps {kept} of {amount(before)} {measure.replace('macs', 'MACs')}"
