"""The command line: what it prints, how it fails, and that what it saves is what it made."""

import html
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import nn

import lowrank
from lowrank.cli import COMMANDS, main
from lowrank.cli.demo.network import notes, table
from lowrank.cli.network.values import Budget, Input, InputType
from lowrank.compression import methods
from lowrank.demos import network as demo
from lowrank.demos.bundled import ResNet20, fashion_mnist

NET = """
import torch
from torch import nn

print("a model file that prints")


def build():
    torch.manual_seed(0)
    layers = nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)
    return nn.Sequential(*layers)


def example():
    return torch.linspace(-1, 1, 64).reshape(2, 32)


def broken():
    raise ValueError("boom")


def number():
    return 3


def needs(x):
    return x


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 32), nn.Linear(32, 32)

    def forward(self, ids, mask):
        return self.out(self.embed(ids) * mask.unsqueeze(-1))


def pictures():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))


def batches():
    return ((torch.randn(4, 32), torch.zeros(4, dtype=torch.long)) for _ in range(2))


def nothing_in_it():
    return []
"""


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A folder with a model file, which is the current one."""
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("_lowrank_net", None)
    sys.modules.pop("net", None)


def call(*arguments, **settings):
    return CliRunner().invoke(main, [str(a) for a in arguments], **settings)


def good(*arguments, **settings):
    result = call(*arguments, **settings)
    assert result.exit_code == 0, result.stderr
    return result


def fails(*arguments, code=1):
    """What a mistake prints: one line, no traceback."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = [s for s in result.stderr.splitlines() if s != "a model file that prints"]
    if code == 1:
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
    return lines[-1]


def built():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4)
    )


# --- the group ---------------------------------------------------------------------------


def test_help_of_every_command():
    assert "lowrank compress net.py:build" in good("--help").stdout
    for name in COMMANDS:
        text = good(name, "--help").stdout
        assert f"lowrank {name}" in text.split("Options:")[0].split("\n", 1)[1]  # an example
    assert lowrank.__version__ in good("--version").stdout


