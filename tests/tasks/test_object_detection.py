"""Boxes: rows and their problems, images and processors, augmentation, answers, scores, and tiny trainings."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from transformers.utils import ModelOutput

import deltatune
from deltatune.core.box_labels import visible
from deltatune.core.config import DataSettings
from deltatune.core.detection_scores import detection_scores
from deltatune.core.drawing import COLOURS, boxes_on
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.images import read_image
from deltatune.core.registry import task
from deltatune.core.set_loss import NOTHING
from deltatune.core.task import inputs_of
from deltatune.data.load import load
from deltatune.engine.roster import roster_of
from deltatune.models.patch_detector import PatchDetector, grids, patches
from deltatune.ops.boxes import surest
from detectors import FAMILIES, SIDE, VISION, detector

NAMES = ("disc", "square")
COLOUR = {"disc": (220, 40, 40), "square": (40, 60, 220)}


def picture(path, boxes, width=80, height=60, noise=None):
    """Discs and squares on grey, with noise where no image is to be like another."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    if noise is not None:
        pixels += np.random.default_rng(noise).integers(0, 3, pixels.shape, np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    for entry in boxes:
        x0, y0, x1, y1 = entry["box"]
        inside = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        if entry["label"] == "disc":
            inside &= ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 < 1
        pixels[inside] = COLOUR.get(entry["label"], (0, 0, 0))
    Image.fromarray(pixels).save(path)
    return {"path": str(path), "boxes": boxes}


def rows(folder, count, seed=0):
    """Images with zero to three things that do not overlap: one in each third."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(count):
        boxes = []
        for third in sorted(generator.choice(3, generator.integers(0 if index % 7 == 3 else 1, 4), replace=False)):
            side = int(generator.integers(16, 24))
            x, y = int(third * 26 + generator.integers(0, 26 - side + 1)), int(generator.integers(0, 60 - side))
            boxes.append({"label": NAMES[generator.integers(2)], "box": [x, y, x + side, y + side]})
        found.append(picture(folder / f"{seed}-{index}.png", boxes, noise=(seed, index)))
    return found


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> a folder with a small random model."""
    made = {}

    def make(family):
        if family not in made:
            torch.manual_seed(0)
            made[family] = tmp_path_factory.mktemp(family)
            (BACKBONES[family]() if family in BACKBONES else detector(family)).save_pretrained(made[family])
        return str(made[family])

    return make


BACKBONES = {
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(**VISION, mlp_ratio=2)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**VISION)),
    "beit": lambda: tf.BeitModel(tf.BeitConfig(**VISION)),
    "swin": lambda: tf.SwinModel(
        tf.SwinConfig(image_size=SIDE, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    ),
    "convnext": lambda: tf.ConvNextModel(tf.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)),
    "resnet": lambda: tf.ResNetModel(tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])),
}
ALL = (*FAMILIES, *BACKBONES)


def fitted(**fields):
    return task("object-detection", **{"image_size": SIDE, "labels": NAMES, **fields})


def loaded(folders, family, **fields):
    found = fitted(**fields)
    return found, found.load(folders(family))


# -- rows


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ("no list", "boxes are no list (str)"),
        ([{"label": "disc"}], "box is no label with four numbers (box 1)"),
        ([{"label": "disc", "box": [1, 2, 3]}], "box is no label with four numbers (box 1)"),
        ([{"label": "disc", "box": [1, 2, 3, "4"]}], "box is no label with four numbers (box 1)"),
        ([{"label": "disc", "box": [1, 2, 3, True]}], "box is no label with four numbers (box 1)"),
        ([{"label": " ", "box": [1, 2, 3, 4]}], "box is no label with four numbers (box 1)"),
        ([{"label": None, "box": [1, 2, 3, 4]}], "box is no label with four numbers (box 1)"),
        ([{"label": "disc", "box": [1, 2, 3, 4]}, 7], "box is no label with four numbers (box 2)"),
        ([{"label": "disc", "box": [1, 2, float("nan"), 4]}], "box is not finite (box 1: 1, 2, nan, 4)"),
        ([{"label": "disc", "box": [5, 2, 5, 4]}], "box is empty (box 1: 5, 2, 5, 4)"),
        ([{"label": "disc", "box": [5, 4, 9, 2]}], "box is empty (box 1: 5, 4, 9, 2)"),
        ([{"label": "disc", "box": [80, 2, 81, 4]}], "box is empty (box 1: 80, 2, 81, 4 in 80 x 60 pixels)"),
        (
            [{"label": "disc", "box": [5, 2, 90, 4]}],
            "box is outside of the image (box 1: 5, 2, 90, 4 in 80 x 60 pixels)",
        ),
        (
            [{"label": "disc", "box": [-1.5, 2, 9, 4]}],
            "box is outside of the image (box 1: -1.5, 2, 9, 4 in 80 x 60 pixels)",
        ),
        ([{"label": "star", "box": [1, 2, 3, 4]}], "class is unknown (box 1: 'star')"),
        ([{"label": "disc", "box": [-1, 0, 81, 61]}], None),
        ([{"label": "disc", "box": (1, 2.5, 3, 4)}], None),
        ([], None),
    ],
)
def test_what_is_wrong_with_boxes_is_said(tmp_path, boxes, reason):
    row = {**picture(tmp_path / "a.png", []), "boxes": boxes}
    assert fitted().check(row) == reason


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing.png", "image is missing"),
        ("", "path is empty"),
        (3, "path is not text (int)"),
        ("text.png", "image is of no known kind"),
    ],
)
def test_an_image_that_cannot_be_read_is_said(tmp_path, path, reason):
    (tmp_path / "text.png").write_text("no pixels")
    row = {"path": str(tmp_path / path) if isinstance(path, str) and path else path, "boxes": []}
    assert fitted().check(row).startswith(reason)


