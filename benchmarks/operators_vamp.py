"""Message passing with a subsampled DCT and a Gaussian matrix, against spgl1 and an oracle.

    OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 \\
        python benchmarks/operators_vamp.py --out benchmarks/results/operators_vamp.json

All methods of a case run in turns on the same data; the error against the true signal is measured
here. The oracle is least squares on the true support. Times are CPU seconds of the single thread,
which a busy machine hardly disturbs; wall seconds stand beside them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import spgl1
from scipy.sparse.linalg import LinearOperator, lsqr

from lowrank.sensing import Operator, PosteriorMean, solve
from lowrank.sensing.operators.operator import from_matrix
from lowrank.sensing.operators.subsampled import partial_dct

if __package__:
    from benchmarks.records import one_thread, write
else:
    from records import one_thread, write

# operator, signal, n, m, k, relative noise
CASES = [
    ("partial DCT", "gaussian", 2**18, 2**16, 8000, 0.0),
    ("partial DCT", "sign", 2**18, 2**16, 8000, 0.0),
    ("partial DCT", "gaussian", 2**18, 2**16, 8000, 0.01),
    ("partial DCT", "sign", 2**18, 2**16, 8000, 0.01),
    ("gaussian matrix", "gaussian", 4096, 1024, 150, 0.01),
    ("gaussian matrix", "sign", 4096, 1024, 150, 0.01),
]


class Data:
    """One instance: operator, signal, measurements."""

    def __init__(self, case: tuple[Any, ...], seed: int) -> None:
        kind, signal, n, m, k, noise = case
        rng = np.random.default_rng(seed)
        self.A: Operator = (
            partial_dct(n, m=m, seed=seed)
            if kind == "partial DCT"
            else from_matrix(rng.standard_normal((m, n)) / np.sqrt(m))
        )
        self.support = rng.permutation(n)[:k]
        self.x = np.zeros(n)
        self.x[self.support] = rng.standard_normal(k)
        if signal == "sign":
            self.x = np.sign(self.x)
        clean, e = self.A @ self.x, rng.standard_normal(m)
        self.y = clean + noise * np.linalg.norm(clean) / np.linalg.norm(e) * e
        self.epsilon = float(np.linalg.norm(self.y - clean))

    def error(self, x: np.ndarray) -> float:
        return float(np.linalg.norm(x - self.x) / np.linalg.norm(self.x))

    def message_passing(self) -> np.ndarray:
        noise_std = self.epsilon / np.sqrt(self.y.size)
        solver = "vamp" if self.A.row_orthonormal else "bg_amp"
        return np.asarray(solve(PosteriorMean(self.A, self.y, noise_std), solver).x)

    def noise_unknown(self) -> np.ndarray:
        solver = "vamp" if self.A.row_orthonormal else "bg_amp"
        return np.asarray(solve(PosteriorMean(self.A, self.y), solver).x)

    def by_spgl1(self) -> np.ndarray:
        A = LinearOperator(self.A.shape, matvec=self.A.forward, rmatvec=self.A.adjoint, dtype=float)
        options = {"opt_tol": 1e-7, "bp_tol": 1e-7, "iter_lim": 3000}
        return np.asarray(spgl1.spgl1(A, self.y, tau=0, sigma=self.epsilon, **options)[0])

    def oracle(self) -> np.ndarray:
        x = np.zeros_like(self.x)

        def forward(c: np.ndarray) -> np.ndarray:
            spread = np.zeros_like(self.x)
            spread[self.support] = c
            return self.A.forward(spread)

        shape = (self.y.size, self.support.size)
        restricted = LinearOperator(
            shape, matvec=forward, rmatvec=lambda r: self.A.adjoint(r)[self.support], dtype=float
        )
        x[self.support] = lsqr(restricted, self.y, atol=1e-12, btol=1e-12)[0]
        return x


def measure(case: tuple[Any, ...], seeds: int) -> dict[str, Any]:
    """Medians over seeds, all methods in turns."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        data = Data(case, seed)
        methods: dict[str, Callable[[], np.ndarray]] = {
            "lowrank": data.message_passing,
            "lowrank, noise unknown": data.noise_unknown,
            "spgl1": data.by_spgl1,
            "oracle": data.oracle,
        }
        for name, method in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            x = method()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            runs.setdefault(name, []).append({"cpu": cpu, "wall": wall, "error": data.error(x)})
    medians = {
        name: {key: statistics.median(r[key] for r in rows) for key in rows[0]}
        for name, rows in runs.items()
    }
    keys = ("operator", "signal", "n", "m", "k", "noise")
    row: dict[str, Any] = dict(zip(keys, case, strict=True)) | {"methods": medians}
    row["spgl1 over ours, CPU"] = medians["spgl1"]["cpu"] / medians["lowrank"]["cpu"]
    if row["noise"]:
        row["error over oracle's"] = medians["lowrank"]["error"] / medians["oracle"]["error"]
        row["spgl1's error over oracle's"] = medians["spgl1"]["error"] / medians["oracle"]["error"]
    return row


def show(row: dict[str, Any]) -> None:
    print(", ".join(f"{key} {row[key]}" for key in ("operator", "signal", "n", "m", "k", "noise")))
    for name, q in row["methods"].items():
        print(f"  {name:24} {q['cpu']:8.3f} s  error {q['error']:.2e}")
    print("  " + ", ".join(f"{key} {row[key]:.2f}" for key in row if "over" in key), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    rows = []
    with one_thread():
        for case in CASES:
            rows.append(measure(case, args.seeds))
            show(rows[-1])
    packages = ("lowrank-kit", "numpy", "scipy", "spgl1")
    write(args.out, rows, packages, seeds=args.seeds)


if __name__ == "__main__":
    main()
