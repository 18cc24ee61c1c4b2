"""What is kept in a folder changes no result, survives a kill, and is never loaded wrongly."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor, nn

import lowrank
from lowrank.cli import main
from lowrank.compression.calibration import kept
from lowrank.compression.calibration.fingerprint import of_inputs, of_model
from lowrank.compression.planning import measure as measuring
from lowrank.errors import InputError, Interrupted
from lowrank.store import Kept, Store

WIDTH = 16


class Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.second = nn.Conv2d(n, n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.norm(self.first(x)).relu())


class Attends(nn.Module):
    """Three layers on one input, behind a norm; a table of words that the head shares."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(40, WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        y = self.norm(x)
        share = (self.q(y) @ self.k(y).mT / WIDTH**0.5).softmax(-1)
        return self.head(x + self.out(share @ self.v(y)))


def _conv() -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Residual(8), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(32, 8),
    )  # fmt: skip
    with torch.no_grad():
        net(torch.randn(32, 3, 6, 6))
    return net


def _linear() -> nn.Module:
    return nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6)
    )


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


WORDS = torch.randint(40, (24, 7), generator=torch.Generator().manual_seed(1))
NETS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv": (_conv, _drawn(24, 3, 6, 6)),
    "channels last": (lambda: _conv().to(memory_format=torch.channels_last), _drawn(24, 3, 6, 6)),
    "linear": (_linear, _drawn(32, 24)),
    "double": (lambda: _linear().double(), _drawn(32, 24).double()),
    "attention": (Attends, WORDS),
}


METHODS = ("channel_svd", "spatial_svd", "shared_input_svd")
"""Those that search little."""


def _net(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, x = NETS[kind]
    return build().eval(), x


def _compressed(kind: str, *, data: bool = True, **given: Any) -> tuple[dict[str, Tensor], Any]:
    net, x = _net(kind)
    how = {"params": 0.7, "data": x if data else None, "methods": METHODS, **given}
    small, report = lowrank.compress(net, x[:1], **how)
    return small.state_dict(), report


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


WAYS: dict[str, dict[str, Any]] = {
    "no data": {"data": False},
    "data": {},
    "parallel": {"calibration": lowrank.Calibration(fit="parallel", weighting="gradients")},
    "outputs": {"calibration": lowrank.Calibration(weighting="outputs")},
    "quick": {"effort": "quick"},
    "every method": {"methods": tuple(lowrank.compression.methods.METHODS)},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("kind", "way"), [
    *itertools.product(NETS, ["no data", "data", "quick"]),
    *itertools.product(["conv", "attention"], ["parallel", "outputs"]),
    ("linear", "every method"),
])  # fmt: skip
def test_results_are_the_same_to_the_last_bit(kind: str, way: str, tmp_path: Path) -> None:
    plain, report = _compressed(kind, **WAYS[way])
    for _ in ("cold", "warm"):
        found, again = _compressed(kind, cache=tmp_path, **WAYS[way])
        assert again.plan == report.plan
        assert _same(plain, found)
    other, report = _compressed(kind, **{"params": 0.55, **WAYS[way]})
    found, again = _compressed(kind, **{"params": 0.55, **WAYS[way]}, cache=tmp_path)
    assert again.plan == report.plan
    assert _same(other, found)


def test_another_budget_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _net("attention")
    lowrank.measure(net, x[:1], data=x, cache=tmp_path)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("it was measured again")

    for name in ("_curve", "_candidates", "_joint_curve", "_on_data"):
        monkeypatch.setattr(measuring, name, never)
    monkeypatch.setattr("lowrank.compression.calibration.statistics.calibrate", never)
    monkeypatch.setattr("lowrank.compression.planning.sensitivity._loss_of", never)
    _, report = lowrank.compress(net, x[:1], params=0.6, data=x, cache=tmp_path)
    assert report.plan.replaced


def test_curves_are_what_they_were(tmp_path: Path) -> None:
    net, x = _net("attention")
    plain = lowrank.measure(net, x[:1], data=x)
    for _ in ("cold", "warm"):
        found = lowrank.measure(net, x[:1], data=x, cache=tmp_path)
        assert found == plain
        small, report = lowrank.apply(net, found.plan(params=0.6), data=found.data)
        wanted, _ = lowrank.apply(net, plain.plan(params=0.6), data=plain.data)
        assert _same(small.state_dict(), wanted.state_dict())
        assert not report.remarks[-1].startswith("the cache")


def test_apply_and_sweep_go_on(tmp_path: Path) -> None:
    net, x = _net("conv")
    plan = lowrank.measure(net, x[:1], methods=METHODS).plan(params=0.6)
    wanted, _ = lowrank.apply(net, plan, data=x)
    for _ in ("cold", "warm"):
        small, _ = lowrank.apply(net, plan, data=x, cache=tmp_path)
        assert _same(small.state_dict(), wanted.state_dict())
    curves = lowrank.measure(net, x[:1], data=x, methods=METHODS)
    wanted, _ = lowrank.apply(net, plan, data=curves.data)
    n = len(_files(tmp_path))
    for _ in ("cold", "warm"):
        small, _ = lowrank.apply(net, plan, data=curves.data, cache=tmp_path)
        assert _same(small.state_dict(), wanted.state_dict())
    assert len(_files(tmp_path)) > n
    plain = lowrank.sweep(net, x[:1], x, methods=METHODS, keeps=(0.8, 0.6))
    for _ in ("cold", "warm"):
        found = lowrank.sweep(net, x[:1], x, methods=METHODS, keeps=(0.8, 0.6), cache=tmp_path)
        assert found.to_dict() == plain.to_dict()


# --- never loaded wrongly ----------------------------------------------------------------


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def _flipped(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(bytes(whole))


def _edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"0.", b"1.", 1))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": _truncated,
    "a bit": _flipped,
    "edited": _edited,
    "text": lambda path: path.write_text("not this"),
    "empty": lambda path: path.write_bytes(b""),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_anew(damage: str, tmp_path: Path) -> None:
    plain, report = _compressed("linear", cache=tmp_path)
    before = _files(tmp_path)
    for path in before:
        DAMAGE[damage](path)
    found, again = _compressed("linear", cache=tmp_path)
    assert again.plan == report.plan
    assert _same(plain, found)
    assert any("damaged or foreign" in remark for remark in again.remarks)
    if damage != "a folder":
        _, third = _compressed("linear", cache=tmp_path)
        assert not any("damaged" in remark for remark in third.remarks)


