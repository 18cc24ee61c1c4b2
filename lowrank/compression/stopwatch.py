"""Seconds of a forward pass, on the clock that suits the device, of several modules in turns.

The clock is that of the thread where one CPU thread computes (it stands still while others have
the core), else the wall clock; on a GPU, events on its stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import nn

from lowrank.compression.example import Example, call, evaluating, tensors

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
        wall: read the wall clock on a CPU, whatever the number of threads.
    """

    device: torch.device
    threads: int
    wall: bool = False

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
        alone = self.device.type == "cpu" and self.threads == 1 and not self.wall
        return "thread CPU time" if alone else "wall clock"

    def __call__(self, module: nn.Module, example: Example) -> float:
        """Seconds of one forward pass in the module's present mode."""
        if self.device.type == "cuda":
            return self._on_gpu(module, example)
        read = time.thread_time if self.clock == "thread CPU time" else time.perf_counter
        self._wait()
        began = read()
        call(module, example)
        self._wait()
        return read() - began

    def _on_gpu(self, module: nn.Module, example: Example) -> float:
        stream = torch.cuda.current_stream(self.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        call(module, example)
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
            with evaluating(modules[k]):
                times[k].append(timer(modules[k], example))
            spent += times[k][-1]
    return [runs[warmup:] for runs in times]
