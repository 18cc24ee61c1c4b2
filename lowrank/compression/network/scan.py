"""Find every layer of a model: those that can be replaced, and why the others cannot.

A layer may be replaced by a chain of stock layers only if the model uses nothing of it but
its output. So the example is run once under watch: which layers run, at which sizes, which
of them answer as their plain type would, and whose weights anyone else reads.
"""

from __future__ import annotations

import functools
import math
import types
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from lowrank.compression.network.example import Example, as_written, call, check, is_wrapper, run
from lowrank.compression.network.hooks import lent, watched_reads
from lowrank.compression.network.layers import LayerView, is_transposed_linear, own_shapes, spec_of
from lowrank.compression.network.own_stages import is_int8
from lowrank.compression.network.stages import Call, weight_of
from lowrank.compression.network.tensors import memory_of, tensors
from lowrank.compression.network.units import Alone, SameInput, TiedTable, Unit, table_of
from lowrank.errors import InputError

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

PACKED = (
    nn.MultiheadAttention, nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell,
)  # fmt: skip
"""What a module of ours can stand for, with layers in place of packed weights; and transformers'
experts, which are no class but have the marks of `is_packed_experts`."""

_MARKS = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel")


def is_packed_experts(module: nn.Module) -> bool:
    """Whether these are the experts of one router, all in parameters of three dimensions.

    transformers marks the classes whose forward is, by contract, that of its kernels: up or gate
    and up, the activation, down, and the sum by the router's weights.
    """
    return all(mark in vars(module) for mark in _MARKS)


def is_packed(module: nn.Module, *, recurrent: bool = True) -> bool:
    """Whether a module hands several weights in few parameters to a kernel.

    Args:
        module: any.
        recurrent: count recurrent ones in.
    """
    return isinstance(module, PACKED if recurrent else PACKED[:1]) or is_packed_experts(module)


@dataclass(frozen=True)
class Scan:
    """Every layer of a model: `units` can be replaced, `reasons` says why the rest cannot.

    Args:
        units: the replaceable layers, in the order in which the example ran them, each in
            one unit; an output head goes with the embedding whose table it reads.
        same_input: linear layers among them that read the same input in every call, which
            may be replaced together as well.
        reasons: name of every other module that holds parameters -> why it stays dense.
        kinds: name of every module of the two above -> its class name.
        shapes: name of every module of the two above -> shapes of its own parameters.
    """

    units: tuple[Unit, ...]
    reasons: dict[str, str]
    kinds: dict[str, str]
    shapes: dict[str, dict[str, tuple[int, ...]]]
    same_input: tuple[SameInput, ...] = ()

    @property
    def views(self) -> tuple[LayerView, ...]:
        """The replaceable layers that own their weight: the first of every unit."""
        return tuple(unit.layers[0] for unit in self.units)

    @property
    def names(self) -> tuple[str, ...]:
        """Every layer, in the model's order."""
        return tuple(self.kinds)


