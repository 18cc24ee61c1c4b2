"""Where a layer's new weights come from: its weights alone, data, or data behind the prefix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import prod
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.calibrate import (
    Calibrated,
    NoGradients,
    calibrate,
)
from lowrank.compression.calibration.downstream import Downstream, find_downstream, norm_scale
from lowrank.compression.calibration.effort import EFFORTS, Effort
from lowrank.compression.calibration.fingerprint import of_inputs, of_library, of_model
from lowrank.compression.calibration.kept import pack, unpack
from lowrank.compression.calibration.moments import WORDS_DAMPED
from lowrank.compression.calibration.prefix import Goal
from lowrank.compression.gauges.quality import Loss, Scorer, speaks
from lowrank.compression.network.cutting import few_of, held_out
from lowrank.compression.network.example import Example
from lowrank.compression.network.layers import LayerView, spec_of
from lowrank.compression.network.units import Unit, names_of
from lowrank.decompositions.metric import Metric, Weight
from lowrank.errors import InputError
from lowrank.progress import Progress
from lowrank.store import NOWHERE, Shelf, Store, digest

Way = Literal["probe", "gradients", "outputs"]
"""The named ways to weigh."""


Weighting: TypeAlias = Way | Scorer
"""How layers and their outputs are weighed: fits by the gradients that reach an output and
layers by what replacing each alone does, to the output or to the user's quality of the model;
both by gradients; or outputs as they are (behind a batch norm), without a backward pass."""


_BEHIND = "to the inputs behind the compressed layers"
"""How a layer was fitted that was not fitted apart."""


_COSTLY = 1 << 34
"""Multiplications of W C W^T from which it is not computed twice."""


_SAME = 1e-2
"""Relative difference of weights up to which a layer is the same: half precision rounds."""


@dataclass(frozen=True)
class Importance:
    """How much an error as large as a layer's whole output counts.

    Args:
        outputs: its squared norm, behind a batch norm if there is one, over all positions.
        loss: the change of the model's output that it makes: by the gradients to first
            order, in nats for class scores; None where there are none.
    """

    outputs: float
    loss: float | None = None

    def weight(self, exponent: float) -> float:
        """outputs^(1 - exponent) loss^exponent."""
        if self.loss is None:
            return self.outputs
        return self.outputs ** (1 - exponent) * self.loss**exponent


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known about a model from data: all that fitting a plan needs.

    Args:
        units: the layers, in the order in which they run, by the name of each unit's first.
        sinks: layer -> where its output goes.
        calibrated: moments of the dense model.
        batches: the inputs they are from.
        weighting: how outputs are weighed.
        loss: the user's, of an output, where there is one.
        notes: on what could not be done with these data.
        effort: what fits may take.
        shelf: keeps results that follow from these statistics.
        words: the model's output scores words at every place of a text.
    """

    units: dict[str, Unit]
    sinks: dict[str, Downstream]
    calibrated: Calibrated
    batches: Sequence[Example]
    weighting: Weighting = "probe"
    loss: Loss | None = None
    notes: tuple[str, ...] = ()
    effort: Effort = EFFORTS["default"]
    shelf: Shelf = NOWHERE
    words: bool = False

    @property
    def exponent(self) -> float:
        """How strongly layers are weighed by what the loss feels of them, if nothing is said.

        In full where the output scores words: their many gradients tell the loss to within a
        few tenths of it, and what a layer's output is as large as tells nothing.
        """
        return 1.0 if self.words else 0.5

    @property
    def probed(self) -> bool:
        """Whether each layer is weighed by replacing it alone."""
        asked = callable(self.weighting) or (self.weighting == "probe" and not self.words)
        return asked and self.effort.probes > 0

    def few_of(self, batch: Example) -> Example:
        """Examples that show how a model runs: of texts, which are long, one."""
        return few_of(batch, 1 if self.words else 4)

    @cached_property
    def views(self) -> dict[str, LayerView]:
        """The layers that own their weight, in the order in which they run."""
        return {name: unit.layers[0] for name, unit in self.units.items()}

    @classmethod
    def of(
        cls,
        model: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Example],
        *,
        loss: Loss | None = None,
        weighting: Weighting = "probe",
        effort: Effort = EFFORTS["default"],
        seed: int = 0,
        further: Sequence[Tensor | None] = (),
        store: Store | None = None,
        progress: Progress | None = None,
    ) -> Statistics:
        """Calibrate a model on batches of inputs.

        Args:
            model: the dense network; left as it is.
            units: its layers, from `scan`.
            batches: inputs, from `calibration_batches`.
            loss: whose gradients weigh the outputs; see `calibrate`.
            weighting: "outputs" needs no backward pass, the others do; where that cannot be
                had, outputs are taken as they are.
            effort: what moments and fits may take.
            seed: of everything drawn.
            further: what was counted behind the batches; see `Examples`.
            store: keeps the moments, and what follows from them.
            progress: called as (what, batches done, batches in all).
        """
        words = speaks(model, few_of(batches[0], 1))
        gradients = weighting != "outputs" and (effort.gradients or words)
        views = [unit.layers[0] for unit in units]
        tables = _tables(units)
        shelf = Shelf(store)
        if store is not None:
            names, model_ = [names_of(unit) for unit in units], of_model(model)
            shelf = shelf.part(of_library(), model_, of_inputs(list(batches)), names)
            shelf = shelf.part(gradients, repr(effort), seed, *map(of_inputs, further))

        def make() -> Calibrated:
            try:
                return calibrate(
                    model, views, batches,
                    gradients=gradients, words=words, loss=loss, work=effort.moment, seed=seed,
                    further=further, tables=tables, progress=progress,
                )  # fmt: skip
            except NoGradients as error:
                found = calibrate(
                    model, views, batches,
                    work=effort.moment, seed=seed, further=further, progress=progress,
                )  # fmt: skip
                return replace(found, why=error.problem)

        found = shelf.kept("moments", make, pack, unpack)
        sinks = find_downstream(model, views, few_of(batches[0], 1 if words else 4))
        named = {u.layers[0].name: u for u in units}
        return cls(named, sinks, found, batches, weighting, loss, (), effort, shelf, words)

    def kept_in(self, store: Store | None) -> Statistics:
        """The same, and what follows from it is kept; as it is where that is settled."""
        if store is None or self.shelf.store is not None:
            return self
        known = {
            name: [m.n, m.seen, *(of_inputs(getattr(m, f.name)) for f in fields(m)[2:])]
            for name, m in self.calibrated.layers.items()
        }
        inputs, n = of_inputs(list(self.batches)), self.calibrated.n_examples
        scope = digest("statistics", of_library(), inputs, n, known, repr(self.effort))
        return replace(self, shelf=Shelf(store, scope))

    def bound(self, model: nn.Module) -> Statistics:
        """The same for this very model: a copy of the one that was calibrated, or that one.

        Raises:
            InputError: layers of the model are missing, or have other weights.
        """
        modules = dict(model.named_modules())
        units = {
            name: unit.rebound([_bound(view, modules) for view in unit.layers])
            for name, unit in self.units.items()
        }
        return replace(self, units=units)

    def parted(self, model: nn.Module) -> tuple[Statistics, list[Example]]:
        """The same without a quarter of the examples, and these; none of few examples.

        The model, which is the dense one, is calibrated anew on those that are left, and of it
        the layers that were known: batches cut anew may take another branch.
        """
        rest, held = held_out(self.batches, model)
        if not held:
            return self, []
        bound = self.bound(model)
        found = calibrate(model, list(bound.views.values()), rest, work=self.effort.moment)
        known = self.calibrated.layers
        layers = {
            name: replace(m, G=known[name].G, felt=known[name].felt)
            for name, m in found.layers.items()
            if name in known
        }
        layers |= {r[0].name: known[r[0].name] for r in bound._tables if r[0].name in layers}
        found = replace(found, layers=layers)
        return replace(bound, calibrated=found, batches=rest, shelf=NOWHERE), held

    def reason(self, name: str) -> str | None:
        """Why data says nothing about how to fit the layer, or None."""
        unit = self.units.get(name)
        if unit is None or name not in self.calibrated.layers:
            return "no batch ran it"
        if _reads_table(unit) and not self.calibrated.layers[name].differentiated:
            return "its table is shared"
        return None

    @cached_property
    def _tables(self) -> list[tuple[LayerView, ...]]:
        return _tables(list(self.units.values()))

    def centred(self, name: str) -> bool:
        """Whether a bias or a batch norm of its own takes the mean of the layer's error."""
        if self.sinks.get(name, Downstream()).norm is not None:
            return True
        return self.views[name].spec.bias and name not in self._shared_biases

    @property
    def _shared_biases(self) -> set[str]:
        biases = {n: getattr(v.module, "bias", None) for n, v in self.views.items()}
        held = Counter(id(b) for b in biases.values() if b is not None)
        return {n for n, b in biases.items() if b is not None and held[id(b)] > 1}

    def weight_of_outputs(self, model: nn.Module, name: str) -> Weight | None:
        """What weighs a layer's outputs in a fit, kept for the one asked about last."""
        key = (id(model), name)
        if key not in self._weights:
            self._weights.clear()
            self._weights[key] = self._weight_of(model, name)
        return self._weights[key]

    @cached_property
    def _weights(self) -> dict[tuple[int, str], Weight | None]:
        return {}

    def _weight_of(self, model: nn.Module, name: str) -> Weight | None:
        moments, view = self.calibrated.layers[name], self.views[name]
        if self.weighting != "outputs" and moments.differentiated:
            return moments.weight(WORDS_DAMPED) if self.words else moments.weight()
        return _of_norm(model, self.sinks.get(name, Downstream()), view)

    def metric(self, model: nn.Module, name: str, *, seen: bool = False) -> Metric:
        """The metric of a layer's output error in the dense model.

        Args:
            model: the dense one.
            name: of the layer.
            seen: on the calibration examples alone, without regard to others.
        """
        key = (id(model), name, seen)
        if key not in self._metrics:
            moments = self.calibrated.layers[name]
            metric = moments.metric(centred=self.centred(name), seen=seen)
            metric = metric.weighed(self.weight_of_outputs(model, name))
            metric = replace(metric, work=self.effort.fit)
            kept = {k: m for k, m in self._metrics.items() if k[:2] == key[:2] or self._costly(k)}
            self._metrics.clear()
            self._metrics.update({**kept, key: metric})
        return self._metrics[key]

    @cached_property
    def _metrics(self) -> dict[tuple[int, str, bool], Metric]:
        """Those of the layer that was asked about last, as a metric knows what it was asked, and
        of layers whose products take long and whose moments take little."""
        return {}

    def _costly(self, key: tuple[int, str, bool]) -> bool:
        spec = self.views[key[1]].spec
        return self._metrics[key].rows is not None and spec.n_weights * spec.out_channels > _COSTLY

    def importance(self, model: nn.Module, name: str) -> Importance:
        """How much an error as large as the whole output of a layer counts."""
        view, moments = self.views[name], self.calibrated.layers[name]
        W = view.weight().flatten(2)
        plain = moments.metric(centred=self.centred(name))
        normed = plain.weighed(_of_norm(model, self.sinks.get(name, Downstream()), view))
        outputs = max(normed.error(W), 0.0) * moments.seen / self.calibrated.n_examples
        if not moments.differentiated:
            return Importance(outputs)
        felt = plain.weighed(self.weight_of_outputs(model, name))
        return Importance(outputs, max(0.5 * moments.felt_size * felt.error(W), 0.0))

    def importance_of_unseen(self, name: str) -> Importance:
        """For a layer that data says nothing about: the squared norm of its weight."""
        view = self.views[name]
        positions = sum(prod(view.spec.output_size(c.size)) for c in view.calls)
        return Importance(float(view.weight().double().square().sum()) * positions)

    def goal(self, model: nn.Module, name: str) -> Goal:
        """The layer as it is, to be approximated on the dense model's own inputs."""
        view, moments = self.views[name], self.calibrated.layers[name]
        weight = view.weight()
        W = weight.flatten(2).to(moments.mean.dtype)
        mean_out = (W @ moments.mean[..., None]).squeeze(-1)
        metric, centred = self.metric(model, name), self.centred(name)
        return Goal(weight, metric, moments.mean, mean_out, centred)


