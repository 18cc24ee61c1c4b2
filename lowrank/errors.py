"""Errors that say what failed, what was given, what is allowed and what to do."""

from __future__ import annotations

from typing import Any


class LowRankError(ValueError):
    """Base of every error that a user's input can cause.

    The message reads `where: problem; advice`.

    Args:
        where: layer, argument or file that is at fault.
        problem: what was given, and what is allowed.
        advice: what to do about it.

    Example:
        >>> raise RankError("fc", "rank 900 is outside 1..512", "lower it")
        Traceback (most recent call last):
        lowrank.errors.RankError: fc: rank 900 is outside 1..512; lower it
    """

    def __init__(self, where: str, problem: str, advice: str) -> None:
        super().__init__(where, problem, advice)  # args stay whole, so the error pickles
        self.where, self.problem, self.advice = where, problem, advice

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.advice}"


class InputError(LowRankError):
    """A value of the wrong type, shape or range, or with NaN or Inf."""


class RankError(LowRankError):
    """A rank below 1 or above full."""


class BudgetError(LowRankError):
    """A budget that makes no sense or cannot be reached.

    Args:
        where: what it is about.
        problem: what is wrong with it.
        advice: what to do.
        least: of each budget that was given, the least that can be reached, if that is known.
    """

    def __init__(
        self, where: str, problem: str, advice: str, *, least: tuple[float, ...] = ()
    ) -> None:
        super().__init__(where, problem, advice)
        self.least = least


class PlanError(LowRankError):
    """A plan that does not fit the model, or cannot be read."""


class CheckpointError(LowRankError):
    """A file that is damaged or belongs to another model."""


class ExportError(LowRankError):
    """A model that cannot be exported."""


class Interrupted(KeyboardInterrupt):
    """A long call that was stopped by Ctrl-C, with what of it can be used.

    It stops programs as any `KeyboardInterrupt` does.

    Args:
        done: what had been done.
        curves: `lowrank.Curves` of the layers that had been measured, from which plans are made
            as ever, with the other layers dense; None where there was none.
        cache: the folder from which the same call goes on; None where nothing is kept.

    Example:
        >>> print(Interrupted("7 of 21 layers are measured", cache="kept"))
        7 of 21 layers are measured; the same call goes on from there, by what kept keeps
    """

    def __init__(self, done: str, curves: Any = None, cache: object = None) -> None:
        super().__init__(done, curves, cache)
        self.done, self.curves, self.cache = done, curves, cache

    def __str__(self) -> str:
        if self.cache is not None:
            return f"{self.done}; the same call goes on from there, by what {self.cache} keeps"
        usable = "" if self.curves is None else "the exception's .curves plan with them, and "
        return f"{self.done}; {usable}cache=FOLDER would let the same call go on from there"
