"""Calibration: patches of every layer, moments against numpy, and a model left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import LAYERS, layer_input
from torch import Tensor, nn

import lowrank
from lowrank.compression import (
    DAMPING,
    Calibrated,
    LayerSpec,
    Moments,
    Sums,
    calibrate,
    calibration_batches,
    can_be_cut,
    canonical,
    compare_outputs,
    held_out,
    is_scores,
    n_positions,
    outputs,
    patches,
    rows_of_a_draw,
    run,
    scan,
    spec_of,
    split_batches,
    taken,
    vocabularies,
)
from lowrank.compression.calibration import patches as patches_module
from lowrank.compression.calibration.moments import Last, look_at
from lowrank.decompositions.metric import Weight
from lowrank.errors import InputError

ROUNDING = 1e-11
"""Relative: sums of a few hundred products in float64."""

SINGLE = 1e-5
"""Relative: products in float32, summed in float64."""


def _spec(layer: nn.Module) -> LayerSpec:
    spec = spec_of(layer)
    assert spec is not None
    return spec


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _calibrated(model: nn.Module, batches: Any, **settings: Any) -> Calibrated:
    return calibrate(model, scan(model, batches[0]).views, batches, **settings)


# --- patches -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in LAYERS if n != "embedding"])
def test_the_weight_times_the_patches_is_the_output(name: str) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer = build().double()
    spec, x = _spec(layer), layer_input(layer, shape, torch.float64)
    W = canonical(spec, layer.weight.detach()).flatten(2)
    with torch.no_grad():
        y = layer(x)
    made = torch.einsum("god,pgd->pgo", W, patches(spec, x))
    bias = torch.zeros(spec.out_channels) if layer.bias is None else layer.bias.detach()
    expected = outputs(spec, y) - bias.reshape(spec.groups, -1)
    torch.testing.assert_close(made, expected)
    assert len(made) == n_positions(spec, y)

    take = torch.tensor([len(made) - 1, 0, len(made) // 2])
    torch.testing.assert_close(patches(spec, x, take), patches(spec, x)[take])
    torch.testing.assert_close(outputs(spec, y, take), outputs(spec, y)[take])


# --- sums and moments --------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1e4], ids=["centred", "far from zero"])
def test_sums_are_the_covariance_of_numpy(offset: float) -> None:
    spec = _spec(nn.Conv2d(4, 6, 3, groups=2))
    X, Y = _randn(70, 2, 18, seed=1) + offset, _randn(70, 2, 3, seed=2) - offset
    sums = Sums(spec)
    for rows in torch.arange(70).split(32):
        sums.add(X[rows], Y[rows])
    moments, found = sums.moments(), sums.regression()
    assert moments.n == 70
    torch.testing.assert_close(moments.mean, X.mean(0))
    torch.testing.assert_close(found.mean, Y.mean(0))
    for g in range(2):
        both = np.cov(torch.cat([Y[:, g], X[:, g]], 1).numpy().T, bias=True)
        torch.testing.assert_close(moments.C[g], torch.from_numpy(both[3:, 3:]))
        torch.testing.assert_close(found.Q[g], torch.from_numpy(both[:3, 3:]))


@pytest.mark.parametrize("changed", [True, False], ids=["worked on in place", "as it was"])
def test_layers_that_read_one_input_sum_its_products_once(changed: bool) -> None:
    spec, last, X = LayerSpec("linear", 6, 3), Last(), _randn(20, 1, 6, seed=1)
    sums = Sums(spec, last=last)
    sums.add(X)
    known, others = last.added, [Sums(spec, last=last), Sums(spec)]
    if changed:
        X *= torch.arange(6)
    for other in others:
        other.add(X)
    assert (last.added is known) == (not changed)
    assert torch.equal(*(other.moments().C for other in others))


def test_a_regression_keeps_to_the_weight_where_few_examples_say_otherwise() -> None:
    """Drawn less towards it where the inputs explain the targets, though they are few."""
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(1, 4, 24, generator=generator, dtype=torch.float64)
    change = torch.randn(1, 4, 24, generator=generator, dtype=torch.float64)
    noise = torch.randn(60, 1, 4, generator=generator, dtype=torch.float64)
    X = torch.randn(60, 1, 24, generator=generator, dtype=torch.float64)

    def fitted(Y: Tensor) -> Tensor:
        sums = Sums(LayerSpec("linear", 24, 4))
        sums.add(X, Y, rows=1)
        moments, found = sums.moments(), sums.regression()
        assert float(moments.share) > 0.2
        return found.solution(W, moments.C, moments.share)

    clean = torch.einsum("gof,pgf->pgo", W + change, X)
    assert (fitted(clean) - W - change).norm() < 0.1 * change.norm()
    least = torch.linalg.lstsq(X[:, 0], noise[:, 0]).solution.norm()
    unmoved = torch.einsum("gof,pgf->pgo", W, X) + noise
    assert (fitted(unmoved) - W).norm() < 0.8 * least


@pytest.mark.parametrize("held", [False, True], ids=["formed", "held"])
@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["centred", "far from zero"])
def test_what_few_positions_know_by_heart_is_not_believed(
    held: bool, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer positions than inputs explain any target: those held out tell chance from a rule."""
    monkeypatch.setattr("lowrank.compression.calibration.moments._ROWS_FROM", 95 if held else 96)
    W, rule = _randn(1, 4, 96, seed=6), _randn(1, 4, 96, seed=7)
    X = _randn(40, 1, 6, seed=8) @ _randn(6, 96, seed=9) + 0.01 * _randn(40, 1, 96, seed=10)

    def fitted(Y: Tensor) -> tuple[float, float]:
        """How far the map moves on the positions, and how far it is off, of the rule's way."""
        sums = Sums(LayerSpec("linear", 96, 4))
        sums.look(40)
        sums.add(X + offset, Y, rows=5)
        moments = sums.moments()
        assert (moments.rows is not None) == held
        if held:
            found = sums.missed(W).solution(W, moments.share)
        else:
            found = sums.regression().solution(W, moments.C, moments.share)
        step = torch.einsum("gof,pgf->pgo", found - W, X)
        way = torch.einsum("gof,pgf->pgo", rule, X)
        return float(step.norm() / way.norm()), float((step - way).norm() / way.norm())

    size = torch.einsum("gof,pgf->pgo", rule, X).std()
    plain = torch.einsum("gof,pgf->pgo", W, X)
    by_chance, _ = fitted(plain + size * _randn(40, 1, 4, seed=11))
    assert by_chance < 0.2
    _, off = fitted(plain + torch.einsum("gof,pgf->pgo", rule, X))
    assert off < 0.1


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_few_positions_are_held_themselves(
    centred: bool, seen: bool, offset: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their span: metric, share and regression are those of the moment written out."""
    X, Y = _randn(20, 2, 48, seed=3) + offset, _randn(20, 2, 3, seed=4) - offset
    W = _randn(2, 3, 48, seed=5)
    spec = LayerSpec("linear", 96, 6, groups=2)
    found = []
    for least in (48, 47):  # on both sides of the fan-in
        monkeypatch.setattr("lowrank.compression.calibration.moments._ROWS_FROM", least)
        sums = Sums(spec)
        look = sums.look(20)
        assert look.form == ("full" if least == 48 else "rows")
        for rows in torch.arange(20).split(7):
            sums.add(X[rows], Y[rows])
        moments = sums.moments()
        if look.form == "rows":
            missed = sums.missed(W)
            missed = missed if centred else missed.uncentred(W, moments.mean)
            best = missed.solution(W, moments.share)
        else:
            told, C = sums.regression(centred=centred), moments.C
            if not centred:
                C = C + moments.mean[:, :, None] * moments.mean[:, None, :]
            best = told.solution(W, C, moments.share)
        metric = moments.metric(centred=centred, seen=seen)
        found.append((moments.share, metric.times(W), best, metric.formed.C))
    for full, span in zip(*found, strict=True):
        torch.testing.assert_close(span, full, rtol=1e-5, atol=1e-6 * float(full.abs().max()))


@pytest.mark.parametrize(
    ("spec", "available", "work", "expected"),
    [
        (LayerSpec("linear", 512, 8), 10, 1e9, (3814, "full")),
        (LayerSpec("linear", 513, 8), 256, 1e9, (256, "rows")),
        (LayerSpec("linear", 513, 8), 257, 1e9, (3799, "full")),
        (LayerSpec("linear", 1000, 8), 10**6, 1e9, (1000, "full")),
        (LayerSpec("linear", 2000, 8), 10**6, 1e9, (1000, "rows")),
        (LayerSpec("linear", 6144, 8), 10**6, 1e12, (26490, "full")),
        (LayerSpec("linear", 6145, 8), 10**6, 1e12, (1152, "rows")),
        (LayerSpec("linear", 1 << 16, 8), 10**6, 1e12, (512, "rows")),
        (LayerSpec("linear", 8, 8), 10**6, 1e12, (1 << 18, "full")),
    ],
)
def test_how_a_layer_is_looked_at(
    spec: LayerSpec, available: int, work: float, expected: tuple[int, str]
) -> None:
    look = look_at(spec, available, work)
    assert (look.positions, look.form) == expected


def test_embeddings_count_words() -> None:
    net = nn.Embedding(6, 3)
    words = torch.tensor([[0, 1, 1], [5, 1, 0]])
    found = _calibrated(nn.Sequential(net), [words[:1], words[1:]])
    assert found.layers["0"].C.tolist() == [[2 / 6, 3 / 6, 0, 0, 0, 1 / 6]]


class Net(nn.Module):
    """A convolution with inputs that correlate, one of two groups, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 6, 3, groups=2, stride=2, bias=False)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm(self.a(x)))
        return self.fc(self.drop(torch.relu_(self.b(h)).mean((2, 3))))


