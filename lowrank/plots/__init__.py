"""Pictures of results: colour-blind safe, readable in grey, labelled with units.

Each function takes a result and, where it draws one picture, axes to draw on; results have a
`plot` method that calls it. `lowrank.sensing.plots.recovery` draws a recovery's panels.
"""

from lowrank.decompositions.pictures import video_frames
from lowrank.plots.curves import error_against_rank, spectrum, trade_off
from lowrank.plots.plan import plan_bars, predicted_against_measured
from lowrank.plots.style import Measure, convergence
from lowrank.plots.sweep import sweep_curve
from lowrank.sensing.plots import phase_map, regularisation_path, selection, support

__all__ = [
    "Measure",
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
