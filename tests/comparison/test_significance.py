"""Intervals and tests against their closed forms, and how often they cry wolf."""

import math

import numpy as np
import pytest

from deltatune.comparison import significance
from deltatune.core.registry import task

ROWS = [{"text": str(number), "label": "ab"[number % 2]} for number in range(400)]
TASK = task("text-classification").fit(ROWS)


def answered(right):
    """Answers that are right where told."""
    other = {"a": "b", "b": "a"}
    labels = [row["label"] if good else other[row["label"]] for row, good in zip(ROWS, right, strict=True)]
    return [{"label": label, "score": 1.0, "probabilities": {"a": 0.5, "b": 0.5}} for label in labels]


def luck(share, seed):
    return np.random.default_rng(seed).random(len(ROWS)) < share


def test_one_seed_has_the_standard_error_of_a_share():
    right = luck(0.8, 0)
    drawn = significance.draws(TASK, "accuracy", ROWS, {"one": [answered(right)]})["one"]
    share = right.mean()
    assert drawn.mean() == pytest.approx(share, abs=0.003)
    assert drawn.std() == pytest.approx(math.sqrt(share * (1 - share) / len(ROWS)), rel=0.06)


def test_a_difference_is_drawn_in_pairs():
    first = luck(0.8, 0)
    second = first.copy()
    second[:12] = ~second[:12]  # differs in 12 rows only
    drawn = significance.draws(TASK, "accuracy", ROWS, {"a": [answered(first)], "b": [answered(second)]})
    each = first.astype(float) - second.astype(float)
    assert (drawn["a"] - drawn["b"]).std() == pytest.approx(each.std() / math.sqrt(len(ROWS)), rel=0.1)
    assert (drawn["a"] - drawn["b"]).std() < 0.5 * drawn["a"].std()


def test_seeds_that_differ_widen_the_interval():
    same = [answered(luck(0.8, 0))] * 3
    apart = [answered(luck(share, 0)) for share in (0.7, 0.8, 0.9)]
    drawn = significance.draws(TASK, "accuracy", ROWS, {"same": same, "apart": apart})
    assert drawn["apart"].std() > 1.5 * drawn["same"].std()


def test_a_share_of_rows_and_the_metric_itself_are_drawn_alike(monkeypatch):
    monkeypatch.setattr(significance, "DRAWS", 400)
    answers = {"a": [answered(luck(0.75, 3))]}
    by_rows = significance.draws(TASK, "accuracy", ROWS, answers)["a"]
    by_metric = significance.draws(TASK, "macro_f1", ROWS, answers)["a"]
    assert by_metric.std() == pytest.approx(by_rows.std(), rel=0.15)  # two classes of one size: nearly the same
    assert by_metric.mean() == pytest.approx(by_rows.mean(), abs=0.01)


def test_two_equals_are_rarely_told_apart_and_a_true_difference_nearly_always():
    p_equal, p_apart = [], []
    for seed in range(60):
        answers = {
            n: [answered(luck(s, 1000 * seed + k))] for k, (n, s) in enumerate([("a", 0.8), ("b", 0.8), ("c", 0.6)])
        }
        drawn = significance.draws(TASK, "accuracy", ROWS, answers)
        means = {
            name: np.mean([a["label"] == r["label"] for a, r in zip(answers[name][0], ROWS, strict=True)])
            for name in "abc"
        }
        p_equal.append(significance.p_value(means["a"] - means["b"], drawn["a"] - drawn["b"]))
        p_apart.append(significance.p_value(means["a"] - means["c"], drawn["a"] - drawn["c"]))
    assert np.mean(np.array(p_equal) < 0.05) < 0.15
    assert np.mean(np.array(p_apart) < 0.05) > 0.95


def test_holm_keeps_the_order_and_never_shrinks_a_p_value():
    p_values = {"a": 0.001, "b": 0.2, "c": 0.02, "d": 0.9}
    found = significance.holm(p_values)
    assert found == pytest.approx({"a": 0.004, "c": 0.06, "b": 0.4, "d": 0.9})
    assert significance.holm({}) == {}
