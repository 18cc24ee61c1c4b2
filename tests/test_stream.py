"""Models compressed block by block from folder to folder, cut off at any moment."""

import errno
import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import lowrank
from lowrank.compression.pipeline.streaming.journal import NAME
from lowrank.compression.structure.pretrained import tensor_files
from lowrank.errors import CheckpointError

transformers = pytest.importorskip("transformers", minversion="5.0")

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
WORDS = 96
IDS = torch.randint(WORDS, (6, 24), generator=torch.Generator().manual_seed(0))


def llama(n: int = 4, **more):
    return transformers.LlamaConfig(
        **{**SIZE, "vocab_size": WORDS, "num_hidden_layers": n, "num_key_value_heads": 2, **more}
    )


def saved(config, folder: Path, kind=None, dtype=torch.float32, shard="40KB") -> Path:
    torch.manual_seed(1)
    kind = kind or transformers.AutoModelForCausalLM
    model = kind.from_config(config).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return saved(llama(), tmp_path_factory.mktemp("dense"))


def digests(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def outputs(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs)
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


@pytest.mark.parametrize("allocation", ["errors", "alike"])
def test_a_folder_of_shards_becomes_a_folder_that_loads(dense, tmp_path, allocation):
    told = []
    done = lowrank.compress_folder(
        dense, tmp_path / "small", params=0.7, data=IDS, allocation=allocation,
        progress=lambda *what: told.append(what),
    )  # fmt: skip
    small = lowrank.load_pretrained(tmp_path / "small")
    kept = sum(p.numel() for p in small.parameters())
    assert kept == done.plan.cost.params <= 0.7 * done.plan.total.params
    assert not (tmp_path / "small" / NAME).exists()
    assert "4 blocks, one at a time: about" in told[0][0]
    steps = [what for what in told if "compressing" in what[0]]
    assert [(k, n) for _, k, n in steps] == [(0, 4), (1, 4), (2, 4), (3, 4)]
    whole = lowrank.load_pretrained(dense)
    y, z = (outputs(m, input_ids=IDS) for m in (whole, small))
    memory, _ = lowrank.apply(
        whole, done.plan, example={"input_ids": IDS[:1]}, data=[{"input_ids": IDS}],
        calibration=lowrank.Calibration(fit="parallel"),
    )  # fmt: skip
    other = outputs(memory, input_ids=IDS)
    assert (y - z).norm() < 1.2 * (y - other).norm()


def test_at_full_rank_nothing_changes(dense, tmp_path):
    done = lowrank.compress_folder(dense, tmp_path, params=1.0, data=IDS)
    assert not done.plan.replaced
    whole, small = (lowrank.load_pretrained(folder) for folder in (dense, tmp_path))
    assert torch.equal(outputs(whole, input_ids=IDS), outputs(small, input_ids=IDS))
    assert small.config.use_cache == whole.config.use_cache


def killed(dense: Path, out: Path, when) -> bool:
    """Run in a process of its own and end it by SIGKILL when told to; whether it was."""
    child = os.fork()
    if not child:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            lowrank.compress_folder(dense, out, params=0.7, data=IDS)
            os._exit(0)
        finally:
            os._exit(1)
    while not when() and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    try:
        os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    except (ProcessLookupError, ChildProcessError):  # it had ended
        return False


@pytest.fixture(scope="module")
def whole_run(dense, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    lowrank.compress_folder(dense, out, params=0.7, data=IDS)
    return digests(out)


def test_a_killed_run_goes_on_to_the_same_bytes(dense, whole_run, tmp_path):
    """SIGKILL as soon as the second block's shard is being written; then here to the end."""
    shard = tmp_path / NAME / "final" / "lowrank-00002-of-00005.safetensors"
    assert killed(dense, tmp_path, shard.exists)
    assert not (tmp_path / "config.json").exists()
    lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS)
    assert digests(tmp_path) == whole_run


@pytest.mark.slow
def test_ten_kills_at_random_moments(dense, whole_run, tmp_path):
    began = time.monotonic()
    assert not killed(dense, tmp_path / "timed", lambda: False)
    whole, rng, kills, n = time.monotonic() - began, random.Random(0), 0, 0
    while kills < 10:
        out = tmp_path / str(n)
        end = time.monotonic() + rng.uniform(0, whole)
        if killed(dense, out, lambda end=end: time.monotonic() > end):
            kills += 1
        else:
            assert digests(out) == whole_run
            n += 1
    lowrank.compress_folder(dense, tmp_path / str(n), params=0.7, data=IDS)
    assert digests(tmp_path / str(n)) == whole_run


def test_a_step_that_is_cut_off_anywhere_is_done_again(dense, whole_run, tmp_path, monkeypatch):
    """Every write of the run fails once, as on a full disk; each call gets a little further."""
    plain, room = tensor_files._put, [0]

    def put(file, chunk):
        if not room[0]:
            room[0] = rng.randrange(22, 30)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= 1
        plain(file, chunk)

    rng, cuts = random.Random(3), 0
    monkeypatch.setattr(tensor_files, "_put", put)
    for _ in range(200):
        try:
            lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS)
        except CheckpointError as error:
            assert str(error).endswith("the same call goes on at the block it was in")  # noqa: PT017
            cuts += 1
        else:
            break
    assert cuts >= 3
    assert digests(tmp_path) == whole_run


def test_an_unfinished_run_is_not_mixed_with_another(dense, tmp_path, monkeypatch):
    def full(file, chunk):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(tensor_files, "_put", full)
        with pytest.raises(CheckpointError, match="No space left"):
            lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS)
    with pytest.raises(CheckpointError, match=r"unfinished run with other params.*delete the"):
        lowrank.compress_folder(dense, tmp_path, params=0.6, data=IDS)
    lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS)
    assert lowrank.load_pretrained(tmp_path)
