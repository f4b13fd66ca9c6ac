"""`deltatune train`: from a config to a tested adapter."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.core.amounts import size
from deltatune.core.errors import SettingsError


def run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    allow_change: Annotated[
        list[str] | None, typer.Option(help="Setting that may differ from the run to resume; can be given again.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train an adapter; any key of the config can be set as `--training.learning_rate 1e-3`."""
    from accelerate import PartialState

    from deltatune import api
    from deltatune.train.signals import Stopped

    given, allowed = overrides(context.args), allow_change or ()
    try:
        done = api.train_config(config, given, resume=resume, allow_change=allowed, quiet=quiet)
    except Stopped as stopped:
        raise Stopped(stopped.number, stopped.folder, going_on(sys.argv[1:])) from None
    _report(done.folder, done.results)
    PartialState().destroy_process_group()  # of several processes; left to the interpreter's end it may abort


def overrides(arguments: list[str]) -> dict[str, str]:
    """`--a.b value` and `--a.b=value` pairs; raises `SettingsError` for anything else.

    >>> overrides(["--training.seed", "1", "--method.r=4"])
    {'training.seed': '1', 'method.r': '4'}
    """
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        key = rest.pop(0)
        if not key.startswith("--"):
            raise SettingsError(f"unexpected argument {key!r}", hint="settings are given as --group.key value")
        name, given, value = key[2:].partition("=")
        if not given:
            if not rest:
                raise SettingsError(f"{key} has no value", hint=f"{key} VALUE")
            value = rest.pop(0)
        found[name] = value
    return found


def going_on(arguments: Sequence[str]) -> str:
    """The command line that goes on with the run of these arguments.

    >>> going_on(["train", "my run.yaml", "--method.r=4"])
    "deltatune train 'my run.yaml' --method.r=4 --resume"
    """
    resume = [] if "--resume" in arguments else ["--resume"]
    return shlex.join(["deltatune", *arguments, *resume])


def _report(folder: Path, results: dict[str, Any]) -> None:
    from deltatune.report.forgetting import forgetting

    metric, train = results["metric"], results["train"]
    share = results["trainable_parameters"] / results["total_parameters"]
    baseline = results["baseline"]
    show.table(
        f"{results['method']} on {results['base_model']}",
        ("", ""),
        [
            (f"test {metric} (95 % interval)", show.measured(results["test"], metric)),
            ("before training", show.measured(results["before"], metric)),
            (f"{baseline['name']}", f"{baseline[metric]:.4f}"),
            ("trained parameters", f"{results['trainable_parameters']:,} ({share:.2%})"),
            ("adapter", size(results["adapter_bytes"])),
            ("training", f"{train['seconds']:.0f} s, {train['steps']} steps, best at {train['best_step']}"),
            ("  forecast", _forecast(results, "train_seconds", lambda value: f"{value:.3g} s")),
            ("peak memory", size(train["peak_memory_bytes"])),
            ("  forecast", _forecast(results, "peak_memory_bytes", size)),
            *_energy(results),
            ("base unchanged", "yes, hash equal before and after"),
        ],
    )
    for sentence in forgetting(results):
        typer.echo(sentence)
    if (page := folder / "report.html").is_file():
        typer.echo(f"report: {page}")
    asked = _asked(results["task"], many="tasks" in results["test"])
    typer.echo(f"next: deltatune predict {folder} {asked}   |   deltatune evaluate {folder} --data FILE")


def _forecast(results: dict[str, Any], name: str, shown: Callable[[float], str]) -> str:
    """What the run said before it began.

    >>> _forecast({"forecast": {"a": {"low": 1, "expected": 2, "high": 3}}}, "a", str)
    '2 (1 to 3)'
    """
    said = results["forecast"].get(name)
    if said is None:
        return f"none: {results['forecast'].get('unknown', 'not made')}"
    return f"{shown(said['expected'])} ({shown(said['low'])} to {shown(said['high'])})"


def _energy(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Joules with their source."""
    energy = results.get("energy") or {}
    if "why" in energy:
        return [("energy", energy["why"])]
    return [("energy", f"{energy['joules']:,.0f} J ({energy['source']})")] if energy else []


def _asked(task: str, *, many: bool) -> str:
    """How an answer is asked for: by a text where that is all a task reads, else by a file.

    >>> _asked("text-classification", many=False), _asked("text-classification", many=True)
    ('--text "..."', '--input FILE')
    """
    from deltatune.core import registry

    found = registry.tasks()[task]
    ours = [column for word, column in found.columns.items() if column.required and word != found.label]
    by_text = not many and found.rest is None and len(ours) <= 1 and not any(column.path for column in ours)
    return '--text "..."' if by_text else "--input FILE"
