"""Pictures of curves and plans: colour-blind safe, readable in grey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lowrank.compression.layers import Cost
from lowrank.compression.methods import METHODS, Method
from lowrank.compression.plan import Dense, Tied
from lowrank.compression.profile_table import amount
from lowrank.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank.compression.curves import Candidate, Curve, Curves
    from lowrank.compression.plan import Choice, Plan, PlannedLayer
    from lowrank.sensing.phase_transition import PhaseTransition

Measure = Literal["macs", "params", "bytes"]
"""What a plan is drawn in."""

_UNITS = {"macs": "MACs on the example", "params": "parameters", "bytes": "bytes"}

_STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", (0, (5, 1, 1, 1, 1, 1))),
    ("#000000", "v", (0, (1, 1))),
    ("#56B4E9", "P", (0, (7, 2))),
)
"""Colours of Okabe and Ito 2008, each with a marker and a dash of its own."""

_DENSE, _REPLACED, _EDGE = "#BDBDBD", "#0072B2", "#222222"


@dataclass(frozen=True)
class _Line:
    """Error against rank of one layer, one method."""

    variant: str
    ranks: list[int]
    errors: list[float]
    break_even: int
    dense_macs: int


def error_against_rank(
    curves: Curves,
    layers: Sequence[str] | None = None,
    *,
    method: str = "channel_svd",
    ax: Axes | None = None,
) -> Axes:
    """Draw the relative error of the weights against the rank, a line for each layer.

    A line is solid and marked where the replacement runs fewer MACs than the dense layer,
    and faint beyond.

    Args:
        curves: what `lowrank.measure` returned.
        layers: names of up to 6 layers; by default 4 large ones, spread over the depth.
        method: a method with a single rank. Of its variants the layer's best is drawn.
        ax: axes to draw on; new ones by default.

    Raises:
        InputError: a layer that has no such curve, more than 6, or a method with several ranks.

    Example:
        >>> import matplotlib, torch, lowrank
        >>> matplotlib.use("agg")
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
        >>> ax = error_against_rank(lowrank.measure(net, torch.zeros(1, 32)))
        >>> ax.get_xlabel()
        'rank of channel_svd'
    """
    _check_method(method)
    lines = {c.layer: _line(c, method) for c in curves.curves if _of(c, method)}
    names = _chosen(lines, layers, method)
    ax = _axes(ax, height=4.0)
    for name, (colour, marker, dash) in zip(names, _STYLES, strict=False):
        line = lines[name]
        n, label = line.break_even, f"{name} {line.variant}".strip()
        ax.plot(line.ranks, line.errors, color=colour, lw=0.8, alpha=0.5)
        (bold,) = ax.plot(line.ranks[:n], line.errors[:n], color=colour, label=label)
        bold.set(marker=marker, markersize=5, markevery=max(1, n // 8), linestyle=dash)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xlabel(f"rank of {method}")
    ax.set_ylabel("relative error  ‖W − W′‖ / ‖W‖")
    ax.set_ylim(0, 1)
    faint = any(lines[name].break_even < len(lines[name].ranks) for name in names)
    note = "\nbold: fewer MACs than dense" if faint else ""
    ax.set_title(f"Error against rank{note}", fontsize=11)
    ax.grid(color="#DDDDDD", lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    return ax


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
    if measure not in _UNITS:
        raise InputError("measure", f"{measure!r} is unknown", f"choose among {', '.join(_UNITS)}")
    from matplotlib.ticker import EngFormatter

    costs = {n: row.dense for n, row in plan.layers.items() if row.dense is not None}
    if not costs:
        raise InputError("plan", "none of its layers could be replaced", "there is nothing to draw")
    ax = _axes(ax, height=1.2 + 0.24 * len(costs))
    size = 9 if len(costs) <= 40 else 6
    before = [getattr(cost, measure) for cost in costs.values()]
    after = [getattr(plan.layers[n].cost or cost, measure) for n, cost in costs.items()]
    colours = [_DENSE if isinstance(plan[n], Dense) else _REPLACED for n in costs]
    at = np.arange(len(costs))
    ax.barh(at, before, height=0.72, color="white", edgecolor=_EDGE, lw=0.7)
    ax.barh(at, after, height=0.72, color=colours, edgecolor=_EDGE, lw=0.7)
    for y, (name, width) in enumerate(zip(costs, before, strict=True)):
        text = _label(plan.layers[name], costs[name], measure)
        ax.annotate(
            text, (width, y), (4, 0), textcoords="offset points", va="center", fontsize=size
        )
    ax.set_yticks(at, list(costs), fontsize=size)
    ax.set_ylim(len(costs) - 0.4, -0.6)  # the first layer on top
    ax.set_xlim(0, 1.55 * max(before))  # room for the labels
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    ax.set_xlabel(_UNITS[measure])
    ax.set_title(_plan_title(plan, measure), fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    return ax


def phase_map(found: PhaseTransition, *, nonneg: bool = False, ax: Axes | None = None) -> Axes:
    """Draw the share of recoveries over `m / n` and `k / m`, with the exact thresholds over it.

    Args:
        found: what `phase_transition` returned.
        nonneg: draw the threshold of L1 with non-negative signals in place of that without.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib
        >>> from lowrank.sensing.phase_transition import phase_transition
        >>> matplotlib.use("agg")
        >>> ax = phase_map(phase_transition([0.5], [0.1, 0.9], n=40, trials=3))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('m / n', 'k / m')
    """
    from lowrank.sensing.phase_transition import bayes_threshold, l1_threshold

    ax = _axes(ax, height=5.0)
    delta = np.broadcast_to(found.deltas[:, None], found.rhos.shape)
    shares = ax.scatter(delta, found.rhos, c=found.fraction, cmap="cividis", vmin=0, vmax=1)
    shares.set(edgecolor=_EDGE, linewidth=0.4)
    ax.figure.colorbar(shares, ax=ax, label=f"share recovered of {found.trials}, n = {found.n}")
    grid = np.linspace(0.02, 0.98, 49)
    name = "non-negative L1" if nonneg else "L1"
    lines = ax.plot(grid, [l1_threshold(d, nonneg=nonneg) for d in grid], label=f"{name}, exact")
    lines += ax.plot(grid, [bayes_threshold(d) for d in grid], label="Bayes AMP, exact")
    for line, (colour, _, dash) in zip(lines, (_STYLES[1], _STYLES[4]), strict=True):
        line.set(color=colour, linestyle=dash)
    ax.plot(found.deltas, found.threshold(), "D", mfc="white", mec=_STYLES[1][0], label="50 %")
    ax.set(xlabel="m / n", ylabel="k / m", xlim=(0, 1), ylim=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return ax


def _axes(ax: Axes | None, *, height: float) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(7.0, height), layout="constrained")
    return ax


def _check_method(method: str) -> None:
    single = [n for n, cls in METHODS.items() if "rank" in {f.name for f in _fields(cls)}]
    if method not in single:
        known = f"choose among {', '.join(single)}"
        raise InputError("method", f"{method!r} is no method with a single rank", known)


def _fields(cls: type[Method]) -> tuple[Any, ...]:
    return fields(cls)  # type: ignore[arg-type]


def _of(curve: Curve, method: str) -> list[Candidate]:
    return [c for c in curve.candidates if c.method.name == method]


def _line(curve: Curve, method: str) -> _Line:
    """The variant of the method that loses least where it keeps at most half of the MACs."""
    variants: dict[str, list[Candidate]] = {}
    for candidate in _of(curve, method):
        variants.setdefault(_variant(candidate.method), []).append(candidate)

    def best(candidates: list[Candidate]) -> float:
        halved = [c.error for c in candidates if 2 * c.cost.macs <= curve.dense.macs]
        return min(halved, default=1.0)

    variant = min(variants, key=lambda v: best(variants[v]))
    ordered = sorted(variants[variant], key=lambda c: c.method.rank)  # type: ignore[attr-defined]
    return _Line(
        variant,
        [c.method.rank for c in ordered],  # type: ignore[attr-defined]
        [c.error**0.5 for c in ordered],
        sum(c.cost.macs < curve.dense.macs for c in ordered),
        curve.dense.macs,
    )


def _variant(method: Method) -> str:
    """The method's settings beside its rank, where they are words: `kernel_last`."""
    values = [getattr(method, f.name) for f in _fields(type(method)) if f.name != "rank"]
    return " ".join(v if isinstance(v, str) else f"axis {v}" for v in values)


