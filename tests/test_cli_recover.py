"""`lowrank recover` and its demos: what they print and write, and how they fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.io import mmwrite
from scipy.sparse import csr_array, save_npz

import lowrank
from lowrank.cli import main
from lowrank.demos import signals as recovery_demo
from lowrank.sensing import Recovery, bases, operators, recover, sparse_signal

N, M = 60, 30
A = operators.gaussian(M, N, seed=0).to_dense()
X = sparse_signal(N, 3, seed=1)
Y = A @ X


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with A.npy and y.npy, which is the current one."""
    np.save(tmp_path / "A.npy", A)
    np.save(tmp_path / "y.npy", Y)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments, matrix="A.npy", y="y.npy"):
    words = ["recover", "--matrix", matrix, "--measurements", y, *arguments]
    return CliRunner().invoke(main, [str(word) for word in words])


def good(*arguments, **files):
    result = call(*arguments, **files)
    assert result.exit_code == 0, result.output
    return result


def figures(*arguments, **files):
    return json.loads(good(*arguments, "--json", **files).stdout)


def fails(*arguments, code=1, **files):
    """What a mistake prints: one line on stderr, nothing on stdout, no traceback, no file."""
    before = set(Path().iterdir())
    result = call(*arguments, **files)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    if code == 1:
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
    assert set(Path().iterdir()) == before
    return lines[-1]


# --- what it does ------------------------------------------------------------------------


def test_the_signal_comes_back():
    out = good("-o", "x.npy", "--plot", "recovery.png")
    np.testing.assert_allclose(np.load("x.npy"), X, atol=1e-8)
    assert Path("recovery.png").read_bytes().startswith(b"\x89PNG")
    assert "optimal" in out.stdout
    assert "relative gap is" in out.stdout
    assert out.stderr.splitlines() == ["wrote x.npy", "wrote recovery.png"]


def test_json_holds_the_certificate():
    found = figures("-o", "x.npy")
    assert found["support"] == np.flatnonzero(X).tolist()
    assert found["gap"] < 1e-8
    assert found["infeasibility"] < 1e-8
    assert (found["status"], found["output"], found["plot"]) == ("optimal", "x.npy", None)


def test_without_a_file_to_write_it_says_so():
    assert "nothing was written" in good().stderr


def test_options_reach_the_solver():
    noisy = Y + 0.01 * np.random.default_rng(0).standard_normal(M)
    np.save("n.npy", noisy)
    assert "epsilon" in figures("--noise", "auto", y="n.npy")["why"]
    assert figures("--noise", "0.05", y="n.npy")["residual_norm"] == pytest.approx(0.05)
    assert "5 % of lam_max" in figures("--lam", "5%", y="n.npy")["why"]
    expected = recover(A, noisy, lam=0.1).objective
    assert figures("--lam", "0.1", y="n.npy")["objective"] == pytest.approx(expected)
    found = figures("--sparsity", "3", "--solver", "cosamp", y="n.npy")
    assert (found["nonzeros"], found["gap"]) == (3, None)
    best = figures("--sparsity", "3", "--exact", "--time-limit", "60", "--ridge", "0.1", y="n.npy")
    assert (best["status"], best["nonzeros"], best["gap"] < 1e-8) == ("optimal", 3, True)
    assert figures("--nonneg", "--lam", "1%")["status"] == "optimal"
    assert "cvxpy" in figures("--solver", "cvxpy")["solver"]
    loose = figures("--lam", "0.01", "--solver", "fista", "--tol", "1e-3")
    assert loose["gap"] <= 1e-3


@pytest.mark.parametrize("name", ["dct", "haar", "fourier"])
def test_bases(name):
    n = 64
    Psi = bases.wavelet(n, name=name) if name == "haar" else getattr(bases, name)(n)
    G, signal = operators.gaussian(32, n, seed=2).to_dense(), Psi @ sparse_signal(n, 3, seed=3)
    np.save("G.npy", G)
    np.save("s.npy", G @ signal)
    good("--basis", name, "-o", "x.npy", matrix="G.npy", y="s.npy")
    np.testing.assert_allclose(np.load("x.npy"), signal, atol=1e-6)


