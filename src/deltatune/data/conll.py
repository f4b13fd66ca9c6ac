"""CoNLL: one word per line with its columns, a blank line between sentences.

The first column is the word, the last its tag. Columns are separated by tabs where a line has one, else by spaces.
Lines that begin with # are comments, unless they have the columns and the tag of a word; -DOCSTART- begins a document.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deltatune.core.errors import DataError
from deltatune.core.tags import OUTSIDE, PREFIXES
from deltatune.data.lines import lines
from deltatune.data.table import Record, Table

DOCUMENT = "-DOCSTART-"


@dataclass(slots=True)
class _Line:
    number: int
    cells: list[str]
    problem: str | None = None


@dataclass(slots=True)
class _Sentence:
    lines: list[_Line] = field(default_factory=list)
    document: int = 0


def conll(path: Path) -> Table:
    """A row per sentence, at the line of its first word: `tokens`, `tags` if there is a second column, `document`.

    A line with another number of columns than most makes its sentence a problem. Raises `DataError` for plain text.
    """
    lines = _lines(path)
    widths = Counter(len(line.cells) for line in lines if line.cells and not line.cells[0].startswith(("#", DOCUMENT)))
    width = widths.most_common(1)[0][0] if widths else 0
    sentences = list(_sentences(lines, width))
    documents = any(sentence.document for sentence in sentences)
    columns = ("tokens", *(["tags"] if width > 1 else []), *(["document"] if documents else []))
    if path.suffix == ".txt" and not _is_tagged(sentences, width):
        raise DataError(
            f"{path} is not tagged text: one word per line with its tag last", hint="plain text goes into jsonl or csv"
        )
    return Table(str(path), columns, [_record(path, sentence, width, documents) for sentence in sentences])


def _lines(path: Path) -> list[_Line]:
    found = []
    for number, text, wrong in lines(path):
        problem = f"not UTF-8 text (line {number}: {wrong})" if wrong else None
        if "\x00" in text:
            problem = f"a word holds a NUL byte (line {number})"
        text = text.strip(" \r\n")
        tabs = "\t" in text.strip("\t")
        cells = [cell.strip(" ") for cell in text.split("\t")] if tabs else text.replace("\t", " ").split(" ")
        found.append(_Line(number, cells if tabs else [cell for cell in cells if cell], problem))
    return found


def _sentences(lines: list[_Line], width: int) -> Iterator[_Sentence]:
    sentence = _Sentence()
    for line in lines:
        starts = bool(line.cells) and line.cells[0] == DOCUMENT
        if not line.cells or starts:
            if sentence.lines:
                yield sentence
            sentence = _Sentence(document=sentence.document + starts)
        elif not _is_comment(line, width):
            sentence.lines.append(line)
    if sentence.lines:
        yield sentence


def _is_comment(line: _Line, width: int) -> bool:
    return line.cells[0].startswith("#") and (len(line.cells) != width or (width > 1 and not _is_tag(line.cells[-1])))


def _is_tag(cell: str) -> bool:
    mark, dash, kind = cell.partition("-")
    return cell == OUTSIDE or bool(dash and kind and mark in PREFIXES)


def _is_tagged(sentences: list[_Sentence], width: int) -> bool:
    """Most lines end in a tag."""
    ends = [line.cells[-1] for sentence in sentences for line in sentence.lines]
    return width > 1 and 2 * sum(map(_is_tag, ends)) > len(ends)


def _record(path: Path, sentence: _Sentence, width: int, documents: bool) -> Record:
    values: dict[str, object] = {"tokens": [line.cells[0] for line in sentence.lines]}
    if width > 1:
        values["tags"] = [line.cells[-1] for line in sentence.lines]
    if documents:
        values["document"] = sentence.document
    return Record(str(path), sentence.lines[0].number, values, _problem(sentence, width))


def _problem(sentence: _Sentence, width: int) -> str | None:
    for line in sentence.lines:
        if line.problem:
            return line.problem
        if len(line.cells) != width:
            return f"columns are missing or too many (line {line.number} has {len(line.cells)} instead of {width})"
    return None
