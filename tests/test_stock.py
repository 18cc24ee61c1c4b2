"""What replaced layers are made of: torch's own modules, or ours, which script and export."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression.methods import METHODS, RARE, Method
from lowrank.compression.methods.shared.base import has_stock, is_stock
from lowrank.compression.network.layers import spec_of
from lowrank.compression.network.stages import LayerSpec
from lowrank.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs" / "serving.md").read_text("utf-8")

LAYERS: dict[str, list[tuple[nn.Module, Tensor]]] = {
    "linear": [(nn.Linear(16, 24), torch.randn(2, 7, 16))],
    "embedding": [(nn.Embedding(40, 16), torch.randint(40, (2, 7)))],
    "convolutions": [
        (nn.Conv1d(16, 24, 3), torch.randn(2, 16, 9)),
        (nn.Conv2d(16, 24, 3, padding="same", groups=4), torch.randn(2, 16, 7, 7)),
        (nn.Conv2d(3, 24, 3, 2, padding=1, padding_mode="reflect"), torch.randn(2, 3, 7, 7)),
        (nn.Conv2d(16, 24, 1), torch.randn(2, 16, 7, 7)),
        (nn.Conv3d(8, 8, 3, dilation=2, bias=False), torch.randn(1, 8, 6, 5, 6)),
        (nn.ConvTranspose1d(16, 24, 3, 2), torch.randn(2, 16, 9)),
        (nn.ConvTranspose2d(16, 24, 3, 2, 1, output_padding=1), torch.randn(2, 16, 7, 7)),
    ],
}
"""Layers of each kind, with inputs, as the table on the page has them."""


def forms(cls: type[Method], kind: str) -> Iterator[tuple[LayerSpec, Method, Tensor]]:
    for layer, x in LAYERS[kind]:
        spec = spec_of(layer)
        assert spec is not None
        if cls.supports(spec) is None:
            yield from ((spec, method, x) for method in cls.variants(spec))


def built(spec: LayerSpec, method: Method) -> nn.Sequential:
    stages = [s.build(dtype=torch.float32, device="cpu") for s in method.stages(spec)]
    chain = nn.Sequential(*stages).eval()
    for parameter in chain.parameters():
        nn.init.normal_(parameter)
    return chain


def own(model: nn.Module) -> set[str]:
    """Classes of the modules that torch does not have."""
    kinds = {type(module) for module in model.modules()}
    return {kind.__name__ for kind in kinds if not kind.__module__.startswith("torch.nn.")}


FORMS = {
    f"{name}-{kind}-{n}": form
    for name, cls in METHODS.items()
    for kind in LAYERS
    for n, form in enumerate(forms(cls, kind))
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("form", FORMS)
def test_a_method_knows_what_it_is_made_of(form: str) -> None:
    spec, method, x = FORMS[form]
    chain = built(spec, method)
    assert is_stock(method, spec) == (not own(chain))
    if own(chain):
        with pytest.warns(DeprecationWarning, match="torch.jit.script"):
            scripted = torch.jit.script(chain)
        torch.testing.assert_close(scripted(x), chain(x))
        if len(spec.kernel) < 2:  # half a second each; ONNX below takes those of two axes
            torch.testing.assert_close(torch.export.export(chain, (x,)).module()(x), chain(x))


def row(name: str) -> str:
    """The row of the table on the page that the code calls for."""
    cells, taken = [], set()
    for kind in LAYERS:
        found = list(forms(METHODS[name], kind))
        stock = [is_stock(method, spec) for spec, method, _ in found]
        cells.append(
            "" if not found else "yes" if all(stock) else "in part" if any(stock) else "no"
        )
        for spec, method, _ in found:
            taken |= own(built(spec, method))
    return f"| `{name}` | {' | '.join(cells)} | {', '.join(f'`{k}`' for k in sorted(taken))} |"


def test_the_page_says_which_methods_need_modules_of_ours() -> None:
    """Print the rows below to mend the page."""
    rows = [re.sub(r" +", " ", row(name)) for name in METHODS]
    found = [re.sub(r" +", " ", line) for line in re.findall(r"^\| `\w+` \|.*\|$", PAGE, re.M)]
    assert found == rows, "\n".join(rows)


def test_what_is_tried_by_default_is_stock_but_for_tables_of_words() -> None:
    for name, cls in METHODS.items():
        if name not in RARE and name != "adaptive_embedding":
            assert all(is_stock(m, spec) for kind in LAYERS for spec, m, _ in forms(cls, kind))


class Small(nn.Module):
    """A linear layer, an embedding and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.fc = nn.Embedding(40, 16), nn.Linear(16, 16)
        self.near, self.far = nn.Conv1d(16, 24, 3), nn.ConvTranspose1d(24, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.far(torch.relu(self.near(torch.relu(self.fc(self.words(x))).mT)))


WORDS = torch.arange(36).reshape(4, 9)


@pytest.mark.parametrize("data", [None, WORDS], ids=["weights", "data"])
def test_stock_takes_modules_of_torch_alone(data: Tensor | None) -> None:
    names = ["channel_svd", "cp", "group_svd", "low_rank_sparse"]
    settings = {"params": 0.6, "methods": names, "data": data}
    small, report = lowrank.compress(Small(), WORDS, stock=True, **settings)
    assert own(small) == {"Small"}
    assert report.kept("parameters") <= 0.6
    assert all(
        is_stock(m, spec_of(Small().get_submodule(n))) for n, m in report.plan.replaced.items()
    )


def test_layers_that_only_other_modules_fit_stay_dense_with_that_reason() -> None:
    settings = {"methods": ["group_svd"], "params": 0.9, "stock": True}
    small, report = lowrank.compress(Small(), WORDS, **settings)
    assert own(small) == {"Small"}
    assert "modules that torch does not have" in report.left_alone["fc"]
    assert {"near", "far"} & {*report.plan.replaced}


@pytest.mark.parametrize("settings", [
    {"methods": "legonet"},
    {"methods": ["channel_svd", lowrank.BiClustering]},
    {"overrides": {"fc": lowrank.LowRankSparse(2, 0.25)}},
    {"overrides": {"fc": lowrank.GroupSVD(2, 3)}},
], ids=str)  # fmt: skip
def test_what_stock_rules_out_is_refused_by_name(settings: dict) -> None:
    with pytest.raises(InputError, match=r"stock: .*modules that torch does not have; drop st"):
        lowrank.compress(Small(), WORDS, params=0.5, stock=True, **settings)


def test_a_form_without_sparse_part_is_stock() -> None:
    spec = spec_of(nn.Linear(16, 24))
    assert is_stock(lowrank.LowRankSparse(4, 0.0), spec)
    assert has_stock(lowrank.LowRankSparse, spec)
    assert not has_stock(lowrank.GroupSVD, spec)


def test_onnx_takes_every_module_of_ours(tmp_path: Path) -> None:
    """The exporter takes five seconds and more for six layers."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3),
        nn.Flatten(2), nn.Linear(16, 16), nn.Linear(16, 16),
    ).eval()  # fmt: skip
    plan = {
        "0": lowrank.LegoNet(8, 2), "1": lowrank.LowRankSparse(2, 0.25, "filters"),
        "2": lowrank.LowRankSparse(2, 0.1, "unstructured"), "4": lowrank.GroupSVD(2, 2),
        "5": lowrank.LowRankSparse(2, 0.25),
    }  # fmt: skip
    x = torch.randn(1, 8, 6, 6)
    small, _ = lowrank.compress(model, x, params=10**6, overrides=plan)
    assert own(small) == {"Shared", "Select", "Sum", "Concat", "Sparse", "GroupedLinear"}
    lowrank.export_onnx(small, x, tmp_path / "small.onnx")
