"""One door: every argument is checked, and data are read by one code, before the model runs."""

import dataclasses
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib
import pytest
import torch
from torch import Tensor, nn

import lowrank
from lowrank.compression import Stopwatch, calibration_batches, compare_outputs, run
from lowrank.compression.network.batches import Batch, Batches, Form
from lowrank.compression.network.cutting import cut
from lowrank.compression.network.tensors import flatten, mapped, tensors
from lowrank.compression.pipeline.sweep import smallest
from lowrank.errors import InputError, LowRankError, RankError

torch.manual_seed(0)
X = torch.randn(48, 16)


class Untouched(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.runs = nn.Linear(16, 16), nn.Linear(16, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.b(torch.relu(self.a(x)))


NET = Untouched().eval()
OUTPUTS = lowrank.Calibration(weighting="outputs")
CURVES = lowrank.measure(NET, X[:1], methods="channel_svd", data=X, calibration=OUTPUTS)
PLAIN = lowrank.measure(NET, X[:1], methods="channel_svd")
PLAN = PLAIN.plan(params=0.7)


def _score(model: nn.Module) -> float:
    return float(run(model, X).sum())


def _compress(**given: Any) -> object:
    return lowrank.compress(NET, X[:1], **{"params": 0.7, "data": X, **given})


def _measure(**given: Any) -> object:
    return lowrank.measure(NET, X[:1], **{"data": X, **given})


def _apply(**given: Any) -> object:
    return lowrank.apply(NET, PLAN, **{"example": X[:1], "data": X, **given})


def _sweep(**given: Any) -> object:
    return lowrank.sweep(NET, X[:1], **{"data": X, "keeps": (0.7,), "budget": "params", **given})


def _smallest(**given: Any) -> object:
    return smallest(NET, **{"curves": CURVES, "metric": _score, "max_drop": 0.1, **given})


SETTINGS: list[dict[str, Any]] = [
    {"fit": "bogus"}, {"exponent": 7}, {"exponent": "1"}, {"count": 0}, {"count": 2.5},
    {"weighting": "probes"}, {"loss": "kl"}, {"seed": -1}, {"seed": 1.5}, {"seed": True},
]  # fmt: skip
RULES: list[dict[str, Any]] = [
    {"methods": "svd"}, {"methods": []}, {"methods": 3}, {"skip": "c"}, {"skip": 3},
    {"only": []}, {"only": "c*"}, {"round_to": 0}, {"round_to": 2.5}, {"overrides": ["a"]},
    {"overrides": {"c": lowrank.Dense()}}, {"overrides": {"a": "channel_svd"}},
    {"overrides": {"*": lowrank.ChannelSVD(5)}}, {"overrides": {"a": lowrank.CP(3)}},
]  # fmt: skip
DATA: list[dict[str, Any]] = [
    {"data": 7}, {"data": []}, {"data": "x"}, {"data": X * float("nan")}, {"data": X[:0]},
]  # fmt: skip
VAL: list[dict[str, Any]] = [
    {"val": []}, {"val": 7}, {"val": iter([X])}, {"val": X * float("nan")}, {"val": [X[:0]]},
]  # fmt: skip
STEPS: list[dict[str, Any]] = [{"refine": True, "data": None}, {"refine": -1}, {"refine": "a"}]
COMMON: list[dict[str, Any]] = [{"progress": 3}]
BUDGETS: list[dict[str, Any]] = [
    {"macs": 2.5}, {"params": 0}, {"params": None}, {"latency": 2}, {"memory": "half"},
    {"max_drop": 0.1, "metric": _score, "macs": 0.5}, {"metric": _score}, {"skips": "a"},
    {"params": None, "max_drop": 0.1}, {"params": None, "max_drop": -1, "metric": _score},
    {"params": None, "max_drop": 0.1, "metric": "accuracy"}, {"rules": lowrank.Rules(int8=True)},
]  # fmt: skip
SWEEPS: list[dict[str, Any]] = [
    {"keeps": ()}, {"keeps": (2.5,)}, {"budget": "flops"}, {"metric": "accuracy"},
    {"finetune": {"data": X}}, {"curves": CURVES, "skip": "a"}, {"curves": PLAIN},
    {"curves": CURVES, "calibration": lowrank.Calibration(count=7)},
    {"curves": PLAIN, "data": None, "refine": True},
]  # fmt: skip


def _lazily(name: str, settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    made = {"calibration": lowrank.Calibration, "rules": lowrank.Rules}[name]
    return lambda: {name: made(**settings)}


def _table() -> dict[str, tuple[Callable[..., object], Callable[[], dict[str, Any]]]]:
    plain: dict[Callable[..., object], list[dict[str, Any]]] = {
        _compress: [*DATA, *VAL, *STEPS, *COMMON, *BUDGETS, {"skip": "c"}, {"methods": "svd"}],
        _measure: [*DATA, *COMMON, {"skip": "c"}, {"methods": "svd"}],
        _apply: [*DATA, *VAL, *STEPS, *COMMON],
        _sweep: [*DATA, *VAL, *STEPS, *COMMON, *SWEEPS, {"skip": "c"}, {"methods": "svd"}],
        _smallest: [
            *STEPS[1:], *COMMON, {"max_drop": -1}, {"metric": 3}, {"budget": "flops"},
            {"curves": PLAIN, "refine": True}, {"calibration": lowrank.Calibration(count=7)},
        ],
    }  # fmt: skip
    found: dict[str, Any] = {}
    for f, rows in plain.items():
        for row in rows:
            where = f"{f.__name__[1:]}-{len(found)}-{'-'.join(row)}"
            found[where] = (f, lambda row=row: row)
        for settings in SETTINGS:
            where = f"{f.__name__[1:]}-{len(found)}-{next(iter(settings))}"
            found[where] = (f, _lazily("calibration", settings))
        for rules in RULES if f in (_compress, _measure, _sweep) else ():
            where = f"{f.__name__[1:]}-{len(found)}-{next(iter(rules))}"
            found[where] = (f, _lazily("rules", rules))
    return found


TABLE = _table()


@pytest.mark.parametrize("row", TABLE)
def test_what_makes_no_sense_is_refused_before_the_model_runs(row: str) -> None:
    f, given = TABLE[row]
    before = NET.runs
    with pytest.raises(LowRankError):
        f(**given())
    assert NET.runs == before


def test_compress_takes_sixteen_arguments() -> None:
    import inspect

    assert len(inspect.signature(lowrank.compress).parameters) <= 16


def test_methods_and_layers_are_named_alike() -> None:
    _, one = lowrank.compress(NET, X[:1], params=0.9, methods="channel_svd", skip="b")
    rules = lowrank.Rules(methods=["channel_svd"], skip=["b"])
    _, other = lowrank.compress(NET, X[:1], params=0.9, rules=rules)
    assert one.plan == other.plan
    assert set(one.plan.replaced) == {"a"}
    with pytest.raises(InputError, match="methods: given twice"):
        lowrank.compress(NET, X[:1], params=0.9, methods="cp", rules=rules)


def test_overrides_take_patterns_and_a_name_comes_first() -> None:
    net = nn.Sequential(OrderedDict((f"l[{k}]", nn.Linear(16, 16)) for k in range(3))).eval()
    rules = lowrank.Rules(
        overrides={"l[[]2]": lowrank.ChannelSVD(4), "l*": lowrank.ChannelSVD(3),
                   "l[0]": lowrank.Dense("by name")}
    )  # fmt: skip
    plan = lowrank.measure(net, X[:1], rules=rules).plan(params=1.0)
    assert [plan[f"l[{k}]"] for k in range(3)] == [
        lowrank.Dense("by name"), lowrank.ChannelSVD(3), lowrank.ChannelSVD(3),
    ]  # fmt: skip
    with pytest.raises(RankError, match=r"l\[0\]: rank 900"):
        lowrank.measure(net, X[:1], rules=lowrank.Rules(overrides={"*": lowrank.ChannelSVD(900)}))


def test_a_calibration_that_comes_too_late_is_refused() -> None:
    with pytest.raises(InputError, match="calibration: count=7 was settled by measure"):
        lowrank.apply(NET, PLAN, data=CURVES.data, calibration=lowrank.Calibration(count=7))
    lowrank.apply(NET, PLAN, data=CURVES.data, calibration=lowrank.Calibration(fit="parallel"))


# --- the same data everywhere ------------------------------------------------------------


class Two(nn.Module):
    """Takes two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x + shift)))


Pair = namedtuple("Pair", "x shift")


class Whole(Two):
    """Takes them in one record."""

    def forward(self, pair: Any) -> Tensor:  # type: ignore[override]
        return super().forward(pair.x, pair.shift)


@dataclasses.dataclass(frozen=True)
class Record:
    """As the pair."""

    x: Tensor
    shift: Tensor


Y = torch.arange(48) % 4
S = torch.randn(48, 16)
LOADER = torch.utils.data.DataLoader
SAME: dict[str, tuple[type[nn.Module], Any, Any]] = {
    "tensor": (Untouched, X[:2], X),
    "labelled": (Untouched, X[:2], (X, Y)),
    "list": (Untouched, X[:2], list(X.split(8))),
    "labelled list": (Untouched, X[:2], [(X[:24], Y[:24]), (X[24:], Y[24:])]),
    "more than labels": (Untouched, X[:2], [(X[:24], Y[:24], Y), (X[24:], Y[24:], Y)]),
    "loader": (Untouched, X[:2], LOADER(torch.utils.data.TensorDataset(X, Y), batch_size=8)),
    "two": (Two, (X[:2], S[:2]), [(X[:24], S[:24]), (X[24:], S[24:])]),
    "two, labelled": (Two, (X[:2], S[:2]), [(X[:24], S[:24], Y[:24]), (X[24:], S[24:], Y[24:])]),
    "two, apart": (Two, (X[:2], S[:2]), [((X[:24], S[:24]), Y[:24]), ((X[24:], S[24:]), Y[24:])]),
    "two, tensors": (Two, (X[:2], S[:2]), (X, S)),
    "two, tensors with labels": (Two, (X[:2], S[:2]), (X, S, Y)),
    "names": (Two, {"x": X[:2], "shift": S[:2]}, [{"x": X, "shift": S, "labels": Y, "id": Y}]),
    "one dict": (Two, {"x": X[:2], "shift": S[:2]}, {"x": X, "shift": S}),
    "namedtuple": (Whole, Pair(X[:2], S[:2]), [Pair(X, S)]),
    "namedtuple, labelled": (Whole, Pair(X[:2], S[:2]), [(Pair(X, S), Y)]),
    "dataclass": (Whole, Record(X[:2], S[:2]), [Record(X, S)]),
    "dataclass, labelled": (Whole, Record(X[:2], S[:2]), [(Record(X, S), Y)]),
}


@pytest.mark.parametrize("case", SAME)
def test_the_same_data_serve_compress_finetune_and_val(case: str) -> None:
    build, example, data = SAME[case]
    torch.manual_seed(0)
    net = build().eval()
    few = lowrank.Calibration(count=16, weighting="outputs", exponent=0.5, fit="parallel")
    small, report = lowrank.compress(
        net, example, params=0.8, data=data, val=data, methods="channel_svd", calibration=few
    )
    assert report.quality is not None
    assert report.quality.n_examples == 48
    labelled = "label" in case or case in ("loader", "two, apart", "names")
    records: list[Any] = []
    lowrank.finetune(
        small, teacher=net, data=data, val=data, epochs=1, callback=records.append, lr=1e-4
    )
    terms = {k for r in records for k in r.terms}
    assert terms == {"distillation", "labels"} if labelled else {"distillation"}


def test_an_iterator_is_read_once_and_its_rest_is_compared_on() -> None:
    few = lowrank.Calibration(count=16, weighting="outputs", exponent=0.5)
    _, report = lowrank.compress(NET, X[:1], params=0.8, data=iter(X.split(8)), calibration=few)
    assert report.quality is not None
    assert (report.quality.n_examples, report.quality.held_out) == (32, True)


def test_finetune_without_an_example_asks_the_forward() -> None:
    assert Form.taken_by(Two()).parts((X, S, Y))[1] is Y
    assert Form.taken_by(Untouched()).parts((X, Y))[1] is Y
    with pytest.raises(InputError, match="several inputs as"):
        Form.taken_by(Untouched()).parts((X, S, Y))
    with pytest.raises(InputError, match="labels are a list"):
        next(iter(Batches.of([(X, ["a"])]))).to_train()


def test_a_pair_of_another_length_is_no_labels() -> None:
    with pytest.raises(InputError, match="one label for each input"):
        calibration_batches((X, Y[:5]), X[:1])


# --- structures are kept whole -----------------------------------------------------------


class Named(NamedTuple):
    """With a default."""

    x: Tensor
    more: Any = None


@dataclasses.dataclass
class Open:
    """Not frozen; one field is set after."""

    x: Tensor
    more: Any = None
    late: int = dataclasses.field(init=False, default=3)


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Refuses what it was not made with."""

    x: Tensor
    more: Any = None

    def __post_init__(self) -> None:
        assert self.x.ndim == 2


def _output(x: Tensor, more: Any = None) -> Any:
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=x, hidden_states=more)


KINDS: dict[str, Callable[..., Any]] = {
    "tuple": lambda x, more=None: (x, more),
    "list": lambda x, more=None: [x, more],
    "namedtuple": Named,
    "dict": lambda x, more=None: {"x": x, "more": more},
    "OrderedDict": lambda x, more=None: OrderedDict(x=x, more=more),
    "dataclass": Open,
    "frozen": Frozen,
    "ModelOutput": _output,
}


@pytest.mark.parametrize("inner", KINDS)
@pytest.mark.parametrize("outer", KINDS)
def test_records_keep_their_class_when_cut_and_mapped(outer: str, inner: str) -> None:
    value = KINDS[outer](X, KINDS[inner](S))
    for found, n in ((mapped(value, lambda t: 2 * t), 48), (cut(value, 3, 7), 4)):
        assert type(found) is type(value)
        assert [type(t) for t in _inside(found)] == [type(t) for t in _inside(value)]
        assert [len(t) for t in tensors(found)] == [n, n]
    assert torch.equal(flatten(mapped(value, lambda t: 2 * t))[1], 2 * S)
    assert torch.equal(tensors(value)[0], X)  # the original is as it was


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Tensor | int | None):
        return []
    if dataclasses.is_dataclass(value) and not isinstance(value, dict):
        parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
    else:
        parts = list(value.values() if isinstance(value, dict) else value)
    return [value, *(t for part in parts for t in _inside(part))]


class Answers(nn.Module):
    """Gives what it computes in some structure."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.kind = nn.Linear(16, 16), kind

    def forward(self, x: Tensor) -> Any:
        return KINDS[self.kind](self.a(x), (x, None))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_of_any_structure_are_compared(kind: str) -> None:
    net, other = Answers(kind).eval(), Answers(kind).eval()
    same, off = (compare_outputs(net, m, X) for m in (net, other))
    assert same is not None
    assert off is not None
    assert same.relative_error == 0 < off.relative_error


def test_a_batch_that_was_read_is_not_read_again() -> None:
    batch = Batch.of((X, Y))
    assert Batch.of(batch) is batch


# --- what a report says ------------------------------------------------------------------


def test_a_report_reads_one_clock() -> None:
    net = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).eval()
    x = torch.randn(64, 256)
    clock = Stopwatch.here(net, x).clock
    assert lowrank.profile(net, x).latency.clock == clock  # type: ignore[union-attr]
    plain, timed = (
        lowrank.compress(net, x, methods="channel_svd", **budget)[1]
        for budget in ({"params": 0.2}, {"latency": 0.9})
    )
    for report in (plain, timed):
        assert {f.latency.clock for f in (report.dense, report.compressed)} == {clock}
    assert timed.latency is not None
    assert timed.kept("latency_ms") == timed.latency.measured.ratio
    assert timed.dense.latency == timed.latency.measured.dense
    assert timed.compressed.latency == timed.latency.measured.compressed


def test_a_plan_after_an_unlucky_drop_is_drawn() -> None:
    found = iter([1.0])
    _, report = lowrank.compress(NET, X[:1], max_drop=0.1, metric=lambda model: next(found, 0.0))
    assert not report.plan.replaced
    assert "no smaller model loses at most 0.1" in str(report.plan["a"])
    matplotlib.use("agg")
    labels = [text.get_text() for text in report.plan.plot().get_yticklabels()]
    assert labels == ["a", "b"]


class _Reads(nn.Module):
    """Takes one record, and reads its field."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, p: Any) -> Tensor:
        return self.b(self.a(p.u).relu())


@dataclasses.dataclass
class _Record:
    u: Tensor


@pytest.mark.parametrize("made", [namedtuple("Named", "u"), _Record], ids=["named", "dataclass"])
def test_a_record_is_one_batch(made: Any) -> None:
    few = lowrank.Calibration(weighting="outputs", exponent=0.5)
    _, report = lowrank.compress(
        _Reads(), made(X[:1]), params=0.7, data=made(X), val=made(X), calibration=few
    )
    assert report.quality is not None


@pytest.mark.parametrize("given", [None, "good", torch.ones(2)], ids=["None", "text", "several"])
def test_a_metric_that_gives_no_number_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match=r"^metric: of the dense model it is .* no number"):
        lowrank.compress(NET, X[:1], max_drop=0.1, metric=lambda model: given)


