"""The decomposition of single layers, here or by any `concurrent.futures.Executor`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowrank.compression.calibration.moments import Moments
from lowrank.compression.methods.channel_svd import ChannelSVD
from lowrank.compression.network.stages import LayerSpec
from lowrank.decompositions.metric import Metric
from lowrank.errors import InputError

Workers: TypeAlias = "Executor | Callable[[], Executor]"
"""An executor, or what makes one: then it is made anew when a worker's death breaks it."""

_TRIES = 3
"""How often a layer is handed out before it is done here."""

Array: TypeAlias = "NDArray[Any]"


@dataclass(frozen=True, eq=False)
class Task:
    """One layer to be decomposed, in arrays that any process can be sent.

    Args:
        name: of the layer.
        spec: its shape.
        weight: canonical (1, out, in), float32.
        moments: of its inputs, by field; None without data.
        rank: channels in between; None asks for the errors of all ranks instead.
        seed: of randomised fits.
    """

    name: str
    spec: LayerSpec
    weight: Array
    moments: Mapping[str, Any] | None
    rank: int | None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Done:
    """What became of a layer.

    Args:
        factors: (rank, in) and (out, rank), float32; none where errors were asked for.
        shift: what is added to the bias (out,); None where nothing is.
        ranks: the rank, or those that were asked about.
        lost: relative squared error of the output at each.
    """

    factors: tuple[Array, ...]
    shift: Array | None
    ranks: tuple[int, ...]
    lost: tuple[float, ...]


def packed(moments: Moments | None) -> Mapping[str, Any] | None:
    """The moments of a layer's inputs as arrays."""
    if moments is None:
        return None
    values = vars(moments)
    return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in values.items()}


def decomposed(task: Task, home: int | None = None) -> Done | str:
    """Do a task; what is wrong with it in words.

    Args:
        task: the layer.
        home: the process that handed it out: in another one a single thread is used, as its
            neighbours use the other cores.
    """
    if home is not None and home != os.getpid():
        torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return _factorized(task) if task.rank is not None else _errors(task)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _metric(task: Task) -> tuple[Metric | None, Tensor | None]:
    """The metric of the layer's output, and the mean of its inputs where a bias can take it."""
    if task.moments is None:
        return None, None
    fields: dict[str, Any] = {
        k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v
        for k, v in task.moments.items()
    }
    moments = Moments(**fields)
    return moments.metric(centred=task.spec.bias), moments.mean if task.spec.bias else None


def _factorized(task: Task) -> Done:
    assert task.rank is not None
    weight, (metric, mean) = torch.from_numpy(np.array(task.weight)), _metric(task)
    first, last = ChannelSVD(task.rank).factor(task.spec, weight, seed=task.seed, metric=metric)
    whole = metric or Metric(torch.ones(1, weight.shape[-1]))
    gap = weight - last @ first  # (1, out, in)
    energy = whole.energy(weight)
    lost = whole.error(gap) / energy if energy > 0 else 0.0
    shift = None if mean is None else (gap.double() @ mean.double()[..., None]).flatten()
    found = tuple(np.ascontiguousarray(f[0].float().numpy()) for f in (first, last))
    return Done(found, None if shift is None else shift.float().numpy(), (task.rank,), (lost,))


def _errors(task: Task) -> Done:
    weight, (metric, _) = torch.from_numpy(np.array(task.weight)), _metric(task)
    rows = list(ChannelSVD.candidates(task.spec, weight, round_to=1, seed=task.seed, metric=metric))
    return Done((), None, tuple(m.rank for m, _ in rows), tuple(e for _, e in rows))


@dataclass(eq=False)
class Crew:
    """Who decomposes the layers of a block.

    Args:
        workers: an executor, or what makes one; None for this process alone.
        remarks: what went wrong, in words.
    """

    workers: Workers | None = None
    remarks: list[str] = field(default_factory=list)
    _executor: Executor | None = None

    def run(self, tasks: Sequence[Task]) -> list[Done]:
        """Do the tasks, each again where its worker died.

        Raises:
            InputError: a layer cannot be decomposed.
        """
        done: dict[int, Done | str] = {}
        for _ in range(_TRIES if self.workers is not None else 0):
            if len(done) < len(tasks):
                done |= self._handed_out({k: t for k, t in enumerate(tasks) if k not in done})
        with _single(self.workers is not None):
            done |= {k: decomposed(t) for k, t in enumerate(tasks) if k not in done}
        return [_sound(task, done[k]) for k, task in enumerate(tasks)]

    def _handed_out(self, tasks: Mapping[int, Task]) -> dict[int, Done | str]:
        """What came back of the tasks."""
        found: dict[int, Done | str] = {}
        executor = self._executor_now()
        if executor is None:
            return found
        futures: dict[int, Future[Done | str]] = {}
        failed: BaseException | None = None
        try:
            with warnings.catch_warnings():  # Dask's, that a layer is large
                warnings.filterwarnings("ignore", message="Sending large graph")
                for k, task in tasks.items():
                    futures[k] = executor.submit(decomposed, task, os.getpid())
        except Exception as error:  # of the executor: a task's own come back as text
            failed = error
        for k, future in futures.items():
            try:
                found[k] = future.result()
            except (Exception, CancelledError) as error:
                failed = error
        if failed is not None:
            self._broken(executor, failed)
        return found

    def _executor_now(self) -> Executor | None:
        if self._executor is None and self.workers is not None:
            given = self.workers
            self._executor = given if isinstance(given, Executor) else given()
        return self._executor

    def _broken(self, executor: Executor, error: BaseException) -> None:
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        self.remarks.append(f"a worker died, and its layers were done again ({what})")
        if not isinstance(self.workers, Executor):
            self._executor = None
            executor.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """End the workers that were made here."""
        if self._executor is not None and not isinstance(self.workers, Executor):
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None


def _sound(task: Task, done: Done | str) -> Done:
    if isinstance(done, str):
        raise InputError(task.name, f"it cannot be decomposed ({done})", "skip it: skip=")
    return done


@contextmanager
def _single(wanted: bool) -> Iterator[None]:
    """One thread, as in a worker, so that a layer is the same whoever did it."""
    before = torch.get_num_threads()
    try:
        if wanted:
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