@pytest.mark.parametrize("name", ["dct:8x8", "haar:8x8", "fourier:4x16", "dct:64", "haar:4x4x4"])
def test_bases_of_pictures(name):
    kind, _, sides = name.partition(":")
    shape = tuple(map(int, sides.split("x")))
    Psi = bases.wavelet(*shape, name=kind) if kind == "haar" else getattr(bases, kind)(*shape)
    G, signal = operators.gaussian(32, 64, seed=2).to_dense(), Psi @ sparse_signal(64, 3, seed=3)
    np.save("G.npy", G)
    np.save("s.npy", G @ signal)
    good("--basis", name, "-o", "x.npy", matrix="G.npy", y="s.npy")
    np.testing.assert_allclose(np.load("x.npy"), signal, atol=1e-6)


@pytest.mark.parametrize("kind", ["npz", "sparse.npz", "mtx", "sparse.mtx", "csv", "txt"])
def test_kinds_of_files(kind):
    matrix, y = f"A.{kind}", f"y.{kind.removeprefix('sparse.')}"
    if kind == "npz":
        np.savez(matrix, A)
        np.savez(y, Y)
    elif kind == "sparse.npz":
        save_npz(matrix, csr_array(A))
        np.savez(y, Y)
    elif kind.endswith("mtx"):
        mmwrite(matrix, csr_array(A) if "sparse" in kind else A)
        mmwrite(y, Y[:, None])
    else:
        np.savetxt(matrix, A, delimiter="," if kind == "csv" else " ")
        np.savetxt(y, Y)
        Path(matrix).write_bytes(b"\xef\xbb\xbf" + Path(matrix).read_bytes())  # a byte-order mark
    found = figures("-o", "x.csv", "--noise", "auto", matrix=matrix, y=y)  # for (m,) alone
    assert found["status"] == "optimal"
    np.testing.assert_allclose(np.loadtxt("x.csv"), X, atol=1e-8)


def test_several_signals_and_complex_ones():
    Z = sparse_signal(N, 3, seed=5, kind="complex")
    np.save("Y.npy", np.stack([Y, 2 * Y], axis=1))
    np.save("z.npy", A @ Z)
    good("-o", "X.npy", y="Y.npy")
    np.testing.assert_allclose(np.load("X.npy"), np.stack([X, 2 * X], axis=1), atol=1e-8)
    good("-o", "z_out.npy", "--plot", "z.svg", y="z.npy")
    np.testing.assert_allclose(np.load("z_out.npy"), Z, atol=1e-5)


