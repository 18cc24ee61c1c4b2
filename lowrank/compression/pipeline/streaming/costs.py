"""What compressing a model block by block needs, before it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod

from lowrank.compression.calibration.moments import look_at, working_dtype
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.pipeline.streaming.job import Job
from lowrank.compression.planning.selection.readers import WIDEST
from lowrank.compression.structure.pretrained.tensor_files import Stored
from lowrank.tables import amount

_COMPUTED = 4
"""Bytes of a number in the type that is computed in."""

_WORK = 1e11
"""Multiplications that a moment may take, as in `Sums`."""


@dataclass(frozen=True)
class Needs:
    """What a run needs at most.

    Args:
        memory: bytes at the peak, beside what the process holds when it starts.
        disk: bytes of what is written, with what is kept until the run ends.
        reads: bytes that are read.
        blocks: how many there are.
        passes: of the calibration examples through the blocks.
    """

    memory: int
    disk: int
    reads: int
    blocks: int
    passes: int

    def to_dict(self) -> dict[str, int]:
        """The figures."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.blocks} blocks, one at a time: about {amount(self.memory, 'B')} of memory at "
            f"the peak, {amount(self.disk, 'B')} on disk, {self.passes} passes of the examples"
        )


def needs_of(job: Job, *, twice: bool) -> Needs:
    """What a job needs.

    Args:
        job: the layers and examples.
        twice: whether a first pass looks at all layers.
    """
    source = job.source
    block = max(_numbers(source.inside(name).values()) for name in source.blocks)
    states = _positions(job) * _hidden(job) * _COMPUTED
    specs = max((job.layers(k) for k in range(len(source.blocks))), key=_weights)
    front = _front(job) + _COMPUTED * block + _running(job, specs)
    inside = _COMPUTED * block + max(_running(job, specs) + _moments(job, specs), _fits(job, specs))
    written = int(job.limit) * source.dtype.itemsize
    whole = sum(s.nbytes for s in source.stored.values())
    passes = (4 if twice else 2) if job.batches else 0
    reads = (1 + twice) * whole
    return Needs(max(front, inside), written + 2 * states, reads, len(source.blocks), passes)


def _numbers(stored: Iterable[Stored]) -> int:
    return sum(prod(s.shape) for s in stored)


def _weights(specs: Mapping[str, LayerSpec]) -> int:
    return sum(s.n_weights for s in specs.values())


def _positions(job: Job) -> int:
    return sum(prod(next(iter(b.values())).shape[:2]) for b in job.batches)


def _batch(job: Job) -> int:
    return max((prod(next(iter(b.values())).shape[:2]) for b in job.batches), default=0)


def _hidden(job: Job) -> int:
    return int(getattr(job.source.model.config.get_text_config(), "hidden_size", 0) or 0)


def _front(job: Job) -> int:
    """Weights outside of the blocks, but those of a head of its own."""
    if not job.batches:
        return 0
    head = job.source.head_alone()
    return _COMPUTED * _numbers(s for n, s in job.source.rest.items() if n not in head)


def _running(job: Job, specs: Mapping[str, LayerSpec]) -> int:
    """What a batch takes on its way through a block."""
    widths = sorted((s.out_channels for s in specs.values()), reverse=True)
    return _COMPUTED * _batch(job) * (4 * _hidden(job) + sum(widths[:3]))


def _moments(job: Job, specs: Mapping[str, LayerSpec]) -> int:
    """Moments of inputs, of which some are shared: as if there were one for every width and
    another for the layer that the block ends with."""
    if not job.batches:
        return 0
    sizes = [_moment(s, _positions(job)) for s in specs.values()]
    return sum(sorted(sizes, reverse=True)[: max(1, len(sizes) - len(sizes) // 3)])


def _moment(spec: LayerSpec, positions: int) -> int:
    """One moment, and the copy that a batch is added by."""
    look, d, size = look_at(spec, positions, _WORK), spec.in_channels, working_dtype(spec).itemsize
    return 2 * size * d * (d if look.form == "full" else min(positions, look.positions))


def _fits(job: Job, specs: Mapping[str, LayerSpec]) -> int:
    """All moments, and what decomposing the largest layer takes beside them."""
    held = _moments(job, specs)
    work = 0
    for spec in specs.values():
        size = working_dtype(spec).itemsize
        small = min(spec.in_channels, spec.out_channels)
        d = spec.in_channels
        own = 3 * spec.n_weights + 5 * small**2
        own += 2 * d**2 if look_at(spec, _positions(job), _WORK).form == "full" else 0
        if job.batches:  # which of its inputs may go is told by their moment
            n = d if d <= WIDEST else look_at(spec, _positions(job), _WORK).positions
            own = max(own, 2 * spec.n_weights + 6 * n * d)
        work = max(work, size * own)
    return held + work + _COMPUTED * _weights(specs)
