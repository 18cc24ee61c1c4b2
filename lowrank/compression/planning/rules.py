"""The user's rules for layers: which may be replaced, and by what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from torch import nn

from lowrank.compression.calibration.effort import Level
from lowrank.compression.calibration.settings import Calibration, is_whole
from lowrank.compression.methods import (
    LowRankQuantized,
    Method,
    MethodsLike,
    check_class,
    resolve,
)
from lowrank.compression.methods.shared.base import has_stock, is_stock, require
from lowrank.compression.network.layer_names import left_out, matching, suggestion
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.scan import Scan, holds_parameters, static_reason
from lowrank.compression.network.stages import LayerSpec
from lowrank.compression.network.units import Alone
from lowrank.compression.planning.selection import SCORES, Score
from lowrank.compression.structure.choices import Choice, Dense, Tied
from lowrank.compression.structure.swap import layer_spec
from lowrank.errors import InputError, PlanError

SELECT = "select"
"""The word among methods that lets channels go, too."""


class RuleFields(TypedDict, total=False):
    """The fields of `Rules`, as keywords of `compress`, `measure` and `sweep`."""

    methods: MethodsLike
    skip: str | Sequence[str]
    only: str | Sequence[str] | None
    overrides: Mapping[str, Choice]
    round_to: int
    int8: bool
    low_bits: bool
    stock: bool
    select: Score | None


class Named(RuleFields, total=False):
    """What `compress`, `measure` and `sweep` take by name beside their own arguments."""

    effort: Level | None
    cache: str | Path | None


@dataclass(frozen=True)
class Rules:
    """Which layers may be replaced, and by what.

    Layers go by their names or by patterns as file names do: "layer1.*", "*.attn.[qkv]". Every
    field is also a keyword of `compress`, `measure` and `sweep`, for a rule or two.

    Args:
        methods: names of methods such as "channel_svd" or their classes, one or several; by
            default those that win often, with thorough effort all of the library.
        skip: layers to leave dense.
        only: the only layers to consider; all by default.
        overrides: layer or pattern -> the method with its ranks to use there, or
            `Dense(reason)`. A pattern speaks of the layers that can be replaced among those
            it matches; where several match, a layer's own name comes first, then the last.
        round_to: ranks are multiples of this, where the layer is large enough, and so are the
            channels and neurons that stay where some go; layers no wider than this keep all.
        int8: linear layers, dense or factorized, may also be quantized to int8 (by torchao)
            after they are fitted: a quarter of their bytes in float32, and the error that
            rounding their weights adds. Convolutions stay in their type.
        low_bits: layers of every kind may also be stored at 2 to 8 bits a weight, with a
            low-rank layer beside it for what rounding loses (`low_rank_quantized`), and computed
            in their own type: for a budget of bytes. It saves no time.
        select: channels and neurons may go, too, and layers stay stock ones of fewer channels:
            "lasso", or how else they are selected, see docs/selection.md. The word "select" among
            the methods means the same; alone, nothing is factorized.
        stock: layers are replaced by modules of `torch.nn` alone, with no code of this library
            in their forward pass. It leaves out the forms that docs/serving.md lists; the
            methods that are tried by default have no others.

    Raises:
        InputError: a value that is none of these.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 4))
        >>> rules = lowrank.Rules(overrides={"*": lowrank.ChannelSVD(3)}, skip="1")
        >>> _, report = lowrank.compress(net, torch.zeros(1, 64), params=0.9, rules=rules)
        >>> {row.name: row.choice for row in report.layers}["0"]
        ChannelSVD(rank=3, fold='kernel_first')
    """

    methods: MethodsLike = None
    skip: str | Sequence[str] = ()
    only: str | Sequence[str] | None = None
    overrides: Mapping[str, Choice] = field(default_factory=dict)
    round_to: int = 1
    int8: bool = False
    low_bits: bool = False
    stock: bool = False
    select: Score | None = None

    def __post_init__(self) -> None:
        if self.methods is not None:
            self._set("methods", self._resolved(self.methods))
        if self.select is not None and self.select not in SCORES:
            advice = f"choose among {', '.join(SCORES)}"
            raise InputError("select", f"{self.select!r} is unknown", advice)
        self._set("skip", _patterns("skip", self.skip))
        if self.only is not None:
            self._set("only", _patterns("only", self.only))
        self._set("overrides", _choices(self.overrides))
        if not is_whole(self.round_to) or self.round_to < 1:
            problem = f"{self.round_to!r} is not a whole number from 1 up"
            raise InputError("round_to", problem, "give 8, say")
        if self.low_bits and self.stock:
            problem = "torch has no modules with packed weights"
            raise InputError("low_bits", problem, "drop stock, or low_bits")

    def _resolved(self, methods: MethodsLike) -> tuple[type[Method], ...]:
        """The classes of the methods; the word "select" is none, and sets `select`."""
        several = [methods] if isinstance(methods, str | type) else [*_each(methods)]
        others = [one for one in several if not (isinstance(one, str) and one == SELECT)]
        if len(others) < len(several):
            self._set("select", self.select or "lasso")
            if not others:
                return ()
        return tuple(resolve(others if len(others) < len(several) else methods))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def free(self) -> bool:
        """Whether nothing is said of methods, nor of channels."""
        return self.methods is None and self.select is None

    def classes(self, *, rare: bool) -> tuple[type[Method], ...]:
        """The classes of the methods that may be used.

        Args:
            rare: whether those that seldom win are among them where none is named.
        """
        known = resolve(self.methods, rare=rare) if self.methods != () else []
        return tuple(dict.fromkeys([*known, *([LowRankQuantized] if self.low_bits else [])]))

    def check(self, model: nn.Module) -> None:
        """Refuse, before the model is run, what its layers' names and weights speak against.

        Raises:
            InputError: a pattern matches no layer, an empty `only`, or a method that `stock` rules
            out.
            PlanError: an override of a layer that cannot be replaced.
            RankError: an override whose ranks do not fit its layer.
        """
        modules = {n: m for n, m in model.named_modules() if holds_parameters(m)}
        left_out(list(modules), self.skip, self.only, modules)
        for pattern in self.overrides:
            matching("overrides", pattern, modules)
        replaceable = [n for n, m in modules.items() if static_reason(m) is None]
        if self.stock and self.methods is not None:
            self._check_stock([layer_spec(modules[n]) for n in replaceable])
        for name, choice in self.expanded(list(modules), replaceable).items():
            if isinstance(choice, Dense | Tied):
                continue
            if (reason := static_reason(modules[name])) is not None:
                raise PlanError(name, f"it cannot be replaced: {reason}", "drop its override")
            spec = layer_spec(modules[name])
            if self.stock and not is_stock(choice, spec):
                problem = f"{choice.name} there takes modules that torch does not have"
                raise InputError("stock", f"{name}: {problem}", "drop stock, or its override")
            if "alone" in choice.serves:  # what else it serves, running the model shows
                view = LayerView(name, (name,), modules[name], spec, ())
                require(choice, Alone(view))

    def _check_stock(self, specs: Sequence[LayerSpec]) -> None:
        """Refuse a named method that makes nothing of torch's own modules of these layers."""
        for cls in self.classes(rare=True):
            served = [spec for spec in specs if cls.supports(spec) is None]
            if served and not any(has_stock(cls, spec) for spec in served):
                problem = f"{cls.name} takes modules that torch does not have"
                raise InputError("stock", problem, "drop stock, or name other methods")

    def ruled_out(self, found: Scan) -> tuple[dict[str, str], dict[str, Choice]]:
        """The replaceable layers that the rules leave dense -> why, and the overrides by name.

        Raises:
            PlanError: an override of a layer that cannot be replaced, as running it showed.
        """
        served = [v.name for v in found.views]
        reasons = left_out(served, self.skip, self.only, found.kinds)
        overrides = self.expanded(list(found.kinds), served)
        for name, choice in overrides.items():
            if isinstance(choice, Dense):
                reasons[name] = choice.reason
                continue
            reasons.pop(name, None)
            if name not in served:
                paired = "it goes with the embedding that it shares its weight with"
                reason = found.reasons.get(name, paired)
                raise PlanError(name, f"it cannot be replaced: {reason}", "drop its override")
        return reasons, overrides

    def expanded(self, names: Sequence[str], served: Sequence[str]) -> dict[str, Choice]:
        """Layer -> choice, of the overrides' names and patterns.

        Args:
            names: of all layers.
            served: of those that can be replaced, which patterns speak of.
        """
        own = {n: c for n, c in self.overrides.items() if n in names}
        patterns = {p: c for p, c in self.overrides.items() if p not in names}
        found: dict[str, Choice] = {}
        for pattern, choice in patterns.items():
            if not (hit := matching("overrides", pattern, names) & set(served)):
                problem = f"{pattern!r} matches no layer that can be replaced"
                raise InputError("overrides", problem, "see the report for reasons")
            found |= dict.fromkeys((n for n in names if n in hit), choice)
        return found | own


