"""What is not finite never reaches the weights; what looks wrong is said, and where it comes from."""

import json
import math
from dataclasses import replace

import pytest
import torch

from deltatune.core.errors import DeltatuneError
from deltatune.store import state
from deltatune.train.guards import Guards
from deltatune.train.loop import Stopped, train
from train.test_resume import assert_same_checkpoint, interrupted
from train.toy import Toy, job, lines, weights


class Failing(Toy):
    """The toy, with losses that are not finite at some calls, counted from 1."""

    def at(self, calls, value=math.nan):
        failing, seen = self.model_copy(), []

        class Wrong(type(self)):
            def loss(self, output, batch):
                seen.append(1)
                return super().loss(output, batch) * (value if len(seen) in calls else 1.0)

        return Wrong.model_construct(**failing.model_dump())


def failing(work, *calls, value=math.nan):
    """The same job with losses that are not finite at these calls."""
    return replace(work, task=Failing().at(calls, value))


def noted(folder):
    """bad_steps.jsonl."""
    return [json.loads(line) for line in (folder / "bad_steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [1, 2, 6, 12])
def test_a_bad_step_changes_nothing_and_is_noted_wherever_it_comes(tmp_path, step, value):
    seen = []
    work = failing(job(tmp_path, max_steps=12, eval_steps=1), step, value=value)
    evaluate = work.evaluate
    work = replace(work, evaluate=lambda: (seen.append(weights(work.handle)), evaluate())[1])
    start = weights(work.handle)
    assert train(work).steps == 12
    before = [start, *seen]
    for name, tensor in before[step - 1].items():
        assert torch.equal(tensor, before[step][name]), name
    assert any(not torch.equal(tensor, before[-1][name]) for name, tensor in start.items() if name != "steps")
    (line,) = noted(tmp_path)
    assert line["step"] == step and line["loss"] == str(float(value)) and len(line["rows"]) in (2, 4)
    assert all(bool(tensor.isfinite().all()) for tensor in before[-1].values())


def test_places_are_those_of_the_file(tmp_path):
    work = replace(job(tmp_path, max_steps=2), places=lambda row: [{"file": "train.csv", "line": row + 2}])
    train(failing(work, 1))
    assert {place["file"] for place in noted(tmp_path)[0]["rows"]} == {"train.csv"}
    assert len({place["line"] for place in noted(tmp_path)[0]["rows"]}) == 4


def test_three_in_a_row_bring_the_checkpoint_back_at_half_the_rate(tmp_path, caplog):
    work = failing(job(tmp_path, max_steps=9, eval_steps=4, logging_steps=1, lr_scheduler_type="constant"), 5, 6, 7)
    assert train(work).steps == 9
    assert "back at step 4 with half the rate" in caplog.text
    assert [line["step"] for line in noted(tmp_path)] == [5, 6, 7]
    rates = [(line["step"], line["learning_rate"]) for line in lines(tmp_path) if "loss" in line]
    assert rates == [(step, 0.02 if step <= 4 else 0.01) for step in range(1, 10)]
    assert [line["restored_from"] for line in lines(tmp_path) if "restored_from" in line] == [7]
    kept = state.load(tmp_path / "checkpoint-9")
    assert kept["guards"]["halved"] and {group["lr"] for group in kept["optimizer"]["param_groups"]} == {0.01}


def test_half_the_rate_stays_after_a_resume(tmp_path):
    settings = {"max_steps": 12, "eval_steps": 4, "logging_steps": 1, "gradient_accumulation_steps": 2}
    straight = failing(job(tmp_path / "straight", **settings), *range(9, 15))
    train(straight)
    with pytest.raises(Stopped):
        train(interrupted(failing(job(tmp_path / "resumed", **settings), *range(9, 15)), 9))
    again = job(tmp_path / "resumed", **settings)
    train(again, resume=True)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "straight")
    assert_same_checkpoint(tmp_path / "straight", tmp_path / "resumed", 12)


def test_three_in_a_row_again_end_it_with_the_first_layer_its_precision_and_the_row(tmp_path, caplog):
    work = job(tmp_path, max_steps=40, eval_steps=2)
    broken = []

    def overflow(module, inputs, output):
        return output + math.inf if broken else output

    work.handle.model.second.register_forward_hook(overflow)
    evaluate = work.evaluate

    def evaluated():
        found = evaluate()
        broken.append(1) if (tmp_path / "checkpoint-2").exists() else None
        return found

    with pytest.raises(DeltatuneError) as caught:
        train(replace(work, evaluate=evaluated))
    assert "half the rate" in caplog.text
    assert "3 steps in a row are not finite, the last is step 9" in str(caught.value)  # after the checkpoint of step 6
    assert "first not finite: second (float32), on row " in str(caught.value)
    assert all(bool(tensor.isfinite().all()) for tensor in weights(work.handle).values())


def test_three_in_a_row_without_a_checkpoint_end_it(tmp_path):
    with pytest.raises(DeltatuneError, match="the last is step 3: loss nan .*; lower training.learning_rate"):
        train(failing(job(tmp_path, max_steps=6), 1, 2, 3))
    assert len(noted(tmp_path)) == 3


def test_more_than_one_percent_of_the_last_500_bring_the_checkpoint_back_once(tmp_path, caplog):
    settings = {"max_steps": 40, "eval_steps": 4, "logging_steps": 1, "num_train_epochs": 100}
    work = failing(job(tmp_path, **settings), *range(5, 16, 2))  # every second step: never three in a row
    assert train(work).steps == 40
    assert "6 of the last 500 steps are not finite" in caplog.text and "back at step 12" in caplog.text
    assert [line["restored_from"] for line in lines(tmp_path) if "restored_from" in line] == [15]
    again = failing(job(tmp_path / "again", **settings), *range(5, 16, 2), *range(18, 40, 2))
    with pytest.raises(DeltatuneError, match=r"6 of the last 500 steps are not finite, the last is step 24: loss nan"):
        train(again)


def test_steps_left_out_long_ago_do_not_count():
    guards, good, bad = Guards(), torch.tensor(1.0), torch.tensor(math.nan)
    for step in range(1, 3001):
        assert guards.pass_on(bad if step % 100 == 0 else good, good) is (step % 100 != 0)
        assert guards.tripped is None and len(guards.left_out) <= 5
    guards.pass_on(good, good)
    guards.pass_on(bad, good)
    assert guards.tripped == "6 of the last 500 steps"
    guards.forgive()
    assert guards.tripped is None


def test_a_spike_is_a_line_of_the_log(tmp_path):
    train(failing(job(tmp_path, max_steps=40, eval_steps=40, learning_rate=1e-4), 35, value=50.0))
    (spike,) = [line["spike"] for line in lines(tmp_path) if "spike" in line and line["step"] == 35]
    assert spike["loss"] > spike["median"] + 6 * spike["mad"] > 0
    others = [line["step"] for line in lines(tmp_path) if "spike" in line and line["step"] != 35]
    assert len(others) <= 2 and all(step > 20 for step in others)


def test_spikes_are_told_from_the_last_hundred_losses():
    guards = Guards()
    generator = torch.Generator().manual_seed(0)
    noise = (1 + 0.1 * torch.randn(1000, generator=generator)).tolist()
    found = [guards.spike(loss) for loss in noise]
    assert sum(spike is not None for spike in found) <= 5 and found[:20] == [None] * 20
    assert len(guards.losses) == 100 and guards.losses[-1] == noise[-1]
    assert guards.spike(2.0)["loss"] == 2.0 and guards.spike(0.0) is None
    assert Guards([1.0] * 50).spike(1.0001) is None  # without any noise nothing is usual
