"""`lowrank recover`: a sparse signal from its measurements, with a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from lowrank.cli.console import FILE, fail, json_option, show, show_json, tell
from lowrank.cli.signal.arrays import READS, read_matrix, read_vector, write_vector
from lowrank.cli.signal.formulation import BasisName, Noise, Penalty, SolverName
from lowrank.cli.signal.table import save_figure, table
from lowrank.cli.targets import check_targets
from lowrank.errors import InputError

if TYPE_CHECKING:
    from lowrank.sensing import Recovery


PICTURES = (".png", ".pdf", ".svg")


@click.command(
    short_help="A sparse signal from its measurements.",
    help=f"""Recover a sparse signal x from measurements y = A x + noise, with a certificate.

    \b
    lowrank recover --matrix A.npy --measurements y.npy -o x.npy
    lowrank recover --matrix A.npy --measurements y.npy --noise auto --plot recovery.png
    lowrank recover --matrix A.mtx --measurements y.csv --lam 5% --basis db4 --json
    lowrank recover --matrix A.npy --measurements y.npy --noise 0.1 --groups labels.csv
    lowrank recover --matrix A.npy --measurements Y.npy --joint
    lowrank recover --matrix A.npy --measurements y.npy --sparsity 10 --solver cosamp
    lowrank recover --matrix A.npy --measurements y.npy --sparsity 10 --exact --time-limit 60

    Without --noise, --lam and --sparsity, y is taken as exact and the smallest L1 norm wins
    (basis pursuit). Arrays are read from {READS}. Pictures are read and written row after row.

    A run that does not reach its answer ends with exit code 1 and a line on stderr that says why;
    x is written then only if the run stopped early, near it.
""",
)
@click.option("--matrix", type=FILE, required=True, metavar="FILE", help="A: m rows, n columns.")
@click.option(
    "--measurements", type=FILE, required=True, metavar="FILE", help="y: m values, or m rows."
)
@click.option("--noise", type=Noise(), metavar="NORM", help="Bound on ||A x - y||, or auto.")
@click.option(
    "--lam",
    type=Penalty(),
    metavar="LAM",
    help="LASSO's penalty: 0.1, or 5% of the lam that zeroes x.",
)
@click.option("--sparsity", type=click.IntRange(min=1), metavar="K", help="Number of non-zeros.")
@click.option("--exact", is_flag=True, help="Prove that no other K columns fit better.")
@click.option("--ridge", type=float, metavar="R", help="With --exact: add R/2 ||x||^2.")
@click.option(
    "--time-limit", type=float, metavar="SECONDS", help="After that, the best so far, with its gap."
)
@click.option(
    "--basis", type=BasisName(), metavar="NAME", help="x is sparse in dct, db4, dct:32x32 ..."
)
@click.option("--nonneg", is_flag=True, help="The coefficients are 0 or more.")
@click.option(
    "--groups", type=FILE, metavar="FILE", help="An integer for each coefficient: its group."
)
@click.option("--joint", is_flag=True, help="The columns of y have one support.")
@click.option(
    "--solver", type=SolverName(), default="auto", metavar="NAME", help="auto by default."
)
@click.option("--tol", type=float, metavar="GAP", help="Relative gap to reach; 1e-8 by default.")
@click.option("--max-iter", type=click.IntRange(min=1), metavar="N", help="Limit of iterations.")
@click.option("-o", "--output", type=FILE, metavar="FILE", help="Write x: .npy or .csv")
@click.option("--plot", type=FILE, metavar="FILE", help="Draw it: .png, .pdf or .svg")
@click.option("--report", type=FILE, metavar="FILE", help="Write all of it as one page: .html")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    matrix: Path,
    measurements: Path,
    output: Path | None,
    plot: Path | None,
    report: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Recover a signal."""
    settings = _settings(options)
    _check_files(output, plot, report)
    for path in filter(None, (output, plot, report)):
        if path.resolve() in (matrix.resolve(), measurements.resolve()):
            raise InputError(str(path), "is what is read, and would be overwritten", "rename it")
    A, y = read_matrix(matrix), read_vector(measurements)
    if "groups" in settings:
        settings["groups"] = _labels(settings["groups"])
    found = run(A, y, settings)
    written = _write(found, y, {"output": output, "plot": plot, "report": report})
    if as_json:
        show_json(found.to_dict() | {"support": found.support.tolist()} | written)
    else:
        show(table(found))
    for path in filter(None, written.values()):
        tell(f"wrote {path}")
    if output is None and plot is None and report is None:
        tell("nothing was written; -o FILE saves x, --plot FILE draws it")
    if not found.status.ok:
        fail(f"{found.status.name.lower()}: {found.message}")
        ctx.exit(1)


