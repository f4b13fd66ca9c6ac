"""No row is lost: read = rejected + unused + used and made = rejected + not drawn + kept, for every file and task."""

import csv
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deltatune.core.config import DataSettings
from deltatune.core.errors import DataError, DeltatuneError
from deltatune.core.registry import task
from deltatune.data.accounts import Accounts, FileAccount, PartAccount
from deltatune.data.load import load
from deltatune.data.read import read
from deltatune.data.usable import usable
from deltatune.tasks.text_classification import TextClassification

TASK = task("text-classification")
BAD_TEXTS = (None, "", " ", 7, ["a"], {"a": 1}, "nul \x00", "half \ud800")
"""None of these is a text."""


def written(folder, kind, rows):
    """The rows as a file of a kind; csv has no types, so that numbers and lists are texts there."""
    path = folder / f"rows.{kind}"
    columns = list(rows[0])
    if kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            writer = csv.DictWriter(file, columns, delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    else:
        texts = [{name: value if isinstance(value, str) else None for name, value in row.items()} for row in rows]
        texts = [{name: (value or "").replace("\ud800", "\x00") or None for name, value in r.items()} for r in texts]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(texts), path)
    return path


def check_listed(found, table):
    """Every row of the file is in one part, or listed with line and reason, or was not drawn; none is there twice."""
    kept = Counter(found.places[id(row)].line for part in found.parts.values() for row in part)
    listed = Counter(row.line for row in found.rejected) + Counter(n.line for n in found.notes if n.what == "unused")
    assert all(row.reason and row.file == table.file for row in found.rejected)
    assert max((kept + listed).values()) == 1
    missing = {record.line for record in table.records} - set(kept) - set(listed)
    assert len(missing) == sum(part.not_drawn for part in found.accounts.parts.values())


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    good=st.integers(20, 60),
    bad=st.lists(st.tuples(st.integers(0, 80), st.sampled_from(BAD_TEXTS)), max_size=12),
    repeated=st.lists(st.integers(0, 19), max_size=5),
    drawn=st.none() | st.integers(5, 60),
    seed=st.integers(0, 3),
)
def test_rows_of_every_kind_of_file_add_up(tmp_path, kind, good, bad, repeated, drawn, seed):
    rows = [{"text": f"row {n} of them", "label": "ab"[n % 2]} for n in range(good)]
    for place, text in bad:
        rows.insert(min(place, len(rows)), {"text": text, "label": "a"})
    rows += [{"text": f"ROW {n} of them", "label": "b"} for n in repeated]
    path = written(tmp_path, kind, rows)
    data = DataSettings(train=str(path), max_rejected=0.9, max_rows=drawn, split_seed=seed)
    try:
        found = load(data, TASK, tmp_path)
    except DataError as error:  # all that were drawn have one label
        assert drawn is not None and "only one class" in str(error)
        return
    account = found.accounts.files["train"]
    assert account.read == len(rows)
    assert account.rejected >= len(repeated)
    assert account.used == sum(part.made for part in found.accounts.parts.values()) >= good
    check_listed(found, read(str(path), tmp_path))


class Fussy(TextClassification):
    """Rejects what begins with x only when it is encoded, and cuts what is longer than ten letters."""

    def encode(self, rows, processor):
        return [{"begins": row["text"][0], "truncated": len(row["text"]) > 10, "length": 10} for row in rows]

    def unusable(self, example):
        return "begins with x" if example["begins"] == "x" else None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(("x", "y")), min_size=30, max_size=60), st.sets(st.integers(0, 29), max_size=8))
