"""The Shepp-Logan phantom, 256 x 256, from 22 radial lines of its Fourier transform, by TV.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 python benchmarks/shepp_logan.py \\
        --out benchmarks/results/shepp_logan.json --picture benchmarks/results/shepp_logan.png

The zero-filled picture, `A^T y`, is what the same measurements give without TV.
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
from threadpoolctl import threadpool_limits

from lowrank.sensing import gallery, operators, solve

TOLERANCES = (1e-3, 1e-5, 1e-8)


def measure(example: gallery.Example, tol: float) -> tuple[dict[str, Any], np.ndarray]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = solve(example.problem, tol=tol)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    row = {"tol": tol, "status": found.status.name, "gap": found.gap, "cpu": cpu, "wall": wall}
    row |= {"iterations": found.n_iter, "products": found.n_products, "solver": found.solver}
    return row | {"error": example.error(found.x)}, found.x


def draw(
    example: gallery.Example, lines: int, zero_filled: np.ndarray, x: np.ndarray
) -> plt.Figure:
    mask = np.fft.fftshift(operators.radial_mask(example.shape, lines))
    pictures = {
        "phantom": example.signal,
        f"{lines} lines, {mask.mean():.1%} of the frequencies": mask,
        f"zero-filled, error {example.error(zero_filled):.2f}": zero_filled,
        f"total variation, error {example.error(x):.0e}": x,
    }
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
    for ax, (title, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(np.reshape(picture, example.shape), cmap="gray", vmin=0, vmax=1)
        ax.set(title=title, xticks=[], yticks=[])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--lines", type=int, default=22)
    args = parser.parse_args()
    example = gallery.radial_phantom(args.side, args.lines)
    zero_filled = example.A.adjoint(example.y)
    rows = []
    with threadpool_limits(1):
        for tol in TOLERANCES:
            row, x = measure(example, tol)
            rows.append(row)
            print(
                f"tol {tol:.0e}: {row['status']}, error {row['error']:.1e}, gap {row['gap']:.0e}, "
                f"{row['cpu']:.1f} CPU s, {row['wall']:.1f} s",
                flush=True,
            )
    record = {
        "versions": {p: version(p) for p in ("lowrank-kit", "numpy", "scipy")}
        | {"python": platform.python_version()},
        "threads": 1,
        "side": args.side,
        "lines": args.lines,
        "measurements": example.y.size,
        "error, zero-filled": example.error(zero_filled),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n")
    if args.picture:
        draw(example, args.lines, zero_filled, x).savefig(args.picture, dpi=80)


if __name__ == "__main__":
    main()
