"""Runs of earlier versions: a finished one answers as it did, an interrupted one goes on to the same end."""

import json
from pathlib import Path
from shutil import copy, copytree

import pytest
import torch
import yaml
from safetensors.torch import load_file

import deltatune
from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.finetuning import Run
from deltatune.store import atomic, state
from golden import base
from golden.make import RUN

VERSIONS = sorted(path.parent.name for path in base.HERE.glob("*/runs"))
NEWEST = VERSIONS[-1]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the base and the rows, where the runs were made."""
    base.folder(tmp_path / "model")
    copy(base.HERE / "reviews.csv", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def brought(version: str, name: str, place: Path) -> Path:
    return copytree(base.HERE / version / "runs" / name, place / name)


def close(one: dict, other: dict) -> bool:
    """Whether the numbers of two dicts are the same within what another processor changes."""
    numbers = {key: value for key, value in one.items() if isinstance(value, float)}
    return bool(numbers) and all(value == pytest.approx(other[key], abs=1e-4) for key, value in numbers.items())


@pytest.mark.parametrize("version", VERSIONS)
def test_a_finished_run_is_read_and_answers_as_it_did(version, place):
    run = Run.read(brought(version, "finished", place))
    expected = json.loads((base.HERE / version / "runs" / "expected.json").read_text())
    answers = deltatune.predict(run.folder, texts=expected["texts"], model="model")
    for found, then in zip(answers, expected["answers"], strict=True):
        assert found["label"] == then["label"]
        assert found["probabilities"] == pytest.approx(then["probabilities"], abs=1e-5)
    rows = deltatune.evaluate(run.adapter, "reviews.csv", model="model")
    assert rows["rows"] == 72
    with pytest.raises(SettingsError, match="holds a finished run"):
        deltatune.finetune(**RUN, output_dir=run.folder, quiet=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_interrupted_run_goes_on_to_the_end_it_would_have_had(version, place):
    folder, straight = brought(version, "interrupted", place), base.HERE / version / "runs" / "finished"
    before = lines(folder)
    assert not (folder / "results.json").exists() and before[-1]["step"] == 5
    run = deltatune.finetune(**RUN, output_dir="interrupted", resume=True, quiet=True)
    assert lines(folder)[: len(before)] == before, "what was done is done again"
    for found, then in zip(lines(folder), lines(straight), strict=True):
        assert found["step"] == then["step"]
        assert close({**then.get("validation", then), "seconds": 0.0}, {**found.get("validation", found), "seconds": 0})
    old, new = (state.load(f / "checkpoint-8") for f in (straight, folder))
    for name, tensor in old["adapter"].items():
        assert name == "steps" or torch.allclose(tensor, new["adapter"][name], atol=1e-4), name
    for name, tensor in load_file(straight / "adapter" / "adapter_model.safetensors").items():
        again = load_file(run.adapter / "adapter_model.safetensors")[name]
        assert torch.allclose(tensor, again, atol=1e-4), name
    assert close(json.loads((straight / "results.json").read_text())["test"], run.results["test"])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(place):
    """What its config does not say has the default; another value counts as changed."""
    config = brought(NEWEST, "interrupted", place) / "config.yaml"
    values = yaml.safe_load(config.read_text())
    del values["training"]["loraplus_lr_ratio"], values["training"]["trunk_cache_gb"], values["method"]["use_gating"]
    config.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(SettingsError, match="method.use_gating False -> True"):
        changed = RUN | {"method": RUN["method"] | {"use_gating": True}}
        deltatune.finetune(**changed, output_dir="interrupted", resume=True, quiet=True)
    run = deltatune.finetune(**RUN, output_dir="interrupted", resume=True, quiet=True)
    assert run.results["train"]["steps"] == 8 and not (run.folder / "changes.jsonl").exists()


def test_a_checkpoint_of_a_later_layout_is_an_error_that_says_what_to_do(place):
    folder = brought(NEWEST, "interrupted", place) / "checkpoint-5"
    found = state.load(folder)
    with atomic.folder(folder) as staging:
        state.save(staging, {**found, "version": found["version"] + 1})
    with pytest.raises(DeltatuneError, match="has layout 3, this version of deltatune reads 2; resume with"):
        deltatune.finetune(**RUN, output_dir="interrupted", resume=True, quiet=True)