def _net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    net = Net().double().eval()
    net.norm.running_mean.normal_()
    return net


X = _randn(24, 4, 7, 7, seed=4)


def _inputs(net: Net, x: Tensor) -> dict[str, Tensor]:
    """The patches of every layer, by hooks of our own."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda m, args, y, name=name: seen.update({name: patches(_spec(m), args[0].clone())})
        )
        for name, module in net.named_children()
        if spec_of(module) is not None
    ]
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    return seen


def test_moments_of_a_network_are_those_of_its_patches() -> None:
    net = _net()
    found = _calibrated(net, [X[:10], X[10:]])
    expected = _inputs(net, X)
    assert set(found.layers) == {"a", "b", "fc"}
    assert found.n_examples == 24
    for name, rows in expected.items():
        moments = found.layers[name]
        assert moments.n == len(rows)
        torch.testing.assert_close(moments.mean, rows.mean(0))
        for g in range(rows.shape[1]):
            C = torch.from_numpy(np.atleast_2d(np.cov(rows[:, g].numpy().T, bias=True)))
            torch.testing.assert_close(moments.C[g], C)


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _calibrated(_net(), [X])
    monkeypatch.setattr(patches_module, "CHUNK", 500)
    parts = _calibrated(_net(), [X])
    for name, moments in whole.layers.items():
        torch.testing.assert_close(moments.C, parts.layers[name].C)


def test_one_seed_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where positions are drawn, and with gradients of drawn labels."""
    monkeypatch.setattr("lowrank.compression.calibration.moments.POSITIONS", 200)
    runs = [_calibrated(_net(), [X[:12], X[12:]], gradients=True, seed=s) for s in (1, 1, 2)]
    first, again, other = (r.layers["a"] for r in runs)
    assert first.n < 24 * 49
    assert first.G is not None
    assert other.G is not None
    assert torch.equal(first.C, again.C)
    assert torch.equal(first.G, again.G)
    assert not torch.equal(first.C, other.C)
    assert not torch.equal(first.G, other.G)