class _Tensors:
    """Tensors by numbers that are given once, without keeping them alive; and who made them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._makers: dict[int, int] = {}
        self._n = 0

    def number(self, tensor: Tensor) -> int:
        known = self._known.get(id(tensor))
        if known is None or known[0]() is not tensor:
            self._n += 1
            known = self._known[id(tensor)] = weakref.ref(tensor), self._n
        return known[1]

    def made(self, module: nn.Module, output: Any) -> None:
        """Note who gives a tensor; the last one to do so counts."""
        if isinstance(output, Tensor):
            self._makers[self.number(output)] = id(module)

    def read(self, tensor: Tensor) -> _Read | None:
        """What is read now; None for a tensor whose changes torch does not count."""
        if tensor.is_inference():
            return None
        number = self.number(tensor)
        return _Read(number, tensor._version, self._makers.get(number))


@dataclass
class _Watch:
    """What the run of the example showed, by the id of the module."""

    calls: dict[int, list[Call]] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    readers: dict[int, str] = field(default_factory=dict)
    asked: dict[int, set[str]] = field(default_factory=dict)
    gains: dict[int, float] = field(default_factory=dict)
    mode: Literal["use", "training"] = "use"
    order: list[int] = field(default_factory=list)
    reads: dict[int, list[_Read | None]] = field(default_factory=dict)
    tensors: _Tensors = field(default_factory=lambda: _Tensors())
    output: Any = None


@dataclass(frozen=True)
class _Read:
    """The tensor that a layer was called with: which, how often it had been changed in place by
    then, and the module that gave it."""

    tensor: int
    version: int
    maker: int | None


def scan(model: nn.Module, example: Example) -> Scan:
    """List every module that holds parameters, as a `LayerView` or with a reason.

    Args:
        model: the network; left as it is.
        example: inputs of one forward pass: a tensor, a tuple, or a dict of inputs.

    Raises:
        InputError: the example is refused, or a weight holds NaN or Inf.
    """
    check(example)
    require_module(model)
    paths = _paths(model)
    modules = {p[0]: module for module, p in paths.items() if holds_parameters(module)}
    held = held_elsewhere(model)
    reasons = {
        name: r
        for name, m in modules.items()
        if (r := static_reason(m) or held.get(id(m))) is not None
    }
    for name, module in modules.items():
        refuse_valueless(name, module)
    reasons |= {n: why for n, why in packed_modules(model, example).items() if why is not None}
    candidates = {name: m for name, m in modules.items() if name not in reasons}
    watch = _watch_example(model, example, candidates)
    for name, module in candidates.items():
        if (reason := _run_reason(module, watch)) is not None:
            reasons[name] = reason
    views = {
        name: _view(paths[module], module, watch)
        for name, module in candidates.items()
        if name not in reasons
    }
    order = {id_: i for i, id_ in enumerate(watch.order)}
    units = _units(model, views, reasons)
    alone = [unit.layer for unit in units if isinstance(unit, Alone)]
    return Scan(
        units=tuple(sorted(units, key=lambda u: order[id(u.layers[0].module)])),
        reasons={name: reasons[name] for name in modules if name in reasons},
        kinds={name: kind_of(m) for name, m in modules.items()},
        shapes={name: own_shapes(m) for name, m in modules.items()},
        same_input=_same_input(model, example, alone, watch, held),
    )


def _paths(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    paths: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        paths[module] = (*paths.get(module, ()), name)
    return paths


def holds_parameters(module: nn.Module) -> bool:
    """Own parameters, or the packed ones of PyTorch's quantized layers."""
    if isinstance(module, parametrize.ParametrizationList) or is_wrapper(module):
        return False  # what a wrapper is asked, the module inside answers
    own = next(module.parameters(recurse=False), None) is not None
    return own or _is_quantized(module) or parametrize.is_parametrized(module)


def kind_of(module: nn.Module) -> str:
    """The class of a module; one for all that are scripted, as copies of these change theirs."""
    scripted = isinstance(module, torch.jit.ScriptModule)
    return "ScriptModule" if scripted else type(module).__name__