def test_classes_are_those_of_the_training_rows_that_count(tmp_path):
    boxes = [{"label": name, "box": [0, 0, 9, 9]} for name in (10, 9, "cat")]
    boxes.append({"label": "crowd", "box": [0, 0, 9, 9], "ignored": True})
    found = task("object-detection").fit([{"path": "a", "boxes": boxes}])
    assert found.labels == ("9", "10", "cat")
    with pytest.raises(DataError, match="no training image has a box"):
        task("object-detection").fit([{"path": "a", "boxes": []}])


def test_a_file_of_rows_is_checked_with_its_places_and_split(tmp_path):
    good = rows(tmp_path, 40)
    bad = {"path": good[0]["path"].replace("0-0", "gone"), "boxes": []}
    odd = {**picture(tmp_path / "odd.png", []), "boxes": [{"label": "disc", "box": [3, 3, 3, 9]}]}
    relative = [{**row, "path": row["path"].rpartition("/")[2]} for row in good]
    lines(tmp_path / "all.jsonl", [*relative, bad, odd])
    found = load(DataSettings(train="all.jsonl", max_rejected=0.1), task("object-detection"), tmp_path)
    assert [(r.line, r.reason.partition(" (")[0]) for r in found.rejected] == [
        (41, "image is missing"),
        (42, "box is empty"),
    ]
    assert [len(part) for part in found.parts.values()] == [32, 4, 4]
    assert found.task.labels == NAMES


def voc(folder, found):
    """The rows as a Pascal VOC folder with a list of all its images."""
    for name in ("Annotations", "JPEGImages", "ImageSets"):
        (folder / name).mkdir(parents=True)
    for row in found:
        image = Path(row["path"])
        shutil.copy(image, folder / "JPEGImages")
        things = "".join(
            f"<object><name>{entry['label']}</name><bndbox>"
            + "".join(f"<{side}>{value}</{side}>" for side, value in zip(VOC_SIDES, entry["box"]))
            + "</bndbox></object>"
            for entry in row["boxes"]
        )
        annotation = f"<annotation><filename>{image.name}</filename>{things}</annotation>"
        (folder / "Annotations" / f"{image.stem}.xml").write_text(annotation)
    (folder / "ImageSets" / "all.txt").write_text("\n".join(Path(row["path"]).stem for row in found))
    return folder / "ImageSets" / "all.txt"


VOC_SIDES = ("xmin", "ymin", "xmax", "ymax")


