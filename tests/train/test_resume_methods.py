"""Every method of the registry, stopped at every step and resumed: losses, weights, moments equal to the bit."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from contract.cases import model_of
from deltatune.core import registry
from deltatune.core.config import TrainingSettings
from deltatune.engine.attach import attach
from deltatune.store import state
from deltatune.store.run import RunFolder
from deltatune.train.loop import Job, train
from train.test_resume import assert_same_checkpoint
from train.toy import Toy, lines, weights

STEPS = 5
OWN = {
    "adapter-fusion": {"adapters": ("one", "two")},
    "diff-pruning": {"density": 0.1},
    "fish": {"fisher_steps": 2},
    "mix": {"methods": ({"type": "prefix"}, {"type": "spiel", "reselect_every": 2, "watch": 1}, {"type": "lora"})},
    "spiel": {"reselect_every": 2, "watch": 1},
}
"""Settings without which a method could not train, or would not reach its phases, in so few steps."""


class Words(Toy):
    """The toy's loss on rows of tokens, or whatever the model reads, from the mean of its first output."""

    def collate(self, examples, processor):
        longest = max(example["length"] for example in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        for row, example in enumerate(examples):
            ids[row, : example["length"]] = example["ids"]
        labels = torch.tensor([example["label"] for example in examples])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}

    def loss(self, output, batch):
        return super().loss(output.logits[:, :2].float(), batch)


def rows() -> list[dict]:
    """Two classes of rows of 3 to 7 tokens."""
    generator = torch.Generator().manual_seed(3)
    return [
        {"ids": torch.randint(1, 99, (3 + row % 5,), generator=generator), "length": 3 + row % 5, "label": row % 2}
        for row in range(14)
    ]


def work(folder: Path, name: str) -> Job:
    """A job of a method on a small BERT with dropout in base and adapter: what is random shows."""
    model = model_of("bert")
    settings = OWN.get(name, {})
    for index, part in enumerate(settings.get("adapters", ())):
        attach(model, registry.method("adapter"), name=part, seed=index)
    handle = attach(model, registry.method(name, **settings))
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "base_dropout": True,
        "eval_steps": 1,
        "logging_steps": 2,
        "save_total_limit": STEPS,
        "early_stopping_patience": None,
    }
    return Job(
        handle,
        Words(),
        None,
        rows(),
        TrainingSettings(**given),
        lambda: {"accuracy": float(torch.rand(1))},  # from the generator's state
        lambda: None,
        RunFolder(folder),
        quiet=True,
    )


@pytest.fixture
def unsynced(monkeypatch):
    """Nothing dies here: hundreds of checkpoints need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("name", registry.methods())
def test_a_training_resumed_at_any_step_equals_one_that_was_never_stopped(name, tmp_path, unsynced):
    straight = work(tmp_path / "straight", name)
    train(straight)
    for stop in range(1, STEPS):
        again = tmp_path / f"resumed-{stop}"
        again.mkdir()
        shutil.copytree(tmp_path / "straight" / f"checkpoint-{stop}", again / f"checkpoint-{stop}")
        shutil.copy(tmp_path / "straight" / "metrics.jsonl", again)
        torch.manual_seed(stop)
        resumed = work(again, name)
        train(resumed, resume=True)
        assert lines(again) == lines(tmp_path / "straight"), stop
        assert_same_checkpoint(tmp_path / "straight", again, STEPS)
        for key, tensor in weights(straight.handle).items():  # those of the best step
            assert torch.equal(tensor, weights(resumed.handle)[key]), (stop, key)
    kept = state.load(tmp_path / "straight" / f"checkpoint-{STEPS}")["optimizer"]["state"]
    assert any(float(moments["exp_avg_sq"].sum()) > 0 for moments in kept.values())


def test_no_file_of_a_run_is_a_pickle(tmp_path, unsynced):
    """Everything a training writes is JSON, text or safetensors, and nothing in it begins as a pickle or an archive."""
    train(work(tmp_path, "spiel"))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK")), path
        if path.suffix == ".safetensors":
            length = int.from_bytes(content[:8], "little")
            assert set(json.loads(content[8 : 8 + length])["0"]) == {"dtype", "shape", "data_offsets"}
        else:
            for text in content.splitlines() if path.suffix == ".jsonl" else [content]:
                assert isinstance(json.loads(text), dict), path
