"""Train a compressed model to agree with the dense one again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW, Optimizer

from lowrank.compression.fitting.batchnorm import Measure, batch_norms, improves, measure_on
from lowrank.compression.fitting.distillation import Loss, Objective, Teachers, check_hints
from lowrank.compression.fitting.penalty import Penalty
from lowrank.compression.fitting.relaxation import relaxed
from lowrank.compression.fitting.trainer import _Best, _seeded, _Trainer, _training
from lowrank.compression.network.batches import Batches
from lowrank.compression.network.example import refuse_lazy
from lowrank.compression.structure.history import factors_in, form_of
from lowrank.compression.structure.int8 import int8_layers
from lowrank.errors import InputError
from lowrank.progress import Progress

_LR = 2e-4  # AdamW; at 1e-3 a network that is near its teacher only moves away from it


_SEEN = 512
"""Examples, at least, on which epochs are compared without `val`, if there are as many."""


_HALF = (torch.float16, torch.bfloat16)


Optimizing: TypeAlias = Optimizer | Callable[..., Optimizer]
"""An optimizer that holds parameters of the model, or what builds one from parameters."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch of fine-tuning came to.

    Args:
        index: from 1; 0 is the model as it came, measured where there is a `val`.
        loss: mean over the epoch's batches; None where nothing was trained.
        terms: its weighted parts, "distillation" and, where asked for, "labels" and "hints".
        val: the validation measure after the epoch, lower is better; None without `val`.
        lr: learning rate of the last step.
        steps: optimizer steps.
        seconds: wall-clock time, validation included.
        best: these weights are the best so far.
        recalibrated: the best weights so far with re-estimated batch-norm statistics.
        sparsity: the share of what a penalty presses that is zero; None without one.
    """

    index: int
    loss: float | None = None
    terms: dict[str, float] = field(default_factory=dict)
    val: float | None = None
    lr: float | None = None
    steps: int = 0
    seconds: float = 0.0
    best: bool = False
    recalibrated: bool = False
    sparsity: float | None = None


def cosine(t: float) -> float:
    """Learning-rate multiplier at a share t of the training: short rise, then half a cosine.

    Example:
        >>> [round(cosine(t), 2) for t in (0.0, 0.05, 0.5, 1.0)]
        [0.1, 0.99, 0.5, 0.0]
    """
    rise = min(1.0, 0.1 + 0.9 * t / 0.05)
    return rise * (1 + math.cos(math.pi * t)) / 2


@torch.inference_mode(False)
def finetune(
    model: nn.Module,
    *,
    teacher: Teachers,
    data: Any,
    epochs: int = 2,
    val: Any = None,
    patience: int | None = None,
    loss: Loss = "kl",
    temperature: float = 4.0,
    label_weight: float = 0.1,
    hints: Sequence[str] = (),
    hint_weight: float = 1.0,
    flows: Sequence[tuple[str, str]] = (),
    flow_weight: float = 1.0,
    penalty: Penalty | None = None,
    mix: bool = False,
    optimizer: Optimizing | None = None,
    lr: float | None = None,
    schedule: Callable[[float], float] = cosine,
    max_norm: float | None = 1.0,
    amp: torch.dtype | None = None,
    only_factors: bool = False,
    relax: bool = False,
    training: bool = True,
    recalibrate: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    callback: Callable[[Epoch], object] | None = None,
    progress: Progress | bool = False,
) -> nn.Module:
    """Train a compressed model, in place, to give its teacher's outputs; returns the model.

    Minimises (1 - label_weight) * distillation + label_weight * labels + hint_weight * hints,
    see `lowrank.compression.fitting.distillation.Objective`. Afterwards the model holds the weights
    of its best epoch, and every training flag and `requires_grad` is what it was. That also
    holds when training ends by an exception (from the data, a callback, a loss that is not
    finite) or by Ctrl-C, which are then raised again: what the epochs before brought is kept.

    Args:
        model: what `compress` or `apply` returned, or any model. One in evaluation mode is
            trained in training mode, except that batch norm keeps to its running statistics:
            a model near its teacher learns little from a batch's own. In a model that is in
            training mode already each module keeps its flag, so `model.train()` trains with
            the statistics of batches, and batch norm set to evaluation mode there is frozen.
            Parameters with `requires_grad=False` stay as they are. Half-precision parameters
            are refused: keep them in float32 and pass `amp`.
        teacher: the dense model, or several models, whose distillation is averaged (hints and flows
            are of the first); run in evaluation mode, never changed.
        data: a loader or list of batches, a tensor of inputs, or a tuple (inputs, labels) of
            tensors, shuffled and split here; see `lowrank.compression.network.batches`. Batches are
            moved to the models' devices.
        epochs: times to go through the data.
        val: what decides which epoch is best: batches on which the loss is taken, in
            evaluation mode; a share in (0, 1) to hold out of data given as tensors; or a
            function of the model, the lower the better. Without it the loss on the first 512
            examples of the data decides, in evaluation mode. The model as it came is one of
            those that are compared, so it comes back where no epoch is better.
        patience: stop after so many epochs without a better `val`; None: never.
        loss: "kl" for scores of classes, "mse" for anything else, or a function of the
            student's and the teacher's output.
        temperature: softens both models' scores for "kl".
        label_weight: in [0, 1]; without labels in the data it has no effect.
        hints: layers, by name, whose outputs are to agree as well.
        hint_weight: weight of that.
        flows: pairs of layers, by name, between which what flows, the products of their channels,
            is to agree as well.
        flow_weight: weight of that.
        penalty: presses scales, channels or ranks to zero, see `lowrank.compression.Penalty`; the
            last epoch's weights are kept then, and each `Epoch` says how sparse they are.
        mix: train on examples mixed in pairs by random shares, as the teacher scores the
            mixture: a few hundred then say more. Inputs must be floating-point; labels are
            not looked at.
        optimizer: an optimizer of the model's parameters, or what builds one, such as
            `functools.partial(torch.optim.SGD, momentum=0.9)`; AdamW by default. `SOAP`
            gets factors closer to the teacher in as many steps.
        lr: learning rate, given to what builds the optimizer; 2e-4 by default for AdamW, and
            for others their own. `SOAP` likes 5e-4 near the teacher, 2e-3 far from it: about
            half of what AdamW does there.
        schedule: multiplier of the learning rate at a share in [0, 1] of the training.
        max_norm: gradients are scaled down to this norm; None: never.
        amp: `torch.bfloat16` or `torch.float16` for mixed precision.
        only_factors: train only the layers that the plan replaced; the statistics of batch
            norm may still change.
        relax: train what methods hold that is discrete as well, such as which brick each
            filter of a `LegoNet` layer takes, by straight-through gradients.
        training: False trains the model as it will be used, in evaluation mode: without
            dropout, and without what training mode adds or leaves out, such as auxiliary
            heads, losses in place of outputs, or layers dropped at random.
        recalibrate: before and after, re-estimate the batch-norm statistics on the data and
            keep them if `val` gets better; not done without `val`.
        batch_size: examples in a batch, for data given as tensors.
        seed: of everything random, such as the order and dropout; the caller's random state
            is left alone.
        callback: called with an `Epoch` after each; `callback=records.append` keeps them.
        progress: True draws a bar; or a function called as (what, done, total).

    Raises:
        InputError: empty data or bad arguments, before anything changes; NaN or Inf, as
            they come up.

    Example:
        >>> import torch, lowrank
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
        ... )
        >>> x, records = torch.randn(512, 32), []
        >>> small, _ = lowrank.compress(model, x[:1], params=0.6)
        >>> small = lowrank.finetune(
        ...     small, teacher=model, data=x, val=0.1, loss="mse", epochs=5, lr=1e-2,
        ...     callback=records.append,
        ... )
        >>> records[-1].val < 0.8 * records[0].val
        True

    Source: Hinton, Vinyals, Dean 2015; Romero et al. 2015; flows: Yim et al. 2017; several
    teachers: You et al. 2017, of which the mean of softened scores; mixing: Beyer et al. 2022.
    """
    _check_counts(epochs=epochs, patience=patience, batch_size=batch_size)
    _check_positive(temperature=temperature, max_norm=max_norm, lr=lr)
    _check_weights(label_weight, hint_weight)
    _check_arguments(val, patience, loss, amp, optimizer, schedule)
    teachers = _several(teacher)
    _check_weights(label_weight, flow_weight, "flow_weight")
    for each in (model, *teachers):
        refuse_lazy(each)
    if names := int8_layers(model):
        problem = f"{names[0]} is int8, which cannot be trained"
        raise InputError("model", problem, "fine-tune first, then lowrank.quantize")
    check_hints(hints, model=model, teacher=teachers[0])
    flows = _check_flows(flows)
    check_hints([n for pair in flows for n in pair], model=model, teacher=teachers[0])
    if penalty is not None:
        penalty.check(model)
    objective = Objective(
        loss, temperature, label_weight, tuple(hints), hint_weight, flows, flow_weight
    )
    with ExitStack() as stack:
        if relax:
            stack.enter_context(relaxed(model))
        trained = _trained(model, only_factors)
        for each in teachers:
            _check_teacher(each, trained)
        generator = stack.enter_context(_seeded(trained, seed))
        measure, form = None, form_of(model)
        if val is not None:
            data, measure = measure_on(val, data, objective, teacher, batch_size, generator, form)
        batches = Batches.of(data, form, size=batch_size, generator=generator)
        trainer = _Trainer(
            model, teacher, objective, batches, mix, trained, epochs, schedule, max_norm, amp,
            _build(optimizer, trained, lr), penalty,
        )  # fmt: skip
        trainer.try_out(_SEEN if measure is None else 1)
        best = _Best(model, trained)
        norms = _free_norms(model) if recalibrate else []
        with (
            best.kept(),
            _training(model, trained, training),
            trainer.rates(),
            _bar(progress) as shown,
        ):
            for record in _epochs(trainer, best, measure, norms, patience, shown):
                if callback is not None:
                    callback(record)
    return model


def _epochs(
    trainer: _Trainer,
    best: _Best,
    measure: Measure | None,
    norms: Sequence[_BatchNorm],
    patience: int | None,
    shown: Progress,
) -> Iterator[Epoch]:
    """Train epoch by epoch; each is offered as the best before it is yielded."""
    judge = trainer.loss_in_use if measure is None else partial(measure, trainer.model)
    if measure is None:
        best.offer(judge(), 0)
    else:
        start = time.perf_counter()
        first = measure(trainer.model)
        best.offer(first, 0)
        yield Epoch(0, val=first, seconds=time.perf_counter() - start, best=True)
        yield from _recalibrated(trainer, best, measure, norms)
    for index in range(1, trainer.epochs + 1):
        start = time.perf_counter()
        terms, lr, steps = trainer.epoch(index, shown)
        loss = sum(terms.values())
        score = judge()
        pressed = trainer.penalty
        ranked = score if pressed is None else -float(index)  # the last one is the sparsest
        improved, val = best.offer(ranked, index), None if measure is None else score
        seconds = time.perf_counter() - start
        sparse = None if pressed is None else pressed.sparsity(trainer.model)
        yield Epoch(index, loss, terms, val, lr, steps, seconds, improved, sparsity=sparse)
        if patience is not None and index - best.index >= patience:
            break
    if measure is not None and trainer.penalty is None:
        best.restore()
        yield from _recalibrated(trainer, best, measure, norms)


def _recalibrated(
    trainer: _Trainer, best: _Best, measure: Measure, norms: Sequence[_BatchNorm]
) -> Iterator[Epoch]:
    """The best weights, which the model holds, with statistics re-estimated if they gain."""
    start = time.perf_counter()
    val = improves(trainer.model, norms, (b.inputs for b in trainer.batches), measure).measure
    if val is not None and best.offer(val, best.index):
        seconds = time.perf_counter() - start
        yield Epoch(best.index, val=val, seconds=seconds, best=True, recalibrated=True)


def _trained(model: nn.Module, only_factors: bool) -> list[nn.Parameter]:
    """The parameters to train."""
    parts = [model]
    if only_factors:
        parts = factors_in(model)
        if not parts:
            raise InputError(
                "only_factors", "the model holds no factorized layer", "pass what apply returned"
            )
    trained = {p: n for part in parts for n, p in part.named_parameters() if p.requires_grad}
    if not trained:
        raise InputError("model", "no parameter requires a gradient", "unfreeze what is to learn")
    for parameter, name in trained.items():
        if parameter.dtype in _HALF:
            dtype = str(parameter.dtype).removeprefix("torch.")
            advice = "train model.float() with amp=torch.bfloat16, and convert it afterwards"
            raise InputError(name, f"{dtype} parameters lose small updates", advice)
    return list(trained)


def _free_norms(model: nn.Module) -> list[_BatchNorm]:
    """Batch norm but what is frozen by hand: in evaluation mode within a model in training."""
    return [norm for norm in batch_norms(model) if norm.training or not model.training]


def _build(
    optimizer: Optimizing | None, trained: Sequence[nn.Parameter], lr: float | None
) -> Optimizer:
    if optimizer is None:
        return AdamW(trained, lr=_LR if lr is None else lr, weight_decay=0.0)
    if not isinstance(optimizer, Optimizer):
        return optimizer(trained) if lr is None else optimizer(trained, lr=lr)
    if lr is not None:
        raise InputError("lr", "the optimizer has its own", "set it there, or pass its class")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held & {id(p) for p in trained}:
        problem = "it holds none of the parameters to train"
        raise InputError("optimizer", problem, "build it from the compressed model's parameters")
    return optimizer


def _check_teacher(teacher: nn.Module, trained: Sequence[nn.Parameter]) -> None:
    ours = {id(p) for p in trained}
    for name, parameter in teacher.named_parameters():
        if id(parameter) in ours:
            problem = f"it shares {name} with the model that is trained"
            raise InputError("teacher", problem, "pass a model of its own, such as the dense one")


def _check_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InputError(name, f"is {value!r}", "pass a whole number of at least 1")


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            raise InputError(name, f"is {number!r}", "pass a number above 0")


def _several(teacher: object) -> list[nn.Module]:
    """The teachers.

    Raises:
        InputError: one is no model, or there are none.
    """
    found = [teacher] if isinstance(teacher, nn.Module) else teacher
    if not isinstance(found, list | tuple) or not all(isinstance(t, nn.Module) for t in found):
        raise InputError("teacher", f"{teacher!r} is no model", "pass the dense one")
    if not found:
        raise InputError("teacher", "there is none", "pass the dense model")
    return list(found)


def _check_flows(flows: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    if isinstance(flows, str) or any(isinstance(p, str) or len(p) != 2 for p in flows):
        problem = f"{flows!r} are no pairs of layers"
        raise InputError("flows", problem, 'pass [("layer1", "layer2")], say')
    return tuple((first, last) for first, last in flows)


def _check_weights(label_weight: float, hint_weight: float, name: str = "hint_weight") -> None:
    if not 0 <= label_weight <= 1:
        raise InputError("label_weight", f"is {label_weight!r}", "pass a number in [0, 1]")
    if not 0 <= hint_weight < math.inf:
        raise InputError(name, f"is {hint_weight!r}", "pass a number of at least 0")


def _check_arguments(
    val: Any,
    patience: int | None,
    loss: Loss,
    amp: torch.dtype | None,
    optimizer: object,
    schedule: object,
) -> None:
    if patience is not None and val is None:
        raise InputError("patience", "there is no val to wait for", "pass val, or drop patience")
    if not callable(optimizer) and not isinstance(optimizer, Optimizer | None):
        advice = "pass what builds one, such as lowrank.SOAP"
        raise InputError("optimizer", f"is {optimizer!r}", advice)
    if not callable(schedule):
        advice = "pass a function of the share in [0, 1]"
        raise InputError("schedule", f"is {schedule!r}", advice)
    if not callable(loss) and loss not in ("kl", "mse"):
        raise InputError("loss", f"is {loss!r}", 'pass "kl", "mse" or a function')
    if amp is not None and amp not in _HALF:
        raise InputError("amp", f"is {amp!r}", "pass torch.bfloat16, torch.float16 or None")


@contextmanager
def _bar(progress: Progress | bool) -> Iterator[Progress]:
    """What to tell the progress to: the caller's function, a bar, or nothing."""
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda what, done, total: None
    else:
        from rich.progress import Progress as Bar

        with Bar() as bar:
            task = bar.add_task("fine-tuning", total=None)
            yield lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            )
