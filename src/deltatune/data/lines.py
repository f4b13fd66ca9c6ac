"""Lines of a text file, one at a time: what is not UTF-8 is a problem of its line, and no line fills the memory."""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from deltatune.core.errors import DataError

LONGEST = 16 << 20
"""Characters of a line. What is longer is no file of rows, and would not fit into memory if it went on."""
SIGNS = {
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
    b"\x1f\x8b": ("compressed (gzip)", "unpack it first"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet", "unpack it, or save it as csv in UTF-8"),
}
"""First bytes of what is called a text file and is none."""
_UNDECODED = re.compile("[\udc80-\udcff]")


class Line(NamedTuple):
    """One line with its end."""

    number: int
    """From 1."""
    text: str
    """With U+FFFD for bytes that are not UTF-8."""
    problem: str | None
    """Which byte is the first of these."""


def lines(path: Path, ends: Literal["\n", ""] = "\n") -> Iterator[Line]:
    r"""The lines of a file in UTF-8, its byte order mark left out; `ends` "" also ends them at \r, as csv does.

    Raises `DataError` for a file in UTF-16, an archive, and a line of more than `LONGEST` characters.
    """
    with path.open("rb") as raw:
        start = raw.read(4)
    for sign, (what, hint) in SIGNS.items():
        if start.startswith(sign):
            raise DataError(f"{path} is {what}", hint=hint)
    marked = start.startswith(codecs.BOM_UTF8)  # half a mark alone would be nothing at all to utf-8-sig
    with path.open(encoding="utf-8-sig" if marked else "utf-8", errors="surrogateescape", newline=ends) as file:
        number = 0
        while text := file.readline(LONGEST + 1):
            number += 1
            if len(text) > LONGEST:
                raise DataError(
                    f"{path}:{number}: a line of more than {LONGEST:,} characters", hint="is it a file of rows at all?"
                )
            yield Line(number, *_decoded(text))


def _decoded(text: str) -> tuple[str, str | None]:
    if _UNDECODED.search(text) is None:
        return text, None
    raw = text.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8"), None
    except UnicodeDecodeError as error:
        return raw.decode("utf-8", "replace"), f"{error.reason} at byte {error.start}"
