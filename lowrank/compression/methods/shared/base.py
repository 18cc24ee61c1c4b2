"""What a replacement method is, and what every one of them gets for free.

A method is a frozen dataclass that holds its ranks. It answers three questions about a
layer: `supports` (a reason against it, or None), `stages` (the shapes of the stages), and
`factor` (their weights). Cost, construction and the way back follow from these here, for
all methods alike. `candidates` proposes the ranks worth planning with, each with its error.
A class that inherits from `Method` has its answers to what most methods answer alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor, nn

from lowrank.compression.network.stages import Factor, LayerSpec, Stage
from lowrank.compression.network.units import Bond, Unit, names_of
from lowrank.decompositions.metric import Metric
from lowrank.errors import RankError

M = TypeVar("M", bound="Method")


class Method(Protocol):
    """One way to replace a layer by a chain of smaller ones, or of small modules.

    A class of methods is registered by its `name` in `METHODS`; its fields are JSON values.
    `rank_names` says which of these are its ranks: methods that differ in them alone are of
    one family, whose cost and error go with the ranks.
    `serves` says which units it can replace: a layer alone, an embedding with the output head
    that reads its table, layers that read the same input.
    Weights are canonical: (groups, out / groups, in / groups, *kernel).
    """

    name: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]]
    serves: ClassVar[tuple[Bond, ...]] = ("alone",)

    @classmethod
    def supports(cls, spec: LayerSpec) -> str | None:
        """Why the method cannot serve a layer of this shape, or None if it can."""

    @classmethod
    def variants(cls: type[M], spec: LayerSpec) -> Iterable[M]:
        """Each form that serves the layer, at ranks at which it reproduces every weight."""

    @classmethod
    def candidates(
        cls: type[M],
        spec: LayerSpec,
        weight: Tensor,
        *,
        round_to: int,
        seed: int,
        metric: Metric | None = None,
    ) -> Iterable[tuple[M, float]]:
        """Methods with the ranks worth considering, and their relative squared error.

        The error is that of the outputs where there is a metric, else that of the weight.
        """

    def check(self, spec: LayerSpec) -> str | None:
        """What is wrong with the ranks for a layer of this shape, or None."""

    def stages(self, spec: LayerSpec) -> tuple[Stage, ...]:
        """The stages that replace the layer, first to last."""

    def factor(
        self,
        spec: LayerSpec,
        weight: Tensor,
        *,
        seed: int,
        metric: Metric | None = None,
        max_iter: int | None = None,
    ) -> tuple[Factor, ...]:
        """What fills the stages, closest in the metric or the Frobenius norm.

        `max_iter` limits a search in the metric, None leaves it to the method.
        """

    @property
    def stored_sparse(self) -> bool:
        """Whether zeros are left out of storage only: planned for bytes and for time alone."""
        return False

    def relaxed(self, chain: nn.Sequential) -> AbstractContextManager[nn.Module] | None:
        """A context in which training moves what the stages hold that is discrete, too.

        Args:
            chain: the modules of the stages, as they stand in the model; when the context
                ends, they are as before, with what was chosen last.

        Returns:
            A context that gives the module that trains; None where nothing is discrete, or
            the chain is no longer what the stages built.
        """
        return None


OPTIONAL = ("serves", "stored_sparse", "relaxed")
"""What a method need not say: it may inherit the answers of `Method`."""


def ranks_of(method: Method) -> tuple[int, ...]:
    """The ranks, in the order of `rank_names`."""
    values = [getattr(method, name) for name in method.rank_names]
    return tuple(r for v in values for r in (v if isinstance(v, tuple) else (v,)))


def settings_of(method: Method) -> dict[str, object]:
    """What a method holds beside its ranks, by name."""
    names = [f.name for f in fields(method)]  # type: ignore[arg-type]
    return {n: getattr(method, n) for n in names if n not in method.rank_names}


def is_stock(method: Method, spec: LayerSpec) -> bool:
    """Whether torch's own modules alone replace a layer of this shape."""
    return all(stage.stock for stage in method.stages(spec))


def has_stock(cls: type[Method], spec: LayerSpec) -> bool:
    """Whether some form of a method replaces a layer of this shape by torch's own modules."""
    return any(is_stock(method, spec) for method in cls.variants(spec))


