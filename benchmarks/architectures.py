"""Every architecture of transformers on the whole way: what comes of it, class by class.

    python benchmarks/architectures.py --task causal-lm --task masked-lm

Each class that an auto class of transformers knows is built from its own config, made small by
attribute names, with random weights, those at zero among them. It is compressed to 0.6 of its
parameters without and with data, written to a folder, read back, made dense again, turned to
bfloat16, and, where it can, generates. Outputs must be equal behind reading and close behind
densifying. A class that cannot be built that way (its config asks for sizes that fit together) is
counted as such; an error that is none of lowrank's own is a fault.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import lowrank
import lowrank.transformers

OUT = Path(__file__).parent / "results" / "architectures.json"

LAYERS = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
]

_BY_SIZE = {
    0: "pad_token_id",
    1: """
    n_shared_experts n_group topk_group first_k_dense_replace decoder_start_token_id bos_token_id
    """,
    2: "num_key_value_heads linear_num_key_heads num_experts_per_tok eos_token_id",
    3: "num_channels",
    4: """
    num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads
    mamba_n_heads mamba_num_heads linear_num_value_heads num_experts num_local_experts
    n_routed_experts
    """,
    8: """
    qk_rope_head_dim qk_nope_head_dim state_size time_step_rank rotary_dim patch_size mamba_d_state
    """,
    16: """
    head_dim d_kv attention_head_dim v_head_dim kv_lora_rank linear_key_head_dim
    linear_value_head_dim query_pre_attn_scalar hidden_size_per_layer_input
    """,
    32: """
    moe_intermediate_size shared_expert_intermediate_size q_lora_rank mamba_d_head mamba_head_dim
    image_size
    """,
    64: """
    hidden_size d_model n_embd dim embed_dim embedding_size word_embed_proj_dim
    attention_hidden_size lru_width conv_dim max_position_embeddings n_positions max_seq_len
    """,
    128: """
    intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim d_inner ffn_hidden_size
    """,
    200: "vocab_size vocab_size_per_layer_input decoder_vocab_size",
}
SIZES = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
SIZES |= dict.fromkeys(LAYERS, 2)
"""What attributes of a config become, wherever they stand."""

LATENT = {"num_key_value_heads": 4, "head_dim": 8}
"""Likewise where keys and values come from a latent vector, a head of each."""

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
PYRAMID = 4
"""Widths of the stages of a pyramid are divided by so much, where they stand in lists."""

WIDTHS = [
    "hidden_sizes",
    "dims",
    "out_channels",
    "embed_dim",
    "encoder_hidden_sizes",
    "decoder_hidden_size",
]
DEPTHS = [
    "depths",
    "num_block_repeats",
    "n_attn_blocks",
    "decoder_depths",
    "stage_num_blocks",
    "depth",
]
SIDE = 64

STAGES = ("stage_names", "out_features", "out_indices", "model_type", "architectures")
"""What a config of other depths may not be given."""

LIMIT = 20_000_000
SECONDS = 120
"""CPU seconds of one class."""


def pyramid(config: Any) -> Any:
    """A config of stages in small: one block each, of a quarter of the width."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            pyramid(value)
        elif name in DEPTHS and isinstance(value, list | tuple):
            _set(config, name, [1] * len(value))
        elif name in WIDTHS and isinstance(value, list | tuple):
            _set(config, name, [v // PYRAMID for v in value])
        elif name in WIDTHS and isinstance(value, int):
            _set(config, name, value // PYRAMID)
        elif name == "image_size":
            _set(config, name, SIDE if isinstance(value, int) else [SIDE, SIDE])
        elif name in ("width_coefficient", "depth_coefficient"):
            _set(config, name, 1.0)
    return config


def larger(config: Any) -> Any:
    """`shrunk`, for pictures twice as large."""
    return _sided(shrunk(config))


def _sided(config: Any) -> Any:
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PretrainedConfig):
            _sided(value)
        elif name == "image_size" and isinstance(value, int):
            _set(config, name, SIDE)
    return config


def shrunk(config: Any) -> Any:
    """A config in small: sizes by name, lists of one entry a layer cut to so many layers."""
    depth = {_get(config, name) for name in LAYERS} - {None}
    sizes = SIZES | (LATENT if _get(config, "kv_lora_rank") is not None else {})
    for name, size in sizes.items():
        value = _get(config, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number or (name in SPECIAL and hasattr(config, name)):
            _set(config, name, size)
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) in depth:
            other = next((v for v in value if v != value[0]), value[0])  # attention, beside others
            _set(config, name, [value[0], other])
        elif isinstance(value, transformers.PretrainedConfig):
            shrunk(value)
    return config


def _get(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def _set(config: Any, name: str, value: object) -> None:
    with suppress(Exception):  # one that is computed of others
        setattr(config, name, value)


def built(kind: str, cls: str, small: Callable[[Any], Any]) -> Any:
    """The model of a config in small."""
    config = small(CONFIG_MAPPING[kind]())
    given = {k: v for k, v in config.to_dict().items() if k not in STAGES}
    with suppress(Exception):  # one that does not take what it says stays as it is
        config = type(config)(**given)
    torch.manual_seed(0)
    net = getattr(transformers, cls)(config).eval()
    with torch.no_grad():
        for p in net.parameters():  # heads and scales that begin at zero hide what is behind them
            if p.is_floating_point():
                p += 0.02 * torch.randn_like(p)
    return net


def words(net: Any) -> dict[str, Tensor]:
    """Four texts of twelve words."""
    return {"input_ids": _ids(12)}


def two_texts(net: Any) -> dict[str, Tensor]:
    """Texts for an encoder and for its decoder."""
    return {"input_ids": _ids(9), "decoder_input_ids": _ids(7)}


def pictures(net: Any) -> dict[str, Tensor]:
    """Four pictures of the config's size, or as words where they are taken so."""
    if net.main_input_name == "input_ids":
        return words(net)
    return {net.main_input_name: torch.randn(4, 3, *_sides(net), generator=_rng())}


def films(net: Any) -> dict[str, Tensor]:
    """Two films."""
    n = getattr(net.config, "num_frames", getattr(net.config, "frames_per_clip", 8))
    return {net.main_input_name: torch.randn(2, n, 3, *_sides(net), generator=_rng())}


def captions(net: Any) -> dict[str, Tensor]:
    """Four pictures, with a text each."""
    return {"pixel_values": torch.randn(4, 3, *_sides(net), generator=_rng())} | words(net)


def series(net: Any) -> dict[str, Tensor]:
    """Four series of numbers."""
    length = net.config.context_length
    shape = (4, length, getattr(net.config, "num_input_channels", 1))
    return {"past_values": torch.randn(*shape, generator=_rng())}


def dictated(net: Any) -> dict[str, Tensor]:
    """Sounds, and the texts that a decoder begins with."""
    return sounds(net) | {"decoder_input_ids": _ids(7)}


def _sides(net: Any) -> tuple[int, ...]:
    inner = getattr(net.config, "vision_config", None)
    size = getattr(net.config, "image_size", getattr(inner, "image_size", None)) or SIDE
    return (size, size) if isinstance(size, int) else tuple(size)


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def sounds(net: Any) -> dict[str, Tensor]:
    """Four short sounds, or what a model takes in place of them."""
    rng, name = _rng(), net.main_input_name
    if name == "input_values":
        return {name: torch.randn(4, 4000, generator=rng)}
    bins = getattr(net.config, "num_mel_bins", getattr(net.config, "feature_size", 80))
    return {name: torch.randn(4, 100, bins, generator=rng)}


def _ids(n: int) -> Tensor:
    return torch.randint(3, 200, (4, n), generator=torch.Generator().manual_seed(n))


TASKS: dict[str, tuple[str, Callable[[Any], dict[str, Tensor]]]] = {
    "causal-lm": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", words),
    "masked-lm": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", words),
    "seq2seq-lm": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", two_texts),
    "image-classification": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", pictures),
    "segmentation": ("MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES", pictures),
    "object-detection": ("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES", pictures),
    "depth-estimation": ("MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES", pictures),
    "ctc": ("MODEL_FOR_CTC_MAPPING_NAMES", sounds),
    "audio-classification": ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", sounds),
    "speech-seq2seq": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", dictated),
    "universal-segmentation": ("MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES", pictures),
    "masked-image": ("MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES", pictures),
    "backbone": ("MODEL_FOR_BACKBONE_MAPPING_NAMES", pictures),
    "video": ("MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES", films),
    "zero-shot-image": ("MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES", captions),
    "image-text": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", captions),
    "series-regression": ("MODEL_FOR_TIME_SERIES_REGRESSION_MAPPING_NAMES", series),
    "series-prediction": ("MODEL_FOR_TIME_SERIES_PREDICTION_MAPPING_NAMES", series),
    "sequence-classification": ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", words),
}


def classes(task: str) -> dict[str, str]:
    """Kind of config -> class of model."""
    names = getattr(modeling_auto, TASKS[task][0])
    return {k: v if isinstance(v, str) else v[0] for k, v in names.items()}


class TooSlow(BaseException):
    """It took longer than a network of this size has a reason to."""


@contextmanager
def limited() -> Iterator[None]:
    """So many CPU seconds."""

    def ring(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def outcome(kind: str, cls: str, make: Callable[[Any], dict[str, Tensor]]) -> dict[str, Any]:
    """What comes of one class: its result, with figures or the error."""
    row: dict[str, Any] = {"kind": kind, "class": cls}
    for small in (shrunk, larger, pyramid):
        try:
            net, x, before = _running(kind, cls, make, small)
            break
        except Exception as error:  # built of sizes that do not fit together, or in need of others
            row.setdefault("error", _short(error))
    else:
        return {**row, "result": "not built"}
    row.pop("error", None)
    started = time.process_time()
    steps: list[str] = []
    try:
        with limited():
            row |= way(net, x, before, steps)
        row["result"] = "done"
    except lowrank.LowRankError as error:
        row |= {"result": "refused", "at": steps[-1], "error": _short(error)}
    except (Exception, TooSlow) as error:
        row |= {"result": "fault", "at": steps[-1], "error": _short(error)}
    return {**row, "cpu_seconds": round(time.process_time() - started, 1)}


def _running(
    kind: str, cls: str, make: Callable[[Any], dict[str, Tensor]], small: Callable[[Any], Any]
) -> tuple[Any, dict[str, Tensor], Tensor]:
    """A network that answers, and can be read back; its inputs and what it says to them."""
    net = built(kind, cls, small)
    if (size := sum(p.numel() for p in net.parameters())) > LIMIT:
        raise ValueError(f"{size:,} parameters")
    x = make(net)
    before = logits(net, x)
    if not before.isfinite().all() or not before.any():
        raise ValueError("its answer is zero, or not finite")
    _kept(net)
    return net, x, before


def _kept(net: Any) -> None:
    """Write and read the dense model, which a config that is at odds with itself does not let."""
    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        type(net).from_pretrained(folder)


def way(net: Any, x: dict[str, Tensor], before: Tensor, steps: list[str]) -> dict[str, Any]:
    """The whole way of a network; the step at hand is the last of `steps`."""
    size = sum(p.numel() for p in net.parameters())
    steps.append("compress")
    lowrank.compress(net, x, params=0.6)
    steps.append("with data")
    small, report = lowrank.compress(net, x, params=0.6, data=[x])
    after = logits(small, x)
    steps.append("folder")
    with tempfile.TemporaryDirectory() as folder:
        lowrank.save_pretrained(small, folder)
        again = lowrank.load_pretrained(folder)
    _equal(logits(again, x), after, 1e-5)
    steps.append("densify")
    _equal(logits(lowrank.densify(again), x), after, 1e-3)
    steps.append("generate")
    if _runs(lambda: _generated(net, x)):
        _generated(small, x)
    steps.append("bfloat16")
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in x.items()}
    if _runs(lambda: logits(copy.deepcopy(net).bfloat16(), half)):
        logits(copy.deepcopy(small).bfloat16(), half)
    kept = sum(p.numel() for p in small.parameters()) / size
    off = float((after - before).norm() / before.norm())
    replaced = len(report.plan.replaced) + len(report.plan.narrowed)
    return {"params_kept": round(kept, 3), "relative_error": round(off, 3), "layers": replaced}


def logits(net: Any, x: dict[str, Tensor]) -> Tensor:
    """The scores; of a model that gives none, the first output in floating point."""
    with torch.no_grad():
        output = net(**x)
    if isinstance(scores := getattr(output, "logits", None), Tensor):
        return scores
    whole = dict(output) if isinstance(output, dict) else output
    given = [t for t in tree_leaves(whole) if isinstance(t, Tensor)]
    return next(t for t in given if t.is_floating_point())


def _generated(net: Any, x: dict[str, Tensor]) -> Tensor:
    if "input_ids" not in x or not net.can_generate():
        raise ValueError("it generates nothing")
    with torch.no_grad():
        made: Tensor = net.generate(input_ids=x["input_ids"][:1], max_new_tokens=3, do_sample=False)
    return made


def _runs(act: Callable[[], object]) -> bool:
    try:
        act()
    except Exception:
        return False
    return True


def _equal(found: Tensor, expected: Tensor, tol: float) -> None:
    off = float((found - expected).abs().max())
    if not off <= tol * max(float(expected.abs().max()), 1.0):
        raise AssertionError(f"outputs differ by {off:.1e}")


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", action="append", choices=TASKS)
    parser.add_argument("--kind", action="append", help="of these configs only")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    known = json.loads(given.out.read_text())["rows"] if given.out.exists() else {}
    for task in given.task or TASKS:
        rows = {row["kind"]: row for row in known.get(task, [])}
        for kind, cls in classes(task).items():
            if given.kind and kind not in given.kind:
                continue
            rows[kind] = row = outcome(kind, cls, TASKS[task][1])
            print(task, *(f"{k}={v}" for k, v in row.items()), flush=True)
        known[task] = sorted(rows.values(), key=lambda row: row["kind"])
        counts = {t: dict(Counter(r["result"] for r in rows)) for t, rows in known.items()}
        setting = {"torch": torch.__version__, "transformers": transformers.__version__,
                   "budget": {"params": 0.6}, "threads": 1}  # fmt: skip
        text = json.dumps({"setting": setting, "counts": counts, "rows": known}, indent=1)
        given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