def test_groups_and_signals_of_one_support():
    np.savetxt("labels.csv", np.arange(N) // 3, fmt="%d")
    np.save("block.npy", A[:, 3:6].sum(axis=1))
    found = figures("--groups", "labels.csv", y="block.npy")
    assert (found["status"], found["support"]) == ("optimal", [3, 4, 5])
    np.save("two.npy", np.stack([A[:, 7], 2 * A[:, 7]], axis=1))
    found = figures("--joint", "--noise", "0.01", y="two.npy")
    assert (found["status"], found["support"]) == ("optimal", [7])
    np.savetxt("half.csv", np.full(N, 0.5))
    assert "not all labels of groups are whole numbers" in fails("--groups", "half.csv")
    assert "exclude each other" in fails("--groups", "labels.csv", "--joint", code=2)


def test_a_process_writes_json_alone_on_stdout():
    files = ["--matrix", "A.npy", "--measurements", "y.npy"]
    command = [sys.executable, "-m", "lowrank", "recover", *files, "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(run.stdout)["status"] == "optimal"
    assert run.stderr == "nothing was written; -o FILE saves x, --plot FILE draws it\n"


# --- data with an answer that needs saying -----------------------------------------------


def test_more_rows_than_columns_is_said():
    tall = np.random.default_rng(0).standard_normal((90, N))
    np.save("T.npy", tall)
    np.save("t.npy", tall @ X)
    assert "m > n" in figures(matrix="T.npy", y="t.npy")["why"]


def test_zero_measurements_are_certified():
    np.save("0.npy", np.zeros(M))
    found = figures("-o", "x.npy", y="0.npy")
    assert (found["status"], found["gap"], found["nonzeros"]) == ("optimal", 0.0, 0)
    assert not np.load("x.npy").any()
    assert figures("--noise", "auto", y="0.npy")["nonzeros"] == 0
    assert figures("--lam", "10%", y="0.npy")["nonzeros"] == 0


def test_noise_above_the_measurements_gives_zero():
    assert figures("--noise", 2 * float(np.linalg.norm(Y)))["nonzeros"] == 0


def test_duplicate_columns_are_certified():
    np.save("D.npy", np.hstack([A, A]))
    assert figures(matrix="D.npy")["status"] == "optimal"


def test_an_inconsistent_system_ends_with_the_distance():
    np.save("T.npy", np.ones((4, 2)))
    np.save("t.npy", np.array([1.0, 1.0, 1.0, 2.0]))
    result = call("--json", "-o", "x.npy", "--plot", "x.png", matrix="T.npy", y="t.npy")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"] == "infeasible"
    assert json.loads(result.stdout)["output"] is None
    assert "0.866025 away from y" in result.stderr
    assert not Path("x.npy").exists()
    assert not Path("x.png").exists()


def test_a_run_that_stops_early_is_written_and_ends_with_1():
    options = ["--lam", "1%", "--solver", "fista", "--max-iter", 2, "-o", "x.npy"]
    result = call(*options)
    assert result.exit_code == 1
    assert "error: max_iter: gap" in result.stderr
    assert np.load("x.npy").shape == (N,)


# --- mistakes ----------------------------------------------------------------------------


def test_data_that_do_not_fit():
    np.save("short.npy", Y[:-1])
    assert "y has shape (29,) and A has 30 rows" in fails(y="short.npy")
    np.save("nan.npy", np.where(np.arange(M) == 3, np.nan, Y))
    assert "1 of 30 values are NaN or Inf" in fails(y="nan.npy")
    np.save("inf.npy", np.full((M, N), np.inf))
    assert "NaN or Inf" in fails(matrix="inf.npy")
    np.save("cube.npy", np.zeros((2, 3, 4)))
    assert "is not a matrix" in fails(matrix="cube.npy")
    np.save("none.npy", np.zeros((0, 4)))
    assert "is not a matrix" in fails(matrix="none.npy")
    np.save("words.npy", np.array(["a"] * M))
    assert "not numeric" in fails(y="words.npy")


def test_complex_data_where_real_is_needed():
    np.save("z.npy", Y + 1j)
    assert "complex coefficients" in fails("--nonneg", y="z.npy")
    assert ".csv cannot hold" in fails("-o", "x.csv", "--sparsity", 2, y="z.npy")


def test_more_non_zeros_than_measurements():
    assert "31 is outside 1..30" in fails("--sparsity", 31)


def test_files_that_are_not_there_or_no_arrays():
    assert "no such file" in fails(matrix="gone.npy")
    Path("empty.npy").write_bytes(b"")
    Path("empty.csv").write_bytes(b"")
    Path("empty.mtx").write_bytes(b"")
    Path("empty.npz").write_bytes(b"")
    for name in ("empty.npy", "empty.csv", "empty.mtx", "empty.npz"):
        assert "is not readable" in fails(matrix=name)
        assert "is not readable" in fails(y=name)
    Path("cut.npy").write_bytes(Path("A.npy").read_bytes()[:-9])
    assert "is not readable" in fails(matrix="cut.npy")
    np.save("object.npy", np.array([{}], dtype=object))
    assert "is not readable" in fails(matrix="object.npy")
    Path("text.csv").write_text("a,b\nc,d\n")
    assert "is not readable" in fails(matrix="text.csv")
    assert "give .npy, .npz" in fails(matrix="A.xlsx")
    np.savez("two.npz", a=A, b=A)
    assert "it holds a, b" in fails(matrix="two.npz")


def test_files_that_cannot_be_written():
    assert "there is no folder" in fails("-o", "gone/x.npy")
    assert "must end in" in fails("-o", "x.mat", code=2)
    assert "must end in" in fails("--plot", "x.txt", code=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--noise", "-1"], "'-1' is no noise"),
        (["--noise", "nan"], "'nan' is no noise"),
        (["--noise", "much"], "or auto"),
        (["--lam", "0"], "'0' is no penalty"),
        (["--lam", "101%"], "'101%' is no penalty"),
        (["--lam", "%"], "'%' is no penalty"),
        (["--sparsity", "0"], "x>=1"),
        (["--basis", "dbx"], "'dbx' is no basis"),
        (["--basis", "dct:8x"], "no shape '8x'"),
        (["--basis", "dct:8x0"], "no shape '8x0'"),
        (["--solver", "magic"], "choose among auto, admm"),
        (["--tol", "0"], "not between 0 and 1"),
        (["--noise", "1", "--lam", "1"], "--noise and --lam exclude each other"),
        (["--sparsity", "1", "--nonneg"], "--nonneg does not join"),
        (["--exact"], "give --sparsity K with it"),
        (["--sparsity", "1", "--ridge", "9"], "--ridge joins --exact alone"),
        (["--max-iter", "0"], "x>=1"),
    ],
)
def test_mistakes_in_the_command_line(options, says):
    assert says in fails(*options, code=2)


def test_a_matrix_is_needed():
    result = CliRunner().invoke(main, ["recover"])
    assert result.exit_code == 2
    assert "--matrix" in result.stderr


def test_a_solver_that_does_not_take_the_problem():
    assert "omp solves KSparse (sparsity=), and this is BasisPursuit" in fails("--solver", "omp")


@pytest.mark.parametrize("name", ["A.npy", "y.npy", "../{}/A.npy"])
def test_what_is_read_is_not_overwritten(name):
    before = Path("A.npy").read_bytes(), Path("y.npy").read_bytes()
    assert "would be overwritten" in fails("-o", name.format(Path.cwd().name))
    assert (Path("A.npy").read_bytes(), Path("y.npy").read_bytes()) == before


def test_debug_shows_the_traceback():
    files = ["--matrix", "gone.npy", "--measurements", "y.npy"]
    result = CliRunner().invoke(main, ["--debug", "recover", *files])
    assert isinstance(result.exception, lowrank.LowRankError)


# --- demos -------------------------------------------------------------------------------


def demo(*arguments):
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


def test_demo_of_a_sparse_signal(folder):
    out = demo("recover", "--output", folder / "new", "--json")
    assert out.exit_code == 0, out.output
    assert json.loads(out.stdout)["error"] < 1e-8
    picture = folder / "new" / "lowrank-demo-recover.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    out = demo("recover", "-n", 100, "-m", 40, "-k", 3, "--noise", 0.05, "--output", folder)
    assert "below the limit of L1" in out.stdout
    assert "wrote" in out.stderr


def test_demo_of_an_ecg(folder):
    out = demo("ecg", "--output", folder, "--json")
    assert out.exit_code == 0, out.output
    found = json.loads(out.stdout)
    assert found["snr_db"] > 20
    assert found["m"] == 256
    assert (folder / "lowrank-demo-ecg.png").exists()


def test_the_bare_demo_stays_the_network(monkeypatch):
    from lowrank.demos import network

    class Reached(Exception):
        pass

    def run(**settings):
        raise Reached

    monkeypatch.setattr(network, "run", run)
    assert isinstance(demo().exception, Reached)
    assert demo("recover", "-h").exit_code == 0


def test_mistakes_in_a_demo():
    out = demo("--seed", 3, "ecg")
    assert out.exit_code == 2
    assert "options come after the demo's name" in out.stderr
    assert demo("recover", "-k", 500).exit_code == 1
    assert demo("recover", "--noise", -1).exit_code == 2
    assert demo("ecg", "-m", 2000).exit_code == 2
    assert demo("nothing").exit_code == 2


@pytest.mark.parametrize("kind", ["sign", "uniform", "complex"])
def test_kinds_of_signals(kind):
    found = recovery_demo.sparse(100, 60, 5, kind=kind, noise=0.01)
    assert isinstance(found.recovery, Recovery)
    assert found.error < 0.1


def test_far_above_the_transition_the_optimum_is_not_the_signal():
    found = recovery_demo.sparse(100, 30, 25)
    assert found.recovery.status.ok
    assert found.error > 0.1
    assert "above the limit" in found.remarks[0]
