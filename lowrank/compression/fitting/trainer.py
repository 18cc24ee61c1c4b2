"""The training loop that fine-tuning and refinement share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from lowrank.compression.fitting.distillation import Objective, Teachers
from lowrank.compression.fitting.penalty import Penalty
from lowrank.compression.network.batches import Batch, Batches
from lowrank.compression.network.example import evaluating, first_line
from lowrank.compression.network.tensors import describe
from lowrank.errors import InputError, LowRankError
from lowrank.progress import Progress

_FIRST = "epoch 1, step 1"


@dataclass
class _Trainer:
    """One epoch after the other."""

    model: nn.Module
    teacher: Teachers
    objective: Objective
    batches: Batches
    mix: bool
    trained: list[nn.Parameter]
    epochs: int
    schedule: Callable[[float], float]
    max_norm: float | None
    amp: torch.dtype | None
    optimizer: Optimizer
    penalty: Penalty | None = None

    def __post_init__(self) -> None:
        self.device = self.trained[0].device.type
        # Only float16 needs its gradients scaled: bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.amp == torch.float16)

    def try_out(self, n_examples: int = 1) -> None:
        """One pass that changes nothing, so that what cannot work fails before training; keeps
        so many of the first examples."""
        self.first: list[Batch] = []
        for batch in map(Batch.to_train, self.batches):
            self.first.append(batch)
            if sum(map(len, self.first)) >= n_examples:
                break
        if not self.first:
            raise InputError(self.batches.name, "it holds no batch", "pass at least one")
        with evaluating(self.model):
            first = self.first[0]
            terms = self._terms(first.mixed() if self.mix else first)
        for name, value in terms.items():
            if not isinstance(value, Tensor) or value.ndim:
                problem = f"it returned {describe(value)}"
                raise InputError("loss", problem, "return a tensor of one number, such as a mean")
            _check_finite(value, f"{name} loss", "the first batch")

    def loss_in_use(self) -> float:
        """Of the model in evaluation mode, on what it was tried out on."""
        with evaluating(self.model):
            losses = [sum(self._terms(b).values(), torch.zeros(())) for b in self.first]
        weighted = (float(x) * len(b) for x, b in zip(losses, self.first, strict=True))
        return sum(weighted) / sum(map(len, self.first))

    def epoch(self, index: int, shown: Progress) -> tuple[dict[str, float], float, int]:
        """Mean of each term over the batches, last learning rate, steps."""
        totals: dict[str, float] = {}
        step = 0
        for step, batch in enumerate(map(Batch.to_train, self.batches), 1):
            self._set_rate(index, step)
            batch = batch.mixed() if self.mix else batch
            with self._as_tried_out(batch) if index == step == 1 else nullcontext():
                terms = self._step(batch, f"epoch {index}, step {step}")
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + value
            if self.batches.steps is not None:
                n = self.batches.steps
                shown(f"epoch {index}", (index - 1) * n + step, self.epochs * n)
        if not step:
            raise InputError("data", f"it gave no batch in epoch {index}", "pass a list or loader")
        means = {name: value / step for name, value in totals.items()}
        return means, self.optimizer.param_groups[0]["lr"], step

    @contextmanager
    def _as_tried_out(self, batch: Batch) -> Iterator[None]:
        """Say what is wrong with a first step that fails though `try_out` did not."""
        try:
            yield
        except Exception as error:
            if isinstance(error, LowRankError) and error.where == "finetune":
                raise
            reason = error.problem if isinstance(error, LowRankError) else first_line(error)
            try:
                with torch.no_grad():
                    self._terms(batch)
            except LowRankError as again:
                problem = f"in training mode it is another: {again.problem}"
                advice = "pass training=False, to train it as it will be used, or a loss"
                raise InputError("model", problem, advice) from error
            problem = f"no gradients can be had: {reason}"
            raise InputError(
                "model", problem, "train a model that can be differentiated"
            ) from error

    def _terms(self, batch: Batch) -> dict[str, Tensor]:
        with torch.autocast(self.device, dtype=self.amp, enabled=self.amp is not None):
            return self.objective.terms(self.model, self.teacher, batch)

    def _back(self, loss: Tensor, when: str) -> None:
        """Gradients of the loss. The first step has a longer explanation, see `_as_tried_out`."""
        try:
            self.scaler.scale(loss).backward()
        except RuntimeError as error:
            if when == _FIRST or isinstance(error, torch.OutOfMemoryError):
                raise
            problem = f"no gradients can be had: {first_line(error)}"
            raise InputError(when, problem, "train a model that can be differentiated") from error

    def _step(self, batch: Batch, when: str) -> dict[str, float]:
        seen: dict[str, float] = {}

        def closure() -> float:
            self.optimizer.zero_grad()
            terms = self._terms(batch)
            loss = torch.stack(list(terms.values())).sum()
            _check_finite(loss, "loss", when)
            self._back(loss, when)
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
        if self.penalty is not None:
            self.penalty.step(self.model, self.optimizer.param_groups[0]["lr"])
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


@contextmanager
def _training(
    model: nn.Module, trained: Sequence[nn.Parameter], training: bool = True
) -> Iterator[None]:
    """The mode, and gradients for what is trained; flags come back, gradients go."""
    flags = [(module, module.training) for module in model.modules()]
    wanted = [(p, p.requires_grad) for p in model.parameters()]
    frozen = {id(p) for p in model.parameters()} - {id(p) for p in trained}
    try:
        if not model.training or not training:
            for module, _ in flags:
                module.training = training and not isinstance(module, _BatchNorm)
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


def _check_finite(value: Tensor, what: str, when: str) -> None:
    if not bool(torch.isfinite(value)):
        raise InputError(
            "finetune",
            f"the {what} is {value.item()} at {when}",
            "the best weights so far are kept; lower lr, or look for bad values in the data",
        )
