"""docs/add-a-method.md to the letter: its code makes a ternary method outside the package."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import lowrank
from lowrank.compression import methods, spec_of

torch.set_num_threads(1)
PAGE = Path(__file__).parents[1] / "docs" / "add-a-method.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page's code, in a file of the user's, imported."""
    kept = dict(methods._REGISTERED)
    methods._REGISTERED.clear()  # another test may have run the page too
    path = tmp_path_factory.mktemp("page") / "mine.py"
    path.write_text("\n".join(BLOCKS), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mine_on_the_page", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]
    methods._REGISTERED.clear()
    methods._REGISTERED.update(kept)


def _dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).eval()


def test_two_bits_hold_an_entry(page) -> None:
    signs = torch.tensor([[-1, 0, 1, 1, -1], [0, 0, -1, 1, 0]], dtype=torch.int8)
    assert page.pack(signs).shape == (2, 2)
    assert torch.equal(page.unpack(page.pack(signs), 5), signs)


def test_it_is_exact_at_full_rank(page) -> None:
    model = _dense().double()
    full = {n: page.Ternary.variants(spec_of(model[int(n)]))[0] for n in "02"}
    x = page.x.double()
    rules = lowrank.Rules(overrides=full)
    small, _ = lowrank.compress(model, x[:1], params=10**9, rules=rules)
    assert (small(x) - model(x)).abs().max() < 1e-8 * model(x).abs().max()


def test_it_is_chosen_and_close(page) -> None:
    assert {m.name for m in page.plan.replaced.values()} == {"ternary"}
    for row in page.report.replaced:
        assert row.measured_error <= row.predicted_error + 0.05
    # where MACs alone are limited it is no candidate: torch multiplies by its zeros
    curves = lowrank.measure(_dense(), page.x[:1], methods=[page.Ternary])
    with pytest.raises(lowrank.LowRankError, match="cannot be reached"):
        curves.plan(macs=0.5)


def test_bytes_of_the_plan_are_the_tensors_of_the_file(page, tmp_path) -> None:
    path = tmp_path / "small.safetensors"
    lowrank.save(page.small, path)
    with safe_open(path, "pt") as file:
        held = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
    assert sum(t.numel() * t.element_size() for t in held) == page.plan.cost.bytes
    assert {t.dtype for t in held} == {torch.float32, torch.uint8}
    again = lowrank.load(path, into=_dense())
    assert torch.equal(again(page.x), page.small(page.x))


def test_it_is_dense_again(page) -> None:
    dense = lowrank.densify(page.small)
    assert [type(m) for m in dense] == [nn.Linear, nn.ReLU, nn.Linear]
    assert (dense(page.x) - page.small(page.x)).abs().max() < 1e-4


def test_a_file_read_before_it_is_registered_says_what_to_do(page, tmp_path, monkeypatch) -> None:
    path = tmp_path / "small.safetensors"
    lowrank.save(page.small, path)
    monkeypatch.setattr(methods, "_REGISTERED", {})
    with pytest.raises(lowrank.LowRankError, match=r"lowrank\.register"):
        lowrank.load(path, into=_dense())


@pytest.mark.parametrize("relax", [False, True])
def test_it_trains(page, relax: bool) -> None:
    small, tuned = page.small, copy.deepcopy(page.small)
    (at, first), *_ = ((k, m[0]) for k, m in enumerate(small) if isinstance(m, nn.Sequential))
    before = first.packed.clone()
    last = iter(range(40, 0, -1))  # signs that turn cost something at first
    lowrank.finetune(
        tuned, teacher=_dense(), data=page.x, loss="mse", epochs=24, lr=1e-2, relax=relax,
        val=lambda model: next(last),
    )  # fmt: skip
    lost = [(m(page.x) - _dense()(page.x)).square().mean() for m in (small, tuned)]
    assert lost[1] < 0.95 * lost[0]
    assert type(tuned[at][0]) is page.TernaryLinear
    assert torch.equal(tuned[at][0].packed, before) is not relax
    assert page.unpack(tuned[at][0].packed, first.n_in).unique().tolist() == [-1, 0, 1]
