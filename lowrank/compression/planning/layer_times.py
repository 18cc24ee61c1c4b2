"""How long layers take on this device: candidates are timed, not guessed from their MACs.

What is timed are stock layers of the candidates' shapes with random weights, at the real
sizes of the layer's input, in turns with the dense layer. Whatever disturbs a run adds to
the clock and never takes away, so the figure for a layer is its fastest run. Two whole models
are compared by the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.compression.gauges.timing import Stopwatch, Timer, in_turns
from lowrank.compression.methods.shared.base import Method, settings_of
from lowrank.compression.network.example import Example
from lowrank.compression.network.stages import Call, Stage
from lowrank.compression.network.tensors import tensors
from lowrank.compression.network.units import Unit
from lowrank.errors import InputError

if TYPE_CHECKING:
    from lowrank.compression.planning.candidates import Candidate


Chain: TypeAlias = tuple[Stage, ...]
"""The stages of a candidate, first to last; the dense layer is a chain of one."""


GRID = 6
"""Candidates of one family (a method and its variant) that are timed; the rest lie between."""


class LayerTimer:
    """Seconds of chains of layers at given inputs; equal ones are timed once.

    Args:
        device: where to time.
        dtype: of weights and inputs.
        channels_last: whether weights and inputs of two- and three-dimensional
            convolutions have their channels last in memory.
        timer: seconds of one run; by default the clock that suits the device.

    Attributes:
        known: (chain, call, dtype, channels_last, device, threads) -> seconds.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        timer: Timer | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.channels_last = channels_last
        self.timer = timer
        self.known: dict[tuple[object, ...], float] = {}

    def key(self, chain: Chain, at: Call) -> tuple[object, ...]:
        """All that the time depends on."""
        threads = torch.get_num_threads()
        return (chain, at, self.dtype, self.channels_last, str(self.device), threads)

    def seconds(self, chains: Sequence[Chain], calls: Iterable[Call]) -> list[float]:
        """Seconds of each chain, summed over the calls.

        Args:
            chains: what is timed, in turns; the dense layer among them makes them comparable.
            calls: batch and size of the input of every call.
        """
        totals = [0.0] * len(chains)
        for at, n in Counter(calls).items():
            self._time([c for c in dict.fromkeys(chains) if self.key(c, at) not in self.known], at)
            totals = [
                t + n * self.known[self.key(c, at)] for t, c in zip(totals, chains, strict=True)
            ]
        return totals

    def _time(self, chains: Sequence[Chain], at: Call) -> None:
        if not chains:
            return
        rng = torch.Generator().manual_seed(0)
        modules = [self._build(chain, rng) for chain in chains]
        timer = self.timer or Stopwatch(self.device, torch.get_num_threads())
        runs = in_turns(modules, self._input(chains[0][0], at, rng), timer)
        for chain, times in zip(chains, runs, strict=True):
            self.known[self.key(chain, at)] = min(times)

    def _build(self, chain: Chain, rng: torch.Generator) -> nn.Module:
        """The chain with random weights: what stands in fresh memory may be slow to compute."""
        stages = [stage.build(dtype=self.dtype, device=self.device) for stage in chain]
        module = nn.Sequential(*stages) if len(stages) > 1 else stages[0]
        fill(module, rng)
        for parameter in module.parameters():
            parameter.data = self._laid_out(parameter.data)
        return module

    def _input(self, stage: Stage, at: Call, rng: torch.Generator) -> Tensor:
        if stage.reads_words:
            return torch.randint(stage.in_channels, (at.batch,), generator=rng).to(self.device)
        x = torch.randn(at.batch, stage.in_channels, *at.size, generator=rng)
        return self._laid_out(x.to(self.device, self.dtype))

    def _laid_out(self, x: Tensor) -> Tensor:
        if not self.channels_last or x.ndim not in (4, 5):
            return x
        last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=last)


