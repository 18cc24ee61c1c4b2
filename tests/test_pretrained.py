"""Folders of transformers' form: what is read back is what was written, or an error."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import lowrank
import lowrank.atomic
from lowrank.compression.structure.pretrained import writing
from lowrank.compression.structure.pretrained.record import Record, file_digest
from lowrank.errors import CheckpointError, InputError

transformers = pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("lowrank.transformers")  # registers the quantizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

_SIZE = {
    "vocab_size": 100, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
_GROUPED = {**_SIZE, "num_key_value_heads": 2}
_NARROW = {**_GROUPED, "head_dim": 12}
_SEEN = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_CAUSAL, _SEQUENCES = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"

FAMILIES: Mapping[str, tuple[str, str, Mapping[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, _CAUSAL),
    "llama-tied": (
        "LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}, _CAUSAL,
    ),
    "llama-packed": (
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
    "siglip": (
        "SiglipForImageClassification", "SiglipConfig", {"vision_config": _SEEN, "text_config": {}},
        "AutoModelForImageClassification",
    ),
    "clip": (
        "CLIPForImageClassification", "CLIPConfig", {"vision_config": _SEEN, "text_config": {}},
        "AutoModelForImageClassification",
    ),
    "mamba": (
        "MambaForCausalLM", "MambaConfig",
        {"vocab_size": 100, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1}, _CAUSAL,
    ),
    "bart": (
        "BartForConditionalGeneration", "BartConfig",
        {
            "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64, "max_position_embeddings": 32, "pad_token_id": 1,
            "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
        },
        _SEQUENCES,
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
    if name in ("vit", "siglip", "clip"):
        return {"pixel_values": torch.randn(1, 3, 32, 32, generator=rng)}
    if name == "whisper":
        heard = torch.randn(1, 20, 100, generator=rng)
        return {"input_features": heard, "decoder_input_ids": ids}
    return {"input_ids": ids} | (
        {"decoder_input_ids": ids[:, :5].clone()} if name in ("t5", "bart") else {}
    )


def compressed(name: str, **settings: Any) -> Any:
    """At a budget that the table of a tied head has to help with."""
    kept = 0.7 if name == "qwen3-moe" else 0.6
    budget = {"bytes": 0.3, "low_bits": True} if name == "llama-packed" else {"params": kept}
    settings = {**budget, "methods": ["channel_svd"]} | settings
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
        if name in ("llama-tied", "llama-packed", "whisper"):
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["t5", "clip", "siglip", "mamba", "llama-tied"])
def test_read_in_half_precision(shelf: Mapping[str, Path], name: str, dtype: torch.dtype) -> None:
    """T5 keeps layers in float32 in one of them; it and others cast to what a layer holds."""
    half = lowrank.load_pretrained(shelf[name], dtype=dtype)
    x = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(name).items()}
    want = load_file(f"{shelf[name]}.safetensors")["logits"]
    found = logits(half, x).float()
    assert (found - want).norm() < (0.05 if dtype == torch.bfloat16 else 0.01) * want.norm()
    again = copy.deepcopy(half).float()
    assert (logits(again, inputs(name)) - want).norm() < 0.05 * want.norm()


def test_what_was_read_can_be_made_dense(shelf: Mapping[str, Path]) -> None:
    """Gemma 3 multiplies its embeddings by a number that no file holds."""
    for name in ("gemma3", "t5"):
        again = lowrank.load_pretrained(shelf[name])
        dense, x = lowrank.densify(again), inputs(name)
        assert (logits(dense, x) - logits(again, x)).abs().max() < 1e-4
        kinds = {n: type(m) for n, m in build(name).named_modules()}
        assert {n: type(m) for n, m in dense.named_modules()} == kinds


def test_generation_with_its_cache(shelf: Mapping[str, Path]) -> None:
    for name in ("llama-tied", "gemma2", "gpt2", "t5", "bart"):
        x = {"input_ids": inputs(name)["input_ids"]}
        settings = {"max_new_tokens": 8, "do_sample": False}
        again, small = lowrank.load_pretrained(shelf[name]), compressed(name)
        cached = again.generate(**x, **settings, use_cache=True)
        assert torch.equal(cached, small.generate(**x, **settings, use_cache=True))
        assert torch.equal(cached, again.generate(**x, **settings, use_cache=False))


def test_exported_with_its_cache_on(shelf: Mapping[str, Path]) -> None:
    again, ids = lowrank.load_pretrained(shelf["llama-tied"]), inputs("llama-tied")["input_ids"]
    assert again.config.use_cache
    program = lowrank.export_program(again, ids)
    other = (ids + 5) % 50
    torch.testing.assert_close(program.module()(other).logits, again(other).logits)
    assert again.config.use_cache, "for generation, as before"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama-tied", "gpt2", "qwen3"])
def test_written_as_onnx_with_its_cache_on(
    shelf: Mapping[str, Path], tmp_path: Path, name: str
) -> None:
    lowrank.export_onnx(
        lowrank.load_pretrained(shelf[name]), inputs(name)["input_ids"], tmp_path / "small.onnx"
    )


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


def _packed(_: Any, __: Path) -> Any:
    return compressed("llama-packed")


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


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    "made",
    [
        _deepcopied, _finetuned, _applied, _loaded, _twice, _shared, _packed, _unpickled, _in_part,
        _dense, _densified,
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


# --- what is not read --------------------------------------------------------------------


def _config(path: Path, change: Any) -> None:
    values = json.loads((path / "config.json").read_text())
    change(values["quantization_config"])
    (path / "config.json").write_text(json.dumps(values))


def _other_rank(path: Path) -> None:
    def change(plan: dict[str, Any]) -> None:
        rows = plan["plans"][0]["plan"]["layers"].values()
        next(row for row in rows if "method" in row)["rank"] += 1

    _config(path, change)


def _no_plan(path: Path) -> None:
    _config(path, lambda plan: plan.pop("plans"))


def _no_values(path: Path) -> None:
    _config(path, lambda plan: [plan.pop(key) for key in list(plan) if key != "quant_method"])


def _newer(path: Path) -> None:
    _config(path, lambda plan: plan.update(version=2))


def _shard(path: Path) -> Path:
    return sorted(path.glob("lowrank-*.safetensors"))[1]


def _flipped_bit(path: Path) -> None:
    data = bytearray(_shard(path).read_bytes())
    data[-5] ^= 1
    _shard(path).write_bytes(bytes(data))


def _cut_short(path: Path) -> None:
    _shard(path).write_bytes(_shard(path).read_bytes()[:-100])


def _a_shard_less(path: Path) -> None:
    _shard(path).unlink()


def _an_index_less(path: Path) -> None:
    (path / "lowrank.safetensors.index.json").unlink()


def _a_tensor_less(path: Path) -> None:
    tensors = load_file(_shard(path))
    tensors.popitem()
    save_file(tensors, _shard(path))


def _other_config(path: Path) -> None:
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, "intermediate_size": 80}))


SPOILED = {
    _other_rank: "its plan is not what was saved",
    _no_plan: "its plan is not what was saved",
    _no_values: "version None is not 1",
    _newer: "version 2 is not 1",
    _flipped_bit: "its contents are not what was saved",
    _cut_short: "its contents are not what was saved",
    _a_shard_less: "no weights to load|is missing",
    _an_index_less: "no weights to load|is missing",
    _a_tensor_less: "its contents are not what was saved",
    _other_config: r"its plan does not fit its model .*the model has Linear\(weight \(80, 48\)\)",
}


@pytest.mark.parametrize("spoil", SPOILED)
def test_what_was_spoiled_is_not_read(folder: Path, spoil: Any) -> None:
    import lowrank.transformers

    spoil(folder)
    with pytest.raises(CheckpointError, match=SPOILED[spoil]):
        lowrank.load_pretrained(folder)
    with pytest.raises((OSError, ValueError)):  # ours are ValueErrors
        transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_a_plan_and_weights_that_do_not_fit(folder: Path) -> None:
    """With digests that agree, as of a folder that someone made by hand."""
    tensors = load_file(_shard(folder))
    name = next(iter(tensors))
    for odd in (
        {**tensors, name: tensors[name][1:]},
        {k: tensors[k] for k in tensors if k != name},
    ):
        save_file(odd, _shard(folder))
        values = json.loads((folder / "config.json").read_text())
        old = values["quantization_config"]
        files = {n: file_digest(folder / n) for n in old["files"]}
        rows = old["plans"]
        plans = tuple((row["part"], lowrank.Plan.from_dict(row["plan"])) for row in rows)
        values["quantization_config"] = Record(plans, files).to_dict()
        (folder / "config.json").write_text(json.dumps(values))
        with pytest.raises(CheckpointError, match=re.escape(name)):
            lowrank.load_pretrained(folder)


def test_another_class_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="Gemma2ForCausalLM, and a Gemma2Model was asked"):
        transformers.AutoModel.from_pretrained(folder)


def test_folders_that_hold_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        lowrank.load_pretrained(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"it holds no config\.json"):
        lowrank.load_pretrained(tmp_path)
    for text, said in {"{}": "names no model", "[]": "names no model", "{": "not readable"}.items():
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=said):
            lowrank.load_pretrained(tmp_path)


def test_quantized_folders_are_refused_with_what_to_do(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"quantized by gptq; dequantize first.*dequantize\(\)"):
        lowrank.load_pretrained(tmp_path)


def test_packed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank.compression.structure.pretrained import reading

    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    for path in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(InputError, match="with gguf and accelerate, not installed here; pip"):
            lowrank.load_pretrained(path)
    monkeypatch.setattr(reading, "find_spec", lambda name: name)
    with pytest.raises(CheckpointError, match="no weights to load"):
        lowrank.load_pretrained(tmp_path)
    (tmp_path / "other.gguf").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds 2 \.gguf files"):
        lowrank.load_pretrained(tmp_path)


def test_dense_folders_that_lack_a_weight(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path)
    assert alike(lowrank.load_pretrained(tmp_path), model)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the weights lack model\.norm\.weight"):
        lowrank.load_pretrained(tmp_path)


# --- what is not written -----------------------------------------------------------------


def _layer_by_hand(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Linear(96, 96)


def _two_types(model: Any) -> None:
    model.model.layers[0].self_attn.half()


def _untied(model: Any) -> None:
    table = model.lm_head[-1] if isinstance(model.lm_head, nn.Sequential) else model.lm_head
    table.weight = nn.Parameter(table.weight.detach() + 1)


def _on_meta(model: Any) -> None:
    model.to("meta")


UNFIT = {
    _layer_by_hand: r"act_fn.weight is in the model and not in what its config and plan build",
    _two_types: r"is torch.float16, and the model is torch.float32; call model.to",
    _untied: "to which the model's config ties it",
    _on_meta: "is no tensor with values",
}


@pytest.mark.parametrize("spoil", UNFIT)
def test_what_would_not_come_back_is_not_written(spoil: Any, small: Any, tmp_path: Path) -> None:
    model = copy.deepcopy(small)
    spoil(model)
    for save in (model.save_pretrained, lambda path: lowrank.save_pretrained(model, path)):
        with pytest.raises(CheckpointError, match=UNFIT[spoil]):
            save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_arguments_that_mean_another_form(small: Any, tmp_path: Path) -> None:
    for given in ({"variant": "fp16"}, {"push_to_hub": True}, {"distributed_checkpoint": True}):
        with pytest.raises(InputError, match=f"{next(iter(given))}=.* leave"):
            small.save_pretrained(tmp_path, **given)
    with pytest.raises(InputError, match="'many' is no size"):
        small.save_pretrained(tmp_path, max_shard_size="many")
    with pytest.raises(InputError, match="Sequential, no model of transformers"):
        lowrank.save_pretrained(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    with pytest.raises(InputError, match="a int cannot write itself"):
        lowrank.save_pretrained(small, tmp_path, tokenizer=3)
    small.save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())
    small.save_pretrained(tmp_path, state_dict={k: v + 1 for k, v in small.state_dict().items()})
    again = lowrank.load_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], t + 1) for name, t in small.state_dict().items())


def test_int8(tmp_path: Path, small: Any) -> None:
    pytest.importorskip("torchao")
    coarse, _ = lowrank.quantize(small)
    for save in (coarse.save_pretrained, lambda path: lowrank.save_pretrained(coarse, path)):
        with pytest.raises(InputError, match=r"is in int8.*write it before lowrank\.quantize"):
            save(tmp_path / "x")


@pytest.mark.parametrize("when", range(3))
def test_a_full_disk_leaves_the_old_folder(
    folder: Path, small: Any, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    before, left = lowrank.load_pretrained(folder), [when]

    def full(*args: Any, **settings: Any) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        save_file(*args, **settings)

    monkeypatch.setattr(writing, "save_file", full)
    files = sorted(path.name for path in folder.iterdir())
    with pytest.raises(CheckpointError, match="No space left"):
        small.save_pretrained(folder, max_shard_size="20KB")
    assert sorted(path.name for path in folder.iterdir()) == files
    assert alike(lowrank.load_pretrained(folder), before)
    left[0] = when
    with pytest.raises(CheckpointError, match="No space left"):
        small.save_pretrained(folder.parent / "new", max_shard_size="20KB")
    assert not (folder.parent / "new").exists()


def test_a_crash_between_two_files_leaves_what_is_refused(
    folder: Path, small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, moved = lowrank.atomic.os.replace, []

    def crash(source: Any, target: Any) -> None:
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(lowrank.atomic.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        small.save_pretrained(folder, max_shard_size="20KB")
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"no config\.json"):
        lowrank.load_pretrained(folder)
    with pytest.raises(OSError, match="no file named"):
        transformers.LlamaForCausalLM.from_pretrained(folder)
    small.save_pretrained(folder)
    assert alike(lowrank.load_pretrained(folder), small)


def test_a_folder_that_held_another_model(tmp_path: Path, small: Any) -> None:
    """Weights of the dense one would be found by transformers alone, and pass for ours."""
    build("llama-tied").save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "notes.md").write_text("mine")
    small.save_pretrained(tmp_path)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"config.json", "generation_config.json", "lowrank.safetensors", "notes.md"}
    assert alike(lowrank.load_pretrained(tmp_path), small)
    build("llama-tied").save_pretrained(tmp_path)
    assert alike(lowrank.load_pretrained(tmp_path), build("llama-tied"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="it holds an adapter"):
        small.save_pretrained(tmp_path)


def test_a_hub_gets_the_same_folder(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent: what would be is looked at."""
    sent: list[str] = []

    def upload(self: Any, working_dir: str, *args: Any, **settings: Any) -> None:
        sent.extend(path.name for path in Path(working_dir).iterdir())

    class Nothing:
        repo_id = "a/b"

        def __init__(self, *args: Any, **settings: Any) -> None: ...

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **settings: Nothing()

    monkeypatch.setattr(transformers.PreTrainedModel, "_upload_modified_files", upload)
    hub = sys.modules["transformers.utils.hub"]
    for name in ("hf_api", "create_repo"):  # the one of today, and of the first release
        monkeypatch.setattr(hub, name, Nothing, raising=False)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *a, **k: Nothing())
    small.push_to_hub("b")
    assert "lowrank.safetensors" in sent
    assert "model.safetensors" not in sent


# --- adapters ----------------------------------------------------------------------------


@pytest.mark.parametrize("made", [_deepcopied, _shared], ids=["tied", "shared"])
def test_lora_attaches_trains_and_merges(made: Any, small: Any, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    before = made(small, tmp_path)
    model, targets = copy.deepcopy(before), lowrank.lora_targets(before)
    assert any(name.endswith(".0") for name in targets)
    assert not any("lm_head" in name for name in targets)
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2))
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the first step moves one of the two matrices off zero
        tuned(**X, labels=X["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with pytest.raises(CheckpointError, match="is in what its config and plan build and not"):
        model.save_pretrained(tmp_path / "half way")
    tuned.save_pretrained(tmp_path / "adapter")
    attached = peft.PeftModel.from_pretrained(copy.deepcopy(before), tmp_path / "adapter")
    assert alike(attached.eval(), tuned.eval())
    want = logits(tuned, X)
    merged = tuned.merge_and_unload()
    assert not torch.allclose(want, logits(before, X), atol=1e-4)
    assert torch.allclose(logits(merged, X), want, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert alike(lowrank.load_pretrained(tmp_path / "merged"), merged)