def test_help_is_quick():
    code = "import lowrank.cli, sys; lowrank.cli.main(['-h'], standalone_mode=False);"
    code += "print([m for m in ('torch', 'matplotlib', 'transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_module_runs_as_a_subprocess_with_json_alone_on_stdout(net):
    """A second Python starts and imports torch: over five seconds on a loaded machine."""
    command = [sys.executable, "-m", "lowrank", "profile", "net.py:build", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["parameters"] == sum(p.numel() for p in built().parameters())
    assert run.stderr.strip() == "a model file that prints"


def test_debug_shows_the_traceback(net):
    result = call("--debug", "profile", "net.py:broken")
    assert result.exit_code == 1
    assert isinstance(result.exception, lowrank.LowRankError)


def test_a_bug_keeps_its_traceback(net, monkeypatch):
    def bug(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("lowrank.compression.gauges.profile.profile", bug)
    assert isinstance(call("profile", "net.py:build").exception, ZeroDivisionError)


# --- profile -----------------------------------------------------------------------------


def test_profile_table_fits_a_narrow_terminal(net):
    for width in (60, 80, 120):
        out = good("profile", "net.py:build", "--repeats", 0, env={"COLUMNS": str(width)}).stdout
        assert max(map(len, out.splitlines())) <= width
        assert f"{sum(p.numel() for p in built().parameters()):,}" in out


def test_profile_without_colour(net):
    assert "\x1b" not in good("profile", "net.py:build", env={"NO_COLOR": "1"}).stdout


def test_repeats(net):
    cost = json.loads(good("profile", "net.py:build", "--repeats", 2, "--json").stdout)
    assert cost["latency"]["runs"] == 2
    cost = json.loads(good("profile", "net.py:build", "--repeats", 0, "--json").stdout)
    assert cost["latency_ms"] is None


def shapes(*arguments):
    return json.loads(good("profile", *arguments, "--repeats", 0, "--json").stdout)[
        "example_shapes"
    ]


def test_example_comes_from_the_model_file(net):
    assert shapes("net.py:build") == {"example": [2, 32]}


def test_module_name(net):
    assert shapes("net:build") == {"example": [2, 32]}


def test_inputs_by_shape_type_and_name(net):
    assert shapes("net.py:build", "--input", "5x32") == {"example": [5, 32]}
    named = ["--input", "ids=2x7:int64", "--input", "mask=2x7"]
    assert shapes("net.py:Two", *named) == {"example['ids']": [2, 7], "example['mask']": [2, 7]}
    assert len(shapes("net.py:Two", "--input", "2x7:int64", "--input", "2x7")) == 2
    assert "name each" in fails(
        "profile", "net.py:Two", "--input", "ids=2x7:int64", "--input", "2x7"
    )


def test_example_is_the_first_of_the_data(net):
    save_file({"x": torch.randn(9, 32)}, "x.safetensors")
    assert shapes("net.py:build", "--data", "x.safetensors") == {"example": [1, 32]}
    assert shapes("net.py:build", "--data", "net.py:batches") == {"example": [1, 32]}


def test_weights_of_either_kind(net):
    model = nn.Sequential(*built())
    nn.init.zeros_(model[0].weight)
    save_file(model.state_dict(), "w.safetensors")
    torch.save({"state_dict": model.state_dict()}, "w.pt")
    good("profile", "net.py:build", "--weights", "w.safetensors", "--repeats", 0)
    good("profile", "net.py:build", "--weights", "w.pt", "--allow-pickle", "--repeats", 0)
    assert "--allow-pickle" in fails("profile", "net.py:build", "--weights", "w.pt")


# --- compress ----------------------------------------------------------------------------


def test_saved_result_loads_and_gives_equal_outputs(net):
    out = good(
        "compress",
        "net.py:build",
        "--params",
        "0.5",
        "-o",
        "s.safetensors",
        "--save-plan",
        "p.json",
    )
    assert "wrote s.safetensors" in out.stderr
    small = lowrank.load("s.safetensors", into=built())
    x = torch.randn(3, 32)
    again, _ = lowrank.apply(built(), lowrank.Plan.load("p.json"))
    torch.testing.assert_close(small(x), again(x))
    n = sum(p.numel() for p in small.parameters())
    assert n <= 0.5 * sum(p.numel() for p in built().parameters())
    cost = json.loads(
        good("profile", "net.py:build", "--weights", "s.safetensors", "--json").stdout
    )
    assert cost["parameters"] == n


def test_json_holds_the_report_and_the_plan(net):
    out = good("compress", "net.py:build", "--macs", "60%", "--save-plan", "p.json", "--json")
    report = json.loads(out.stdout)
    assert report["kept"]["macs"] <= 0.6
    assert report["plan"] == json.loads(Path("p.json").read_text())
    assert (report["output"], report["plan_file"]) == (None, "p.json")
    assert "nothing was written" not in out.stderr


def test_a_plan_edited_by_hand_is_applied(net):
    good("compress", "net.py:build", "--macs", "0.5", "--save-plan", "p.json")
    plan = json.loads(Path("p.json").read_text())
    plan["layers"]["2"] = {"kind": "Linear", "shapes": plan["layers"]["2"]["shapes"]}
    plan["layers"]["2"] |= {"method": "channel_svd", "rank": 3}
    Path("p.json").write_text(json.dumps(plan))
    good("compress", "net.py:build", "--plan", "p.json", "-o", "s.safetensors")
    assert load_file("s.safetensors")["2.0.weight"].shape == (3, 64)


def test_options_reach_the_planner(net):
    options = ["--methods", "channel_svd", "--skip", "0", "--round-to", 4, "--seed", 3]
    out = good("compress", "net.py:build", "--bytes", "0.8", *options, "--json")
    plan = json.loads(out.stdout)["plan"]
    assert plan["seed"] == 3
    assert plan["layers"]["0"]["dense"] == "skipped by the user"
    assert plan["layers"]["2"]["rank"] % 4 == 0
    out = good("compress", "net.py:build", "--macs", "0.9", "--only", "2", "--json")
    assert "not among" in json.loads(out.stdout)["plan"]["layers"]["0"]["dense"]


def test_quality_is_measured_on_the_data(net):
    np.savez("d.npz", x=np.random.default_rng(0).normal(size=(70, 32)).astype("f4"))
    out = good("compress", "net.py:build", "--macs", "0.5", "--data", "d.npz", "--json")
    assert json.loads(out.stdout)["quality"]["n_examples"] == 70


def test_data_is_a_single_array(net):
    np.save("d.npy", np.random.default_rng(0).normal(size=(9, 32)).astype("f4"))
    out = good("compress", "net.py:build", "--bytes", "0.5", "--data", "d.npy", "--json")
    assert json.loads(out.stdout)["quality"]["n_examples"] == 9


def test_keyword_data_with_labels(net):
    ids, mask = torch.ones(5, 7, dtype=torch.long), torch.ones(5, 7)
    save_file({"ids": ids, "mask": mask, "labels": torch.zeros(5)}, "d.safetensors")
    out = good("compress", "net.py:Two", "--params", "0.9", "--data", "d.safetensors", "--json")
    assert json.loads(out.stdout)["quality"]["n_examples"] == 5


def test_tables_of_a_compression_fit_the_terminal(net):
    for width in (60, 80, 120):
        given = ("--macs", "0.5", "--methods", "channel_svd")
        out = good("compress", "net.py:build", *given, env={"COLUMNS": str(width)}).stdout
        assert max(map(len, out.splitlines())) <= width
        assert "channel_svd" in out


OWN = """
from dataclasses import dataclass
from lowrank import ChannelSVD

@dataclass(frozen=True)
class Own(ChannelSVD):
    name = "own"
"""


def test_a_method_of_the_users_own(net, monkeypatch):
    monkeypatch.setattr(methods, "_REGISTERED", {})
    (net / "mine.py").write_text(OWN)
    arguments = ["compress", "net.py:build", "--macs", "0.6"]
    plan = ["--save-plan", "plan.json"]
    assert call(*arguments, "--methods", "mine.py:Own", *plan).exit_code == 0
    assert {m.name for m in lowrank.Plan.load("plan.json").replaced.values()} == {"own"}
    assert "there is no 'Mine' in it" in fails(*arguments, "--methods", "mine.py:Mine", code=2)
    assert "neither a name nor a class" in fails(
        *arguments, "--methods", "mine.py:dataclass", code=2
    )


# --- mistakes ----------------------------------------------------------------------------


def test_mistakes_in_the_command_line(net):
    compress = ["compress", "net.py:build"]
    assert "no budget" in fails(*compress, code=2)
    assert "already settles" in fails(*compress, "--plan", "p", "--macs", "0.5", code=2)
    for budget in ("0", "-1", "1.5", "half", "nan", "inf", "120%", ""):
        assert "0.5 or 50%" in fails(*compress, "--macs", budget, code=2)
    assert "choose among channel_svd" in fails(
        *compress, "--macs", "0.5", "--methods", "svd", code=2
    )
    assert "no shape" in fails("profile", "net.py:build", "--input", "1,,2", code=2)
    assert "empty axis" in fails("profile", "net.py:build", "--input", "1x0", code=2)
    assert "no type" in fails("profile", "net.py:build", "--input", "1x2:int3", code=2)
    assert "names no model" in fails("profile", "net.py", code=2)
    assert "No such command" in fails("shrink", code=2)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("gone.py:build", "gone.py: there is no such file"),
        ("no_such_module:build", "ModuleNotFoundError"),
        ("net.py:biuld", "did you mean build?"),
        ("net.py:broken", "ValueError: boom (net.py, line 19)"),
        ("net.py:number", "returned int, not a torch.nn.Module"),
        ("net.py:needs", "TypeError"),
    ],
)
def test_models_that_are_not_there(net, model, says):
    assert says in fails("profile", model)