def test_what_encoding_rejects_and_cuts_is_counted_and_listed_too(tmp_path, begins, long):
    texts = [f"{letter}{n:03}{' and more' if n in long else ''}" for n, letter in enumerate(begins)]
    rows = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(texts)]
    path = written(tmp_path, "jsonl", rows)
    if "y" not in begins:
        return
    try:
        found, examples = usable(load(DataSettings(train=str(path)), Fussy(), tmp_path), None, 1.0)
    except DataError as error:  # nothing of a part is left
        assert "rows rejected" in str(error)
        return
    check_listed(found, read(str(path), tmp_path))
    assert {row.line - 1 for row in found.rejected} == {n for n, letter in enumerate(begins) if letter == "x"}
    cut = {note.line - 1: note.reason for note in found.notes if note.what == "truncated"}
    assert set(cut) == {n for n in long if begins[n] == "y"}
    assert set(cut.values()) <= {"cut to 10 tokens"}
    assert {name: part.kept for name, part in found.accounts.parts.items()} == {
        name: len(own) for name, own in examples.items()
    }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"),
            st.sampled_from("uvwxyz"),
            st.integers(0, 20),
            st.sampled_from((1, 2, 3, 4, 5, None)),
        ),
        min_size=1,
        max_size=60,
    ),
    st.booleans(),
    st.sampled_from((None, 3)),
    st.booleans(),
)
def test_interactions_add_up_however_they_are_divided(tmp_path, given_rows, again, min_rating, own_files):
    words = ("user", "item", "time", "rating")
    path = written(tmp_path, "jsonl", [dict(zip(words, row, strict=True)) for row in given_rows])
    recommendation = task({"type": "recommendation", "again": again, "min_rating": min_rating})
    files = {"validation": str(path), "test": str(path), "allow_overlap": True} if own_files else {}
    try:
        found = load(DataSettings(train=str(path), max_rejected=1.0, **files), recommendation, tmp_path)
    except DataError:
        return
    for name, account in found.accounts.files.items():
        assert account.read == len(given_rows)
        unused = [note for note in found.notes if note.what == "unused" and note.part == name]
        assert len(unused) == account.unused
        assert all(note.line and note.reason for note in unused)
        kept = found.parts[name]
        if own_files and again and min_rating is None:
            assert sum(len(row["items"]) for row in kept) == account.used


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("ab"), st.lists(st.none() | st.floats(-9, 9), max_size=60), min_size=1),
    st.integers(1, 30),
    st.booleans(),
)
def test_values_of_series_add_up_whichever_windows_hold_them(tmp_path, of_series, stride, reject):
    rows = [
        {"series": name, "time": n, "value": value} for name, own in of_series.items() for n, value in enumerate(own)
    ]
    if not rows:
        return
    path = written(tmp_path, "jsonl", rows)
    missing = "reject" if reject else "mask"
    kind = {"type": "forecasting", "context_length": 4, "prediction_length": 2, "stride": stride, "missing": missing}
    try:
        found = load(DataSettings(train=str(path), max_rejected=1.0), task(kind), tmp_path)
    except DataError:
        return
    account = found.accounts.files["train"]
    assert account.read == len(rows)
    assert account.rejected == (sum(row["value"] is None for row in rows) if reject else 0)
    held = {(w["series"], t) for part in found.parts.values() for w in part for t in w["times"]}
    unused = {(note.line, note.reason) for note in found.notes if note.what == "unused"}
    assert len(held) == account.used and len(unused) == account.unused
    lines = {n for n, row in enumerate(rows, 1) if (row["series"], float(row["time"])) in held}
    assert not lines & {line for line, _ in unused}


def test_what_does_not_add_up_is_an_error():
    with pytest.raises(DeltatuneError, match=r"a.csv do not add up: 5 read, 1 rejected \+ 1 unused \+ 2 used.*bug"):
        FileAccount("a.csv", 5, 1, 1, 2)
    part = PartAccount("train", 5, 1, 1, 3)
    accounts = Accounts({"train": FileAccount("a.csv", 5, 0, 0, 5)}, {"train": part})
    assert accounts.after({"train": 1}, {"train": 2}).parts["train"].rejected == 3
    with pytest.raises(DeltatuneError, match="do not add up"):
        accounts.after({"train": 3}, {"train": 1})
