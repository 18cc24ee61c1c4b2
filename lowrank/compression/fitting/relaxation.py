"""Training that moves what is discrete too: which brick a filter takes, signs, places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from lowrank.compression.network.example import unwrapped
from lowrank.compression.structure.history import records
from lowrank.errors import InputError


@contextmanager
def relaxed(model: nn.Module) -> Iterator[list[nn.Module]]:
    """While the context lasts, what the layers of a model hold that is discrete can be trained.

    Each method says how (`Method.relaxed`).

    Args:
        model: what `compress` or `apply` returned; afterwards its modules are as before,
            with what was chosen last.

    Raises:
        InputError: no layer holds anything discrete.
    """
    contexts = []
    for at, applied in records(model):
        for name, method in applied.plan.replaced.items():
            chain = unwrapped(model).get_submodule(at).get_submodule(name)
            assert isinstance(chain, nn.Sequential)
            if (context := method.relaxed(chain)) is not None:
                contexts.append(context)
    if not contexts:
        raise InputError("relax", "no layer of the model holds anything discrete", "drop it")
    with ExitStack() as stack:
        yield [stack.enter_context(context) for context in contexts]
