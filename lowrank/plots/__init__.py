"""Pictures of results: colour-blind safe, readable in grey, labelled with units.

Results draw themselves by their `plot` method, which hands the plain rows and arrays that these
functions take down to them. `lowrank.sensing.plots.recovery` draws a recovery's panels.
"""

from __future__ import annotations

from lowrank.compression.pictures.curves import RankLine, error_against_rank, spectrum, trade_off
from lowrank.compression.pictures.plan import Bar, plan_bars, predicted_against_measured
from lowrank.compression.pictures.sweep import sweep_curve
from lowrank.decompositions.pictures import video_frames
from lowrank.drawing import Measure, convergence
from lowrank.sensing.plots import phase_map, regularisation_path, selection, support

__all__ = [
    "Bar",
    "Measure",
    "RankLine",
    "convergence",
    "error_against_rank",
    "phase_map",
    "plan_bars",
    "predicted_against_measured",
    "regularisation_path",
    "selection",
    "spectrum",
    "support",
    "sweep_curve",
    "trade_off",
    "video_frames",
]
