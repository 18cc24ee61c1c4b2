"""What one layer's fit aims at."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lowrank.decompositions.metric import Metric


@dataclass(frozen=True, eq=False)
class Goal:
    """What a layer should become.

    Args:
        weight: the canonical weight that comes closest to the target, before factorization.
        metric: in which its factorization should be close.
        mean_in: mean of the inputs (groups, d).
        mean_out: mean of the targets (groups, o), as seen without the bias.
        centred: the mean is taken by a bias or a batch norm.
    """

    weight: Tensor
    metric: Metric
    mean_in: Tensor
    mean_out: Tensor
    centred: bool
