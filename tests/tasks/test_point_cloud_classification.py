"""Files of points and meshes, models, and tiny trainings."""

import json

import numpy as np
import pytest
import torch
import transformers as tf

import deltatune
from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.registry import task
from deltatune.core.task import inputs_of
from deltatune.data.load import load
from deltatune.models.point_transformer import (
    PointTransformerConfig,
    PointTransformerForClassification,
    PointTransformerForMasking,
    PointTransformerModel,
)

SIZES = {
    "num_points": 32,
    "num_groups": 6,
    "group_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,
}
CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], np.float32)


def saved(path, kind=PointTransformerForMasking, **more):
    torch.manual_seed(0)
    kind(PointTransformerConfig(**{**SIZES, **more})).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model"))


def ball(chance, count=48):
    points = chance.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def stick(chance, count=48):
    points = chance.uniform(-1, 1, (count, 3)) * [1, 0.1, 0.1]
    return points @ np.linalg.qr(chance.normal(size=(3, 3)))[0]


def shapes(folder, each=20, seed=0):
    """Folders of balls and sticks."""
    chance = np.random.default_rng(seed)
    for name, make in (("ball", ball), ("stick", stick)):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            points = make(chance) * chance.uniform(0.5, 3) + chance.normal(size=3)
            np.save(folder / name / f"{number}.npy", points.astype(np.float32))
    return str(folder)


def point_file(path, points):
    np.save(path, points.astype(np.float32))
    return str(path)


def off_file(path):
    faces = [[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    lines = ["OFF", "8 6 0", *(" ".join(map(str, p)) for p in CUBE), *(f"4 {' '.join(map(str, f))}" for f in faces)]
    path.write_text("\n".join(lines))
    return str(path)


def fitted(**settings):
    return task("point-cloud-classification", labels=("ball", "stick"), problem="single", **settings)


def logits_of(found, loaded, paths):
    batch = found.collate(found.encode([{"path": path} for path in paths], loaded.processor), loaded.processor)
    with torch.no_grad():
        return found.run(loaded.model.eval(), batch).logits


# -- rows


def test_rows_that_cannot_be_used_say_why(tmp_path):
    found = task("point-cloud-classification")
    assert "shape is missing" in found.check({"path": str(tmp_path / "none.ply"), "label": "a"})
    assert found.check({"path": None, "label": "a"}) == "path is not text (NoneType)"
    few = point_file(tmp_path / "few.npy", CUBE[:4])
    assert found.check({"path": few, "label": "a"}).startswith("shape has too few points")
    good = point_file(tmp_path / "good.npy", CUBE)
    assert found.check({"path": good, "label": ""}) == "label is missing"
    assert found.check({"path": good, "label": "a"}) is None
    assert found.check({"path": off_file(tmp_path / "a.off"), "label": "a"}) is None


def test_folders_are_classes_copies_are_rejected_and_near_ones_listed(tmp_path):
    folder = shapes(tmp_path / "shapes", 30)
    points = np.load(tmp_path / "shapes/ball/0.npy")
    point_file(tmp_path / "shapes/ball/copy.npy", points[::-1])
    (tmp_path / "shapes/stick/broken.ply").write_bytes(b"ply\n")
    settings = DataSettings(train=folder, max_rejected=0.1)
    found = load(settings, task("point-cloud-classification"), tmp_path)
    reasons = sorted(entry.reason.partition(" (")[0] for entry in found.rejected)
    assert reasons == ["same input as line 1", "shape cannot be read"]
    assert found.task.labels == ("ball", "stick")
    assert (len(found.train), len(found.validation), len(found.test)) == (48, 6, 6)
    moved = load(
        DataSettings(train=folder, test=shapes(tmp_path / "moved", 30, 1), max_rejected=0.1),
        task("point-cloud-classification"),
        tmp_path,
    )
    assert not moved.near
    grown = tmp_path / "grown"
    (grown / "ball").mkdir(parents=True)
    for number in range(5):
        own = np.load(tmp_path / f"shapes/ball/{number}.npy")
        point_file(grown / f"ball/{number}.npy", own * 2 + 5)
    again = DataSettings(train=folder, test=str(grown), max_rejected=0.1, validation_fraction=0.02)
    assert len(load(again, task("point-cloud-classification"), tmp_path).near) >= 4


# -- models


def test_what_is_no_point_transformer_is_refused(tmp_path):
    tf.ViTConfig(hidden_size=16).save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="is a vit, no point-transformer"):
        fitted().load(str(tmp_path))


def test_fewer_points_than_a_group_has_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="num_points 9 is less than the 12 of one group"):
        fitted(num_points=9).load(saved(tmp_path, group_size=12))


