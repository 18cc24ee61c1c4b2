"""The blocks of a network, trained one after another on what the dense ones give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.network.example import Example, evaluating, first_line
from lowrank.compression.network.prefix_cache import NotAgain, PrefixCache, Reached, afresh
from lowrank.compression.network.tensors import tensors
from lowrank.errors import InputError
from lowrank.progress import Progress

STEPS = 100
"""Gradient steps for a block."""


_FAR = 0.3
"""Relative error from which a block is trained at the full rate; below, in proportion."""


_MEMORY = 1 << 31
"""Bytes of a block's inputs and targets that are held at a time; beyond it, fewer batches."""


@dataclass(frozen=True)
class Trained:
    """What became of a block.

    Args:
        before: its relative error, ||y' - y|| / ||y|| over the batches.
        after: the same in the end.
        why: why it was left as it was; None where it was trained.
    """

    before: float
    after: float
    why: str | None = None


@dataclass(frozen=True)
class Block:
    """A part of a model that is trained by itself.

    Args:
        names: the module, or neighbours in one `nn.Sequential` that run one after another.
    """

    names: tuple[str, ...]

    def of(self, model: nn.Module) -> list[nn.Module]:
        """The block's modules in a model."""
        return [model.get_submodule(name) for name in self.names]

    def __str__(self) -> str:
        first, last = self.names[0], self.names[-1]
        return first if len(self.names) == 1 else f"{first} to {last}"


def find_blocks(model: nn.Module, layers: Sequence[str]) -> list[Block]:
    """The blocks that the layers lie in, in the model's order.

    A layer's block is the smallest module around it, but not the model, that holds at least
    two of the model's layers; in an `nn.Sequential` it is the layer itself with what follows
    it up to the next layer. Of a transformer it is a whole one of its blocks, a member of an
    `nn.ModuleList` with norms of its own: what the layers before have lost of the sum that runs
    through the blocks is made up for, too.

    Args:
        model: the dense network.
        layers: names of the layers that were replaced.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        >>> [str(b) for b in find_blocks(net, ["0", "2"])]
        ['0 to 1', '2 to 3']
    """
    found = dict.fromkeys(_block_of(model, name) for name in layers)
    outer = [set(b.names) for b in found]
    places = {name: k for k, (name, _) in enumerate(model.named_modules())}
    kept = [b for b in found if not any(_inside(b, names) for names in outer)]
    return sorted(kept, key=lambda b: places[b.names[0]])


def _inside(block: Block, names: set[str]) -> bool:
    prefixes = tuple(f"{name}." for name in names)
    return all(n.startswith(prefixes) for n in block.names)


def _block_of(model: nn.Module, layer: str) -> Block:
    parts = layer.split(".")
    for depth in range(len(parts) - 1, 1, -1):
        name = ".".join(parts[:depth])
        listed = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ModuleList)
        if listed and _is_transformers(model.get_submodule(name)):
            return Block((name,))
    for depth in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:depth])
        parent = model.get_submodule(name)
        if isinstance(parent, nn.Sequential):
            run = _run_of(parent, parts[depth], name)
            if sum(map(_n_layers, parent)) > 1 or depth == 1:
                return run
        elif _n_layers(parent) > 1 and type(parent).forward is not nn.Module.forward:
            return Block((name,))
    if isinstance(model, nn.Sequential):
        return _run_of(model, parts[0], "")
    return Block((layer,))


def _is_transformers(module: nn.Module) -> bool:
    """Whether it holds layers and norms, none of which is of batches."""
    norms = [m for m in module.modules() if type(m).__name__.endswith("Norm")]
    return (
        len(norms) > 0 and _n_layers(module) > 1 and type(module).forward is not nn.Module.forward
    )


def _run_of(parent: nn.Sequential, child: str, name: str) -> Block:
    """A child of a Sequential and those behind it that hold no layer."""
    names = list(parent._modules)
    start = names.index(child)
    end = start + 1
    while end < len(names) and not _n_layers(parent.get_submodule(names[end])):
        end += 1
    prefix = f"{name}." if name else ""
    return Block(tuple(prefix + n for n in names[start:end]))


def _n_layers(module: nn.Module) -> int:
    return sum(any(p.ndim > 1 for p in m.parameters(recurse=False)) for m in module.modules())


