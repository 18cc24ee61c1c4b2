"""What generating costs by the token, in both phases."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression.network.own_stages import weight_bytes
from lowrank.errors import InputError

HIDDEN, INNER, WORDS, BLOCKS = 32, 48, 90, 2


def _llama(*, tied: bool = True, dtype: torch.dtype = torch.float32) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=BLOCKS,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        max_position_embeddings=64,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


LINEAR = BLOCKS * (2 * HIDDEN * (HIDDEN + HIDDEN // 2) + 3 * HIDDEN * INNER)
HEAD = HIDDEN * WORDS


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_figures_follow_from_the_sizes(tied: bool, dtype: torch.dtype) -> None:
    model = _llama(tied=tied, dtype=dtype)
    n = 10
    cost = lowrank.profile_generation(model, torch.arange(n), repeats=1, steps=2)
    size = dtype.itemsize
    assert cost.cache_bytes_per_token == BLOCKS * 2 * (HIDDEN // 2) * size
    assert cost.cache_bytes == n * cost.cache_bytes_per_token
    table = 0 if tied else HEAD * size  # a head that shares the table reads it
    assert cost.decode.bytes == weight_bytes(model) - table + cost.cache_bytes
    assert cost.prefill.bytes == cost.decode.bytes / n
    attention = 2 * BLOCKS * HIDDEN  # a product with each key, and with each value
    assert cost.decode.macs == LINEAR + HEAD + attention * (n + 1)
    assert cost.prefill.macs == LINEAR + HEAD / n + attention * n
    assert cost.prefill.tokens_per_second > 0 < cost.decode.tokens_per_second
    assert json.loads(json.dumps(cost.to_dict()))["decode"]["tokens"] == 1
    lines = str(cost).splitlines()
    assert [line.split()[0] for line in lines] == ["phase", "prefill", "decode", "keys"]


def test_a_compressed_model_reads_less() -> None:
    model, ids = _llama(), torch.arange(12)[None]
    dense = lowrank.profile_generation(model, ids, repeats=1, steps=1)
    small, report = lowrank.compress(model, ids, bytes=0.3, low_bits=True, effort="quick")
    found = lowrank.profile_generation(small, ids, repeats=1, steps=1)
    assert report.compressed.bytes + found.cache_bytes == found.decode.bytes
    assert found.decode.bytes < 0.4 * dense.decode.bytes
    assert found.cache_bytes == dense.cache_bytes
    assert small.training == model.training


REFUSED = {
    "no tensor": ([1, 2], "a list is no row of words"),
    "empty": (torch.zeros(0).long(), "is no row of words"),
    "several": (torch.zeros(2, 3).long(), "is no row of words"),
    "no words": (torch.zeros(3), "is no row of words"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_prompt_of_no_words_is_refused(what: str) -> None:
    prompt, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        lowrank.profile_generation(nn.Linear(2, 2), prompt)


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(InputError, match="Linear keeps no keys and values"):
        lowrank.profile_generation(nn.Linear(2, 2), torch.arange(4))
