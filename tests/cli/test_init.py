"""`deltatune init` reads a file, asks five questions and writes a config that a rehearsal passes."""

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deltatune.cli.main import build
from deltatune.core.errors import SettingsError
from rehearsal.planted import cells, run, texts, wrong
from tasks.test_token_classification import folder, lines
from tasks.test_token_classification import rows as sentences
from words import csv_file, reviews


def init(*words, said=""):
    """What the command prints; raises what it raises."""
    found = CliRunner().invoke(build(), ["init", *map(str, words)], input=said)
    if found.exception is not None:
        raise found.exception
    return found.stdout


@pytest.mark.parametrize(("make", "task", "columns"), [(texts, "text", {}), (cells, "tabular", {"label": "is"})])
def test_what_it_writes_passes_a_rehearsal(tmp_path, monkeypatch, make, task, columns):
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    said = init("new.yaml", said="rows.csv\n1\nmodel\nquality\nruns/one\n")
    assert "new.yaml is written" in said and "next: deltatune check new.yaml" in said
    values = yaml.safe_load(Path("new.yaml").read_text())
    assert values["task"] == f"{task}-classification" and values["data"].get("columns", {}) == columns
    Path("new.yaml").replace("run.yaml")
    assert wrong(run(tmp_path, training__bf16=False)) == []


def test_tagged_sentences(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "model", "bert")
    lines(tmp_path / "rows.jsonl", sentences(200))
    init("run.yaml", said="rows.jsonl\n\nmodel\n\n\n")
    values = yaml.safe_load(Path("run.yaml").read_text())
    assert values["task"] == "token-classification" and values["output_dir"] == "runs/rows"
    assert wrong(run(tmp_path, training__bf16=False)) == []


def test_answers_can_be_options_and_a_hub_name_is_written_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv_file(
        tmp_path / "my rows.csv", [{"body": f"{row['text']} so it is", "kind": row["label"]} for row in reviews(200)]
    )
    options = ["--data", "my rows.csv", "--task", "text-classification", "--goal", "size", "--output-dir", "runs/a: b"]
    said = init(*options, "--model", "owner/encoder")
    assert "owner/encoder is no folder here" in said
    values = yaml.safe_load(Path("deltatune.yaml").read_text())
    assert values["data"] == {"train": "my rows.csv", "columns": {"text": "body", "label": "kind"}}
    assert (
        values["model"] == "owner/encoder" and values["output_dir"] == "runs/a: b" and values["method"]["type"] == "ia3"
    )


def test_it_refuses_to_overwrite_and_says_which_answer_is_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    csv_file(tmp_path / "rows.csv", reviews(60))
    Path("deltatune.yaml").write_text("mine")
    with pytest.raises(SettingsError, match="deltatune.yaml is there already"):
        init(said="rows.csv\n")
    assert Path("deltatune.yaml").read_text() == "mine"
    with pytest.raises(SettingsError, match="no answer to '3. Which"):
        init("other.yaml", said="rows.csv\n1")
    with pytest.raises(SettingsError, match="goal 'fame' is unknown"):
        init("other.yaml", "--goal", "fame", said="rows.csv\n1\nmodel\nruns/x\n")
    with pytest.raises(SettingsError, match="does not fit these columns"):
        init("other.yaml", said="rows.csv\nforecasting\n")
    assert not Path("other.yaml").exists()
