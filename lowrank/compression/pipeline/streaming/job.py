"""What is to be done with a model on disk: its layers, their room, and the plan of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from lowrank.compression.methods.channel_svd import ChannelSVD
from lowrank.compression.network.channels.narrowing import Narrowed, narrowed_shapes
from lowrank.compression.network.layer_names import left_out
from lowrank.compression.network.layers import is_transposed_linear, own_shapes, spec_of
from lowrank.compression.network.scan import (
    held_elsewhere,
    holds_parameters,
    kind_of,
    static_reason,
)
from lowrank.compression.network.stages import Cost, LayerSpec
from lowrank.compression.pipeline.streaming.source import Source
from lowrank.compression.planning.budget import budget_of
from lowrank.compression.planning.curves import FEWER
from lowrank.compression.structure.choices import Choice, Dense, PlannedLayer
from lowrank.compression.structure.plan import Plan
from lowrank.compression.structure.pretrained.building import mismatch, shapes, skeleton, ties
from lowrank.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Job:
    """The layers of a model that may be replaced.

    Args:
        source: the model.
        specs: layers that may be replaced -> their shapes.
        reasons: every other module with parameters -> why it stays dense.
        whole: parameters of the model.
        limit: parameters to keep.
        given: the budget as it was given.
        batches: calibration examples; none without data.
    """

    source: Source
    specs: Mapping[str, LayerSpec]
    reasons: Mapping[str, str]
    whole: int
    limit: float
    given: Mapping[str, float]
    batches: Sequence[Mapping[str, Tensor]] = field(default_factory=tuple)

    @property
    def room(self) -> float:
        """Weights that the layers may have together."""
        return self.limit - (self.whole - sum(s.n_weights for s in self.specs.values()))

    def layers(self, k: int) -> dict[str, LayerSpec]:
        """The layers of a block that may be replaced."""
        prefix = f"{self.source.blocks[k]}."
        return {n: s for n, s in self.specs.items() if n.startswith(prefix)}

    def modules(self, k: int) -> dict[str, nn.Module]:
        """The same as modules."""
        return {name: self.source.model.get_submodule(name) for name in self.layers(k)}


def job_of(
    source: Source,
    params: float,
    batches: Sequence[Mapping[str, Tensor]],
    skip: str | Sequence[str],
    only: str | Sequence[str] | None,
) -> Job:
    """Find the linear layers of a model's blocks.

    Raises:
        BudgetError: a budget that makes no sense.
        InputError: a pattern that matches nothing.
    """
    held = held_elsewhere(source.model)
    prefix, specs, reasons = f"{source.stack}.", {}, {}
    modules = {n: m for n, m in source.model.named_modules() if holds_parameters(m)}
    asked = left_out(modules, skip, only, modules)
    for name, module in modules.items():
        spec, why = spec_of(module), static_reason(module) or held.get(id(module))
        if why is None and not name.startswith(prefix):
            why = "it is outside of the blocks, which are compressed one by one"
        if why is None and (spec is None or spec.kind != "linear"):
            why = "only the blocks' linear layers are compressed one by one"
        if why is None:
            why = asked.get(name)
        if why is None and spec is not None:
            specs[name] = spec
        else:
            reasons[name] = why or "it has no weight matrix"
    whole = sum(prod(s.shape) for n, s in source.stored.items() if _is_parameter(source, n))
    budget = budget_of({"params": whole}, {"params": params})
    return Job(source, specs, reasons, whole, budget.limits[0], budget.given, batches)


def _is_parameter(source: Source, name: str) -> bool:
    at, _, own = name.rpartition(".")
    return own in source.model.get_submodule(at)._parameters


def plan_of(
    job: Job,
    ranks: Mapping[str, int | None],
    narrowed: Mapping[str, Narrowed],
    lost: Mapping[str, float],
) -> Plan:
    """The plan of ranks and widths.

    Args:
        job: the layers.
        ranks: of each; None leaves it dense.
        narrowed: what stays of those that go narrower.
        lost: relative squared error of the outputs, of replaced layers and of narrower readers.
    """
    size, rows = job.source.dtype.itemsize, {}
    modules = dict(job.source.model.named_modules())
    for name in (n for n, m in modules.items() if holds_parameters(m)):
        spec, choice = job.specs.get(name), _choice(job, name, ranks)
        dense = None if spec is None else _cost(spec.n_weights, size)
        cost = error = None
        if isinstance(choice, ChannelSVD) and spec is not None:
            cost = _cost(choice.rank * (spec.in_channels + spec.out_channels), size)
            error = lost.get(name)
        module = modules[name]
        shapes_ = own_shapes(module)
        if spec is not None and (what := narrowed.get(name)) is not None:
            choice, error, whole = Dense(FEWER), lost.get(name), sum(map(prod, shapes_.values()))
            shapes_ = narrowed_shapes(module, what)
            gone = whole - sum(map(prod, shapes_.values()))
            cost = _cost(spec.n_weights - gone, size)
        rows[name] = PlannedLayer(kind_of(module), shapes_, choice, dense, cost, error)
    macs = sum(s.n_weights for s in job.specs.values())
    total = Cost(job.whole, job.whole * size, macs)
    return Plan(rows, total, dict(job.given), narrowed=dict(narrowed))


def _choice(job: Job, name: str, ranks: Mapping[str, int | None]) -> Choice:
    if name in job.reasons:
        return Dense(job.reasons[name])
    rank = ranks[name]
    return Dense("the budget is best spent on it") if rank is None else ChannelSVD(rank)


def _cost(weights: int, size: int) -> Cost:
    return Cost(weights, weights * size, weights)  # MACs of one token


def check_plan(job: Job, plan: Plan) -> None:
    """Refuse, before anything is computed, a plan that reading would not build.

    Raises:
        PlanError: it does not fit the model.
        CheckpointError: it would give other tensors than are going to be written.
    """
    source = job.source
    trial = skeleton(source.model, [("", plan)])
    tied = ties(trial)
    want = {n: shape for n, shape in shapes(trial.state_dict()).items() if n not in tied}
    have = {n: s.shape for n, s in source.stored.items()}
    for name, what in plan.narrowed.items():
        own = narrowed_shapes(source.model.get_submodule(name), what)
        have |= {f"{name}.{part}": shape for part, shape in own.items()}
    for name, method in plan.replaced.items():
        have |= replaced_shapes(source, name, job.specs[name], method.rank, have)  # type: ignore[attr-defined]
    if (problem := mismatch(have, want, ("the files", "what the plan builds"))) is not None:
        raise CheckpointError(str(source.folder), problem, "compress it in memory")


def replaced_shapes(
    source: Source,
    name: str,
    spec: LayerSpec,
    rank: int,
    have: dict[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """The shapes of what stands in a layer's place; its own are taken out of `have`."""
    del have[f"{name}.weight"]
    found: dict[str, tuple[int, ...]] = {
        f"{name}.0.weight": (rank, spec.in_channels),
        f"{name}.1.weight": (spec.out_channels, rank),
    }
    if spec.bias:
        found[f"{name}.1.bias"] = have.pop(f"{name}.bias")
    return found


def factored(module: nn.Module, factors: Sequence[Tensor], bias: Tensor | None) -> nn.Sequential:
    """Two linear layers.

    Args:
        module: the dense layer in whose place they stand, for its training mode.
        factors: (rank, in) and (out, rank).
        bias: (out,), or None.
    """
    first, last = (_linear(f) for f in factors)
    if bias is not None:
        last.bias = nn.Parameter(bias, requires_grad=False)
    return nn.Sequential(first, last).train(module.training)


def _linear(weight: Tensor) -> nn.Linear:
    out, inside = weight.shape
    layer = nn.utils.skip_init(nn.Linear, inside, out, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def matrix(module: nn.Module) -> Tensor:
    """The weight of a linear layer as (1, out, in)."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return (weight.T if is_transposed_linear(module) else weight)[None]


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Values as they are going to be stored, in the type that is computed in."""
    return tensor.to(dtype).float()
