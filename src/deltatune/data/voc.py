"""Pascal VOC: a folder with Annotations/*.xml and JPEGImages, a row per annotated image.

    row    {path, boxes: [{label, box: [x0, y0, x1, y1], ignored?}]}

Coordinates are as they are written; `difficult` objects are marked `ignored`. A list of names under ImageSets is read
as the images it names, those marked -1 left out. The XML comes from anywhere: a document type (and with it every
entity) is refused, and so is a file of more than `XML_BYTES`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deltatune.core.errors import DataError
from deltatune.data.table import Record, Table

XML_BYTES = 4 << 20
ANNOTATIONS, IMAGES, LISTS = "Annotations", "JPEGImages", "ImageSets"
CORNERS = ("xmin", "ymin", "xmax", "ymax")
COLUMNS = ("path", "boxes")


def is_voc(folder: Path) -> bool:
    """Whether a folder is laid out as VOC is."""
    return (folder / ANNOTATIONS).is_dir() and (folder / IMAGES).is_dir()


def folder_of(file: Path) -> Path | None:
    """The VOC folder whose list of images a file is, or None."""
    place = next((above for above in file.resolve().parents if above.name == LISTS), None)
    return place.parent if place is not None and is_voc(place.parent) else None


def voc(folder: Path) -> Table:
    """Every annotated image of a VOC folder, by name; raises `DataError` when there is none."""
    files = sorted((folder / ANNOTATIONS).glob("*.xml"))
    if not files:
        raise DataError(f"{folder / ANNOTATIONS} holds no XML file")
    return _table(folder, files)


def listed(path: Path, folder: Path) -> Table:
    """The images that a list names, one a line, in its order; raises `DataError` for a list that is no text."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    names = [line[0] for line in lines if line[1:] != ["-1"]]
    odd = next((name for name in names if name != Path(name).name), None)
    if odd is not None:
        raise DataError(
            f"{path}: {odd!r} is no name of an image", hint="a name without folder and suffix on every line"
        )
    return _table(folder, [folder / ANNOTATIONS / f"{name}.xml" for name in names])


def _table(folder: Path, files: Sequence[Path]) -> Table:
    return Table(str(folder), COLUMNS, [_record(folder, file) for file in files])


def _record(folder: Path, file: Path) -> Record:
    try:
        values = _annotation(folder, file)
    except (ElementTree.ParseError, _Unreadable) as error:
        return Record(str(file), 1, {"path": file.stem}, f"annotation cannot be read ({error})")
    return Record(str(file), 1, values)


class _Unreadable(Exception):
    """Why an annotation is no row."""


class _Plain(ElementTree.TreeBuilder):
    """Builds a tree of a document without a type: entities that grow or read files have no place to be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuses."""
        raise _Unreadable(f"it declares a document type, {name!r}")


def _annotation(folder: Path, file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise _Unreadable("no such file")
    if file.stat().st_size > XML_BYTES:
        raise _Unreadable(f"{file.stat().st_size:,} bytes, {XML_BYTES:,} are the most")
    parser = ElementTree.XMLParser(target=_Plain())
    try:
        parser.feed(file.read_bytes())
        root = parser.close()
    except (ValueError, LookupError) as error:  # an encoding that does not exist, or is not kept
        raise _Unreadable(str(error)) from None
    if root.tag != "annotation":
        raise _Unreadable(f"its root is {root.tag[:40]!r} instead of 'annotation'")
    boxes = [_object(number, element) for number, element in enumerate(root.findall("object"), 1)]
    return {"path": str(_image(folder, file, root.findtext("filename") or "").resolve()), "boxes": boxes}


def _object(number: int, element: ElementTree.Element) -> dict[str, Any]:
    name, place = (element.findtext("name") or "").strip(), element.find("bndbox")
    try:
        box = [float(place.findtext(corner) or "") for corner in CORNERS] if place is not None else None
    except ValueError:
        box = None
    if not name or box is None:
        raise _Unreadable(f"object {number} has no name or no four numbers in bndbox")
    ignored = {"ignored": True} if (element.findtext("difficult") or "0").strip() == "1" else {}
    return {"label": name, "box": box, **ignored}


def _image(folder: Path, file: Path, named: str) -> Path:
    """The image that the annotation names, or the one that is called like it: names outlive a change of format."""
    given = folder / IMAGES / Path(named.replace("\\", "/")).name
    if named and given.is_file():
        return given
    same = sorted(path for path in (folder / IMAGES).glob(f"{_literal(file.stem)}.*"))
    return same[0] if same else given if named else folder / IMAGES / f"{file.stem}.jpg"


def _literal(name: str) -> str:
    """A name as a pattern that only it matches."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
