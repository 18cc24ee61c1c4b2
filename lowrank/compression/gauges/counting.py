"""Dispatch modes that see every operation of a forward pass: what it computes, what it keeps.

Counting rule. 1 MAC = 2 FLOPs.

- Matrix products, convolutions and attention: their multiply-accumulates. They belong to the
  module that runs them, so attention, which has no weights, counts too. Padding counts as if
  it were data, and a causal mask saves nothing, as in every published figure.
- Everything else that computes on floating-point numbers is FLOPs and never MACs: one per
  element of the largest tensor that the operation reads or writes. So an activation, a bias, a
  normalisation or a softmax costs one per element of its output, and a sum or a pooling one
  per element of its input.
- Copies, views, look-ups, comparisons and integer arithmetic cost nothing.
- An operation that fits none of these counts nothing and is listed in `Profile.uncounted`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lowrank.compression.network.example import (
    Example,
    _device,
    _unchanged_rng,
    check,
    evaluating,
    separate_attention,
    spare,
    use_up,
)
from lowrank.compression.network.own_stages import weight_bytes, weight_count
from lowrank.compression.network.stages import Cost
from lowrank.compression.network.tensors import flatten, tensors

ROOT = "(model)"
"""Name for what the outermost module holds or runs itself."""


class WatchMode(TorchDispatchMode):
    """Sees every operation of a model that runs as it is written."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it is never compiled, and to keep it from that torch would load sympy


