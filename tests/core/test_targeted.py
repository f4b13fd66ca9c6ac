"""Which blocks hold the targeted layers."""

import pytest

import deltatune
from deltatune.core.errors import AdapterError, SettingsError
from deltatune.core.targeted import read_targets
from deltatune.engine.anatomy import Anatomy
from models import tiny


def blocks(chosen):
    method = deltatune.LoRA(target_modules=("query",), layers_to_transform=chosen)
    return [site.block for site in method.sites(Anatomy.of(tiny("bert")))]


@pytest.mark.parametrize(
    ("chosen", "expected"), [(None, [0, 1]), ("top-1", [1]), ("top-2", [0, 1]), ((0,), [0]), ((1, 0), [0, 1])]
)
def test_blocks_are_chosen_from_the_answer_down_or_by_number(chosen, expected):
    assert blocks(chosen) == expected


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((), "leaves no targeted layer"),
        ((0, 5), r"layers_to_transform=\[0, 5\] leaves no targeted layer in block 5"),
        ("top-3", "only 2 blocks hold a targeted layer"),
    ],
)
def test_blocks_that_are_not_there_are_refused(chosen, said):
    with pytest.raises(SettingsError, match=said):
        blocks(chosen)


@pytest.mark.parametrize("named", [{"query": 1}, ["query", 3], [["query"]], [None]])
def test_targets_of_a_file_that_are_no_names_are_refused(named):
    with pytest.raises(AdapterError, match="are not names of modules"):
        read_targets({"target_modules": named})
    assert read_targets({"target_modules": ["query", "value"]})["target_modules"] == ("query", "value")