def train_blocks(
    small: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Example],
    layers: Sequence[str],
    *,
    steps: int = STEPS,
    lr: float = 1e-3,
    only_factors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Trained]:
    """Train, in place, block after block on the dense block's outputs; no labels are needed.

    Each block sees what the refined blocks before it produce, and is drawn to what the dense
    block gives in the dense model: least mean squared error, by Adam with a cosine schedule.
    Batch norms keep their statistics. A block that does not come closer is left as it was, and
    so is one that gradients do not reach or whose call cannot be made again.

    Args:
        small: the compressed model.
        teacher: the dense one.
        batches: inputs, a batch for each step.
        layers: names of the replaced layers.
        steps: gradient steps for a block.
        lr: learning rate at the start, above 0; less for a block that is close already.
        only_factors: train the replaced layers alone, not all parameters of their blocks.
        seed: of the order of the batches.
        progress: called as (block, done, total).

    Returns:
        Block -> its error before and after.

    Raises:
        InputError: steps or a learning rate that make no sense.
    """
    _check(steps, lr)
    blocks = find_blocks(teacher, layers)
    replays = [PrefixCache(m, len(batches), _MEMORY // 2) for m in (teacher, small)]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Trained] = {}
    for done, block in enumerate(blocks):
        if progress is not None:
            progress(f"refining {block}", done, len(blocks))
        try:
            calls = list(_calls(replays, block, batches))
        except NotAgain as error:
            found[str(block)] = Trained(0.0, 0.0, str(error))
            continue
        if not calls:
            continue
        trained = _trained(small, block, layers if only_factors else None)
        modules = block.of(small)
        with _evaluating(modules):  # a factor that layers share may run behind its last module
            same = _output(modules, calls[0]).shape == calls[0].target.shape
        if trained and same:
            found[str(block)] = _train(modules, calls, trained, steps, lr, generator)
    return found


@dataclass(frozen=True, eq=False)
class _Call:
    """What a block is called with behind the refined prefix, and what it should give."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Tensor

    def inputs(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """What the block is called with, anew: it may work in place, or fill a cache of keys."""
        args, kwargs = afresh((self.args, self.kwargs))
        return args, kwargs


def _calls(
    replays: Sequence[PrefixCache], block: Block, batches: Sequence[Example]
) -> Iterator[_Call]:
    held = 0
    for k, batch in enumerate(batches):
        wanted = _capture(replays[0], block, k, batch)
        given = _capture(replays[1], block, k, batch, stop_at_input=True)
        if wanted is None or given is None or wanted.output is None:
            return
        if _shapes(wanted) != _shapes(given):
            return  # a router sends it other examples now
        if not wanted.output.numel():
            continue
        held += sum(t.numel() * t.element_size() for t in (*tensors(given.args), wanted.output))
        if held > _MEMORY and k:
            return
        yield _Call(given.args, given.kwargs, wanted.output)


class _Capture:
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}
    output: Tensor | None = None
    calls = 0


def _shapes(seen: _Capture) -> list[torch.Size]:
    return [t.shape for t in tensors((seen.args, seen.kwargs))]


def _capture(
    replay: PrefixCache, block: Block, k: int, batch: Example, *, stop_at_input: bool = False
) -> _Capture | None:
    """The block's input, and its output unless stopped before; None if it runs more than once."""
    first, last = block.of(replay.model)[0], block.of(replay.model)[-1]
    seen = _Capture()

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        replay.mark()
        seen.args, seen.kwargs = afresh((args, kwargs))
        if stop_at_input:
            raise Reached

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        found = [t for t in tensors(output) if t.is_floating_point()]
        seen.output = found[0].detach().clone() if found else None
        raise Reached

    handles = [first.register_forward_pre_hook(enter, with_kwargs=True)]
    if not stop_at_input:
        handles.append(last.register_forward_hook(leave))
    try:
        return seen if replay.run(k, batch) else None
    finally:
        for handle in handles:
            handle.remove()


def _trained(small: nn.Module, block: Block, only: Sequence[str] | None) -> list[nn.Parameter]:
    if only is None:
        modules = block.of(small)
    else:
        prefixes = tuple(f"{n}." for n in block.names)
        names = [n for n in only if n in block.names or n.startswith(prefixes)]
        modules = [small.get_submodule(n) for n in names]
    parameters = {id(p): p for m in modules for p in m.parameters() if p.is_floating_point()}
    return list(parameters.values())


def _train(
    modules: Sequence[nn.Module],
    calls: Sequence[_Call],
    parameters: Sequence[nn.Parameter],
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> Trained:
    """Train a block, if gradients can be had."""
    before = _error(modules, calls)
    saved = [p.detach().clone() for p in parameters]
    wanted = [p.requires_grad for p in parameters]
    energy = sum(float(c.target.double().square().mean()) for c in calls) / len(calls)
    rate = lr * min(1.0, before / _FAR)
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda t: 0.5 * (1 + math.cos(math.pi * t / steps))
    )
    order: list[int] = []
    why: str | None = None
    with _evaluating(modules), torch.enable_grad():
        for p in parameters:
            p.requires_grad_(True)
        for _ in range(steps):
            order = order or torch.randperm(len(calls), generator=generator).tolist()
            call = calls[order.pop()]
            optimizer.zero_grad()
            try:
                loss = (_output(modules, call).float() - call.target.float()).square().mean()
                (loss / max(energy, 1e-30)).backward()
            except Exception as error:  # without gradients all of this runs
                why = f"no gradients can be had: {first_line(error)}"
                break
            optimizer.step()
            schedule.step()
    for p, flag in zip(parameters, wanted, strict=True):
        p.requires_grad_(flag)
        p.grad = None
    after = before if why else _error(modules, calls)
    if not after < before:
        with torch.no_grad():
            for p, value in zip(parameters, saved, strict=True):
                p.copy_(value)
        return Trained(before, before, why)
    return Trained(before, after)


def _evaluating(modules: Sequence[nn.Module]) -> Any:
    return evaluating(nn.ModuleList(modules))


def _output(modules: Sequence[nn.Module], call: _Call) -> Tensor:
    args, kwargs = call.inputs()
    value: Any = modules[0](*args, **kwargs)
    for module in modules[1:]:
        value = module(value)
    return next(t for t in tensors(value) if t.is_floating_point())


def _error(modules: Sequence[nn.Module], calls: Sequence[_Call]) -> float:
    lost = energy = 0.0
    with _evaluating(modules):
        for call in calls:
            lost += float((_output(modules, call).double() - call.target.double()).square().sum())
            energy += float(call.target.double().square().sum())
    return (lost / energy) ** 0.5 if energy else lost**0.5


def _check(steps: int, lr: float) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError("refine", f"{steps!r} steps make no sense", "give a number such as 200")
    if not lr > 0:
        raise InputError("lr", f"{lr!r} is not above 0", "give 1e-3")
