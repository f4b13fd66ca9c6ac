"""COCO: one JSON object with images, annotations and categories, a row per image.

    row    {path, boxes: [{label, box: [x0, y0, x1, y1], ignored?}]}

Corners and sizes (`bbox`: x, y, width, height) become corners, categories their names; crowds are marked `ignored`. An
image without annotations is a row without boxes. The images lie where `file_name` says, from the folder of the file or
one of those beside it that data sets use (`places`).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deltatune.core.errors import DataError
from deltatune.core.labels import number
from deltatune.data.table import Record, Table


def is_coco(values: Any) -> bool:
    """Whether parsed JSON has COCO's shape."""
    return isinstance(values, dict) and all(isinstance(values.get(key), list) for key in ("images", "categories"))


def coco(path: Path, values: Mapping[str, Any]) -> Table:
    """A row per image, its number in the list as its line; annotations of no image are problems of their own.

    Raises `DataError` for categories that are not named one by one.
    """
    names = _names(path, values["categories"])
    labelled = isinstance(values.get("annotations"), list)
    of_image: dict[Any, list[Any]] = defaultdict(list)
    records = []
    known: dict[Any, set[str]] = defaultdict(set)
    for image in values["images"]:
        if isinstance(image, dict):
            known[_id(image.get("id"))].add(str(image.get("file_name")))
    for place, annotation in enumerate(values["annotations"] if labelled else (), 1):
        own = _id(annotation.get("image_id")) if isinstance(annotation, dict) else None
        if own in known and own is not None:
            of_image[own].append(annotation)
        else:
            records.append(Record(str(path), place, {"path": ""}, f"annotation is of no image (number {place})"))
    root = _root(path, values["images"])
    rows = [
        _record(path, root, place, image, of_image, names, known) for place, image in enumerate(values["images"], 1)
    ]
    if not labelled:
        rows = [Record(row.file, row.line, {"path": row.values["path"]}, row.problem) for row in rows]
    return Table(str(path), ("path", "boxes") if labelled else ("path",), [*rows, *records])


def _names(path: Path, categories: list[Any]) -> dict[Any, str]:
    """Id -> name."""
    pairs = [(_id(c.get("id")), c.get("name")) if isinstance(c, dict) else (None, None) for c in categories]
    found = {key: name.strip() for key, name in pairs if key is not None and isinstance(name, str) and name.strip()}
    if len(found) < len(categories) or len(set(found.values())) < len(categories):
        raise DataError(f"{path}: categories are not all named", hint="each needs an id and a name of its own")
    return found


def _id(value: Any) -> Any:
    """An id that can be looked up, or None."""
    return value if isinstance(value, int | str) else None


def _record(
    path: Path,
    root: Path,
    place: int,
    image: Any,
    of_image: Mapping[Any, list[Any]],
    names: Mapping[Any, str],
    known: Mapping[Any, set[str]],
) -> Record:
    if not isinstance(image, dict) or _id(image.get("id")) is None or not isinstance(image.get("file_name"), str):
        return Record(str(path), place, {"path": ""}, "image has no id or no file_name")
    if len(known[image["id"]]) > 1:  # whose its boxes are nobody knows
        told = f"image has an id that another file has too (id {image['id']})"
        return Record(str(path), place, {"path": image["file_name"]}, told)
    found = [_entry(annotation, names) for annotation in of_image.get(image["id"], ())]
    problem = next((entry for entry in found if isinstance(entry, str)), None)
    return Record(str(path), place, {"path": str((root / image["file_name"]).resolve()), "boxes": found}, problem)


def _entry(annotation: Mapping[str, Any], names: Mapping[Any, str]) -> dict[str, Any] | str:
    """A box, or what is wrong with the annotation."""
    told = f"(id {annotation.get('id')})"
    box = annotation.get("bbox")
    sizes = [number(value) for value in box] if isinstance(box, list) else []
    if len(sizes) != 4 or any(value is None for value in sizes):
        return f"annotation has no bbox of four finite numbers {told}"
    if _id(annotation.get("category_id")) not in names:
        return f"annotation has an unknown category_id {told}"
    x, y, width, height = (float(value or 0.0) for value in sizes)
    ignored = {"ignored": True} if annotation.get("iscrowd") == 1 else {}
    return {"label": names[annotation["category_id"]], "box": [x, y, x + width, y + height], **ignored}


def places(path: Path) -> Iterator[Path]:
    """Folders where the images of a COCO file may lie, the likeliest first.

    >>> [str(place) for place in places(Path("set/annotations/instances_train2017.json"))][:3]
    ['set/annotations', 'set/annotations/images', 'set/train2017']
    """
    above, part = path.parent.parent, path.stem.removeprefix("instances_")
    yield from (path.parent, path.parent / "images", above / part, above / "images" / part, above / "images", above)


def _root(path: Path, images: list[Any]) -> Path:
    """The place where the first image is; that of the file where it is nowhere."""
    first = next((i["file_name"] for i in images if isinstance(i, dict) and isinstance(i.get("file_name"), str)), None)
    return next((place for place in places(path) if first is not None and (place / first).is_file()), path.parent)
