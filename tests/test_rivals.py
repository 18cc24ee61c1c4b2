"""Curves and probes that are spared where they would come to nothing, or take too long."""

from __future__ import annotations

from math import inf

import pytest
import torch

from lowrank.compression import LayerSpec
from lowrank.compression.methods import CP, Method, SpatialSVD
from lowrank.compression.methods.shared import error_curves
from lowrank.compression.planning.sensitivity import _most_probed
from lowrank.decompositions.metric import WORK, Metric
from lowrank.linalg import SKETCHED_FROM

SPEC = LayerSpec("conv", 8, 8, kernel=(3, 3), padding=(1, 1))


def _ranks(cls: type[Method], rivals: list[tuple[int, float]], work: float) -> int:
    """How many ranks a method offers a layer beside what was found before."""
    torch.manual_seed(0)
    X = torch.randn(200, 72).double()
    metric = Metric((X.T @ X / 200)[None], work=work)
    metric.rivals.extend(rivals)
    weight = torch.randn(1, 8, 8, 3, 3)
    found = list(cls.candidates(SPEC, weight, round_to=1, seed=0, metric=metric))
    assert all(0 <= error <= 1 for _, error in found)
    return len(found)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("cls", [SpatialSVD, CP])
@pytest.mark.parametrize("what", ["far closer", "no closer", "larger", "narrow", "thorough"])
def test_a_method_that_others_outdo_has_one_rank_a_form(
    cls: type[Method], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(error_curves, "_WIDE", 9 if what == "narrow" else 8)
    n_weights = 10**6 if what == "larger" else 1
    rivals = [(n_weights, 0.99 if what == "no closer" else 1e-9)]
    found = _ranks(cls, rivals, WORK if what == "thorough" else WORK / 10)
    assert (found == 2) == (what == "far closer")  # two axes, or two kernels


@pytest.mark.parametrize(("full", "most"), [(SKETCHED_FROM - 1, inf), (SKETCHED_FROM, 256)])
def test_very_wide_layers_are_probed_at_low_ranks(full: int, most: float) -> None:
    assert _most_probed(LayerSpec("linear", full, 3000)) == most
