"""How far the outputs of a compressed model are from those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from math import inf, isfinite
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.network.batches import Batch, Batches, Form, Inputs
from lowrank.compression.network.example import Example, run
from lowrank.compression.network.tensors import flatten
from lowrank.errors import InputError
from lowrank.linalg import wide

Scorer: TypeAlias = Callable[[nn.Module], float]
"""The user's own quality of a model, the higher the better: accuracy, for instance."""


def score(scorer: Scorer, model: nn.Module, whose: str) -> float:
    """The user's quality of a model.

    Args:
        scorer: what gives it.
        model: the dense one or a compressed one.
        whose: "the dense model", say, for the message.

    Raises:
        InputError: it is no number, NaN or infinite.
    """
    given: object = scorer(model)
    try:
        found = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"of {whose} it is {given!r}, which is no number"
        raise InputError("metric", problem, "return a finite number") from error
    if not isfinite(found):
        raise InputError("metric", f"of {whose} it is {found}", "return a finite number")
    return found


def check_metric(metric: object) -> None:
    """Refuse what is no quality of a model.

    Raises:
        InputError: says so.
    """
    if not callable(metric):
        problem = f"{metric!r} is no function of a model"
        raise InputError("metric", problem, "pass one, the higher the better: accuracy, say")


def check_drop(metric: object, most: object) -> None:
    """Refuse a metric that is none, or a drop that is no number from 0 up.

    Raises:
        InputError: says so.
    """
    check_metric(metric)
    number = isinstance(most, Real) and not isinstance(most, bool)
    if not number or not 0 <= float(most) < inf:  # type: ignore[arg-type]
        raise InputError("max_drop", f"{most!r} is no drop from 0 up", "give 0.01, say")


@dataclass(frozen=True)
class Quality:
    """Outputs of the compressed model against the dense one's.

    Args:
        relative_error: ||y' - y|| / ||y|| over all floating-point outputs.
        agreement: share of positions in [0, 1] at which the largest entry along the last
            (for pictures: channel) axis of the first output is the same; None where that
            axis has one entry or is that of the examples.
        kl: mean Kullback-Leibler divergence KL(dense || compressed) of the softmax over that
            axis, in nats; meaningful for classifiers.
        n_examples: how many examples the figures stand on.
        scores: the first output holds class scores; see `is_scores`.
        held_out: none of the examples was used to compress the model.
        others: ||y' - y||^2 / ||y||^2 of the outputs behind the first, summed.
    """

    relative_error: float
    agreement: float | None
    kl: float
    n_examples: int
    scores: bool = False
    held_out: bool = True
    others: float = 0.0

    @property
    def loss(self) -> float:
        """How far the outputs are off: the error; where the first is class scores, their
        divergence and the squared error of the others."""
        return self.kl + self.others if self.scores else self.relative_error

    def to_dict(self) -> dict[str, float | None]:
        """The figures as JSON values."""
        return asdict(self)


def compare_outputs(
    dense: nn.Module, small: nn.Module, example: Example | None, data: Any = None
) -> Quality | None:
    """Quality on the data, or on the example where there is none.

    Args:
        dense: the reference.
        small: the compressed model, with outputs of the same structure.
        example: one batch of inputs.
        data: batches of inputs; see `lowrank.compression.network.batches`.

    Returns:
        The figures, or None without example and data.

    Raises:
        InputError: the data is empty, or a batch is refused.
    """
    batches: Iterable[Example]
    if data is not None:
        batches = Inputs(Batches.of(data, Form.of(example), once=True))
    elif example is not None:
        batches = [example]
    else:
        return None
    return compare_on(dense, small, batches)


def compare_on(dense: nn.Module, small: nn.Module, batches: Iterable[Example]) -> Quality:
    """Quality on batches of inputs in the form that the models take."""
    pairs = ((run(dense, batch), run(small, batch)) for batch in batches)
    return quality_of(pairs, vocabularies(dense))


