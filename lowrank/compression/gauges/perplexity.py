"""How well a language model predicts a text: perplexity and bits per byte, window by window."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import exp, inf, isnan, log, nan, sqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowrank.compression.gauges.texts import Text, check_whole, documents, token_ids
from lowrank.compression.network.example import evaluating, first_line
from lowrank.errors import InputError
from lowrank.linalg import wide
from lowrank.progress import Progress

_WINDOW = 1024
"""Tokens of a window, where the model takes as many."""

_NUMBERS = 1 << 22
"""Scores that are widened to float32 at a time: 16 megabytes, and as much for their softmax."""


@dataclass(frozen=True)
class Perplexity:
    """What a model loses on a text, in windows.

    Args:
        nats: -log p summed over the tokens that a window scores, for each window.
        counts: how many tokens those are.
        n_bytes: UTF-8 bytes of the text behind its first token.
        window: tokens that the model reads at most.
        stride: from one window's first token to the next's.

    Example:
        >>> found = Perplexity((20.0, 10.0), (10, 10), 60, 10, 10)
        >>> print(found)
        perplexity 4.482 ± 2.241, 0.7213 bits per byte, over 20 tokens in 2 windows of 10, stride 10
    """

    nats: tuple[float, ...] = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    n_bytes: int
    window: int
    stride: int

    @property
    def tokens(self) -> int:
        """Tokens that are scored: each of the text once, but for the first, which nothing
        comes before."""
        return sum(self.counts)

    @property
    def windows(self) -> int:
        """How many windows the text was read in."""
        return len(self.counts)

    @property
    def nats_per_token(self) -> float:
        """The mean of -log p, in nats."""
        return sum(self.nats) / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); Inf where that is beyond a float."""
        return _exp(self.nats_per_token)

    @property
    def bits_per_byte(self) -> float:
        """Bits that a byte of the text costs: the figure that compares tokenizers, too."""
        return sum(self.nats) / log(2) / self.n_bytes if self.n_bytes else nan

    @property
    def standard_error(self) -> float:
        """Of nats per token, from window to window as if they were independent; NaN for one.
        The perplexity's is so many times the perplexity."""
        return _standard_error(self.nats, self.counts)

    @property
    def bits_per_byte_error(self) -> float:
        """The standard error of bits per byte, at the text's mean number of bytes a token."""
        return self.standard_error * self.tokens / log(2) / self.n_bytes if self.n_bytes else nan

    def ratio_to(self, dense: Perplexity) -> tuple[float, float]:
        """Perplexity over another model's on the same windows, and the ratio's standard error.

        Windows that are hard for one model are hard for the other: their difference is surer
        than either.

        Raises:
            InputError: the other read other windows.

        Example:
            >>> dense = Perplexity((20.0, 10.0), (10, 10), 60, 10, 10)
            >>> small = Perplexity((21.0, 11.0), (10, 10), 60, 10, 10)
            >>> [round(figure, 3) for figure in small.ratio_to(dense)]
            [1.105, 0.0]
        """
        own, others = ((*p.counts, p.n_bytes, p.window, p.stride) for p in (self, dense))
        if own != others:
            problem = "it was measured on another text or in other windows"
            raise InputError("dense", problem, "measure both alike")
        more = [a - b for a, b in zip(self.nats, dense.nats, strict=True)]
        ratio = _exp(sum(more) / self.tokens)
        return ratio, ratio * _standard_error(more, self.counts)

    def to_dict(self) -> dict[str, float | int]:
        """The figures as JSON values."""
        return {name: getattr(self, name) for name in _FIGURES}

    def __str__(self) -> str:
        off = (
            "" if isnan(self.standard_error) else f" ± {self.perplexity * self.standard_error:.4g}"
        )
        plural = "" if self.windows == 1 else "s"
        return (
            f"perplexity {self.perplexity:.4g}{off}, {self.bits_per_byte:.4g} bits per byte, over "
            f"{self.tokens:,} tokens in {self.windows} window{plural} of {self.window}, "
            f"stride {self.stride}"
        )


_FIGURES = (
    *("perplexity", "bits_per_byte", "nats_per_token", "standard_error", "bits_per_byte_error"),
    *("tokens", "windows", "window", "stride", "n_bytes"),
)
"""What is written of a measurement."""


def _exp(nats: float) -> float:
    return exp(nats) if nats < 709 else inf


