"""What people's training code holds: loaders, datasets, prepared, wrapped and sharded models.

Each goes through compress with and without data, and a saved file into a fresh one; or a sentence
says what to pass instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lowrank
from lowrank.compression import count_macs, run
from lowrank.errors import InputError

X, Y = torch.randn(64, 32), torch.arange(64) % 4


def build() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    return nn.Sequential(*layers).eval()


class Named(nn.Module):
    """Takes its input by name, as models of language do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = build()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.net(x if mask is None else x * mask)


class Rows(Dataset):
    """Dicts of one example each, with what the model does not take."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {"x": X[n], "labels": Y[n], "id": n}


class Stream(IterableDataset):
    """The same, one after another."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter([{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)])


def goes_the_whole_way(
    folder: Path, model: nn.Module, example: Any, data: Any, into: Callable[[], nn.Module]
) -> nn.Module:
    """Compress, count, save and load; gives the compressed model."""
    small, report = lowrank.compress(
        model, example, params=0.6, data=data, methods="channel_svd", effort="quick"
    )
    assert report.kept("parameters") <= 0.6
    assert report.plan.replaced
    assert count_macs(small, example)["(total)"] == report.plan.cost.macs
    lowrank.save(small, folder / "small.safetensors")
    loaded = lowrank.load(folder / "small.safetensors", into=into())
    torch.testing.assert_close(run(loaded, example), run(small, example), rtol=0, atol=0)
    return small


# --- data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("persistent", [False, True], ids=["once", "persistent"])
@pytest.mark.parametrize("n", [1, 2])
def test_loaders_with_workers(n: int, persistent: bool, tmp_path: Path) -> None:
    loader = DataLoader(
        TensorDataset(X, Y), batch_size=16, num_workers=n, persistent_workers=persistent,
        multiprocessing_context="fork",
    )  # fmt: skip
    goes_the_whole_way(tmp_path, build(), X[:1], loader, build)


def test_workers_that_are_spawned(tmp_path: Path) -> None:
    """A process that brings torch along starts in some seconds."""
    loader = DataLoader(
        TensorDataset(X, Y), batch_size=16, num_workers=1, multiprocessing_context="spawn"
    )
    goes_the_whole_way(tmp_path, build(), X[:1], loader, build)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")  # without a GPU
def test_pinned_batches(tmp_path: Path) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, pin_memory=True)
    goes_the_whole_way(tmp_path, build(), X[:1], loader, build)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("pinned", [False, True])
def test_batches_are_moved_to_the_device_of_the_example(pinned: bool) -> None:
    model, example = build().cuda(), X[:1].cuda()
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, pin_memory=pinned)
    small, report = lowrank.compress(model, example, params=0.6, data=loader, val=[X])
    assert report.quality is not None
    assert {p.device.type for p in small.parameters()} == {"cuda"}


BATCHED: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(Rows(), batch_size=16, num_workers=1),
    "stream": lambda: DataLoader(Stream(), batch_size=16),
    "list": lambda: [{"x": X[:16], "labels": Y[:16]}, {"x": X[16:], "labels": Y[16:]}],
    "one batch": lambda: {"x": X, "labels": Y},
    "none": lambda: None,
}


@pytest.mark.parametrize("data", BATCHED)
def test_batches_of_dicts(data: str, tmp_path: Path) -> None:
    goes_the_whole_way(tmp_path, Named(), {"x": X[:1]}, BATCHED[data](), Named)


SINGLE: dict[str, tuple[Any, str]] = {
    "dataset": (TensorDataset(X, Y), "a TensorDataset gives no batches"),
    "dataset of dicts": (Rows(), "a Rows gives no batches"),
    "stream": (Stream(), r"it gives single examples, dict\(x=float32 \(32,\)"),
    "list": ([*X], r"it gives single examples, float32 \(32,\)"),
    "pairs": ([*zip(X, Y, strict=True)], "it gives single examples"),
}


