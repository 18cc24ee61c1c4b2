"""How far the outputs of a compressed model are from those of the dense one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
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
from lowrank.compression.network.tensors import flatten, tensors
from lowrank.errors import InputError
from lowrank.linalg import wide

Scorer: TypeAlias = Callable[[nn.Module], float]
"""The user's own quality of a model, the higher the better: accuracy, for instance."""


Loss: TypeAlias = Callable[[Any], Tensor]
"""From a model's output on a batch to the sum of the examples' losses."""


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


class Unmatched(InputError):
    """Outputs of which nothing can be compared."""


def unmatched(what: str) -> Unmatched:
    """Says what there is in place of outputs that can be compared."""
    advice = "pass Calibration(loss=), or a function of a model as its weighting or as metric="
    return Unmatched("model", f"its outputs cannot be compared: {what}", advice)


@dataclass(frozen=True)
class Quality:
    """Outputs of the compressed model against the dense one's.

    Args:
        relative_error: ||y' - y|| / ||y|| over all floating-point outputs.
        agreement: share of positions in [0, 1] at which the largest entry along the last
            (for pictures: channel) axis of the first output is the same; None where that
            axis has one entry or is that of the examples, and where outputs are no choice:
            sigmoids, embeddings of length one, or boxes beside probabilities of classes.
        kl: mean Kullback-Leibler divergence KL(dense || compressed) of the softmax over that
            axis, in nats; meaningful for classifiers.
        n_examples: how many examples the figures stand on.
        scores: the first output holds class scores; see `is_scores`.
        held_out: none of the examples was used to compress the model.
        others: ||y' - y||^2 / ||y||^2 of the outputs behind the first, summed.
        unmatched: share in [0, 1] of the outputs that are left out, as they have another
            shape: a detector's, say, whose length depends on what is found.
    """

    relative_error: float
    agreement: float | None
    kl: float
    n_examples: int
    scores: bool = False
    held_out: bool = True
    others: float = 0.0
    unmatched: float = 0.0

    @property
    def loss(self) -> float:
        """How far the outputs are off: the error; where the first is class scores, their
        divergence and the squared error of the others. What is left out counts as lost."""
        off = self.kl + self.others if self.scores else self.relative_error
        return off + self.unmatched

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
        Unmatched: there is nothing in the outputs that can be compared.
    """
    batches: Iterable[Example]
    if data is not None:
        batches = Inputs(Batches.of(data, Form.of(example), once=True))
    elif example is not None:
        batches = [example]
    else:
        return None
    return compare_on(dense, small, batches)


def compare_on(
    dense: nn.Module,
    small: nn.Module,
    batches: Iterable[Example],
    loss: Loss | None = None,
    *,
    wanted: Sequence[Any] | None = None,
) -> Quality:
    """Quality on batches of inputs in the form that the models take; see `quality_of`.

    Args:
        dense: the model to compare with.
        small: the other.
        batches: inputs.
        loss: of an output, which is compared where no output has the same shape.
        wanted: what the dense model gives on each batch, where that is known.
    """
    pairs = (
        (run(dense, batch) if wanted is None else wanted[k], run(small, batch))
        for k, batch in enumerate(batches)
    )
    return quality_of(pairs, vocabularies(dense), loss)


def quality_of(
    pairs: Iterable[tuple[Any, Any]], words: Collection[int] = (), loss: Loss | None = None
) -> Quality:
    """Quality from the outputs themselves: of all that have the same shape in both models.

    Args:
        pairs: the dense model's output on a batch, and the compressed one's.
        words: from `vocabularies`, of the dense model.
        loss: of an output, which is compared where no output has the same shape.

    Raises:
        InputError: no pair.
        Unmatched: no output can be compared.
    """
    found = _Compared(words)
    losses: list[tuple[float, float]] = []
    for wanted, given in pairs:
        found.add(flatten(wanted), flatten(given))
        if loss is not None:
            losses.append((float(loss(wanted)), float(loss(given))))
    if not found.batches:
        raise InputError("data", "it holds no batch", "pass at least one")
    if found.energy:
        return found.quality()
    if losses:
        off = _ratio(sum((b - a) ** 2 for a, b in losses), sum(a**2 for a, _ in losses)) ** 0.5
        return Quality(off, None, 0.0, found.n or len(losses), unmatched=1.0)
    raise unmatched(found.why)


class _Compared:
    """Sums over the outputs of pairs of models."""

    def __init__(self, words: Collection[int]) -> None:
        self.words = words
        self.lost: dict[int, float] = {}
        self.energy: dict[int, float] = {}
        self.kl = 0.0
        self.agree = self.positions = self.n = self.batches = 0
        self.seen = self.left = 0
        self.scores = self.classes = self._shares = self._choice = False
        self.why = "there is no floating-point tensor among them"

    def add(self, expected: Sequence[Tensor], got: Sequence[Tensor]) -> None:
        """Add the outputs of one batch."""
        self.batches += 1
        self.seen += len(expected)
        self.left += max(len(expected) - len(got), 0)
        if len(expected) != len(got):
            self.why = f"{len(got)} floating-point tensors in place of {len(expected)}"
        for k, (a, b) in enumerate(zip(expected, got, strict=False)):
            if a.shape != b.shape or not a.numel():
                self.left += 1
                self.why = f"{tuple(b.shape)} in place of {tuple(a.shape)}"
                continue
            a = wide(a)
            self.lost[k] = self.lost.get(k, 0.0) + _energy(a - b.to(a))
            self.energy[k] = self.energy.get(k, 0.0) + _energy(a)
            if not k:
                self._add_first(a, b, expected[1:])

    def _add_first(self, expected: Tensor, got: Tensor, others: Sequence[Tensor]) -> None:
        if self.batches == 1:
            self.scores = is_scores(expected, self.words, others)
            self._shares = self.scores and is_distribution(expected)
            self._choice = self.scores or not no_choice(expected, others)
        p, q = (_scores(logits(x, self._shares)) for x in (expected, got))
        self.classes = self._choice and p.shape[-1] > 1
        self.agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        self.positions += p[..., 0].numel()
        self.kl += float(
            F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)
        )
        self.n += expected.shape[0] if expected.ndim else 1

    def quality(self) -> Quality:
        """What the sums amount to."""
        lost, energy = self.lost, self.energy
        return Quality(
            _ratio(sum(lost.values()), sum(energy.values())) ** 0.5,
            self.agree / self.positions if self.classes else None,
            max(self.kl / self.positions, 0.0) if self.positions else 0.0,
            self.n or self.batches,
            self.scores,
            others=sum(_ratio(lost[k], energy[k]) for k in lost if k),
            unmatched=self.left / self.seen,
        )


def _energy(x: Tensor) -> float:
    """Sum of squares, in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _ratio(lost: float, energy: float) -> float:
    return lost / energy if energy else lost


