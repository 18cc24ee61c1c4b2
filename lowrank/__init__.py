"""Factorize trained networks under a budget; recover sparse signals with a certificate."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lowrank.version import __version__

if TYPE_CHECKING:
    from lowrank.compression.apply import apply, densify
    from lowrank.compression.batchnorm import recalibrate_batchnorm
    from lowrank.compression.checkpoint import load, save
    from lowrank.compression.compress import compress
    from lowrank.compression.export import export_onnx, export_program
    from lowrank.compression.finetune import finetune
    from lowrank.compression.measuring import measure
    from lowrank.compression.methods import (
        CP,
        BiClustering,
        ChannelSVD,
        DepthwiseSeparable,
        GroupSVD,
        LegoNet,
        LowRankSparse,
        Monochromatic,
        SpatialSVD,
        TensorTrain,
        Tucker2,
        register,
    )
    from lowrank.compression.plan import Dense, Plan, Tied
    from lowrank.compression.profile import Profile, profile
    from lowrank.compression.quantize import quantize
    from lowrank.compression.report import Report
    from lowrank.compression.soap import SOAP
    from lowrank.compression.tradeoff import sweep
    from lowrank.errors import LowRankError
    from lowrank.sensing.recover import recover

_HOME = {
    "BiClustering": "lowrank.compression.methods",
    "CP": "lowrank.compression.methods",
    "ChannelSVD": "lowrank.compression.methods",
    "Dense": "lowrank.compression.plan",
    "DepthwiseSeparable": "lowrank.compression.methods",
    "GroupSVD": "lowrank.compression.methods",
    "LegoNet": "lowrank.compression.methods",
    "LowRankError": "lowrank.errors",
    "LowRankSparse": "lowrank.compression.methods",
    "Monochromatic": "lowrank.compression.methods",
    "Plan": "lowrank.compression.plan",
    "Profile": "lowrank.compression.profile",
    "Report": "lowrank.compression.report",
    "SOAP": "lowrank.compression.soap",
    "SpatialSVD": "lowrank.compression.methods",
    "TensorTrain": "lowrank.compression.methods",
    "Tied": "lowrank.compression.plan",
    "Tucker2": "lowrank.compression.methods",
    "apply": "lowrank.compression.apply",
    "compress": "lowrank.compression.compress",
    "densify": "lowrank.compression.apply",
    "export_onnx": "lowrank.compression.export",
    "export_program": "lowrank.compression.export",
    "finetune": "lowrank.compression.finetune",
    "load": "lowrank.compression.checkpoint",
    "measure": "lowrank.compression.measuring",
    "profile": "lowrank.compression.profile",
    "quantize": "lowrank.compression.quantize",
    "recalibrate_batchnorm": "lowrank.compression.batchnorm",
    "recover": "lowrank.sensing",
    "register": "lowrank.compression.methods",
    "save": "lowrank.compression.checkpoint",
    "sweep": "lowrank.compression.tradeoff",
}
"""Public name -> the module it lives in; imported on first use, so `import lowrank` is quick."""

_PACKAGES = ("compression", "decompositions", "plots", "sensing")
"""What else `import lowrank` alone reaches, as in `lowrank.sensing.bases`."""

__all__ = [*_HOME, "__version__"]


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
