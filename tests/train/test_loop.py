"""The loop: it learns, accumulates exactly, keeps the best, stops when told."""

import json
import math
from dataclasses import replace

import pytest
import torch

from deltatune.core.errors import DeltatuneError, SettingsError
from deltatune.engine.stored import attach_file
from deltatune.methods.lora import LoRA
from deltatune.store import adapter as folders
from deltatune.train.loop import train
from train.toy import examples, job, lines, measured, net, weights


def test_the_loss_goes_down(tmp_path):
    work = job(tmp_path, num_train_epochs=20)
    before = measured(work.handle, examples())
    done = train(work)
    after = measured(work.handle, examples())
    assert after["loss"] < 0.7 * before["loss"]
    assert done.steps == 20 * 6 and done.stopped == "done" and done.peak_memory_bytes > 1e6
    assert done.tokens == 20 * sum(example["length"] for example in examples())


def test_only_the_adapter_changes(tmp_path):
    work = job(tmp_path)
    before = {name: tensor.clone() for name, tensor in work.handle.model.named_parameters() if "deltas" not in name}
    train(work)
    for name, tensor in before.items():
        assert torch.equal(tensor, work.handle.model.get_parameter(name)), name


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 4), (2, 8), (1, 16), (5, 4)])
def test_accumulated_micro_batches_are_one_large_batch(tmp_path, batch, accumulation):
    plain = LoRA(r=2, target_modules=("first", "second"))
    large = job(
        tmp_path / "large", rows=16, method=plain, per_device_train_batch_size=16, num_train_epochs=4, logging_steps=1
    )
    small = job(
        tmp_path / "small",
        rows=16,
        method=plain,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=4,
        logging_steps=1,
    )
    train(large), train(small)
    for a, b in zip(lines(tmp_path / "large"), lines(tmp_path / "small"), strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)


def test_the_last_step_of_an_epoch_takes_what_is_left(tmp_path):
    done = train(job(tmp_path, rows=22, per_device_train_batch_size=4, gradient_accumulation_steps=4))
    assert done.steps == 3 * 2  # six batches are one step of four and one of two
    assert done.examples == 3 * 22
    assert done.tokens == 3 * sum(example["length"] for example in examples())


def test_batches_of_a_budget_of_tokens_show_as_many_examples_as_there_are(tmp_path):
    done = train(job(tmp_path, rows=22, max_tokens_per_batch=40, num_train_epochs=2))
    assert done.examples == 2 * 22


def test_the_penalty_counts_once_per_step(tmp_path):
    work = job(tmp_path, rows=16, gradient_accumulation_steps=4, num_train_epochs=1, logging_steps=1)
    plain = job(tmp_path / "plain", rows=16, gradient_accumulation_steps=4, num_train_epochs=1, logging_steps=1)
    work.handle.penalty = lambda: torch.tensor(2.5, requires_grad=True) * 1
    train(work), train(plain)
    assert lines(tmp_path)[0]["loss"] == pytest.approx(lines(tmp_path / "plain")[0]["loss"] + 2.5, rel=1e-6)


def test_max_steps_takes_the_place_of_the_epochs(tmp_path):
    assert train(job(tmp_path / "few", max_steps=2)).steps == 2
    assert train(job(tmp_path / "many", max_steps=25)).steps == 25


@pytest.mark.parametrize("on", [False, True])
def test_the_dropout_of_the_base_is_off_unless_asked_for(tmp_path, on):
    seen = []
    work = job(tmp_path, base_dropout=on, max_steps=1)
    work.handle.model.first.register_forward_hook(lambda module, *_: seen.append(work.handle.model.drop.training))
    train(replace(work, evaluate=lambda: {"accuracy": 1.0}))
    assert seen == [on]
    assert all(module.training for module in work.handle.modules())


def scripted(values):
    """An evaluation that returns the given accuracies in turn."""
    rest = iter(values)
    return lambda attached: {"accuracy": next(rest)}