def is_scores(output: Tensor, words: Collection[int] = (), others: Sequence[Tensor] = ()) -> bool:
    """Whether an output is taken for class scores.

    That is a matrix with more than one column, or for each place of a sequence as many
    numbers as the model knows words: logits, or probabilities whose rows sum to one. Numbers
    within [0, 1] that sum to something else, as of sigmoids, are no choice among classes, nor
    are embeddings: rows of length one.

    Args:
        output: the first one of a model.
        words: from `vocabularies`.
        others: its outputs behind the first.
    """
    matrix = output.ndim == 2 and output.shape[1] > 1
    if not matrix and not scores_words(output, words):
        return False
    return not no_choice(output, others)


def no_choice(output: Tensor, others: Sequence[Tensor] = ()) -> bool:
    """Whether the largest number of a row is no answer.

    That is so for sigmoids, for unit vectors, and where another output has the answer: the
    boxes of a detector that gives probabilities of classes beside them.

    Args:
        output: the first one of a model.
        others: its outputs behind the first.
    """
    if is_distribution(output):
        return False
    return is_shares(output) or _is_unit(output) or any(_answers(y, output) for y in others)


def _answers(output: Tensor, first: Tensor) -> bool:
    """Whether an output holds probabilities of classes, other than the softmax of the first."""
    if output.ndim != first.ndim or output.ndim not in (2, 4, 5) or not is_distribution(output):
        return False
    p, x = _scores(output), _scores(first)
    if p.shape[-1] < 2 or p.shape[:-1] != x.shape[:-1]:
        return False
    tol = _rounding(output)
    return p.shape != x.shape or not torch.allclose(wide(p), wide(x).softmax(-1), rtol=0, atol=tol)


def _is_unit(output: Tensor) -> bool:
    """Whether all rows of a matrix have length one, and are too many numbers for chance."""
    if output.ndim != 2 or not output.is_floating_point() or output.numel() < _FEW:
        return False
    lengths = torch.linalg.vector_norm(output, dim=1, dtype=torch.float64)
    return bool(((lengths - 1).abs() < _rounding(output)).all()) and not is_distribution(output)


def _rounding(output: Tensor) -> float:
    """How far sums of rows are from one by rounding, at most."""
    return 1e-3 if output.dtype in (torch.float32, torch.float64) else 3e-2


_FEW = 32
"""Numbers below which it may be chance that all lie within [0, 1], or rows have length one."""


def is_shares(output: Tensor) -> bool:
    """Whether all numbers of an output lie within [0, 1], not all of them 0, and are too many
    for chance."""
    if not output.is_floating_point():  # complex, say
        return False
    inside = output.numel() >= _FEW and bool(((output >= 0) & (output <= 1)).all())
    return inside and bool(output.any())


def is_distribution(output: Tensor) -> bool:
    """Whether an output holds probabilities of classes, not logits: along its last axis, or the
    channel axis of pictures.

    Example:
        >>> is_distribution(torch.randn(16, 4).softmax(-1)), is_distribution(torch.rand(16, 4))
        (True, False)
    """
    if not is_shares(output):
        return False
    return bool(((_scores(output).sum(-1) - 1).abs() < _rounding(output)).all())


def logits(output: Tensor, distribution: bool) -> Tensor:
    """Scores of classes, of which the softmax gives probabilities: the logarithm of an output that
    holds these, by `is_distribution`; any other as it is."""
    found = wide(output)
    return found.clamp_min(_LEAST).log() if distribution else found


_LEAST = 1e-8
"""Probability below which all count as equal."""


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def scores_words(output: Tensor, words: Collection[int]) -> bool:
    """Whether an output has a score for every word at each place of a sequence.

    Args:
        output: the first one of a model.
        words: from `vocabularies`.

    Example:
        >>> scores_words(torch.zeros(2, 7, 50), {50}), scores_words(torch.zeros(2, 7, 8), {50})
        (True, False)
    """
    return output.ndim == 3 and output.shape[2] in words


def speaks(model: nn.Module, example: Example) -> bool:
    """Whether a model's first output scores words, as that of a language model does.

    Tables hold more than words (places, kinds of token, queries of a detector): what is scored
    must be what is read, integers below the number of scores, and more than two.

    Args:
        model: run once on the example if it has a table of as many words as that.
        example: a small one.
    """
    words = vocabularies(model)
    if not words:
        return False
    largest = [int(t.max()) for t in tensors(example) if t.dtype in _INTEGERS and t.numel()]
    words = frozenset(n for n in words if n > 2 and any(most < n for most in largest))
    found = flatten(run(model, example)) if words else []
    return bool(found) and scores_words(found[0], words)


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
