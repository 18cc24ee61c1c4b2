"""The demo: the bundled ResNet-20 at half of its MACs, before and after fine-tuning."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lowrank.atomic import replacing
from lowrank.compression.calibration.settings import Calibration
from lowrank.compression.fitting.finetune import finetune
from lowrank.compression.gauges.counting import model_cost
from lowrank.compression.gauges.profile import profile
from lowrank.compression.gauges.profile_table import Profile
from lowrank.compression.gauges.quality import accuracy
from lowrank.compression.gauges.timing import Latency, compare_latency
from lowrank.compression.methods.shared.base import ranks_of
from lowrank.compression.pipeline.apply import apply
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.measure import measure
from lowrank.compression.structure.history import copy_model
from lowrank.compression.structure.plan import Plan
from lowrank.demos.bundled import fashion_mnist, resnet20
from lowrank.errors import InputError
from lowrank.progress import Progress

PICTURE = "lowrank-demo.png"
"""Name of the picture that `draw` writes."""


BATCH = 64
"""Pictures in the batch that is timed."""


METHODS = ("channel_svd",)
"""The others come closer at the same MACs, and run longer here."""


@dataclass(frozen=True)
class Stage:
    """One of the three networks.

    Args:
        parameters: number of parameters.
        bytes: their storage.
        macs: multiply-accumulates for one picture.
        latency: time of a batch of `BATCH` pictures, the three networks in turns.
        accuracy: share of right answers on the test pictures, in [0, 1].
    """

    parameters: int
    bytes: int
    macs: int
    latency: Latency
    accuracy: float

    def to_dict(self) -> dict[str, float]:
        """The figures as JSON values."""
        return {
            "parameters": self.parameters,
            "bytes": self.bytes,
            "macs": self.macs,
            "latency_ms": self.latency.median_ms,
            "accuracy": self.accuracy,
        }


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Args:
        dense: the trained network.
        compressed: the network after its plan was applied.
        finetuned: the same after fine-tuning.
        profile: the dense network, layer by layer, on one picture.
        curves: error of every layer at every rank.
        plan: what became of every layer.
        epochs: of fine-tuning.
        n_train: pictures it was fine-tuned on.
        n_test: pictures the accuracy stands on.
    """

    dense: Stage
    compressed: Stage
    finetuned: Stage
    profile: Profile
    curves: Curves
    plan: Plan
    epochs: int
    n_train: int
    n_test: int

    @property
    def stages(self) -> dict[str, Stage]:
        """The three networks by name."""
        return {"dense": self.dense, "compressed": self.compressed, "finetuned": self.finetuned}

    def to_dict(self) -> dict[str, Any]:
        """The figures of the three networks as JSON values."""
        return {name: stage.to_dict() for name, stage in self.stages.items()}


def run(
    model: nn.Module | None = None,
    *,
    train: tuple[Tensor, Tensor] | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    macs: float = 0.5,
    epochs: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> Demo:
    """Profile, compress, fine-tune; the figures of all three networks.

    Args:
        model: the trained network; the bundled one by default.
        train: images (n, 1, 28, 28) and labels (n,); the packed 5,000 by default.
        test: the same to measure the accuracy on; the packed 2,000 by default.
        macs: fraction of the multiply-accumulates to keep.
        epochs: of fine-tuning.
        seed: of everything random.
        progress: called as (what, done, total).
    """
    tell = progress or (lambda what, done, total: None)
    model = resnet20() if model is None else model
    train, test = train or fashion_mnist("train"), test or fashion_mnist("test")
    one = test[0][:1]
    tell("profiling", 0, 1)
    cost = profile(model, one)
    curves = measure(model, one, methods=METHODS, calibration=Calibration(seed=seed), progress=tell)
    plan = curves.plan(macs=macs)
    compressed, _ = apply(model, plan, progress=tell)
    finetuned = finetune(
        copy_model(compressed),
        teacher=model,
        data=train,
        epochs=epochs,
        lr=5e-4,
        hints=("stages.0", "stages.1", "stages.2"),  # five thousand scores alone say little
        hint_weight=3.0,
        seed=seed,
        progress=tell,
    )
    dense, small, tuned = _stages([model, compressed, finetuned], test, tell)
    return Demo(dense, small, tuned, cost, curves, plan, epochs, len(train[0]), len(test[0]))


def draw(demo: Demo, folder: Path) -> Path:
    """Write a picture of error against rank and of the plan; returns its path.

    Raises:
        InputError: the folder cannot be written to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    demo.curves.plot(method=_favourite(demo.plan), ax=left)
    demo.plan.plot(ax=right)
    path = folder / PICTURE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise InputError(
            str(path), f"cannot be written ({error})", "name another folder"
        ) from error
    return path


def _stages(models: list[nn.Module], test: tuple[Tensor, Tensor], tell: Progress) -> list[Stage]:
    one, batch = test[0][:1], test[0][:BATCH]
    tell("timing", 0, 1)
    latencies = compare_latency(models, batch, repeats=15)
    stages = []
    for done, (model, latency) in enumerate(zip(models, latencies, strict=True)):
        tell("testing", done, len(models))
        cost = model_cost(model, one)
        right = accuracy(model, *test)
        stages.append(Stage(cost.params, cost.bytes, cost.macs, latency, right))
    return stages


def _favourite(plan: Plan) -> str:
    """The method with a single rank that the plan uses most."""
    used = Counter(m.name for m in plan.replaced.values() if len(ranks_of(m)) == 1)
    return used.most_common(1)[0][0] if used else "channel_svd"
