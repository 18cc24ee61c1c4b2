"""Train a compressed model to agree with the dense one again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import AdamW, Optimizer

from lowrank.compression.apply import history
from lowrank.compression.batches import Batch, Batches
from lowrank.compression.batchnorm import Measure, batch_norms, improves, measure_on
from lowrank.compression.codes import free_codes
from lowrank.compression.curves import Progress
from lowrank.compression.distillation import Loss, Objective, check_hints
from lowrank.compression.example import describe, evaluating
from lowrank.compression.int8 import int8_layers
from lowrank.compression.plan import Dense
from lowrank.errors import InputError

_LR = 2e-4  # AdamW; at 1e-3 a network that is near its teacher only moves away from it
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


def cosine(t: float) -> float:
    """Learning-rate multiplier at a share t of the training: short rise, then half a cosine.

    Example:
        >>> [round(cosine(t), 2) for t in (0.0, 0.05, 0.5, 1.0)]
        [0.1, 0.99, 0.5, 0.0]
    """
    rise = min(1.0, 0.1 + 0.9 * t / 0.05)
    return rise * (1 + math.cos(math.pi * t)) / 2


def finetune(
    model: nn.Module,
    *,
    teacher: nn.Module,
    data: Any,
    epochs: int = 2,
    val: Any = None,
    patience: int | None = None,
    loss: Loss = "kl",
    temperature: float = 4.0,
    label_weight: float = 0.1,
    hints: Sequence[str] = (),
    hint_weight: float = 1.0,
    mix: bool = False,
    optimizer: Optimizing | None = None,
    lr: float | None = None,
    schedule: Callable[[float], float] = cosine,
    max_norm: float | None = 1.0,
    amp: torch.dtype | None = None,
    only_factors: bool = False,
    codes: bool = False,
    recalibrate: bool = True,
    batch_size: int = 64,
    seed: int = 0,
    callback: Callable[[Epoch], object] | None = None,
    progress: Progress | bool = False,
) -> nn.Module:
    """Train a compressed model, in place, to give its teacher's outputs; returns the model.

    Minimises (1 - label_weight) * distillation + label_weight * labels + hint_weight * hints,
    see `lowrank.compression.distillation.Objective`. Afterwards the model holds the weights
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
        teacher: the dense model; run in evaluation mode, never changed.
        data: a loader or list of batches, a tensor of inputs, or a tuple (inputs, labels) of
            tensors, shuffled and split here; see `lowrank.compression.batches`. Batches are
            moved to the models' devices.
        epochs: times to go through the data.
        val: what decides which epoch is best: batches on which the loss is taken, in
            evaluation mode; a share in (0, 1) to hold out of data given as tensors; or a
            function of the model, the lower the better. Without it the training loss decides.
        patience: stop after so many epochs without a better `val`; None: never.
        loss: "kl" for scores of classes, "mse" for anything else, or a function of the
            student's and the teacher's output.
        temperature: softens both models' scores for "kl".
        label_weight: in [0, 1]; without labels in the data it has no effect.
        hints: layers, by name, whose outputs are to agree as well.
        hint_weight: weight of that.
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
        codes: train which brick each filter of a `LegoNet` layer takes as well, by
            straight-through gradients; else its bricks and coefficients only.
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

    Source: Hinton, Vinyals, Dean 2015; Romero et al. 2015; mixing: Beyer et al. 2022.
    """
    _check_counts(epochs=epochs, patience=patience, batch_size=batch_size)
    _check_positive(temperature=temperature, max_norm=max_norm, lr=lr)
    _check_weights(label_weight, hint_weight)
    _check_arguments(val, patience, loss, amp, optimizer, schedule)
    if not isinstance(teacher, nn.Module):
        raise InputError("teacher", f"{teacher!r} is no model", "pass the dense one")
    if names := int8_layers(model):
        problem = f"{names[0]} is int8, which cannot be trained"
        raise InputError("model", problem, "fine-tune first, then lowrank.quantize")
    check_hints(hints, model=model, teacher=teacher)
    objective = Objective(loss, temperature, label_weight, tuple(hints), hint_weight)
    with ExitStack() as stack:
        if codes:
            stack.enter_context(free_codes(model))
        trained = _trained(model, only_factors)
        _check_teacher(teacher, trained)
        generator = stack.enter_context(_seeded(trained, seed))
        measure = None
        if val is not None:
            data, measure = measure_on(val, data, objective, teacher, batch_size, generator)
        batches = Batches.of(data, size=batch_size, generator=generator)
        trainer = _Trainer(
            model, teacher, objective, batches, mix, trained, epochs, schedule, max_norm, amp,
            _build(optimizer, trained, lr),
        )  # fmt: skip
        trainer.try_out()
        best = _Best(model, trained)
        norms = _free_norms(model) if recalibrate else []
        with best.kept(), _training(model, trained), trainer.rates(), _bar(progress) as shown:
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
    if measure is not None:
        start = time.perf_counter()
        first = measure(trainer.model)
        best.offer(first, 0)
        yield Epoch(0, val=first, seconds=time.perf_counter() - start, best=True)
        yield from _recalibrated(trainer, best, measure, norms)
    for index in range(1, trainer.epochs + 1):
        start = time.perf_counter()
        terms, lr, steps = trainer.epoch(index, shown)
        loss = sum(terms.values())
        val = None if measure is None else measure(trainer.model)
        improved = best.offer(loss if val is None else val, index)
        seconds = time.perf_counter() - start
        yield Epoch(index, loss, terms, val, lr, steps, seconds, improved)
        if patience is not None and index - best.index >= patience:
            break
    if measure is not None:
        best.restore()
        yield from _recalibrated(trainer, best, measure, norms)


def _recalibrated(
    trainer: _Trainer, best: _Best, measure: Measure, norms: Sequence[_BatchNorm]
) -> Iterator[Epoch]:
    """The best weights, which the model holds, with statistics re-estimated if they gain."""
    start = time.perf_counter()
    val = improves(trainer.model, norms, (b.inputs for b in trainer.batches), measure)
    if val is not None and best.offer(val, best.index):
        seconds = time.perf_counter() - start
        yield Epoch(best.index, val=val, seconds=seconds, best=True, recalibrated=True)


@dataclass
class _Trainer:
    """One epoch after the other."""

    model: nn.Module
    teacher: nn.Module
    objective: Objective
    batches: Batches
    mix: bool
    trained: list[nn.Parameter]
    epochs: int
    schedule: Callable[[float], float]
    max_norm: float | None
    amp: torch.dtype | None
    optimizer: Optimizer

    def __post_init__(self) -> None:
        self.device = self.trained[0].device.type
        # Only float16 needs its gradients scaled: bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.amp == torch.float16)

    def try_out(self) -> None:
        """One pass that changes nothing, so that what cannot work fails before training."""
        with evaluating(self.model):
            first = self.batches.first()
            terms = self._terms(first.mixed() if self.mix else first)
        for name, value in terms.items():
            if not isinstance(value, Tensor) or value.ndim:
                problem = f"it returned {describe(value)}"
                raise InputError("loss", problem, "return a tensor of one number, such as a mean")
            _check_finite(value, f"{name} loss", "the first batch")

    def epoch(self, index: int, shown: Progress) -> tuple[dict[str, float], float, int]:
        """Mean of each term over the batches, last learning rate, steps."""
        totals: dict[str, float] = {}
        step = 0
        for step, batch in enumerate(self.batches, 1):
            self._set_rate(index, step)
            terms = self._step(batch.mixed() if self.mix else batch, f"epoch {index}, step {step}")
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value
            if self.batches.steps is not None:
                n = self.batches.steps
                shown(f"epoch {index}", (index - 1) * n + step, self.epochs * n)
        if not step:
            raise InputError("data", f"it gave no batch in epoch {index}", "pass a list or loader")
        means = {name: value / step for name, value in totals.items()}
        return means, self.optimizer.param_groups[0]["lr"], step

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device, dtype=self.amp, enabled=self.amp is not None):
            return self.objective.terms(self.model, self.teacher, batch)

    def _step(self, batch: Batch, when: str) -> dict[str, float]:
        seen: dict[str, float] = {}

        def closure() -> float:
            self.optimizer.zero_grad()
            terms = self._terms(batch)
            loss = torch.stack(list(terms.values())).sum()
            _check_finite(loss, "loss", when)
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.trained, self.max_norm or math.inf)
            if not self.scaler.is_enabled():  # a scaler skips such steps by itself
                _check_finite(norm, "gradient", when)
            seen.update({name: float(value.detach()) for name, value in terms.items()})
            return float(loss.detach())

        with torch.enable_grad():
            if self.scaler.is_enabled():
                closure()
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step(closure)  # a closure, so that L-BFGS works too
        return seen

    def _set_rate(self, index: int, step: int) -> None:
        n = self.batches.steps
        within = 0.5 if n is None else min((step - 1) / n, 1.0)
        factor = self.schedule((index - 1 + within) / self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    @contextmanager
    def rates(self) -> Iterator[None]:
        """The learning rates come back after: the optimizer may be the caller's own."""
        groups = self.optimizer.param_groups
        own = [group.get("initial_lr") for group in groups]
        now = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, now, strict=True):
                group["initial_lr"] = rate
            yield
        finally:
            for group, rate, initial in zip(groups, now, own, strict=True):
                group["lr"], group["initial_lr"] = rate, initial
                if initial is None:
                    del group["initial_lr"]