def test_a_file_that_does_not_run(net):
    Path("bad.py").write_text("import torch\nx = = 1\n")
    assert "SyntaxError" in fails("profile", "bad.py:build")
    Path("stops.py").write_text("import sys\nsys.exit(3)\n")
    assert "SystemExit: 3 (stops.py, line 2)" in fails("profile", "stops.py:build")


def test_no_example(net):
    Path("bare.py").write_text("from torch import nn\ndef build(): return nn.Linear(2, 2)\n")
    assert "give --input" in fails("profile", "bare.py:build")


def test_an_example_that_the_model_refuses(net):
    assert "refused the example" in fails("profile", "net.py:build", "--input", "1x31")


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "model_state_dict"])
def test_weights_as_training_leaves_them(net, prefix, key):
    state = {prefix + name: value for name, value in built().state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, "w.pt")
    weights = ["--weights", "w.pt", "--allow-pickle", "--repeats", 0]
    good("profile", "net.py:build", *weights)
    save_file(state, "w.safetensors")
    good("profile", "net.py:build", "--weights", "w.safetensors", "--repeats", 0)


def test_what_a_command_reads_is_not_written_over(net):
    save_file(built().state_dict(), "w.safetensors")
    save_file({"input": torch.randn(8, 32)}, "data.safetensors")
    model = ["compress", "net.py:build", "--params", "0.8", "--input", "1x32"]
    good(*model, "--save-plan", "plan.json")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    Path("sub").mkdir()
    for written in (
        ["--weights", "w.safetensors", "-o", "w.safetensors"],
        ["--weights", "w.safetensors", "-o", "sub/../w.safetensors"],
        ["--data", "data.safetensors", "-o", "data.safetensors"],
        ["--save-plan", "net.py"],
    ):
        assert "reads this very file" in fails(*model, *written)
    assert "two files" in fails(*model, "--save-plan", "a.safetensors", "-o", "a.safetensors")
    again = ["compress", "net.py:build", "--input", "1x32", "--plan", "plan.json"]
    assert "reads this very file" in fails(*again, "--save-plan", "plan.json")
    for name in ("small.pt", "net.py", "small"):
        assert "must end in .safetensors" in fails(*model, "-o", name, code=2)
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before


