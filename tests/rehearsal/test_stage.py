"""What a rehearsal acts on: some of the rows, an adapter that comes back to its start, a base that stays."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deltatune.core import registry
from deltatune.core.config import RunSettings, read_yaml
from deltatune.data.load import load
from deltatune.rehearsal import stage as staging
from deltatune.rehearsal.clock import Clock
from deltatune.rehearsal.evaluation import _spread, evaluation_line
from deltatune.rehearsal.practice import practising
from deltatune.rehearsal.stage import stage_of
from rehearsal.planted import texts


@pytest.fixture
def stage(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "MOST_ROWS", 120)
    monkeypatch.setattr(staging, "FEWEST_ROWS", 120)
    settings = RunSettings.parse(read_yaml(texts(tmp_path) / "run.yaml"), "")
    splits = load(settings.data, registry.task(settings.task), Path.cwd())
    return stage_of(settings, registry.method(settings.method), splits, Clock(5), tmp_path / "scratch")


def test_some_rows_are_drawn_in_random_order_and_accounted_for(stage):
    few, whole = stage.ground.splits, stage.splits
    assert len(few.train) == 120 and len(whole.train) == 320 and len(few.validation) == 24
    places = [whole.places[id(row)].line for row in few.train]
    assert places != sorted(places) and len(set(places)) == 120
    assert few.accounts.parts["train"].not_drawn == 200 and few.accounts.parts["train"].kept == 120


def test_the_loss_of_an_evaluation_is_the_mean_over_all_its_rows(stage):
    """Which are scored in waves of more and more rows."""
    training = stage.settings.training.model_copy(update={"metric_for_best_model": "loss"})
    line = evaluation_line(replace(stage, settings=stage.settings.model_copy(update={"training": training})))
    count = int(re.search(r"on (\d+) validation rows", line.seen)[1])
    examples = _spread(stage)[1][:count]
    assert count > 8 and line.details["value"] == pytest.approx(stage.loss(examples)[0], rel=1e-4)


def test_practice_moves_the_adapter_and_leaves_no_trace(stage):
    base = {name: tensor.clone() for name, tensor in stage.model.state_dict().items() if "deltas" not in name}
    batch = list(range(8))
    before = stage.loss([stage.running.examples["train"][row] for row in batch])[0]
    with practising(stage, 20) as practice:
        losses = [practice.step(batch, 1e-2) for _ in range(20)]
        inside = stage.loss([stage.running.examples["train"][row] for row in batch])[0]
    after = stage.loss([stage.running.examples["train"][row] for row in batch])[0]
    assert losses[0] == pytest.approx(before, rel=1e-5) and inside < 0.5 * before and after == before
    assert all(torch.equal(base[name], tensor) for name, tensor in stage.model.state_dict().items() if name in base)
    assert not stage.model.training and all(p.grad is None for p in stage.adapter.parameters())


def test_steps_at_a_rate_are_those_of_a_training(stage):
    """One step of AdamW moves each value by the rate, whatever its gradient."""
    with practising(stage, 1) as practice:
        start = {name: p.detach().clone() for name, p in stage.adapter.named_parameters().items()}
        practice.step(range(8), 1e-3)
        moved = [float((p.detach() - start[n]).abs().max()) for n, p in stage.adapter.named_parameters().items()]
    assert max(moved) == pytest.approx(1e-3, rel=0.05) and min(moved) < 1e-4  # the first factors get no gradient yet


def test_a_loss_that_is_not_finite_moves_nothing(stage, monkeypatch):
    with practising(stage, 1) as practice:
        start = {name: p.detach().clone() for name, p in stage.adapter.named_parameters().items()}
        monkeypatch.setattr(practice, "pass_over", lambda rows: (float("inf"), 1.0))
        loss = practice.step(range(8), 1e-3)
        assert loss != loss
        assert all(torch.equal(p, start[name]) for name, p in stage.adapter.named_parameters().items())
