"""Fitting layer by layer: each to the inputs that the compressed layers before it produce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.calibrate import add_call
from lowrank.compression.calibration.downstream import (
    ADDITIONS,
    Downstream,
    Uses,
    norm_scale,
    other_operand,
)
from lowrank.compression.calibration.effort import Effort
from lowrank.compression.calibration.moments import Sums, damped
from lowrank.compression.network.channels.narrowing import Kept
from lowrank.compression.network.example import Example
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.prefix_cache import MEMORY, PrefixCache, Reached
from lowrank.decompositions.metric import Metric, Weight

_LEAST_SCALE = 0.05
"""Channels that a batch norm scales by less than this share of the largest are not corrected."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What a layer should become.

    Args:
        weight: the canonical weight that comes closest to the target, before factorization.
        metric: in which its factorization should be close.
        mean_in: mean of the inputs (groups, d).
        mean_out: mean of the targets (groups, o), as seen without the bias.
        centred: the mean is taken by a bias or a batch norm.
    """

    weight: Tensor
    metric: Metric
    mean_in: Tensor
    mean_out: Tensor
    centred: bool


class Prefix:
    """The dense and the compressed model side by side, run up to one layer after another.

    Args:
        dense: the original.
        small: the model that is being compressed; its layers may be replaced between calls.
        batches: calibration inputs.
        effort: what a moment and a fit may take.
        seed: of the positions drawn from large layers.
    """

    def __init__(
        self,
        dense: nn.Module,
        small: nn.Module,
        batches: Sequence[Example],
        *,
        effort: Effort,
        seed: int,
    ) -> None:
        self.dense, self.small, self.batches = dense, small, list(batches)
        self._replays = [PrefixCache(m, len(self.batches), MEMORY // 2) for m in (dense, small)]
        self._effort, self._seed = effort, seed

    def goal(
        self,
        view: LayerView,
        sink: Downstream,
        weight: Weight | None,
        *,
        centred: bool,
        first: bool = True,
        kept: Kept | None = None,
    ) -> Goal | None:
        """What the layer should do behind the compressed prefix; None if it is never reached,
        or not with as many examples, as where a router sends them elsewhere.

        The target is the dense layer's output; where it is added to another branch, plus
        what that branch has lost so far, in the units before the batch norm. Of a layer that
        went narrower, the channels that stay.

        Args:
            view: the layer in the compressed model, before it is replaced.
            sink: where its output goes.
            weight: of its outputs, or None.
            centred: its bias or batch norm takes the mean.
            first: no layer before it is yet to be replaced together with it.
            kept: of its outputs, the channels that stay; None where all do.
        """
        sums = Sums(view.spec, work=self._effort.moment)
        generator = torch.Generator().manual_seed(self._seed)
        scale = norm_scale(self.small, sink)
        given_already = self._given_already(view.name, sink, kept)
        for k, batch in enumerate(self.batches):
            wanted = self._reach(0, k, batch, view, sink, first=True)
            given = self._reach(1, k, batch, view, sink, first=first)
            if wanted is None or given is None:
                return None
            if _without_channels(wanted.input, view) != _without_channels(given.input, view):
                return None
            target = _stays(wanted.output, kept, view)
            if wanted.other is not None and given.other is not None:
                lost = _stays(wanted.other, kept, view) - given.other
                target = target + _unscaled(lost, scale, view)
            if given_already is not None:
                target = target - _per_channel(given_already, view)
            add_call(sums, view, given.input, target, len(self.batches), generator, target)
        if not sums.n:
            return None
        found = _goal(view, sums, weight, centred)
        return replace(found, metric=replace(found.metric, work=self._effort.fit))

    def _given_already(self, name: str, sink: Downstream, kept: Kept | None) -> Tensor | None:
        """(out,), what the compressed layer adds to its outputs, or its norm, which is the dense
        one but for means, takes from them: a bias and shifts of means."""
        bias = getattr(self.small.get_submodule(name), "bias", None)
        if bias is not None:
            return bias.detach()
        if sink.norm is None:
            return None
        dense, small = (m.get_buffer(f"{sink.norm}.running_mean") for m in (self.dense, self.small))
        places = slice(None) if kept is None else list(kept.places)
        shift = dense[places] - small
        return shift if bool(shift.any()) else None

    def _reach(
        self, which: int, k: int, batch: Example, view: LayerView, sink: Downstream, *, first: bool
    ) -> _Reach | None:
        model = (self.dense, self.small)[which]
        module = model.get_submodule(view.name)
        norm = None if sink.norm is None else model.get_submodule(sink.norm)
        replay, changing = self._replays[which], module if which else None
        mark = partial(replay.mark, changing) if first else lambda: None
        reach = _Reach(module, norm, sink.added, mark)
        with reach:
            ended = replay.run(k, batch)
        return reach if ended else None


class _Reach:
    """Notes a layer's input and output and, at the sum, the other branch; then ends the pass."""

    def __init__(
        self,
        module: nn.Module,
        norm: nn.Module | None,
        added: bool,
        mark: Callable[[], None],
    ) -> None:
        self.module, self.norm, self.added, self.mark = module, norm, added, mark
        self.input: Any = None
        self.output: Any = None
        self.other: Tensor | None = None

    def __enter__(self) -> None:
        self._mode = _AtSum(self)
        self._handles = [self.module.register_forward_hook(self._see, with_kwargs=True)]
        if self.norm is not None:
            self._handles.append(self.norm.register_forward_hook(self._normed))
        if self.added:
            self._mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.added:
            self._mode.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()

    def _see(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        self.input, self.output = next(iter([*args, *kwargs.values()])), output
        self.mark()
        if not self.added:
            raise Reached
        self._mode.follow("", output, 0)

    def _normed(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._mode.follow("", output, 1)


class _AtSum(Uses):
    def __init__(self, reach: _Reach) -> None:
        super().__init__()
        self._reach = reach
        self._stage = 0 if reach.norm is None else 1

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func in ADDITIONS and self._owners:
            for tensor in args[:2]:
                owner = self.owner(tensor) if isinstance(tensor, Tensor) else None
                if owner is not None and owner[1] == self._stage:
                    self._reach.other = other_operand(args, kwargs or {}, tensor)
                    raise Reached
        return super().__torch_function__(func, types, args, kwargs)


def _unscaled(difference: Tensor, scale: Tensor | None, view: LayerView) -> Tensor:
    """A difference behind the batch norm in the units before it."""
    if scale is None:
        return difference
    small = scale.abs() <= _LEAST_SCALE * scale.abs().max()
    inverse = torch.where(small, 0.0, 1 / torch.where(small, 1.0, scale))
    return difference * _per_channel(inverse.to(difference.dtype), view)


def _channels(view: LayerView) -> int:
    """The axis of the channels, from the last."""
    return -1 - len(view.spec.kernel)


def _stays(x: Tensor, kept: Kept | None, view: LayerView) -> Tensor:
    """What stays of outputs."""
    if kept is None:
        return x
    return x.index_select(_channels(view), torch.tensor(kept.places, device=x.device))


def _without_channels(x: Tensor, view: LayerView) -> list[int]:
    """The shape of inputs but for how many channels they have."""
    sizes = list(x.shape)
    sizes.pop(_channels(view))
    return sizes


def _per_channel(values: Tensor, view: LayerView) -> Tensor:
    """(out,) so that it broadcasts with the layer's output."""
    return values.reshape(-1, *(1,) * len(view.spec.kernel))


def _goal(view: LayerView, sums: Sums, felt: Weight | None, centred: bool) -> Goal:
    """The regression of the targets on the inputs, drawn towards the weight as it is."""
    moments = sums.moments()
    weight = view.weight()
    W = weight.flatten(2).to(sums.dtype)
    if moments.rows is not None:
        missed = sums.missed(W)
        missed = missed if centred else missed.uncentred(W, moments.mean)
        best = missed.solution(W, moments.share).reshape(weight.shape)
        metric = moments.metric(centred=centred).weighed(felt)
        return Goal(best, metric, moments.mean, missed.mean, centred)
    found, C = sums.regression(centred=centred), moments.C
    if not centred:
        C = C + moments.mean[:, :, None] * moments.mean[:, None, :]
    best = found.solution(W, C, moments.share.to(C)).reshape(weight.shape)
    metric = Metric(damped(C, moments.share)).weighed(felt)
    return Goal(best, metric, moments.mean, found.mean, centred)
