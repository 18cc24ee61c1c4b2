"""Models compressed block by block from folder to folder, cut off at any moment."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lowrank
from lowrank.cli import main
from lowrank.cli.network import stream as cli_stream
from lowrank.compression import spec_of
from lowrank.compression.calibration.moments import Sums
from lowrank.compression.pipeline.streaming import examples
from lowrank.compression.pipeline.streaming.journal import NAME, alone
from lowrank.compression.pipeline.streaming.neurons import Neurons, fewer_neurons
from lowrank.compression.pipeline.streaming.source import opened
from lowrank.compression.pipeline.streaming.states import read_states, recorded
from lowrank.compression.structure.pretrained import tensor_files
from lowrank.errors import CheckpointError, InputError

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


def test_two_processes_do_not_write_one_folder(dense, tmp_path):
    (ready, tell), (wait, end) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        with alone(tmp_path):
            os.write(tell, b"x")
            os.read(wait, 1)
            os._exit(0)
    os.read(ready, 1)
    try:
        with pytest.raises(CheckpointError, match="another process is writing it"):
            lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS)
    finally:
        os.write(end, b"x")
        os.waitpid(child, 0)
    lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS)
    assert not (tmp_path / NAME).exists()


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


S = {**SIZE, "num_hidden_layers": 2, "vocab_size": WORDS}
HEADS = {**S, "num_key_value_heads": 2}
SLIDING = {"sliding_window": 8, "head_dim": 8}
FAMILIES = {
    "llama, tied": lambda: (llama(2, tie_word_embeddings=True), "CausalLM"),
    "llama, bare": lambda: (llama(2), ""),
    "qwen3": lambda: (transformers.Qwen3Config(**HEADS, head_dim=8), "CausalLM"),
    "qwen2, biases": lambda: (transformers.Qwen2Config(**HEADS), "CausalLM"),
    "mistral": lambda: (transformers.MistralConfig(**HEADS, sliding_window=8), "CausalLM"),
    "gemma3, two masks": lambda: (
        transformers.Gemma3TextConfig(
            **HEADS, **SLIDING, layer_types=["sliding_attention", "full_attention"]
        ),
        "CausalLM",
    ),
    "gpt2, Conv1D": lambda: (
        transformers.GPT2Config(
            vocab_size=WORDS, n_embd=32, n_head=4, n_layer=2, bos_token_id=0, eos_token_id=0
        ),
        "CausalLM",
    ),
    "gpt-neox, other names": lambda: (transformers.GPTNeoXConfig(**S), "CausalLM"),
    "bert": lambda: (transformers.BertConfig(**S), ""),
    "vit": lambda: (
        transformers.ViTConfig(**SIZE, num_hidden_layers=2, image_size=32, patch_size=8), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ["llama, tied", "gpt2, Conv1D"])
def test_neurons_go_where_that_loses_less(family, tmp_path):
    folder = saved(FAMILIES[family]()[0], tmp_path / "dense", transformers.AutoModelForCausalLM)
    ids = torch.randint(WORDS, (24, 24), generator=torch.Generator().manual_seed(3))
    done = lowrank.compress_folder(folder, tmp_path / "small", params=0.75, data=ids)
    small = lowrank.load_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == done.plan.cost.params
    readers = {n: w.inputs for n, w in done.plan.narrowed.items() if w.inputs is not None}
    assert readers
    for name, kept in readers.items():
        assert spec_of(small.get_submodule(name)).in_channels == len(kept.places)
    assert lowrank.Plan.from_json(done.plan.to_json()) == done.plan


@pytest.mark.parametrize("bias", [True, False])
def test_the_reader_makes_up_for_neurons_that_went(bias):
    torch.manual_seed(0)
    x = torch.randn(400, 30) @ torch.randn(30, 24) + 2
    dense, small = nn.Linear(24, 5, bias=bias), nn.Linear(12, 5, bias=bias)
    small.load_state_dict({**dense.state_dict(), "weight": torch.zeros(5, 12)})
    sums = Sums(spec_of(dense))
    sums.add(x[:, None])
    unit = Neurons(("a",), "b")
    with torch.no_grad():
        kept, lost, write = fewer_neurons(unit, 12, dense, spec_of(dense), sums.moments())
        write(small)
        y, gap = dense(x), small(x[:, kept]) - dense(x)
    whole = (y - y.mean(0) if bias else y).square().sum()
    assert float(gap.square().sum() / whole) == pytest.approx(lost, rel=0.05)
    assert lost < 0.5


QUICK = ("llama, tied", "gemma3, two masks", "gpt2, Conv1D", "bert")


@pytest.mark.parametrize(
    "family",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES],
)
def test_blocks_run_as_in_the_model_and_the_folder_loads(family, tmp_path):
    config, head = FAMILIES[family]()
    saved(config, tmp_path / "dense", getattr(transformers, f"AutoModel{head and 'For'}{head}"))
    mask = torch.ones_like(IDS)
    mask[0, 15:] = 0
    batch = {"input_ids": IDS, "attention_mask": mask}
    if family == "vit":
        batch = {"pixel_values": torch.randn(6, 3, 32, 32)}
    model = lowrank.load_pretrained(tmp_path / "dense")
    with torch.no_grad():
        seen = model(**batch, output_hidden_states=True).hidden_states
    source = opened(tmp_path / "dense")
    calls = recorded(source, [batch], tmp_path / "states")
    (hidden,) = read_states(tmp_path / "states")
    assert torch.equal(hidden, seen[0])
    with source.filled(source.blocks[0]) as block:
        assert torch.equal(calls.run(block, 0, 0, hidden), seen[1])
    done = lowrank.compress_folder(tmp_path / "dense", tmp_path / "small", params=0.8, data=[batch])
    small = lowrank.load_pretrained(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == done.plan.cost.params
    assert sum(p.numel() for p in model.parameters()) == done.plan.total.params
    y, z = (outputs(m, **batch) for m in (model, small))
    assert 0 < (y - z).norm() < 0.3 * y.norm()


def test_halves_stay_halves(tmp_path):
    folder = saved(llama(2), tmp_path / "dense", dtype=torch.bfloat16)
    lowrank.compress_folder(folder, tmp_path / "small", params=0.8, data=IDS)
    small = lowrank.load_pretrained(tmp_path / "small")
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("kept", [True, False])
def test_a_worker_that_dies_has_its_layers_done_again(dense, tmp_path, kept):
    """A pool that is given is broken from then on; one that can be made anew is."""
    context, pools = multiprocessing.get_context("fork"), []

    def make():
        pools.append(ProcessPoolExecutor(1, context))
        return pools[-1]

    def kill(what, done, total):
        if "compressing" in what and done == 2:
            for process in list(pools[-1]._processes.values()):
                process.kill()
                process.join()

    found = []
    for name, progress in (("whole", None), ("killed", kill)):
        out = tmp_path / name
        done = lowrank.compress_folder(
            dense, out, params=0.7, data=IDS, allocation="alike", progress=progress,
            executor=make() if kept else make,
        )  # fmt: skip
        found.append(digests(out))
        assert ["died" in remark for remark in done.remarks] == [True] * (name == "killed")
    assert found[0] == found[1]
    assert len(pools) == 2 + (not kept)
    for pool in pools:
        pool.shutdown()


def test_threads_do_as_well(dense, whole_run, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS, executor=pool)
    assert digests(tmp_path) == whole_run


@pytest.mark.slow
def test_a_worker_of_dask_that_dies(dense, tmp_path):
    distributed = pytest.importorskip("distributed")
    found = []
    for name in ("whole", "killed"):
        cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None)
        with cluster, distributed.Client(cluster) as client:

            def kill(what, done, total, name=name, client=client):
                if "compressing" in what and done == 2 and name == "killed":
                    os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)

            lowrank.compress_folder(
                dense, tmp_path / name, params=0.7, data=IDS,
                executor=client.get_executor(), progress=kill,
            )  # fmt: skip
        found.append(digests(tmp_path / name))
    assert found[0] == found[1]


def altered(dense: Path, folder: Path, change) -> Path:
    """A copy of the model whose state was changed."""
    model = transformers.AutoModelForCausalLM.from_pretrained(dense)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def test_a_block_with_nan_is_named(dense, tmp_path):
    def change(model):
        model.model.layers[2].mlp.up_proj.weight[3, 4] = float("nan")

    folder = altered(dense, tmp_path / "dense", change)
    with pytest.raises(InputError, match=r"model\.layers\.2\.mlp\.up_proj\.weight: it holds NaN"):
        lowrank.compress_folder(folder, tmp_path / "small", params=0.7, data=IDS)


def test_a_block_that_overflows_is_named(dense, tmp_path):
    def change(model):
        model.model.layers[1].input_layernorm.weight.fill_(3e38)

    folder = altered(dense, tmp_path / "dense", change)
    with pytest.raises(InputError, match="block 1: its output holds NaN or Inf"):
        lowrank.compress_folder(folder, tmp_path / "small", params=0.7, data=IDS)


@pytest.mark.parametrize("allocation", ["errors", "alike"])
def test_inputs_that_are_all_zero(dense, tmp_path, allocation):
    folder = altered(dense, tmp_path / "dense", lambda m: m.model.embed_tokens.weight.zero_())
    lowrank.compress_folder(
        folder, tmp_path / "small", params=0.7, data=IDS, allocation=allocation
    )  # fmt: skip
    small = lowrank.load_pretrained(tmp_path / "small")
    assert all(torch.isfinite(p).all() for p in small.parameters())


def test_fewer_tokens_than_inputs_work_and_are_told(dense, tmp_path):
    done = lowrank.compress_folder(dense, tmp_path, params=0.7, data=IDS[:1, :8])
    assert "8 calibration tokens are fewer than the 64 inputs" in done.remarks[0]


def test_without_data_the_weights_count(dense, tmp_path):
    done = lowrank.compress_folder(dense, tmp_path, params=0.7)
    assert done.remarks == ("without data the errors of the weights counted, not those of outputs",)
    assert lowrank.load_pretrained(tmp_path)


def spoilt(dense: Path, folder: Path, how: str) -> Path:
    """A copy of the folder with something wrong."""
    shutil.copytree(dense, folder)
    config = folder / "config.json"
    values = json.loads(config.read_text())
    shards = sorted(folder.glob("*.safetensors"))
    if how == "no config":
        config.unlink()
    elif how == "quantized":
        config.write_text(json.dumps(values | {"quantization_config": {"quant_method": "gptq"}}))
    elif how == "gguf":
        config.unlink()
        (folder / "model.gguf").write_bytes(b"GGUF")
    elif how == "no shard":
        shards[1].unlink()
    elif how == "cut shard":
        shards[1].write_bytes(shards[1].read_bytes()[:-100])
    elif how == "no blocks":
        config.write_text(json.dumps(values | {"num_hidden_layers": 0}))
    elif how == "other shapes":
        config.write_text(json.dumps(values | {"intermediate_size": 63}))
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no config", "it holds no config.json; name a save_pretrained folder"),
        ("quantized", "quantized by gptq; dequantize first: "),
        ("gguf", "packed weights, which are not read block by block; unpack it first: "),
        ("no shard", "model-00002-of-.* is missing; copy"),
        ("cut shard", "it ends too early"),
        ("no blocks", "no list of blocks with linear layers"),
        ("other shapes", r"shape \(64, 32\), the config says \(63, 32\)"),
    ],
)
def test_folders_that_cannot_be_compressed(dense, tmp_path, how, said):
    folder = spoilt(dense, tmp_path / "dense", how)
    with pytest.raises((InputError, CheckpointError), match=said):
        lowrank.compress_folder(folder, tmp_path / "small", params=0.7, data=IDS)
    assert not (tmp_path / "small" / "config.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": torch.rand(2, 3)}, "are no token ids"),
        ({"data": []}, "there are no examples"),
        ({"data": IDS + 100}, "the model refuses the examples"),
        ({"data": 3}, "a int is no batches of tokens"),
        ({"params": 0.01}, "params: the blocks' layers would have"),
        ({"params": 0.0}, "not above 0"),
        ({"allocation": "best"}, "no way to share out a budget"),
        ({"skip": "layer9"}, "matches no layer"),
    ],
)
def test_arguments_that_make_no_sense(dense, tmp_path, given, said):
    with pytest.raises(lowrank.LowRankError, match=said):
        lowrank.compress_folder(dense, tmp_path, **{"params": 0.7, "data": IDS, **given})


def test_two_stacks_go_through_memory(tmp_path):
    sizes = {"d_model": 32, "d_ff": 64, "num_heads": 4, "num_layers": 2}
    config = transformers.T5Config(vocab_size=WORDS, **sizes)
    saved(config, tmp_path / "dense", transformers.AutoModelForSeq2SeqLM)
    with pytest.raises(InputError, match=r"several stacks of blocks: decoder\.block, enc"):
        lowrank.compress_folder(tmp_path / "dense", tmp_path / "small", params=0.7)


def test_texts_are_read_with_a_tokenizer(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "LENGTH", 8)
    text = "".join(chr(32 + int(i)) for i in torch.randint(90, (4_000,)))
    done = lowrank.compress_folder(
        dense, tmp_path, params=0.7, data=text,
        tokenizer=Spelling(), only="*.mlp.*", allocation="alike",
    )  # fmt: skip
    assert (tmp_path / "spelling.txt").exists()
    assert all(".mlp." in name for name in done.plan.replaced)


class Spelling:
    """A tokenizer of one token a letter."""

    def __call__(self, text):
        return [ord(letter) - 32 for letter in text]

    def save_pretrained(self, folder):
        Path(folder, "spelling.txt").write_text("letters")


def test_the_command_streams_where_it_is_asked_to(dense, tmp_path):
    np.savez(tmp_path / "ids.npz", x=IDS.numpy())
    asked = ["compress", str(dense), "--stream", "--data", str(tmp_path / "ids.npz")]
    asked += ["--params", "0.7", "-o", str(tmp_path / "small"), "--save-plan"]
    ended = CliRunner().invoke(main, [*asked, str(tmp_path / "plan.json")], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert "4 blocks, one at a time" in ended.stderr
    plan = lowrank.Plan.load(tmp_path / "plan.json")
    assert plan.cost.params <= 0.7 * plan.total.params
    assert lowrank.load_pretrained(tmp_path / "small")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stream", "--macs", "0.5", "-o", "small"], "knows no --macs"),
        (["--stream", "--params", "0.5"], "writes a folder; name it with -o"),
        (["--stream", "-o", "small"], "takes its budget as --params"),
        (["--no-stream", "--workers", "2", "--params", "0.5"], "goes with --stream"),
    ],
)
def test_the_command_says_what_cannot_stream(dense, more, said):
    ended = CliRunner().invoke(main, ["compress", str(dense), *more])
    assert ended.exit_code == 2
    assert said in ended.stderr


def test_the_command_streams_by_itself_what_is_too_large(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(cli_stream, "_free", lambda: 1000)
    asked = ["compress", str(dense), "--params", "0.7", "-o", str(tmp_path / "small")]
    ended = CliRunner().invoke(main, asked, catch_exceptions=False)
    assert "it goes block by block" in ended.stderr
    assert "4 blocks, one at a time" in ended.stderr
