"""What a compression will cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowrank.compression.calibration.calibrate import kept_outputs
from lowrank.compression.calibration.effort import Level, effort_of
from lowrank.compression.calibration.settings import Calibration, calibration_of
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.gauges.quality import speaks
from lowrank.compression.network.cutting import few_of
from lowrank.compression.network.example import Example, batch_size, run
from lowrank.compression.network.scan import scan
from lowrank.compression.pipeline.apply import read_data
from lowrank.compression.pipeline.selecting import expected_passes
from lowrank.compression.planning.rules import Rules, rules_of
from lowrank.compression.structure.opening import opened

_SECONDS = {"quick": 1.0, "default": 2.0, "thorough": 20.0}
"""What measuring and fitting a layer takes at most on one core of a few years ago."""


_LOOKS = 17
"""Texts of a language model that are run to see what its layers are, beside the calibration, and
what they are when it is narrower."""


_STARTS = 12
"""Passes of the example that show what the layers are, and what reads them."""


_ASKED = 16
"""Examples that show, in two passes, whether layers that read the same are all that reads it."""


_PROBED = 4
"""Examples that a probe runs at the least, however few there are."""


@dataclass(frozen=True)
class Forecast:
    """What compressing a model is going to cost at most.

    Args:
        layers: that may be replaced.
        examples: that are looked at; 0 without data.
        passes: forward passes of the dense model over them; a backward pass counts as two.
        seconds: of one core beside these passes.
    """

    layers: int
    examples: int
    passes: float
    seconds: float

    def __str__(self) -> str:
        beside = f"up to {self.seconds:.0f} s of one core for {self.layers} layers"
        if not self.examples:
            return beside
        return f"up to {ceil(self.passes)} passes over {self.examples} examples and {beside}"


def forecast(
    model: nn.Module,
    example: Example,
    *,
    data: object = None,
    effort: Level | None = None,
    calibration: Calibration | None = None,
    rules: Rules | None = None,
) -> Forecast:
    """What `compress` will cost at most; the model is run on the example alone.

    Args:
        model: the network; left as it is.
        example: inputs of one forward pass.
        data: as `compress` takes them.
        effort: as `compress` takes it.
        calibration: likewise.
        rules: likewise.

    Raises:
        InputError: as `compress` raises it.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
        >>> print(forecast(net, torch.randn(1, 64), data=torch.randn(80, 64)))
        up to 13 passes over 80 examples and up to 4 s of one core for 2 layers
        >>> print(forecast(net, torch.randn(1, 64), effort="quick"))
        up to 2 s of one core for 2 layers
    """
    settings = calibration_of(calibration, effort=effort)
    read, rest = read_data(data, example, settings, rest=True)
    rules = rules_of(rules, {})
    model = opened(model, example, stock=rules.stock, skip=rules.skip)
    words = read is not None and speaks(model, few_of(example, 1))
    return expected(model, example, read, settings, rules, held=rest is not None, words=words)


def expected(
    model: nn.Module,
    example: Example,
    data: Sequence[Example] | Statistics | None,
    settings: Calibration,
    rules: Rules,
    *,
    held: bool,
    words: bool,
) -> Forecast:
    """What `forecast` gives, of arguments that were read.

    Args:
        model: the network.
        example: inputs of one forward pass.
        data: the examples.
        settings: how they are looked at.
        rules: which layers may be replaced.
        held: whether outputs are compared on others.
        words: whether they are scores of words.
    """
    found = scan(model, example)
    reasons = {**found.reasons, **rules.ruled_out(found)[0]}
    layers = sum(unit.layers[0].name not in reasons for unit in found.units)
    alone = rules.methods == ()
    seconds = layers * _SECONDS["quick" if alone else settings.effort]
    if rules.select is not None and not alone:  # what stays is measured, too
        seconds += layers * _SECONDS["quick"]
    if data is None:
        return Forecast(layers, 0, 0.0, seconds)
    batches = data.batches if isinstance(data, Statistics) else data
    n = sum(map(batch_size, batches))
    kept = kept_outputs(run(model, example), batch_size(example), n)
    passes = _passes(model, settings, rules, held, words, kept, layers / n)
    if words:
        passes += _LOOKS / n
        passes += 1.5 * effort_of(settings.effort).gradients  # tables, by words held out
    passes += _STARTS * batch_size(example) / n
    if any(unit.behind is not None for unit in found.same_input):
        passes += 2 * min(n, _ASKED) / n
    return Forecast(layers, n, passes, seconds)


def _passes(
    model: nn.Module,
    settings: Calibration,
    rules: Rules,
    held: bool,
    words: bool,
    kept: bool,
    crowd: float,
) -> float:
    """Calibrating, probing, fitting behind the prefix, norms estimated anew, and comparing; the
    dense model's outputs, where they are kept, are those of calibrating. Probes of half a pass run
    some examples however few there are: `crowd` is layers for each of them."""
    effort = effort_of(settings.effort)
    gradients = (effort.gradients or words) and settings.weighting != "outputs"
    least = crowd * _PROBED * len(effort.probed) / 2
    probed = settings.weighting == "probe" and effort.probes and not words
    probes = 1.5 * max(effort.probes, least) if probed else 0.0
    prefixes = 2.5 if settings.how(words=words) == "sequential" else 0.0
    normed = any(isinstance(m, _BatchNorm) for m in model.modules())
    norms = (1.25 if kept else 1.5) * normed
    trials = 4 * 4.0 if effort.trials and settings.exponent is None and not words else 0.0
    runs = 1 if kept else 2
    compared = 0.0 if held else 0.25 * runs if effort.level == "quick" else 1.0 * runs
    chosen = expected_passes(rules, norms=normed, kept=kept)
    known = 1 + 2 * gradients + compared + prefixes + norms + chosen
    return known + (0.0 if rules.methods == () else probes + trials)