def test_weights_that_do_not_fit(net):
    profile = ["profile", "net.py:build", "--weights"]
    state = {k: v.clone() for k, v in built().state_dict().items()}
    assert "no such file" in fails(*profile, "gone.safetensors")
    save_file({**state, "9.weight": torch.zeros(1)}, "more.safetensors")
    assert "9.weight is in the file and not in the model" in fails(*profile, "more.safetensors")
    save_file({**state, "0.bias": torch.zeros(3)}, "shape.safetensors")
    assert "0.bias has shape (3,), the model has (64,)" in fails(*profile, "shape.safetensors")
    save_file({k: v for k, v in state.items() if k != "0.bias"}, "less.safetensors")
    assert "0.bias is in the model and not in the file" in fails(*profile, "less.safetensors")


def test_damaged_weights(net):
    good("compress", "net.py:build", "--macs", "0.5", "-o", "s.safetensors")
    whole = Path("s.safetensors").read_bytes()
    for name, content in {"cut": whole[:-9], "junk": b"junk", "empty": b""}.items():
        Path(f"{name}.safetensors").write_bytes(content)
        assert "no whole safetensors file" in fails(
            "profile", "net.py:build", "--weights", f"{name}.safetensors"
        )
    altered = bytearray(whole)
    altered[-1] ^= 255
    Path("altered.safetensors").write_bytes(altered)
    assert "not what was saved" in fails(
        "profile", "net.py:build", "--weights", "altered.safetensors"
    )


def test_a_pickle_that_runs_code_is_not_run(net):
    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("ran"),)

    torch.save({"x": Evil()}, "evil.pt")
    assert "no pickled state dict" in fails(
        "profile", "net.py:build", "--weights", "evil.pt", "--allow-pickle"
    )
    torch.save([1, 2], "list.pt")
    assert "it holds a list" in fails(
        "profile", "net.py:build", "--weights", "list.pt", "--allow-pickle"
    )
    assert not Path("ran").exists()


def test_bad_data(net):
    compress = ["compress", "net.py:build", "--macs", "0.5", "--data"]
    np.savez("nan.npz", x=np.full((3, 32), np.nan, "f4"))
    assert "NaN or Inf in 96 of 96" in fails(*compress, "nan.npz")
    np.savez("labels.npz", labels=np.zeros(3))
    assert "no inputs" in fails(*compress, "labels.npz")
    np.savez("uneven.npz", x=np.zeros((3, 32), "f4"), labels=np.zeros(2))
    assert "x has 3, labels has 2" in fails(*compress, "uneven.npz")
    np.savez("object.npz", x=np.array([{}], dtype=object))
    assert "no readable npz" in fails(*compress, "object.npz")
    Path("junk.npz").write_bytes(b"junk")
    assert "no readable npz" in fails(*compress, "junk.npz")
    assert "no such file" in fails(*compress, "gone.npz")
    Path("empty.npy").touch()
    assert "no readable npy" in fails(*compress, "empty.npy")
    assert "give .safetensors, .npz, .npy or" in fails(*compress, "data.csv")
    assert "returned int" in fails(*compress, "net.py:number")
    assert "no batch" in fails(*compress, "net.py:nothing_in_it")


