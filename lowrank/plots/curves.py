"""Spectra, error against rank, and what a budget costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank.compression.methods import METHODS, Method
from lowrank.errors import BudgetError, InputError
from lowrank.plots.style import STYLES, UNITS, Measure, axes_of, check_measure, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from lowrank.compression.curves import Candidate, Curve, Curves


@dataclass(frozen=True)
class _Line:
    """Error against rank of one layer, one method."""

    variant: str
    ranks: list[int]
    errors: list[float]
    break_even: int
    dense_macs: int


def spectrum(W: Tensor, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the singular values of a matrix, and the error that each rank leaves.

    The solid line is `s_i / s_1`, the dashed one `||W - W_r|| / ||W||`, the tail of the spectrum.

    Args:
        W: (m, n) matrix; of more axes, such as a kernel, all but the first are joined.
        label: name of the matrix in the legend.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib, torch
        >>> matplotlib.use("agg")
        >>> ax = spectrum(torch.diag(torch.tensor([2.0, 1.0, 0.5])))
        >>> ax.get_lines()[0].get_ydata().tolist()
        [1.0, 0.5, 0.25]
    """
    from lowrank.decompositions import singular_values

    s = singular_values(W.flatten(1) if W.ndim > 2 else W).double().cpu().numpy()
    energy = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    ax = axes_of(ax, height=4.0)
    ranks, prefix = np.arange(1, s.size + 1), f"{label}: " if label else ""
    size = s / (s[0] or 1.0)
    (line,) = ax.plot(ranks, np.where(size > 0, size, np.nan), label=f"{prefix}s_i / s_1")
    left = np.sqrt(energy[1:] / (energy[0] or 1.0))
    ax.plot(
        ranks, np.where(left > 0, left, np.nan), "--", color=line.get_color(),
        label=f"{prefix}error at rank i",
    )  # fmt: skip
    ax.set(yscale="log", xlabel="index i of the singular value, or rank", ylabel="relative size")
    ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


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
    ax = axes_of(ax, height=4.0)
    for name, (colour, marker, dash) in zip(names, STYLES, strict=False):
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
    ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


def trade_off(
    curves: Curves,
    budgets: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
    *,
    measure: Measure = "macs",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the predicted error of the best plan for each budget; those out of reach are left out.

    Args:
        curves: what `lowrank.measure` returned.
        budgets: kept fractions in (0, 1].
        measure: "macs", "params" or "bytes".
        label: name of the line in the legend.
        ax: axes to draw on, which may hold other lines; new ones by default.

    Raises:
        InputError: an unknown measure.
        BudgetError: no budget can be reached.

    Example:
        >>> import matplotlib, torch, lowrank
        >>> matplotlib.use("agg")
        >>> net = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32))
        >>> ax = trade_off(lowrank.measure(net, torch.zeros(1, 32)), measure="params")
        >>> ax.get_xlabel()
        'parameters kept, %'
    """
    check_measure(measure)
    kept, errors, refused = [], [], None
    for budget in budgets:
        try:
            plan = curves.plan(**{measure: budget})
        except BudgetError as error:
            refused = error
            continue
        kept.append(100 * getattr(plan.cost, measure) / getattr(plan.total, measure))
        errors.append(plan.error)
    if not kept:
        raise refused or BudgetError("budgets", "there are none", "pass fractions such as 0.5")
    ax = axes_of(ax, height=4.0)
    colour, marker, dash = STYLES[len(ax.get_lines()) % len(STYLES)]
    (line,) = ax.plot(kept, errors, color=colour, linestyle=dash, label=label)
    line.set(marker=marker, markersize=5)
    ax.set_xlabel(f"{UNITS[measure].removesuffix(' on the example')} kept, %")
    ax.set_ylabel("predicted error of the plan")
    if label:
        ax.legend(frameon=False, fontsize=9)
    return tidy(ax)


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
    if not 0 < len(layers) <= len(STYLES):
        raise InputError("layers", f"{len(layers)} do not fit a picture of 1 to 6", known)
    return list(layers)
