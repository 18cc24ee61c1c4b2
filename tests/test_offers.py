"""What methods offer the planner can be built: ranks that fit each other and the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lowrank
from lowrank.compression import scan
from lowrank.compression.methods import known
from lowrank.errors import RankError

LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv": (nn.Conv2d(12, 18, 3), (6, 12, 5, 5)),
    "many outputs": (nn.Conv2d(3, 24, 2), (6, 3, 5, 5)),
    "many inputs": (nn.Conv2d(24, 3, (1, 3)), (6, 24, 5, 5)),
    "along a line": (nn.Conv1d(6, 9, 2), (6, 6, 9)),
    "transposed": (nn.ConvTranspose2d(12, 5, 3), (6, 12, 4, 4)),
    "grouped": (nn.Conv2d(12, 18, 3, groups=3), (6, 12, 5, 5)),
    "one output": (nn.Linear(24, 1), (6, 24)),
    "one input": (nn.Linear(1, 24), (6, 1)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("fitted", [False, True])
def test_whatever_is_offered_fits_its_layer(kind: str, fitted: bool) -> None:
    layer, shape = LAYERS[kind]
    torch.manual_seed(0)
    net, x = nn.Sequential(layer).eval(), torch.randn(shape)
    (view,) = scan(net, x).views
    names = [n for n, m in known().items() if "alone" in m.serves and not m.supports(view.spec)]
    if fitted:
        names = [n for n in names if n in ("channel_svd", "tucker2")]
    settings = lowrank.Calibration(weighting="outputs")
    curves = lowrank.measure(
        net, x, methods=names, data=x if fitted else None, calibration=settings
    )
    methods = [c.method for c in curves.curves[0].candidates]
    assert not [m for m in methods if m.check(view.spec)]
    for cls in {type(m) for m in methods}:
        mine = [m for m in methods if type(m) is cls]
        for method in (mine[0], mine[len(mine) // 2], mine[-1]):
            stages = method.stages(view.spec)
            factors = method.factor(view.spec, view.weight(), seed=0, max_iter=1)
            for stage, factor in zip(stages, factors, strict=True):
                stage.write(stage.build(dtype=torch.float32, device="cpu"), factor)


@pytest.mark.parametrize("ranks", [(10, 1), (1, 12)])
def test_ranks_that_no_core_can_have_are_refused(ranks: tuple[int, int]) -> None:
    net = nn.Sequential(nn.Conv2d(12, 18, 3)).eval()
    with pytest.raises(RankError, match="differ by more than 9 times"):
        lowrank.compress(
            net, torch.randn(1, 12, 5, 5), params=0.9, overrides={"0": lowrank.Tucker2(*ranks)}
        )
