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
from lowrank.compression.pipeline.streaming.ranks import Seen, alike, by_errors
from lowrank.compression.pipeline.streaming.source import Source, opened
from lowrank.compression.pipeline.streaming.states import Calls, recorded, write_states
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
    before them, already compressed, give on the calibration examples. Embeddings, norms and
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
            the rank that costs the hidden state least; "alike" keeps the same share of each.
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
            ranks = self._ranks(allocation, calls)
            check_plan(self.job, plan_of(self.job, ranks, {}))
            self.journal.put("ranks", ranks)
            for k in range(len(self.source.blocks)):
                if self.journal.get(_noted("block", k)) is None:
                    self._compress(k, ranks, calls)
            self._rest()
            self._close(ranks, tokenizer)
        plan = self._plan()
        self.journal.finish()
        remarks = (*self._said(), *dict.fromkeys(self.crew.remarks))
        return Streamed(self.journal.out, plan, needs, self.seconds, remarks)

    def _begin(self) -> Calls | None:
        """The hidden states before the first block, and how blocks are called."""
        if not self.job.batches:
            return None
        with self._timed("examples"):
            first = self._states("small", 0)
            there = first.exists() or self.journal.get(_noted("block", 0)) is not None
            return recorded(self.source, self.job.batches, None if there else first)

    def _ranks(self, allocation: str, calls: Calls | None) -> dict[str, int | None]:
        if (known := self.journal.get("ranks")) is not None:
            return known
        if allocation == "alike":
            return alike(self.job.specs, self.job.room)
        seen: dict[str, Seen] = {}
        for k in range(len(self.source.blocks)):
            if (rows := self.journal.get(_noted("look", k))) is None:
                rows = self._look(k, calls)
            seen |= {name: Seen(*row) for name, row in rows.items()}
        return by_errors(self.job.specs, seen, self.job.room)

    def _look(self, k: int, calls: Calls | None) -> dict[str, list[Any]]:
        """What a dense block's layers lose at which ranks, and what that does."""
        self._tell("looking", k)
        layers, here = self.job.modules(k), self._states("dense", k)
        with self.source.filled(self.source.blocks[k]) as block:
            weights: dict[str, float] = dict.fromkeys(layers, 1.0)
            if calls is not None:
                inputs = Inputs(self.job.specs, calls.positions)
                with self._timed("forward"):
                    behind = collect(inputs, block, k, layers, here, calls)
                    write_states(self._states("dense", k + 1), behind)
                    weights = felt(block, k, layers, here, calls)
                tasks = [self._task(n, m, inputs.moments(n), None) for n, m in layers.items()]
                del inputs
            else:
                tasks = [self._task(name, m, None, None) for name, m in layers.items()]
                weights = {n: float(matrix(m).double().square().sum()) for n, m in layers.items()}
            done = self._done(tasks)
        rows = {
            name: [list(d.ranks), list(d.lost), weights[name]]
            for name, d in zip(layers, done, strict=True)
        }
        self.journal.put(_noted("look", k), rows)
        if k:
            self.journal.drop(here)
        return rows

    def _compress(self, k: int, ranks: Mapping[str, int | None], calls: Calls | None) -> None:
        """Replace a block's layers and write its shard, and the hidden states behind it."""
        self._tell("compressing", k)
        here, behind = self._states("small", k), self._states("small", k + 1)
        with self.source.filled(self.source.blocks[k]) as block:
            dense = self.job.modules(k)
            replaced = {n: m for n, m in dense.items() if ranks[n] is not None}
            done = self._fitted(block, k, replaced, ranks, calls)
            try:
                tensors = self._put(k, replaced, done)
                with self._timed("writing"):
                    digest = write_tensors(self.journal.final / self._shard(k), tensors)
                if calls is not None and k + 1 < len(self.source.blocks):
                    with self._timed("forward"):
                        write_states(behind, run_through(block, k, here, calls))
            finally:
                for name, module in replaced.items():
                    self.source.model.set_submodule(name, module)
        lost = {name: d.lost[0] for name, d in done.items()}
        self.journal.put(_noted("block", k), {"sha256": digest, "lost": lost, "names": [*tensors]})
        self.journal.drop(here)

    def _fitted(
        self,
        block: nn.Module,
        k: int,
        layers: Mapping[str, nn.Module],
        ranks: Mapping[str, int | None],
        calls: Calls | None,
    ) -> dict[str, Done]:
        if calls is None:
            tasks = [self._task(n, m, None, ranks[n]) for n, m in layers.items()]
        else:
            with self._timed("forward"):
                inputs = Inputs(self.job.specs, calls.positions)
                here = self._states("small", k)
                deque(collect(inputs, block, k, layers, here, calls), maxlen=0)
            tasks = [self._task(n, m, inputs.moments(n), ranks[n]) for n, m in layers.items()]
            del inputs
        return dict(zip(layers, self._done(tasks), strict=True))

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

    def _close(self, ranks: Mapping[str, int | None], tokenizer: Any) -> None:
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
        plan = plan_of(self.job, ranks, lost)
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


def _noted(what: str, k: int) -> str:
    return f"{what}-{k:05d}"


__all__ = ["NAME", "Allocation", "Streamed", "compress_folder"]
