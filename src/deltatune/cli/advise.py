"""`deltatune advise`: which method, what it will take, and settings to begin with, before anything is loaded."""

from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.cli.train import overrides
from deltatune.core.amounts import duration, size


def run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of the run; `model` may be a list.")],
    goal: Annotated[
        str,
        typer.Option(
            help="What counts: quality, memory, speed, smallest-file, many-tasks, serve-vllm or serve-onnx.",
        ),
    ] = "quality",
    memory_gb: Annotated[
        float | None, typer.Option("--memory-gb", min=0.1, help="Memory a training may take; free memory by default.")
    ] = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write the config of the first choice here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Rank the methods for a config, forecast memory and time, and propose settings; loads no weights."""
    from deltatune import advising

    found = advising.advice_for(config, overrides(context.args), goal=goal, memory_gb=memory_gb)
    if write is not None:
        advising.write(found, write)
    if json:
        show.as_json(found)
        return
    typer.echo(f"{found['verdict']}: {found['verdict_reason']}")
    for base in found.get("base_models", ()):
        chosen = f"chosen: {found['base_model_reason']}" if base["chosen"] else "not chosen"
        typer.echo(f"{base['model']}: {base['parameters']:,} parameters, {_pieces(base)}, {chosen}")
    rows = [_row(one) for one in found["methods"]]
    columns = ("method", "trained", "adapter", "peak memory", "step", "in all", "energy")
    show.table(f"for {found['goal']} on {found['model']}", columns, rows, right=range(1, 7), marked=(0,))
    best = found["methods"][0]
    memory, total = best["peak_memory_bytes"], best["total_seconds"]
    typer.echo(
        f"expected values; {best['name']}: {size(memory['low'])} to {size(memory['high'])}, "
        f"{_about(total['low'])} to {_about(total['high'])}; energy is an {best['joules']['source']}"
    )
    for place, one in enumerate(found["methods"][:3], start=1):
        typer.echo(f"{place}. {one['name']}: {'; '.join(one['reasons'])}")
    if found["left_out"]:
        typer.echo(f"left out: {'; '.join(f'{name} ({why})' for name, why in sorted(found['left_out'].items()))}")
    for warning in found["warnings"]:
        typer.echo(f"watch out, {warning}")
    typer.echo("to begin with:")
    typer.echo(advising.as_yaml({name: found["config"][name] for name in ("method", "training")}).rstrip())
    if write is not None:
        typer.echo(f"next: deltatune check {write}   |   deltatune train {write}")
    else:
        typer.echo("next: the same with --write FILE, then deltatune check FILE")


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    peak, step, total = (one[name] for name in ("peak_memory_bytes", "step_seconds", "total_seconds"))
    return (
        one["name"],
        f"{one['trained_parameters']:,}",
        size(one["adapter_bytes"]),
        size(peak["expected"]),
        f"{1000 * step['expected']:,.0f} ms",
        _about(total["expected"]),
        f"{one['joules']['expected']:,} J",
    )


def _about(seconds: float) -> str:
    """A forecast of time, no more exact than it can be.

    >>> _about(42.4), _about(3012), _about(9000)
    ('42 s', '50 min', '2 h 30 min')
    """
    return duration(float(f"{seconds:.2g}")).replace(".0 ", " ")


def _pieces(base: dict[str, Any]) -> str:
    pieces = base["pieces_per_word"]
    return "no texts to cut" if pieces is None else f"{pieces:.2f} tokens per word here"
