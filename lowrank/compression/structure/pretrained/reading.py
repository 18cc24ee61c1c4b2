"""Read a folder of transformers' form, compressed or dense: all of it, or an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lowrank.compression.network.example import first_line
from lowrank.compression.structure.pretrained.record import CONFIG, METHOD
from lowrank.errors import CheckpointError, InputError, LowRankError


def load_pretrained(folder: str | Path, **settings: Any) -> Any:
    """The model in a folder, of the class that its config names, with every weight from it.

    Args:
        folder: what `lowrank.save_pretrained` or transformers' own wrote; or a .gguf file, or a
            folder of one, whose weights are unpacked to floating point.
        **settings: go to transformers' `from_pretrained`: dtype, device_map and the like.

    Returns:
        The model, in evaluation mode. A compressed one is as `compress` returned it.

    Raises:
        InputError: transformers is missing or too old, or the folder holds no model of its, or
            one that is quantized otherwise.
        CheckpointError: the plan or the weights are missing, damaged or altered.

    Example: see `lowrank.save_pretrained`.
    """
    folder = Path(folder)
    if (packed := packed_file(folder)) is not None:
        return _unpacked(packed, settings)
    values = config_of(folder)
    quantized = values.get("quantization_config")
    refuse_quantized(folder, values)
    transformers = required_transformers(folder)
    if quantized is not None:
        import lowrank.compression.structure.pretrained.quantizer  # noqa: F401  registers itself
    builder = class_of(transformers, values)
    try:
        model, info = builder.from_pretrained(folder, output_loading_info=True, **settings)
    except LowRankError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError) as error:
        advice = "copy or save it again with save_pretrained"
        problem = f"no weights to load ({first_line(error)})"
        raise CheckpointError(str(folder), problem, advice) from error
    _refuse_missing(folder, info)
    return model


def packed_file(path: Path) -> Path | None:
    """The GGUF file that is meant, if one is."""
    if path.suffix == ".gguf" and path.is_file():
        return path
    found = [] if (path / CONFIG).exists() else sorted(path.glob("*.gguf"))
    if len(found) > 1:
        problem = f"it holds {len(found)} .gguf files and no {CONFIG}"
        raise InputError(str(path), problem, "name one of the files")
    return found[0] if found else None


def _unpacked(path: Path, settings: Mapping[str, Any]) -> Any:
    """A dense causal language model of a GGUF file's weights."""
    transformers = required_transformers(path)
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        problem = f"transformers reads a GGUF file with {' and '.join(missing)}, not installed here"
        raise InputError(str(path), problem, f"pip install {' '.join(missing)}")
    if (config := getattr(transformers, "GgufConfig", None)) is not None:
        settings = {"quantization_config": config(dequantize=True), **settings}
    kind = transformers.AutoModelForCausalLM
    try:
        model, info = kind.from_pretrained(
            path.parent, gguf_file=path.name, output_loading_info=True, **settings
        )
    except Exception as error:  # readers of such files have their own
        problem = f"no weights to load ({type(error).__name__}: {first_line(error)})"
        raise CheckpointError(str(path), problem, "take a whole file of a known model") from error
    _refuse_missing(path, info)
    return model


def _refuse_missing(path: Path, info: Mapping[str, Any]) -> None:
    for name in sorted(info["missing_keys"]):  # transformers would go on with random numbers
        raise CheckpointError(str(path), f"the weights lack {name}", "save the whole model")


def required_transformers(folder: Path) -> Any:
    """The package transformers.

    Raises:
        InputError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        advice = "pip install 'lowrank-kit[transformers]'"
        raise InputError(str(folder), "transformers is not installed", advice) from error
    return transformers


_DEQUANTIZE = (
    "dequantize first: m = AutoModelForCausalLM.from_pretrained(folder), or the class that it "
    "is of; m.dequantize(); m.save_pretrained(another)"
)


def refuse_quantized(folder: Path, values: Mapping[str, Any]) -> None:
    """Refuse weights that others than `lowrank` have packed.

    Raises:
        InputError: says how to unpack them.
    """
    quantized = values.get("quantization_config")
    if quantized is not None and quantized.get("quant_method") != METHOD:
        method = quantized.get("quant_method", "an unknown method")
        raise InputError(str(folder), f"its weights are quantized by {method}", _DEQUANTIZE)


def config_of(folder: Path) -> Mapping[str, Any]:
    """The values of a folder's config.

    Raises:
        InputError: there is none, or it is not readable.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        problem = f"it holds no {CONFIG}" if folder.is_dir() else "there is no such folder"
        raise InputError(str(folder), problem, "name a save_pretrained folder") from error
    except (OSError, ValueError) as error:
        problem = f"its config is not readable ({first_line(error)})"
        raise InputError(str(folder), problem, "save it again") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        problem = f"its {CONFIG} names no model of transformers"
        raise InputError(str(folder), problem, "name a save_pretrained folder")
    return values


def class_of(transformers: Any, values: Mapping[str, Any]) -> Any:
    """The architecture that the config names, head and all; else the bare model."""
    for name in values.get("architectures") or ():
        found = getattr(transformers, name, None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel
