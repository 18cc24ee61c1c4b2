"""Measure the cost and the error of every layer x method x rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import nn

from lowrank.compression.calibration.effort import effort_of
from lowrank.compression.calibration.fingerprint import (
    of_class,
    of_inputs,
    of_library,
    of_model,
)
from lowrank.compression.calibration.settings import Calibration, calibration_of, check_progress
from lowrank.compression.calibration.statistics import Importance, Statistics
from lowrank.compression.gauges.counting import model_cost
from lowrank.compression.gauges.memory import Peaks
from lowrank.compression.methods import Method
from lowrank.compression.methods.shared.base import Joint, Target, has_stock, is_stock, require
from lowrank.compression.network.batches import calibration_batches, further_of
from lowrank.compression.network.cutting import in_memory
from lowrank.compression.network.example import Example, check, unwrapped
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import (
    Scan,
    holds_parameters,
    only_readers_on,
    refuse_valueless,
    require_module,
    scan,
)
from lowrank.compression.network.stages import compose
from lowrank.compression.network.units import Alone, SameInput, Unit, key_of, names_of, total
from lowrank.compression.planning.candidates import (
    Candidate,
    Curve,
    Share,
    Whole,
    on_one_scale,
    packed,
    unpacked,
)
from lowrank.compression.planning.curves import Curves
from lowrank.compression.planning.layer_times import Timing, time_layers
from lowrank.compression.planning.rounding import Rounding
from lowrank.compression.planning.rules import Named, Rules, rules_of
from lowrank.compression.planning.selection.widths import find_widths
from lowrank.compression.planning.sensitivity import probe
from lowrank.compression.planning.words.held_out_words import weighed_tables
from lowrank.compression.structure.choices import Choice, Dense, Tied
from lowrank.compression.structure.int8 import require_torchao
from lowrank.compression.structure.opening import opened
from lowrank.decompositions.metric import Metric, identity
from lowrank.errors import InputError, Interrupted
from lowrank.progress import Progress
from lowrank.store import Shelf, Store

if TYPE_CHECKING:
    from typing_extensions import Unpack

_LOOKS = 4
"""Batches of the data that may show other readers of an input that layers share."""

_NOT_STOCK = "the methods that fit it take modules that torch does not have, which stock rules out"
"""Why a layer stays dense that no method may replace."""


@torch.inference_mode(False)
def measure(
    model: nn.Module,
    example: Example,
    *,
    data: Any = None,
    calibration: Calibration | None = None,
    rules: Rules | None = None,
    latency: bool = False,
    memory: bool = False,
    progress: Progress | None = None,
    **named: Unpack[Named],
) -> Curves:
    """The cost and the error of every layer x method x rank of a model.

    Args:
        model: the trained network; left as it is.
        example: inputs of one forward pass (tensor, tuple or dict). MACs are counted on it.
        data: batches of inputs (a loader, a list, a tensor, or a pair with labels, which are
            not looked at). With them errors are those of the layers' outputs, and layers
            count by what the model's output feels of them; else errors are the weights'.
            One tensor is cut into batches whose pass, with gradients, holds about 0.8 GB at most.
        calibration: how many examples are used, what weighs the layers, and the seed; see
            `Calibration`.
        rules: which layers may be replaced, and by what; see `Rules`.
        latency: time the layers and a grid of candidates on the model's device, at the sizes
            of the example and the number of threads that is set; needed to plan by latency.
        memory: follow what the model allocates; needed to plan by memory.
        progress: called as (what, done, total).
        **named: `effort=`, `cache=` and single rules by their names in `Rules`, as for `compress`.

    Returns:
        Curves, from which `plan` makes a plan for any budget in well under a second.

    Raises:
        InputError: unknown names, an empty `only`, NaN or Inf in weights or example, a model
            with no layer that can be replaced, an example that the model refuses, or int8
            without torchao or beside latency or memory, which are measured in full precision.
        RankError: an override whose ranks do not fit its layer.
        Interrupted: by Ctrl-C; it has the curves of the layers that were measured.
    """
    model = unwrapped(model)
    known = Calibration(weighting=data.weighting) if isinstance(data, Statistics) else None
    effort, cache = named.pop("effort", None), named.pop("cache", None)
    settings = calibration_of(calibration, known, effort, cache)
    rules = rules_of(rules, named)
    if rules.select is not None:
        advice = "drop it here; compress(..., select=...) plans both"
        raise InputError("select", "curves are of factors alone", advice)
    model = opened(model, example, stock=rules.stock, skip=rules.skip, timed=latency)
    check_asked(model, example, rules, latency=latency, memory=memory, progress=progress)
    if data is not None and not isinstance(data, Statistics):
        data = calibration_batches(data, example, settings.count)
    return measured(
        model, example, data, settings, rules,
        latency=latency, memory=memory, progress=progress,
    )  # fmt: skip


def check_asked(
    model: nn.Module,
    example: Example,
    rules: Rules,
    *,
    latency: bool,
    memory: bool,
    progress: object,
) -> None:
    """Refuse, before the model is run, what cannot be measured.

    Raises:
        InputError: a model or an example that is none, rules that name no layer, or int8 beside
            what is measured in full precision.
        RankError: an override whose ranks do not fit its layer.
    """
    require_module(model)
    check(example)
    check_progress(progress)
    for name, module in model.named_modules():
        if holds_parameters(module):
            refuse_valueless(name, module)
    rules.check(model)
    if rules.int8 and (others := [n for n, v in (("latency", latency), ("memory", memory)) if v]):
        problem = f"candidates in int8 are not measured for {' and '.join(others)}"
        raise InputError("int8", problem, "budget bytes, params or macs")
    if rules.int8:
        require_torchao()


def measured(
    model: nn.Module,
    example: Example,
    data: Sequence[Example] | Statistics | None,
    settings: Calibration,
    rules: Rules,
    *,
    latency: bool = False,
    memory: bool = False,
    progress: Progress | None = None,
) -> Curves:
    """What `measure` gives, of arguments that were checked and data that were read."""
    store = settings.opened()
    found = scan(model, example)
    reasons, overrides = _left_out(found, rules)
    total = model_cost(model, example)
    views = [view for unit in found.units for view in unit.layers]
    bare = Curves(
        (), reasons, found.kinds, found.shapes, total, settings,
        asked={v.name: v.asked for v in views if v.asked},
        gains={v.name: v.gain for v in views if v.gain != 1},
    )  # fmt: skip
    rows = _Rows(bare)
    with usable(rows.so_far, settings.cache):
        known = rows.known = _calibrated(model, example, found, data, settings, store, progress)
        if known is not None:
            few = [known.few_of(b) for b in known.batches[:_LOOKS]]
            found = replace(found, same_input=only_readers_on(model, few, found.same_input))
        classes = rules.classes(rare=effort_of(settings.effort).rare)
        shelf = _shelf(store, model, example, known, settings, rules, classes)
        asked = _Asked(model, known, classes, overrides, rules, settings.seed, shelf)
        named = asked.measure(found, reasons, rows, progress)
        if known is not None and known.words and rules.free:
            free = {c.layer for c in rows.curves if not c.fixed}
            widths = find_widths(
                model, example, found, known, free, round_to=rules.round_to, progress=progress
            )
            rows.bare = replace(rows.bare, widths=widths)
        if latency:
            timing = _timed(model, example, named, rows.curves, rows.bare.joint, progress)
            rows.bare = replace(rows.bare, timing=timing)
        if memory:
            peaks = _followed(model, example, named, [*rows.curves, *rows.bare.joint])
            rows.bare = replace(rows.bare, memory=peaks)
        whole = replace(rows.bare, curves=tuple(rows.curves), data=known)
        whole = weighed_tables(model, _probed(model, whole, progress, shelf), shelf)
        return replace(whole, curves=on_one_scale(whole.curves))


def _left_out(found: Scan, rules: Rules) -> tuple[dict[str, str], dict[str, Choice]]:
    """The layers that stay dense -> why, and the overrides by name.

    Raises:
        InputError: that is all of them.
    """
    reasons, overrides = rules.ruled_out(found)
    reasons = found.reasons | reasons
    for unit in found.units:
        if (name := unit.layers[0].name) in reasons:
            others = names_of(unit)[1:]
            reasons |= dict.fromkeys(others, f"shares the weight of {name}")
    if all(unit.layers[0].name in reasons for unit in found.units):
        _refuse_model(found, reasons)
    return reasons, overrides


NOT_MEASURED = "not measured: interrupted"
"""Why a layer stays dense whose curve an interrupt left out."""


@contextmanager
def usable(so_far: Callable[[], tuple[str, Curves | None]], cache: object) -> Iterator[None]:
    """Whatever interrupts what is done within carries what can be used of it.

    Args:
        so_far: what has been done, in words, and the curves.
        cache: the folder from which it goes on, if there is one.

    Raises:
        Interrupted: in place of a `KeyboardInterrupt`.
    """
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        raise Interrupted(*so_far(), cache) from stop


@dataclass
class _Rows:
    """The curves as they come.

    Args:
        bare: all that is known without them.
        curves: of the layers that were measured.
        n: how many there will be; 0 before that is known.
        known: from data.
    """

    bare: Curves
    curves: list[Curve] = field(default_factory=list)
    n: int = 0
    known: Statistics | None = None

    def rule_out(self, names: Sequence[str], reason: str) -> None:
        """Layers that stay dense after all."""
        self.bare = replace(
            self.bare, reasons={**self.bare.reasons, **dict.fromkeys(names, reason)}
        )

    def so_far(self) -> tuple[str, Curves | None]:
        """What was measured, in words, and its curves, with the other layers dense."""
        if not self.curves:
            return "interrupted before a layer was measured", None
        covered = {name for c in self.curves for name in c.layers} | set(self.bare.reasons)
        others = dict.fromkeys((n for n in self.bare.kinds if n not in covered), NOT_MEASURED)
        curves, reasons = on_one_scale(self.curves), {**self.bare.reasons, **others}
        done = f"interrupted with {len(curves)} of {self.n} layers measured"
        return done, replace(self.bare, curves=curves, reasons=reasons, data=self.known)


@dataclass(frozen=True, eq=False)
class _Asked:
    """All that the curve of a layer follows from.

    Args:
        model: the dense network.
        known: from data.
        classes: of the methods that may be used.
        overrides: layer -> what the user's rules make of it.
        rules: the user's.
        seed: of randomised fits.
        shelf: keeps the curves.
    """

    model: nn.Module
    known: Statistics | None
    classes: Sequence[type[Method]]
    overrides: Mapping[str, Choice]
    rules: Rules
    seed: int
    shelf: Shelf

    def measure(
        self,
        found: Scan,
        reasons: Collection[str],
        rows: _Rows,
        progress: Progress | None,
    ) -> dict[str, Unit]:
        """Fill in the curves of all units, and give these by their keys.

        Args:
            found: the layers.
            reasons: those that stay dense.
            rows: where curves go, one after another.
            progress: called as (layer, done, total).
        """
        claimed = _claimed(found, self.overrides, reasons)
        taken = {name for unit, _ in claimed for name in names_of(unit)} | set(reasons)
        units = [u for u in found.units if u.layers[0].name not in taken]
        rows.n = len(claimed) + len(units)
        rows.curves += [self.together(unit, method) for unit, method in claimed]
        for done, unit in enumerate(units):
            if progress is not None:
                progress(f"measuring {unit.layers[0].name}", done, len(units))
            curve = self.curve(unit)
            if self.rules.stock and self._ruled_out(unit, curve):
                rows.rule_out(names_of(unit), _NOT_STOCK)
            else:
                rows.curves.append(curve)
        if progress is not None:
            progress("measuring", len(units), len(units))
        free = {c.layer for c in rows.curves if not c.fixed}
        together = [*_together(found, free, self.classes)]
        joint = tuple(self.joint(unit, some) for unit, some in together)
        rows.bare = replace(rows.bare, joint=joint)
        every = [*units, *(u for u, _ in claimed), *(u for u, _ in together)]
        return {key_of(names_of(u)): u for u in every}

    def curve(self, unit: Unit) -> Curve:
        """The candidates of a unit; of one that a rule speaks of, the rule's."""
        return self._kept(unit, (), lambda: self._curve(unit))

    def joint(self, unit: SameInput, methods: Sequence[type[Joint]]) -> Curve:
        """What layers may become together."""
        rules, known = self.rules, self.known
        return self._kept(
            unit, methods, lambda: _joint_curve(self.model, unit, methods, known, rules)
        )

    def together(self, unit: SameInput, method: Method) -> Curve:
        """What a rule makes of layers together."""
        return self._kept(unit, (), lambda: _forced_together(self.model, unit, method, self.known))

    def _ruled_out(self, unit: Unit, curve: Curve) -> bool:
        empty = not (curve.candidates or curve.int8)
        return empty and any(_serves(cls, unit) for cls in self.classes)

    def _curve(self, unit: Unit) -> Curve:
        view, seed = unit.layers[0], self.seed
        metric, importance = _on_data(self.model, view, self.known)
        if view.name in self.overrides:
            forced = (_forced(unit, self.overrides[view.name], seed, metric),)
            return replace(_curve(unit, forced, importance), fixed=True)
        found = tuple(_candidates(unit, self.classes, self.rules, seed, metric))
        rounding = Rounding(view, metric, seed) if self.rules.int8 else None
        coarse = () if rounding is None else _in_int8(rounding, found)
        return replace(_curve(unit, found, importance), int8=coarse)

    def _kept(
        self, unit: Unit, methods: Sequence[type[Method]], make: Callable[[], Curve]
    ) -> Curve:
        chosen = [self.overrides.get(n, Dense()) for n in names_of(unit)]
        ruled = [c for c in chosen if not isinstance(c, Dense | Tied)]
        known: dict[str, type[Method]] = {cls.name: cls for cls in (*self.classes, *methods)}
        known |= {c.name: type(c) for c in ruled}
        told = [f"{of_class(type(c))} {c!r}" for c in ruled]
        what = [unit.bond, names_of(unit), unit.behind, told, [of_class(c) for c in methods]]
        return self.shelf.kept(what, make, packed, lambda kept: unpacked(kept, known))


