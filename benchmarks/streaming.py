"""Models larger than memory: peak memory, kills, dead workers, and what 7 B and 70 B would take.

    pip install 'lowrank-kit[transformers,dask]'
    python benchmarks/streaming.py memory            # 6 GB of random weights: needs 16 GB of disk
    python benchmarks/streaming.py dask              # two workers, one of them killed
    python benchmarks/streaming.py cost              # four sizes, and the two large ones on paper

Each part is written to results/streaming.json beside the others. Peaks are VmHWM, the most memory
that was resident at any time, of a process of its own: interpreter, torch and transformers are in.
Bytes are compared by SHA-256 over all files of the folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

OUT = Path(__file__).parent / "results" / "streaming.json"
KEEP, SEED = 0.6, 0
SPAN = 120.0
"""Seconds of work within which a run is killed."""


@dataclass(frozen=True)
class Shape:
    """A Llama without weights.

    Args:
        hidden: width of the hidden state.
        inner: width of the MLP.
        blocks: how many.
        words: in the vocabulary.
        heads: of the attention.
        kv: heads of keys and values.
    """

    hidden: int
    inner: int
    blocks: int
    words: int
    heads: int
    kv: int

    @property
    def block(self) -> int:
        """Weights of the linear layers of a block."""
        side = self.hidden * self.hidden * self.kv // self.heads
        return 2 * self.hidden**2 + 2 * side + 3 * self.hidden * self.inner

    @property
    def total(self) -> int:
        """Parameters, embedding and head of their own."""
        return self.blocks * (self.block + 2 * self.hidden) + (2 * self.words + 1) * self.hidden


LARGE = Shape(1024, 4096, 84, 64_000, 16, 16)
SMALL = Shape(256, 768, 6, 1000, 4, 2)
SIZES = tuple(Shape(d, 11 * d // 4, 1, 1000, d // 64, d // 64) for d in (256, 384, 512, 768))
LLAMA = {
    "7 B": Shape(4096, 11_008, 32, 32_000, 32, 32),
    "70 B": Shape(8192, 28_672, 80, 32_000, 64, 8),
}


def _llama(shape: Shape, dtype: str) -> tuple[Any, dict[str, Any]]:
    """The settings, and the parameters without values."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.words, hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.blocks, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv, architectures=["LlamaForCausalLM"], dtype=dtype,
    )  # fmt: skip
    with torch.device("meta"):
        return config, LlamaForCausalLM(config).state_dict()


def write_model(folder: Path, shape: Shape) -> int:
    """A folder as transformers writes it, of random weights, a tensor in memory at a time."""
    import torch

    from lowrank.compression.structure.pretrained.tensor_files import Made, write_tensors

    config, state = _llama(shape, "float32")

    def drawn(name: str, size: tuple[int, ...]) -> torch.Tensor:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        made = torch.randn(size, generator=torch.Generator().manual_seed(number))
        return 1 + 0.1 * made if len(size) == 1 else 0.02 * made

    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[int, list[str]] = {}
    for name in state:
        at = re.search(r"layers\.(\d+)\.", name)
        groups.setdefault(int(at[1]) // 4 if at else -1, []).append(name)
    where = {}
    for k, names in enumerate(groups.values(), 1):
        file = f"model-{k:05d}-of-{len(groups):05d}.safetensors"
        sizes = {name: tuple(state[name].shape) for name in names}
        rows = {n: Made(torch.float32, s, lambda n=n, s=s: drawn(n, s)) for n, s in sizes.items()}
        write_tensors(folder / file, rows)
        where |= dict.fromkeys(names, file)
    print(f"wrote {shape.total:,} parameters", flush=True)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


RUN = """
import json, sys, time, torch
torch.set_num_threads(1)
import lowrank
dense, out, tokens, words, allocation = sys.argv[1:6]
rng = torch.Generator().manual_seed(0)
ids = torch.randint(int(words), (int(tokens) // 256, 256), generator=rng)
told = []
def progress(what, done, total):
    told.append(what)
    print(what, done, total, file=sys.stderr, flush=True)
began = time.process_time()
done = lowrank.compress_folder(
    dense, out, params=0.6, data=ids, allocation=allocation, progress=progress
)
print(json.dumps({"told": told[0], "needs": done.needs.to_dict(), "seconds": dict(done.seconds),
    "cpu": time.process_time() - began, "kept": done.plan.cost.params / done.plan.total.params}))
"""


def started(dense: Path, out: Path, tokens: int, words: int, allocation: str) -> Any:
    log = open(out.with_suffix(".log"), "a")  # noqa: SIM115  the process writes to it
    args = [sys.executable, "-c", RUN, str(dense), str(out), str(tokens), str(words), allocation]
    env = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=log, text=True, env=env)