def test_plans_that_cannot_be_used(net):
    compress = ["compress", "net.py:build", "--plan"]
    assert "gone.json: cannot be read" in fails(*compress, "gone.json")
    Path("junk.json").write_text("{")
    assert "it is not JSON" in fails(*compress, "junk.json")
    good("compress", "net.py:pictures", "--input", "1x3x8x8", "--macs", "0.5", "--save-plan", "o")
    assert "the plan is for Conv2d" in fails(*compress, "o")


def test_budgets_and_layers_that_cannot_be(net):
    compress = ["compress", "net.py:build", "--macs"]
    assert "the smallest is macs=" in fails(*compress, "0.0001")
    assert "matches no layer" in fails(*compress, "0.5", "--skip", "head")
    assert "it is empty" in fails(*compress, "0.5", "--only", "")


def test_files_that_cannot_be_written(net):
    compress = ["compress", "net.py:build", "--macs", "0.5"]
    assert "there is no folder nowhere" in fails(*compress, "-o", "nowhere/s.safetensors")
    assert "there is no folder nowhere" in fails(*compress, "--save-plan", "nowhere/p.json")
    assert sorted(p.name for p in net.iterdir() if p.is_file()) == ["net.py"]


# --- values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.5", 0.5),
        ("50%", 0.5),
        ("1", 1.0),
        ("20M", 20_000_000),
        ("1.5G", 1_500_000_000),
        ("200MB", 200_000_000),
        ("1_000", 1000),
        ("3e6", 3_000_000),
        (".25", 0.25),
    ],
)
def test_budget(text, value):
    got = Budget().convert(text, None, None)
    assert (got, type(got)) == (value, type(value))


def test_input():
    assert InputType().convert("ids=1x128:int64", None, None) == Input((1, 128), "int64", "ids")
    assert InputType().convert("1,3,8,8", None, None) == Input((1, 3, 8, 8))
    with pytest.raises(click.BadParameter):
        InputType().convert("1 x 3", None, None)


# --- transformers ------------------------------------------------------------------------


def test_a_folder_saved_by_transformers(net):
    transformers = pytest.importorskip("transformers")
    from lowrank.cli.network.pretrained import example

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, intermediate_size=64, **size)
    model = transformers.BertForSequenceClassification(config).eval()
    model.save_pretrained("bert")
    assert shapes("./bert") == {"example['input_ids']": [1, 128]}
    ids = example(model)["input_ids"]
    assert len(ids.unique()) > 20
    assert config.pad_token_id not in ids
    assert ids.max() < 50
    assert "reads this very file" in fails(
        "compress", "./bert", "--params", "0.9", "-o", "bert/model.safetensors"
    )
    good("compress", "./bert", "--params", "0.9", "-o", "s.safetensors")
    small = lowrank.load("s.safetensors", into=transformers.BertForSequenceClassification(config))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    Path("bert/model.safetensors").write_bytes(b"junk")
    assert "no weights to load" in fails("profile", "./bert")
    Path("bert/config.json").unlink()
    assert "no config.json" in fails("profile", "./bert")


def test_a_folder_of_transformers_gives_one_of_the_same_form(net):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=60, num_attention_heads=2, **size)
    transformers.LlamaForCausalLM(config).save_pretrained("llama")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "notes.txt"):
        Path("llama", name).write_text("{}")
    good("compress", "./llama", "--params", "0.7", "-o", "small", "--report", "small.html")
    assert 'lowrank.load_pretrained("small")' in html.unescape(Path("small.html").read_text())
    assert {path.name for path in Path("small").iterdir()} == {
        "config.json", "generation_config.json", "lowrank.safetensors", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    model = lowrank.load_pretrained("small")
    shell = transformers.LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in shell.parameters())
    assert shapes("./small") == {"example['input_ids']": [1, 128]}
    assert "reads this very file" in fails("compress", "./small", "--params", "0.9", "-o", "small")
    good("compress", "./small", "--params", "0.9", "-o", "smaller")
    again = lowrank.load_pretrained("smaller")
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in model.parameters())
    assert "must end in .safetensors" in fails(
        "compress", "net.py:build", "--params", "0.5", "-o", "small", code=2
    )
    Path("small", "lowrank.safetensors").write_bytes(b"junk")
    assert "its contents are not what was saved" in fails("profile", "./small")


LETTERS = {chr(k): k for k in range(60)}


