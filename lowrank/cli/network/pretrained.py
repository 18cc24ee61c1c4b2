"""Models from folders that transformers' save_pretrained wrote; nothing is fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.network.example import Example, first_line
from lowrank.compression.structure.pretrained.reading import load_pretrained
from lowrank.errors import CheckpointError, InputError

_TOKENS = 128
"""Length of the example of a language model."""


def load(folder: Path, *, allow_pickle: bool) -> nn.Module:
    """The model whose class the folder's config names, with its weights.

    Raises:
        InputError: transformers is not installed, or the folder holds no model of its.
        CheckpointError: the weights are missing, damaged, or pickled and not asked for.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the import, which reads it
    formats = None if allow_pickle else True  # True: safetensors or nothing
    try:
        return load_pretrained(folder, local_files_only=True, use_safetensors=formats)
    except CheckpointError as error:
        if allow_pickle or not any(folder.glob("*.bin")):
            raise
        advice = "add --allow-pickle for its .bin file"
        raise CheckpointError(error.where, error.problem, advice) from error


def tokenizer(folder: Path) -> Any:
    """The tokenizer beside a model, or in its .gguf file.

    Raises:
        InputError: there is none.
    """
    from transformers import AutoTokenizer

    packed = folder if folder.suffix == ".gguf" else None
    found = [] if packed or (folder / "config.json").exists() else sorted(folder.glob("*.gguf"))
    packed = found[0] if found else packed
    where = {} if packed is None else {"gguf_file": packed.name}
    advice = "copy the tokenizer's files there, or save_pretrained(..., tokenizer=...)"
    try:
        read = AutoTokenizer.from_pretrained(
            folder if packed is None else packed.parent, local_files_only=True, **where
        )
    except Exception as error:  # readers of such files have their own
        problem = f"it holds no tokenizer ({type(error).__name__}: {first_line(error)})"
        raise InputError(str(folder), problem, advice) from error
    if len(read) <= len(read.all_special_ids):  # what transformers makes of no file at all
        raise InputError(str(folder), "it holds no tokenizer that knows a word", advice)
    return read


def example(model: Any) -> Example:
    """One sequence of tokens or one picture, as the model's config describes them.

    Raises:
        InputError: the model takes neither.
    """
    config, name = model.config, model.main_input_name
    like = next(model.parameters())
    if name == "input_ids":
        ids = _tokens(model, config).to(like.device)
        both = {"input_ids": ids, "decoder_input_ids": ids[:, :1]}
        return both if config.is_encoder_decoder else {"input_ids": ids}
    size = getattr(config, "image_size", None) or 224
    if name == "pixel_values" and isinstance(size, int):
        shape = (1, getattr(config, "num_channels", 3), size, size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": noise.to(like.device, like.dtype)}
    kind = type(model).__name__
    advice = f"give --input {name}=SHAPE or --data"
    raise InputError("example", f"{kind} takes {name}, of a size its config lacks", advice)


def _tokens(model: Any, config: Any) -> Tensor:
    """Words drawn from all but the special ones, and the end of a sequence, if there is one."""
    length = min(_TOKENS, getattr(config, "max_position_embeddings", None) or _TOKENS)
    n_words = model.get_input_embeddings().num_embeddings
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id")
    special = {getattr(config, name, None) for name in names}
    words = torch.tensor([k for k in range(n_words) if k not in special] or [0])
    drawn = torch.randint(len(words), (1, length), generator=torch.Generator().manual_seed(0))
    ids = words[drawn]
    end = getattr(config, "eos_token_id", None)
    if isinstance(end, int) and 0 <= end < n_words:
        ids[:, -1] = end
    return ids