def test_results_of_something_else_are_not_taken(tmp_path: Path) -> None:
    plain, _ = _compressed("linear", cache=tmp_path)
    files = _files(tmp_path)
    contents = [path.read_bytes() for path in files]
    for path, content in zip(files, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    found, report = _compressed("linear", cache=tmp_path)
    assert _same(plain, found)
    assert any("damaged or foreign" in remark for remark in report.remarks)


class Scaled(nn.Module):
    """Two nets with the same weights that compute something else."""

    def __init__(self, scale: Any) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(24, 24), nn.Linear(24, 24), scale

    def forward(self, x: Tensor) -> Tensor:
        by = self.scale(x) if callable(self.scale) else self.scale
        return self.b(by * torch.relu(self.a(x)))


class Elsewhere(Scaled):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(2 * torch.tanh(self.a(x)))


@dataclass
class Config:
    scale: float

    def __call__(self, x: Tensor) -> float:
        return self.scale


def _scaled(scale: Any, cls: type[Scaled] = Scaled) -> nn.Module:
    torch.manual_seed(0)
    return cls(scale).eval()


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "a weight": lambda: _touched(_scaled(1.0)),
    "a setting": lambda: _scaled(3.0),
    "a config": lambda: _scaled(Config(5.0)),
    "another config": lambda: _scaled(Config(6.0)),
    "a function": lambda: _scaled(lambda x: 1 + x),
    "another function": lambda: _scaled(lambda x: 1 - x),
    "a loose tensor": lambda: _scaled(torch.ones(24)),
    "another loose tensor": lambda: _scaled(torch.zeros(24)),
    "code": lambda: _scaled(1.0, Elsewhere),
}