def _shelf(
    store: Store | None,
    model: nn.Module,
    example: Example,
    known: Statistics | None,
    settings: Calibration,
    rules: Rules,
    classes: Sequence[type[Method]],
) -> Shelf:
    """Where curves are kept, told from others by all that they follow from."""
    shelf = Shelf(store) if known is None else known.shelf
    if shelf.store is None:
        return shelf
    shelf = shelf.part("curves", of_library(), of_model(model), of_inputs(example, "example"))
    own = settings.weighting if isinstance(settings.weighting, str) else "probe"
    how = [rules.round_to, rules.int8, rules.stock, settings.seed, own == "outputs"]
    return shelf.part(how, [of_class(cls) for cls in classes])


def _probed(
    model: nn.Module,
    curves: Curves,
    progress: Progress | None,
    shelf: Shelf,
) -> Curves:
    """The curves with layers weighed by probes, where that is asked for."""
    if curves.data is None or not curves.data.probed:
        return curves
    weighting = curves.data.weighting
    metric = weighting if callable(weighting) else None
    return probe(model, curves, metric=metric, progress=progress, shelf=shelf)


def _timed(
    model: nn.Module,
    example: Example,
    units: Mapping[str, Unit],
    curves: Sequence[Curve],
    joint: Sequence[Curve],
    progress: Progress | None,
) -> Timing:
    offered, beside = ({c.key: c.candidates for c in some} for some in (curves, joint))
    return time_layers(model, example, units, offered, beside=beside, progress=progress)


