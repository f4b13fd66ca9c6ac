"""A run with and without the trunk's output kept: the same losses, the same adapter, and what the results say."""

import json

import pytest
import torch
from safetensors.torch import load_file

import deltatune
from words import csv_file, model_folder, reviews


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    model_folder(folder / "model")
    csv_file(folder / "reviews.csv", reviews(120))
    return folder


def run(place, out, method, task="text-classification", **training):
    return deltatune.finetune(
        task=task,
        model=str(place / "model"),
        data={"train": str(place / "reviews.csv")},
        method=method,
        training={"num_train_epochs": 2, "per_device_train_batch_size": 16, "bf16": False, "seed": 1, **training},
        output_dir=out,
        quiet=True,
    )


def losses(done):
    lines = [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line] + [
        line["validation"]["loss"] for line in lines if "validation" in line
    ]


@pytest.mark.parametrize("method", [{"type": "lora", "layers_to_transform": "top-1"}, {"type": "linear-probe"}])
def test_losses_and_adapter_are_those_of_the_run_without(place, tmp_path, method):
    short = run(place, tmp_path / "short", method, logging_steps=1)
    whole = run(place, tmp_path / "whole", method, logging_steps=1, trunk_cache_gb=0)
    assert short.results["trunk"]["rows"] == 120 and whole.results["trunk"] == {}
    assert losses(short) == pytest.approx(losses(whole), abs=1e-5)
    assert short.results["test"]["loss"] == pytest.approx(whole.results["test"]["loss"], abs=1e-5)
    ours, theirs = (load_file(done.adapter / "adapter_model.safetensors") for done in (short, whole))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in theirs)


def test_what_does_not_fit_is_not_kept(place, tmp_path, caplog):
    with caplog.at_level("INFO", logger="deltatune"):
        done = run(place, tmp_path / "run", {"type": "linear-probe"}, trunk_cache_gb=1e-6)
    assert done.results["trunk"] == {} and "training.trunk_cache_gb" in caplog.text


@pytest.mark.parametrize(
    ("method", "training"),
    [({"type": "lora"}, {}), ({"type": "lora", "layers_to_transform": "top-1"}, {"base_dropout": True})],
)
def test_without_frozen_blocks_below_nothing_is_kept(place, tmp_path, method, training):
    assert run(place, tmp_path / "run", method, max_steps=1, **training).results["trunk"] == {}


def test_rows_that_are_varied_pass_all_blocks(place, tmp_path):
    task = {"type": "text-classification", "augmentation": {"word_dropout": 0.5}}
    method = {"type": "lora", "layers_to_transform": "top-1"}
    short = run(place, tmp_path / "short", method, task, logging_steps=1)
    whole = run(place, tmp_path / "whole", method, task, logging_steps=1, trunk_cache_gb=0)
    assert losses(short) == pytest.approx(losses(whole), abs=1e-5)
