"""Measure the cost and the error of every layer x method x rank."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from math import isfinite
from typing import NoReturn, get_args

from torch import nn

from lowrank.compression.calibration.calibrate import Loss
from lowrank.compression.calibration.statistics import Data, Importance, Way, Weighting
from lowrank.compression.gauges.counting import model_cost
from lowrank.compression.gauges.memory import Peaks
from lowrank.compression.methods import Method, MethodsLike, check_class, resolve
from lowrank.compression.methods.shared.base import require
from lowrank.compression.network.batches import calibration_batches
from lowrank.compression.network.cutting import in_memory
from lowrank.compression.network.example import Example
from lowrank.compression.network.layer_names import left_out, suggestion
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import Scan, scan
from lowrank.compression.network.stages import compose
from lowrank.compression.network.units import Unit, key_of, names_of, total
from lowrank.compression.planning.candidates import Candidate, Curve, Share, Whole
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.layer_times import Timing, time_layers
from lowrank.compression.planning.rounding import Rounding
from lowrank.compression.structure.choices import Choice, Dense, Tied
from lowrank.compression.structure.int8 import require_torchao
from lowrank.decompositions.metric import Metric, identity
from lowrank.errors import InputError, PlanError
from lowrank.progress import Progress


def measure(
    model: nn.Module,
    example: Example,
    *,
    methods: MethodsLike = None,
    skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
    data: object = None,
    calibration: int = 256,
    loss: Loss | None = None,
    weighting: Weighting = "probe",
    overrides: Mapping[str, Choice] | None = None,
    round_to: int = 1,
    latency: bool = False,
    memory: bool = False,
    int8: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Curves:
    """The cost and the error of every layer x method x rank of a model.

    Args:
        model: the trained network; left as it is.
        example: inputs of one forward pass (tensor, tuple or dict). MACs are counted on it.
        methods: names or classes of methods that may be used, or a single one; by default
            all of `lowrank.compression.methods.METHODS`.
        skip: layers to leave dense: names or patterns such as "layer1.*".
        only: the only layers to consider; all by default.
        data: batches of inputs (a loader, a list, a tensor, or a pair with labels, which are
            not looked at). With them errors are those of the layers' outputs, and layers
            count by what the model's output feels of them; else errors are the weights'.
            One tensor is cut into batches whose pass, with gradients, holds about 2 GB at most.
        calibration: how many examples of the data are used.
        loss: from the model's output to the sum of the examples' losses, whose gradients
            weigh the outputs. By default the log-likelihood of labels drawn from the
            model's own scores, or a random projection where the output is no score matrix.
        weighting: "probe" fits layers by those gradients and weighs each by what replacing
            it alone does to the model's output; "gradients" weighs by them too, to first
            order, which is cheaper and sees no errors that add up over positions;
            "outputs" needs no backward pass and takes outputs as they are. A function of a
            model, its quality on examples of yours, the higher the better, is what probes
            ask instead of the output.
        overrides: layer name -> the method to use, or `Dense(reason)`.
        round_to: ranks are multiples of this, where the layer is large enough.
        latency: time the layers and a grid of candidates on the model's device, at the sizes
            of the example and the number of threads that is set; needed to plan by latency.
        memory: follow what the model allocates; needed to plan by memory.
        int8: every linear layer, dense or factorized, may also be quantized, at a quarter of
            its bytes in float32 and the error that rounding its weights adds; budgets of bytes
            then choose ranks and int8 together. Needs torchao.
        seed: seed of the randomised fits (CP).
        progress: called as (what, done, total).

    Returns:
        Curves, from which `plan` makes a plan for any budget in well under a second.

    Raises:
        InputError: unknown names, an empty `only`, NaN or Inf in weights or example, a model
            with no layer that can be replaced, an example that the model refuses, or int8
            without torchao or beside latency or memory, which are measured in full precision.
        RankError: an override whose ranks do not fit its layer.
    """
    chosen = resolve(methods)
    _check_round_to(round_to)
    if int8:
        _check_int8(latency=latency, memory=memory)
    found = scan(model, example)
    overrides = dict(overrides or {})
    reasons = found.reasons | _ruled_out(found, skip, only, overrides)
    units = [u for u in found.units if u.layers[0].name not in reasons]
    for unit in found.units:
        if (name := unit.layers[0].name) in reasons:
            others = names_of(unit)[1:]
            reasons |= dict.fromkeys(others, f"shares the weight of {name}")
    if not units:
        _refuse_model(found, reasons)
    known = _calibrated(model, example, found, data, calibration, loss, weighting, seed, progress)
    curves = []
    for done, unit in enumerate(units):
        view = unit.layers[0]
        if progress is not None:
            progress(view.name, done, len(units))
        metric, importance = _on_data(model, view, known)
        if view.name in overrides:
            forced = (_forced(unit, overrides[view.name], seed, metric),)
            curves.append(replace(_curve(unit, forced, importance), fixed=True))
            continue
        candidates = tuple(_candidates(unit, chosen, round_to, seed, metric))
        rounding = Rounding(view, metric, seed) if int8 else None
        coarse = () if rounding is None else _in_int8(rounding, candidates)
        curves.append(replace(_curve(unit, candidates, importance), int8=coarse))
    if progress is not None:
        progress("measured", len(units), len(units))
    named = {key_of(names_of(u)): u for u in units}
    measured = Curves(
        tuple(curves),
        reasons,
        found.kinds,
        found.shapes,
        model_cost(model, example),
        seed,
        known,
        _timed(model, example, named, curves, progress) if latency else None,
        _followed(model, example, named, curves) if memory else None,
    )
    return _probed(model, measured, weighting, progress)


def _probed(
    model: nn.Module, curves: Curves, weighting: Weighting, progress: Progress | None
) -> Curves:
    """The curves with layers weighed by probes, where that is asked for."""
    if curves.data is None or weighting in ("gradients", "outputs"):
        return curves
    from lowrank.compression.planning.sensitivity import (
        probe,  # which replaces layers, a floor above
    )

    metric = weighting if callable(weighting) else None
    return probe(model, curves, metric=metric, progress=progress)


def _timed(
    model: nn.Module,
    example: Example,
    units: Mapping[str, Unit],
    curves: Sequence[Curve],
    progress: Progress | None,
) -> Timing:
    offered = {c.key: c.candidates for c in curves}
    return time_layers(model, example, units, offered, progress=progress)


def _followed(
    model: nn.Module, example: Example, units: Mapping[str, Unit], curves: Sequence[Curve]
) -> Peaks:
    stages = {c.key: [m.method.stages(units[c.key].spec) for m in c.candidates] for c in curves}
    return Peaks.of(model, example, units, stages)


def _calibrated(
    model: nn.Module,
    example: Example,
    found: Scan,
    data: object,
    calibration: int,
    loss: Loss | None,
    weighting: Weighting,
    seed: int,
    progress: Progress | None,
) -> Data | None:
    if not callable(weighting) and weighting not in get_args(Way):
        advice = f"{_known(get_args(Way))}, or pass a function of a model"
        raise InputError("weighting", f"{weighting!r} is unknown", advice)
    if not isinstance(calibration, int) or calibration < 1:
        raise InputError("calibration", f"{calibration!r} is no number of examples", "give 256")
    if data is None:
        return None
    if isinstance(data, Data):
        return data.bound(model)
    if progress is not None:
        progress("calibrating", 0, 1)
    batches = calibration_batches(data, example, calibration)
    batches = in_memory(batches, found.views, example)
    return Data.of(model, found.units, batches, loss=loss, weighting=weighting, seed=seed)


def _on_data(
    model: nn.Module, view: LayerView, data: Data | None
) -> tuple[Metric | None, Importance | None]:
    """The metric and the importance of a layer; without a metric its weight alone counts."""
    if data is None:
        return None, None
    if view.name not in data.calibration.layers:
        return None, data.importance_of_unseen(view.name)
    if data.reason(view.name) is not None:
        return None, data.importance(model, view.name)
    return data.metric(model, view.name), data.importance(model, view.name)


def _curve(
    unit: Unit, candidates: tuple[Candidate, ...], importance: Importance | None = None
) -> Curve:
    dense = unit.costs(None)
    members = tuple(zip(names_of(unit), dense, strict=True)) if len(dense) > 1 else ()
    return Curve(
        unit.layers[0].name,
        total(dense),
        candidates,
        members,
        unit.behind,
        importance=importance,
    )


def _candidate(unit: Unit, method: Method, errors: Sequence[float | None]) -> Candidate:
    """A candidate with the errors of the unit's layers; None where one has none of its own."""
    costs = unit.costs(method.stages(unit.spec))
    shares = tuple(map(Share, costs, errors)) if len(costs) > 1 else ()
    error = sum(e for e in errors if e is not None)
    return Candidate(unit.layers[0].name, method, total(costs), error, shares=shares)


