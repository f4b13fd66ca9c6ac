"""Rows that turn out to be of no use once they are encoded."""

import pytest

from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError
from deltatune.data.load import load
from deltatune.data.usable import usable
from deltatune.tasks.text_classification import TextClassification
from words import csv_file, reviews


class Picky(TextClassification):
    """Has no use for texts that begin with an X, which shows when they are encoded."""

    def encode(self, rows, processor):
        return [{"begins": row["text"][0]} for row in rows]

    def unusable(self, example):
        return "begins with an X" if example["begins"] == "X" else None


def splits(tmp_path, bad):
    rows = reviews(60)
    for index in bad:
        rows[index]["text"] = f"X{rows[index]['text']}"
    csv_file(tmp_path / "rows.csv", rows)
    return load(DataSettings(train="rows.csv"), Picky(), tmp_path)


def test_they_are_rejected_with_their_place_and_the_others_keep_their_examples(tmp_path):
    found = splits(tmp_path, [3, 40])
    left, examples = usable(found, None, 0.5)
    assert sorted((row.line, row.reason) for row in left.rejected) == [
        (5, "begins with an X"),
        (42, "begins with an X"),
    ]
    assert sum(map(len, left.parts.values())) == 58
    for name, rows in left.parts.items():
        assert [example["begins"] for example in examples[name]] == [row["text"][0] for row in rows]


def test_too_many_of_them_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"rows rejected \(1 x begins with an X\).*data.max_rejected"):
        usable(splits(tmp_path, [3]), None, 0.001)
