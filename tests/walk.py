"""The way of one network of the grammar through the library, and what came of each step.

A step is done, refused by an error of the library whose sentence `REFUSALS` lists, or a fault: any
other exception, a sentence that is not listed, or a promise that did not hold.
"""

from __future__ import annotations

import copy
import random
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import rich.style  # noqa: F401  draws from random when it is first brought
import torch
from grammar import Network
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils.flop_counter import FlopCounterMode

import lowrank
from lowrank.compression import flatten, run
from lowrank.compression.methods import METHODS
from lowrank.compression.network.example import arguments, is_wrapper, unwrapped
from lowrank.compression.network.scan import kind_of
from lowrank.compression.network.tensors import distinct, tensors
from lowrank.compression.structure.history import unnormed_by
from lowrank.compression.structure.opening import without_weight_norm
from lowrank.errors import BudgetError

DONE, REFUSED, FAULT, SKIPPED = "done", "refused", "fault", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What came of a step.

    Args:
        step: its name.
        result: done, refused, fault or skipped.
        what: of a refusal its name in `REFUSALS`; of a fault the error.
    """

    step: str
    result: str
    what: str = ""

    def __str__(self) -> str:
        return f"{self.step}: {self.result} {self.what}"


class Broken(Exception):
    """A promise that did not hold."""


class Skip(Exception):
    """A step that does not apply."""


@dataclass(frozen=True)
class Refusal:
    """A sentence of the library that is right, and for which networks.

    Args:
        name: what results are counted under.
        said: pattern of the error's class and sentence.
        of: features of a network, one of which it needs; none: any network.
    """

    name: str
    said: str
    of: frozenset[str] = frozenset()

    def fits(self, said: str, net: Network) -> bool:
        return bool(re.search(self.said, said)) and (not self.of or bool(self.of & {*net.features}))


REFUSALS = (
    Refusal("lazy", r"^InputError: \S+: it is lazy and has no values yet", frozenset({"lazy"})),
    Refusal("cannot be copied", r"^InputError: \S+lock: it cannot be copied", frozenset({"lock"})),
    Refusal("no parameters", r"^InputError: model: it holds no parameters"),
    Refusal("no layer", r"^InputError: model: none of its \d+ layers can be replaced; .+: \w+"),
    Refusal("budget", r"^BudgetError: budget: \w+=\S+ cannot be reached; the smallest is"),
    Refusal("budget", r"^BudgetError: macs: the model has none on this example"),
    Refusal("budget", r"^BudgetError: keeps: none of .* can be reached"),
    Refusal(
        "frozen",
        r"^InputError: model: no parameter requires a gradient",
        frozenset({"frozen", "partly frozen"}),
    ),
    Refusal(
        "half precision",
        r"^InputError: \S+: (bfloat16|float16) parameters lose small updates",
        frozenset({"mixed precision"}),
    ),
    Refusal("labels", r"^InputError: data: labels .* do not fit the output"),
    Refusal("no gradients", r"^InputError: (model|epoch \d+, .+): no gradients can be had: \w+"),
    Refusal(
        "no numbers",
        r"^InputError: model: it returns no floating-point tensor, but",
        frozenset({"gives integers alone"}),
    ),
    Refusal("int8", r"^InputError: quantize: no layer can be int8; \S+( \S+)?: \w+"),
    Refusal(  # torchao's own kernels, which the model then calls
        "int8 and nothing to run on",
        r"^InputError: example: .* for \+: 'Tensor' and 'NoneType'",
        frozenset({"experts"}),
    ),
    Refusal("onnx", r"^ExportError: onnx: onnxruntime cannot run", frozenset({"gives bfloat16"})),
)


@dataclass
class Way:
    """One network on its way.

    Args:
        net: the network.
        model: as its owner has it.
        rng: draws budgets, methods and steps.
        folder: for files.
        quick: without the methods that take seconds.
        small: what compress gave.
        report: the same.
        settings: what compress was asked for.
        outcomes: of the steps so far.
        errors: of the faults among them.
    """

    net: Network
    model: nn.Module
    rng: Random
    folder: Path
    quick: bool
    small: nn.Module | None = None
    report: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)


def walk(net: Network, steps: int | None = None) -> list[Outcome]:
    """Everything that came of a network.

    Args:
        net: the network.
        steps: how many of `CHEAP` are drawn; every step of `STEPS` by default.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        way = Way(net, net.build(), Random(net.seed), Path(folder), steps is not None)
        drawn = Random(net.seed + 1)  # apart: what is drawn for compress stays the same
        names = list(STEPS) if steps is None else drawn.sample(list(CHEAP), steps)
        _take(way, "dense", _dense)
        if way.outcomes[-1].result == DONE:
            _take(way, "compress", _compress)
            for name in names:
                if way.small is not None or name in WITHOUT:
                    _take(way, name, STEPS[name])
    return way.outcomes


