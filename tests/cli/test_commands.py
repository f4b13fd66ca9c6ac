"""The commands as a user types them: results, JSON, and one-screen errors with their exit codes."""

import io
import json
import logging
import os
import shlex
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import yaml

from deltatune.cli.main import main
from deltatune.core.registry import tasks
from deltatune.train import loop
from words import work_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = work_place(tmp_path_factory.mktemp("place"))
    config = {
        "task": "text-classification",
        "model": "model",
        "data": {"train": "reviews.csv"},
        "method": {"type": "lora", "r": 4},
        "training": {"num_train_epochs": 1, "bf16": False},
        "output_dir": "runs/one",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    return folder


def call(place, *words):
    """Exit code, stdout and stderr of a command, in this process: importing torch anew takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    before, arguments, logger = Path.cwd(), sys.argv, logging.getLogger("deltatune")
    spoken = logger.handlers, logger.propagate
    os.chdir(place)
    sys.argv = ["deltatune", *words]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    finally:
        os.chdir(before)
        sys.argv = arguments
        logger.handlers, logger.propagate = spoken
    return code, out.getvalue(), err.getvalue()


def test_a_stopped_training_prints_the_command_that_goes_on_and_it_does(place, monkeypatch):
    words = ["train", "run.yaml", "--output_dir", "runs/stopped", "--training.num_train_epochs=2"]
    accumulate = loop.accumulate

    def struck(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(*args)

    monkeypatch.setattr(loop, "accumulate", struck)
    code, _, err = call(place, *words)
    monkeypatch.undo()
    assert code == 143
    shown = err.strip().splitlines()[-1].partition("go on with ")[2]
    assert shown == shlex.join(["deltatune", *words, "--resume"])
    code, out, err = call(place, *shlex.split(shown)[1:])
    assert code == 0 and "going on from runs/stopped/checkpoint-1" in err and "6 steps" in out


@pytest.fixture(scope="module")
def run(place):
    code, out, err = call(place, "train", "run.yaml", "--training.learning_rate", "1e-3", "--method.r=8")
    assert code == 0, err
    assert "test accuracy (95 % interval)" in out and "report: runs/one/report.html" in out
    assert "step " in err
    return place / "runs" / "one"


def test_training_takes_settings_from_the_command_line(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["method"]["r"], config["training"]["learning_rate"]) == (8, 1e-3)


def test_evaluate_prints_clean_json(place, run):
    code, out, _ = call(place, "evaluate", "runs/one", "--data", "reviews.csv", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 120


def test_predict_answers_texts_and_files(place, run):
    code, out, _ = call(place, "predict", "runs/one", "--text", "a superb film", "--json")
    assert code == 0
    assert json.loads(out)["label"] in ("good", "bad")
    code, _, err = call(place, "predict", "runs/one/adapter", "--input", "reviews.csv", "--output", "answers.jsonl")
    assert code == 0
    assert "120 answers" in err
    assert len((place / "answers.jsonl").read_text().splitlines()) == 120


def test_answers_that_are_no_places_in_images_are_not_drawn(place, run):
    code, _, err = call(place, "predict", "runs/one", "--text", "a superb film", "--draw", "pictures")
    assert code == 2
    assert "answers of text-classification are not drawn" in err and "leave --draw out" in err
    assert not (place / "pictures").exists()


def test_a_second_run_into_the_same_folder_is_refused(place, run):
    before = (run / "results.json").read_bytes()
    code, _, err = call(place, "train", "run.yaml")
    assert code == 2
    assert "another output_dir" in err
    assert (run / "results.json").read_bytes() == before


ERRORS = [
    (["train", "run.yaml", "--training.learning_rte", "1"], ["training.learning_rte: unknown key", "learning_rate"]),
    (["train", "run.yaml", "--method.type", "lroa"], ["method lroa is unknown", "lora"]),
    (["train", "run.yaml", "--method.target_modules", "qery"], ["'qery' matches nothing", "query"]),
    (["train", "run.yaml", "--method.r", "4000"], ["rank r=4000 is not allowed for LoRA (1..32", "try r=8"]),
    (["train", "run.yaml", "--data.columns.label", "sentiment"], ["no column 'sentiment'", "label"]),
    (["train", "run.yaml", "--data.train", "revews.csv"], ["revews.csv: no such file", "reviews.csv"]),
    (["train", "rn.yaml"], ["rn.yaml: no such file", "run.yaml"]),
    (["train", "run.yaml", "--model", "./modl"], ["model folder ./modl does not exist", "model"]),
    (["train", "run.yaml", "--task.max_length", "abc"], ["task.max_length", "valid integer"]),
    (["train", "run.yaml", "stray"], ["unexpected argument 'stray'"]),
    (["train", "run.yaml", "--resume"], ["nothing to resume", "--resume"]),
    (["train", "run.yaml", "--training.metric_for_best_model", "acuracy"], ["'acuracy' is not measured", "accuracy"]),
    (["predict", "nowhere", "--text", "x"], ["nowhere: no such adapter folder"]),
    (["predict", "model"], ["give either --text or --input"]),
    (["predict", "model", "--text", "x", "--output", "no/a.jsonl"], ["folder no does not exist", "make it first"]),
    (["predict", "model", "--text", "x", "--output", "model"], ["model is a folder", "model/answers.jsonl"]),
    (["evaluate", "model", "--data", "reviews.csv"], ["model is not an adapter folder"]),
    (["inspect", "./nothing"], ["./nothing"]),
]


@pytest.mark.parametrize(("words", "expected"), ERRORS, ids=[" ".join(w)[:50] for w, _ in ERRORS])
def test_a_mistake_is_one_screen_with_the_fix_and_exit_code_2(place, words, expected):
    extra = ["--output_dir", "runs/never"] if words[0] == "train" else []
    code, out, err = call(place, *words, *extra)
    assert code == 2, err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 20
    for part in expected:
        assert part in err
    assert out == ""
    assert not (place / "runs" / "never" / "results.json").exists()


def test_lists_are_made_from_the_registry(place):
    code, out, _ = call(place, "methods", "--json")
    listed = {entry["type"]: entry for entry in json.loads(out)}
    assert code == 0
    assert {"lora", "dora", "bitfit", "full", "linear-probe"} <= listed.keys()
    assert {"name": "r", "default": 8, "help": "Rank."} in listed["lora"]["settings"]
    assert listed["full"]["capabilities"]["rows"] is False
    code, out, _ = call(place, "tasks", "--json")
    assert [entry["type"] for entry in json.loads(out)] == list(tasks())


def test_inspect_shows_roles_and_counts(place):
    code, out, _ = call(place, "inspect", "./model")
    assert code == 0
    assert "attention.query" in out
    code, out, _ = call(place, "inspect", "./model", "--json")
    assert json.loads(out)["parameters"] > 10_000


def test_the_version_is_shown(place):
    assert call(place, "--version")[:2] == (0, "0.1.0\n")
