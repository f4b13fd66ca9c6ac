"""The plan takes every row once per epoch and can start anywhere."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from deltatune.core.config import TrainingSettings
from deltatune.train.plan import Plan, Position


def plan(rows: int, batch: int, accumulation: int, epochs: float = 2.0, **more) -> Plan:
    settings = TrainingSettings(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, num_train_epochs=epochs, **more
    )
    return Plan.of([{"length": 1 + row % 7} for row in range(rows)], settings)


PLANS = st.builds(
    plan,
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 5),
    st.sampled_from([1.0, 2.0, 2.5]),
    max_tokens_per_batch=st.none() | st.integers(1, 30),
)


@given(PLANS)
def test_every_row_comes_once_per_epoch(plan):
    position, seen = Position(), []
    for step in plan.steps(position):
        assert 1 <= len(step) <= plan.accumulation
        seen += [row for batch in step for row in batch]
        plan.advance(position, step)
        if position.batch == 0:
            assert sorted(seen) == list(range(len(plan.batches.lengths)))
            seen = []
    assert position.step == plan.total


@given(PLANS, st.data())
def test_it_goes_on_from_any_position(plan, data):
    everything = list(plan.steps(Position()))
    position = Position()
    for step in everything[: data.draw(st.integers(0, plan.total))]:
        plan.advance(position, step)
    assert list(plan.steps(replace(position))) == everything[position.step :]


def test_epochs_differ_and_runs_do_not():
    first, second = list(plan(12, 4, 3).steps(Position())), list(plan(12, 4, 3).steps(Position()))
    assert first == second and first[0] != first[1]


def test_tokens_are_counted_without_padding():
    made = plan(10, 4, 1, epochs=1.0)
    position = Position()
    for step in made.steps(position):
        made.advance(position, step)
    assert position.tokens == sum(made.batches.lengths) and (position.epoch, position.batch) == (1, 0)


def test_other_rows_have_another_fingerprint():
    assert plan(10, 4, 1).fingerprint() == plan(10, 2, 3).fingerprint() != plan(11, 4, 1).fingerprint()


def test_a_budget_of_tokens_takes_the_place_of_rows():
    made = plan(100, 4, 1, epochs=1.0, max_tokens_per_batch=28)
    sizes = {len(batch) for step in made.steps(Position()) for batch in step}
    assert max(sizes) == 14 and min(sizes) == 4  # rows of two tokens, and of seven
    assert made.total == made.batches.count(0) < plan(100, 4, 1, epochs=1.0).total


def test_a_part_of_an_epoch_is_not_a_step_longer_for_a_float():
    assert 1.1 % 1 * 100 > 10
    assert plan(100, 1, 1, epochs=1.1).total == 110
    assert plan(100, 1, 1, epochs=1.105).total == 111