def test_the_best_adapter_is_in_the_handle_and_on_disk_at_the_end(tmp_path):
    kept = {}

    def evaluate(attached):
        kept[len(kept)] = weights(attached)
        return {"accuracy": [0.5, 0.9, 0.7, 0.9][len(kept) - 1]}

    work = job(tmp_path, evaluate=evaluate, num_train_epochs=4)
    done = train(work)
    assert (done.best_step, done.best_metric, done.steps) == (12, 0.9, 24)
    for name, tensor in weights(work.handle).items():
        assert torch.equal(tensor, kept[1][name]), name
    saved = attach_file(net(), folders.read(tmp_path / "adapter"), folders.tensors_at)
    for a, b in zip(saved.parameters(), work.handle.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_stops_early_without_a_better_metric(tmp_path):
    work = job(tmp_path, evaluate=scripted([0.5, 0.6, 0.6, 0.4]), num_train_epochs=10, early_stopping_patience=2)
    done = train(work)
    assert (done.steps, done.best_step, done.stopped) == (4 * 6, 2 * 6, "no better metric for a while")


def test_a_metric_where_less_is_more(tmp_path):
    rest = iter([3.0, 1.0, 2.0])
    work = job(tmp_path, evaluate=lambda _: {"loss": next(rest)}, metric_for_best_model="loss")
    done = train(work)
    assert (done.best_step, done.best_metric) == (12, 1.0)


def test_a_metric_that_is_not_finite_is_never_the_best(tmp_path):
    done = train(job(tmp_path, evaluate=scripted([math.nan, 0.4, math.nan])))
    assert (done.best_step, done.best_metric) == (12, 0.4)


def test_an_unknown_metric_names_the_known_ones(tmp_path):
    with pytest.raises(SettingsError, match=r"'acuracy' is not measured; did you mean accuracy\?"):
        train(job(tmp_path, metric_for_best_model="acuracy"))


def test_evaluation_every_eval_steps_and_at_the_end(tmp_path):
    train(job(tmp_path, eval_steps=5, max_steps=12))
    assert [line["step"] for line in lines(tmp_path) if "validation" in line] == [5, 10, 12]


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    work = job(tmp_path, num_train_epochs=2, max_grad_norm=None)
    work.examples[7]["x"] = torch.full_like(work.examples[7]["x"], math.nan)
    steps = counted_steps(monkeypatch)
    assert train(work).steps == 2 * 6 and len(steps) == 2 * 5
    left_out = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert len(left_out) == 2 and all({"row": 7} in line["rows"] and line["loss"] == "nan" for line in left_out)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(work.handle).values())


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path, monkeypatch):
    work = job(tmp_path)
    before = weights(work.handle)
    work.handle.parameters()[0].register_hook(lambda gradient: gradient + math.inf)
    steps = counted_steps(monkeypatch)
    with pytest.raises(DeltatuneError, match=r"step 3: loss 0\.\d+ with gradient norm inf; .* finite: first.lora_A;"):
        train(work)
    assert not steps
    for name, tensor in weights(work.handle).items():
        assert torch.equal(tensor, before[name]), name


def counted_steps(monkeypatch):
    """A list that grows by one with every step of the optimizer."""
    steps = []
    stepped = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *args: (steps.append(1), stepped(self, *args)))
    return steps


def test_warm_up_below_one_is_a_share_of_all_steps(tmp_path):
    train(job(tmp_path, max_steps=20, warmup_steps=0.5, logging_steps=1, learning_rate=1.0, max_grad_norm=None))
    rates = [line["learning_rate"] for line in lines(tmp_path) if "loss" in line]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[-1] == 0.0


def test_the_method_gives_the_learning_rate(tmp_path):
    assert train(job(tmp_path, learning_rate=None, max_steps=1)).learning_rate == LoRA.learning_rate


def test_the_method_knows_how_many_steps_there_will_be(tmp_path):
    work = job(tmp_path, num_train_epochs=2)
    train(work)
    assert work.handle.attached.total_steps == 12
