"""A model larger than memory, compressed one block at a time from its files to new ones."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from lowrank.compression.network.channels.narrowing import Narrowed, narrow, widen
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.pipeline.streaming.costs import Needs, needs_of
from lowrank.compression.pipeline.streaming.examples import batches_of, digest_of
from lowrank.compression.pipeline.streaming.inputs import Inputs, collect, felt, run_through
from lowrank.compression.pipeline.streaming.job import (
    Job,
    check_plan,
    factored,
    job_of,
    matrix,
    plan_of,
    rounded,
)
from lowrank.compression.pipeline.streaming.journal import NAME, Journal, alone
from lowrank.compression.pipeline.streaming.layers import Crew, Done, Task, Workers, packed
from lowrank.compression.pipeline.streaming.neurons import (
    Neurons,
    Widths,
    fewer_neurons,
    find_neurons,
    fit_in,
    widths_at,
)
from lowrank.compression.pipeline.streaming.ranks import Seen, Shared, alike, by_errors
from lowrank.compression.pipeline.streaming.source import Source, opened
from lowrank.compression.pipeline.streaming.states import (
    Calls,
    read_states,
    recorded,
    write_states,
)
from lowrank.compression.structure.pretrained.record import INDEX, Record
from lowrank.compression.structure.pretrained.tensor_files import (
    Made,
    Stored,
    made,
    write_tensors,
)
from lowrank.compression.structure.pretrained.writing import (
    Tokenizer,
    write_config,
    write_tokenizer,
)
from lowrank.errors import CheckpointError, InputError
from lowrank.progress import Progress, in_stages

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from lowrank.compression.structure.plan import Plan

Allocation = Literal["errors", "alike"]
"""How the budget is shared out: by what errors do to the hidden state, or alike."""


@dataclass(frozen=True)
class Streamed:
    """What became of a model on disk.

    Args:
        folder: where the compressed model is.
        plan: what became of every layer.
        needs: memory, disk and passes, as stated before it began.
        seconds: of this call, by stage; blocks that an earlier call did are not in it.
        remarks: what a reader must not miss.
    """

    folder: Path
    plan: Plan
    needs: Needs
    seconds: Mapping[str, float]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON values."""
        return {
            "folder": str(self.folder),
            "plan": self.plan.to_dict(),
            "needs": self.needs.to_dict(),
            "seconds": dict(self.seconds),
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        from lowrank.tables import as_text

        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.plan
        for remark in self.remarks:
            yield f"note: {remark}"


@torch.inference_mode(False)
def compress_folder(
    folder: str | Path,
    out: str | Path,
    *,
    params: float,
    data: object = None,
    tokenizer: Tokenizer | str | Path | None = None,
    allocation: Allocation = "errors",
    skip: str | Sequence[str] = (),
    only: str | Sequence[str] | None = None,
    executor: Workers | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Streamed:
    """Compress a model of transformers from folder to folder, one block in memory at a time.

    The linear layers of the blocks become two each, the best in the moments of what the blocks
    before them, already compressed, give on the calibration examples; or neurons of an MLP go, so
    that its layers get narrower, where that does less to the hidden state. Embeddings, norms and
    the head are copied. The result is a folder as `lowrank.save_pretrained` writes it, with a
    shard a block.

    A call that is cut off, by a kill at any moment, a full disk or an error, leaves a hidden
    folder in `out`; the same call goes on from there at the block it was in, and writes the
    same bytes as one that is not cut off.

    Args:
        folder: what transformers' `save_pretrained` wrote, as safetensors.
        out: the folder to write.
        params: parameters to keep: a fraction in (0, 1] of the whole model, or a whole number.
        data: token ids (n, length), batches of them or of dicts of inputs, or with a tokenizer
            texts. Without data the weights' own error counts.
        tokenizer: of the texts; it is written beside the model. A folder's files are copied.
        allocation: "errors" goes through the blocks once more beforehand, to give every layer
            the rank, and with data every MLP the width, that cost the hidden state least; "alike"
            keeps the same share of each layer.
        skip: layers to leave dense: names or patterns.
        only: the only layers to consider.
        executor: a `concurrent.futures.Executor` that decomposes the layers of a block:
            processes, threads, or Dask's `client.get_executor()`; or a function that makes
            one, which is asked again where a worker's death breaks it. A layer whose worker
            died is done again.
        seed: of randomised fits, and of the windows that are drawn from texts.
        progress: called as (what, done, total); first with what it needs.

    Returns:
        The plan, what it took, and remarks.

    Raises:
        InputError: the folder holds no model of transformers with one stack of blocks, or one
            that is quantized or in a GGUF file, or weights with NaN; names them.
        CheckpointError: files are damaged, or cannot be written, or another process writes them.
        BudgetError: the budget cannot be met by the blocks alone.

    Example:
        >>> import tempfile, torch, lowrank, transformers
        >>> size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        >>> config = transformers.LlamaConfig(vocab_size=64, num_attention_heads=2, **size)
        >>> with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
        ...     transformers.LlamaForCausalLM(config).save_pretrained(a)
        ...     done = lowrank.compress_folder(a, b, params=0.7, data=torch.arange(64)[None])
        ...     small = lowrank.load_pretrained(b)
        >>> done.plan.cost.params <= 0.7 * done.plan.total.params
        True
    """
    folder, out = Path(folder), Path(out)
    _check(folder, out, allocation)
    source = opened(folder)
    batches = [] if data is None else batches_of(data, tokenizer, source.model.config, seed)
    job = job_of(source, params, batches, skip, only)
    crew = Crew(executor)
    needs = needs_of(job, twice=allocation == "errors")
    if progress is not None:
        progress(str(needs), 0, 1)
    with _writing(out), alone(out):
        journal = Journal(out, _facts(job, allocation, seed))
        run = _Run(job, journal, crew, seed, in_stages(progress, _stages(allocation)))
        try:
            return run.all(allocation, needs, folder if tokenizer is None else tokenizer)
        finally:
            crew.close()


def _check(folder: Path, out: Path, allocation: str) -> None:
    if allocation not in ("errors", "alike"):
        problem = f"{allocation!r} is no way to share out a budget"
        raise InputError("allocation", problem, 'give "errors" or "alike"')
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "it is a file", "name a folder")
    if folder.exists() and out.exists() and os.path.samefile(folder, out):
        raise InputError(str(out), "it is the dense model's own folder", "name another one")
    if (out / "adapter_config.json").exists():
        problem = "it holds an adapter, which transformers would read instead"
        raise CheckpointError(str(out), problem, "name another folder")


def _facts(job: Job, allocation: str, seed: int) -> dict[str, Any]:
    """All that the result follows from."""
    paths = sorted({s.path for s in job.source.stored.values()})
    return {
        "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in paths],
        "config": json.loads(job.source.model.config.to_json_string(use_diff=False)),
        "params": dict(job.given),
        "layers": sorted(job.specs),
        "data": digest_of(job.batches),
        "allocation": allocation,
        "narrower": allocation == "errors" and len(job.batches) > 0,
        "seed": seed,
    }


def _stages(allocation: str) -> list[str]:
    return ["looking", "compressing"] if allocation == "errors" else ["compressing"]


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error})"
        advice = "make room; the same call goes on at the block it was in"
        raise CheckpointError(str(out), problem, advice) from error


