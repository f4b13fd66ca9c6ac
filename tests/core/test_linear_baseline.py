"""The linear baseline against scikit-learn itself: classes, labels that are not all known, numbers, many rows."""

import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

from deltatune.core.linear_baseline import MOST_ROWS, chosen, linear
from deltatune.core.registry import task


def fitted(values):
    return task("text-classification").fit([{"text": str(n), "label": v} for n, v in enumerate(values)])


def vectors(count, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, 6))
    return x, x[:, 0] - x[:, 1] + generator.normal(0, 0.3, count)


def test_the_linear_baseline_is_that_of_scikit_learn():
    (x, score), (asked, _) = vectors(80), vectors(20, 1)
    names = [["low", "middle", "top"][int(s > -0.5) + int(s > 0.5)] for s in score]
    name, answers = linear(fitted(names), x, names, asked)
    reference = LogisticRegression(max_iter=1_000).fit(x - x.mean(0), names)
    expected = reference.predict_proba(asked - x.mean(0))
    found = [[answer["probabilities"][label] for label in reference.classes_] for answer in answers]
    assert name == "logistic regression"
    assert np.allclose(found, expected, atol=1e-6)
    assert [answer["label"] for answer in answers] == reference.predict(asked - x.mean(0)).tolist()
    name, answers = linear(fitted(list(score)), x, list(score), asked)
    assert name == "ridge regression"
    assert np.allclose([a["value"] for a in answers], Ridge().fit(x, score).predict(asked), atol=1e-9)


def test_labels_beside_each_other_are_learned_from_the_rows_where_they_are_known():
    (x, score), (asked, _) = vectors(80), vectors(20, 1)
    values = [{"a": None if n < 30 else int(s > 0), "b": 0} for n, s in enumerate(score)]
    _, answers = linear(fitted(values), x, values, asked)
    mean = x.mean(0)
    reference = LogisticRegression(max_iter=1_000).fit(x[30:] - mean, score[30:] > 0)
    expected = reference.predict_proba(asked - mean)[:, 1]
    assert np.allclose([answer["probabilities"]["a"] for answer in answers], expected, atol=1e-6)
    assert all(answer["probabilities"]["b"] == 0 for answer in answers)
    assert [answer["labels"] == ["a"] for answer in answers] == (expected >= 0.5).tolist()


def test_many_rows_are_sampled_and_few_are_taken_whole():
    assert chosen(7) == list(range(7))
    used = chosen(3 * MOST_ROWS)
    assert len(used) == len(set(used)) == MOST_ROWS and used == sorted(used) and used[-1] > 2 * MOST_ROWS
