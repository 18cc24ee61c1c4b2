"""Words are counted in all the texts that are given, also those that no pass runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lowrank
from lowrank.compression import calibration_batches
from lowrank.compression.network.batches import Examples, further_of, taken
from lowrank.compression.network.words.counts import LARGEST, numbers_in

WORDS, LENGTH = 50, 6


class Reader(nn.Module):
    """A table of words behind whatever else its inputs hold."""

    def __init__(self, padding_idx: int | None = None, shift: int = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 8, padding_idx=padding_idx)
        self.out = nn.Linear(8, 4)
        self.shift = shift

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.out(self.table((ids + self.shift) % WORDS).mean(1))


def texts(n: int, words: int = WORDS) -> Tensor:
    return torch.randint(words, (n, LENGTH))


def frequencies(net: nn.Module, data: Any, count: int, **named: Any) -> Tensor:
    settings = lowrank.Calibration(count=count)
    example = next(iter(data)) if not isinstance(data, Tensor) else data[:1]
    curves = lowrank.measure(net, example, data=data, calibration=settings, **named)
    assert curves.data is not None
    return curves.data.calibrated.layers["table"].C[0]


def relative(ids: Tensor) -> Tensor:
    return torch.bincount(ids.flatten(), minlength=WORDS).double() / ids.numel()


@pytest.mark.parametrize("n", [4, 8, 9, 30, 8 * 17, 8 * 17 + 64])
def test_texts_behind_those_that_run_are_counted(n: int) -> None:
    ids = texts(n)
    found = frequencies(Reader(), [ids[k : k + 1] for k in range(n)], 8)
    assert torch.allclose(found, relative(ids[: 8 * 17]))


@pytest.mark.parametrize("form", ["tensor", "list", "loader", "dicts", "tuples"])
def test_in_every_form_of_data(form: str) -> None:
    ids = texts(32)
    batches = list(ids.split(4))
    data: Any = {
        "tensor": ids,
        "list": batches,
        "loader": DataLoader(ids, batch_size=4),  # type: ignore[arg-type]
        "dicts": [{"ids": b, "mask": torch.ones_like(b)} for b in batches],
        "tuples": [(b, torch.ones_like(b)) for b in batches],
    }[form]
    net = Reader()
    if form == "tensor":  # its first batch holds 64, of which 8 are used
        data = ids.repeat(4, 1)
        expected = relative(torch.cat([data[:8], data[64:]]))
    else:
        expected = relative(ids)
    assert torch.allclose(frequencies(net, data, 8), expected)


def test_an_iterator_is_left_where_it_is() -> None:
    batches = iter(texts(32).split(4))
    used, _ = taken(batches, texts(1), 8)
    assert len(used) == 2
    assert not further_of(used)
    assert len(list(batches)) == 6


def test_what_is_compared_is_not_counted() -> None:
    batches = list(texts(32).split(4))
    used, behind = taken(batches, batches[0], 8, rest=12)
    assert [len(behind), len(used)] == [3, 2]
    (counts,) = used.further
    assert counts is not None
    assert int(counts.sum()) == 12 * LENGTH


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_pictures_are_not_read_further(dtype: torch.dtype) -> None:
    read = []

    def pictures() -> Iterator[Tensor]:
        for k in range(20):
            read.append(k)
            yield torch.zeros(4, 3, dtype=dtype)

    class Data:
        def __iter__(self) -> Iterator[Tensor]:
            return pictures()

    assert not further_of(calibration_batches(Data(), torch.zeros(1, 3, dtype=dtype), 8))
    assert len(read) == 2


def test_padding_is_not_counted_there_either() -> None:
    ids = texts(32)
    ids[:, 3:] = 0
    found = frequencies(Reader(padding_idx=0), list(ids.split(4)), 8)
    assert float(found[0]) == 0
    assert float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("shift", [0, 1])
def test_only_what_a_table_reads_as_it_is_counts(shift: int) -> None:
    ids = texts(32)
    found = frequencies(Reader(shift=shift), list(ids.split(4)), 8)
    expected = relative(ids if shift == 0 else (ids[:8] + shift) % WORDS)
    assert torch.allclose(found, expected)


def test_numbers_beyond_the_table_are_not_its_words() -> None:
    ids = texts(32)
    ids[20:] += WORDS  # the model takes them modulo the table's length
    found = frequencies(Reader(), list(ids.split(4)), 8)
    assert torch.allclose(found, relative(ids[:8]))


@pytest.mark.parametrize(
    ("later", "known"),
    [
        (torch.full((2, 3), 7), True),
        (torch.full((2, 3), -1), False),
        (torch.full((2, 3), LARGEST - 1), True),
        (torch.full((2, 3), LARGEST), False),
        (torch.ones(2, 3, dtype=torch.bool), False),
        (torch.ones(2, 3), False),
        (torch.zeros(2, 0, dtype=torch.long), True),
        (torch.full((2, 3), 7, dtype=torch.int32), True),
        (torch.full((2, 3), 7, dtype=torch.uint8), False),
    ],
    ids=["words", "negative", "last", "beyond", "truth", "floats", "none", "short", "bytes"],
)
def test_what_counts_as_numbers_of_words(later: Tensor, known: bool) -> None:
    (counts,) = numbers_in([texts(2), later, texts(2)], 6)
    assert (counts is not None) == known
    if counts is not None:
        assert int(counts.sum()) == 4 * LENGTH + later.numel()


def test_batches_that_are_not_alike_or_not_whole_are_left() -> None:
    assert numbers_in([(texts(2), texts(2)), texts(2)], 9) == ()
    used = calibration_batches([texts(4), texts(4), torch.full((2,), torch.nan)], texts(1), 4)
    assert isinstance(used, Examples)
    assert int(used.further[0].sum()) == 4 * LENGTH  # type: ignore[union-attr]


def test_other_texts_behind_are_other_results_in_a_cache(tmp_path: Path) -> None:
    ids, net = texts(32), Reader()
    one = frequencies(net, list(ids.split(4)), 8, cache=tmp_path)
    again = frequencies(net, list(ids.split(4)), 8, cache=tmp_path)
    other = frequencies(net, list(ids[:24].split(4)), 8, cache=tmp_path)
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_rare_words_that_come_later_keep_their_rows() -> None:
    """Half of the words come in the first texts, the others behind them, as often."""
    torch.manual_seed(0)
    ids = torch.cat([texts(64, WORDS // 2), texts(64, WORDS // 2) + WORDS // 2])
    net, later = Reader(), ids[64:]
    short, _ = lowrank.compress(
        net, ids[:1], params=0.6, data=list(ids[:64].split(8)), only=["table"],
        calibration=lowrank.Calibration(count=64),
    )  # fmt: skip
    whole, _ = lowrank.compress(
        net, ids[:1], params=0.6, data=list(ids.split(8)), only=["table"],
        val=list(ids[:8].split(8)),
        calibration=lowrank.Calibration(count=64),
    )  # fmt: skip
    off = [float((small(later) - net(later)).detach().square().mean()) for small in (short, whole)]
    assert off[1] < 0.7 * off[0], off


@pytest.mark.parametrize("n", [7, 8, 20])
def test_words_that_one_example_holds_tell_of_those_that_none_does(n: int) -> None:
    """Each example repeats a word of its own; few of them say nothing of topics."""
    ids = torch.stack([torch.tensor([10 + k, 10 + k, 10 + k, 1, 2, 3]) for k in range(n)])
    found = lowrank.measure(Reader(), ids[:1], data=ids).data.calibrated.layers["table"]
    own = found.unseen_words[0]
    never = torch.bincount(ids.flatten(), minlength=WORDS) == 0
    assert not own[~never].any()
    assert own[never].sum() == pytest.approx(0.5 if n >= 8 else 0.0)


def test_words_that_further_texts_hold_speak_for_none() -> None:
    ids = torch.stack(
        [torch.tensor([10 + k % 8, 10 + k % 8, 10 + k % 8, 1, 2, 3]) for k in range(16)]
    )
    assert not _unseen(ids, 8).any()
    ids[8:, :3] = 1
    assert _unseen(ids, 8).sum() == pytest.approx(0.25)


def _unseen(ids: Tensor, count: int) -> Tensor:
    settings = lowrank.Calibration(count=count)
    data = [ids[k : k + 1] for k in range(len(ids))]
    found = lowrank.measure(Reader(), ids[:1], data=data, calibration=settings)
    return found.data.calibrated.layers["table"].unseen_words[0]