@dataclass(eq=False)
class _Run:
    """One call: what it works on, and what it has done."""

    job: Job
    journal: Journal
    crew: Crew
    seed: int
    progress: Progress | None

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.remarks: list[str] = []

    @property
    def source(self) -> Source:
        return self.job.source

    def all(self, allocation: str, needs: Needs, tokenizer: Any) -> Streamed:
        """Everything that is not done yet."""
        if self.journal.get("finish") is None:
            calls = self._begin()
            shared = self._shared(allocation, calls)
            check_plan(self.job, plan_of(self.job, shared.ranks, self._some(shared), {}))
            self.journal.put("ranks", {"ranks": shared.ranks, "sizes": dict(shared.sizes)})
            for k in range(len(self.source.blocks)):
                if self.journal.get(_noted("block", k)) is None:
                    self._compress(k, shared, calls)
            self._rest()
            self._close(shared, tokenizer)
        plan = self._plan()
        remarks = (*self._said(), *dict.fromkeys(self.crew.remarks))
        self.journal.finish()
        return Streamed(self.journal.out, plan, needs, self.seconds, remarks)

    def _begin(self) -> Calls | None:
        """The hidden states before the first block, and how blocks are called."""
        if not self.job.batches:
            return None
        with self._timed("examples"):
            first = self._states("small", 0)
            there = first.exists() or self.journal.get(_noted("block", 0)) is not None
            return recorded(self.source, self.job.batches, None if there else first)

    def _shared(self, allocation: str, calls: Calls | None) -> Shared:
        """How the budget is shared out."""
        if (known := self.journal.get("ranks")) is not None:
            return Shared(known["ranks"], known["sizes"])
        if allocation == "alike":
            return Shared(alike(self.job.specs, self.job.room), {})
        seen: dict[str, Seen] = {}
        units: list[Widths] = []
        for k in range(len(self.source.blocks)):
            if (note := self.journal.get(_noted("look", k))) is None:
                note = self._look(k, calls)
            seen |= {name: Seen(*row) for name, row in note["layers"].items()}
            units += [
                Widths(Neurons(tuple(makers), reader), tuple(sizes), tuple(lost))
                for makers, reader, sizes, lost in note["units"]
            ]
        return by_errors(self.job.specs, seen, units, self.job.room)

    def _some(self, shared: Shared) -> dict[str, Narrowed]:
        """Layers as narrow as they are going to be, of the first neurons."""
        units = {u.reader: u for k in range(len(self.source.blocks)) for u in self._units(k)}
        narrowed: dict[str, Narrowed] = {}
        for name, n in shared.sizes.items():
            narrowed |= units[name].narrowed(range(n), self.job.specs[name].in_channels)
        return narrowed

    def _units(self, k: int) -> list[Neurons]:
        """The neurons of a block that may go."""
        note, blocks = self.journal.get("neurons"), self.source.blocks
        if note is None:
            return []
        units = [Neurons(tuple(makers), reader) for makers, reader in note["units"]]
        specs, first = (_inside(self.job.layers(i), blocks[i]) for i in (k, 0))
        return [u.within(blocks[k]) for u in units if fit_in(u, specs, first)]

    def _find_neurons(self, block: nn.Module, calls: Calls) -> None:
        """Look for them in the first block."""
        hidden = next(iter(read_states(self._states("dense", 0))))
        free = _inside(self.job.layers(0), self.source.blocks[0])
        units, why = find_neurons(block, lambda b, h: calls.run(b, 0, 0, h), hidden, free)
        rows = [[unit.makers, unit.reader] for unit in units]
        self.journal.put("neurons", {"units": rows, "why": why})

    def _look(self, k: int, calls: Calls | None) -> dict[str, Any]:
        """What a dense block's layers lose at which ranks and widths, and what that does."""
        self._tell("looking", k)
        layers, here = self.job.modules(k), self._states("dense", k)
        with self.source.filled(self.source.blocks[k]) as block:
            weights: dict[str, float] = dict.fromkeys(layers, 1.0)
            widths: list[Widths] = []
            if calls is not None:
                if k == 0 and self.journal.get("neurons") is None:
                    self._find_neurons(block, calls)
                inputs = Inputs(self.job.specs, calls.positions)
                with self._timed("forward"):
                    behind = collect(inputs, block, k, layers, here, calls)
                    write_states(self._states("dense", k + 1), behind)
                    weights = felt(block, k, layers, here, calls)
                tasks = [self._task(n, m, inputs.moments(n), None) for n, m in layers.items()]
                with self._timed("layers"):
                    widths = self._widths(k, layers, inputs)
                del inputs
            else:
                tasks = [self._task(name, m, None, None) for name, m in layers.items()]
                weights = {n: float(matrix(m).double().square().sum()) for n, m in layers.items()}
            done = self._done(tasks)
        rows = {
            name: [list(d.ranks), list(d.lost), weights[name]]
            for name, d in zip(layers, done, strict=True)
        }
        units = [[*_names(w.neurons), list(w.sizes), list(w.lost)] for w in widths]
        note = {"layers": rows, "units": units}
        self.journal.put(_noted("look", k), note)
        if k:
            self.journal.drop(here)
        return note

    def _widths(self, k: int, layers: Mapping[str, nn.Module], inputs: Inputs) -> list[Widths]:
        """What the units of a block may become."""
        found = []
        for unit in self._units(k):
            name = unit.reader
            if (moments := inputs.moments(name)) is not None:
                found.append(widths_at(unit, layers[name], self.job.specs[name], moments))
        return found

    def _compress(self, k: int, shared: Shared, calls: Calls | None) -> None:
        """Replace a block's layers and write its shard, and the hidden states behind it."""
        self._tell("compressing", k)
        here, behind = self._states("small", k), self._states("small", k + 1)
        with self.source.filled(self.source.blocks[k]) as block:
            dense = self.job.modules(k)
            replaced = {n: m for n, m in dense.items() if shared.ranks[n] is not None}
            units = [unit for unit in self._units(k) if unit.reader in shared.sizes]
            watched = replaced | {u.reader: dense[u.reader] for u in units}
            inputs = self._inputs(block, k, watched, calls)
            done = self._fitted(replaced, shared, inputs)
            lost = {name: d.lost[0] for name, d in done.items()}
            narrowed: dict[str, Narrowed] = {}
            try:
                for unit in units:
                    n = shared.sizes[unit.reader]
                    lost[unit.reader], what = self._narrow(unit, n, dense, inputs)
                    narrowed |= what
                inputs = None
                tensors = self._put(k, replaced, done) | self._as_narrow(narrowed)
                with self._timed("writing"):
                    digest = write_tensors(self.journal.final / self._shard(k), tensors)
                if calls is not None and k + 1 < len(self.source.blocks):
                    with self._timed("forward"):
                        write_states(behind, run_through(block, k, here, calls))
            finally:
                for name, module in replaced.items():
                    self.source.model.set_submodule(name, module)
                widen(self.source.model, narrowed)
        kept = {name: what.to_dict() for name, what in narrowed.items()}
        note = {"sha256": digest, "lost": lost, "names": [*tensors], "narrowed": kept}
        self.journal.put(_noted("block", k), note)
        self.journal.drop(here)

    def _inputs(
        self, block: nn.Module, k: int, layers: Mapping[str, nn.Module], calls: Calls | None
    ) -> Inputs | None:
        """What layers are given behind the compressed blocks."""
        if calls is None:
            return None
        with self._timed("forward"):
            inputs = Inputs(self.job.specs, calls.positions)
            here = self._states("small", k)
            deque(collect(inputs, block, k, layers, here, calls), maxlen=0)
        return inputs

    def _fitted(
        self, layers: Mapping[str, nn.Module], shared: Shared, inputs: Inputs | None
    ) -> dict[str, Done]:
        tasks = [
            self._task(n, m, None if inputs is None else inputs.moments(n), shared.ranks[n])
            for n, m in layers.items()
        ]
        return dict(zip(layers, self._done(tasks), strict=True))

    def _narrow(
        self, unit: Neurons, n: int, layers: Mapping[str, nn.Module], inputs: Inputs | None
    ) -> tuple[float, dict[str, Narrowed]]:
        """Leave so many neurons of a unit, in place; what its reader loses, and what stays."""
        name = unit.reader
        moments = None if inputs is None else inputs.moments(name)
        assert moments is not None, "none is offered where nothing is known of the inputs"
        spec = self.job.specs[name]
        with self._timed("layers"):
            kept, lost, write = fewer_neurons(unit, n, layers[name], spec, moments)
        narrowed = unit.narrowed(kept, spec.in_channels)
        narrow(self.source.model, narrowed)
        write(layers[name])
        return lost, narrowed

    def _as_narrow(self, layers: Iterable[str]) -> dict[str, Stored | Made]:
        """The tensors of layers that are narrower by now, rounded as they are written."""
        tensors: dict[str, Stored | Made] = {}
        for name in layers:
            module = self.source.model.get_submodule(name)
            for part, parameter in module.named_parameters(recurse=False):
                dtype = self.source.dtype_of(f"{name}.{part}")
                parameter.data = rounded(parameter.data, dtype)
                tensors[f"{name}.{part}"] = made(parameter.data.to(dtype))
        return tensors

    def _put(
        self, k: int, layers: Mapping[str, nn.Module], done: Mapping[str, Done]
    ) -> dict[str, Stored | Made]:
        """Put factors into a block; all its tensors as they are written."""
        dtype, model = self.source.dtype, self.source.model
        tensors: dict[str, Stored | Made] = {
            n: self._as_is(n, s) for n, s in self.source.inside(self.source.blocks[k]).items()
        }
        for name, module in layers.items():
            first, last = (rounded(torch.from_numpy(f), dtype) for f in done[name].factors)
            bias = module._parameters.get("bias")
            if bias is not None and (shift := done[name].shift) is not None:
                bias = nn.Parameter(rounded(bias + torch.from_numpy(shift), dtype), False)
            model.set_submodule(name, factored(module, (first, last), bias))
            del tensors[f"{name}.weight"]
            tensors[f"{name}.0.weight"] = made(first.to(dtype))
            tensors[f"{name}.1.weight"] = made(last.to(dtype))
            if bias is not None:
                del tensors[f"{name}.bias"]
                tensors[f"{name}.1.bias"] = made(bias.to(dtype))
        return tensors

    def _rest(self) -> None:
        """Copy what is outside of the blocks."""
        if self.journal.get("rest") is None:
            k = len(self.source.blocks)
            tensors = {n: self._as_is(n, s) for n, s in self.source.rest.items()}
            with self._timed("writing"):
                digest = write_tensors(self.journal.final / self._shard(k), tensors)
            self.journal.put("rest", {"sha256": digest, "names": [*tensors]})

    def _as_is(self, name: str, stored: Stored) -> Stored | Made:
        """A tensor as it is stored, or in the type that is written."""
        dtype = self.source.dtype_of(name)
        if stored.dtype == dtype:
            return stored
        return Made(dtype, stored.shape, lambda: stored.read().to(dtype))

    def _close(self, shared: Shared, tokenizer: Any) -> None:
        """Write the index, the config and the tokenizer."""
        final = self.journal.final
        notes = [self.journal.get(_noted("block", k)) for k in range(len(self.source.blocks))]
        notes.append(self.journal.get("rest"))
        files = {self._shard(k): note["sha256"] for k, note in enumerate(notes)}
        where = {n: self._shard(k) for k, note in enumerate(notes) for n in note["names"]}
        size = sum((final / name).stat().st_size for name in files)
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (final / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        lost = {n: e for note in notes[:-1] for n, e in note["lost"].items()}
        kept = {n: row for note in notes[:-1] for n, row in note["narrowed"].items()}
        narrowed = {name: Narrowed.from_dict(name, row) for name, row in kept.items()}
        plan = plan_of(self.job, shared.ranks, narrowed, lost)
        write_tokenizer(tokenizer, final)
        if (self.source.folder / "generation_config.json").exists():
            shutil.copy(self.source.folder / "generation_config.json", final)
        record = Record((("", plan),), files)
        write_config(self.source.model, record, final, dtype=self.source.dtype)
        self.journal.put("plan", plan.to_dict())

    def _plan(self) -> Plan:
        from lowrank.compression.structure.plan import Plan

        return Plan.from_dict(self.journal.get("plan"))

    def _said(self) -> Iterable[str]:
        """What a reader must not miss."""
        tokens = sum(next(iter(b.values())).numel() for b in self.job.batches)
        widest = max((s.in_channels for s in self.job.specs.values()), default=0)
        if not self.job.batches:
            yield "without data the errors of the weights counted, not those of outputs"
        elif tokens < widest:
            yield (
                f"{tokens} calibration tokens are fewer than the {widest} inputs of the widest "
                "layer: directions that they do not show are judged by the average; more tokens "
                "give a better model"
            )
        if (note := self.journal.get("neurons")) is not None and note["why"] is not None:
            yield f"no neurons of the blocks may go: {note['why']}"
        if spare := self.source.spare:
            yield f"{len(spare)} tensors of the files are no part of the model, such as {spare[0]}"

    def _states(self, stage: str, k: int) -> Path:
        """Hidden states before a block; those before the first are the same in both passes."""
        return self.journal.states("small" if k == 0 else stage, k)

    def _shard(self, k: int) -> str:
        return f"lowrank-{k + 1:05d}-of-{len(self.source.blocks) + 1:05d}.safetensors"

    def _task(self, name: str, module: nn.Module, moments: Any, rank: int | None) -> Task:
        weight = matrix(module).numpy()
        return Task(name, self.job.specs[name], weight, packed(moments), rank, self.seed)

    def _done(self, tasks: Sequence[Task]) -> list[Done]:
        with self._timed("layers"):
            return self.crew.run(tasks)

    def _tell(self, what: str, k: int) -> None:
        if self.progress is not None:
            self.progress(f"{what} {self.source.blocks[k]}", k, len(self.source.blocks))

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began


def _inside(specs: Mapping[str, LayerSpec], block: str) -> dict[str, LayerSpec]:
    """The layers of a block by their names in it."""
    return {name.removeprefix(f"{block}."): spec for name, spec in specs.items()}


def _names(unit: Neurons) -> tuple[list[str], str]:
    return list(unit.makers), unit.reader


def _noted(what: str, k: int) -> str:
    return f"{what}-{k:05d}"


__all__ = ["NAME", "Allocation", "Streamed", "compress_folder"]
