"""Sinks: what they are told, when they are opened and closed, and that none of them ends a training."""

import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

import deltatune
from deltatune.core.config import TrainingSettings
from deltatune.core.errors import SettingsError
from deltatune.many import check as check_many
from deltatune.train import sinks
from deltatune.train.loop import train
from train.toy import job, lines

NAMES = ["tensorboard", "trackio", "mlflow", "wandb"]


class Told:
    """What a package of a sink was called with, in order."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *given, **named: self.calls.append((name, given, named))

    def named(self, name):
        return [(given, named) for called, given, named in self.calls if called == name]


def package(monkeypatch, name, **members):
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def told(monkeypatch):
    """Stand-ins for all four packages."""
    found = {name: Told() for name in NAMES}

    def opened(name):
        return lambda *given, **named: found[name].calls.append(("init", given, named)) or found[name]

    for name in ("trackio", "wandb"):
        package(monkeypatch, name, init=opened(name), config=found[name])
    limits = SimpleNamespace(MAX_PARAM_VAL_LENGTH=500, MAX_PARAMS_TAGS_PER_BATCH=100)
    own = found["mlflow"]
    mlflow = {name: getattr(own, name) for name in ("log_metrics", "log_params", "end_run", "create_experiment")}
    package(
        monkeypatch, "mlflow", **mlflow, search_experiments=lambda **_: [], start_run=opened("mlflow"),
        utils=SimpleNamespace(validation=limits),
    )  # fmt: skip
    package(monkeypatch, "tensorboard")
    package(monkeypatch, "torch.utils.tensorboard", SummaryWriter=opened("tensorboard"))
    monkeypatch.setattr("torch.utils.tensorboard", sys.modules["torch.utils.tensorboard"], raising=False)
    return found


def trained(folder, *names, **settings):
    train(job(folder, max_steps=6, eval_steps=3, report_to=list(names), **settings))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_sink_gets_the_numbers_of_every_line(tmp_path, told, name):
    log = trained(tmp_path / "run", name)
    ((given, named),) = told[name].named("init")
    assert (given, named) == ((), {"project": "deltatune", "name": "run"})
    ((given, _),) = told[name].named("update")
    assert (
        given[0]["training.report_to"] == f"['{name}']" and given[0]["method.r"] == 2 and given[0]["task.type"] == "toy"
    )
    logged = told[name].named("log")
    assert [named["step"] for _, named in logged] == [line["step"] for line in log] == [3, 3, 6, 6]
    values = logged[0][0][0]
    assert values["train/loss"] == log[0]["loss"] and values["train/learning_rate"] == log[0]["learning_rate"]
    assert logged[1][0][0] == {f"validation/{key}": value for key, value in log[1]["validation"].items()}
    assert told[name].calls[-1][0] == "finish"


def test_mlflow_gets_metrics_and_parameters(tmp_path, told):
    trained(tmp_path / "run", "mlflow")
    assert told["mlflow"].named("init")[0][1]["run_name"] == "run"
    assert [named["step"] for _, named in told["mlflow"].named("log_metrics")] == [3, 3, 6, 6]
    assert told["mlflow"].named("log_params")[0][0][0]["method.type"] == "lora"
    assert told["mlflow"].calls[-1][0] == "end_run"


def test_tensorboard_writes_into_the_run_folder(tmp_path, told):
    trained(tmp_path / "run", "tensorboard")
    ((given, _),) = told["tensorboard"].named("init")
    assert str(given[0]) == str(tmp_path / "run" / "tensorboard")
    assert ("train/loss" in [given[0] for given, _ in told["tensorboard"].named("add_scalar")]) and (
        told["tensorboard"].calls[-1][0] == "close"
    )


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_itself_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = trained(tmp_path / "run", "tensorboard")
    found = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    points = [(event.step, event.value) for event in found.Scalars("train/loss")]
    assert points == [(line["step"], pytest.approx(line["loss"])) for line in log if "loss" in line]


def test_several_at_once_and_the_training_is_what_it_is_without(tmp_path, told):
    trained(tmp_path / "with", *NAMES)
    trained(tmp_path / "without")
    assert lines(tmp_path / "with") == lines(tmp_path / "without")
    assert all(told[name].calls for name in NAMES)


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_sink_that_fails_is_left_out_and_said(tmp_path, told, monkeypatch, caplog, broken):
    def fails(*_, **__):
        raise ConnectionError("nobody there")

    if broken == "init":
        monkeypatch.setattr(sys.modules["wandb"], "init", fails)
    else:
        monkeypatch.setattr(told["wandb"], broken, fails, raising=False)
    log = trained(tmp_path / "run", "wandb", "trackio")
    assert caplog.text.count("report_to: wandb is left out from here: ConnectionError: nobody there") == 1
    assert len(log) == 4 and len(told["trackio"].named("log")) == 4


def test_they_are_closed_when_a_training_ends_early(tmp_path, told):
    def evaluate(_):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        trained(tmp_path / "run", "trackio", evaluate=evaluate)
    assert told["trackio"].calls[-1][0] == "finish"


def test_a_package_that_is_missing_is_named_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "find_spec", lambda name: None if name in ("wandb", "mlflow") else name)
    with pytest.raises(SettingsError, match="mlflow, wandb is not installed; pip install mlflow wandb"):
        deltatune.finetune(
            task="text-classification", model="nowhere", data={"train": "nowhere.csv"},
            training={"report_to": ["tensorboard", "mlflow", "wandb"]}, output_dir=tmp_path / "run",
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "wanted"), [("none", []), ("wandb", ["wandb"]), ([], []), (["trackio", "wandb"], ["trackio", "wandb"])]
)
def test_names_as_in_transformers(given, wanted):
    assert TrainingSettings.parse({"report_to": given}, "training").report_to == wanted


def test_other_names_are_refused():
    with pytest.raises(SettingsError, match="report_to"):
        TrainingSettings.parse({"report_to": "carrier-pigeon"}, "training")


def test_nothing_is_opened_unasked(tmp_path, told):
    trained(tmp_path / "run")
    assert not any(own.calls for own in told.values())


def test_runs_that_share_passes_are_refused_where_a_sink_keeps_one_run(told):
    settings = TrainingSettings.parse({"report_to": "wandb"}, "training")
    plan = SimpleNamespace(name="a", settings=SimpleNamespace(training=settings))
    with pytest.raises(SettingsError, match="runs.a.training.report_to"):
        check_many([plan], 2)
    check_many([plan], 1)
