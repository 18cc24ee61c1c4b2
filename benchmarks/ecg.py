"""PyWavelets' ECG from Gaussian measurements: what weights by wavelet scale bring.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/ecg.py \\
        --out benchmarks/results/ecg.json --picture benchmarks/results/ecg.png

Basis pursuit in orthonormal wavelets, `recover(A, y, basis=Psi, weights=scale_weights(Psi))`, with
the default growth 1/2, which is what jumps have and was not fitted to this signal. Other wavelets
and growths stand beside it, so that one can see how little hangs on them. The signal-to-noise ratio
`20 log10(||x|| / ||x - x'||)` is that of the signal as it is, its mean included, and is averaged
over the seeds of the matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pywt
from threadpoolctl import threadpool_limits

from lowrank import recover
from lowrank.sensing import Recovery, bases, operators

MEASUREMENTS = (256, 512)
# wavelet, level, growth; the first is the one that is reported, None are equal weights
METHODS = [
    ("sym4", 6, 0.5),
    ("sym4", 6, None),
    ("sym4", 6, 0.25),
    ("sym4", 6, 1.0),
    ("db4", 6, 0.5),
    ("db4", 6, None),
    ("db2", 6, 0.5),
    ("coif3", 5, 0.5),
]


def snr(x: np.ndarray, answer: np.ndarray) -> float:
    return float(20 * np.log10(np.linalg.norm(x) / np.linalg.norm(x - answer)))


def recovered(
    x: np.ndarray, m: int, seed: int, name: str, level: int, growth: float | None
) -> Recovery:
    Psi = bases.wavelet(x.size, name=name, level=level)
    weights = None if growth is None else bases.scale_weights(Psi, growth)
    A = operators.gaussian(m, x.size, seed=seed)
    return recover(A, A @ x, basis=Psi, weights=weights)


def measure(
    x: np.ndarray, m: int, seeds: int, method: tuple[str, int, float | None]
) -> dict[str, Any]:
    cpu = time.process_time()
    found = [recovered(x, m, seed, *method) for seed in range(seeds)]
    cpu = (time.process_time() - cpu) / seeds
    ratios = [snr(x, f.x) for f in found]
    row = dict(zip(("wavelet", "level", "growth"), method, strict=True)) | {"m": m}
    row |= {"mean dB": float(np.mean(ratios)), "least dB": min(ratios), "cpu": cpu}
    return row | {
        "worst gap": max(f.gap for f in found),
        "certified": all(f.status.ok for f in found),
    }


def draw(x: np.ndarray) -> plt.Figure:
    """The ECG with what was recovered, and below it the errors."""
    figure, axes = plt.subplots(
        2, 2, figsize=(13, 6), sharex=True, sharey="row", layout="constrained"
    )
    for (above, below), m in zip(axes.T, MEASUREMENTS, strict=True):
        above.plot(x, color="black", lw=2.2, label="ECG")
        styles = ((METHODS[1], "equal weights", "#D55E00"), (METHODS[0], "by scale", "#56B4E9"))
        for method, name, colour in styles:
            answer = recovered(x, m, 0, *method).x
            above.plot(answer, color=colour, lw=1, label=f"{name}, {snr(x, answer):.1f} dB")
            below.plot(answer - x, color=colour, lw=1)
        above.set(title=f"{m} Gaussian measurements of {x.size} samples", ylim=(-130, 330))
        above.legend(loc="upper center", ncols=3)
        below.set(xlabel="sample", xlim=(0, x.size))
    axes[0, 0].set(ylabel="ECG")
    axes[1, 0].set(ylabel="error")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    x = pywt.data.ecg().astype(float)
    rows = []
    with threadpool_limits(1):
        for method in METHODS:
            for m in MEASUREMENTS:
                rows.append(measure(x, m, args.seeds, method))
                row = rows[-1]
                print(
                    f"{row['wavelet']:6} growth {row['growth'] or 0:.2f}  m {m}  "
                    f"{row['mean dB']:.2f} dB (least {row['least dB']:.2f})  {row['cpu']:.2f} s  "
                    f"{'certified' if row['certified'] else 'not certified'}",
                    flush=True,
                )
    record = {
        "versions": {p: version(p) for p in ("lowrank-kit", "numpy", "scipy", "PyWavelets")}
        | {"python": platform.python_version()},
        "threads": 1,
        "seeds": args.seeds,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    if args.picture:
        draw(x).savefig(args.picture, dpi=80)


if __name__ == "__main__":
    main()
