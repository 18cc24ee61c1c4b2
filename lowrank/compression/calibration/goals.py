"""What the fits of all layers aim at, in turn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from torch import nn

from lowrank.compression.calibration.downstream import Downstream
from lowrank.compression.calibration.prefix import Goal, Prefix
from lowrank.compression.calibration.statistics import _BEHIND, Statistics
from lowrank.compression.network.channels.narrowing import Kept, Narrowed
from lowrank.compression.network.layers import LayerView

How = Literal["sequential", "parallel"]
"""Each layer to what the compressed prefix gives it, or to what the dense one does."""


class Fitting:
    """Goals for the layers of a model, one after another in the order in which they run.

    Args:
        data: what is known.
        dense: the original.
        small: the copy in which the layers are being replaced.
        how: sequential or parallel.
        seed: of positions drawn from large layers.
        teacher: the network at whose outputs they aim, where the original went narrower already.
        narrowed: layer -> what stays of it then.
    """

    def __init__(
        self,
        data: Statistics,
        dense: nn.Module,
        small: nn.Module,
        how: How,
        *,
        seed: int,
        teacher: nn.Module | None = None,
        narrowed: Mapping[str, Narrowed] | None = None,
    ) -> None:
        self.data, self.dense, self.how = data, dense, how
        self._narrowed = {} if teacher is None or narrowed is None else narrowed
        aim = dense if teacher is None else teacher
        self._prefix = Prefix(aim, small, data.batches, effort=data.effort, seed=seed)

    def place(self, names: Sequence[str]) -> tuple[bool, int]:
        """When the layers of a unit are fitted: those apart from the others come first, then
        the rest as they run."""
        places = {name: k for k, name in enumerate(self.data.views)}
        behind = all(self._alone(name) is None for name in names)
        return behind, min(places.get(name, -1) for name in names)

    def goals(self, names: Sequence[str]) -> tuple[list[Goal | None], str]:
        """What the layers of a unit should become, all on the same inputs, and how that was
        found, in words."""
        places = {name: k for k, name in enumerate(self.data.views)}
        running = sorted(names, key=lambda n: places.get(n, -1))
        found = {name: self.goal(name, first=not k) for k, name in enumerate(running)}
        goals, ways = [found[n][0] for n in names], [found[n][1] for n in names]
        if len(set(ways)) == 1:
            return goals, ways[0]
        why = next(how for how in ways if how != _BEHIND)
        if None in goals:
            return [None] * len(names), why
        return [self.data.goal(self.dense, name) for name in names], why

    def goal(self, name: str, *, first: bool = True) -> tuple[Goal | None, str]:
        """What a layer should become, and how that was found, in words.

        Layers before it stay as they are, unless it is not the `first` of its unit.
        """
        if (reason := self.data.reason(name)) is not None:
            return None, f"to its weights alone: {reason}"
        alone = self._alone(name)
        if alone is None:
            found = self._prefix.goal(
                self.data.views[name],
                self.data.sinks.get(name, Downstream()),
                self.data.weight_of_outputs(self.dense, name),
                centred=self.data.centred(name),
                first=first,
                kept=self._kept(name),
            )
            if found is not None:
                return found, _BEHIND
            alone = "the compressed model does not run it on the same"
        why = "" if self.how == "parallel" else f": {alone}"
        return self.data.goal(self.dense, name), f"to the dense model's inputs{why}"

    def readers(self, replaced: Collection[str]) -> list[LayerView]:
        """The layers that read fewer channels and are not replaced, as they run."""
        names = [n for n, w in self._narrowed.items() if w.inputs is not None and not w.depthwise]
        mine = [n for n in names if n in self.data.views and n not in replaced]
        mine = [n for n in mine if self._alone(n) is None]
        return [self.data.views[n] for n in sorted(mine, key=lambda n: self.place([n]))]

    def of_reader(self, view: LayerView) -> Goal | None:
        """What a layer that reads fewer channels should do behind the compressed prefix; None
        where it keeps what it has.

        Args:
            view: the layer.
        """
        name = view.name
        return self._prefix.goal(
            view, self.data.sinks.get(name, Downstream()), None,
            centred=self.data.centred(name), kept=self._kept(name),
        )  # fmt: skip

    def _kept(self, name: str) -> Kept | None:
        return self._narrowed.get(name, Narrowed()).outputs

    def _alone(self, name: str) -> str | None:
        """Why a layer is not fitted behind the compressed prefix, or None if it is."""
        if (reason := self.data.reason(name)) is not None:
            return reason
        if self.how == "parallel":
            return "as asked for"
        view = self.data.views[name]
        if view.spec.kind == "embedding":
            return "nothing comes before an embedding"
        if len(view.calls) > 1:
            return f"it runs {len(view.calls)} times in a pass"
        return None