def test_an_unknown_keyword_says_where_it_belongs() -> None:
    with pytest.raises(InputError, match=r"Calibration\(fit=\.\.\.\)"):
        lowrank.sweep(NET, X[:1], fit="bogus")
    with pytest.raises(InputError, match=r"did you mean skip"):
        lowrank.compress(NET, X[:1], macs=0.5, skips="a")
    with pytest.raises(InputError, match=r"Rules has methods"):
        lowrank.compress(NET, X[:1], macs=0.5, bogus=3)


@pytest.mark.parametrize("weighting", ["outputs", "gradients"])
def test_data_that_the_model_refuses_are_called_so(weighting: Any) -> None:
    wide, given = torch.randn(8, 17), lowrank.Calibration(weighting=weighting)
    with pytest.raises(InputError, match=r"^data: the model refused a batch.*\(8, 17\)"):
        lowrank.compress(NET, X[:1], params=0.7, data=wide, calibration=given)
    with pytest.raises(InputError, match=r"^data: the model refused a batch.*\(8, 17\)"):
        lowrank.finetune(Untouched(), teacher=NET, data=wide, epochs=1)
    with pytest.raises(InputError, match=r"^example: the model refused the example.*\(8, 17\)"):
        lowrank.compress(NET, wide, params=0.7)


NO_MODULES = {
    "an OrderedDict": NET.state_dict(),
    "a class": Untouched,
    "a str": "net.pt",
    "a function": _score,
}


@pytest.mark.parametrize("what", NO_MODULES)
def test_what_is_no_module_is_named(what: str) -> None:
    with pytest.raises(InputError, match=f"^model: it is {what}; pass a torch.nn.Module"):
        lowrank.compress(NO_MODULES[what], X[:1], params=0.7)  # type: ignore[arg-type]