def _take(way: Way, name: str, act: Callable[[Way], None]) -> None:
    """Take one step, and look at what it must leave as it was."""
    before = Traces.of(way.model)
    try:
        act(way)
        before.check(way.model)
        outcome = Outcome(name, DONE)
    except Skip as error:
        outcome = Outcome(name, SKIPPED, str(error))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        right = next((r for r in REFUSALS if r.fits(said, way.net)), None)
        if isinstance(error, lowrank.LowRankError) and right is not None:
            outcome = Outcome(name, REFUSED, right.name)
        else:
            outcome = Outcome(name, FAULT, said[:400])
            way.errors.append(error)
    way.outcomes.append(outcome)


@dataclass(frozen=True)
class Traces:
    """What a call must leave as it was: the model, and the process."""

    state: dict[str, Tensor]
    flags: list[bool]
    hooks: list[int]
    trained: list[bool]
    grads: list[Tensor | None]
    attributes: list[set[str]]
    process: dict[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> Traces:
        parameters = [p for p in model.parameters() if not nn.parameter.is_lazy(p)]
        return cls(
            {k: v.detach().clone() for k, v in _state(model)},
            [m.training for m in model.modules()],
            [len(getattr(m, k)) for m in model.modules() for k in _HOOKS],
            [p.requires_grad for p in parameters],
            [None if p.grad is None else p.grad.clone() for p in parameters],
            [set(vars(m)) for m in model.modules()],
            _process(),
        )

    def check(self, model: nn.Module) -> None:
        now = Traces.of(model)
        for name, value in self.state.items():
            if name not in now.state or not _same(now.state[name], value):
                raise Broken(f"{name} of the model changed")
        for what, value in self.process.items():
            if now.process[what] != value:
                raise Broken(f"{what} changed")
        for what in ("flags", "hooks", "trained", "attributes"):
            if getattr(now, what) != getattr(self, what):
                raise Broken(f"{what} changed")
        for a, b in zip(now.grads, self.grads, strict=True):
            if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
                raise Broken("gradients changed")


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_state_dict_hooks", "_load_state_dict_pre_hooks")  # fmt: skip


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not nn.parameter.is_lazy(value):
            yield name, value


def _process() -> dict[str, Any]:
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": np.random.get_state()[1].tobytes(),  # noqa: NPY002
        "Python's random state": random.getstate(),
        "number of threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "fast path of attention": torch.backends.mha.get_fastpath_enabled(),
        "global forward hooks": len(torch_module._global_forward_hooks),
        "global pre-hooks": len(torch_module._global_forward_pre_hooks),
        "global backward hooks": len(torch_module._global_backward_hooks),
    }


def _same(a: Tensor, b: Tensor) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    )


def _outputs(model: nn.Module, example: Any) -> list[Tensor]:
    return [t.clone() for t in flatten(run(model, example))]


ROUNDS = {"autocast", "mixed precision", "gives bfloat16"}
"""What works in half precision, so that outputs agree to two digits."""