def _touched(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        net.get_parameter("a.weight")[0, 0] += 1e-6
    return net


def test_models_are_told_apart() -> None:
    marks = [of_model(build()) for build in (lambda: _scaled(1.0), *OTHERS.values())]
    assert len(set(marks)) == len(marks)
    assert of_model(_scaled(1.0)) == of_model(_scaled(1.0)) == of_model(_scaled(1.0).train())


def test_inputs_are_told_apart() -> None:
    x = _drawn(4, 3)
    given = [x, [x], (x,), [x[:2], x[2:]], {"x": x}, {"y": x}, x.int(), x.mT, x[:2], (x, None),
             (x, 3), (x, "3"), (x, True), Config(3.0), [x, x]]  # fmt: skip
    marks = [of_inputs(one) for one in given]
    assert len(set(marks)) == len(marks)
    assert of_inputs({"x": x}) == of_inputs({"x": x.clone()})
    with pytest.raises(InputError, match=r"^cache: the data holds a object, .*; drop cache="):
        of_inputs([x, object()])


X = _drawn(40, 24)
CHANGES: dict[str, dict[str, Any]] = {
    "data": {"data": X[:32]},
    "batches": {"data": list(X.split(10))},
    "count": {"calibration": lowrank.Calibration(count=20)},
    "seed": {"calibration": lowrank.Calibration(seed=3)},
    "weighting": {"calibration": lowrank.Calibration(weighting="gradients")},
    "outputs": {"calibration": lowrank.Calibration(weighting="outputs")},
    "own weighting": {
        "calibration": lowrank.Calibration(weighting=lambda m: -float(m(X).detach().norm()))
    },
    "effort": {"effort": "quick"},
    "methods": {"methods": ["channel_svd"]},
    "rounding": {"round_to": 4},
    "skip": {"skip": "a"},
    "override": {"overrides": {"a": lowrank.ChannelSVD(5)}},
    "another override": {"overrides": {"a": lowrank.ChannelSVD(6)}},
    "fit": {"calibration": lowrank.Calibration(fit="parallel")},
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    lowrank.compress(_scaled(1.0), X[:1], params=0.6, data=X, cache=folder)
    return folder


@pytest.mark.one_in(3)
@pytest.mark.parametrize("change", [*OTHERS, *CHANGES])
def test_what_changes_is_computed_anew(change: str, filled: Path) -> None:
    how = {"params": 0.6, "data": X, **CHANGES.get(change, {})}
    build = OTHERS.get(change, lambda: _scaled(1.0))
    plain, report = lowrank.compress(build(), X[:1], **how)
    found, again = lowrank.compress(build(), X[:1], **how, cache=filled)
    assert again.plan == report.plan
    assert _same(plain.state_dict(), found.state_dict())


def _mine(rank: int) -> type[lowrank.ChannelSVD]:
    @dataclass(frozen=True)
    class Mine(lowrank.ChannelSVD):
        name = "mine"

        @classmethod
        def candidates(cls, spec: Any, weight: Tensor, **given: Any) -> Any:
            return [(cls(rank), 0.1 * rank)] if rank < 4 else [(cls(4), 0.1), (cls(5), 0.05)]

    return Mine


def test_a_method_of_the_users_goes_by_its_code(tmp_path: Path) -> None:
    net, x = _net("linear")
    for rank in (3, 3, 4, 3):  # the closed-over rank is part of it
        curves = lowrank.measure(net, x[:1], methods=_mine(rank), cache=tmp_path)
        wanted = lowrank.measure(net, x[:1], methods=_mine(rank))
        ranks = [[c.method.rank for c in one.candidates] for one in curves.curves]
        assert ranks == [[c.method.rank for c in one.candidates] for one in wanted.curves]


def test_only_safetensors_with_json_are_written(tmp_path: Path) -> None:
    _compressed("conv", cache=tmp_path / "new" / "folder")
    files = _files(tmp_path / "new" / "folder")
    assert files
    for path in files:
        assert path.suffix == ".safetensors"
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["lowrank"].startswith("{")


def test_large_moments_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = _compressed("linear")
    monkeypatch.setattr(kept, "LIMIT", 1000)
    for _ in ("cold", "warm"):
        found, _ = _compressed("linear", cache=tmp_path)
        assert _same(plain, found)
    assert max(path.stat().st_size for path in _files(tmp_path)) < 30_000


BAD: dict[str, Any] = {"number": 3, "nothing": "", "bytes": b"kept"}


@pytest.mark.parametrize("given", BAD.values(), ids=list(BAD))
def test_what_is_no_folder_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"^cache: .* is no folder"):
        _compressed("linear", cache=given)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"^cache: .*file cannot be written to"):
        _compressed("linear", cache=tmp_path / "file")