def quality_of(pairs: Iterable[tuple[Any, Any]], words: Collection[int] = ()) -> Quality:
    """Quality from the outputs themselves.

    Args:
        pairs: the dense model's output on a batch, and the compressed one's.
        words: from `vocabularies`, of the dense model.

    Raises:
        InputError: no pair, or one without a floating-point tensor.
    """
    lost: dict[int, float] = {}
    energy: dict[int, float] = {}
    kl = 0.0
    agree = positions = n = 0
    scores = classes = False
    for wanted, given in pairs:
        expected, got = flatten(wanted), flatten(given)
        if not expected:
            raise InputError("model", "it returns no floating-point tensor", "wrap it to do so")
        for k, (a, b) in enumerate(zip(expected, got, strict=True)):
            a = wide(a)
            lost[k] = lost.get(k, 0.0) + _energy(a - b.to(a))
            energy[k] = energy.get(k, 0.0) + _energy(a)
        scores = is_scores(expected[0], words)
        p, q = _scores(expected[0]), _scores(got[0])
        classes = p.shape[-1] > 1
        agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += p[..., 0].numel()
        kl += float(
            F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)
        )
        n += expected[0].shape[0] if expected[0].ndim else 1
    if not n:
        raise InputError("data", "it holds no batch", "pass at least one")
    return Quality(
        _ratio(sum(lost.values()), sum(energy.values())) ** 0.5,
        agree / positions if classes else None,
        max(kl / positions, 0.0),
        n,
        scores,
        others=sum(_ratio(lost[k], energy[k]) for k in lost if k),
    )


def _energy(x: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _ratio(lost: float, energy: float) -> float:
    return lost / energy if energy else lost


def is_scores(output: Tensor, words: Collection[int] = ()) -> bool:
    """Whether an output is taken for class scores.

    That is a matrix with more than one column, or for each place of a sequence as many
    numbers as the model knows words.

    Args:
        output: the first one of a model.
        words: from `vocabularies`.
    """
    if output.ndim == 2:
        return output.shape[1] > 1
    return output.ndim == 3 and output.shape[2] in words


def vocabularies(model: nn.Module) -> frozenset[int]:
    """Sizes of a model's tables of words, but for those that are the width of one as well.

    Example:
        >>> sorted(vocabularies(nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50))))
        [50]
    """
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    widths = {t.embedding_dim for t in tables}
    return frozenset(t.num_embeddings for t in tables) - widths


def positions(output: Any) -> float:
    """At how many positions an example's first output is compared: one for class scores."""
    found = flatten(output)
    if not found:
        return 1.0
    first = _scores(found[0])
    return first[..., 0].numel() / max(1, first.shape[0])


def _scores(output: Tensor) -> Tensor:
    """(positions, classes): the last axis, or the channel axis of pictures."""
    output = output.float()
    if output.ndim >= 4:
        return output.movedim(1, -1)
    return output if output.ndim > 1 else output.reshape(-1, 1)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of right answers of a classifier, in [0, 1]."""
    with torch.no_grad():
        hits = [
            run(model, x).argmax(-1) == y
            for x, y in zip(images.split(250), labels.split(250), strict=True)
        ]
    return float(torch.cat(hits).float().mean())


def labelled_accuracy(data: Any, calibration: int = 256) -> Callable[[nn.Module], float]:
    """Share of right answers on the data behind the calibration examples, or on all of it.

    Args:
        data: batches with a label for each example.
        calibration: examples at the start that models are fitted to.

    Raises:
        InputError: no data, or a batch without labels.
    """
    batches = [] if data is None else [Batch.of(item) for item in data]
    if not batches or any(b.labels is None for b in batches):
        raise InputError(
            "--max-drop", "there are no labels to measure accuracy on", "give --data with labels"
        )
    ends = np.cumsum([len(b) for b in batches])
    for batch in batches:
        assert batch.labels is not None
        if batch.labels.numel() != len(batch):
            shape = tuple(batch.labels.shape)
            problem = f"labels of shape {shape} for {len(batch)} examples"
            raise InputError("--max-drop", problem, "give one whole number for each example")
    held = [b for b, end in zip(batches, ends, strict=True) if end - len(b) >= calibration]

    def accuracy(model: nn.Module) -> float:
        right = total = 0
        for batch in held or batches:
            assert batch.labels is not None
            answers = flatten(run(model, batch.inputs))[0].argmax(-1)
            right += int((answers == batch.labels.flatten().to(answers.device)).sum())
            total += batch.labels.numel()
        return right / total

    return accuracy
