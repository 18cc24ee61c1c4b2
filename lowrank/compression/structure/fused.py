"""torch's fused encoder: off where a factorized layer stands, on again where it is dense.

In evaluation mode `nn.TransformerEncoderLayer` hands all its weights to one fused kernel, and
`nn.TransformerEncoder` packs padded sequences for it; both read `linear1.weight` to do so, which
no chain of layers has. Each has a switch of its own, an attribute, that copies and pickles with
it. What the switch was stands beside it, for `densify`.
"""

from __future__ import annotations

from torch import nn

from lowrank.compression.structure.attention import Attention
from lowrank.compression.structure.swap import is_made

_SWITCHES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu"),
    (nn.TransformerEncoder, "use_nested_tensor"),
)


_WAS = "_lowrank_fused"


def settle_fused(model: nn.Module) -> None:
    """Turn the fused kernels off in every encoder with a layer that is replaced, or attention that
    is taken apart, and back in others."""
    for module in model.modules():
        for cls, switch in _SWITCHES:
            if isinstance(module, cls) and switch in vars(module):
                _settle(module, switch)


def _settle(module: nn.Module, switch: str) -> None:
    own = vars(module)
    if any(is_made(m) or isinstance(m, Attention) for m in module.modules()):
        own.setdefault(_WAS, own[switch])
        own[switch] = type(own[switch])(0)  # 0 or False
    elif _WAS in own:
        own[switch] = own.pop(_WAS)
