"""Numbers as spreadsheets, pandas and MATLAB write them, and what is wrong where it is wrong."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from lowrank.cli.signal.arrays import read_matrix, read_vector
from lowrank.cli.signal.text import read_text
from lowrank.errors import InputError

A = np.array([[0.5, -1.25, 3.0], [1e-3, 2.0, -0.75]])


def joined(separator: str, point: str = ".") -> str:
    return "\n".join(separator.join(f"{v:.6g}".replace(".", point) for v in row) for row in A)


def numbered(header: str) -> str:
    """As `DataFrame.to_csv` writes it: the index is a column without a name."""
    rows = [f"{i},{row}" for i, row in enumerate(joined(",").splitlines())]
    return "\n".join([header, *rows]) + "\n"


TEXTS = {
    "commas": joined(","),
    "spaces": joined("  "),
    "tabs": joined("\t"),
    "semicolons": joined(";"),
    "decimal commas": joined(";", ","),
    "tabs and decimal commas": joined("\t", ","),
    "a header": "a,b,c\n" + joined(","),
    "a quoted header": '"a","b","c"\r\n' + joined(",").replace("\n", "\r\n"),
    "numbered columns": "0,1,2\n" + joined(","),
    "numbered rows and columns": numbered(",0,1,2"),
    "numbered rows": numbered(",x,y,z"),
    "blank lines and comments": "# made by hand\n\n" + joined(",").replace("\n", "\n\n") + "\n\n",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "A.csv"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(TEXTS[kind].encode(encoding))
        np.testing.assert_array_equal(read_text(path), A)
    (tmp_path / "A.csv.gz").write_bytes(gzip.compress(TEXTS[kind].encode()))
    np.testing.assert_array_equal(read_matrix(tmp_path / "A.csv.gz"), A)


def test_numbers_that_look_like_a_header_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "A.csv"
    for text, wanted in {
        "0,1,2\n3,4,5": [[0, 1, 2], [3, 4, 5]],
        "0,1\n": [[0, 1]],
        "1,0,2\n0.5,1,2": [[1, 0, 2], [0.5, 1, 2]],
        "nan,1\n2,3": [[np.nan, 1], [2, 3]],
        "1+2i,0\n3,-4i": [[1 + 2j, 0], [3, -4j]],
    }.items():
        path.write_text(text)
        np.testing.assert_array_equal(read_text(path), np.array(wanted))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it holds no numbers"),
        ("a,b,c\n", "it holds no numbers"),
        ("1,2,3\n4,5\n", "row 2 has 2 values, and row 1 has 3"),
        (",2,3\n4,5,6\n", "row 1, column 1 is empty"),
        ("a,b\n1,2\n3,x\n", "row 3, column 2 is 'x', which is no number"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "A.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_matrix(path)


def test_files_of_matlab_and_compressed_arrays(tmp_path: Path) -> None:
    savemat(tmp_path / "A.mat", {"A": A})
    np.testing.assert_array_equal(read_matrix(tmp_path / "A.mat"), A)
    savemat(tmp_path / "y.mat", {"y": A[:, :1]})
    np.testing.assert_array_equal(read_vector(tmp_path / "y.mat"), A[:, 0])
    savemat(tmp_path / "two.mat", {"A": A, "B": A})
    with pytest.raises(InputError, match="it holds A, B"):
        read_matrix(tmp_path / "two.mat")
    np.save(tmp_path / "A.NPY", A)
    (tmp_path / "A.NPY.npy").rename(tmp_path / "A.NPY")
    np.testing.assert_array_equal(read_matrix(tmp_path / "A.NPY"), A)
    (tmp_path / "B.npy.gz").write_bytes(gzip.compress((tmp_path / "A.NPY").read_bytes()))
    np.testing.assert_array_equal(read_matrix(tmp_path / "B.npy.gz"), A)
