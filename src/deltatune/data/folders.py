"""Folders: files as rows, the name of the folder they lie in as their label."""

from pathlib import Path

from deltatune.core.errors import DataError
from deltatune.data.table import Record, Table

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3")
SHAPES = (".npy", ".ply", ".off")
MEDIA = frozenset((*IMAGES, *SOUNDS, *SHAPES))


def class_folders(folder: Path) -> Table:
    """`folder/<label>/.../<file>` as rows {path, label}, sorted; files that are no media are not rows.

    Raises `DataError` when there are none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in MEDIA and path.is_file())
    if not paths:
        raise DataError(f"{folder} holds no file of a known kind", hint=f"known: {', '.join(sorted(MEDIA))}")
    records = []
    for number, path in enumerate(paths, 1):
        parts = path.relative_to(folder).parts
        label = {"label": parts[0]} if len(parts) > 1 else {}
        records.append(Record(str(folder), number, {"path": str(path.resolve()), **label}))
    columns = ("path", "label") if any("label" in record.values for record in records) else ("path",)
    return Table(str(folder), columns, records)


def one_file(path: Path) -> Table:
    """A single image, sound or shape as one row."""
    return Table(str(path), ("path",), [Record(str(path), 1, {"path": str(path.resolve())})])