def rules_of(rules: object, named: Mapping[str, Any]) -> Rules:
    """The rules, with those that were given as arguments of their own.

    Args:
        rules: a `Rules`, or None.
        named: fields of `Rules` by their names.

    Raises:
        InputError: it is no `Rules`, a name is no field, or a field was given twice.

    Example:
        >>> rules_of(None, {"methods": "channel_svd", "skip": "fc"}).skip
        ('fc',)
    """
    none = Rules()
    if rules is None:
        rules = none
    if not isinstance(rules, Rules):
        raise InputError("rules", f"{rules!r} is no Rules", 'pass lowrank.Rules(only="fc"), say')
    known = RuleFields.__annotations__
    for name in named:
        if name not in known:
            raise InputError(name, "no argument has this name", _advice(name))
        if getattr(rules, name) != getattr(none, name):
            raise InputError(name, "given twice, in the rules too", "give it once")
    return replace(rules, **named) if named else rules


def _advice(name: str) -> str:
    """What to do about a keyword that no rule has."""
    if name == "dry_run":
        return "lowrank.forecast(model, example, data=...) says what it would cost"
    if name in {one.name for one in fields(Calibration)}:
        return f"it is one of the calibration's: pass calibration=lowrank.Calibration({name}=...)"
    return suggestion(
        name, RuleFields.__annotations__, f"Rules has {', '.join(RuleFields.__annotations__)}"
    )


def _each(given: object) -> Sequence[Any]:
    return list(given) if isinstance(given, Iterable) else [given]


def _patterns(what: str, given: object) -> tuple[str, ...]:
    several = [given] if isinstance(given, str) else given
    if not isinstance(several, Sequence | set | frozenset) or not all(
        isinstance(one, str) for one in several
    ):
        advice = 'give a name or pattern, or several: "fc", ["conv1", "layer1.*"]'
        raise InputError(what, f"{given!r} names no layers", advice)
    return tuple(several)


def _choices(given: object) -> dict[str, Choice]:
    if not isinstance(given, Mapping):
        advice = 'give a dict of layers: {"fc": lowrank.ChannelSVD(8)}'
        raise InputError("overrides", f"{given!r} is no dict", advice)
    for name, choice in given.items():
        if not isinstance(name, str):
            raise InputError("overrides", f"{name!r} is no name of a layer", "give a text")
        if isinstance(choice, Dense):
            continue
        if isinstance(choice, type | str) or not is_dataclass(choice):
            problem = f"{choice!r} for {name} is neither a method with its ranks nor Dense"
            raise InputError("overrides", problem, "pass one such as lowrank.ChannelSVD(rank=8)")
        check_class(type(choice), "overrides")
    return dict(given)
