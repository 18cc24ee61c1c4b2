"""docs/add-a-solver.md, followed to the letter."""

import doctest
import importlib
import re
import runpy
import shutil
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import sensing_cases
import test_solver_contract as contract

from lowrank.sensing import SOLVERS, Status, solve

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-solver.md").read_text("utf-8")
CODE = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
FENCED = re.findall(r"^ *```text\n(.*?)^ *```", PAGE, re.M | re.S)
LINES = [textwrap.dedent(text).strip() for text in FENCED]


@pytest.fixture(name="added")
def solver_added_as_the_page_says(tmp_path, monkeypatch):
    """Step 1 to 3: the file, the line in `SOLVERS`, the row in `RUNS`; on a package's own path."""
    (tmp_path / "ista.py").write_text(CODE[0], "utf-8")
    package = importlib.import_module("lowrank.sensing.solvers")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    module = importlib.import_module("lowrank.sensing.solvers.ista")
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.setattr(package, "ista", module)
    solvers, rows = (eval(f"{{{line}}}", vars(module).copy()) for line in LINES)
    monkeypatch.setitem(SOLVERS, *solvers.popitem())
    name, kind = rows.popitem()
    monkeypatch.setitem(sensing_cases.RUNS, name, partial(sensing_cases._run, kind))
    contract.problem_of.cache_clear()
    contract.whole_run.cache_clear()
    yield "ista", module
    contract.problem_of.cache_clear()
    contract.whole_run.cache_clear()


def test_followed_in_a_copy_of_the_library(tmp_path):
    package = tmp_path / "lowrank"
    skip = shutil.ignore_patterns("__pycache__", "assets", "compression", "demos", "cli")
    shutil.copytree(ROOT / "lowrank", package, ignore=skip)
    (package / "sensing" / "solvers" / "ista.py").write_text(CODE[0], "utf-8")
    listing = package / "sensing" / "solvers" / "__init__.py"
    text = listing.read_text("utf-8")
    text = text.replace("\nSOLVERS: ", "\nfrom lowrank.sensing.solvers.ista import ISTA\nSOLVERS: ")
    text = text.replace('    "omp": OMP,\n', f'    "omp": OMP,\n    {LINES[0]}\n')
    listing.write_text(text, "utf-8")
    call = "lowrank.sensing.recover([[1.0, 0.0], [0.0, 1.0]], [3.0, 0.5], lam=1.0, solver='ista')"
    code = (
        f"import lowrank.sensing; f = {call}; print(f.status.name, f.solver, f.x.round(6).tolist())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "OPTIMAL ista() [2.0, 0.0]", done.stderr


def test_the_page_says_one_line_and_one_row():
    assert LINES == ['"ista": ISTA,', '"ista": "lasso",']


def test_by_class_and_by_object():
    scope = {"__name__": "guide"}
    for code in CODE:
        exec(compile(code, "add-a-solver.md", "exec"), scope)


def test_its_example_runs(added):
    _, module = added
    failed, tried = doctest.testmod(module)
    assert (failed, tried) == (0, 2)


def test_it_is_a_solver_by_name(added):
    name, _ = added
    found = solve(contract.problem_of(name), name)
    assert found.status is Status.OPTIMAL
    reference = solve(contract.problem_of(name), "cvxpy")
    assert found.objective == pytest.approx(reference.objective, rel=1e-6)


def test_it_keeps_the_contract(added):
    name, _ = added
    contract.test_every_solver_has_a_row()
    contract.test_rows_iterate(name)
    contract.test_products_are_counted(name)
    contract.test_a_limit_that_does_not_bind_changes_nothing(name)
    contract.test_the_callback_sees_every_iteration_in_the_problem_s_shape(name, batch=False)
    for number in (1, 2, 3):
        contract.test_max_iter_is_honoured(name, number)
        contract.test_the_callback_stops_the_run(name, batch=False, stop=number)


def test_the_guide_and_the_reference_complete_themselves(added):
    name, _ = added
    completed = runpy.run_path(str(ROOT / "docs" / "hooks" / "solvers.py"))["completed"]
    for page, wanted in (
        ("reference/solvers.md", "\n::: lowrank.sensing.solvers.ista.ISTA\n"),
        ("choose-a-solver.md", f"\n| `{name}` | Lasso | Iterative soft thresholding"),
    ):
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert wanted not in text
        assert completed(page, text).count(wanted) == 1
        made = completed(page, text).splitlines()
        assert set(text.splitlines()) <= set(made)


def test_what_is_there_by_hand_stays_alone():
    completed = runpy.run_path(str(ROOT / "docs" / "hooks" / "solvers.py"))["completed"]
    for page in ("reference/solvers.md", "choose-a-solver.md", "index.md"):
        text = (ROOT / "docs" / page).read_text("utf-8")
        assert completed(page, text) == text
