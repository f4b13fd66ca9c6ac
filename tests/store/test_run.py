"""The run folder belongs to one run."""

import json

import pytest
import yaml

from deltatune.core.config import TrainingSettings
from deltatune.core.errors import SettingsError
from deltatune.store import atomic
from deltatune.store.run import CHANGEABLE, RunFolder

SETTINGS = {
    "task": {"type": "toy"},
    "training": {"learning_rate": 1e-05, "seed": 1, "labels": ["a", "b"]},
    "data": {"columns": {}, "train": "a.csv"},
    "output_dir": "one",
}


@pytest.fixture
def folder(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.check(SETTINGS, resume=False)
    run.open(SETTINGS, resume=False)
    return run


def changed(**training):
    return {**SETTINGS, "training": {**SETTINGS["training"], **training}}


def test_a_new_run_writes_its_settings_and_its_environment(folder):
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == SETTINGS
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["packages"]["torch"] and environment["threads"] >= 1 and environment["device"]


@pytest.mark.parametrize(
    ("finished", "message"),
    [
        (False, "holds an unfinished run; go on with --resume, or choose another output_dir"),
        (True, "holds a finished run; choose another output_dir"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_untouched(folder, finished, message):
    if finished:
        folder.write_results({"test": {}})
    before = {path: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(SettingsError, match=message):
        RunFolder(folder.path).check(changed(seed=2), resume=False)
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_of_two_runs_that_begin_at_once_the_second_is_refused(tmp_path):
    for settings in (SETTINGS, changed(seed=2)):
        RunFolder(tmp_path).check(settings, resume=False)
    RunFolder(tmp_path).open(SETTINGS, resume=False)
    with pytest.raises(SettingsError, match="holds an unfinished run"):
        RunFolder(tmp_path).open(changed(seed=2), resume=False)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == SETTINGS
    RunFolder(tmp_path).open(SETTINGS, resume=False)  # the other processes of the same run


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SettingsError, match="is not empty; choose another output_dir"):
        RunFolder(tmp_path).check(SETTINGS, resume=False)
    with pytest.raises(SettingsError, match=r"thesis.tex is a file; choose another one"):
        RunFolder(tmp_path / "thesis.tex").check(SETTINGS, resume=False)


def test_a_run_killed_before_its_first_file_can_start_again(tmp_path):
    (tmp_path / ".staging-config.yaml-1.2-aa").touch()
    run = RunFolder(tmp_path)
    run.check(SETTINGS, resume=False)
    run.open(SETTINGS, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "environment.json"]


def test_a_resume_needs_a_run(tmp_path):
    with pytest.raises(SettingsError, match="nothing to resume in .*; start without --resume"):
        RunFolder(tmp_path).check(SETTINGS, resume=True)
    assert not list(tmp_path.iterdir())


def test_a_resume_with_changed_settings_names_them(folder):
    with pytest.raises(SettingsError, match=r"training.labels \['a', 'b'\] -> \['a'\], training.seed 1 -> 7"):
        folder.check(changed(seed=7, labels=["a"]), resume=True)
    with pytest.raises(SettingsError, match=r"data.columns.text None -> 'review'"):
        folder.check({**SETTINGS, "data": {"columns": {"text": "review"}, "train": "a.csv"}}, resume=True)


def test_a_resume_with_the_same_settings_is_welcome_wherever_the_folder_is_now(folder):
    folder.check({**SETTINGS, "output_dir": "moved"}, resume=True)
    folder.open({**SETTINGS, "output_dir": "moved"}, resume=True)
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == SETTINGS


def test_a_change_that_is_named_is_accepted_and_noted(folder):
    named, now = ["training.learning_rate"], changed(learning_rate=1e-3)
    with pytest.raises(SettingsError, match="accept them with --allow-change training.learning_rate"):
        folder.check(now, resume=True)
    folder.check(now, resume=True, allowed=named)
    folder.open(now, resume=True)
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == now
    (line,) = (folder.path / "changes.jsonl").read_text().splitlines()
    assert json.loads(line) == {"setting": "training.learning_rate", "before": 1e-05, "now": 1e-3, "step": 0}
    folder.check(now, resume=True)
    with pytest.raises(SettingsError, match="seed 1 -> 7; put them back, or start a new run"):
        folder.check(changed(learning_rate=1e-2, seed=7), resume=True, allowed=named)


def test_what_rows_or_weights_depend_on_cannot_be_allowed_to_change(folder):
    with pytest.raises(SettingsError, match="training.seed cannot change in a run"):
        folder.check(changed(seed=7), resume=True, allowed=["training.seed"])
    with pytest.raises(SettingsError, match="may change only when a run is resumed; add --resume"):
        RunFolder(folder.path / "new").check(SETTINGS, resume=False, allowed=["training.max_steps"])


def test_every_setting_that_may_change_exists():
    assert {key.removeprefix("training.") for key in CHANGEABLE} <= TrainingSettings.model_fields.keys()


def test_the_log_is_cut_back_to_a_step(folder):
    for step in (1, 2, 3):
        folder.log({"step": step})
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')
    folder.forget_after(2)
    assert folder.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    folder.log({"step": 3})
    assert folder.metrics.read_text().endswith('{"step": 2}\n{"step": 3}\n')


def test_only_one_training_at_a_time(folder):
    with folder.locked():
        with pytest.raises(SettingsError, match="another training is running in"), RunFolder(folder.path).locked():
            pass
    with RunFolder(folder.path).locked():
        pass


def test_rejected_rows_are_written_as_they_are(folder):
    folder.write_rejected([{"line": 3, "reason": "empty text", "row": {"text": "", "größe": 1}}])
    (line,) = (folder.path / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["row"] == {"text": "", "größe": 1} and "größe" in line


def test_damaged_checkpoints_behind_the_newest_whole_one_go(folder):
    """They would push whole ones out when old checkpoints are pruned."""
    for step in (1, 2, 3):
        with atomic.folder(folder.checkpoint(step)) as staging:
            (staging / "state.json").write_text("{}")
    (folder.checkpoint(3) / "state.json").write_text("[]")
    assert folder.newest_checkpoint() == folder.checkpoint(2)
    assert not folder.checkpoint(3).exists() and folder.checkpoint(1).exists()


def test_a_change_is_noted_with_the_newest_checkpoint_that_stood(folder):
    for step in (4, 8, 12):
        with atomic.folder(folder.checkpoint(step)) as staging:
            (staging / "state.json").write_text("{}")
    folder.open(changed(learning_rate=1e-3), resume=True)
    (line,) = (folder.path / "changes.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 12


def test_a_run_folder_may_be_deep(tmp_path):
    RunFolder(tmp_path / "a" / "b" / "c").open(SETTINGS, resume=False)
    assert (tmp_path / "a" / "b" / "c" / "config.yaml").is_file()


def test_lines_come_back_whatever_stands_in_their_texts(folder):
    """Line separators of Unicode are no ends of lines in JSON, and JSON leaves them as they are."""
    texts = [{"answer": f"one{mark}two"} for mark in ("\u2028", "\u2029", "\x85", "\n", "\r", "\x0b", "\x1e")]
    folder.write_answers(texts)
    folder.write_rejected(texts)
    assert folder.read_answers() == texts and folder.read_rejected() == texts
