"""`deltatune compare`: techniques and baselines on one's own rows."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.cli.train import going_on, overrides
from deltatune.core.amounts import count, joules, size
from deltatune.core.errors import SettingsError

SEEDS = 3
UNITS = {"s": 1, "m": 60, "h": 3600}


def run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of a run: task, model, rows, training.")],
    methods: Annotated[
        str, typer.Option(help="Methods, with commas; the config's own and the baselines are always there.")
    ] = "",
    seeds: Annotated[int, typer.Option(min=1, help="Whole runs of every method.")] = SEEDS,
    budget: Annotated[str, typer.Option(help="Time for all of it, such as 90s, 30m, 2h; none: no limit.")] = "",
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Search rate and size by Optuna; without it rates alone, by halving."),
    ] = False,
    own_rates: Annotated[bool, typer.Option("--own-rates", help="Search nothing: every method as it is.")] = False,
    trials: Annotated[int | None, typer.Option(min=1, help="Short trials of every method, with --tune: 12.")] = None,
    worker: Annotated[bool, typer.Option("--worker", help="Join the search that runs in the folder.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder; by default output_dir with -comparison.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in the folder.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Compare methods with each other and with baselines; any key of the config can be set as in `train`."""
    from deltatune import api
    from deltatune.train.signals import Stopped

    names = [name.strip() for name in methods.split(",") if name.strip()]
    given, limit = overrides(context.args), seconds(budget) if budget else None
    if worker:
        others = {"seeds": seeds != SEEDS, "tune": tune, "own-rates": own_rates, "resume": resume, "json": json}
        _alone("--worker", {**others, "methods": names, "budget": limit, "trials": trials})
        made = api.join_comparison(config, given, output_dir=output, quiet=quiet)
        typer.echo(f"the search has ended; {made} trials were made here")
        return
    if own_rates:
        _alone("--own-rates", {"tune": tune, "trials": trials})
    try:
        done = api.compare_config(
            *(config, given),
            methods=names,
            seeds=seeds,
            budget=limit,
            tune="settings" if tune else "none" if own_rates else "rates",
            trials=trials,
            output_dir=output,
            resume=resume,
            quiet=quiet,
        )
    except Stopped as stopped:
        raise Stopped(stopped.number, stopped.folder, going_on(sys.argv[1:])) from None
    if json:
        show.as_json(done.results)
        return
    _report(done.folder, done.results)


def _alone(option: str, others: Mapping[str, Any]) -> None:
    """Raises `SettingsError` for options that say nothing beside another one."""
    for name, given in others.items():
        if given:
            raise SettingsError(f"--{name} has no say with {option}", hint="leave one of them out")


def seconds(text: str) -> float:
    """A time such as `90s`, `30m` or `1.5h`; raises `SettingsError` for anything else.

    >>> seconds("30m"), seconds("1.5h"), seconds("20")
    (1800.0, 5400.0, 20.0)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if found is None:
        raise SettingsError(f"budget {text!r} is not a time", hint="90s, 30m or 2h")
    return float(found[1]) * UNITS[found[2] or "s"]


def _report(folder: Path, results: dict[str, Any]) -> None:
    from deltatune.report.comparison import energy_sources, old_task

    tested = {name: one for name, one in results["methods"].items() if "mean" in one}
    order = sorted(tested, key=lambda name: tested[name]["mean"], reverse=not results["lower_is_better"])
    marked = [order.index(results["chosen"])] if results["chosen"] else []
    quality = [_quality(name, results) for name in order]
    quality += [(name, f"{value:.4f}", "", "", "") for name, value in results["baselines"].items()]
    columns = ("", f"test {results['metric']}", "95 % interval", "difference", "p (corrected)")
    show.table(f"{results['task']} with {results['base_model']}", columns, quality, right=(1, 3, 4), marked=marked)
    costs = [_costs(name, tested[name]) for name in order]
    names = ("", "rate", "runs", "trained", "adapter", "memory", "time", "energy")
    numbers = tuple(range(1, len(names)))
    show.table("what they cost", names, costs, right=numbers, whole=numbers, marked=marked)
    old = old_task(tested)
    lost = [[name, _moved(tested[name]), *([_after(tested[name])] if old else [])] for name in order]
    about = ["", "forgets", *([f"old {old['metric']}"] if old else [])]
    show.table("what they forget", about, lost, right=(1, 2), marked=marked)
    if old:
        typer.echo(f"old task: {old['task']}, {old['metric']} on {old['rows']:,} rows, {old['before']:.4f} before")
    if sources := energy_sources(tested):
        typer.echo(f"energy: {'; '.join(sources)}")
    for name, one in results["methods"].items():
        if one["refused"]:
            typer.echo(f"refused: {name}: {one['refused']}", err=True)
        for seed, error in one["failed"].items():
            typer.echo(f"failed: {name}, seed {seed}: {error}", err=True)
    for what in results["left_out"]:
        typer.echo(f"left out: {what}", err=True)
    typer.echo(results["verdict"])
    if results["best_run"]:
        typer.echo(f"next: deltatune predict {results['best_run']} --input FILE   |   all of it: {folder}/report.html")


def _quality(name: str, results: dict[str, Any]) -> tuple[str, ...]:
    one, against = results["methods"][name], results["against"].get(name)
    low, high = one["interval"]
    apart = (f"{-against['difference']:+.4f}", f"{against['p_corrected']:.3f}") if against else ("chosen", "")
    return name, f"{one['mean']:.4f}", f"{low:.4f} to {high:.4f}", *apart


def _choice(one: Mapping[str, Any]) -> str:
    """Rate and size that a method was trained with."""
    return ", ".join([f"{one['learning_rate']:.3g}", *(f"{name}={value}" for name, value in one["changes"].items())])


def _costs(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(name, _choice(one), str(len(one["seeds"])), count(one["trainable_parameters"])),
        *(size(one["adapter_bytes"]), size(one["peak_memory_bytes"]), f"{one['train_seconds']:.0f} s"),
        "-" if one["joules"] is None else joules(one["joules"]),
    )


def _moved(one: dict[str, Any]) -> str:
    """How far representations moved."""
    return "-" if one["forgetting"] is None else f"{one['forgetting']:.3f}"


def _after(one: dict[str, Any]) -> str:
    """What is left of an old task's metric."""
    return f"{one['old_task']['after']:.4f}" if one["old_task"] else "-"
