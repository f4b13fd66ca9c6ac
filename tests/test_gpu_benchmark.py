"""The benchmark for large decoders on a GPU runs whole on a processor: the ways are the same training."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FILE.parent)
        spec.loader.exec_module(module)
    return module


def test_adapters_of_both_libraries_start_as_the_model_and_learn_alike(gpu):
    facts = {"case": "tiny", "rows": 2, "tokens": 16}
    found = [{**facts, "way": way, **gpu.measured("tiny", way, 2, 16, "cpu", 5)} for way in ("ours", "peft", "full")]
    ours, peft, full = found
    assert ours["first_loss"] == pytest.approx(peft["first_loss"], rel=1e-3)
    assert ours["first_loss"] == pytest.approx(full["first_loss"], rel=1e-3)
    assert ours["trained"] == peft["trained"] < full["trained"]
    assert all(one["last_loss"] < one["first_loss"] and one["first_norm"] > 0 for one in found)
    lines = gpu.table([*found, {**facts, "way": "broken", "failed": "OutOfMemoryError"}])
    assert "| 2 x 16 | ours |" in lines[2] and "OutOfMemoryError" in lines[5] and "peak" in lines[-1]


def test_operations_are_those_of_the_products(gpu):
    """P = 10 weights, 3 tokens, width 2, 1 layer: the scores and the sums of a causal row are half of 2 x 3 x 3 x 2."""

    class Config:
        hidden_size, num_hidden_layers = 2, 1

    attention = 3 * (2 * 2 * 3 * 3 * 2) / 2
    assert gpu.operations(Config, 10, 1, 3, frozen=True) == 3 * 4 * 10 + attention
    assert gpu.operations(Config, 10, 1, 3, frozen=False) == 3 * 6 * 10 + attention


def test_a_process_of_its_own_measures_one_way():
    command = [sys.executable, str(FILE), "--run", "tiny", "full", "1", "8", "--device", "cpu", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["tokens_per_second"] > 0
