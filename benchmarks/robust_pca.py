"""Robust PCA against tensorly, pyrpca and rpca: 1000 x 500, rank 20, 5 % corrupted at +-5.

    pip install pyrpca rpca            # peers; a missing one is shown as missing
    python benchmarks/robust_pca.py

All run in turns on the same matrix; the error of the low-rank part is measured here, outside of
them. tensorly's defaults (`reg_E=1`) return S = 0, so it runs at the settings that reach the
error below 1e-6 soonest: `reg_J = 1`, `reg_E = 2 lam` (its nuclear norm counts both unfoldings of
a matrix), a penalty that starts at `1.25 / ||M||_2`, and the learning rate `--tensorly-rate`.
"""

import argparse
import contextlib
import io
import json
import platform
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import tensorly
import torch
from tensorly.decomposition import robust_pca as tensorly_robust_pca
from threadpoolctl import threadpool_limits

from lowrank.decompositions import go_dec, robust_pca

SHAPE, RANK, SHARE, AMPLITUDE = (1000, 500), 20, 0.05, 5.0


def instance(seed):
    rng = np.random.default_rng(seed)
    L = rng.standard_normal((SHAPE[0], RANK)) @ rng.standard_normal((RANK, SHAPE[1]))
    S = AMPLITUDE * rng.choice([-1.0, 1.0], SHAPE) * (rng.random(SHAPE) < SHARE)
    return L, S


def by_tensorly(M, rate):
    lam = 1 / np.sqrt(max(M.shape))
    start = 1.25 / np.linalg.norm(M, 2)
    options = {"reg_J": 1.0, "reg_E": 2 * lam, "mu_init": start, "learning_rate": rate}
    tol = 1e-6 * np.linalg.norm(M)
    return tensorly_robust_pca(M, tol=tol, n_iter_max=500, verbose=0, **options)[0]


def by_pyrpca(M):
    from pyrpca import rpca_pcp_ialm

    return rpca_pcp_ialm(M, 1 / np.sqrt(max(M.shape)), tol=1e-8, verbose=False)[0]


def by_rpca(M):
    from rpca import RobustPCA

    with contextlib.redirect_stdout(io.StringIO()):
        return RobustPCA(n_components=RANK, verbose=False).fit(M).low_rank_


def run(solvers, L, S, repeats):
    seconds, errors = {name: [] for name in solvers}, {}
    for _ in range(repeats):
        for name, solve in solvers.items():
            begin = time.process_time()
            try:
                found = solve(L + S)
            except Exception as problem:
                errors[name] = f"{type(problem).__name__}: {problem}"
                continue
            seconds[name].append(time.process_time() - begin)
            errors[name] = float(np.linalg.norm(found - L) / np.linalg.norm(L))
    return seconds, errors


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def about(options):
    return {
        "instance": {"shape": SHAPE, "rank": RANK, "share": SHARE, "amplitude": AMPLITUDE},
        "seed": options.seed,
        "repeats": options.repeats,
        "threads": 1,
        "device": platform.processor() or platform.machine(),
        "versions": {p: installed(p) for p in ("numpy", "torch", "tensorly", "pyrpca", "rpca")},
        "tensorly_learning_rate": options.tensorly_rate,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tensorly-rate", type=float, default=1.5)
    parser.add_argument("--out", default="benchmarks/results/robust_pca.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensorly.set_backend("numpy")
    L, S = instance(options.seed)
    card = int((S != 0).sum())
    solvers = {
        "lowrank robust_pca, tol=1e-6": lambda M: robust_pca(M, tol=1e-6).L,
        "lowrank robust_pca": lambda M: robust_pca(M).L,
        "lowrank go_dec (rank and count given)": lambda M: go_dec(M, RANK, card).L,
        "tensorly": lambda M: by_tensorly(M, options.tensorly_rate),
        "pyrpca": by_pyrpca,
        "rpca": by_rpca,
    }
    with threadpool_limits(1):
        robust_pca(L[:60, :40])  # imports and first calls are not part of the figure
        seconds, errors = run(solvers, L, S, options.repeats)
    medians = {name: statistics.median(s) for name, s in seconds.items() if s}
    ours = medians["lowrank robust_pca, tol=1e-6"]
    rows = {
        name: {
            "error": errors[name],
            "seconds": medians.get(name),
            "times_slower_than_lowrank": medians[name] / ours if name in medians else None,
        }
        for name in solvers
    }
    record = {**about(options), "results": rows}
    for name, row in rows.items():
        print(f"{name:40s} {row}")
    Path(options.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
