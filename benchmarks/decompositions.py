"""Decompositions against tensorly, torch and scikit-learn: time and error on one CPU thread.

    python benchmarks/decompositions.py --out benchmarks/results/decompositions.json

All methods of a case run in turns on the same float32 tensor, and the error is measured here,
outside of them. Times are CPU seconds of the thread, which a busy machine hardly disturbs; wall
seconds stand beside them. A ratio is the peer's CPU time over ours in the same round, the median
of the rounds: above 1 we are faster.
CP is compared at equal error: ours stops at the first sweep count that is at least as accurate
as what tensorly reached. Low rank plus sparse is compared with the textbook alternation of full
SVDs and exact thresholds, 80 steps of it, and must end no higher.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits
from torch import Tensor

from lowrank.decompositions import (
    CPFactors,
    cp,
    go_dec,
    low_rank_plus_sparse,
    sensitivity,
    tensor_train,
    truncated_svd,
    tucker,
)

with warnings.catch_warnings():  # its imports warn under newer numpy and scipy
    warnings.simplefilter("ignore")
    import tensorly
    from tensorly.decomposition import parafac, partial_tucker
    from tensorly.decomposition import tensor_train as tensorly_train

SEED = 0
PLAIN = "alternation of full SVDs, 80 steps"


@dataclass(frozen=True)
class Case:
    """One tensor, one rank, and the methods that compete; the first is ours."""

    name: str
    W: Tensor
    methods: dict[str, Callable[[], object]]
    rebuild: dict[str, Callable[[object], Tensor]]
    repeats: int


def fading(*shape: int) -> Tensor:
    """A tensor of random orientation whose spectrum falls in every mode, like a trained kernel."""
    generator = torch.Generator().manual_seed(SEED)
    W = torch.randn(*shape, generator=generator)
    for mode, n in enumerate(shape):
        scale = torch.arange(1.0, n + 1) ** -0.5
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
        W = torch.tensordot(basis * scale, W, dims=([1], [mode])).movedim(0, mode)
    return (W / W.norm()).contiguous()


def svd_case(m: int, n: int, rank: int, repeats: int) -> Case:
    if m * n < 2**23:
        W = fading(m, n)
    else:  # a column scale in place of a large orthogonal basis
        generator = torch.Generator().manual_seed(SEED)
        scale = torch.arange(1.0, n + 1) ** -0.5
        W = torch.randn(m, n, generator=generator) * scale
        W /= W.norm()
    array = W.numpy()
    methods = {
        "lowrank": lambda: truncated_svd(W, rank),
        "lowrank randomized": lambda: truncated_svd(W, rank, method="randomized"),
        "torch.linalg.svd": lambda: torch.linalg.svd(W, full_matrices=False),
        "torch.svd_lowrank": lambda: torch.svd_lowrank(W, rank),
        "sklearn randomized_svd": lambda: randomized_svd(array, rank, random_state=SEED),
    }
    rebuild = {
        "lowrank": lambda f: f.to_tensor(),
        "lowrank randomized": lambda f: f.to_tensor(),
        "torch.linalg.svd": lambda f: (f[0][:, :rank] * f[1][:rank]) @ f[2][:rank],
        "torch.svd_lowrank": lambda f: (f[0] * f[1]) @ f[2].T,
        "sklearn randomized_svd": lambda f: torch.from_numpy((f[0] * f[1]) @ f[2]),
    }
    return Case(f"svd {m}x{n} rank {rank}", W, methods, rebuild, repeats)


def tucker_case(repeats: int) -> Case:
    W, ranks = fading(512, 512, 3, 3), (256, 256)
    methods = {
        "lowrank": lambda: tucker(W, ranks, modes=(0, 1)),
        "tensorly partial_tucker": lambda: partial_tucker(W, list(ranks), modes=[0, 1])[0],
    }
    rebuild = {
        "lowrank": lambda f: f.to_tensor(),
        "tensorly partial_tucker": lambda f: tensorly.tenalg.multi_mode_dot(
            f[0], f[1], modes=[0, 1]
        ),
    }
    return Case("tucker 512x512x3x3 ranks (256, 256)", W, methods, rebuild, repeats)


def train_case(repeats: int) -> Case:
    W, ranks = fading(512, 512, 3, 3).permute(0, 2, 3, 1).contiguous(), (256, 384, 256)
    methods = {
        "lowrank": lambda: tensor_train(W, ranks),
        "tensorly tensor_train": lambda: tensorly_train(W, [1, *ranks, 1]),
    }
    rebuild = {
        "lowrank": lambda f: f.to_tensor(),
        "tensorly tensor_train": tensorly.tt_to_tensor,
    }
    return Case("tensor train 512x3x3x512 ranks (256, 384, 256)", W, methods, rebuild, repeats)


def cp_case(channels: int, rank: int, sweeps: int, repeats: int) -> Case:
    W = fading(channels, channels, 3, 3)

    def peer() -> object:
        return parafac(W, rank, n_iter_max=sweeps, init="random", random_state=SEED, tol=1e-8)

    target = error(W, tensorly.cp_to_tensor(peer()))
    enough = next(n for n in range(2, 200) if cp(W, rank, max_iter=n).error(W) <= target)
    methods = {
        "lowrank": lambda: cp(W, rank, max_iter=enough),
        "lowrank to its own end": lambda: cp(W, rank),
        f"tensorly parafac, {sweeps} sweeps": peer,
    }
    rebuild = {
        "lowrank": lambda f: f.to_tensor(),
        "lowrank to its own end": lambda f: f.to_tensor(),
        f"tensorly parafac, {sweeps} sweeps": tensorly.cp_to_tensor,
    }
    return Case(f"cp {channels}x{channels}x3x3 rank {rank}", W, methods, rebuild, repeats)


def alternation(W: Tensor, rank: int, card: int, steps: int) -> tuple[Tensor, Tensor]:
    S = torch.zeros_like(W)
    for _ in range(steps):
        U, s, Vh = torch.linalg.svd(W - S, full_matrices=False)
        L = (U[:, :rank] * s[:rank]) @ Vh[:rank]
        R = (W - L).flatten()
        kept = R.abs().topk(card, sorted=False).indices
        S = torch.zeros_like(R).index_put_((kept,), R[kept]).view_as(W)
    return L, S


def sparse_case(m: int, n: int, rank: int, density: float, repeats: int) -> Case:
    """A fading matrix with outliers of its own size in one entry of fifty."""
    W, generator = fading(m, n), torch.Generator().manual_seed(SEED)
    outliers = torch.rand(m, n, generator=generator) < 0.02
    W += outliers * torch.randn(m, n, generator=generator) * 5 / (m * n) ** 0.5
    card = round(density * m * n)
    methods = {
        "lowrank": lambda: low_rank_plus_sparse(W, rank, density),
        "lowrank go_dec, 80 steps": lambda: go_dec(W, rank, card, max_iter=80, tol=1e-12),
        PLAIN: lambda: alternation(W, rank, card, 80),
    }
    rebuild = {
        "lowrank": lambda f: f.L + f.S,
        "lowrank go_dec, 80 steps": lambda f: f.L + f.S,
        PLAIN: lambda f: f[0] + f[1],
    }
    name = f"low rank + sparse {m}x{n} rank {rank} density {density}"
    return Case(name, W, methods, rebuild, repeats)


def error(W: Tensor, approximation: Tensor) -> float:
    return float((W - approximation).double().norm() / W.double().norm())


def measure(case: Case) -> dict[str, Any]:
    cpu: dict[str, list[float]] = {name: [] for name in case.methods}
    wall: dict[str, list[float]] = {name: [] for name in case.methods}
    found = {}
    for _ in range(case.repeats):
        for name, method in case.methods.items():
            began, began_wall = time.thread_time(), time.perf_counter()
            found[name] = method()
            cpu[name].append(time.thread_time() - began)
            wall[name].append(time.perf_counter() - began_wall)
    rows = {}
    for name in case.methods:
        ratios = [peer / ours for peer, ours in zip(cpu[name], cpu["lowrank"], strict=True)]
        rows[name] = {
            "cpu_seconds": round(statistics.median(cpu[name]), 5),
            "wall_seconds": round(statistics.median(wall[name]), 5),
            "relative_error": round(error(case.W, case.rebuild[name](found[name])), 8),
            "ratio": round(statistics.median(ratios), 2),
            **cp_facts(found[name]),
        }
        print(case.name, name, rows[name], flush=True)
    return {"case": case.name, "repeats": case.repeats, "methods": rows}


def cp_facts(result: object) -> dict[str, object]:
    """What tells two CP fits of one error apart: how far their components cancel."""
    if isinstance(result, CPFactors):
        return {
            "sensitivity": round(result.sensitivity, 2),
            "status": result.status,
            "sweeps": result.n_iter,
        }
    if isinstance(result, tensorly.cp_tensor.CPTensor):
        factors = [result.factors[0] * result.weights, *result.factors[1:]]
        return {"sensitivity": round(sensitivity(factors), 2)}
    return {}


def tensorly_ratios(methods: dict[str, dict[str, float]]) -> list[float]:
    return [row["ratio"] for name, row in methods.items() if name.startswith("tensorly")]


TARGETS = {  # case: peer, ratio to reach, largest error over the peer's
    "svd 512x4608 rank 256": ("torch.linalg.svd", 8, 1 + 1e-6),
    "tucker 512x512x3x3 ranks (256, 256)": ("tensorly partial_tucker", 8, 1.002),
    "cp 512x512x3x3 rank 256": ("tensorly parafac, 8 sweeps", 5, 1.0),
    "low rank + sparse 1536x576 rank 64 density 0.05": (
        PLAIN,
        10,
        1,
    ),
    "low rank + sparse 1536x576 rank 64 density 0.25": (
        PLAIN,
        10,
        1,
    ),
    "low rank + sparse 1536x576 rank 115 density 0.3": (
        PLAIN,
        10,
        1,
    ),
}


def reached(results: list[dict[str, Any]], name: str) -> bool:
    peer, ratio, slack = TARGETS[name]
    methods = next(result["methods"] for result in results if result["case"] == name)
    error_ratio = methods["lowrank"]["relative_error"] / methods[peer]["relative_error"]
    return methods[peer]["ratio"] >= ratio and error_ratio <= slack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/decompositions.json"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(SEED)  # torch.svd_lowrank takes no generator
    tensorly.set_backend("pytorch")
    cases = [  # built one at a time: the CP cases search for their sweep count
        lambda: svd_case(512, 4608, 256, 9),
        lambda: svd_case(1024, 8192, 64, 3),
        lambda: svd_case(4096, 4096, 512, 1),
        lambda: tucker_case(5),
        lambda: train_case(3),
        lambda: cp_case(64, 60, 100, 3),
        lambda: cp_case(512, 256, 8, 1),
        lambda: sparse_case(1536, 576, 64, 0.05, 3),
        lambda: sparse_case(1536, 576, 64, 0.25, 3),
        lambda: sparse_case(1536, 576, 115, 0.3, 3),
    ]
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = [measure(build()) for build in cases]
    packages = ("torch", "tensorly", "scikit-learn", "numpy", "scipy")
    record = {
        "what": "cpu_seconds of one thread, float32; ratio = peer / lowrank, median of the rounds, "
        "above 1: lowrank wins",
        "machine": {"processor": platform.machine(), "system": platform.system()},
        "device": "cpu",
        "threads": 1,
        "seed": SEED,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "own_kernel_at_least_twice_as_fast_as_tensorly": {
            result["case"]: min(ratios) >= 2
            for result in results
            if (ratios := tensorly_ratios(result["methods"]))
        },
        "reached": {name: reached(results, name) for name in TARGETS},
        "results": results,
    }
    out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
