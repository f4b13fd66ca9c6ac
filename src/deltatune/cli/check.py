"""`deltatune check`: the rows of a config as a training would see them."""

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.cli.train import overrides

ACCOUNT = ("read", "rejected", "unused", "used")
LISTED = 20
"""Rows of a kind that are named before the rest is counted."""


def run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    show_mask: Annotated[
        int, typer.Option("--show-mask", min=0, help="Show this many training rows, and what of them the loss counts.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Read, check and encode the rows of a config without training; any key can be set as in `train`."""
    from deltatune import api

    found = api.check_config(config, overrides(context.args), show_mask=show_mask)
    if json:
        show.as_json(found)
        return
    rows = [(name, str(count), str(found["truncated"][name])) for name, count in found["rows"].items()]
    show.table(f"{found['task']}: {config}", ("part", "rows", "truncated"), rows, right=(1, 2))
    files = [(f["file"], *(str(f[word]) for word in ACCOUNT)) for f in found["accounts"]["files"].values()]
    show.table("", ("file", *ACCOUNT), files, right=(1, 2, 3, 4))
    for row in found["shown"]:
        learned = [index for index, piece in enumerate(row["pieces"]) if piece["learned"]]
        typer.echo(f"{row['file']}:{row['line']}")
        show.table("", ("loss", "text"), [_piece(piece) for piece in row["pieces"]], marked=learned)
    for row in found["rejected"]:
        typer.echo(f"rejected: {row['file']}:{row['line']}: {row['reason']}", err=True)
    for what, kind in groupby(found["noted"], key=itemgetter("what")):
        notes = list(kind)
        for note in notes[:LISTED]:
            typer.echo(f"{what}: {note['file']}:{note['line']}: {note['reason']}", err=True)
        if len(notes) > LISTED:
            typer.echo(f"{what}: {len(notes) - LISTED} more (--json lists them all)", err=True)


def _piece(piece: dict[str, Any]) -> tuple[str, str]:
    """Line ends at the end of a piece are written out: they are tokens, and a table would lose them.

    >>> _piece({"text": chr(10), "learned": True}) == ("counts", chr(92) + "n")
    True
    """
    text = str(piece["text"])
    body = text.rstrip("\n")
    return "counts" if piece["learned"] else "", body + r"\n" * (len(text) - len(body))
