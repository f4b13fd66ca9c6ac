"""`deltatune evaluate`: the score of a run or adapter on held-out rows."""

from pathlib import Path
from typing import Annotated

import typer

from deltatune.cli import show


def run(
    source: Annotated[Path, typer.Argument(help="Run folder or adapter folder.")],
    data: Annotated[str, typer.Option("--data", help="File with labelled rows.")],
    model: Annotated[str | None, typer.Option("--model", help="Base model, if not the recorded one.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows per forward pass.")] = 64,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Score a trained adapter on a labelled file."""
    from deltatune import api

    result = api.evaluate(source, data, model=model, batch_size=batch_size)
    if json:
        show.as_json(result)
        return
    numbers = [(name, f"{value:.4f}") for name, value in result.items() if isinstance(value, float)]
    low, high = result["interval"]
    show.table(
        f"{source} on {data}",
        ("metric", "value"),
        [
            *numbers,
            ("95 % interval of the main metric", f"{low:.4f} to {high:.4f}"),
            ("rows", str(result["rows"])),
            ("truncated", str(result["truncated"])),
            ("rejected", str(len(result["rejected"]))),
        ],
        right=(1,),
    )
    for reason in result["rejected"][:5]:
        typer.echo(f"rejected: {reason}", err=True)