def _standard_error(sums: Sequence[float], counts: Sequence[int]) -> float:
    """Of sum(sums) / sum(counts) over windows, by the ratio estimator's linearization."""
    n, total = len(counts), sum(counts)
    if n < 2:
        return nan
    mean = sum(sums) / total
    squares = sum((s - mean * c) ** 2 for s, c in zip(sums, counts, strict=True))
    return sqrt(n / (n - 1) * squares) / total


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    text: Text,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Perplexity:
    """exp of the mean -log p(token | the tokens before it) of a causal language model on a text.

    Window k reads the tokens from k * stride on, `window` of them, and predicts the one behind
    each. What an earlier window has scored is not scored again, so that every token of the text
    counts once, but for the first, which nothing comes before. A stride below the window gives
    each token at least window - stride + 1 tokens of context. Scores are widened to float32
    before their softmax, some positions at a time, and summed in float64.

    Args:
        model: ids (b, t) in, scores (b, t, v) out, or an object with such `.logits`: any causal
            language model of transformers, dense or compressed. It stays on its device.
        tokenizer: of transformers, of `tokenizers`, or a function from a text to its ids. The
            special tokens that it adds are part of the text.
        text: a string, a `pathlib.Path` of a UTF-8 file, or an iterable of documents.
        window: tokens that the model reads at a time, from 1 up; by default 1024, or as many
            as the model has positions.
        stride: from one window to the next, 1 to `window`; by default `window`.
        batch_size: windows in a pass.
        progress: called as (what, done, total).

    Returns:
        The sums of each window; perplexity, bits per byte and their standard errors from them.

    Raises:
        InputError: an empty text or one token of it, ids that the model has no entry for, a
            window that it has no positions for, a model that returns no scores of words, that
            looks at later tokens (an encoder), or whose scores are NaN.

    Example:
        >>> spelled = lambda text: [ord(letter) for letter in text]
        >>> model = nn.Sequential(nn.Embedding(128, 8), nn.Linear(8, 128))
        >>> found = perplexity(model, spelled, "the cat sat on the mat", window=8, stride=4)
        >>> found.tokens, found.windows, found.perplexity > 1
        (21, 5, True)

    Source: Jelinek, Mercer, Bahl and Baker 1977, "Perplexity: a measure of the difficulty of
    speech recognition tasks". Papers on compression cut a text into blocks and take the loss
    of transformers on each, which leaves the first token of every block out; here the first of
    the text alone is.
    """
    window, stride = _windowing(model, window, stride)
    check_whole("batch_size", batch_size, 1)
    parts = documents(text)
    ids = token_ids(tokenizer, parts)
    _check_ids(model, ids)
    spans = list(_spans(len(ids) - 1, window, stride))
    nats: list[float] = []
    with evaluating(model):
        _refuse_encoder(model, ids[:window])
        for batch in _batches(spans, batch_size):
            if progress is not None:
                progress("scoring windows", len(nats), len(spans))
            nats += _nats(model, ids, batch, len(nats))
    if progress is not None:
        progress("scoring windows", len(spans), len(spans))
    counts = tuple(end - scored for _, scored, end in spans)
    n_bytes = _bytes_behind_first(tokenizer, parts, ids)
    return Perplexity(tuple(nats), counts, n_bytes, window, stride)


Span = tuple[int, int, int]
"""A window reads ids[start:end] and scores what follows ids[scored:end]."""


def _spans(n: int, window: int, stride: int) -> Iterator[Span]:
    """The windows over n positions, of which each has a token behind it."""
    scored = 0
    for start in range(0, n, stride):
        end = min(start + window, n)
        yield start, scored, end
        if end == n:
            return
        scored = end


def _batches(spans: Sequence[Span], size: int) -> Iterator[list[Span]]:
    """Windows of one length, at most `size` together."""
    for _, alike in groupby(spans, lambda span: span[2] - span[0]):
        group = list(alike)
        yield from (group[k : k + size] for k in range(0, len(group), size))


def _nats(model: nn.Module, ids: Tensor, batch: Sequence[Span], done: int) -> list[float]:
    """-log p of what each window scores, summed."""
    logits = _logits(model, torch.stack([ids[start:end] for start, _, end in batch]))
    top = int(ids.max())
    if logits.shape[2] <= top:
        problem = f"the tokenizer gives id {top}, the model scores {logits.shape[2]} words"
        raise InputError("tokenizer", problem, _SAME)
    found = []
    for k, (start, scored, end) in enumerate(batch):
        lost = _lost(logits[k, scored - start :], ids[scored + 1 : end + 1])
        if isnan(lost):
            problem = f"its scores in window {done + k} (tokens {start} to {end - 1}) are NaN"
            raise InputError("model", problem, "run it in float32, or look for NaN in its weights")
        found.append(lost)
    return found


