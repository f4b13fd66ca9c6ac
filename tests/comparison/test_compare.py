"""Comparisons on a tiny model: what is trained, chosen, left out and said, and that a kill loses nothing."""

import json
import shutil
import signal
import statistics
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import deltatune
from deltatune.cli.main import build
from deltatune.comparison import rates
from deltatune.core.errors import SettingsError
from words import csv_file, model_folder, reviews

TRAINING = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "bf16": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    model_folder(folder / "model", spread=0.2)
    csv_file(folder / "reviews.csv", reviews(100))
    (folder / "run.yaml").write_text(
        json.dumps(
            {
                "task": "text-classification",
                "model": str(folder / "model"),
                "data": {"train": str(folder / "reviews.csv")},
                "method": {"type": "lora", "r": 2},
                "training": TRAINING,
                "output_dir": str(folder / "run"),
            }
        )
    )
    return folder


def compared(place, out, **how):
    given = {"methods": ["ia3"], "seeds": 2, "tune": "none", "quiet": True, **how}
    return deltatune.compare_config(place / "run.yaml", output_dir=out, **given)


@pytest.fixture(scope="module")
def plain(place, tmp_path_factory):
    return compared(place, tmp_path_factory.mktemp("plain") / "comparison")


def test_the_config_s_own_method_and_the_baselines_are_always_there(plain):
    methods = plain.results["methods"]
    assert list(methods) == ["ia3", "lora", "linear-probe", "full"]
    assert methods["lora"]["settings"]["r"] == 2
    assert {"majority class", "words, logistic regression"} <= plain.results["baselines"].keys()
    assert plain.results == json.loads((plain.folder / "results.json").read_text())


def test_every_run_is_what_finetune_alone_trains(place, plain, tmp_path):
    alone = deltatune.finetune(
        task="text-classification",
        model=str(place / "model"),
        data={"train": str(place / "reviews.csv")},
        method=deltatune.LoRA(r=2),
        training={**TRAINING, "seed": 43},
        output_dir=tmp_path / "alone",
        quiet=True,
    )
    there = load_file(plain.folder / "runs" / "lora-seed43" / "adapter" / "adapter_model.safetensors")
    here = load_file(alone.adapter / "adapter_model.safetensors")
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], tensor) for name, tensor in here.items())
    assert plain.results["methods"]["lora"]["test"][1] == alone.results["test"]["accuracy"]


def test_the_validation_rows_choose_and_the_test_rows_judge(plain):
    methods, chosen = plain.results["methods"], plain.results["chosen"]
    means = {name: statistics.mean(one["validation"]) for name, one in methods.items()}
    assert means[chosen] == max(means.values())
    assert set(plain.results["against"]) == set(methods) - {chosen}
    for name, one in plain.results["against"].items():
        assert one["difference"] == pytest.approx(methods[chosen]["mean"] - methods[name]["mean"])
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]
        assert (one["verdict"] == "no difference shown") == (one["p_corrected"] >= 0.05)
    best = max(range(2), key=lambda index: methods[chosen]["validation"][index])
    assert plain.results["best_run"].endswith(f"{chosen}-seed{methods[chosen]['seeds'][best]}")
    assert chosen in plain.results["verdict"]


def test_fronts_name_what_nothing_beats(plain):
    methods = plain.results["methods"]
    for cost, names in plain.results["fronts"].items():
        for name, one in methods.items():
            beaten = any(
                other[cost] <= one[cost]
                and other["mean"] >= one["mean"]
                and (other[cost], other["mean"]) != (one[cost], one["mean"])
                for other in methods.values()
            )
            assert (name not in names) == beaten


def test_what_a_training_spent_stands_beside_what_counted_it(plain):
    for name, one in plain.results["methods"].items():
        runs = [
            json.loads((plain.folder / "runs" / f"{name}-seed{seed}" / "results.json").read_text()) for seed in (42, 43)
        ]
        assert one["joules"] == statistics.median(run["energy"]["joules"] for run in runs) > 0
        assert one["energy_source"] == runs[0]["energy"]["source"]
    assert plain.results["fronts"]["joules"]


def test_without_a_training_whose_energy_is_known_there_is_no_front_of_it(place, plain, tmp_path):
    """One run was resumed, the other one is of a version that did not count, nor write down what it measured."""
    shutil.copytree(plain.folder, tmp_path / "old")
    asked = yaml.safe_load((plain.folder / "comparison.yaml").read_text())
    assert asked.pop("forgetting")["rows"] == 256
    (tmp_path / "old" / "comparison.yaml").write_text(yaml.safe_dump(asked))
    for seed, other in ((42, {"energy": {"why": "not counted"}}), (43, {})):
        path = tmp_path / "old" / "runs" / f"ia3-seed{seed}" / "results.json"
        results = json.loads(path.read_text())
        results["train"]["resumed_at"] = 0 if other else 3
        path.write_text(json.dumps({**results, **other}))
    again = compared(place, tmp_path / "old", resume=True).results
    assert again["methods"]["ia3"]["joules"] is None and again["methods"]["lora"]["joules"] > 0
    assert "joules" not in again["fronts"] and "train_seconds" in again["fronts"]


@pytest.fixture
def no_baselines(monkeypatch):
    monkeypatch.setattr("deltatune.comparison.entry.BASELINES", ())