def test_a_sample_of_positions_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _calibrated(_net(), [X]).layers["a"]
    monkeypatch.setattr("lowrank.compression.calibration.moments.POSITIONS", 600)
    sample = _calibrated(_net(), [X]).layers["a"]
    assert sample.n == 600
    assert (sample.C - whole.C).norm() < 0.5 * whole.C.norm()  # 36 variables, 600 draws


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_narrow_models_are_summed_in_wide_types(dtype: torch.dtype) -> None:
    exact = _calibrated(_net(), [X])
    found = _calibrated(_net().to(dtype), [X.to(dtype)], gradients=True)
    loose = 10 * torch.finfo(dtype).eps
    for name, moments in found.layers.items():
        assert moments.C.dtype == torch.float64
        expected = exact.layers[name].C
        assert (moments.C - expected).norm() < max(loose, SINGLE) * expected.norm()
        assert moments.G is not None
        assert moments.G.isfinite().all()


class Two(nn.Module):
    """Takes two inputs, by place or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 6), nn.Linear(4, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.out(self.left(a) * self.right(input=b))


@pytest.mark.parametrize("form", ["tuples", "dicts", "pairs with labels"])
def test_batches_in_every_form(form: str) -> None:
    torch.manual_seed(0)
    net, a, b = Two().double().eval(), _randn(6, 5), _randn(6, 4)
    parts = list(zip(a.split(4), b.split(4), strict=True))
    data: list[Any] = parts
    example: Any = (a[:1], b[:1])
    if form == "dicts":
        data = [{"a": x, "b": y, "labels": torch.zeros(len(x))} for x, y in parts]
        example = {"a": a[:1], "b": b[:1]}
    if form == "pairs with labels":
        data = [(x, y, torch.zeros(len(x))) for x, y in parts]
    batches = calibration_batches(data, example)
    found = _calibrated(net, batches, gradients=True)
    assert found.n_examples == 6
    for name, rows in (("left", a), ("right", b)):
        torch.testing.assert_close(found.layers[name].mean[0], rows.mean(0))


def test_a_layer_called_twice_sees_both_inputs() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.a(x) + 1)

    torch.manual_seed(0)
    net, x = Twice().double(), _randn(9, 4)
    moments = _calibrated(net, [x], gradients=True).layers["a"]
    with torch.no_grad():
        rows = torch.cat([x, net.a(x) + 1])
    assert moments.n == 18
    torch.testing.assert_close(moments.mean[0], rows.mean(0))
    torch.testing.assert_close(moments.C[0], torch.from_numpy(np.cov(rows.numpy().T, bias=True)))


class Unused(nn.Module):
    """Its `spare` layer runs only on inputs above a hundred, as the example is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.spare, self.b = (nn.Linear(24, 24) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(self.spare(h) if bool(x.max() > 100) else h)


def test_a_layer_that_never_ran_is_listed() -> None:
    torch.manual_seed(0)
    net, x = Unused(), torch.randn(40, 24)
    example = torch.full((1, 24), 101.0)
    small, report = lowrank.compress(net, example, params=0.6, data=[x[:20], x[20:]])
    calibration = lowrank.measure(net, example, data=[x]).data.calibrated
    assert calibration.never_ran == ("spare",)
    assert "spare" not in calibration.layers
    assert any("never ran: spare" in note for note in report.notes)
    rows = {row.name: row for row in report.layers}
    if rows["spare"].fitted is not None:
        assert rows["spare"].fitted == "to its weights alone: no batch ran it"
    assert small(x).isfinite().all()


def test_three_examples_for_a_fan_in_of_144() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).eval()
    x = torch.randn(3, 16, 3, 3)
    moments = _calibrated(net, [x]).layers["0"]
    assert torch.linalg.matrix_rank(moments.C[0], rtol=1e-5) == 2  # three, less their mean
    for n in (1, 3):
        small, report = lowrank.compress(
            net, x[:1], params=0.5, data=[x[:n]], methods=["channel_svd", "tucker2", "group_svd"]
        )
        assert report.kept("parameters") <= 0.5
        assert small(x).isfinite().all()


