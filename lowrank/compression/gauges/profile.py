"""What a model costs on an example: parameters, bytes, MACs, FLOPs, memory and latency."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lowrank.compression.gauges.counting import ROOT, CountMode, _observe
from lowrank.compression.gauges.memory import MemoryMode
from lowrank.compression.gauges.profile_table import LayerProfile, Profile
from lowrank.compression.gauges.timing import _check_runs, measure_latency
from lowrank.compression.network.example import (
    Example,
    _device,
    _unchanged_rng,
    batch_size,
    check,
    evaluating,
    named_tensors,
    spare,
    use_up,
)
from lowrank.compression.network.tensors import memory_of, tensors


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
    in `lowrank.compression.gauges.counting`.
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


def _has_data(model: nn.Module, example: Example) -> bool:
    every = [*model.parameters(), *model.buffers(), *tensors(example)]
    return not any(t.is_meta or isinstance(t, FakeTensor) for t in every)


def _cuda_peak(model: nn.Module, example: Example, device: torch.device) -> int:
    """The allocator's own peak, from a second pass: the first one allocates workspaces."""
    ready = spare(example)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    with evaluating(model):
        use_up(model, ready)
    return torch.cuda.max_memory_allocated(device) - before


def _layers(model: nn.Module, counter: CountMode) -> tuple[LayerProfile, ...]:
    owners: dict[Any, str] = {}
    rows = (_layer(name or ROOT, m, counter, owners) for name, m in model.named_modules())
    return tuple(row for row in rows if row is not None)


def _layer(
    name: str, module: nn.Module, counter: CountMode, owners: dict[Any, str]
) -> LayerProfile | None:
    parameters, tied_to = _new(module.parameters(recurse=False), name, owners)
    buffers, tied_buffers = _new(module.buffers(recurse=False), name, owners)
    leaf_ran = counter.calls[name] and next(module.children(), None) is None
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
        key = memory_of(tensor)
        if key in owners:
            tied_to = tied_to or owners[key]
        else:
            owners[key] = name
            new.append(tensor)
    return new, tied_to
