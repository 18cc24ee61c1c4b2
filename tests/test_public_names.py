"""What `import lowrank` reaches, and what it does not bring along."""

import subprocess
import sys

import pytest

import lowrank
import lowrank.sensing

HEAVY = ("cvxpy", "tensorly", "matplotlib", "transformers", "torch", "scipy", "sklearn", "pywt")


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light():
    assert run(f"import lowrank, sys; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_sensing_is_light():
    heavy = ["scipy.stats", *(m for m in HEAVY if m != "scipy")]
    code = "import sys, lowrank; lowrank.recover, lowrank.sensing.noise;"
    code += f"print([m for m in {heavy} if m in sys.modules])"
    assert run(code) == "[]"


REACHED = (
    "sensing.bases.dct",
    "sensing.noise",
    "decompositions.robust_pca",
    "evaluate.perplexity",
    "plots.plan_bars",
)

AFRESH = f"""
import sys
for name in {REACHED}:
    for module in [m for m in sys.modules if m.split(".")[0] == "lowrank"]:
        del sys.modules[module]
    import lowrank
    print(eval("lowrank." + name) is not None)
"""


def test_import_lowrank_alone_reaches():
    assert run(AFRESH).split() == ["True"] * len(REACHED)


@pytest.mark.parametrize("package", [lowrank, lowrank.sensing], ids=lambda p: p.__name__)
def test_every_public_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_recover_is_one_thing():
    assert lowrank.recover is lowrank.sensing.recover
