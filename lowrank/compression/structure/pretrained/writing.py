"""Write a model of transformers, compressed or not, to a folder that loads as what it is."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from lowrank.atomic import filling
from lowrank.compression.network.example import first_line, unwrapped
from lowrank.compression.structure.history import records
from lowrank.compression.structure.int8 import int8_layers
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.pretrained.building import mismatch, shapes, skeleton, ties
from lowrank.compression.structure.pretrained.record import (
    CONFIG,
    INDEX,
    WEIGHTS,
    Record,
    file_digest,
)
from lowrank.compression.structure.swap import is_made
from lowrank.errors import CheckpointError, InputError, LowRankError

NEEDED = (5, 0)
"""The first release of transformers whose quantizers see the files that are read."""

SHARD = "5GB"


class Tokenizer(Protocol):
    """What writes itself to a folder: a tokenizer, a processor, a feature extractor."""

    def save_pretrained(self, save_directory: str, /) -> object:
        """Write its files."""


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    max_shard_size: int | str = SHARD,
) -> None:
    """Write a model of transformers to a folder that `load_pretrained` reads, whole or not at all.

    The folder holds the config with the plan, as transformers' `quantization_config`, the
    generation config, and the weights as safetensors, in shards. Once `lowrank.transformers` is
    imported, `AutoModelForCausalLM.from_pretrained(folder)` and the like give the compressed
    model; without it transformers refuses the folder. A dense model is written as transformers
    does.

    Args:
        model: a `PreTrainedModel` as `compress`, `apply` or `finetune` returned it.
        folder: made if need be. Weights of an older model in it are replaced when the new
            ones are complete; other files stay.
        tokenizer: a tokenizer or processor to write beside it; or the folder of the dense
            model, whose tokenizer files are copied.
        max_shard_size: of a file, such as "5GB"; a tensor is never split.

    Raises:
        InputError: the model is none of transformers, its release is too old, or weights are
            in int8.
        CheckpointError: the model is not what its config and its plan would build again, or
            the folder cannot be written.

    Example:
        >>> import tempfile, torch, lowrank, transformers
        >>> size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        >>> config = transformers.LlamaConfig(vocab_size=64, num_attention_heads=2, **size)
        >>> model, ids = transformers.LlamaForCausalLM(config), torch.arange(8)[None]
        >>> small, _ = lowrank.compress(model, {"input_ids": ids}, params=0.7)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lowrank.save_pretrained(small, folder)
        ...     again = lowrank.load_pretrained(folder)
        >>> torch.equal(again(ids).logits, small(ids).logits)
        True
    """
    folder, model = Path(folder), unwrapped(model)
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        given = f"it is a {type(model).__name__}, no model of transformers"
        raise InputError("save_pretrained", given, "use lowrank.save")
    if is_compressed(model):
        written(model, folder, tokenizer=tokenizer, max_shard_size=max_shard_size)
        return
    with _writing(folder) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        write_tokenizer(tokenizer, temporary)


def is_compressed(model: nn.Module) -> bool:
    """Whether transformers' own code would write what it cannot read back."""
    made = any(is_made(module) for module in model.modules())
    return made or bool(records(model)) or bool(int8_layers(model))


