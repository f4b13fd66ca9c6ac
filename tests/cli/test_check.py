"""`deltatune check` says what a training would see, and trains nothing."""

import json

import pytest
import yaml
from typer.testing import CliRunner

import deltatune
from deltatune.cli.main import build
from deltatune.core.errors import DataError, SettingsError
from talk import folder
from words import csv_file, model_folder, reviews


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("place")
    folder(path / "model", "llama")
    rows = [{"question": f"What is {n} and one in all?", "answer": f"{n + 1}"} for n in range(40)]
    rows[3] = {"question": "why?"}
    rows[4] = {"question": "so " * 90, "answer": "yes"}
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "other.jsonl").write_text(json.dumps({"question": "[b] Who?", "answer": "I, " * 90}) + "\n")
    config = {
        "task": {"type": "chat", "max_length": 100, "max_new_tokens": 8},
        "model": "model",
        "data": {"train": "rows.jsonl", "validation": "other.jsonl", "test": "other.jsonl", "max_rejected": 0.1},
        "output_dir": "runs/one",
    }
    (path / "run.yaml").write_text(yaml.safe_dump(config))
    return path


def call(place, monkeypatch, *words):
    """What the command prints, and what it raises."""
    monkeypatch.chdir(place)
    found = CliRunner().invoke(build(), ["check", "run.yaml", *words])
    if found.exception is not None:
        raise found.exception
    return found.stdout, found.stderr


def test_it_counts_rows_and_shows_what_the_loss_counts(place, monkeypatch):
    found = json.loads(call(place, monkeypatch, "--show-mask", "2", "--json")[0])
    assert found["rows"] == {"train": 38, "validation": 1, "test": 1}
    assert found["truncated"] == {"train": 0, "validation": 1, "test": 1}
    assert [(row["line"], row["reason"].partition(" (")[0]) for row in found["rejected"]] == [
        (4, "question has no answer"),
        (5, "nothing is left to learn"),
    ]
    assert found["accounts"]["files"]["train"] == {
        "file": "rows.jsonl",
        "read": 40,
        "rejected": 1,
        "unused": 0,
        "used": 39,
    }
    assert found["accounts"]["parts"]["train"] == {"made": 39, "not_drawn": 0, "rejected": 1, "kept": 38}
    assert [(note["what"], note["part"], note["line"]) for note in found["noted"]] == [
        ("truncated", "validation", 1),
        ("truncated", "test", 1),
    ]
    assert [row["line"] for row in found["shown"]] == [1, 2]
    assert found["shown"][0]["pieces"] == [
        {"text": "<|im_start|>user\nWhat is 0 and one in all?<|im_end|>\n<|im_start|>assistant\n", "learned": False},
        {"text": "1<|im_end|>", "learned": True},
        {"text": "\n", "learned": False},
    ]
    assert not (place / "runs").exists()


def test_it_prints_tables_and_takes_settings_as_train_does(place, monkeypatch):
    out, err = call(place, monkeypatch, "--show-mask", "1", "--task.train_on", "everything")
    assert "rows.jsonl:1\n" in out and "counts" in out
    assert "rows.jsonl:4: question has no answer" in err


def test_what_would_stop_a_training_stops_it(place, monkeypatch):
    with pytest.raises(DataError, match="rows rejected"):
        call(place, monkeypatch, "--data.max_rejected", "0")
    with pytest.raises(SettingsError, match="lara"):
        call(place, monkeypatch, "--method.type", "lara")


def test_a_task_without_a_mask_says_so(tmp_path, monkeypatch):
    model_folder(tmp_path / "model")
    csv_file(tmp_path / "reviews.csv", reviews(60))
    config = {"task": "text-classification", "model": "model", "data": {"train": "reviews.csv"}, "output_dir": "run"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert "truncated" in call(tmp_path, monkeypatch)[0]
    with pytest.raises(SettingsError, match="text-classification reads no text of which the loss counts a part"):
        call(tmp_path, monkeypatch, "--show-mask", "1")


def test_it_is_part_of_the_public_api(place, monkeypatch):
    monkeypatch.chdir(place)
    assert deltatune.check_config("run.yaml")["shown"] == []
