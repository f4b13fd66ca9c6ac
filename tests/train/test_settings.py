"""Distillation and many tasks the whole way: from settings to answers, on a tiny model."""

import json
import os
import signal

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

import deltatune
from cli.test_commands import call
from deltatune.core.errors import DataError
from deltatune.store import adapter as folders
from deltatune.store import state
from deltatune.tasks.text_classification import TextClassification
from deltatune.train.loop import Stopped
from words import csv_file, model_folder, reviews

TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 16, "learning_rate": 1e-2, "bf16": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    model_folder(folder / "model")
    model_folder(folder / "plain")
    names = {0: "bad", 1: "good"}
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(folder / "plain", num_labels=2, id2label=names).save_pretrained(
        folder / "model"
    )
    rows = reviews(160)
    csv_file(folder / "reviews.csv", rows)
    moods = ["wry" if i % 4 == 0 else "fair" for i in range(len(rows))]
    labels = ["good" if (mood == "fair") != (i % 10 == 9) else "bad" for i, mood in enumerate(moods)]
    told = [{**row, "label": label, "mood": mood} for row, label, mood in zip(rows, labels, moods, strict=True)]
    csv_file(folder / "many.csv", told)
    config = {
        "task": "text-classification",
        "model": "model",
        "data": {"train": "reviews.csv"},
        "method": {"type": "lora", "r": 4},
        "training": TRAINING,
        "output_dir": "runs/one",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_command_line_distils_from_the_base_and_from_a_run(place):
    code, _, err = call(place, "train", "run.yaml", "--training.distillation.teacher=base", "--training.max_steps=4")
    assert code == 0, err
    config = yaml.safe_load((place / "runs" / "one" / "config.yaml").read_text())
    assert config["training"]["distillation"] == {"teacher": "base", "temperature": 2.0, "alpha": 0.5, "hidden": 0.0}
    words = ["--training.distillation.teacher", "runs/one", "--training.distillation.hidden", "0.5", "--method.r", "1"]
    code, _, err = call(place, "train", "run.yaml", *words, "--output_dir", "runs/two")
    assert code == 0, err
    results = json.loads((place / "runs" / "two" / "results.json").read_text())
    assert results["base"]["sha256_before"] == results["base"]["sha256_after"]
    code, out, _ = call(place, "evaluate", "runs/two", "--data", "reviews.csv", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 160)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.distillation.teacher=base", "--model", "plain"], "is new and untrained"),
        (["--training.distillation.teacher=runs/nothing"], "is no adapter and no model"),
        (["--training.distillation.teacher=base", "--training.distillation.temprature=3"], "did you mean temperature?"),
        (["--training.distillation.teacher=base", "--training.distillation.alpha=2"], "training.distillation.alpha"),
        (["--training.loraplus_lr_ratio=16", "--method", "bitfit"], "loraplus_lr_ratio=16 has no effect"),
        (["--training.metric_for_best_model=acuracy"], "did you mean accuracy"),
        (["--training.sampling_temperature=10"], "has no effect without data.task_column"),
        (["--data.task_column=moood", "--data.train=many.csv"], "did you mean mood?"),
    ],
)
def test_a_mistake_is_one_screen_with_the_fix(place, words, message):
    folder = f"runs/{'-'.join(words)[:20]}"
    code, out, err = call(place, "train", "run.yaml", "--output_dir", folder, *words)
    assert (code, out) == (2, ""), err
    assert message in err and "Traceback" not in err
    assert not (place / folder).exists()


def many(place, out, resume=False, method=None, **training):
    return deltatune.finetune(
        task="text-classification",
        model=str(place / "model"),
        data={"train": str(place / "many.csv"), "task_column": "mood"},
        method=method or {"type": "conditional-adapter", "reduction_factor": 2},
        training={**TRAINING, "sampling_temperature": 10, **training},
        output_dir=out,
        quiet=True,
        resume=resume,
    )


def test_a_conditional_adapter_learns_what_only_the_task_tells(place, tmp_path):
    run = many(place, tmp_path / "run", num_train_epochs=8)
    assert folders.read(run.adapter).facts["task"]["many"] == {"column": "mood", "names": ["fair", "wry"]}
    assert folders.read(run.adapter).method.tasks == 2
    found = deltatune.evaluate(run.folder, str(place / "many.csv"))
    assert {name: part["rows"] for name, part in found["tasks"].items()} == {"fair": 120, "wry": 40}
    assert found["tasks"]["fair"]["accuracy"] > 0.8 and found["tasks"]["wry"]["accuracy"] > 0.8
    text = "the film was very dull"
    fair, wry, none = deltatune.predict(
        run.folder, rows=[{"text": text, "mood": mood} for mood in ("fair", "wry", "grim")]
    )
    assert (fair["label"], wry["label"]) == ("good", "bad")
    assert none["error"].endswith("task is unknown ('grim')")
    with pytest.raises(DataError, match="no column 'mood' that names the task"):
        deltatune.predict(run.folder, texts=[text])


def test_a_table_that_is_too_small_for_the_tasks_is_refused(place, tmp_path):
    method = {"type": "conditional-adapter", "tasks": 1}
    with pytest.raises(deltatune.DeltatuneError, match="method.tasks=1 is too few for the 2 tasks of the rows"):
        many(place, tmp_path / "run", method=method)


def test_many_tasks_resume_to_the_bit(place, tmp_path, monkeypatch):

    settings = {"max_steps": 9, "eval_steps": 3, "early_stopping_patience": None}
    straight = many(place, tmp_path / "straight", **settings)
    seen = []
    loss = TextClassification.loss

    def interrupted(self, output, batch):
        if torch.is_grad_enabled():
            seen.append(1)
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGINT)
        return loss(self, output, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TextClassification, "loss", interrupted)
        with pytest.raises(Stopped):
            many(place, tmp_path / "resumed", **settings)
    resumed = many(place, tmp_path / "resumed", resume=True, **settings)
    one, two = (state.load(run.folder / "checkpoint-9") for run in (straight, resumed))
    assert all(torch.equal(tensor, two["adapter"][name]) for name, tensor in one["adapter"].items())
    assert one["rows"] == two["rows"]
    assert straight.results["test"] == resumed.results["test"]