def _candidates(
    unit: Unit,
    methods: Sequence[type[Method]],
    round_to: int,
    seed: int,
    metric: Metric | None,
) -> Iterator[Candidate]:
    spec, weight = unit.spec, unit.layers[0].weight()
    others = (None,) * (len(unit.layers) - 1)
    for cls in methods:
        if unit.bond not in cls.serves or cls.supports(spec) is not None:
            continue
        found = cls.candidates(spec, weight, round_to=round_to, seed=seed, metric=metric)
        for method, error in found:
            if isfinite(error):  # a fit that came to nothing is no candidate
                yield _candidate(unit, method, (error, *others))


def _in_int8(rounding: Rounding, candidates: Sequence[Candidate]) -> tuple[Whole | Candidate, ...]:
    """The layer's own weight and its candidates, quantized, where torchao can."""
    whole = rounding.whole()
    own = [] if whole is None else [Whole(*whole)]
    return (*own, *rounding.of(candidates))


def _forced(unit: Unit, choice: Choice, seed: int, metric: Metric | None) -> Candidate:
    assert not isinstance(choice, Dense | Tied)
    spec, weight = unit.spec, unit.layers[0].weight()
    require(choice, unit)
    stages = choice.stages(spec)
    made = compose(spec, stages, choice.factor(spec, weight, seed=seed, metric=metric))
    measured = metric or identity(weight)
    energy = measured.error(weight.flatten(2))
    error = measured.error((weight - made).flatten(2)) / energy if energy else 0.0
    return _candidate(unit, choice, (error, *(None,) * (len(unit.layers) - 1)))


