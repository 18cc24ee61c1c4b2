"""What transformers calls to read a compressed model: registered when this is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowrank.compression.structure.attention import Attention
from lowrank.compression.structure.experts import Experts
from lowrank.compression.structure.history import part_of, records
from lowrank.compression.structure.pretrained.building import build, mismatch, shapes
from lowrank.compression.structure.pretrained.record import CONFIG, METHOD, Record
from lowrank.compression.structure.pretrained.writing import check_release, guard
from lowrank.errors import CheckpointError, PlanError

check_release("lowrank.transformers")


@register_quantization_config(METHOD)
class LowRankConfig(QuantizationConfigMixin):
    """The plans and digests of a folder, as transformers hands a `quantization_config` on.

    Args:
        quant_method: "lowrank".
        values: of the record in `config.json`.

    Raises:
        CheckpointError: the values are damaged, or of another release.
    """

    quant_method: Any

    def __init__(self, quant_method: str = METHOD, **values: Any) -> None:
        self.quant_method = quant_method
        self.record = Record.from_dict({"quant_method": quant_method, **values})

    def to_dict(self) -> dict[str, Any]:
        """The values that it is made of."""
        return self.record.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: nothing of it has a default."""
        return self.to_dict()


@register_quantizer(METHOD)
class LowRankQuantizer(HfQuantizer):
    """Builds factors into a model before its weights are read, and takes itself off after that.

    What is read is a model as `compress` returns it: no quantized one to transformers, so that
    it trains, changes its type and goes to other devices freely.
    """

    requires_calibration = True  # a dense model is compressed by `lowrank.compress`

    @property
    def is_trainable(self) -> bool:
        """It is."""
        return True

    def is_serializable(self, *args: Any, **settings: Any) -> bool:
        """It is."""
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """Say which files hold the weights; this sees the config before they are looked for."""
        config.transformers_weights = self._record.entry
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """The same, for releases that call this instead."""
        return self.update_attn_implementation(config)

    def update_weight_conversions(self, weight_conversions: object, model: object = None) -> Any:
        """None: the files name the weights as the model does."""
        return []

    def preprocess_model(
        self, model: Any, *args: Any, checkpoint_files: Sequence[str] | None = None, **rest: Any
    ) -> None:
        """Check the files, build the factors, and check that the files fill them.

        Raises:
            CheckpointError: the files are altered or incomplete, or for another class.
        """
        _check_class(model)
        if not checkpoint_files:
            problem = "weights that are given as a state cannot be checked"
            raise CheckpointError("from_pretrained", problem, "give the folder")
        paths = [Path(file) for file in checkpoint_files]
        self._record.check_files(paths)
        try:
            build(model, self._record.plans)
        except PlanError as error:
            raise CheckpointError(
                CONFIG, f"its plan does not fit its model ({error.where}: {error.problem})",
                "copy or save the whole folder again",
            ) from error  # fmt: skip
        _check_fit(model, paths)
        for module, named in _stand_ins(model):
            module.__dict__ |= named
        model.__dict__[_GETTER] = partial(_parameter_or_buffer, model)

    def postprocess_model(self, model: Any, **settings: Any) -> Any:
        """Take off what marks the model as quantized."""
        for holder, names in ((model, ("hf_quantizer",)), (model.config, _MARKS)):
            for name in names:
                if name in vars(holder):
                    delattr(holder, name)
        for module, named in _stand_ins(model):
            for name in named:
                del module.__dict__[name]
        for chain, _ in _replaced(model):
            _settle_empty(chain)
        del model.__dict__[_GETTER]
        guard()
        return model

    @property
    def _record(self) -> Record:
        config = self.quantization_config
        assert isinstance(config, LowRankConfig)
        return config.record


_MARKS = ("quantization_config", "transformers_weights")

_GETTER = "get_parameter"


def _parameter_or_buffer(model: Any, name: str) -> Tensor:
    """What is tied, which transformers takes to be a parameter: packed weights are buffers."""
    parent, _, own = name.rpartition(".")
    held = model.get_submodule(parent)
    return held._buffers[own] if own in held._buffers else type(model).get_parameter(model, name)


def _replaced(model: Any) -> Iterator[tuple[nn.Module, nn.Module]]:
    """What plans put into a model, and the dense layer in whose place each is."""
    for at, applied in records(model):
        part = part_of(model, at)
        for name, shell in applied.originals.items():
            yield part.get_submodule(name), shell


def _stand_ins(model: Any) -> Iterator[tuple[nn.Module, dict[str, object]]]:
    """What stands in a dense layer's place -> that layer's weights, marked as read.

    Behind reading, transformers initializes what was not read. Some models do that from above,
    as in `init.normal_(module.c_proj.weight)`, and would not find the layers of a plan, nor the
    packed weights of what is taken apart. What is marked is left as it is, be it a module.
    """
    for chain, shell in _replaced(model):
        yield chain, {n: _read(p.detach()) for n, p in shell.named_parameters(recurse=False)}
    for module in model.modules():
        if isinstance(module, Attention):
            packed = ("in_proj_weight", "in_proj_bias")
            yield module, {name: _read(torch.empty(0, device="meta")) for name in packed}
        elif isinstance(module, Experts):
            for part in module.children():
                yield part, {_IS_READ: True}


_IS_READ = "_is_hf_initialized"


def _read(tensor: Tensor) -> Tensor:
    setattr(tensor, _IS_READ, True)
    return tensor


def _settle_empty(chain: nn.Module) -> None:
    """Give the empty tensors, which say what type a layer has, the type that was read: some
    models keep layers of certain names in float32."""
    factor = next((p for p in chain.parameters() if p.is_floating_point()), None)
    for name, empty in chain._buffers.items():
        if factor is not None and empty is not None and not empty.numel():
            chain._buffers[name] = empty.to(factor.device, factor.dtype)


def _check_class(model: Any) -> None:
    """Refuse a class with other layers than the one that was compressed."""
    kind, saved = type(model).__name__, list(model.config.architectures or ())
    if kind not in saved:
        problem = f"it holds a {' or '.join(saved)}, and a {kind} was asked for"
        advice = "use lowrank.load_pretrained, or the auto class of that model"
        raise CheckpointError(CONFIG, problem, advice)


def _check_fit(model: Any, paths: Sequence[Path]) -> None:
    """Refuse files that lack a tensor, or hold one that the model has no place for."""
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        found |= _shapes_in(path)
    tied = model.all_tied_weights_keys
    want = {n: shape for n, shape in shapes(model.state_dict()).items() if n not in tied}
    if (problem := mismatch(found, want, ("the files", "what the plan builds"))) is not None:
        raise CheckpointError(str(paths[0].parent), problem, "save the model again")


def _shapes_in(path: Path) -> Mapping[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError, ValueError) as error:
        problem = f"it is no whole safetensors file ({error})"
        raise CheckpointError(str(path), problem, "copy or save it again") from error
