"""What data tell of a model, for the same with fewer channels: without another pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.effort import Effort
from lowrank.compression.calibration.moments import Moments
from lowrank.compression.calibration.statistics import Statistics
from lowrank.compression.network.channels.narrowing import Kept, Narrowed
from lowrank.compression.network.layers import LayerView, spec_of
from lowrank.compression.network.stages import LayerSpec
from lowrank.store import NOWHERE


def cut_statistics(
    data: Statistics,
    small: nn.Module,
    narrowed: Mapping[str, Narrowed],
    effort: Effort | None = None,
) -> Statistics:
    """The statistics of a narrower model: those of its channels in the whole one.

    What its layers read differs a little from that, for what comes before them lost channels,
    too; fits behind the compressed prefix see it as it is.

    Args:
        data: of the whole model.
        small: the narrower one, whose layers run on the same.
        narrowed: layer -> what stays of it.
        effort: what fits may take, where that is another.
    """
    modules = dict(small.named_modules())
    units = {
        name: unit.rebound([_of_module(view, modules[view.name]) for view in unit.layers])
        for name, unit in data.units.items()
    }
    layers = {
        name: cut_moments(moments, data.views[name].spec, narrowed[name])
        if name in narrowed
        else moments
        for name, moments in data.calibrated.layers.items()
    }
    calibrated = replace(data.calibrated, layers=layers)
    effort = replace(effort or data.effort, probes=0.0)  # layers were probed in the whole model
    return replace(data, units=units, calibrated=calibrated, effort=effort, shelf=NOWHERE)


def _of_module(view: LayerView, module: nn.Module) -> LayerView:
    spec = spec_of(module)
    assert spec is not None
    return replace(view, module=module, spec=spec)


def cut_moments(moments: Moments, spec: LayerSpec, what: Narrowed) -> Moments:
    """The moments of a layer's channels that stay.

    Args:
        moments: of the whole layer.
        spec: of the whole layer.
        what: what stays of it.
    """
    if what.depthwise:
        assert what.inputs is not None
        return _of_groups(moments, what.inputs.places)
    g, columns = spec.weight_shape[0], spec.weight_shape[2]
    found = moments
    if what.inputs is not None:
        places = within(what.inputs, g)
        n_taps = moments.mean.shape[-1] // columns
        rows = torch.tensor(places)[:, None] * n_taps + torch.arange(n_taps)
        found = _of_columns(found, rows.flatten())
    if what.outputs is not None:
        found = _of_outputs(found, torch.tensor(within(what.outputs, g)))
    return found


def within(kept: Kept, groups: int) -> Sequence[int]:
    """What stays of one group: the same of each."""
    return [p for p in kept.places if p < kept.of // groups]


def _of_groups(moments: Moments, places: Sequence[int]) -> Moments:
    index = torch.tensor(places)
    kept = {
        name: value[index.to(value.device)]
        for name in ("mean", "C", "share", "rows", "G", "felt")
        if (value := getattr(moments, name)) is not None
    }
    return replace(moments, **kept)


def _of_columns(moments: Moments, index: Tensor) -> Moments:
    index = index.to(moments.mean.device)
    C, rows = moments.C[..., index], moments.rows
    return replace(
        moments,
        mean=moments.mean[..., index],
        C=C[:, index] if C.ndim == 3 else C,
        rows=None if rows is None else rows[..., index],
    )


def _of_outputs(moments: Moments, index: Tensor) -> Moments:
    G, felt = moments.G, moments.felt
    index = index.to(moments.mean.device)
    return replace(
        moments,
        G=None if G is None else G[:, index][:, :, index],
        felt=None if felt is None else felt[..., index],
    )
