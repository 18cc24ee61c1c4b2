"""Empirical L1 phase transition at n = 400 against the exact Donoho-Tanner curve.

    python benchmarks/phase_transition.py [--workers 2]

The run is resumable: interrupt it and start it again.
"""

import argparse
import json
import platform
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lowrank.sensing import l1_threshold
from lowrank.sensing.phase_transition import basis_pursuit, basis_pursuit_nonneg, phase_transition

RESULTS = Path("benchmarks/results")
DELTAS = (0.1, 0.25, 0.5, 0.75)
OFFSETS = np.linspace(-0.12, 0.12, 13)
CASES = {
    "l1": (basis_pursuit, "gaussian", False),
    "nonneg": (basis_pursuit_nonneg, "uniform", True),
}


def measure(name, options, executor):
    recover, kind, nonneg = CASES[name]
    exact = np.array([l1_threshold(delta, nonneg=nonneg) for delta in DELTAS])
    found = phase_transition(
        DELTAS,
        np.clip(exact[:, None] + OFFSETS, 0, 1),
        n=options.n,
        trials=options.trials,
        recover=recover,
        kind=kind,
        seed=options.seed,
        executor=executor,
        path=RESULTS / f".phase_transition_{name}.partial.json",
    )
    return [
        {"delta": delta, "exact": float(e), "measured": float(t), "off": float(t - e)}
        for delta, e, t in zip(DELTAS, exact, found.threshold(), strict=True)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=400)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.workers) as executor:
        rows = {name: measure(name, options, executor) for name in CASES}
    record = {
        **{k: v for k, v in vars(options).items() if k != "workers"},
        "device": platform.processor() or platform.machine(),
        "versions": {p: version(p) for p in ("numpy", "scipy")},
        "thresholds": rows,
    }
    (RESULTS / "phase_transition.json").write_text(json.dumps(record, indent=1) + "\n")
    for name in CASES:
        (RESULTS / f".phase_transition_{name}.partial.json").unlink()
        for row in rows[name]:
            print(name, {k: round(v, 4) for k, v in row.items()})


if __name__ == "__main__":
    main()
