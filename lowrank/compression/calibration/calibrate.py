"""One pass over data: what every layer's inputs are like, and how much its output counts."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.compression.calibration.effort import EFFORTS
from lowrank.compression.calibration.gradients import Gradients, Squares, of_words
from lowrank.compression.calibration.moments import (
    Last,
    Moments,
    Sums,
    faint,
    rows_of_a_draw,
)
from lowrank.compression.calibration.patches import batched, chunks, n_positions, outputs, patches
from lowrank.compression.calibration.words.tables import of_table
from lowrank.compression.gauges.quality import (
    Loss,
    is_distribution,
    is_scores,
    logits,
    vocabularies,
)
from lowrank.compression.network.example import (
    Example,
    batch_size,
    call,
    count,
    evaluating,
    first_line,
)
from lowrank.compression.network.hooks import Seen, watching
from lowrank.compression.network.layers import LayerView
from lowrank.compression.network.tensors import describe, flatten, tensors
from lowrank.compression.network.words.counts import Sources
from lowrank.errors import InputError
from lowrank.linalg import is_finite, wide
from lowrank.progress import Progress

_UNSURE = 0.25
"""Share of a moment left to chance from which more examples are advised."""


class NoGradients(InputError):
    """The model takes the data, and its output cannot be differentiated."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What one pass over the data found.

    Args:
        layers: layer -> moments of its inputs, and of its output's gradients if asked for.
        never_ran: layers that no batch ran.
        n_examples: examples seen.
        seconds: time it took.
        bytes: memory of all moments.
        spanned: layers of which positions are held, fewer than inputs.
        ungraded: layers that no gradient reached though it was asked for, or none of use:
            their outputs are taken as they are.
        why: that is so for the whole model; None where it is not.
        outputs: the model's floating-point outputs, (n_examples, ...) each, to compare others
            with; none where they are not one for each example, or take more than `OUTPUTS` bytes.
    """

    layers: dict[str, Moments]
    never_ran: tuple[str, ...]
    n_examples: int
    seconds: float
    bytes: int
    spanned: tuple[str, ...] = ()
    ungraded: tuple[str, ...] = ()
    why: str | None = None
    outputs: tuple[Tensor, ...] = ()

    def outputs_on(self, rows: Sequence[slice]) -> list[tuple[Tensor, ...]] | None:
        """What the model gives on these of the examples, or None where that was not kept."""
        return [tuple(y[r] for y in self.outputs) for r in rows] if self.outputs else None

    @property
    def uncertain(self) -> dict[str, float]:
        """Layers whose moment is to a quarter or more left to chance -> that share, largest first.

        Where it is near 1 there were too few examples, and fits keep to the weights.
        """
        shares = {name: float(m.share.max()) for name, m in self.layers.items()}
        unsure = {name: s for name, s in shares.items() if s >= _UNSURE}
        return dict(sorted(unsure.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        text = (
            f"calibrated {len(self.layers)} layers on {self.n_examples} examples in "
            f"{self.seconds:.1f} s; moments take {self.bytes / 1e6:.1f} MB"
        )
        if self.spanned:
            text += f"; by their positions: {', '.join(self.spanned)}"
        if unsure := self.uncertain:
            first = ", ".join(f"{name} {share:.0%}" for name, share in list(unsure.items())[:3])
            others = f" and {len(unsure) - 3} others" if len(unsure) > 3 else ""
            text += f"; more examples would help: noise in what is known of {first}{others}"
        if self.never_ran:
            text += f"; never ran: {', '.join(self.never_ran)}"
        return text + self._about_gradients()

    def _about_gradients(self) -> str:
        if self.why is not None:
            return f'; outputs are taken as they are, as by weighting="outputs": {self.why}'
        if self.ungraded:
            names = ", ".join(self.ungraded)
            return f"; outputs are taken as they are where no gradient of use arrives: {names}"
        return ""


@torch.inference_mode(False)
def calibrate(
    model: nn.Module,
    views: Sequence[LayerView],
    batches: Sequence[Example],
    *,
    gradients: bool = False,
    words: bool = False,
    loss: Loss | None = None,
    work: float = EFFORTS["default"].moment,
    seed: int = 0,
    further: Sequence[Tensor | None] = (),
    tables: Sequence[Sequence[LayerView]] = (),
    progress: Progress | None = None,
) -> Calibrated:
    """Second moments of the inputs of every layer, in one pass.

    Args:
        model: the network, run in evaluation mode; left as it is.
        views: its layers, from `scan`.
        batches: inputs, from `calibration_batches`.
        gradients: also the moments of the gradients at the layers' outputs.
        words: these are of places in a text; see `of_words`.
        loss: what is differentiated; by default the log-likelihood of a label drawn from
            the model's own softmax (so that no labels are needed and the moment is the
            Fisher information), or a random projection where the output is no score vector.
        work: multiplications that one layer's moment may take; it decides on the positions.
        seed: of the positions that are drawn from large layers, and of those labels.
        further: for each tensor of a batch, how often each word comes in texts that are not run;
            see `Examples`.
        tables: for each table of words that several layers read, these. The first is among the
            views, and gets the moments of all; see `of_table`.
        progress: called as (what, batches done, batches in all).

    Raises:
        InputError: no batch, or one that the model refuses; values whose squares overflow
            or underflow.
        NoGradients: they were asked for, and the model cannot be differentiated.
    """
    started = time.perf_counter()
    last = Last()
    first, views = views, [*views, *(v for readers in tables for v in readers[1:])]
    heads = {v.name for readers in tables for v in readers[1:] if v.spec.kind != "embedding"}
    sums = {v.name: Sums(v.spec, work=work, last=last) for v in views}
    positions = torch.Generator().manual_seed(seed)
    labels = torch.Generator().manual_seed(seed)
    felt: dict[str, Gradients | Squares] = {
        v.name: Squares() if v.name in heads else Gradients(v.spec, len(batches), work)
        for v in views
    }
    given, sources = _Outputs(), Sources()
    n = sum(batch_size(b) for b in batches)
    _check_not_faint(batches)

    def see(view: LayerView, x: Tensor, y: Tensor) -> None:
        if further and view.spec.kind == "embedding":
            sources.see(view.name, x, running[0])
        add_call(sums[view.name], view, x, y, len(batches), positions)

    running: list[Example] = []
    for done, batch in enumerate(batches):
        running[:] = [batch]
        if progress is not None:
            progress("calibrating", done, len(batches))
        if gradients:
            given.add(_backward(model, views, batch, see, felt, loss, labels, words), batch)
        else:
            with evaluating(model), watching(views, see):
                given.add(call(model, batch, name="data"), batch)
    layers = {name: s.moments() for name, s in sums.items() if s.n}
    for name, m in layers.items():
        if not is_finite(m.C):
            problem = f"squares of what {name or 'the model'} is given overflow"
            raise InputError("data", problem, "scale the inputs down, or mend the layers before")
    layers = {name: felt[name].beside(m, n) for name, m in layers.items()}
    for view in views:
        if view.name in layers and (counts := sources.counts(view.name, further)) is not None:
            layers[view.name] = layers[view.name].beside_words(counts, view.spec.padding_idx)
    layers = _of_tables(tables, layers, [v.name for v in first])
    if gradients and layers and not any(m.felt_at_all for m in layers.values()):
        raise _no_gradients("none of use arrives at any layer")
    return Calibrated(
        layers,
        tuple(v.name for v in first if v.name not in layers),
        n,
        time.perf_counter() - started,
        sum(m.bytes for m in layers.values()),
        tuple(name for name, m in layers.items() if m.rows is not None),
        tuple(k for k, m in layers.items() if not m.differentiated) if gradients else (),
        outputs=given.whole(),
    )


def _of_tables(
    tables: Sequence[Sequence[LayerView]], layers: Mapping[str, Moments], names: Sequence[str]
) -> dict[str, Moments]:
    """The moments of the layers of these names, of tables those for all that read them."""
    found = {readers[0].name: of_table(readers, layers) for readers in tables}
    made = {**layers, **{name: m for name, m in found.items() if m is not None}}
    return {name: made[name] for name in names if name in made}


OUTPUTS = 1 << 26
"""Bytes of the model's outputs that are kept; more of them are computed again."""


