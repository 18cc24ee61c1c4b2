"""Picture of a sweep: what each size costs, measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lowrank.plots.style import DENSE, STYLES, UNITS, axes_of, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lowrank.compression.tradeoff import Sweep


def sweep_curve(sweep: Sweep, *, ax: Axes | None = None) -> Axes:
    """Draw kept fraction against the measured metric, before and after fine-tuning.

    Without a metric, against the outputs' relative error and the error that was predicted.

    Args:
        sweep: what `lowrank.sweep` returned.
        ax: axes to draw on; new ones by default.

    Example:
        >>> import matplotlib, torch, lowrank
        >>> matplotlib.use("agg")
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
        >>> found = lowrank.sweep(net, torch.zeros(1, 64), torch.randn(64, 64), keeps=(0.8, 0.4))
        >>> sweep_curve(found).get_xlabel()
        'MACs kept, %'
    """
    ax = axes_of(ax, height=4.0)
    kept = [100 * p.kept[sweep.measure] for p in sweep]
    if sweep.dense is not None:
        lines = {
            "compressed": [p.metric for p in sweep],
            "fine-tuned": [p.finetuned for p in sweep],
        }
        ax.axhline(sweep.dense, color=DENSE, lw=2, label="dense")
        ax.set_ylabel("metric")
    else:
        measured = [p.quality.relative_error if p.quality else None for p in sweep]
        lines = {"measured": measured, "predicted": [p.predicted**0.5 for p in sweep]}
        ax.set_ylabel("relative error of the output")
        ax.set_yscale("log")
    for (label, values), (color, marker, dash) in zip(lines.items(), STYLES, strict=False):
        known = [(x, y) for x, y in zip(kept, values, strict=True) if y is not None]
        if known:
            x, y = zip(*known, strict=True)
            ax.plot(x, y, color=color, marker=marker, ls=dash, label=label)
    ax.set_xlabel(f"{UNITS[sweep.measure].removesuffix(' on the example')} kept, %")
    ax.invert_xaxis()
    ax.legend(frameon=False)
    return tidy(ax)
