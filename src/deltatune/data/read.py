"""Read: rows of a file with the place each came from.

CSV and TSV, JSON and JSON lines, Parquet, CoNLL, COCO and Pascal VOC, a folder of files, one file of pixels, sound or
points, or a name that `datasets` knows. A row that cannot be read is a problem of that row, with its line; a file that
cannot be read is a `DataError`.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deltatune.core.errors import DataError, did_you_mean
from deltatune.data import voc
from deltatune.data.coco import coco, is_coco
from deltatune.data.conll import conll
from deltatune.data.folders import MEDIA, class_folders, one_file
from deltatune.data.table import Record, Table

CSV_FIELD_BYTES = 16 << 20
"""Longest field of a CSV file."""


def read(source: str, folder: Path) -> Table:
    """The rows of a source; relative paths are relative to `folder`.

    Raises `DataError` for a missing, empty or unreadable file and for a name that `datasets` cannot find.
    """
    path = Path(source) if Path(source).is_absolute() else folder / source
    if path.is_dir():
        return voc.voc(path) if voc.is_voc(path) else class_folders(path)
    reader = READERS.get(path.suffix.lower())
    if path.is_file() and reader is None:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}", hint=f"known: {', '.join(READERS)}")
    if reader is None:
        return _from_datasets(source, path)
    if not path.is_file():
        near = (
            [str(other) for other in path.parent.glob("*") if other.suffix in READERS] if path.parent.is_dir() else []
        )
        raise DataError(f"{path}: no such file", hint=did_you_mean(str(path), near) if near else None)
    table = reader(path)
    if not table.records:
        raise DataError(f"{path} has no rows")
    return table


def _csv(path: Path, delimiter: str = ",") -> Table:
    records: list[Record] = []
    problems, text = _decoded(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    csv.field_size_limit(CSV_FIELD_BYTES)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{path}:1: {error}") from None
    if not header:
        raise DataError(f"{path} is empty", hint="the first line must name the columns")
    columns = tuple(name.strip() for name in header)
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}:1: column {next(c for c in columns if columns.count(c) > 1)!r} stands there twice")
    for line, cells, wrong in _csv_rows(reader):
        values = dict(zip(columns, cells, strict=False))
        if wrong is None and len(cells) != len(columns):
            wrong = f"{len(cells)} fields instead of {len(columns)}"
        undecoded = next((problems[n] for n in range(line, reader.line_num + 1) if n in problems), None)
        records.append(Record(str(path), line, values, wrong or undecoded or _nul(values)))
    return Table(str(path), columns, records)


def _csv_rows(reader: Any) -> Iterator[tuple[int, list[str], str | None]]:
    """Line of the start, cells, and what the parser objected to."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, [], f"not valid CSV: {error}"
            continue
        if cells:
            yield line, cells, None


def _tsv(path: Path) -> Table:
    return _csv(path, delimiter="\t")


def _decoded(path: Path) -> tuple[dict[int, str], str]:
    """The text of a file, with the lines that are not UTF-8 (their bad bytes shown as U+FFFD)."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return {}, raw.decode("utf-8")
    except UnicodeDecodeError:
        bad = {}
        for number, line in enumerate(raw.split(b"\n"), 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad[number] = f"not UTF-8 text ({error.reason} at byte {error.start} of the line)"
        return bad, raw.decode("utf-8", errors="replace")


def _nul(values: Mapping[str, Any]) -> str | None:
    """The name of a text that holds a NUL byte."""
    return next((f"{name} holds a NUL byte" for name, v in values.items() if isinstance(v, str) and "\x00" in v), None)


def _jsonl(path: Path) -> Table:
    records: list[Record] = []
    columns: dict[str, None] = {}
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        values, wrong = _json_row(line)
        columns |= dict.fromkeys(values)
        records.append(Record(str(path), number, values, wrong or _nul(values)))
    return Table(str(path), tuple(columns), records)


def _json(path: Path) -> Table:
    """A list of objects, or COCO's one object; a row's line is its number in the list."""
    try:
        rows = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON in UTF-8: {error}") from None
    if is_coco(rows):
        return coco(path, rows)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    records: list[Record] = []
    columns: dict[str, None] = {}
    for number, row in enumerate(rows, 1):
        wrong = None if isinstance(row, dict) else f"expected an object, found {type(row).__name__}"
        values = row if wrong is None else {}
        columns |= dict.fromkeys(values)
        records.append(Record(str(path), number, values, wrong or _nul(values)))
    return Table(str(path), tuple(columns), records)


def _json_row(line: bytes) -> tuple[dict[str, Any], str | None]:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 text ({error.reason} at byte {error.start} of the line)"
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON: {error}"
    if not isinstance(values, dict):
        return {}, f"expected an object, found {type(values).__name__}"
    return values, None


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    rows = table.to_pylist()
    return Table(str(path), tuple(table.column_names), [Record(str(path), i, row) for i, row in enumerate(rows, 1)])


def _from_datasets(source: str, path: Path) -> Table:
    """Rows of a data set by name, `owner/name` or `owner/name:split`."""
    name, _, split = source.partition(":")
    if path.exists() or name.count("/") > 1 or name.startswith((".", "/")):
        raise DataError(f"{path}: no such file of rows", hint=f"known kinds: {', '.join(READERS)}, or a data set name")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split or "train")
    except Exception as error:  # datasets raises dozens of kinds; to the user they are one
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{source}: neither a file nor a data set that can be loaded ({reason})") from None
    records = [Record(source, index, dict(row)) for index, row in enumerate(rows, 1)]
    return Table(source, tuple(rows.column_names), records)


def _text(path: Path) -> Table:
    """Tagged text, or a list of the images of a VOC folder."""
    folder = voc.folder_of(path)
    return conll(path) if folder is None else voc.listed(path, folder)


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _csv,
    ".tsv": _tsv,
    ".json": _json,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
    ".conll": conll,
    ".bio": conll,
    ".txt": _text,
    **dict.fromkeys(sorted(MEDIA), one_file),
}
