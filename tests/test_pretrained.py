"""Folders of transformers' form: what is read back is what was written, or an error."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import lowrank
from lowrank.compression.structure.pretrained import writing

transformers = pytest.importorskip("transformers", minversion="5.0")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

_SIZE = {
    "vocab_size": 100, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
_NARROW = {**_GROUPED, "head_dim": 12}
_CAUSAL, _SEQUENCES = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"

FAMILIES: Mapping[str, tuple[str, str, Mapping[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, _CAUSAL),
    "llama-tied": (
        "LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}, _CAUSAL,
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _NARROW, _CAUSAL),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {**_NARROW, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        _CAUSAL,
    ),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _NARROW, _CAUSAL),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", _NARROW, _CAUSAL),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _NARROW, _CAUSAL),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, _CAUSAL),
    "gpt2": (
        "GPT2LMHeadModel", "GPT2Config",
        {"vocab_size": 100, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}, _CAUSAL,
    ),
    "bert": ("BertForMaskedLM", "BertConfig", _SIZE, "AutoModelForMaskedLM"),
    "vit": (
        "ViTForImageClassification", "ViTConfig",
        {**_SIZE, "image_size": 32, "patch_size": 8}, "AutoModelForImageClassification",
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {
            "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64, "num_mel_bins": 20, "max_source_positions": 50,
            "max_target_positions": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        "AutoModelForSpeechSeq2Seq",
    ),
    "t5": (
        "T5ForConditionalGeneration", "T5Config",
        {
            "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
            "num_heads": 4, "decoder_start_token_id": 0,
        },
        _SEQUENCES,
    ),
}  # fmt: skip


def build(name: str) -> Any:
    kind, config, settings, _ = FAMILIES[name]
    torch.manual_seed(0)
    return getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()


def inputs(name: str) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (1, 10), generator=rng)
    if name == "vit":
        return {"pixel_values": torch.randn(1, 3, 32, 32, generator=rng)}
    if name == "whisper":
        heard = torch.randn(1, 20, 100, generator=rng)
        return {"input_features": heard, "decoder_input_ids": ids}
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :5].clone()} if name == "t5" else {})


def compressed(name: str, **settings: Any) -> Any:
    """At a budget that the table of a tied head has to help with."""
    kept = 0.7 if name == "qwen3-moe" else 0.6
    settings = {"params": kept, "methods": ["channel_svd"]} | settings
    return lowrank.compress(build(name), inputs(name), **settings)[0]


def logits(model: Any, x: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**x).logits


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Every family in a folder of its own, some in shards, with the inputs and the outputs."""
    root = tmp_path_factory.mktemp("shelf")
    for name in FAMILIES:
        small, size = compressed(name), "20KB" if name in ("gemma2", "bert", "t5") else "5GB"
        small.save_pretrained(root / name, max_shard_size=size)
        x = inputs(name)
        save_file({**x, "logits": logits(small, x)}, root / f"{name}.safetensors")
    return {name: root / name for name in FAMILIES}


