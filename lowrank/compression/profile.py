"""What a model costs on an example: parameters, bytes, MACs, FLOPs, memory and latency."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lowrank.compression.counting import ROOT, CountMode, MemoryMode
from lowrank.compression.example import (
    Example,
    batch_size,
    call,
    check,
    evaluating,
    named_tensors,
    tensors,
)
from lowrank.compression.stopwatch import Stopwatch, in_turns
from lowrank.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

TOTAL = "(total)"
"""Key of the sum in the dict that `count_macs` returns."""


@dataclass(frozen=True)
class LayerProfile:
    """What one module holds and runs itself, its children not included.

    Attributes:
        name: the module's name in the model; `"(model)"` for the model itself.
        kind: the module's class.
        parameters: elements of the module's own parameters that no earlier module holds.
        bytes: their size in their own dtype.
        buffer_bytes: size of the module's own buffers.
        macs: multiply-accumulates that the module runs.
        flops: 2 x `macs` plus all other arithmetic.
        output_shape: shape of the first floating-point output of the last call.
        calls: how often the module ran.
        tied_to: the module that counts this one's shared parameters, if any.
    """

    name: str
    kind: str
    parameters: int
    bytes: int
    buffer_bytes: int
    macs: int
    flops: int
    output_shape: tuple[int, ...] | None
    calls: int
    tied_to: str | None


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass, in milliseconds.

    Attributes:
        median_ms: the median of the timed runs.
        quartiles_ms: the first and third quartile, to show how noisy the machine is.
        runs: how many runs were timed.
        warmup: how many went before them, untimed.
        threads: CPU threads that one operation may use.
        device: where the model ran.
    """

    median_ms: float
    quartiles_ms: tuple[float, float]
    runs: int
    warmup: int
    threads: int
    device: str