def coco(path, found):
    """The rows as a COCO file."""
    path.parent.mkdir()
    annotations = [
        {"id": image * 10 + n, "image_id": image, "category_id": 1 + NAMES.index(entry["label"]), "bbox": sizes}
        for image, row in enumerate(found)
        for n, entry in enumerate(row["boxes"])
        for x0, y0, x1, y1 in [entry["box"]]
        for sizes in [[x0, y0, x1 - x0, y1 - y0]]
    ]
    images = [{"id": image, "file_name": row["path"]} for image, row in enumerate(found)]
    categories = [{"id": 1 + index, "name": name} for index, name in enumerate(NAMES)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_voc_and_coco_are_the_same_rows_with_the_same_bad_box(tmp_path):
    found = rows(tmp_path, 30)
    found[4]["boxes"].append({"label": "disc", "box": [7, 9, 7, 9]})
    files = [voc(tmp_path / "voc", found), coco(tmp_path / "coco" / "all.json", found)]
    read = [load(DataSettings(train=str(file), max_rejected=0.1), task("object-detection"), tmp_path) for file in files]
    entries = [
        sorted((Path(row["path"]).name, str(row["boxes"])) for part in one.parts.values() for row in part)
        for one in read
    ]
    assert entries[0] == entries[1] and len(entries[0]) == 29
    number = len(found[4]["boxes"])
    reason = f"box is empty (box {number}: 7, 9, 7, 9)"
    (of_voc,), (of_coco,) = (one.rejected for one in read)
    assert (Path(of_voc.file).name, of_voc.line, of_voc.reason) == ("0-4.xml", 1, reason)
    assert (Path(of_coco.file).name, of_coco.line, of_coco.reason) == ("all.json", 5, reason)


def test_a_copy_of_an_image_is_found_under_any_name(tmp_path):
    found = rows(tmp_path, 30)
    shutil.copy(found[2]["path"], tmp_path / "copy.png")
    lines(tmp_path / "all.jsonl", [*found, {**found[2], "path": str(tmp_path / "copy.png")}])
    checked = load(DataSettings(train="all.jsonl", max_rejected=0.1), task("object-detection"), tmp_path)
    assert [(r.line, r.reason) for r in checked.rejected] == [(31, "same input as line 3")]
    smaller = tmp_path / "smaller.jpg"
    Image.open(found[2]["path"]).resize((70, 52)).save(smaller)
    sketches = [fitted().sketch({"path": str(path)}) for path in (found[2]["path"], smaller, found[4]["path"])]
    near, far = (len(sketches[0] & other) / len(sketches[0] | other) for other in sketches[1:])
    assert near > 0.8 > far


def test_rotation_is_refused_because_it_leaves_boxes_loose():
    with pytest.raises(SettingsError, match="leave boxes loose"):
        task("object-detection", augmentation={"rotation": 5})


# -- images and models


@pytest.mark.parametrize("family", ALL)
def test_every_family_answers_learns_and_says_what_is_new(folders, tmp_path, family):
    found, base = loaded(folders, family)
    assert base.new and all(base.model.get_submodule(path) is not None for path in base.new)
    given = rows(tmp_path, 4)
    batch = found.collate(found.encode(given, base.processor), base.processor)
    assert not base.model.training
    output = found.run(base.model, batch)
    loss = found.loss(output, batch)
    loss.backward()
    answers = found.read(output, batch)
    assert torch.isfinite(loss)
    assert len(answers) == 4
    assert set(answers[0]["boxes"][0]) == {"label", "score", "box"}
    scores = [entry["score"] for entry in answers[0]["boxes"]]
    assert scores == sorted(scores, reverse=True) and len(scores) <= 100


@pytest.mark.parametrize("family", ["detr", "yolos", "deformable-detr", "rt-detr", "d-fine", "dinov2", "swin"])
def test_a_row_does_not_depend_on_its_neighbours(folders, tmp_path, family):
    found, base = loaded(folders, family)
    examples = found.encode(rows(tmp_path, 5), base.processor)
    with torch.no_grad():
        batch = found.collate(examples, base.processor)
        output = found.run(base.model, batch)
        together, total = found.read(output, batch), found.loss(output, batch) * found.weight(batch)
        alone, sums = [], []
        for example in examples:
            batch = found.collate([example], base.processor)
            output = found.run(base.model, batch)
            alone += found.read(output, batch)
            sums.append(found.loss(output, batch) * found.weight(batch))
    torch.testing.assert_close(torch.stack(sums).sum(), total, rtol=1e-4, atol=1e-4)
    for one, other in zip(alone, together, strict=True):
        near = pytest.approx([entry["score"] for entry in other["boxes"]], abs=1e-5)
        assert [entry["score"] for entry in one["boxes"]] == near


POST = {
    "detr": tf.DetrImageProcessorPil,
    "yolos": tf.YolosImageProcessorPil,
    "deformable-detr": tf.DeformableDetrImageProcessorPil,
    "conditional-detr": tf.ConditionalDetrImageProcessorPil,
    "rt-detr": tf.RTDetrImageProcessorPil,
}


@pytest.mark.parametrize("family", POST)
def test_answers_are_those_of_the_processors_of_transformers(folders, tmp_path, family):
    found, base = loaded(folders, family, threshold=0.0)
    given = [{"path": row["path"]} for row in rows(tmp_path, 3)]
    batch = found.collate(found.encode(given, base.processor), base.processor)
    with torch.no_grad():
        output = found.run(base.model, batch)
    theirs = POST[family]().post_process_object_detection(output, threshold=0.0, target_sizes=[(60, 80)] * 3)
    for expected, answer in zip(theirs, found.read(output, batch), strict=True):
        order = expected["scores"].argsort(descending=True)
        count = len(order)
        own = answer["boxes"][:count]
        assert [entry["score"] for entry in own] == pytest.approx(expected["scores"][order].tolist(), abs=1e-6)
        pairs = {
            (found.labels[index], round(float(score), 5))
            for index, score in zip(expected["labels"], expected["scores"])
        }
        assert {(entry["label"], round(entry["score"], 5)) for entry in own} == pairs
        clipped = expected["boxes"][order][0].clamp(min=0).minimum(torch.tensor([80.0, 60, 80, 60]))
        assert own[0]["box"] == pytest.approx(clipped.tolist(), abs=1e-3)


def test_suppression_leaves_the_surest_of_a_class_that_overlap():
    batch = {"labels_size": torch.tensor([[100, 200]])}
    boxes = torch.tensor([[0.2, 0.5, 0.2, 0.4], [0.22, 0.5, 0.2, 0.4], [0.24, 0.5, 0.2, 0.4], [0.2, 0.5, 0.2, 0.4]])
    logits = torch.tensor([[2.0, -9], [1, -9], [3, -9], [-9, 2.5]])  # neighbours have IoU 9/11, the ends 8/12
    output = ModelOutput(logits=logits[None], pred_boxes=boxes[None])
    for threshold, expected in ((None, [2, 3, 0, 1]), (0.85, [2, 3, 0, 1]), (0.7, [2, 3, 0]), (0.6, [2, 3])):
        found = fitted(nms_threshold=threshold).read(output, batch)[0]["boxes"]
        assert [(entry["label"], entry["box"][0]) for entry in found] == [
            (NAMES[index == 3], pytest.approx(200 * (boxes[index, 0] - 0.1).item())) for index in expected
        ]


@pytest.mark.parametrize("most", [0.1, 0.3, 0.5])
def test_suppression_is_that_of_the_definition_on_random_boxes(most):
    torch.manual_seed(0)
    boxes = torch.rand(60, 2).repeat(1, 2) + torch.cat([torch.zeros(60, 2), 0.1 + 0.3 * torch.rand(60, 2)], 1)
    groups = torch.randint(2, (60,))
    kept = []
    for place, box in enumerate(boxes.tolist()):
        if all(groups[place] != groups[other] or iou(box, boxes[other].tolist()) <= most for other in kept):
            kept.append(place)
    assert surest(boxes, groups, most).nonzero().flatten().tolist() == kept
    assert len(kept) < 60


def test_pixels_are_those_of_the_models_own_processor(folders, tmp_path):
    found = fitted(image_size=(64, 96))
    base = found.load(folders("rt-detr"))
    (row,) = rows(tmp_path, 1)
    batch = found.collate(found.encode([row], base.processor), base.processor)
    own = tf.RTDetrImageProcessorPil(size={"height": 64, "width": 96})
    expected = own(read_image(row["path"]), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert torch.equal(batch["pixel_values"], expected)


@pytest.mark.parametrize(
    ("family", "size"),
    [("rt-detr", (640, 640)), ("yolos", (SIDE, SIDE)), ("detr", (800, 800)), ("dinov2", (SIDE, SIDE))],
)
def test_the_size_is_the_one_the_model_was_made_for(folders, family, size):
    processor = fitted(image_size=None).load(folders(family)).processor
    assert (processor.height, processor.width) == size


def test_the_size_of_a_processor_beside_the_model_counts_first(folders, tmp_path):
    model = tf.Dinov2Model.from_pretrained(folders("dinov2"))
    model.save_pretrained(tmp_path)
    tf.BitImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 32}).save_pretrained(tmp_path)
    processor = fitted(image_size=None).load(str(tmp_path)).processor
    assert (processor.height, processor.width) == (40, 32)