def test_rates_are_searched_on_the_validation_rows_only(place, tmp_path, no_baselines):
    done = compared(place, tmp_path / "tuned", methods=[], seeds=1, tune="rates")
    for name, one in done.results["methods"].items():
        tried = {trial["learning_rate"]: trial["value"] for trial in one["rates"]}
        assert len(tried) >= 3, name
        longest = max(trial["share"] for trial in one["rates"])
        last = {t["learning_rate"]: t["value"] for t in one["rates"] if t["share"] == longest}
        assert last[one["learning_rate"]] == max(last.values())
    for trial in (tmp_path / "tuned" / "trials").iterdir():
        results = json.loads((trial / "results.json").read_text())
        assert "validation" in results
        assert "test" not in results
        assert not list(trial.glob("checkpoint-*"))


def test_what_the_model_refuses_is_said_and_the_others_go_on(place, tmp_path, no_baselines):
    wanted = {"none": {"type": "lora", "target_modules": ["nothing.like.it"]}, "lora": "lora"}
    done = compared(place, tmp_path / "refused", methods=wanted, seeds=1)
    assert "nothing.like.it" in done.results["methods"]["none"]["refused"]
    assert "mean" not in done.results["methods"]["none"]
    assert done.results["methods"]["lora"]["test"]


def test_what_the_budget_leaves_out_is_said_and_done_when_it_grows(place, tmp_path, no_baselines, monkeypatch):
    monkeypatch.setattr("deltatune.comparison.compare.LEAST_BUDGET", 0.0)
    short = compared(place, tmp_path / "short", methods=[], budget=1e-3, tune="rates")
    said = short.results["left_out"]
    assert any(what.startswith("learning rate") and "of lora" in what for what in said)
    assert any("lora with seed 43" in what for what in said)
    assert f"budget ended before {len(said)} further" in short.results["verdict"]
    longer = compared(place, tmp_path / "short", methods=[], budget=None, tune="rates", resume=True)
    assert not longer.results["left_out"]
    assert longer.results["methods"]["lora"]["seeds"] == [42, 43]
    more = compared(place, tmp_path / "short", methods=[], tune="rates", resume=True, seeds=3)
    assert more.results["methods"]["lora"]["test"][:2] == longer.results["methods"]["lora"]["test"]
    assert more.results["methods"]["lora"]["seeds"] == [42, 43, 44]


def test_a_comparison_that_was_killed_goes_on_to_the_same_end(place, plain, tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "deltatune.cli.main", "compare", str(place / "run.yaml"), "--methods", "ia3"]
    command += ["--seeds", "2", "--own-rates", "--output", str(folder), "--quiet"]
    process = subprocess.Popen(command)
    while not (folder / "runs" / "lora-seed42" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = compared(place, folder, resume=True)
    for name, one in plain.results["methods"].items():
        assert done.results["methods"][name]["test"] == one["test"]
        assert done.results["methods"][name]["interval"] == one["interval"]
    assert done.results["chosen"] == plain.results["chosen"]


def test_ctrl_c_saves_and_says_how_to_go_on(place, tmp_path):
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "deltatune.cli.main", "compare", str(place / "run.yaml"), "--own-rates"]
    command += ["--output", str(folder), "--quiet", "--training.num_train_epochs", "200"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(folder.glob("runs/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in said
    assert list(folder.glob("runs/*/checkpoint-*"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"methods": ["lora", "lora"]}, "lora is given twice"),
        ({"methods": ["lorra"]}, "lorra is unknown; did you mean lora"),
        ({"methods": {"My LoRA": "lora"}}, "names folders"),
        ({"seeds": 0}, "seeds is at least 1"),
        ({"budget": 0.0}, "budget is at least a second"),
        ({"resume": True}, "nothing to resume"),
        ({"tune": True}, "unknown tune: True"),
        ({"tune": "optuna"}, "unknown tune: 'optuna'"),
        ({"tune": "rates", "trials": 5}, "trials is the number of a search's"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(place, tmp_path, how, message):
    with pytest.raises(SettingsError, match=message):
        compared(place, tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


def test_a_folder_holds_one_comparison(place, plain, tmp_path):
    with pytest.raises(SettingsError, match="holds a comparison"):
        compared(place, plain.folder)
    with pytest.raises(SettingsError, match="methods changed"):
        compared(place, plain.folder, methods=["bitfit"], resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SettingsError, match="is not empty"):
        compared(place, tmp_path / "other")


def test_the_command_prints_tables_and_the_verdict(place, plain):
    given = ["compare", str(place / "run.yaml"), "--methods", "ia3", "--seeds", "2", "--own-rates"]
    given += ["--output", str(plain.folder), "--resume", "--quiet"]
    done = CliRunner().invoke(build(), given)
    assert done.exit_code == 0
    assert plain.results["verdict"].split(".")[0] in done.stdout
    assert "words, logistic regression" in done.stdout
    (source,) = {one["energy_source"] for one in plain.results["methods"].values()}
    assert f"energy: {source}" in done.stdout and " J" in done.stdout
    found = json.loads(CliRunner().invoke(build(), [*given, "--json"]).stdout)
    assert found["chosen"] == plain.results["chosen"]


def test_a_rung_goes_on_past_an_edge_and_stops_behind_a_peak():
    known, tried = {}, []
    while missing := rates.first(known):
        tried += missing
        known |= {k: -abs(k - 3) for k in missing}
    assert tried == [-1, 0, 1, 2, 3, 4]
    assert rates.best(known) == 3
    assert rates.first({-1: 0.0, 0: 0.0, 1: 0.0}) == []  # no difference: the method's own rate
