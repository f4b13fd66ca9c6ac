"""A run with and without the trunk's output kept: the same losses, the same adapter, and what the results say."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltatune
from deltatune.store.kept import Shelf
from words import csv_file, reviews, work, work_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return work_place(tmp_path_factory.mktemp("place"))


def run(place, out, method, task="text-classification", **training):
    given = work(place, **{"num_train_epochs": 2, "seed": 1, **training})
    return deltatune.finetune(**{**given, "task": task}, method=method, output_dir=out, quiet=True)


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
        done = run(place, tmp_path / "run", {"type": "linear-probe"}, trunk_cache_gb=1e-6, trunk_disk_gb=1e-6)
    assert done.results["trunk"] == {}
    assert "training.trunk_cache_gb" in caplog.text and "training.trunk_disk_gb" in caplog.text


TOP = {"type": "lora", "layers_to_transform": "top-1"}


@pytest.fixture
def users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "deltatune" / "trunk"


def equal(ours, theirs):
    """Losses and adapters, to the bit."""
    weights = [load_file(done.adapter / "adapter_model.safetensors") for done in (ours, theirs)]
    same = all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())
    return same and losses(ours) == losses(theirs)


def test_what_memory_does_not_hold_is_kept_on_disk_and_changes_nothing(place, tmp_path, users_cache):
    in_memory = run(place, tmp_path / "memory", TOP, logging_steps=1)
    assert not users_cache.exists()
    on_disk = run(place, tmp_path / "disk", TOP, logging_steps=1, trunk_cache_gb=1e-6)
    assert on_disk.results["trunk"] == {**in_memory.results["trunk"], "folder": str(users_cache), "parts_found": 0}
    assert len(list(users_cache.iterdir())) == 3
    assert equal(in_memory, on_disk)


def test_another_method_seed_and_run_find_what_was_kept(place, tmp_path):
    shelf = {"trunk_cache_dir": str(tmp_path / "shelf")}
    run(place, tmp_path / "first", TOP, **shelf)
    other = {"type": "ia3", "layers_to_transform": [1]}
    second = run(place, tmp_path / "second", other, logging_steps=1, **{**shelf, "seed": 5})
    assert second.results["trunk"]["parts_found"] == 3
    assert equal(second, run(place, tmp_path / "alone", other, logging_steps=1, seed=5))
    assert len(list((tmp_path / "shelf").iterdir())) == 3


@pytest.mark.parametrize("change", ["base", "rows", "length", "depth"])
def test_what_another_trunk_or_other_rows_gave_is_not_found(place, tmp_path, change):
    shelf = {"trunk_cache_dir": str(tmp_path / "shelf"), "max_steps": 1}
    run(place, tmp_path / "first", TOP, **shelf)
    other, method, task = tmp_path / "place", TOP, {"type": "text-classification"}
    shutil.copytree(place, other)
    if change == "base":
        tensors = load_file(other / "model" / "model.safetensors")
        name = next(name for name in tensors if "layer.0" in name and name.endswith("query.weight"))
        save_file({**tensors, name: tensors[name] + 1e-3}, other / "model" / "model.safetensors", {"format": "pt"})
    elif change == "rows":
        csv_file(other / "reviews.csv", [{**row, "text": f"so {row['text']}"} for row in reviews(120)])
    elif change == "length":
        task["max_length"] = 4
    else:
        method = {"type": "linear-probe"}
    assert run(other, tmp_path / "second", method, task, **shelf).results["trunk"]["parts_found"] == 0


@pytest.mark.parametrize("damage", ["corrupted", "foreign"])
def test_what_was_damaged_or_is_not_of_this_trunk_is_made_anew(place, tmp_path, damage, caplog):
    shelf = tmp_path / "shelf"
    first = run(place, tmp_path / "first", TOP, logging_steps=1, trunk_cache_dir=str(shelf))
    for entry in list(shelf.iterdir()):
        if damage == "corrupted":
            path = entry / "rows-00001.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        else:  # whole, under the right key, of other weights
            rows = Shelf(shelf, 1e9).find(entry.name)
            with Shelf(shelf, 1e9).writing(entry.name, 0) as writer:
                writer.add([row + 1e-6 for row in rows])
    again = run(place, tmp_path / "again", TOP, logging_steps=1, trunk_cache_dir=str(shelf))
    assert again.results["trunk"]["parts_found"] == 0 and "made anew" in caplog.text
    assert equal(first, again)
    third = run(place, tmp_path / "third", TOP, logging_steps=1, trunk_cache_dir=str(shelf))
    assert third.results["trunk"]["parts_found"] == 3


def test_a_folder_that_refuses_costs_the_cache_and_not_the_run(place, tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level("INFO", logger="deltatune"):
        done = run(place, tmp_path / "run", TOP, max_steps=1, trunk_cache_dir=str(tmp_path / "file" / "shelf"))
    assert done.results["trunk"] == {} and "cannot keep" in caplog.text


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
