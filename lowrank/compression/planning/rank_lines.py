"""Error against rank of a few layers, as the rows that a picture takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lowrank.compression.methods import Method
from lowrank.compression.methods.shared.base import ranks_of, settings_of
from lowrank.compression.pictures.curves import RankLine
from lowrank.drawing import STYLES
from lowrank.errors import InputError

if TYPE_CHECKING:
    from lowrank.compression.planning.candidates import Candidate, Curve


MOST = len(STYLES)
"""Layers in one picture, each with a look of its own."""


def rank_lines(
    curves: Sequence[Curve], layers: Sequence[str] | None, method: str
) -> dict[str, RankLine]:
    """Layer and variant -> its error against rank, for up to 6 layers.

    Args:
        curves: one for each layer.
        layers: names; by default 4 large ones, spread over the depth.
        method: a method with a single rank. Of its variants the layer's best is taken.

    Raises:
        InputError: a layer that has no such curve, more than 6, or a method with several ranks.
    """
    _check_method(curves, method)
    served = [curve for curve in curves if _of(curve, method)]
    labelled = {curve.layer: _line(curve, method) for curve in served}
    lines = {name: line for name, (_, line) in labelled.items()}
    macs = {curve.layer: curve.dense.macs for curve in served}
    return dict(labelled[name] for name in _chosen(lines, macs, layers, method))


def _check_method(curves: Sequence[Curve], method: str) -> None:
    every = [c.method for curve in curves for c in curve.candidates]
    single = dict.fromkeys(m.name for m in every if len(ranks_of(m)) == 1)
    if method not in single:
        advice = f"choose among {', '.join(single)}"
        raise InputError("method", f"{method!r} is no method with a single rank", advice)


def _of(curve: Curve, method: str) -> list[Candidate]:
    return [c for c in curve.candidates if c.method.name == method]


def _line(curve: Curve, method: str) -> tuple[str, RankLine]:
    """The variant of the method that loses least where it keeps at most half of the MACs."""
    variants: dict[str, list[Candidate]] = {}
    for candidate in _of(curve, method):
        variants.setdefault(_variant(candidate.method), []).append(candidate)

    def best(candidates: list[Candidate]) -> float:
        halved = [c.error for c in candidates if 2 * c.cost.macs <= curve.dense.macs]
        return min(halved, default=1.0)

    variant = min(variants, key=lambda v: best(variants[v]))
    ordered = sorted(variants[variant], key=lambda c: ranks_of(c.method))
    ranks = [ranks_of(c.method)[0] for c in ordered]
    cheaper = sum(c.cost.macs < curve.dense.macs for c in ordered)
    label = f"{curve.layer} {variant}".strip()
    return label, RankLine(ranks, [c.error**0.5 for c in ordered], cheaper)


def _variant(method: Method) -> str:
    """The method's settings beside its rank, where they are words: `kernel_last`."""
    settings = settings_of(method).items()
    return " ".join(v if isinstance(v, str) else f"{n} {v}" for n, v in settings)


def _chosen(
    lines: Mapping[str, RankLine],
    macs: Mapping[str, int],
    layers: Sequence[str] | None,
    method: str,
) -> list[str]:
    """The layers to draw: those that were named, or of the large ones 4 spread over the depth."""
    known = f"choose among {', '.join(lines)}" if lines else "choose another method"
    if layers is None:
        most = max((macs[name] for name in lines), default=0)
        useful = [n for n, line in lines.items() if line.cheaper and 2 * macs[n] >= most]
        names = useful or list(lines)
        spread = np.linspace(0, len(names) - 1, min(4, len(names))).round().astype(int)
        layers = [names[i] for i in spread]
    for name in layers:
        if name not in lines:
            raise InputError("layers", f"{name!r} has no curve of {method}", known)
    if not 0 < len(layers) <= MOST:
        raise InputError("layers", f"{len(layers)} do not fit a picture of 1 to {MOST}", known)
    return list(layers)
