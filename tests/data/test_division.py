"""Groups, near-duplicates, files and folders, and tasks that make their own rows."""

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltatune.core.config import DataSettings
from deltatune.core.division import by_group, by_size
from deltatune.core.errors import DataError
from deltatune.core.registry import task
from deltatune.data.check import Placed
from deltatune.data.load import load
from deltatune.data.near import NEAR, near
from deltatune.data.read import read


@given(st.lists(st.integers(0, 30), min_size=40, max_size=200), st.integers(0, 5))
def test_no_group_is_in_two_parts_and_no_row_is_lost(groups, seed):
    parts = by_group(groups, {"validation": 0.1, "test": 0.2}, seed)
    assert sorted(row for part in parts.values() for row in part) == list(range(len(groups)))
    sets = [{groups[row] for row in part} for part in parts.values()]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


def test_parts_have_their_shares_where_groups_are_small():
    groups = [index // 3 for index in range(600)]
    parts = by_group(groups, {"validation": 0.1, "test": 0.2}, 1)
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [420, 60, 120]


@pytest.mark.parametrize("seed", range(20))
def test_the_division_by_size_keeps_groups_whole_and_the_largest_in_train(seed):
    chance = np.random.default_rng(seed)
    groups = chance.zipf(1.6, 200).clip(max=40).tolist()
    shares = {"validation": 0.1, "test": 0.15}
    parts = by_size(groups, shares, seed)
    assert sorted(row for part in parts.values() for row in part) == list(range(200))
    held = {name: {groups[row] for row in part} for name, part in parts.items()}
    assert not (held["train"] & held["validation"] or held["train"] & held["test"] or held["validation"] & held["test"])
    assert all(len(parts[name]) <= round(share * 200) for name, share in shares.items())
    largest = max(set(groups), key=groups.count)
    assert largest in held["train"]
    if all(count == 1 for count in map(groups.count, held["test"])):
        assert len(parts["test"]) == 30  # single rows always fill what is left
    assert by_size(groups, shares, seed) == parts


def test_the_division_by_size_is_that_of_moleculenet_where_every_part_fits():
    """Wu et al. 2018 fill train, then validation, then test with whole scaffolds, the largest first."""
    groups = [name for name, size in zip("abcdefghi", (30, 20, 12, 8, 10, 9, 6, 4, 1)) for _ in range(size)]
    parts = {"train": [], "validation": [], "test": []}
    for name in sorted(set(groups), key=lambda name: -groups.count(name)):
        own = [row for row, other in enumerate(groups) if other == name]
        fits = next(p for p, size in (("train", 80), ("validation", 10), ("test", 99)) if len(parts[p] + own) <= size)
        parts[fits] += own
    assert {name: sorted(rows) for name, rows in parts.items()} == by_size(groups, {"validation": 0.1, "test": 0.1}, 3)


def written(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


WORDS = ["film", "plot", "actor", "scene", "music", "light", "story", "camera", "humour", "drama", "pace", "end"]


def reviews(number, seed=0):
    draw = random.Random(seed)
    return [
        {"text": " ".join(draw.choices(WORDS, k=12)) + f" {index}", "label": "ab"[index % 2], "patient": index // 4}
        for index in range(number)
    ]


def test_rows_of_one_group_stay_in_one_split(tmp_path):
    path = written(tmp_path, reviews(200))
    splits = load(DataSettings(train=path, group_column="patient"), task("text-classification"), tmp_path)
    groups = [{row["group"] for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, groups)) == 50 and len(set.union(*groups)) == 50
    assert len(splits.test) == 20


def test_a_group_that_two_files_share_stops_unless_allowed(tmp_path, caplog):
    rows = reviews(240)
    for row in rows[200:]:
        row["patient"] = str(row["patient"] - 1)  # the first one is the last of the training rows
    path = written(tmp_path, rows[:200])
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[200:]))
    data = DataSettings(train=path, test="test.jsonl", group_column="patient", validation_fraction=0.04)
    with pytest.raises(
        DataError, match=r"1 groups of test stand in (train|validation) too \(patient\): 49;.*allow_overlap"
    ):
        load(data, task("text-classification"), tmp_path)
    allowed = data.model_copy(update={"allow_overlap": True})
    assert len(load(allowed, task("text-classification"), tmp_path).test) == 40
    assert "1 groups of test stand in" in caplog.text
    plain = [{"text": row["text"], "label": row["label"]} for row in rows[200:]]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    assert len(load(data, task("text-classification"), tmp_path).test) == 40  # without the column nothing is known


def test_a_group_column_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no column 'patent' that groups the rows .* did you mean patient"):
        load(
            DataSettings(train=written(tmp_path, reviews(20)), group_column="patent"),
            task("text-classification"),
            tmp_path,
        )


@pytest.mark.parametrize("odd", [None, "", " ", [1], {"a": 1}, float("nan")])
def test_a_row_of_no_group_is_rejected(tmp_path, odd):
    rows = reviews(60)
    rows[7]["patient"] = odd
    data = DataSettings(train=written(tmp_path, rows), group_column="patient", max_rejected=0.1)
    (rejected,) = load(data, task("text-classification"), tmp_path).rejected
    assert rejected.line == 8 and rejected.reason.startswith("patient is ")


def test_rows_that_nearly_repeat_a_training_row_are_reported(tmp_path, caplog):
    train, test = reviews(40), reviews(10, seed=1)
    test[3] = {**train[7], "text": train[7]["text"].replace(" 7", " 777")}
    (tmp_path / "a").mkdir()
    data = DataSettings(train=written(tmp_path, train), test=written(tmp_path / "a", test))
    splits = load(data, task("text-classification"), tmp_path)
    assert len(splits.near) == 1 and "rows.jsonl:4 ~ train" in splits.near[0]
    assert "nearly repeat" in caplog.text


@given(
    st.lists(st.sets(st.integers(0, 12), max_size=9), max_size=12), st.lists(st.sets(st.integers(0, 12)), max_size=6)
)
def test_prefix_filtering_finds_what_comparing_all_pairs_finds(ours, theirs):
    class Sketched:
        def sketch(self, row):
            return row

    places = [Placed("train", i, row) for i, row in enumerate(ours, 1)]
    others = [Placed("test", i, row) for i, row in enumerate(theirs, 1)]
    found = {place.line for _, place, _ in near(places, {"test": others}, Sketched())}
    expected = {
        place.line
        for place in others
        if place.row and any(len(place.row & row) / len(place.row | row) >= NEAR for row in ours)
    }
    assert found == expected


def test_a_folder_gives_its_files_the_names_of_their_folders(tmp_path):
    for name in ("cat/1.png", "cat/deep/2.jpg", "dog/3.PNG", "dog/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    table = read(str(tmp_path), tmp_path)
    assert [(r.values["path"].removeprefix(str(tmp_path)), r.values["label"]) for r in table.records] == [
        ("/cat/1.png", "cat"),
        ("/cat/deep/2.jpg", "cat"),
        ("/dog/3.PNG", "dog"),
    ]
    one = read(str(tmp_path / "dog/3.PNG"), tmp_path)
    assert [record.values for record in one.records] == [{"path": str(tmp_path / "dog/3.PNG")}]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file of a known kind"):
        read(str(tmp_path / "empty"), tmp_path)


def test_a_json_file_is_a_list_of_objects(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"text": "a", "label": 1}, 3]')
    table = read(str(path), tmp_path)
    assert table.columns == ("text", "label") and table.records[1].problem == "expected an object, found int"
    path.write_text('{"text": "a"}')
    with pytest.raises(DataError, match="expected a list of objects, found dict"):
        read(str(path), tmp_path)