def _is_quantized(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ and callable(getattr(module, "weight", None))


def static_reason(module: nn.Module) -> str | None:
    """Why a module stays dense, as far as its type and parameters tell."""
    kind = type(module).__name__
    if _is_quantized(module):
        return f"{kind} is already quantized"
    if is_packed(module):
        return _packed_reason(module) or _TAKEN_APART
    if isinstance(module, _RECURRENT):
        return f"{kind} hands all its weights to one fused kernel"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized; remove_parametrizations first"
    own = dict(module.named_parameters(recurse=False))
    if any(nn.parameter.is_lazy(p) for p in own.values()):
        return f"{kind} has no weights yet; run the model once"
    if spec_of(module) is None:
        matrix = any(sum(n > 1 for n in p.shape) > 1 for p in own.values())
        return _no_layer(module) if matrix else "no weight matrix"
    weight = own.get("weight")
    if weight is None:
        return f"its weight is recomputed from {', '.join(own)} by a hook; remove that first"
    spec = spec_of(module)
    assert spec is not None
    if weight.numel() != spec.n_weights:
        return f"its weight of {tuple(weight.shape)} is none of the size that it says"
    return _weight_reason(module, weight, own)


def _no_layer(module: nn.Module) -> str:
    """Why what holds a matrix is none of the layers that are known."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript; compress the module that was scripted or traced"
    if type(module) is nn.Module:
        return "its class was lost, as in what torch.export gives; compress what was exported"
    kind = type(module)
    if kind.__name__ in ("Linear", "Embedding") or kind.__name__.startswith("Conv"):
        return f"{kind.__module__}.{kind.__name__} is not torch's {kind.__name__}"
    return f"{kind.__name__} is not a layer with one weight matrix"


_TAKEN_APART = (
    "it stays packed, as stock=, skip= or, of recurrent modules, a budget of latency asks for"
)
"""Why `scan` by itself offers none of them."""


def _packed_reason(module: nn.Module) -> str | None:
    """Why a module stays packed, as far as its type and parameters tell."""
    kind = type(module)
    if is_packed_experts(module):
        return _experts_reason(module)
    if kind not in PACKED:
        base = next(cls for cls in PACKED if isinstance(module, cls)).__name__
        return f"{kind.__name__} may use its packed weights otherwise than {base} does"
    own = [module._parameters.get(name) for name in _packed_names(module)]
    if isinstance(module, nn.MultiheadAttention):
        last = module.out_proj
        own.append(None if parametrize.is_parametrized(last) else last._parameters.get("weight"))
        if last._forward_hooks or last._forward_pre_hooks:
            return "MultiheadAttention never calls its out_proj, whose hooks would run"
    if any(p is None for p in own):
        return "its weights are recomputed by a hook or a parametrization; remove that first"
    return _not_plain(module.parameters())


def _experts_reason(module: Any) -> str | None:
    """Why transformers' experts stay packed."""
    if module._is_expert_parallel:
        return "its experts are spread over devices; compress a whole copy"
    weights = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    biases = [f"{name}_bias" for name in weights] if module.has_bias else []
    own = {name: p for name, p in module._parameters.items() if p is not None}
    if parametrize.is_parametrized(module):
        return "its weights are parametrized; remove_parametrizations first"
    if others := set(own) - {*weights, *biases}:
        return f"it holds further parameters: {', '.join(sorted(others))}"
    if any(name not in own for name in (*weights, *biases)):
        return "its weights are recomputed by a hook; remove that first"
    if any(own[name].ndim != 3 for name in weights):
        return "its weights are not of one matrix an expert"
    return _not_plain(own.values())


def _not_plain(parameters: Iterable[Tensor]) -> str | None:
    plain = all(type(p.data) is Tensor and p.is_floating_point() for p in parameters)
    return None if plain else "its weights are of no plain floating type"


def _packed_names(module: nn.Module) -> list[str]:
    """The packed weights that a module must hold itself."""
    if isinstance(module, nn.RNNBase):
        return list(module._flat_weights_names)
    if isinstance(module, nn.RNNCellBase):
        return ["weight_ih", "weight_hh"]
    one = module._qkv_same_embed_dim
    return ["in_proj_weight"] if one else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]


def packed_modules(
    model: nn.Module, example: Example, *, recurrent: bool = True
) -> dict[str, str | None]:
    """Every packed module of a model -> why it cannot be taken apart, or None.

    Args:
        model: the network; left as it is.
        example: inputs of one forward pass, which show what else reads the packed weights.
        recurrent: look for recurrent ones, too.
    """
    found = {n: m for n, m in model.named_modules() if is_packed(m, recurrent=recurrent)}
    if not found:
        return {}
    held = held_elsewhere(model)
    reasons = {
        n: _packed_reason(m) or held.get(id(m)) or _sharing(model, m) for n, m in found.items()
    }
    free = [m for n, m in found.items() if reasons[n] is None]
    watched = _watch_packed(model, example, free) if free else {}
    return {n: reasons[n] or watched.get(id(m)) for n, m in found.items()}