@pytest.mark.parametrize("kind", ["Llama", "Bert", "T5"])
def test_a_text_is_data_for_a_folder_with_its_tokenizer(net, kind):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tokenizers = pytest.importorskip("tokenizers")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(LETTERS, []))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained("m")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    size = {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2} if kind == "T5" else size
    more = {} if kind == "T5" else {"num_attention_heads": 2, "max_position_embeddings": 20}
    config = getattr(transformers, f"{kind}Config")(vocab_size=60, **size, **more)
    head = {"Llama": "ForCausalLM", "Bert": "Model", "T5": "ForConditionalGeneration"}[kind]
    getattr(transformers, kind + head)(config).save_pretrained("m")
    letters = "".join(chr(int(k)) for k in torch.randint(32, 60, (20 * 30 + 7,)))
    Path("text.txt").write_text(letters)
    asked = ("--params", "0.8", "--effort", "quick", "--json")
    found = json.loads(good("compress", "./m", *asked, "--data", "text.txt", "-o", "s").stdout)
    assert sum(p.numel() for p in lowrank.load_pretrained("s").parameters()) > 0
    length = 128 if kind == "T5" else 20
    assert f"{(20 * 30 + 7) // length} examples" in " ".join(found["notes"])
    Path("text.txt").write_text("01")  # shorter than a window
    assert good("compress", "./m", *asked, "--data", "text.txt", "-o", "t")


