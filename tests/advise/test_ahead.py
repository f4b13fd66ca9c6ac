"""Forecasts of real runs: what they said beside what was measured."""

import json
import subprocess
import sys

import pytest
import yaml

import deltatune
from words import work, work_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return work_place(tmp_path_factory.mktemp("place"))


def config(place, out, **training):
    return {**work(place, max_steps=3, **training), "output_dir": str(out)}


@pytest.mark.parametrize("method", ["lora", "adapter", "prefix", "shared-lora", "linear-probe"])
def test_a_run_says_what_it_will_take_and_counts_are_exact(place, tmp_path, method):
    found = deltatune.finetune(**config(place, tmp_path / "run"), method=method, quiet=True).results
    said = found["forecast"]
    assert said["trained_parameters"] == found["trainable_parameters"]
    assert said["steps"] == found["train"]["steps"] == 3
    assert said["adapter_bytes"] <= found["adapter_bytes"] < said["adapter_bytes"] + 8192  # facts in the header
    for name in ("peak_memory_bytes", "step_seconds", "train_seconds", "total_seconds"):
        assert 0 < said[name]["low"] < said[name]["expected"] < said[name]["high"]
    assert said["train_seconds"]["expected"] < said["total_seconds"]["expected"]


def test_energy_stands_in_the_results_and_on_the_card_but_not_in_the_weights(place, tmp_path):
    runs = []
    for name, factor in (("a", None), ("b", 0.5)):
        given = config(place, tmp_path / name, kg_co2_per_kwh=factor)
        runs.append(deltatune.finetune(**given, method="lora", quiet=True))
    energy = runs[0].results["energy"]
    assert energy["joules"] > 0 and "W per core" in energy["source"] and "kg_co2" not in energy
    assert runs[1].results["energy"]["kg_co2"] > 0
    assert "Energy of the training" in (runs[0].adapter / "README.md").read_text()
    assert (
        b"joules" not in (runs[0].adapter / "adapter_model.safetensors").read_bytes()
    )  # it is no part of what was learned


def test_the_peak_of_a_process_is_what_was_forecast(place, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**config(place, tmp_path / "run"), "method": "lora"}))
    command = [sys.executable, "-m", "deltatune.cli.main", "train", str(path), "--quiet"]
    subprocess.run(command, check=True, capture_output=True)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    measured, said = found["train"]["peak_memory_bytes"], found["forecast"]["peak_memory_bytes"]["expected"]
    assert measured == pytest.approx(said, rel=0.15)