@pytest.mark.parametrize(("family", "unit"), [("yolos", 8), ("dinov2", 8), ("rt-detr", 32)])
def test_a_size_that_is_no_multiple_of_a_patch_is_refused_with_one_that_is(folders, family, unit):
    with pytest.raises(SettingsError, match=rf"no multiple of the {unit} pixels.*try \[96, 64\]"):
        loaded(folders, family, image_size=(97, 65))


def test_boxes_that_stick_out_by_a_pixel_are_clipped_and_counted(folders, tmp_path, caplog):
    found, base = loaded(folders, "dinov2")
    row = picture(
        tmp_path / "a.png", [{"label": "disc", "box": [-1, 0, 40, 61]}, {"label": "disc", "box": [1, 1, 9, 9]}]
    )
    (example,) = found.encode([row], base.processor)
    assert example["boxes"][0].tolist() == [0, 0, 0.5, 1]
    assert "1 boxes stick out" in caplog.text


def test_more_boxes_than_answers_are_said(folders, tmp_path, caplog):
    found, base = loaded(folders, "detr")
    boxes = [{"label": "disc", "box": [9 * index, 0, 9 * index + 9, 20]} for index in range(8)]
    found.encode([picture(tmp_path / "a.png", boxes)], base.processor)
    assert "1 images have more boxes than the 7" in caplog.text


