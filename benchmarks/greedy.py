"""OMP of 1000 signals at (n, m, k) = (1024, 256, 40) against scikit-learn's `orthogonal_mp`.

    python benchmarks/greedy.py

Both of scikit-learn's ways (with and without the Gram matrix) run in turns with `OMP` on the same
batch, on one thread. Errors and agreement are computed here. The sparsity is near what OMP can
still recover at this size, so a few signals fail, the same ones in each.
"""

import argparse
import json
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.linear_model import orthogonal_mp
from threadpoolctl import threadpool_limits

from lowrank.sensing import KSparse, sparse_signal
from lowrank.sensing.solvers.omp import OMP

SIZE = {"n": 1024, "m": 256, "k": 40}


def instance(signals, seed):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((SIZE["m"], SIZE["n"]))
    A /= np.linalg.norm(A, axis=0)  # scikit-learn selects by unnormalised correlations
    return A, np.stack(
        [sparse_signal(SIZE["n"], SIZE["k"], seed=rng) for _ in range(signals)], axis=1
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--signals", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="benchmarks/results/greedy.json")
    options = parser.parse_args()
    A, X = instance(options.signals, options.seed)
    Y, k = A @ X, SIZE["k"]
    methods = {
        "lowrank OMP": lambda: OMP().solve(KSparse(A, Y, k)).coefficients,
        "sklearn": lambda: orthogonal_mp(A, Y, n_nonzero_coefs=k),
        "sklearn, precompute": lambda: orthogonal_mp(A, Y, n_nonzero_coefs=k, precompute=True),
    }
    seconds, found = {name: [] for name in methods}, {}
    with threadpool_limits(1):
        for _ in range(options.repeats):
            for name, method in methods.items():
                begin = time.process_time()
                found[name] = method()
                seconds[name].append(time.process_time() - begin)
    ours = statistics.median(seconds["lowrank OMP"])
    reference = found["lowrank OMP"]
    rows = {
        name: {
            "seconds": statistics.median(times),
            "times_slower_than_lowrank": statistics.median(times) / ours,
            "recovered": int(
                (np.linalg.norm(found[name] - X, axis=0) < 1e-8 * np.linalg.norm(X, axis=0)).sum()
            ),
            "largest_difference_from_lowrank": float(np.abs(found[name] - reference).max()),
        }
        for name, times in seconds.items()
    }
    record = {
        "instance": {**SIZE, "signals": options.signals},
        "seed": options.seed,
        "repeats": options.repeats,
        "threads": 1,
        "device": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("numpy", "scipy", "scikit-learn")},
        "results": rows,
    }
    for name, row in rows.items():
        print(f"{name:22s} {row}")
    Path(options.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
