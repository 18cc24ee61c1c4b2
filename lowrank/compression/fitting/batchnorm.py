"""Batch-norm statistics that fit a model's new weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowrank.compression.calibration.calibrate import Calibrated
from lowrank.compression.fitting.distillation import Objective, Teachers
from lowrank.compression.gauges.quality import Loss, Unmatched, quality_of, vocabularies
from lowrank.compression.network.batches import Batch, Batches, Form, hold_out, placed
from lowrank.compression.network.cutting import held_out, rows_held_out
from lowrank.compression.network.example import Example, call, evaluating, run
from lowrank.compression.structure.history import form_of
from lowrank.errors import InputError

Measure: TypeAlias = Callable[[nn.Module], float]
"""How bad a model is: the lower the better."""


def recalibrate_batchnorm(
    model: nn.Module,
    *,
    teacher: nn.Module,
    data: Any,
    val: Any,
    batch_size: int = 64,
    seed: int = 0,
) -> bool:
    """Re-estimate, in place, a model's batch-norm statistics; keep them only if val improves.

    Running means and variances become the averages over all batches of the data. This gives
    much back after a crude factorization, and harms where inputs are few or odd: hence the
    check on data that was held out. A batch that gives a layer a single value per channel, such
    as one picture on a 1 x 1 map, has no variance to tell: it is passed over there, and a layer
    that sees no other keeps its statistics.

    Args:
        model: a compressed model; its statistics, and nothing else, may change.
        teacher: the dense model.
        data: batches of inputs, labels ignored; see `lowrank.compression.network.batches`.
        val: batches on which the outputs' relative squared error against the teacher has to
            fall; or a share in (0, 1) to hold out of data given as tensors; or a function of
            the model that has to fall.
        batch_size: examples in a batch, for data given as tensors.
        seed: of the order and the held-out share.

    Returns:
        True if the new statistics were kept; False if the model is as it was.

    Raises:
        InputError: empty data, NaN or Inf, or batches that the model refuses.

    Example:
        >>> x = torch.randn(512, 8)
        >>> teacher, model = nn.BatchNorm1d(8).eval(), nn.BatchNorm1d(8).eval()
        >>> _ = model.running_mean.fill_(3.0)  # as if they were other weights' statistics
        >>> recalibrate_batchnorm(model, teacher=teacher, data=x, val=0.25)
        True
        >>> recalibrate_batchnorm(teacher, teacher=teacher, data=x, val=0.25)  # nothing to mend
        False
    """
    generator = torch.Generator().manual_seed(seed)
    form = form_of(model)
    data, measure = measure_on(val, data, Objective("mse"), teacher, batch_size, generator, form)
    batches = Batches.of(data, form, size=batch_size, generator=generator)
    norms = batch_norms(model)
    return improves(model, norms, (b.inputs for b in batches), measure).measure is not None


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that keep running statistics."""
    layers = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [m for m in layers if m.running_mean is not None]


@dataclass(frozen=True)
class Renewal:
    """What came of an estimate.

    Args:
        measure: with the new statistics, where it fell; None where all are as they were.
        single: the layers that were only given single values per channel and kept theirs.
    """

    measure: float | None
    single: tuple[_BatchNorm, ...] = ()


def improves(
    model: nn.Module, norms: Sequence[_BatchNorm], inputs: Iterable[Example], measure: Measure
) -> Renewal:
    """Re-estimate the layers' statistics; they stay only if the measure falls."""
    if not norms:
        return Renewal(None)
    before = measure(model)
    kept = False
    saved = [{k: v.clone() for k, v in m.named_buffers(recurse=False)} for m in norms]
    try:
        single = _estimate(model, norms, inputs)
        after = measure(model)
        kept = after < before  # False for NaN
    finally:
        if not kept:
            for norm, buffers in zip(norms, saved, strict=True):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)
    return Renewal(after if kept else None, single)