def peak_of(pid: int) -> int:
    """VmHWM of a process in bytes; 0 where it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", text)[1])  # type: ignore[index]
    except (OSError, TypeError):
        return 0


def watched(run: Any, until: Callable[[], bool]) -> tuple[int, bool]:
    """Wait for a process, or kill it when told to: its peak, and whether it ended by itself."""
    peak = 0
    while run.poll() is None:
        peak = max(peak, peak_of(run.pid))
        if until():
            run.send_signal(signal.SIGKILL)
            run.wait()
            return peak, False
        time.sleep(0.05)
    return peak, True


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        found.update(path.relative_to(folder).as_posix().encode())
        with open(path, "rb") as file:
            while chunk := file.read(1 << 24):
                found.update(chunk)
    return found.hexdigest()


def memory(work: Path, shape: Shape, tokens: int, allocation: str, kills: int) -> dict[str, Any]:
    """A run without a break, and one that is killed at random moments."""
    dense = work / "dense"
    size = write_model(dense, shape)
    with ThreadPoolExecutor(2) as pool:  # of waiting: both runs are processes of their own
        unbroken = pool.submit(whole, work, dense, shape, tokens, allocation)
        broken = pool.submit(resumed, work, dense, shape, tokens, allocation, kills)
        told, (killed, peak) = unbroken.result(), broken.result()
    same = digest(work / "whole") == digest(work / "killed")
    return {
        "shape": asdict(shape), "parameters": shape.total, "bytes": size, "tokens": tokens,
        "allocation": allocation, **told, "kills": killed, "peak_bytes_killed": peak,
        "identical": same,
    }  # fmt: skip


def whole(work: Path, dense: Path, shape: Shape, tokens: int, allocation: str) -> dict[str, Any]:
    began = time.monotonic()
    run = started(dense, work / "whole", tokens, shape.words, allocation)
    peak, _ = watched(run, lambda: False)
    assert run.returncode == 0, (work / "whole.log").read_text()[-2000:]
    told = json.loads(run.stdout.read().splitlines()[-1])
    print(f"peak {peak / 1e9:.2f} GB; {told}", flush=True)
    return {"peak_bytes": peak, "wall_s": time.monotonic() - began, **told}


def resumed(
    work: Path, dense: Path, shape: Shape, tokens: int, allocation: str, kills: int
) -> tuple[int, int]:
    """Kill a run at so many random moments, and let it end: kills, and the highest peak.

    The moments are drawn from the seconds after it has begun to work, not to import.
    """
    rng, most, killed, log = random.Random(SEED), 0, 0, (work / "killed").with_suffix(".log")
    while True:
        run = started(dense, work / "killed", tokens, shape.words, allocation)
        end, size = rng.uniform(0, SPAN), log.stat().st_size
        peak, ended = watched(run, _after(log, size, end) if killed < kills else lambda: False)
        most = max(most, peak)
        if ended:
            assert run.returncode == 0, log.read_text()[-2000:]
            return killed, most
        killed += 1
        print(f"kill {killed} after {end:.0f} s of work", flush=True)


def _after(log: Path, size: int, seconds: float) -> Callable[[], bool]:
    """Whether it is so long ago that the log began to grow."""
    began: list[float] = []

    def until() -> bool:
        if not began and log.stat().st_size > size:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > seconds

    return until


def dask(work: Path) -> dict[str, Any]:
    """Two workers of Dask in processes, one of which is killed while it works."""
    import torch
    from distributed import Client, LocalCluster

    import lowrank

    torch.set_num_threads(1)
    write_model(work / "dense", SMALL)
    ids = torch.randint(SMALL.words, (8, 256), generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = {"workers": 2, "shape": asdict(SMALL)}
    for name, kill in (("whole", False), ("killed", True)):
        cluster = LocalCluster(2, threads_per_worker=1, dashboard_address=None)
        with cluster, Client(cluster) as client:
            pids = client.run(os.getpid)
            victims = [*pids.values()][:1] if kill else []

            def progress(what: str, done: int, total: int, victims: Any = victims) -> None:
                if "compressing" in what and done == 2 and victims:
                    os.kill(victims.pop(), signal.SIGKILL)

            began = time.monotonic()
            done = lowrank.compress_folder(
                work / "dense", work / name, params=KEEP, data=ids,
                executor=client.get_executor(), progress=progress,
            )  # fmt: skip
            after = client.run(os.getpid)
        found[name] = {"wall_s": time.monotonic() - began, "remarks": list(done.remarks)}
        found[name]["workers_killed"] = len(set(pids.values()) - set(after.values()))
    found["identical"] = digest(work / "whole") == digest(work / "killed")
    return found


def cost(sizes: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Processor time of a block by hidden size, its growth, and the two large models by it.

    Growth is fitted as a power of the hidden size; the large models' times are given by that
    power and by the cube, which eigenvectors grow with in the end, from the largest size.
    """
    rows = sizes or [of_a_block(shape) for shape in SIZES]
    hidden = [row["hidden"] for row in rows]
    powers = {stage: fitted(hidden, [row[stage] for row in rows]) for stage in STAGES}
    found: dict[str, Any] = {"tokens": TOKENS, "sizes": rows, "powers": powers}
    for name, shape in LLAMA.items():
        a, p = powers["layers_s"]
        low = a * shape.hidden**p
        high = rows[-1]["layers_s"] * (shape.hidden / hidden[-1]) ** 3
        found[name] = {
            **asdict(shape), "parameters": shape.total, **stated(shape),
            "forward_flops_per_token": 4 * 2 * shape.block * shape.blocks,
            "layers_s": [round(shape.blocks * t) for t in (low, high)],
            "layers_s_on_eight": [round(shape.blocks * on_workers(shape, t)) for t in (low, high)],
            "bytes_sent": 2 * 4 * shape.block * shape.blocks,
        }  # fmt: skip
    return found