@pytest.mark.parametrize("data", SINGLE)
@pytest.mark.parametrize("name", ["data", "val"])
def test_single_examples_are_told_from_batches(name: str, data: str) -> None:
    given, said = SINGLE[data]
    by_name = "dict" in data or data == "stream"
    model, example = (Named(), {"x": X[:1]}) if by_name else (build(), X[:1])
    with pytest.raises(InputError, match=f"^{name}: {said}.*DataLoader"):
        lowrank.compress(model, example, params=0.6, **{name: given})


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 20, 12)])
def test_single_pictures_are_told_also_where_their_size_differs(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    with pytest.raises(InputError, match="single examples"):
        lowrank.compress(model, torch.zeros(1, 3, 8, 8), params=0.8, data=[torch.randn(shape)])


def test_an_input_of_fewer_axes_that_is_no_single_example_is_taken() -> None:
    """Sound as (batch, time) for a model that was shown (1, 1, time)."""

    class Listening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = build()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.reshape(-1, 32))

    settings = {"params": 0.6, "methods": "channel_svd"}
    small, _ = lowrank.compress(Listening(), X[:1, None], data=[X[:16]], **settings)
    assert small(X).shape == (64, 4)


@pytest.fixture
def dataset() -> Any:
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"x": X.tolist(), "labels": Y.tolist()})


def test_datasets_with_format_torch(dataset: Any, tmp_path: Path) -> None:
    ready = dataset.with_format("torch")
    for data in (DataLoader(ready, batch_size=16), [*ready.iter(16)]):
        goes_the_whole_way(tmp_path, Named(), {"x": X[:1]}, data, Named)
    with pytest.raises(InputError, match=r"single examples.*DataLoader"):
        lowrank.compress(Named(), {"x": X[:1]}, params=0.6, data=ready)
    with pytest.raises(InputError, match=r"holds no tensor.*with_format\('torch'\)"):
        lowrank.compress(Named(), {"x": X[:1]}, params=0.6, data=dataset)


# --- models ----------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def parallel() -> nn.Module:
    return nn.parallel.DistributedDataParallel(build())


def compiled() -> nn.Module:
    return torch.compile(build(), backend="eager")  # type: ignore[return-value]


WRAPPED: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "parallel": (parallel, build),
    "into parallel": (build, parallel),
    "compiled": (compiled, compiled),
    "compiled in parallel": (lambda: nn.parallel.DistributedDataParallel(compiled()), build),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("data", [None, [X]], ids=["weights", "data"])
def test_models_that_are_wrapped(wrapped: str, data: Any, tmp_path: Path) -> None:
    make, into = WRAPPED[wrapped]
    model = make()
    model(X[:1])
    small = goes_the_whole_way(tmp_path, model, X[:1], data, into)
    assert type(small) is nn.Sequential


@pytest.mark.usefixtures("one_process")
def test_a_sharded_model_is_told_what_to_pass_and_that_works() -> None:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    model = build()
    expected = model(X)
    fully_shard(model, mesh=mesh)
    with pytest.raises(InputError, match=r"0: its weight is sharded \(a DTensor\); compress a wh"):
        lowrank.compress(model, X[:1], params=0.6)
    whole = build()
    for parameter in whole.parameters():
        nn.init.zeros_(parameter)
    options = StateDictOptions(full_state_dict=True)
    whole.load_state_dict(get_model_state_dict(model, options=options))
    torch.testing.assert_close(whole(X), expected)
    small, _ = lowrank.compress(whole, X[:1], params=0.6, data=[X], methods="channel_svd")
    expected = small(X)
    fully_shard(small, mesh=mesh)
    torch.testing.assert_close(small(X), expected)


@pytest.fixture
def accelerate() -> Iterator[Any]:
    found = pytest.importorskip("accelerate")
    yield found
    found.state.AcceleratorState._reset_state(True)
    found.state.GradientState._reset_state()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_models_and_loaders_that_accelerate_prepared(
    accelerate: Any, precision: str, tmp_path: Path
) -> None:
    """With mixed precision the model's forward is an attribute of it, bound anew in the copy."""
    prepared = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    loader = DataLoader(TensorDataset(X, Y), batch_size=16)
    model, loader = prepared.prepare(build(), loader)
    for data in (None, loader):
        small, report = lowrank.compress(model, X[:1], params=0.6, data=data, methods="channel_svd")
        assert count_macs(small, X[:1])["(total)"] == report.plan.cost.macs
        assert small(X[:2]).dtype == torch.float32
        assert count_macs(model, X[:1])["(total)"] == report.dense.macs
    plain = prepared.unwrap_model(model, keep_fp32_wrapper=False)
    goes_the_whole_way(tmp_path, plain, X[:1], loader, build)