def _sharing(model: nn.Module, module: nn.Module) -> str | None:
    """Why a module stays packed whose weights others hold."""
    own = {memory_of(p) for p in module.parameters()}
    inside = list(module.modules())
    for name, other in model.named_modules():
        if other not in inside and any(memory_of(p) in own for p in other.parameters(False)):
            return f"shares its weight with {name or 'the model'}"
    return None


def _watch_packed(
    model: nn.Module, example: Example, modules: Sequence[nn.Module]
) -> dict[int, str]:
    """Modules that the example never runs, or runs on packed sequences, or whose weights are
    read from outside -> why."""
    inside: list[nn.Module] = []
    reasons = {id(m): _NEVER for m in modules}

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        inside.append(module)
        if reasons.get(id(module)) == _NEVER:
            del reasons[id(module)]
        if any(isinstance(x, PackedSequence) for x in (*args, *kwargs.values())):
            reasons[id(module)] = "it is called with packed sequences"

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.remove(module)

    def read(module: nn.Module, attribute: str, value: Any) -> Any:
        if module not in inside:
            reasons[id(module)] = f"the model reads its {attribute} directly"
        return value

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        stack.enter_context(watched_reads(modules, read))
        run(model, example)
        with suppress(InputError), _training(model):
            call(model, example)
    return reasons


def _weight_reason(
    module: nn.Module, weight: nn.Parameter, own: dict[str, nn.Parameter]
) -> str | None:
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not a real floating type"
    kind = type(weight.data)
    if kind.__name__ == "DTensor":
        return "its weight is sharded (a DTensor); compress a whole copy, and shard what comes back"
    if kind is not Tensor:
        return f"its weight is a {kind.__name__}, already quantized"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rescales the rows of its table in place"
    if others := set(own) - {"weight", "bias"}:
        return f"it holds further parameters: {', '.join(sorted(others))}"
    return None


def held_elsewhere(model: nn.Module) -> dict[int, str]:
    """Modules that would go on running dense after their replacement: id -> why.

    The model's own module has no parent to be replaced in; a module that also stands in a
    plain list, dict or function of another would be called there, past its replacement.
    """
    found = {id(model): "it is the whole model; wrap it in nn.Sequential"}
    for name, module in model.named_modules():
        if is_wrapper(module):  # it copies itself anew
            continue
        for key, value in vars(module).items():
            if key in TORCH_FIELDS or isinstance(value, Tensor | str | int | float):
                continue
            where = f"{name}.{key}" if name else key
            for held in _modules_in(value, set()):
                found.setdefault(id(held), f"{where} holds it too, outside of torch's modules")
    return found


TORCH_FIELDS = frozenset({*vars(nn.Module()), "_compiled_call_impl"})
"""What torch itself keeps in every module."""


