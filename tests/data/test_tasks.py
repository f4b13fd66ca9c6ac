"""Many tasks at once: ids from a column, shares of an epoch by temperature, every row of its own task."""

from collections import Counter
from itertools import islice

import pytest
import torch

from deltatune.core.config import DataSettings, RunSettings, TrainingSettings
from deltatune.core.errors import DataError, SettingsError
from deltatune.core.task import ManyTasks
from deltatune.data.batch import Batches, collate, shares
from deltatune.data.load import load, rows_of
from deltatune.data.read import read
from deltatune.data.tasks import encode
from deltatune.tasks.text_classification import TextClassification
from deltatune.train.plan import Plan, Position
from words import csv_file, model_folder, reviews


def file_of(folder, names=("b", "a"), count=60, column="Lang"):
    """Reviews that go round the tasks."""
    rows = [{**row, column: names[i % len(names)]} for i, row in enumerate(reviews(count))]
    return csv_file(folder / "rows.csv", rows)


def loaded(folder, **fields):
    return load(DataSettings(train="rows.csv", task_column="Lang", **fields), TextClassification(), folder)


def test_ids_follow_the_names_of_the_training_rows(tmp_path):
    file_of(tmp_path)
    found = loaded(tmp_path)
    assert found.task.many == ManyTasks(column="Lang", names=("a", "b"))
    tokenizer = found.task.load(str(model_folder(tmp_path / "model"))).processor
    examples = encode(found.task, found.train, tokenizer)
    assert [e["condition"] for e in examples] == [int(row["task"] == "b") for row in found.train]
    batch = collate(found.task, examples[:3], tokenizer)
    assert batch["condition"].dtype == torch.long and batch["condition"].shape == (3,)
    assert "condition" not in collate(found.task, found.task.encode(found.train[:3], tokenizer), tokenizer)


def test_numbers_are_tasks_in_their_own_order(tmp_path):
    file_of(tmp_path, names=tuple(range(11)), count=220)
    assert loaded(tmp_path).task.many.names == tuple(map(str, range(11)))


def test_every_split_has_its_share_of_every_task(tmp_path):
    file_of(tmp_path, names=("a", "b", "b", "b"), count=200)
    found = loaded(tmp_path)
    for rows in (found.train, found.validation, found.test):
        assert sum(row["task"] == "a" for row in rows) == pytest.approx(len(rows) / 4, abs=2)


def test_the_same_text_in_two_tasks_is_two_rows(tmp_path):
    rows = [{**row, "Lang": name} for row in reviews(40) for name in ("a", "b")]
    csv_file(tmp_path / "rows.csv", rows)
    found = loaded(tmp_path)
    assert len(found.train) + len(found.validation) + len(found.test) == 80 and not found.rejected


def test_a_row_without_a_task_or_of_an_unknown_one_is_rejected(tmp_path):
    rows = [{**row, "Lang": "ab"[i % 2]} for i, row in enumerate(reviews(60))]
    rows[3]["Lang"] = ""
    csv_file(tmp_path / "rows.csv", rows)
    found = loaded(tmp_path, max_rejected=0.1)
    assert [row.reason for row in found.rejected] == ["task is missing"]
    csv_file(tmp_path / "other.csv", [{"text": "warm", "label": "good", "Lang": name} for name in ("a", "c")])
    places = rows_of(read("other.csv", tmp_path), found.task, {}, labelled=True)
    assert [getattr(place, "reason", None) for place in places] == [None, "task is unknown ('c')"]


def test_a_column_that_is_not_there_is_hinted_and_one_task_is_none(tmp_path):
    file_of(tmp_path, column="Language")
    with pytest.raises(DataError, match=r"no column 'Lang' that names the task .*did you mean Language\?"):
        loaded(tmp_path)
    file_of(tmp_path, names=("a",))
    with pytest.raises(DataError, match="all training rows are of one task"):
        loaded(tmp_path)


# -- sampling


TASKS = [0] * 80 + [1] * 16 + [2] * 4


@pytest.mark.parametrize("temperature", [1.0, 2.0, 10.0, 0.5])
def test_a_task_has_its_share_of_every_epoch(temperature):
    batches = Batches([3] * 100, 7, 5, TASKS, temperature)
    powers = [n ** (1 / temperature) for n in (80, 16, 4)]
    for epoch in range(3):
        drawn = [row for batch in batches.epoch(epoch) for row in batch]
        assert len(drawn) == 100
        counts = Counter(TASKS[row] for row in drawn)
        for task, power in enumerate(powers):
            assert counts[task] == pytest.approx(100 * power / sum(powers), abs=1)


def test_rows_of_a_task_come_round_in_turn():
    drawn = Counter(row for batch in Batches([3] * 100, 7, 5, TASKS, 10.0).epoch(0) for row in batch)
    for task in range(3):
        times = [drawn[row] for row in range(100) if TASKS[row] == task]
        assert max(times) - min(times) <= 1
    assert min(drawn[row] for row in range(96, 100)) >= 6


def test_temperature_one_is_the_plain_order():
    plain, proportional = Batches(range(1, 101), 7, 5), Batches(range(1, 101), 7, 5, TASKS, 1.0)
    assert list(plain.epoch(1)) == list(proportional.epoch(1))


def test_an_epoch_starts_anywhere_and_differs_from_the_next():
    batches = Batches(range(1, 101), 7, 5, TASKS, 4.0)
    assert list(batches.epoch(2, 3)) == list(batches.epoch(2))[3:]
    assert list(batches.epoch(2)) != list(batches.epoch(3))
    first = next(batches.epoch(0))
    longest = max(row for batch in batches.epoch(0) for row in batch)
    assert longest in first


def test_shares_add_up_whatever_the_temperature():
    for temperature in (0.01, 0.3, 1, 3, 1e6):
        found = shares([100_000, 3, 50, 1], temperature)
        assert sum(found) == 100_054 and min(found) >= 0


def test_a_plan_samples_and_resumes_by_its_position():
    examples = [{"length": 3 + row % 5, "condition": task} for row, task in enumerate(TASKS)]
    settings = TrainingSettings(sampling_temperature=10, per_device_train_batch_size=8, num_train_epochs=3)
    plan = Plan.of(examples, settings)
    steps = list(plan.steps(Position()))
    position = Position()
    for step in islice(plan.steps(Position()), 17):
        plan.advance(position, step)
    assert list(plan.steps(position)) == steps[17:]
    counts = Counter(TASKS[row] for step in steps for batch in step for row in batch)
    assert counts[2] / sum(counts.values()) > 0.2
    other = [{**example, "condition": 0} for example in examples]
    assert Plan.of(other, settings).fingerprint() != plan.fingerprint()


def test_a_temperature_without_tasks_is_an_error():
    with pytest.raises(SettingsError, match="sampling_temperature has no effect on rows without tasks"):
        Plan.of([{"length": 3}], TrainingSettings(sampling_temperature=2.0))
    values = {"task": "x", "model": "m", "data": {"train": "t"}, "output_dir": "o"}
    with pytest.raises(SettingsError, match=r"^training.sampling_temperature has no effect without data.task_column$"):
        RunSettings.parse({**values, "training": {"sampling_temperature": 2.0}}, "")