def _near(way: Way, found: list[Tensor], expected: list[Tensor], tol: float, what: str) -> None:
    features, most = {*way.net.features}, 1.0
    if tol and ROUNDS & features:
        tol = 0.05
        most = 0.75 if "experts" in features else most  # rounding may send some elsewhere
    if len(found) != len(expected):
        raise Broken(f"{what}: {len(found)} outputs for {len(expected)}")
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Broken(f"{what}: {a.dtype} {tuple(a.shape)} for {b.dtype} {tuple(b.shape)}")
        if a.numel() == 0:
            continue
        wide = torch.complex128 if a.is_complex() else torch.float64
        off = float((a.to(wide) - b.to(wide)).abs().flatten().quantile(most))
        scale = float(b.to(wide).abs().max())
        if not off <= tol * max(scale, 1e-3):
            raise Broken(f"{what}: outputs differ by {off:.1e} of {scale:.1e}")


# --- steps -----------------------------------------------------------------------------------


def _dense(way: Way) -> None:
    """The network runs by itself and alike each time: else it is no network of the grammar."""
    try:
        args, kwargs = arguments(way.net.example())
        with torch.no_grad(), torch.random.fork_rng():
            way.net.build().eval()(*args, **kwargs)
    except Exception as error:
        raise Skip(f"torch does not run it: {error}") from error
    first, again = (_outputs(way.model, way.net.example()) for _ in range(2))
    if any(not torch.isfinite(t).all() for t in first):
        raise Skip("outputs are not finite")
    _near(way, again, first, 0.0, "again")


LONG = {"cp", "tensor_train", "tucker2", "depthwise_separable"}
"""Methods that take seconds for a layer with data."""


def _compress(way: Way) -> None:
    rng, net = way.rng, way.net
    budget = rng.choice(("params", "params", "macs", "bytes"))
    everything = rng.random() < 0.1 and not way.quick
    names = [n for n in METHODS if everything or n not in LONG]
    methods = rng.sample(names, rng.choice((1, 2, 3)))
    if rng.random() < 0.7:
        methods = list(dict.fromkeys(["channel_svd", *methods]))
    way.settings = {"methods": methods, budget: rng.choice((0.3, 0.6, 0.8, 0.95))}
    if rng.random() < (0.35 if way.quick else 0.5) and not set(methods) & LONG:
        way.settings["data"] = net.data()
        if rng.random() < 0.15:
            way.settings["refine"] = 4
        way.settings["calibration"] = lowrank.Calibration(
            count=rng.choice((6, 6, 24)),
            weighting=rng.choice(("probe", "gradients", "outputs", "outputs")),
            exponent=rng.choice((None, 0.0, 0.5, 1.0)),
            fit=rng.choice(("sequential", "parallel")),
        )
    example = net.example()
    try:
        way.small, way.report = lowrank.compress(way.model, example, **way.settings)
    except BudgetError as error:
        found = re.search(rf"the smallest is {budget}=([0-9.]+)", str(error))
        if found is None:
            raise
        way.settings[budget] = min(1.0, 0.7 * float(found[1]) + 0.3)
        way.small, way.report = lowrank.compress(way.model, example, **way.settings)
    if not all(_same(a, b) for a, b in zip(tensors(example), tensors(net.example()), strict=True)):
        raise Broken("the example changed")
    _check_report(way, budget)


def _check_report(way: Way, budget: str) -> None:
    small, report = way.small, way.report
    key = {"params": "parameters", "bytes": "bytes", "macs": "macs"}[budget]
    free = "branch by data" in way.net.features or "experts" in way.net.features
    if report.kept(key) > way.settings[budget] * 1.0001 and not (free and budget == "macs"):
        raise Broken(f"{budget}: kept {report.kept(key):.3f} of {way.settings[budget]}")
    if report.plan.cost.params != report.compressed.parameters:
        raise Broken(f"planned parameters {report.plan.cost.params}")
    packed = any(m.name == "low_rank_quantized" for m in report.plan.replaced.values())
    if not packed and report.plan.cost.params != sum(p.numel() for p in small.parameters()):
        raise Broken(f"parameters counted as {report.plan.cost.params}")
    if report.plan.cost.macs != report.compressed.macs and not free:
        raise Broken(f"planned MACs {report.plan.cost.macs}, counted {report.compressed.macs}")
    example = way.net.example()
    for t in _outputs(small, example):
        if not torch.isfinite(t).all():
            raise Broken("outputs are not finite")
    if not way.quick:
        str(report), repr(report.plan)
    lowrank.Plan.from_dict(report.plan.to_dict())


