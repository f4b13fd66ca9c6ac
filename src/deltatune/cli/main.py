"""Entry point: finds the commands, shows errors as one screen, ends with the error's exit code."""

import importlib
import logging
import pkgutil
import sys
from typing import Annotated

import typer
from rich.console import Console

import deltatune
from deltatune.core.errors import DeltatuneError

OTHERS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""A command whose `run` takes a `typer.Context` takes any further `--key value`."""


class Notices(logging.Handler):
    """Our notices as `note:` lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        Console(stderr=True, soft_wrap=True).print(f"[yellow]note:[/] {_plain(record.getMessage())}", highlight=False)


def build() -> typer.Typer:
    """The application with every command of this folder."""
    app = typer.Typer(
        name="deltatune",
        add_completion=True,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Adapt any pretrained model by training under 1 % of it.",
        rich_markup_mode="markdown",
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_version)
        ] = False,
    ) -> None:
        pass

    package = importlib.import_module("deltatune.cli")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in ("main", "show"):
            continue
        module = importlib.import_module(f"deltatune.cli.{info.name}")
        extra = OTHERS if "context" in module.run.__annotations__ else {}
        app.command(info.name, context_settings=extra)(module.run)
    return app


def main() -> None:
    """Runs the command line."""
    logger = logging.getLogger("deltatune")
    logger.handlers = [Notices()]
    logger.propagate = False
    try:
        build()()
    except DeltatuneError as error:
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"[bold red]error:[/] {_plain(error.what)}", highlight=False)
        if error.hint:
            console.print(f"[bold green]  try:[/] {_plain(error.hint)}", highlight=False)
        sys.exit(error.exit_code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(deltatune.__version__)
        raise typer.Exit


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
