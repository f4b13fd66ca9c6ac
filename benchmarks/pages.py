"""Pages: what a benchmark has measured, in a JSON file that grows, and in its place on a page whose other text stays.

A place lies between the marks `<!-- NAME:start -->` and `<!-- NAME:end -->`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def known(path: Path) -> dict[str, Any]:
    """What was measured before; nothing where there is no file yet."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def keep(path: Path, found: dict[str, Any]) -> None:
    """Writes what is known now."""
    path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def put(page: Path, lines: Sequence[str], name: str = "table") -> None:
    """The lines in their place; raises `ValueError` for a page that has no such place."""
    head, tail = _around(page, name)
    page.write_text("\n".join([*head, *lines, *tail]), encoding="utf-8")


def inside(page: Path, name: str = "table") -> list[str]:
    """The lines that are in a place."""
    head, tail = _around(page, name)
    return page.read_text(encoding="utf-8").split("\n")[len(head) : -len(tail)]


def _around(page: Path, name: str) -> tuple[list[str], list[str]]:
    """The lines before and behind a place, with its marks."""
    lines = page.read_text(encoding="utf-8").split("\n")
    begin, end = (lines.index(f"<!-- {name}:{word} -->") for word in ("start", "end"))
    return lines[: begin + 1], lines[end:]
