"""Read: rows of a file with the place each came from.

CSV and TSV, JSON and JSON lines, Parquet, CoNLL, COCO and Pascal VOC, a folder of files, one file of pixels, sound or
points, or a name that `datasets` knows. A row that cannot be read is a problem of that row, with its line; a file that
cannot be read is a `DataError`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deltatune.core.errors import DataError, did_you_mean
from deltatune.data import voc
from deltatune.data.coco import coco, is_coco
from deltatune.data.conll import conll
from deltatune.data.delimited import delimited
from deltatune.data.folders import MEDIA, class_folders, one_file
from deltatune.data.lines import Line, lines
from deltatune.data.parquet import parquet
from deltatune.data.table import Record, Table, unreadable

JSON_BYTES = 1 << 30
"""Largest JSON file: one value is parsed at once, in several times its size."""


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
    try:
        table = reader(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if not table.records:
        raise DataError(f"{path} has no rows")
    return table


def _csv(path: Path) -> Table:
    return delimited(path, ",")


def _tsv(path: Path) -> Table:
    return delimited(path, "\t")


def _jsonl(path: Path) -> Table:
    records: list[Record] = []
    columns: dict[str, None] = {}
    for line in lines(path):
        if not line.text.strip():
            continue
        values, wrong = _json_row(line)
        columns |= dict.fromkeys(values)
        records.append(Record(str(path), line.number, values, wrong or unreadable(values)))
    return Table(str(path), tuple(columns), records)


def _json(path: Path) -> Table:
    """A list of objects, or COCO's one object; a row's line is its number in the list."""
    if path.stat().st_size > JSON_BYTES:
        raise DataError(
            f"{path}: {path.stat().st_size:,} bytes of JSON, {JSON_BYTES:,} are the most",
            hint="write one object per line (.jsonl)",
        )
    try:
        rows = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8"), object_pairs_hook=_object)
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
        records.append(Record(str(path), number, values, wrong or unreadable(values)))
    return Table(str(path), tuple(columns), records)


def _json_row(line: Line) -> tuple[dict[str, Any], str | None]:
    if line.problem is not None:
        return {}, f"not UTF-8 text ({line.problem} of the line)"
    try:
        values = json.loads(line.text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON: {error}"
    if not isinstance(values, dict):
        return {}, f"expected an object, found {type(values).__name__}"
    return values, None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ: of two values under one key the first would be lost."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice")
    return values


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
    ".parquet": parquet,
    ".conll": conll,
    ".bio": conll,
    ".txt": _text,
    **dict.fromkeys(sorted(MEDIA), one_file),
}
