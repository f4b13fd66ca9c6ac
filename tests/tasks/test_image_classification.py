"""Images: rows and their files, pixels, sizes, baselines, and tiny trainings on every family."""

import copy
import csv
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import deltatune
from deltatune.core.config import DataSettings
from deltatune.core.errors import SettingsError
from deltatune.core.image_network import take
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.data.load import load
from deltatune.store.adapter import read

# -- images that can be learnt: stripes along, stripes across, or a disc, in any colours and sizes

KINDS = ("along", "across", "disc")


def picture(kind, seed, side=None):
    """A pattern in two colours, with noise."""
    generator = np.random.default_rng((KINDS.index(kind), seed))
    height, width = (side, side) if side else generator.integers(24, 60, 2)
    y, x = np.mgrid[:height, :width]
    middle = (y / height - 0.5) ** 2 + (x / width - 0.5) ** 2 < 0.1
    shape = {"along": y * 4 // height % 2 == 0, "across": x * 4 // width % 2 == 0, "disc": middle}[kind]
    dark, light = generator.integers(0, 100, 3), generator.integers(150, 256, 3)
    pixels = np.where(shape[..., None], light, dark) + generator.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pictures(folder, count, first=0):
    """Rows with `count` pictures of every kind."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        for kind in KINDS:
            name = f"{kind}_{number}.png"
            picture(kind, number).save(folder / name)
            rows.append({"path": name, "label": kind})
    return rows


def table(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
FAMILIES = {
    "vit": lambda: tf.ViTConfig(**SIZES),
    "dinov2": lambda: tf.Dinov2Config(**SIZES, mlp_ratio=2),
    "beit": lambda: tf.BeitConfig(**SIZES, use_relative_position_bias=True),
    "swin": lambda: tf.SwinConfig(
        image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4
    ),
    "convnext": lambda: tf.ConvNextConfig(
        image_size=32, patch_size=4, num_stages=2, hidden_sizes=[16, 32], depths=[1, 1], layer_scale_init_value=1.0
    ),
    "resnet": lambda: tf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"),
    "clip": lambda: tf.CLIPConfig(
        vision_config=SIZES,
        text_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
    ),
}
PROCESSORS = {
    "vit": lambda: tf.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "dinov2": lambda: tf.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
    "beit": lambda: tf.BeitImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False),
    "swin": lambda: tf.ViTImageProcessorPil(size={"height": 32, "width": 32}),
    "convnext": lambda: tf.ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "resnet": lambda: tf.ConvNextImageProcessorPil(size={"shortest_edge": 32}),
    "clip": lambda: tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
}


def model_folder(path, family):
    """A random network without a head of ours, and its processor."""
    torch.manual_seed(0)
    tf.AutoModelForImageClassification.from_config(FAMILIES[family]()).base_model.save_pretrained(path)
    PROCESSORS[family]().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> folder."""
    place = tmp_path_factory.mktemp("models")
    return {family: model_folder(place / family, family) for family in FAMILIES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with train.csv and test.csv, 20 and 8 pictures of every kind."""
    place = tmp_path_factory.mktemp("data")
    for name, count, first in (("train", 20, 0), ("test", 8, 100)):
        rows = pictures(place / name, count, first)
        table(place / f"{name}.csv", [{**row, "path": f"{name}/{row['path']}"} for row in rows])
    return place


def fitted(values=KINDS, **fields):
    return task("image-classification", **fields).fit([{"path": f"{n}.png", "label": v} for n, v in enumerate(values)])


def absolute(folder, rows):
    return [{**row, "path": str(folder / row["path"])} for row in rows]


# -- pixels


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_models_own_processor_to_the_bit(family, folders, tmp_path):
    rows = absolute(tmp_path, pictures(tmp_path, 2))
    for number, mode in enumerate(("L", "P", "CMYK")):
        picture("disc", number + 50).convert(mode).save(tmp_path / f"{mode}.tiff")
        rows.append({"path": str(tmp_path / f"{mode}.tiff"), "label": "disc"})
    reference = AutoImageProcessor.from_pretrained(folders[family], backend="pil")
    images = [Image.open(row["path"]).convert("RGB") for row in rows]
    expected = torch.cat([reference(image, return_tensors="pt")["pixel_values"] for image in images])
    found = fitted()
    loaded = found.load(folders[family])
    batch = found.collate(found.encode(rows, loaded.processor), loaded.processor)
    assert torch.equal(batch["pixel_values"], expected)
    assert batch["labels"].tolist() == [found.labels.index(row["label"]) for row in rows]
    with torch.no_grad():
        plain = copy.deepcopy(loaded.model.eval())
        plain._forward_pre_hooks.clear()
        wanted = plain(pixel_values=expected).logits
        assert torch.equal(loaded.model(**inputs_of(batch)).logits, wanted)


def test_a_window_makes_deep_images_bright_and_a_reversed_one_turns_them_round(tmp_path):
    values = np.tile(np.linspace(0, 4095, 32).astype(np.uint16), (32, 1))
    Image.fromarray(values).save(tmp_path / "xray.png")
    rows = [{"path": str(tmp_path / "xray.png")}]
    plain, wide, turned = (fitted(**fields) for fields in ({}, {"window": (0, 4095)}, {"window": (4095, 0)}))
    place = model_folder(tmp_path / "model", "vit")
    read = [one.encode(rows, one.load(place).processor)[0]["pixels"] for one in (plain, wide, turned)]
    assert [int(pixels.max()) for pixels in read] == [16, 255, 255]
    assert np.abs(read[1].astype(int) + read[2] - 255).max() <= 1
    assert plain.identity(rows[0]) != wide.identity(rows[0])
    with pytest.raises(SettingsError, match="black and white are the same value"):
        task("image-classification", window=(7, 7))


def test_values_of_unknown_range_ask_for_a_window(tmp_path):
    values = np.tile(np.linspace(-1000, 1000, 32).astype(np.float32), (32, 1))
    Image.fromarray(values).save(tmp_path / "ct.tiff")
    row = {"path": str(tmp_path / "ct.tiff"), "label": "a"}
    assert "unknown range" in fitted().check(row) and "set task.window" in fitted().check(row)
    assert fitted(window=(-1000, 1000), labels=("a", "b")).check(row) is None


# -- sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reads_images_of_another_size(family, folders, data):
    found = fitted(image_size=48)
    loaded = found.load(folders[family])
    rows = absolute(data, [{"path": "train/disc_1.png"}, {"path": "train/along_1.png"}])
    batch = found.collate(found.encode(rows, loaded.processor), loaded.processor)
    assert batch["pixel_values"].shape == (2, 3, 48, 48)
    with torch.no_grad():
        copied = copy.deepcopy(loaded.model.eval())
        together = loaded.model(**batch).logits
        assert torch.equal(copied(**batch).logits, together)
        alone = torch.cat([loaded.model(pixel_values=pixels[None]).logits for pixels in batch["pixel_values"]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_positions_are_interpolated_as_transformers_does(folders):
    own = fitted(image_size=48).load(folders["vit"]).model.eval()
    plain = tf.AutoModelForImageClassification.from_pretrained(folders["vit"], num_labels=3).eval()
    plain.load_state_dict(own.state_dict())
    pixels = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        wanted = plain(pixel_values=pixels, interpolate_pos_encoding=True).logits
        assert torch.equal(own(pixel_values=pixels).logits, wanted)


@pytest.mark.parametrize(("family", "patch"), [("vit", 8), ("dinov2", 8), ("beit", 8), ("swin", 2), ("clip", 8)])
def test_a_size_that_is_no_multiple_of_the_patch_is_refused(family, patch, folders):
    low = 33 // patch * patch
    message = f"33 x 33 pixels .*patches of {patch} x {patch}; set task.image_size to {low} or {low + patch}"
    with pytest.raises(SettingsError, match=message):
        fitted(image_size=33).load(folders[family])


def test_a_network_of_one_size_says_which():
    class Fixed(torch.nn.Module):
        config = tf.ViTConfig(image_size=32, patch_size=8)
        dtype = torch.float32

        def forward(self, pixel_values):
            if pixel_values.shape[-1] != 32:
                raise ValueError("only 32")
            return pixel_values

    with pytest.raises(SettingsError, match=r"Fixed cannot read images of 40 x 40 pixels: only 32; set .* to 32,"):
        take(Fixed(), 40, 40)
    take(Fixed(), 32, 32)


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_a_base_in_bfloat16_takes_the_pixels(family, folders):
    network = fitted().load(folders[family], torch.bfloat16).model
    assert network(pixel_values=torch.randn(2, 3, 32, 32)).logits.dtype == torch.bfloat16


# -- rows


def broken(folder):
    """Name of a file that cannot be used -> part of the reason; the file is written."""
    whole = (folder / "disc_0.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    picture("disc", 0, 7).save(folder / "tiny.png")
    frames = [picture("disc", number, 20) for number in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    return {
        "empty.png": "image file is empty",
        "text.png": "image is of no known kind",
        "half.png": "image cannot be decoded",
        "tiny.png": "7 x 7 pixels, 8 a side are the least",
        "moving.gif": "image has 3 frames",
        "none.png": "image is missing",
        "": "path is empty",
    }


def test_files_that_cannot_be_used_are_rejected_with_line_name_and_reason(tmp_path):
    rows = pictures(tmp_path, 10)
    bad = broken(tmp_path)
    first = len(rows) + 2
    rows += [{"path": name, "label": "disc"} for name in bad] + [{"path": "disc_1.png", "label": ""}]
    settings = DataSettings(train=table(tmp_path / "all.csv", rows), max_rejected=0.5)
    found = load(settings, task("image-classification"), tmp_path)
    reasons = {rejected.line: rejected.reason for rejected in found.rejected}
    assert sorted(reasons) == list(range(first, first + len(bad) + 1))
    for line, (name, reason) in enumerate(bad.items(), first):
        assert reason in reasons[line] and name in reasons[line]
    assert sum(map(len, found.parts.values())) == 30


def test_a_copy_in_another_kind_of_file_is_the_same_input(tmp_path):
    rows = pictures(tmp_path, 10)
    Image.open(tmp_path / "disc_0.png").save(tmp_path / "copy.bmp")
    rows.append({"path": "copy.bmp", "label": "along"})
    settings = DataSettings(train=table(tmp_path / "all.csv", rows), max_rejected=0.5)
    (rejected,) = load(settings, task("image-classification"), tmp_path).rejected
    assert (rejected.line, rejected.reason) == (32, "same input as line 4, with another label")


def test_a_compressed_and_smaller_copy_in_the_test_file_is_found(tmp_path):
    parts = {}
    for name, first in (("train", 0), ("validation", 40), ("test", 80)):
        rows = pictures(tmp_path / name, 8, first)
        parts[name] = [{**row, "path": f"{name}/{row['path']}"} for row in rows]
    image = Image.open(tmp_path / "train" / "disc_3.png")
    image.resize((image.width * 2, image.height * 2)).save(tmp_path / "copy.jpg", quality=85)
    parts["test"].append({"path": "copy.jpg", "label": "disc"})
    files = {name: table(tmp_path / f"{name}.csv", rows) for name, rows in parts.items()}
    found = load(DataSettings(**files), task("image-classification"), tmp_path)
    assert any(f"{files['test']}:26 ~ train {files['train']}:13" in line for line in found.near)


def test_crops_of_one_photo_stay_in_one_split(tmp_path):
    rows = [{**row, "photo": index // 6} for index, row in enumerate(pictures(tmp_path, 20))]
    settings = DataSettings(train=table(tmp_path / "all.csv", rows), group_column="photo")
    found = load(settings, task("image-classification"), tmp_path)
    photos = [{row["group"] for row in part} for part in found.parts.values()]
    assert sum(map(len, photos)) == len(set.union(*photos)) == 10


def test_findings_in_columns_of_their_own_may_be_unknown(tmp_path, folders):
    rows = pictures(tmp_path, 12)
    wide = [
        {
            "path": row["path"],
            "striped": int(row["label"] != "disc"),
            "round": "" if n % 5 == 0 else row["label"] == "disc",
        }
        for n, row in enumerate(rows)
    ]
    settings = DataSettings(
        train=table(tmp_path / "all.csv", wide), columns={"label": ["striped", "round"]}, validation_fraction=0.2
    )
    found = load(settings, task("image-classification"), tmp_path)
    assert (found.task.problem, found.task.labels) == ("multi-label", ("round", "striped"))
    loaded = found.task.load(folders["vit"])
    batch = found.task.collate(found.task.encode(found.train, loaded.processor), loaded.processor)
    assert batch["labels"].isnan().any()
    assert found.task.loss(loaded.model(**inputs_of(batch)), batch).isfinite()
    (scores,) = found.task.baselines(found.train, found.validation).values()
    assert 0 <= scores["micro_f1"] <= 1


# -- baselines


def test_small_pixels_beat_the_majority(data):
    found = load(DataSettings(train="train.csv", test="test.csv"), task("image-classification"), data)
    (name,) = found.task.baselines(found.train, found.test)
    assert name == "16 x 16 pixels, logistic regression"
    scores = found.task.baselines(found.train, found.test)[name]
    assert scores["accuracy"] > 0.5 > found.task.baseline(found.train, found.test)[1]["accuracy"]


# -- augmentation


def test_training_images_are_varied_anew_and_the_kept_pixels_stay(folders, data):
    rows = absolute(data, [{"path": "train/disc_1.png", "label": "disc"}])
    plain, varied = fitted(), fitted(augmentation={"flip": "both", "rotation": 10})
    processor = plain.load(folders["vit"]).processor
    (example,) = varied.encode(rows, processor)
    before = example["pixels"].copy()
    assert plain.augment(example, np.random.default_rng(0)) is example
    shown = [varied.augment(example, np.random.default_rng((0, step, 0)))["pixels"] for step in range(4)]
    again = varied.augment(example, np.random.default_rng((0, 2, 0)))["pixels"]
    assert np.array_equal(shown[2], again)
    assert len({pixels.tobytes() for pixels in (before, *shown)}) == 5
    assert np.array_equal(example["pixels"], before)
    assert all(pixels.shape == before.shape and pixels.dtype == np.uint8 for pixels in shown)


def test_mixup_shows_two_images_and_the_shares_of_their_labels(folders, data):
    rows = absolute(data, [{"path": f"train/{kind}_1.png", "label": kind} for kind in ("disc", "along")])
    plain, mixed = fitted(), fitted(mixup=0.4)
    assert not plain.mixes and mixed.mixes
    one, other = mixed.encode(rows, mixed.load(folders["vit"]).processor)
    shown = mixed.mix(one, other, np.random.default_rng(3))
    share = float(np.random.default_rng(3).beta(0.4, 0.4))
    expected = share * one["pixels"].astype(float) + (1 - share) * other["pixels"]
    assert shown["pixels"].dtype == np.uint8 and np.abs(shown["pixels"] - expected).max() < 0.51
    wanted = np.zeros(3)
    wanted[[one["label"], other["label"]]] = share, 1 - share
    assert shown["label"] == pytest.approx(wanted.tolist())
    assert isinstance(one["label"], int)


def test_a_teacher_that_would_not_see_the_mixing_is_refused(folders, data, tmp_path):
    labels = dict(enumerate(sorted(KINDS)))
    config = tf.ViTConfig(**SIZES, id2label=labels, label2id={name: n for n, name in labels.items()})
    tf.ViTForImageClassification(config).save_pretrained(tmp_path / "teacher")
    PROCESSORS["vit"]().save_pretrained(tmp_path / "teacher")
    with pytest.raises(SettingsError, match="the student reads them mixed; take mixup out"):
        deltatune.finetune(
            task={"type": "image-classification", "mixup": 0.2},
            model=folders["vit"],
            data={"train": str(data / "train.csv"), "test": str(data / "test.csv")},
            training={"max_steps": 1, "distillation": {"teacher": str(tmp_path / "teacher")}, "bf16": False},
            output_dir=tmp_path / "run",
            quiet=True,
        )


# -- training


METHODS = {
    "lora": {"r": 4, "target_modules": "all-linear"},
    "ia3": {},
    "adapter": {},
    "bitfit": {},
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 3},
}
NO_ATTENTION = "does not take keys and values from outside"
REFUSED = {
    ("beit", "prompt"): "takes no tokens besides its own",
    ("swin", "prompt"): r"does not read its tokens as \[rows, tokens, width\]",
    ("convnext", "ia3"): r"'\*attention.key' matches nothing",
    ("convnext", "adapter"): "cannot be reached before it is added",
    ("convnext", "prompt"): "no embedded tokens",
    ("convnext", "prefix"): NO_ATTENTION,
    ("resnet", "lora"): "'all-linear' matches nothing .*known: .*convolution",
    ("resnet", "ia3"): r"'\*attention.key' matches nothing",
    ("resnet", "adapter"): "no attention or mlp",
    ("resnet", "prompt"): "no repeated blocks",
    ("resnet", "prefix"): NO_ATTENTION,
}
"""Networks that have no place for a method, and what they are refused with."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_steps_of_every_method_lower_the_loss_on_every_family(family, method, folders, data):
    found = fitted()
    loaded = found.load(folders[family])
    rows = absolute(data, [{"path": f"train/{kind}_{n}.png", "label": kind} for n in range(4) for kind in KINDS])
    batch = found.collate(found.encode(rows, loaded.processor), loaded.processor)
    chosen = deltatune.method(method, **METHODS[method])
    if (family, method) in REFUSED:
        with pytest.raises(SettingsError, match=REFUSED[family, method]):
            deltatune.attach(loaded.model, chosen)
        return
    deltatune.attach(loaded.model, chosen, seed=0)
    loaded.model.eval()
    optimizer = torch.optim.AdamW([p for p in loaded.model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = found.loss(loaded.model(**inputs_of(batch)), batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_convolutions_take_lora_by_name(folders, data):
    network = fitted().load(folders["resnet"]).model
    adapter = deltatune.attach(network, deltatune.method("lora", r=2, target_modules="convolution"), seed=0)
    assert adapter.trainable_parameters > 0


def run(data, model, place, steps=30, method="lora", **fields):
    chosen = {"type": "lora", "r": 8, "target_modules": "all-linear"} if method == "lora" else method
    return deltatune.finetune(
        task={"type": "image-classification", **fields},
        model=model,
        data={"train": str(data / "train.csv"), "test": str(data / "test.csv"), "validation_fraction": 0.2},
        method=chosen,
        training={
            "max_steps": steps,
            "learning_rate": 5e-3,
            "per_device_train_batch_size": 12,
            "lr_scheduler_type": "constant",
            "bf16": False,
        },
        output_dir=place,
        quiet=True,
    )


@pytest.fixture(scope="module")
def trained(data, folders, tmp_path_factory):
    return run(data, folders["vit"], tmp_path_factory.mktemp("runs") / "run", 60)


def test_a_run_learns_and_says_what_it_was_measured_against(trained):
    results = trained.results
    assert results["test"]["accuracy"] > 0.8 > results["before"]["accuracy"]
    assert results["test"]["loss"] < results["before"]["loss"]
    assert {"auc", "ece", "brier", "macro_f1", "confusion"} <= results["test"].keys()
    assert results["baseline"]["name"] == "majority class"
    assert results["baselines"].keys() == {"16 x 16 pixels, logistic regression"}
    assert results["base"]["sha256_before"] == results["base"]["sha256_after"]


def test_a_file_a_folder_and_a_table_are_answered_alike(trained, data, tmp_path):
    kinds = ("along", "disc")
    for kind in kinds:
        (tmp_path / "folder" / kind).mkdir(parents=True)
        shutil.copy(data / "test" / f"{kind}_101.png", tmp_path / "folder" / kind)
    shutil.copy(data / "test" / "along_101.png", tmp_path)
    rows = [{"image": "along_101.png"}, {"image": "none.png"}]
    of_folder = deltatune.predict(trained.folder, file=str(tmp_path / "folder"))
    (of_file,) = deltatune.predict(trained.folder, file=str(tmp_path / "along_101.png"))
    of_table = deltatune.predict(trained.folder, file=table(tmp_path / "new.csv", rows))
    (of_path,) = deltatune.predict(trained.folder, texts=[str(tmp_path / "along_101.png")])
    assert [answer["label"] for answer in of_folder] == list(kinds)
    assert of_file == of_table[0] == of_path
    assert of_file["probabilities"] == pytest.approx(of_folder[0]["probabilities"], abs=1e-6)
    assert of_file["score"] == max(of_file["probabilities"].values())
    assert "new.csv:3: image is missing" in of_table[1]["error"]


def test_a_folder_of_classes_is_scored_and_broken_files_are_listed(trained, data, tmp_path):
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        for number in range(100, 108):
            shutil.copy(data / "test" / f"{kind}_{number}.png", tmp_path / kind)
    (tmp_path / "disc" / "zero.png").write_bytes(b"")
    scored = deltatune.evaluate(trained.folder, str(tmp_path))
    assert scored["rows"] == 24
    assert scored["accuracy"] == pytest.approx(trained.results["test"]["accuracy"])
    (rejected,) = scored["rejected"]
    assert "image file is empty" in rejected and "zero.png" in rejected


def test_the_adapter_file_knows_the_size_and_the_window(data, folders, tmp_path):
    made = run(data, folders["vit"], tmp_path / "run", 3, image_size=48, window=(0, 255))
    facts = read(made.adapter).facts["task"]
    assert (facts["image_size"], facts["window"]) == (48, [0, 255])
    scored = deltatune.evaluate(made.folder, str(data / "test.csv"))
    assert scored["loss"] == pytest.approx(made.results["test"]["loss"], abs=1e-5)


def test_everything_on_still_learns(data, folders, tmp_path):
    made = run(
        data,
        folders["dinov2"],
        tmp_path / "run",
        40,
        class_weights="balanced",
        focal_gamma=1.0,
        label_smoothing=0.05,
        augmentation={"flip": "both"},
        mixup=0.2,
    )
    assert made.results["validation"]["loss"] < made.results["before"]["loss"]


def test_blocks_below_the_adapter_run_once_per_image(data, folders, tmp_path):
    method = {"type": "lora", "r": 4, "target_modules": "*layers.1.*"}
    made = run(data, folders["vit"], tmp_path / "run", 10, method)
    assert made.results["trunk"]["rows"] == 60 + 24
    assert made.results["validation"]["loss"] < made.results["before"]["loss"]


def test_numbers_are_learned_from_images(folders, tmp_path):
    rows = []
    for number in range(30):
        Image.new("RGB", (20, 20), (number * 8, 100, 100)).save(tmp_path / f"{number}.png")
        rows.append({"path": str(tmp_path / f"{number}.png"), "label": number + 0.5})
    found = task("image-classification").fit(rows)
    loaded = found.load(folders["vit"])
    batch = found.collate(found.encode(rows, loaded.processor), loaded.processor)
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss = found.loss(loaded.model(**inputs_of(batch)), batch)
        loss.backward()
        optimizer.step()
    answers = found.read(loaded.model(**inputs_of(batch)), batch)
    assert found.score(answers, rows)["rmse"] < 0.3 * found.baseline(rows, rows)[1]["rmse"]
    ((name, scores),) = found.baselines(rows[::2], rows[1::2]).items()
    assert name == "16 x 16 pixels, ridge regression" and scores["pearson"] > 0.99
