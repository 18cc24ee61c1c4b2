"""The model with fewer channels: its readers make up for those that went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.downstream import Downstream
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.fitting.layerwise import take_mean
from lowrank.compression.network.channels.narrowing import Kept, Narrowed, narrow, widen
from lowrank.compression.network.channels.units import Channels
from lowrank.compression.network.example import Example, run
from lowrank.compression.network.layers import write_weight
from lowrank.compression.network.tensors import flatten
from lowrank.compression.planning.selection.path import narrowed_by
from lowrank.compression.planning.selection.readers import Reader, metric_of
from lowrank.compression.structure.history import copy_model
from lowrank.errors import LowRankError


def narrowed_model(
    model: nn.Module, narrowed: Mapping[str, Narrowed], data: Statistics | None
) -> nn.Module:
    """A copy of a model whose layers are as narrow, its readers reconstructed by least squares.

    Args:
        model: the dense network; left as it is.
        narrowed: layer -> what stays of it.
        data: moments; without them weights are cut.
    """
    with torch.inference_mode(False), torch.no_grad():
        small = copy_model(model)
        for name, what in narrowed.items():
            known = data is not None and name in data.views and data.reason(name) is None
            if what.inputs is not None and data is not None and known and not what.depthwise:
                _reconstruct(model, small, name, what.inputs, data)
        narrow(small, narrowed)
    return small


def _reconstruct(
    model: nn.Module, small: nn.Module, name: str, kept: Kept, data: Statistics
) -> None:
    view = data.views[name]
    columns = torch.arange(view.spec.weight_shape[2])
    taps = view.weight().flatten(2).shape[2] // len(columns)
    stays = torch.isin(columns, torch.tensor(kept.places)).repeat_interleave(taps)
    reader = Reader(view, stays.long(), metric_of(model, name, data), 1.0)
    made = reader.reconstructed(stays)
    write_weight(small.get_submodule(name), view.spec, made.reshape(view.weight().shape))
    if data.centred(name):
        mean = data.calibrated.layers[name].mean
        shift = ((reader.W - made).to(mean) @ mean[..., None]).flatten()
        take_mean(small, name, shift, data.sinks.get(name, Downstream()).norm)


def proven(
    model: nn.Module, example: Example, channels: Channels
) -> tuple[Channels, dict[str, str]]:
    """The units without some channels of which the model gives what it gives with zeros there.

    A function that reads its channels in a way that the marks do not show gives itself away here.

    Args:
        model: the network; left as it is.
        example: inputs of one forward pass.
        channels: as the marks tell.

    Returns:
        The channels, and why each unit is not among them that failed.
    """
    failed: dict[str, str] = {}
    waiting = [[u.name for u in channels.units]] if channels.units else []
    while waiting:
        names = waiting.pop()
        some = channels.without({u.name for u in channels.units} - set(names))
        why = _differs(model, example, some)
        if why is None:
            continue
        if len(names) == 1:
            failed[names[0]] = why
        else:
            half = len(names) // 2
            waiting += [names[:half], names[half:]]
    return channels.without(failed), failed


def _differs(model: nn.Module, example: Example, channels: Channels) -> str | None:
    """Why a model of half the channels is not the one with zeros there, or None."""
    dropped = [mark for unit in channels.units for mark in _half(unit.channels)]
    what = narrowed_by(channels, dropped)
    with torch.inference_mode(False), torch.no_grad():
        small = copy_model(model)
        try:
            narrow(small, what)
            made = flatten(run(small, example))
        except (LowRankError, RuntimeError, ValueError, TypeError) as error:
            return f"the model does not run without some of its channels ({_short(error)})"
        widen(small, what)
        expected = flatten(run(small, example))
    same = len(made) == len(expected) and all(map(_close, made, expected))
    return None if same else "its channels are read in a way that running the model does not show"


def _half(channels: Sequence[int]) -> list[int]:
    """Every other channel, all but one of two."""
    return list(channels[1::2]) if len(channels) > 1 else list(channels)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not b.numel():
        return True
    exact = not (b.is_floating_point() or b.is_complex())
    eps = 0.0 if exact else torch.finfo(b.dtype).eps
    wide = torch.promote_types(b.dtype, torch.float64)
    off, size = (t.nan_to_num().abs() for t in (a.to(wide) - b.to(wide), b.to(wide)))
    return bool((off <= 1e4 * eps * size.amax() + 1e-30).all())


def _short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0][:120] if lines else type(error).__name__
