"""Adapters that earlier versions wrote load, with the settings and outputs they had then."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import deltatune
from contract.cases import distance
from deltatune.core import registry
from deltatune.core.errors import AdapterError
from golden.base import HERE, model
from golden.cases import CASES, logits

FOLDERS = sorted(HERE.glob("*/adapters/*"))


def expected(folder: Path) -> dict:
    return json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parents[1].name}-{f.name}")
def test_an_adapter_of_an_earlier_version_loads_with_its_settings_and_outputs(folder):
    before, (family, settings) = expected(folder), CASES[folder.name]
    network = model(family)
    base = logits(folder.name, network, None)
    handle = deltatune.load(network, folder / "adapter")
    found = handle.method.model_dump(mode="json")
    assert handle.method.type == settings["type"]
    assert {key: found[key] for key in before["settings"]} == before["settings"]
    then = torch.tensor(before["logits"])
    assert distance(logits(folder.name, network, handle), then) < 1e-5
    assert distance(base, then) > 1e-2, "the adapter does next to nothing: the file shows little"


def test_every_method_has_a_golden_folder():
    present = {folder.name for folder in FOLDERS}
    assert present <= CASES.keys(), "a folder without its case"
    missing = registry.methods().keys() - {CASES[name][1]["type"] for name in present}
    assert not missing, f"give {missing} a case in tests/golden/cases.py and run tests/golden/make.py"


def later(place: Path, **changes) -> Path:
    """A golden folder whose record has other values."""
    copytree(HERE / "0.1.0" / "adapters" / "lora" / "adapter", place)
    file = place / "adapter_model.safetensors"
    with safe_open(file, framework="pt") as found:
        record = json.loads(found.metadata()["deltatune"]) | changes
        tensors = {key: found.get_tensor(key).clone() for key in found.keys()}  # noqa: SIM118, not a dict
    save_file(tensors, file, metadata={"format": "pt", "deltatune": json.dumps(record)})
    return place


def test_a_file_of_a_later_format_is_an_error_that_says_what_to_do(tmp_path):
    network = model("bert")
    known = {name: type(module) for name, module in network.named_modules()}
    with pytest.raises(AdapterError, match="has format 2, this deltatune reads 1; update deltatune"):
        deltatune.load(network, later(tmp_path / "two", format=2))
    with pytest.raises(AdapterError, match="has no format that deltatune wrote: 'one'"):
        deltatune.load(network, later(tmp_path / "word", format="one"))
    assert {name: type(module) for name, module in network.named_modules()} == known


def test_a_method_or_setting_of_a_later_version_is_named(tmp_path):
    with pytest.raises(deltatune.DeltatuneError, match="method lora-2 is unknown"):
        deltatune.load(model("bert"), later(tmp_path / "method", type="lora-2"))
    with pytest.raises(deltatune.DeltatuneError, match="method.sharpness: unknown key"):
        deltatune.load(model("bert"), later(tmp_path / "setting", settings={"sharpness": 1}))
