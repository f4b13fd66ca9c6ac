"""`deltatune predict`: answers for texts or for the rows of a file."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.core.errors import SettingsError, StorageError


def run(
    source: Annotated[Path, typer.Argument(help="Run folder or adapter folder.")],
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text, or what the task reads first; may be given several times."),
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", help="File with rows, an image or a sound, or a folder of them.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Write JSON lines here.")] = None,
    draw: Annotated[
        Path | None, typer.Option("--draw", help="Folder for pictures of the answers (boxes on images).")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model, if not the recorded one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
) -> None:
    """Predict with a trained adapter, with probabilities."""
    if bool(text) == bool(input):
        raise SettingsError("give either --text or --input")
    if output is not None:
        _check(output)
    from deltatune import api

    answers = api.predict(source, texts=text or None, file=input, model=model, draw=draw)
    lines = "".join(jsonlib.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if output is not None:
        try:
            output.write_text(lines, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{output} cannot be written: {error.strerror}") from None
        typer.echo(f"{len(answers)} answers in {output}", err=True)
    elif json or not text:
        typer.echo(lines, nl=False)
    else:
        _table(text, answers)


def _check(output: Path) -> None:
    """Raises `SettingsError` for a place that no file can be written to, before all answers have been waited for."""
    if output.is_dir():
        raise SettingsError(f"--output {output} is a folder", hint=f"name a file in it: {output / 'answers.jsonl'}")
    if not output.parent.is_dir():
        raise SettingsError(f"--output: folder {output.parent} does not exist", hint="make it first")


def _table(texts: list[str], answers: list[dict[str, Any]]) -> None:
    rows = [(text, _answer(answer), _probabilities(answer)) for text, answer in zip(texts, answers, strict=True)]
    show.table("", ("text", "answer", "probabilities"), rows)


def _answer(answer: dict[str, Any]) -> str:
    """The first value of an answer is the answer itself; the others are about it."""
    value = next(iter(answer.values()))
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(_entry, value)) or "none"
    return str(value)


def _entry(value: Any) -> str:
    """A name; of a span its text and its type."""
    named = [str(value[name]) for name in ("text", "label") if name in value] if isinstance(value, dict) else []
    return " ".join(named) or str(value)


def _probabilities(answer: dict[str, Any]) -> str:
    pairs = sorted(answer.get("probabilities", {}).items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share:.3f}" for name, share in pairs[:5])
