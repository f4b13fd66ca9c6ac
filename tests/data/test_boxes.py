"""Annotated images of VOC folders and COCO files, and everything that can be wrong with them."""

import json

import pytest

from deltatune.core.errors import DataError
from deltatune.data.read import read

OBJECT = """<object><name>{name}</name>{more}<bndbox>
<xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax>
</bndbox></object>"""


def voc(folder, annotations, images=()):
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, text in annotations.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "Annotations" / f"{name}.xml").write_bytes(data)
    for name in images:
        (folder / "JPEGImages" / name).write_bytes(b"pixels")


def annotation(*boxes, filename="a.jpg", more=""):
    objects = "".join(OBJECT.format(name=n, x0=a, y0=b, x1=c, y1=d, more=more) for n, a, b, c, d in boxes)
    return f"<annotation><filename>{filename}</filename><size><width>9</width></size>{objects}</annotation>"


def test_a_voc_folder_is_a_row_per_annotation_with_boxes_as_they_are_written(tmp_path):
    first = annotation(("cat", 1, 2, 30, 40.5), ("dog", 0, 0, 5, 5))
    voc(tmp_path, {"a": first, "b": annotation(filename="b.png")}, ["a.jpg", "b.png"])
    table = read(".", tmp_path)
    assert table.columns == ("path", "boxes")
    one, two = table.records
    assert one.file.endswith("a.xml") and one.problem is None
    assert one.values == {
        "path": str((tmp_path / "JPEGImages" / "a.jpg").resolve()),
        "boxes": [{"label": "cat", "box": [1, 2, 30, 40.5]}, {"label": "dog", "box": [0, 0, 5, 5]}],
    }
    assert two.values["boxes"] == []


def test_difficult_objects_are_ignored_and_parts_of_an_object_are_none(tmp_path):
    part = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    voc(tmp_path, {"a": annotation(("person", 1, 1, 5, 5), more=part)}, ["a.jpg"])
    (row,) = read(".", tmp_path).records
    assert row.values["boxes"] == [{"label": "person", "box": [1, 1, 5, 5], "ignored": True}]


def test_a_list_names_images_in_its_order_and_minus_one_leaves_out(tmp_path):
    voc(tmp_path, {name: annotation(filename=f"{name}.jpg") for name in "abc"})
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("c 1\nb  -1\na\nmissing\n")
    rows = read("ImageSets/Main/train.txt", tmp_path).records
    assert [row.values["path"].rpartition("/")[2] for row in rows] == ["c.jpg", "a.jpg", "missing"]
    assert rows[2].problem == "annotation cannot be read (no such file)"
    (tmp_path / "ImageSets" / "Main" / "odd.txt").write_text("../../a\n")
    with pytest.raises(DataError, match="no name of an image"):
        read("ImageSets/Main/odd.txt", tmp_path)


@pytest.mark.parametrize(
    ("named", "there", "found"),
    [
        ("a.jpg", ["a.png"], "a.png"),
        ("other.jpg", ["other.jpg", "a.jpg"], "other.jpg"),
        (r"C:\photos\a.jpg", ["a.jpg"], "a.jpg"),
        ("../../secret/a.jpg", ["a.jpg"], "a.jpg"),
        ("", ["a.bmp"], "a.bmp"),
        ("a.jpg", [], "a.jpg"),
    ],
)
def test_the_image_is_the_one_named_or_the_one_called_alike_and_never_outside(tmp_path, named, there, found):
    voc(tmp_path, {"a": annotation(filename=named)}, there)
    (row,) = read(".", tmp_path).records
    assert row.values["path"] == str((tmp_path / "JPEGImages" / found).resolve())


LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation><filename>&b;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "declares a document type, 'a'"),
        (LAUGHS.encode("utf-16"), "declares a document type, 'a'"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type, 'x'"),
        ("<annotation>&undeclared;</annotation>", "undefined entity"),
        ("<annotation><object>", "no element found"),
        ("", "no element found"),
        ("<svg/>", "its root is 'svg' instead of 'annotation'"),
        (b'<?xml version="1.0" encoding="nope"?><annotation/>', "unknown encoding"),
        (annotation(("cat", "x", 0, 1, 1)), "object 1 has no name or no four numbers"),
        (annotation((" ", 0, 0, 1, 1)), "object 1 has no name or no four numbers"),
        ("<annotation><object><name>cat</name></object></annotation>", "object 1 has no name or no four numbers"),
        (b"<annotation>" + b" " * (4 << 20) + b"</annotation>", "4,194,304 are the most"),
    ],
)
def test_an_annotation_that_is_none_is_a_problem_of_that_row(tmp_path, text, reason):
    voc(tmp_path, {"a": text, "b": annotation()})
    bad, good = read(".", tmp_path).records
    assert reason in bad.problem
    assert bad.problem.startswith("annotation cannot be read (")
    assert good.problem is None