def test_an_input_that_is_always_zero_is_no_trouble() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8)).eval()
    x = torch.randn(32, 24)
    x[:, 3:] = 0
    small, _ = lowrank.compress(net, x[:1], params=0.6, data=[x, torch.zeros(8, 24)])
    assert small(x).isfinite().all()
    small, _ = lowrank.compress(net, x[:1], params=0.6, data=[torch.zeros(8, 24)])
    assert small(x).isfinite().all()


def test_the_metric_is_damped_and_counts_the_mean_where_nothing_takes_it() -> None:
    eye, share = torch.eye(2).double(), torch.tensor([0.1]).double()
    moments = Moments(9, 9, torch.tensor([[1.0, 2.0]]).double(), 2 * eye[None], share)
    torch.testing.assert_close(moments.metric().C[0], 2 * eye)
    outer = torch.tensor([[1.0, 2.0], [2.0, 4.0]]).double()
    expected = 0.9 * (2 * eye + outer) + 0.1 * 4.5 * eye
    torch.testing.assert_close(moments.metric(centred=False).C[0], expected)
    seen = moments.metric(centred=False, seen=True)
    torch.testing.assert_close(seen.C[0], 2 * eye + outer)


def test_the_share_left_to_chance_is_that_of_ledoit_and_wolf() -> None:
    covariance = pytest.importorskip("sklearn.covariance")
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    for n in (10, 40, 400):
        x = torch.randn(n, 12, generator=generator, dtype=torch.float64) @ mixing
        x = x - x.mean(0)
        sums = Sums(LayerSpec("linear", 12, 3))
        sums.add(x[:, None], rows=1)
        moments = sums.moments()
        C = moments.C[0]
        apart = (C - C.diagonal().mean() * torch.eye(12)).square().sum() / C.square().sum()
        expected = covariance.ledoit_wolf_shrinkage(x.numpy()) * float(apart) * n / (n - 1)
        assert float(moments.share) == pytest.approx(expected, rel=1e-9)


