"""A resumed training equals one that was never interrupted, to the bit."""

import os
import random
import signal
from dataclasses import replace

import pytest
import torch

from deltatune.core.errors import DataError, DeltatuneError
from deltatune.store import atomic, state
from deltatune.train.energy import Spent
from deltatune.train.loop import Stopped, train
from deltatune.train.plan import Plan, Position
from train.toy import job, lines, weights

SETTINGS = {"num_train_epochs": 3, "eval_steps": 4, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"}

MEASURED = {"peak_memory_bytes": 0, "spent": Spent(0.0, ())}
"""What is of a process, not of a training."""


def interrupted(work, step, number=signal.SIGINT):
    """The same job; a signal arrives while the given step is computed."""
    seen = []

    class Task(type(work.task)):
        def loss(self, output, batch):
            seen.append(1)
            if len(seen) == 2 * step:
                os.kill(os.getpid(), number)
            return super().loss(output, batch)

    return replace(work, task=Task())


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8])
def test_straight_equals_interrupted_and_resumed(tmp_path, stop):
    straight = job(tmp_path / "straight", **SETTINGS)
    done = train(straight)
    with pytest.raises(Stopped):
        train(interrupted(job(tmp_path / "resumed", **SETTINGS), stop))
    torch.manual_seed(99)
    again = job(tmp_path / "resumed", **SETTINGS)
    resumed = train(again, resume=True)
    assert resumed.spent.sources == done.spent.sources and resumed.spent.joules > 0
    shown = [sum(len(batch) for batch in step) for step in Plan.of(again.examples, again.settings).steps(Position())]
    assert (done.examples, resumed.examples) == (sum(shown), sum(shown[stop:]))
    after = {"resumed_at": stop, "examples": resumed.examples}
    assert replace(resumed, **MEASURED, seconds=0) == replace(done, **MEASURED, seconds=0, **after)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "straight")
    for name, tensor in weights(straight.handle).items():
        assert torch.equal(tensor, weights(again.handle)[name]), name
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "resumed", done.steps)


def assert_same_checkpoint(one, other, step):
    """Adapter, moments, schedule, best and generators are the same to the bit."""
    first, second = (state.load(folder / f"checkpoint-{step}") for folder in (one, other))
    for found in (first, second):
        found["position"]["seconds"] = 0.0
    assert_same(first, second)


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b) and a.dtype == b.dtype
    elif isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup", "polynomial"])
def test_every_schedule_resumes(tmp_path, schedule):
    settings = {"max_steps": 6, "lr_scheduler_type": schedule}
    straight = job(tmp_path / "straight", **settings)
    train(straight)
    with pytest.raises(Stopped):
        train(interrupted(job(tmp_path / "resumed", **settings), 1))
    again = job(tmp_path / "resumed", **settings)
    train(again, resume=True)
    for name, tensor in weights(straight.handle).items():
        assert torch.equal(tensor, weights(again.handle)[name]), name


def test_a_finished_training_resumes_to_its_end(tmp_path):
    first = job(tmp_path, **SETTINGS)
    done = train(first)
    again = job(tmp_path, **SETTINGS)
    resumed = train(again, resume=True)
    assert replace(resumed, **MEASURED) == replace(done, **MEASURED, resumed_at=done.steps, examples=0)
    for name, tensor in weights(first.handle).items():
        assert torch.equal(tensor, weights(again.handle)[name]), name


def test_a_training_that_stopped_early_does_not_go_on(tmp_path):
    settings = {"num_train_epochs": 9, "early_stopping_patience": 1, "evaluate": lambda _: {"accuracy": 0.5}}
    assert train(job(tmp_path, **settings)).steps == 12
    resumed = train(job(tmp_path, **settings), resume=True)
    assert (resumed.steps, resumed.stopped) == (12, "no better metric for a while")


def test_without_a_checkpoint_a_resume_starts_from_the_beginning(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    train(job(tmp_path / "straight", **SETTINGS))
    train(job(tmp_path, **SETTINGS), resume=True)
    assert "starting from the beginning" in caplog.text
    assert lines(tmp_path) == lines(tmp_path / "straight")


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, caplog):
    straight = job(tmp_path / "straight", **SETTINGS)
    train(straight)
    train(job(tmp_path / "resumed", **SETTINGS))
    file = tmp_path / "resumed" / "checkpoint-9" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    again = job(tmp_path / "resumed", **SETTINGS)
    train(again, resume=True)
    assert "checkpoint-9 is not usable: state.safetensors has" in caplog.text
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "resumed", 9)