def _tables(units: Sequence[Unit]) -> list[tuple[LayerView, ...]]:
    """For each table that several layers read, these."""
    return [unit.layers for unit in units if _reads_table(unit)]


def _reads_table(unit: Unit) -> bool:
    return unit.bond in ("table", "scaled table")


def _bound(view: LayerView, modules: Mapping[str, nn.Module]) -> LayerView:
    """The view, of the module that a model has under its name."""
    module = modules.get(view.name)
    if module is view.module:
        return view
    if module is None or spec_of(module) != view.spec:
        problem = f"the model that it was calibrated on has another {view.name or 'layer'}"
        raise InputError("data", problem, "measure this model")
    found = replace(view, module=module)
    own, other = view.weight(), found.weight()
    if torch.linalg.vector_norm(own - other.to(own)) > _SAME * torch.linalg.vector_norm(own):
        problem = f"it was calibrated on other weights of {view.name or 'the model'}"
        raise InputError("data", problem, "measure this model")
    return found


def _of_norm(model: nn.Module, sink: Downstream, view: LayerView) -> Weight | None:
    """Outputs are compared behind the batch norm: its scales squared on a diagonal."""
    scale = norm_scale(model, sink)
    if scale is None:
        return None
    g, o, *_ = view.spec.weight_shape
    squares = scale.square().reshape(g, o)
    if not squares.any():  # its outputs go nowhere: as they are, for want of better
        return None
    floor = 1e-2 * squares.mean()
    return Weight(torch.diag_embed(squares + floor))
