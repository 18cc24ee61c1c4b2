"""torch's own transformers: their linear layers are replaced, and no fused kernel reads past them.

In evaluation mode `nn.TransformerEncoderLayer` reads the weights of its linear layers, and
`nn.TransformerEncoder` packs padded sequences; the tests call the models as their users do, with
torch's fast path on.
"""

from __future__ import annotations

import copy
import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import run, scan
from lowrank.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")

WIDTH, LENGTH, BATCH = 16, 5, 6
FULL = {"*linear1": lowrank.ChannelSVD(WIDTH), "*linear2": lowrank.ChannelSVD(WIDTH)}
PADDED = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
PADDED[1, 3:] = PADDED[2, 1:] = True
CAUSAL = nn.Transformer.generate_square_subsequent_mask(LENGTH)


def encoder(depth: int = 2, **settings: Any) -> nn.Module:
    """An encoder with weights in every norm and bias; a single layer where depth is 0."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, **{"batch_first": True, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sequences cannot be packed
        model = nn.TransformerEncoder(layer, depth) if depth else layer
    return shaken(model)


def shaken(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def full(model: nn.Module, example: Any, **settings: Any) -> nn.Module:
    """At full rank, which has more parameters."""
    small, report = lowrank.compress(model, example, params=10**6, overrides=FULL, **settings)
    assert len(report.plan.replaced) == sum(type(m) is nn.Linear for m in model.modules())
    return small


def outputs(model: nn.Module, example: dict[str, Any], *, training: bool, grad: bool) -> Tensor:
    model = copy.deepcopy(model).train(training)
    torch.manual_seed(3)  # of the dropout
    with torch.set_grad_enabled(grad):
        return model(**example).detach()


def masks(padded: bool, causal: bool, name: str = "mask") -> dict[str, Tensor]:
    """As floats where there are both, which torch wants of one kind."""
    found = {}
    if padded:
        hidden = torch.zeros(PADDED.shape).masked_fill(PADDED, -torch.inf) if causal else PADDED
        found["src_key_padding_mask"] = hidden
    return found | ({name: CAUSAL} if causal else {})


ENCODERS = list(itertools.product((False, True), (False, True), ("relu", "gelu"), (0, 2)))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("first", "norm_first", "activation", "depth"), ENCODERS)
def test_encoders_give_the_same_at_full_rank(
    first: bool, norm_first: bool, activation: str, depth: int
) -> None:
    settings = {"batch_first": first, "norm_first": norm_first, "activation": activation}
    model = encoder(depth, **settings)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    for padded, causal in itertools.product((False, True), repeat=2):
        name = "mask" if depth else "src_mask"
        example = {"src": x if first else x.transpose(0, 1), **masks(padded, causal, name)}
        small = full(model, example, data=[example] if causal else None)
        seen = ~PADDED if padded else torch.ones_like(PADDED)  # of the rest torch says nothing
        seen = seen if first else seen.T
        for training, grad in itertools.product((False, True), repeat=2):
            a, b = (outputs(m, example, training=training, grad=grad) for m in (model, small))
            torch.testing.assert_close(b[seen], a[seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoders_and_whole_transformers_give_the_same_at_full_rank(norm_first: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, LENGTH, WIDTH), torch.randn(BATCH, 3, WIDTH)
    common = {"batch_first": True, "norm_first": norm_first}
    layer = nn.TransformerDecoderLayer(WIDTH, 4, 32, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = nn.Transformer(WIDTH, 4, 2, 2, 32, **common)
    hidden = {"src_key_padding_mask": PADDED, "memory_key_padding_mask": PADDED}
    causal = nn.Transformer.generate_square_subsequent_mask(3)
    for model, example in (
        (layer, {"tgt": y, "memory": x, "tgt_mask": causal}),
        (nn.TransformerDecoder(layer, 2), {"tgt": y, "memory": x}),
        (whole, {"src": x, "tgt": y, "tgt_mask": causal}),
        (whole, {"src": x, "tgt": y, **hidden}),
    ):
        small = full(shaken(model), example)
        for training in (False, True):
            a, b = (outputs(m, example, training=training, grad=False) for m in (model, small))
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


PACKED = {"src": torch.randn(BATCH, LENGTH, WIDTH), "src_key_padding_mask": PADDED}


def test_a_compressed_encoder_goes_the_whole_way(tmp_path: Path) -> None:
    model = encoder()
    before = [dict(vars(m)) for m in model.modules()]
    small, report = lowrank.compress(model, PACKED, params=0.7, data=[PACKED], refine=2)
    assert [set(vars(m)) for m in model.modules()] == [set(m) for m in before]
    assert report.kept("parameters") <= 0.7
    with torch.no_grad():
        expected = small(**PACKED)
        lowrank.save(small, tmp_path / "small.safetensors")
        loaded = lowrank.load(tmp_path / "small.safetensors", into=encoder())
        file = io.BytesIO()
        torch.save(small, file)
        file.seek(0)
        for again in (loaded, copy.deepcopy(small), torch.load(file, weights_only=False)):
            assert torch.equal(again.eval()(**PACKED), expected)
        dense = lowrank.densify(small)
        torch.testing.assert_close(dense(**PACKED)[~PADDED], expected[~PADDED])
    lowrank.finetune(small, teacher=model, data=[PACKED], loss="mse", epochs=1)


def test_a_dense_encoder_has_its_fused_kernel_back() -> None:
    """What `densify` gives packs padded sequences again, and leaves zeros there as torch does."""
    model = encoder()
    dense = lowrank.densify(full(model, PACKED))
    for a, b in zip(model.modules(), dense.modules(), strict=True):
        assert set(vars(a)) == set(vars(b))
        for switch in ("use_nested_tensor", "activation_relu_or_gelu"):
            assert vars(a).get(switch) == vars(b).get(switch)
    with torch.no_grad():
        assert not dense(**PACKED)[PADDED].any()


@pytest.mark.parametrize("layers", ["layers.0.*", "layers.1.*", "*.linear2"])
def test_some_layers_of_an_encoder_may_stay_dense(layers: str) -> None:
    small, report = lowrank.compress(encoder(), PACKED, params=0.9, only=layers)
    assert report.plan.replaced
    with torch.no_grad():
        torch.testing.assert_close(small(**PACKED), run(small, PACKED))
    kept = [m.activation_relu_or_gelu for m in small.layers]
    assert kept == [0 if any(f"layers.{k}." in n for n in report.plan.replaced) else 1
                    for k in range(2)]  # fmt: skip


def test_a_layer_that_was_compressed_by_itself_comes_back_with_its_encoder(
    tmp_path: Path,
) -> None:
    model = encoder()
    x = PACKED["src"]
    model.layers[0], _ = lowrank.compress(model.layers[0], x, params=0.8)
    lowrank.save(model, tmp_path / "part.safetensors")
    loaded = lowrank.load(tmp_path / "part.safetensors", into=encoder())
    with torch.no_grad():
        assert loaded(**PACKED).isfinite().all()


def test_exports_of_a_compressed_encoder_are_checked(tmp_path: Path) -> None:
    small, _ = lowrank.compress(encoder(), PACKED["src"], params=0.7)
    lowrank.export_program(small, PACKED["src"])
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    lowrank.export_onnx(small, PACKED["src"], tmp_path / "small.onnx")


class Reading(nn.TransformerEncoderLayer):
    """A layer whose own forward reads a weight."""

    def forward(self, src: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(src, **kwargs) + self.linear1.weight.mean()


def test_what_another_forward_reads_stays_dense() -> None:
    found = scan(Reading(WIDTH, 4, 32, batch_first=True).eval(), PACKED["src"])
    assert found.reasons["linear1"] == "Reading reads its weight directly"
    assert [view.name for view in found.views] == ["linear2"]


def test_infinities_are_taken_in_masks_alone() -> None:
    x = PACKED["src"].clone()
    lowrank.profile(encoder(), (x, CAUSAL), latency=False)
    x[0, 0, 0] = -torch.inf
    for wrong in (x, torch.tensor([0.0, torch.inf]), torch.tensor([0.0, torch.nan])):
        with pytest.raises(InputError, match="holds NaN or Inf"):
            run_checked(wrong)


def run_checked(x: Tensor) -> None:
    lowrank.profile(nn.Sequential(nn.Linear(x.shape[-1], 2)), x, latency=False)