@pytest.mark.parametrize("flips", [20, pytest.param(2000, marks=pytest.mark.torture)])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found(tmp_path, flips):
    train(job(tmp_path, **SETTINGS))
    chance, older = random.Random(0), tmp_path / "checkpoint-8"
    files = sorted((tmp_path / "checkpoint-9").iterdir())
    assert [path.name for path in files] == ["manifest.json", "state.json", "state.safetensors"]
    for path in files:
        good = path.read_bytes()
        for _ in range(flips):
            place, bit = chance.randrange(len(good)), 1 << chance.randrange(8)
            path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            assert atomic.problem(path.parent) is not None, (path.name, place, bit)
            assert atomic.newest_valid(tmp_path, "checkpoint-") == older
        path.write_bytes(good)
        assert atomic.problem(path.parent) is None


def test_nothing_whole_to_resume_from_is_an_error(tmp_path):
    train(job(tmp_path, **SETTINGS))
    for folder in tmp_path.glob("checkpoint-*"):
        (folder / "state.json").unlink()
    with pytest.raises(DeltatuneError, match="no checkpoint in .* is whole: checkpoint-9: files differ"):
        train(job(tmp_path, **SETTINGS), resume=True)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


def test_other_rows_are_refused(tmp_path):
    train(job(tmp_path, **SETTINGS))
    with pytest.raises(DataError, match="training rows are not those"):
        train(job(tmp_path, rows=21, **SETTINGS), resume=True)


def test_rows_of_the_same_lengths_with_other_content_are_refused(tmp_path):
    """Labels turned round leave every length as it is: a training went on with them and said nothing."""
    train(replace(job(tmp_path, **SETTINGS), content="as it was"))
    with pytest.raises(DataError, match="training rows are not those"):
        train(replace(job(tmp_path, **SETTINGS), content="otherwise"), resume=True)
    assert train(replace(job(tmp_path, **SETTINGS), content="as it was"), resume=True).resumed_at == 9


def test_a_checkpoint_that_knows_no_content_goes_on(tmp_path, monkeypatch):
    """Earlier versions wrote none."""
    write = state.save
    monkeypatch.setattr(state, "save", lambda to, own: write(to, {k: v for k, v in own.items() if k != "content"}))
    train(job(tmp_path, **SETTINGS))
    assert train(replace(job(tmp_path, **SETTINGS), content="known now"), resume=True).resumed_at == 9


def test_a_changed_rate_decay_length_and_patience_take_effect(tmp_path):
    """The rest is trained as a training with the new settings would from the same weights and moments."""
    first = {**SETTINGS, "max_steps": 8, "lr_scheduler_type": "constant", "max_grad_norm": None}
    with pytest.raises(Stopped):
        train(interrupted(job(tmp_path / "one", **first), 4))
    kept = state.load(tmp_path / "one" / "checkpoint-4")
    changes = {"learning_rate": 0.5, "weight_decay": 0.3, "max_steps": 5, "early_stopping_patience": 1}
    again = job(tmp_path / "one", **{**first, **changes, "logging_steps": 1})
    assert train(again, resume=True).steps == 5
    after = state.load(tmp_path / "one" / "checkpoint-5")
    assert {group["lr"] for group in after["optimizer"]["param_groups"]} == {0.5}
    assert {group["weight_decay"] for group in after["optimizer"]["param_groups"]} == {0.3}
    assert after["best"]["patience"] == 1 and lines(tmp_path / "one")[-2]["learning_rate"] == 0.5
    for index, (name, old) in enumerate((n, t) for n, t in kept["adapter"].items() if n != "steps"):
        moments = after["optimizer"]["state"][index]
        step = moments["exp_avg"] / (1 - 0.9**5) / ((moments["exp_avg_sq"] / (1 - 0.999**5)).sqrt() + 1e-8)
        expected = old * (1 - 0.5 * 0.3) - 0.5 * step
        assert torch.allclose(after["adapter"][name], expected, atol=1e-6), name


def test_old_checkpoints_go(tmp_path):
    train(job(tmp_path, max_steps=6, eval_steps=1, save_total_limit=3))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-5",
        "checkpoint-6",
    ]
    assert not list(tmp_path.glob(".trash*"))
