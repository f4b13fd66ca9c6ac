"""`deltatune predict`: answers for texts or for the rows of a file."""

import json as jsonlib
from pathlib import Path
from typing import Annotated, Any

import typer

from deltatune.cli import show
from deltatune.core.errors import SettingsError


def run(
    source: Annotated[Path, typer.Argument(help="Run folder or adapter folder.")],
    text: Annotated[list[str] | None, typer.Option("--text", help="A text; may be given several times.")] = None,
    input: Annotated[str | None, typer.Option("--input", help="File with rows.")] = None,
    output: Annotated[Path | None, typer.Option("--output", help="Write JSON lines here.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model, if not the recorded one.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")] = False,
) -> None:
    """Predict with a trained adapter, with probabilities."""
    if bool(text) == bool(input):
        raise SettingsError("give either --text or --input")
    from deltatune import api

    answers = api.predict(source, texts=text or None, file=input, model=model)
    lines = "".join(jsonlib.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
    if output is not None:
        output.write_text(lines, encoding="utf-8")
        typer.echo(f"{len(answers)} answers in {output}", err=True)
    elif json or not text:
        typer.echo(lines, nl=False)
    else:
        _table(text, answers)


def _table(texts: list[str], answers: list[dict[str, Any]]) -> None:
    rows = [(text, _answer(answer), _probabilities(answer)) for text, answer in zip(texts, answers, strict=True)]
    show.table("", ("text", "answer", "probabilities"), rows)


def _answer(answer: dict[str, Any]) -> str:
    for name in ("error", "label", "value"):
        if name in answer:
            return f"{answer[name]:.4f}" if isinstance(answer[name], float) else str(answer[name])
    return ", ".join(answer.get("labels", ())) or "none"


def _probabilities(answer: dict[str, Any]) -> str:
    pairs = sorted(answer.get("probabilities", {}).items(), key=lambda pair: -pair[1])
    return ", ".join(f"{name} {share:.3f}" for name, share in pairs[:5])