class CountMode(WatchMode):
    """Add up MACs and FLOPs of every operation under the innermost module that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = [ROOT]
        self.macs: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.uncounted: set[str] = set()

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        """Count what follows under `name`; a forward pre-hook once the name is bound."""
        self.stack.append(name)
        self.calls[name] += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Count what follows under the caller again; a forward hook."""
        name = self.stack.pop()
        shapes = [tuple(tensor.shape) for tensor in flatten(output)]
        if shapes:
            self.shapes[name] = shapes[0]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # In inference mode composite operations arrive whole, and only their parts can be counted.
        if isinstance(func, OpOverload) and func.namespace != "prim" and not _has_rule(func):
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        self._add(func, args, kwargs, out)
        return out

    def _add(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        cost = _cost(func, args, kwargs, out)
        if cost is None:
            self.uncounted.add(str(func))
            return
        macs, other = cost
        self.macs[self.stack[-1]] += macs
        self.flops[self.stack[-1]] += 2 * macs + other


def _cost(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> tuple[int, int] | None:
    """MACs and other FLOPs of one operation; None if there is no rule for it."""
    name = _name(func)
    results = tensors(out) if name in _PRODUCTS else flatten(out)  # of whole numbers too
    if not results or name in _FREE or getattr(func, "is_view", False):
        return 0, 0
    if name in _PRODUCTS:
        return _PRODUCTS[name](args, results[0])
    formula = _formula(func)
    if formula is not None:
        bias = results[0].numel() if _has_bias(name, args) else 0
        return formula(*args, **kwargs, out_val=out) // 2, bias
    if _is_arithmetic(func):
        return 0, max(tensor.numel() for tensor in (*tensors((args, kwargs)), *results))
    return None


def _name(func: Any) -> str:
    """`relu` for aten.relu.default and aten.relu_.default; empty for what is not aten's."""
    if not isinstance(func, OpOverload) or func.namespace != "aten":
        return ""
    return func.overloadpacket.__name__.removesuffix("_")


def _formula(func: Any) -> Callable[..., int] | None:
    """torch's own FLOP formula, for an in-place operation that of its plain form."""
    name = _name(func)
    plain = getattr(torch.ops.aten, name, None) if name else getattr(func, "overloadpacket", func)
    return flop_registry.get(plain)


def _is_arithmetic(func: Any) -> bool:
    return _name(func) in _ARITHMETIC or torch.Tag.pointwise in getattr(func, "tags", ())


def _has_rule(func: Any) -> bool:
    known = _name(func) in _FREE or _name(func) in _PRODUCTS
    return known or _formula(func) is not None or _is_arithmetic(func)


def _has_bias(name: str, args: tuple[Any, ...]) -> bool:
    return name in ("addmm", "baddbmm") or (name == "convolution" and args[2] is not None)


def _attention(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    query, key, value = args[:3]
    scores = prod(query.shape[:-1]) * key.shape[-2]  # one softmax input for each
    return scores * (query.shape[-1] + value.shape[-1]), scores


def _matrix_vector(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    return args[0].numel(), 0


def _add_matrix_vector(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    return args[1].numel(), out.numel()


def _add_batch_product(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    return args[1].numel() * args[2].shape[-1], out.numel()


def _matrix_product(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    return args[0].numel() * out.shape[-1], 0


def _grouped_product(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    """Rows or columns of one side are split over the groups, or both sides have them all."""
    left, right = args[:2]
    repeats = left.shape[0] if left.ndim == 3 and right.ndim == 2 else 1
    return left.numel() // repeats * right.shape[-1], 0


def _bilinear(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    terms = prod(out.shape[:-1]) * args[1].numel()
    return terms, terms  # two products for each term of the sum


_GATE_FLOPS = {0: 4, 1: 4, 2: 21, 3: 16}
"""FLOPs of one hidden unit of a ReLU, tanh, LSTM and GRU cell beside its matrix products:
what the same cell costs when its operations run one by one."""


def _onednn_rnn(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    inputs, w_input, w_hidden, mode, hidden = args[0], args[1], args[2], args[9], args[10]
    steps = prod(inputs.shape[:-1])
    return steps * (w_input.numel() + w_hidden.numel()), steps * _GATE_FLOPS[mode] * hidden


def _cudnn_rnn(args: tuple[Any, ...], out: Tensor) -> tuple[int, int]:
    inputs, weights, mode, hidden = args[0], args[1], args[6], args[7]
    matrices = [weight for weight in weights if weight.ndim == 2]
    steps, cells = prod(inputs.shape[:-1]), len(matrices) // 2
    macs = steps * sum(matrix.numel() for matrix in matrices)
    return macs, steps * cells * _GATE_FLOPS[mode] * hidden


_PRODUCTS: dict[str, Callable[[tuple[Any, ...], Tensor], tuple[int, int]]] = {
    "mv": _matrix_vector,
    "dot": _matrix_vector,
    "vdot": _matrix_vector,
    "addmv": _add_matrix_vector,
    "addbmm": _add_batch_product,
    "_int_mm": _matrix_product,
    "_weight_int8pack_mm": _matrix_product,
    "_grouped_mm": _grouped_product,
    "_trilinear": _bilinear,
    "mkldnn_rnn_layer": _onednn_rnn,
    "_cudnn_rnn": _cudnn_rnn,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
}
"""Products that torch's own registry lacks, or counts without the softmax."""


_NORMALISATION = """
    native_layer_norm native_batch_norm _native_batch_norm_legit _batch_norm_no_update
    _native_batch_norm_legit_no_training cudnn_batch_norm miopen_batch_norm native_group_norm
    _fused_rms_norm _weight_norm_interface renorm _softmax _log_softmax _safe_softmax
    _masked_softmax logsumexp
"""


_REDUCTION = """
    sum mean amax amin aminmax max min prod std var std_mean var_mean norm linalg_vector_norm
    nansum cumsum cumprod logcumsumexp trace dist avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d
    adaptive_max_pool3d max_pool2d_with_indices max_pool3d_with_indices mkldnn_max_pool2d
    _embedding_bag _embedding_bag_forward_only scatter_add scatter_reduce index_add
    index_reduce col2im
"""


_INTERPOLATION = """
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler_2d grid_sampler_3d
"""


_POINTWISE = """
    hardswish glu log_sigmoid_forward _prelu_kernel gelu elu celu mish hardtanh leaky_relu
    softplus softshrink threshold copysign floor_divide addr linalg_cross polar
    _thnn_fused_lstm_cell _thnn_fused_gru_cell mse_loss smooth_l1_loss huber_loss
"""


_ARITHMETIC = frozenset((_NORMALISATION + _REDUCTION + _INTERPOLATION + _POINTWISE).split())
"""One FLOP for each element of the largest tensor, beside what torch tags as pointwise."""


_MOVEMENT = """
    clone _to_copy copy where masked_fill lift lift_fresh lift_fresh_copy detach positive
    cat stack embedding index _unsafe_index index_select index_put _unsafe_index_put index_copy
    index_fill gather take scatter masked_select masked_scatter slice_scatter select_scatter
    diagonal_scatter as_strided_scatter diag_embed block_diag constant_pad_nd reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    roll flip rot90 repeat repeat_interleave tril triu im2col pixel_shuffle pixel_unshuffle
    channel_shuffle upsample_nearest1d upsample_nearest2d upsample_nearest3d
    _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d max_unpool2d
    max_unpool3d sort topk kthvalue median mode _unsafe_view _reshape_copy unsafe_split
    unsafe_split_with_sizes complex _pack_padded_sequence set resize as_strided squeeze
    unsqueeze transpose t histc bincount
"""


_CREATION = """
    zero fill zeros ones full empty empty_strided empty_permuted zeros_like ones_like full_like
    empty_like new_zeros new_ones new_full new_empty new_empty_strided scalar_tensor arange
    linspace logspace eye rand randn rand_like randn_like normal uniform bernoulli exponential
    native_dropout hann_window hamming_window blackman_window kaiser_window bartlett_window
"""


_FREE = frozenset((_MOVEMENT + _CREATION).split())
"""Copies, look-ups and sources of new tensors: no arithmetic."""


def model_cost(model: nn.Module, example: Example) -> Cost:
    """Parameters, their bytes, and MACs on the example, of a whole model."""
    return Cost(weight_count(model), weight_bytes(model), count_macs(model, example)[TOTAL])


TOTAL = "(total)"
"""Key of the sum in the dict that `count_macs` returns."""


def count_macs(model: nn.Module, example: Example) -> dict[str, int]:
    """Multiply-accumulates of every module, its children not included, and their sum.

    The same figures as `profile` gives, from one pass.

    Args:
        model: any module.
        example: a tensor, a tuple of inputs, or a dict of keyword inputs.

    Returns:
        Module name -> MACs for the whole batch, 0 for a module that runs none. The model's own
        are under `"(model)"`, the sum of all is under `"(total)"`.

    Raises:
        InputError: the example is empty, holds NaN or Inf, or is refused by the model.

    Example:
        >>> count_macs(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.zeros(2, 8))
        {'(model)': 0, '0': 64, '1': 0, '(total)': 64}
    """
    check(example)
    counter = CountMode()
    with _unchanged_rng(_device(model, example)):
        _observe(model, example, counter)
    names = [name or ROOT for name, _ in model.named_modules()]
    return {name: counter.macs[name] for name in names} | {TOTAL: counter.macs.total()}


def _observe(model: nn.Module, example: Example, counter: CountMode, *below: Any) -> None:
    """One forward pass under the modes; `counter` sees every operation first."""
    ready = spare(example)
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(separate_attention())
        stack.enter_context(_followed(model, counter))
        for mode in (*below, counter):
            stack.enter_context(mode)
        use_up(model, ready)


@contextmanager
def _followed(model: nn.Module, counter: CountMode) -> Iterator[None]:
    """Tell the counter which module runs, by hooks that are removed afterwards."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks: what it runs counts under the module that calls it
            enter = partial(counter.enter, name or ROOT)
            before = module.register_forward_pre_hook(enter, prepend=True)
            stack.callback(before.remove)
            after = module.register_forward_hook(counter.leave, always_call=True)
            stack.callback(after.remove)
        yield
