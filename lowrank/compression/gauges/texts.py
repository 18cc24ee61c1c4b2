"""Texts as token ids: read from strings, files and iterables, and windows drawn from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lowrank.compression.network.example import first_line
from lowrank.errors import InputError

Text: TypeAlias = str | Path | Iterable[str]
"""A text itself, the path of a UTF-8 file, or documents one after another."""


def calibration_text(
    tokenizer: Any,
    sources: Text | Iterable[Text],
    *,
    n_windows: int,
    length: int,
    seed: int = 0,
) -> Tensor:
    """Windows of tokens drawn from several texts, to calibrate a language model on.

    Every source gives as many windows as any other, or one more. Within a source they start
    anywhere, but none overlaps another, so that no token is drawn twice.

    Args:
        tokenizer: of transformers, of `tokenizers`, or a function from a text to its ids.
        sources: one text or several: strings, which are texts, `pathlib.Path`s of UTF-8 files,
            or iterables of strings, each a document.
        n_windows: how many, from 1 up.
        length: tokens in each, from 1 up.
        seed: of the draw, 0 or above.

    Returns:
        Ids (n_windows, length), int64, in random order: `data=` of `compress`, beside
        `ids[:1]` as its example.

    Raises:
        InputError: a file that cannot be read, a tokenizer that gives no ids, or a source that
            is too short for its share.

    Example:
        >>> spelled = lambda text: [ord(letter) for letter in text]
        >>> ids = calibration_text(spelled, ["abc" * 9, "xyz" * 9], n_windows=4, length=8)
        >>> ids.shape, sorted(chr(i) for i in ids[:, 1:].unique())
        (torch.Size([4, 8]), ['a', 'b', 'c', 'x', 'y', 'z'])
    """
    check_whole("n_windows", n_windows, 1)
    check_whole("length", length, 1)
    check_whole("seed", seed, 0)
    texts = _listed(sources)
    rng = torch.Generator().manual_seed(seed)
    extra = set(torch.randperm(len(texts), generator=rng)[: n_windows % len(texts)].tolist())
    drawn = [
        _windows(token_ids(tokenizer, text, name), share, length, rng, name)
        for k, text in enumerate(texts)
        if (share := n_windows // len(texts) + (k in extra)) and (name := f"sources[{k}]")
    ]
    return torch.cat(drawn)[torch.randperm(n_windows, generator=rng)]


def _listed(sources: Text | Iterable[Text]) -> list[Text]:
    if isinstance(sources, str | Path):
        return [sources]
    if not isinstance(sources, Iterable):
        raise InputError("sources", f"a {type(sources).__name__} is no text", _TEXTS)
    texts = list(sources)
    if not texts:
        raise InputError("sources", "there is none", "name at least one text")
    return texts


def _windows(ids: Tensor, share: int, length: int, rng: torch.Generator, name: str) -> Tensor:
    """So many windows of a text, none over another: gaps of random sizes between them."""
    spare = len(ids) - share * length
    if spare < 0:
        problem = f"{len(ids)} tokens are too few for {share} windows of {length}"
        raise InputError(name, problem, "give longer texts, or ask for fewer or shorter windows")
    gaps = torch.randint(spare + 1, (share,), generator=rng).sort().values
    starts = gaps + length * torch.arange(share)
    return ids[starts[:, None] + torch.arange(length)]  # (share, length)


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number from `least` up.

    Raises:
        InputError: says so.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        problem = f"{value!r} is no whole number from {least} up"
        raise InputError(name, problem, f"give {max(least, 1)}, say")


def token_ids(tokenizer: Any, text: Text, name: str = "text") -> Tensor:
    """The ids (n,) of a text, with the special tokens that the tokenizer puts around documents.

    Raises:
        InputError: the text cannot be read or is empty, or the tokenizer gives no ids for it.

    Example:
        >>> token_ids(lambda text: [len(word) for word in text.split()], "a text of words")
        tensor([1, 4, 2, 5])
    """
    return torch.cat([_encoded(tokenizer, part, name) for part in documents(text, name)])


_TEXTS = "give a string, a pathlib.Path of a text file, or an iterable of strings"


def documents(text: Text, name: str = "text") -> list[str]:
    """The documents of a text that are not empty.

    Raises:
        InputError: there is none, or a file cannot be read.

    Example:
        >>> documents("one"), documents(["one", "", "two"])
        (['one'], ['one', 'two'])
    """
    if isinstance(text, Path):
        parts = [_read(text)]
    elif isinstance(text, str):
        parts = [text]
    else:
        parts = list(text) if isinstance(text, Iterable) else [text]
    for part in parts:
        if not isinstance(part, str):
            raise InputError(name, f"a {type(part).__name__} is no text", _TEXTS)
    if not (parts := [part for part in parts if part.strip()]):
        raise InputError(name, "it is empty", _TEXTS)
    return parts


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"it cannot be read as UTF-8 text ({first_line(error)})"
        raise InputError(str(path), problem, "name a text file") from error


def _encoded(tokenizer: Any, text: str, name: str) -> Tensor:
    """The ids of one document, (n,)."""
    encode: Callable[..., Any] | None
    encode = tokenizer if callable(tokenizer) else getattr(tokenizer, "encode", None)
    if encode is None:
        problem = f"a {type(tokenizer).__name__} is no tokenizer"
        raise InputError("tokenizer", problem, "pass one of transformers, or a function")
    quiet = {"verbose": False} if hasattr(tokenizer, "model_max_length") else {}
    try:
        found = encode(text, **quiet)  # a text is cut into windows: it may be longer than one
        found = found["input_ids"] if isinstance(found, Mapping) else getattr(found, "ids", found)
        ids = torch.as_tensor(found)
    except Exception as error:  # tokenizers have errors of their own
        problem = f"it gives no ids for {name} ({type(error).__name__}: {first_line(error)})"
        raise InputError("tokenizer", problem, _IDS) from error
    ids = ids.reshape(-1) if ids.ndim == 2 and len(ids) == 1 else ids
    if ids.ndim != 1 or (len(ids) and (ids.is_floating_point() or int(ids.min()) < 0)):
        problem = f"for {name} it gives {tuple(ids.shape)} of {ids.dtype}, not ids from 0 up"
        raise InputError("tokenizer", problem, _IDS)
    return ids.long()


_IDS = "it is called with a string, and returns ids or a dict of input_ids"
