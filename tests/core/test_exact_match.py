"""The part of an answer that has to be right."""

import pytest

from deltatune.core.exact_match import line, matches, number


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It is 5.\n#### 72", "72"),
        ("#### 1,234", "1234"),
        ("#### $70,000.00", "70000"),
        ("#### -3", "-3"),
        ("5 #### none, so 7", "7"),
        ("5 #### none", "5"),
        ("The answer is 12.", "12"),
        ("10-4 = 6", "6"),
        ("x = -0.50", "-0.5"),
        ("half is .5", "0.5"),
        ("007", "7"),
        ("-0", "0"),
        ("in all 3,", "3"),
        ("seven", None),
        ("", None),
    ],
)
def test_numbers(answer, expected):
    assert number(answer) == expected


def test_lines():
    assert line("a\n\n b  c \n") == "b c"
    assert line(" \n") is None


@pytest.mark.parametrize(
    ("extractor", "answer", "wanted", "right"),
    [
        ("number", "so 3 * 4 = 12", "#### 12.0", True),
        ("number", "#### 12", "#### 13", False),
        ("number", "", "none", False),  # nothing is not equal to nothing
        ("line", "Well.\nYes ", "Yes", True),
        ("line", "", "", False),
    ],
)
def test_answers_match_when_their_parts_are_there_and_equal(extractor, answer, wanted, right):
    assert matches(extractor, answer, wanted) is right
