"""What generating text costs: reading a prompt, and then one token after another."""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lowrank.compression.gauges.counting import CountMode
from lowrank.compression.gauges.timing import Stopwatch, _check_runs
from lowrank.compression.network.bits.quantized import QuantizedTable
from lowrank.compression.network.example import evaluating, separate_attention, unwrapped
from lowrank.compression.network.own_stages import StoresBuffers
from lowrank.compression.network.tensors import distinct, memory_of
from lowrank.errors import InputError
from lowrank.tables import amount, as_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Phase:
    """What one token costs in one phase.

    Attributes:
        tokens: in one pass of the model.
        macs: multiply-accumulates for each token.
        bytes: of weights and cache read for each token: what a pass reads once, by its tokens.
        seconds: median time of a pass.
    """

    tokens: int
    macs: float
    bytes: float
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """How fast it is."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class GenerationProfile:
    """What generating costs, for one text. Prints as a table.

    Attributes:
        prefill: reading the prompt, all of its tokens in one pass, with the scores of the next.
        decode: one token after another behind it.
        cache_bytes: of keys and values, behind the prompt.
        cache_bytes_per_token: by which the cache grows with the prompt, on average.
        threads: CPU threads that one operation may use.
        clock: what the times were read from.

    Example:
        >>> fast, slow = Phase(16, 1e6, 1e5, 0.5), Phase(1, 1e6, 1.6e6, 0.125)
        >>> cost = GenerationProfile(fast, slow, 8192, 512.0, 1, "wall clock")
        >>> cost.prefill.tokens_per_second, cost.decode.tokens_per_second
        (32.0, 8.0)
    """

    prefill: Phase
    decode: Phase
    cache_bytes: int
    cache_bytes_per_token: float
    threads: int
    clock: str

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        rates = {
            name: {**asdict(phase), "tokens_per_second": phase.tokens_per_second}
            for name, phase in (("prefill", self.prefill), ("decode", self.decode))
        }
        return {**asdict(self), **rates}

    def __str__(self) -> str:
        return as_text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        table = Table("phase", box=None, pad_edge=False)
        for name in ("tokens a pass", "tokens/s", "MACs a token", "bytes read a token"):
            table.add_column(name, justify="right")
        for name, phase in (("prefill", self.prefill), ("decode", self.decode)):
            table.add_row(
                name, str(phase.tokens), f"{phase.tokens_per_second:.1f}",
                amount(round(phase.macs)), amount(round(phase.bytes), "B"),
            )  # fmt: skip
        yield table
        each, held = amount(round(self.cache_bytes_per_token), "B"), amount(self.cache_bytes, "B")
        yield f"keys and values: {each} a token, {held} behind the prompt; {self.clock}"


def profile_generation(
    model: nn.Module, prompt: Tensor, *, repeats: int = 5, steps: int = 32, warmup: int = 1
) -> GenerationProfile:
    """Measure what a causal language model costs by the token: reading a prompt, then writing.

    The prompt is read in one pass (prefill), which computes, and scores what follows; then words
    come one at a time (decode), each pass of which reads all weights for a single one. The model
    runs in evaluation mode without gradients.

    Args:
        model: a causal language model of transformers, compressed or not.
        prompt: numbers of words (n,) or (1, n), n at least 1, on the model's device.
        repeats: timed passes over the prompt, at least 1.
        steps: timed tokens behind it, at least 1.
        warmup: passes of either kind that go before, at least 0.

    Returns:
        The figures of both phases.

    Raises:
        InputError: a prompt that holds no words, or a model that keeps no keys and values.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        >>> config = LlamaConfig(vocab_size=50, num_hidden_layers=2, **sizes)
        >>> cost = profile_generation(LlamaForCausalLM(config), torch.arange(16))
        >>> cost.cache_bytes_per_token  # two layers, keys and values of 32 numbers in float32
        512.0
        >>> round(cost.prefill.bytes) < cost.decode.bytes
        True
    """
    _check_runs(repeats, warmup)
    _check_runs(steps, warmup)
    model = unwrapped(model)
    writer = Writer(model, _one_row(prompt))
    with evaluating(model):
        read, reading = _counted(model, writer.read)
        cache = writer.cache_bytes
        write, writing = _counted(model, writer.write)
        before = [_timed(writer, writer.read) for _ in range(warmup + repeats)]
        behind = [_timed(writer, writer.write) for _ in range(warmup + steps)]
    n = writer.prompt.shape[1]
    fast, slow = (statistics.median(some[warmup:]) for some in (before, behind))
    watch = writer.watch
    return GenerationProfile(
        Phase(n, read / n, (reading + cache) / n, fast),
        Phase(1, float(write), float(writing + cache), slow),
        cache,
        cache / n,
        watch.threads,
        watch.clock,
    )


class Writer:
    """A model that reads a prompt and writes on, a pass at a time.

    Args:
        model: a causal language model.
        prompt: numbers of words (1, n).
    """

    def __init__(self, model: nn.Module, prompt: Tensor) -> None:
        self.model, self.prompt = model, prompt
        self.watch = Stopwatch.here(model, prompt)
        self.cache: Any = None
        self.word = prompt[:, :1]

    def read(self) -> None:
        """Read the prompt into a new cache; as `generate` does, score what follows it alone."""
        self._pass(self.prompt, {"logits_to_keep": 1} if "logits_to_keep" in self._takes else {})

    def write(self) -> None:
        """Take the likeliest word, and read it."""
        name = "cache" if "cache" in self._takes else "past_key_values"  # of older releases
        self._pass(self.word, {name: self.cache})

    @property
    def _takes(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.model.forward).parameters

    def _pass(self, words: Tensor, more: dict[str, Any]) -> None:
        with torch.no_grad():
            try:
                found = self.model(input_ids=words, use_cache=True, **more)
                scores = found.logits
                self.cache = found.cache if "cache" in self._takes else found.past_key_values
            except (AttributeError, TypeError) as error:
                problem = f"{type(self.model).__name__} keeps no keys and values ({error})"
                advice = "pass a causal language model of transformers"
                raise InputError("model", problem, advice) from error
        if self.cache is None:
            problem = f"{type(self.model).__name__} keeps no keys and values"
            raise InputError("model", problem, "pass a causal language model of transformers")
        self.word = scores[:, -1:].argmax(-1)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values that are held now."""
        held = [t for layer in self.cache.layers for t in vars(layer).values()]
        found = distinct(t for t in held if isinstance(t, Tensor) and t.is_floating_point())
        return sum(t.numel() * t.element_size() for t in found)