class Timing:
    """Predicted seconds of every candidate of a model, and of the model around the layers.

    Of each family of candidates some are timed and the others lie between, by their MACs;
    `sharpen` times given ones too.

    Args:
        timer: what has been timed.
        units: the units by their keys.
        total: seconds of the whole dense model.

    Attributes:
        rest: seconds of the model outside of the layers, never negative.
    """

    def __init__(self, timer: LayerTimer, units: Mapping[str, Unit], total: float) -> None:
        self.timer, self.units, self.total = timer, dict(units), total
        self.rest = total
        self._apart: list[str] = []
        self._exact: dict[str, dict[Method | None, float]] = defaultdict(dict)
        self._sharp: dict[str, set[Method]] = defaultdict(set)

    def measure(
        self,
        candidates: Mapping[str, Sequence[Candidate]],
        progress: Callable[[str, int, int], None] | None = None,
        *,
        beside: Mapping[str, Sequence[Candidate]] | None = None,
    ) -> None:
        """Time the dense layers and a grid of each family of candidates.

        Args:
            candidates: unit -> what the planner may choose among.
            progress: called as (layer, done, total).
            beside: the same for units of layers that also stand alone.
        """
        every = {**candidates, **(beside or {})}
        for done, (name, offered) in enumerate(every.items()):
            if progress is not None:
                progress(f"timing {name}", done, len(every))
            grids = [_grid(offered, family) for family in _families(offered).values()]
            self._time(name, [None, *(offered[i].method for grid in grids for i in grid)])
        self._apart = list(candidates)
        self.rest = max(0.0, self.total - sum(self.dense(name) for name in self._apart))

    @property
    def whole(self) -> float:
        """Seconds of the dense model, as the sum of its layers and the rest."""
        return self.rest + sum(self.dense(name) for name in self._apart)

    def ratio(self, chosen: Mapping[str, Method]) -> float:
        """Predicted time with the chosen candidates, all of them sharpened, over the dense."""
        saved = sum(self.dense(n) - self._exact[n][m] for n, m in chosen.items())
        return 1 - saved / self.whole

    def dense(self, name: str) -> float:
        """Seconds of the layer as it is."""
        return self._exact[name][None]

    def predict(self, name: str, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """Seconds of each candidate: as timed, or between those timed of its family.

        Args:
            name: of the layer.
            candidates: (n,) those that were given to `measure`.

        Returns:
            (n,) seconds.
        """
        exact, seconds = self._exact[name], np.empty(len(candidates))
        sizes = np.array([_size(c) for c in candidates], float)
        for family in _families(candidates).values():
            grid = _grid(candidates, family)
            timed = _monotone(np.array([exact[candidates[i].method] for i in grid]))
            seconds[family] = np.interp(sizes[family], sizes[grid], timed)
        sharp = self._sharp[name]
        known = [(i, exact[c.method]) for i, c in enumerate(candidates) if c.method in sharp]
        for i, value in known:
            seconds[i] = value
        return seconds

    def sharpen(self, chosen: Mapping[str, Method]) -> None:
        """Time the chosen candidates themselves, each in turns with its dense layer."""
        for name, method in chosen.items():
            if method not in self._exact[name]:
                self._time(name, [method])
            self._sharp[name].add(method)

    def _time(self, name: str, methods: Sequence[Method | None]) -> None:
        unit, totals = self.units[name], [0.0] * len(methods)
        runs = [unit.runs(None if m is None else m.stages(unit.spec)) for m in methods]
        alike: dict[tuple[tuple[Call, ...], int], dict[Chain, None]] = defaultdict(dict)
        for chain, calls in (step for run in runs for step in run):  # those that take one input
            alike[calls, chain[0].in_channels][chain] = None
        for (calls, width), chains in alike.items():
            seconds = dict(zip(chains, self.timer.seconds([*chains], calls), strict=True))
            totals = [
                t + sum(seconds[c] for c, at in run if (at, c[0].in_channels) == (calls, width))
                for t, run in zip(totals, runs, strict=True)
            ]
        self._exact[name].update(zip(methods, totals, strict=True))


def time_layers(
    model: nn.Module,
    example: Example,
    units: Mapping[str, Unit],
    candidates: Mapping[str, Sequence[Candidate]],
    *,
    beside: Mapping[str, Sequence[Candidate]] | None = None,
    timer: Timer | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Timing:
    """Time a model, its layers, and what may replace them, on the model's device.

    Args:
        model: the dense model.
        example: inputs of one forward pass.
        units: the units by their keys.
        candidates: unit -> what may replace it.
        beside: the same for units of layers that also stand alone.
        timer: seconds of one run; by default the clock that suits the device.
        progress: called as (layer, done, total).

    Raises:
        InputError: the model has no data to run on (meta device).
    """
    every = [*model.parameters(), *tensors(example)]
    if any(t.is_meta for t in every):
        raise InputError("latency", "the model is on the meta device", "time it where it will run")
    clock = timer or Stopwatch.here(model, example)
    with torch.random.fork_rng():
        runs = in_turns([model], example, clock, rounds=(5, 30), enough=1.0, warmup=2)[0]
    first = next(iter(units.values()), None)
    layers = LayerTimer(
        device=every[0].device,
        dtype=torch.float32 if first is None else first.layers[0].parameter.dtype,
        channels_last=runs_channels_last(model, example),
        timer=timer,
    )
    timing = Timing(layers, units, min(runs))
    timing.measure(candidates, progress, beside=beside)
    return timing


def fill(module: nn.Module, rng: torch.Generator) -> None:
    """Random weights, in place, that keep the scale of what passes through."""
    with torch.no_grad():
        for parameter in module.parameters():
            size = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / max(1, size) ** 0.5)


def runs_channels_last(model: nn.Module, example: Example) -> bool:
    """Whether pictures have their channels last: the example's or any kernel's layout tells."""
    return any(
        t.ndim in (4, 5)
        and not t.is_contiguous()
        and t.is_contiguous(
            memory_format=torch.channels_last if t.ndim == 4 else torch.channels_last_3d
        )
        for t in (*tensors(example), *model.parameters())
    )


def _families(candidates: Sequence[Candidate]) -> dict[object, list[int]]:
    """Positions of the candidates that differ in their ranks only."""
    families: dict[object, list[int]] = defaultdict(list)
    for i, candidate in enumerate(candidates):
        method = candidate.method
        families[method.name, tuple(settings_of(method).items())].append(i)
    return families


def _grid(candidates: Sequence[Candidate], family: Sequence[int]) -> list[int]:
    """At most `GRID` positions of a family, evenly spread by rising size, the ends included."""
    by_size = {_size(candidates[i]): i for i in family}
    ranked = [by_size[size] for size in sorted(by_size)]
    picks = np.linspace(0, len(ranked) - 1, min(GRID, len(ranked))).round().astype(int)
    return [ranked[i] for i in picks]


def _size(candidate: Candidate) -> int:
    return candidate.cost.macs or candidate.cost.params


def _monotone(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rising: midway between the least rising sequence above and the greatest one below."""
    above = np.maximum.accumulate(seconds)
    below = np.minimum.accumulate(seconds[::-1])[::-1]
    return (above + below) / 2