def test_a_text_is_no_data_for_what_reads_none(net):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    Path("text.txt").write_text("some words")
    asked = ("--params", "0.8", "--data", "text.txt", "-o")
    assert "a text is for a model of transformers" in fails(
        "compress", "net.py:build", *asked, "s.safetensors"
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.ViTConfig(**sizes, num_attention_heads=2, image_size=32)
    transformers.ViTModel(config).save_pretrained("vit")
    assert "ViTModel takes pixel_values, no text" in call("compress", "./vit", *asked, "s").stderr
    config = transformers.BertConfig(vocab_size=50, num_attention_heads=2, **sizes)
    transformers.BertModel(config).save_pretrained("bert")
    ended = call("compress", "./bert", *asked, "s")
    assert ended.exit_code == 1
    assert "it holds no tokenizer" in ended.stderr


# --- the demo ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_demo():
    """The demo with few pictures and weights that know nothing; all of it, over five seconds."""
    torch.manual_seed(0)
    (images, labels), (seen, answers) = fashion_mnist("train"), fashion_mnist("test")
    train, test = (images[::50], labels[::50]), (seen[::40], answers[::40])
    return demo.run(ResNet20().eval(), train=train, test=test, epochs=1)


def test_demo_figures(short_demo):
    stages = short_demo.to_dict()
    assert list(stages) == ["dense", "compressed", "finetuned"]
    for stage in stages.values():
        assert set(stage) == {"parameters", "bytes", "macs", "latency_ms", "accuracy"}
        assert 0 <= stage["accuracy"] <= 1
    assert stages["dense"]["parameters"] == 272_186
    assert stages["compressed"]["macs"] <= 0.5 * stages["dense"]["macs"]
    assert (short_demo.n_train, short_demo.n_test) == (100, 50)


def test_demo_command(short_demo, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "run", lambda **settings: short_demo)
    out = good("demo", "--json", "--output", tmp_path / "new")
    assert json.loads(out.stdout) == short_demo.to_dict()
    assert (tmp_path / "new" / demo.PICTURE).read_bytes().startswith(b"\x89PNG")
    assert str(demo.PICTURE) in out.stderr.replace("\n", "")
    out = good("demo", "--output", tmp_path, env={"COLUMNS": "80"})
    assert "fine-tuned" in out.stdout
    assert max(map(len, out.stdout.splitlines())) <= 80
    (tmp_path / "file").write_text("")
    assert "name another folder" in fails("demo", "--output", tmp_path / "file" / "below")


def test_demo_says_when_it_is_slower(short_demo):
    slow = short_demo.finetuned.latency.median_ms > short_demo.dense.latency.median_ms
    assert ("fewer MACs are not less time" in notes(short_demo)) == slow
    assert table(short_demo).row_count == 3


@pytest.mark.slow
def test_whole_demo(tmp_path):
    stages = json.loads(good("demo", "--json", "--output", tmp_path).stdout)
    assert stages["finetuned"]["macs"] <= 0.5 * stages["dense"]["macs"]
    assert stages["finetuned"]["accuracy"] >= stages["dense"]["accuracy"] - 0.005


# --- data, the clock, memory, a bound on the loss ------------------------------------------


@pytest.fixture
def labelled(net):
    """Data whose labels are the model's own answers, with a third held out."""
    x = np.random.default_rng(0).standard_normal((400, 32)).astype("float32")
    labels = built()(torch.from_numpy(x)).argmax(1).numpy()
    np.savez("labelled.npz", x=x, labels=labels)
    return net


FAST = ("--methods", "channel_svd")


def test_data_calibrates_and_says_how_long_it_took(labelled):
    budget = ("compress", "net.py:build", "--macs", "0.5", *FAST)
    out = good(*budget, "--data", "labelled.npz", "--json")
    report = json.loads(out.stdout)
    assert any("calibrated 3 layers on 256 examples in" in n for n in report["notes"])
    assert any("moments take" in n for n in report["notes"])
    assert report["quality"]["n_examples"] == 400 - 256
    assert report["quality"]["held_out"]
    blind = json.loads(good(*budget, "--json").stdout)
    assert all("calibrated" not in note for note in blind["notes"])


def test_refine_with_and_without_a_number(labelled):
    command = ("compress", "net.py:build", "--macs", "0.4", *FAST, "--data", "labelled.npz")
    for refine in ((), ("--refine", "30"), ("--refine",)):
        notes = json.loads(good(*command, "--json", *refine).stdout)["notes"]
        assert any("refined" in n for n in notes) == bool(refine)
    assert "is not a valid integer" in fails(*command, "--refine", "many", code=2)


def test_max_drop_finds_the_smallest_within_it(labelled):
    command = ("compress", "net.py:build", *FAST, "--data", "labelled.npz", "--json")
    kept = [
        json.loads(good(*command, "--max-drop", drop).stdout)["kept"]["macs"]
        for drop in (0.02, 0.3)
    ]
    assert kept[1] < kept[0] <= 1


def test_max_drop_needs_labels(labelled):
    np.savez("plain.npz", x=np.zeros((4, 32), "float32"))
    command = ("compress", "net.py:build", "--max-drop", "0.1")
    assert "no labels to measure accuracy on" in fails(*command)
    assert "no labels to measure accuracy on" in fails(*command, "--data", "plain.npz")


def test_labels_in_a_column_say_the_same(labelled):
    held = dict(np.load("labelled.npz"))
    np.savez("column.npz", x=held["x"].astype("float64"), labels=held["labels"][:, None])
    np.savez("onehot.npz", x=held["x"], labels=np.eye(10)[held["labels"]])
    command = ("compress", "net.py:build", *FAST, "--json", "--max-drop", "0.05")
    found = [
        json.loads(good(*command, "--data", name).stdout)["kept"]
        for name in ("labelled.npz", "column.npz")
    ]
    assert {k: v for k, v in found[0].items() if "latency" not in k} == {
        k: v for k, v in found[1].items() if "latency" not in k
    }
    assert "give one whole number for each example" in fails(*command, "--data", "onehot.npz")


def test_memory_and_latency(labelled):
    out = good("compress", "net.py:build", "--memory", "0.8", *FAST, "--json")
    report = json.loads(out.stdout)
    assert report["memory"]["measured"] <= 0.8 * report["memory"]["dense"]
    out = good("compress", "net.py:build", "--latency", "0.9", *FAST, "--json")
    assert json.loads(out.stdout)["latency"] is not None


def test_int8_needs_bytes(labelled):
    command = ("compress", "net.py:build", "--int8", *FAST)
    assert "no budget of bytes" in fails(*command, "--macs", "0.5")


def test_stock_leaves_methods_out_by_name(labelled):
    command = ("compress", "net.py:build", "--stock", "--params", "0.5")
    good(*command, *FAST)
    assert "group_svd takes modules" in fails(*command, "--methods", "channel_svd,group_svd")


def test_a_plan_can_be_refined(labelled):
    good("compress", "net.py:build", "--macs", "0.4", *FAST, "--save-plan", "p.json")
    command = ("compress", "net.py:build", "--plan", "p.json", "--data", "labelled.npz")
    good(*command, "--refine", "5")
    assert "drop --macs" in fails(*command, "--macs", "0.5", code=2)