def test_a_loss_beside_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^cache: a loss .* drop cache= or loss="):
        lowrank.Calibration(cache=tmp_path, loss=lambda y: y.sum())


def test_a_full_disk_is_remarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lowrank.store.save_file", full)
    store.put("a", Kept({}))
    assert store.get("a") is None
    assert "does not take all results" in store.remarks[0]
    assert _files(tmp_path) == []


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    old, new = tmp_path / ".a.1.safetensors", tmp_path / ".b.2.safetensors"
    for path in (old, new):
        path.write_text("")
    os.utime(old, (0, 0))
    Store(tmp_path)
    assert _files(tmp_path) == [new]


def test_tensors_lie_as_they_lay(tmp_path: Path) -> None:
    x = _drawn(3, 4, 5)
    given = {"plain": x, "turned": x.mT, "strided": x[:, ::2], "wide": x[:1].expand(2, 4, 5),
             "none": x[:0], "number": torch.tensor(3), "half": x.bfloat16()}  # fmt: skip
    store = Store(tmp_path)
    store.put("a", Kept({}, given))
    found = store.get("a")
    assert found is not None
    for name, t in given.items():
        assert torch.equal(found.tensors[name], t)
        assert found.tensors[name].dtype == t.dtype
    assert found.tensors["turned"].stride() == x.mT.stride()


# --- killed and interrupted --------------------------------------------------------------

KILLED = """
    import os, signal, sys, torch, lowrank
    from tests.test_cache import METHODS, _net, _same

    def run(kind, folder, at=None):
        net, x = _net(kind)
        calls = iter(range(10_000))

        def tell(what, done, total):
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)

        told = tell if at is not None else None
        how = {"data": x, "cache": folder, "methods": METHODS, "progress": told}
        return lowrank.compress(net, x[:1], params=0.6, **how)

    torch.set_num_threads(1)
    kind, every = sys.argv[2], int(sys.argv[3])
    folder, n = os.path.join(sys.argv[1], kind), 0
    for at in range(2, 18, every):
        pid = os.fork()
        if not pid:
            run(kind, folder, at)
            os._exit(0)
        code = os.waitpid(pid, 0)[1]
        n += os.WIFSIGNALED(code) and os.WTERMSIG(code) == signal.SIGKILL
        assert os.WIFSIGNALED(code) or code == 0, code
    assert n >= max(1, 12 // every), n
    small, report = run(kind, folder)
    plain, wanted = run(kind, None)
    assert report.plan == wanted.plan
    assert _same(small.state_dict(), plain.state_dict())
    print(kind, n)
"""


@pytest.mark.parametrize(
    ("kind", "every"),
    [
        ("conv", 25),
        pytest.param("conv", 12, marks=pytest.mark.slow),
        pytest.param("conv", 2, marks=pytest.mark.slow),
        pytest.param("attention", 4, marks=pytest.mark.slow),
    ],
)
def test_killed_again_and_again_it_ends_as_if_it_had_not_been(
    kind: str, every: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), kind, str(every)],
        capture_output=True, text=True, timeout=300, check=False,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert kind in done.stdout


def _stop_at(n: int) -> Callable[[str, int, int], None]:
    calls = itertools.count()

    def tell(what: str, done: int, total: int) -> None:
        if next(calls) == n:
            raise KeyboardInterrupt

    return tell


def _stages(call: Callable[..., Any]) -> Iterator[tuple[int, str]]:
    told: list[str] = []
    call(progress=lambda what, *_: told.append(what))
    yield from enumerate(told)


@pytest.mark.parametrize("kind", ["conv", "attention"])
@pytest.mark.parametrize("data", [False, True], ids=["no data", "data"])
def test_what_was_measured_is_usable_after_an_interrupt(kind: str, data: bool) -> None:
    net, x = _net(kind)

    def call(**given: Any) -> lowrank.Curves:
        return lowrank.measure(net, x[:1], data=x if data else None, methods=METHODS, **given)

    whole = call()
    seen = set()
    for n, _ in _stages(call):
        with pytest.raises(KeyboardInterrupt) as info:
            call(progress=_stop_at(n))
        stop = info.value
        assert isinstance(stop, lowrank.Interrupted)
        if stop.curves is None:
            assert "before a layer was measured" in str(stop)
            continue
        seen.add(len(stop.curves.curves))
        assert f"{len(stop.curves.curves)} of {len(whole.curves)} layers measured" in str(stop)
        assert "cache=FOLDER would let the same call go on" in str(stop)
        plan = stop.curves.plan(params=0.97)
        left = {k for k, why in stop.curves.reasons.items() if why == measuring.NOT_MEASURED}
        assert left == {name for c in whole.curves for name in c.layers} - {
            name for c in stop.curves.curves for name in c.layers
        }
        assert not left & set(plan.replaced)
        small, report = lowrank.apply(net, plan, data=stop.curves.data)
        assert report.plan.layers.keys() == whole.kinds.keys()
        assert torch.isfinite(small(x)).all()
    assert seen == set(range(1, len(whole.curves) + 1))