@pytest.fixture
def folder(shelf: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of a folder, to be spoiled."""
    return Path(shutil.copytree(shelf["gemma2"], tmp_path / "gemma2"))


@pytest.fixture(scope="module")
def small() -> Any:
    return compressed("llama-tied")


X = inputs("llama-tied")


def alike(model: Any, other: Any, x: Mapping[str, torch.Tensor] = X) -> bool:
    """Not bit for bit: weights of one column have strides of their own until they are written."""
    have, want = logits(model, x), logits(other, x)
    return have.dtype == want.dtype and torch.allclose(have, want, rtol=0, atol=1e-6)


# --- in a fresh process ------------------------------------------------------------------

FRESH = """
import json, sys
import torch, transformers
from safetensors.torch import load_file
transformers.logging.set_verbosity_error()
kinds, found = json.loads(sys.argv[1]), {}
for folder, kind in kinds.items():
    try:
        getattr(transformers, kind).from_pretrained(folder)
        found[folder] = ["it was loaded"]
    except OSError as error:
        found[folder] = [str(error)]
assert "lowrank" not in sys.modules
import lowrank.transformers
for folder, kind in kinds.items():
    model = getattr(transformers, kind).from_pretrained(folder)
    data = load_file(folder + ".safetensors")
    want = data.pop("logits")
    with torch.no_grad():
        have = model(**data).logits
    found[folder].append(float((have - want).abs().max()))
json.dump(found, sys.stdout)
"""


def test_a_fresh_process_reads_the_same_model_or_refuses(shelf: Mapping[str, Path]) -> None:
    """All families in one: transformers alone takes seconds to import."""
    kinds = {str(shelf[name]): auto for name, (*_, auto) in FAMILIES.items()}
    run = [sys.executable, "-c", FRESH, json.dumps(kinds)]
    found = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    for path, (said, error) in found.items():
        assert "no file named model.safetensors" in said, path
        assert error <= 1e-6, path


def test_every_layer_kind_is_there(shelf: Mapping[str, Path]) -> None:
    sharded = [name for name, path in shelf.items() if (path / writing.INDEX).exists()]
    assert sharded == ["gemma2", "bert", "t5"]
    for name, path in shelf.items():
        plan = json.loads((path / "config.json").read_text())["quantization_config"]
        rows = plan["plans"][0]["plan"]["layers"].values()
        assert any("method" in row for row in rows), name
        if name in ("llama-tied", "whisper"):
            assert any("tied" in row for row in rows), name


# --- what comes back ---------------------------------------------------------------------


def test_what_is_read_is_as_compress_returned_it(shelf: Mapping[str, Path]) -> None:
    again = lowrank.load_pretrained(shelf["llama-tied"])
    small = compressed("llama-tied")
    assert alike(again, small)
    assert str(again) == str(small)
    assert {n: p.requires_grad for n, p in again.named_parameters()} == {
        n: p.requires_grad for n, p in small.named_parameters()
    }
    assert not any(hasattr(again, name) for name in ("hf_quantizer", "is_quantized"))
    assert not hasattr(again.config, "quantization_config")
    assert alike(again.double().float(), small)
    assert alike(lowrank.densify(again), lowrank.densify(small))
    tuned = lowrank.finetune(again, teacher=build("llama-tied"), data=[X], epochs=1)
    assert not alike(tuned, small)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types(shelf: Mapping[str, Path], tmp_path: Path, dtype: torch.dtype, small: Any) -> None:
    as_asked = lowrank.load_pretrained(shelf["llama-tied"], dtype=dtype)
    have, want = as_asked.state_dict(), small.state_dict()  # buffers may stay as they are
    assert all(torch.equal(have[name], want[name].to(dtype)) for name in want)
    assert logits(as_asked, X).dtype == dtype
    as_asked.save_pretrained(tmp_path / "half")
    assert alike(lowrank.load_pretrained(tmp_path / "half"), as_asked)
    assert lowrank.load_pretrained(tmp_path / "half", dtype=torch.float32).dtype == torch.float32


def test_devices(shelf: Mapping[str, Path], small: Any) -> None:
    pytest.importorskip("accelerate")
    for settings in ({"device_map": "cpu"}, {"device_map": {"": "cpu"}, "low_cpu_mem_usage": True}):
        assert alike(lowrank.load_pretrained(shelf["llama-tied"], **settings), small)
    auto = transformers.AutoModelForCausalLM.from_pretrained(
        shelf["llama-tied"], device_map="auto", max_memory={"cpu": "1GB"}
    )
    assert alike(auto, small)


def test_generation_with_its_cache(shelf: Mapping[str, Path]) -> None:
    for name in ("llama-tied", "gemma2", "gpt2", "t5"):
        x = {"input_ids": inputs(name)["input_ids"]}
        settings = {"max_new_tokens": 8, "do_sample": False}
        again, small = lowrank.load_pretrained(shelf[name]), compressed(name)
        cached = again.generate(**x, **settings, use_cache=True)
        assert torch.equal(cached, small.generate(**x, **settings, use_cache=True))
        assert torch.equal(cached, again.generate(**x, **settings, use_cache=False))


# --- every way to such a model and to such a folder --------------------------------------


def _deepcopied(small: Any, _: Path) -> Any:
    return copy.deepcopy(small)


def _finetuned(small: Any, _: Path) -> Any:
    return lowrank.finetune(small, teacher=build("llama-tied"), data=[X], epochs=1)


def _applied(_: Any, __: Path) -> Any:
    curves = lowrank.measure(build("llama-tied"), X, methods=["channel_svd"])
    return lowrank.apply(build("llama-tied"), curves.plan(params=0.7))[0]


def _loaded(small: Any, path: Path) -> Any:
    lowrank.save(small, path / "s.safetensors")
    return lowrank.load(path / "s.safetensors", into=build("llama-tied"))


def _twice(small: Any, _: Path) -> Any:
    return lowrank.compress(small, X, params=0.8, methods=["channel_svd"])[0]


def _shared(_: Any, __: Path) -> Any:
    return compressed("llama", methods=["shared_input_svd"], params=0.8)


def _unpickled(small: Any, path: Path) -> Any:
    torch.save(small, path / "s.pt")
    return torch.load(path / "s.pt", weights_only=False)


def _in_part(_: Any, __: Path) -> Any:
    whole = build("llama-tied")
    mlp = whole.model.layers[1].mlp
    whole.model.layers[1].mlp = lowrank.compress(mlp, torch.randn(2, 48), params=0.5)[0]
    return whole


def _dense(_: Any, __: Path) -> Any:
    return build("llama-tied")


def _densified(small: Any, _: Path) -> Any:
    return lowrank.densify(small)


@pytest.mark.parametrize(
    "made",
    [
        _deepcopied, _finetuned, _applied, _loaded, _twice, _shared, _unpickled, _in_part, _dense,
        _densified,
    ],
)  # fmt: skip
def test_models_however_they_were_made(made: Any, tmp_path: Path, small: Any) -> None:
    model = made(small, tmp_path)
    model.save_pretrained(tmp_path / "theirs")
    lowrank.save_pretrained(model, tmp_path / "ours")
    for name in ("theirs", "ours"):
        again = lowrank.load_pretrained(tmp_path / name)
        assert alike(again, model)
        again.save_pretrained(tmp_path / "again")
        assert alike(lowrank.load_pretrained(tmp_path / "again"), model)
    assert sorted(p.name for p in tmp_path.glob("ours/*")) == sorted(
        p.name for p in tmp_path.glob("theirs/*")
    )