def run(A: Any, y: Any, settings: dict[str, Any]) -> Recovery:
    """`recover` with a progress bar on stderr, of a best subset with its gap."""
    from lowrank.sensing import recover
    from lowrank.sensing.progress import progress_bar
    from lowrank.sensing.solvers.branch_and_bound import BranchAndBound

    with progress_bar() as bar:
        if settings.get("exact") and settings.get("solver", "auto") == "auto":
            return recover(A, y, **settings | {"solver": BranchAndBound(report=bar.standing)})
        return recover(A, y, callback=bar, **settings)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names that `lowrank.recover` uses."""
    one = [name for name in ("noise", "lam", "sparsity") if options[name] is not None]
    if len(one) > 1:
        raise click.UsageError(f"--{' and --'.join(one)} exclude each other; give one of them")
    if options["sparsity"] is not None and options["nonneg"]:
        raise click.UsageError("--nonneg does not join --sparsity; give --noise or --lam")
    if options["groups"] is not None and options["joint"]:
        raise click.UsageError("--groups and --joint exclude each other; give one of them")
    if options["tol"] is not None and not 0 < options["tol"] < 1:
        raise click.UsageError(f"--tol {options['tol']} is not between 0 and 1; such as 1e-8")
    if options["exact"] and options["sparsity"] is None:
        raise click.UsageError("--exact is of the best subset; give --sparsity K with it")
    if options["ridge"] and not options["exact"]:
        raise click.UsageError("--ridge joins --exact alone")
    given = {k: v for k, v in options.items() if v is not None}
    return given | given.pop("lam", {})


def _labels(path: Path) -> Any:
    """The group of each coefficient."""
    values = read_vector(path)
    if not np.array_equal(values, np.round(values.real)):
        raise InputError(str(path), "not all labels of groups are whole numbers", "pass integers")
    return values.real.astype(int)


def _check_files(output: Path | None, plot: Path | None, report: Path | None) -> None:
    for option, path, kinds in (
        ("-o", output, (".npy", ".csv")),
        ("--plot", plot, PICTURES),
        ("--report", report, (".html",)),
    ):
        if path is not None and path.suffix not in kinds:
            raise click.UsageError(f"{option} {path} must end in {' or '.join(kinds)}")
    check_targets(output, plot, report)


def _write(found: Recovery, y: Any, targets: dict[str, Path | None]) -> dict[str, Any]:
    """Write what was asked for and is there; the names that were written."""
    from lowrank.sensing import Status

    if found.status in (Status.INFEASIBLE, Status.UNBOUNDED, Status.DIVERGED):
        return dict.fromkeys(targets)
    output, plot, report = (targets[name] for name in ("output", "plot", "report"))
    if output is not None:
        if np.iscomplexobj(found.x) and output.suffix == ".csv":
            raise InputError(str(output), "x is complex, which .csv cannot hold", "name an .npy")
        write_vector(output, found.x)
    if plot is not None:
        save_figure(found.plot(measurements=y), plot)
    if report is not None:
        found.save_html(report, measurements=y)
    return {name: path and str(path) for name, path in targets.items()}
