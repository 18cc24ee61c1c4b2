"""Best subset of 10 of 1000 columns, proven: lowrank against L0BnB.

    python benchmarks/best_subset.py

The data are L0BnB's own (`gen_synthetic`: 500 rows, 10 coefficients of 1, one factor that all
columns share, of correlation 0 or 0.1) at signal-to-noise ratios of 5 and 1. lowrank proves that no
other 10 columns fit better, to a gap of 1e-8 of `1/2 ||y||^2`, with no bound on the coefficients.
L0BnB minimises `1/2 ||y - X b||^2 + l0 ||b||_0 + l2 ||b||^2` over `|b| <= M`: l0 is given such that
the same 10 columns are its answer (the geometric mean of what the weakest of them gains and of what
the best of the others would), M is 1.5 times the largest coefficient, which no user can know, and
it starts from the answer. It stops at its default gap of 1 % of the objective, or at a limit of
CPU time; lowrank is timed at that gap, too, with `ridge = 2 l2`. Gaps are restated here as
`(objective - bound) / objective`. One thread, CPU seconds, compiled beforehand; where L0BnB did not
finish, the ratio is a lower bound.

L0BnB 1.0.0 reads `np.Inf`, which NumPy 2 no longer has; it is given back here.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from threadpoolctl import threadpool_limits

from lowrank import recover

np.Inf = np.inf  # noqa: NPY201
import l0bnb.tree  # noqa: E402
from l0bnb import BNBTree  # noqa: E402
from l0bnb.gensynthetic import gen_synthetic  # noqa: E402

l0bnb.tree.time = SimpleNamespace(time=time.process_time)  # its limit is of wall time

SIZE = {"n": 500, "p": 1000, "k": 10}
TOL = 1e-8
THEIR_GAP = 1e-2


def cost(X, y, S, l2):
    """The objective without the count, and the coefficients."""
    B = X[:, S]
    b = np.linalg.solve(B.T @ B + 2 * l2 * np.eye(len(S)), B.T @ y)
    return float(np.sum((y - B @ b) ** 2) / 2 + l2 * b @ b), b


def ours(X, y, l2, tol, limit):
    begin = time.process_time()
    found = recover(X, y, sparsity=SIZE["k"], exact=True, ridge=2 * l2, tol=tol, time_limit=limit)
    seconds = time.process_time() - begin
    gap = (found.objective - found.dual_objective) / found.objective
    return found, {
        "seconds": seconds, "gap": gap, "nodes": found.n_iter, "status": found.status.name,
    }  # fmt: skip


def theirs(X, y, S, l2, limit):
    value, b = cost(X, y, S, l2)
    weakest = min(cost(X, y, np.delete(S, i), l2)[0] for i in range(len(S))) - value
    r = y - X[:, S] @ b
    others = np.delete((X.T @ r) ** 2 / (2 * (X**2).sum(axis=0) + 4 * l2), S).max()
    start = np.zeros(X.shape[1])
    start[S] = b
    begin = time.process_time()
    found = BNBTree(X, y).solve(
        float(np.sqrt(weakest * others)), l2, 1.5 * float(np.abs(b).max()),
        gap_tol=THEIR_GAP, warm_start=start, time_limit=limit,
    )  # fmt: skip
    seconds = time.process_time() - begin
    same = np.array_equal(np.flatnonzero(found.beta), np.sort(S))
    return {"seconds": seconds, "gap": float(found.gap), "same_columns": same,
            "status": "OPTIMAL" if found.gap <= THEIR_GAP else "TIME_LIMIT"}  # fmt: skip


def instance(snr, rho, l2, seed, limit):
    X, y, truth = gen_synthetic(SIZE["n"], SIZE["p"], SIZE["k"], rho=rho, snr=snr, seed=seed)
    found, proven = ours(X, y, l2, TOL, None)
    loose = ours(X, y, l2, THEIR_GAP * found.objective / (y @ y / 2), None)[1]
    l0bnb = theirs(X, y, found.support, l2, limit)
    true = np.array_equal(found.support, np.flatnonzero(truth))
    row = {"snr": snr, "rho": rho, "l2": l2, "seed": seed, "true_columns": true,
           "lowrank": proven, "lowrank at 1 %": loose, "l0bnb at 1 %": l0bnb}  # fmt: skip
    print(json.dumps(row), flush=True)
    return row


def summary(rows):
    """Medians over the seeds, by signal-to-noise ratio, correlation and ridge."""
    out = []
    for key in dict.fromkeys((r["snr"], r["rho"], r["l2"]) for r in rows):
        mine = [r for r in rows if (r["snr"], r["rho"], r["l2"]) == key]
        methods = ("lowrank", "lowrank at 1 %", "l0bnb at 1 %")
        seconds = {m: statistics.median(r[m]["seconds"] for r in mine) for m in methods}
        done = {m: sum(r[m]["status"] == "OPTIMAL" for r in mine) for m in methods}
        ratio = seconds["l0bnb at 1 %"] / seconds["lowrank"]
        out.append({
            **dict(zip(("snr", "rho", "l2"), key, strict=True)), "instances": len(mine),
            "seconds": seconds, "proven": done,
            "largest_gap_l0bnb": max(r["l0bnb at 1 %"]["gap"] for r in mine),
            "times_slower_l0bnb": ratio,
        })  # fmt: skip
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=float, default=6.0)
    parser.add_argument("--out", default="benchmarks/results/best_subset.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        X, y, truth = gen_synthetic(100, 50, 3, snr=5, seed=0)
        theirs(X, y, np.flatnonzero(truth), 1.0, 5.0)  # compiles it
        rows = [
            instance(snr, rho, l2, seed, options.limit)
            for seed in range(1, options.seeds + 1)
            for snr in (5, 1)
            for rho in (0.0, 0.1)
            for l2 in (0.0, 10.0, 100.0)
        ]
    record = {
        "size": SIZE, "tol": TOL, "time_limit": options.limit, "threads": 1,
        "device": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("numpy", "scipy", "numba", "l0bnb")},
        "summary": summary(rows), "rows": rows,
    }  # fmt: skip
    for row in record["summary"]:
        print(row)
    Path(options.out).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