def _modules_in(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The modules that a plain value holds: in containers, methods, partials and closures."""
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[Any] = []
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        parts = list(value)
    elif isinstance(value, functools.partial):
        parts = [value.func, *value.args, *value.keywords.values()]
    elif isinstance(value, types.MethodType):
        parts = [value.__self__]
    elif isinstance(value, types.FunctionType):
        # a copy of the model keeps the function, and with it all that the function reaches
        for cell in value.__closure__ or ():
            with suppress(ValueError):  # a variable not yet set
                for held in _modules_in(cell.cell_contents, seen):
                    yield from held.modules()
    for part in parts:
        yield from _modules_in(part, seen)


def require_module(model: object) -> None:
    """Refuse what is no model.

    Raises:
        InputError: says what it is.
    """
    if not isinstance(model, nn.Module):
        kind = "class" if isinstance(model, type) else type(model).__name__
        article = "an" if kind[0] in "AEIOU" else "a"
        raise InputError("model", f"it is {article} {kind}", "pass a torch.nn.Module")


def refuse_valueless(name: str, module: nn.Module) -> None:
    """Refuse a layer whose parameters hold no values, or NaN or Inf.

    Raises:
        InputError: names the parameter.
    """
    for key, p in module.named_parameters(recurse=False):
        where = f"{name}.{key}" if name else key
        if nn.parameter.is_lazy(p) or not p.is_floating_point() or is_int8(p):
            continue
        if p.is_meta:
            raise InputError(where, "it is on the meta device and holds no values", "load weights")
        bad = int((~torch.isfinite(p.detach())).sum())
        if bad:
            raise InputError(
                where,
                f"{bad} of {p.numel()} values are NaN or Inf",
                "load weights that trained without overflow",
            )


def _watch_example(model: nn.Module, example: Example, candidates: dict[str, nn.Module]) -> _Watch:
    watch = _Watch()
    names = {id(m): name or type(m).__name__ for name, m in model.named_modules()}
    watched = {id(m) for m in candidates.values()}
    running: list[nn.Module] = []
    hooked: set[int] = set()

    def enter(module: nn.Module, args: Any) -> None:
        if id(module) not in hooked:
            running.append(module)

    def enter_last(module: nn.Module, args: Any) -> None:
        running.append(module)  # after its own hooks, which read from outside of its forward

    def leave(module: nn.Module, args: Any, *rest: Any) -> None:
        # kwargs and output; after an exception torch passes neither, and the run ends anyway
        if len(rest) == 2 and watch.mode == "use":
            if id(module) in watched:
                _record_call(watch, module, args, *rest)  # still running: our reads are its own
            watch.tensors.made(module, rest[1])
        if running and running[-1] is module:
            running.pop()

    def read(module: nn.Module, attribute: str, value: Any) -> Any:
        reader = running[-1] if running else model
        if reader is module or id(module) in watch.readers:
            return value
        name = names.get(id(reader), type(reader).__name__)
        when = " in training mode" if watch.mode == "training" else ""

        def used() -> None:
            watch.readers.setdefault(id(module), f"{name} reads its {attribute} directly{when}")

        if not _may_ask(reader, value):
            used()
            return value
        watch.asked.setdefault(id(module), set()).add(attribute)
        return value if value is None else lent(value, used)

    with ExitStack() as stack:
        # hooks for all modules: one on a layer itself would switch torch's fused encoder off
        for module in model.modules():
            if module._forward_pre_hooks:
                hooked.add(id(module))
                stack.callback(module.register_forward_pre_hook(enter_last).remove)
        before = torch_module.register_module_forward_pre_hook(enter)
        after = torch_module.register_module_forward_hook(leave, with_kwargs=True, always_call=True)
        stack.callback(before.remove)
        stack.callback(after.remove)
        # torch's own handle forgets this entry, and torch.compile then warns of global hooks
        stack.callback(torch_module._global_forward_hooks_with_kwargs.pop, after.id, None)
        stack.enter_context(watched_reads(candidates.values(), read))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # of our hooks
        watch.output = run(model, example)
        watch.mode = "training"
        with suppress(InputError), _training(model):  # it may ask for targets, or a larger batch
            call(model, example)
    return watch


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Training mode without gradients; flags, buffers and the random state come back after."""
    flags = [(part, part.training) for part in model.modules()]
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        for part, _ in flags:
            part.training = True
        with torch.random.fork_rng(), torch.no_grad(), as_written(model):
            torch.manual_seed(0)
            yield
    finally:
        for part, flag in flags:
            part.training = flag
        for buffer, value in buffers:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)


def _may_ask(reader: nn.Module, value: Tensor | None) -> bool:
    """Whether a reader may be after the type alone; torch's fused kernels, to which a tensor in
    disguise is none of theirs, and compiled code are not asked."""
    if isinstance(reader, torch.jit.ScriptModule) or torch.compiler.is_compiling():
        return False
    plain = value is None or type(value) is nn.Parameter
    return plain and not type(reader).__module__.startswith("torch.nn.")


