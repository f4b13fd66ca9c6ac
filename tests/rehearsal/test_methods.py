"""Methods with phases, penalties, side networks and prompts are rehearsed like any other; the base stays as it is."""

import pytest

from rehearsal.planted import run, texts, wrong

UNSURE = ("learning rate", "one batch")
"""A tiny random model and a few steps say little of rates."""
METHODS = {
    "adalora": {},  # ranks are shared out in phases of the whole training
    "diff-pruning": {},  # a penalty, twice as many values as the base
    "fish": {},  # the mask is chosen in the first steps
    "ladder": {},  # a network beside the base
    "prompt": {"num_virtual_tokens": 4},
    "spiel": {},  # tensors that change their places
}


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_method_saves_resumes_and_leaves_the_base(tmp_path, name):
    lines = run(
        texts(tmp_path, method={"type": name, **METHODS[name]}, task={"type": "text-classification", "max_length": 24}),
        accept=UNSURE,
    )
    assert wrong(lines) == []
    assert "equal to the bit" in lines["save and load"].seen and "equal to the bit" in lines["kill and resume"].seen
    assert lines["base"].status == "pass" and lines["merge"].status in ("pass", "skip")