def test_one_draw_says_nothing_of_chance_and_many_leave_little_to_it() -> None:
    x = torch.randn(4096, 1, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7)
    once, often = Sums(LayerSpec("linear", 6, 3)), Sums(LayerSpec("linear", 6, 3))
    once.add(x)
    often.add(x, rows=64)
    assert float(once.moments().share) == DAMPING
    assert DAMPING <= float(often.moments().share) < 0.01


def test_layers_that_too_few_examples_show_are_named() -> None:
    net, x = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 2)), torch.randn(2000, 64)
    few, many = _calibrated(net, [x[:16]]), _calibrated(net, [x])
    assert next(iter(few.uncertain)) == "0"
    assert "more examples would help: noise in what is known of 0" in str(few)
    assert not many.uncertain
    assert "noise" not in str(many)


def test_examples_of_a_batch_count_as_draws_of_their_own() -> None:
    assert rows_of_a_draw(6400, 64) == 800  # eight draws
    assert rows_of_a_draw(100, 1) == 100
    assert rows_of_a_draw(3, 3) == 3
    assert rows_of_a_draw(16, 16) == 4


# --- gradients ---------------------------------------------------------------------------


def _output_gradients(
    net: Net, x: Tensor, loss: Callable[[Tensor], Tensor], name: str
) -> list[Tensor]:
    """d loss / d output of a layer, one example after another, by plain autograd."""
    kept: list[Tensor] = []
    module = net.get_submodule(name)
    for one in x.split(1):
        taken: list[Tensor] = []
        handle = module.register_forward_hook(lambda m, a, y, t=taken: t.append(y) or y.clone())
        value = loss(net(one))
        handle.remove()
        (grad,) = torch.autograd.grad(value, taken)
        kept.append(outputs(_spec(module), grad))
    return kept


@pytest.mark.parametrize("name", ["a", "b", "fc"])
def test_G_is_the_moment_of_autograd_gradients(name: str) -> None:
    net = _net()

    def loss(y: Tensor) -> Tensor:
        return y.logsumexp(1).sum()

    G = _calibrated(net, [X[:5], X[5:8]], gradients=True, loss=loss).layers[name].G
    rows = torch.cat(_output_gradients(net, X[:8], loss, name))
    expected = torch.einsum("pgo,pgq->goq", rows, rows) / 8
    torch.testing.assert_close(G, expected)


def test_G_is_the_fisher_information_of_the_scores() -> None:
    """In the mean over many drawn labels: E[g g^T] = diag(p) - p p^T at the scores."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4)).double(), _randn(1, 3)
    many = x.expand(20000, -1)
    G = _calibrated(net, [many], gradients=True).layers["0"].G
    assert G is not None
    p = net(x).softmax(-1)[0].detach()
    expected = torch.diag(p) - torch.outer(p, p)
    assert (G[0] - expected).abs().max() < 0.02  # 20,000 draws: three deviations are 0.011


def test_G_predicts_a_change_of_the_divergence() -> None:
    """KL(dense || perturbed) = 1/2 tr(d^T G d), d a small shift of the scores."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 4)).double(), _randn(1, 3)
    G = _calibrated(net, [x.expand(20000, -1)], gradients=True).layers["0"].G
    assert G is not None
    shift = 0.05 * _randn(4, seed=5)
    p, q = (s.log_softmax(-1) for s in (net(x)[0].detach(), net(x)[0].detach() + shift))
    kl = float((p.exp() * (p - q)).sum())
    assert kl == pytest.approx(0.5 * float(shift @ G[0] @ shift), rel=0.1)


