"""Advice on a tiny model: what is ranked, what is left out, what is written."""

import json

import pytest
import yaml

import deltatune
from cli.test_commands import call
from deltatune.core.errors import SettingsError
from words import work_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = work_place(tmp_path_factory.mktemp("place"), 300)
    config = {"task": "text-classification", "model": "model", "data": {"train": "reviews.csv"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_advice_ranks_says_why_and_writes_a_config_that_check_accepts(place):
    code, out, err = call(place, "advise", "config.yaml", "--json", "--write", "advised.yaml")
    assert code == 0, err
    found = json.loads(out)
    names = [one["name"] for one in found["methods"]]
    assert {"full", "linear-probe"} < set(names) and len(names) == 8
    for one in found["methods"]:
        assert "docs/results/quality.md" in one["reasons"][0]
        assert 0 < one["peak_memory_bytes"]["low"] < one["peak_memory_bytes"]["high"]
    written = yaml.safe_load((place / "advised.yaml").read_text())
    assert written["method"]["type"] == found["methods"][0]["method"]
    assert written["training"]["learning_rate"] == found["methods"][0]["learning_rate"]
    assert deltatune.method(written["method"])
    again, _, err = call(place, "advise", "config.yaml", "--write", "advised.yaml")
    assert again == 2 and "advised.yaml is there already" in err


def test_what_was_given_stays_and_a_rate_out_of_range_is_warned_of(place):
    code, out, _ = call(place, "advise", "config.yaml", "--training.learning_rate", "1e-6", "--json")
    found = json.loads(out)
    assert code == 0 and found["config"]["training"]["learning_rate"] == 1e-6
    assert any("learning rate: 1e-06" in warning for warning in found["warnings"])


def test_a_goal_orders_by_what_it_names(place, monkeypatch):
    monkeypatch.chdir(place)
    found = deltatune.advise("config.yaml", goal="memory")
    near = [one for one in found["methods"] if "intervals" not in one["reasons"][0] and one["name"] != "linear-probe"]
    peaks = [one["peak_memory_bytes"]["expected"] for one in near]
    assert peaks == sorted(peaks)
    with pytest.raises(SettingsError, match="vLLM does not load"):
        deltatune.advise("config.yaml", goal="serve-vllm")
    with pytest.raises(SettingsError, match="quality"):
        deltatune.advise("config.yaml", goal="qualty")
    with pytest.raises(SettingsError, match="model: the list is empty"):
        deltatune.advise({"task": "text-classification", "model": [], "data": {"train": "reviews.csv"}})
    with pytest.raises(SettingsError, match="fits into 0.2 GB"):
        deltatune.advise("config.yaml", memory_gb=0.2)