@dataclass(frozen=True)
class Profile:
    """What a model costs on one example, in total and layer by layer. Prints as a table.

    Attributes:
        model: the model's class.
        layers: every module that holds parameters or buffers, computes, or is a leaf that ran.
        parameters: distinct parameters; a tied one counts once.
        bytes: their size in their own dtype.
        buffer_bytes: size of the buffers.
        macs: multiply-accumulates for the whole batch.
        flops: 2 x `macs` plus all other arithmetic.
        peak_activation_bytes: the most that was alive at one time of all that the forward
            pass allocated, measured. Parameters and the example itself are not in it; on a
            GPU the kernels' workspaces are, on a CPU they are not.
        activation_bound_bytes: the largest sum of one operation's inputs and outputs among
            them. No order of the same operations can do with less.
        latency: time of a forward pass, or None if it was not asked for or there is no data.
        threads: CPU threads that one operation may use.
        device: where the model ran.
        batch_size: examples in the batch.
        example_shapes: shape of every input tensor, by name.
        uncounted: operations without a counting rule; what they cost is missing above.
    """

    model: str
    layers: tuple[LayerProfile, ...]
    parameters: int
    bytes: int
    buffer_bytes: int
    macs: int
    flops: int
    peak_activation_bytes: int
    activation_bound_bytes: int
    latency: Latency | None
    threads: int
    device: str
    batch_size: int
    example_shapes: dict[str, tuple[int, ...]]
    uncounted: tuple[str, ...]

    @property
    def latency_ms(self) -> float | None:
        """Median time of a forward pass in milliseconds."""
        return self.latency.median_ms if self.latency else None

    @property
    def latency_runs(self) -> int:
        """Timed runs behind the median; 0 if the model was not timed."""
        return self.latency.runs if self.latency else 0

    @property
    def warmup(self) -> int:
        """Untimed runs before them."""
        return self.latency.warmup if self.latency else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists and numbers, ready for JSON."""
        return {**asdict(self), "latency_ms": self.latency_ms}

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip("\n")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from lowrank.compression.profile_table import summary, table

        yield table(self, console, options.max_width)
        yield summary(self)


def profile(
    model: nn.Module,
    example: Example,
    *,
    latency: bool = True,
    repeats: int = 20,
    warmup: int = 3,
) -> Profile:
    """Measure what the model costs on the example, layer by layer.

    The model runs in evaluation mode without gradients; its training flags, hooks and the
    random state are afterwards what they were. A model on the meta device, or with fake
    tensors, is counted without computing anything and has no latency.

    Args:
        model: any module, on any device, in any dtype.
        example: a tensor, a tuple of inputs, or a dict of keyword inputs, on the model's device.
        latency: whether to time the model.
        repeats: timed runs, at least 1.
        warmup: runs before them, at least 0.

    Returns:
        The figures, for the whole batch of the example.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by the model.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        >>> cost = profile(net, torch.zeros(1, 3, 32, 32), latency=False)
        >>> cost.parameters, cost.macs, cost.flops
        (224, 221184, 458752)
        >>> [(layer.name, layer.kind, layer.flops) for layer in cost.layers]
        [('0', 'Conv2d', 450560), ('1', 'ReLU', 8192)]

    Source: MACs are half of what `torch.utils.flop_counter` counts; the rest follows the rule
    in `lowrank.compression.counting`.
    """
    check(example)
    _check_runs(repeats, warmup)
    device = _device(model, example)
    counter, memory = CountMode(), MemoryMode()
    with _unchanged_rng(device):
        _observe(model, example, counter, memory)
        peak = memory.peak
        if device.type == "cuda":
            peak = _cuda_peak(model, example, device)
        time_it = latency and _has_data(model, example)
        timed = measure_latency(model, example, repeats=repeats, warmup=warmup) if time_it else None
    layers = _layers(model, counter)
    return Profile(
        model=type(model).__name__,
        layers=layers,
        parameters=sum(layer.parameters for layer in layers),
        bytes=sum(layer.bytes for layer in layers),
        buffer_bytes=sum(layer.buffer_bytes for layer in layers),
        macs=counter.macs.total(),
        flops=counter.flops.total(),
        peak_activation_bytes=peak,
        activation_bound_bytes=memory.bound,
        latency=timed,
        threads=torch.get_num_threads(),
        device=str(device),
        batch_size=batch_size(example),
        example_shapes={name: tuple(t.shape) for name, t in named_tensors(example)},
        uncounted=tuple(sorted(counter.uncounted)),
    )


def count_macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-accumulates of every module, its children not included, and their sum.

    The same figures as `profile` gives, from one pass.

    Args:
        model: any module.
        example: a tensor, a tuple of inputs, or a dict of keyword inputs.

    Returns:
        Module name -> MACs for the whole batch, 0 for a module that runs none. The model's own
        are under `"(model)"`, the sum of all is under `"(total)"`.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by the model.

    Example:
        >>> count_macs(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.zeros(2, 8))
        {'(model)': 0, '0': 64, '1': 0, '(total)': 64}
    """
    check(example)
    counter = CountMode()
    with _unchanged_rng(_device(model, example)):
        _observe(model, example, counter)
    names = [name or ROOT for name, _ in model.named_modules()]
    return {name: counter.macs[name] for name in names} | {TOTAL: counter.macs.total()}


def measure_latency(
    model: nn.Module, example: Example, *, repeats: int = 20, warmup: int = 3
) -> Latency:
    """Median time of a forward pass in evaluation mode without gradients.

    Args:
        model: any module.
        example: a tensor, a tuple of inputs, or a dict of keyword inputs.
        repeats: timed runs, at least 1.
        warmup: runs before them, at least 0.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by the model.

    Example:
        >>> measure_latency(nn.Linear(8, 4), torch.zeros(2, 8), repeats=5).runs
        5
    """
    return compare_latency([model], example, repeats=repeats, warmup=warmup)[0]


def compare_latency(
    models: Sequence[nn.Module], example: Example, *, repeats: int = 20, warmup: int = 3
) -> tuple[Latency, ...]:
    """Median time of a forward pass of several models, timed in turns.

    Each round runs every model once, and each round starts with another model, so whatever
    slows the machine down for a while slows all of them alike.

    Args:
        models: the models to compare.
        example: what every one of them is run on.
        repeats: timed rounds, at least 1.
        warmup: rounds before them, at least 0.

    Returns:
        One `Latency` for each model, in order.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by a model.

    Example:
        >>> small, large = nn.Linear(16, 4), nn.Linear(16, 4096)
        >>> [timed.runs for timed in compare_latency([small, large], torch.zeros(1, 16))]
        [20, 20]
    """
    check(example)
    _check_runs(repeats, warmup)
    devices = [_device(model, example) for model in models]
    if not devices:
        return ()
    with ExitStack() as stack:
        for device in set(devices):
            stack.enter_context(_unchanged_rng(device))
        timer = Stopwatch(devices[0], torch.get_num_threads(), wall=True)
        rounds = (repeats, repeats)
        times = in_turns(models, example, timer, rounds=rounds, warmup=warmup)
    return tuple(_latency(t, warmup, d) for t, d in zip(times, devices, strict=True))


