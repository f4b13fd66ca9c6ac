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
    counts = ", ".join(f"{role} {count:,}" for role, count in found["by_role"].items())
    typer.echo(f"{found['model']}: {found['parameters']:,} parameters ({counts})")
    for stack in found["stacks"]:
        heads = f", {' or '.join(_heads(*pair) for pair in stack['heads'])}" if stack["heads"] else ""
        _table(f"{stack['name']}: {stack['blocks']} blocks at {stack['path']}{heads}", stack["layers"])
    _table("embeddings", found["embeddings"])
    _table("head", found["head"]["layers"])
    _table("other layers outside the blocks", found["other"])
    norms = [(row["path"], _shape(row["shape"]), str(row["count"])) for row in found["norms"]]
    show.table("norms", ("path", "shape", "times"), norms, right=(1, 2))


def _heads(heads: int, key_value: int) -> str:
    return f"{heads} heads" + (f" on {key_value} keys and values" if key_value != heads else "")


def _table(title: str, layers: list[dict[str, Any]]) -> None:
    rows = [
        (
            row["role"] + (f" (packs {', '.join(row['packed'])})" if row["packed"] else ""),
            row["path"],
            row["kind"] + (" (tied)" if row["tied"] else ""),
            _shape(row["shape"]),
            f"{row['parameters']:,}",
            str(row["blocks"]),
        )
        for row in layers
    ]
    if rows:
        show.table(title, ("role", "path", "kind", "out x in", "parameters", "times"), rows, right=(3, 4, 5))


def _shape(sizes: list[int]) -> str:
    return " x ".join(map(str, sizes))