@dataclass(frozen=True, eq=False)
class Target:
    """What one of several layers should become that are fitted together.

    Args:
        weight: its canonical weight.
        metric: in which it should be close; None for the Frobenius norm.
        importance: what an error as large as its whole output counts, beside the others.
    """

    weight: Tensor
    metric: Metric | None
    importance: float = 1.0

    @property
    def scale(self) -> float:
        """The factor of its squared error in the sum over the layers."""
        metric = self.metric
        whole = (
            float(self.weight.double().square().sum())
            if metric is None
            else metric.error(self.weight.flatten(2))
        )
        return self.importance / whole if whole > 0 else 0.0


class Joint(Method, Protocol):
    """A method for layers that read the same input, seen as one map with all their outputs."""

    @classmethod
    def together(
        cls: type[M], targets: Sequence[Target], *, round_to: int
    ) -> Iterable[tuple[M, tuple[float, ...]]]:
        """Methods with the ranks worth considering, and each layer's relative squared error."""

    def factor_together(self, targets: Sequence[Target]) -> tuple[Factor, ...]:
        """What fills the stages; the last factor holds the outputs of all layers, in order."""


def require(method: Method, unit: Unit) -> None:
    """Raise a RankError with the unit's name unless the method fits it."""
    name, spec = unit.layers[0].name, unit.spec
    if unit.bond not in method.serves:
        others = names_of(unit)[1:]
        how = f"together with {', '.join(others)}" if others else "by itself"
        problem = f"{method.name} does not serve it {how}"
        raise RankError(name, problem, "choose another method, or another choice for these")
    if (reason := method.supports(spec)) is not None:
        raise RankError(name, f"{method.name} does not fit: {reason}", "choose another method")
    if (wrong := method.check(spec)) is not None:
        raise RankError(name, wrong, "change it, or leave the layer out of the plan")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def outside(what: str, rank: int, full: int, spec: LayerSpec) -> str | None:
    """The complaint about a rank outside 1..full, or None."""
    if is_whole(rank) and 1 <= rank <= full:
        return None
    g, o, i, *kernel = spec.weight_shape
    shape = (g * o, i, *kernel)
    return f"{what} {rank!r} is outside 1..{full} for weight {shape}"


def no_kernel(spec: LayerSpec, axes: int, instead: str) -> str | None:
    """The complaint about a kernel that extends along fewer than `axes` axes, or None."""
    if sum(k > 1 for k in spec.kernel) >= axes:
        return None
    return f"its kernel extends along fewer than {axes} axes, where this is {instead}"


def depthwise(spec: LayerSpec) -> str | None:
    """The complaint about groups of a single input channel, or None."""
    if spec.groups > 1 and spec.weight_shape[2] == 1:
        return "a depthwise layer has one input channel per group"
    return None


def kernel_axes(spec: LayerSpec) -> list[list[int]]:
    """Spatial axes of each one-dimensional stage; axes of extent 1 go with the first."""
    long = [a for a, k in enumerate(spec.kernel) if k > 1]
    flat = [a for a, k in enumerate(spec.kernel) if k == 1]
    return [[a, *flat] if a == long[0] else [a] for a in long]


def long_kernel(w: Tensor) -> Tensor:
    """(o, i, *kernel) without the kernel axes of extent 1."""
    o, i, *kernel = w.shape
    return w.reshape(o, i, *(k for k in kernel if k > 1))


def worthwhile(rank_one: Method, spec: LayerSpec, full: int) -> int:
    """The largest rank in 1..full that has no more weights than the layer; 1 if none has."""
    per_rank = sum(s.n_weights for s in rank_one.stages(spec))
    return min(full, max(1, spec.n_weights // per_rank))


def rank_grid(full: int, *, round_to: int, limit: int) -> list[int]:
    """At most `limit` ranks in 1..full, evenly spread, multiples of `round_to`."""
    step = max(round_to, -(-full // limit) if round_to == 1 else round_to)
    n = full // step
    stride = max(1, -(-n // limit))
    return [step * k for k in range(1, n + 1, stride)]


def lost_energy(singular_values: Tensor) -> list[float]:
    """Relative squared error at rank 1, 2, ... of truncating every group at the same rank.

    Args:
        singular_values: (groups, n), descending.
    """
    energy = singular_values.double().square().sum(0)
    tail = energy.flip(0).cumsum(0).flip(0)  # summed from the small end: no cancellation
    total = float(tail[0])
    return [float(t) / total if total else 0.0 for t in tail[1:]] + [0.0]
