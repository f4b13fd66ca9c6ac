"""`deltatune init`: five questions, and a config to begin with."""

from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.core.errors import SettingsError

NAME = "deltatune.yaml"


def run(
    place: Annotated[Path, typer.Argument(help=f"Where the config goes: a file, or a folder for {NAME}.")] = Path(NAME),
    data: Annotated[str | None, typer.Option(help="File or folder of rows.")] = None,
    task: Annotated[str | None, typer.Option(help="What is to be learned; deltatune tasks lists it.")] = None,
    model: Annotated[str | None, typer.Option(help="Pretrained model: hub name or folder.")] = None,
    goal: Annotated[str | None, typer.Option(help="What counts most: quality, memory, speed or size.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Folder of the run.")] = None,
) -> None:
    """Ask five questions (or take the answers as options) and write a config to check and to train."""
    path = place / NAME if place.is_dir() else place
    if path.exists():
        raise SettingsError(f"{path} is there already", hint="name another file, or take it away first")
    from deltatune.rehearsal import first_config

    source = data or _ask("1. Which file (or folder) holds the rows?")
    table, found = _read(source)
    proposal = _chosen(found, task)
    suggested = _suggested(proposal.task)
    network = model or _ask("3. Which pretrained model: a hub name or a folder?", suggested)
    wanted = goal or _ask(f"4. What counts most: {', '.join(first_config.GOALS)}?", "quality")
    folder = output_dir or _ask("5. Where does the run go?", f"runs/{Path(source).stem}")
    text = first_config.first_config(path, proposal, source, len(table.records), network, wanted, folder)
    first_config.write(text, path)
    typer.echo(f"{path} is written")
    if not Path(network).is_dir():
        typer.echo(f"note: {network} is no folder here: it is taken for a hub name and fetched when it is first used")
    typer.echo(f"next: deltatune check {path}")


def _ask(question: str, default: str | None = None) -> str:
    """One line from the terminal or from a pipe; raises `SettingsError` where there is none left."""
    try:
        answer: str = typer.prompt(question, default=default, type=str)
    except typer.Abort:
        raise SettingsError(f"no answer to {question!r}", hint="give it as an option: deltatune init --help") from None
    return answer.strip()


def _read(source: str) -> tuple[Any, list[Any]]:
    from deltatune.data.read import read
    from deltatune.rehearsal.proposal import proposals

    table = read(source, Path.cwd())
    typer.echo(f"{len(table.records):,} rows with columns {', '.join(table.columns)}")
    return table, proposals(table)


def _chosen(found: list[Any], task: str | None) -> Any:
    """The proposal that is named by its task or its number."""
    if not found:
        raise SettingsError(
            "no task knows what to do with these columns", hint="name them as a task does: deltatune tasks"
        )
    if task is None:
        for number, proposal in enumerate(found, 1):
            typer.echo(f"  {number}  {proposal.shown}")
        task = _ask("2. What is to be learned: a number, or a task?", "1")
    if task.isdecimal() and 1 <= int(task) <= len(found):
        return found[int(task) - 1]
    named = [proposal for proposal in found if proposal.task == task]
    if not named:
        known = ", ".join(proposal.task for proposal in found)
        raise SettingsError(f"{task!r} does not fit these columns", hint=f"these do: {known}")
    return named[0]


def _suggested(task: str) -> str | None:
    from deltatune.core import registry

    return registry.tasks()[task].begin_with or None