LINK = 1.25e9
"""Bytes a second between machines: 10 Gbit/s."""

LARGE_TOKENS = 32 * 2048


def stated(shape: Shape) -> dict[str, Any]:
    """What `compress_folder` states before it starts, of a checkpoint in bfloat16 whose files
    have headers and no contents."""
    import torch

    from lowrank.compression.pipeline.streaming.costs import needs_of
    from lowrank.compression.pipeline.streaming.job import job_of
    from lowrank.compression.pipeline.streaming.source import opened
    from lowrank.compression.structure.pretrained.tensor_files import Made, _file_of

    config, state = _llama(shape, "bfloat16")
    rows = [(n, Made(torch.bfloat16, tuple(t.shape), lambda t=t: t)) for n, t in state.items()]
    with tempfile.TemporaryDirectory() as folder:
        header = next(_file_of(rows))
        path = Path(folder, "model.safetensors")
        path.write_bytes(header)
        os.truncate(path, len(header) + sum(row.nbytes for _, row in rows))  # with a hole
        config.save_pretrained(folder)
        ids = [{"input_ids": torch.zeros(1, 2048, dtype=torch.long)}] * (LARGE_TOKENS // 2048)
        needs = needs_of(job_of(opened(Path(folder)), KEEP, ids, (), None), twice=True)
    return {"calibration_tokens": LARGE_TOKENS, "stated": needs.to_dict()}


def on_workers(shape: Shape, seconds: float, workers: int = 8) -> float:
    """Wall time of a block's layers on so many workers: largest first, each sent and sent back.

    Args:
        shape: the model.
        seconds: of all layers of the block on one core, which are shared out by the work.
        workers: how many.
    """
    d, f, kv = shape.hidden, shape.inner, shape.hidden * shape.kv // shape.heads
    layers = [(d, d), (kv, d), (kv, d), (d, d), (f, d), (f, d), (d, f)]
    work = [o * i * min(o, i) for o, i in layers]
    free, link = [0.0] * workers, 0.0
    for part, (o, i) in sorted(zip(work, layers, strict=True), reverse=True):
        link += 4 * (o * i + 2 * i * i) / LINK  # one after another through the link
        at = free.index(min(free))
        free[at] = max(free[at], link) + seconds * part / sum(work) + 4 * KEEP * o * i / LINK
    return max(free)


STAGES = ("forward_s", "layers_s")
TOKENS = 512


def of_a_block(shape: Shape) -> dict[str, Any]:
    """Processor time that one block takes, by stage."""
    import torch

    from lowrank.compression.pipeline import stream

    torch.set_num_threads(1)
    stream.time.perf_counter = time.process_time  # type: ignore[attr-defined]
    ids = torch.randint(shape.words, (TOKENS // 256, 256))
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder, "dense"), shape)
        done = stream.compress_folder(
            Path(folder, "dense"), Path(folder, "out"), params=KEEP, data=ids
        )  # fmt: skip
    took = {f"{k}_s": v / shape.blocks for k, v in done.seconds.items() if k != "examples"}
    print(shape, took, flush=True)
    return {"hidden": shape.hidden, "stated_bytes": done.needs.memory, **took}


def fitted(sizes: list[int], times: list[float]) -> tuple[float, float]:
    """a and p of a size^p."""
    power, first = np.polyfit(np.log(sizes), np.log(times), 1)
    return float(np.exp(first)), float(power)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["memory", "dask", "cost"])
    parser.add_argument("--small", action="store_true", help="a few MB instead of 6 GB")
    parser.add_argument("--again", action="store_true", help="of the sizes measured before")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--work", type=Path, help="folder for what is deleted in the end")
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="lowrank-", dir=asked.work))
    try:
        if asked.part == "memory":
            shape = SMALL if asked.small else LARGE
            row = memory(work, shape, 512, "alike", asked.kills)
        else:
            known = json.loads(OUT.read_text()).get("cost", {}) if OUT.exists() else {}
            again = known.get("sizes") if asked.again else None
            row = dask(work) if asked.part == "dask" else cost(again)
    finally:
        shutil.rmtree(work)
    if asked.small:
        print(json.dumps(row, indent=1))
        return
    results = json.loads(OUT.read_text()) if OUT.exists() else {}
    results[asked.part] = row | {"machine": machine()}
    OUT.write_text(json.dumps(results, indent=1) + "\n")


def machine() -> dict[str, Any]:
    names = ("torch", "transformers", "safetensors", "numpy", "lowrank-kit")
    return {
        "python": platform.python_version(), "cpus": os.cpu_count(), "threads": 1, "seed": SEED,
        **{name: version(name) for name in names},
    }  # fmt: skip


if __name__ == "__main__":
    main()
