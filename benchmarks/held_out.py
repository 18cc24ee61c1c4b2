"""Every method with data against the same without, in the output error on held-out pictures.

    python benchmarks/held_out.py --out benchmarks/results/held_out.json

Twenty layers are drawn from the bundled ResNet-20. Each method takes the ranks at which it keeps
about half of a layer's weights, is fitted once to the weight alone and once to the moments of 256
training pictures, and is judged by the layer's squared output error on 256 other pictures,
relative to the output's squared norm. Both get the mean of the calibration pictures' error put
right, as a batch norm would, so that the gain is that of the fit. "plain" counts outputs as they
are; "weighted" counts them by the gradients that reach them, as `compress` does by default. A
method is counted only on layers that it serves. The classifier's ten outputs are nearly of one
size: which four of them rank 4 keeps hardly matters, and data wins there with some draws only.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank.compression import Calibrated, LayerView, Moments, calibrate, compose, scan
from lowrank.compression.methods import METHODS, Method
from lowrank.decompositions.metric import Metric
from lowrank.demos.bundled import fashion_mnist, resnet20

SEED, N_LAYERS, N_PICTURES, KEEP = 0, 20, 256, 0.5


@dataclass(frozen=True)
class Row:
    """Relative squared output error of one method on one layer, held out."""

    layer: str
    method: str
    setting: str
    kept: float
    plain_without: float
    plain_with: float
    weighted_without: float
    weighted_with: float


@dataclass(frozen=True)
class Pictures:
    """Moments of the bundled network's layers on calibration and on other pictures."""

    views: dict[str, LayerView]
    seen: Calibrated
    held: Calibrated

    @classmethod
    def of(cls, n: int, seed: int = SEED) -> Pictures:
        model: nn.Module = resnet20()
        images, _ = fashion_mnist("train")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        views = scan(model, images[:1]).views
        parts = [list(images[order[k * n : (k + 1) * n]].split(64)) for k in range(2)]
        found = [calibrate(model, views, p, gradients=True, seed=seed) for p in parts]
        return cls({v.name: v for v in views}, *found)


def drawn(names: list[str], n: int, seed: int = SEED) -> list[str]:
    """Layers drawn without repeats, in the model's order."""
    chosen = set(random.Random(seed).sample(names, n))
    return [name for name in names if name in chosen]


def half_of(cls: type[Method], view: LayerView) -> tuple[Method, float] | None:
    """The method at the ranks that keep about half of the weights, and what they keep."""
    weight, dense = view.weight(), view.spec.n_weights
    offered = {m for m, _ in cls.candidates(view.spec, weight, round_to=1, seed=SEED)}
    sizes = {m: sum(s.n_weights for s in m.stages(view.spec)) / dense for m in offered}
    if not sizes:
        return None
    best = min(sizes, key=lambda m: (abs(sizes[m] - KEEP), str(m)))
    return best, sizes[best]


def compared(view: LayerView, method: Method, kept: float, pictures: Pictures) -> Row:
    """The method fitted without data, and with it in both metrics, judged on held-out data."""
    seen, held = pictures.seen.layers[view.name], pictures.held.layers[view.name]
    spec, W = view.spec, view.weight()
    fits = {
        "without": None,
        "plain": seen.metric(),
        "weighted": seen.metric().weighed(seen.weight()),
    }
    made = {
        k: compose(spec, method.stages(spec), method.factor(spec, W, seed=SEED, metric=m))
        for k, m in fits.items()
    }

    def lost(fit: str, *, weighted: bool) -> float:
        return held_out_error(W, made[fit].to(W), seen, held, weighted=weighted)

    return Row(
        view.name,
        method.name,
        str(method),
        kept,
        lost("without", weighted=False),
        lost("plain", weighted=False),
        lost("without", weighted=True),
        lost("weighted", weighted=True),
    )


def held_out_error(
    W: Tensor, made: Tensor, seen: Moments, held: Moments, *, weighted: bool
) -> float:
    """||(W - W')(x - m)||^2 over ||W x||^2 on held-out inputs x, m their mean when calibrated."""
    off = held.mean - seen.mean

    def moment(shift: Tensor) -> Metric:
        G = held.G.to(held.C) if weighted and held.G is not None else None
        return Metric(held.C + shift[:, :, None] * shift[:, None, :], G)

    left = moment(off).error((W - made).flatten(2))
    return left / moment(held.mean).error(W.flatten(2))


def rows_of(names: list[str], pictures: Pictures) -> list[Row]:
    """Every method on every layer that it serves."""
    found = []
    for cls in METHODS.values():
        for name in names:
            view = pictures.views[name]
            alone = "alone" in cls.serves and cls.supports(view.spec) is None
            if alone and (half := half_of(cls, view)) is not None:
                found.append(compared(view, *half, pictures))
    return found


def wins(rows: list[Row]) -> dict[str, dict[str, int]]:
    """Method -> layers served, and on how many of them data does better."""
    return {
        name: {
            "layers": len(mine),
            "plain": sum(r.plain_with < r.plain_without for r in mine),
            "weighted": sum(r.weighted_with < r.weighted_without for r in mine),
        }
        for name in METHODS
        if (mine := [r for r in rows if r.method == name])
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    pictures = Pictures.of(N_PICTURES)
    names = drawn(list(pictures.views), N_LAYERS)
    rows = rows_of(names, pictures)
    for name, count in wins(rows).items():
        print(
            f"{name:20} better on {count['plain']:2} (plain) and {count['weighted']:2} (weighted) "
            f"of {count['layers']} layers"
        )
    result = {
        "seed": SEED,
        "pictures": N_PICTURES,
        "keep": KEEP,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")},
        "threads": 1,
        "seconds": round(time.perf_counter() - started, 1),
        "layers": names,
        "wins": wins(rows),
        "rows": [asdict(r) for r in rows],
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