def test_outputs_that_are_no_scores_are_projected() -> None:
    """E[g g^T] is then the identity, at each of the 6 positions of an example."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(3, 2)).double(), _randn(3000, 6, 3)
    G = _calibrated(net, [x], gradients=True).layers["0"].G
    assert G is not None
    assert (G[0] / 6 - torch.eye(2)).abs().max() < 0.05


def test_a_loss_that_depends_on_nothing_gets_a_sentence() -> None:
    with pytest.raises(InputError, match="does not depend on any layer"):
        _calibrated(_net(), [X], gradients=True, loss=lambda y: torch.zeros(()))


class _Passed(nn.Module):
    """Its first output is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, self.inner(x)


class _TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(16, 32)
        self.a = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
        self.b = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.trunk(x).relu()
        return 8 * self.a(h), self.b(h)


def test_every_output_counts() -> None:
    """Neither head is sacrificed, though only the first gives scores of classes."""
    torch.manual_seed(0)
    net, x = _TwoHeads().eval(), torch.randn(128, 16)
    curves = lowrank.measure(net, x[:1], data=x, methods=["channel_svd"])
    losses = {c.layer: c.importance.loss for c in curves.curves if c.importance}
    assert min(v for v in losses.values() if v is not None) > 1e-3
    small, report = lowrank.compress(net, x[:1], data=x, params=0.6, methods=["channel_svd"])
    pairs = zip(run(small, x), run(net, x), strict=True)
    errors = [float((u - v).norm() / v.norm()) for u, v in pairs]
    assert max(errors) < 0.5
    quality = report.quality
    assert quality is not None
    assert quality.loss == quality.kl + quality.others > quality.kl


class _Named(nn.Module):
    """Takes a picture, a pair and a scale by name."""

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], scale: Tensor, name: str) -> Tensor:
        return scale * (x + pair[0] + pair[1]).flatten(1)


def test_batches_are_cut_whatever_holds_their_tensors() -> None:
    batch: Any = {"x": X, "pair": (X, X[:1]), "scale": torch.tensor(2.0), "name": "a"}
    parts: Any = split_batches([batch], 16, _Named())
    assert [len(p["x"]) for p in parts] == [16, 8]
    assert all(len(p["pair"][1]) == 1 and p["name"] == "a" for p in parts)
    rest, held = held_out([batch], _Named())
    assert [len(p["x"]) for p in [*rest, *held]] == [6] * 4  # type: ignore[call-overload]
    assert split_batches([batch], 16) == [batch]  # without a model to ask


def test_a_batch_is_whole_where_its_tensors_are_of_other_lengths() -> None:
    state: Any = (X.flatten(1), torch.zeros(2, len(X), 3))
    assert not can_be_cut(nn.LSTM(196, 3), state)
    assert held_out([state], nn.LSTM(196, 3)) == ([state], [])


def test_targets_as_wide_as_the_inputs_are_still_labels() -> None:
    found = calibration_batches((X, X + 1), X[:1])
    assert sum(map(len, found)) == len(X)
    assert torch.equal(torch.cat([b for b in found if isinstance(b, torch.Tensor)]), X)
    assert sum(map(len, calibration_batches([X, X + 1], X[:1]))) == 2 * len(X)


def test_what_an_iterator_has_left_is_held_out() -> None:
    used, rest = taken(iter(X.split(8)), X[:1], 16, rest=256)
    assert len(used) == 2
    assert torch.equal(torch.cat(rest), X[16:])  # type: ignore[arg-type]


def test_single_numbers_have_no_answers_to_compare() -> None:
    net, x = nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)), torch.randn(32, 8)
    found = compare_outputs(net, net, x)
    assert found is not None
    assert found.agreement is None
    assert found.relative_error == 0


def test_the_first_output_that_depends_on_a_layer_counts() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    small, report = lowrank.compress(_Passed().eval(), x[:1], params=0.6, data=x)
    assert report.kept("parameters") <= 0.6
    assert small(x)[1].isfinite().all()


