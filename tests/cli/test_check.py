"""`deltatune check` says what a training would see, and trains nothing."""

import json

import pytest
import yaml
from typer.testing import CliRunner

import deltatune
from deltatune.cli.main import build
from deltatune.core.errors import DataError, GateError, SettingsError
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
    found = CliRunner().invoke(build(), ["check", "run.yaml", "--data-only", *words])
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


# -- the rehearsal


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small")
    model_folder(path / "model", spread=0.2)
    csv_file(path / "reviews.csv", reviews(200))
    config = {"task": "text-classification", "model": "model", "data": {"train": "reviews.csv"}, "output_dir": "run"}
    (path / "run.yaml").write_text(yaml.safe_dump({**config, "method": {"type": "lora", "r": 4}}))
    return path


def rehearsed(place, monkeypatch, *words):
    """Exit of the command and what it prints."""
    monkeypatch.chdir(place)
    return CliRunner().invoke(build(), ["check", "run.yaml", "--budget", "5", *words])


def test_a_rehearsal_prints_its_lines_draws_the_rates_and_leaves_the_run_folder_alone(small, monkeypatch):
    found = rehearsed(small, monkeypatch)
    assert found.exit_code == 0
    assert "kill and resume" in found.stdout and "equal to the bit" in found.stdout and " pass" in found.stdout
    assert (small / "run.rates.png").read_bytes().startswith(b"\x89PNG") and not (small / "run").exists()


def test_a_line_that_fails_ends_it_with_exit_code_3_unless_it_is_accepted(small, monkeypatch):
    rate = ("--training.learning_rate", "1e-9", "--plot", str(small / "low.png"))
    found = rehearsed(small, monkeypatch, "--json", *rate)
    assert isinstance(found.exception, GateError) and found.exception.exit_code == 3
    report = json.loads(found.stdout)
    assert not report["passed"] and report["task"] == "text-classification" and report["seconds"] > 0
    line = next(line for line in report["lines"] if line["status"] == "fail")
    assert (
        line["name"] == "learning rate" and "learning_rate" in line["fix"] and line["details"]["learning_rate"] == 1e-9
    )
    found = rehearsed(small, monkeypatch, "--accept", "learning rate", *rate)
    assert found.exit_code == 0 and "warn" in found.stdout


def test_a_line_that_does_not_exist_cannot_be_accepted(small, monkeypatch):
    found = rehearsed(small, monkeypatch, "--accept", "learning rat")
    assert isinstance(found.exception, SettingsError) and "learning rate" in str(found.exception)
