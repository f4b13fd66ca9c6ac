"""`deltatune check`: a rehearsal of a training in about a minute."""

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
STYLES = {"pass": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED, "skip": typer.colors.WHITE}


def run(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Read, check and encode the rows, all of them, and nothing else.")
    ] = False,
    show_mask: Annotated[
        int, typer.Option("--show-mask", min=0, help="Show this many training rows, and what of them the loss counts.")
    ] = 0,
    budget: Annotated[float, typer.Option("--budget", min=5, help="Seconds the rehearsal may take, about.")] = 60,
    plot: Annotated[
        Path | None, typer.Option(help="Where the picture of the learning-rate test goes; next to CONFIG if not given.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option(help="Line that may fail: it becomes a warning; can be given again.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Rehearse a training in about a minute: rows, labels, memory, learning rate, saving, resuming, merging.

    Nothing is kept but the picture of the learning-rate test; any key can be set as in `train`. Exit code 3 when a
    line fails.
    """
    from deltatune import api
    from deltatune.core.errors import GateError

    given = overrides(context.args)
    if data_only:
        _rows(config, api.check_config(config, given, show_mask=show_mask), as_json=json)
        return
    place = plot or config.with_suffix(".rates.png")
    if not json:
        typer.echo(f"rehearsing {config}, about {budget:.0f} s")
    done = api.rehearse(
        config,
        given,
        budget_s=budget,
        plot=place,
        accept=accept or (),
        show_mask=show_mask,
        say=(lambda _: None) if json else _say,
    )
    if json:
        show.as_json(done.as_json())
    else:
        _masks(done.shown)
        _closing(done, place)
    if done.failures:
        names = ", ".join(line.name for line in done.failures)
        raise GateError(
            f"{len(done.failures)} of {len(done.lines)} lines failed: {names}",
            hint="mend them, or go on knowing of one: --accept NAME",
        )


def _say(line: Any) -> None:
    """One line as it comes, and what would mend it."""
    typer.echo(
        f"{typer.style(line.status, fg=STYLES[line.status])}  {typer.style(f'{line.name:<15}', bold=True)}  {line.seen}"
    )
    if line.fix:
        typer.echo(f"      try: {line.fix}")


def _closing(done: Any, plot: Path) -> None:
    counts = {status: sum(line.status == status for line in done.lines) for status in STYLES}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    typer.echo(f"{said} in {done.seconds:.0f} s" + (f"; picture: {plot}" if plot.is_file() else ""))


def _rows(config: Path, found: dict[str, Any], *, as_json: bool) -> None:
    """Counts, masks, rejected and near rows."""
    if as_json:
        show.as_json(found)
        return
    rows = [(name, str(count), str(found["truncated"][name])) for name, count in found["rows"].items()]
    show.table(f"{found['task']}: {config}", ("part", "rows", "truncated"), rows, right=(1, 2))
    files = [(f["file"], *(str(f[word]) for word in ACCOUNT)) for f in found["accounts"]["files"].values()]
    show.table("", ("file", *ACCOUNT), files, right=(1, 2, 3, 4))
    _masks(found["shown"])
    for row in found["rejected"]:
        typer.echo(f"rejected: {row['file']}:{row['line']}: {row['reason']}", err=True)
    for what, kind in groupby(found["noted"], key=itemgetter("what")):
        notes = list(kind)
        for note in notes[:LISTED]:
            typer.echo(f"{what}: {note['file']}:{note['line']}: {note['reason']}", err=True)
        if len(notes) > LISTED:
            typer.echo(f"{what}: {len(notes) - LISTED} more (--json lists them all)", err=True)


def _masks(shown: list[dict[str, Any]]) -> None:
    for row in shown:
        learned = [index for index, piece in enumerate(row["pieces"]) if piece["learned"]]
        typer.echo(f"{row['file']}:{row['line']}")
        show.table("", ("loss", "text"), [_piece(piece) for piece in row["pieces"]], marked=learned)


def _piece(piece: dict[str, Any]) -> tuple[str, str]:
    """Line ends at the end of a piece are written out: they are tokens, and a table would lose them.

    >>> _piece({"text": chr(10), "learned": True}) == ("counts", chr(92) + "n")
    True
    """
    text = str(piece["text"])
    body = text.rstrip("\n")
    return "counts" if piece["learned"] else "", body + r"\n" * (len(text) - len(body))