def kept_outputs(output: Any, n: int, examples: int) -> bool:
    """Whether outputs are kept of a model that gives this on n of so many examples."""
    found = flatten(output)
    size = sum(y.numel() * y.element_size() for y in found) * examples / n
    return bool(found) and size <= OUTPUTS and all(y.ndim and len(y) == n for y in found)


def outputs_of(given: Iterable[Any], batches: Iterable[Example]) -> tuple[Tensor, ...]:
    """What a model gives on batches, an output's examples one after another; none where these are
    not kept, or of several shapes."""
    kept = _Outputs()
    for output, batch in zip(given, batches, strict=True):
        kept.add(output, batch)
    return kept.whole()


class _Outputs:
    """The model's outputs, batch after batch, as long as there is one for each example."""

    def __init__(self) -> None:
        self.parts: list[list[Tensor]] = []
        self.n = 0
        self.lost = False

    def add(self, output: Any, batch: Example) -> None:
        n = batch_size(batch)
        self.n += n
        self.lost = self.lost or not kept_outputs(output, n, self.n)
        parts = [] if self.lost else [y.detach().clone() for y in flatten(output)]
        self.parts = [] if self.lost else [*self.parts, parts]

    def whole(self) -> tuple[Tensor, ...]:
        """All of them, if they are of one shape."""
        shapes = {tuple((y.shape[1:], y.dtype, y.device) for y in part) for part in self.parts}
        return tuple(map(torch.cat, zip(*self.parts, strict=True))) if len(shapes) == 1 else ()