def _followed(
    model: nn.Module, example: Example, units: Mapping[str, Unit], curves: Sequence[Curve]
) -> Peaks:
    stages = {c.key: [m.method.stages(units[c.key].spec) for m in c.candidates] for c in curves}
    return Peaks.of(model, example, units, stages)


def _calibrated(
    model: nn.Module,
    example: Example,
    found: Scan,
    data: Sequence[Example] | Statistics | None,
    settings: Calibration,
    store: Store | None,
    progress: Progress | None,
) -> Statistics | None:
    if data is None:
        return None
    if isinstance(data, Statistics):
        return data.bound(model).kept_in(store)
    batches = in_memory(data, found.views, example)
    return Statistics.of(
        model, found.units, batches,
        loss=settings.loss, weighting=settings.weighting,
        effort=effort_of(settings.effort), seed=settings.seed, further=further_of(data),
        store=store, progress=progress,
    )  # fmt: skip


def _on_data(
    model: nn.Module, view: LayerView, data: Statistics | None
) -> tuple[Metric | None, Importance | None]:
    """The metric and the importance of a layer; without a metric its weight alone counts."""
    if data is None:
        return None, None
    if view.name not in data.calibrated.layers:
        return None, data.importance_of_unseen(view.name)
    if data.reason(view.name) is not None:
        return None, data.importance(model, view.name)
    return data.metric(model, view.name), data.importance(model, view.name)