class _Best:
    """The best weights and buffers so far; at first, those that the model came with."""

    def __init__(self, model: nn.Module, trained: Sequence[Tensor]) -> None:
        self.model, self.trained = model, trained
        self.score, self.index = math.inf, 0
        self._save()

    def _save(self) -> None:
        self.weights = [p.detach().clone() for p in self.trained]
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}

    def offer(self, score: float, index: int) -> bool:
        """Take the present weights if their score is lower; NaN never is."""
        if not score < self.score:
            return False
        self.score, self.index = score, index
        self._save()
        return True

    def restore(self) -> None:
        """Put them into the model."""
        with torch.no_grad():
            for parameter, value in zip(self.trained, self.weights, strict=True):
                parameter.copy_(value)
            for name, value in self.buffers.items():
                self.model.get_buffer(name).copy_(value)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """However the context is left, the model has its best weights after."""
        try:
            yield
        finally:
            self.restore()


def _trained(model: nn.Module, only_factors: bool) -> list[nn.Parameter]:
    """The parameters to train."""
    parts = [model]
    if only_factors:
        names = {
            name: None
            for applied in history(model)
            for name, row in applied.plan.layers.items()
            if not isinstance(row.choice, Dense)
        }
        if not names:
            raise InputError(
                "only_factors", "the model holds no factorized layer", "pass what apply returned"
            )
        parts = [model.get_submodule(name) for name in names]
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


