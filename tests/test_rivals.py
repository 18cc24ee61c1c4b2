"""Curves and probes that are spared where they would come to nothing, or take too long."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch

import lowrank
from lowrank.compression import LayerSpec
from lowrank.compression.methods import CP, Method, SpatialSVD
from lowrank.compression.methods import cp as methods_cp
from lowrank.compression.methods.shared import error_curves
from lowrank.compression.planning.sensitivity import _most_probed
from lowrank.decompositions.cp import cp
from lowrank.decompositions.factors import CPFactors
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


@pytest.mark.parametrize("macs", [0.8, 0.1])
def test_cp_alone_has_ranks_for_every_budget(macs: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_curves, "_WIDE", 8)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, 1, 1, bias=False))
    few = torch.randn(32, 4) @ torch.randn(4, 32) + 0.01 * torch.randn(32, 32)
    with torch.no_grad():
        net[0].weight.copy_(torch.einsum("oa,aihw->oihw", few, net[0].weight))
    x = torch.randn(4, 32, 8, 8)
    _, report = lowrank.compress(net, x[:1], macs=macs, data=x, methods=["cp"])
    assert macs - 0.05 < report.kept("macs") <= macs


@pytest.mark.parametrize("groups", [1, 2])
def test_without_data_no_fit_of_a_curve_takes_more_work_than_allowed(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[float] = []

    def counted(T: torch.Tensor, rank: int, **how: Any) -> CPFactors:
        taken.append((2 * T.numel() * rank + rank**3 + 89 * rank**2) * how["max_iter"])
        return cp(T, rank, **how)

    allowed = 4e6 if groups == 1 else 8e6
    monkeypatch.setattr(methods_cp, "_CURVE_WORK", allowed)
    monkeypatch.setattr(methods_cp, "cp", counted)
    spec = LayerSpec("conv", 40 * groups, 40 * groups, groups=groups, kernel=(3, 3))
    found = list(CP.candidates(spec, torch.randn(groups, 40, 40, 3, 3), round_to=1, seed=0))
    assert found
    assert groups * max(taken) <= 1.1 * allowed


@pytest.mark.parametrize(("full", "most"), [(SKETCHED_FROM - 1, inf), (SKETCHED_FROM, 256)])
def test_very_wide_layers_are_probed_at_low_ranks(full: int, most: float) -> None:
    assert _most_probed(LayerSpec("linear", full, 3000)) == most