def _together(
    found: Scan, apart: Collection[str], methods: Sequence[type[Method]]
) -> Iterator[tuple[SameInput, list[type[Joint]]]]:
    """The layers that read the same input, as far as the rules allow, and what may serve them."""
    for unit in found.same_input:
        if (some := unit.of(apart)) is None:
            continue
        classes = [
            cast(type[Joint], cls)  # as `serves` promises
            for cls in methods
            if some.bond in cls.serves and cls.supports(some.spec) is None
        ]
        if classes:
            yield some, classes


def _claimed(
    found: Scan, overrides: Mapping[str, Choice], reasons: Collection[str]
) -> list[tuple[SameInput, Method]]:
    """The layers that the user's rules replace together, and by what."""
    claimed: list[tuple[SameInput, Method]] = []
    views = {view.name: view for view in found.views}
    for name, choice in overrides.items():
        taken = any(name in names_of(unit) for unit, _ in claimed)
        if isinstance(choice, Dense | Tied) or SameInput.bond not in choice.serves or taken:
            continue
        unit = next((u for u in found.same_input if name in names_of(u)), None)
        some = None
        if unit is not None:
            free = (n for n in names_of(unit) if n not in reasons)
            some = unit.of([n for n in free if overrides.get(n, choice) == choice])
        require(choice, some or Alone(views[name]))
        if some is not None:
            claimed.append((some, choice))
    return claimed