def _identity(way: Way) -> None:
    settings = {k: v for k, v in way.settings.items() if k not in ("params", "bytes", "macs")}
    settings.pop("refine", None)
    same, _ = lowrank.compress(way.model, way.net.example(), params=1.0, **settings)
    expected = _outputs(way.model, way.net.example())
    _near(way, _outputs(same, way.net.example()), expected, 1e-4, "at full budget")


def _save(way: Way) -> None:
    path = way.folder / "small.safetensors"
    lowrank.save(way.small, path)
    expected = _outputs(way.small, way.net.example())
    loaded = lowrank.load(path, into=way.net.build())
    _near(way, _outputs(loaded, way.net.example()), expected, 0.0, "loaded")


def _densify(way: Way) -> None:
    dense = lowrank.densify(way.small)
    model = unwrapped(way.model)  # whose weight norm has become a part of the weights
    given = without_weight_norm(model, unnormed_by(model, way.report.plan))
    kinds = {
        tuple(kind_of(m) for m in model.modules() if not is_wrapper(m)) for model in (dense, given)
    }  # a copy of what torch.compile wraps may stand alone
    if len(kinds) > 1:
        raise Broken("other modules than the model's")
    expected = _outputs(way.small, way.net.example())
    _near(way, _outputs(dense, way.net.example()), expected, 5e-3, "dense again")


def _finetune(way: Way) -> None:
    """What torch itself can train is trained; the rest may be refused, in words."""
    with torch.no_grad():  # else the parameters of scripted parts become results
        tuned = copy.deepcopy(way.small)
    lowrank.finetune(
        tuned, teacher=way.model, data=way.net.data(), epochs=1, loss=way.rng.choice(("mse", "kl")),
        batch_size=8, val=way.rng.choice((None, way.net.data())),
    )  # fmt: skip
    _outputs(tuned, way.net.example())


def _has_torchao() -> bool:
    try:
        import torchao  # noqa: F401
    except ImportError:
        return False
    return True


def _int8(way: Way) -> None:
    if not _has_torchao():
        raise Skip("no torchao")
    small, _ = lowrank.quantize(way.small)
    _outputs(small, way.net.example())
    path = way.folder / "int8.safetensors"
    lowrank.save(small, path)
    loaded = lowrank.load(path, into=way.net.build())
    expected = _outputs(small, way.net.example())
    _near(way, _outputs(loaded, way.net.example()), expected, 0.0, "loaded int8")


def _int8_budget(way: Way) -> None:
    if not _has_torchao():
        raise Skip("no torchao")
    small, report = lowrank.compress(
        way.model, way.net.example(), bytes=0.6, int8=True, methods="channel_svd"
    )
    if report.kept("bytes") > 0.6001:
        raise Broken(f"kept {report.kept('bytes'):.3f} of the bytes")
    _outputs(small, way.net.example())


def _profile(way: Way) -> None:
    found = lowrank.profile(way.model, way.net.example(), latency=False)
    counter = FlopCounterMode(display=False)
    model = way.net.build()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(), counter:
            run(model, way.net.example())
    except lowrank.LowRankError as error:
        raise Skip("torch's own counter fails") from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    total = counter.get_total_flops()
    more = {
        "recurrent",
        "bilinear",
        "spectral norm",
        "spectral norm by hook",
        "encoder layer",
        "fused attention",
        "attention",
        "attention again",
    } & set(way.net.features)
    if 2 * found.macs < total or (2 * found.macs != total and not more):
        raise Broken(f"{2 * found.macs} FLOPs of products, torch counts {total}")
    if found.parameters != sum(p.numel() for p in distinct(way.model.parameters())):
        raise Broken(f"{found.parameters} parameters")


