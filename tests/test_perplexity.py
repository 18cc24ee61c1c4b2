"""Perplexity against a brute-force float64 reference; windows drawn from texts; refusals."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import lowrank
from lowrank.cli import main
from lowrank.compression.gauges import perplexity as module
from lowrank.errors import InputError
from lowrank.evaluate import Perplexity, calibration_text, perplexity

TEXT = "the quick brown fox jumps over the lazy dog, and the dog does not mind it at all. "


def spelled(text: str) -> list[int]:
    return [ord(letter) for letter in text]


class Recurrent(nn.Module):
    """A causal model of nobody's library: scores alone, with any context."""

    def __init__(self, words: int = 128) -> None:
        super().__init__()
        self.table, self.state = nn.Embedding(words, 12), nn.GRU(12, 16, batch_first=True)
        self.head = nn.Linear(16, words)

    def forward(self, ids):
        return self.head(self.state(self.table(ids))[0])


def llama(**more):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=24, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.5, **more,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def gru():
    torch.manual_seed(0)
    return Recurrent().eval()


MODELS = {"llama": llama, "gru": gru}


@torch.no_grad()
def brute_force(model, ids, window, stride):
    """-log p of every token but the first: each from the first window that predicts it."""
    model = model.double()
    lost = []
    for target in range(1, len(ids)):
        start = next(s for s in range(0, len(ids), stride) if s < target <= s + window)
        output = model(torch.tensor([ids[start:target]]))
        logits = getattr(output, "logits", output)[0, -1]
        lost.append(-float(logits.log_softmax(-1)[ids[target]]))
    model.float()
    return lost


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("window", "stride"), [(16, 16), (16, 5), (16, 1), (1, 1), (64, 64), (64, 7)]
)
@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 82])
def test_it_is_what_brute_force_finds(name, window, stride, length):
    model, text = MODELS[name](), TEXT[:length]
    lost = brute_force(model, spelled(text), window, stride)
    found = perplexity(model, spelled, text, window=window, stride=stride)
    assert found.tokens == len(lost) == length - 1
    assert found.nats_per_token == pytest.approx(sum(lost) / len(lost), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(sum(lost) / len(lost)), rel=1e-4)
    assert found.bits_per_byte == pytest.approx(sum(lost) / math.log(2) / length, rel=1e-5)


def test_in_one_window_it_is_the_loss_of_transformers():
    model, ids = llama(), torch.tensor([spelled(TEXT[:60])])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    found = perplexity(model, spelled, TEXT[:60], window=64)
    assert found.nats_per_token == pytest.approx(loss, rel=1e-6)
    assert found.windows == 1
    assert math.isnan(found.standard_error)
    assert "±" not in str(found)


