"""The base is never changed: every byte of it is the same before and after all that an adapter goes through."""

import hashlib

import pytest
import torch
from torch import nn

import deltatune
from contract.cases import cases, model_of, outputs
from contract.test_methods import forward
from deltatune.core import registry
from models import inputs
from words import csv_file, model_folder, reviews

FIRST = {name: family for name, family in reversed(cases()) if family in ("bert", "llama", "t5", "vit")}
"""A family for every method that needs nothing but a model."""


def digest(model: nn.Module, names) -> str:
    """sha256 of these parameters and buffers, in whole."""
    found, held = hashlib.sha256(), model.state_dict()
    for name in names:
        found.update(f"{name} {held[name].dtype} {list(held[name].shape)}".encode())
        found.update(held[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def train(adapter, steps: int = 3) -> None:
    """Steps with everything that could reach the base: momentum, decay, dropout, training mode."""
    model = adapter.model
    model.train()
    adapter.expect_steps(steps)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(1e-2, weight_decay=0.1))
    for _ in range(steps):
        loss = forward(model, inputs(model)).square().mean()
        penalty = adapter.penalty()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@pytest.mark.parametrize(("name", "family"), FIRST.items())
def test_no_byte_of_the_base_changes(name, family, tmp_path):
    model = model_of(family)
    names = list(model.state_dict())
    before, expected = digest(model, names), outputs(model)

    settings = {"fisher_steps": 1} if name == "fish" else {}
    adapter = deltatune.attach(model, registry.method(name, **settings))
    assert digest(model, names) == before, "attach"
    train(adapter)
    assert digest(model, names) == before, "training"
    assert not torch.equal(outputs(model), expected), "nothing was trained"
    with adapter.disabled():
        assert torch.equal(outputs(model), expected)
    if adapter.method.can.merge:
        for _ in range(3):
            adapter.merge()
            adapter.unmerge()
        assert digest(model, names) == before, "merge and unmerge"
    adapter.save(tmp_path / "saved")
    adapter.detach()
    assert digest(model, names) == before, "detach"

    loaded = deltatune.load(model, tmp_path / "saved")
    outputs(model)
    loaded.detach()
    assert digest(model, names) == before, "load"
    assert torch.equal(outputs(model), expected)
    assert list(model.state_dict()) == names


def test_a_hash_tells_a_single_bit():
    model = model_of("bert")
    names = list(model.state_dict())
    before = digest(model, names)
    with torch.no_grad():
        value = model.bert.embeddings.word_embeddings.weight.view(torch.int32)
        value[3, 5] ^= 1
    assert digest(model, names) != before


def files(folder) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_its_evaluation_and_its_answers_leave_the_folder_of_the_base_as_it_was(tmp_path):
    model_folder(tmp_path / "model")
    csv_file(tmp_path / "reviews.csv", reviews(120))
    before = files(tmp_path / "model")
    run = deltatune.finetune(
        task="text-classification",
        model=str(tmp_path / "model"),
        data={"train": str(tmp_path / "reviews.csv")},
        training={"num_train_epochs": 1, "learning_rate": 1e-2, "bf16": False},
        output_dir=tmp_path / "run",
        quiet=True,
    )
    assert run.results["base"]["sha256_before"] == run.results["base"]["sha256_after"]
    deltatune.evaluate(run.folder, str(tmp_path / "reviews.csv"))
    deltatune.predict(run.folder, texts=["a fine film"])
    assert files(tmp_path / "model") == before
