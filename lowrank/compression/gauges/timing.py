"""Seconds of a forward pass, on the clock that suits the device, of several modules in turns.

The clock is that of the thread where one CPU thread computes (it stands still while others have
the core), else the wall clock; on a GPU, events on its stream.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from lowrank.compression.network.example import (
    Example,
    _device,
    _unchanged_rng,
    check,
    evaluating,
    spare,
    use_up,
)
from lowrank.compression.network.tensors import tensors
from lowrank.errors import InputError

Timer: TypeAlias = Callable[[nn.Module, Example], float]
"""Seconds of one forward pass."""


ROUNDS = (5, 30)
"""Least and most runs of a layer."""


ENOUGH = 0.02
"""Seconds of running, per candidate, after which no further round is begun."""


@dataclass(frozen=True)
class Stopwatch:
    """Seconds of one forward pass, on the clock that suits the device.

    Args:
        device: where the module runs.
        threads: CPU threads that one operation may use.
    """

    device: torch.device
    threads: int

    @classmethod
    def here(cls, model: nn.Module, example: Example) -> Stopwatch:
        """For the device of a model and the number of threads that is set."""
        every = [*model.parameters(), *model.buffers(), *tensors(example)]
        device = every[0].device if every else torch.device("cpu")
        return cls(device, torch.get_num_threads())

    @property
    def clock(self) -> str:
        """What is read: "thread CPU time", "wall clock" or "CUDA events"."""
        if self.device.type == "cuda":
            return "CUDA events"
        alone = self.device.type == "cpu" and self.threads == 1
        return "thread CPU time" if alone else "wall clock"

    def __call__(self, module: nn.Module, example: Example) -> float:
        """Seconds of one forward pass in the module's present mode."""
        if self.device.type == "cuda":
            return self._on_gpu(module, example)
        read = time.thread_time if self.clock == "thread CPU time" else time.perf_counter
        ready = spare(example)
        self._wait()
        began = read()
        use_up(module, ready)
        self._wait()
        return read() - began

    def _on_gpu(self, module: nn.Module, example: Example) -> float:
        stream = torch.cuda.current_stream(self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        ready = spare(example)
        begin.record(stream)
        use_up(module, ready)
        end.record(stream)
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def _wait(self) -> None:
        if self.device.type == "mps":
            torch.mps.synchronize()


def in_turns(
    modules: Sequence[nn.Module],
    example: Example,
    timer: Timer,
    *,
    rounds: tuple[int, int] = ROUNDS,
    enough: float = ENOUGH,
    warmup: int = 1,
) -> list[list[float]]:
    """Seconds of every run of several modules, round after round.

    Each round runs each module once and begins with another one, so what slows the machine
    down for a while slows them alike, and none always finds the caches of the same neighbour.

    Args:
        modules: what is timed, in evaluation mode and without gradients.
        example: what each of them is run on.
        timer: seconds of one run.
        rounds: least and most rounds.
        enough: seconds per module after which no further round is begun.
        warmup: rounds that go before and do not count.

    Returns:
        For each module its seconds, one a round.
    """
    times: list[list[float]] = [[] for _ in modules]
    spent, least = 0.0, rounds[0] + warmup
    for turn in range(rounds[1] + warmup):
        if turn >= least and spent >= enough * len(modules):
            break
        for step in range(len(modules)):
            k = (turn + step) % len(modules)
            with evaluating(modules[k], compiled=True):
                times[k].append(timer(modules[k], example))
            spent += times[k][-1]
    return [runs[warmup:] for runs in times]


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, in milliseconds.

    Attributes:
        median_ms: the median of the timed runs.
        quartiles_ms: the first and third quartile, to show how noisy the machine is.
        runs: how many runs were timed.
        warmup: how many went before them, untimed.
        threads: CPU threads that one operation may use.
        device: where the model ran.
        clock: what was read: "thread CPU time", "wall clock", "CUDA events", or "given".
    """

    median_ms: float
    quartiles_ms: tuple[float, float]
    runs: int
    warmup: int
    threads: int
    device: str
    clock: str


@dataclass(frozen=True)
class Comparison:
    """A compressed model's time beside the dense one's.

    Attributes:
        dense: time of a forward pass of the dense model.
        compressed: the same of the compressed one, from the same rounds.
        ratio: median over the rounds of compressed / dense in the same round.
        rounds: how many there were.
        clock: what was read.
        threads: CPU threads that one operation may use.
    """

    dense: Latency
    compressed: Latency
    ratio: float
    rounds: int
    clock: str
    threads: int


def time_ratio(
    dense: nn.Module,
    compressed: nn.Module,
    example: Example,
    *,
    timer: Timer | None = None,
    rounds: tuple[int, int] = (11, 50),
    enough: float = 1.0,
) -> Comparison:
    """Time two models in turns.

    Args:
        dense: the one that ratios refer to.
        compressed: the other.
        example: what both are run on.
        timer: seconds of one run; by default the clock that suits the device.
        rounds: least and most rounds.
        enough: seconds per model after which no further round is begun.

    Example:
        >>> small, large = nn.Linear(16, 4), nn.Linear(16, 4)
        >>> time_ratio(large, small, torch.zeros(1, 16)).rounds
        50
    """
    timer = Stopwatch.here(dense, example) if timer is None else timer
    models = (dense, compressed)
    with torch.random.fork_rng():
        runs = in_turns(models, example, timer, rounds=rounds, enough=enough, warmup=_WARMUP)
    first, second = (
        _latency(r, _WARMUP, _device(m, example), timer) for r, m in zip(runs, models, strict=True)
    )
    ratio = statistics.median(y / x for x, y in zip(*runs, strict=True))
    return Comparison(first, second, ratio, first.runs, first.clock, first.threads)


_WARMUP = 2
"""Rounds before those that count, where two models are compared."""


@dataclass(frozen=True)
class LatencyCheck:
    """A latency budget against the clock.

    Attributes:
        wanted: the ratio asked for.
        predicted: ratio that the plan was expected to have.
        measured: the finished model beside the dense one.
        tries: plans that were timed.
    """

    wanted: float
    predicted: float
    measured: Comparison
    tries: int

    def __str__(self) -> str:
        m = self.measured
        met = "met" if m.ratio <= self.wanted else "missed"
        return (
            f"latency budget {self.wanted:g} {met}: {m.ratio:.3f} of the dense model's time "
            f"({m.clock}, {m.threads} thread{'s' * (m.threads != 1)}, median of {m.rounds} "
            f"rounds), {self.predicted:.3f} predicted, {self.tries} plans timed"
        )


def measure_latency(
    model: nn.Module, example: Example, *, repeats: int = 20, warmup: int = 3
) -> Latency:
    """Median time of a forward pass in evaluation mode without gradients.

    Args:
        model: any module.
        example: a tensor, a tuple of inputs, or a dict of keyword inputs.
        repeats: timed runs, at least 1.
        warmup: runs before them, at least 0.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by the model.

    Example:
        >>> measure_latency(nn.Linear(8, 4), torch.zeros(2, 8), repeats=5).runs
        5
    """
    return compare_latency([model], example, repeats=repeats, warmup=warmup)[0]


def compare_latency(
    models: Sequence[nn.Module], example: Example, *, repeats: int = 20, warmup: int = 3
) -> tuple[Latency, ...]:
    """Median time of a forward pass of several models, timed in turns.

    Each round runs every model once, and each round starts with another model, so whatever
    slows the machine down for a while slows all of them alike.

    Args:
        models: the models to compare.
        example: what every one of them is run on.
        repeats: timed rounds, at least 1.
        warmup: rounds before them, at least 0.

    Returns:
        One `Latency` for each model, in order.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by a model.

    Example:
        >>> small, large = nn.Linear(16, 4), nn.Linear(16, 4096)
        >>> [timed.runs for timed in compare_latency([small, large], torch.zeros(1, 16))]
        [20, 20]
    """
    check(example)
    _check_runs(repeats, warmup)
    devices = [_device(model, example) for model in models]
    if not devices:
        return ()
    with ExitStack() as stack:
        for device in set(devices):
            stack.enter_context(_unchanged_rng(device))
        timer = Stopwatch(devices[0], torch.get_num_threads())
        rounds = (repeats, repeats)
        times = in_turns(models, example, timer, rounds=rounds, warmup=warmup)
    return tuple(_latency(t, warmup, d, timer) for t, d in zip(times, devices, strict=True))


def _check_runs(repeats: int, warmup: int) -> None:
    if repeats < 1:
        raise InputError("repeats", f"{repeats} is below 1", "time at least one run")
    if warmup < 0:
        raise InputError("warmup", f"{warmup} is below 0", "pass 0 for no warm-up")


def _latency(seconds: list[float], warmup: int, device: torch.device, timer: Timer) -> Latency:
    times = [1e3 * t for t in seconds]
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    )
    threads = torch.get_num_threads()
    clock = timer.clock if isinstance(timer, Stopwatch) else "given"
    return Latency(median, (low, high), len(times), warmup, threads, str(device), clock)