def test_a_model_without_a_layer_to_replace_is_refused_before_it_is_calibrated() -> None:
    tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    tied[1].weight = tied[0].weight
    x = torch.randn(16, 8)
    with pytest.raises(InputError, match=r"none of its 2 layers can be replaced"):
        lowrank.compress(tied, x[:1], params=0.6, data=x)


def test_what_is_wrong_with_data_is_said_of_data() -> None:
    for bad in (X * float("nan"), X[:0]):
        with pytest.raises(InputError, match=r"^data: "):
            lowrank.compress(_net(), X[:1], params=0.6, data=bad)


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(InputError, match=r"^metric: "):
        lowrank.compress(
            _net(),
            X[:1],
            data=X,
            max_drop=0.1,
            metric=lambda model: float("nan"),
            methods=["channel_svd"],
        )


# --- the model is left as it was ---------------------------------------------------------


def _state(model: nn.Module) -> dict[str, Any]:
    return {
        "training": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "own": [set(vars(m)) for m in model.modules()],
    }


@pytest.mark.parametrize("gradients", [False, True], ids=["inputs", "gradients"])
@pytest.mark.parametrize("fails", [False, True], ids=["goes well", "fails"])
def test_the_model_is_untouched(gradients: bool, fails: bool) -> None:
    net = _net().train()
    net.b.eval()
    net.a.weight.requires_grad_(False)
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    net.a.register_forward_hook(lambda m, args, y: None)
    views = scan(net, X).views
    before, values = _state(net), copy.deepcopy(net.state_dict())
    batches = [X, X[:, :2]] if fails else [X]
    if fails:
        with pytest.raises(InputError, match="refused"):
            calibrate(net, views, batches, gradients=gradients)
    else:
        calibrate(net, views, batches, gradients=gradients)
    after = _state(net)
    assert {k: v for k, v in before.items() if k != "grad"} == {
        k: v for k, v in after.items() if k != "grad"
    }
    for a, b in zip(before["grad"], after["grad"], strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in values.items())


def test_calibration_works_under_no_grad() -> None:
    with torch.no_grad():
        inside = _calibrated(_net(), [X], gradients=True)
    outside = _calibrated(_net(), [X], gradients=True)
    torch.testing.assert_close(inside.layers["a"].G, outside.layers["a"].G)


# --- batches -----------------------------------------------------------------------------


def test_calibration_and_check_examples_do_not_overlap() -> None:
    x = torch.arange(300.0)[:, None]
    used, rest = taken(x, x[:1], 100, rest=50)
    assert torch.equal(torch.cat(used), x[:100])
    assert torch.equal(torch.cat(rest), x[100:150])
    assert taken(x, x[:1], 300, rest=256)[1] == []


def test_pairs_with_labels_lose_them() -> None:
    x, y = torch.randn(70, 3), torch.zeros(70)
    for data in ((x, y), [(x[:40], y[:40]), (x[40:], y[40:])]):
        assert torch.equal(torch.cat(calibration_batches(data, x[:1])), x)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "holds no batch"),
        ([torch.tensor([[float("nan")]])], "NaN or Inf"),
        (7, "gives no batches"),
    ],
    ids=["no batch", "not a number", "a number"],
)
def test_bad_data_gets_a_sentence(data: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibration_batches(data, torch.zeros(1, 1))


@pytest.mark.parametrize("calibration", [0, -3, 2.5], ids=str)
def test_a_number_of_examples_that_makes_no_sense(calibration: Any) -> None:
    with pytest.raises(InputError, match="no number of examples"):
        lowrank.measure(_net(), X[:1], data=[X], calibration=lowrank.Calibration(count=calibration))


def test_the_sentence_names_time_memory_and_form() -> None:
    found = Calibrated({}, ("late",), 8, 1.25, 3_400_000, ("wide",))
    assert str(found) == (
        "calibrated 0 layers on 8 examples in 1.2 s; moments take 3.4 MB; "
        "by their positions: wide; never ran: late"
    )


def test_batches_are_cut_to_what_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, stride=2))
    x = torch.randn(40, 3, 9, 9)
    held = 4 * 4 * (8 * 9 * 9 + 4 * 4 * 4)  # bytes of an example: each output four times
    monkeypatch.setattr("lowrank.compression.network.cutting._MEMORY", 7 * held)
    curves = lowrank.measure(net.eval(), x[:2], data=x, methods=["channel_svd"])
    assert curves.data is not None
    assert [len(b) for b in curves.data.batches if isinstance(b, Tensor)] == [7] * 5 + [5]
    plan = curves.plan(params=0.5)
    small, _ = lowrank.apply(net, plan, data=curves.data)
    other, _ = lowrank.apply(net, plan, data=x)
    assert torch.allclose(small(x), other(x), atol=1e-4)


