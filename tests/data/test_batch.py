"""Batches: every row once per epoch, resumable anywhere, longest first."""

from hypothesis import given
from hypothesis import strategies as st

from deltatune.data.batch import Batches, by_length

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=300)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.integers(0, 2))
def test_every_row_comes_once_per_epoch(lengths, size, seed, epoch):
    batches = list(Batches(lengths, size, seed).epoch(epoch))
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    assert len(batches) == Batches(lengths, size, seed).count(epoch)
    assert max(map(len, batches)) <= size


@given(LENGTHS, st.integers(1, 9), st.integers(0, 20))
def test_a_resumed_epoch_goes_on_where_it_stopped(lengths, size, start):
    batches = Batches(lengths, size, seed=3)
    assert list(batches.epoch(1, start)) == list(batches.epoch(1))[start:]


@given(LENGTHS, st.integers(1, 9))
def test_the_longest_row_comes_first_of_all(lengths, size):
    first = next(Batches(lengths, size, seed=1).epoch(0))
    assert max(lengths[i] for i in first) == max(lengths)


def test_epochs_differ_and_rows_of_a_batch_have_similar_length():
    lengths = [i % 50 + 1 for i in range(1000)]
    batches = Batches(lengths, 10, seed=0)
    assert list(batches.epoch(1)) != list(batches.epoch(2))
    waste = sum(max(lengths[i] for i in b) * len(b) for b in batches.epoch(1)) / sum(lengths)
    assert waste < 1.1


@given(LENGTHS, st.integers(1, 9))
def test_scoring_batches_hold_every_row_longest_first(lengths, size):
    batches = by_length(lengths, size)
    order = [lengths[i] for batch in batches for i in batch]
    assert order == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 200), st.integers(0, 2))
def test_a_budget_of_tokens_holds_and_leaves_no_room_for_another_row(lengths, budget, epoch):
    whole = Batches(lengths, 4, 3, budget=budget)
    batches = list(whole.epoch(epoch))
    assert sorted(sum(batches, [])) == list(range(len(lengths))) and whole.count(epoch) == len(batches)
    for batch in batches:
        longest = max(lengths[i] for i in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget
    within = len(lengths) <= 50 * 4  # one bucket: only its last batch may have room left
    full = [longest * (len(batch) + 1) > budget for batch in batches for longest in [max(lengths[i] for i in batch)]]
    assert not within or full.count(False) <= 1