def test_what_is_ignored_is_not_learned(folders, tmp_path):
    found, base = loaded(folders, "dinov2")
    boxes = [{"label": "disc", "box": [0, 0, 9, 9]}, {"label": "square", "box": [20, 0, 29, 9], "ignored": True}]
    (example,) = found.encode([picture(tmp_path / "a.png", boxes)], base.processor)
    assert example["classes"] == [0] and len(example["boxes"]) == 1


def test_an_image_without_boxes_counts_as_one_in_the_batch(folders, tmp_path):
    found, base = loaded(folders, "dinov2")
    given = [picture(tmp_path / "a.png", []), *rows(tmp_path, 1)]
    batch = found.collate(found.encode(given, base.processor), base.processor)
    assert batch["labels"][0].tolist() == [NOTHING] * batch["labels"].shape[1]
    assert found.weight(batch) == 1 + len(given[1]["boxes"])
    assert set(inputs_of(batch)) == {"pixel_values"}


# -- the patch detector


@pytest.mark.parametrize("family", BACKBONES)
def test_a_backbone_keeps_its_weights_and_gives_one_answer_per_patch(folders, family):
    found, base = loaded(folders, family, image_size=(64, 96))
    own = tf.AutoModel.from_pretrained(folders(family)).state_dict()
    kept = base.model.backbone.state_dict()
    assert kept and all(torch.equal(tensor, own[name]) for name, tensor in kept.items())
    with torch.no_grad():
        output = base.model(pixel_values=torch.randn(2, 3, 64, 96))
    assert output.logits.shape == (2, 8 * 12, len(NAMES))
    assert output.pred_boxes.shape == (2, 8 * 12, 4)
    assert base.new == ("neck", "exchange", "class_head", "box_head")


def test_a_fresh_head_answers_rarely_and_around_each_patch(folders):
    _, base = loaded(folders, "dinov2")
    with torch.no_grad():
        output = base.model(pixel_values=torch.randn(1, 3, SIDE, SIDE))
    assert 0.001 < output.logits.sigmoid().mean() < 0.1
    centres = output.pred_boxes[0, :, :2]
    assert torch.allclose(centres[0], torch.tensor([1 / 16, 1 / 16]), atol=1e-6)
    assert torch.allclose(centres[9], torch.tensor([3 / 16, 3 / 16]), atol=1e-6)
    assert torch.allclose(output.pred_boxes[..., 2:], torch.tensor(0.25), atol=1e-6)


def test_a_patch_detector_is_saved_and_loaded_like_any_other(folders, tmp_path):
    found, base = loaded(folders, "dinov2")
    base.model.save_pretrained(tmp_path)
    again = tf.AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    assert isinstance(again, PatchDetector)
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(again(pixel_values=pixels).logits, base.model(pixel_values=pixels).logits)


def test_layers_are_the_first_blocks_of_the_backbone(folders):
    found, base = loaded(folders, "dinov2", layers=1)
    whole = tf.Dinov2Model.from_pretrained(folders("dinov2")).eval()
    pixels = torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        hidden = whole(pixel_values=pixels, output_hidden_states=True).hidden_states[1]
        assert torch.equal(base.model.backbone(pixel_values=pixels).last_hidden_state, whole.layernorm(hidden))


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [("dinov2", 3, "more than the 2 blocks"), ("resnet", 1, "it has stages"), ("detr", 1, "it is a detector already")],
)
def test_layers_that_are_not_there_are_refused(folders, family, layers, message):
    with pytest.raises(SettingsError, match=message):
        loaded(folders, family, layers=layers)