def _record_call(watch: _Watch, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    key = id(module)
    if key not in watch.calls:
        watch.order.append(key)
    calls = watch.calls.setdefault(key, [])
    inputs = [*args, *kwargs.values()]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        watch.reasons[key] = "it is called with more than one tensor (output_size, for example)"
        return
    calls.append(_call(module, inputs[0]))
    watch.reads.setdefault(key, []).append(watch.tensors.read(inputs[0]))
    if key not in watch.reasons:
        gain = _gain(module, inputs[0], output)
        if gain is None or watch.gains.setdefault(key, gain) != gain:
            watch.reasons[key] = f"{type(module).__name__} does more than its base class's forward"


def _call(module: nn.Module, x: Tensor) -> Call:
    spec = spec_of(module)
    assert spec is not None
    n = len(spec.kernel)
    if not n:
        return Call(x.numel() if spec.kind == "embedding" else x.numel() // max(x.shape[-1], 1))
    return Call(x.shape[0] if x.ndim == n + 2 else 1, tuple(x.shape[-n:]))


def _gain(module: nn.Module, x: Tensor, output: Any) -> float | None:
    """What the module gives, as a multiple of what the stock layer of its spec does, or None.

    Stock layers give the same by definition; a subclass (a static padding, a cast, an adapter)
    is asked on the example's own input, and once more in training mode if it has a forward.
    An embedding may give a multiple: of a number that it holds.
    """
    if _is_stock(module):
        return 1.0
    spec = spec_of(module)
    assert spec is not None
    own = {k: p.detach() for k, p in module.named_parameters(recurse=False)}
    plain = spec.build(dtype=own["weight"].dtype, device="meta")
    try:
        expected = torch.func.functional_call(plain, own, x)
    except (RuntimeError, TypeError, ValueError, IndexError):  # places, say, are told by its shape
        return None
    if type(module).forward is type(plain).forward:
        return 1.0 if _equal(output, expected) else None
    found = output, _trained_output(module, x)
    if all(_equal(y, expected) for y in found):
        return 1.0
    numbers = _numbers_in(module) if spec.kind == "embedding" else ()
    return next((g for g in numbers if all(_equal(y, expected, g) for y in found)), None)


def _numbers_in(module: nn.Module) -> Iterator[float]:
    """The numbers other than 0 that a module holds as attributes or buffers."""
    for value in (*vars(module).values(), *module._buffers.values()):
        if isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1):
            if isinstance(value, Tensor) and (value.is_meta or value.dtype == torch.bool):
                continue
            if math.isfinite(number := float(value)) and number:
                yield number


def _equal(output: Any, expected: Tensor, gain: float = 1.0) -> bool:
    """Whether an output is what was expected, so many times: to the last bit, or to what the
    type rounds to."""
    if not isinstance(output, Tensor) or output.shape != expected.shape:
        return False
    if gain == 1:
        return torch.equal(output, expected)
    rounding = 4 * torch.finfo(expected.dtype).eps
    return bool(((output - expected * gain).abs() <= rounding * output.abs()).all())


def _trained_output(module: nn.Module, x: Tensor) -> Any:
    """What a subclass's own forward gives in training mode, where it may add noise or dropout."""
    flags = [(part, part.training) for part in module.modules()]
    devices = [x.device] if x.is_cuda else []
    try:
        for part, _ in flags:
            part.training = True
        with torch.random.fork_rng(devices):
            return module.forward(x)
    finally:
        for part, flag in flags:
            part.training = flag


def _is_stock(module: nn.Module) -> bool:
    stock = type(module).__module__.startswith("torch.nn.modules.")
    return stock or is_transposed_linear(module)


_NEVER = "the example never runs it"


def _run_reason(module: nn.Module, watch: _Watch) -> str | None:
    key = id(module)
    if key in watch.readers:
        return watch.readers[key]
    if key in watch.reasons:
        return watch.reasons[key]
    if key not in watch.calls:
        return _NEVER
    return None


def _view(paths: tuple[str, ...], module: nn.Module, watch: _Watch) -> LayerView:
    spec = spec_of(module)
    assert spec is not None
    key = id(module)
    return LayerView(
        paths[0], paths, module, spec, tuple(watch.calls[key]),
        tuple(sorted(watch.asked.get(key, ()))), watch.gains[key],
    )  # fmt: skip


def _units(model: nn.Module, views: dict[str, LayerView], reasons: dict[str, str]) -> list[Unit]:
    """An embedding with the head that reads its table, every other layer alone; layers that
    share a weight in another way stay dense."""
    tied: list[Unit] = []
    holders: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        for key, p in module.named_parameters(recurse=False, remove_duplicate=False):
            if key != "bias":  # a bias is carried over as it is, shared or not
                holders.setdefault(memory_of(p), []).append(name)
    for names in holders.values():
        if len(names) < 2:
            continue
        table = _table(model, names, views, reasons)
        if table is not None:
            tied.append(table)
            for view in table.layers:
                views.pop(view.name, None)
                reasons.pop(view.name, None)
            continue
        why = next((f" ({reasons[n]})" for n in names if n in reasons), "")
        for name in names:
            if name in views:
                others = ", ".join(n for n in names if n != name)
                reasons[name] = f"shares its weight with {others}{why}"
                del views[name]
    return [*tied, *map(Alone, views.values())]


def _table(
    model: nn.Module,
    names: Sequence[str],
    views: Mapping[str, LayerView],
    reasons: Mapping[str, str],
) -> TiedTable | None:
    """The unit of all that hold one table, those that run first; the example need not run every
    embedding, as the one of an encoder and a decoder which only hands its table on to theirs."""
    found = [views[n] for n in names if n in views]
    for name in names:
        module = model.get_submodule(name)
        spec, gain = spec_of(module), _looks_up(module) if reasons.get(name) == _NEVER else None
        if spec is not None and gain is not None:
            found.append(LayerView(name, (name,), module, spec, (), gain=gain))
    ran = any(view.calls and view.spec.kind == "embedding" for view in found)
    return table_of(found) if ran and len(found) == len(names) else None


def _looks_up(module: nn.Module) -> float | None:
    """By what a module, which need not be a stock one, multiplies rows of its table, which it
    looks up; None if it does not."""
    spec = spec_of(module)
    if spec is None or spec.kind != "embedding":
        return None
    words = torch.arange(min(spec.in_channels, 8), device=weight_of(module).device)
    try:
        with torch.no_grad():
            return _gain(module, words, module(words))
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


def _same_input(
    model: nn.Module,
    example: Example,
    views: Sequence[LayerView],
    watch: _Watch,
    held: Mapping[int, str],
) -> tuple[SameInput, ...]:
    """Linear layers that are called with the very same tensors, in the model's order."""
    readers: dict[tuple[tuple[int, int], ...], list[LayerView]] = {}
    for view in views:
        reads = [r for r in watch.reads[id(view.module)] if r is not None]
        whole = view.spec.kind == "linear" and view.spec.groups == 1
        if whole and len(reads) == len(view.calls):
            readers.setdefault(tuple((r.tensor, r.version) for r in reads), []).append(view)
    names = {id(m): name for name, m in model.named_modules()}
    found = []
    for layers in readers.values():
        if len(layers) > 1 and len({(v.parameter.dtype, v.parameter.device) for v in layers}) == 1:
            makers = {r.maker for v in layers for r in watch.reads[id(v.module)] if r is not None}
            maker = makers.pop() if len(makers) == 1 else None
            behind = None if maker is None or maker in held else names.get(maker)
            found.append(SameInput(tuple(layers), behind))
    return _only_readers(model, example, found, watch)


def _only_readers(
    model: nn.Module, example: Example, units: Sequence[SameInput], watch: _Watch
) -> tuple[SameInput, ...]:
    """The units, of which only those keep the module that makes their input whose layers are
    all that reads it, its width included: behind it a shared factor can run once.

    That is asked of the model: the module gives further channels of noise, which the layers
    leave out, and nothing may change. All units are tried at once; where they fail, those of
    each kind by themselves.
    """
    times = Counter(unit.behind for unit in units)
    could = [
        u
        for u in units
        if u.behind is not None and times[u.behind] == 1 and is_plain(model.get_submodule(u.behind))
    ]
    good: list[SameInput] = []
    if could and _unmoved(model, example, could, watch.output):
        good = could
    elif could:
        kinds: dict[object, list[SameInput]] = {}
        for unit in could:
            kinds.setdefault(_kind(model, unit), []).append(unit)
        for alike in kinds.values() if len(kinds) > 1 else ():
            good += alike if _unmoved(model, example, alike, watch.output) else []
    good = _unmoved_in_training(model, example, good)
    return tuple(u if u in good else SameInput(u.layers) for u in units)


def only_readers_on(
    model: nn.Module, batches: Sequence[Example], units: Sequence[SameInput]
) -> tuple[SameInput, ...]:
    """The units, with the module that makes their input only where these batches, too, show
    that nothing else reads it: a branch that the example did not take may.

    Args:
        model: the model.
        batches: inputs; each costs two passes while some unit is left to ask about.
        units: of one model, as `scan` found them.
    """
    good = [u for u in units if u.behind is not None]
    for batch in batches:
        if not good:
            break
        expected = run(model, batch)
        if not _unmoved(model, batch, good, expected):
            good = [u for u in good if _unmoved(model, batch, [u], expected)]
    return tuple(u if u in good or u.behind is None else SameInput(u.layers) for u in units)


def _unmoved_in_training(
    model: nn.Module, example: Example, units: list[SameInput]
) -> list[SameInput]:
    """Those of which training mode shows no other reader, as far as it runs the example."""
    if not units:
        return units

    def trained(model: nn.Module, example: Example) -> Any:
        torch.manual_seed(0)
        return call(model, example)

    try:
        with _training(model):
            expected = trained(model, example)
            if _unmoved(model, example, units, expected, trained):
                return units
            return [u for u in units if _unmoved(model, example, [u], expected, trained)]
    except InputError:  # no training on a single example, say
        return units


def is_plain(module: nn.Module) -> bool:
    """Whether a module holds no layer of its own, and can stand in an `nn.Sequential`."""
    return all(p.ndim < 2 for p in module.parameters()) and not parametrize.is_parametrized(module)


def _kind(model: nn.Module, unit: SameInput) -> object:
    """Units of equal kinds stand at the same place in modules of the same class."""
    paths = [view.name.rpartition(".") for view in unit.layers]
    return tuple((type(model.get_submodule(parent)), last) for parent, _, last in paths)


_MORE = 3
"""Channels of noise that an input gets."""


def _unmoved(
    model: nn.Module,
    example: Example,
    units: Sequence[SameInput],
    expected: Any,
    forward: Callable[[nn.Module, Example], Any] = run,
) -> bool:
    """Whether the model gives the same when these units' inputs are wider than they were."""
    rng = torch.Generator().manual_seed(0)
    inside: list[nn.Module] = []
    read: list[nn.Module] = []

    def enter(module: nn.Module, args: Any) -> None:
        inside.append(module)

    def widen(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        inside.remove(module)
        noise = torch.randn(*output.shape[:-1], _MORE, generator=rng)
        size = output.detach().abs().amax() if output.numel() else 1.0
        return torch.cat([output, (noise.to(output) + 1) * size], dim=-1)

    def note(module: nn.Module, name: str, value: Any) -> Any:
        if module not in inside:  # a Sequential in its place would have no such parameter
            read.append(module)
        return value

    makers = {unit.behind: model.get_submodule(unit.behind or "") for unit in units}
    with ExitStack() as stack:
        for unit in units:
            for view in unit.layers:
                handle = view.module.register_forward_pre_hook(
                    partial(_cut, width=view.spec.in_channels), with_kwargs=True
                )
                stack.callback(handle.remove)
        for module in makers.values():
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(widen).remove)
        stack.enter_context(watched_reads(makers.values(), note))
        try:
            found = forward(model, example)
        except InputError:
            return False
    return not read and _all_equal(found, expected)


def _cut(module: nn.Module, args: Any, kwargs: Any, *, width: int) -> tuple[Any, Any]:
    def cut(x: Any) -> Any:
        return x[..., :width].contiguous() if isinstance(x, Tensor) else x

    return tuple(map(cut, args)), {k: cut(v) for k, v in kwargs.items()}


def _all_equal(found: Any, expected: Any) -> bool:
    pairs = list(zip(tensors(found), tensors(expected), strict=False))
    return len(tensors(found)) == len(tensors(expected)) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
        if a.is_floating_point()
        else torch.equal(a, b)
        for a, b in pairs
    )