def test_batches_and_parts_change_nothing(monkeypatch):
    model = llama()
    one = perplexity(model, spelled, TEXT * 3, window=16, stride=8)
    several = perplexity(model, spelled, TEXT * 3, window=16, stride=8, batch_size=5)
    monkeypatch.setattr(module, "_NUMBERS", 300)  # two positions at a time
    parts = perplexity(model, spelled, TEXT * 3, window=16, stride=8)
    assert several.nats == pytest.approx(one.nats, rel=1e-5)
    assert parts.nats == pytest.approx(one.nats, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    """What is added to the model's own rounding is that of float32 alone."""
    model, ids = llama().to(dtype), torch.tensor([spelled(TEXT[:60])])
    with torch.no_grad():
        scores = model(ids[:, :-1]).logits[0].double().log_softmax(-1)
    lost = -float(scores.gather(1, ids[0, 1:, None]).mean())
    found = perplexity(model, spelled, TEXT[:60])
    assert found.nats_per_token == pytest.approx(lost, rel=1e-6)


def test_the_standard_error_is_that_of_equal_windows():
    found = Perplexity((30.0, 10.0, 26.0, 18.0), (10,) * 4, 100, 10, 10)
    means = torch.tensor(found.nats) / 10
    assert found.standard_error == pytest.approx(float(means.std()) / 2)
    assert found.bits_per_byte_error == pytest.approx(
        found.standard_error * found.bits_per_byte / found.nats_per_token
    )


def test_the_ratio_to_a_dense_model_takes_windows_in_pairs():
    dense = Perplexity((30.0, 10.0), (10, 10), 100, 10, 10)
    small = Perplexity((32.0, 12.0), (10, 10), 100, 10, 10)
    assert small.ratio_to(dense) == (pytest.approx(math.exp(0.2)), pytest.approx(0))
    with pytest.raises(InputError, match="another text or in other windows"):
        small.ratio_to(Perplexity((30.0,), (20,), 100, 10, 10))


def test_a_hopeless_model_has_infinite_perplexity():
    found = Perplexity((1e4, 1e4), (10, 10), 100, 10, 10)
    assert found.perplexity == math.inf
    assert "inf" in str(found)


def test_progress_is_told_and_modes_come_back():
    model, told = gru().train(), []
    perplexity(model, spelled, TEXT, window=16, progress=lambda *step: told.append(step))
    assert model.training
    assert told == [("scoring windows", k, 6) for k in range(7)]


def test_a_text_may_be_a_file_or_documents(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 2, encoding="utf-8")
    model = gru()
    whole = perplexity(model, spelled, TEXT * 2)
    assert perplexity(model, spelled, file) == whole
    assert perplexity(model, spelled, (TEXT for _ in range(2))) == whole


WORDS = {word: k for k, word in enumerate(TEXT.split())}

TOKENIZERS = {
    "function": lambda text: [WORDS[w] for w in text.split()],
    "dict": lambda text: {"input_ids": [WORDS[w] for w in text.split()]},
    "tensor": lambda text: {"input_ids": torch.tensor([[WORDS[w] for w in text.split()]])},
    "encoding": SimpleNamespace(
        encode=lambda text: SimpleNamespace(ids=[WORDS[w] for w in text.split()])
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_forms_of_tokenizers(name):
    found = perplexity(gru(), TOKENIZERS[name], TEXT)
    assert found == perplexity(gru(), TOKENIZERS["function"], TEXT)


def fast_tokenizer():
    transformers = pytest.importorskip("transformers", minversion="5.0")
    tokenizers = pytest.importorskip("tokenizers")
    letters = {chr(k): k for k in range(128)}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(letters, []))
    inner.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)


def test_a_tokenizer_of_transformers_and_bytes_behind_the_first_token():
    model, tokenizer = llama(), fast_tokenizer()
    found, plain = (perplexity(model, t, TEXT) for t in (tokenizer, spelled))
    assert found.nats == plain.nats
    assert found.n_bytes == len(TEXT) - 1
    assert plain.n_bytes == len(TEXT)  # it cannot decode


def test_a_compressed_model_is_measured_like_any():
    model = llama()
    ids = calibration_text(spelled, [TEXT * 4, TEXT[::-1] * 4], n_windows=8, length=16)
    small, report = lowrank.compress(model, ids[:1], params=0.8, data=ids, effort="quick")
    found = perplexity(small, spelled, TEXT, window=16)
    assert report.kept("params") <= 0.8
    assert found.tokens == len(TEXT) - 1
    assert math.isfinite(found.perplexity)


# --- what is refused -------------------------------------------------------------------------


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, ids):
        return self.function(ids)


class Encoder(Recurrent):
    def __init__(self):
        super().__init__()
        self.state = nn.GRU(12, 8, batch_first=True, bidirectional=True)


def broken():
    model = gru()
    nn.init.constant_(model.head.bias, math.nan)
    return model


def far_off():
    raise ValueError("no such letter")


