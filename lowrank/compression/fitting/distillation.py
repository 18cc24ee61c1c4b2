"""What a student is trained towards: its teacher's outputs, labels, features inside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.gauges.quality import is_distribution, logits, no_choice
from lowrank.compression.network.batches import Batch, placed
from lowrank.compression.network.example import call, evaluating
from lowrank.compression.network.tensors import describe, flatten
from lowrank.compression.structure.history import history
from lowrank.errors import InputError
from lowrank.linalg import wide

_NONE = 1e-30
"""Mean square up to which a tensor is zero."""


_ADVICE = (
    "pass the model that was compressed as its teacher, or a function as loss where lengths "
    "depend on the data"
)


Loss: TypeAlias = Literal["kl", "mse"] | Callable[[Any, Any], Tensor]
"""How far the student's output is from the teacher's."""


Teachers: TypeAlias = nn.Module | Sequence[nn.Module]
"""One model, or several that are averaged."""


@dataclass(frozen=True)
class Objective:
    """The loss of one batch: (1 - label_weight) * distillation + label_weight * labels
    + hint_weight * hints; without labels, distillation + hint_weight * hints.

    Args:
        loss: distillation term. "kl": T^2 KL(softmax(teacher / T) || softmax(student / T)),
            mean over positions, of the first output, whose classes are on its last axis (for
            pictures, on its channel axis), and `relative_mse` of the others, and of the first
            where it has no such axis, or one class, or its largest number is no answer (see
            `no_choice`); probabilities are taken as such. "mse": that of every output. Or a
            function of the student's and the teacher's output.
        temperature: T, above 0.
        label_weight: in [0, 1]. The label term is cross-entropy (for "kl" and for whole-number
            labels), else `relative_mse`; a model whose forward takes `labels` computes it.
        hints: names of layers, in both models, whose outputs are to agree in `relative_mse`.
        hint_weight: at least 0.
        flows: pairs of names of layers whose flow is to agree in `relative_mse`: the products of
            their channels, mean over places, (batch, m, n); see `flow_between`.
        flow_weight: at least 0.

    Source: Hinton, Vinyals, Dean 2015, section 2.1; hints: Romero et al. 2015, equation 3,
    without a regressor, since a compressed layer has its dense layer's output shape.
    """

    loss: Loss = "kl"
    temperature: float = 4.0
    label_weight: float = 0.0
    hints: tuple[str, ...] = ()
    hint_weight: float = 1.0
    flows: tuple[tuple[str, str], ...] = ()
    flow_weight: float = 1.0

    @property
    def _watched(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.hints, *(n for pair in self.flows for n in pair))))

    def terms(self, student: nn.Module, teacher: Teachers, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms, whose sum is the loss; the student runs in its present mode.

        Of several teachers the mean of the distillation counts; hints and flows are the first's.
        """
        first, *others = [teacher] if isinstance(teacher, nn.Module) else teacher
        with evaluating(first), _captured(first, self._watched, "teacher") as wanted:
            targets = [call(first, placed(batch.inputs, first), name="data")]
        for other in others:
            with evaluating(other):
                targets.append(call(other, placed(batch.inputs, other), name="data"))
        labels = batch.labels if self.label_weight else None
        with _captured(student, self._watched, "model") as features:
            output, label_loss = self._student(student, batch, labels)
        wanted = {n: _of_those_left(student, n, features[n], wanted[n]) for n in self._watched}
        keep = 0.0 if label_loss is None else self.label_weight
        one, *more = [self._distillation(output, target) for target in targets]
        whole = sum(more, one) / len(targets) if more else one
        terms = {"distillation": (1 - keep) * whole}
        if label_loss is not None:
            terms["labels"] = keep * label_loss
        if self.hints:
            pairs = ([f[name] for name in self.hints] for f in (features, wanted))
            terms["hints"] = self.hint_weight * relative_mse(*pairs)
        if self.flows:
            flows = ([flow_between(f[a], f[b]) for a, b in self.flows] for f in (features, wanted))
            terms["flows"] = self.flow_weight * relative_mse(*flows)
        return terms

    def _student(
        self, student: nn.Module, batch: Batch, labels: Tensor | None
    ) -> tuple[Any, Tensor | None]:
        """The student's output, and its loss on the labels."""
        inputs = placed(batch.inputs, student)
        if labels is None:
            return call(student, inputs, name="data"), None
        if (
            isinstance(inputs, Mapping)
            and "labels" in inspect.signature(student.forward).parameters
        ):
            inputs = {**inputs, "labels": placed(labels, student)}
            output = dict(call(student, inputs, name="data"))
            return output, output.pop("loss")  # transformers: shifted by a token, masked, ...
        output = call(student, inputs, name="data")
        return output, self._label_loss(_floating(output)[0], labels)

    def _distillation(self, output: Any, target: Any) -> Tensor:
        if callable(self.loss):
            return self.loss(output, target)
        ours, theirs = _floating(output), _floating(target)
        first, *others = theirs
        if self.loss == "mse" or _n_classes(first) < 2 or no_choice(first, others):
            return relative_mse(ours, theirs)
        shares = is_distribution(first)
        student, teacher = (logits(y[0], shares) for y in (ours, theirs))
        divergence = softened_kl(student, teacher, self.temperature)
        return divergence + relative_mse(ours[1:], theirs[1:]) if ours[1:] else divergence

    def _label_loss(self, output: Tensor, labels: Tensor) -> Tensor:
        output = wide(output)
        labels = labels.to(output.device)
        try:
            if self.loss != "kl" and labels.is_floating_point():
                if output.shape != labels.shape:
                    raise ValueError("other shapes")
                return relative_mse([output], [labels])
            scores = output if output.ndim in (1, 2, 4, 5) else output.flatten(0, -2)
            return F.cross_entropy(scores, labels if scores is output else labels.flatten())
        except (RuntimeError, ValueError, IndexError) as error:
            problem = f"labels {describe(labels)} do not fit the output {describe(output)}: {error}"
            raise InputError("data", problem, "mend the labels, or set label_weight=0") from error


