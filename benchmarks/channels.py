"""What becomes of every channel dimension, over the zoo's networks and the grammar's.

    python benchmarks/channels.py --count 100

Of each network the channels are followed, half of the channels of each unit are dropped, and what
made them is shaken: a fault is an output that moves, or that differs from the network's in which
nothing reads them (`tests/account.py`). The file holds the counts: units, layers whose outputs may
go, and those whose outputs stay, by the reason.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from account import Account, account  # noqa: E402
from grammar import network  # noqa: E402

import lowrank  # noqa: E402
from lowrank.errors import LowRankError  # noqa: E402
from tests.zoo import SMALL  # noqa: E402

OUT = Path(__file__).parent / "results" / "channels.json"


def row(found: Account) -> dict[str, Any]:
    """As JSON values, most frequent reasons first."""
    counts = {
        k: dict(Counter(v).most_common()) for k, v in vars(found).items() if isinstance(v, Counter)
    }
    return {**asdict(found), **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    zoo = {name: row(account(net.build().eval(), net.example())) for name, net in SMALL.items()}
    total, refused, empty = Account(), 0, 0
    for seed in range(args.first, args.first + args.count):
        net = network(seed)
        try:
            found = account(net.build(), net.example())
        except LowRankError:
            refused += 1
            continue
        if found.faults:
            print(seed, found.faults, net, flush=True)
        empty += not found.units
        total += found
    setting = {
        "torch": torch.__version__, "lowrank": lowrank.__version__,
        "seeds": [args.first, args.first + args.count],
        "cpu_seconds": round(time.process_time() - began),
    }  # fmt: skip
    grammar = {
        "networks": args.count,
        "refused whole": refused,
        "without a unit": empty,
        **row(total),
    }
    made = {"setting": setting, "grammar": grammar, "zoo": zoo}
    args.out.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(grammar, indent=1))


if __name__ == "__main__":
    main()
