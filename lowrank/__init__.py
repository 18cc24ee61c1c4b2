"""Factorize trained networks under a budget; recover sparse signals with a certificate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lowrank.version import __version__

if TYPE_CHECKING:
    from lowrank.compression.calibration.settings import Calibration
    from lowrank.compression.fitting.batchnorm import recalibrate_batchnorm
    from lowrank.compression.fitting.finetune import finetune
    from lowrank.compression.fitting.soap import SOAP
    from lowrank.compression.gauges.generation import GenerationProfile, profile_generation
    from lowrank.compression.gauges.profile import profile
    from lowrank.compression.gauges.profile_table import Profile
    from lowrank.compression.methods import (
        CP,
        AdaptiveEmbedding,
        BiClustering,
        ChannelSVD,
        DepthwiseSeparable,
        GroupSVD,
        LegoNet,
        LowRankQuantized,
        LowRankSparse,
        Monochromatic,
        SharedInputSVD,
        SpatialSVD,
        TensorTrain,
        Tucker2,
        register,
    )
    from lowrank.compression.pipeline.apply import apply
    from lowrank.compression.pipeline.compress import compress
    from lowrank.compression.pipeline.export import export_onnx, export_program
    from lowrank.compression.pipeline.forecast import forecast
    from lowrank.compression.pipeline.quantize import quantize
    from lowrank.compression.pipeline.report import Report
    from lowrank.compression.pipeline.stream import compress_folder
    from lowrank.compression.pipeline.sweep import sweep
    from lowrank.compression.planning.curves import Curves
    from lowrank.compression.planning.measure import measure
    from lowrank.compression.planning.rules import Rules
    from lowrank.compression.structure.checkpoint import load, save
    from lowrank.compression.structure.choices import Dense, Tied
    from lowrank.compression.structure.history import densify
    from lowrank.compression.structure.plan import Plan
    from lowrank.compression.structure.pretrained.adapters import lora_targets
    from lowrank.compression.structure.pretrained.reading import load_pretrained
    from lowrank.compression.structure.pretrained.writing import save_pretrained
    from lowrank.errors import Interrupted, LowRankError
    from lowrank.sensing.recover import recover


_HOME = {
    "BiClustering": "lowrank.compression.methods",
    "CP": "lowrank.compression.methods",
    "Calibration": "lowrank.compression.calibration.settings",
    "AdaptiveEmbedding": "lowrank.compression.methods",
    "ChannelSVD": "lowrank.compression.methods",
    "Curves": "lowrank.compression.planning.curves",
    "Dense": "lowrank.compression.structure.choices",
    "DepthwiseSeparable": "lowrank.compression.methods",
    "GenerationProfile": "lowrank.compression.gauges.generation",
    "GroupSVD": "lowrank.compression.methods",
    "Interrupted": "lowrank.errors",
    "LegoNet": "lowrank.compression.methods",
    "LowRankError": "lowrank.errors",
    "LowRankQuantized": "lowrank.compression.methods",
    "LowRankSparse": "lowrank.compression.methods",
    "Monochromatic": "lowrank.compression.methods",
    "Plan": "lowrank.compression.structure.plan",
    "Profile": "lowrank.compression.gauges.profile_table",
    "Report": "lowrank.compression.pipeline.report",
    "Rules": "lowrank.compression.planning.rules",
    "SOAP": "lowrank.compression.fitting.soap",
    "SharedInputSVD": "lowrank.compression.methods",
    "SpatialSVD": "lowrank.compression.methods",
    "TensorTrain": "lowrank.compression.methods",
    "Tied": "lowrank.compression.structure.choices",
    "Tucker2": "lowrank.compression.methods",
    "apply": "lowrank.compression.pipeline.apply",
    "compress": "lowrank.compression.pipeline.compress",
    "compress_folder": "lowrank.compression.pipeline.stream",
    "densify": "lowrank.compression.structure.history",
    "export_onnx": "lowrank.compression.pipeline.export",
    "export_program": "lowrank.compression.pipeline.export",
    "finetune": "lowrank.compression.fitting.finetune",
    "forecast": "lowrank.compression.pipeline.forecast",
    "load": "lowrank.compression.structure.checkpoint",
    "load_pretrained": "lowrank.compression.structure.pretrained.reading",
    "lora_targets": "lowrank.compression.structure.pretrained.adapters",
    "measure": "lowrank.compression.planning.measure",
    "profile": "lowrank.compression.gauges.profile",
    "profile_generation": "lowrank.compression.gauges.generation",
    "quantize": "lowrank.compression.pipeline.quantize",
    "recalibrate_batchnorm": "lowrank.compression.fitting.batchnorm",
    "recover": "lowrank.sensing",
    "register": "lowrank.compression.methods",
    "save": "lowrank.compression.structure.checkpoint",
    "save_pretrained": "lowrank.compression.structure.pretrained.writing",
    "sweep": "lowrank.compression.pipeline.sweep",
}
"""Public name -> the module it lives in; imported on first use, so `import lowrank` is quick."""


__all__ = [*_HOME, "__version__"]


_PACKAGES = ("compression", "decompositions", "evaluate", "plots", "sensing")
"""What else `import lowrank` alone reaches, as in `lowrank.sensing.bases`."""


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})