def test_a_model_that_reads_no_images_is_refused(tmp_path):
    text = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = tf.CLIPConfig(text_config={**text, "bos_token_id": 1, "eos_token_id": 2}, vision_config={**VISION})
    tf.CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="CLIPModel reads input_ids, not images alone; name a vision backbone"):
        fitted().load(str(tmp_path))


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize(("height", "width", "side"), [(168, 224, 14), (64, 96, 16), (96, 64, 32), (48, 48, 8)])
def test_patches_are_found_behind_other_tokens(height, width, side, extra):
    grid = (height // side, width // side)
    tokens = torch.arange(extra + grid[0] * grid[1]).float()[None, :, None]
    found, shape = patches(tokens, height, width, side)
    assert shape == grid
    assert found[0, 0, 0] == extra
    assert patches(tokens[:, extra:], height, width, None)[1] == grid


def test_tokens_that_are_no_grid_are_refused():
    with pytest.raises(SettingsError, match="40 tokens are no grid of patches of an image of 16 x 16 pixels"):
        patches(torch.zeros(1, 40, 8), 16, 16, 8)
    assert list(grids(9, 8, 4))[:4] == [(2, 2), (3, 2), (1, 1), (2, 1)]


# -- augmentation


def test_boxes_go_where_their_pixels_go(folders, tmp_path):
    found, base = loaded(folders, "dinov2", image_size=(64, 96), augmentation={"crop": 0.5, "colour": 0.3})
    row = picture(tmp_path / "a.png", [{"label": "square", "box": [20, 15, 50, 40]}], 96, 64)
    (example,) = found.encode([row], base.processor)
    seen = set()
    for seed in range(20):
        shown = found.augment(example, np.random.default_rng(seed))
        blue = shown["pixels"][2].astype(int) - shown["pixels"][0] > 60
        assert len(shown["boxes"]) == 1
        x0, y0, x1, y1 = shown["boxes"][0] * [96, 64, 96, 64]
        across, down = np.flatnonzero(blue.any(0)), np.flatnonzero(blue.any(1))
        assert [across[0], down[0], across[-1] + 1, down[-1] + 1] == pytest.approx([x0, y0, x1, y1], abs=1.5)
        seen.add(tuple(shown["boxes"][0].round(3).tolist()))
    assert len(seen) > 15
    assert (
        found.augment(example, np.random.default_rng(3))["boxes"].tolist()
        == found.augment(example, np.random.default_rng(3))["boxes"].tolist()
    )


def test_a_box_that_is_mostly_cut_off_goes_with_its_class():
    boxes = np.array([[-0.9, 0, 0.1, 0.5], [-0.5, 0, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4], [1.1, 0, 1.4, 0.5]])
    clipped, kept = visible(boxes)
    assert kept.tolist() == [False, True, True, False]
    assert clipped[1].tolist() == [0, 0, 0.5, 0.5]


def test_without_the_setting_an_example_stays_the_same_object(folders, tmp_path):
    found, base = loaded(folders, "dinov2")
    (example,) = found.encode(rows(tmp_path, 1), base.processor)
    assert found.augment(example, np.random.default_rng(0)) is example


# -- scores


def entry(label, *box, **more):
    return {"label": label, "box": list(box), **more}


def test_average_precision_by_hand():
    """Two discs; found: one right (0.9), one on nothing (0.8), one right by IoU 0.6 (0.7)."""
    wanted = [[entry("disc", 0, 0, 10, 10)], [entry("disc", 20, 0, 30, 10)]]
    found = [
        [entry("disc", 0, 0, 10, 10, score=0.9), entry("disc", 40, 40, 50, 50, score=0.8)],
        [entry("disc", 20, 0, 30, 6, score=0.7)],
    ]
    scores = detection_scores(found, wanted, NAMES)
    half, whole = 51 / 101, (51 + 50 * 2 / 3) / 101  # recall 0 to 0.5 at precision 1, up to 1 at 2/3
    assert scores["map50"] == pytest.approx(whole)
    assert scores["map75"] == pytest.approx(half)
    assert scores["map"] == pytest.approx((3 * whole + 7 * half) / 10)  # IoU 0.6 is enough at 0.50, 0.55 and 0.60
    assert scores["per_class"] == [
        {"label": "disc", "ap": pytest.approx(scores["map"]), "ap50": pytest.approx(whole), "boxes": 2}
    ]


def precision_by_hand(found, wanted, threshold):
    """AP of one class: greedy by score, precision made to fall, read at 101 recalls."""
    taken = [set() for _ in wanted]
    pairs = sorted(((e["score"], image, e["box"]) for image, own in enumerate(found) for e in own), reverse=True)
    right = []
    for _, image, box in pairs:
        overlaps = [(iou(box, e["box"]), place) for place, e in enumerate(wanted[image]) if place not in taken[image]]
        best = max(overlaps, default=(0, None))
        right.append(best[0] >= threshold)
        if right[-1]:
            taken[image].add(best[1])
    right = np.cumsum(right)
    recall = right / sum(map(len, wanted))
    precision = np.maximum.accumulate((right / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
    return float(np.mean([precision[place] if place < len(precision) else 0.0 for place in places]))


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_of_random_boxes_is_that_of_the_definition(seed):
    generator = np.random.default_rng(seed)

    def boxes(count, **more):
        corner, size = generator.uniform(0, 60, (count, 2)), generator.uniform(10, 30, (count, 2))
        return [entry("disc", *a, *(a + b), **{k: f() for k, f in more.items()}) for a, b in zip(corner, size)]

    wanted = [boxes(4) for _ in range(6)]
    near = [
        [{**e, "box": [v + generator.normal(0, 2) for v in e["box"]], "score": generator.random()} for e in own]
        for own in wanted
    ]
    found = [own + boxes(3, score=generator.random) for own in near]
    scores = detection_scores(found, wanted, NAMES)
    thresholds = np.linspace(0.5, 0.95, 10)
    assert scores["map50"] == pytest.approx(precision_by_hand(found, wanted, 0.5), abs=1e-6)
    assert scores["map"] == pytest.approx(np.mean([precision_by_hand(found, wanted, t) for t in thresholds]), abs=1e-6)


def test_classes_that_are_not_there_and_ignored_boxes_count_neither_way():
    wanted = [[entry("disc", 0, 0, 10, 10), entry("square", 30, 0, 40, 10, ignored=True)], []]
    good = [[entry("disc", 0, 0, 10, 10, score=0.5), entry("square", 30, 0, 40, 10, score=0.9)], []]
    assert detection_scores(good, wanted, NAMES)["map"] == 1.0
    crowd = [[entry("disc", 0, 0, 10, 10), entry("disc", 30, 0, 40, 10, ignored=True)], []]
    assert detection_scores([[*good[0], entry("disc", 30, 0, 40, 10, score=0.8)], []], crowd, NAMES)["map"] == 1.0
    false = [[*good[0], entry("disc", 60, 0, 70, 10, score=0.8)], []]
    assert detection_scores(false, wanted, NAMES)["map"] == pytest.approx(0.5)
    assert detection_scores([[], []], wanted, NAMES)["map"] == 0.0
    assert detection_scores(good, [[], []], NAMES) == {"map": 0.0, "map50": 0.0, "map75": 0.0, "per_class": []}


def test_the_baseline_is_the_most_frequent_boxes(tmp_path):
    train = [picture(tmp_path / f"{i}.png", [entry("disc", 10, 10, 30, 30)]) for i in range(3)]
    train.append(picture(tmp_path / "3.png", [entry("square", 40, 20, 70, 50)]))
    name, metrics = fitted().baseline(train, train[:2])
    assert name == "most frequent boxes"
    assert metrics["map"] == 1.0
    assert fitted().baseline(train, train[3:])[1]["map"] == 1.0
    assert fitted().baseline(train, [picture(tmp_path / "4.png", [entry("disc", 50, 30, 75, 55)])])[1]["map"] == 0.0


# -- drawing


def test_frames_are_drawn_at_the_edges_in_the_colour_of_the_class():
    pixels = np.full((100, 200, 3), 255, np.uint8)
    image = np.asarray(boxes_on(pixels, [entry("square", 40, 30, 120, 80, score=0.5)], NAMES))
    colour = [int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)]
    for y, x in ((30, 80), (80, 80), (55, 40), (55, 120)):
        assert image[y, x].tolist() == colour
    assert (image[40:70, 50:110] == 255).all() and (image[85:] == 255).all() and (image[:, 125:] == 255).all()
    assert (pixels == 255).all()


def test_a_name_at_the_upper_edge_is_drawn_inside_the_image():
    pixels = np.full((60, 80, 3), 255, np.uint8)
    image = np.asarray(boxes_on(pixels, [entry("disc", 5, 0, 70, 50)], NAMES))
    assert (image[3:9, 6:20] != 255).any()


# -- whole runs


def train(tmp_path, model, method, steps, rate=1e-2, given=40, **fields):
    (tmp_path / "images").mkdir(exist_ok=True)
    parts = {
        name: lines(tmp_path / f"{name}.jsonl", rows(tmp_path / "images", count, seed))
        for seed, (name, count) in enumerate({"train": given, "validation": 8, "test": 8}.items())
    }
    return deltatune.finetune(
        task={"type": "object-detection", "image_size": SIDE, **fields},
        model=model,
        data=parts,
        method=method,
        training={
            "max_steps": steps,
            "num_train_epochs": 100,
            "per_device_train_batch_size": 8,
            "learning_rate": rate,
            "early_stopping_patience": None,
            "eval_steps": steps,
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )


def test_training_finds_coloured_things_and_the_adapter_travels(folders, tmp_path):
    run = train(tmp_path, folders("dinov2"), "full", 80, 3e-3, augmentation={"crop": 0.2, "colour": 0.0})
    results = run.results
    assert results["test"]["loss"] < 0.7 * results["before"]["loss"]
    assert results["test"]["map50"] > 0.3 > results["before"]["map50"]
    again = deltatune.evaluate(run.folder, str(tmp_path / "test.jsonl"))
    assert again["map"] == pytest.approx(results["test"]["map"], abs=1e-6)
    path = json.loads((tmp_path / "test.jsonl").read_text().splitlines()[0])["path"]
    drawn = tmp_path / "drawn"
    answer, missing = deltatune.predict(run.folder, rows=[{"path": path}, {"path": "gone.png"}], draw=drawn)
    assert answer["boxes"] and all(entry["score"] >= 0.3 for entry in answer["boxes"])
    assert missing["error"].endswith("image is missing (gone.png)")
    (file,) = drawn.iterdir()
    assert file.name == f"00001-{path.rpartition('/')[2]}" and read_image(file).shape == (60, 80, 3)


def test_frozen_blocks_run_once_where_only_the_head_is_trained(folders, tmp_path):
    run = train(tmp_path, folders("dinov2"), "linear-probe", 3)
    assert run.results["trunk"]["blocks"] == VISION["num_hidden_layers"]
    assert run.results["trunk"]["rows"] == 56


def test_distillation_is_refused(folders, tmp_path):
    from deltatune.core.config import DistillationSettings
    from deltatune.train.teacher import teacher_of

    found, base = loaded(folders, "dinov2")
    with pytest.raises(SettingsError, match="they come in no order"):
        teacher_of(DistillationSettings(teacher="base"), found, base, None, [])


METHODS = ["lora", "ia3", "adapter", "bitfit", "prefix", "prompt", "linear-probe"]
TRIED = [family for family in ALL if family not in ("dab-detr", "rt-detr-v2", "beit")]
NO_KEYS, NO_TOKENS = (
    "keys and values|keys of width",
    "no embedded tokens|takes no tokens|does not read its tokens|no repeated",
)
REFUSED = {
    **{
        (family, "prefix"): NO_KEYS
        for family in ("conditional-detr", "deformable-detr", "rt-detr", "convnext", "resnet")
    },
    **{(family, "prompt"): NO_TOKENS for family in (*FAMILIES, "swin", "convnext", "resnet")},
    ("d-fine", "adapter"): "cannot be reached",
    ("convnext", "adapter"): "cannot be reached",
    ("resnet", "adapter"): "no attention or mlp",
    ("convnext", "ia3"): "matches nothing",
    ("resnet", "ia3"): "matches nothing",
    ("resnet", "lora"): "matches nothing",
}
"""Where a method has no place, and what it is refused with."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", TRIED)
def test_a_few_steps_of_every_method_lower_the_loss_or_are_refused(folders, tmp_path, family, method):
    found, base = loaded(folders, family)
    batch = found.collate(found.encode(rows(tmp_path, 3), base.processor), base.processor)
    short = {"num_virtual_tokens": 3} if method in ("prefix", "prompt") else {}
    heads = tuple(dict.fromkeys((*base.new, *roster_of(base.model).anatomy.heads)))
    chosen = deltatune.method(method, modules_to_save=heads, **short)

    def losses():
        deltatune.attach(base.model, chosen, seed=0)
        optimizer = torch.optim.AdamW([p for p in base.model.parameters() if p.requires_grad], lr=3e-4)
        for _ in range(3):
            optimizer.zero_grad()
            loss = found.loss(base.model(**inputs_of(batch)), batch)
            loss.backward()
            optimizer.step()
            yield loss.item()

    if (family, method) in REFUSED:
        with pytest.raises(deltatune.DeltatuneError, match=REFUSED[family, method]):
            list(losses())
    else:
        first, *later = losses()
        assert min(later) < first  # which places two-stage families answer for may jump