def _chosen(lines: dict[str, _Line], layers: Sequence[str] | None, method: str) -> list[str]:
    known = f"choose among {', '.join(lines)}" if lines else "choose another method"
    if layers is None:
        most = max((line.dense_macs for line in lines.values()), default=0)
        useful = [n for n, line in lines.items() if line.break_even and 2 * line.dense_macs >= most]
        names = useful or list(lines)
        spread = np.linspace(0, len(names) - 1, min(4, len(names))).round().astype(int)
        layers = [names[i] for i in spread]
    for name in layers:
        if name not in lines:
            raise InputError("layers", f"{name!r} has no curve of {method}", known)
    if not 0 < len(layers) <= len(_STYLES):
        raise InputError("layers", f"{len(layers)} do not fit a picture of 1 to 6", known)
    return list(layers)


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
    values = [getattr(choice, f.name) for f in _fields(type(choice)) if f.name.startswith("rank")]
    flat = [n for v in values for n in (v if isinstance(v, tuple) else (v,))]
    return f"{choice.name} {', '.join(map(str, flat))}"


def _plan_title(plan: Plan, measure: Measure) -> str:
    before, after = getattr(plan.total, measure), getattr(plan.cost, measure)
    kept = f"{100 * after / before:.1f} %" if before else "nothing"
    return f"The plan keeps {kept} of {amount(before)} {measure.replace('macs', 'MACs')}"