def _check_not_faint(batches: Sequence[Example]) -> None:
    """Refuse inputs that are not zero, but so small that every layer's moment would be."""
    every = [wide(t) for b in batches for t in tensors(b) if t.is_floating_point() and t.numel()]
    largest = max((float(t.abs().max()) for t in every), default=0.0)
    if largest > 0 and all(largest <= faint(t.dtype) for t in every):
        problem = f"values up to {largest:.1e}, whose squares underflow"
        raise InputError("data", problem, "scale the inputs up, or calibrate in float64")


def add_call(
    sums: Sums,
    view: LayerView,
    x: Tensor,
    y: Tensor,
    n_batches: int,
    generator: torch.Generator,
    target: Tensor | None = None,
) -> None:
    """Add one call of a layer to its sums, in chunks, at positions drawn where there are many.

    A call with nothing in it, as an expert gets that no word is sent to, is none.
    """
    if not x.numel():
        return
    if view.spec.kind == "embedding":
        sums.count(x)
        return
    n = n_positions(view.spec, y)
    sums.seen += n
    calls = n_batches * max(1, len(view.calls))
    share = -(-sums.look(n * calls).positions // calls)
    positions = _drawn(n, share, generator)
    examples = len(batched(view.spec, x)) if view.spec.kernel else len(x)
    rows = rows_of_a_draw(len(positions), examples)
    for part in chunks(view.spec, positions):
        take = None if len(part) == n else part.to(x.device)  # all of them need no gathering
        goal = None if target is None else outputs(view.spec, target, take)
        sums.add(patches(view.spec, x, take), goal, rows=rows)


def _drawn(n: int, share: int, generator: torch.Generator) -> Tensor:
    if n <= share:
        return torch.arange(n)
    return torch.randint(n, (share,), generator=generator).sort().values


def _backward(
    model: nn.Module,
    views: Sequence[LayerView],
    batch: Example,
    see: Seen,
    felt: Mapping[str, Gradients | Squares],
    loss: Loss | None,
    generator: torch.Generator,
    words: bool,
) -> Any:
    """One batch forward and back: `see` what comes in, and sum the gradients' products.

    Gives the model's output.
    """

    def both(view: LayerView, x: Tensor, y: Tensor) -> Tensor:
        see(view, x.detach(), y.detach())
        if not y.numel():
            return y
        leaf = y if y.requires_grad else y.requires_grad_()

        def add(g: Tensor) -> None:
            sums = felt[view.name]
            whole = not words or isinstance(sums, Squares)
            sums.add(outputs(view.spec, g if whole else of_words(g)))

        leaf.register_hook(add)
        return leaf.clone()  # what follows may work in place

    with evaluating(model), _no_parameter_gradients(model), watching(views, both):
        with torch.enable_grad():
            try:
                output = call(model, batch, name="data")
            except InputError as error:
                with torch.no_grad():
                    call(model, batch, name="data")  # refused for itself, if this is, too
                raise _no_gradients(first_line(error.__cause__ or error)) from error
            total = loss(output) if loss else drawn_loss(output, generator, vocabularies(model))
        _check_loss(total, output)
        count(2 * batch_size(batch))
        try:
            total.backward()
        except Exception as error:  # of torch, and of functions with a backward of their own
            raise _no_gradients(first_line(error)) from error
    return output


def _no_gradients(why: str) -> NoGradients:
    return NoGradients("model", f"no gradients can be had: {why}", 'pass weighting="outputs"')


def _check_loss(total: Any, output: Any) -> None:
    if not isinstance(total, Tensor) or total.numel() != 1:
        raise InputError("loss", f"it returned {describe(total)}", "return a tensor of one number")
    if not total.requires_grad and any(y.requires_grad for y in flatten(output)):
        problem = "it does not depend on any layer, as far as gradients show"
        raise InputError("loss", problem, 'mend it, or pass weighting="outputs"')
    if not total.requires_grad:
        raise _no_gradients("the output does not depend on any layer, as far as they show")
    if not bool(total.isfinite()):
        raise InputError("loss", f"on the data it gives {total.item()}", "look for what overflows")


@contextmanager
def _no_parameter_gradients(model: nn.Module) -> Iterator[None]:
    wanted = [(p, p.requires_grad) for p in model.parameters() if not p.is_inference()]
    try:
        for p, _ in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p, flag in wanted:
            p.requires_grad_(flag)


def drawn_loss(output: Any, generator: torch.Generator, words: Collection[int] = ()) -> Tensor:
    """A loss whose gradients' second moment is the Fisher information of the output.

    For score vectors (see `is_scores`) the negative log-likelihood of a label drawn from their
    softmax; for anything else a standard normal projection, whose moment is that of half
    the squared error. Outputs that depend on no layer are left out. Those behind score
    vectors are projected at the scale at which an example's mean square is one.
    """
    found = flatten(output)
    if not found:
        raise _no_gradients("the model returns no floating-point tensor")
    if not any(y.numel() for y in found):  # a detector that finds nothing
        return sum((y.sum() for y in found), torch.zeros(()))
    found = [y for y in found if y.numel()]
    first, *others = [y for y in found if y.requires_grad] or found[:1]
    if not all(map(is_finite, (first, *others))):
        raise InputError("model", "its output on the data holds NaN or Inf", "check both")
    if not is_scores(first, words, others):
        return sum((_projected(y, generator) for y in others), _projected(first, generator))
    logs = logits(first, is_distribution(first)).flatten(0, -2).log_softmax(-1)
    drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator)
    total = -logs.gather(-1, drawn.to(logs.device)).sum()
    for y in others:
        size = y.detach().float().square().sum() / max(1, len(first))
        total = total + _projected(y, generator) / size.sqrt().clamp_min(1e-12)
    return total


def _projected(output: Tensor, generator: torch.Generator) -> Tensor:
    """The product with standard normal numbers, summed."""
    noise = torch.randn(output.shape, generator=generator, dtype=torch.float32)
    return (output.float() * noise.to(output.device)).sum()
