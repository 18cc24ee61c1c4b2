"""A trained network and a budget in, a smaller network out: the public names of its rooms."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lowrank.compression.calibration.calibrate import Calibrated as Calibrated
    from lowrank.compression.calibration.calibrate import calibrate as calibrate
    from lowrank.compression.calibration.downstream import Downstream as Downstream
    from lowrank.compression.calibration.downstream import find_downstream as find_downstream
    from lowrank.compression.calibration.goals import Fitting as Fitting
    from lowrank.compression.calibration.moments import DAMPING as DAMPING
    from lowrank.compression.calibration.moments import Moments as Moments
    from lowrank.compression.calibration.moments import Sums as Sums
    from lowrank.compression.calibration.moments import rows_of_a_draw as rows_of_a_draw
    from lowrank.compression.calibration.patches import n_positions as n_positions
    from lowrank.compression.calibration.patches import outputs as outputs
    from lowrank.compression.calibration.patches import patches as patches
    from lowrank.compression.calibration.statistics import Statistics as Statistics
    from lowrank.compression.fitting.batchnorm import recalibrate_batchnorm as recalibrate_batchnorm
    from lowrank.compression.fitting.blocks import Trained as Trained
    from lowrank.compression.fitting.blocks import find_blocks as find_blocks
    from lowrank.compression.fitting.blocks import train_blocks as train_blocks
    from lowrank.compression.fitting.distillation import Objective as Objective
    from lowrank.compression.fitting.distillation import relative_mse as relative_mse
    from lowrank.compression.fitting.distillation import softened_kl as softened_kl
    from lowrank.compression.fitting.finetune import cosine as cosine
    from lowrank.compression.fitting.finetune import finetune as finetune
    from lowrank.compression.fitting.layerwise import replace_layers as replace_layers
    from lowrank.compression.fitting.penalty import Penalty as Penalty
    from lowrank.compression.fitting.refine import Trial as Trial
    from lowrank.compression.fitting.refine import distil as distil
    from lowrank.compression.fitting.refine import refine as refine
    from lowrank.compression.fitting.refine import try_out as try_out
    from lowrank.compression.fitting.relaxation import relaxed as relaxed
    from lowrank.compression.fitting.soap import SOAP as SOAP
    from lowrank.compression.gauges.counting import TOTAL as TOTAL
    from lowrank.compression.gauges.counting import count_macs as count_macs
    from lowrank.compression.gauges.memory import chain_bytes as chain_bytes
    from lowrank.compression.gauges.memory import measure_memory as measure_memory
    from lowrank.compression.gauges.profile import profile as profile
    from lowrank.compression.gauges.profile_table import Profile as Profile
    from lowrank.compression.gauges.profile_table import merge_alike as merge_alike
    from lowrank.compression.gauges.quality import Quality as Quality
    from lowrank.compression.gauges.quality import accuracy as accuracy
    from lowrank.compression.gauges.quality import compare_outputs as compare_outputs
    from lowrank.compression.gauges.quality import is_scores as is_scores
    from lowrank.compression.gauges.quality import vocabularies as vocabularies
    from lowrank.compression.gauges.timing import Stopwatch as Stopwatch
    from lowrank.compression.gauges.timing import compare_latency as compare_latency
    from lowrank.compression.gauges.timing import in_turns as in_turns
    from lowrank.compression.gauges.timing import measure_latency as measure_latency
    from lowrank.compression.network.batches import Batch as Batch
    from lowrank.compression.network.batches import Batches as Batches
    from lowrank.compression.network.batches import Form as Form
    from lowrank.compression.network.batches import calibration_batches as calibration_batches
    from lowrank.compression.network.batches import mixable as mixable
    from lowrank.compression.network.batches import taken as taken
    from lowrank.compression.network.cutting import can_be_cut as can_be_cut
    from lowrank.compression.network.cutting import held_out as held_out
    from lowrank.compression.network.cutting import split_batches as split_batches
    from lowrank.compression.network.example import batch_size as batch_size
    from lowrank.compression.network.example import check as check
    from lowrank.compression.network.example import run as run
    from lowrank.compression.network.layers import LayerView as LayerView
    from lowrank.compression.network.layers import spec_of as spec_of
    from lowrank.compression.network.own_stages import Branches as Branches
    from lowrank.compression.network.own_stages import Sparse as Sparse
    from lowrank.compression.network.own_stages import is_int8 as is_int8
    from lowrank.compression.network.own_stages import weight_bytes as weight_bytes
    from lowrank.compression.network.prefix_cache import PrefixCache as PrefixCache
    from lowrank.compression.network.prefix_cache import Reached as Reached
    from lowrank.compression.network.scan import scan as scan
    from lowrank.compression.network.stages import Call as Call
    from lowrank.compression.network.stages import Factor as Factor
    from lowrank.compression.network.stages import GroupedLinear as GroupedLinear
    from lowrank.compression.network.stages import LayerSpec as LayerSpec
    from lowrank.compression.network.stages import OwnStage as OwnStage
    from lowrank.compression.network.stages import Stage as Stage
    from lowrank.compression.network.stages import canonical as canonical
    from lowrank.compression.network.stages import compose as compose
    from lowrank.compression.network.stages import module_layout as module_layout
    from lowrank.compression.network.tensors import flatten as flatten
    from lowrank.compression.network.units import Alone as Alone
    from lowrank.compression.pipeline.forecast import Forecast as Forecast
    from lowrank.compression.pipeline.html import save_compression as save_compression
    from lowrank.compression.pipeline.quantize import Quantized as Quantized
    from lowrank.compression.planning.candidates import Candidate as Candidate
    from lowrank.compression.planning.candidates import Curve as Curve
    from lowrank.compression.planning.clock import TRIES as TRIES
    from lowrank.compression.planning.curves import Curves as Curves
    from lowrank.compression.planning.knapsack import Choices as Choices
    from lowrank.compression.planning.layer_times import GRID as GRID
    from lowrank.compression.planning.layer_times import LayerTimer as LayerTimer
    from lowrank.compression.planning.layer_times import runs_channels_last as runs_channels_last
    from lowrank.compression.planning.layer_times import time_layers as time_layers
    from lowrank.compression.planning.rounding import Rounding as Rounding
    from lowrank.compression.planning.sensitivity import probe as probe
    from lowrank.compression.planning.weighting import weighed_plan as weighed_plan
    from lowrank.compression.structure.choices import Dense as Dense
    from lowrank.compression.structure.int8 import quantize_linear as quantize_linear
    from lowrank.compression.structure.int8 import reasons_against as reasons_against
    from lowrank.compression.structure.int8 import require_torchao as require_torchao
    from lowrank.compression.structure.int8 import rounded as rounded
    from lowrank.compression.structure.int8 import stage_bytes as stage_bytes
    from lowrank.compression.structure.plan import Plan as Plan

_HOME = {
    "Alone": "network.units",
    "Batch": "network.batches",
    "Batches": "network.batches",
    "Branches": "network.own_stages",
    "Calibrated": "calibration.calibrate",
    "Call": "network.stages",
    "Candidate": "planning.candidates",
    "Choices": "planning.knapsack",
    "Curve": "planning.candidates",
    "Curves": "planning.curves",
    "DAMPING": "calibration.moments",
    "Dense": "structure.choices",
    "Downstream": "calibration.downstream",
    "Factor": "network.stages",
    "Fitting": "calibration.goals",
    "Form": "network.batches",
    "GRID": "planning.layer_times",
    "GroupedLinear": "network.stages",
    "LayerSpec": "network.stages",
    "LayerTimer": "planning.layer_times",
    "LayerView": "network.layers",
    "Moments": "calibration.moments",
    "Objective": "fitting.distillation",
    "OwnStage": "network.stages",
    "Plan": "structure.plan",
    "PrefixCache": "network.prefix_cache",
    "Profile": "gauges.profile_table",
    "Quality": "gauges.quality",
    "Forecast": "pipeline.forecast",
    "Quantized": "pipeline.quantize",
    "Reached": "network.prefix_cache",
    "Rounding": "planning.rounding",
    "Penalty": "fitting.penalty",
    "SOAP": "fitting.soap",
    "Sparse": "network.own_stages",
    "Stage": "network.stages",
    "Statistics": "calibration.statistics",
    "Stopwatch": "gauges.timing",
    "Sums": "calibration.moments",
    "TOTAL": "gauges.counting",
    "TRIES": "planning.clock",
    "Trained": "fitting.blocks",
    "Trial": "fitting.refine",
    "accuracy": "gauges.quality",
    "batch_size": "network.example",
    "calibrate": "calibration.calibrate",
    "calibration_batches": "network.batches",
    "can_be_cut": "network.cutting",
    "canonical": "network.stages",
    "chain_bytes": "gauges.memory",
    "check": "network.example",
    "compare_latency": "gauges.timing",
    "compare_outputs": "gauges.quality",
    "compose": "network.stages",
    "cosine": "fitting.finetune",
    "count_macs": "gauges.counting",
    "distil": "fitting.refine",
    "find_blocks": "fitting.blocks",
    "find_downstream": "calibration.downstream",
    "finetune": "fitting.finetune",
    "flatten": "network.tensors",
    "held_out": "network.cutting",
    "in_turns": "gauges.timing",
    "is_int8": "network.own_stages",
    "is_scores": "gauges.quality",
    "measure_latency": "gauges.timing",
    "measure_memory": "gauges.memory",
    "merge_alike": "gauges.profile_table",
    "mixable": "network.batches",
    "module_layout": "network.stages",
    "n_positions": "calibration.patches",
    "outputs": "calibration.patches",
    "patches": "calibration.patches",
    "probe": "planning.sensitivity",
    "profile": "gauges.profile",
    "quantize_linear": "structure.int8",
    "reasons_against": "structure.int8",
    "recalibrate_batchnorm": "fitting.batchnorm",
    "refine": "fitting.refine",
    "relative_mse": "fitting.distillation",
    "relaxed": "fitting.relaxation",
    "replace_layers": "fitting.layerwise",
    "require_torchao": "structure.int8",
    "rounded": "structure.int8",
    "rows_of_a_draw": "calibration.moments",
    "run": "network.example",
    "runs_channels_last": "planning.layer_times",
    "save_compression": "pipeline.html",
    "scan": "network.scan",
    "softened_kl": "fitting.distillation",
    "spec_of": "network.layers",
    "split_batches": "network.cutting",
    "stage_bytes": "structure.int8",
    "taken": "network.batches",
    "time_layers": "planning.layer_times",
    "train_blocks": "fitting.blocks",
    "try_out": "fitting.refine",
    "vocabularies": "gauges.quality",
    "weighed_plan": "planning.weighting",
    "weight_bytes": "network.own_stages",
}
"""Public name -> the module that it is imported from when it is asked for."""

__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