@pytest.mark.parametrize("kind", [PointTransformerModel, PointTransformerForMasking])
def test_the_head_is_new(kind, tmp_path):
    loaded = fitted().load(saved(tmp_path, kind))
    assert loaded.new == ("classifier",)
    assert loaded.model.config.id2label == {0: "ball", 1: "stick"}


def test_a_classifier_of_its_own_keeps_its_head(tmp_path):
    assert fitted().load(saved(tmp_path, PointTransformerForClassification, num_labels=2)).new == ()


def test_place_size_order_and_kind_of_file_are_nothing_that_the_model_sees(model, tmp_path):
    found = fitted()
    loaded = found.load(model)
    points = ball(np.random.default_rng(0), 100)
    paths = [
        point_file(tmp_path / "a.npy", points),
        point_file(tmp_path / "b.npy", points[::-1]),
        point_file(tmp_path / "c.npy", points * 8 + 3),
    ]
    logits = [logits_of(found, loaded, [path])[0] for path in paths]  # a place in a batch is seen in the last digit
    assert torch.equal(logits[0], logits[1])
    assert torch.allclose(logits[0], logits[2], atol=1e-4)
    kept = fitted(unit_sphere=False)
    assert not torch.allclose(*logits_of(kept, kept.load(model), paths[::2]), atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours_however_many_points_they_have(model, tmp_path):
    found = fitted()
    loaded = found.load(model)
    chance = np.random.default_rng(0)
    paths = [point_file(tmp_path / f"{count}.npy", ball(chance, count)) for count in (8, 32, 500)]
    paths.append(off_file(tmp_path / "cube.off"))
    whole = logits_of(found, loaded, paths)
    alone = torch.cat([logits_of(found, loaded, [path]) for path in paths])
    assert torch.allclose(whole, alone, atol=1e-5)


def test_values_beside_the_place_are_read_where_the_model_reads_them(tmp_path):
    found = fitted()
    loaded = found.load(saved(tmp_path / "model", num_channels=4))
    four = point_file(tmp_path / "four.npy", np.random.default_rng(0).normal(size=(40, 4)))
    three = point_file(tmp_path / "three.npy", CUBE)
    examples = found.encode([{"path": four}, {"path": three}], loaded.processor)
    assert examples[0]["points"].shape == (32, 4)
    assert found.unusable(examples[0]) is None
    assert found.unusable(examples[1]) == f"shape has 3 values a point ({three}), the model reads 4"


def test_the_model_is_told_points_only(model, tmp_path):
    found = fitted(num_points=20)
    processor = found.load(model).processor
    rows = [{"path": point_file(tmp_path / "a.npy", CUBE), "label": "stick"}]
    batch = found.collate(found.encode(rows, processor), processor)
    assert set(inputs_of(batch)) == {"points"}
    assert batch["points"].shape == (1, 20, 3) and batch["labels"].tolist() == [1]


def test_training_shapes_are_varied_where_that_is_asked_for(model, tmp_path):
    rows = [{"path": point_file(tmp_path / "a.npy", ball(np.random.default_rng(0)))}]
    plain, varied = fitted(), fitted(augmentation={"rotation": 90})
    (example,) = plain.encode(rows, plain.load(model).processor)
    assert plain.augment(example, np.random.default_rng(0)) is example
    one, two = (varied.augment(example, np.random.default_rng(seed))["points"] for seed in (0, 1))
    assert one.dtype == np.float32 and one.shape == example["points"].shape
    assert not np.allclose(one, two, atol=0.05)


def test_the_linear_baseline_tells_balls_from_sticks(tmp_path):
    found = load(DataSettings(train=shapes(tmp_path / "s", 40)), task("point-cloud-classification"), tmp_path)
    (scores,) = found.task.baselines(found.train, found.test).values()
    assert scores["accuracy"] == 1.0


# -- trainings

PROMPT = {"type": "prompt", "num_virtual_tokens": 4}
METHODS = [
    "lora",
    "ia3",
    "adapter",
    "bitfit",
    "prefix",
    PROMPT,
    {"type": "ladder", "reduction_factor": 2},
    "linear-probe",
    "full",
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_kind_of_method_trains(method, model, tmp_path):
    run = deltatune.finetune(
        task={"type": "point-cloud-classification", "augmentation": {"rotation": 180, "axis": "any"}},
        model=model,
        data={"train": shapes(tmp_path / "shapes", 10)},
        method=method,
        training={"max_steps": 2, "per_device_train_batch_size": 4, "bf16": False},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    assert run.results["train"]["steps"] == 2
    assert run.results["baseline"]["name"] == "majority class"
    assert list(run.results["baselines"]) == ["points in 8 x 8 x 8 cells, logistic regression"]
    assert run.results["base"]["sha256_before"] == run.results["base"]["sha256_after"]


@pytest.mark.parametrize("problem", ["regression", "multi-label"])
def test_numbers_and_several_labels_are_learned_too(problem, model, tmp_path):
    chance = np.random.default_rng(0)
    rows = []
    for number in range(30):
        path = point_file(tmp_path / f"{number}.npy", ball(chance))
        rows.append({"path": path, "label": number / 7 if problem == "regression" else ["a", "b"][: number % 3]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = deltatune.finetune(
        task="point-cloud-classification",
        model=model,
        data={"train": str(tmp_path / "rows.jsonl")},
        training={"max_steps": 2, "bf16": False},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    assert ("pearson" if problem == "regression" else "micro_f1") in run.results["test"]


def test_balls_are_told_from_sticks_scored_and_predicted(model, tmp_path):
    data = shapes(tmp_path / "shapes", 100)
    run = deltatune.finetune(
        task="point-cloud-classification",
        model=model,
        data={"train": data},
        method={"type": "lora", "r": 4},
        training={
            "num_train_epochs": 10,
            "learning_rate": 3e-3,
            "per_device_train_batch_size": 8,
            "metric_for_best_model": "loss",
            "bf16": False,
        },
        output_dir=tmp_path / "run",
        quiet=True,
    )
    found = run.results
    assert found["test"]["loss"] < 0.5 * found["before"]["loss"]
    assert found["test"]["accuracy"] > found["baseline"]["accuracy"]
    scored = deltatune.evaluate(run.folder, shapes(tmp_path / "others", 30, seed=5))
    assert scored["accuracy"] > 0.75
    answers = deltatune.predict(run.folder, file=str(tmp_path / "others"))
    assert len(answers) == 60 and answers[0]["label"] in ("ball", "stick")
    (one,) = deltatune.predict(run.folder, file=off_file(tmp_path / "cube.off"))
    assert set(one["probabilities"]) == {"ball", "stick"}


def test_a_file_of_too_many_broken_shapes_stops_the_run(tmp_path):
    folder = tmp_path / "shapes" / "ball"
    shapes(tmp_path / "shapes", 10)
    for number in range(5):
        (folder / f"broken{number}.off").write_text("OFF\n")
    with pytest.raises(DataError, match="5 of 25 rows rejected .5 x shape cannot be read"):
        load(DataSettings(train=str(tmp_path / "shapes")), task("point-cloud-classification"), tmp_path)
