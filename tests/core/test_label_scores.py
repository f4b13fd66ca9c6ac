"""Scores of labels that are our own, against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from deltatune.core.label_scores import ranking, ranking_of_several, regression

ROWS = st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(truth for truth, _ in rows) < len(rows)
)


@settings(deadline=None)
@given(ROWS)
def test_rankings_with_ties_are_those_of_scikit_learn(rows):
    truth, chances = np.array([t for t, _ in rows]), np.array([c / 7 for _, c in rows])
    expected = {
        "auc": pytest.approx(metrics.roc_auc_score(truth, chances)),
        "average_precision": pytest.approx(metrics.average_precision_score(truth, chances)),
    }
    scores = [{"no": 1 - chance, "yes": chance} for chance in chances]
    assert ranking(["yes" if t else "no" for t in truth], scores, ["no", "yes"]) == expected
    several = np.where(truth, 1.0, 0.0)[:, None]
    assert ranking_of_several(several, chances[:, None]) == {**expected, "ranked_labels": 1}


def test_numbers_of_a_model_that_has_flown_off_have_no_scores():
    found = regression([1.0, 2.0, 3.0], [1.0, float("nan"), 3.0])
    assert set(found) == set(regression([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])) and all(np.isnan(list(found.values())))