# --- running ---------------------------------------------------------------------------


def _observe(model: nn.Module, example: Example, counter: CountMode, *below: Any) -> None:
    """One forward pass under the modes; `counter` sees every operation first."""
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(_separate_attention())
        stack.enter_context(_followed(model, counter))
        for mode in (*below, counter):
            stack.enter_context(mode)
        call(model, example)


@contextmanager
def _separate_attention() -> Iterator[None]:
    """Attention layers run their parts one by one, not as one fused operation without a name."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _followed(model: nn.Module, counter: CountMode) -> Iterator[None]:
    """Tell the counter which module runs, by hooks that are removed afterwards."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: what it runs counts under the module that calls it
            enter = partial(counter.enter, name or ROOT)
            before = module.register_forward_pre_hook(enter, prepend=True)
            stack.callback(before.remove)
            after = module.register_forward_hook(counter.leave, always_call=True)
            stack.callback(after.remove)
        yield


@contextmanager
def _unchanged_rng(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def _device(model: nn.Module, example: Example) -> torch.device:
    return next(iter([*model.parameters(), *model.buffers(), *tensors(example)])).device


def _has_data(model: nn.Module, example: Example) -> bool:
    every = [*model.parameters(), *model.buffers(), *tensors(example)]
    return not any(t.is_meta or isinstance(t, FakeTensor) for t in every)


def _cuda_peak(model: nn.Module, example: Example, device: torch.device) -> int:
    """The allocator's own peak, from a second pass: the first one allocates workspaces."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with evaluating(model):
        call(model, example)
    return torch.cuda.max_memory_allocated(device) - before


def _check_runs(repeats: int, warmup: int) -> None:
    if repeats < 1:
        raise InputError("repeats", f"{repeats} is below 1", "time at least one run")
    if warmup < 0:
        raise InputError("warmup", f"{warmup} is below 0", "pass 0 for no warm-up")


def _latency(seconds: list[float], warmup: int, device: torch.device) -> Latency:
    times = [1e3 * t for t in seconds]
    low, median, high = (
        statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    )
    threads = torch.get_num_threads()
    return Latency(median, (low, high), len(times), warmup, threads, str(device))


# --- rows ------------------------------------------------------------------------------


def _layers(model: nn.Module, counter: CountMode) -> tuple[LayerProfile, ...]:
    owners: dict[Any, str] = {}
    rows = (_layer(name or ROOT, m, counter, owners) for name, m in model.named_modules())
    return tuple(row for row in rows if row is not None)


def _layer(
    name: str, module: nn.Module, counter: CountMode, owners: dict[Any, str]
) -> LayerProfile | None:
    parameters, tied_to = _new(module.parameters(recurse=False), name, owners)
    buffers, tied_buffers = _new(module.buffers(recurse=False), name, owners)
    leaf_ran = counter.calls[name] and not any(module.children())
    holds = parameters or buffers or tied_to or tied_buffers
    if not (holds or leaf_ran or counter.flops[name]):
        return None
    return LayerProfile(
        name=name,
        kind=type(module).__name__,
        parameters=sum(p.numel() for p in parameters),
        bytes=sum(p.numel() * p.element_size() for p in parameters),
        buffer_bytes=sum(b.numel() * b.element_size() for b in buffers),
        macs=counter.macs[name],
        flops=counter.flops[name],
        output_shape=counter.shapes.get(name),
        calls=counter.calls[name],
        tied_to=tied_to,
    )


def _new(
    held: Iterator[Tensor], name: str, owners: dict[Any, str]
) -> tuple[list[Tensor], str | None]:
    """The tensors that no earlier module holds, and an earlier holder of one of the others."""
    new, tied_to = [], None
    for tensor in held:
        key = _identity(tensor)
        if key in owners:
            tied_to = tied_to or owners[key]
        else:
            owners[key] = name
            new.append(tensor)
    return new, tied_to


def _identity(tensor: Tensor) -> Any:
    """Equal for two tensors over the same memory, which need not be the same object."""
    if tensor.layout is not torch.strided:
        return id(tensor)
    where = tensor.untyped_storage()._cdata, tensor.storage_offset()
    return where, tuple(tensor.shape), tensor.stride()