def _forced_together(
    model: nn.Module, unit: SameInput, method: Method, data: Statistics | None
) -> Curve:
    targets = _targets(model, unit, data)
    stages = method.stages(unit.spec)
    factors = cast(Joint, method).factor_together(targets)  # as `serves` promises
    made = unit.split(compose(unit.spec, stages, factors))
    errors = [
        t.scale / t.importance * (t.metric or identity(t.weight)).error(t.weight - W)
        for t, W in zip(targets, made, strict=True)
    ]
    return replace(_curve(unit, (_candidate(unit, method, errors),)), fixed=True)


def _targets(model: nn.Module, unit: SameInput, data: Statistics | None) -> list[Target]:
    """What layers should become together, weighed as plans weigh them by default."""
    known = [_on_data(model, view, data) for view in unit.layers]
    return [
        Target(view.weight(), metric, _weight(counts, data))
        for view, (metric, counts) in zip(unit.layers, known, strict=True)
    ]


def _weight(counts: Importance | None, data: Statistics | None) -> float:
    return 1.0 if counts is None or data is None else counts.weight(data.exponent)


def _joint_curve(
    model: nn.Module,
    unit: SameInput,
    methods: Sequence[type[Joint]],
    data: Statistics | None,
    rules: Rules,
) -> Curve:
    """What layers may become together."""
    targets = _targets(model, unit, data)
    candidates = tuple(
        _candidate(unit, method, errors)
        for cls in methods
        for method, errors in cls.together(targets, round_to=rules.round_to)
        if all(map(isfinite, errors)) and _allowed(method, unit, rules)
    )
    return _curve(unit, candidates)


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
    name, *others = names_of(unit)
    return Candidate(name, method, total(costs), error, shares=shares, others=tuple(others))


def _candidates(
    unit: Unit,
    methods: Sequence[type[Method]],
    rules: Rules,
    seed: int,
    metric: Metric | None,
) -> Iterator[Candidate]:
    spec, weight = unit.spec, unit.layers[0].weight()
    others = (None,) * (len(unit.layers) - 1)
    rivals = [] if metric is None else metric.rivals
    rivals.clear()
    for cls in methods:
        if not _serves(cls, unit) or (rules.stock and not has_stock(cls, spec)):
            continue
        found = cls.candidates(spec, weight, round_to=rules.round_to, seed=seed, metric=metric)
        for method, error in found:
            # a fit that came to nothing is no candidate
            if isfinite(error) and _allowed(method, unit, rules):
                rivals.append((sum(s.n_weights for s in method.stages(spec)), error))
                yield _candidate(unit, method, (error, *others))


def _serves(cls: type[Method], unit: Unit) -> bool:
    return unit.bond in cls.serves and cls.supports(unit.spec) is None


def _allowed(method: Method, unit: Unit, rules: Rules) -> bool:
    return not rules.stock or is_stock(method, unit.spec)


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


def _refuse_model(found: Scan, reasons: Mapping[str, str]) -> NoReturn:
    first = next(iter(reasons.items()), None)
    why = f"; {first[0] or 'the model'}: {first[1]}" if first else ""
    if not found.kinds:
        raise InputError("model", "it holds no parameters", "pass a network with layers")
    raise InputError(
        "model",
        f"none of its {len(found.kinds)} layers can be replaced{why}",
        "see lowrank.compression.network.scan for the reason of each",
    )
