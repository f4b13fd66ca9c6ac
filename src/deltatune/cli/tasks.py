"""`deltatune tasks`: every kind of work, from the registry."""

from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.cli.methods import settings


def run(json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """List the tasks, the columns they read, and their settings."""
    from deltatune.core import registry

    listed = [_described(cls) for cls in registry.tasks().values()]
    if json:
        show.as_json(listed)
        return
    rows = [
        (
            t["type"],
            t["title"],
            ", ".join(_columns(t["capabilities"])),
        )
        for t in listed
    ]
    show.table("Tasks", ("task", "what is learned", "columns"), rows)


def _columns(capabilities: Any) -> list[str]:
    named = [c["names"][0] + ("" if c["required"] else " (optional)") for c in capabilities["columns"]]
    return [*named, "all others"] if capabilities["rest"] else named


def _described(cls: Any) -> dict[str, Any]:
    columns = [{"names": list(column.words), "required": column.required} for column in cls.columns.values()]
    return {
        "type": cls.type,
        "title": cls.title,
        "capabilities": {"columns": columns, "rest": cls.rest, "key": list(cls.key)},
        "settings": settings(cls),
    }
