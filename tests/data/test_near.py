"""Near-duplicates: what the filter finds is what comparing every pair finds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from deltatune.core.registry import task
from deltatune.data.check import Placed
from deltatune.data.near import NEAR, Sketches, near

SKETCH = st.frozensets(st.integers(0, 14), max_size=12)


@settings(deadline=None, max_examples=300)
@given(st.lists(SKETCH, min_size=1, max_size=12), SKETCH)
def test_the_nearest_row_is_that_of_all_pairs(known, asked):
    overlaps = [len(asked & own) / max(1, len(asked | own)) for own in known]
    place, overlap = Sketches(known).nearest(asked)
    if max(overlaps) >= NEAR:
        assert overlap == max(overlaps) == overlaps[place]
    else:
        assert overlap < NEAR


@settings(deadline=None)
@given(st.lists(st.frozensets(st.integers(0, 40), min_size=10), min_size=1, max_size=8), st.data())
def test_a_row_with_one_feature_more_or_less_is_found(known, data):
    own = data.draw(st.sampled_from(known))
    changed = own ^ {data.draw(st.integers(0, 40))}
    assert Sketches(known).nearest(changed)[1] >= 0.9


def test_rows_without_features_are_near_to_nothing():
    assert Sketches([frozenset(), frozenset("ab")]).nearest(frozenset()) == (0, 0.0)
    assert Sketches([frozenset()]).nearest(frozenset("ab"))[1] == 0


def test_texts_that_differ_in_a_word_are_named_with_both_places():
    text = "a long and winding sentence about nothing at all that goes on and on until the very end of it"
    train = [Placed("train.csv", 2, {"text": "other words"}), Placed("train.csv", 3, {"text": text})]
    test = [Placed("test.csv", 7, {"text": text.replace("very ", "")}), Placed("test.csv", 8, {"text": "no words"})]
    assert near(train, {"test": test}, task("text-classification")) == [("test", test[0], train[1])]