def test_a_voc_folder_without_annotations_is_an_error(tmp_path):
    voc(tmp_path, {})
    with pytest.raises(DataError, match="holds no XML file"):
        read(".", tmp_path)


# -- COCO

IMAGES = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]


def coco(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": IMAGES, "categories": CATEGORIES, **values}))
    return str(path)


def test_a_coco_file_is_a_row_per_image_with_corners_and_names(tmp_path):
    annotations = [
        {"id": 1, "image_id": 8, "category_id": 90, "bbox": [1, 2, 3.5, 4]},
        {"id": 2, "image_id": 8, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ]
    table = read(coco(tmp_path / "rows.json", annotations=annotations), tmp_path)
    empty, two = table.records
    assert (empty.line, empty.values["boxes"]) == (1, [])
    assert two.values == {
        "path": str((tmp_path / "b.jpg").resolve()),
        "boxes": [
            {"label": "dog", "box": [1, 2, 4.5, 6]},
            {"label": "cat", "box": [0, 0, 9, 9], "ignored": True},
        ],
    }


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("train/_annotations.coco.json", "train/a.jpg"),
        ("rows.json", "images/a.jpg"),
        ("annotations/instances_val2017.json", "val2017/a.jpg"),
        ("annotations/val.json", "images/val/a.jpg"),
        ("annotations/any.json", "images/a.jpg"),
    ],
)
def test_images_are_found_where_data_sets_keep_them(tmp_path, file, image):
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / image).write_bytes(b"pixels")
    first = read(coco(tmp_path / file, annotations=[]), tmp_path).records[0]
    assert first.values["path"] == str((tmp_path / image).resolve())


def test_a_file_without_annotations_can_be_predicted(tmp_path):
    table = read(coco(tmp_path / "test.json"), tmp_path)
    assert table.columns == ("path",)
    assert [set(row.values) for row in table.records] == [{"path"}, {"path"}]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"id": 5, "image_id": 7, "category_id": 3}, "no bbox of four finite numbers (id 5)"),
        ({"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3]}, "no bbox of four finite numbers (id 5)"),
        ({"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, float("nan")]}, "finite numbers (id 5)"),
        ({"id": 5, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4]}, "unknown category_id (id 5)"),
        ({"id": 5, "image_id": 7, "category_id": [3], "bbox": [1, 2, 3, 4]}, "unknown category_id (id 5)"),
    ],
)
def test_a_bad_annotation_is_a_problem_of_its_image(tmp_path, annotation, reason):
    first, second = read(coco(tmp_path / "rows.json", annotations=[annotation]), tmp_path).records
    assert reason in first.problem
    assert second.problem is None


@pytest.mark.parametrize("annotation", [{"id": 5, "image_id": 9}, {"image_id": [7]}, 3])
def test_an_annotation_of_no_image_is_a_problem_of_its_own(tmp_path, annotation):
    rows = read(coco(tmp_path / "rows.json", annotations=[annotation]), tmp_path).records
    assert [row.problem for row in rows] == [None, None, "annotation is of no image (number 1)"]


@pytest.mark.parametrize("categories", [[{"id": 1}], [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], [3]])
def test_categories_need_names_of_their_own(tmp_path, categories):
    with pytest.raises(DataError, match="categories are not all named"):
        read(coco(tmp_path / "rows.json", categories=categories, annotations=[]), tmp_path)


def test_two_files_of_one_id_have_no_boxes_of_their_own(tmp_path):
    """As a careless merge of two data sets leaves them: each would have the boxes of both."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 7, "file_name": "b.jpg"}, {"id": 8, "file_name": "c.jpg"}]
    annotation = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
    rows = read(coco(tmp_path / "rows.json", images=images, annotations=[annotation]), tmp_path).records
    told = "image has an id that another file has too (id 7)"
    assert [row.problem for row in rows] == [told, told, None]


def test_an_image_without_a_name_is_a_problem_of_that_row(tmp_path):
    images = [{"id": 7}, {"file_name": "b.jpg"}, 3, {"id": 1, "file_name": "c.jpg"}]
    rows = read(coco(tmp_path / "rows.json", images=images, annotations=[]), tmp_path).records
    assert [row.problem for row in rows] == ["image has no id or no file_name"] * 3 + [None]