def written(
    model: Any,
    folder: Path,
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    max_shard_size: int | str = SHARD,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a compressed model, of which the state may be given, to a folder."""
    check_release(str(folder))
    if quantized := int8_layers(model):
        problem = f"{quantized[0]} is in int8, which such a folder cannot hold"
        raise InputError(str(folder), problem, "write it before lowrank.quantize, or lowrank.save")
    plans = tuple((at, applied.plan) for at, applied in records(model))
    tensors = _tensors(model, plans, state, folder)
    with _writing(folder) as temporary:
        files = _write_weights(tensors, temporary, max_shard_size)
        write_config(model, Record(plans, files), temporary)
        write_tokenizer(tokenizer, temporary)


def check_release(where: str) -> None:
    """Refuse a release of transformers that cannot read such folders.

    Raises:
        InputError: says so.
    """
    import transformers

    numbers = tuple(int(n) for n in transformers.__version__.split(".")[:2])
    if numbers < NEEDED:
        problem = f"transformers {transformers.__version__} cannot read a compressed model back"
        advice = f"pip install 'transformers>={'.'.join(map(str, NEEDED))}', or use lowrank.save"
        raise InputError(where, problem, advice)


def _tensors(
    model: Any,
    plans: tuple[tuple[str, Plan], ...],
    state: Mapping[str, Tensor] | None,
    folder: Path,
) -> dict[str, Tensor]:
    """What goes into the files, after a comparison with what reading will build."""
    advice = "merge or take off what was added to the model, or use lowrank.save"
    try:
        trial = skeleton(model, plans)
    except LowRankError as error:
        problem = f"its plans do not fit what its config builds ({error.where}: {error.problem})"
        raise CheckpointError(str(folder), problem, advice) from error
    except Exception as error:  # a class may take more than its config
        problem = f"{type(model).__name__} cannot be built of its config ({first_line(error)})"
        raise CheckpointError(str(folder), problem, "use lowrank.save") from error
    tensors = dict(model.state_dict() if state is None else state)
    if odd := [n for n, t in tensors.items() if not isinstance(t, Tensor) or t.is_meta]:
        problem = f"{odd[0]} of its state is no tensor with values"
        raise CheckpointError(str(folder), problem, "load or gather the whole model first")
    sides = "the model", "what its config and plan build"
    if (odds := mismatch(shapes(tensors), shapes(trial.state_dict()), sides)) is not None:
        raise CheckpointError(str(folder), odds, advice)
    _check_types(tensors, trial, folder)
    for name, other in ties(trial).items():
        if not torch.equal(tensors.pop(name), tensors[other]):
            problem = f"{name} is not {other}, to which the model's config ties it"
            raise CheckpointError(str(folder), problem, "tie them, or say so in model.config")
    return tensors


def _check_types(tensors: Mapping[str, Tensor], trial: Any, folder: Path) -> None:
    """Refuse types of numbers that reading would change."""
    kept = [*(trial._keep_in_fp32_modules or ()), *(trial._keep_in_fp32_modules_strict or ())]
    for name, like in trial.state_dict().items():
        have = tensors[name].dtype
        if have != like.dtype and not any(word in name for word in kept):
            problem = f"{name} is {have}, and the model is {trial.dtype}"
            raise CheckpointError(str(folder), problem, f"call model.to({trial.dtype}) first")


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` when all are written."""
    if (folder / "adapter_config.json").exists():
        problem = "it holds an adapter, which transformers would read instead"
        raise CheckpointError(str(folder), problem, "name another folder")
    try:
        with filling(folder, last=CONFIG, stale=stale) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        advice = "check the folder and the space on it"
        raise CheckpointError(str(folder), f"cannot be written ({error})", advice) from error


_STALE = re.compile(
    r"(model|pytorch_model|lowrank)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?"
)


def stale(name: str) -> bool:
    """Whether a file holds weights of an older model, which a reader could take for the new's.

    Example:
        >>> stale("model-00001-of-00002.safetensors"), stale("notes.txt")
        (True, False)
    """
    return bool(_STALE.fullmatch(name))


def _write_weights(
    tensors: Mapping[str, Tensor], folder: Path, max_shard_size: int | str
) -> dict[str, str]:
    """Write the tensors; the files' names and digests."""
    from huggingface_hub import split_torch_state_dict_into_shards

    pattern = WEIGHTS.replace(".", "{suffix}.", 1)
    try:
        split = split_torch_state_dict_into_shards(
            dict(tensors), filename_pattern=pattern, max_shard_size=max_shard_size
        )
    except (ValueError, TypeError) as error:
        problem = f"{max_shard_size!r} is no size ({first_line(error)})"
        raise InputError("max_shard_size", problem, 'give one such as "5GB"') from error
    for file, names in split.filename_to_tensors.items():
        save_file({n: _alone(tensors[n]) for n in names}, folder / file, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return {file: file_digest(folder / file) for file in split.filename_to_tensors}


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in rows, on the CPU, over memory that no other one uses."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()


def write_config(
    model: Any, record: Record, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write the config with the plan, and what else transformers writes beside weights.

    Args:
        model: as it is built.
        record: what the config tells of its structure and files.
        folder: where to.
        dtype: of the weights in the files, if not the model's.
    """
    config = copy.deepcopy(model.config)
    config.dtype = str(dtype or model.dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    if model._auto_class is not None:
        from transformers.dynamic_module_utils import custom_object_save

        custom_object_save(model, folder, config=config)
    config.save_pretrained(folder)
    path = folder / CONFIG
    values = json.loads(path.read_text(encoding="utf-8"))
    values["quantization_config"] = record.to_dict()
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


_TOKENIZER = re.compile(
    r"(tokenizer|preprocessor|processor|video_preprocessor|special_tokens|added_tokens|vocab|"
    r"merges|spiece|sentencepiece|source|target|normalizer|chat_template)[\w.-]*"
    r"\.(json|txt|model|spm|jinja)|[\w.-]+\.tiktoken|bpe\.codes"
)
"""Files of tokenizers and processors."""


def write_tokenizer(tokenizer: Tokenizer | str | Path | None, folder: Path) -> None:
    """Write a tokenizer's files, or copy them from the folder that is named.

    Raises:
        InputError: it is neither.
    """
    if tokenizer is None:
        return
    if not isinstance(tokenizer, str | Path):
        if not hasattr(tokenizer, "save_pretrained"):
            problem = f"a {type(tokenizer).__name__} cannot write itself"
            raise InputError("tokenizer", problem, "pass a tokenizer, a processor or a folder")
        tokenizer.save_pretrained(str(folder))
        return
    source = Path(tokenizer)
    if not source.is_dir():
        raise InputError("tokenizer", f"there is no folder {source}", "pass the dense model's")
    for path in source.iterdir():
        if path.is_file() and _TOKENIZER.fullmatch(path.name):
            shutil.copyfile(path, folder / path.name)
    if (chats := source / "additional_chat_templates").is_dir():
        shutil.copytree(chats, folder / chats.name)


def guard() -> None:
    """Let transformers' own `save_pretrained` write compressed models as ours does.

    It is wrapped once, where transformers is loaded; models that `lowrank` did not change, and
    adapters alone, go through as before.
    """
    loaded = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    if loaded is None or hasattr(loaded.save_pretrained, _PLAIN):
        return
    plain = loaded.save_pretrained

    @functools.wraps(plain)
    def save(self: Any, save_directory: str | Path, *args: Any, **settings: Any) -> None:
        if getattr(self, "_hf_peft_config_loaded", False) or not is_compressed(self):
            plain(self, save_directory, *args, **settings)
            return
        given = inspect.signature(plain).bind(self, save_directory, *args, **settings).arguments
        _save_as_asked(self, Path(save_directory), given | given.pop("kwargs", {}))

    setattr(save, _PLAIN, plain)
    loaded.save_pretrained = save


_PLAIN = "_lowrank_plain"


def _save_as_asked(model: Any, folder: Path, given: Mapping[str, Any]) -> None:
    """Write what a call of transformers' `save_pretrained` asks for, or refuse it."""
    for name, allowed in _ALLOWED.items():
        if name in given and given[name] not in allowed:
            problem = f"{name}={given[name]!r} cannot be had for a compressed model"
            raise InputError("save_pretrained", problem, f"leave {name} out")
    if given.get("is_main_process", True):
        size = given.get("max_shard_size", SHARD)
        written(model, folder, max_shard_size=size, state=given.get("state_dict"))


_ALLOWED: Mapping[str, tuple[object, ...]] = {
    "push_to_hub": (False, None),  # model.push_to_hub(name) does it
    "variant": (None,),
    "safe_serialization": (True,),
    "distributed_checkpoint": (False,),
}
"""Arguments of transformers' `save_pretrained` that change what is written."""
