"""What is no file of rows is refused at once, in little memory; what a stray quote swallows is named row by row."""

import os
import resource
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deltatune.core.errors import DataError
from deltatune.data.lines import LONGEST, lines
from deltatune.data.read import read

TEXT = ("csv", "tsv", "jsonl", "ndjson", "conll", "bio", "txt")


def sparse(path, size, start=b"", end=b""):
    """A file that claims many bytes and takes none of them from the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)
    return path


@pytest.mark.parametrize("kind", [*TEXT, "json"])
def test_ten_gigabytes_without_a_line_end_are_refused_in_little_memory(tmp_path, kind):
    """In a process that may have two gigabytes of address space."""
    path = sparse(tmp_path / f"rows.{kind}", 10 << 30, start=b"text,label\n" if kind == "csv" else b"")
    code = (
        "import sys; from pathlib import Path; from deltatune.data.read import read\n"
        "from deltatune.core.errors import DataError\n"
        "try: read(sys.argv[1], Path('/'))\n"
        "except DataError as error: print(error)"
    )

    def little():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        preexec_fn=little,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.stderr == ""
    assert ("a line of more than" if kind != "json" else "bytes of JSON") in done.stdout


def test_a_long_line_is_refused_with_its_number(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' + " " * (LONGEST + 1))
    with pytest.raises(DataError, match=r"rows.jsonl:2: a line of more than 16,777,216 characters"):
        read("rows.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("text,label\ngood,x\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"\x1f\x8b\x08\x00rest", "is compressed"),
        (b"PK\x03\x04rest", "a zip archive or a spreadsheet"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "conll"])
def test_other_files_under_the_name_of_text_say_what_they_are(tmp_path, kind, data, message):
    (tmp_path / f"rows.{kind}").write_bytes(data)
    with pytest.raises(DataError, match=message):
        read(f"rows.{kind}", tmp_path)


def test_a_quote_that_is_never_closed_costs_the_rows_behind_it_and_names_each(tmp_path):
    rows = [f"text {n},x" for n in range(2, 60)]
    rows[10] = '"text 12,x'
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    records = read("rows.csv", tmp_path).records
    assert [record.line for record in records] == list(range(2, 60))
    assert all(record.problem is None for record in records[:10])
    assert "not valid CSV" in records[10].problem
    assert {record.problem for record in records[11:]} == {"part of the broken row of line 12"}


def test_a_row_of_many_lines_that_look_like_rows_is_spoken_of(tmp_path, caplog):
    rows = [f"text {n},x" for n in range(2, 60)]
    rows[10], rows[30] = '"text 12,x', 'text 32",x'
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    records = read("rows.csv", tmp_path).records
    assert len(records) == 58 - 20
    assert records[10].problem is None
    assert "rows.csv:12: the row takes" in caplog.text and "is a quote left open?" in caplog.text


def test_a_poem_in_quotes_is_one_row_and_nothing_is_said(tmp_path, caplog):
    poem = "\n".join(f"line {n} of the poem" for n in range(40))
    (tmp_path / "rows.csv").write_text(f'text,label\n"{poem}",x\nplain,y\n')
    assert [r.values["text"] for r in read("rows.csv", tmp_path).records] == [poem, "plain"]
    assert not caplog.text


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"text": "a", "text": "b"}', "key 'text' stands there twice"),
        ('{"text": "half \\ud800"}', "text holds half of a surrogate pair"),
        ('{"messages": [{"role": "user", "content": "a\\u0000b"}]}', "messages holds a NUL byte"),
        ('{"text": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_json_allows_and_no_model_reads_is_a_problem_of_its_row(tmp_path, row, problem):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "good"}}\n{row}\n')
    good, bad = read("rows.jsonl", tmp_path).records
    assert good.problem is None
    assert problem in bad.problem and bad.line == 2


def test_ten_thousand_columns_are_read(tmp_path):
    names = [f"c{n}" for n in range(10_000)]
    (tmp_path / "rows.csv").write_text("\n".join([",".join(names), ",".join(["1"] * 10_000), "1,2"]) + "\n")
    table = read("rows.csv", tmp_path)
    assert len(table.columns) == 10_000
    assert [record.problem for record in table.records] == [None, "2 fields instead of 10000"]
    (tmp_path / "twice.csv").write_text(",".join([*names, "c7"]) + "\n")
    with pytest.raises(DataError, match="column 'c7' stands there twice"):
        read("twice.csv", tmp_path)


@example(b"\xef")
@example(b"\xef\xbb")
@example(b"\xef\xbb\xbf")
@given(st.binary(max_size=300))
def test_lines_are_those_of_the_bytes_and_a_bad_one_leaves_its_neighbours(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(data)
    try:
        found = list(lines(path))
    except DataError:
        assert data[:2] in (b"\xff\xfe", b"\xfe\xff", b"\x1f\x8b", b"PK")
        return
    pieces = _pieces(data)
    assert [line.number for line in found] == list(range(1, len(pieces) + 1))
    for line, piece in zip(found, pieces, strict=True):
        assert line.text == piece.decode("utf-8", "replace")
        assert (line.problem is None) == (line.text.encode() == piece)


def _pieces(data):
    parts = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet", "conll", "txt"])
@settings(deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_are_rows_or_an_error_of_ours(tmp_path_factory, kind, data):
    path = tmp_path_factory.getbasetemp() / f"any.{kind}"
    path.write_bytes(data)
    try:
        table = read(str(path), path.parent)
    except DataError:
        return
    assert table.records
    assert all(record.line >= 1 and record.file == str(path) for record in table.records)


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")), min_size=2, max_size=2),
        min_size=1,
    )
)
def test_what_is_written_as_csv_is_read_as_it_was(tmp_path_factory, rows):
    import csv

    path = tmp_path_factory.getbasetemp() / "round.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["a", "b"], *rows])
    records = read(str(path), path.parent).records
    assert [[r.values["a"], r.values["b"]] for r in records] == rows
    assert all(r.problem is None for r in records)
