"""Verdict: no more is claimed than the intervals show."""

import pytest

from deltatune.core.interval import wilson
from deltatune.report.verdict import verdict


def results(value, interval, baseline, metric="accuracy", rows=100, **baselines):
    return {
        "metric": metric,
        "test": {metric: value, "interval": interval, "rows": rows},
        "before": {metric: baseline, "interval": [baseline, baseline]},
        "baseline": {"name": "constant", metric: baseline},
        "baselines": {name: {metric: own} for name, own in baselines.items()},
    }


@pytest.mark.parametrize(
    ("value", "tone", "standing"),
    [(0.9, "good", "better"), (0.55, "open", "no difference shown"), (0.2, "bad", "worse")],
)
def test_a_share_of_rows_has_an_interval_for_the_baseline_too(value, tone, standing):
    found = verdict(results(value, wilson(value, 100), 0.5), lower=False)
    assert found.tone == tone and found.rivals[0].standing == standing
    assert found.rivals[0].interval == pytest.approx(wilson(0.5, 100))


def test_intervals_that_touch_are_no_difference():
    """A point outside of our interval is not enough where the baseline's own interval reaches into it."""
    found = verdict(results(0.62, wilson(0.62, 100), 0.5), lower=False)
    assert wilson(0.62, 100)[0] > 0.5 and found.rivals[0].standing == "no difference shown"
    assert found.headline == "No better than constant shown."
    assert "No difference from constant (0.5000) is shown: the intervals overlap." in found.sentences


@pytest.mark.parametrize(("value", "standing"), [(1.0, "better"), (2.0, "no difference shown"), (3.0, "worse")])
def test_of_an_error_less_is_better(value, standing):
    found = verdict(results(value, [value - 0.3, value + 0.3], 2.0, metric="mae"), lower=True)
    assert found.rivals[0].standing == standing and found.rivals[0].interval is None


def test_each_rival_is_named_with_its_value():
    found = verdict(results(0.7, [0.65, 0.75], 0.1, metric="micro_f1", tree=0.7, forest=0.9), lower=False)
    text = " ".join(found.sentences)
    assert "Better than constant (0.1000) and the model before training (0.1000)." in text
    assert (
        "No difference from tree (0.7000) is shown: what is known of them lies within" in text
        and "Worse than forest (0.9000)." in text
    )
    assert found.headline == "Forest did better."


def test_a_rival_without_the_metric_is_left_out():
    given = results(0.7, [0.6, 0.8], 0.5)
    given["baseline"] = {"name": "constant"}
    assert [rival.name for rival in verdict(given, lower=False).rivals] == ["the model before training"]
