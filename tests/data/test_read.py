"""Every kind of file, and every way in which a file can be wrong."""

import contextlib
import json
import random

import pytest

from deltatune.core.errors import DataError
from deltatune.data.read import read


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path.name


def test_a_csv_row_knows_its_line_across_quoted_newlines(tmp_path):
    name = write(tmp_path / "a.csv", 'text,label\n"two\nlines, quoted",x\nplain,y\n')
    table = read(name, tmp_path)
    assert [(r.line, r.values["text"]) for r in table.records] == [(2, "two\nlines, quoted"), (4, "plain")]


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_the_text(tmp_path):
    name = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\r\ngood,x\r\n")
    table = read(name, tmp_path)
    assert table.columns == ("text", "label")
    assert table.records[0].values == {"text": "good", "label": "x"}


def test_tabs_and_json_lines_are_read(tmp_path):
    assert read(write(tmp_path / "a.tsv", "text\tlabel\na, b\t1\n"), tmp_path).records[0].values["text"] == "a, b"
    rows = read(write(tmp_path / "a.jsonl", '{"text": "a"}\n\n{"text": "b", "more": 1}\n'), tmp_path)
    assert [(r.line, r.values["text"]) for r in rows.records] == [(1, "a"), (3, "b")]
    assert rows.columns == ("text", "more")


def test_parquet_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1]}), tmp_path / "a.parquet")
    assert [r.values for r in read("a.parquet", tmp_path).records] == [
        {"text": "a", "label": 0},
        {"text": "b", "label": 1},
    ]


def test_values_of_parquet_that_python_has_no_word_for_are_a_problem_of_their_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet

    texts = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    pa.parquet.write_table(pa.table({"text": texts, "label": [0, 1]}), tmp_path / "a.parquet")
    times = pa.array([0, 1 << 62], pa.timestamp("us"))
    pa.parquet.write_table(pa.table({"time": times}), tmp_path / "b.parquet")
    for name, problem in (("a.parquet", "not UTF-8 text"), ("b.parquet", "a value cannot be read")):
        good, bad = read(name, tmp_path).records
        assert good.problem is None
        assert problem in bad.problem and bad.line == 2


def test_damaged_parquet_is_an_error_of_ours_or_other_rows(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"] * 9, "tags": [["x"], None] * 9}), path)
    sound, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        broken = bytearray(sound)
        for _ in range(chance.randint(1, 5)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        path.write_bytes(broken)
        with contextlib.suppress(DataError):
            assert read("a.parquet", tmp_path).records


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": ', "not valid JSON"),
        (b'["a"]', "expected an object"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (json.dumps({"text": "a\x00b"}).encode(), "NUL byte"),
    ],
)
def test_a_broken_json_line_is_a_problem_of_that_row(tmp_path, line, problem):
    name = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n")
    good, bad = read(name, tmp_path).records
    assert good.problem is None
    assert problem in bad.problem
    assert bad.line == 2


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"a,b,c", "3 fields instead of 2"),
        (b"only", "1 fields instead of 2"),
        (b"\xfftext,x", "not UTF-8"),
        (b"a\x00b,x", "NUL byte"),
    ],
)
def test_a_broken_csv_row_is_a_problem_of_that_row(tmp_path, line, problem):
    records = read(write(tmp_path / "a.csv", b"text,label\ngood,x\n" + line + b"\nlast,y\n"), tmp_path).records
    assert [r.problem is None for r in records] == [True, False, True]
    assert problem in records[1].problem
    assert records[1].line == 3


def test_a_replacement_character_that_stands_in_the_file_is_text(tmp_path):
    assert read(write(tmp_path / "a.csv", "text\nodd \ufffd sign\n"), tmp_path).records[0].problem is None


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", "", "is empty"),
        ("b.csv", "text,label\n", "has no rows"),
        ("c.csv", "text,text\na,b\n", "stands there twice"),
        ("d.jsonl", "", "has no rows"),
        ("e.xlsx", "x", "unknown kind of file '.xlsx'; known: .csv"),
        ("f.parquet", "no", "not a readable Parquet file"),
    ],
)
def test_files_without_rows_are_errors(tmp_path, name, data, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, data), tmp_path)


def test_a_missing_file_names_near_files(tmp_path):
    write(tmp_path / "train.csv", "text\na\n")
    with pytest.raises(DataError, match=r"trian.csv: no such file; did you mean .*train.csv"):
        read("trian.csv", tmp_path)


def test_a_data_set_that_cannot_be_had_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="neither a file nor a data set"):
        read("nobody/nothing", tmp_path)
    with pytest.raises(DataError, match="no such file of rows"):
        read("./folder/sub/thing", tmp_path)
