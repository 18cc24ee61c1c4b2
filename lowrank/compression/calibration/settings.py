"""How data are looked at and fitted to: checked when it is made, before any work."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import get_args

from lowrank.compression.calibration.effort import Level, effort_of
from lowrank.compression.calibration.goals import How
from lowrank.compression.calibration.statistics import Way, Weighting
from lowrank.compression.gauges.quality import Loss
from lowrank.errors import InputError
from lowrank.store import Store


@dataclass(frozen=True)
class Calibration:
    """How many examples are looked at, what weighs the layers, and how these are fitted.

    Args:
        count: examples of the data that are used, from 1 up; a few hundred do. Of texts, the
            words of sixteen times as many behind them are counted and not run.
        loss: from the model's output to the sum of the examples' losses, whose gradients
            weigh the outputs. By default the log-likelihood of labels drawn from the
            model's own scores, or a random projection where the output is no score matrix.
            It is also what is compared where outputs have other lengths, as a detector's.
        weighting: "probe" fits layers by those gradients and weighs each by what replacing
            it alone does to the model's output; "gradients" weighs by them too, to first
            order, which is cheaper and sees no errors that add up over positions. They are
            all that a model is asked whose output scores words, which gives many gradients;
            "outputs" needs no backward pass and takes outputs as they are. A function of a
            model, its quality on examples of yours, the higher the better, is what probes
            ask instead of the output.
        exponent: how strongly layers are weighed by what the loss feels of them, 0 to 1; by
            default 0.5, or 1 where the output scores words, and with thorough effort the best
            of 0, 0.5, 0.75 and 1 on the calibration examples.
        fit: "sequential", each layer to the inputs behind the compressed ones before it, or
            "parallel", to the dense model's own; by default the first; with quick effort, and of
            language models, the second.
        effort: "quick" takes weights and one moment a layer and searches nothing, in at most
            4 passes of the dense model over the examples; "default" bounds its searches, at
            15 passes and 2 seconds a layer; "thorough" tries every method and weighting.
        seed: of everything random, 0 or above: of what is drawn from the data, and of
            randomised fits.
        cache: folder that keeps what was calibrated, measured, probed and fitted, as safetensors
            and JSON, under digests of model, data and settings: another budget, or the same call
            after it was stopped, goes on from there. It changes no result. None keeps nothing.

    Raises:
        InputError: a value that is none of these.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
        >>> few = lowrank.Calibration(count=32, weighting="outputs", fit="parallel")
        >>> x = torch.randn(64, 64)
        >>> small, _ = lowrank.compress(net, x[:1], params=0.6, data=x, calibration=few)
    """

    count: int = 256
    loss: Loss | None = None
    weighting: Weighting = "probe"
    exponent: float | None = None
    fit: How | None = None
    effort: Level = "default"
    seed: int = 0
    cache: str | Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not is_whole(self.count) or self.count < 1:
            raise InputError("count", f"{self.count!r} is no number of examples", "give 256, say")
        if self.loss is not None and not callable(self.loss):
            advice = "pass a function of the model's output"
            raise InputError("loss", f"{self.loss!r} is no function", advice)
        if not callable(self.weighting) and self.weighting not in get_args(Way):
            advice = f"choose among {', '.join(get_args(Way))}, or pass a function of a model"
            raise InputError("weighting", f"{self.weighting!r} is unknown", advice)
        if self.exponent is not None:
            check_exponent(self.exponent)
        if self.fit is not None and self.fit not in get_args(How):
            advice = f"choose among {', '.join(get_args(How))}"
            raise InputError("fit", f"{self.fit!r} is unknown", advice)
        effort_of(self.effort)
        if not is_whole(self.seed) or not 0 <= self.seed < 1 << 63:
            raise InputError("seed", f"{self.seed!r} is no whole number from 0 up", "give 0, say")
        if self.cache is not None and (not isinstance(self.cache, str | Path) or self.cache == ""):
            raise InputError("cache", f"{self.cache!r} is no folder", 'give "measured", say')
        if self.cache is not None and self.loss is not None:
            problem = (
                "a loss of your own is a function, whose results cannot be told from another's"
            )
            raise InputError("cache", problem, "drop cache= or loss=")

    def how(self, *, words: bool = False) -> How:
        """How layers are fitted.

        Args:
            words: the model's output scores words; fits behind the compressed layers, of a few
                thousand words, know these by heart and lose more on others.
        """
        sequential = effort_of(self.effort).sequential and not words
        return self.fit or ("sequential" if sequential else "parallel")

    def opened(self) -> Store | None:
        """The folder of results, if there is one.

        Raises:
            InputError: it cannot be written to.
        """
        return None if self.cache is None else Store(self.cache)

    def beside(self, measured: Calibration) -> Calibration:
        """What was measured with, with this one's fit, exponent and cache where they are given.

        Args:
            measured: settings that something was measured with already.

        Raises:
            InputError: another setting was given, which can change nothing any more.

        Example:
            >>> Calibration(fit="parallel").beside(Calibration(count=64)).count
            64
            >>> Calibration(count=32).beside(Calibration(count=64))
            Traceback (most recent call last):
            lowrank.errors.InputError: calibration: count=32 was settled by measure, ...
        """
        default = Calibration()
        for name in (f.name for f in fields(self) if f.name not in _LATE):
            value = getattr(self, name)
            if value not in (getattr(default, name), getattr(measured, name)):
                problem = f"{name}={value!r} was settled by measure, as {getattr(measured, name)!r}"
                raise InputError("calibration", problem, "give it there, or drop it")
        return replace(
            measured,
            fit=measured.fit if self.fit is None else self.fit,
            exponent=measured.exponent if self.exponent is None else self.exponent,
            cache=measured.cache if self.cache is None else self.cache,
        )


_LATE = ("fit", "exponent", "cache")
"""Settings that measuring does not settle."""


def calibration_of(
    given: object,
    measured: Calibration | None = None,
    effort: Level | None = None,
    cache: str | Path | None = None,
) -> Calibration:
    """The settings that were given, or the default; beside what was measured with, if given.

    Args:
        given: by the caller.
        measured: what something was measured with already.
        effort: given beside them; it counts instead of theirs.
        cache: likewise.

    Raises:
        InputError: it is no `Calibration`, or one that comes too late; an unknown effort.
    """
    if effort is not None:
        effort_of(effort)
    named = {"effort": effort, "cache": cache}
    if (named := {k: v for k, v in named.items() if v is not None}) and (
        given is None or isinstance(given, Calibration)
    ):
        given = replace(given or Calibration(), **named)  # type: ignore[arg-type]
    if given is None:
        return measured or Calibration()
    if not isinstance(given, Calibration):
        advice = "pass lowrank.Calibration(count=512), say"
        raise InputError("calibration", f"{given!r} is no Calibration", advice)
    return given if measured is None else given.beside(measured)


def check_exponent(exponent: object) -> None:
    """Refuse what is no number in [0, 1].

    Raises:
        InputError: says so.
    """
    number = isinstance(exponent, Real) and not isinstance(exponent, bool)
    if not number or not 0 <= float(exponent) <= 1:  # type: ignore[arg-type]
        raise InputError("exponent", f"{exponent!r} is outside 0..1", "give 0, 0.5 or 1")


def check_progress(progress: object) -> None:
    """Refuse what cannot be told of progress.

    Raises:
        InputError: says so.
    """
    if progress is not None and not callable(progress):
        advice = "pass a function of what, done and total"
        raise InputError("progress", f"{progress!r} is no function", advice)


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, numpy's among them, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)
