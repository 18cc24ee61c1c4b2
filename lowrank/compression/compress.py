"""The whole of it in one call: measure, plan, replace, compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lowrank.compression.apply import apply
from lowrank.compression.curves import Progress, measure
from lowrank.compression.example import Example
from lowrank.compression.plan import Choice
from lowrank.compression.report import Report


def compress(
    model: nn.Module,
    example: Example,
    *,
    params: float | None = None,
    bytes: float | None = None,
    macs: float | None = None,
    data: object = None,
    methods: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    only: Sequence[str] | None = None,
    overrides: Mapping[str, Choice] | None = None,
    round_to: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[nn.Module, Report]:
    """A smaller copy of a trained network: factorized layers in place of dense ones.

    Every layer gets the method and rank, or stays dense, so that the summed relative
    squared error of the weights is least within the budget.

    Args:
        model: the trained network; left as it is.
        example: inputs of one forward pass: a tensor, a tuple or a dict of inputs.
        params: parameters to keep: a fraction in (0, 1] of the whole model, or a whole number.
        bytes: bytes of parameters to keep, likewise.
        macs: multiply-accumulates on the example to keep, likewise.
        data: batches (a loader, a list, or one tensor of inputs) on which the outputs of
            both models are compared; without it they are compared on the example.
        methods: names from `lowrank.compression.methods.METHODS` that may be used; all by default.
        skip: layers to leave dense: names or patterns such as "layer1.*".
        only: the only layers to consider.
        overrides: layer name -> the method to use there, or `Dense(reason)`.
        round_to: ranks are multiples of this, where the layer is large enough.
        seed: seed of the randomised fits.
        progress: called as (what, done, total).

    Returns:
        The new model, made of stock `torch.nn` layers on the same device and of the same
        type, and a report that lists every layer.

    Raises:
        BudgetError: no budget, one that makes no sense, or one that cannot be reached.
        InputError: bad names, NaN or Inf, a model or an example that cannot be used.

    Example:
        >>> import torch, lowrank
        >>> net = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.ReLU())
        >>> small, report = lowrank.compress(net, torch.randn(1, 256), params=0.5)
        >>> report.kept("parameters") <= 0.5
        True
        >>> small(torch.randn(3, 256)).shape
        torch.Size([3, 256])
    """
    curves = measure(
        model,
        example,
        methods=methods,
        skip=skip,
        only=only,
        overrides=overrides,
        round_to=round_to,
        seed=seed,
        progress=progress,
    )
    plan = curves.plan(params=params, bytes=bytes, macs=macs)
    return apply(model, plan, example=example, data=data, progress=progress)