REFUSED = {
    "empty": (gru, spelled, "", {}, "text: it is empty"),
    "blank": (gru, spelled, " \n", {}, "text: it is empty"),
    "no-documents": (gru, spelled, [], {}, "text: it is empty"),
    "one-token": (gru, spelled, "a", {}, "none has one before it"),
    "no-tokens": (gru, lambda _: [], "a", {}, "of its 0 tokens"),
    "no-text": (gru, spelled, 3, {}, "a int is no text"),
    "no-such-id": (gru, spelled, "é and ü", {}, "gives id 252, the model's embedding has 128"),
    "few-scores": (
        lambda: Returns(lambda ids: torch.zeros(*ids.shape, 100)), spelled, TEXT, {},
        "gives id 122, the model scores 100",
    ),
    "no-tokenizer": (gru, 3, TEXT, {}, "a int is no tokenizer"),
    "failing": (gru, lambda _: far_off(), TEXT, {}, "no such letter"),
    "words": (gru, lambda text: text.split(), TEXT, {}, "tokenizer: it gives no ids"),
    "numbers": (gru, lambda _: [0.5, 1.0], TEXT, {}, "not ids from 0 up"),
    "negative": (gru, lambda _: [-1, 1], TEXT, {}, "not ids from 0 up"),
    "no-logits": (lambda: Returns(lambda ids: {"x": ids}), spelled, TEXT, {}, "without logits"),
    "whole-numbers": (lambda: Returns(lambda ids: ids), spelled, TEXT, {}, "without logits"),
    "classes": (
        lambda: Returns(lambda ids: torch.zeros(len(ids), 3)), spelled, TEXT, {},
        r"it returns scores \(1, 3\)",
    ),
    "model-fails": (lambda: Returns(lambda ids: ids @ ids), spelled, TEXT, {}, "it fails on ids"),
    "encoder": (Encoder, spelled, TEXT, {}, "change with the token behind it"),
    "nan": (broken, spelled, TEXT, {}, r"window 0 \(tokens 0 to \d+\) are NaN"),
    "window": (gru, spelled, TEXT, {"window": 0}, "window: 0 is no whole number"),
    "half": (gru, spelled, TEXT, {"window": 1.5}, "window: 1.5 is no whole number"),
    "stride": (gru, spelled, TEXT, {"window": 8, "stride": 9}, "give 1 to 8"),
    "batch": (gru, spelled, TEXT, {"batch_size": True}, "batch_size: True"),
    "positions": (llama, spelled, TEXT, {"window": 65}, "than the model's 64 positions"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused(name):
    model, tokenizer, text, settings, message = REFUSED[name]
    with pytest.raises(InputError, match=message):
        perplexity(model(), tokenizer, text, **settings)


_BERT = {
    "vocab_size": 128, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
_T5 = {"vocab_size": 128, "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4}

NOT_CAUSAL = {
    "BertForMaskedLM": ("BertConfig", _BERT, "change with the token behind it"),
    "BertModel": ("BertConfig", _BERT, "without logits"),
    "BertForSequenceClassification": ("BertConfig", _BERT, "it returns scores"),
    "T5ForConditionalGeneration": ("T5Config", _T5, "reads one text to write another"),
    "LlamaModel": ("LlamaConfig", {**_BERT, "num_key_value_heads": 2}, "without logits"),
}


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_other_models_of_transformers_are_refused(name):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    config, values, message = NOT_CAUSAL[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**values))
    with pytest.raises(InputError, match=message):
        perplexity(model, spelled, TEXT)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_dynamic_int8_is_not_taken_for_an_encoder():
    """All tokens of a pass share a scale there, so that later ones change earlier scores."""
    small = torch.ao.quantization.quantize_dynamic(gru(), {nn.Linear}, dtype=torch.qint8)
    dense = perplexity(gru(), spelled, TEXT)
    assert perplexity(small, spelled, TEXT).nats_per_token == pytest.approx(
        dense.nats_per_token, rel=0.05
    )


# --- windows for calibration -----------------------------------------------------------------


def numbered(text: str) -> list[int]:
    return [int(word) for word in text.split()]


def counted(start: int, n: int) -> str:
    return " ".join(str(k) for k in range(start, start + n))


@pytest.mark.parametrize("n_windows", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("length", [1, 4, 10])
def test_windows_are_whole_apart_and_shared_out(n_windows, length):
    sources = [counted(0, 100), counted(1000, 100), [counted(2000, 50), counted(2050, 50)]]
    ids = calibration_text(numbered, sources, n_windows=n_windows, length=length, seed=3)
    assert ids.shape == (n_windows, length)
    assert ids.dtype == torch.int64
    assert (ids.diff(dim=1) == 1).all()  # each a piece of one source
    assert len(ids.unique()) == ids.numel()  # none over another
    shares = (ids[:, 0] // 1000).bincount(minlength=3)
    assert shares.max() - shares.min() <= 1


def test_seeds_draw_again_and_others_draw_anew():
    draw = [
        calibration_text(numbered, counted(0, 500), n_windows=6, length=10, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert draw[0].equal(draw[1])
    assert not draw[0].equal(draw[2])


def test_a_source_may_be_used_up():
    ids = calibration_text(numbered, counted(0, 40), n_windows=4, length=10)
    assert sorted(ids.flatten().tolist()) == list(range(40))


def test_files_are_read(tmp_path):
    file = tmp_path / "numbers.txt"
    file.write_text(counted(0, 40), encoding="utf-8")
    settings = {"n_windows": 4, "length": 10}
    from_file = calibration_text(numbered, file, **settings)
    assert from_file.equal(calibration_text(numbered, counted(0, 40), **settings))


BAD_SOURCES = {
    "none": ([], {}, "sources: there is none"),
    "number": (3, {}, "a int is no text"),
    "short": ([counted(0, 9), counted(0, 99)], {}, r"sources\[0\]: 9 tokens are too few for 2"),
    "inner": ([counted(0, 99), 3], {}, "a int is no text"),
    "empty": ([counted(0, 99), ""], {}, r"sources\[1\]: it is empty"),
    "windows": (counted(0, 99), {"n_windows": 0}, "n_windows: 0"),
    "length": (counted(0, 99), {"length": -1}, "length: -1"),
    "seed": (counted(0, 99), {"seed": -1}, "seed: -1"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_bad_sources_are_refused(name):
    sources, settings, message = BAD_SOURCES[name]
    with pytest.raises(InputError, match=message):
        calibration_text(numbered, sources, **{"n_windows": 4, "length": 5, **settings})


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xff"], ids=["missing", "binary"])
def test_files_that_cannot_be_read_are_refused(content, tmp_path):
    file = tmp_path / "text.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"text\.txt: it cannot be read as UTF-8 text"):
        perplexity(gru(), spelled, file)


# --- from the command line -------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("models") / "llama"
    llama().save_pretrained(where)
    fast_tokenizer().save_pretrained(where)
    return where


def invoke(*args):
    return CliRunner().invoke(main, ["evaluate", *map(str, args)])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_command_prints_what_the_function_finds(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    found = perplexity(llama(), fast_tokenizer(), TEXT, window=16, stride=8)
    options = ("--window", 16, "--stride", 8)
    done = invoke(folder, file, *options, "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures == pytest.approx(found.to_dict())
    table = invoke(folder, file, *options).stdout
    assert f"{found.perplexity:.4g}" in table
    assert "bits per byte" in table


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", (), "it is empty"),
        ("a", (), "none has one before it"),
        (TEXT, ("--window", 65), "the model's 64 positions"),
        (TEXT, ("--window", 8, "--stride", 9), "give 1 to 8"),
    ],
)
def test_bad_input_ends_the_command_with_a_sentence(folder, tmp_path, text, options, message):
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    done = invoke(folder, file, *options)
    assert done.exit_code == 2
    last = done.stderr.splitlines()[-1]  # behind transformers' own bar
    assert last.startswith("error: ")
    assert message in last
    assert not done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_folder_without_model_or_tokenizer_is_refused(folder, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert invoke(tmp_path, file).exit_code == 2
    llama().save_pretrained(tmp_path / "bare")
    done = invoke(tmp_path / "bare", file)
    assert done.exit_code == 2
    assert "no tokenizer" in done.stderr
    assert invoke(folder, tmp_path / "none.txt").exit_code == 2
