"""CoNLL files: sentences with their lines, comments, documents, columns, and what cannot be read."""

from pathlib import Path

import pytest

from deltatune.core.errors import DataError
from deltatune.data.read import read


def table(folder: Path, text: str | bytes, name: str = "a.conll"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(name, folder)


def test_sentences_end_at_blank_lines_and_know_their_first_line(tmp_path):
    found = table(tmp_path, "\n\nthe O\nfilm O\n\n  \nRome B-LOC\n")
    assert found.columns == ("tokens", "tags")
    assert [(r.line, r.values["tokens"], r.values["tags"]) for r in found.records] == [
        (3, ["the", "film"], ["O", "O"]),
        (7, ["Rome"], ["B-LOC"]),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_first_and_last_column_count_whatever_is_between(tmp_path, newline):
    lines = ["-DOCSTART- -X- -X- O", "", "EU NNP B-NP B-ORG", "rejects VBZ B-VP O", "", ""]
    (record,) = table(tmp_path, newline.join(lines)).records
    assert record.values == {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "document": 1}


def test_tabs_keep_spaces_inside_of_tokens(tmp_path):
    (record,) = table(tmp_path, "New York\tB-LOC\n\u00a0\tO\n", "a.bio").records
    assert record.values["tokens"] == ["New York", "\u00a0"]


def test_documents_are_numbered(tmp_path):
    found = table(tmp_path, "-DOCSTART- O\n\na O\n\nb O\n-DOCSTART- O\nc O\n")
    assert found.columns == ("tokens", "tags", "document")
    assert [record.values["document"] for record in found.records] == [1, 1, 2]


def test_comments_are_no_words_and_a_number_sign_is_one(tmp_path):
    found = table(tmp_path, "# id 6f2 domain=en\nthe _ _ O\n# _ _ O\nfilm _ _ O\n# text = the film\n")
    assert [record.values["tokens"] for record in found.records] == [["the", "#", "film"]]


def test_words_without_tags_can_be_answered(tmp_path):
    found = table(tmp_path, "the\nfilm\n\nRome\n")
    assert found.columns == ("tokens",)
    assert [record.values["tokens"] for record in found.records] == [["the", "film"], ["Rome"]]


def test_lines_that_cannot_be_read_are_a_problem_of_their_sentence(tmp_path):
    found = table(tmp_path, b"a O\nb\n\nc O\n\n\xff O\n\nd\x00 O\n")
    assert [(record.line, record.problem) for record in found.records] == [
        (1, "columns are missing or too many (line 2 has 1 instead of 2)"),
        (4, None),
        (6, "not UTF-8 text (line 6: invalid start byte at byte 0)"),
        (8, "a word holds a NUL byte (line 8)"),
    ]


def test_a_text_file_must_be_tagged(tmp_path):
    assert table(tmp_path, "Rome B-LOC\nis O\n", "a.txt").columns == ("tokens", "tags")
    with pytest.raises(DataError, match="not tagged text"):
        table(tmp_path, "It was a good film.\nI would see it again.\n", "b.txt")


@pytest.mark.parametrize("text", ["", "\n\n", "# only this\n", "-DOCSTART- O\n"])
def test_a_file_without_a_word_is_empty(tmp_path, text):
    with pytest.raises(DataError, match="has no rows"):
        table(tmp_path, text)
