"""`deltatune inspect`: the map of a model, without its weights."""

from typing import Annotated, Any

import typer

from deltatune.cli import show


def run(
    model: Annotated[str, typer.Argument(help="Hub name or folder of a model.")],
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show the roles, shapes and parameter counts of a model's layers."""
    from deltatune import api

    found = api.inspect(model)
    if json:
        show.as_json(found)
        return
    typer.echo(
        f"{found['model']}: {found['parameters']:,} parameters "
        f"({', '.join(f'{role} {count:,}' for role, count in found['by_role'].items())})"
    )
    for stack in found["stacks"]:
        _table(f"{stack['name']}: {stack['blocks']} blocks at {stack['path']}", stack["layers"])
    _table("outside the blocks", found["outside"])
    typer.echo(f"head: {', '.join(found['head']) or 'none'}")


def _table(title: str, layers: list[dict[str, Any]]) -> None:
    rows = [
        (
            row["role"] + (f" (packs {', '.join(row['packed'])})" if row["packed"] else ""),
            row["path"],
            row["kind"],
            (f"{row['copies']} x " if row["copies"] else "") + " x ".join(map(str, row["shape"])),
            f"{row['parameters']:,}",
            str(row["blocks"]),
        )
        for row in layers
    ]
    if rows:
        show.table(title, ("role", "path", "kind", "out x in", "parameters", "times"), rows, right=(3, 4, 5))
