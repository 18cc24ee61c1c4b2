"""`lowrank compress`: a smaller copy of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowrank.cli.console import FILE, FOLDER, TARGET, json_option, show, show_json, tell, working
from lowrank.cli.network.source import SOURCE_HELP, Source, source_options
from lowrank.cli.network.stream import in_stream, takes_stream
from lowrank.cli.network.values import Budget, Methods, is_pretrained, split
from lowrank.cli.targets import check_targets
from lowrank.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from lowrank.cli.network.loading import Loaded
    from lowrank.compression.pipeline.report import Report
    from lowrank.progress import Progress


_BUDGETS = ("macs", "params", "bytes", "latency", "memory", "max_drop")


_RULES = ("methods", "skip", "only", "round_to", "int8", "low_bits", "stock")


@click.command(
    short_help="A smaller copy of a model, within a budget.",
    help=f"""Replace the layers of a trained model by smaller ones, within a budget.

    \b
    lowrank compress net.py:build --input 1x3x224x224 --macs 0.5 -o small.safetensors
    lowrank compress net.py:build --weights net.safetensors --data batch.npz --params 20M
    lowrank compress net.py:build --data batch.npz --latency 0.6 --refine
    lowrank compress net.py:build --data labelled.npz --max-drop 0.01
    lowrank compress ./my-bert --bytes 200MB --skip 'embeddings.*' --save-plan plan.json
    lowrank compress net.py:build --input 1x3x32x32 --plan plan.json -o small.safetensors
    lowrank compress ./my-llama --params 0.6 -o ./small-llama
    lowrank compress ./my-llama --stream --data ids.npz --params 0.6 -o ./small-llama

    A budget is a fraction to keep (0.5, 50%) or a figure (20M, 200MB, 1_500_000) of the whole
    model; several must all be met. With --data layers are planned and fitted to what they see
    on its first 256 examples, and compared on the others. The plan can be edited by hand and
    applied with --plan. Load the result with lowrank.load("small.safetensors", into=build());
    a folder, tokenizer and all, with lowrank.load_pretrained("small-llama").
{SOURCE_HELP}""",
)
@source_options
@click.option("--macs", type=Budget(), metavar="KEEP", help="Multiply-accumulates to keep.")
@click.option("--params", type=Budget(), metavar="KEEP", help="Parameters to keep.")
@click.option("--bytes", "size", type=Budget(), metavar="KEEP", help="Bytes of weights to keep.")
@click.option("--latency", type=Budget(), metavar="KEEP", help="Measured time to keep: 0.6")
@click.option("--memory", type=Budget(), metavar="KEEP", help="Peak bytes at run time to keep.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1),
    metavar="DROP",
    help="Instead: the smallest model whose accuracy on --data, which has labels, falls by at "
    "most this, such as 0.01.",
)
@click.option(
    "--refine",
    type=click.IntRange(min=1),
    is_flag=False,
    flag_value=100,  # `lowrank.compression.fitting.blocks.STEPS`, which would import torch
    metavar="[STEPS]",
    help="Train block by block on --data, without labels; 100 steps each by default.",
)
@click.option("--int8", is_flag=True, help="Linear layers may be int8, for --bytes.")
@click.option("--low-bits", is_flag=True, help="Layers may be of 2 to 8 bits, for --bytes.")
@click.option("--stock", is_flag=True, help="Use modules of torch.nn alone.")
@click.option(
    "--methods",
    type=Methods(),
    help="Methods that may be used: names, or FILE.py:CLASS for yours; by default all names. "
    "With select, channels may go, too.",
)
@click.option("--skip", multiple=True, metavar="LAYERS", help="Leave these dense: fc,layer1.*")
@click.option("--only", multiple=True, metavar="LAYERS", help="Consider these layers only.")
@click.option(
    "--round-to", type=click.IntRange(min=1), metavar="N", help="Make ranks multiples of this."
)
@click.option(
    "--effort",
    type=click.Choice(["quick", "default", "thorough"]),
    help="What it may cost: with --data quick takes at most 4 passes over them and searches "
    "nothing, thorough tries every method.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    metavar="N",
    help="Seed of the randomised fits; 0 by default.",
)
@click.option(
    "--cache",
    type=FOLDER,
    metavar="FOLDER",
    help="Keep what is measured and fitted there: another budget, or the same command after it "
    "was stopped, goes on from it.",
)
@click.option(
    "--stream/--no-stream",
    default=None,
    help="Read and write a transformers folder block by block, for models larger than memory; by "
    "default where the model in float32 would take more than half of the memory that is free.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="With --stream: decompose the layers of a block in so many processes.",
)
@click.option("--plan", "plan_file", type=FILE, metavar="FILE", help="Apply this plan instead.")
@click.option("--save-plan", type=FILE, metavar="FILE", help="Write the plan as JSON.")
@click.option(
    "-o",
    "--output",
    type=TARGET,
    metavar="FILE",
    help="Write the model: .safetensors; of a transformers folder also a folder of that form.",
)
@click.option("--report", "page", type=FILE, metavar="FILE", help="Write a report: .html")
@json_option
def command(
    source: Source,
    plan_file: Path | None,
    save_plan: Path | None,
    output: Path | None,
    page: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compress a model."""
    stream, workers = options.pop("stream"), options.pop("workers")
    settings = _settings(options)
    given = [*settings, *(("plan",) if plan_file else ()), *(("report",) if page else ())]
    if takes_stream(stream, source, output, given):
        assert output is not None
        in_stream(source, output, settings, workers, save_plan, as_json=as_json)
        return
    if workers is not None:
        raise click.UsageError("--workers goes with --stream")
    _check_choice(plan_file, settings)
    if page is not None and page.suffix != ".html":
        raise click.UsageError(f"--report {page} must end in .html")
    _check_output(output, source)
    check_targets(save_plan, output, page, sources=[*source.files, plan_file])
    from lowrank.cli.network.loading import load  # brings torch along

    with working() as progress:
        loaded = load(source)
        small, report = _compressed(loaded, plan_file, settings, progress)
        _write(small, report, save_plan, output, source)
        if page is not None:
            report.save_html(page, peak_memory=_peaks(loaded, small), checkpoint=output)
    if as_json:
        written = {"output": output, "plan_file": save_plan, "report_file": page}
        show_json(report.to_dict() | {k: v and str(v) for k, v in written.items()})
    else:
        show(report)
    for path in filter(None, (save_plan, output, page)):
        tell(f"wrote {path}")
    if output is None and save_plan is None and page is None:
        tell("nothing was written; -o FILE saves the model, --save-plan FILE the plan")