class Words(nn.Module):
    """Scores of the next word at every place of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.places = nn.Embedding(40, 16), nn.Embedding(12, 16)
        self.inner, self.head = nn.Linear(16, 16), nn.Linear(16, 40, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        h = self.table(words) + self.places(torch.arange(words.shape[1]))
        return self.head(h + self.inner(h).relu())


def test_scores_of_words_are_class_scores() -> None:
    net, rng = Words().eval(), torch.Generator().manual_seed(0)
    words = torch.randint(40, (256, 12), generator=rng)
    assert vocabularies(net) == {40, 12}
    small, report = lowrank.compress(net, words[:1], data=words, params=0.7)
    assert report.quality is not None
    assert report.quality.scores
    y, z = (run(model, words).log_softmax(-1) for model in (net, small))
    expected = (y.exp() * (y - z)).sum(-1).mean()
    assert report.quality.kl == pytest.approx(float(expected), rel=1e-4)
    moments = calibrate(net, scan(net, words[:1]).views, [words], gradients=True).layers["head"]
    assert moments.G is not None
    p = run(net, words).softmax(-1).flatten(0, 1).double()
    fisher = (torch.diag_embed(p) - p[:, :, None] * p[:, None]).sum(0) / len(words)
    assert torch.linalg.matrix_norm(moments.G[0] - fisher) < 0.2 * torch.linalg.matrix_norm(fisher)


def test_hidden_states_are_no_class_scores() -> None:
    square = nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, 16))  # as many words as features
    assert not is_scores(torch.zeros(2, 3, 16), vocabularies(square))
    assert not is_scores(torch.zeros(2, 3, 8), vocabularies(Words()))
    assert not is_scores(torch.zeros(2, 1))
    assert is_scores(torch.zeros(2, 3, 40), vocabularies(Words()))


# --- gradients that are held as they are ---------------------------------------------------


@pytest.mark.parametrize(
    ("outputs", "examples", "held"),
    [
        (1024, 8, False),
        (1028, 8, True),
        (1028, 600, False),
        (2048, 1100, False),
        (2052, 1100, True),
    ],
)
def test_gradients_of_wide_layers_are_held(outputs: int, examples: int, held: bool) -> None:
    """On both sides of the widths and the counts from which they are, with the same moment."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, outputs), nn.Tanh(), nn.Linear(outputs, 3))
    x = torch.randn(examples, 6)
    moments = _calibrated(net, [x], gradients=True).layers["0"]
    assert (moments.felt is not None) == held
    assert (moments.G is None) == held
    assert moments.differentiated
    if held and examples <= outputs // 2:  # all of them
        felt = _calibrated(net, [x], gradients=True).layers["0"].felt
        assert felt is not None
        first = Weight(torch.zeros_like(felt[:, 0]), felt)
        D = torch.randn(1, outputs, 6)
        metric = moments.metric().weighed(first)
        assert metric.error(D) == pytest.approx(metric.formed.error(D), rel=1e-4)


def test_many_positions_are_drawn_for_gradients() -> None:
    """A convolution whose gradients come from 20,000 places: a part of them stands for all."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 300, 1), nn.Tanh(), nn.Conv2d(300, 2, 1))
    x = torch.randn(2, 2, 100, 100)
    views = scan(net, x).views
    drawn, whole = (
        calibrate(net, views, [x], gradients=True, loss=lambda y: y.square().sum(), work=w)
        for w in (300 * 300 * 5000, 1e12)
    )
    a, b = drawn.layers["0"].G, whole.layers["0"].G
    assert a is not None
    assert b is not None
    assert not torch.equal(a, b)
    assert float(torch.linalg.matrix_norm(a - b)) < 0.1 * float(torch.linalg.matrix_norm(b))