@contextmanager
def _training(model: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[None]:
    """Training mode and gradients for what is trained; flags come back, gradients go."""
    flags = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    frozen = {id(p) for p in model.parameters()} - {id(p) for p in trained}
    try:
        if not model.training:
            for module, _ in flags:
                module.training = not isinstance(module, _BatchNorm)
        for parameter, _ in wanted:
            parameter.grad = None
            parameter.requires_grad_(id(parameter) not in frozen)
        yield
    finally:
        for module, flag in flags:
            module.training = flag
        for parameter, flag in wanted:
            parameter.grad = None
            parameter.requires_grad_(flag)


@contextmanager
def _seeded(trained: Sequence[Tensor], seed: int) -> Iterator[torch.Generator]:
    """Everything random from the seed; the caller's random state comes back after."""
    devices = sorted({p.device.index for p in trained if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


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


def _check_finite(value: Tensor, what: str, when: str) -> None:
    if not bool(torch.isfinite(value)):
        raise InputError(
            "finetune",
            f"the {what} is {value.item()} at {when}",
            "the best weights so far are kept; lower lr, or look for bad values in the data",
        )


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


def _check_weights(label_weight: float, hint_weight: float) -> None:
    if not 0 <= label_weight <= 1:
        raise InputError("label_weight", f"is {label_weight!r}", "pass a number in [0, 1]")
    if not 0 <= hint_weight < math.inf:
        raise InputError("hint_weight", f"is {hint_weight!r}", "pass a number of at least 0")


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
