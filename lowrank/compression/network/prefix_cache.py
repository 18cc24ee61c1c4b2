"""Run a model again and again up to ever later layers, without computing the start anew."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from lowrank.compression.network.example import Example, batch_size, call, count, evaluating
from lowrank.compression.network.tensors import tensors

Key = tuple[nn.Module, int]
"""A module, and which of its calls in a pass."""


class Reached(BaseException):
    """Ends a pass early; not an `Exception`, which a model's forward might catch."""


class PrefixCache:
    """A model whose finished parts are not run again.

    A pass over a batch is ended by raising `Reached`. Whatever module had finished when
    `mark` was called is remembered with its output, the outermost ones only, and gives that
    output at once in the next pass. So nothing that had finished by then may change later. A
    pass without a mark leaves what is remembered as it is.

    What follows a module may work on its output in place, so it is given copies, until a copy
    came back unchanged: torch counts changes. What changes nevertheless is forgotten.

    Args:
        model: the network.
        n_batches: how many batches there are.
        limit: bytes of outputs that may be kept; beyond it, batches are run in full.
    """

    def __init__(self, model: nn.Module, n_batches: int, limit: int) -> None:
        self.model, self.limit = model, limit
        self._known: list[dict[Key, _Held]] = [{} for _ in range(n_batches)]
        self._bytes = [0] * n_batches
        self._finished: list[tuple[Key, _Held]] = []
        self._marked: list[tuple[Key, _Held]] | None = None
        self._left_alone: set[Key] = set()

    def run(self, k: int, batch: Example) -> bool:
        """Run batch k; True if a `Reached` ended the pass, False if the model came to its end."""
        self._finished, self._marked = [], None
        known = self._known[k]
        replay = _Replay(known, self._left_alone, self._finished)
        with evaluating(self.model), _wrapped(self.model, replay, batch):
            try:
                call(self.model, batch, counted=False)
                return False
            except Reached:
                if self._marked is not None:
                    self._remember(k, self._marked)
                return True
            finally:
                self._learn(k, replay)

    def mark(self, changing: nn.Module | None = None) -> None:
        """What has finished by now will stay as it is, but for a module that is going to change."""
        self._marked = [(key, held) for key, held in self._finished if key[0] is not changing]

    def _remember(self, k: int, finished: list[tuple[Key, _Held]]) -> None:
        held = [tensors(out.value) for _, out in finished]
        size = sum(t.numel() * t.element_size() for some in held for t in some)
        others = sum(self._bytes) - self._bytes[k]
        if others + size <= self.limit:
            self._known[k], self._bytes[k] = dict(finished), size

    def _learn(self, k: int, replay: _Replay) -> None:
        """What was left as it is need not be copied again, and what was not is forgotten."""
        changed = {key for key, held in self._known[k].items() if held.changed}
        for key in changed:
            del self._known[k][key]
        changed |= {key for key, held in replay.copies if held.changed}
        self._left_alone |= {key for key, _ in replay.copies}
        self._left_alone -= changed

    def output(self, model: nn.Module, k: int, batch: Example) -> Any:
        """The output on batch k of a model that agrees with this one in all that is remembered.

        Args:
            model: its modules that had finished at the last mark have the same names and weights.
            k: number of the batch.
            batch: its inputs.
        """
        names = {module: name for name, module in self.model.named_modules()}
        others = dict(model.named_modules())
        known = {(others[names[m]], n): out for (m, n), out in self._known[k].items()}
        left_alone = {(others[names[m]], n) for m, n in self._left_alone}
        with evaluating(model), _wrapped(model, _Replay(known, left_alone), batch):
            try:
                return call(model, batch, counted=False)
            finally:
                self._learn(k, _Replay({}, set()))


class _Held:
    """A module's output, as it is or as a copy.

    Args:
        output: the module's.
        copy: whether what follows may work on it in place.
    """

    def __init__(self, output: Any, *, copy: bool) -> None:
        counted = isinstance(output, torch.Tensor) and not output.is_inference()
        self.value = copied(output) if copy or not counted else output.detach()
        self.counted = counted and not self.value.is_inference()  # a copy may be made there
        self._version = self.value._version if self.counted else 0

    @property
    def changed(self) -> bool:
        """Whether something worked on it in place, as far as that is counted."""
        return self.counted and self.value._version != self._version


class _Replay:
    """What answers in a pass.

    Args:
        known: outputs that are remembered.
        left_alone: modules on whose outputs nothing works in place.
        finished: where to note what finishes; None if nowhere.
    """

    def __init__(
        self,
        known: Mapping[Key, _Held],
        left_alone: Collection[Key],
        finished: list[tuple[Key, _Held]] | None = None,
    ) -> None:
        self.known, self.left_alone, self.finished = known, left_alone, finished
        self.copies: list[tuple[Key, _Held]] = []

    def answer(self, key: Key) -> Any:
        """The output that is remembered."""
        held = self.known[key]
        if self.finished is not None:
            self.finished.append((key, held))
        if held.counted and key in self.left_alone:
            return held.value
        given = _Held(held.value, copy=True)
        if given.counted:
            self.copies.append((key, given))
        return given.value

    def run(self, key: Key, forward: Callable[[], Any]) -> Any:
        """The output of a module that has to run."""
        if self.finished is None:
            return forward()
        mark = len(self.finished)
        output = forward()
        del self.finished[mark:]
        self.finished.append((key, _Held(output, copy=key not in self.left_alone)))
        return output


@contextmanager
def _wrapped(model: nn.Module, replay: _Replay, batch: Example) -> Iterator[None]:
    """Every module answers from memory, or is noted when it has finished.

    The pass over the batch counts by the share of the layers that it runs.
    """
    layers = {m for m in model.modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))}
    ran: set[nn.Module] = set()
    calls: dict[nn.Module, int] = {}
    own: list[tuple[nn.Module, Any]] = []

    def wrap(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **kwargs: Any) -> Any:
            key = (module, calls.get(module, 0))
            calls[module] = key[1] + 1
            if key in replay.known:
                return replay.answer(key)
            ran.add(module)
            return replay.run(key, partial(forward, *args, **kwargs))

        return answer

    try:
        for module in list(model.modules())[1:]:
            if getattr(type(module), "forward", None) is not nn.Module.forward:
                own.append((module, module.__dict__.get("forward")))
                module.__dict__["forward"] = wrap(module, module.forward)
        yield
    finally:
        count(batch_size(batch) * len(ran & layers) / max(1, len(layers)))
        for module, before in own:
            if before is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = before


class NotAgain(BaseException):
    """A call that cannot be made a second time, as what it was given cannot be copied; not an
    `Exception`, which would be taken for the model's own."""


def copied(output: Any) -> Any:
    """The same, with every tensor inside copied and cut off from gradients, and every object
    that may change, such as the cache of a language model's keys, if that can be."""

    def copy_of(value: Any) -> Any:
        try:
            return _copy(value, {})
        except NotAgain:
            return value

    return tree_map(copy_of, output)


def afresh(inputs: Any) -> Any:
    """A call's inputs, to be used up: what a module may change in place is copied.

    Raises:
        NotAgain: an object cannot be copied.
    """
    known: dict[int, Any] = {}  # one object in two places stays one
    return tree_map(lambda value: _copy(value, known), inputs)


def _copy(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if callable(value):
        return value
    try:
        with torch.no_grad():
            return copy.deepcopy(value, known)
    except Exception as error:
        kind = type(value).__name__
        raise NotAgain(f"it is called with a {kind}, which cannot be copied") from error


MEMORY = 1 << 30
"""Bytes of intermediate outputs kept between passes, for both models together: 1 GB."""