def measure_on(
    val: Any,
    data: Any,
    objective: Objective,
    teacher: Teachers,
    size: int,
    generator: torch.Generator,
    form: Form,
) -> tuple[Any, Measure]:
    """The data left to train on, and the measure that `val` stands for.

    Raises:
        InputError: held-out data that is empty, or a share that is not in (0, 1).
    """
    if callable(val):
        return data, lambda model: float(val(model))
    if isinstance(val, float | int):
        data, val = hold_out(data, val, generator, form)
    held = Batches.of(val, form, size=size, name="val")
    held.first()

    def measure(model: nn.Module) -> float:
        total, n = 0.0, 0
        with evaluating(model):
            for batch in map(Batch.to_train, held):
                loss = sum(objective.terms(model, teacher, batch).values(), torch.zeros(()))
                total, n = total + float(loss) * len(batch), n + len(batch)
        return total / n

    return data, measure


@contextmanager
def _cumulative(norms: Sequence[_BatchNorm]) -> Iterator[dict[_BatchNorm, bool]]:
    """Statistics become the plain average over the batches that follow and can tell a variance.

    Gives the layers that ran -> whether some batch had more than one value per channel; only
    these start anew.
    """
    momenta = [m.momentum for m in norms]
    several: dict[_BatchNorm, bool] = {}

    def look(norm: _BatchNorm, args: Any, kwargs: Any) -> None:
        x: Tensor = next(iter([*args, *kwargs.values()]))
        norm.training = x.numel() > x.shape[1]
        if norm.training and not several.get(norm):
            norm.reset_running_stats()
        several[norm] = several.get(norm, False) or norm.training

    with ExitStack() as stack:
        for norm, momentum in zip(norms, momenta, strict=True):
            stack.callback(setattr, norm, "momentum", momentum)
            stack.callback(norm.register_forward_pre_hook(look, with_kwargs=True).remove)
            norm.momentum = None
        yield several


def _estimate(
    model: nn.Module, norms: Sequence[_BatchNorm], inputs: Iterable[Example]
) -> tuple[_BatchNorm, ...]:
    """The layers that keep their statistics, as every batch gave them single values."""
    seen = False
    with evaluating(model), _cumulative(norms) as several:
        for batch in inputs:
            call(model, placed(batch, model), name="data")
            seen = True
    if not seen:
        raise InputError("data", "it holds no batch", "pass at least one")
    return tuple(norm for norm, told in several.items() if not told)


def renormalise(
    model: nn.Module,
    small: nn.Module,
    batches: Sequence[Example],
    loss: Loss | None = None,
    *,
    known: Calibrated | None = None,
) -> list[str]:
    """Estimate batch-norm statistics anew; kept only if outputs held out come closer.

    A fourth of the examples is held out; of a single one nothing is, and nothing is kept, nor
    where outputs cannot be compared. What there is to say of it.

    Args:
        model: the dense network.
        small: the compressed one, whose statistics may change.
        batches: calibration inputs.
        loss: of an output, which is compared where outputs have other shapes.
        known: what calibrating on the examples that the batches begin told.
    """
    if not (norms := batch_norms(small)):
        return []
    rest, held = held_out(batches, model)
    if not held:
        return []
    found = None if known is None else known.outputs_on(rows_held_out(rest, held))
    wanted = [run(model, batch) for batch in held] if found is None else found

    def lost(candidate: nn.Module) -> float:
        given = (run(candidate, batch) for batch in held)
        return quality_of(zip(wanted, given, strict=True), vocabularies(model), loss).loss

    try:
        renewal = improves(small, norms, rest, lost)
    except Unmatched:
        return []
    notes = [] if renewal.measure is None else ["batch-norm statistics were estimated anew"]
    if renewal.single:
        names = ", ".join(n for n, m in small.named_modules() if m in renewal.single)
        notes.append(
            f"batch-norm statistics stay as they were in {names}: every batch gives a single "
            "value per channel there; pass larger batches"
        )
    return notes
