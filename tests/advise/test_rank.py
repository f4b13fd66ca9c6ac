"""The order of methods, by measurements on reviews and on tasks of the same kind."""

import pytest

from deltatune.advise import rank
from deltatune.advise.evidence import evidence

ASKED = "token-classification"


def compared(monkeypatch, lower_is_better, **methods):
    own = {name: {"mean": mean, "half_width": half} for name, (mean, half) in methods.items()}
    known = {"metric": "f1", "lower_is_better": lower_is_better, "rows": 600, "methods": own}
    monkeypatch.setattr(rank, "evidence", lambda: {**evidence(), "compared": {ASKED: known}})


def tiers(task):
    return {one.name: one.tier for one in rank.table(task)}


@pytest.mark.parametrize(("lower_is_better", "sign"), [(False, 1), (True, -1)])
def test_what_is_behind_on_such_a_task_stands_behind(monkeypatch, lower_is_better, sign):
    plain = tiers("chat")
    compared(
        monkeypatch,
        lower_is_better,
        lora=(sign * 0.60, 0.02),
        adapter=(sign * 0.57, 0.04),  # its own interval is the wider one
        dora=(sign * 0.55, 0.01),
        full=(sign * 0.59, 0.03),
    )
    found = tiers(ASKED)
    assert plain["lora"] == plain["dora"] == plain["full"] == plain["adapter"] == 0
    assert (found["lora"], found["adapter"], found["dora"], found["full"]) == (0, 0, 2, 0)
    assert {name: tier for name, tier in found.items() if name != "dora"} == {
        name: tier for name, tier in plain.items() if name != "dora"
    }


def test_a_good_place_on_such_a_task_hides_no_distance_on_the_reviews(monkeypatch):
    before = tiers("chat")["prompt"]
    compared(monkeypatch, False, prompt=(0.9, 0.01), lora=(0.5, 0.01))
    assert tiers(ASKED)["prompt"] == before > 0 and tiers(ASKED)["lora"] == 40


def test_every_comparison_in_the_package_is_of_methods_that_are_known():
    names = {one.name for one in rank.table("chat")}
    for task, found in evidence()["compared"].items():
        assert set(found["methods"]) <= names, task