def _lost(scores: Tensor, targets: Tensor) -> float:
    """-log p of the targets (n,) under scores (n, v), summed in float64 by parts."""
    rows = max(1, _NUMBERS // scores.shape[1])
    pairs = zip(scores.split(rows), targets.to(scores.device).split(rows), strict=True)
    return sum(
        float(F.cross_entropy(wide(part), wanted, reduction="none").sum(dtype=torch.float64))
        for part, wanted in pairs
    )


_SAME = "take the tokenizer that the model was trained with"


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """The scores (b, t, v) of a model on ids (b, t).

    Raises:
        InputError: the model fails, or returns something else.
    """
    device = next((t.device for t in (*model.parameters(), *model.buffers())), ids.device)
    try:
        output = model(ids.to(device), **_without_cache(model))
    except Exception as error:
        problem = (
            f"it fails on ids {tuple(ids.shape)} ({type(error).__name__}: {first_line(error)})"
        )
        raise InputError("model", problem, _CAUSAL) from error
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise InputError("model", f"it returns a {type(output).__name__} without logits", _CAUSAL)
    if logits.shape[:-1] != ids.shape:
        problem = f"for ids {tuple(ids.shape)} it returns scores {tuple(logits.shape)}"
        raise InputError("model", problem, _CAUSAL)
    return logits


_CAUSAL = "pass a causal language model: ids (b, t) in, scores of words (b, t, v) out"


def _without_cache(model: nn.Module) -> dict[str, bool]:
    """Keys and values of a window are of no use behind it."""
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes else {}


def _windowing(model: nn.Module, window: int | None, stride: int | None) -> tuple[int, int]:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        problem = f"a {type(model).__name__} reads one text to write another"
        raise InputError("model", problem, _CAUSAL)
    positions = getattr(config, "max_position_embeddings", None)
    most = positions if isinstance(positions, int) and positions > 0 else None
    if window is None:
        window = min(_WINDOW, most or _WINDOW)
    check_whole("window", window, 1)
    if most is not None and window > most:
        problem = f"{window} tokens are more than the model's {most} positions"
        raise InputError("window", problem, f"give at most {most}")
    stride = window if stride is None else stride
    check_whole("stride", stride, 1)
    if stride > window:
        problem = f"{stride} is more than the window, {window}: tokens between would not be scored"
        raise InputError("stride", problem, f"give 1 to {window}")
    return window, stride


def _check_ids(model: nn.Module, ids: Tensor) -> None:
    """Refuse a text without two tokens, and ids that no table of the model has a row for."""
    if len(ids) < 2:
        problem = f"of its {len(ids)} tokens none has one before it to be predicted from"
        raise InputError("text", problem, "give a longer one")
    rows = max((t.num_embeddings for t in _tables(model)), default=None)
    if rows is not None and int(ids.max()) >= rows:
        problem = f"it gives id {int(ids.max())}, the model's embedding has {rows} rows"
        raise InputError("tokenizer", problem, _SAME)


def _tables(model: nn.Module) -> list[nn.Embedding]:
    """The table that ids are looked up in, where the model names it; else all tables."""
    try:
        inner: object = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        inner = model
    root = inner if isinstance(inner, nn.Module) else model
    return [module for module in root.modules() if isinstance(module, nn.Embedding)]


def _refuse_encoder(model: nn.Module, ids: Tensor) -> None:
    """Refuse a model whose scores at a token change with the tokens behind it."""
    few = ids[:_FEW]
    others = (few != few[-1]).nonzero().flatten()
    if not len(others) or _rounds_together(model):
        return
    changed = few.clone()
    changed[-1] = few[int(others[0])]
    before, after = (_logits(model, words[None])[:, :-1] for words in (few, changed))
    rounding = max(_ROUNDING, 4 * torch.finfo(before.dtype).eps)
    if float((before - after).abs().max()) > rounding * float(before.abs().max()):
        problem = "its scores at a token change with the token behind it, as an encoder's do"
        raise InputError("model", problem, _CAUSAL)


_FEW, _ROUNDING = 8, 1e-5
"""Tokens that tell an encoder, and what rounding may change in their scores."""


def _rounds_together(model: nn.Module) -> bool:
    """Whether tokens share the scale that activations are rounded by, as in dynamic int8."""
    return any(type(module).__module__.startswith("torch.ao") for module in model.modules())


def _bytes_behind_first(tokenizer: Any, parts: Sequence[str], ids: Tensor) -> int:
    """Bytes of the text but for those of its first token, where that is a piece of the text."""
    total = sum(len(part.encode()) for part in parts)
    decode = getattr(tokenizer, "decode", None)
    if decode is None:
        return total
    piece = decode([int(ids[0])])
    begins = isinstance(piece, str) and parts[0].startswith(piece)
    return total - len(piece.encode()) if begins else total
