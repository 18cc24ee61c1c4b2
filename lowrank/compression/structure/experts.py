"""Experts whose matrices are layers of their own, and transformers' packed ones around the same
weights.

transformers keeps the experts of one router in parameters of three dimensions, (experts, rows,
columns), which one call of a kernel reads. `Experts` computes the same of one pair of linear layers
an expert, each of which a chain of layers can replace; it stands in a model only where one of them
is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lowrank.compression.network.tensors import parameter_over
from lowrank.compression.structure.swap import _move_hooks

DOWN = "down_proj"


class Experts(nn.Module):
    """The experts of one router, of two linear layers each, called as transformers calls its own.

    Of expert e, `gate_up_proj.e` (`up_proj.e` where there is no gate) reads the tokens that are
    sent to it, and `down_proj.e` writes what comes behind the gate. Traced, exported or compiled
    it runs every expert on every token, as the tokens of each are known in a run only. It is made
    by `experts_apart`, and has the attributes of what it stands for.

    Source: Shazeer et al., Outrageously large neural networks: the sparsely-gated
    mixture-of-experts layer, 2017, section 2.
    """

    every = False
    """Whether experts without a token are called, too, with nothing: for who watches them."""

    if TYPE_CHECKING:  # set by `experts_apart`
        packed_class: type[nn.Module]
        num_experts: int
        has_gate: bool
        has_bias: bool
        has_post_expert_norm: bool
        is_transposed: bool

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The sum over each token's experts, by their weights.

        Args:
            hidden_states: (tokens, width).
            top_k_index: (tokens, k), the experts of each token; `num_experts` for none.
            top_k_weights: (tokens, k).

        Returns:
            (tokens, width), in the precision of the tokens.
        """
        x = hidden_states
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self._of_all(x, top_k_index, top_k_weights)
        out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        hit = range(self.num_experts) if self.every else top_k_index.unique().tolist()
        for e in hit:
            if e < self.num_experts:
                token, place = torch.where(top_k_index == e)
                y = self._expert(e, x[token]) * top_k_weights[token, place, None]
                out.index_add_(0, token, y.to(out.dtype))
        return out.to(x.dtype)

    def _of_all(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for e in range(self.num_experts):
            share = (weights * (index == e)).sum(dim=-1, keepdim=True)
            out = out + (self._expert(e, x) * share).to(out.dtype)
        return out.to(x.dtype)

    def _expert(self, e: int, x: Tensor) -> Tensor:
        y = self.get_submodule(first_of(self))[e](x)  # type: ignore[index]
        gated: Any = self.packed_class
        y = gated._apply_gate(self, y) if self.has_gate else cast(Any, self).act_fn(y)
        y = self.get_submodule(DOWN)[e](y)  # type: ignore[index]
        return cast(Any, self).post_expert_norm(y) if self.has_post_expert_norm else y

    def extra_repr(self) -> str:
        """The sizes."""
        return f"num_experts={self.num_experts}"


def first_of(module: Any) -> str:
    """Where the first layer of each expert is found."""
    return "gate_up_proj" if module.has_gate else "up_proj"


def experts_apart(packed: nn.Module) -> Experts:
    """An `Experts` over the same memory."""
    made = Experts()
    made.__dict__.update(_settings(packed))
    made.packed_class = type(packed)
    for part, weight, bias in _packed(packed):
        layers = [_layer(packed, weight, bias, e) for e in range(made.num_experts)]
        made.add_module(part, nn.ModuleList(layers).train(packed.training))
    _take_rest(packed, made)
    return made


def experts_together(apart: Experts) -> nn.Module:
    """transformers' experts of the same weights."""
    made = apart.packed_class.__new__(apart.packed_class)
    nn.Module.__init__(made)
    made.__dict__.update(_settings(apart))
    for part, weight, bias in _packed(apart):
        layers = [cast(nn.Linear, m) for m in apart.get_submodule(part).children()]
        matrices = [m.weight.mT if apart.is_transposed else m.weight for m in layers]
        made.register_parameter(weight, _stacked(matrices, layers[0].weight.requires_grad))
        if apart.has_bias:
            biases = [m.bias for m in layers]
            made.register_parameter(bias, _stacked(biases, biases[0].requires_grad))
    _take_rest(apart, made)
    return made


def _packed(module: Any) -> Iterator[tuple[str, str, str]]:
    """Name of each list of layers, and of the packed weight and bias."""
    for part in (first_of(module), DOWN):
        yield part, part, f"{part}_bias"


def _layer(packed: nn.Module, weight: str, bias: str, e: int) -> nn.Linear:
    W = cast(nn.Parameter, packed._parameters[weight])
    matrix = W.detach()[e].mT if cast(Any, packed).is_transposed else W.detach()[e]
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, device="meta")
    layer.weight = parameter_over(matrix, W.requires_grad)
    b = packed._parameters.get(bias)
    if b is not None:
        layer.register_parameter("bias", parameter_over(b.detach()[e], b.requires_grad))
    return layer


def _stacked(parts: Sequence[Tensor], trained: bool) -> nn.Parameter:
    return nn.Parameter(torch.stack([p.detach() for p in parts]), requires_grad=trained)


def _settings(module: nn.Module) -> dict[str, object]:
    """What is no parameter, buffer, part or hook of a module."""
    own = {k: v for k, v in vars(module).items() if k[:1] != "_" or k == "_is_expert_parallel"}
    return {k: v for k, v in own.items() if k not in ("every", "packed_class")}


def _take_rest(source: nn.Module, target: nn.Module) -> None:
    """The activation, a norm behind the experts, buffers, hooks."""
    packed = {name for names in _packed(source) for name in names}
    for name, child in source.named_children():
        if name not in packed:
            target.add_module(name, child)
    for name, buffer in source.named_buffers(recurse=False):
        persistent = name not in source._non_persistent_buffers_set
        target.register_buffer(name, buffer, persistent=persistent)
    _move_hooks(source, target)
