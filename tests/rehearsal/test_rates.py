"""The range test on curves whose answer is known, and the labels that look wrong on features that tell the classes."""

import math
import sys

import numpy as np
import pytest

import deltatune
from deltatune.rehearsal.labels_line import frequent
from deltatune.rehearsal.rate_line import judged_rate
from deltatune.rehearsal.rates import Sweep
from deltatune.rehearsal.suspected import folds_of, judged_by_others
from rehearsal.planted import texts

RATES = np.geomspace(1e-5, 1e-1, 41).tolist()


def curve(falls=1e-3, flies=2e-2):
    """1 up to a rate, down to 0.4, and above 1 from another rate on."""
    return [1.0 if r < falls else 1.5 if r >= flies else max(0.4, 1 - math.log10(r / falls)) for r in RATES]


def test_the_rate_at_which_it_flies_off_and_where_the_fall_begins():
    found = Sweep(RATES, curve())
    assert found.fell and found.diverges_at == pytest.approx(2e-2, rel=0.3)
    assert RATES[found.falls_at] == pytest.approx(1.26e-3, rel=0.3)
    low, high = found.suggested
    assert low == pytest.approx(found.diverges_at / 30) and high == pytest.approx(found.diverges_at / 5)


def test_a_bump_from_which_it_comes_back_is_no_divergence():
    losses = curve()
    losses[RATES.index(min(RATES, key=lambda r: abs(r - 4e-3)))] = 1.2
    assert Sweep(RATES, losses).diverges_at == pytest.approx(2e-2, rel=0.3)


def test_a_loss_that_is_not_finite_ends_it():
    losses = [loss for loss, rate in zip(curve(), RATES, strict=True) if rate < 2e-2]
    assert Sweep(RATES, losses).diverges_at == pytest.approx(2e-2, rel=0.3)


def test_a_range_without_divergence_ends_nowhere():
    found = Sweep(RATES, curve(flies=1.0))
    assert found.diverges_at is None and found.suggested[1] < RATES[-1]


@pytest.mark.parametrize(
    ("rate", "total", "status", "word"),
    [
        (2e-3, 1.0, "pass", "looks good"),
        (3e-2, 1.0, "warn", "too high"),
        (2e-1, 1.0, "fail", "far too high"),
        (2e-6, 1.0, "pass", "looks good"),  # many steps
        (2e-6, 1e-3, "warn", "low"),
        (2e-6, 1e-4, "fail", "change nothing"),
    ],
)
def test_a_rate_is_judged_by_the_curve_and_by_all_its_steps(rate, total, status, word):
    line = judged_rate(Sweep(RATES, curve()), rate, total)
    assert line.status == status and word in line.seen


def test_a_loss_that_falls_nowhere_is_a_fault_of_something_else():
    line = judged_rate(Sweep(RATES, [1.0] * 20 + [1.4] * 21), 1e-3, 1.0)
    assert line.status == "fail" and "at no rate" in line.seen


# -- labels


def blobs(count=600, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    return np.eye(8)[labels] * 6 + generator.normal(size=(count, 8)), labels


def test_flipped_labels_are_found_and_no_others():
    features, labels = blobs()
    wrong = np.arange(0, 600, 25)
    given = labels.copy()
    given[wrong] = (labels[wrong] + 1) % 3
    judged = judged_by_others(features, given, folds_of(given))
    found = judged.suspected()
    assert {row for row, _ in found} <= set(wrong.tolist()) and len(found) >= 0.9 * len(wrong)
    assert all(likely == labels[row] for row, likely in found) and judged.auc > 0.9 > judged.guessing


def test_labels_that_have_nothing_to_do_with_the_features_are_guessing():
    features, labels = blobs()
    labels = np.random.default_rng(1).permutation(labels)
    judged = judged_by_others(features, labels, folds_of(labels))
    assert judged.auc <= judged.guessing and judged.guessing == pytest.approx(0.5, abs=0.08)


def test_rows_of_a_group_do_not_judge_each_other():
    """Features that name the group tell its label only to rows of the group itself."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 10)
    labels = generator.integers(0, 2, 30)[groups]
    features = np.eye(30)[groups] * 5 + generator.normal(size=(300, 30)) * 0.1
    assert judged_by_others(features, labels, folds_of(labels)).auc > 0.95
    apart = judged_by_others(features, labels, folds_of(labels, groups.tolist()))
    assert apart.auc < 0.7


@pytest.mark.parametrize("group_of", [lambda row, label: row % 3, lambda row, label: "one" if label else row % 6])
def test_groups_that_cannot_judge_each_other_are_left_alone(group_of):
    labels = np.arange(90) % 3
    assert folds_of(labels, [group_of(row, label) for row, label in enumerate(labels)]) is None


def test_few_rows_are_judged_without_the_classes_that_are_rare_among_them():
    """Of 30 classes 60 rows have a few of each, and of some none at all."""
    labels = [f"rare {n % 30}" if n % 3 else "abc"[n // 3 % 3] for n in range(600)]
    pairs = frequent([({}, {}, label) for label in labels], 60)
    assert len(pairs) == 60 and {label for _, _, label in pairs} == {"a", "b", "c"}


def test_a_picture_that_cannot_be_made_is_said_and_stops_nothing(tmp_path, monkeypatch):
    lines = rehearsed(tmp_path, plot=tmp_path / "no such folder" / "rates.png")
    assert lines["learning rate"].status == "pass" and "no picture" in lines["learning rate"].seen
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    lines = rehearsed(tmp_path, plot=tmp_path / "rates.png")
    assert "matplotlib is missing" in lines["learning rate"].seen and not (tmp_path / "rates.png").exists()


def rehearsed(place, plot):
    done = deltatune.rehearse(texts(place) / "run.yaml", budget_s=4, plot=plot)
    return {line.name: line for line in done.lines}
