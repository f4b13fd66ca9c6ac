"""`deltatune methods`: every technique, from the registry."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from deltatune.cli import show


def run(json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """List the methods, what they can do, and their settings."""
    from deltatune.core import registry

    listed = [_described(cls) for cls in registry.methods().values()]
    if json:
        show.as_json(listed)
        return
    rows = [
        (
            m["type"],
            f"{m['title']} ({m['paper'].partition(', arXiv')[0]})",
            *("yes" if m["capabilities"][name] else "-" for name in ("merge", "rows")),
            "yes" if m["peft_type"] else "-",
        )
        for m in listed
    ]
    show.table("Methods (more with --json)", ("type", "technique", "merges", "rows", "peft"), rows, whole=(0, 2, 3, 4))


def _described(cls: Any) -> dict[str, Any]:
    return {
        "type": cls.type,
        "title": cls.title,
        "paper": cls.paper,
        "peft_type": cls.peft_type,
        "learning_rate": cls.learning_rate,
        "capabilities": asdict(cls.can),
        "settings": settings(cls),
    }


def settings(cls: Any) -> list[dict[str, Any]]:
    """Name, default and meaning of every setting."""
    described = cls.model_json_schema()["properties"]
    return [
        {"name": name, "default": described[name].get("default"), "help": field.description}
        for name, field in cls.model_fields.items()
    ]