def _check_output(output: Path | None, source: Source) -> None:
    """Refuse a name that does not say what is written, or stands for something else already."""
    if output is None:
        return
    if output.suffix == ".safetensors":
        if output.is_dir():
            raise click.UsageError(f"-o {output} is a folder; name a file in it")
    elif not is_pretrained(source.model):
        raise click.UsageError(f"-o {output} must end in .safetensors, which is what it writes")
    elif output.is_file():
        raise click.UsageError(f"-o {output} is a file; name a folder, or one in .safetensors")


def _settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, by the names that `lowrank.compress` uses."""
    named = {"bytes" if name == "size" else name: value for name, value in options.items()}
    unset = (None, ())
    given = {k: v for k, v in named.items() if v not in unset and v is not False}
    return given | {name: split(given[name]) for name in ("skip", "only") if name in given}


def _check_choice(plan_file: Path | None, settings: Mapping[str, Any]) -> None:
    if plan_file is not None and (others := set(settings) - {"refine", "cache"}):
        spare = ", ".join("--" + n.replace("_", "-") for n in settings if n in others)
        raise click.UsageError(f"--plan already settles every layer; drop {spare}")
    if plan_file is None and not set(_BUDGETS) & set(settings):
        raise click.UsageError("no budget; give --macs, --params or --bytes, such as --macs 0.5")


def _compressed(
    loaded: Loaded, plan_file: Path | None, settings: Mapping[str, Any], progress: Progress
) -> tuple[nn.Module, Report]:
    from lowrank.compression.calibration.settings import Calibration
    from lowrank.compression.gauges.quality import labelled_accuracy
    from lowrank.compression.pipeline.apply import apply
    from lowrank.compression.pipeline.compress import compress
    from lowrank.compression.planning.rules import Rules
    from lowrank.compression.structure.plan import Plan

    model, example, data = loaded.model, loaded.example, loaded.data
    if plan_file is not None:
        settings = {**settings, "example": example}
        return apply(model, Plan.load(plan_file), data=data, progress=progress, **settings)
    rules = Rules(**{k: v for k, v in settings.items() if k in _RULES})
    calibration = Calibration(seed=settings.get("seed", 0))
    settings = {k: v for k, v in settings.items() if k not in (*_RULES, "seed")}
    if "max_drop" in settings:
        settings["metric"] = labelled_accuracy(data)
    return compress(
        model, example, data=data, calibration=calibration, rules=rules, progress=progress,
        **settings,
    )  # fmt: skip


def _peaks(loaded: Loaded, small: nn.Module) -> tuple[int, int] | None:
    """Peak bytes of the activations of both models on the example, if there is one."""
    from lowrank.compression.gauges.profile import profile

    if loaded.example is None:
        return None
    before, after = (profile(m, loaded.example) for m in (loaded.model, small))
    return before.peak_activation_bytes, after.peak_activation_bytes


def _write(
    small: nn.Module,
    report: Report,
    save_plan: Path | None,
    output: Path | None,
    source: Source,
) -> None:
    from lowrank.compression.structure.checkpoint import save
    from lowrank.compression.structure.pretrained.writing import save_pretrained

    if save_plan is not None:
        try:
            report.plan.save(save_plan)
        except OSError as error:
            raise InputError(str(save_plan), f"cannot be written ({error})", "free it") from error
    if output is not None and output.suffix == ".safetensors":
        save(small, output)
    elif output is not None:
        model = Path(source.model)
        save_pretrained(small, output, tokenizer=model if model.is_dir() else model.parent)