def _one_row(prompt: object) -> Tensor:
    words = isinstance(prompt, Tensor) and not prompt.is_floating_point() and prompt.numel()
    if not isinstance(prompt, Tensor) or not words or prompt.shape[-1] != prompt.numel():
        advice = "give numbers of words, of shape (n,) or (1, n)"
        raise InputError("prompt", f"{_told(prompt)} is no row of words", advice)
    return prompt.reshape(1, -1)


def _told(prompt: object) -> str:
    if not isinstance(prompt, Tensor):
        return f"a {type(prompt).__name__}"
    return f"a tensor of {prompt.dtype} and shape {tuple(prompt.shape)}"


def _timed(writer: Writer, run: Callable[[], None]) -> float:
    """Seconds of one pass."""
    read = time.thread_time if writer.watch.clock == "thread CPU time" else time.perf_counter
    _settled(writer)
    began = read()
    run()
    _settled(writer)
    return read() - began


def _settled(writer: Writer) -> None:
    if writer.watch.device.type == "cuda":
        torch.cuda.synchronize(writer.watch.device)


def _counted(model: nn.Module, run: Callable[[], None]) -> tuple[int, int]:
    """Multiply-accumulates of a pass, and bytes of the weights that it reads."""
    ran: list[nn.Module] = []
    with ExitStack() as stack:
        for module in model.modules():
            hook = module.register_forward_pre_hook(lambda m, _: ran.append(m))
            stack.callback(hook.remove)
        counter = CountMode()
        with separate_attention(), counter:
            run()
    return counter.macs.total(), sum(_read(list(dict.fromkeys(ran))))


def _read(ran: list[nn.Module]) -> Iterator[int]:
    """Bytes of what each module holds, once; tables of words are looked up, not read."""
    seen = set()
    for module in ran:
        held: list[Tensor] = [*module.parameters(recurse=False)]
        held += module.stored_buffers() if isinstance(module, StoresBuffers) else ()
        for tensor in held:
            if _is_table(module) or memory_of(tensor) in seen:
                continue
            seen.add(memory_of(tensor))
            yield tensor.numel() * tensor.element_size()


def _is_table(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | QuantizedTable)