def _export(way: Way) -> None:
    example = way.net.example()
    try:
        lowrank.export_program(way.net.build(), example)
    except lowrank.LowRankError as error:
        raise Skip("the dense one does not export") from error
    lowrank.export_program(way.small, example)


def _again(way: Way) -> None:
    """What is compressed is compressed once more, and comes back from a file."""
    try:
        less, _ = lowrank.compress(way.small, way.net.example(), params=0.9, methods="channel_svd")
    except BudgetError as error:
        raise Skip("nothing is left to take") from error
    expected = _outputs(less, way.net.example())
    path = way.folder / "again.safetensors"
    lowrank.save(less, path)
    loaded = lowrank.load(path, into=way.net.build())
    _near(way, _outputs(loaded, way.net.example()), expected, 0.0, "loaded")
    _near(way, _outputs(lowrank.densify(less), way.net.example()), expected, 5e-3, "dense again")


def _step_by_step(way: Way) -> None:
    settings = {k: v for k, v in way.settings.items() if k in ("methods", "data", "calibration")}
    curves = lowrank.measure(way.model, way.net.example(), **settings)
    budget = {k: v for k, v in way.settings.items() if k in ("params", "bytes", "macs")}
    plan = lowrank.Plan.from_dict(curves.plan(**budget).to_dict())
    small, report = lowrank.apply(way.model, plan, example=way.net.example(), data=curves.data)
    _outputs(small, way.net.example())
    str(report)


def _sweep(way: Way) -> None:
    settings = {k: v for k, v in way.settings.items() if k in ("methods", "data", "calibration")}
    found = lowrank.sweep(way.model, way.net.example(), keeps=(0.9, 0.6), **settings)
    str(found.to_dict())


def _max_drop(way: Way) -> None:
    expected = _outputs(way.model, way.net.example())

    def quality(model: nn.Module) -> float:
        found = _outputs(model, way.net.example())
        return -sum(float((a - b).abs().sum()) for a, b in zip(found, expected, strict=True))

    small, _ = lowrank.compress(
        way.model, way.net.example(), max_drop=0.1, metric=quality, methods="channel_svd"
    )
    if not quality(small) >= -0.1001:
        raise Broken(f"the metric fell by {-quality(small):.3f}")


def _clock(way: Way) -> None:
    budget = way.rng.choice(({"latency": 0.9}, {"memory": 0.95}))
    lowrank.compress(way.model, way.net.example(), methods="channel_svd", **budget)


def _profile_small(way: Way) -> None:
    found = lowrank.profile(way.small, way.net.example(), latency=False)
    if found.macs != way.report.compressed.macs and "branch by data" not in way.net.features:
        raise Broken(f"{found.macs} MACs, {way.report.compressed.macs} in the report")
    str(found)


def _onnx(way: Way) -> None:
    example = way.net.example()
    try:
        lowrank.export_onnx(way.net.build(), example, way.folder / "dense.onnx")
    except lowrank.LowRankError as error:
        raise Skip("the dense one does not export") from error
    lowrank.export_onnx(way.small, example, way.folder / "small.onnx")


CHEAP: dict[str, Callable[[Way], None]] = {
    "identity": _identity,
    "save and load": _save,
    "densify": _densify,
    "finetune": _finetune,
    "int8": _int8,
    "int8 budget": _int8_budget,
    "profile": _profile,
    "profile small": _profile_small,
    "again": _again,
    "step by step": _step_by_step,
}

WITHOUT = ("profile", "int8 budget", "max drop", "clock")
"""Steps that ask for the network alone."""

STEPS: dict[str, Callable[[Way], None]] = {
    **CHEAP,
    "export": _export,
    "sweep": _sweep,
    "max drop": _max_drop,
    "clock": _clock,
    "onnx": _onnx,
}