def _floating(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, of which there has to be one."""
    found = flatten(output)
    if not found:
        problem = f"it returns no floating-point tensor, but {describe(output)}"
        raise InputError("model", problem, "pass a function of both outputs as loss")
    return found


def _n_classes(output: Tensor) -> int:
    if not output.ndim:
        return 1
    return output.shape[1 if output.ndim >= 4 else -1]


def softened_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over positions.

    The factor T^2 keeps the gradient's size the same at every temperature.

    Args:
        student: scores, classes on the last axis; (batch, classes, h, w) for pictures.
        teacher: the same shape.
        temperature: above 0.

    Source: Hinton, Vinyals, Dean 2015, section 2.1.

    Example:
        >>> softened_kl(torch.zeros(4, 10), torch.zeros(4, 10), temperature=4.0)
        tensor(0.)
    """
    _check_same("the output", student, teacher)
    axis = 1 if student.ndim >= 4 else -1
    p = (wide(teacher).to(student.device) / temperature).log_softmax(axis)
    q = (wide(student) / temperature).log_softmax(axis)
    total = F.kl_div(q, p, reduction="sum", log_target=True)
    return temperature**2 * total * (student.shape[axis] / student.numel())


def relative_mse(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over the pairs of ||s - t||^2 / ||t||^2, so that outputs of any scale weigh the same;
    of ||s - t||^2 / n where t, of n numbers, is zero.

    Example:
        >>> relative_mse([torch.tensor([1.0, 1.0])], [torch.tensor([2.0, 0.0])])
        tensor(0.5000)
    """
    if len(student) != len(teacher) or not student:
        problem = f"{len(student)} floating-point outputs against the teacher's {len(teacher)}"
        raise InputError("model", problem, _ADVICE)
    losses = []
    for ours, theirs in zip(student, teacher, strict=True):
        _check_same("an output", ours, theirs)
        s, t = wide(ours), wide(theirs).to(ours.device)
        energy = t.square().mean()
        losses.append((s - t).square().mean() / torch.where(energy > _NONE, energy, 1.0))
    return torch.stack(losses).mean()


def flow_between(first: Tensor, last: Tensor) -> Tensor:
    """The products of two layers' channels, mean over places, (batch, m, n).

    Of pictures the larger one is pooled to the other's size; of rows channels are on the last axis.

    Args:
        first: (batch, m, *places), or (batch, ..., m) of fewer than four axes.
        last: likewise of n channels.

    Source: Yim et al., CVPR 2017, equation 1.

    Example:
        >>> flow_between(torch.ones(2, 3, 8, 8), torch.ones(2, 5, 4, 4)).shape
        torch.Size([2, 3, 5])
    """
    if first.ndim == last.ndim == 4:
        size = min(first.shape[2], last.shape[2]), min(first.shape[3], last.shape[3])
        a, b = (F.adaptive_avg_pool2d(x, size).flatten(2) for x in (first, last))
    else:
        a, b = (x.reshape(len(x), -1, x.shape[-1]).mT for x in (first, last))
    if a.shape[2] != b.shape[2]:
        problem = f"no flow between {tuple(first.shape)} and {tuple(last.shape)}"
        raise InputError("flows", problem, "name layers of as many places")
    return a @ b.mT / a.shape[2]


def check_hints(hints: Sequence[str], **models: nn.Module) -> None:
    """Refuse names of layers that one of the models lacks.

    Raises:
        InputError: says which name, and which model.
    """
    if isinstance(hints, str):
        raise InputError("hints", f"is the string {hints!r}", "pass a list of layer names")
    for where, model in models.items():
        known = dict(model.named_modules())
        for name in hints:
            if name not in known:
                raise InputError("hints", f"the {where} has no layer {name!r}", "mend the name")


def _of_those_left(student: nn.Module, name: str, ours: Tensor, theirs: Tensor) -> Tensor:
    """What the teacher gives on the channels that a narrower student still has.

    Where a module is named, the last layer in it that lost channels tells which.
    """
    differ = [k for k, (a, b) in enumerate(zip(ours.shape, theirs.shape, strict=False)) if a != b]
    if ours.ndim != theirs.ndim or len(differ) != 1:
        return theirs
    axis = differ[0]
    inside = [
        what.outputs or what.inputs
        for applied in history(student)
        for layer, what in sorted(applied.plan.narrowed.items(), key=_place(student))
        if layer == name or layer.startswith(f"{name}.")
    ]
    for kept in reversed(inside):
        if kept and (len(kept.places), kept.of) == (ours.shape[axis], theirs.shape[axis]):
            return theirs.index_select(axis, torch.tensor(kept.places, device=theirs.device))
    return theirs


def _place(model: nn.Module) -> Callable[[tuple[str, Any]], int]:
    """Where a layer stands in a model."""
    places = {name: k for k, (name, _) in enumerate(model.named_modules())}
    return lambda item: places.get(item[0], -1)


@contextmanager
def _captured(model: nn.Module, names: Sequence[str], where: str) -> Iterator[dict[str, Tensor]]:
    """What the named layers return, filled in by the forward passes inside the context."""
    features: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found = flatten(output)
            if found:
                features[name] = found[0]

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    try:
        yield features
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in names if name not in features]
    if missing:
        problem = f"{missing[0]!r} returns no floating-point tensor in a pass of the {where}"
        raise InputError("hints", problem, "name a layer that does")


def _check_same(what: str, ours: Tensor, theirs: Tensor) -> None:
    if ours.shape != theirs.shape:
        problem = f"{what} is {tuple(ours.shape)} against the teacher's {tuple(theirs.shape)}"
        raise InputError("model", problem, _ADVICE)