def test_an_interrupted_compression_has_its_curves(tmp_path: Path) -> None:
    net, x = _net("conv")

    def call(**given: Any) -> Any:
        return lowrank.compress(net, x[:1], params=0.7, data=x, methods=METHODS, **given)

    last = max(n for n, _ in _stages(call)) - 1
    with pytest.raises(Interrupted, match=r"all layers measured; the exception's \.curves") as info:
        call(progress=_stop_at(last))
    assert info.value.curves == lowrank.measure(net, x[:1], data=x, methods=METHODS)
    with pytest.raises(Interrupted, match="the same call goes on from there, by what"):
        call(progress=_stop_at(last), cache=tmp_path)
    small, _ = call(cache=tmp_path)
    assert _same(small.state_dict(), call()[0].state_dict())


def test_interrupted_fits_say_how_to_go_on(tmp_path: Path) -> None:
    net, x = _net("linear")
    curves = lowrank.measure(net, x[:1], data=x, methods=METHODS)
    plan = curves.plan(params=0.7)

    def apply(**given: Any) -> Any:
        return lowrank.apply(net, plan, data=curves.data, **given)

    def sweep(**given: Any) -> Any:
        return lowrank.sweep(net, x[:1], curves=curves, keeps=(0.8, 0.7), **given)

    with pytest.raises(Interrupted, match="before all layers were replaced; cache=FOLDER would"):
        apply(progress=_stop_at(0))
    with pytest.raises(Interrupted, match="the same call goes on from there, by what"):
        apply(progress=_stop_at(0), cache=tmp_path)
    with pytest.raises(Interrupted, match="with 1 of 2 budgets done") as info:
        sweep(progress=_stop_at(1))
    assert info.value.curves is curves


def test_asking_for_a_dry_run_names_the_forecast() -> None:
    net, x = _net("linear")
    with pytest.raises(InputError, match=r"lowrank.forecast\(model, example, data=...\)"):
        lowrank.measure(net, x[:1], dry_run=True)  # type: ignore[call-arg]


NET_FILE = """
    import torch
    from torch import nn

    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()
"""


@pytest.fixture
def net_file(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(textwrap.dedent(NET_FILE))
    return f"{tmp_path / 'net.py'}:build"


def test_the_command_line_keeps_and_goes_on(net_file: str, tmp_path: Path) -> None:
    outputs = []
    for name in ("a", "b"):
        out = tmp_path / f"{name}.safetensors"
        given = ["--input", "1x64", "--params", "0.6", "--cache", str(tmp_path / "kept")]
        done = CliRunner().invoke(main, ["compress", net_file, *given, "-o", str(out)])
        assert done.exit_code == 0, done.output
        outputs.append(out.read_bytes())
    assert outputs[0] == outputs[1]
    assert _files(tmp_path / "kept")


@pytest.mark.parametrize("keeps", [False, True], ids=["nothing", "a folder"])
def test_the_command_line_says_what_an_interrupt_left(
    net_file: str,
    keeps: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    real, calls = measuring._candidates, itertools.count()

    def candidates(*args: Any) -> Any:
        if next(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(measuring, "_candidates", candidates)
    # a job behind `&` in a script starts with the signal ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    more = ["--cache", str(tmp_path / "kept")] if keeps else []
    given = ["compress", net_file, "--input", "1x64", "--params", "0.6", *more]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 130
    said = "goes on from there, by what" if keeps else "with --cache FOLDER the same command would"
    assert "interrupted with 1 of 2 layers measured" in done.output
    assert said in done.output
    assert "Traceback" not in done.output
