"""With data every method loses less of a layer's output on pictures it has not seen."""

from __future__ import annotations

import pytest

from benchmarks.held_out import N_LAYERS, Pictures, Row, compared, drawn, half_of, rows_of, wins
from lowrank.compression import LayerSpec
from lowrank.compression.methods import METHODS

LAYERS = ("stages.0.1.conv2", "stages.2.0.shortcut.0")
"""3 x 3, and 1 x 1 with a stride; twenty layers and 256 pictures are the slow twin's."""


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures.of(64)


def _rows(name: str, pictures: Pictures) -> list[Row]:
    cls, rows = METHODS[name], []
    for view in (pictures.views[n] for n in LAYERS):
        if cls.supports(view.spec) is None and (half := half_of(cls, view)) is not None:
            rows.append(compared(view, *half, pictures))
    return rows


CONVOLUTION = LayerSpec("conv", 16, 16, (3, 3), (1, 1), (1, 1), (1, 1), (0, 0))
OF_CONVOLUTIONS = [
    n for n, m in METHODS.items() if "alone" in m.serves and m.supports(CONVOLUTION) is None
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", OF_CONVOLUTIONS)
def test_data_lowers_the_held_out_error(name: str, pictures: Pictures) -> None:
    """Three fits a layer of a real network: the iterative methods take over five seconds."""
    rows = _rows(name, pictures)
    assert rows
    for row in rows:
        assert row.plain_with < row.plain_without, row
        assert row.weighted_with < row.weighted_without, row


@pytest.mark.slow
def test_on_nineteen_of_twenty_layers() -> None:
    pictures = Pictures.of(256)
    rows = rows_of(drawn(list(pictures.views), N_LAYERS), pictures)
    for name, count in wins(rows).items():
        least = count["layers"] - count["layers"] // 20
        assert count["plain"] >= least, name
        assert count["weighted"] >= least, name