def _known(names: Iterable[str]) -> str:
    return f"choose among {', '.join(names)}"


def _check_round_to(round_to: int) -> None:
    if not isinstance(round_to, int) or round_to < 1:
        raise InputError("round_to", f"{round_to!r} is not a whole number from 1 up", "give 8, say")


def _check_int8(**others: bool) -> None:
    if given := [name for name, value in others.items() if value]:
        problem = f"candidates in int8 are not measured for {' and '.join(given)}"
        raise InputError("int8", problem, "budget bytes, params or macs")
    require_torchao()


def _ruled_out(
    found: Scan,
    skip: Sequence[str],
    only: Sequence[str] | None,
    overrides: Mapping[str, Choice],
) -> dict[str, str]:
    """The replaceable layers that the user's rules leave dense -> why."""
    reasons = left_out([v.name for v in found.views], skip, only, found.kinds)
    for name, choice in overrides.items():
        _check_override(name, choice, found)
        if isinstance(choice, Dense):
            reasons[name] = choice.reason
        else:
            reasons.pop(name, None)
    return reasons


def _check_override(name: str, choice: Choice, found: Scan) -> None:
    if name not in found.kinds:
        raise InputError("overrides", f"{name!r} is no layer", suggestion(name, found.kinds))
    if isinstance(choice, Dense):
        return
    if isinstance(choice, type | str) or not is_dataclass(choice):
        problem = f"{choice!r} for {name} is neither a method with its ranks nor Dense"
        raise InputError("overrides", problem, "pass one such as lowrank.ChannelSVD(rank=8)")
    check_class(type(choice), "overrides")
    if name not in {v.name for v in found.views}:
        reason = found.reasons.get(
            name, "it goes with the embedding that it shares its weight with"
        )
        raise PlanError(name, f"it cannot be replaced: {reason}", "drop its override")


def _refuse_model(found: Scan, reasons: Mapping[str, str]) -> NoReturn:
    first = next(iter(reasons.items()), None)
    why = f"; {first[0] or 'the model'}: {first[1]}" if first else ""
    raise InputError(
        "model",
        f"none of its {len(found.kinds)} layers can be replaced{why}",
        "see lowrank.compression.network.scan for the reason of each",
    )
